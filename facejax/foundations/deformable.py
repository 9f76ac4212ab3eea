"""Deformable convolution and RoI pooling: filters with learned sampling positions.

v1: Dai, Qi, Xiong, Li, Zhang, Hu, Wei. Deformable Convolutional Networks. ICCV 2017. arXiv:1703.06211.
v2: Zhu, Hu, Lin, Dai. Deformable ConvNets v2: More Deformable, Better Results. CVPR 2019. arXiv:1811.11168.
Every tap of a filter, and every bin of a pooled region, samples its input at a position shifted by an offset that a
zero-initialised layer predicts from the same input; v2 also predicts a weight (mask) for each sample.

Differs from the papers: v2's feature mimicking, which needs a detector, is not here. Differs from the authors' code:
samples outside the image follow v2 and torchvision unless `boundary="v1"`; at a sampling position exactly on a pixel,
the offset's gradient is the one-sided derivative to the right and downwards, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from facejax.nn.conv import Conv, explicit_padding, pair

Dtype = Any
Initializer = Any
Boundary = Literal["zero", "v1"]


def deform_conv2d(
    x: jax.Array,
    offset: jax.Array,
    kernel: jax.Array,
    mask: jax.Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | str | Sequence[tuple[int, int]] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    boundary: Boundary = "zero",
) -> jax.Array:
    """y(p) = sum_k w_k m_k x(p + p_k + dp_k), with bilinear x (v1 Eq. 2, v2 Eq. 1).

    Taps are computed one at a time and again in the backward pass, so no array of all taps' samples,
    [N, H', W', kh * kw * C], is in memory.

    Args:
      x: [N, H, W, C].
      offset: [N, H', W', 2 * G * kh * kw] in pixels of `x`. Axes in order: the G offset groups, the taps row by
        row, (dy, dx). Group g shifts C / G channels from g * C / G on.
      kernel: [kh, kw, C / groups, features].
      mask: [N, H', W', G * kh * kw], v2's m; None is v1. Axes in the order of `offset`.
      stride, dilation: (vertical, horizontal), or one number for both.
      padding: pixels on every side, or ((top, bottom), (left, right)), or "SAME".
      groups: of the convolution.
      boundary: "zero" pads the image with zeros, so samples fade out over one pixel; "v1" is zero outside the centre of
        the first row and column, and repeats the last ones for less than a pixel.

    Returns:
      [N, H', W', features] in the dtype of `x`.
    """
    _check_boundary(boundary)
    (n, height, width, channels), (kh, kw, inner, features) = x.shape, kernel.shape
    stride, dilation = pair(stride), pair(dilation)
    (top, bottom), (left, right) = explicit_padding(padding, (height, width), (kh, kw), stride, dilation)
    rows = (height + top + bottom - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width + left + right - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    if rows < 1 or columns < 1:
        raise ValueError(
            f"deform_conv2d: an image of {height} x {width} with padding {((top, bottom), (left, right))} is too small "
            f"for a {kh} x {kw} kernel of dilation {dilation}"
        )
    offset_groups, rest = divmod(offset.shape[-1], 2 * kh * kw)
    if rest or offset.shape[:3] != (n, rows, columns) or not offset_groups or channels % offset_groups:
        raise ValueError(
            f"deform_conv2d: offset {offset.shape}, expected ({n}, {rows}, {columns}, {2 * kh * kw} * G) "
            f"where G divides the {channels} channels"
        )
    if mask is not None and mask.shape != (n, rows, columns, offset_groups * kh * kw):
        raise ValueError(
            f"deform_conv2d: mask {mask.shape}, expected ({n}, {rows}, {columns}, {offset_groups * kh * kw})"
        )
    if channels != inner * groups or features % groups:
        raise ValueError(
            f"deform_conv2d: {channels} channels, kernel {kernel.shape} and {groups} groups are inconsistent"
        )
    images = _framed(x.reshape(n, height, width, offset_groups, channels // offset_groups))
    image, group = jnp.arange(n)[:, None, None, None], jnp.arange(offset_groups)
    grid_y = (jnp.arange(rows) * stride[0] - top)[:, None, None]
    grid_x = (jnp.arange(columns) * stride[1] - left)[:, None]
    shape = (n, rows, columns, offset_groups, kh * kw)
    exact = jnp.promote_types(x.dtype, jnp.float32)  # of places and sums
    offset = jnp.moveaxis(offset.reshape(*shape, 2), 4, 0).astype(exact)
    mask = None if mask is None else jnp.moveaxis(mask.reshape(shape), 4, 0)
    tap_y, tap_x = (jnp.repeat(jnp.arange(kh), kw) * dilation[0], jnp.tile(jnp.arange(kw), kh) * dilation[1])

    def tap(total: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
        shift, weight, matrix, dy, dx = inputs
        y, x = grid_y + dy + shift[..., 0], grid_x + dx + shift[..., 1]
        if boundary == "v1":
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            y, x = jnp.where(y < height - 1, y, height - 1), jnp.where(x < width - 1, x, width - 1)
            weight = inside if weight is None else inside * weight
        read = _read(images, image, group, y, x)
        read = read if weight is None else read * weight[..., None].astype(read.dtype)
        read = read.reshape(n, rows, columns, groups, inner)
        return total + jnp.einsum("nhwgc,cgf->nhwgf", read, matrix, preferred_element_type=exact), None

    matrices = kernel.astype(x.dtype).reshape(kh * kw, inner, groups, features // groups)
    zeros = jnp.zeros((n, rows, columns, groups, features // groups), exact)
    total, _ = lax.scan(jax.checkpoint(tap, prevent_cse=False), zeros, (offset, mask, matrices, tap_y, tap_x))
    return total.reshape(n, rows, columns, features).astype(x.dtype)


def deform_roi_pool(
    features: jax.Array,
    rois: jax.Array,
    image: jax.Array,
    offset: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    scale: float,
    bins: int = 7,
    samples: int = 4,
    gamma: float = 0.1,
    groups: int = 1,
) -> jax.Array:
    """Deformable RoI pooling (v1 Eq. 6), position-sensitive with `groups` above 1, modulated with `mask` (v2 Eq. 2).

    A region extends from round(x1) * scale - 0.5 to (round(x2) + 1) * scale - 0.5 and is at least 0.1 wide. A bin is
    the mean of `samples` x `samples` samples from its corner on, except those more than half a pixel outside the image;
    a bin without any is 0.

    Args:
      features: [N, H, W, D * groups * groups]; channel d of bin (i, j) comes from (d * groups + gi) * groups + gj,
        where gi = i * groups // bins.
      rois: [R, 4] left, top, right, bottom in pixels of the network's input.
      image: [R] int, the image of each region.
      offset: [R, bins, bins, K, 2] as (x, y), in units of `gamma` times the region's size; K kinds of offsets, each
        for D / K successive channels (class-aware pooling has K classes). None is ordinary pooling.
      mask: [R, bins, bins], factor of each bin; None is 1.
      scale: pixels of `features` per pixel of the input.
      bins, samples: per side of a region, and of a bin.
      gamma: shift of a bin by an offset of 1, in parts of the region's size.

    Returns:
      [R, bins, bins, D].
    """
    (n, height, width, channels), regions = features.shape, rois.shape[0]
    if channels % groups**2 or rois.shape != (regions, 4) or image.shape != (regions,):
        raise ValueError(
            f"deform_roi_pool: features {features.shape} with {groups} groups, rois {rois.shape}, image {image.shape}; "
            f"expected channels in multiples of {groups**2}, [R, 4] and [R]"
        )
    offset = jnp.zeros((regions, bins, bins, 1, 2)) if offset is None else offset
    kinds, depth = offset.shape[3] if offset.ndim == 5 else 1, channels // groups**2
    if offset.shape != (regions, bins, bins, kinds, 2) or depth % kinds:
        raise ValueError(
            f"deform_roi_pool: offset {offset.shape}, expected {(regions, bins, bins, 'K', 2)} where K divides {depth}"
        )
    if mask is not None and mask.shape != (regions, bins, bins):
        raise ValueError(f"deform_roi_pool: mask {mask.shape}, expected {(regions, bins, bins)}")
    maps = features.reshape(n, height, width, kinds, depth // kinds, groups * groups)
    maps = _framed(jnp.moveaxis(maps, 5, 3).reshape(n, height, width, groups * groups * kinds, depth // kinds))
    low, high = _round(rois[:, :2]) * scale - 0.5, (_round(rois[:, 2:]) + 1.0) * scale - 0.5
    size = jnp.maximum(high - low, 0.1)[:, None, None, None]
    bin_x, bin_y = jnp.arange(bins)[:, None], jnp.arange(bins)[:, None, None]
    corner = low[:, None, None, None] + gamma * offset * size
    corner_x, corner_y = corner[..., 0] + bin_x * size[..., 0] / bins, corner[..., 1] + bin_y * size[..., 1] / bins
    group = (bin_y * groups // bins * groups + bin_x * groups // bins) * kinds + jnp.arange(kinds)
    step, which = size / (bins * samples), image[:, None, None, None]

    def sample(carry: tuple[jax.Array, jax.Array], index: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        total, count = carry
        x, y = corner_x + index % samples * step[..., 0], corner_y + index // samples * step[..., 1]
        inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
        read = _read(maps, which, group, jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1))
        return (total + jnp.where(inside[..., None], read, 0), count + inside), None

    shape = (regions, bins, bins, kinds)
    start = jnp.zeros((*shape, depth // kinds), features.dtype), jnp.zeros(shape, jnp.int32)
    (total, count), _ = lax.scan(jax.checkpoint(sample, prevent_cse=False), start, jnp.arange(samples**2))
    pooled = (total / jnp.maximum(count, 1)[..., None]).reshape(regions, bins, bins, depth)
    return pooled if mask is None else pooled * mask[..., None]


class DeformableConv(nn.Module):
    """A drop-in for `nn.conv.Conv` that predicts offsets, and masks if `modulated`, by a convolution of equal geometry.

    That convolution, named "offset", is initialised with zeros, so the layer is an ordinary convolution at first (times
    sigmoid(0) = 0.5 if modulated). v2 trains it at a tenth of the learning rate: see `scale_offset_updates`.

    Attributes:
      features, kernel_size, strides, padding, dilation, groups, use_bias, kernel_init, dtype: of `Conv`.
      offset_groups: G, groups of channels with offsets of their own; the published detectors have 4 (v1).
      modulated: v2.
      boundary: see `deform_conv2d`.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: int | str | Sequence[tuple[int, int]] = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: Dtype = jnp.float32
    offset_groups: int = 1
    modulated: bool = False
    boundary: Boundary = "zero"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features]. Sows "offsets" [N, H', W', 2 * G * kh * kw] in "intermediates"."""
        size = pair(self.kernel_size)
        geometry = {"strides": self.strides, "padding": self.padding, "dilation": self.dilation}
        readings = self.offset_groups * size[0] * size[1]
        offset = Conv(
            readings * (3 if self.modulated else 2),
            size,
            **geometry,
            use_bias=True,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="offset",
        )(x)
        offset, mask = offset[..., : 2 * readings], offset[..., 2 * readings :]
        self.sow("intermediates", "offsets", offset)
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1] // self.groups, self.features))
        x = deform_conv2d(
            x.astype(self.dtype),
            offset,
            kernel,
            nn.sigmoid(mask) if self.modulated else None,
            stride=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            boundary=self.boundary,
        )
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


class DeformableRoIPool(nn.Module):
    """RoI pooling whose bins dense layers shift, from the ordinarily pooled region (v1 Fig. 3).

    Attributes:
      scale, bins: see `deform_roi_pool`.
      modulated: v2: two layers of `hidden` units precede the last one, which also predicts each bin's mask.
      hidden: width of v2's two layers.
    """

    scale: float
    bins: int = 7
    modulated: bool = False
    hidden: int = 1024

    @nn.compact
    def __call__(self, features: jax.Array, rois: jax.Array, image: jax.Array) -> jax.Array:
        """[N, H, W, D], [R, 4] and [R] -> [R, bins, bins, D]; see `deform_roi_pool`."""
        cells = self.bins**2
        x = deform_roi_pool(features, rois, image, scale=self.scale, bins=self.bins).reshape(rois.shape[0], -1)
        for i in range(2 if self.modulated else 0):
            x = nn.relu(nn.Dense(self.hidden, kernel_init=nn.initializers.normal(0.01), name=f"fc{i + 1}")(x))
        x = nn.Dense(cells * (3 if self.modulated else 2), kernel_init=nn.initializers.zeros, name="offset")(x)
        offset = x[:, : 2 * cells].reshape(-1, self.bins, self.bins, 1, 2)
        mask = nn.sigmoid(x[:, 2 * cells :]).reshape(-1, self.bins, self.bins) if self.modulated else None
        return deform_roi_pool(features, rois, image, offset, mask, scale=self.scale, bins=self.bins)


class DeformablePSRoIPool(nn.Module):
    """Position-sensitive RoI pooling; offsets per bin and class are pooled in the same way (v1 Fig. 4).

    Attributes:
      classes: kinds of offsets; with 1 all channels share them.
      channels: D, of the output; a multiple of the classes.
      scale, bins: see `deform_roi_pool`.
    """

    classes: int
    channels: int
    scale: float
    bins: int = 7

    @nn.compact
    def __call__(self, features: jax.Array, rois: jax.Array, image: jax.Array) -> jax.Array:
        """[N, H, W, C], [R, 4], [R] -> [R, bins, bins, channels]; 1x1 convolutions give scores and offsets."""
        options = {"scale": self.scale, "bins": self.bins, "groups": self.bins}
        maps = Conv(self.channels * self.bins**2, 1, use_bias=True, name="maps")(features)
        fields = Conv(
            2 * self.classes * self.bins**2, 1, use_bias=True, kernel_init=nn.initializers.zeros, name="offset"
        )(features)
        offset = deform_roi_pool(fields, rois, image, **options)
        offset = offset.reshape(*offset.shape[:3], self.classes, 2)
        return deform_roi_pool(maps, rois, image, offset, **options)


def scale_offset_updates(factor: float) -> optax.GradientTransformation:
    """Multiplies the updates of all layers named "offset"; last in a chain, this scales their learning rate.

    v1 trains offset convolutions at 1 and the offset layer of RoI pooling at 0.01 times the rate, v2 its convolutions
    at 0.1.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params

        def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            return leaf * factor if any(getattr(entry, "key", None) == "offset" for entry in path) else leaf

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _check_boundary(boundary: str) -> None:
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary is {boundary!r}: expected one of {', '.join(get_args(Boundary))}")


