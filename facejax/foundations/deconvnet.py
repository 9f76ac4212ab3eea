"""Visualizing and understanding convolutional networks.

Zeiler & Fergus. ECCV 2014. arXiv:1311.2901.
An activation is projected to pixel space through its own network: with transposed filters, maxima unpooled to their
positions (switches), and a rectifier at every ReLU. A grey square slid over the image shows which part the decision
depends on. The projection evaluates a function's jaxpr with other backward rules, so it works for any network.

Differs from the paper: signals of overlapping windows with the same maximum are added; the paper leaves this open.
PReLU, sigmoids and pooling by `reduce_window` keep their own derivatives; so do affine norms, which act as part of the
filters before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

Rule = Callable[..., Any]
"""(signal at the output, the operation's inputs) -> signal at each input."""


def _rectify(signal: jax.Array, x: jax.Array) -> jax.Array:
    del x
    return nn.relu(signal)


def _rectify_both(signal: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, nn.relu(signal), 0)


def _skip(signal: jax.Array, x: jax.Array) -> jax.Array:
    del x
    return signal


def _switch(signal: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(a >= b, signal, 0), jnp.where(a >= b, 0, signal)


def _everywhere(signal: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    del a, b
    return signal, signal


GRADIENT: Mapping[str, Rule] = {}
"""Plain derivatives: saliency (Simonyan, Vedaldi, Zisserman, arXiv:1312.6034)."""
DECONVNET: Mapping[str, Rule] = {
    "relu": _rectify, "relu6": _rectify, "lax.max": _switch, "local_response_norm": _skip,
}  # fmt: skip
"""The paper's. `facejax.ops.pooling.max_pool` consists of `lax.max`: the first of equal maxima is the switch."""
GUIDED: Mapping[str, Rule] = {**DECONVNET, "relu": _rectify_both, "relu6": _rectify_both}
"""Guided backpropagation (Springenberg et al., arXiv:1412.6806): where forward and backward signal are positive."""
NO_SWITCHES: Mapping[str, Rule] = {**DECONVNET, "lax.max": _everywhere}
"""The deconvnet without switches: every position of a window gets the signal of its maximum."""


def follow(fn: Callable[..., Any], rules: Mapping[str, Rule]) -> Callable[..., Any]:
    """The same function with other backward rules.

    Args:
      fn: arrays -> arrays, any JAX function.
      rules: by the name of a jitted or custom-derivative function ("relu") or of a primitive ("lax.max"). A maximum
        with the constant zero counts as "relu", one with another constant keeps its derivative.

    Returns:
      A function with `fn`'s values, whose `jax.vjp` uses the rules.

    Raises:
      NotImplementedError: an operation with a rule is inside a loop or branch.
    """

    def run(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        outputs = _evaluate(closed, rules, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


def _evaluate(closed: Any, rules: Mapping[str, Rule], inputs: Sequence[Any]) -> list[Any]:
    """Runs a jaxpr, equation by equation."""
    jaxpr, constants = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else values[v]

    for equation in jaxpr.eqns:
        rule = rules.get(_name(equation))
        inner = equation.params.get("jaxpr")
        arguments = [read(v) for v in equation.invars]
        if rule is not None:
            outputs = _ruled(equation, rule, arguments)
        elif equation.primitive.name in ("jit", "pjit", "closed_call", "checkpoint", "remat2"):
            outputs = _evaluate(inner, rules, arguments)
        elif _hidden(equation, rules):
            raise NotImplementedError(
                f"deconvnet: {' or '.join(rules)} within a {equation.primitive.name}: expected no loop or branch there"
            )
        else:
            outputs = _bind(equation, arguments)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _name(equation: Any) -> str:
    """The key of an equation in the rules: its function's name, or its primitive's."""
    if equation.primitive.name == "max":
        constants = [v.val for v in equation.invars if isinstance(v, core.Literal)]
        if not constants:
            return "lax.max"
        return "relu" if np.all(np.asarray(constants[0]) == 0) else ""
    if equation.primitive.name == "custom_jvp_call" and len(equation.params["call_jaxpr"].jaxpr.eqns) == 1:
        return _name(equation.params["call_jaxpr"].jaxpr.eqns[0])  # jax.nn.relu: the name of the jitted function inside
    return equation.params.get("name") or f"lax.{equation.primitive.name}"


def _hidden(equation: Any, rules: Mapping[str, Rule]) -> bool:
    """Whether an operation with a rule is inside. A maximum within a custom derivative (softplus) has none."""
    if equation.primitive.name.startswith("custom_"):
        rules = {name: rule for name, rule in rules.items() if name != "lax.max"}
    inner = [e for jaxpr in core.jaxprs_in_params(equation.params) for e in getattr(jaxpr, "jaxpr", jaxpr).eqns]
    return any(_name(e) in rules or _hidden(e, rules) for e in inner)


def _bind(equation: Any, arguments: Sequence[Any]) -> list[Any]:
    found = equation.primitive.bind(*arguments, **equation.primitive.get_bind_params(equation.params))
    return list(found) if equation.primitive.multiple_results else [found]


def _ruled(equation: Any, rule: Rule, arguments: Sequence[Any]) -> list[Any]:
    """An equation of one output; its variables, not its constants, get the rule's signals."""
    places = [i for i, v in enumerate(equation.invars) if not isinstance(v, core.Literal)]

    @jax.custom_vjp
    def apply(*variables: Any) -> Any:
        filled = list(arguments)
        for i, value in zip(places, variables, strict=True):
            filled[i] = value
        return _bind(equation, filled)[0]

    def back(variables: Any, signal: jax.Array) -> tuple[jax.Array, ...]:
        found = rule(signal, *variables)
        return found if isinstance(found, tuple) else (found,)

    apply.defvjp(lambda *variables: (apply(*variables), variables), back)
    return [apply(*(arguments[i] for i in places))]


def layer_of(net: nn.Module, variables: Any, layer: str, **options: Any) -> Callable[[jax.Array], jax.Array]:
    """The output of one layer of any Linen network, as a function of the images.

    Args:
      net, variables: the network.
      layer: path of the submodule, such as "conv3" or "classifier/fc7"; empty is the network itself. Of a layer that
        is called several times, the first call.
      **options: passed to the network's call (`train=False`).
    """
    path = tuple(filter(None, layer.split("/")))

    def run(images: jax.Array) -> jax.Array:
        output, state = net.apply(
            variables,
            images,
            capture_intermediates=lambda module, _: module.path == path,
            mutable=["intermediates"],
            **options,
        )
        found = jax.tree.leaves(state.get("intermediates", {})) if path else [output]
        if not found:
            raise ValueError(f"deconvnet: the network called no layer {layer!r}, expected a path such as 'conv1'")
        return found[0]

    return run


def project(
    fn: Callable[[jax.Array], jax.Array], images: jax.Array, units: jax.Array, rules: Mapping[str, Rule] = DECONVNET
) -> jax.Array:
    """One activation of each image, with all others set to zero, projected to pixel space.

    Args:
      fn: images -> activations [N, ..., C] (`layer_of`).
      images: [N, H, W, 3].
      units: [N, k] int, index into the k axes after the first: (row, column, channel), or (channel,) of a dense layer.
      rules: backward rules.

    Returns:
      [N, H, W, 3], in units of the images times those of the activation.
    """
    activations, back = jax.vjp(follow(fn, rules), images)
    if units.shape != (images.shape[0], activations.ndim - 1):
        raise ValueError(f"project: units {units.shape}, expected {(images.shape[0], activations.ndim - 1)}")
    place = (jnp.arange(len(units)), *jnp.moveaxis(units, 1, 0))
    return back(jnp.zeros_like(activations).at[place].set(activations[place]))[0]


def strongest(activations: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Every feature map's strongest activations, at most one per image.

    Args:
      activations: [N, ..., C].
      count: how many of each map.

    Returns:
      [C, count] rows of the images, strongest first, and [C, count, k] their units for `project`.
    """
    n, *shape, channels = activations.shape
    flat = activations.reshape(n, -1, channels)
    best, where = flat.max(1).T, flat.argmax(1).T
    images = np.argsort(-best, 1, kind="stable")[:, :count]
    places = np.unravel_index(np.take_along_axis(where, images, 1), shape) if shape else ()
    return images, np.stack([*places, np.broadcast_to(np.arange(channels)[:, None], images.shape)], -1)


def cover(images: jax.Array, places: jax.Array, size: int, value: jax.Array | float = 0.0) -> jax.Array:
    """Images [N, H, W, C] with a square of `size` pixels set to `value`; `places` [N, 2]: its first row and column."""
    rows, columns = (
        (jnp.arange(n) >= place[:, None]) & (jnp.arange(n) < place[:, None] + size)
        for n, place in zip(images.shape[1:3], places.T, strict=True)
    )
    return jnp.where((rows[:, :, None] & columns[:, None])[..., None], value, images)


def occlusion(
    fn: Callable[[jax.Array], Any], images: jax.Array, *, size: int, stride: int, value: jax.Array | float = 0.0
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Values of a function of images with a square at every position of a grid (Sec. 4.2).

    Args:
      fn: images -> pytree of [N, ...], such as class probabilities.
      images: [N, H, W, C].
      size, stride: of the square, in pixels.
      value: of the square, a number or [C]; 0 is grey if the mean is subtracted.

    Returns:
      The pytree with leading axes [N, H', W'], and the squares' centres [H'] and [W'] in pixels from the top left.
    """
    height, width = images.shape[1:3]
    if not 0 < size <= min(height, width):
        raise ValueError(f"occlusion: a square of {size} pixels, expected 1 to {min(height, width)}")
    tops, lefts = (jnp.arange(0, n - size + 1, stride) for n in (height, width))

    def covered(place: jax.Array) -> Any:
        return fn(cover(images, jnp.broadcast_to(place, (images.shape[0], 2)), size, value))

    places = jnp.stack(jnp.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2)
    found = jax.lax.map(covered, places)
    grid = len(tops), len(lefts)
    found = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0).reshape(x.shape[1], *grid, *x.shape[2:]), found)
    return found, *(np.asarray(start) + size / 2 for start in (tops, lefts))


def correspondence(features: jax.Array, occluded: jax.Array) -> jax.Array:
    """Disagreement of a layer's changes between images when the same part of each is covered (Sec. 4.3).

    Args:
      features, occluded: [N, ...] of whole and covered images.

    Returns:
      [] the mean of sign(e_i) != sign(e_j), e = features - occluded, over ordered pairs of images and dimensions; the
      paper sums. Lower is more consistent.
    """
    count = features.shape[0]
    if count < 2:
        raise ValueError(f"correspondence: {count} image, expected 2 or more")
    signs = jnp.sign(features - occluded).reshape(count, -1)
    differ = sum(jnp.sum(signs != jnp.roll(signs, i, 0)) for i in range(1, count))
    return differ / (count * (count - 1) * signs.shape[1])


def limit_filters(radius: float = 0.1) -> optax.GradientTransformation:
    """Last in an optimizer chain: limits the root mean square of each convolution filter to `radius` by scaling."""

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def limited(step: jax.Array, kernel: jax.Array) -> jax.Array:
            if kernel.ndim != 4:
                return step
            moved = kernel + step
            size = jnp.sqrt(jnp.mean(moved**2, (0, 1, 2)))
            return moved * jnp.minimum(1, radius / jnp.maximum(size, 1e-12)) - kernel

        return jax.tree.map(limited, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
