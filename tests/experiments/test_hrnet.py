"""HRNet's experiment: a run on a small COCO folder, costs, presets, weights."""

import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import hrnet as experiment
from facejax.backbones import hrnet
from facejax.evaluate import keypoints as evaluation
from facejax.interop import hrnet_torch
from facejax.train import Options, app, parallel
from facejax.train.dry_run import count, dry_run, flops
from tests.selection import full_but

TINY = {"model.name": "smallest", "train.steps": 2, "train.batch_size": 4, "train.log_every": 1, "train.devices": 1,
        "eval.batch_size": 4}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def smallest():
    experiment.TRUNKS["smallest"] = lambda **o: hrnet.HRNet(
        4, (1, 1, 1), 1, stem_width=4, first_blocks=1, first_width=2, **o
    )
    yield
    del experiment.TRUNKS["smallest"]


def config_for(kind="coco", path="", **changes):
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {"data.kind": kind, "data.path": str(path), "data.image_size": (64, 64), **TINY, **changes}
    )
    return config


def test_smoke(coco_folder, tmp_path):
    config = config_for(path=coco_folder, **{"data.half_body": 0.5, "data.enlarge": 1.25})
    state, report = app.run(config, experiment.build, workdir=tmp_path / "run", quiet=True)
    assert next(iter(report.metrics)) == "ap"
    assert 0 <= report.metrics["ap"] <= 100
    assert report.arrays["keypoints"].shape == (8, 17, 2)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert int(state.step) == 2


