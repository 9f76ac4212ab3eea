import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import faceqnet as experiment
from facejax.data.quality_faces import QualityFaces
from facejax.evaluate.quality import measure
from facejax.quality import faceqnet, factors
from facejax.recipes.recogniser import Recogniser


def test_parameter_count(count):
    assert count(experiment.Pooled(), 1, 224, 224, 3, train=False) == [23_508_032, 53_120]


class Mean(nn.Module):
    """A trunk with one parameter."""

    @nn.compact
    def __call__(self, images, *, train):
        return images.mean((1, 2)) * self.param("scale", nn.initializers.ones, ())


def test_scores_are_clipped_in_evaluation_and_the_trunk_has_no_gradient():
    net, images = faceqnet.FaceQnet(Mean(), 4), 50 * jax.random.normal(jax.random.key(0), (64, 2, 2, 3))
    variables = net.init(jax.random.key(1), images, train=False)
    raw, used = (net.apply(variables, images, train=train) for train in (True, False))
    assert raw.min() < 0 and raw.max() > 1
    chex.assert_trees_all_close(used, jnp.clip(raw, 0, 1))
    gradient = jax.grad(lambda p: net.apply({"params": p}, images, train=True).sum())(variables["params"])
    assert gradient["trunk"]["scale"] == 0 and np.any(gradient["hidden"]["kernel"])


def test_gallery_labels():
    rng = np.random.default_rng(0)
    features, people = rng.normal(size=(8, 5)), np.repeat([3, 7], 4)
    compliance = np.array([0, 1, 2, 1, 5, 0, 0, 1])
    labels = faceqnet.gallery_labels(features, people, compliance)
    assert np.nanmin(labels) == 0 and np.nanmax(labels) == 1
    np.testing.assert_array_equal(np.isnan(labels), np.isin(np.arange(8), [2, 4]))  # no image is its own mate
    chex.assert_trees_all_close(faceqnet.gallery_labels(3 * features, people, compliance), labels, rtol=1e-5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    cosine = np.r_[cosine[2, [0, 1, 3]], cosine[4, 5:]]
    expected = ((cosine - cosine.min()) / np.ptp(cosine)).astype(np.float32)
    chex.assert_trees_all_close(labels[[0, 1, 3, 5, 6, 7]], expected, rtol=1e-5)
    single = faceqnet.gallery_labels(features, np.r_[people[:7], 9], compliance)
    assert np.isnan(single[7])  # the only image of a person is its gallery image


def test_labels_without_an_order_or_out_of_range():
    features = np.random.default_rng(0).normal(size=(8, 5))
    with pytest.raises(
        ValueError, match="0 images beside the gallery with equal cosines: expected several images of a person"
    ):
        faceqnet.gallery_labels(features, np.arange(8), np.arange(8))
    fused = faceqnet.fused_labels(np.array([[0.0, 0.2], [1.0, 0.4]]))
    chex.assert_trees_all_close(fused, np.array([0.5, 0.3], np.float32), rtol=1e-6)
    assert np.isnan(faceqnet.fused_labels(np.array([[0.0, np.nan], [1.0, np.nan]]))).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"labels \(1, 2\) of 0.0 to 1.5: expected \[R, N\] in 0..1"):
        faceqnet.fused_labels(np.array([[0.0, 1.5]]))


def test_trunk_begins_with_published_weights(tmp_path):
    """A file with keras_vggface's names: 53 convolutions with a batch norm each, and a classifier that is left out."""
    h5py = pytest.importorskip("h5py")
    net = experiment.Pooled()
    trunk = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))
    resnet, number = trunk["params"]["resnet"], 0
    names = {"conv1": "1x1_reduce", "conv2": "3x3", "conv3": "1x1_increase", "shortcut_conv": "1x1_proj"}
    with h5py.File(tmp_path / "resnet50.h5", "w") as file:
        for path, leaf in jax.tree_util.tree_leaves_with_path(resnet):
            place, layer = (path[0].key, path[1].key) if path[0].key.startswith("layer") else ("", path[0].key)
            if "conv" not in layer:
                continue
            stage, block = (int(x) + 1 for x in place[5:].split("_")) if place else (0, 0)
            name = f"conv{stage}_{block}_{names[layer]}" if place else "conv1/7x7_s2"
            number += 1
            file[f"{name}/{name}/kernel:0"] = np.full(leaf.shape, number, np.float32)
            for part in ("gamma", "beta", "moving_mean", "moving_variance"):
                file[f"{name}/bn/{name}/bn/{part}:0"] = np.full(leaf.shape[-1], number, np.float32)
        file["classifier/classifier/kernel:0"] = np.zeros((2048, 8631), np.float32)
    found = experiment.read_trunk(tmp_path / "resnet50.h5", trunk)
    assert number == 53
    block = found["params"]["resnet"]["layer2_0"]
    assert block["conv2"]["kernel"].mean() == block["bn2"]["norm"]["bias"].mean() != block["conv1"]["kernel"].mean()
    assert found["batch_stats"]["resnet"]["layer2_0"]["shortcut_bn"]["norm"]["var"].mean() == \
        block["shortcut_conv"]["kernel"].mean()  # fmt: skip


