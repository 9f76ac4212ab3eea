"""The training state, mergeable metrics, gradient reduction, and the `Experiment` interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec as P

AXIS = "data"

Batch = dict[str, jax.Array]
Metrics = dict[str, "Mean"]


class RunError(Exception):
    """A run cannot continue; the message is one sentence for the user."""


@struct.dataclass
class TrainState:
    """All state that a step changes, as one pytree.

    A paper with more state (several optimizers, a memory, staged weights) puts pytrees into these fields or
    subclasses; the trainer reads only `step` and `rng`.

    Attributes:
      step: [] int32, number of updates done.
      rng: constant base key of the run; steps fold in the step number and the device.
      params: trained parameters.
      opt_state: state of one or several optimizers.
      model_state: variables without gradients, such as {"batch_stats": ...}.
      ema: moving average of the parameters, or None.
    """

    step: jax.Array
    rng: jax.Array
    params: Any
    opt_state: Any
    model_state: Any = struct.field(default_factory=dict)
    ema: Any = None

    @classmethod
    def create(
        cls, rng: jax.Array, params: Any, tx: optax.GradientTransformation, *, ema: bool = False, **fields: Any
    ) -> TrainState:
        """The state before the first step; `fields` are model_state and fields of a subclass."""
        average = jax.tree.map(jnp.copy, params) if ema else None
        return cls(jnp.zeros((), jnp.int32), rng, params, tx.init(params), ema=average, **fields)


@struct.dataclass
class Mean:
    """A mean stored as sum and count, so that merging over batches and devices is exact."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, where: jax.Array | None = None) -> Mean:
        """Mean of `values`, any shape; `where` (bool, broadcastable) marks the valid ones."""
        values = jnp.asarray(values, jnp.float32)
        where = jnp.broadcast_to(True if where is None else where, values.shape)
        return cls(jnp.sum(values, where=where), jnp.sum(where, dtype=jnp.float32))


