"""DyStyle: experts of single attributes, with attention among them, edit a StyleGAN2 code for several at once.

    python -m experiments.dystyle                                  # rendered faces of known factors, two cores
    python -m experiments.dystyle --config=directions              # single linear directions added
    python -m experiments.dystyle --config=projected               # directions that are conditional on the others
    python -m experiments.dystyle --config=concatenation           # one MLP of as many parameters
    python -m experiments.dystyle --config=all_at_once             # several attributes from the first step on
    python -m experiments.dystyle --config=contrastive             # with the contrastive losses
    python -m experiments.dystyle --sample runs/dystyle/synthetic --seeds 0-7 --edits yaw=0.5,glasses=1 --out sheet.png
    python -m experiments.dystyle --config=gpu --config.generator.workdir=DIR      # StyleGAN2 of 64 pixels, one GPU
    python -m experiments.dystyle --config=ffhq --config.generator.workdir=DIR \
        --config.recogniser=ms1mv3_r50.pth                         # 1024 pixels, 18 layers of 512, 8 GPUs

DIR is the folder of a finished run of experiments.stylegan, of `--config=gpu --config.model.version=2` or
`--config=ffhq_1024_v2`. Predictors of attributes are trained on rendered faces in every preset; those of the paper are
not published, and neither are its optimizer, its numbers of steps or its results as numbers that we know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from facejax.data import normalize
from facejax.data.factor_faces import ATTRIBUTES, FactorFaces
from facejax.evaluate import editing, generation
from facejax.generation import dystyle
from facejax.metrics import generative
from facejax.metrics.generative import Moments
from facejax.recipes import sampling
from facejax.recipes.editing import Generator, Predictors, World, wish
from facejax.train import (
    AXIS,
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    image_grid,
    map_batches,
    optim,
    supervised_step,
    warm_start,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(FactorFaces()),
    "generator": asdict(Generator()),
    "predictor": asdict(Predictors()),
    "recogniser": "",  # weights of arcface_torch's iresnet50 for the identity; empty: the shape that predictors see
    "model": {
        "name": "dystyle",  # or a baseline: "concatenation", "directions", "projected"
        "hidden": (64, 64),  # widths of an expert's hidden layers
        "scaled": False,  # divide the products of attention by the square root of their length
        "dtype": "float32",  # of the computation
    },
    "loss": {
        "attribute": 1.0,  # weight of the attributes' loss
        "identity": 0.5,  # of the loss of the identity's embedding
        "norm": 0.01,  # of the squared change of the codes
        "contrastive": 0.0,  # of images and of codes
        "temperature": 0.1,  # of the contrastive losses
    },
    "easy": 0.3,  # part of the steps in which one attribute is edited at a time
    "optim": {"name": "adam", "weight_decay": 0.0, "schedule": {"kind": "cosine", "peak": 3e-3}},
    "train": asdict(Options(batch_size=64, steps=2500, log_every=100)),
    "eval": {"images": 512, "batch_size": 128},  # edited images
}
FFHQ = {
    "data": {"attributes": ATTRIBUTES, "image_size": 64, "train": 20_000, "layers": 18},
    "generator.kind": "stylegan2",
    "predictor.steps": 5000,
    "model": {"hidden": (512, 512), "dtype": "bfloat16"},
    "optim.schedule": {"kind": "constant", "peak": 1e-4},
    "train": {"batch_size": 8, "steps": 200_000, "devices": 8},
    "eval": {"images": 2000, "batch_size": 32},
}
PRESETS = {
    "synthetic": {},
    "directions": {"model.name": "directions"},
    "projected": {"model.name": "projected"},
    "concatenation": {"model.name": "concatenation"},
    "all_at_once": {"easy": 0.0},
    "contrastive": {"loss.contrastive": 0.1},
    "gpu": FFHQ | {
        "generator": {"kind": "stylegan2", "resolution": 64, "base": 8192},
        "data": {"attributes": ATTRIBUTES, "image_size": 64, "train": 20_000, "layers": 10},
        "train": {"batch_size": 32, "steps": 20_000, "devices": 1},
    },
    "ffhq": FFHQ,
}  # fmt: skip
CLAIM = Claim(
    "dystyle.drift",
    "a network of experts lets attributes that are not edited drift less than single linear directions added up",
    metric="drift",
    better="lower",
    method="synthetic",
    baseline=("directions",),
)
Edit = Callable[..., jax.Array]
"""(variables, codes [N, L, D], values [N, A], active [N, A]) -> codes."""
NETS = {"dystyle": dystyle.DyStyle, "concatenation": dystyle.Concatenation}
LINEAR = ("directions", "projected")
COLUMNS, SHOWN, EDITS_SEED = 9, 8, 7
"""Images of a row of the two sheets; seed of the edits in an evaluation."""


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    world, name, weights = make_world(config), config.model.name, config.loss
    if name not in (*NETS, *LINEAR):
        raise ValueError(f"model.name is {name!r}: expected one of {', '.join((*NETS, *LINEAR))}")
    if name in LINEAR:
        return Experiment(evaluate=lambda state: report(config, world, *linear(config, world)))
    net = make_editor(config, world)
    tx = optim.from_config(config.optim, config.train.steps)
    easy_steps = round(config.easy * config.train.steps)

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        none = jnp.zeros((1, world.attributes))
        params = net.init(rng, jnp.zeros((1, net.layers, net.size)), none, none > 0)["params"]
        frozen = warm_start.taken(start, world.shapes())
        return TrainState.create(rng, {"editor": params}, tx, model_state=frozen)

    def loss_fn(params: Any, frozen: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        count, keys = len(batch["done"]), jax.random.split(rng)
        codes = world.codes(frozen, jax.random.normal(keys[0], (count, world.size)))
        most = dystyle.easy_to_hard(batch["done"][0], easy_steps, world.attributes)
        values, active = dystyle.configurations(keys[1], count, world.binary, most)
        if weights.contrastive:  # the second half has the edits of the first
            values, active = (jnp.concatenate([x[: count // 2]] * 2) for x in (values, active))
        edited = net.apply({"params": params["editor"]}, codes, values, active)
        found, before = world.observe(frozen, codes)
        outputs, after = world.observe(frozen, edited)
        wanted = dystyle.targets(found, values, active, world.binary)
        losses = {
            "attribute": dystyle.attribute_loss(outputs, wanted, world.binary).sum(1),
            "identity": dystyle.identity_loss(after, before),
            "norm": dystyle.norm_loss(edited, codes),
        }
        if weights.contrastive:
            parts = (outputs, (edited - codes).reshape(count, -1))
            losses["contrastive"] = sum(dystyle.contrastive_loss(part, weights.temperature) for part in parts)
        total = sum(weights[kind] * loss for kind, loss in losses.items())
        metrics = {"loss": Mean.of(total), **{kind: Mean.of(loss) for kind, loss in losses.items()}}
        return total.mean(), (frozen, metrics)

    update = supervised_step(loss_fn, tx, microbatches=config.train.microbatches)

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del batch  # codes and edits are drawn
        return update(state, {"done": jnp.full(config.train.batch_size // lax.axis_size(AXIS), state.step)}, rng)

    def evaluate(state: TrainState) -> Report:
        def edit(variables: Any, codes: jax.Array, values: jax.Array, active: jax.Array) -> jax.Array:
            return net.apply({"params": variables}, codes, values, active)

        return report(config, world, state.model_state, edit, state.params["editor"])

    return Experiment(evaluate=evaluate, init=init, train_step=train_step, prepare=world.frozen)


def make_world(config: ConfigDict) -> World:
    """Codes, images and frozen predictors."""
    sections = FactorFaces(**config.data), Generator(**config.generator), Predictors(**config.predictor)
    return World(*sections, config.recogniser, config.seed)


def make_editor(config: ConfigDict, world: World) -> Any:
    """The network that is trained."""
    options = {"scaled": config.model.scaled} if config.model.name == "dystyle" else {}
    sizes = (world.attributes, world.faces.layers, world.size, tuple(config.model.hidden))
    return NETS[config.model.name](*sizes, dtype=jnp.dtype(config.model.dtype), **options)


def sample(config: ConfigDict, state: TrainState, seeds: Sequence[int], edits: str = "") -> np.ndarray:
    """Images of the codes of seeds, edited; `edits` as of `wish`."""
    world = make_world(config)
    net, wanted = make_editor(config, world), wish(edits, world.faces)
    normal = generation.latents(seeds, world.size)

    def run(both: Any, given: Any) -> Any:
        codes = net.apply({"params": both["editor"]}, world.codes(both["frozen"], given[0]), *given[1:])
        return world.faces.vectors(codes) if world.known else generation.to_uint8(world.images(both["frozen"], codes))

    both = {"frozen": state.model_state, "editor": state.params["editor"]}
    given = (normal, *(np.repeat(x[None], len(normal), 0) for x in wanted))
    found = map_batches(run, both, given, config.eval.batch_size)
    return world.faces.render(found) if world.known else found


def linear(config: ConfigDict, world: World) -> tuple[Any, Edit, Any]:
    """The baseline without a network: frozen variables, the edit, and the directions that it takes."""
    frozen = world.frozen()
    normal = np.random.default_rng([config.seed, 3]).normal(size=(config.data.train, world.size)).astype(np.float32)

    def labelled(frozen: Any, normal: jax.Array) -> tuple[jax.Array, jax.Array]:
        codes = world.codes(frozen, normal)
        found = world.observe(frozen, codes)[0]
        return codes[:, 0], jnp.where(jnp.asarray(world.binary), jnp.sign(found), found)

    fitted = dystyle.linear_map(*map_batches(labelled, frozen, normal, config.eval.batch_size))
    projected = config.model.name == "projected"
    return frozen, lambda fitted, *given: dystyle.linear_edit(*given, fitted, projected=projected), fitted


def report(config: ConfigDict, world: World, frozen: Any, edit: Edit, variables: Any) -> Report:
    """Edits of held-out codes, measured by a predictor held out from training, and by the factors where known."""
    faces, size, count = world.faces, config.eval.batch_size, config.eval.images
    normal = faces.draw("test")[:count] if world.known else generation.latents(range(count), world.size)
    values, active = map(
        np.asarray, dystyle.configurations(jax.random.key(7), len(normal), world.binary, world.attributes)
    )

    def predicted(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = map_batches(lambda v, x: world.predict(v, "held_out", normalize.symmetric(x)), frozen, images, size)
        return images, *found

    def drawn(edit: Edit, normal: np.ndarray, values: np.ndarray, active: np.ndarray) -> tuple[Any, Any]:
        """(small images, attributes, embeddings) of edited codes, and their factors where known."""
        both = {"frozen": frozen, "edit": variables}

        def run(both: Any, given: Any) -> Any:
            codes = edit(both["edit"], world.codes(both["frozen"], given[0]), *given[1:])
            if world.known:
                return faces.vectors(codes)
            images = world.images(both["frozen"], codes)
            small = generation.to_uint8(generation.enlarged(images, faces.image_size))
            return small, *world.predict(both["frozen"], "held_out", images)

        found = map_batches(run, both, (normal, values, active), size)
        return (predicted(faces.render(found)), found) if world.known else (found, None)

    def compared(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
        return editing.edit_metrics(before, after, values, active, world.binary)

    def cosine(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.mean(1 - dystyle.identity_loss(first, second)))

    (start, before, who), _ = drawn(lambda _, codes, *wish: codes, normal, values, active)
    (end, after, still), vectors = drawn(edit, normal, values, active)
    metrics = compared(before, after) | {"identity": cosine(who, still)}
    rows = editing.by_count(before, after, values, active, world.binary)
    tables = {"By the number of attributes edited at once": rows}
    shown = [start[:SHOWN], end[:SHOWN]]
    if world.known:
        truth = compared(*(np.asarray(faces.values(x)) for x in (normal, vectors)))
        perfect, best, same = predicted(faces.render(faces.changed(normal, values, active)))
        metrics |= {f"true_{name}": value for name, value in truth.items()}
        metrics |= {f"perfect_{name}": value for name, value in compared(before, best).items()}
        metrics["perfect_identity"] = cosine(who, same)
        metrics["pixel_error"] = float(np.abs(end.astype(int) - perfect).mean())
        shown.append(perfect[:SHOWN])
    extractor = generation.random_cnn()
    features = (
        map_batches(lambda v, x: extractor.apply(v, normalize.symmetric(x)), extractor.variables, x, size)
        for x in (start, end)
    )
    metrics[f"frechet_{extractor.name}@{len(start)}"] = generative.frechet_distance(*map(Moments.of, features))
    ramps = editing.sweeps(world.attributes, world.binary, COLUMNS)
    sheet = drawn(edit, normal[:1].repeat(len(ramps[0]), 0), *ramps)[0][0]
    third = ", perfect edits" if world.known else ""
    names = ", ".join(faces.attributes)
    return Report(
        metrics,
        tables=tables,
        figures={"Errors over the number of edits": editing.count_figure(rows)},
        images={
            f"From -1 to 1: {names}, and all numbers at once": image_grid(sheet, COLUMNS),
            f"Rows: unedited, edited{third}": image_grid(np.concatenate(shown), SHOWN),
        },
        notes={
            "drift": "mean change of a number in -1..1 that was not edited, by a predictor that training did not see; "
            "'true_': by the factors; 'perfect_': of images with exactly the wanted factors, the predictor's own error",
        },
    )


if __name__ == "__main__":
    sampling.main("dystyle", get_config, build, sample, {"edits": ""})
