"""Deformable convolution and RoI pooling: golden numbers, closed forms, gradients, memory, and the experiment."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from experiments import deformable as experiment
from facejax.data.synthetic import faces
from facejax.foundations import deformable
from facejax.foundations.deformable import DeformableConv, deform_conv2d, deform_roi_pool
from facejax.ops.conv import conv
from facejax.train import Options, app, parallel
from facejax.train.dry_run import count, dry_run

OFFSET_ROWS = [
    [0.1, 0.4, 0.6, 0.1], [0.3, 0.2, 0.1, 0.3], [0.5, 0.5, 0.2, 0.8], [0.8, 0.3, 0.9, 0.1],
    [0.3, 0.1, 0.2, 0.5], [0.3, 0.7, 0.5, 0.3], [0.6, 0.2, 0.5, 0.3], [0.4, 0.1, 0.8, 0.4],
]  # fmt: skip


def test_golden_values_and_gradients():
    x = jnp.array([[1, 2, 3], [0, 1, 2], [3, 5, 2.0]])[None, ..., None]
    kernel = jnp.array([0.4, 0.2, 0.1, 0.9]).reshape(2, 2, 1, 1)
    weights, bias = jnp.array(OFFSET_ROWS).T.reshape(2, 2, 1, 8), jnp.array([0.7, 0.1, 0.8, 0.5, 0.6, 0.5, 0.4, 0.7])
    y, vjp = jax.vjp(lambda x, k, w, b: deform_conv2d(x, conv(x, w) + b, k), x, kernel, weights, bias)
    np.testing.assert_allclose(y[0, ..., 0], [[1.65, 0], [0, 0]], atol=1e-6)
    dx, d_kernel, d_weights, d_bias = vjp(jnp.ones_like(y))
    np.testing.assert_allclose(
        dx[0, ..., 0], [[-0.666, 0.204, 0], [0.030, -0.416, 0.012], [0, 0.252, 0.129]], atol=1e-5
    )
    np.testing.assert_allclose(d_kernel.ravel(), [3.62, 0, 0.40, 0.18], atol=1e-5)
    np.testing.assert_allclose(d_bias, [1.44, -0.72, 0, 0, -0.10, -0.08, -0.54, -0.54], atol=1e-5)
    rows = np.outer([1.44, -0.72, 0, 0, -0.10, -0.08, -0.54, -0.54], [1, 2, 0, 1])  # x where the one live output reads
    np.testing.assert_allclose(d_weights.reshape(4, 8).T, rows, atol=1e-5)


def test_golden_constant_offset():
    x = (5.0 * jnp.arange(4)[:, None] + jnp.arange(5))[None, ..., None]
    kernel = ((jnp.arange(9) + 1) / 45.0).reshape(3, 3, 1, 1)
    offset = jnp.broadcast_to(jnp.tile(jnp.array([0.5, -0.25]), 9), (1, 4, 5, 18))
    expected = [
        [3.316667, 5.361111, 6.577778, 7.511111, 5.694444],
        [6.341667, 9.783333, 11.383333, 12.383333, 9.133333],
        [6.183333, 9.263889, 10.561111, 11.294444, 8.152778],
        [2.975, 4.238889, 4.758333, 5.058333, 3.483333],
    ]
    np.testing.assert_allclose(deform_conv2d(x, offset, kernel, padding=1)[0, ..., 0], expected, rtol=1e-6)
    still = deform_conv2d(x, 0 * offset, kernel, padding=1)[0, 0, :, 0]
    np.testing.assert_allclose(still, [2.222222, 3.622222, 4.488889, 5.355556, 3.555556], rtol=1e-6)


def problem(size=(3, 2), stride=(2, 1), padding=((1, 2), (0, 1)), dilation=(2, 1), groups=2, offset_groups=3, batch=2):
    """A geometry with nothing symmetric: x [batch, 7, 5, 6] -> [batch, H', W', 4]."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (batch, 7, 5, 6))
    kernel = jax.random.normal(keys[1], (*size, 6 // groups, 4))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    shape = jax.eval_shape(lambda x, k: conv(x, k, stride, padding, dilation, groups), x, kernel).shape
    taps = offset_groups * size[0] * size[1]
    whole, part = jax.random.randint(keys[2], (*shape[:3], 2 * taps), -3, 4), jax.random.uniform(keys[2])
    offset = whole + 0.2 + 0.6 * part  # never on a pixel, where the slope is one-sided
    mask = jax.random.uniform(keys[3], (*shape[:3], taps))
    return x, offset, kernel, mask, geometry


GEOMETRIES = [
    {},
    {
        "size": (3, 3),
        "stride": (1, 1),
        "padding": ((1, 1), (1, 1)),
        "dilation": (1, 1),
        "groups": 1,
        "offset_groups": 1,
    },
    {
        "size": (1, 4),
        "stride": (1, 2),
        "dilation": (1, 2),
        "padding": ((0, 0), (3, 3)),
        "groups": 1,
        "offset_groups": 6,
    },
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("boundary", ["zero", "v1"])
def test_no_offset_is_ordinary_convolution(geometry, boundary):
    x, offset, kernel, mask, options = problem(**geometry)
    expected = conv(x, kernel, options["stride"], options["padding"], options["dilation"], options["groups"])
    ours = deform_conv2d(x, 0 * offset, kernel, boundary=boundary, **options)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    half = deform_conv2d(x, 0 * offset, kernel, 0 * mask + 0.5, boundary=boundary, **options)
    np.testing.assert_allclose(half, 0.5 * expected, atol=2e-5)


def test_offsets_that_shift_and_dilate():
    x = jax.random.normal(jax.random.key(0), (1, 9, 8, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 2))
    pad = ((1, 1), (1, 1))
    shift = jnp.broadcast_to(jnp.tile(jnp.array([2.0, -1.0]), 9), (1, 9, 8, 18))
    moved = conv(jnp.roll(x, (-2, 1), (1, 2)), kernel, padding=pad)
    np.testing.assert_allclose(deform_conv2d(x, shift, kernel, padding=1)[:, 1:5, 2:-1], moved[:, 1:5, 2:-1], atol=1e-5)
    taps = jnp.stack(jnp.meshgrid(jnp.arange(-1, 2), jnp.arange(-1, 2), indexing="ij"), -1).reshape(-1)
    dilated = conv(x, kernel, padding=((3, 3), (3, 3)), dilation=(3, 3))
    wide = jnp.broadcast_to(2.0 * taps, (1, 9, 8, 18))
    np.testing.assert_allclose(deform_conv2d(x, wide, kernel, padding=1), dilated, atol=1e-5)


def test_masks():
    x, offset, kernel, mask, options = problem()
    plain = deform_conv2d(x, offset, kernel, **options)
    np.testing.assert_allclose(deform_conv2d(x, offset, kernel, jnp.ones_like(mask), **options), plain, rtol=1e-6)
    assert not deform_conv2d(x, offset, kernel, 0 * mask, **options).any()
    first = deform_conv2d(x, offset, kernel, mask.at[..., 3:].set(0), **options)  # half of group 0's six taps
    of_group = x.at[..., 2:].set(0)
    np.testing.assert_allclose(
        first, deform_conv2d(of_group, offset, kernel, mask.at[..., 3:6].set(0), **options), atol=1e-5
    )


def read(positions, boundary):
    """What a 1x1 filter reads from a row of two pixels, 10 and 20, at these columns; and the slope there."""
    x, kernel = jnp.array([10.0, 20.0]).reshape(1, 1, 2, 1), jnp.ones((1, 1, 1, 1))

    def at(column):
        offset = jnp.zeros((1, 1, 2, 2)).at[..., 1].set(column - jnp.arange(2))
        return deform_conv2d(x, offset, kernel, boundary=boundary)[0, 0, 0, 0]

    return jax.vmap(jax.value_and_grad(at))(jnp.asarray(positions))


def test_boundary_rules():
    positions = [-1.25, -0.5, 0.25, 1.0, 1.25, 1.75, 2.0, 2.5]
    values, slopes = read(positions, "zero")
    np.testing.assert_allclose(values, [0, 5, 12.5, 20, 15, 5, 0, 0], atol=1e-5)
    np.testing.assert_allclose(slopes[jnp.array([0, 1, 2, 4, 5, 7])], [0, 10, 10, -20, -20, 0], atol=1e-5)
    values, slopes = read(positions, "v1")
    np.testing.assert_allclose(values, [0, 0, 12.5, 20, 20, 20, 0, 0], atol=1e-5)
    np.testing.assert_allclose(slopes, [0, 0, 10, 0, 0, 0, 0, 0], atol=1e-5)


@pytest.mark.parametrize("boundary", ["zero", "v1"])
def test_far_outside_reads_nothing(boundary):
    x, _, kernel, mask, options = problem()
    shape = (*mask.shape[:3], 2 * mask.shape[3])

    @jax.jit
    def run(*arrays):
        y, vjp = jax.vjp(lambda *a: deform_conv2d(*a, **options, boundary=boundary), *arrays)
        return y, vjp(jnp.ones_like(y))

    for far in (40.0, -40.0, 1e30, -jnp.inf):
        y, gradients = run(x, jnp.full(shape, far), kernel, mask)
        assert not y.any()
        chex.assert_tree_all_finite(gradients)


@pytest.mark.parametrize("boundary", ["zero", "v1"])
def test_gradients_by_finite_differences(boundary):
    with jax.enable_x64(True):
        *arrays, options = problem(batch=1)
        arrays = [jnp.asarray(np.asarray(a), jnp.float64) for a in arrays]
        fn = jax.jit(lambda *a: deform_conv2d(*a, boundary=boundary, **options))
        assert fn(*arrays).dtype == jnp.float64
        check_grads(fn, arrays, order=1, modes=["rev"], eps=1e-5, atol=1e-6, rtol=1e-6)


def test_an_even_image_has_no_slope_within():
    x, kernel = jnp.ones((1, 9, 9, 2)), jnp.ones((3, 3, 2, 1))
    offset = jax.random.uniform(jax.random.key(0), (1, 9, 9, 18), minval=-0.9, maxval=0.9)
    slope = jax.grad(lambda o: deform_conv2d(x, o, kernel, padding=1).sum())(offset)
    np.testing.assert_allclose(slope[:, 2:-2, 2:-2], 0, atol=1e-5)
    assert jnp.abs(slope).max() > 0.5


def test_empty_batch_and_half_precision():
    x, offset, kernel, mask, options = problem(batch=0)
    assert deform_conv2d(x, offset, kernel, mask, **options).shape == (0, 3, 5, 4)
    x, offset, kernel, mask, options = problem()
    full = deform_conv2d(x, offset, kernel, mask, **options)
    half = deform_conv2d(x.astype(jnp.bfloat16), offset, kernel, mask, **options)
    assert half.dtype == jnp.bfloat16
    assert 0 < jnp.abs(half - full).max() < 0.02 * jnp.abs(full).max()


def test_no_array_of_all_readings():
    """Neither kept for the backward pass nor made in it: 25 taps of 16 x 16 x 32."""
    x, kernel = jnp.ones((1, 16, 16, 32)), jnp.ones((5, 5, 32, 8))
    offset, mask = jnp.full((1, 16, 16, 50), 0.3), jnp.ones((1, 16, 16, 25))
    readings = 25 * x.nbytes

    def fn(x, offset, kernel, mask):
        return deform_conv2d(x, offset, kernel, mask, padding=2)

    _, vjp = jax.vjp(fn, x, offset, kernel, mask)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(vjp))
    given = sum(a.nbytes for a in (x, offset, kernel, mask))
    assert kept < 1.5 * given < readings / 4
    compiled = jax.jit(jax.grad(lambda *a: (fn(*a) ** 2).sum(), (0, 1, 2, 3))).lower(x, offset, kernel, mask).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < readings  # of which a plain unfolding needs two


def brute_force_pool(features, rois, image, offset, scale, bins, samples, gamma, groups):
    """The definition, bin by bin and channel by channel."""
    _, height, width, channels = features.shape
    depth, kinds = channels // groups**2, offset.shape[3]
    found = np.zeros((len(rois), bins, bins, depth))
    for r, i, j, d in np.ndindex(found.shape):
        low = np.floor(rois[r, :2] + 0.5) * scale - 0.5
        size = np.maximum((np.floor(rois[r, 2:] + 0.5) + 1) * scale - 0.5 - low, 0.1)
        start = low + np.array([j, i]) * size / bins + gamma * offset[r, i, j, d * kinds // depth] * size
        c, values = (d * groups + i * groups // bins) * groups + j * groups // bins, []
        for a, b in np.ndindex(samples, samples):
            x, y = start + np.array([b, a]) * size / bins / samples
            if -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5:
                x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
                plane = features[image[r], :, :, c]
                top, left = int(y), int(x)
                rows = [top, min(top + 1, height - 1)]
                columns = [left, min(left + 1, width - 1)]
                block = plane[np.ix_(rows, columns)]
                values.append(np.array([1 - y + top, y - top]) @ block @ np.array([1 - x + left, x - left]))
        found[r, i, j, d] = np.mean(values) if values else 0
    return found


ROIS = np.array([[3, 5, 40, 30], [0, 0, 7.5, 3.2], [60, 20, 90, 47], [12, 12, 11, 11], [200, 200, 260, 230]], float)


@pytest.mark.parametrize(("groups", "kinds", "bins"), [(1, 1, 3), (3, 2, 3), (2, 4, 4)])
def test_roi_pooling_equals_brute_force(groups, kinds, bins):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 7, 9, 4 * groups**2))
    offset = rng.normal(size=(5, bins, bins, kinds, 2)) * 2
    image = np.array([0, 1, 1, 0, 1])
    options = {"scale": 1 / 8, "bins": bins, "groups": groups, "samples": 3, "gamma": 0.1}
    ours = jax.jit(lambda f, o: deform_roi_pool(f, jnp.asarray(ROIS), jnp.asarray(image), o, **options))
    expected = brute_force_pool(features, ROIS, image, offset, **options)
    np.testing.assert_allclose(ours(features, offset), expected, atol=1e-5)
    assert not expected[4].any()  # a region far outside
    assert np.abs(expected[:4]).mean() > 0.1


def test_roi_pooling_gradients_and_masks():
    features = jax.random.normal(jax.random.key(0), (1, 6, 7, 8))
    offset = 0.3 * jax.random.normal(jax.random.key(1), (3, 2, 2, 2, 2))
    rois, image = jnp.asarray(ROIS[:3] / 2, jnp.float32), jnp.zeros(3, int)

    def fn(features, offset, mask):
        return deform_roi_pool(features, rois, image, offset, mask, scale=1 / 8, bins=2, groups=2)

    mask = jnp.linspace(0.1, 1, 12).reshape(3, 2, 2)
    check_grads(fn, (features, offset, mask), order=1, modes=["rev"], eps=1e-3, atol=3e-2, rtol=3e-2)
    np.testing.assert_allclose(fn(features, offset, mask), fn(features, offset, None) * mask[..., None], rtol=1e-6)


def test_modules_start_as_the_ordinary_layers():
    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 8))
    for modulated, strength in ((False, 1.0), (True, 0.5)):
        net = DeformableConv(4, 3, 2, 1, offset_groups=2, modulated=modulated, use_bias=True)
        y, variables = jax.jit(net.init_with_output)(jax.random.key(1), x)
        params = variables["params"]
        expected = strength * conv(x, params["kernel"], (2, 2), ((1, 1), (1, 1)))
        np.testing.assert_allclose(y, expected, atol=1e-5)
        assert params["offset"]["kernel"].shape == (3, 3, 8, 2 * 9 * (3 if modulated else 2))
        slope = jax.jit(jax.grad(lambda p, net=net: jnp.square(net.apply({"params": p}, x) - 1).sum()))(params)
        assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope))
    rois, image = jnp.asarray(ROIS[:3], jnp.float32), jnp.array([0, 1, 1])
    plain = deform_roi_pool(x, rois, image, scale=1 / 8, bins=3)
    for modulated, strength in ((False, 1.0), (True, 0.5)):
        net = deformable.DeformableRoIPool(1 / 8, 3, modulated, hidden=16)
        np.testing.assert_allclose(
            jax.jit(net.init_with_output)(jax.random.key(0), x, rois, image)[0], strength * plain, rtol=1e-5, atol=1e-6
        )
    net = deformable.DeformablePSRoIPool(2, 4, 1 / 8, 3)
    y, variables = jax.jit(net.init_with_output)(jax.random.key(0), x, rois, image)
    maps = conv(x, variables["params"]["maps"]["kernel"])
    np.testing.assert_allclose(y, deform_roi_pool(maps, rois, image, scale=1 / 8, bins=3, groups=3), atol=1e-5)
    assert variables["params"]["offset"]["kernel"].shape == (1, 1, 8, 2 * 2 * 9)


