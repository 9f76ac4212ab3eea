"""Deformable convolution compared with one built from PyTorch's grid_sample: values and gradients, v1 and v2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.foundations.deformable import deform_conv2d

torch = pytest.importorskip("torch", reason="needs the parity extra")
from benchmarks.torch_deformable import deform_conv2d_torch

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("boundary", ["zero", "v1"])
@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
def test_values_and_gradients(modulated, boundary):
    rng = np.random.default_rng(0)
    geometry = {"stride": (2, 1), "padding": ((1, 1), (0, 2)), "dilation": (2, 1), "groups": 2}
    x, kernel = rng.normal(size=(2, 9, 8, 12)), rng.normal(size=(3, 2, 6, 4))
    rows, columns, offset_groups = 4, 9, 3
    taps = offset_groups * 6
    whole, part = rng.integers(-3, 4, (2, rows, columns, 2 * taps)), rng.uniform(0.1, 0.9, (2, rows, columns, 2 * taps))
    inputs = [x, whole + part, kernel, *([rng.uniform(size=(2, rows, columns, taps))] if modulated else [])]
    theirs = [torch.tensor(value, requires_grad=True) for value in inputs]
    expected = deform_conv2d_torch(*theirs, **geometry, boundary=boundary)
    signal = rng.normal(size=expected.shape)
    expected.backward(torch.tensor(signal))
    ours = [jnp.asarray(value, jnp.float32) for value in inputs]
    found, back = jax.vjp(lambda *values: deform_conv2d(*values, **geometry, boundary=boundary), *ours)
    np.testing.assert_allclose(found, expected.detach(), atol=2e-5 * float(expected.detach().abs().max()))
    names = ("input", "offset", "kernel", "mask")
    for name, value, tensor in zip(names, back(jnp.asarray(signal, jnp.float32)), theirs, strict=False):
        gradient = tensor.grad.numpy()
        assert np.abs(gradient).max() > 0.1
        np.testing.assert_allclose(value, gradient, atol=5e-5 * np.abs(gradient).max(), err_msg=name)
