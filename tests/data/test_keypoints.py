"""Crops of persons, their augmentation, and annotation files."""

import json

import cv2
import numpy as np
import pytest
from scipy import io

from facejax.data import keypoints
from facejax.data.landmarks import MIRROR_68, MIRROR_98
from facejax.data.readers.people import CocoPeople, PeopleSource, read_mpii, read_mpii_truth


def example(image, points, centre, size, visible=None):
    encoded = cv2.imencode(".png", image)[1].tobytes()
    visible = np.ones(len(points), bool) if visible is None else np.asarray(visible, bool)
    return {"image": encoded, "points": np.asarray(points, float), "visible": visible, "centre": centre, "size": size}


def dots(points, height=60, width=80):
    """A black image with a small bright square at each point."""
    image = np.zeros((height, width, 3), np.uint8)
    for x, y in points:
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
    return image


@pytest.mark.parametrize("partners", [MIRROR_68, MIRROR_98, keypoints.COCO.partners, keypoints.MPII.partners])
def test_mirror_partners_are_mutual(partners):
    np.testing.assert_array_equal(partners[partners], np.arange(len(partners)))


def test_mirror_partner_examples():
    assert [MIRROR_68[i] for i in (0, 36, 48, 8, 67, 31)] == [16, 45, 54, 8, 65, 35]
    assert [MIRROR_98[i] for i in (0, 33, 60, 96, 16, 88)] == [32, 46, 72, 97, 16, 92]
    assert keypoints.MPII.partners[0] == 5
    assert keypoints.COCO.partners[15] == 16


def test_boxes_get_the_aspect_ratio_of_the_network():
    np.testing.assert_allclose(keypoints.shaped((30, 80), 0.75), [60, 80])
    np.testing.assert_allclose(keypoints.shaped((90, 80), 0.75), [90, 120])


def test_crop_by_hand():
    """A region of 40 x 30 pixels to 80 x 60: scale 2, centre to centre; also rotated by a right angle."""
    matrix = keypoints.crop_matrix(np.array([25.0, 20]), 40, 0, (60, 80))
    np.testing.assert_allclose(
        keypoints.moved(np.array([[25, 20], [5, 5], [45, 35]]), matrix), [[40, 30], [0, 0], [80, 60]]
    )
    turned = keypoints.crop_matrix(np.array([25.0, 20]), 40, 90, (60, 80))
    np.testing.assert_allclose(keypoints.moved(np.array([25, 10]), turned), [20, 30], atol=1e-9)
    with pytest.raises(ValueError, match="region of width 0 at"):
        keypoints.crop_matrix(np.zeros(2), 0, 0, (60, 80))


POINTS = np.array([[20, 15], [50, 20], [35, 40]])


@pytest.mark.parametrize("seed", range(6))
def test_augmented_points_follow_their_pixels(seed):
    layout = keypoints.Layout(np.array([1, 0, 2]))
    given = example(dots(POINTS), POINTS, (36, 27), (60, 60), [1, 0, 1])
    augmentation = keypoints.Augmentation(scale=0.3, rotation=30, half_body=0)
    found = keypoints.augmented(given, (64, 48), layout, augmentation, 1.25, np.random.default_rng(seed))
    assert found["image"].shape == (64, 48, 3)
    mirrored = bool(found["visible"][1])
    assert found["visible"].tolist() == ([False, True, True] if mirrored else [True, False, True])
    for x, y in found["points"]:
        if 1 <= x < 46 and 1 <= y < 62:
            assert found["image"][round(y), round(x)].mean() > 100


@pytest.mark.parametrize("orientation", [3, 6])
def test_keypoints_are_of_the_stored_pixels(turned_jpeg, orientation):
    """An EXIF orientation moves no crop: HRNet's data set reads images with IMREAD_IGNORE_ORIENTATION."""
    stored, still = dots(POINTS), keypoints.Augmentation(scale=0, rotation=0, flip=0, half_body=0)
    given = example(stored, POINTS, (40, 30), (80, 60)) | {"image": turned_jpeg(stored, orientation)}
    layout, rng = keypoints.Layout(np.arange(3)), np.random.default_rng(0)
    placed = keypoints.placed_loader(96, keypoints.Placement(turn=0))([given | {"landmarks68": POINTS + 0.5}], [rng])
    for image, points in (
        (keypoints.plain(given, (60, 80), 1.0)["image"], POINTS),
        (keypoints.augmented(given, (60, 80), layout, still, 1.0, rng)["image"], POINTS),
        (placed["image"][0], placed["points"][0] * 96 - 0.5),
    ):
        for x, y in np.round(points).astype(int):
            assert image[y, x].min() > 200