def test_published_offset_parameters():
    """A res5 layer of the published R-FCN: 512 channels, dilation 2, four offset groups."""
    net = DeformableConv(512, 3, padding=2, dilation=2, offset_groups=4)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 14, 14, 512)))["params"]
    assert count(shapes["offset"]) == 331_848
    assert count(shapes) == 331_848 + 9 * 512 * 512


def test_offsets_can_learn_at_a_rate_of_their_own():
    params = {"block": {"offset": {"kernel": jnp.ones(2)}, "kernel": jnp.ones(2)}}
    tx = optax.chain(optax.sgd(1.0), deformable.scale_offset_updates(0.1))
    updates, _ = tx.update(params, tx.init(params))
    chex.assert_trees_all_close(updates, {"block": {"offset": {"kernel": -0.1 * jnp.ones(2)}, "kernel": -jnp.ones(2)}})


def test_bad_arguments_raise():
    x, offset, kernel, mask, options = problem()
    with pytest.raises(ValueError, match=r"offset \(2, 3, 5, 35\), expected \(2, 3, 5, 12 \* G\)"):
        deform_conv2d(x, offset[..., 1:], kernel, **options)
    with pytest.raises(ValueError, match=r"where G divides the 6 channels"):
        deform_conv2d(x, jnp.zeros((2, 3, 5, 48)), kernel, **options)
    with pytest.raises(ValueError, match=r"mask \(2, 3, 5, 17\), expected \(2, 3, 5, 18\)"):
        deform_conv2d(x, offset, kernel, mask[..., 1:], **options)
    with pytest.raises(ValueError, match=r"6 channels, kernel .* and 1 groups are inconsistent"):
        deform_conv2d(x, offset, kernel, **{**options, "groups": 1})
    with pytest.raises(ValueError, match="boundary is 'v3': expected one of zero, v1"):
        deform_conv2d(x, offset, kernel, boundary="v3", **options)
    with pytest.raises(ValueError, match=r"with 3 groups.*expected channels in multiples of 9"):
        deform_roi_pool(x, jnp.zeros((2, 4)), jnp.zeros(2, int), scale=1.0, groups=3)
    with pytest.raises(ValueError, match=r"offset \(2, 7, 7, 2\), expected \(2, 7, 7, 'K', 2\)"):
        deform_roi_pool(x, jnp.zeros((2, 4)), jnp.zeros(2, int), jnp.zeros((2, 7, 7, 2)), scale=1.0)


