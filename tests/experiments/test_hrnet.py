"""HRNet's experiment: a run on a small COCO folder, perfect people judged, costs, presets, weights."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import hrnet as experiment
from facejax.backbones import hrnet
from facejax.data import people
from facejax.data.readers.people import CocoPeople, PeopleSource, Person
from facejax.data.synthetic.faces import png
from facejax.interop import hrnet_torch
from facejax.train import Options, app, parallel
from facejax.train.dry_run import count, dry_run, flops
from tests.selection import full_but

TINY = {"model.name": "smallest", "train.steps": 2, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 4}


@pytest.fixture(scope="module", autouse=True)
def smallest():
    experiment.TRUNKS["smallest"] = lambda **o: hrnet.HRNet(
        4, (1, 1, 1), 1, stem_width=4, first_blocks=1, first_width=2, **o
    )
    yield
    del experiment.TRUNKS["smallest"]


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    """Eight pictures of noise with a person in each, in both splits."""
    root, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(1, 9):
            (root / "images" / split / f"{i}.png").write_bytes(png(rng.integers(0, 255, (90, 120, 3)).astype(np.uint8)))
            images.append({"id": i, "file_name": f"{i}.png", "width": 120, "height": 90})
            points = np.concatenate([rng.integers(10, 70, (17, 2)), np.full((17, 1), 2)], 1)
            box = [5, 5, 70, 70]
            annotations.append({
                "id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 4000.0, "bbox": box,
                "keypoints": points.ravel().tolist(), "num_keypoints": 17,
            })  # fmt: skip
        found = {"images": images, "annotations": annotations}
        (root / "annotations" / f"person_keypoints_{split}.json").write_text(json.dumps(found))
    return root


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


def test_joints_that_are_not_visible_teach_nothing():
    rng, executor = np.random.default_rng(0), parallel.make_executor(experiment.build(config_for()), "shard_map")
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


def test_perfect_people_have_a_perfect_score(coco_folder):
    config = config_for(path=coco_folder)
    source, judge = experiment.tested_people(config)
    points = np.stack([p.points for p in source.people])
    report = judge({"points": points, "heights": np.ones((8, 17))})
    assert report.metrics["ap"] == pytest.approx(100)
    assert report.metrics["ap_medium"] == pytest.approx(100)
    away = judge({"points": points + 500, "heights": np.ones((8, 17))})
    assert away.metrics["ap"] == 0


def test_duplicates_are_thinned_out(coco_folder):
    annotated = CocoPeople(coco_folder / "annotations/person_keypoints_val2017.json", coco_folder / "images/val2017")
    twice = PeopleSource(annotated.people() * 2)
    points = np.stack([p.points for p in twice.people])
    report = experiment.judge_coco(
        config_for(path=coco_folder), twice, {"points": points, "heights": np.ones((16, 17))}, annotated
    )
    assert report.metrics["ap"] == pytest.approx(100)


def test_perfect_mpii(coco_folder):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 60, (3, 16, 2))
    visible = np.ones((3, 16), bool)
    file = coco_folder / "images/val2017/1.png"
    source = PeopleSource([Person(file, i, (30, 30), (60, 60), points[i], visible[i]) for i in range(3)])
    truth = {"points": points, "visible": visible, "heads": np.tile([0.0, 0, 30, 40], (3, 1))}
    report = experiment.judge_mpii(config_for("mpii"), source, {"points": points + np.array([8, 12])}, truth)
    assert report.metrics["pckh"] == report.metrics["wrist"] == 100  # within half of 30
    assert report.metrics["mean@0.1"] == 0


class Faces:
    """Faces without a picture."""

    def __init__(self, points):
        self.points = points

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return {
            "image": png(np.zeros((64, 64, 3), np.uint8)),
            "points": self.points[index],
            "centre": (32, 32),
            "size": (64, 64),
        }


def test_errors_of_faces():
    points = np.random.default_rng(0).uniform(10, 50, (12, 68, 2))
    size = np.sqrt(np.ptp(points, axis=1).prod(-1))
    shifted = points + np.stack([0.05 * size, 0 * size], 1)[:, None]
    found = {"points": shifted, "peak": points, "shift": shifted, "taylor": points}
    report = experiment.judge_faces(config_for("face_world"), Faces(points), found)
    assert report.metrics["nme"] == report.metrics["nme_shift"] == pytest.approx(5)
    assert report.metrics["nme_peak"] == report.metrics["failures_at_8"] == 0
    assert report.metrics["auc_at_8"] == pytest.approx(100 * (1 - 5 / 8), abs=0.2)


class EveryFourthPixel:
    """A network whose maps are the picture itself."""

    def apply(self, variables, images, train):
        del variables, train
        return images[:, ::4, ::4]


@pytest.mark.parametrize(("flip", "columns", "expected"), [(False, 4, 60), (True, 8, 64)])
def test_points_come_back_to_their_picture(flip, columns, expected):
    """A bright bar, which the mirrored view's shifted map sees a pixel later; the region is half the picture."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[41:45, 60 : 60 + columns] = 255
    example = {"image": png(image), "centre": (60.0, 45.0), "size": (64.0, 64.0)}
    config = config_for("face_world", **{"eval.flip": flip, "eval.decode": "peak"})
    found = experiment.find(config, EveryFourthPixel(), {}, [example], people.Layout(np.arange(3)))
    np.testing.assert_allclose(found["points"], [[[expected, 41]] * 3], atol=1e-3)
    assert (found["heights"] > 0).all()


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


