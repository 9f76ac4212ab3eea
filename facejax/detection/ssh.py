"""SSH: a single-stage face detector without fully connected head.

Najibi, Samangouei, Chellappa, Davis. "SSH: Single Stage Headless Face Detector". ICCV 2017. arXiv:1708.03979.
Three modules find small, medium and large faces on VGG-16's maps of strides 8, 16 and 32; branches of stacked 3x3
convolutions give each of them the context that a two-stage detector has from its enlarged proposals. Where paper and
authors' code (mahyarnajibi/SSH) differ, the settings are the code's.

Differs: images whose sides are no multiples of the trunk's stride are refused, where Caffe's pooling rounds up; the
mining scores are those of the training pass, which are equal to those of the code's second pass; the box loss is
divided by the number of sampled anchors, as in the code (the paper's text divides by that of the positives).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from facejax.backbones.vgg import VGG
from facejax.detection.base import Detections, Term, Truth, suppressed
from facejax.detection.scales import padded, resized
from facejax.nn.conv import Conv
from facejax.ops import boxes as box
from facejax.ops.losses import smooth_l1
from facejax.ops.matching import hardest, match_by_overlap
from facejax.ops.pooling import ceil_padding, max_pool

Dtype = Any
Raw = tuple[tuple[jax.Array, jax.Array], ...]
"""Of each module, (logits [N, A, 2] of background and face, offsets [N, A, 4])."""

MEAN_BGR = (102.9801, 115.9465, 122.7717)

gaussian = nn.initializers.normal(0.01)  # of all layers but VGG's


class ContextModule(nn.Module):
    """A 3x3 convolution beside stacks with fields of view of 5x5 and 7x7; one ReLU after their concatenation.

    Attributes:
      features: X; the branches have 2X, X and X channels.
      context: whether there are stacks; without, one 3x3 convolution has 4X channels.
      kernel_init: initialiser of the kernels.
      dtype: of the computation.
    """

    features: int
    context: bool = True
    kernel_init: Any = gaussian
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, 4X]."""
        conv = partial(Conv, kernel_size=3, padding=1, use_bias=True, kernel_init=self.kernel_init, dtype=self.dtype)
        if not self.context:
            return nn.relu(conv(4 * self.features, name="conv3x3")(x))
        reduced = nn.relu(conv(self.features, name="reduce")(x))
        deep = nn.relu(conv(self.features, name="conv7x7_1")(reduced))
        branches = [
            conv(2 * self.features, name="conv3x3")(x),
            conv(self.features, name="conv5x5")(reduced),
            conv(self.features, name="conv7x7_2")(deep),
        ]
        return nn.relu(jnp.concatenate(branches, -1))


