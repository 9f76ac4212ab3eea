"""facejax's side of `benchmarks.gpu`: every function yields the measurements of the list of its name."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from benchmarks import mesh_render
from benchmarks.gpu import PRODUCT, Work
from facejax.alignment import adaptive_wing as aw
from facejax.backbones.iresnet import IResNet
from facejax.detection import scrfd as detection
from facejax.detection.base import Truth
from facejax.generation import stylegan
from facejax.generation import stylegan2 as second
from facejax.morphable import pncc
from facejax.recognition import arcface
from facejax.reconstruction import prnet as positions
from facejax.restoration import super_resolution as sr

DTYPE = jnp.bfloat16
Batch = Mapping[str, jax.Array]
wait = jax.block_until_ready


def about() -> dict[str, str]:
    """The version and the device."""
    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}


def free() -> None:
    """Lets go of arrays and programs of the last measurement."""
    gc.collect()
    jax.clear_caches()


def key(number: int) -> jax.Array:
    """Keys whose numbers the device's own generator makes: programs that initialise compile sooner."""
    return jax.random.key(number, impl="rbg")


def training(init: Callable[[], Any], loss: Callable[..., Any], tx: optax.GradientTransformation, batch: Batch) -> Any:
    """A call that makes one step from a state, which it holds and donates, to the next.

    Args:
      init: () -> (params, statistics).
      loss: (params, statistics, batch) -> (mean loss [], statistics).
      tx: the optimizer.
      batch: arrays on the device.
    """

    @jax.jit
    def begin() -> Any:
        params, statistics = init()
        return params, statistics, tx.init(params)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, batch: Batch) -> Any:
        params, statistics, moments = state
        (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(params, statistics, batch)
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), statistics, moments), value

    state = begin()

    def call() -> jax.Array:
        nonlocal state
        state, value = step(state, batch)
        return value

    return call


def network(net: nn.Module, side: int) -> Callable[[], Any]:
    """`init` of `training` for a network of square images."""

    def init() -> Any:
        variables = net.init(key(0), jnp.zeros((1, side, side, 3)), train=False)
        return variables["params"], variables.get("batch_stats", {})

    return init


def outputs(net: nn.Module, params: Any, statistics: Any, images: jax.Array) -> tuple[Any, Any]:
    """Of a network in training, and its new statistics."""
    found, moved = net.apply({"params": params, "batch_stats": statistics}, images, train=True, mutable=["batch_stats"])
    return found, moved.get("batch_stats", {})


def images(batch: int, side: int) -> jax.Array:
    """uint8 [batch, side, side, 3]."""
    return jax.random.randint(key(1), (batch, side, side, 3), 0, 256, jnp.uint8)


def unit(pictures: jax.Array) -> jax.Array:
    """To 0..1."""
    return pictures.astype(jnp.float32) / 255


def recognition(
    batch: int,
    networks: Mapping[str, Any],
    widths: Sequence[int],
    embedding: int,
    side: int,
    classes: int,
    product: int,
) -> Iterator[Work]:
    """A bfloat16 matrix product, then IResNets with ArcFace; the operations are counted without the head."""

    def multiply() -> Callable[[], jax.Array]:
        a = jax.random.normal(key(0), (product, product), DTYPE)
        run = jax.jit(jnp.matmul)
        return lambda: run(a, a)

    yield Work(PRODUCT, 2 * product**3, multiply, "FLOP")
    for name, depths in networks.items():
        net = IResNet(depths, tuple(widths), embedding, dtype=DTYPE)

        def build(net: IResNet = net) -> Any:
            def init() -> Any:
                params, statistics = network(net, side)()
                centres = 0.01 * jax.random.normal(key(3), (classes, embedding))
                return {"backbone": params, "head": centres}, statistics

            def loss(params: Any, statistics: Any, batch: Batch) -> Any:
                pictures = (batch["images"].astype(jnp.float32) - 127.5) / 127.5
                features, statistics = outputs(net, params["backbone"], statistics, pictures)
                return arcface.margin_softmax_loss(features, params["head"], batch["labels"]).mean(), statistics

            labels = jax.random.randint(key(2), (batch,), 0, classes)
            tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9))
            return training(init, loss, tx, {"images": images(batch, side), "labels": labels})

        flops = 3 * 2 * multiply_adds(depths, widths, embedding, side)
        yield Work(f"{name} + ArcFace, training", batch, build, flops=flops)


