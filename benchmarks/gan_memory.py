"""Memory of a StyleGAN2 step at a large size as `--dry_run` estimates it, beside what compiled steps of small sizes
need: `python -m benchmarks.gan_memory`.

Layers have as many maps at every size, so that memory grows with the pixels: the line through XLA's plans for the two
small sizes gives the large one. Nothing but the small steps is compiled, and nothing runs.
"""

from __future__ import annotations

import argparse

import jax
from jax.sharding import AxisType

from benchmarks.compare import MIB
from experiments import stylegan
from facejax.train import AXIS, Experiment, Options, parallel
from facejax.train.dry_run import dry_run


def step(side: int, images: int, maps: int) -> tuple[Experiment, Options]:
    """StyleGAN2 with `maps` maps in every layer, and its options."""
    config = stylegan.get_config("stylegan2")
    config.data.image_size, config.train.batch_size, config.train.devices = side, images, 1
    config.model.update(base=maps * side, largest=maps)
    return stylegan.run(config).experiment(), Options(**config.train)


def estimated(side: int, images: int, maps: int) -> float:
    """MiB of activations by `--dry_run`."""
    return dry_run(*step(side, images, maps))["activation bytes per device (estimate)"] / MIB


def planned(side: int, images: int, maps: int) -> float:
    """MiB of temporary memory of the compiled step with both penalties."""
    made, _ = step(side, images, maps)
    specs = (jax.P(), jax.P(AXIS), jax.P())
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,))
    run = parallel.per_device(made.steps["r1+path"])
    mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=jax.P(), check_vma=False)
    lowered = jax.jit(mapped, donate_argnums=0).lower(made.abstract_state(1), made.batch_of("r1+path"), {})
    return lowered.compile().memory_analysis().temp_size_in_bytes / MIB


def line(small: tuple[float, float], values: tuple[float, float], side: float) -> float:
    """At side^2 pixels, the line through values at small[0]^2 and small[1]^2 pixels."""
    first, second = (s**2 for s in small)
    return values[0] + (values[1] - values[0]) * (side**2 - first) / (second - first)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, help="of the large images, pixels")
    parser.add_argument("--small", type=int, nargs=2, default=(32, 64), help="sides of the small ones")
    parser.add_argument("--images", type=int, default=8, help="of a batch")
    parser.add_argument("--maps", type=int, default=32, help="of every layer")
    arguments = parser.parse_args()
    sizes = arguments.images, arguments.maps
    plans = tuple(planned(side, *sizes) for side in arguments.small)
    for side, plan in zip(arguments.small, plans, strict=True):
        print(f"{side} pixels: planned {plan:.1f} MiB, estimated {estimated(side, *sizes):.1f} MiB")
    scaled, found = line(arguments.small, plans, arguments.side), estimated(arguments.side, *sizes)
    print(f"{arguments.side} pixels: scaled from the plans {scaled:.0f} MiB, estimated {found:.0f} MiB,", end=" ")
    print(f"ratio {found / scaled:.2f}")
