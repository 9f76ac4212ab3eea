"""OVD: streaming and whole clips, what a frame depends on, blending, loss, bad input, the experiment."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import video_deblur as experiment
from facejax.data import videos
from facejax.restoration.video_deblur import OVD, Blending, reconstruction_loss, stream
from facejax.train import Options, app
from facejax.train.dry_run import dry_run

NET = OVD(width=4, blocks=1)


def made(net, video, seed=0):
    """Variables with random biases and running averages."""
    variables = jax.jit(lambda: net.init(jax.random.key(0), video, train=False))()
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + np.float32(0.2 * rng.random(x.shape)), variables)


@pytest.fixture(scope="module")
def video():
    return jnp.asarray(np.random.default_rng(0).random((2, 6, 9, 12, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(video):
    return made(NET, video)


@pytest.fixture(scope="module")
def restored(video, variables):
    return jax.jit(lambda v, x: NET.apply(v, x, train=False))(variables, video)


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_streaming_equals_the_whole_clip(video, variables, length):
    whole = NET.apply(variables, video[:1, :length], train=False)[0]
    found = list(stream(NET, variables, np.asarray(video[0, :length])))
    assert len(found) == length and found[0].shape == (9, 12, 3)
    np.testing.assert_allclose(np.stack(found), whole, atol=2e-6)


def test_streaming_follows_two_frames_later_in_constant_memory(video, variables):
    taken = []
    frames = (taken.append(i) or np.asarray(video[0, i]) for i in range(6))
    made = stream(NET, variables, frames)
    next(made)
    assert taken == [0, 1, 2]
    next(made)
    assert taken == [0, 1, 2, 3]
    state = NET.begin(video[:, 0])
    after = jax.eval_shape(
        lambda state, frame: NET.apply(variables, state, frame, method="step")[0], state, video[:, 1]
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_the_loop_and_the_unrolled_program_agree(video, variables):
    """Outputs, gradients and running averages, which every time step updates."""

    small = video[:1, :2, :4, :4]

    def train(net):
        def loss(params, video):
            found, moved = net.apply({**variables, "params": params}, video, train=True, mutable=["batch_stats"])
            return jnp.sin(found).sum(), (found, moved)

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], small)

    looped, unrolled = train(NET), train(NET.clone(unroll=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), looped, unrolled)
    once = NET.apply(variables, small[:, :1], train=True, mutable=["batch_stats"])[1]
    moved = looped[1][1]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(moved), strict=True))


def reach(net, video, variables):
    """[T, T]: whether a restored frame (column) changes with a blurred one (row)."""
    restore = jax.jit(lambda x: net.apply(variables, x, train=False))
    start = restore(video)
    changed = [restore(video.at[:, t].add(0.5)) for t in range(video.shape[1])]
    return np.stack([np.abs(x - start).max((0, 2, 3, 4)) > 0 for x in changed])


def test_a_frame_depends_on_the_past_and_on_two_future_frames(video, variables):
    blurred, restored = np.indices((6, 6))
    np.testing.assert_array_equal(reach(NET, video, variables), blurred <= restored + 2)
    strcnn, alone = NET.clone(blending=False), NET.clone(recurrent=False, blending=False)
    np.testing.assert_array_equal(reach(strcnn, video, made(strcnn, video)), blurred <= restored + 2)
    np.testing.assert_array_equal(reach(alone, video, made(alone, video)), np.abs(blurred - restored) <= 2)


def test_border_frames_are_repeated(video, variables, restored):
    last = video[:, -1:]
    longer = NET.apply(variables, jnp.concatenate([video, last, last], 1), train=False)
    np.testing.assert_allclose(longer[:, :6], restored, atol=2e-6)
    alone = NET.clone(recurrent=False, blending=False)
    mine, first = made(alone, video), video[:, :1]
    shifted = alone.apply(mine, jnp.concatenate([first, first, video], 1), train=False)
    np.testing.assert_allclose(shifted[:, 2:], alone.apply(mine, video, train=False), atol=2e-6)


def test_the_blurred_frame_may_be_added(video, variables, restored):
    found = NET.clone(residual=True).apply(variables, video[:, :1], train=False)
    plain = NET.apply(variables, video[:, :1], train=False)
    np.testing.assert_allclose(found, plain + video[:, :1], atol=1e-6)
    whole = NET.clone(residual=True).apply(variables, video, train=False)
    np.testing.assert_allclose(whole, restored + video, atol=2e-6)


def test_a_new_network_with_the_blurred_frame_added_returns_it(video):
    net = NET.clone(residual=True)
    variables = net.init(jax.random.key(0), video, train=False)
    np.testing.assert_array_equal(
        net.apply(variables, video[:, :2], train=True, mutable=["batch_stats"])[0], video[:, :2]
    )


def test_with_group_norm_training_and_test_agree(video):
    net = NET.clone(groups=2)
    variables = made(net, video)
    assert set(variables) == {"params"}
    found = [net.apply(variables, video[:, :3], train=train) for train in (True, False)]
    np.testing.assert_allclose(*found, atol=1e-6)
    half = net.apply(variables, video[:1, :3], train=True)
    np.testing.assert_allclose(half, found[0][:1], atol=1e-5)


def test_blending_by_hand():
    rng = np.random.default_rng(0)
    new, old = rng.normal(size=(2, 1, 5, 5, 2)).astype(np.float32)
    kernel, bias = rng.normal(0, 0.3, (5, 5, 4, 2)).astype(np.float32), np.float32([0.3, -0.2])
    layer = Blending()

    def blend(kernel, bias, beta):
        return layer.apply({"params": {"conv": {"kernel": kernel, "bias": bias}, "beta": jnp.float32(beta)}}, new, old)

    both = np.concatenate([new, old], -1)[0]
    change = np.tensordot(both, kernel, 3) + bias  # the pixel in the middle sees the whole map
    weight = np.minimum(1, np.abs(np.tanh(change)) + 0.25)
    expected = weight * new[0, 2, 2] + (1 - weight) * old[0, 2, 2]
    np.testing.assert_allclose(blend(kernel, bias, 0.25)[0, 2, 2], expected, rtol=1e-5)
    np.testing.assert_allclose(blend(0 * kernel, 0 * bias, 0), old)
    np.testing.assert_allclose(blend(kernel, bias, 1), new)
    np.testing.assert_allclose(blend(0 * kernel, 0 * bias, 0.25), 0.25 * new + 0.75 * old, rtol=1e-6)
    slope = jax.grad(lambda beta: blend(0 * kernel, 0 * bias, beta).sum())(0.25)
    np.testing.assert_allclose(slope, (new - old).sum(), rtol=1e-5)
    gradients = jax.grad(lambda k: blend(k, bias, 0).sum())(kernel)
    assert np.isfinite(gradients).all() and np.abs(gradients).max() > 0


def test_loss():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(reconstruction_loss(a, b), ((a - b) ** 2).reshape(3, -1).mean(1), rtol=1e-6)
    gradient = jax.grad(lambda x: reconstruction_loss(x, b).sum())(a)
    np.testing.assert_allclose(gradient, 2 * (a - b) / a[0].size, rtol=1e-5, atol=1e-8)
    assert reconstruction_loss(jnp.bfloat16(a), b).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 4, 3\) and \(2, 4, 4, 3\): expected equal shapes"):
        reconstruction_loss(a, b[0])


def test_bfloat16_computes_nearly_the_same(video, variables, restored):
    half = NET.clone(dtype=jnp.bfloat16)
    found = jax.jit(lambda v, x: half.apply(v, x, train=False))(variables, video)
    assert found.dtype == jnp.float32
    assert half.begin(video[:, 0]).blended.dtype == jnp.bfloat16
    assert 0 < np.abs(found - restored).mean() < 0.02 * np.abs(restored).mean()


def test_strcnn_has_no_blending(video):
    count = {
        name: sum(x.size for x in jax.tree.leaves(jax.eval_shape(
            lambda key, net=net: net.init(key, video, train=False), jax.random.key(0))["params"]))
        for name, net in {"ovd": OVD(), "strcnn": OVD(blending=False)}.items()
    }  # fmt: skip
    assert count == {"ovd": 926_084, "strcnn": 926_084 - (25 * 128 + 1) * 64 - 1}


def test_bad_input_raises(video, variables):
    frames = [np.asarray(frame) for frame in video[0]]
    made = stream(NET, variables, [*frames[:4], frames[4][:-1], frames[5]])
    assert len([next(made), next(made)]) == 2
    with pytest.raises(ValueError, match=r"frame 5 is \(8, 12, 3\): expected \(9, 12, 3\), as the first"):
        list(made)
    with pytest.raises(ValueError, match=r"frame 1 is \(9, 12, 4\): expected \[H, W, 3\]"):
        next(stream(NET, variables, [np.zeros((9, 12, 4))]))
    with pytest.raises(ValueError, match="no frames: expected at least one"):
        next(stream(NET, variables, []))
    for wrong in (video[0], video[..., :2], video[:, :0]):
        with pytest.raises(ValueError, match=r"video \(.*\): expected \[N, T, H, W, 3\] with at least one frame"):
            NET.apply(variables, wrong, train=False)
    with pytest.raises(ValueError, match=r"OVD.context is 0: expected 1 or more"):
        OVD(context=0).init(jax.random.key(0), video, train=False)


@pytest.fixture(scope="module")
def gopro(tmp_path_factory):
    """A folder in GoPro_Large's layout: textures that move, with pairs of one size for each split."""
    root = tmp_path_factory.mktemp("gopro")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            texture = np.kron(rng.integers(0, 256, (8, 24, 3)), np.ones((3, 3, 1))).astype(np.uint8)
            folder = root / "fast" / split / f"v{number}"
            folder.mkdir(parents=True)
            for i in range(20):
                (folder / f"{i}.png").write_bytes(videos.faces.png(texture[:, 2 * i : 2 * i + 20]))
        videos.write_averaged(root / "fast" / split, root / split, window=3, period=4)
    return root


