"""Protocols of keypoints: perfect and wrong predictions, duplicates, and points mapped back to their images."""

import numpy as np
import pytest

from facejax.data import keypoints
from facejax.data.keypoints import KeypointImages
from facejax.data.readers.people import CocoPeople, PeopleSource, Person
from facejax.data.synthetic.faces import png
from facejax.evaluate import keypoints as evaluation
from facejax.evaluate.keypoints import Crops

SIZE = (64, 64)


def test_perfect_predictions_score_100(coco_folder):
    source, truth = KeypointImages(kind="coco", path=str(coco_folder)).test()
    points = np.stack([p.points for p in source.people])

    def coco_report(points):
        found = {"points": points, "heights": np.ones((8, 17))}
        return evaluation.coco_report(Crops(source, keypoints.COCO, SIZE), found, truth)

    report = coco_report(points)
    assert report.metrics["ap"] == pytest.approx(100)
    assert report.metrics["ap_medium"] == pytest.approx(100)
    away = coco_report(points + 500)
    assert away.metrics["ap"] == 0


def test_duplicates_are_suppressed(coco_folder):
    annotated = CocoPeople(coco_folder / "annotations/person_keypoints_val2017.json", coco_folder / "images/val2017")
    twice = PeopleSource(annotated.people() * 2)
    points = np.stack([p.points for p in twice.people])
    report = evaluation.coco_report(
        Crops(twice, keypoints.COCO, SIZE), {"points": points, "heights": np.ones((16, 17))}, annotated
    )
    assert report.metrics["ap"] == pytest.approx(100)


def test_perfect_mpii(coco_folder):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 60, (3, 16, 2))
    visible = np.ones((3, 16), bool)
    file = coco_folder / "images/val2017/1.png"
    source = PeopleSource([Person(file, i, (30, 30), (60, 60), points[i], visible[i]) for i in range(3)])
    truth = {"points": points, "visible": visible, "heads": np.tile([0.0, 0, 30, 40], (3, 1))}
    report = evaluation.mpii_report(Crops(source, keypoints.MPII, SIZE), {"points": points + np.array([8, 12])}, truth)
    assert report.metrics["pckh"] == report.metrics["wrist"] == 100  # within half of 30
    assert report.metrics["mean@0.1"] == 0


class Faces:
    """Faces on black images."""

    def __init__(self, points):
        self.points = points

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return {
            "image": png(np.zeros((64, 64, 3), np.uint8)),
            "centre": (32, 32),
            "size": (64, 64),
        }


def test_errors_of_faces():
    points = np.random.default_rng(0).uniform(10, 50, (12, 68, 2))
    size = np.sqrt(np.ptp(points, axis=1).prod(-1))
    shifted = points + np.stack([0.05 * size, 0 * size], 1)[:, None]
    found = {"points": shifted, "peak": points, "shift": shifted, "taylor": points}
    report = evaluation.faces_report(Crops(Faces(points), keypoints.FACE_68, SIZE), found, points)
    assert report.metrics["nme"] == report.metrics["nme_shift"] == pytest.approx(5)
    assert report.metrics["nme_peak"] == report.metrics["failures_at_8"] == 0
    assert report.metrics["auc_at_8"] == pytest.approx(100 * (1 - 5 / 8), abs=0.2)


class EveryFourthPixel:
    """A network whose maps are the image itself."""

    def apply(self, variables, images, train):
        del variables, train
        return images[:, ::4, ::4]


@pytest.mark.parametrize(("flip", "columns", "expected"), [(False, 4, 60), (True, 8, 64)])
def test_points_are_mapped_back_to_their_image(flip, columns, expected):
    """A bright bar, one pixel later in the shifted map of the mirrored crop; the region is half the image."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[41:45, 60 : 60 + columns] = 255
    example = {"image": png(image), "centre": (60.0, 45.0), "size": (64.0, 64.0)}
    crops = Crops([example], keypoints.Layout(np.arange(3)), SIZE)
    options = {"sigma": 1.5, "batch_size": 4, "decode": "peak", "flip": flip}
    found = evaluation.find(EveryFourthPixel(), {}, crops, **options)
    np.testing.assert_allclose(found["points"], [[[expected, 41]] * 3], atol=1e-3)
    assert (found["heights"] > 0).all()
