"""OVD: online video deblurring via a dynamic temporal blending network.

Kim, Lee, Schoelkopf, Hirsch. ICCV 2017. arXiv:1704.03285.
A recurrent network restores frame n from the blurred frames n - 2 to n + 2, from the features f of the restored frame
n - 1, and from the map h~ of frame n - 1. The latter is blended with the map h of frame n by weights that the network
computes from both (dynamic temporal blending): h~_n = w h_n + (1 - w) h~_(n-1), w = min(1, |tanh(A h_n + B h~_(n-1))| +
beta).

The authors published no code. Layers are those of two re-implementations, `zzh-tech/ESTRNN` (STRCNN.py) and "strcnn.py"
by M. Cao, where they agree. Differs from the former: beta is trained, |tanh(x)| is not |tanh(x / 2)|, and
the blending weights reach the border. Not in the paper: border frames are repeated, so every frame is restored; odd
sizes are possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv, ConvTranspose
from facejax.nn.init import kaiming_normal_fan_out, torch_default
from facejax.nn.norm import GroupNorm

Dtype = Any


class State(NamedTuple):
    """What the network remembers; its size does not depend on the length of the video.

    Attributes:
      frames: [N, 2 context, H, W, 3] the last blurred frames, oldest first.
      features: [N, H/2, W/2, width/2] features f of the last restored frame.
      blended: [N, H/2, W/2, width] blended map h~ of the last restored frame.
    """

    frames: jax.Array
    features: jax.Array
    blended: jax.Array


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a norm, added to the input before the last ReLU. [N, H, W, C] -> the same.

    Attributes:
      groups: of group norm; 0: batch norm.
      axis_name, dtype: of `OVD`.
    """

    groups: int = 0
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nn.relu(self._layer(x, "layer1", train))
        return nn.relu(x + self._layer(y, "layer2", train))

    def _layer(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        options = {"padding": 1, "use_bias": True, "dtype": self.dtype, "name": name}
        if not self.groups:
            return ConvNorm(x.shape[-1], 3, activation=None, axis_name=self.axis_name, **options)(x, train=train)
        x = Conv(x.shape[-1], 3, kernel_init=kaiming_normal_fan_out, **options)(x)
        return GroupNorm(self.groups, dtype=self.dtype, name=f"{name}_norm")(x)


class Blending(nn.Module):
    """Dynamic temporal blending of two maps with a weight per pixel and channel, and a trained lower limit beta."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, new: jax.Array, old: jax.Array) -> jax.Array:
        """[N, H, W, C] of this frame and of the last -> [N, H, W, C]."""
        options = {"use_bias": True, "kernel_init": torch_default, "dtype": self.dtype, "name": "conv"}
        change = jnp.tanh(Conv(new.shape[-1], 5, padding=2, **options)(jnp.concatenate([new, old], -1)))
        beta = self.param("beta", nn.initializers.zeros, ())
        weight = jnp.clip(jnp.abs(change) + beta.astype(self.dtype), 0, 1)
        return weight * new + (1 - weight) * old


class Cell(nn.Module):
    """One step of `OVD`, which explains the fields."""

    width: int
    blocks: int
    recurrent: bool
    blending: bool
    residual: bool
    groups: int
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, state: State, frame: jax.Array, *, train: bool) -> tuple[State, jax.Array]:
        """(state, the newest frame [N, H, W, 3]) -> (state, the restored middle frame [N, H, W, 3])."""

        def conv(features: int, size: int, stride: int, name: str) -> Conv:
            options = {"use_bias": True, "kernel_init": torch_default, "dtype": self.dtype, "name": name}
            return Conv(features, size, stride, size // 2, **options)

        def refined(x: jax.Array, part: str) -> jax.Array:
            for i in range(self.blocks):
                x = ResidualBlock(self.groups, self.axis_name, self.dtype, name=f"{part}{i}")(x, train=train)
            return x

        n, _, height, width, _ = state.frames.shape
        frames = jnp.concatenate([state.frames, frame[:, None].astype(state.frames.dtype)], 1)
        x = jnp.moveaxis(frames, 1, 3).reshape(n, height, width, -1)
        x = nn.relu(conv(self.width, 5, 1, "conv1")(x))
        x = nn.relu(conv(self.width // 2, 3, 2, "conv2")(x))
        x = refined(jnp.concatenate([x, state.features], -1), "encoder")
        x = blended = Blending(self.dtype, name="blending")(x, state.blended) if self.blending else x
        x = refined(x, "decoder")
        features = nn.relu(conv(self.width // 2, 3, 1, "features")(x))
        options = {"use_bias": True, "kernel_init": torch_default, "dtype": self.dtype, "name": "up"}
        up = nn.relu(ConvTranspose(self.width, 4, 2, 1, **options)(x))
        first = nn.initializers.zeros if self.residual else torch_default
        out = Conv(3, 3, 1, 1, use_bias=True, kernel_init=first, dtype=self.dtype, name="out")
        sharp = out(up)[:, :height, :width].astype(jnp.float32)
        if self.residual:
            sharp = sharp + frames[:, frames.shape[1] // 2]
        if not self.recurrent:
            features, blended = state.features, state.blended
        return State(frames[:, 1:], features, blended), sharp


class OVD(nn.Module):
    """The recurrent network. Images have values of 0..1; restored ones may lie slightly outside.

    Attributes:
      context: blurred frames before and after the restored one that the network sees.
      width: channels of the maps; the features passed on have half of them.
      blocks: residual blocks of the encoder, and of the decoder.
      recurrent: whether maps are passed on to the next frame; otherwise the state of every frame is zero.
      blending: whether dynamic temporal blending follows the encoder. Without, the network is the paper's STRCNN.
      residual: whether the blurred frame is added to the output, which is 0 at first. Not in the paper; short trainings
        need it.
      groups: of group norm in the residual blocks; 0: batch norm, as in the paper. Every time step has other batch
        statistics, since maps are 0 before the first frame: with few channels the running averages of all time steps
        fit none.
      unroll: whether the program contains every time step instead of a loop. It compiles for longer; on a CPU, XLA
        computes gradients of convolutions inside a loop about twenty times more slowly.
      axis_name: mapped axis over which to share batch statistics.
      dtype: of the computation.
    """

    context: int = 2
    width: int = 64
    blocks: int = 4
    recurrent: bool = True
    blending: bool = True
    residual: bool = False
    groups: int = 0
    unroll: bool = False
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.context < 1:
            raise ValueError(f"OVD.context is {self.context}: expected 1 or more")
        options = (self.recurrent, self.blending, self.residual, self.groups, self.axis_name, self.dtype)
        self.cell = Cell(self.width, self.blocks, *options)

    def __call__(self, video: jax.Array, *, train: bool) -> jax.Array:
        """Whole videos [N, T, H, W, 3] -> restored videos [N, T, H, W, 3].

        In training, every time step normalises by its own batch statistics and updates the running averages.
        """
        if video.ndim != 5 or video.shape[-1] != 3 or not video.shape[1]:
            raise ValueError(f"OVD: video {video.shape}: expected [N, T, H, W, 3] with at least one frame")
        last = jnp.repeat(video[:, -1:], self.context, 1)
        state = self.begin(video[:, 0])
        if self.is_initializing():
            self.cell(state, video[:, 0], train=train)
            return video
        frames = jnp.concatenate([video, last], 1)
        for t in range(1, self.context):
            state = push(state, frames[:, t])

        if self.unroll:
            restored = []
            for t in range(self.context, frames.shape[1]):
                state, sharp = self.cell(state, frames[:, t], train=train)
                restored.append(sharp)
            return jnp.stack(restored, 1)

        def step(cell: Cell, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
            return cell(state, frame, train=train)

        kept, carried = (["params"], "batch_stats") if train else (["params", "batch_stats"], False)
        scan = nn.scan(
            step, variable_broadcast=kept, variable_carry=carried, split_rngs={"params": False}, in_axes=1, out_axes=1
        )
        return scan(self.cell, state, frames[:, self.context :])[1]

    def begin(self, frame: jax.Array) -> State:
        """The state after the first frame [N, H, W, 3] of videos, which is repeated."""
        half = (frame.shape[0], *(-(-side // 2) for side in frame.shape[1:3]))
        frames = jnp.repeat(frame[:, None].astype(self.dtype), 2 * self.context, 1)
        features, blended = (jnp.zeros((*half, width), self.dtype) for width in (self.width // 2, self.width))
        return State(frames, features, blended)

    def step(self, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
        """One frame in, one frame out: (state, frame n + context [N, H, W, 3]) -> (state, restored frame n)."""
        return self.cell(state, frame, train=False)


def push(state: State, frame: jax.Array) -> State:
    """The state with a further frame [N, H, W, 3], without restoring one: for the first `context` - 1 frames."""
    frames = jnp.concatenate([state.frames[:, 1:], frame[:, None].astype(state.frames.dtype)], 1)
    return state._replace(frames=frames)


def stream(net: OVD, variables: Any, frames: Iterable[jax.Array]) -> Iterator[jax.Array]:
    """Restores a video frame by frame, in memory that does not grow with its length; equal to the whole-clip run.

    Args:
      net, variables: the network.
      frames: [H, W, 3] each, 0..1, of equal size. A restored frame follows `net.context` frames later.

    Yields:
      [H, W, 3], one for every frame.

    Raises:
      ValueError: a frame has another shape than the first, or there is none.
    """
    state = None
    for count, frame in enumerate(_followed(frames, net.context), 1):
        if state is None:
            state = net.begin(frame)
        elif count <= net.context:
            state = push(state, frame)
        else:
            state, sharp = _step(net, variables, state, frame)
            yield sharp[0]


def _followed(frames: Iterable[jax.Array], repeats: int) -> Iterator[jax.Array]:
    """All frames, checked, as [1, H, W, 3]; then the last one `repeats` times."""
    last = None
    for number, frame in enumerate(frames, 1):
        wanted = "[H, W, 3]" if last is None else f"{last.shape[1:]}, as the first"
        if np.ndim(frame) != 3 or np.shape(frame)[-1] != 3 or (last is not None and frame.shape != last.shape[1:]):
            raise ValueError(f"stream: frame {number} is {np.shape(frame)}: expected {wanted}")
        last = jnp.asarray(frame)[None]
        yield last
    if last is None:
        raise ValueError("stream: no frames: expected at least one")
    for _ in range(repeats):
        yield last


def _advance(net: OVD, variables: Any, state: State, frame: jax.Array) -> tuple[State, jax.Array]:
    return net.apply(variables, state, frame, method="step")


_step = jax.jit(_advance, static_argnums=0, donate_argnums=2)


def reconstruction_loss(restored: jax.Array, sharp: jax.Array) -> jax.Array:
    """Mean squared error of each video: [N, T, H, W, 3] twice, 0..1 -> [N] float32."""
    if restored.shape != sharp.shape:
        raise ValueError(f"reconstruction_loss: {restored.shape} and {sharp.shape}: expected equal shapes")
    return jnp.square(restored.astype(jnp.float32) - sharp.astype(jnp.float32)).mean((1, 2, 3, 4))
