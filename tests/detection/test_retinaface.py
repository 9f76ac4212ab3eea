"""RetinaFace: networks, anchors, matching, loss and decode. tests/parity has the comparison with PyTorch."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import retinaface as experiment
from facejax.detection import retinaface
from facejax.detection.base import Truth
from facejax.morphable.procedural import procedural
from facejax.ops import boxes as box
from facejax.train import Options, app
from facejax.train.dry_run import count, dry_run
from tests.selection import full_but


def shapes(net, size):
    """(outputs, parameters)."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    made = functools.partial(net.init_with_output, train=False)
    outputs, variables = jax.eval_shape(made, jax.random.key(0), images)
    return outputs, variables["params"]


@pytest.mark.parametrize(("make", "body", "pyramid", "context", "heads"), [
    (retinaface.retinaface_mobilenet025, 213_072, 103_040, 104_256, 6_240),
    (retinaface.retinaface_resnet50, 23_508_032, 2_099_712, 1_661_184, 24_672),
])  # fmt: skip
def test_parameters_of_the_parts(make, body, pyramid, context, heads):
    _, params = shapes(make(), (64, 64))
    parts = {"body": "body", "lateral": "pyramid", "merge": "pyramid", "context": "context"}
    found = {}
    for name, tree in params.items():
        part = parts.get(name.rstrip("123456"), "heads")
        found[part] = found.get(part, 0) + count(tree)
    assert found == {"body": body, "pyramid": pyramid, "context": context, "heads": heads}


def test_parameters_of_the_papers_form():
    """By the layers: 3x3 convolutions in the pyramid and context modules have a deformable one's 18 offsets."""

    def deformable(inputs, outputs):
        return 9 * inputs * outputs + 2 * outputs + (9 * inputs + 1) * 18

    _, params = shapes(retinaface.retinaface_resnet152(), (64, 64))
    lateral = sum(256 * c + 512 for c in (256, 512, 1024, 2048)) + 9 * 2048 * 256 + 512
    context = deformable(256, 128) + deformable(256, 64) + 3 * deformable(64, 64)
    body = 60_192_808 - (2048 * 1000 + 1000)  # torchvision's ResNet-152 less its classifier
    assert count(params) == body + lateral + 3 * deformable(256, 256) + 5 * context + 257 * 3 * (2 + 4 + 10)


def test_anchors():
    model = retinaface.RetinaFace(None)
    anchors = model.anchors((640, 640))
    assert anchors.shape == (16_800, 4)
    np.testing.assert_allclose(anchors[:3], [[4, 4, 16, 16], [4, 4, 32, 32], [12, 4, 16, 16]])
    anchors = retinaface.paper(None).anchors((640, 640))
    assert anchors.shape == (102_300, 4)
    assert np.mean(np.arange(102_300) < 3 * 160 * 160) == pytest.approx(0.7507, abs=5e-5)
    sizes = np.unique(anchors[:, 2].round(2))
    np.testing.assert_allclose(sizes[[0, 1, 2, -2, -1]], [16, 20.16, 25.40, 322.54, 406.37], atol=0.006)
    assert (anchors[:, 2] == anchors[:, 3]).all()


TINY = retinaface.MobileNetBody(4, ((4, 1), (8, 2), (8, 2), (8, 2), (8, 2)))


@pytest.mark.parametrize("size", [(50, 79), (83, 45)])
def test_predictions_belong_to_anchors(size):
    net = retinaface.RetinaFaceNet(TINY, 8)
    form = {"levels": (2, 3, 4, 5, 6), "cell_anchors": 3, "shared_head": True, "conv": retinaface.DeformableConv}
    for made, model in (
        (net, retinaface.RetinaFace(net)),
        (retinaface.RetinaFaceNet(TINY, 8, dense=7, **form), retinaface.paper(None)),
    ):
        raw, _ = shapes(made, size)
        anchors = len(model.anchors(size))
        found = {name: raw[name].shape for name in ("logits", "boxes", "points")}
        assert found == {"logits": (1, anchors, 2), "boxes": (1, anchors, 4), "points": (1, anchors, 5, 2)}
    assert raw["dense"].shape == (1, anchors, 7)
    assert raw["images"].shape == (1, *size, 3)


