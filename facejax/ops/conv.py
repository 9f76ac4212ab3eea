"""Equivalent forms of convolutions that are slow in XLA on a CPU; GPUs and TPUs use the native form.

All take images [N, H, W, C] and kernels [kh, kw, C / groups, features], with explicit padding. On two CPU cores, a
depthwise 3x3 convolution at 28x28x128 runs 30 times (its gradient 5 times) as fast as the native form, a stride-2 one
of a 640x640 image with 16 features 4 times, and a 4x4 one transposed by stride 2 at 32x32x256 trains 40 times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Padding = Sequence[Pair]

WIDE = 17
"""Number of input or output channels from which XLA has a fast convolution on a CPU."""


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation in the fastest form for the platform.

    Args:
      x: [N, H, W, C].
      kernel: [kh, kw, C / groups, features].
      stride, dilation: (vertical, horizontal).
      padding: ((top, bottom), (left, right)).
      groups: number of channel groups; C groups give a depthwise convolution.
    """
    channels, features = x.shape[-1], kernel.shape[-1]
    if channels != kernel.shape[2] * groups or features % groups:
        raise ValueError(f"conv: {channels} channels, kernel {kernel.shape} and {groups} groups are inconsistent")

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            stride,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    if groups == 1 and kernel.shape[:2] == (1, 1) and not any(sum(p) for p in padding):
        return jnp.einsum("nhwc,cf->nhwf", x[:, :: stride[0], :: stride[1]], kernel[0, 0])
    if groups == 1:
        columns = _columns(x, kernel, stride, padding, dilation)
        if columns > 1:
            return _by_platform(lambda x, k: _narrow(x, k, stride, padding, columns), native, x, kernel)
        if features % 32 > 24:  # XLA's convolutions on a CPU take up to 1.6 times as long as with whole 32 features.
            more = ((0, 0),) * 3 + ((0, -features % 32),)
            return _by_platform(lambda x, k: native(x, jnp.pad(k, more))[..., :features], native, x, kernel)
        return native(x, kernel)
    if kernel.shape[2] == 1 and features == channels:
        return _by_platform(lambda x, k: _depthwise_shifted(x, k, stride, padding, dilation), native, x, kernel)
    return _by_platform(lambda x, k: _grouped_shifted(x, k, stride, padding, dilation, groups), native, x, kernel)


