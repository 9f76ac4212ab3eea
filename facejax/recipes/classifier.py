"""An image classifier trained with cross-entropy: its optimizer, and the run around a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from facejax.data import normalize
from facejax.data.classification import LabelledImages
from facejax.evaluate import classification
from facejax.metrics.classification import top_k_correct
from facejax.train import Experiment, Mean, Options, Report, TrainState, optim, supervised_step


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The `optim.schedule` section: the learning rate over updates.

    Attributes:
      kind: "exponential" (times `factor` every `every` updates), or a kind of `facejax.train.optim.schedule`.
      peak: rate after the warm-up.
      warmup: updates over which the rate rises from 0; below 1, a part of all updates.
      power: of kind "polynomial".
      boundaries: updates, or parts of all updates, after which kind "step" divides the rate by 10.
      every: updates between two drops of kind "exponential".
      factor: of each drop of kind "exponential".
    """

    kind: str = "cosine"
    peak: float = 0.1
    warmup: float = 0
    power: float = 1.0
    boundaries: tuple[float, ...] = ()
    every: int = 0
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The `optim` section.

    Attributes:
      name: "sgd", "adam" or "rmsprop".
      momentum: of SGD and RMSProp; Adam's b1.
      nesterov: whether SGD's momentum is Nesterov's.
      eps: added to the denominator of Adam and RMSProp.
      b2: decay of the squared gradients' average of Adam and RMSProp.
      weight_decay: weight of the L2 penalty on the kernels that `decayed` marks.
      clip: largest global norm of the gradient; 0 clips nothing.
      ema: decay of the moving average of the parameters, which is then evaluated; 0 keeps none.
      schedule: `Schedule`.
    """

    name: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    eps: float = 1e-8
    b2: float = 0.999
    weight_decay: float = 4e-5
    clip: float = 0.0
    ema: float = 0.0
    schedule: Schedule | Mapping[str, Any] = Schedule()

    def make(self, steps: int) -> optax.GradientTransformation:
        """The optimizer of a run of `steps` updates. The L2 penalty joins the gradient before it is clipped."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del options["ema"]
        decay = optax.add_decayed_weights(options.pop("weight_decay"), decayed)
        plan = options["schedule"]
        plan = dataclasses.asdict(plan) if isinstance(plan, Schedule) else dict(plan)
        every, factor = plan.pop("every"), plan.pop("factor")
        if plan["kind"] != "exponential":
            return optax.chain(decay, optim.from_config({**options, "schedule": plan}, steps))
        del options["schedule"]
        rate = optax.exponential_decay(plan["peak"], every, factor, staircase=True)
        return optax.chain(decay, optim.optimizer(options.pop("name"), rate, **options))


def decayed(params: Any) -> Any:
    """Mask of the kernels except depthwise ones, [kh, kw, 1, C], whose few weights hardly overfit."""
    return jax.tree.map(lambda p: p.ndim > 1 and not (p.ndim == 4 and p.shape[2] == 1), params)


def classifier(
    net: Any,
    data: LabelledImages,
    optimizer: Optimizer,
    options: Options,
    *,
    seed: int,
    eval_batch_size: int,
    label_smoothing: float = 0.0,
    auxiliary: float = 0.0,
    preprocess: Callable[[jax.Array], jax.Array] = normalize.symmetric,
) -> Experiment:
    """A network trained with cross-entropy and evaluated by top-1 and top-5 accuracy.

    Args:
      net: (images, train=) -> logits [N, C]; in training possibly a list of logits whose first is the main output.
      data, optimizer, options: sections of the configuration.
      seed: of the data's order and augmentation.
      eval_batch_size: images a call of the evaluation.
      label_smoothing: part of the target spread evenly over all classes, 0..1.
      auxiliary: weight of the loss of each further output.
      preprocess: uint8 [N, H, W, 3] -> the network's input.
    """
    size, classes, batch, ema = data.image_size, data.classes, options.batch_size, optimizer.ema
    tx = optimizer.make(options.steps)

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        state = {"batch_stats": variables["batch_stats"]} if "batch_stats" in variables else {}
        return TrainState.create(rng, variables["params"], tx, ema=bool(ema), model_state=state)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        outputs, updated = net.apply(
            {"params": params, **model_state},
            preprocess(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], classes), label_smoothing)
        main, *others = outputs if isinstance(outputs, list) else [outputs]
        losses = optax.softmax_cross_entropy(main, targets)
        total = losses + auxiliary * sum(optax.softmax_cross_entropy(o, targets) for o in others)
        metrics = {"loss": Mean.of(losses), "accuracy": Mean.of(top_k_correct(main, batch["label"]))}
        return total.mean(), (updated, metrics)

    def train_data() -> Iterator[dict[str, Any]]:
        return data.batches(data.split()[0], batch, seed)

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.ema if ema else state.params, **state.model_state}
        test = data.split()[1]
        return classification.report(net, variables, test, data, batch_size=eval_batch_size, preprocess=preprocess)

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, microbatches=options.microbatches, ema_decay=ema),
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )
