"""CenterNet: objects as points, the peaks of a heat map of box centres, with sizes and offsets read there and no NMS.

Zhou, Wang, Kraehenbuehl. "Objects as points". 2019. arXiv:1904.07850. Trunks of stride 4: ResNet with deformable and
transposed convolutions, DLA-34 with deformable convolutions in its upsampling path, or two hourglasses.

Layers, targets, losses and post-processing are those of the authors' code (`xingyizhou/CenterNet`). Differs from it:
images are RGB, not BGR. Boxes may reach the image's border, where the code cuts them to the last cell. Every channel of
a transposed convolution starts at random, where the code makes the first bilinear. Pixels that are no peak are never an
object. Landmarks (`points`) are the code's regression of human joints, for faces, without its heat map of joints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.backbones.dla import DLAUp, dla34
from facejax.backbones.hourglass import hourglass104
from facejax.backbones.resnet import resnet18, resnet101
from facejax.detection.base import Detections, Term, Truth, gathered, suppressed
from facejax.detection.cornernet import DEVIATION, MEAN, PRIOR, Head, gaussian_focal_loss, peaks, read_at
from facejax.foundations.deformable import DeformableConv
from facejax.nn.conv import ConvTranspose
from facejax.nn.init import torch_default
from facejax.nn.norm import BatchNorm
from facejax.ops import boxes as box
from facejax.ops.gaussian_targets import gaussian_radius, splat

Dtype = Any
Maps = dict[str, jax.Array]

deformable = partial(DeformableConv, modulated=True)
"""The convolution of the upsampling paths (deformable v2)."""


class ResNetUp(nn.Module):
    """ResNet, then three times a 3x3 convolution and a transposed one that doubles the resolution.

    Attributes:
      trunk: gives "c5" of stride 32.
      widths: channels of the three steps.
      conv: constructor of the 3x3 convolutions.
      axis_name: mapped axis over which batch statistics are averaged; the published runs average over none.
      dtype: of the computation.
    """

    trunk: nn.Module
    widths: tuple[int, ...] = (256, 128, 64)
    conv: Any = deformable
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """[N, H, W, 3] with H and W multiples of 32 -> one map [N, H / 4, W / 4, widths[-1]] in a list."""
        if images.ndim != 4 or any(side == 0 or side % 32 for side in images.shape[1:3]):
            raise ValueError(f"ResNetUp: images {images.shape}, expected [N, H, W, 3] with H and W multiples of 32")
        norm = partial(BatchNorm, self.axis_name, dtype=self.dtype)
        x = self.trunk(images, train=train, features=True)["c5"]
        for i, width in enumerate(self.widths):
            options = {"kernel_init": torch_default, "dtype": self.dtype}
            x = self.conv(width, 3, padding=1, use_bias=True, **options, name=f"conv{i}")(x)
            x = nn.relu(norm(name=f"conv_bn{i}")(x, train=train))
            x = ConvTranspose(width, 4, 2, 1, **options, name=f"up{i}")(x)
            x = nn.relu(norm(name=f"up_bn{i}")(x, train=train))
        return [x]


class Net(nn.Module):
    """Trunk and heads.

    Attributes:
      trunk: images -> maps of stride 4, one for each stack.
      classes: C.
      width: channels of the heads' first convolution: 64 with ResNet, 256 otherwise.
      points: P, landmarks per object; 0 has no such output.
      dtype: of the computation.
    """

    trunk: nn.Module
    classes: int = 80
    width: int = 256
    points: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[Maps]:
        """Raw predictions of every stack.

        Args:
          images: [N, H, W, 3], see `CenterNet.preprocess`; 512 x 512 in the paper.
          train: whether batch statistics are used.

        Returns:
          For each stack maps of stride 4: "heat" [N, H', W', C], logits; "size" [N, H', W', 2], (width, height) in
          cells; "offset" [N, H', W', 2] and "points" [N, H', W', 2 P], (x, y) of the centre and of the landmarks from
          the corner of the cell, in cells.
        """
        outputs = {"heat": (self.classes, PRIOR), "size": (2, 0.0), "offset": (2, 0.0)}
        if self.points:
            outputs["points"] = (2 * self.points, 0.0)
        return [
            {
                name: Head(self.width, number, bias, self.dtype, name=f"{name}{stack}")(features)
                for name, (number, bias) in outputs.items()
            }
            for stack, features in enumerate(self.trunk(images, train=train))
        ]


def centernet_resnet18(**options: Any) -> Net:
    """`options` are fields of `Net`."""
    return Net(ResNetUp(resnet18()), **{"width": 64, **options})


def centernet_resnet101(**options: Any) -> Net:
    """The most accurate ResNet of the paper."""
    return Net(ResNetUp(resnet101()), **{"width": 64, **options})


def centernet_dla34(**options: Any) -> Net:
    """The paper's best trade of speed and accuracy."""
    return Net(DLAUp(dla34(), deformable), **options)


def centernet_hourglass104(**options: Any) -> Net:
    """The most accurate."""
    return Net(hourglass104(), **options)


