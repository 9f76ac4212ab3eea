"""Deformable convolution built from PyTorch's grid_sample, reference of the benchmark and the parity tests."""

from __future__ import annotations

import numpy as np
import torch


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
