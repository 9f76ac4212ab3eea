"""Scenes of faces: truth that follows every change of a head, limits of the settings, reproducible bytes."""

import dataclasses

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data.landmarks import MIRROR_68
from facejax.data.synthetic import scenes as made
from facejax.data.synthetic.scenes import SCENES, Head, Scenes
from facejax.morphable import camera, model
from facejax.morphable.procedural import procedural
from facejax.ops import rotation

SMALL = Scenes(
    "small", 64, 10, 4, faces=7, height=(8, 40), empty=0.2, crowd=0.5, people=(6, 3), views=1, head=48, occluder=0.5
)
SPOTS = np.array([[30.0, 40.0], [64.5, 41.0], [47.0, 58.0], [36.0, 73.0], [60.25, 74.0]])


@pytest.fixture(scope="module")
def heads():
    return made.pool(SMALL, range(6))


@pytest.fixture(scope="module")
def examples():
    return {split: [e for _, e in made.generate(SMALL, split)] for split in ("train", "test")}


def marked(spot):
    """A transparent head of 96 pixels with a Gaussian spot, and an outline of its face."""
    y, x = np.mgrid[:96, :96] + 0.5
    rgba = np.zeros((96, 96, 4), np.float16)
    rgba[:] = np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 32)[..., None]
    nothing = np.zeros((2, 3), np.float32)
    outline = np.array([[20.0, 25], [75, 25], [80, 60], [48, 90], [18, 55]])
    seen = np.array([True, False, True, False, True])
    place = np.array([30.0, 48.0, 50.0, 8.0])
    marks = np.zeros((68, 2))
    for number, members in enumerate((slice(36, 42), slice(42, 48), 30, 48, 54)):
        marks[members] = SPOTS[number]
    return Head(rgba, outline, marks, seen, SPOTS[0], np.ones(3), None, 3, nothing, nothing, np.zeros(3), place)


def centroid(image):
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    weight = image[..., 0].astype(float)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("height", "angle"), [(20.0, 0.0), (33.0, 0.5), (65.0, -0.4), (90.0, 0.3)])
def test_points_follow_the_pixels_of_a_marked_head(mirrored, height, angle):
    partners = made.MIRROR if mirrored else np.arange(5)
    for number, spot in enumerate(SPOTS):
        head = marked(spot)
        place = made.placed(head, np.array([70.3, 64.8]), height, mirrored, angle)
        image, order = np.zeros((128, 144, 3), np.float32), np.zeros((128, 144), int)
        made.paste(image, order, head.rgba, place.matrix, 5)
        truth = made.face_truth(place)
        np.testing.assert_allclose(centroid(image), truth["points"][partners[number]], atol=0.05)
        assert (order[image[..., 0] > 0.55] == 5).all() and (order[image[..., 0] < 0.45] == 0).all()
    low, high = truth["boxes"][:2], truth["boxes"][2:]
    np.testing.assert_allclose((low + high) / 2, [70.3, 64.8], atol=1e-9)
    assert high[1] - low[1] == pytest.approx(height)
    np.testing.assert_array_equal(truth["visible"], head.visible[partners])
    assert (truth["points"][0, 0] < truth["points"][1, 0]) and (truth["points"][3, 0] < truth["points"][4, 0])


def test_box_of_a_turned_head_is_that_of_its_turned_outline():
    head = marked(SPOTS[0])
    corners = np.concatenate([head.outline[i] + np.linspace(0, 1, 50)[:, None] * (head.outline[i - 1] - head.outline[i])
                              for i in range(5)])  # fmt: skip
    place = made.placed(head, np.array([50.0, 60.0]), 40.0, True, 0.5)
    drawn = np.stack([corners[:, 0] * -1, corners[:, 1]], -1)
    drawn = drawn @ np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    size = np.ptp(drawn, 0)
    box = made.face_truth(place)["boxes"]
    np.testing.assert_allclose((box[2:] - box[:2]), size * 40 / size[1], rtol=1e-9)


def vertices(truth):
    face = procedural()
    place = jnp.asarray(truth["camera"], jnp.float32)
    shape = model.shape(face, jnp.asarray(truth["identity"]), jnp.asarray(truth["expression"]))
    turn = rotation.from_euler(jnp.asarray(truth["pose"], jnp.float32))
    return face, np.asarray(camera.perspective(shape, turn, place[0], place[1:3], place[3]))[:, :2]


@pytest.mark.parametrize(("mirrored", "limit"), [(False, 0.001), (True, 0.01)])
def test_mesh_parameters_give_the_rendered_points(heads, mirrored, limit):
    for head, angle in zip(heads[0], (0.5, -0.5, 0.0, 0.3, -0.2, 0.1), strict=True):
        place = made.placed(head, np.array([30.0, 40.0]), 90.0, mirrored, angle)
        truth = made.face_truth(place)
        face, mesh = vertices(truth)
        marks = mesh[np.asarray(face.landmarks68)]
        rendered = made.moved(place.matrix, head.marks)[MIRROR_68 if mirrored else slice(None)]
        np.testing.assert_allclose(marks, rendered, atol=limit)
        np.testing.assert_allclose(made.five(marks), truth["points"], atol=limit)
        member = np.asarray(face.regions["skin"] & (face.mean_shape[:, 2] > 0) & (face.mean_shape[:, 1] < 0.62))
        box = np.concatenate([mesh[member].min(0), mesh[member].max(0)])
        np.testing.assert_allclose(box, truth["boxes"], atol=2 * limit)