TRACED = full_but(PARAMETERS, "coco_w32_256x192", "coco_resnet50_256x192", "imagenet_w18_small")
"""By default one preset of every architecture: the others' networks, of other widths, are counted with the backbone."""


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


def test_a_trunk_of_a_classifier_begins_a_pose_network(monkeypatch):
    """All of the finest path is taken; the head is the pose network's own, and small where that is asked for."""
    whole = hrnet.Classifier(experiment.TRUNKS["smallest"]())
    shapes = jax.eval_shape(lambda key: whole.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    published = jax.tree.map(lambda x: np.full(x.shape, 0.25, x.dtype), shapes)
    monkeypatch.setattr(hrnet_torch, "load", lambda path, template: published)
    config = config_for(**{"model.weights": "classifier.pth"})
    params = jax.jit(experiment.build(config).init)(jax.random.key(0)).params
    assert all((x == 0.25).all() for x in jax.tree.leaves(params["trunk"]))
    assert count(params["trunk"]) < count(published["params"]["trunk"])
    assert 0 < jnp.abs(params["maps"]["kernel"]).max() < 0.006


def test_published_runs_share_no_batch_statistics(monkeypatch):
    """Tracing outside of a mapped axis fails where statistics are shared over one."""
    monkeypatch.setattr(experiment.classification, "classifier", lambda config, net, **_: net)
    classifier = experiment.get_config("imagenet_w18")
    classifier.model.name = "smallest"
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    for net in (experiment.make_net(config_for()), experiment.build(classifier)):

        def train(key, images, net=net):
            return net.apply(net.init(key, images, train=False), images, train=True, mutable=["batch_stats"])

        assert jax.eval_shape(train, jax.random.key(0), images)[1]["batch_stats"]


def test_networks_see_imagenets_mean_as_nothing():
    seen = experiment.preprocess(jnp.array([[[[124, 116, 104], [182, 173, 161]]]], jnp.uint8))
    np.testing.assert_allclose(seen, [[[[0.0] * 3, [1.0] * 3]]], atol=0.02)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.name": "w33"}, "model.name is 'w33': expected one of tiny, w18_small"),
        ({"data.kind": "voc"}, "data.kind is 'voc': expected one of face_world, coco, mpii"),
        ({"eval.decode": "dark"}, "eval.decode is 'dark': expected one of peak, shift, taylor"),
    ],
)
def test_bad_options_are_said(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        experiment.build(config_for(**changes))


def test_weights_of_a_trunk_need_a_trunk():
    config = config_for(**{"model.weights": "resnet.pth", "model.name": "tiny_stride32"})
    with pytest.raises(ValueError, match=r"model\.weights: expected a model\.name of tiny, w18_small"):
        jax.eval_shape(experiment.build(config).init, jax.random.key(0))