def _framed(images: jax.Array) -> jax.Array:
    """Images [N, H, W, G, D] with one row and column of zeros before and two after, for `_read`."""
    return jnp.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0), (0, 0)))


def _read(framed: jax.Array, image: jax.Array, group: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Bilinear samples [..., D] of `_framed` images; indices of image and group, rows and columns broadcast.

    One gather of 2 x 2 pixels per sample: on a CPU twice as fast as four gathers, backward included.
    """
    height, width, depth = framed.shape[1] - 3, framed.shape[2] - 3, framed.shape[4]
    y, x = _clamped(y, height), _clamped(x, width)
    top, left = jnp.floor(y), jnp.floor(x)
    start = jnp.broadcast_arrays(image, top.astype(jnp.int32) + 1, left.astype(jnp.int32) + 1, group)
    lead = start[0].ndim
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(lead, lead + 1, lead + 2), collapsed_slice_dims=(0, 3), start_index_map=(0, 1, 2, 3)
    )
    pixels = lax.gather(framed, jnp.stack(start, -1), numbers, (1, 2, 2, 1, depth), mode="promise_in_bounds")
    down, right = y - top, x - left
    rows, columns = jnp.stack([1 - down, down], -1), jnp.stack([1 - right, right], -1)
    weights = (rows[..., :, None] * columns[..., None, :]).astype(framed.dtype)
    return jnp.einsum("...yx,...yxd->...d", weights, pixels)


def _clamped(x: jax.Array, size: int) -> jax.Array:
    """Clips to -1..size, infinity included. Unlike that of `jnp.clip`, the derivative at -1 is 1."""
    return jnp.where(x < -1, -1.0, jnp.where(x > size, float(size), x))


def _round(x: jax.Array) -> jax.Array:
    """To the nearest integer, halves away from zero."""
    return jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5)