Step = Callable[[Any, Batch, jax.Array], tuple[Any, Metrics]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that `python -m experiments.NAME` trains and evaluates for one paper.

    Most papers have one step. If the step depends on the step number (lazy regularisation, alternating optimizers,
    multi-scale batches), `train_step` holds several by name and `choose` selects one; each is compiled once. If
    parameters grow, `grow` gives the transitions. Both are pure functions of the step number, so a resumed run repeats
    them.

    Attributes:
      evaluate: state -> Report, by the paper's official protocol. The state of a method without training is None.
      init: key -> TrainState; with `prepare`, (key, start) -> TrainState, where `start` may be None (shapes only).
      train_step: (state, batch, rng) -> (state, metrics), pure and per device; collectives over `AXIS`; `rng` is the
        key of this step and device; metrics are `Mean`s over this device's samples. Or several: name -> step.
      train_data: () -> iterator over this process's batches (dicts of NumPy arrays with a leading batch axis; ragged
        targets are padded and have a mask). If it has `get_state` and `set_state`, as Grain's iterators do,
        checkpoints include its position. None: every step gets an empty batch (full-batch training on `resident`).
      batch: name -> ShapeDtypeStruct of the global batch, for `--dry_run` and to check the data. With several steps:
        step name -> such a dict.
      sharded: names of sub-trees of the state whose leading axis is split over the devices (partial FC's "head").
      prepare: () -> start, a pytree of arrays that `init` needs, such as weights to train or read first. It runs once
        on the host before a new run, never in a dry run or when a run resumes.
      choose: step number, from 1 -> name in `train_step`.
      grow: step number -> (state -> state), applied before that step; may change the tree structure.
      resident: () -> (name -> array), added to the batch of every step. Transferred to all devices once, not saved.
    """

    evaluate: Callable[[Any], Any]
    init: Callable[..., Any] | None = None
    train_step: Step | Mapping[str, Step] | None = None
    train_data: Callable[[], Iterator[Batch]] | None = None
    batch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sharded: tuple[str, ...] = ()
    prepare: Callable[[], Any] | None = None
    choose: Callable[[int], str] | None = None
    grow: Mapping[int, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    resident: Callable[[], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.train_step, Mapping) != (self.choose is not None):
            raise ValueError("Experiment: several named steps and `choose` require each other")
        if isinstance(self.train_step, Mapping) and set(self.train_step) != set(self.batch):
            raise ValueError(f"Experiment: steps {sorted(self.train_step)} have batches {sorted(self.batch)}")

    @property
    def steps(self) -> dict[str, Step]:
        """All steps by name; a single step has the name "step"."""
        return dict(self.train_step) if self.choose else {"step": self.train_step}

    def step_name(self, number: int) -> str:
        """The name of the step for update `number`, from 1."""
        name = self.choose(number) if self.choose else "step"
        if name not in self.steps:
            raise ValueError(f"step {number} is named {name!r}: expected one of {', '.join(self.steps)}")
        return name

    def batch_of(self, name: str) -> dict[str, jax.ShapeDtypeStruct]:
        """The global batch of the step `name`."""
        return self.batch[name] if self.choose else self.batch

    def abstract_state(self, step: int) -> Any:
        """Shapes of the state after `step` updates, including growth."""

        def state(rng: jax.Array) -> Any:
            made = self.init(rng, None) if self.prepare else self.init(rng)
            for number in sorted(self.grow):
                made = self.grow[number](made) if number <= step else made
            return made

        return jax.eval_shape(state, jax.random.key(0))

    def partition(self, tree: Any) -> Any:
        """PartitionSpecs for `tree`: P("data") below any key in `sharded`, P() elsewhere."""
        return partition(tree, self.sharded)


def partition(tree: Any, sharded: tuple[str, ...]) -> Any:
    """P("data") for every array below a key (or attribute) in `sharded`, P() for the others.

    Optimizer states contain the names of the parameters, so the same rule applies to them.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        names = {str(getattr(entry, "key", getattr(entry, "name", None))) for entry in path}
        return P(AXIS) if names & set(sharded) and getattr(leaf, "ndim", 0) > 0 else P()

    return jax.tree_util.tree_map_with_path(spec, tree)


def reduce_gradients(grads: Any, sharded: tuple[str, ...] = ()) -> Any:
    """Gradients of the mean loss over all devices, from each device's gradient of its local loss.

    Differentiating a per-device loss inside shard_map or pmap gives the gradient of the *sum* over devices. This
    function therefore averages replicated leaves over the axis and divides sharded leaves by the axis size.
    """
    specs = partition(grads, sharded)
    return jax.tree.map(lambda g, spec: lax.pmean(g, AXIS) if spec == P() else g / lax.axis_size(AXIS), grads, specs)


def share(count: int) -> tuple[jax.Array, jax.Array]:
    """Part of `count` replicated items that this device computes in a step.

    Returns:
      places: [n] int32, n = ceil(count / devices), 0..count - 1.
      real: [n] bool, False for padding of the last device's part.
    """
    size = -(-count // lax.axis_size(AXIS))
    places = lax.axis_index(AXIS) * size + jnp.arange(size)
    return jnp.minimum(places, count - 1), places < count


def value_and_grad(
    loss_fn: Callable[..., tuple[jax.Array, tuple[Any, Metrics]]], microbatches: int = 1
) -> Callable[..., tuple[Any, Any, Metrics]]:
    """Gradient of a mean loss, accumulated over equal slices of the batch to save memory.

    Args:
      loss_fn: (params, model_state, batch, rng) -> (loss [], (model_state, metrics)).
      microbatches: slices per device batch; must divide it. Batch statistics are updated slice by slice.

    Returns:
      (params, model_state, batch, rng) -> (grads, model_state, metrics).
    """
    if microbatches < 1:
        raise ValueError(f"train.microbatches is {microbatches}: expected 1 or more")
    gradient = jax.grad(loss_fn, has_aux=True)

    def whole(params: Any, model_state: Any, batch: Batch, rng: jax.Array) -> tuple[Any, Any, Metrics]:
        grads, (model_state, metrics) = gradient(params, model_state, batch, rng)
        return grads, model_state, metrics

    def sliced(params: Any, model_state: Any, batch: Batch, rng: jax.Array) -> tuple[Any, Any, Metrics]:
        size = jax.tree.leaves(batch)[0].shape[0]
        if size % microbatches:
            raise ValueError(f"a device's batch of {size} does not split into {microbatches} microbatches")
        slices = jax.tree.map(lambda x: x.reshape(microbatches, size // microbatches, *x.shape[1:]), batch)

        def body(carry: tuple[Any, Any], item: tuple[Batch, jax.Array]) -> tuple[tuple[Any, Any], Metrics]:
            total, model_state = carry
            part, index = item
            grads, model_state, metrics = whole(params, model_state, part, jax.random.fold_in(rng, index))
            return (jax.tree.map(jnp.add, total, grads), model_state), metrics

        zeros = jax.tree.map(jnp.zeros_like, params)
        (total, model_state), metrics = lax.scan(body, (zeros, model_state), (slices, jnp.arange(microbatches)))
        metrics = jax.tree.map(lambda x: x.sum(0), metrics)
        return jax.tree.map(lambda g: g / microbatches, total), model_state, metrics

    return whole if microbatches == 1 else sliced


def ema_update(average: Any, params: Any, decay: float) -> Any:
    """Updates the average: decay * average + (1 - decay) * params, leaf by leaf.

    Computed as average + (1 - decay) * (params - average), which has a smaller rounding error.
    """
    return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)


def supervised_step(
    loss_fn: Callable[..., tuple[jax.Array, tuple[Any, Metrics]]],
    tx: optax.GradientTransformation,
    *,
    sharded: tuple[str, ...] = (),
    microbatches: int = 1,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """A standard supervised step: gradient, mean over devices, update.

    Args:
      loss_fn: (params, model_state, batch, rng) -> (mean loss [] of this device's batch, (model_state, metrics)).
      tx: the optimizer.
      sharded: names of parameter sub-trees split over the devices.
      microbatches: slices for gradient accumulation.
      ema_decay: above 0, updates `state.ema`.
    """
    gradients = value_and_grad(loss_fn, microbatches)

    def step(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[TrainState, Metrics]:
        grads, model_state, metrics = gradients(state.params, state.model_state, batch, rng)
        grads = reduce_gradients(grads, sharded)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = ema_update(state.ema, params, ema_decay) if ema_decay else state.ema
        return (
            state.replace(
                step=state.step + 1,
                params=params,
                opt_state=opt_state,
                model_state=lax.pmean(model_state, AXIS),
                ema=ema,
            ),
            metrics,
        )

    return step
