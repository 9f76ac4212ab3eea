"""Deformable convolution compared with one built from PyTorch's grid_sample: values and gradients, v1 and v2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.foundations.deformable import deform_conv2d

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity


def deform_conv2d_torch(x, offset, kernel, mask=None, *, stride, padding, dilation, groups, boundary="zero"):
    """Reference with the layout of `deform_conv2d`; grid_sample pads with zeros, as boundary "zero" does.

    Args:
      x: [N, H, W, C] tensor; the other inputs are tensors too.
      stride, dilation: (vertical, horizontal).
      padding: ((top, bottom), (left, right)).
    """
    (n, height, width), (kh, kw, inner, features) = x.shape[:3], kernel.shape
    rows, columns, offset_groups = *offset.shape[1:3], offset.shape[3] // (2 * kh * kw)
    shifts = offset.reshape(n, rows, columns, offset_groups, kh, kw, 2)
    images = x.permute(0, 3, 1, 2).reshape(n * offset_groups, -1, height, width)
    y0 = torch.arange(rows)[:, None, None] * stride[0] - padding[0][0]
    x0 = torch.arange(columns)[:, None] * stride[1] - padding[1][0]
    total = torch.zeros(n, rows, columns, features, dtype=x.dtype)
    for i, j in np.ndindex(kh, kw):
        py = y0 + i * dilation[0] + shifts[..., i, j, 0]
        px = x0 + j * dilation[1] + shifts[..., i, j, 1]
        counted = 1.0
        if boundary == "v1":
            counted = ((py >= 0) & (py < height) & (px >= 0) & (px < width)).to(x.dtype)
            py, px = py.clamp(max=height - 1), px.clamp(max=width - 1)
        if mask is not None:
            counted = counted * mask.reshape(n, rows, columns, offset_groups, kh, kw)[..., i, j]
        grid = torch.stack([2 * px / (width - 1) - 1, 2 * py / (height - 1) - 1], -1)
        grid = grid.permute(0, 3, 1, 2, 4).reshape(n * offset_groups, rows, columns, 2)
        read = torch.nn.functional.grid_sample(images, grid, "bilinear", "zeros", align_corners=True)
        read = read.reshape(n, offset_groups, -1, rows, columns).permute(0, 3, 4, 1, 2)
        read = read * (counted[..., None] if torch.is_tensor(counted) else counted)
        read = read.reshape(n, rows, columns, groups, inner)
        total = total + torch.einsum(
            "nhwgc,cgf->nhwgf", read, kernel[i, j].reshape(inner, groups, features // groups)
        ).reshape(n, rows, columns, features)
    return total


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
