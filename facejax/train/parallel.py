"""Executors of a per-device step: shard_map on a mesh of one or more devices, or pmap.

Only this module uses Mesh, shard_map and pmap. tests/train/test_parallel.py tests these rules: the step differentiates
its local loss and then calls `reduce_gradients`; shard_map runs with check_vma=False (otherwise gradients of replicated
leaves would be multiplied by the axis size); the state's key is constant, and every step folds in the step number and
the device's index on the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from facejax.train.state import AXIS, Batch, Experiment, Metrics, Step


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects this process to the other processes of a multi-host run.

    Args:
      coordinator: "host:port" of process 0, or "auto" where the cluster provides it (TPU pod slices, Slurm, Open MPI).
      num_processes, process_id: number of processes and index of this one; None with "auto".
    """
    if coordinator == "auto":
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(coordinator, num_processes=num_processes, process_id=process_id)


def per_device(step: Step) -> Callable[[Any, Batch, Batch], tuple[Any, Metrics]]:
    """Wraps a step for the executors: derives the key of step and device, and sums the metrics over the devices."""

    def run(state: Any, batch: Batch, resident: Batch) -> tuple[Any, Metrics]:
        rng = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), lax.axis_index(AXIS))
        state, metrics = step(state, {**batch, **resident}, rng)
        return state, lax.psum(metrics, AXIS)

    return run


class ShardMapExecutor:
    """Runs the step under jit(shard_map) on a mesh of all given devices, of this and of other processes.

    `place` transfers a host state to the devices, `put` transfers this process's part of a batch, `step` runs one
    update and donates the state, `grow` applies a transition of the experiment, `canonical` returns the layout of
    checkpoints, `local` a layout for computations on this process alone.
    """

    def __init__(self, experiment: Experiment, devices: Iterable[jax.Device]):
        self.mesh = Mesh(np.asarray(list(devices)), (AXIS,), axis_types=(AxisType.Auto,))
        self._experiment = experiment
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._resident: Batch | None = None

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    def init(self, seed: int, start: Any = None) -> Any:
        """The initial state on the devices, from the seed and the result of `Experiment.prepare`."""
        given = (jax.random.key(seed), start) if self._experiment.prepare else (jax.random.key(seed),)
        return self._made(self._experiment.init, *given)

    def grow(self, state: Any, number: int) -> Any:
        """The state before step `number`, after the experiment's transition (if any)."""
        if number not in self._experiment.grow:
            return state
        self._compiled.clear()
        return self.place(self._made(self._experiment.grow[number], self.canonical(state)))

    def _made(self, make: Callable[..., Any], *arguments: Any) -> Any:
        shardings = self._shardings(jax.eval_shape(make, *arguments))
        return jax.jit(make, out_shardings=shardings, compiler_options=_quick_compile())(*arguments)

    def abstract(self, state: Any) -> Any:
        """Shapes, types and shardings of `state`, the target for restoring a checkpoint."""
        shardings = self._shardings(state)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)

    def place(self, canonical: Any) -> Any:
        return canonical

    def canonical(self, state: Any) -> Any:
        return state

    def put(self, batch: Batch) -> Batch:
        sharding = NamedSharding(self.mesh, P(AXIS))
        return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}

    def step(self, state: Any, batch: Batch, name: str = "step") -> tuple[Any, Metrics]:
        """One update by the step `name`, compiled on first use."""
        if self._resident is None:
            arrays = self._experiment.resident() if self._experiment.resident else {}
            self._resident = jax.device_put(arrays, NamedSharding(self.mesh, P()))
        if name not in self._compiled:
            self._compiled[name] = self._compile(self._experiment.steps[name], self._experiment.partition(state))
        return self._compiled[name](state, batch, self._resident)

    def _compile(self, step: Step, specs: Any) -> Callable[..., Any]:
        return jax.jit(_mapped(step, self.mesh, specs), donate_argnums=0)

    def local(self, state: Any) -> Any:
        specs = self._experiment.partition(state)
        return jax.tree.map(lambda x, spec: x.addressable_data(0) if spec == P() else x, state, specs)

    def _shardings(self, tree: Any) -> Any:
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self._experiment.partition(tree))


class PmapExecutor(ShardMapExecutor):
    """Runs the step under pmap. Replicated leaves keep their shape; sharded ones are [devices, C / devices, ...]."""

    def __init__(self, experiment: Experiment, devices: Iterable[jax.Device]):
        super().__init__(experiment, devices)
        if experiment.sharded and jax.process_count() > 1:
            raise ValueError(
                "pmap supports a class-sharded state in one process only: use --config.train.parallel=shard_map"
            )

    def init(self, seed: int, start: Any = None) -> Any:
        return self.place(super().init(seed, start))

    def abstract(self, state: Any) -> Any:
        return super().abstract(self._stacked(state, lambda x: jax.ShapeDtypeStruct((-1, *x.shape[2:]), x.dtype)))

    def place(self, canonical: Any) -> Any:
        n = self.num_devices
        return self._stacked(canonical, lambda x: np.asarray(x).reshape(n, -1, *x.shape[1:]))

    def canonical(self, state: Any) -> Any:
        return self._stacked(state, lambda x: np.asarray(x).reshape(-1, *x.shape[2:]))

    def put(self, batch: Batch) -> Batch:
        n = jax.local_device_count() if jax.process_count() > 1 else self.num_devices
        return {k: np.asarray(v).reshape(n, -1, *v.shape[1:]) for k, v in batch.items()}

    def _compile(self, step: Step, specs: Any) -> Callable[..., Any]:
        axes = jax.tree.map(lambda spec: None if spec == P() else 0, specs)
        return jax.pmap(
            per_device(step),
            axis_name=AXIS,
            in_axes=(axes, 0, None),
            out_axes=(axes, None),
            donate_argnums=0,
            devices=list(self.mesh.devices) if jax.process_count() == 1 else None,
        )

    def _stacked(self, state: Any, change: Callable[[Any], Any]) -> Any:
        specs = self._experiment.partition(state)
        return jax.tree.map(lambda x, spec: x if spec == P() else change(x), state, specs)