def test_flip_exchanges_partners():
    layout = keypoints.Layout(np.array([1, 0, 2]))
    still = keypoints.Augmentation(scale=0, rotation=0, flip=1.0, half_body=0)
    given = example(dots(POINTS), POINTS, (40, 30), (80, 60))
    found = keypoints.augmented(given, (60, 80), layout, still, 1.0, np.random.default_rng(0))
    expected = [[80 - 50, 20], [80 - 20, 15], [80 - 35, 40]]  # the region's centre, 40, became 39
    np.testing.assert_allclose(found["points"], expected)


def test_half_body():
    points = np.concatenate([np.random.default_rng(0).uniform(0, 20, (11, 2)), 60 + POINTS[[0, 1, 2, 0, 1, 2]]])
    visible = np.ones(17, bool)
    drawn = [keypoints.half_body(points, visible, keypoints.COCO.upper, np.random.default_rng(i)) for i in range(400)]
    upper = np.mean([d[0][0] < 30 for d in drawn])
    assert upper == pytest.approx(0.69, abs=0.06)
    lower = next(d for d in drawn if d[0][0] > 30)
    np.testing.assert_allclose(lower[0], (60 + POINTS).mean(0))
    np.testing.assert_allclose(lower[1], 1.5 * np.array([30, 25]))
    assert keypoints.half_body(points, np.arange(17) < 1, keypoints.COCO.upper, np.random.default_rng(0)) is None
    only_lower = keypoints.half_body(points, np.arange(17) >= 11, keypoints.COCO.upper, np.random.default_rng(0))
    np.testing.assert_allclose(only_lower[0], (60 + POINTS).mean(0))


def keypoint_file(folder, **changes):
    """Two images; one shows a person, a person without keypoints, and a dog."""
    triples = np.zeros((17, 3))
    triples[:2] = [[10, 12, 2], [14, 12, 1]]
    person = {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 300.0, "bbox": [-4, 5, 30, 20]}
    found = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (9, 7)],
        "annotations": [
            {**person, "keypoints": triples.ravel().tolist()},
            {**person, "id": 2, "keypoints": [0] * 51, "iscrowd": 1},
            {**person, "id": 3, "category_id": 18},
        ],
        **changes,
    }
    (folder / "people.json").write_text(json.dumps(found))
    for i in (9, 7):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((30, 40, 3), i, np.uint8))
    return CocoPeople(folder / "people.json", folder)