def test_preprocess():
    image = jnp.array([[[[200, 100, 50]]]], jnp.uint8)
    np.testing.assert_array_equal(retinaface.RetinaFace(None).preprocess(image)[0, 0, 0], [-54, -17, 77])


def test_matching_by_hand():
    overlaps = jnp.array([
        [0.50, 0.10, 0.30, 0.00, 0.00],  # above the threshold at anchor 0
        [0.00, 0.25, 0.10, 0.00, 0.00],  # forces anchor 1
        [0.00, 0.00, 0.00, 0.60, 0.34],
        [0.10, 0.05, 0.00, 0.00, 0.00],  # below 0.2: takes anchor 0 from the first, but forces nothing
        [0.00, 0.00, 0.00, 0.25, 0.00],  # takes anchor 3, as the later of two
        [0.90, 0.90, 0.90, 0.90, 0.90],  # padding
    ])  # fmt: skip
    mask = jnp.arange(6) < 5
    found = retinaface.match(overlaps, mask, positive=0.35, forced=0.2)
    np.testing.assert_array_equal(found.positive, [True, True, False, True, False])
    np.testing.assert_array_equal(found.negative, ~found.positive)
    np.testing.assert_array_equal(found.box[found.positive], [3, 1, 4])
    found = retinaface.match(overlaps, mask & (jnp.arange(6) == 3), positive=0.05, forced=0.2)
    assert not found.positive.any()  # no face of at least 0.2: also anchors above the threshold are negative
    assert found.negative.all()
    found = retinaface.match(overlaps, mask, positive=0.5, negative=0.3)  # the paper's
    np.testing.assert_array_equal(found.positive, [True, False, False, True, False])
    np.testing.assert_array_equal(found.negative, [False, True, False, False, False])
    np.testing.assert_array_equal(found.box[found.positive], [0, 2])


SIZE = (96, 128)


@pytest.fixture(scope="module")
def scene():
    """Three faces, of which the first has anchor 0 and the last no points, and a row without area; no faces."""
    boxes, mask = np.zeros((2, 5, 4), np.float32), np.zeros((2, 5), bool)
    boxes[0, :4] = [[0, 0, 13, 12], [10, 20, 40, 60], [80, 50, 120, 90], [5, 5, 5, 9]]
    mask[0, :4] = True
    points, visible = np.zeros((2, 5, 5, 2), np.float32), np.zeros((2, 5, 5), bool)
    points[0, :2] = boxes[0, :2, None, :2] + np.float32([[5, 6], [12, 6], [9, 9], [6, 12], [12, 12]])
    visible[0, :2] = True
    return Truth(*map(jnp.asarray, (boxes, np.zeros((2, 5), int), points, visible, mask)))


@pytest.fixture(scope="module")
def perfect(scene):
    """Raw predictions equal to the targets, and the matches."""
    model = retinaface.RetinaFace(None)
    anchors, matches = model.anchors(SIZE), model.matches(scene, SIZE)
    rows = jnp.arange(2)[:, None]
    return {
        "boxes": box.encode(scene.boxes[rows, matches.box], anchors),
        "logits": 30.0 * jnp.stack([~matches.positive, matches.positive], -1),
        "points": box.encode_points(scene.points[rows, matches.box], anchors),
    }, matches


