"""OKS, COCO's keypoint AP, OKS-NMS, PCKh: hand-computed values, and pycocotools if it is installed."""

import contextlib
import io

import numpy as np
import pytest

from facejax.metrics import keypoints as metric
from facejax.metrics.keypoints import COCO_SIGMAS, Detections, People

TWO = np.array([0.1, 0.2])


def person(points, labelled=None, area=100.0, box=(0, 0, 10, 10), crowd=False):
    points = np.asarray(points, float)[None]
    labelled = np.ones(points.shape[:2], bool) if labelled is None else np.asarray(labelled, bool)[None]
    return People(points, labelled, np.array([area]), np.array([box], float), np.array([crowd]))


def test_similarity_by_hand():
    people = person([[0, 0], [10, 0]])
    # 2 sigma = 0.2 and 0.4 times sqrt(area) = 10; the distances are one such unit
    found = metric.object_keypoint_similarity([[[2, 0], [10, 4]], [[0, 0], [10, 0]], [[2, 0], [10, 0]]], people, TWO)
    np.testing.assert_allclose(found[:, 0], [np.exp(-0.5), 1, (np.exp(-0.5) + 1) / 2])
    half = metric.object_keypoint_similarity([[[2, 0], [99, 99]]], person([[0, 0], [10, 0]], [1, 0]), TWO)
    np.testing.assert_allclose(half, np.exp(-0.5))
    unlabelled = person([[0, 0], [0, 0]], [0, 0], box=(10, 10, 10, 10))
    inside = metric.object_keypoint_similarity([[[0, 0], [30, 30]], [[0, 32], [30, 30]]], unlabelled, TWO)
    np.testing.assert_allclose(inside[:, 0], [1, (np.exp(-0.5) + 1) / 2])


def test_average_precision_by_hand():
    people = [person([[0, 0], [10, 0]], area=2000), person([[0, 0], [10, 0]], area=2000)]
    right = Detections(np.array([[[0.0, 0], [10, 0]]]), np.array([0.9]))
    wrong = Detections(np.array([[[900.0, 0], [910, 0]]]), np.array([0.8]))
    nobody = Detections(np.zeros((0, 2, 2)), np.zeros(0))
    perfect = metric.coco_keypoint_ap([right, right], people, TWO)
    assert perfect["ap"] == perfect["ar"] == perfect["ap_medium"] == pytest.approx(1)
    assert np.isnan(perfect["ap_large"])
    one_missed = metric.coco_keypoint_ap([right, nobody], people, TWO)
    assert one_missed["ap"] == pytest.approx(51 / 101)
    assert one_missed["ar"] == 0.5
    first_wrong = metric.coco_keypoint_ap([right, Detections(wrong.points, np.array([0.95]))], people, TWO)
    assert first_wrong["ap50"] == pytest.approx(51 / 101 / 2)
    assert metric.coco_keypoint_ap([nobody, nobody], people, TWO)["ap"] == 0
    twice = Detections(np.repeat(right.points, 2, 0), np.array([0.9, 0.5]))
    assert metric.coco_keypoint_ap([twice, right], people, TWO)["ap"] == pytest.approx(51 / 101 + 50 / 101)