def test_the_experiment_learns(gopro, tmp_path):
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.source": "path", "data.path": str(gopro), "data.clip": 2, "data.crop": 8, "model.width": 4,
            "model.residual": False, "optim.schedule.warmup": 0,
            "train.batch_size": 4, "train.steps": 30, "train.log_every": 10, "train.devices": 1,
        }
    )  # fmt: skip
    config.optim.schedule.peak = 1e-2
    _, report = app.run(config, experiment.build, quiet=True, workdir=str(tmp_path / "run"))
    points = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [point["train/loss"] for point in points if "train/loss" in point]
    assert losses[-1] < 0.7 * losses[0]
    assert next(iter(report.metrics)) == "psnr" and 5 < report.metrics["psnr"] < report.metrics["psnr_degraded"] + 20
    assert [row["frames"] for row in report.tables["Videos"]] == [5, 5]
    (strip,) = report.images.values()
    assert strip.shape == (5, 24, 60, 3)
    assert (tmp_path / "run/report.html").stat().st_size > 20_000


@pytest.mark.parametrize("preset", ["gopro", "window"])
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    found = dry_run(experiment.build(config), Options(**{**config.train, "devices": 1}))
    assert found["step flops per device"] > 1e9
    if preset == "gopro":
        assert found["parameters"] == 926_084
