"""Published networks on photographs: what their authors' code found, and what the analyzer finds."""

import json
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.analysis import FaceAnalyzer, stages, weights
from facejax.analysis.crops import Aligned, Enlarged, Pixels, Roi, Square, cut
from facejax.analysis.faces import Faces
from facejax.backbones.iresnet import IResNet
from facejax.data import transforms
from facejax.detection.base import Detections
from facejax.ops import rotation
from facejax.quality.tinyfqnet import TinyFQNet

PHOTOS = ("multiface", "trump_hillary")
"""Eight faces together."""


class Recorded:
    """A detector that finds what is written down for a photograph, by its size."""

    variables = ()
    size = 640

    def __init__(self, found, points=5):
        self._found, self.detector = found, types.SimpleNamespace(classes=1, points=points)

    def __call__(self, image, size):
        boxes, points = self._found.get(image.shape[1::-1], (np.zeros((0, 4)), np.zeros((0, 5, 2))))
        n, points = len(boxes), points[:, : self.detector.points]
        return Detections(
            np.float32(boxes), np.linspace(1, 0.9, n, dtype=np.float32), np.zeros(n, int), np.float32(points),
            np.ones(n, bool),
        )  # fmt: skip

    def tiled(self, image, size):
        """Unlike a call, without the last face."""
        return jax.tree.map(lambda x: x[:-1], self(image, size))


@pytest.fixture(scope="module")
def photos(test_data):
    folder = test_data / "faces" / "photos"
    return [transforms.decode((folder / f"{name}.jpg").read_bytes()) for name in PHOTOS]


@pytest.fixture(scope="module")
def parts(test_data):
    return weights.load([test_data / "weights", test_data / "aflw2000"])


@pytest.fixture(scope="module")
def recorded(test_data, photos):
    """The faces that the recorded outputs are of."""
    written = json.loads((test_data / "faces" / "photos" / "retinaface_boxes.json").read_text())
    found = {}
    for name, photo in zip(PHOTOS, photos, strict=True):
        faces = written[f"{name}.jpg"]
        found[photo.shape[1::-1]] = [np.array([f[k] for f in faces]) for k in ("box_xyxy", "landmarks_xy")]
    return found


@pytest.fixture(scope="module")
def whole(parts, recorded, photos):
    """Names of the eight faces, and the analyzer's `Faces` of their recorded boxes and points, joined."""
    found = FaceAnalyzer(**parts | {"detector": Recorded(recorded)})(photos)
    names = [f"{name}:{i}" for name, faces in zip(PHOTOS, found, strict=True) for i in range(len(faces))]
    arrays = [faces.arrays() for faces in found]
    return names, {key: np.concatenate([a[key] for a in arrays]) for key in arrays[0]}


def rows(reference, names):
    places = {str(name): i for i, name in enumerate(reference["crops_names"])}
    return [places[name] for name in names]


def test_what_is_found_among_the_files(parts):
    assert set(parts) == {"detector", "recogniser", "landmarks", "pose", "age", "mesh"}
    assert [parts[k].name for k in ("detector", "landmarks", "pose")] == [
        "SCRFD-500MF with points", "PFLD, 68 points", "FSA-Net, mean of 3"
    ]  # fmt: skip


def test_recorded_boxes(parts, photos, test_data):
    """SCRFD through the analyzer; the published script divides both sides by one factor."""
    reference = np.load(test_data / "weights" / "scrfd" / "reference.npz")
    for name, photo, faces in zip(PHOTOS, photos, FaceAnalyzer(parts["detector"])(photos), strict=True):
        height, width = photo.shape[:2]
        ours, scale = np.array([640 / width, int(640 * height / width) / height]), reference[f"{name}_scale"]
        assert (len(faces), faces.size) == (len(reference[f"{name}_dets"]), (width, height))
        np.testing.assert_allclose(faces.boxes * np.tile(ours, 2), reference[f"{name}_dets"][:, :4] * scale, atol=0.1)
        np.testing.assert_allclose(faces.points * ours, reference[f"{name}_dets_kps"] * scale, atol=0.1)
        np.testing.assert_allclose(faces.scores, reference[f"{name}_dets"][:, 4], atol=1e-4)
        assert faces.crops.shape == (len(faces), 112, 112, 3)


