"""Optimizers and learning-rate schedules in Optax, with the semantics of the papers' code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine", "linear", "polynomial", "step", "inverse_sqrt", "exponential")
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
    """Learning rate as a function of the update.

    Args:
      kind: "constant"; "cosine", "linear" or "polynomial" (of `power`) from `peak` down to `end` at `steps`; "step":
        multiplied by `factor` at each of `boundaries`, see `falling`; "inverse_sqrt": peak * sqrt(warmup / step) after
        the warm-up (Transformer, Sec. 5.3, with peak = d_model^-0.5 * warmup^-0.5); "exponential": from `peak` down to
        `end`, above 0, by the same factor at every step.
      peak: learning rate after the warm-up.
      steps: total number of updates, including the warm-up.
      warmup: number of updates in which the rate rises linearly from 0.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"optim.schedule is {kind!r}: expected one of {', '.join(SCHEDULES)}")
    decay = max(steps - warmup, 1)
    main = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay, alpha=end / peak if peak else 0.0),
        "linear": lambda: optax.linear_schedule(peak, end, decay),
        "polynomial": lambda: optax.polynomial_schedule(peak, end, power, decay),
        "step": lambda: falling(peak, [b - warmup for b in boundaries], factor),
        "exponential": lambda: optax.exponential_decay(peak, decay, _ratio(end, peak)),
        "inverse_sqrt": lambda: lambda count: peak * jnp.sqrt(max(warmup, 1) / (count + max(warmup, 1))),
    }[kind]()
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def _ratio(end: float, peak: float) -> float:
    if not 0 < end < peak:
        raise ValueError(f"optim.schedule.end is {end}: an exponential schedule needs one above 0 and below its peak")
    return end / peak


def falling(peak: float, boundaries: Sequence[int], factor: float) -> optax.Schedule:
    """`peak` times `factor` for every boundary reached; of equal boundaries, as short runs have, each counts."""

    def rate(count: jax.Array) -> jax.Array:
        value = jnp.asarray(peak)
        for boundary in boundaries:
            value = jnp.where(count < boundary, value, factor * value)
        return value

    return rate


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
    bias_rate: float = 1.0,
) -> optax.GradientTransformation:
    """An optimizer with gradient clipping and weight decay, applied in this order.

    Args:
      name: "sgd" (as in PyTorch: the decay is added to the gradient before the momentum), "adam" (the same), "adamw"
        (decoupled decay), "rmsprop".
      learning_rate: a number or a schedule.
      momentum: of SGD and RMSProp; beta1 of Adam.
      weight_decay: coefficient; 0 for none.
      decay: parameters with weight decay: "all", or "kernels", those with two or more axes.
      clip: maximum global gradient norm; 0 for no clipping.
      clip_only: name of the only sub-tree to clip, such as "backbone" in {"backbone", "head"}, by its own norm; empty
        clips the whole tree (which must then not be sharded).
      bias_rate: learning rate of biases outside norms, relative to that of all others (2 in Caffe's networks).
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
        *([optax.masked(optax.scale(bias_rate), biases)] if bias_rate != 1 else []),
    )


def from_config(optim: Mapping[str, Any], steps: int) -> optax.GradientTransformation:
    """The optimizer of a configuration section: `schedule` holds arguments of `schedule`, the rest of `optimizer`.

    Boundaries and warm-up below 1 are fractions of `steps`, so a shorter run keeps the shape of its schedule.
    """
    options = dict(optim)
    plan = dict(options.pop("schedule"))
    plan["warmup"] = _steps(plan.get("warmup", 0), steps)
    plan["boundaries"] = [_steps(b, steps) for b in plan.get("boundaries", ())]
    rate = schedule(plan.pop("kind"), plan.pop("peak"), steps, **plan)
    return optimizer(options.pop("name"), rate, **options)


def kernels(params: Any) -> Any:
    """Mask of the parameters with two or more axes: kernels and embeddings, not biases, norm scales or slopes."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def biases(params: Any) -> Any:
    """Mask of the biases of all layers but norms."""

    def is_bias(path: Any, _: Any) -> bool:
        return path[-1].key == "bias" and "norm" not in [key.key for key in path[:-1]]

    return jax.tree_util.tree_map_with_path(is_bias, params)


def _steps(value: float, steps: int) -> int:
    return round(value * steps) if 0 < value < 1 else int(value)