def test_presets_trace(presets_trace):
    presets_trace("faceqnet")


def test_smoke_and_the_trunk_stays(smoke, configured):
    """Even with weight decay."""
    state, _ = smoke("faceqnet:synthetic", recognisers=2, **{"optim.weight_decay": 0.1})
    _, config = configured("faceqnet:synthetic")
    data = QualityFaces(**config.data)
    trained = Recogniser(**config.recogniser).embedder(config.seed, **data.view).variables
    kept = {part: tree["trunk"]["recogniser"] for part, tree in
            {"params": state.params, **state.model_state}.items()}  # fmt: skip
    chex.assert_trees_all_equal(kept, trained)


def rows_of(module, config):
    """The examples that an experiment trains on, in the order of the data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QualityFaces, "batches", lambda self, source, *rest: source)
        source = module.build(config).train_data()
    return [source[i] for i in range(len(source))]


def test_compliance_from_a_file(tmp_path, configured, picture_folder):
    """The person's gallery image has the highest compliance in the file, which may name other people, too."""
    rng = np.random.default_rng(0)
    picture_folder(tmp_path, {f"p{i}": rng.integers(0, 256, (2, 48, 48, 3)) for i in range(4)})
    lines = [f"p{i // 2}/{i % 2}.png,{(0.2, 0.9, 0.7, 0.4)[i % 4]}" for i in range(6)]
    (tmp_path / "scores.csv").write_text("\n".join(["name,compliance", *reversed(lines)]))
    changes = {
        "data.source": "path",
        "data.path": str(tmp_path),
        "data.people": 2,
        "data.test_people": 2,
        "recognisers": 1,
    }
    _, config = configured("faceqnet:synthetic", compliance=str(tmp_path / "scores.csv"), **changes)
    known = QualityFaces(**config.data).load("train")
    np.testing.assert_array_equal(experiment.compliance(known, config.compliance), [0.2, 0.9, 0.7, 0.4])
    rows = rows_of(experiment, config)
    assert sorted(example["label"] for example in rows) == [0, 1]
    for example, kept in zip(rows, (0, 3), strict=True):  # images 1 and 2 are the gallery
        np.testing.assert_array_equal(example["image"], known.images[kept])
    plain = experiment.compliance(known, "")
    sharp = measure(factors.sharpness, known.images)
    chex.assert_trees_all_close(plain, (sharp - sharp.min()) / np.ptp(sharp), rtol=1e-5)
    (tmp_path / "scores.csv").write_text("name,compliance\np0/0.png,1\np9/0.png,1\n")
    with pytest.raises(
        ValueError, match=r"scores\.csv, line 3: unknown image 'p9/0\.png': expected one such as 'p0/0\.png'"
    ):
        experiment.compliance(known, config.compliance)
    (tmp_path / "scores.csv").write_text("\n".join(["name,compliance", *lines[:3]]))
    with pytest.raises(
        ValueError, match=r"scores\.csv: no line for 'p1/1\.png', one of 1 missing: expected all 4 images"
    ):
        experiment.compliance(known, config.compliance)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compliance": "a.csv", "label": "sharpness"}, "compliance is given, but label is 'sharpness'"),
        ({"recognisers": 0}, "recognisers is 0: expected 1 or more"),
        ({"recogniser.name": "mobilefacenet"}, "recogniser.name is 'mobilefacenet': expected an IResNet"),
        ({"model.trunk": "vgg"}, "model.trunk is 'vgg': expected 'recogniser' or 'resnet50'"),
        ({"model.trunk": "resnet50"}, "model.weights is empty: expected a Keras file"),
        ({"recogniser.weights": "a.pth,b.pth"}, "recogniser.weights names 2 files for 3 recognisers: expected as many"),
    ],
)
def test_bad_input(changes, message, raises):
    raises("faceqnet:synthetic", message, **changes)