def conv_transpose(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Padding) -> jax.Array:
    """The gradient of `conv` with respect to its input, PyTorch's ConvTranspose2d: output (H - 1) s + k - p - p'.

    On a CPU it computes s^2 small interleaved (polyphase) convolutions instead of one over an upsampled input.

    Args:
      x: [N, H, W, C].
      kernel: [kh, kw, C, features].
      stride: (vertical, horizontal).
      padding: ((top, bottom), (left, right)), cropped from the full output.
    """
    sizes = kernel.shape[:2]
    pads = [(k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(sizes, padding, strict=True)]
    if tuple(stride) == (1, 1) and all(min(pad) >= 0 and sum(pad) < k for pad, k in zip(pads, sizes, strict=True)):
        return conv(x, kernel[::-1, ::-1], padding=pads)

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, kernel[::-1, ::-1], (1, 1), pads, lhs_dilation=stride, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return _by_platform(lambda x, k: _polyphase(x, k, stride, padding), native, x, kernel)


def _by_platform(cpu: object, native: object, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=cpu, default=native)


def _columns(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Padding, dilation: Pair) -> int:
    """Number of columns that `_narrow` computes at once; 1 where the native form is as fast or sides do not divide."""
    channels, features = kernel.shape[2:]
    columns = 1 << (-(-WIDE // features) - 1).bit_length()
    width = (x.shape[2] + sum(padding[1]) - kernel.shape[1]) // stride[1] + 1
    fits = width % columns == 0 and x.shape[2] % _block(channels) == 0
    return columns if max(channels, features) < WIDE and fits and tuple(dilation) == (1, 1) else 1


def _block(channels: int) -> int:
    """Columns of the input that `_narrow` sees as one: two of images, whose channels are too few for vectors."""
    return 2 if channels < 4 else 1


def _narrow(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Padding, columns: int) -> jax.Array:
    """A convolution with a wider kernel and stride that returns the features of several columns as those of one."""
    n, height, width, channels = x.shape
    kh, kw, _, features = kernel.shape
    block, step = _block(channels), stride[1] * columns
    before = -(-padding[1][0] // block)
    shifts = [before * block - padding[1][0] + stride[1] * i for i in range(columns)]
    blocks = -(-(shifts[-1] + kw) // block)
    each = [jnp.pad(kernel, ((0, 0), (i, blocks * block - kw - i), (0, 0), (0, 0))) for i in shifts]
    kernel = jnp.stack(each, 3).reshape(kh, blocks, block * channels, columns * features)
    count = ((width + sum(padding[1]) - kw) // stride[1] + 1) // columns
    after = (count - 1) * (step // block) + blocks - before - width // block
    y = lax.conv_general_dilated(
        x.reshape(n, height, width // block, block * channels),
        kernel,
        (stride[0], step // block),
        (padding[0], (before, after)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(n, y.shape[1], -1, features)


def windows(
    x: jax.Array, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair, value: float = 0.0
) -> list[jax.Array]:
    """The kh * kw strided views [N, H', W', C] of the padded image, row by row."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)
    size = [
        (d - dil * (k - 1) - 1) // s + 1 for d, k, s, dil in zip(x.shape[1:3], kernel, stride, dilation, strict=True)
    ]
    views = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            bottom, right = top + (size[0] - 1) * stride[0] + 1, left + (size[1] - 1) * stride[1] + 1
            views.append(x[:, top : bottom : stride[0], left : right : stride[1]])
    return views


def _depthwise_shifted(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Padding, dilation: Pair) -> jax.Array:
    views = windows(x, kernel.shape[:2], stride, padding, dilation)
    weights = kernel.reshape(-1, kernel.shape[-1])
    return sum(view * weight for view, weight in zip(views, weights, strict=True))


def _grouped_shifted(
    x: jax.Array, kernel: jax.Array, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> jax.Array:
    """A full convolution with a block-diagonal kernel: more operations, but faster."""
    inner, features = kernel.shape[2], kernel.shape[3] // groups
    blocks = kernel.reshape(*kernel.shape[:2], inner, groups, features)
    full = jnp.einsum("hwigf,gk->hwkigf", blocks, jnp.eye(groups, dtype=kernel.dtype))
    full = full.reshape(*kernel.shape[:2], groups * inner, groups * features)
    return lax.conv_general_dilated(
        x, full, stride, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _polyphase(x: jax.Array, kernel: jax.Array, stride: Pair, padding: Padding) -> jax.Array:
    n, h, w, _ = x.shape
    kh, kw, _, features = kernel.shape
    (sy, sx), taps = stride, (-(-kh // stride[0]), -(-kw // stride[1]))
    kernel = jnp.pad(kernel, ((0, max(sy - kh, 0)), (0, max(sx - kw, 0)), (0, 0), (0, 0)))
    # The gradient of a kernel is slow where the convolution itself pads the input so much.
    x = jnp.pad(x, ((0, 0), *((t - 1, t - 1) for t in taps), (0, 0)))
    phases = []
    for i in range(sy):
        for j in range(sx):
            part = kernel[i::sy, j::sx][::-1, ::-1]
            seen = x[:, taps[0] - part.shape[0] :, taps[1] - part.shape[1] :]
            phases.append(
                lax.conv_general_dilated(seen, part, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            )
    rows, columns = h + taps[0] - 1, w + taps[1] - 1
    full = jnp.stack(phases, 3).reshape(n, rows, columns, sy, sx, features)
    full = full.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * sy, columns * sx, features)
    (top, bottom), (left, right) = padding
    height, width = (h - 1) * sy + kh, (w - 1) * sx + kw
    return full[:, top : height - bottom, left : width - right]
