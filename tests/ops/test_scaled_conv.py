"""The joined forms equal a convolution before or after a change of scale, with first and second gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.ops import pooling, scaled_conv

FORMS = {
    "up": (scaled_conv.upscale_conv, lambda x, k: scaled_conv.conv(pooling.upsample_nearest(x, 2), k)),
    "down": (scaled_conv.conv_downscale, lambda x, k: pooling.avg_pool(scaled_conv.conv(x, k), (2, 2), (2, 2))),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("size", [(2, 2), (6, 4)])
def test_values_and_gradients(name, size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(3, 3, 3, 5))

    def everything(form):
        def squared(x, kernel):
            return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.tanh(form(x, kernel))))(x) ** 2)

        first = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(form(x, kernel))), (0, 1))(x, kernel)
        return form(x, kernel), first, jax.grad(squared, (0, 1))(x, kernel)

    ours, parts = (jax.jit(everything, static_argnums=0)(form) for form in FORMS[name])
    chex.assert_trees_all_close(ours, parts, rtol=1e-4, atol=1e-4)


def test_bad_input():
    kernel = jnp.zeros((3, 3, 1, 1))
    with pytest.raises(ValueError, match="expected even sides"):
        scaled_conv.conv_downscale(jnp.zeros((1, 5, 4, 1)), kernel)
    with pytest.raises(ValueError, match=r"a kernel \(1, 1, 1, 1\), expected \[3, 3, C, features\]"):
        scaled_conv.upscale_conv(jnp.zeros((1, 4, 4, 1)), kernel[:1, :1])
