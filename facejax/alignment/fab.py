"""FAB: landmarks in motion-blurred videos; boundaries of earlier frames, moved on, guide the deblurring of the next.

Sun, Wu, Liu, Yang, Wang, Zhou, Ye, Qian. "FAB: A Robust Facial Landmark Detection Framework for Motion-Blurred Videos".
ICCV 2019. arXiv:1910.12100.
A structure predictor moves the boundaries of the last two frames to the present one by a flow and mixes them by a mask;
a recurrent network deblurs the frame with this prior; a small residual network finds the landmarks in the result, from
which the boundaries for the next frame are drawn.
Layers follow the authors' code. Differs: samples beyond the edge repeat it (there: zero, also at the last row and
column); bilinear resizing aligns pixel edges, not TensorFlow 1's corners; the deblurring network's norm takes each
image's own statistics, which equals theirs at their batch size of 1; boundaries are drawn from landmarks in pixels.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from facejax.nn.conv import Conv, ConvTranspose, explicit_padding
from facejax.nn.norm import BatchNorm, GroupNorm, PReLU
from facejax.ops import boundaries
from facejax.ops.pooling import max_pool, resize_bilinear
from facejax.ops.sampling import bilinear_sample

Dtype = Any


class Memory(NamedTuple):
    """What the network keeps from frame to frame.

    Attributes:
      frames: [N, H, W, 6], the last two blurred frames, older first.
      maps: [N, H, W, 2], the boundaries of these.
      features: [N, H / 2, W / 2, width / 2] of the deblurring network.
      hidden: [N, H / 2, W / 2, width] of the deblurring network.
    """

    frames: jax.Array
    maps: jax.Array
    features: jax.Array
    hidden: jax.Array


class Estimate(NamedTuple):
    """What FAB makes of a frame, or of the T frames of a video (axis 1).

    Attributes:
      points: [N, L, 2] in pixels of the frame, integers at pixel centres.
      image: [N, H, W, 3], deblurred, in 0..1.
      boundary: [N, H, W, 1], predicted from the boundaries of earlier frames.
    """

    points: jax.Array
    image: jax.Array
    boundary: jax.Array


class StructurePredictor(nn.Module):
    """Boundaries of two frames to a flow and a mask, by an encoder-decoder.

    Attributes:
      widths: channels of the six hidden convolutions.
      momentum: of batch norm's running averages.
      axis_name: mapped axis over which batch statistics are averaged; None for statistics of each device.
      dtype: of the computation.
    """

    widths: tuple[int, ...] = (64, 128, 256, 256, 128, 64)
    momentum: float = 0.9997
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """[N, H, W, 2], of frames t - 2 and t - 1, -> flow [N, H, W, 2] in -1..1, mask [N, H, W, 1] in 0..1.

        A flow of 1 is half of the frame's size; see `extrapolate`.
        """
        init = nn.initializers.truncated_normal(0.01)
        x, size = maps, maps.shape[1:3]
        for i, (width, kernel) in enumerate(zip(self.widths, (5, 5, 3, 3, 3, 5), strict=True), 1):
            x = Conv(width, kernel, padding=kernel // 2, kernel_init=init, dtype=self.dtype, name=f"conv{i}")(x)
            norm = partial(BatchNorm, self.axis_name, use_scale=False, momentum=self.momentum, epsilon=1e-3)
            x = nn.relu(norm(dtype=self.dtype, name=f"bn{i}")(x, train=train))
            if i <= 3:
                x = max_pool(x, (2, 2), (2, 2))
            if 3 <= i <= 5:
                x = resize_bilinear(x, tuple(side >> (5 - i) for side in size))
        x = Conv(3, 5, padding=2, use_bias=True, kernel_init=init, dtype=self.dtype, name="conv7")(x)
        x = jnp.tanh(x.astype(jnp.float32))
        return x[..., :2], (1 + x[..., 2:]) / 2


def extrapolate(maps: jax.Array, flow: jax.Array, mask: jax.Array) -> jax.Array:
    """The next map [N, H, W, 1]: mask * B(t - 2) at p + 2 flow(p), plus (1 - mask) * B(t - 1) at p + flow(p).

    Args:
      maps: [N, H, W, 2], B of frames t - 2 and t - 1.
      flow: [N, H, W, 2] (x, y) in units of (W - 1) / 2 and (H - 1) / 2 pixels.
      mask: [N, H, W, 1].
    """
    height, width = maps.shape[1:3]
    columns, rows = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    place, step = jnp.stack([columns, rows], -1), flow * jnp.array([width - 1, height - 1]) / 2
    sample = jax.vmap(bilinear_sample)
    older = sample(maps[..., :1], place + 2 * step)
    newer = sample(maps[..., 1:], place + step)
    return mask * older + (1 - mask) * newer


class ResidualBlock(nn.Module):
    """x plus two 3x3 convolutions, the first with ReLU, each with its image's own norm.

    Attributes:
      dtype: of the computation.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> the same shape."""
        init, y = nn.initializers.normal(0.02), x
        for i in (1, 2):
            y = Conv(x.shape[-1], 3, padding=1, kernel_init=init, dtype=self.dtype, name=f"conv{i}")(y)
            norm = GroupNorm(None, group_size=1, epsilon=1e-3, scale_init=init, dtype=self.dtype, name=f"norm{i}")
            y = norm(y)
            y = nn.relu(y) if i == 1 else y
        return x + y


class DynamicFusion(nn.Module):
    """alpha x + (1 - alpha) h, alpha = 2 |sigmoid(conv(x, h)) - 1/2| + epsilon in 0..1, 1 where the kernel has no room.

    Attributes:
      kernel: side of the kernel.
      dtype: of the computation.
    """

    kernel: int = 5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, h: jax.Array) -> jax.Array:
        """Twice [N, H, W, C] -> the same shape."""
        conv = Conv(x.shape[-1], self.kernel, kernel_init=nn.initializers.normal(0.02), dtype=self.dtype, name="conv")
        epsilon = self.param("epsilon", nn.initializers.zeros, (1,)).astype(self.dtype)
        alpha = jnp.clip(2 * jnp.abs(nn.sigmoid(conv(jnp.concatenate([x, h], -1))) - 0.5) + epsilon, 0, 1)
        edge = self.kernel // 2
        alpha = jnp.pad(alpha, ((0, 0), (edge, edge), (edge, edge), (0, 0)), constant_values=1)
        return alpha * x + (1 - alpha) * h


class Deblur(nn.Module):
    """A frame, its two predecessors and the predicted boundary to the frame without blur; recurrent.

    Attributes:
      width: channels.
      blocks: residual blocks; the old hidden map is fused in after half of them.
      dtype: of the computation.
    """

    width: int = 64
    blocks: int = 8
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: jax.Array, features: jax.Array, hidden: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[N, H, W, C] and both maps of `Memory` -> [N, H, W, 3] float32 and the new maps; H and W are even."""
        init = nn.initializers.normal(0.02)
        conv = partial(Conv, padding="SAME", kernel_init=init, dtype=self.dtype)
        x = nn.relu(conv(self.width, 5, name="conv1")(inputs))
        x = nn.relu(conv(self.width // 2, 3, 2, name="conv2")(x))
        x = jnp.concatenate([x, features.astype(self.dtype)], -1)
        for i in range(self.blocks):
            x = ResidualBlock(self.dtype, name=f"block{i}")(x)
            if i == (self.blocks - 1) // 2:
                x = hidden = DynamicFusion(dtype=self.dtype, name="fusion")(x, hidden.astype(self.dtype))
        features = nn.relu(conv(self.width // 2, 3, name="features")(x))
        up = ConvTranspose(self.width, 4, 2, 1, kernel_init=init, dtype=self.dtype, name="up")(x)
        image = conv(3, 3, name="image")(nn.relu(up))
        return image.astype(jnp.float32), features, hidden


class LandmarkNet(nn.Module):
    """Frames to landmarks: a small pre-activation bottleneck network; biases and PReLU in place of norms.

    Attributes:
      landmarks: L.
      stem: channels of the first convolution.
      widths: inner channels of the stages; a stage has two blocks and four times as many outputs.
      hidden: width of two dense layers, without activation between.
      spread: standard deviation of the dense layers' first weights.
      start: [L, 2] landmarks at outputs of 0, as shares of the frame; None: the frame's middle.
      dtype: of the convolutions.
    """

    landmarks: int = 68
    stem: int = 16
    widths: tuple[int, ...] = (8, 16, 32, 64)
    hidden: int = 256
    spread: float = 0.01
    start: tuple[tuple[float, float], ...] | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        """[N, H, W, 3] in 0..1 -> [N, L, 2] in pixels, float32."""
        conv = partial(Conv, padding="SAME", kernel_init=nn.initializers.truncated_normal(0.1), dtype=self.dtype)
        size = jnp.array(frames.shape[2:0:-1], jnp.float32)

        def activated(x: jax.Array, name: str) -> jax.Array:
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (x.shape[-1],))
            return PReLU(name=f"{name}_prelu")(x + bias.astype(x.dtype))

        def pooled(x: jax.Array) -> jax.Array:
            return max_pool(x, (3, 3), (2, 2), explicit_padding("SAME", x.shape[1:3], (3, 3), (2, 2)))

        x = activated(conv(self.stem, 7, 2, name="conv")(frames), "stem")
        x = pooled(activated(pooled(x), "pool"))
        for stage, width in enumerate(self.widths):
            for block in (0, 1):
                name, stride = f"stage{stage}_{block}", 2 if stage and not block else 1
                y = activated(x, f"{name}_pre") if block else x
                y = activated(conv(width, 1, stride, name=f"{name}_a")(y), f"{name}_a")
                y = activated(conv(width, 3, name=f"{name}_b")(y), f"{name}_b")
                y = conv(4 * width, 1, name=f"{name}_c")(y)
                if stride > 1 or x.shape[-1] != 4 * width:
                    x = conv(4 * width, 1, stride, name=f"{name}_shortcut")(x)
                x = x + y
            x = activated(x, f"stage{stage}")
        x = x.mean((1, 2)).astype(jnp.float32)
        for i, width in enumerate((self.hidden, self.hidden, 2 * self.landmarks), 1):
            x = nn.Dense(width, kernel_init=nn.initializers.truncated_normal(self.spread), name=f"fc{i}")(x)
        start = (size - 1) / 2 if self.start is None else size * jnp.asarray(self.start) - 0.5
        return start + (size - 1) * x.reshape(x.shape[0], self.landmarks, 2)


class FAB(nn.Module):
    """Blurred videos to landmarks, deblurred frames and predicted boundaries.

    Attributes:
      landmarks: L.
      predictor: channels of `StructurePredictor`.
      width, blocks: of `Deblur`.
      stem, widths, hidden, spread, start: of `LandmarkNet`.
      sigma: of the boundaries drawn from landmarks, pixels.
      samples: points on each of them.
      residual: whether the blurred frame is added to the deblurred one; not in the paper, short trainings need it.
      momentum: of the predictor's running averages.
      axis_name: mapped axis over which its batch statistics are averaged.
      dtype: of the computation.
    """

    landmarks: int = 68
    predictor: tuple[int, ...] = (64, 128, 256, 256, 128, 64)
    width: int = 64
    blocks: int = 8
    stem: int = 16
    widths: tuple[int, ...] = (8, 16, 32, 64)
    hidden: int = 256
    spread: float = 0.01
    start: tuple[tuple[float, float], ...] | None = None
    sigma: float = 1.0
    samples: int = 170
    residual: bool = False
    momentum: float = 0.9997
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.structure = StructurePredictor(self.predictor, self.momentum, self.axis_name, self.dtype)
        self.deblurring = Deblur(self.width, self.blocks, self.dtype)
        self.detector = LandmarkNet(
            self.landmarks, self.stem, self.widths, self.hidden, self.spread, self.start, self.dtype
        )

    def __call__(self, video: jax.Array, points: jax.Array | None = None, *, train: bool) -> Estimate:
        """All frames of videos.

        Args:
          video: [N, T, H, W, 3] in 0..1, T of 3 or more, H and W multiples of 8.
          points: [N, 2, L, 2], landmarks of the first two frames; None: those that the landmark network finds in them.
          train: whether the structure predictor's batch norm uses the batch's statistics.

        Returns:
          Estimates of T frames; those of the first two have the frame itself and its drawn boundary.
        """
        if video.ndim != 5 or video.shape[1] < 3 or video.shape[-1] != 3 or any(s % 8 for s in video.shape[2:4]):
            raise ValueError(
                f"FAB: video {video.shape}, expected [N, T, H, W, 3] with sides that 8 divides and 3 or more frames: "
                "boundaries are predicted from those of two earlier frames"
            )
        memory, first = self.begin(video[:, :2], points)
        found = [Estimate(*(part[:, t] for part in first)) for t in (0, 1)]
        for t in range(2, video.shape[1]):
            memory, estimate = self.step(memory, video[:, t], train=train)
            found.append(estimate)
        return Estimate(*(jnp.stack(parts, 1) for parts in zip(*found, strict=True)))

    def alone(self, video: jax.Array) -> jax.Array:
        """Landmarks [N, T, L, 2] of every frame of [N, T, H, W, 3] by itself."""
        return self.detector(video.reshape(-1, *video.shape[2:])).reshape(*video.shape[:2], self.landmarks, 2)

    def begin(self, frames: jax.Array, points: jax.Array | None = None) -> tuple[Memory, Estimate]:
        """The first two frames [N, 2, H, W, 3], whose landmarks may be known."""
        n, _, height, width, _ = frames.shape
        points = self.alone(frames) if points is None else points
        maps = self.draw(points.reshape(-1, *points.shape[2:]), (height, width)).reshape(n, 2, height, width, 1)
        joined = (jnp.concatenate([x[:, 0], x[:, 1]], -1) for x in (frames, maps))
        half, widths = (n, height // 2, width // 2), (self.width // 2, self.width)
        carried = (jnp.zeros((*half, channels), self.dtype) for channels in widths)
        return Memory(*joined, *carried), Estimate(points, frames, maps)

    def step(self, memory: Memory, frame: jax.Array, *, train: bool = False) -> tuple[Memory, Estimate]:
        """One more frame [N, H, W, 3]."""
        flow, mask = self.structure(memory.maps, train=train)
        boundary = extrapolate(memory.maps, flow, mask)
        frames = jnp.concatenate([memory.frames, frame], -1)
        inputs = jnp.concatenate([boundary] * 3 + [frames], -1)  # three equal channels, as in the authors' code
        image, features, hidden = self.deblurring(inputs, memory.features, memory.hidden)
        image = image + frame if self.residual else image
        points = self.detector(image)
        drawn = self.draw(points, frame.shape[1:3])
        maps = jnp.concatenate([memory.maps[..., 1:], drawn], -1)
        return Memory(frames[..., 3:], maps, features, hidden), Estimate(points, image, boundary)

    def draw(self, points: jax.Array, size: tuple[int, int]) -> jax.Array:
        """The boundaries of landmarks [N, L, 2], each with a maximum of 1, summed: [N, H, W, 1]; without gradient."""
        options = {"sigma": self.sigma, "samples": self.samples, "ends": "natural", "rounded": True}
        maps = boundaries.boundary_maps(lax.stop_gradient(points), size, **options)
        return lax.stop_gradient(maps.sum(-1, keepdims=True))


def track(net: FAB, variables: Any, video: jax.Array, points: jax.Array | None = None) -> Estimate:
    """All frames of videos of any length, one after the other; equal to the whole-clip run.

    Args:
      net, variables: the network.
      video: [N, T, H, W, 3] in 0..1, T of 3 or more.
      points: see `FAB.__call__`.
    """
    if video.ndim != 5 or video.shape[1] < 3:
        raise ValueError(f"track: video {video.shape}, expected [N, T, H, W, 3] with 3 or more frames")
    memory, first = _run("begin", net, variables, video[:, :2], points)
    found = [Estimate(*(part[:, t] for part in first)) for t in (0, 1)]
    for t in range(2, video.shape[1]):
        memory, estimate = _run("step", net, variables, memory, video[:, t])
        found.append(estimate)
    return Estimate(*(jnp.stack(parts, 1) for parts in zip(*found, strict=True)))


@partial(jax.jit, static_argnums=(0, 1))
def _run(method: str, net: FAB, variables: Any, *inputs: jax.Array) -> Any:
    return net.apply(variables, *inputs, method=method)


def half_squares(found: jax.Array, target: jax.Array) -> jax.Array:
    """Half the sum of squared differences of each frame: [N, T, ...] twice -> [N, T], float32."""
    difference = jnp.square(found.astype(jnp.float32) - target)
    return difference.sum(tuple(range(2, difference.ndim))) / 2
