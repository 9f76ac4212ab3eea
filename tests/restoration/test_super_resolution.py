import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.metrics.image import luma
from facejax.ops.resize import imresize
from facejax.restoration import super_resolution as sr

NETS = {
    "srcnn": sr.SRCNN(3, (5, 1, 3), (6, 4)),
    "edsr2": sr.EDSR(2, 4, 1),
    "edsr3": sr.EDSR(3, 4, 1),
    "edsr4": sr.EDSR(4, 4, 1),
    "srresnet": sr.SRResNet(4, 4, 1),
    "rrdb": sr.RRDBNet(4, 4, 1, 2),
}


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=(*shape, 3)).astype(np.float32)


@pytest.mark.parametrize("name", NETS)
def test_influence_ends_at_the_radius(name):
    """The gradient of an output reaches as far as `radius`, or a little less, and not beyond."""
    net = NETS[name]
    side, scale = 2 * net.radius + 5, net.scale
    low, middle = images(1, side, side), slice(side // 2 * scale, (side // 2 + 1) * scale)
    variables = jax.jit(net.init)(jax.random.key(0), low)

    @jax.jit
    def gradient(low):
        found = net.apply(variables, low)
        assert found.shape == (1, scale * side, scale * side, 3) and found.dtype == jnp.float32
        return found[:, middle, middle].sum()

    touched = np.argwhere(np.abs(jax.grad(gradient)(low))[0].max(-1) > 0)
    distance = np.abs(touched - side // 2).max()
    assert net.radius - 2 <= distance <= net.radius


@pytest.mark.parametrize("convert", [sr.to_ycbcr, sr.to_rgb])
def test_colours_are_converted_in_full_precision(convert):
    """Accelerators round the factors of a product to 8 or 11 bits unless told otherwise."""
    assert "HIGHEST" in str(jax.make_jaxpr(convert)(jnp.zeros((1, 2, 2, 3))))


@pytest.mark.parametrize("name", ["srcnn", "edsr4", "srresnet", "rrdb"])
def test_bfloat16(name):
    net, low = NETS[name], images(1, 8, 8)
    variables = jax.jit(net.init)(jax.random.key(0), low)
    half, whole = (jax.jit(n.apply)(variables, low) for n in (net.clone(dtype=jnp.bfloat16), net))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, whole, atol=0.05)


def test_edsr_without_branches_is_linear():
    net = sr.EDSR(2, 4, 2, residual_scale=0.0)
    low = images(2, 6, 5)
    variables, apply = jax.jit(net.init)(jax.random.key(0), low), jax.jit(net.apply)
    zero, *found = apply(variables, np.stack([0 * low[0], *low, low.sum(0)]))
    np.testing.assert_allclose(found[2] - zero, found[0] + found[1] - 2 * zero, atol=1e-4)
    params = {k: v for k, v in variables["params"].items() if not k.startswith("block")}
    np.testing.assert_allclose(jax.jit(sr.EDSR(2, 4, 0).apply)({"params": params}, low), found[:2], atol=1e-6)


def test_edsr_takes_the_mean_out_and_back():
    net = sr.EDSR(3, 4, 1)
    grey = jnp.broadcast_to(jnp.asarray(sr.DIV2K_MEAN), (1, 4, 4, 3))
    variables = jax.tree.map(lambda x: x if x.ndim > 1 else 0 * x, jax.jit(net.init)(jax.random.key(0), grey))
    found = jax.jit(net.apply)(variables, grey)
    np.testing.assert_allclose(found, np.broadcast_to(grey[:, :1, :1], (1, 12, 12, 3)), atol=1e-6)


def test_rrdb_without_convolutions_is_the_identity():
    block = sr.ResidualDenseBlock(4, 2, 0.2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 4, 4)), jnp.float32)
    variables, apply = jax.jit(block.init)(jax.random.key(0), x), jax.jit(block.apply)
    np.testing.assert_array_equal(apply(jax.tree.map(np.zeros_like, variables), x), x)
    assert np.abs(apply(variables, x) - x).max() > 0
    kernels = [v["kernel"] for v in variables["params"].values()]
    assert [k.shape[2:] for k in kernels] == [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4)]