def test_heads_match_their_truth(heads):
    fronts, backs = heads
    assert len(fronts) == 6 and len(backs) == 6
    for head in fronts:
        points = made.five(head.marks)
        at = np.floor(points[head.visible]).astype(int)
        assert (head.rgba[at[:, 1], at[:, 0], 3] > 0.4).all()
        assert cv2.pointPolygonTest(head.outline.astype(np.float32), points.mean(0).tolist(), False) > 0
        assert head.rgba[-1, :, 3].max() == 0  # the neck ends
    for head in backs:
        assert not head.visible[2:].any()


def test_scenes_are_padded_clipped_and_within_limits(examples):
    every = examples["train"] + examples["test"]
    counts = [e["count"] for e in every]
    assert min(counts) == 0 and 1 < max(counts) <= SMALL.faces
    for example in every:
        n, boxes = example["count"], example["boxes"]
        assert cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3)
        for name, value in example.items():
            if name not in ("image", "count"):
                assert value.shape[0] == SMALL.faces and not value[n:].any(), name
        assert (boxes >= 0).all() and (boxes <= 64).all()
        assert (boxes[:n, 2:] > boxes[:n, :2]).all()
        assert (boxes[:n, 3] - boxes[:n, 1] <= 40 + 1e-4).all()
        assert (example["occlusion"] <= made.HIDDEN).all()
        seen = example["points"][example["visible"]]
        assert ((seen >= 0) & (seen < 64)).all()


def test_boxes_overlap_at_most_as_allowed(heads):
    crowded = dataclasses.replace(SMALL, crowd=1.0, overlap=0.1, empty=0.0)
    pairs = 0
    for number in range(40):
        people = made.plan(crowded, np.random.default_rng(number), *heads)
        boxes = [made.face_truth(place)["boxes"] for place, _ in people]
        assert sum(counted for _, counted in people) <= crowded.faces
        for i, a in enumerate(boxes):
            assert (a[:2] + a[2:] > 0).all() and (a[:2] + a[2:] < 128).all()
            for b in boxes[:i]:
                shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
                union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
                assert shared / union <= 0.1 + 1e-9
                pairs += shared > 0
    assert pairs > 10


def test_covered_faces_have_occlusion_and_hidden_points(heads):
    bare = dataclasses.replace(SMALL, occluder=0.0, behind=0.0, faces=1, empty=0.0)
    covered = dataclasses.replace(bare, occluder=1.0)
    without, under = ([made.compose(s, n, *heads) for n in range(12)] for s in (bare, covered))
    assert max(e["occlusion"][0] for e in without) == 0
    assert np.mean([e["occlusion"][0] for e in under]) > 0.1
    hidden = [(~e["visible"][0]).sum() for e in under]
    assert sum(hidden) > sum((~e["visible"][0]).sum() for e in without)


def test_equal_settings_give_equal_bytes_and_splits_show_different_people(examples):
    again = [e for _, e in made.generate(dataclasses.replace(SMALL, train=3), "train")]
    assert [e["image"] for e in again] == [e["image"] for e in examples["train"][:3]]
    other = next(iter(made.generate(dataclasses.replace(SMALL, train=1, seed=1), "train")))[1]
    assert other["image"] != again[0]["image"]
    train, test = ({int(p) for e in part for p in e["person"][: e["count"]]} for part in examples.values())
    assert train <= set(range(6)) and test <= set(range(6, 9)) and train and test


def test_prepared_scenes_have_no_padding(examples, tmp_path):
    source = made.load(SMALL, "test", tmp_path)
    assert len(source) == SMALL.test
    stored = sorted(e["image"] for e in examples["test"])
    assert sorted(source[i]["image"] for i in range(len(source))) == stored
    for i in range(len(source)):
        example = source[i]
        whole = next(e for e in examples["test"] if e["image"] == example["image"])
        n = whole["count"]
        for name in ("boxes", "points", "visible", "occlusion", "person", "identity", "expression", "pose", "camera"):
            np.testing.assert_array_equal(example[name], whole[name][:n])
        assert example["labels"].shape == (n,) and not example["labels"].any()


def test_changed_settings_change_the_key():
    first = SCENES["scenes_128"]
    assert first.key != dataclasses.replace(first, seed=1).key
    assert first.key == dataclasses.replace(first).key


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("height", (4, 90), r"height is \(4, 90\), expected 8 <= low <= high <= image_size"),
        ("faces", 0, "faces is 0, expected 1 or more"),
        ("empty", 1.5, "empty is 1.5, expected 0 to 1"),
        ("jpeg", (90, 60), "jpeg is"),
        ("people", (5, 0), "people is"),
    ],
)
def test_bad_settings_raise(field, value, message):
    with pytest.raises(ValueError, match=f"scenes 'scenes_128': {message}"):
        dataclasses.replace(SCENES["scenes_128"], **{field: value})


def test_unknown_and_duplicate_names_raise():
    with pytest.raises(ValueError, match="unknown settings 'scenes', expected one of scenes_128, scenes_640"):
        made.load("scenes", "train")
    with pytest.raises(ValueError, match="unknown split 'val', expected train or test"):
        made.load("scenes_128", "val")
    with pytest.raises(ValueError, match="'scenes_640' exist already"):
        made.register(Scenes("scenes_640"))
