"""IResNet and MobileFaceNet: published sizes, shapes, statistics and precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones import iresnet, mobilefacenet


@pytest.fixture(scope="module", params=["iresnet", "mobilefacenet"])
def net(request):
    tiny = {
        "iresnet": lambda **k: iresnet.IResNet((1, 2, 1, 1), (8, 8, 16, 16), 12, **k),
        "mobilefacenet": lambda **k: mobilefacenet.MobileFaceNet((1, 1, 1, 1), 1, embedding_size=12, **k),
    }[request.param]
    images = jax.random.uniform(jax.random.key(0), (4, 48, 48, 3), minval=-1)
    return tiny, images, jax.jit(lambda: tiny().init(jax.random.key(1), images, train=False))()


def test_stages_halve_the_resolution(net):
    make, images, variables = net
    found = jax.eval_shape(lambda v: make().apply(v, images, train=False, features=True), variables)
    stem = 48 if "stage4" in found else 24
    names = [n for n in found if n.startswith("stage")]
    assert [found[n].shape[1] for n in names] == [stem // 2 ** (i + 1) for i in range(len(names))]
    assert found["embedding"].shape == (4, 12)


def test_statistics_change_in_training_only(net):
    make, images, variables = net

    @jax.jit
    def train(variables):
        return make().apply(variables, images, train=True, mutable=["batch_stats"])

    output, updated = train(variables)
    apply = jax.jit(lambda v: make().apply(v, images, train=False))
    chex.assert_trees_all_equal(apply(variables), apply(variables))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), variables["batch_stats"], updated["batch_stats"])
    assert all(jax.tree.leaves(moved))
    np.testing.assert_allclose(output.mean(0), 0, atol=1e-4)


def test_bfloat16_keeps_float32_parameters(net):
    make, images, variables = net
    chex.assert_trees_all_equal_dtypes(variables, jax.tree.map(jnp.float32, variables))
    full, half = (
        jax.jit(lambda v, d=d: make(dtype=d).apply(v, images, train=False))(variables)
        for d in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    assert 0 < jnp.abs(full - half).max() < 0.1 * jnp.abs(full).max()