def test_recorded_embeddings(whole, test_data):
    """The recorded crops are OpenCV's; ours differ from them by rounding alone."""
    names, found = whole
    reference = np.load(test_data / "weights" / "mobilefacenet" / "reference.npz")
    places = rows(reference, names)
    crops = reference["crops_uint8_rgb"][places].astype(int)
    difference = np.abs(found["crops"][:, :, 8:-8].astype(int) - crops)
    assert difference.max() <= 1 and difference.mean() < 0.01
    expected = reference["crops_embedding"][places]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(found["embeddings"], axis=1), 1, atol=1e-5)
    assert (np.sum(found["embeddings"] * expected, 1) > 0.9999).all()


def test_recorded_pose_and_age(whole, test_data):
    names, found = whole
    reference = np.load(test_data / "weights" / "fsanet" / "300W_LP_reference.npz")
    np.testing.assert_allclose(found["pose"], reference["fusion_crops"][rows(reference, names)], atol=0.01)
    reference = np.load(test_data / "weights" / "ssrnet" / "morph2_reference.npz")
    np.testing.assert_allclose(found["age"], reference["crops_output"][rows(reference, names)][:, 0], atol=0.01)


def test_recorded_landmarks_and_mesh(whole, test_data):
    """No square of these faces leaves its photograph, where the published script goes another way."""
    names, found = whole
    reference = np.load(test_data / "weights" / "pfld" / "reference.npz")
    expected = reference["crops_landmarks_image_xy"][rows(reference, names)]
    np.testing.assert_allclose(found["landmarks"], expected, atol=0.1)
    reference = np.load(test_data / "weights" / "3ddfa_v2" / "reference.npz")
    expected = reference["crops_landmarks68_image_xyz"][rows(reference, names)].swapaxes(1, 2)
    np.testing.assert_allclose(found["meshes"][..., :2], expected[..., :2], atol=0.1)
    depth = found["meshes"][..., 2]
    np.testing.assert_allclose(depth - depth.min(1, keepdims=True), expected[..., 2], atol=0.2)


def test_one_network_for_several_places(parts, recorded, photos, whole, test_data):
    """3DDFA_V2 gives landmarks and pose as well: of its recorded rotation, in the convention of `Faces`."""
    names, _ = whole
    stage = parts["mesh"]
    detector = stages.NamedDetector(Recorded(recorded), "recorded")
    first, second = FaceAnalyzer(detector, landmarks=stage, pose=stage)(photos)
    reference = np.load(test_data / "weights" / "3ddfa_v2" / "reference.npz")
    turns = jnp.asarray(reference["crops_R"][rows(reference, names)])
    expected = np.degrees(rotation.to_euler_3ddfa(turns))[:, [1, 0, 2]]
    np.testing.assert_allclose(np.concatenate([first.pose, second.pose]), expected, atol=0.1)
    assert first.embeddings is None and first.meshes is None
    expected = reference["crops_landmarks68_image_xyz"][rows(reference, names)].swapaxes(1, 2)[: len(first), :, :2]
    np.testing.assert_allclose(first.landmarks, expected, atol=0.1)


def test_a_detector_without_points(parts, recorded, photos, whole):
    """The five points then come from the 68 landmarks."""
    analyzer = FaceAnalyzer(Recorded(recorded, points=0), parts["recogniser"], parts["landmarks"])
    faces = analyzer(photos[0])
    _, found = whole
    n = len(faces)
    np.testing.assert_allclose(faces.landmarks, found["landmarks"][:n], atol=1e-3)
    np.testing.assert_allclose(faces.points, transforms.five_points(faces.landmarks), atol=1e-3)
    sides = (faces.boxes[:, 2] - faces.boxes[:, 0])[:, None, None]
    assert np.abs((faces.points - found["points"][:n]) / sides).max() < 0.15
    assert (np.sum(faces.embeddings * found["embeddings"][:n], 1) > 0.8).all()
    with pytest.raises(ValueError, match="finds no points: expected a stage of landmarks"):
        FaceAnalyzer(Recorded(recorded, points=0), parts["recogniser"])


def test_a_list_is_its_photographs(parts, recorded, photos, whole):
    """Faces do not depend on the others of the list; a photograph without faces has empty arrays."""
    analyzer = FaceAnalyzer(Recorded(recorded), parts["recogniser"], age=parts["age"])
    none, faces = analyzer([np.zeros((3, 1, 3), np.uint8), photos[1]])
    _, found = whole
    assert none.size == (1, 3) and len(none) == 0
    assert {k: v.shape for k, v in none.arrays().items()} == {
        "boxes": (0, 4), "scores": (0,), "points": (0, 5, 2), "crops": (0, 112, 112, 3), "embeddings": (0, 128),
        "age": (0,),
    }  # fmt: skip
    np.testing.assert_array_equal(faces.crops, found["crops"][6:])
    np.testing.assert_allclose(faces.embeddings, found["embeddings"][6:], atol=1e-4)
    np.testing.assert_allclose(faces.age, found["age"][6:], atol=1e-3)


