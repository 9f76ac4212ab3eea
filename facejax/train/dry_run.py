"""Cost of a preset: exact parameters and optimizer state; operations and activations estimated by tracing."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import jax
import numpy as np

from facejax.train import parallel
from facejax.train.loop import Options, batch_examples
from facejax.train.state import Experiment


def dry_run(experiment: Experiment, options: Options) -> dict[str, Any]:
    """Traces the preset's step for its number of devices (which need not exist) and counts its cost.

    Returns:
      "parameters": number of trained parameters; "parameters by part": name -> number; "devices"; "batch per device";
      "state bytes per device": parameters, optimizer and other state, exact; "step flops per device": operations of
      convolutions and matrix products, forward and backward, 2 per multiply-add; "activation bytes per device
      (estimate)": peak size of the live arrays besides the state, without what the compiler fuses. With several
      steps, the maximum over steps; of a run that grows, the last step's.
    """
    devices = options.devices or jax.device_count()
    state, traced = parallel.trace(experiment, devices, options.steps)
    specs = experiment.partition(state)
    held = jax.tree.map(lambda x, spec: _bytes(x) / (1 if spec == jax.P() else devices), state, specs)
    parts = state.params if isinstance(state.params, dict) else {"all": state.params}
    bodies = [_per_device_jaxpr(closed.jaxpr) for closed in traced.values()]
    return {
        "parameters": count(state.params),
        "parameters by part": {name: count(part) for name, part in parts.items()},
        "devices": devices,
        "batch per device": max(batch_examples(experiment.batch_of(x), options.batch_size) for x in traced) // devices,
        "state bytes per device": round(sum(jax.tree.leaves(held))),
        "step flops per device": max(map(flops, bodies)),
        "activation bytes per device (estimate)": max(map(peak_bytes, bodies)),
    }


def describe(costs: dict[str, Any]) -> str:
    """Formats the counts for a terminal."""
    parts = ", ".join(f"{name} {number:,}" for name, number in costs["parameters by part"].items())
    return "\n".join(
        [
            f"parameters            {costs['parameters']:,} ({parts})",
            f"devices               {costs['devices']}, {costs['batch per device']} samples each",
            f"state per device      {costs['state bytes per device'] / 2**30:.3f} GiB (exact)",
            f"step per device       {costs['step flops per device'] / 1e9:,.1f} GFLOP (counted)",
            f"activations           {costs['activation bytes per device (estimate)'] / 2**30:.2f} GiB per device "
            "(estimated: without the compiler's fusion)",
        ]
    )


def count(tree: Any) -> int:
    """Total number of elements in the arrays of `tree`."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def multiply_adds(net: Any, variables: Any, size: int) -> float:
    """Multiply-adds of convolutions and matrix products for one image in evaluation, in millions.

    Args:
      net: Linen module, (images, train=) -> outputs.
      variables: of the module, as arrays or shapes.
      size: side of the square image, pixels.
    """
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return flops(jax.make_jaxpr(lambda v, x: net.apply(v, x, train=False))(variables, image).jaxpr) / 2e6


def flops(jaxpr: Any) -> int:
    """Operations in the convolutions and matrix products of a jaxpr, times the number of loop iterations.

    Of a choice by platform (`jax.lax.platform_dependent`) it counts the default branch, not the form for CPUs.
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracting, _), _ = eqn.params["dimension_numbers"]
            lhs = eqn.invars[0].aval.shape
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracting)
        elif eqn.primitive.name == "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            kernel = eqn.invars[1].aval.shape
            per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            stuffing = math.prod(eqn.params["lhs_dilation"])  # one of this many inputs is not an inserted zero
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * per_output // stuffing
        else:
            inner = [flops(sub) for sub in _subjaxprs(eqn)]
            branches = eqn.primitive.name == "cond"
            total += eqn.params.get("length", 1) * (max(inner, default=0) if branches else sum(inner))
    return total


def peak_bytes(jaxpr: Any) -> int:
    """Peak bytes of live intermediate arrays; inputs are not counted."""
    last_use = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not hasattr(v, "val")}
    last_use |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not hasattr(v, "val")}
    dying: dict[int, list[Any]] = defaultdict(list)
    for variable, index in last_use.items():
        dying[index].append(variable)
    alive: dict[Any, int] = {}
    now = peak = 0
    for i, eqn in enumerate(jaxpr.eqns):
        inner = max((peak_bytes(sub) for sub in _subjaxprs(eqn)), default=0)
        made = {v: _bytes(v.aval) for v in eqn.outvars if v in last_use}
        peak = max(peak, now + max(inner, sum(made.values())))
        alive |= made
        now += sum(made.values())
        for variable in dying[i]:
            now -= alive.pop(variable, 0)
    return peak


def _subjaxprs(eqn: Any) -> list[Any]:
    """The jaxprs that an equation calls: the default branch of a choice by platform, no custom derivative rules."""
    if platforms := eqn.params.get("branches_platforms"):
        return [eqn.params["branches"][platforms.index(None)].jaxpr]
    if eqn.primitive.name == "custom_linear_solve":
        return [eqn.params["jaxprs"].solve.jaxpr]
    if eqn.primitive.name.startswith("custom_"):
        called = eqn.params.get("call_jaxpr") or eqn.params.get("fun_jaxpr")
        return [getattr(called, "jaxpr", called)]
    values = [v for value in eqn.params.values() for v in (value if isinstance(value, tuple | list) else [value])]
    return [getattr(v, "jaxpr", v) for v in values if hasattr(v, "eqns") or hasattr(getattr(v, "jaxpr", None), "eqns")]


def _per_device_jaxpr(jaxpr: Any) -> Any:
    (eqn,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "shard_map"]
    return eqn.params["jaxpr"]


def _bytes(aval: Any) -> int:
    dtype = aval.dtype
    size = 16 if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else np.dtype(dtype).itemsize
    return math.prod(aval.shape) * size