def smoke(preset):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.image_size": 48, "train.steps": 2, "train.batch_size": 8, "train.log_every": 1, "train.devices": 1,
            "eval.batch_size": 6,
        }
    )  # fmt: skip
    return config


@pytest.fixture
def few_faces(monkeypatch):
    """Twelve pictures of noise with landmarks in place of the face world."""
    rng = np.random.default_rng(0)
    world = [
        {
            "image": faces.png(rng.integers(0, 255, (64, 64, 3), np.uint8)),
            "landmarks68": rng.uniform(10, 54, (68, 2)).astype(np.float32),
        }
        for _ in range(12)
    ]
    monkeypatch.setattr(faces, "load", lambda task, split, folder: world)


@pytest.mark.parametrize("preset", ["synthetic", "plain", "modulated"])
def test_smoke(few_faces, preset):
    _, report = app.run(smoke(preset), experiment.build, quiet=True)
    assert all(np.isfinite(value) for value in report.metrics.values())
    assert ("offset_length" in report.metrics) == (preset != "plain")
    assert report.arrays["landmarks"].shape == (12, 68, 2)
    assert report.figures


def test_the_experiment_s_offsets_learn_at_a_tenth_of_the_rate():
    """Adam's steps are as long as the rate while the gradient stays the same."""
    executor = parallel.make_executor(experiment.build(smoke("synthetic")), "shard_map", 1)
    rng = np.random.default_rng(0)
    batch = executor.put({
        "image": rng.integers(0, 255, (8, 48, 48, 3), np.uint8),
        "points": rng.uniform(0.2, 0.8, (8, 68, 2)).astype(np.float32),
    })  # fmt: skip
    state = executor.init(0)
    start = jax.tree.map(np.asarray, state.params)
    for _ in range(2):  # the first at a rate of 0, the second at a twentieth of 0.003
        state, _ = executor.step(state, batch)
    moved = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), state.params, start)
    kernels = {str(path): value for path, value in jax.tree_util.tree_leaves_with_path(moved) if "kernel" in str(path)}
    offsets = [value for path, value in kernels.items() if "offset" in path]
    np.testing.assert_allclose(offsets, [1.5e-5] * 4, rtol=0.01)
    np.testing.assert_allclose([value for path, value in kernels.items() if "offset" not in path], 1.5e-4, rtol=0.01)


def test_presets_dry_run():
    parameters = {}
    for preset in experiment.PRESETS:
        config = experiment.get_config(preset)
        parameters[preset] = dry_run(experiment.build(config), Options(**config.train))["parameters"]
    assert parameters["r101_dcn"] - parameters["r101"] == 3 * 331_848


def test_unknown_names_raise():
    config = experiment.get_config()
    config.model.kind = "v3"
    with pytest.raises(ValueError, match=r"model\.kind is 'v3': expected one of plain, v1, v2"):
        experiment.build(config)
    config.model.name = "resnet5"
    with pytest.raises(ValueError, match=r"model\.name is 'resnet5': expected one of tiny, resnet18"):
        experiment.build(config)