@dataclasses.dataclass(frozen=True)
class CenterNet:
    """The detector around a `Net`.

    Attributes:
      net: the network.
      overlap: IoU from which the radius of the targets follows.
      exact_radius: uses the exact radius; False is the formula of the authors' code, whose radii are larger.
      size_weight, offset_weight, point_weight: weights of the losses; that of points is the code's for joints.
      per_coordinate: divides L1 losses by the number of coordinates, as the authors' code does; False: by that of
        objects, as in the paper, which doubles them.
      count: peaks, which are the detections.
      window: side of the window of a peak; 1 takes every pixel.
      threshold: largest IoU of two detections in a suppression that follows; None: there is none, as in the paper.
      lowest: scores must be above.
      partners: index of each landmark's mirror partner, for the flip test.
    """

    net: Net
    overlap: float = 0.7
    exact_radius: bool = False
    size_weight: float = 0.1
    offset_weight: float = 1.0
    point_weight: float = 1.0
    per_coordinate: bool = True
    count: int = 100
    window: int = 3
    threshold: float | None = None
    lowest: float = 0.0
    partners: tuple[int, ...] = (1, 0, 2, 4, 3)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.net.classes

    @property
    def points(self) -> int:
        """Landmarks per object."""
        return self.net.points

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 RGB [N, H, W, 3] -> COCO's mean 0 and deviation 1 per channel."""
        return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(DEVIATION)

    def losses(self, raw: Sequence[Maps], truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """Focal loss of the centres, L1 of sizes, offsets and landmarks; means over the stacks."""
        shape = raw[0]["heat"].shape[1:3]
        scale = jnp.array([shape[1] / size[1], shape[0] / size[0]])
        target = box.to_center(truth.boxes * jnp.tile(scale, 2))
        centre, extent = target[..., :2], target[..., 2:]
        mask = truth.mask & (extent > 0).all(-1)
        cell = jnp.clip(jnp.floor(centre), 0, jnp.array([shape[1] - 1, shape[0] - 1])).astype(jnp.int32)
        sides = jnp.ceil(extent)
        radii = gaussian_radius(sides[..., 1], sides[..., 0], self.overlap, exact=self.exact_radius).astype(jnp.int32)
        heat = jax.vmap(partial(splat, size=shape, classes=self.classes))(cell, radii, truth.labels, mask)
        focal = sum(gaussian_focal_loss(stack["heat"], heat) for stack in raw) / len(raw)
        terms = {"heat": Term(focal.sum((1, 2, 3)), (heat == 1).sum((1, 2, 3)).astype(jnp.float32))}
        wanted = {
            "size": (extent, mask[..., None], self.size_weight),
            "offset": (centre - cell, mask[..., None], self.offset_weight),
        }
        if self.points:
            seen = jnp.repeat(truth.visible & mask[..., None], 2, -1)
            places = truth.points * scale - cell[..., None, :]
            wanted["points"] = (places.reshape(*mask.shape, -1), seen, self.point_weight)
        for name, (values, valid, weight) in wanted.items():
            error = sum(jnp.abs(read_at(stack[name], cell) - values) for stack in raw) / len(raw)
            number = jnp.broadcast_to(valid, values.shape).sum((1, 2)).astype(jnp.float32)
            total = jnp.where(valid, error, 0.0).sum((1, 2))
            terms[name] = Term(total, number if self.per_coordinate else number / 2, weight)
        return terms

    def decode(self, raw: Sequence[Maps], size: tuple[int, int], mirrored: Sequence[Maps] | None = None) -> Detections:
        """Detections by falling score.

        Args:
          raw: predictions; the last stack's are used.
          size: (height, width) of the images.
          mirrored: predictions of the mirrored images: heat, sizes and landmarks are averaged (the flip test).
        """
        maps = {"points": jnp.zeros((*raw[-1]["size"].shape[:3], 0)), **raw[-1]}
        maps["heat"] = jax.nn.sigmoid(maps["heat"].astype(jnp.float32))
        if mirrored is not None:
            other = {name: value[:, :, ::-1] for name, value in mirrored[-1].items()}
            maps["heat"] = (maps["heat"] + jax.nn.sigmoid(other["heat"].astype(jnp.float32))) / 2
            maps["size"] = (maps["size"] + other["size"]) / 2
            if self.points:
                places = other["points"].reshape(*other["points"].shape[:3], -1, 2)[..., self.partners, :]
                places = jnp.stack([1 - places[..., 0], places[..., 1]], -1).reshape(maps["points"].shape)
                maps["points"] = (maps["points"] + places) / 2
        return self.decode_maps(maps, size)

    def decode_maps(self, maps: Maps, size: tuple[int, int]) -> Detections:
        """Detections from the maps of `Net` with "heat" in 0..1, in pixels of images of `size` (height, width)."""
        shape = maps["heat"].shape[1:3]
        scale = jnp.array([size[1] / shape[1], size[0] / shape[0]])
        peak = peaks(maps["heat"], self.count, window=self.window)
        extent, offset, points = (read_at(maps[name], peak.places) for name in ("size", "offset", "points"))
        boxes = box.from_center(jnp.concatenate([peak.places + offset, extent], -1)) * jnp.tile(scale, 2)
        places = peak.places[:, :, None] + points.reshape(*points.shape[:2], -1, 2)
        mask = peak.mask & (peak.scores > self.lowest)
        if self.threshold is None:
            rows = jnp.broadcast_to(jnp.arange(self.count), mask.shape)
            return jax.vmap(gathered)(rows, mask, boxes, peak.scores, places * scale, peak.labels)
        scores = jnp.where(mask, peak.scores, -1.0)
        options = {"lowest": self.lowest, "threshold": self.threshold, "count": self.count}
        return suppressed(boxes, scores, places * scale, peak.labels, **options)
