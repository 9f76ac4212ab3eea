import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax import models
from facejax.backbones import hrnet
from facejax.train.dry_run import count, flops


@functools.cache
def shapes(name):
    return models.variable_shapes(name)


def test_parameters_of_the_stages():
    params = shapes("hrnet_w32_pose")["params"]["trunk"]
    stages = dict.fromkeys(("first", "stage2", "stage3", "stage4"), 0)
    for name, part in params.items():
        stages |= {stage: total + count(part) for stage, total in stages.items() if name.startswith(stage)}
    assert stages == {"first": 286_208, "stage2": 390_848, "stage3": 6_821_632, "stage4": 20_407_232}


@pytest.mark.parametrize(
    ("name", "size", "published"), [("hrnet_w32_pose", (256, 192), 7.1), ("hrnet_w18_small", (224, 224), 1.49)]
)
def test_multiply_adds_are_the_published_ones(name, size, published):
    """The authors' count is in multiples of 2^30."""
    image, net = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32), models.create_model(name)
    jaxpr = jax.make_jaxpr(lambda v, x: net.apply(v, x, train=False))(shapes(name), image).jaxpr
    assert flops(jaxpr) / 2 / 2**30 == pytest.approx(published, abs=0.03)


def test_named_maps():
    found = jax.eval_shape(
        lambda key: hrnet.hrnet_w32().init_with_output(key, jnp.zeros((2, 96, 64, 3)), train=False)[0],
        jax.random.key(0),
    )
    expected = {"c2": (24, 16, 32), "c3": (12, 8, 64), "c4": (6, 4, 128), "c5": (3, 2, 256)}
    assert {name: x.shape[1:] for name, x in found.items()} == expected


TINY = hrnet.HRNet(4, (1, 1, 1), 1, stem_width=4, first_blocks=1, first_width=2)


def filled(net, inputs, seed=0):
    """Variables of a network without compiling its init."""
    rng = np.random.default_rng(seed)
    template = jax.eval_shape(lambda key: net.init(key, inputs, train=False), jax.random.key(0))

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        return (rng.normal(size=leaf.shape) / max(1, np.prod(leaf.shape[:-1])) ** 0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, template)


@pytest.fixture(scope="module")
def tiny():
    images = np.random.default_rng(1).normal(size=(2, 32, 64, 3)).astype(np.float32)
    net = hrnet.PoseNet(TINY, 3)
    return net, filled(net, images), images


def test_training_moves_every_average_and_a_batch_of_one_is_finite(tiny):
    net, variables, images = tiny
    run = jax.jit(lambda v, x: net.apply(v, x, train=True, mutable=["batch_stats"]))
    maps, updated = run(variables, images[:1])
    assert maps.shape == (1, 8, 16, 3)
    assert np.isfinite(maps).all()
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), variables["batch_stats"], updated["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_half_precision(tiny):
    net, variables, images = tiny
    half = hrnet.PoseNet(TINY.clone(dtype=jnp.bfloat16), 3)
    full, rough = jax.jit(lambda v: [n.apply(v, images, train=False) for n in (net, half)])(variables)
    assert rough.dtype == jnp.float32
    assert 0 < jnp.abs(rough - full).max() < 0.05 * jnp.abs(full).max()


def test_every_branch_reaches_every_output():
    rng = np.random.default_rng(2)
    maps = [rng.normal(size=(1, 8 >> i, 8 >> i, 4 << i)).astype(np.float32) for i in range(3)]
    net = hrnet.HighResolutionModule(1)
    variables = filled(net, maps)
    run = jax.jit(lambda m: net.apply(variables, m, train=False))
    before = run(maps)
    assert [y.shape for y in before] == [m.shape for m in maps]
    assert all(y.min() == 0 for y in before)
    for j in range(3):
        after = run([m + (i == j) for i, m in enumerate(maps)])
        assert all((a != b).any() for a, b in zip(after, before, strict=True))
    finest = hrnet.HighResolutionModule(1, 1)
    shape = jax.eval_shape(lambda m: finest.init_with_output(jax.random.key(0), m, train=False)[0], maps)
    assert [y.shape for y in shape] == [(1, 8, 8, 4)]


def test_small_kernels():
    params = {"conv": {"kernel": jnp.zeros((3, 3, 32, 32))}, "bn": {"scale": jnp.ones(32)}}
    drawn = hrnet.small_kernels(jax.random.key(2), params)
    assert drawn["conv"]["kernel"].std() == pytest.approx(1e-3, rel=0.05)
    np.testing.assert_array_equal(drawn["bn"]["scale"], 1)


def test_bad_sizes_raise():
    key = jax.random.key(0)
    for size in ((2, 33, 64, 3), (2, 32, 48, 3), (2, 0, 32, 3), (32, 32, 3)):
        with pytest.raises(ValueError, match=r"expected \[N, H, W, 3\] with H and W multiples of 32"):
            TINY.init(key, jnp.zeros(size), train=False)
    with pytest.raises(ValueError, match="leave batch norm one number to average on the coarsest map"):
        TINY.init(key, jnp.zeros((1, 32, 32, 3)), train=True)