def test_coco_file(tmp_path):
    coco = keypoint_file(tmp_path)
    (person,) = coco.people()
    assert person.centre == (0 + 29 / 2, 5 + 19 / 2)  # box clipped to the image, a pixel smaller, as in the reference
    assert person.size == (29, 19)
    np.testing.assert_array_equal(person.points[:2], [[10, 12], [14, 12]])
    assert person.visible.tolist() == [True, True] + [False] * 15
    source = PeopleSource([person])
    assert (len(source), source[0]["image_id"], source[0]["score"]) == (1, 7, 1.0)
    assert source[0]["image"] == (tmp_path / "7.png").read_bytes()
    truth = coco.truth(7)
    assert truth["labelled"].sum(1).tolist() == [2, 0]
    assert truth["crowd"].tolist() == [False, True]
    assert {k: v.shape for k, v in coco.truth(9).items()} == {
        "points": (0, 17, 2), "labelled": (0, 17), "areas": (0,), "boxes": (0, 4), "crowd": (0,)
    }  # fmt: skip
    boxes = [{"image_id": 9, "category_id": c, "bbox": [2, 4, 10, 20], "score": 0.5} for c in (1, 2)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    (found,) = coco.detected(tmp_path / "boxes.json")
    assert (found.centre, found.size, found.score, found.visible.any()) == ((7, 14), (10, 20), 0.5, False)


def test_mpii_files(tmp_path):
    joints = np.arange(32.0).reshape(16, 2).tolist()
    entry = {"image": "a.jpg", "center": [100.0, 50.0], "scale": 2.0, "joints": joints, "joints_vis": [1] * 15 + [0]}
    (tmp_path / "valid.json").write_text(json.dumps([entry]))
    (person,) = read_mpii(tmp_path / "valid.json", tmp_path)
    assert (person.centre, person.size) == ((99, 79), (400, 400))
    np.testing.assert_array_equal(person.points, np.array(joints) - 1)
    assert person.visible.sum() == 15
    points, heads = np.random.default_rng(0).uniform(0, 99, (16, 2, 3)), np.arange(12.0).reshape(2, 2, 3)
    missing = np.zeros((16, 3), np.uint8)
    missing[4, 2] = 1
    io.savemat(tmp_path / "gt.mat", {"pos_gt_src": points, "jnt_missing": missing, "headboxes_src": heads})
    truth = read_mpii_truth(tmp_path / "gt.mat")
    np.testing.assert_allclose(truth["points"][2, 5], points[5, :, 2] - 1)
    assert not truth["visible"][2, 4]
    assert truth["visible"].sum() == 47
    np.testing.assert_array_equal(truth["heads"][1], [1, 4, 7, 10])


def test_bad_files_raise(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: not a readable JSON file"):
        CocoPeople(tmp_path / "none.json", tmp_path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json: holds a list, expected a dict"):
        CocoPeople(tmp_path / "list.json", tmp_path)
    (tmp_path / "other.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"other\.json: no annotations, expected a COCO file"):
        CocoPeople(tmp_path / "other.json", tmp_path)
    coco = keypoint_file(tmp_path)
    (tmp_path / "boxes.json").write_text('[{"image_id": 3, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    with pytest.raises(ValueError, match="person in unknown image 3: expected one of the 2 annotated images"):
        coco.detected(tmp_path / "boxes.json")
    io.savemat(tmp_path / "gt.mat", {"pos_gt_src": np.zeros((16, 2, 3))})
    with pytest.raises(
        ValueError, match=r"gt\.mat: expected a MATLAB file with pos_gt_src, jnt_missing, headboxes_src"
    ):
        read_mpii_truth(tmp_path / "gt.mat")


def test_sides_by_name():
    names = ["Nose", "left_ear", "right_ear", "eye_l", "eye_r", "LHip", "rightPaw", "leftPaw", "bright", "r 2"]
    assert keypoints.mirror_partners(names).tolist() == [0, 2, 1, 4, 3, 5, 7, 6, 8, 9]


def test_a_category_with_other_keypoints(tmp_path):
    entry = {"image_id": 7, "category_id": 3, "iscrowd": 0, "area": 300.0, "bbox": [4, 5, 30, 20]}
    animal = {**entry, "id": 1, "keypoints": [10, 12, 2, 14, 12, 1, 0, 0, 0]}
    person = {**entry, "id": 2, "category_id": 1, "keypoints": [1, 1, 2] * 17}
    category = {"id": 3, "name": "cat", "keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[1, 2], [1, 3]]}
    changes = {"annotations": [animal, person], "categories": [{"id": 1, "name": "person"}, category]}
    coco = keypoint_file(tmp_path, **changes)
    assert (coco.joints, coco.names, coco.skeleton) == (3, tuple(category["keypoints"]), ((0, 1), (0, 2)))
    (found,) = coco.people()
    assert found.points.shape == (3, 2) and found.visible.tolist() == [True, True, False]
    assert (coco.truth(7)["points"].shape, coco.truth(9)["points"].shape) == ((1, 3, 2), (0, 3, 2))
    boxes = [{"image_id": 9, "category_id": 3, "bbox": [2, 4, 10, 20], "score": 0.5}]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    assert coco.detected(tmp_path / "boxes.json")[0].points.shape == (3, 2)
    with pytest.raises(ValueError, match="2 names of 3 keypoints, expected as many"):
        keypoint_file(tmp_path, **{**changes, "categories": [{"id": 3, "keypoints": ["nose", "tail"]}]})


def test_missing_test_data_is_noticed_before_training(coco_folder):
    data = keypoints.KeypointImages("coco", str(coco_folder), detections="none.json")
    with pytest.raises(ValueError, match=r"none\.json does not exist: expected the test data of coco"):
        data.batches(2, 0)


def test_placed_faces_match_their_landmarks():
    """Random placement of a dark rectangle, whose landmarks are its corners, keeps them on its corners."""
    image = np.full((64, 64, 3), 250, np.uint8)
    image[20:40, 16:44] = 10
    points = np.array([[16, 20], [44, 20], [44, 40], [16, 40]], np.float32)
    encoded = cv2.imencode(".png", image)[1].tobytes()
    example, size = {"image": encoded, "landmarks68": points}, 96
    load = keypoints.placed_loader(size, keypoints.Placement(face=(0.25, 0.4)))
    batch = load([example] * 8, [np.random.default_rng(i) for i in range(8)])
    dark, corners = batch["image"].mean(-1) < 130, batch["points"] * size
    middle = corners.mean(1, keepdims=True)
    for part, expected in ((0.8, True), (1.25, False)):
        columns, rows = np.moveaxis(middle + part * (corners - middle), -1, 0).astype(int)
        np.testing.assert_array_equal(dark[np.arange(8)[:, None], rows, columns], expected)
    sides = np.linalg.norm(corners - np.roll(corners, 1, 1), axis=-1)
    np.testing.assert_allclose(dark.sum((1, 2)), sides[:, 0] * sides[:, 1], rtol=0.08)
    assert np.ptp(sides[:, 1]) > 3  # sizes vary