def multiply_adds(depths: Sequence[int], widths: Sequence[int], embedding: int, side: int) -> int:
    """Of the convolutions and the dense layer of an IResNet's forward pass; a training step has three times as many."""
    count, inputs = side**2 * 9 * 3 * widths[0], widths[0]
    for depth, width in zip(depths, widths, strict=True):
        small = -(-side // 2)
        count += side**2 * 9 * inputs * width + small**2 * (9 * width + inputs) * width
        count += (depth - 1) * small**2 * 2 * 9 * width**2
        side, inputs = small, width
    return count + side**2 * inputs * embedding


def margin_head(batch: int, classes: Sequence[int], embedding: int, chunk: int) -> Iterator[Work]:
    """A margin softmax of very many classes, in chunks: loss, gradients, update."""
    for count in classes:

        def build(count: int = count) -> Any:
            def init() -> Any:
                features, centres = (jax.random.normal(key(i), (n, embedding)) for i, n in enumerate((batch, count)))
                return (features, centres), {}

            def loss(params: Any, statistics: Any, batch: Batch) -> Any:
                losses = arcface.chunked_margin_softmax_loss(*params, batch["labels"], chunk=chunk)
                return losses.mean(), statistics

            labels = jax.random.randint(key(2), (batch,), 0, count)
            return training(init, loss, optax.sgd(0.1, 0.9), {"labels": labels})

        yield Work(f"margin head of {count:,} classes, training", batch, build)


def scrfd(
    batch: int,
    stem: int,
    widths: Sequence[int],
    depths: Sequence[int],
    neck: int,
    head: int,
    head_depth: int,
    groups: int,
    side: int,
    boxes: int,
) -> Iterator[Work]:
    """Training with its assignment of anchors, inference, and from images to boxes in one call.

    In the last, 5,000 boxes of an image enter suppression, most of which overlap.
    """
    trunk = partial(detection.ResidualTrunk, stem, tuple(widths), tuple(depths))
    net = detection.Net(trunk, neck, head, head_depth, norm_groups=groups, dtype=DTYPE)
    detector = detection.SCRFD(net, lowest=0.0)

    def train() -> Any:
        def loss(params: Any, statistics: Any, batch: Batch) -> Any:
            raw, statistics = outputs(net, params, statistics, detector.preprocess(batch["images"]))
            terms = detector.losses(raw, batch["truth"], (side, side))
            return sum(term.value() for term in terms.values()), statistics

        corners = jax.random.uniform(key(2), (batch, boxes, 2), maxval=0.9 * side)
        sizes = jax.random.uniform(key(3), (batch, boxes, 2), minval=0.02 * side, maxval=0.1 * side)
        none = jnp.zeros((batch, boxes, 0))
        truth = Truth(
            jnp.concatenate([corners, corners + sizes], -1), jnp.zeros((batch, boxes), jnp.int32),
            none.reshape(batch, boxes, 0, 2), none.astype(bool), jnp.ones((batch, boxes), bool),
        )  # fmt: skip
        tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, 0.9))
        return training(network(net, side), loss, tx, {"images": images(batch, side), "truth": truth})

    def infer(decode: bool) -> Any:
        params, statistics = jax.jit(network(net, side))()
        last = params["outputs"]
        last["cls"]["bias"], last["reg"]["bias"] = jnp.zeros_like(last["cls"]["bias"]), last["reg"]["bias"] + 2.0

        @jax.jit
        def run(params: Any, statistics: Any, pictures: jax.Array) -> Any:
            variables = {"params": params, "batch_stats": statistics}
            raw = net.apply(variables, detector.preprocess(pictures), train=False)
            return detector.decode(raw, (side, side)) if decode else raw

        return partial(run, params, statistics, images(batch, side))

    yield Work(f"SCRFD, {side} pixels, training", batch, train)
    yield Work(f"SCRFD, {side} pixels, inference", batch, partial(infer, False))
    yield Work(f"SCRFD, {side} pixels, image to boxes", batch, partial(infer, True))


def adaptive_wing(batch: int, landmarks: int, stacks: int, depth: int, features: int, side: int) -> Iterator[Work]:
    """Training, with maps of landmarks and boundary lines made in the step."""
    net = aw.Net(landmarks, stacks, depth, features, dtype=DTYPE)
    model = aw.AdaptiveWing(net)

    def build() -> Any:
        def loss(params: Any, statistics: Any, batch: Batch) -> Any:
            maps, statistics = outputs(net, params, statistics, unit(batch["images"]))
            return sum(term.mean() for term in model.losses(maps, batch).values()), statistics

        points = jax.random.uniform(key(2), (batch, landmarks, 2), maxval=side - 1.0)
        tx = optax.chain(optax.add_decayed_weights(1e-5), optax.rmsprop(1e-4, 0.99))
        return training(network(net, side), loss, tx, {"images": images(batch, side), "points": points})

    yield Work(f"Adaptive Wing, {stacks} hourglasses, training", batch, build)


def prnet(batch: int, width: int, side: int) -> Iterator[Work]:
    """Training."""
    net = positions.Net(width, dtype=DTYPE)

    def build() -> Any:
        def loss(params: Any, statistics: Any, batch: Batch) -> Any:
            found, statistics = outputs(net, params, statistics, unit(batch["images"]))
            return positions.position_loss(found, batch["truth"], batch["weights"]).mean(), statistics

        truth, weights = jax.random.uniform(key(2), (batch, side, side, 3)), jnp.ones((side, side))
        given = {"images": images(batch, side), "truth": truth, "weights": weights}
        return training(network(net, side), loss, optax.adam(1e-4), given)

    yield Work("PRNet, training", batch, build)