def test_close_ups(recorded, photos):
    """What the detector finds at half the size alone is found; at the size itself, that counts."""

    class Near(Recorded):
        def __call__(self, image, size):
            found = super().__call__(image, size)
            return found if size == 320 or image.shape[1] == 1536 else jax.tree.map(lambda x: x[:0], found)

    analyzer = FaceAnalyzer(Near(recorded))
    assert [len(faces) for faces in analyzer(photos)] == [6, 2]
    assert len(FaceAnalyzer(Near(recorded), size=160)(photos[0])) == 0


def test_large_photographs_in_tiles(recorded, photos):
    """Those with a longer side than `tiled`, 1,200 and 1,536 pixels here; and files beyond the budget are refused."""
    analyzer = FaceAnalyzer(Recorded(recorded), tiled=1200, max_pixels=1536 * 689)
    assert [len(faces) for faces in analyzer(photos)] == [6, 1]
    with pytest.raises(ValueError, match="a photograph of 1537 x 689 pixels, expected at most 1058304"):
        analyzer(np.zeros((689, 1537, 3), np.uint8))


def test_long_lists_are_taken_apart(recorded, photos, monkeypatch):
    """With the same faces; a list without photographs has none."""
    analyzer = FaceAnalyzer(Recorded(recorded))
    whole = analyzer([*photos, photos[0]])
    monkeypatch.setattr("facejax.analysis.analyzer.TOGETHER", 1200 * 630 + 1)
    apart = analyzer([*photos, photos[0]])
    assert [faces.size for faces in apart] == [(1200, 630), (1536, 689), (1200, 630)]
    for first, second in zip(whole, apart, strict=True):
        np.testing.assert_array_equal(first.crops, second.crops)
    assert analyzer([]) == []


def test_identity_and_wrong_places(parts, recorded):
    analyzer = FaceAnalyzer(parts["detector"], parts["recogniser"])
    digest = "e839247cdbdfc023fb7cadeaf53a4549d50c8fc24ad154c02e35920ea8910d99"
    assert analyzer.identity["recogniser"] == {"name": "MobileFaceNet 112x96", "sha256": digest}
    assert analyzer.settings == {"size": 640, "tiled": 0}
    with pytest.raises(ValueError, match="pose is SSR-Net, age, which gives age: expected pose"):
        FaceAnalyzer(parts["detector"], pose=parts["age"])
    with pytest.raises(ValueError, match="size is 31: expected a whole number of 32 to"):
        FaceAnalyzer(parts["detector"], size=31)
    many = Recorded(recorded, points=17)
    with pytest.raises(ValueError, match="finds 1 classes with 17 points: expected one class with five or none"):
        FaceAnalyzer(many)


@pytest.fixture(scope="module")
def scene():
    """A smooth random photograph."""
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)


def crops_of(photos, owner, rules, boxes, points):
    pixels = Pixels.of(photos)
    regions = {}
    for k, rule in enumerate(rules):
        parts = [rule(b[None], p[None], photos[n].shape[1::-1]) for b, p, n in zip(boxes, points, owner, strict=True)]
        regions[k] = tuple(np.float32(np.concatenate([part[j] for part in parts])) for j in (0, 1))
    return [np.asarray(x) for x in cut(pixels.packed, pixels.places[owner], regions, tuple(rules))]


def test_crops_are_those_of_opencv(scene):
    """Alignment and the regions of the published code, with parts beyond the photograph, of two photographs at once."""
    photos, owner = [scene, scene[::-1, ::-1].copy()[:, :97]], [0, 1, 0]
    boxes = np.float64([[50.7, 40.2, 100.9, 104.4], [60.1, -7.3, 110.5, 50.8], [2.6, 90.4, 42.2, 141.7]])
    points = boxes[:, None, :2] + np.float64([[10, 20], [38, 18], [25, 30], [14, 42], [35, 43]])
    points += np.random.default_rng(1).normal(size=points.shape)
    rules = (Aligned(), Enlarged(64, 0.6), Enlarged(64, 0.4), Square(112, 1.2), Roi())
    aligned, *others = crops_of(photos, owner, rules, boxes, points)
    for i, n in enumerate(owner):
        photo = photos[n]
        difference = np.abs(aligned[i].astype(int) - transforms.align(photo, points[i]))
        assert difference.max() <= 1 and difference.mean() < 0.05
        for rule, crops in zip(rules[1:], others, strict=True):
            x0, y0, x1, y1 = rule(boxes[i : i + 1], None, photo.shape[1::-1]).limits[0].astype(int)
            padded = cv2.copyMakeBorder(photo, 200, 200, 200, 200, cv2.BORDER_CONSTANT)
            expected = cv2.resize(padded[y0 + 200 : y1 + 200, x0 + 200 : x1 + 200], (rule.side, rule.side))
            difference = np.abs(crops[i].astype(int) - expected)
            assert difference.max() <= 1 and (difference > 0).mean() < 0.02, rule