EXECUTORS = {"shard_map": ShardMapExecutor, "pmap": PmapExecutor}


def make_executor(experiment: Experiment, kind: str, num_devices: int = 0) -> ShardMapExecutor:
    """Makes the executor of a run.

    Args:
      experiment: whose steps run.
      kind: "shard_map" (also the way to run on one device: a mesh of one) or "pmap".
      num_devices: number of visible devices to use; 0 uses all, as a run of several hosts must.
    """
    if kind not in EXECUTORS:
        raise ValueError(f"train.parallel is {kind!r}: expected one of {', '.join(EXECUTORS)}")
    devices = jax.devices()
    if num_devices > len(devices):
        raise ValueError(f"train.devices asks for {num_devices} devices, but {len(devices)} are visible")
    if jax.process_count() > 1 and num_devices not in (0, len(devices)):
        raise ValueError(f"train.devices is {num_devices} of {len(devices)}: several hosts use all, expected 0")
    return EXECUTORS[kind](experiment, devices[: num_devices or None])


def _mapped(step: Step, mesh: Mesh | AbstractMesh, specs: Any) -> Callable[..., Any]:
    return jax.shard_map(
        per_device(step), mesh=mesh, in_specs=(specs, P(AXIS), P()), out_specs=(specs, P()), check_vma=False
    )


def trace(experiment: Experiment, num_devices: int, num_steps: int) -> tuple[Any, dict[str, Any]]:
    """The abstract state after `num_steps` updates and the jaxpr of every step on `num_devices` abstract devices.

    Only traces. Where parameters grow, the result is that of the last stage.
    """
    state = experiment.abstract_state(num_steps)
    mesh = AbstractMesh((num_devices,), (AXIS,), axis_types=(AxisType.Auto,))
    specs = experiment.partition(state)
    resident = jax.eval_shape(experiment.resident) if experiment.resident else {}
    names = {experiment.step_name(num_steps)} if experiment.grow else set(experiment.steps)
    jaxprs = {
        name: jax.make_jaxpr(_mapped(experiment.steps[name], mesh, specs))(state, experiment.batch_of(name), resident)
        for name in sorted(names)
    }
    return state, jaxprs


def shard(tree: Any) -> Any:
    """Splits the leading axis of arrays [devices, ...] over all devices; leaves numbers unchanged."""
    return jax.tree.map(lambda x: jax.device_put(x, _everywhere(P(AXIS))) if np.ndim(x) else x, tree)


def replicate(tree: Any) -> Any:
    """Copies arrays to all devices, for computations together with results of `shard`."""
    return jax.device_put(tree, _everywhere(P()))


def _everywhere(spec: P) -> NamedSharding:
    return NamedSharding(jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,)), spec)


def map_batches(
    fn: Callable[[Any, Any], Any],
    variables: Any,
    inputs: Any,
    batch_size: int,
    load: Callable[[Any], Any] | None = None,
) -> Any:
    """Applies `fn` to many samples in equal batches over this process's devices, for evaluation.

    Args:
      fn: (variables, batch) -> pytree of arrays with a leading batch axis; `map_batches` jits it.
      variables: first argument of `fn`, replicated.
      inputs: a pytree of arrays [N, ...], or with `load` any sequence of N items.
      batch_size: samples per call, rounded up to a multiple of the device count; the last batch is padded.
      load: makes a batch (pytree of arrays [n, ...]) from a slice of n `inputs`.

    Returns:
      A pytree of NumPy arrays [N, ...].

    Raises:
      ValueError: no samples, or `load` made fewer or more of them than its slice has.
    """
    return mapper(fn, variables, batch_size)(inputs, load)


def mapper(fn: Callable[[Any, Any], Any], variables: Any, batch_size: int) -> Callable[..., Any]:
    """The function (inputs, load) of `map_batches`, for several sets of inputs: it compiles once."""
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,), axis_types=(AxisType.Auto,))
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    size = -(-batch_size // mesh.size) * mesh.size
    variables = jax.device_put(variables, replicated)
    run = jax.jit(fn, in_shardings=(replicated, split), out_shardings=split)

    def apply(inputs: Any, load: Callable[[Any], Any] | None = None) -> Any:
        count = len(inputs) if load else jax.tree.leaves(inputs)[0].shape[0]
        if count == 0:
            raise ValueError("map_batches: got no samples, expected at least one")

        def part(start: int) -> Any:
            stop = min(start + size, count)
            batch = load(inputs[start:stop]) if load else jax.tree.map(lambda x: x[start:stop], inputs)
            if lengths := {len(x) for x in jax.tree.leaves(batch)} - {stop - start}:
                raise ValueError(f"map_batches: loaded {lengths.pop()} samples of the {stop - start} at {start}")
            return jax.tree.map(lambda x: _pad(np.asarray(x), size), batch)

        outputs = [run(variables, part(start)) for start in range(0, count, size)]
        return jax.tree.map(lambda *parts: np.concatenate([np.asarray(p) for p in parts])[:count], *outputs)

    return apply


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    return x if len(x) == size else np.concatenate([x, np.repeat(x[-1:], size - len(x), 0)])


def _quick_compile() -> dict[str, Any]:
    """Compiler options for initialisation: it runs once, so on a CPU the program is not optimised, which saves time."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """[] bool: no floating-point leaf holds a NaN or an infinity."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in leaves])) if leaves else jnp.array(True)