@pytest.fixture(scope="module")
def losses(scene):
    model = retinaface.RetinaFace(None)

    def loss(raw):
        terms = model.losses(raw, scene, SIZE)
        return sum(term.value() for term in terms.values()), terms

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_perfect_predictions_cost_nothing(perfect, losses):
    (value, terms), gradient = losses(perfect[0])
    np.testing.assert_allclose(value, 0, atol=1e-4)
    positive = perfect[1].positive
    np.testing.assert_array_equal(terms["boxes"].count, positive.sum(1))
    assert 0 < terms["points"].count[0] < terms["boxes"].count[0]
    assert not positive[1].any()
    assert 3 not in perfect[1].box[0][positive[0]]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_hard_negatives(perfect, losses):
    raw, matches = perfect
    rng = np.random.default_rng(0)
    (_, _), gradient = losses(raw | {"logits": jnp.asarray(rng.normal(size=raw["logits"].shape), jnp.float32)})
    used = np.abs(gradient["logits"]).sum(-1) > 0
    faces = int(matches.positive[0].sum())
    np.testing.assert_array_equal(used.sum(1), [8 * faces, 0])
    assert used[0][np.asarray(matches.positive[0])].all()


def test_decode(perfect, scene):
    model = retinaface.RetinaFace(None, count=6)
    found = jax.jit(lambda raw: model.decode(raw, SIZE))(perfect[0])
    np.testing.assert_array_equal(found.mask.sum(1), [3, 0])
    order = np.argsort(np.asarray(found.boxes[0, :3, 0]))
    np.testing.assert_allclose(found.boxes[0][order], scene.boxes[0, :3], atol=1e-3)
    np.testing.assert_allclose(found.points[0][order[:2]], scene.points[0, :2], atol=1e-3)
    np.testing.assert_allclose(found.scores[0, :3], 1, atol=1e-4)


@pytest.fixture
def small(monkeypatch):
    """A tiny network, and a head with a small texture."""
    network = functools.partial(retinaface.RetinaFaceNet, TINY, 8)
    monkeypatch.setitem(experiment.NETS, "tiny", (network, retinaface.RetinaFace))
    monkeypatch.setattr(experiment, "procedural", functools.partial(procedural, texture_size=16))


def test_smoke(small, faces_folder, tmp_path, monkeypatch):
    frozen, pretrain = [], experiment.pretrain
    monkeypatch.setattr(experiment, "pretrain", lambda *inputs: frozen.append(pretrain(*inputs)) or frozen[-1])
    config = experiment.get_config("dense")
    config.update_from_flattened_dict(
        {
            "data.kind": "retinaface", "data.path": str(faces_folder), "data.image_size": 64, "data.max_boxes": 4,
            "train.steps": 2, "train.batch_size": 4, "train.log_every": 1, "train.devices": 2, "eval.batch_size": 4,
            "mesh.steps": 2, "mesh.samples": 4, "mesh.vertices": (60, 12), "mesh.features": (4,), "mesh.crop": 8,
            "mesh.count": 1,
        }
    )  # fmt: skip
    state, report = app.run(config, experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"ap", "ap_tiny", "nme", "precision", "recall"} <= set(report.metrics)
    (start,) = frozen
    kept = state.model_state["decoder"]["frozen"]
    chex.assert_trees_all_close(kept, start, atol=1e-5)  # devices average equal values, which rounds
    assert np.abs(kept["scale"]).min() > 0


PARAMETERS = {
    "wider_mobilenet025": 426_608, "wider_resnet50": 27_293_600, "wider_resnet152": 69_095_144,
    "wider_resnet152_dense": 69_095_144 + 257 * 3 * 144,
}  # fmt: skip


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "boxes", "wider_mobilenet025"))
def test_presets_dry_run(preset, monkeypatch):
    monkeypatch.setattr(experiment, "procedural", functools.partial(procedural, texture_size=16))
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset in PARAMETERS:
        assert costs["parameters"] == PARAMETERS[preset]


def test_wrong_name():
    config = experiment.get_config()
    config.model.name = "resnet18"
    with pytest.raises(ValueError, match=r"model\.name is 'resnet18': expected one of tiny, mobilenet025, resnet50"):
        experiment.build(config)
