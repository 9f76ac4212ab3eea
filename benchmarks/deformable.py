"""Deformable convolution compared with a plain one of equal shape and two other forms, forward and backward.

    python -m benchmarks.deformable                                      # 28 x 28 x 128, batch 8, as in stage 3
    python -m benchmarks.deformable --size 14 --width 512 --batch 4      # stage 5 at stride 16

"all taps at once" gathers the four neighbours of every sampling point and multiplies one [N, H, W, k k C] array, which
autodiff stores, by the kernel; "torch" is a loop over taps with grid_sample. The program fails unless both agree with
ours. All compute the gradients of every input in float32. "planned" is the temporary memory of the compiled program.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.compare import MIB, compare
from benchmarks.torch_deformable import deform_conv2d_torch
from facejax.foundations.deformable import deform_conv2d
from facejax.ops.conv import conv


def all_at_once(x: jax.Array, offset: jax.Array, kernel: jax.Array, mask: jax.Array) -> jax.Array:
    """Stride 1, "same" size, one offset group: with all sampled values in memory."""
    (n, height, width, _), taps, half = x.shape, kernel.shape[0] * kernel.shape[1], kernel.shape[0] // 2
    shift = offset.reshape(n, height, width, taps, 2)
    place = jnp.stack(jnp.indices((height, width)), -1)[:, :, None]
    place = place + jnp.stack(jnp.indices(kernel.shape[:2]), -1).reshape(taps, 2) - half + shift
    low = jnp.floor(place)
    total = 0.0
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        rows, columns = jnp.moveaxis((low + jnp.array(corner)).astype(int), -1, 0)
        weight = jnp.prod(1 - jnp.abs(place - low - jnp.array(corner)), -1)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        picked = x[jnp.arange(n)[:, None, None, None], rows.clip(0, height - 1), columns.clip(0, width - 1)]
        total = total + picked * (weight * inside)[..., None]
    return jnp.einsum("nhwtc,tcf->nhwf", total * mask[..., None], kernel.reshape(taps, *kernel.shape[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Deformable convolution, forward and backward.")
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rng, shape = np.random.default_rng(0), (args.batch, args.size, args.size)
    x, signal = (rng.normal(size=(*shape, args.width)).astype(np.float32) for _ in range(2))
    offset = (1.5 * rng.normal(size=(*shape, 18))).astype(np.float32)
    mask = rng.uniform(size=(*shape, 9)).astype(np.float32)
    kernel = (rng.normal(size=(3, 3, args.width, args.width)) / (3 * args.width**0.5)).astype(np.float32)
    inputs = [jnp.asarray(value) for value in (x, offset, kernel, mask)]

    def gradient(layer, *arguments):
        def run(*values):
            found, back = jax.vjp(layer, *values)
            return found, back(jnp.asarray(signal))

        return jax.jit(run).lower(*arguments).compile()

    edges, pair = ((1, 1), (1, 1)), (inputs[0], inputs[2])
    programs = {
        "plain": (gradient(lambda x, k: conv(x, k, padding=edges), *pair), pair),
        "all taps at once": (gradient(all_at_once, *inputs), inputs),
        "facejax": (gradient(lambda x, o, k, m: deform_conv2d(x, o, k, m, padding=edges), *inputs), inputs),
    }
    tensors = [torch.tensor(value, requires_grad=True) for value in (x, offset, kernel, mask)]
    options = {"stride": (1, 1), "padding": edges, "dilation": (1, 1), "groups": 1}

    def torch_step():
        for tensor in tensors:
            tensor.grad = None
        found = deform_conv2d_torch(*tensors, **options)
        found.backward(torch.from_numpy(signal))
        return found

    expected = [torch_step().detach(), *(tensor.grad for tensor in tensors)]
    for name in ("all taps at once", "facejax"):
        found, gradients = programs[name][0](*inputs)
        for ours, theirs in zip((found, *gradients), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-3 * float(theirs.abs().max()), err_msg=name)

    shape = f"{args.batch} x {args.size} x {args.size} x {args.width}"
    work = f"deformable convolution v2, values and all gradients, {shape}, 3 x 3"
    print(work)
    calls = {name: lambda call=call, values=values: call(*values) for name, (call, values) in programs.items()}
    compare(work, {**calls, "torch": torch_step}, repeats=args.repeats, unit="images", amount=args.batch)
    planned = {name: call.memory_analysis().temp_size_in_bytes for name, (call, _) in programs.items()}
    for name, size in planned.items():
        print(f"{name:16}  planned {size / MIB:8.1f} MiB  {size / planned['facejax']:6.2f} of facejax's")


if __name__ == "__main__":
    main()
