"""Optimizers and schedules as compact Optax definitions, in the forms that the papers' own code trains with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine", "linear", "polynomial", "step", "inverse_sqrt")
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")


def schedule(
    kind: str,
    peak: float,
    steps: int,
    *,
    warmup: int = 0,
    end: float = 0.0,
    power: float = 1.0,
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """Learning rate over updates.

    Args:
      kind: "constant"; "cosine", "linear" or "polynomial" (of `power`) from `peak` down to `end` at `steps`; "step":
        times `factor` at each of `boundaries`; "inverse_sqrt": peak * sqrt(warmup / step) after the warm-up
        (Transformer, Sec. 5.3, with peak = d_model^-0.5 * warmup^-0.5).
      peak: the rate after the warm-up.
      steps: updates in all, the warm-up included.
      warmup: updates over which the rate rises linearly from 0.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"optim.schedule is {kind!r}: expected one of {', '.join(SCHEDULES)}")
    decay = max(steps - warmup, 1)
    main = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay, alpha=end / peak if peak else 0.0),
        "linear": lambda: optax.linear_schedule(peak, end, decay),
        "polynomial": lambda: optax.polynomial_schedule(peak, end, power, decay),
        "step": lambda: optax.piecewise_constant_schedule(peak, {b - warmup: factor for b in boundaries}),
        "inverse_sqrt": lambda: lambda count: peak * jnp.sqrt(max(warmup, 1) / (count + max(warmup, 1))),
    }[kind]()
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay: str = "all",
    clip: float = 0.0,
    clip_only: str = "",
) -> optax.GradientTransformation:
    """Clip, then decay, then scale, then step.

    Args:
      name: "sgd" (PyTorch's: the decay joins the gradient before the momentum), "adam" (likewise), "adamw" (the decay
        is decoupled), "rmsprop".
      learning_rate: a number or a schedule.
      momentum: of SGD and RMSProp; Adam's b1.
      weight_decay: coefficient; 0 is none.
      decay: what decays: "all" parameters, or "kernels", those with two or more axes.
      clip: largest global gradient norm; 0 is none.
      clip_only: names the sub-tree that the norm is taken over and that is clipped, as in {"backbone", "head"}; empty
        takes the whole tree (which must then not be sharded).
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optim.name is {name!r}: expected one of {', '.join(OPTIMIZERS)}")
    if decay not in ("all", "kernels"):
        raise ValueError(f"optim.decay is {decay!r}: expected 'all' or 'kernels'")
    decayed = optax.add_decayed_weights(weight_decay, mask=None if decay == "all" else kernels)
    scale = {
        "sgd": lambda: optax.trace(momentum, nesterov) if momentum else optax.identity(),
        "adam": lambda: optax.scale_by_adam(momentum, b2, eps),
        "adamw": lambda: optax.scale_by_adam(momentum, b2, eps),
        "rmsprop": lambda: optax.chain(optax.scale_by_rms(b2, eps), optax.trace(momentum)),
    }[name]()
    clipped = optax.clip_by_global_norm(clip)
    if clip_only:
        clipped = optax.masked(clipped, lambda params: {k: k == clip_only for k in params})
    return optax.chain(
        *([clipped] if clip else []),
        *([decayed] if weight_decay and name != "adamw" else []),
        scale,
        *([decayed] if weight_decay and name == "adamw" else []),
        optax.scale_by_learning_rate(learning_rate),
    )


def from_config(optim: Mapping[str, Any], steps: int) -> optax.GradientTransformation:
    """The optimizer of a config section: `schedule` is a section of `schedule`'s arguments, the rest `optimizer`'s.

    Boundaries and warm-up below 1 are fractions of `steps`, so that a shorter run keeps the shape of its schedule.
    """
    options = dict(optim)
    plan = dict(options.pop("schedule"))
    plan["warmup"] = _steps(plan.get("warmup", 0), steps)
    plan["boundaries"] = [_steps(b, steps) for b in plan.get("boundaries", ())]
    rate = schedule(plan.pop("kind"), plan.pop("peak"), steps, **plan)
    return optimizer(options.pop("name"), rate, **options)


def kernels(params: Any) -> Any:
    """Mask of the parameters with two axes or more: kernels and embeddings, not biases, norms or slopes."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _steps(value: float, steps: int) -> int:
    return round(value * steps) if 0 < value < 1 else int(value)
