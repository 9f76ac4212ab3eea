"""FAB: extrapolation, fusion, memory and drawing against closed forms; streaming; the run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import fab as experiment
from facejax.alignment import fab
from facejax.ops import boundaries
from facejax.train import AXIS, Options, app
from facejax.train.dry_run import count, dry_run
from tests.selection import full_but

SMALL = {"predictor": (2, 2, 2, 2, 2, 2), "width": 4, "blocks": 2, "stem": 2, "widths": (2, 2), "hidden": 4}
NET = fab.FAB(**SMALL, samples=8)


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(0).uniform(size=(2, 4, 16, 24, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    """Weights large enough that every part matters."""
    made = jax.jit(lambda key: NET.init(key, jnp.zeros((1, 3, 16, 24, 3)), train=False))(jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.float32(x + rng.normal(0, 0.3 / max(1, x.size) ** 0.25, x.shape)), made["params"]
    )
    params["detector"]["fc3"] = {
        "kernel": jnp.float32(rng.normal(0, 0.05, (4, 136))), "bias": jnp.float32(rng.uniform(-0.4, 0.4, 136)),
    }  # fmt: skip
    return {**made, "params": params}


@pytest.fixture(scope="module")
def whole(variables, video):
    """(run, its result for the video)."""
    run = jax.jit(lambda video: NET.apply(variables, video, train=False))
    return run, run(video)


def test_parts_have_the_published_sizes():
    video = jax.ShapeDtypeStruct((1, 3, 256, 256, 3), jnp.float32)
    shapes = jax.eval_shape(lambda v: fab.FAB().init(jax.random.key(0), v, train=False), video)["params"]
    assert count(shapes["structure"]) == 1_598_147
    assert count(shapes["deblurring"]) == 920_001


extrapolate = jax.jit(fab.extrapolate)


def test_no_flow_averages_the_maps():
    maps = np.random.default_rng(0).uniform(size=(2, 5, 7, 2)).astype(np.float32)
    found = extrapolate(maps, np.zeros((2, 5, 7, 2), np.float32), np.full((2, 5, 7, 1), 0.5, np.float32))
    np.testing.assert_allclose(found[..., 0], maps.mean(-1), atol=1e-6)


@pytest.mark.parametrize("mask", [0.0, 0.3, 1.0])
def test_linear_motion_goes_on(mask):
    """A map that moved by (2, -1) pixels moves by as much again, whichever frame it is taken from."""
    rng, inner = np.random.default_rng(0), slice(4, -4)
    older = rng.uniform(size=(20, 26)).astype(np.float32)
    newer, wanted = (np.roll(older, (-k, 2 * k), (0, 1)) for k in (1, 2))
    flow = np.broadcast_to(np.float32([-2 / (25 / 2), 1 / (19 / 2)]), (1, 20, 26, 2))
    found = extrapolate(np.stack([older, newer], -1)[None], flow, np.full((1, 20, 26, 1), mask, np.float32))
    np.testing.assert_allclose(found[0, inner, inner, 0], wanted[inner, inner], atol=1e-4)


def test_fusion_against_a_loop():
    rng = np.random.default_rng(0)
    x, h = rng.normal(size=(2, 1, 6, 7, 2)).astype(np.float32)
    net = fab.DynamicFusion()
    kernel, epsilon = rng.normal(0, 0.5, (5, 5, 4, 2)).astype(np.float32), np.float32([0.2])
    params = {"conv": {"kernel": kernel}, "epsilon": epsilon}
    apply = jax.jit(lambda params, x, h: net.apply({"params": params}, x, h))
    found = apply(params, x, h)
    both, wanted = np.concatenate([x, h], -1)[0], x[0].copy()
    for i in range(2, 4):
        for j in range(2, 5):
            sum_ = np.einsum("ijc,ijcf->f", both[i - 2 : i + 3, j - 2 : j + 3], kernel)
            alpha = np.clip(2 * np.abs(1 / (1 + np.exp(-sum_)) - 0.5) + 0.2, 0, 1)
            wanted[i, j] = alpha * x[0, i, j] + (1 - alpha) * h[0, i, j]
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)
    np.testing.assert_allclose(apply(params, x, x), x, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda p: apply(p, x, h).sum()))(jax.tree.map(np.zeros_like, params))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


draw = jax.jit(lambda points: NET.draw(points, (16, 24)))


def test_boundaries_are_summed_and_pass_no_gradient():
    points = np.random.default_rng(0).uniform(3, 20, (2, 68, 2)).astype(np.float32)
    options = {"sigma": 1.0, "samples": 8, "ends": "natural", "rounded": True}
    wanted = jax.jit(lambda p: boundaries.boundary_maps(p, (16, 24), **options).sum(-1, keepdims=True))(points)
    np.testing.assert_allclose(draw(points), wanted, atol=1e-6)
    assert (jax.jit(jax.grad(lambda p: draw(p).sum()))(points) == 0).all()


def test_streaming_equals_the_whole_clip(whole, variables, video):
    _, wanted = whole
    found = fab.track(NET, variables, video)
    assert [x.shape for x in found] == [(2, 4, 68, 2), (2, 4, 16, 24, 3), (2, 4, 16, 24, 1)]
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_a_frame_changes_itself_and_later_ones(whole, video):
    run, first = whole

    def changed(t):
        other = video.copy()
        other[:, t] = 1 - other[:, t]
        return run(other)

    second = changed(3)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a[:, :3], b[:, :3])
    assert np.abs(first.points - second.points)[:, 3].max((0, 1, 2)) > 1e-5
    np.testing.assert_array_equal(first.boundary[:, 3], second.boundary[:, 3])  # of frames 1 and 2
    earlier = changed(2)
    assert np.abs(first.points - earlier.points)[:, 2:].max((0, 2, 3)).min() > 1e-5
    assert np.abs(first.image - earlier.image)[:, 3].max() > 1e-5  # the memory of frame 2


def test_known_landmarks_replace_the_first_ones(whole, variables, video):
    points = np.random.default_rng(2).uniform(2, 14, (2, 2, 68, 2)).astype(np.float32)
    found = fab.track(NET, variables, video, points)
    np.testing.assert_array_equal(found.points[:, :2], points)
    np.testing.assert_allclose(found.boundary[:, 1], draw(points[:, 1]), atol=1e-5)
    assert np.abs(found.boundary[:, 2] - whole[1].boundary[:, 2]).max() > 1e-4


def test_the_residual_adds_the_frame(whole, variables, video):
    net = dataclasses.replace(NET, residual=True)
    found = jax.jit(lambda video: net.apply(variables, video, train=False))(video[:, :3])
    np.testing.assert_allclose(found.image[:, 2] - video[:, 2], whole[1].image[:, 2], atol=1e-5)


def test_half_squares():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    wanted = [[((a[n, t] - b[n, t]) ** 2).sum() / 2 for t in range(3)] for n in range(2)]
    np.testing.assert_allclose(fab.half_squares(a, b), wanted, rtol=1e-5)


def test_landmarks_begin_at_the_given_shape(variables, video):
    shape = np.random.default_rng(3).uniform(size=(68, 2)).astype(np.float32)
    net = dataclasses.replace(NET, start=tuple(map(tuple, shape.tolist())))
    found = jax.jit(lambda video: net.apply(variables, video, method="alone"))(video)
    middle = jax.jit(lambda video: NET.apply(variables, video, method="alone"))(video)
    wanted = shape * [24, 16] - 0.5 - [11.5, 7.5]
    np.testing.assert_allclose(found - middle, np.broadcast_to(wanted, found.shape), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 3), (1, 2, 16, 16, 3), (1, 3, 16, 20, 3), (3, 16, 16, 3)])
def test_bad_videos_are_refused(shape):
    with pytest.raises(ValueError, match=r"FAB: video \(.*\), expected \[N, T, H, W, 3\] with .* 3 or more frames"):
        jax.eval_shape(lambda: NET.init(jax.random.key(0), jnp.zeros(shape), train=False))
    if shape[1] < 3:
        with pytest.raises(ValueError, match=r"track: video \(1, ., 16, 16, 3\), expected .* 3 or more frames"):
            fab.track(NET, {}, np.zeros(shape, np.float32))


def settings(preset, **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            **{f"model.{name}": value for name, value in SMALL.items()}, "model.samples": 8, "model.blocks": 1,
            "model.widths": (2,), "data.image_size": 16,
            "data.windows": (1, 3), "data.period": 1, "data.clip": 4, "data.test_clip": 4, "train.batch_size": 8,
            "train.steps": 1, "train.log_every": 1, "train.devices": 1, **changes,
        }
    )  # fmt: skip
    return config


def test_one_step_trains_every_part():
    """Also the features that only the next frame reads."""
    run = experiment.build(settings("synthetic", **{"optim.schedule.warmup": 0}))
    state = jax.jit(run.init)(jax.random.key(0))
    steps = {
        name: jax.jit(jax.vmap(step, in_axes=(None, 0, None), out_axes=(None, 0), axis_name=AXIS))
        for name, step in run.train_step.items()
    }
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(0, 255, (1, 2, 4, 16, 16, 3)).astype(np.uint8) for name in ("blurred", "sharp")}
    batch["points"] = rng.uniform(2, 14, (1, 2, 4, 68, 2)).astype(np.float32)
    first, _ = steps["landmarks"](state, batch, jax.random.key(1))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.params, state.params)
    assert moved["detector"]["conv"]["kernel"] and not any(jax.tree.leaves([moved["structure"], moved["deblurring"]]))
    after, metrics = steps["whole"](state, batch, jax.random.key(1))
    assert set(metrics) == {"boundary_loss", "image_loss", "landmark_loss"}
    parts = {("structure", "conv1"), ("deblurring", "features"), ("deblurring", "fusion"), ("detector", "conv")}
    for part, layer in parts:
        moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), *(s.params[part][layer] for s in (state, after)))
        assert max(jax.tree.leaves(moves)) > 0, layer
    old, new = (jax.tree.leaves(s.model_state["batch_stats"]) for s in (state, after))
    assert not np.array_equal(old[0], new[0])


def test_pretraining_comes_first_and_only_where_there_is_more_to_train():
    config = experiment.get_config()
    kinds = [experiment.build(config).choose(n) for n in (1, 3000, 3001)]
    assert kinds == ["landmarks", "landmarks", "whole"]
    config.model.temporal = False
    assert experiment.build(config).choose(3001) == "landmarks"


def test_the_miniatures_aids_stay_out_of_the_published_settings():
    config = experiment.get_config("300vw")
    assert (config.model.spread, config.model.mean_face, config.optim.b2) == (0.01, False, 0.999)
    assert (config.loss.image, config.loss.landmarks, config.pretraining) == (1.0, 1.0, 0)


def test_the_published_boundary_loss_counts_three_channels():
    """The authors compare the mask's three channels of the predicted boundary with the one channel of the true one."""
    rng = np.random.default_rng(3)
    found, true = (rng.uniform(size=(1, 1, 4, 4, 1)).astype(np.float32) for _ in range(2))
    theirs = np.sum((np.repeat(found, 3, -1) - true) ** 2) / 2
    weight = experiment.get_config("300vw").loss.boundary
    np.testing.assert_allclose(weight * fab.half_squares(found, true)[0, 0], theirs, rtol=1e-6)


def test_smoke_of_single_frames(moving_faces, tmp_path):
    config = settings("frame", **{"data.data_dir": str(moving_faces)})
    _, report = app.run(config, experiment.build, workdir=tmp_path / "run", quiet=True)
    assert set(report.metrics) == {"nme", "nme_blur_1", "nme_blur_3"}
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "300vw"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    config.data.clip = 3
    costs = dry_run(experiment.build(config), Options(**config.train))
    assert costs["parameters"] > 1e5


@pytest.fixture(scope="module")
def moving_faces(tmp_path_factory):
    """Folder of a prepared face world of two videos."""
    from facejax.data import videos
    from facejax.data.synthetic import faces

    with pytest.MonkeyPatch.context() as patch:
        small = dataclasses.replace(faces.TASKS[videos.TASK], train=2, test=1, views=9)
        patch.setitem(faces.TASKS, videos.TASK, small)
        yield tmp_path_factory.mktemp("moving")