def test_smoke_of_other_keypoints(coco_folder, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    for part in ("train", "val"):
        (tmp_path / "images" / part).symlink_to(coco_folder / f"images/{part}2017")
        found = json.loads((coco_folder / f"annotations/person_keypoints_{part}2017.json").read_text())
        for entry in found["annotations"]:
            entry |= {"category_id": 5, "keypoints": entry["keypoints"][:9], "num_keypoints": 3}
        found["categories"] = [{"id": 5, "keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[1, 2], [1, 3]]}]
        (tmp_path / f"annotations/{part}.json").write_text(json.dumps(found))
    report = app.run(config_for("files", tmp_path), experiment.build, quiet=True)[1]
    assert report.arrays["keypoints"].shape == (8, 3, 2)
    data = experiment.KeypointImages("files", str(tmp_path))
    assert data.layout.partners.tolist() == [0, 2, 1] and data.layout.links == ((0, 1), (0, 2))
    source, truth = data.test()
    exact = {"points": np.stack([p.points for p in source.people]), "heights": np.ones((8, 3))}
    perfect = evaluation.files_report(evaluation.Crops(source, data.layout, (64, 64)), exact, truth)
    np.testing.assert_allclose(perfect.metrics["ap"], 100)


class OneConvolution(nn.Module):
    finest_only: bool
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, images, *, train):
        return {"c2": nn.BatchNorm(not train)(nn.Conv(4, (7, 7), 4)(images))}


def test_invisible_joints_do_not_train(monkeypatch):
    monkeypatch.setitem(experiment.TRUNKS, "smallest", OneConvolution)
    built = experiment.build(config_for(**{"train.batch_size": 8}))
    rng, executor = np.random.default_rng(0), parallel.make_executor(built, "shard_map", 1)
    visible = rng.random((8, 17)) < 0.7
    visible[:, 5] = False
    points = rng.uniform(8, 56, (8, 17, 2)).astype(np.float32)
    image = rng.integers(0, 255, (8, 64, 64, 3)).astype(np.uint8)
    start = jax.tree.map(np.asarray, executor.init(0).params)

    def stepped(points):
        state, batch = executor.init(0), executor.put({"image": image, "points": points, "visible": visible})
        for _ in range(2):  # the first at a rate of 0
            state, metrics = executor.step(state, batch)
        assert metrics["error"].count == visible.sum()
        return jax.tree.map(np.asarray, (state.params, metrics))

    first = stepped(points)
    chex.assert_trees_all_equal(stepped(np.where(visible[..., None], points, 64 - points)), first)
    moved = np.abs(first[0]["maps"]["kernel"] - start["maps"]["kernel"]).max((0, 1, 2))
    assert np.flatnonzero(moved == 0).tolist() == [5]
    assert stepped(np.where(visible[..., None], 64 - points, points))[1]["loss"].total != first[1]["loss"].total


def test_both_sides_of_the_claim_cost_the_same():
    """Within 3 percent, in multiply-adds of one image."""
    costs = []
    for preset in ("synthetic", "stride32"):
        net, image = experiment.make_net(experiment.get_config(preset)), jnp.zeros((1, 64, 64, 3))
        variables = jax.eval_shape(lambda key, net=net, x=image: net.init(key, x, train=False), jax.random.key(0))
        jaxpr = jax.make_jaxpr(lambda v, x, net=net: net.apply(v, x, train=False))(variables, image).jaxpr
        costs.append(flops(jaxpr) / 2)
    assert costs[1] == pytest.approx(costs[0], rel=0.03)
    assert costs[0] == pytest.approx(16.0e6, rel=0.01)


PARAMETERS = {
    "coco_w32_256x192": 28_536_113, "coco_w32_384x288": 28_536_113, "coco_w48_256x192": 63_595_745,
    "coco_w48_384x288": 63_595_745, "coco_resnet50_256x192": 33_999_697, "mpii_w32": 28_536_080,
    "imagenet_w18_small": 13_187_464, "imagenet_w18_small_v2": 15_597_464, "imagenet_w18": 21_299_004,
    "imagenet_w32": 41_232_680, "imagenet_w48": 77_469_864,
}  # fmt: skip


TRACED = full_but(PARAMETERS, "coco_resnet50_256x192", "imagenet_w18_small")
"""By default one preset of each kind of run: the pose networks are counted, and the small one trained, elsewhere."""


@pytest.mark.parametrize("preset", TRACED)
def test_full_scale_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    assert costs["parameters"] == PARAMETERS[preset]
    assert costs["devices"] == 4


def test_every_published_preset_is_counted_and_can_be_built():
    assert set(experiment.PRESETS) == {"synthetic", "stride32", *PARAMETERS}
    for preset in PARAMETERS:
        config = experiment.get_config(preset)
        assert experiment.build(config).batch["image"].shape[0] == config.train.batch_size


@pytest.mark.parametrize("name", ["w32", "w48"])
def test_networks_of_both_sizes_of_pictures_are_equal(name):
    small, large = (experiment.make_net(experiment.get_config(f"coco_{name}_{s}")) for s in ("256x192", "384x288"))
    assert small == large


def test_schedules():
    config = experiment.get_config("coco_w32_256x192")
    assert config.train.steps == 210 * (149_813 // 128)
    assert [round(b * config.train.steps) // (149_813 // 128) for b in config.optim.schedule.boundaries] == [170, 200]
    assert experiment.get_config("coco_w48_384x288").data.sigma == 3
    assert experiment.get_config("imagenet_w18").optim.nesterov


def test_classifier_trunk_initialises_a_pose_network(monkeypatch):
    """Every parameter of the finest path is taken; the head keeps its own small kernels."""
    whole = hrnet.Classifier(experiment.TRUNKS["smallest"]())
    shapes = jax.eval_shape(lambda key: whole.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    published = jax.tree.map(lambda x: np.full(x.shape, 0.25, x.dtype), shapes)
    monkeypatch.setattr(hrnet_torch, "load", lambda path, template: published)
    config = config_for(**{"model.weights": "classifier.pth"})
    built = experiment.build(config)
    params = jax.jit(built.init)(jax.random.key(0), built.prepare()).params
    assert all((x == 0.25).all() for x in jax.tree.leaves(params["trunk"]))
    assert count(params["trunk"]) < count(published["params"]["trunk"])
    assert 0 < jnp.abs(params["maps"]["kernel"]).max() < 0.006


def test_published_runs_share_no_batch_statistics(monkeypatch):
    """Tracing outside of a mapped axis fails where statistics are shared over one."""
    monkeypatch.setattr(experiment, "classifier", lambda net, *_, **options: net)
    classifier = experiment.get_config("imagenet_w18")
    classifier.model.name = "smallest"
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    for net in (experiment.make_net(config_for()), experiment.build(classifier)):

        def train(key, images, net=net):
            return net.apply(net.init(key, images, train=False), images, train=True, mutable=["batch_stats"])

        assert jax.eval_shape(train, jax.random.key(0), images)[1]["batch_stats"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.name": "w33"}, "model.name is 'w33': expected one of tiny, w18_small"),
        ({"data.kind": "voc"}, "data.kind is 'voc': expected one of face_world, coco, mpii"),
        ({"eval.decode": "dark"}, "eval.decode is 'dark': expected one of peak, shift, taylor"),
    ],
)
def test_bad_options_raise(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        experiment.build(config_for(**changes))


def test_weights_of_a_trunk_need_a_trunk():
    config = config_for(**{"model.weights": "resnet.pth", "model.name": "tiny_stride32"})
    with pytest.raises(ValueError, match=r"model\.weights: expected a model\.name of tiny, w18_small"):
        experiment.build(config)