def test_equals_pycocotools():
    """Eighty random images with crowds, unlabelled people, duplicates, equal scores and more than 20 detections."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(0)
    annotations, results, detections, people = [], [], [], []
    for image in range(1, 81):
        count = rng.integers(0, 5)
        extent = rng.uniform(15, 200, (count, 2))
        corner = rng.uniform(0, 300, (count, 2))
        points = np.round(corner[:, None] + extent[:, None] * rng.uniform(0, 1, (count, 17, 2)))
        labelled = rng.random((count, 17)) < rng.choice([0, 0.3, 0.9], (count, 1))
        points = np.where(labelled[..., None], points, 0)
        areas, crowd = extent.prod(1) * rng.uniform(0.4, 0.9, count), rng.random(count) < 0.1
        people.append(People(points, labelled, areas, np.concatenate([corner, extent], 1), crowd))
        for g in range(count):
            triples = np.concatenate([points[g], 2.0 * labelled[g][:, None]], 1)
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": 1, "iscrowd": int(crowd[g]),
                "keypoints": triples.ravel().tolist(), "num_keypoints": int(labelled[g].sum()),
                "area": float(areas[g]), "bbox": people[-1].boxes[g].tolist(),
            })  # fmt: skip
        copies = rng.integers(0, count, rng.integers(0, 30)) if count else np.zeros(0, int)
        noise = rng.normal(size=(len(copies), 17, 2)) * rng.choice([0.01, 0.1, 0.3], (len(copies), 1, 1))
        found = points[copies] + noise * np.sqrt(areas[copies])[:, None, None]
        found = np.concatenate([found, rng.uniform(0, 300, (rng.integers(0, 3), 17, 2))])
        scores = np.round(rng.random(len(found)), 2)
        detections.append(Detections(found, scores))
        for d in range(len(found)):
            triples = np.concatenate([found[d], np.ones((17, 1))], 1)
            results.append({
                "image_id": image, "category_id": 1, "keypoints": triples.ravel().tolist(), "score": float(scores[d])
            })  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(1, 81)], "annotations": annotations, "info": {},
            "categories": [{"id": 1, "name": "person"}],
        }  # fmt: skip
        truth.createIndex()
        run = evaluation.COCOeval(truth, truth.loadRes(results), "keypoints")
        run.evaluate()
        run.accumulate()
        run.summarize()
    names = ["ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large"]
    found = metric.coco_keypoint_ap(detections, people)
    np.testing.assert_allclose([found[n] for n in names], run.stats, atol=1e-12)
    assert 0.1 < found["ap"] < 0.9
    for image in (3, 20, 41):
        expected = run.ious[image, 1]
        order = np.argsort(-detections[image - 1].scores, kind="stable")[:20]
        if len(expected):
            ours = metric.object_keypoint_similarity(detections[image - 1].points[order], people[image - 1])
            np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_rescoring_and_nms():
    np.testing.assert_allclose(
        metric.rescored([0.5, 0.9, 1.0], [[0.3, 0.1, 0.5], [0.2, 0.1, 0.0], [0.4, 0.4, 0.4]]), [0.2, 0, 0.4]
    )
    base = np.random.default_rng(0).uniform(0, 100, (17, 2))
    points = np.stack([base, base + 1, base + 40, base])
    kept = metric.oks_nms(points, [0.5, 0.9, 0.3, 0.5], np.full(4, 5000.0))
    np.testing.assert_array_equal(kept, [1, 2])
    similar = np.exp(-2 / ((2 * COCO_SIGMAS) ** 2 * 5000) / 2).mean()
    np.testing.assert_array_equal(metric.oks_nms(points[:2], [0.5, 0.9], [4000, 6000], similar + 1e-9), [1, 0])
    np.testing.assert_array_equal(metric.oks_nms(points[:2], [0.5, 0.9], [4000, 6000], similar - 1e-9), [1])
    assert len(metric.oks_nms(np.zeros((0, 17, 2)), [], [])) == 0


def test_pckh_by_hand():
    np.testing.assert_allclose(metric.head_sizes([[0, 0, 30, 40]]), [30])
    truth, visible = np.zeros((2, 16, 2)), np.ones((2, 16), bool)
    predicted = truth.copy()
    predicted[0, 9] = [5.001, 0]  # top of the head, just above half of 10
    predicted[:, 10] = [[5, 0], [1.09, 0]]  # exactly half is correct; 0.109 is correct at "0.1"
    predicted[:, 7] = 1000  # no mean includes the thorax
    visible[1, 0] = False
    found = metric.pckh(predicted, truth, visible, np.full(2, 10.0))
    assert found["head"] == 50
    assert found["wrist"] == found["ankle"] == 100
    total = 14 * 2 - 1
    assert found["mean"] == pytest.approx(100 * (total - 1) / total)
    assert found["mean@0.1"] == pytest.approx(100 * (total - 2) / total)
    visible[:, 9] = False
    assert np.isnan(metric.pckh(predicted, truth, visible, np.full(2, 10.0))["head"])


def test_shape_mismatch_raises():
    with pytest.raises(ValueError, match=r"predicted \(1, 3, 2\) and people \(1, 2, 2\), expected \[D, 2, 2\]"):
        metric.object_keypoint_similarity(np.zeros((1, 3, 2)), person([[0, 0], [1, 1]]), TWO)
    with pytest.raises(ValueError, match="0 images of detections and 1 of people"):
        metric.coco_keypoint_ap([], [person([[0, 0], [1, 1]])], TWO)
    with pytest.raises(ValueError, match=r"sizes \(3,\), expected \[N, K, 2\] twice, \[N, K\] and \[N\]"):
        metric.pckh(np.zeros((2, 16, 2)), np.zeros((2, 16, 2)), np.ones((2, 16)), np.ones(3))