def test_similarity_of_the_crop():
    """The inverse of the least-squares transform; points in one place give finite numbers."""
    points = np.random.default_rng(0).normal(size=(1, 5, 2)) * 40 + 300
    matrix = Aligned()(np.zeros((1, 4)), points, (9, 9)).matrices[0]
    forward = transforms.similarity_transform(points[0], transforms.template(112))
    np.testing.assert_allclose(np.vstack([forward, [0, 0, 1]]) @ np.vstack([matrix, [0, 0, 1]]), np.eye(3), atol=1e-9)
    assert np.isfinite(Aligned()(np.zeros((1, 4)), np.full((1, 5, 2), 7.0), (9, 9)).matrices).all()


@pytest.mark.parametrize("count", range(1, 40))
def test_batches_hold_all_faces(count):
    found = stages.batches(count)
    assert set(found) <= set(stages.BATCHES) and count <= sum(found) <= count + 3 and len(set(found)) <= 2
    assert sum(found[:-1]) < count


def tiny(net, size=112):
    """A network with random variables, which need no compilation."""
    images, rng = jnp.zeros((1, size, size, 3)), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))
    return net, jax.tree.map(lambda leaf: np.float32(0.1 + rng.random(leaf.shape) / 2), shapes)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def embedder():
    return tiny(IResNet((1, 1, 1, 1), (4, 4, 4, 8), 16))


@pytest.fixture(scope="module")
def embedded(embedder, images):
    return stages.recogniser(*embedder, magnitudes=True)(images)


def test_length_of_the_embedding_as_quality(embedder, embedded, images):
    net, variables = embedder
    np.testing.assert_allclose(np.linalg.norm(embedded["embeddings"], axis=1), 1, atol=1e-6)
    raw = net.apply(variables, (images - np.float32(127.5)) / 127.5, train=False)
    np.testing.assert_allclose(embedded["quality"], np.linalg.norm(raw, axis=1), rtol=1e-3)


def test_networks_of_quality(images):
    score = stages.quality(*tiny(TinyFQNet(), 48), size=48, scale=0.5)
    assert score(images)["quality"].shape == (4,) and score.shapes == {"quality": ()}


def test_quality_by_dropout(embedder, images):
    """Embeddings that hardly change are better; the same each time."""
    made = [stages.dropout_quality(*embedder, masks=4, dropout=p) for p in (0.01, 0.5)]
    steady, shaken = (np.asarray(stage(images)["quality"]) for stage in made)
    assert (steady > shaken).all() and (shaken >= 0).all() and (steady <= 1).all()
    np.testing.assert_array_equal(made[1](images)["quality"], shaken)


def test_large_variables_are_arguments(embedder, embedded, images, monkeypatch):
    """The same numbers whether the variables are compiled in or not."""
    monkeypatch.setattr(stages, "SMALL", 0)
    found = stages.recogniser(*embedder)(images)
    np.testing.assert_allclose(found["embeddings"], embedded["embeddings"], atol=1e-5)


def test_some_faces_of_faces():
    faces = Faces((9, 9), np.arange(12.0).reshape(3, 4), np.arange(3.0), age=np.arange(3.0))
    assert len(faces) == 3 and faces[1].age.tolist() == [1] and len(faces[1]) == 1
    assert faces[faces.age > 0].scores.tolist() == [1, 2] and faces[::-1].boxes[0, 0] == 8
    assert faces[0].embeddings is None and set(faces.arrays()) == {"boxes", "scores", "age"}
    with pytest.raises(ValueError, match=r"Faces.age has 2 rows: expected 3"):
        Faces((9, 9), np.zeros((3, 4)), np.zeros(3), age=np.zeros(2))