def test_srcnn_changes_the_luminance_alone():
    low, net = images(2, 6, 7), NETS["srcnn"]

    @jax.jit
    def both():
        found = net.apply(net.init(jax.random.key(0), low), low)
        return sr.to_ycbcr(imresize(low, 3)), sr.to_ycbcr(found)

    up, found = both()
    np.testing.assert_allclose(found[..., 1:], up[..., 1:], atol=1e-5)
    assert np.abs(found[..., 0] - up[..., 0]).max() > 0.1


def test_colours():
    rgb = images(2, 3, 4)
    np.testing.assert_allclose(255 * sr.to_ycbcr(rgb)[..., :1], luma(255 * rgb), rtol=1e-5)
    np.testing.assert_allclose(sr.to_rgb(sr.to_ycbcr(rgb)), rgb, atol=1e-5)
    grey = sr.to_ycbcr(jnp.full((1, 1, 3), 0.3))[0, 0]
    np.testing.assert_allclose(255 * grey[1:], 128, rtol=1e-5)


def test_pixel_shuffle_by_hand():
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    found = sr.pixel_shuffle(x, 2)
    np.testing.assert_array_equal(found[0, ..., 0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(found[0, ..., 1], [[4, 5], [6, 7]])


def test_initial_weights_are_those_of_pytorch():
    edsr = jax.jit(sr.EDSR(2, 64, 1).init)(jax.random.key(0), images(1, 4, 4))["params"]
    for name, fan_in in (("first", 27), ("block0_conv1", 576), ("last", 576)):
        kernel, bias = (np.abs(edsr[name][leaf]) * fan_in**0.5 for leaf in ("kernel", "bias"))
        assert 0.95 < kernel.max() <= 1 and 0.3 < bias.max() <= 1
    dense = jax.jit(sr.ResidualDenseBlock(64, 32, 0.2).init)(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]
    assert np.std(dense["conv1"]["kernel"]) == pytest.approx(0.1 * (2 / 576) ** 0.5, rel=0.05)
    srcnn = jax.jit(sr.SRCNN().init)(jax.random.key(0), images(1, 4, 4))["params"]
    assert np.std(srcnn["conv1"]["kernel"]) == pytest.approx(1e-3, rel=0.05)


def test_losses_by_hand():
    truth = np.zeros((2, 6, 6, 3), np.float32)
    found = truth + np.float32([0.1, -0.2])[:, None, None, None]
    np.testing.assert_allclose(sr.pixel_loss(found, truth), [0.1, 0.2], rtol=1e-5)
    np.testing.assert_allclose(sr.pixel_loss(found, truth, "l2"), [0.01, 0.04], rtol=1e-5)
    weight = 219 / 255
    np.testing.assert_allclose(
        sr.pixel_loss(found, truth, "luminance"), np.square([0.1 * weight, 0.2 * weight]), rtol=1e-4
    )
    framed = np.pad(found[:, 2:-2, 2:-2], ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=7)
    np.testing.assert_allclose(sr.pixel_loss(framed, truth, "l1", 2), [0.1, 0.2], rtol=1e-5)
    assert sr.pixel_loss(jnp.bfloat16(found), truth).dtype == jnp.float32


@pytest.mark.parametrize("kind", sr.LOSSES)
def test_gradients_of_losses(kind):
    found, truth = images(1, 4, 4), images(1, 4, 4, seed=1)
    loss = lambda x: sr.pixel_loss(x, truth, kind, 1).sum()  # noqa: E731
    gradient = jax.grad(loss)(found)
    assert (gradient[:, 0] == 0).all() and (gradient[:, 1:-1, 1:-1] != 0).all()
    chex.assert_tree_all_finite(jax.grad(loss)(truth))
    step = 1e-2 * np.random.default_rng(2).normal(size=found.shape).astype(np.float32)
    np.testing.assert_allclose((loss(found + step) - loss(found - step)) / 2, (gradient * step).sum(), rtol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: sr.EDSR(5, 4, 1).init(jax.random.key(0), x), "EDSR: scale 5: expected 3 or a power of two"),
        (lambda x: sr.SRResNet(1, 4, 1).init(jax.random.key(0), x), "SRResNet: scale 1"),
        (lambda x: sr.RRDBNet(3, 4, 1).init(jax.random.key(0), x), "RRDBNet: scale 3: expected a power of two"),
        (lambda x: sr.pixel_loss(x, x, "psnr"), "expected one of l1, l2, luminance"),
        (lambda x: sr.pixel_loss(x, x, "l1", 2), "loss.border is 2"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(images(1, 4, 4))