def rendering(batch: int, grid: int, side: int) -> Iterator[Work]:
    """Meshes drawn with their normalized coordinates."""

    def build() -> Any:
        vertices, triangles = mesh_render.mesh(grid, side)
        code, entries = pncc.coordinate_code(jnp.asarray(vertices)), mesh_render.capacity(side)
        draw = jax.jit(lambda faces: pncc.render_pncc(faces, triangles, code, (side, side), capacity=entries))
        return partial(draw, vertices + jax.random.uniform(key(0), (batch, 1, 3)))

    yield Work(f"rendering of {grid * grid:,} vertices", batch, build, "meshes")


def stylegan2(
    batch: int, resolution: int, latent: int, layers: int, base: int, largest: int, steps: int
) -> Iterator[Work]:
    """Both players' updates, path lengths in every fourth step, R1 in every sixteenth; without the average."""
    shape = {"base": base, "largest": largest, "dtype": DTYPE}
    generator = second.Generator(resolution, latent, mapping_layers=layers, **shape)
    discriminator = second.Discriminator(resolution, **shape)

    def synthesis(params: Any, rng: jax.Array) -> Callable[[jax.Array], jax.Array]:
        rngs = {stylegan.NOISE: rng}
        return lambda styles: generator.apply({"params": params}, styles, method="synthesize", rngs=rngs)

    def styles(params: Any, count: int, rng: jax.Array) -> jax.Array:
        w = generator.apply({"params": params}, jax.random.normal(rng, (count, latent)), method="map")
        return stylegan.repeated(w, generator.layers)

    def fake(params: Any, rng: jax.Array) -> jax.Array:
        return synthesis(params, jax.random.fold_in(rng, 1))(styles(params, batch, rng))

    def score(params: Any) -> Callable[[jax.Array], jax.Array]:
        return lambda pictures: discriminator.apply({"params": params}, pictures)

    def generate(params: Any, other: Any, real: jax.Array, rng: jax.Array) -> jax.Array:
        return stylegan.generator_loss(score(other), fake(params, rng)).mean()

    def straighten(params: Any, other: Any, real: jax.Array, rng: jax.Array) -> jax.Array:
        keys = jax.random.split(rng, 3)
        made = styles(params, max(1, batch // 2), keys[0])
        found = second.path_length(synthesis(params, keys[1]), made, jnp.float32(1.0), keys[2])
        return 8 * found.penalty.mean()

    def discriminate(params: Any, other: Any, real: jax.Array, rng: jax.Array) -> jax.Array:
        return stylegan.discriminator_loss(score(params), real, fake(other, rng)).mean()

    def penalise(params: Any, other: Any, real: jax.Array, rng: jax.Array) -> jax.Array:
        return 16 * stylegan.r1_penalty(score(params), real).mean()

    schedule = ((0, 1, generate), (0, 4, straighten), (1, 1, discriminate), (1, 16, penalise))

    def build() -> Any:
        tx = optax.adam(2e-3, 0.0, 0.99)

        @jax.jit
        def begin() -> Any:
            made = generator.init(key(0), jnp.zeros((1, latent)))
            judge = discriminator.init(key(1), jnp.zeros((1, resolution, resolution, 3)))
            return [(variables["params"], tx.init(variables["params"])) for variables in (made, judge)]

        def player(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
            @partial(jax.jit, donate_argnums=0)
            def update(own: Any, other: Any, pictures: jax.Array, rng: jax.Array) -> Any:
                params, moments = own
                real = 2 * unit(pictures) - 1
                grads = jax.grad(loss)(params, other, real, rng)
                updates, moments = tx.update(grads, moments, params)
                return optax.apply_updates(params, updates), moments

            return update

        plays = [(who, interval, player(loss)) for who, interval, loss in schedule]
        players, pictures, rng = begin(), images(batch, resolution), jax.random.key(1)

        def call() -> Any:
            for step in range(steps):
                for number, (who, interval, update) in enumerate(plays):
                    if step % interval == 0:
                        rest = jax.random.fold_in(rng, step * len(plays) + number)
                        players[who] = update(players[who], players[1 - who][0], pictures, rest)
            return players

        return call

    yield Work(f"StyleGAN2, {resolution} pixels, training", steps * batch / 1000, build, "kimg")


def super_resolution(batch: int, features: int, blocks: int, scale: int, side: int) -> Iterator[Work]:
    """Training of EDSR on patches, given by the side of the small image."""
    net = sr.EDSR(scale, features, blocks, dtype=DTYPE)

    def build() -> Any:
        def loss(params: Any, statistics: Any, batch: Batch) -> Any:
            found, statistics = outputs(net, params, statistics, unit(batch["images"]))
            return sr.pixel_loss(found, unit(batch["truth"])).mean(), statistics

        given = {"images": images(batch, side), "truth": images(batch, scale * side)}
        return training(network(net, side), loss, optax.adam(1e-4), given)

    yield Work(f"EDSR x{scale}, training", batch, build)