class DetectionModule(nn.Module):
    """Scores and offsets of the anchors of one map.

    Attributes:
      features, context, kernel_init, dtype: see `ContextModule`.
      anchors: a, of each cell.
    """

    features: int
    anchors: int = 2
    context: bool = True
    kernel_init: Any = gaussian
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[N, H, W, C] -> logits [N, HWa, 2] of background and face, offsets [N, HWa, 4], in float32.

        The channels of the scores are all anchors' background, then all anchors' face.
        """
        x = ContextModule(self.features, self.context, self.kernel_init, self.dtype, name="context")(x)
        conv = partial(Conv, kernel_size=1, use_bias=True, kernel_init=gaussian, dtype=self.dtype)
        scores = conv(2 * self.anchors, name="scores")(x).astype(jnp.float32)
        offsets = conv(4 * self.anchors, name="boxes")(x).astype(jnp.float32)
        n = x.shape[0]
        logits = jnp.moveaxis(scores.reshape(n, -1, 2, self.anchors), 2, 3).reshape(n, -1, 2)
        return logits, offsets.reshape(n, -1, 4)


class Net(nn.Module):
    """VGG with detection modules on its last two stages and on a pooled map of the last.

    Attributes:
      depths, widths: of VGG's stages; with the published five, the modules have strides 8, 16 and 32.
      reduced: width of the fused map of the first module.
      modules: X of each module.
      anchors: of each cell.
      context: see `ContextModule`.
      kernel_init: initialiser of the layers between VGG and the outputs.
      dtype: of the computation.
    """

    depths: Sequence[int] = (2, 2, 3, 3, 3)
    widths: Sequence[int] = (64, 128, 256, 512, 512)
    reduced: int = 128
    modules: Sequence[int] = (64, 128, 128)
    anchors: int = 2
    context: bool = True
    kernel_init: Any = gaussian
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Raw:
        """[N, H, W, 3] BGR less `MEAN_BGR` -> (logits, offsets) of each module.

        Raises:
          ValueError: a side of the images is no multiple of the last stage's stride.
        """
        last = len(self.depths)
        stride = 2 ** (last - 1)
        if any(side % stride for side in images.shape[1:3]):
            height, width = images.shape[1:3]
            raise ValueError(f"SSH: images of {height} x {width} pixels: expected sides that {stride} divides")
        trunk = VGG(self.depths, self.widths, dtype=self.dtype, name="vgg")
        found = trunk(images, train=train, features=True)
        finer, coarser = (found[f"relu{stage}_{self.depths[stage - 1]}"] for stage in (last - 1, last))
        conv = partial(Conv, self.reduced, use_bias=True, kernel_init=self.kernel_init, dtype=self.dtype)
        fused = nn.relu(conv(kernel_size=1, name="lateral_finer")(finer))
        fused += bilinear_deconvolution(nn.relu(conv(kernel_size=1, name="lateral_coarser")(coarser)))
        fused = nn.relu(conv(kernel_size=3, padding=1, name="fuse")(fused))
        pooled = max_pool(coarser, (2, 2), (2, 2), ceil_padding(coarser.shape[1:3], (2, 2), (2, 2)))
        return tuple(
            DetectionModule(features, self.anchors, self.context, self.kernel_init, self.dtype, name=f"module{i}")(x)
            for i, (features, x) in enumerate(zip(self.modules, (fused, coarser, pooled), strict=True), 1)
        )


def ssh_vgg16(**options: Any) -> Net:
    """The published network. `options` are fields of `Net`."""
    return Net(**options)


def bilinear_deconvolution(x: jax.Array) -> jax.Array:
    """Caffe's fixed bilinear deconvolution of every channel, 4x4 with stride 2: [N, H, W, C] -> [N, 2H, 2W, C].

    It is bilinear interpolation with zeros outside of the map.
    """

    def weights(n: int) -> np.ndarray:
        taps = np.arange(2 * n)[:, None] - 2 * np.arange(n) + 1
        return np.where((taps >= 0) & (taps < 4), 1 - np.abs(taps / 2 - 0.75), 0)

    rows, columns = (jnp.asarray(weights(n), x.dtype) for n in x.shape[1:3])
    x = jnp.einsum("oh,nhwc->nowc", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("pw,nowc->nopc", columns, x, precision=lax.Precision.HIGHEST)


def sampled(
    face: jax.Array, positive: jax.Array, negative: jax.Array, *, count: int, largest_share: float
) -> tuple[jax.Array, jax.Array]:
    """Hard anchors of one image and module: positives of the lowest and negatives of the highest face score.

    Args:
      face: [A] face score or any increasing function of it; no gradient passes.
      positive, negative: [A] bool.
      count: anchors in all.
      largest_share: of positives in `count`.

    Returns:
      masks [A] of the sampled positives and negatives.
    """
    face = lax.stop_gradient(face)
    positives = hardest(-face, positive, int(count * largest_share))
    return positives, hardest(face, negative, count - positives.sum())


def pyramid_scales(
    size: tuple[int, int], sides: Sequence[int] = (500, 800, 1200, 1600), base: tuple[int, int] = (800, 1200)
) -> list[float]:
    """Factors of the test pyramid: side / base[0] times that which fits the image into `base` (short, long side)."""
    short, long = sorted(size)
    fit = base[0] / short
    if round(fit * long) > base[1]:
        fit = base[1] / long
    return [fit * side / base[0] for side in sides]


@dataclass(frozen=True)
class SSH:
    """The detector, with the settings of the authors' code.

    Attributes:
      net: the network.
      strides: of the modules.
      sides: of the square anchors of each module, in pixels.
      base: side of the generator's base box, whose centre is the first anchors' in all modules.
      borders: pixels by which an anchor of each module may leave the image in training.
      positive, negative: anchors with an IoU of at least the one are positive, below the other negative.
      samples, largest_share: anchors of each image and module that are trained on; share of positives in them.
      beta: of the smooth L1 loss.
      candidates: detections of each module that enter suppression.
      lowest, threshold, count: scores must be above, largest IoU, and number of the detections.
    """

    net: Net
    strides: tuple[int, ...] = (8, 16, 32)
    sides: tuple[tuple[int, ...], ...] = ((16, 32), (64, 128), (256, 512))
    base: int = 16
    borders: tuple[int, ...] = (0, 0, 512)
    positive: float = 0.5
    negative: float = 0.3
    samples: int = 256
    largest_share: float = 0.25
    beta: float = 1 / 9
    candidates: int = 1000
    lowest: float = 0.05
    threshold: float = 0.3
    count: int = 750
    classes: ClassVar[int] = 1
    points: ClassVar[int] = 0
    clips: ClassVar[bool] = True

    def preprocess(self, images: jax.Array) -> jax.Array:
        """RGB 0..255 -> BGR less the mean."""
        return jnp.asarray(images, jnp.float32)[..., ::-1] - jnp.array(MEAN_BGR)

    def anchors(self, size: tuple[int, int]) -> list[np.ndarray]:
        """Of each module, [A, 4] (centre x, centre y, side, side) in continuous pixels, by row, column and side.

        The code counts inclusive pixels from 0: its first centre 7.5 is 8 here.
        """
        return [
            box.anchors(size, [stride], [box.shapes(sides)], offset=self.base / 2 / stride)
            for stride, sides in zip(self.strides, self.sides, strict=True)
        ]

    def inside(self, size: tuple[int, int]) -> list[np.ndarray]:
        """Of each module, [A] bool: anchors that are trained on; all, if none is within the image."""
        height, width = size
        found = []
        for anchors, border in zip(self.anchors(size), self.borders, strict=True):
            low, high = anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2
            within = (low >= -border).all(1) & (high <= np.array([width, height]) + border).all(1)
            found.append(within if within.any() else np.ones_like(within))
        return found

    def losses(self, raw: Raw, truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """Of each module, "scores_m1": mean cross-entropy of the sampled anchors; "boxes_m1": smooth L1 of positives.

        Both are divided by the number of sampled anchors of an image, and averaged over the images.
        """
        terms = {}
        modules = zip(raw, self.anchors(size), self.inside(size), strict=True)
        for i, ((logits, offsets), anchors, inside) in enumerate(modules, 1):
            scores, boxes = jax.vmap(partial(self._module_losses, anchors, inside))(logits, offsets, truth)
            terms[f"scores_m{i}"] = Term(scores, jnp.ones_like(scores))
            terms[f"boxes_m{i}"] = Term(boxes, jnp.ones_like(boxes))
        return terms

    def _module_losses(
        self, anchors: np.ndarray, inside: np.ndarray, logits: jax.Array, offsets: jax.Array, truth: Truth
    ) -> tuple[jax.Array, jax.Array]:
        """The losses [] of scores and boxes of one image and module."""
        overlaps = box.iou(truth.boxes[:, None], box.from_center(anchors))
        matches = match_by_overlap(overlaps, truth.mask, positive=self.positive, negative=self.negative)
        positive, negative = sampled(
            logits[:, 1] - logits[:, 0],
            matches.positive & inside,
            matches.negative & inside,
            count=self.samples,
            largest_share=self.largest_share,
        )
        either = positive | negative
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, positive.astype(jnp.int32))
        error = offsets - box.encode(truth.boxes[matches.box], anchors, (1, 1))
        regression = smooth_l1(error, self.beta).sum(-1)
        totals = (jnp.where(where, loss, 0).sum() for where, loss in ((either, entropy), (positive, regression)))
        return tuple(total / jnp.maximum(either.sum(), 1) for total in totals)

    def proposals(self, raw: Raw, size: tuple[int, int]) -> list[tuple[jax.Array, jax.Array]]:
        """Of each module, the best boxes [N, K, 4], cut at the image's last pixels, and their face scores [N, K]."""
        found = []
        for (logits, offsets), anchors in zip(raw, self.anchors(size), strict=True):
            scores, rows = lax.top_k(jax.nn.softmax(logits)[..., 1], min(self.candidates, logits.shape[1]))
            offsets = jnp.take_along_axis(offsets, rows[..., None], 1)
            boxes = box.clip(box.decode(offsets, jnp.asarray(anchors)[rows], (1, 1)), (size[0] - 1, size[1] - 1))
            found.append((boxes, scores))
        return found

    def decode(self, raw: Raw, size: tuple[int, int]) -> Detections:
        """The best of each module, a score threshold, and suppression over all with inclusive pixels."""
        return self._suppressed(self.proposals(raw, size))

    def pyramid(
        self,
        apply: Callable[[jax.Array], Raw],
        images: jax.Array,
        scales: Sequence[float],
        *,
        multiple: int = 16,
    ) -> Detections:
        """Detections at several scales, suppressed together.

        Args:
          apply: preprocessed images -> `Raw`; compiled once for every scale.
          images: [N, H, W, 3] RGB 0..255.
          scales: increasing factors, such as `pyramid_scales((H, W))`; the last module does not see the last one.
          multiple: of the sides that `apply` takes.

        Returns:
          detections in pixels of `images`.
        """
        found = []
        for i, scale in enumerate(scales):
            smaller = self.preprocess(resized(images, scale))
            height, width = smaller.shape[1:3]
            inputs = padded(smaller, multiple)
            modules = self.proposals(apply(inputs), inputs.shape[1:3])
            modules = modules[:-1] if i == len(scales) - 1 else modules
            found += [(box.clip(boxes, (height - 1, width - 1)) / scale, scores) for boxes, scores in modules]
        return self._suppressed(found)

    def _suppressed(self, found: list[tuple[jax.Array, jax.Array]]) -> Detections:
        boxes, scores = (jnp.concatenate(parts, 1) for parts in zip(*found, strict=True))
        return suppressed(boxes, scores, lowest=self.lowest, threshold=self.threshold, count=self.count, plus_one=True)
