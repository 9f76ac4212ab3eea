"""ArcFace: additive angular margin loss for deep face recognition.

Deng, Guo, Xue, Yang, Kotsia, Zafeiriou. CVPR 2019, TPAMI 2021. arXiv:1801.07698.
A softmax over cosines with an angular margin for the true class. One formula with three margins also covers related
losses: SphereFace (Liu et al., CVPR 2017, arXiv:1704.08063) multiplies the angle, ArcFace adds to it, CosFace (Wang et
al., CVPR 2018, arXiv:1801.09414) subtracts from the cosine. For very many classes the logits are computed in chunks of
class centres, or the centres are sharded over devices and sampled: Partial FC (An et al., ICCVW 2021, arXiv:2010.05222;
CVPR 2022, arXiv:2203.15565).

Differs from the papers: in Partial FC of 2020 the optimizer skips centres that are not sampled; here, as in the version
of 2022, weight decay and momentum still update them. Differs from the authors' PyTorch code: all three margins can be
combined (theirs ignores the first two when the third is set), and the gradient is exact unless `grad_mode` is
"straight_through".
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from facejax.ops import vectors

EPS = 1e-12

GradMode = Literal["exact", "straight_through"]


class Margins(NamedTuple):
    """Factor of the angle, angle added (radians), cosine subtracted. Scalars or one per sample [N]."""

    multiply: ArrayLike = 1.0
    angle: ArrayLike = 0.0
    cosine: ArrayLike = 0.0


SOFTMAX = Margins()
SPHEREFACE = Margins(multiply=1.35)
ARCFACE = Margins(angle=0.5)
COSFACE = Margins(cosine=0.35)
COMBINED = Margins(angle=0.3, cosine=0.2)


def target_cosine(
    cosine: jax.Array, margins: Margins, *, easy: bool = False, grad_mode: GradMode = "exact"
) -> jax.Array:
    """cos(m1 * theta + m2) - m3, Eq. 4 of the TPAMI text, for the cosines of true classes.

    Args:
      cosine: [N], in -1..1; clipped.
      margins: m1, m2, m3; scalars or [N].
      easy: where m1 * theta + m2 exceeds pi and the cosine would increase again, uses the decreasing continuation
        cos(theta) - m2 * sin(m2).
      grad_mode: "exact" differentiates the formula; "straight_through" treats the margin as a constant, as the authors'
        PyTorch code does.

    Returns:
      [N], at least float32.
    """
    if grad_mode not in get_args(GradMode):
        raise ValueError(f"target_cosine: grad_mode {grad_mode!r}, expected one of {get_args(GradMode)}")
    shapes = [jnp.shape(m) for m in margins]
    if len(shapes) != 3 or any(shape not in ((), cosine.shape) for shape in shapes):
        raise ValueError(f"target_cosine: margins of shapes {shapes}, expected three, each () or {cosine.shape}")
    multiply, angle, minus = margins
    cosine = _at_least_float32(cosine)
    clipped = jnp.clip(cosine, -1.0, 1.0)
    inner = jnp.clip(clipped, -1.0 + 1e-7, 1.0 - 1e-7)  # the slope of arccos is infinite at the ends
    theta = jnp.arccos(inner if grad_mode == "exact" else clipped)
    moved = jnp.cos(multiply * theta + angle)
    if easy:
        moved = jnp.where(multiply * theta + angle > jnp.pi, clipped - angle * jnp.sin(angle), moved)
    moved = moved - minus
    return moved if grad_mode == "exact" else cosine + lax.stop_gradient(moved - cosine)


def margin_logits(
    cosine: jax.Array,
    labels: jax.Array,
    *,
    scale: ArrayLike = 64.0,
    margins: Margins = ARCFACE,
    easy: bool = False,
    grad_mode: GradMode = "exact",
    filter_above: float = 0.0,
) -> jax.Array:
    """Scaled cosines, with the margin applied to the true class of every sample.

    Args:
      cosine: [N, C].
      labels: [N] int; a label outside 0..C-1 means that the true class is not among these C.
      scale: s, or one per sample [N].
      margins, easy, grad_mode: see `target_cosine`.
      filter_above: above 0, sets larger cosines of negatives to 0, since these are probably the same identity under
        another label (Partial FC v2 uses 0.4 for noisy data).

    Returns:
      [N, C] logits.
    """
    if cosine.ndim != 2 or labels.shape != cosine.shape[:1]:
        raise ValueError(f"margin_logits: cosine {cosine.shape} and labels {labels.shape}, expected [N, C] and [N]")
    if jnp.shape(scale) not in ((), labels.shape):
        raise ValueError(f"margin_logits: scale of shape {jnp.shape(scale)}, expected () or {labels.shape}")
    cosine = _at_least_float32(cosine)
    classes = cosine.shape[1]
    hit = labels[:, None] == jnp.arange(classes)
    true = jnp.take_along_axis(cosine, jnp.clip(labels, 0, classes - 1)[:, None], 1)[:, 0]
    target = target_cosine(true, margins, easy=easy, grad_mode=grad_mode)
    if filter_above > 0:
        cosine = jnp.where(cosine > filter_above, 0.0, cosine)
    return jnp.broadcast_to(jnp.asarray(scale), labels.shape)[:, None] * jnp.where(hit, target[:, None], cosine)


def margin_softmax_loss(features: jax.Array, centres: jax.Array, labels: jax.Array, **options: object) -> jax.Array:
    """Cross-entropy of the margin softmax.

    Args:
      features: [N, D], of any norm; the function normalises them.
      centres: [C, D] class centres, of any norm.
      labels: [N] int, 0..C-1.
      **options: see `margin_logits`.

    Returns:
      [N] losses.
    """
    _check(features, centres, labels)
    logits = margin_logits(vectors.unit(features) @ vectors.unit(centres).T, labels, **options)
    return jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


def chunked_margin_softmax_loss(
    features: jax.Array,
    centres: jax.Array,
    labels: jax.Array,
    *,
    chunk: int = 4000,
    scale: float = 64.0,
    margins: Margins = ARCFACE,
    easy: bool = False,
    grad_mode: GradMode = "exact",
) -> jax.Array:
    """`margin_softmax_loss` for very many classes on one device, without an [N, C] array in memory.

    The forward pass computes a running log-sum-exp over chunks of classes; the backward pass recomputes every chunk and
    writes its rows of the gradient of the centres.

    Args:
      features, centres, labels: as in `margin_softmax_loss`; C need not be a multiple of `chunk`.
      chunk: number of classes per chunk.
      scale, margins, easy, grad_mode: see `margin_logits`; margins must be scalars.

    Returns:
      [N] losses.
    """
    _check(features, centres, labels)
    if chunk < 1:
        raise ValueError(f"chunked_margin_softmax_loss: chunk {chunk}, expected at least 1")
    features, centres = _at_least_float32(features), _at_least_float32(centres)
    target = functools.partial(target_cosine, margins=margins, easy=easy, grad_mode=grad_mode)
    return _chunked(features, centres, labels, min(chunk, centres.shape[0]), scale, target)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _chunked(features, centres, labels, chunk, scale, target):
    return _chunked_forward(features, centres, labels, chunk, scale, target)[0]


def _chunked_forward(features, centres, labels, chunk, scale, target):
    unit = vectors.unit(features)
    true = scale * target(jnp.sum(unit * vectors.unit(centres[labels]), -1))

    def body(i, carry):
        largest, total = carry
        logits = _chunk(unit, centres, labels, true, chunk, scale, i).logits
        new = jnp.maximum(largest, logits.max(1))
        return new, total * jnp.exp(largest - new) + jnp.exp(logits - new[:, None]).sum(1)

    start = jnp.full(labels.shape, -jnp.inf), jnp.zeros(labels.shape)
    largest, total = lax.fori_loop(0, -(-centres.shape[0] // chunk), body, start)
    log_total = largest + jnp.log(total)
    return log_total - true, (features, centres, labels, true, log_total)


def _chunked_backward(chunk, scale, target, residuals, gradient):
    features, centres, labels, true, log_total = residuals
    unit, unit_vjp = jax.vjp(vectors.unit, features)

    def body(i, carry):
        d_unit, d_centres = carry
        part = _chunk(unit, centres, labels, true, chunk, scale, i)
        probability = jnp.exp(part.logits - log_total[:, None]) * gradient[:, None]
        d_cosine = jnp.where(part.hit, 0.0, scale * probability)  # the true class is added below
        d_unit = d_unit + (d_cosine * part.inverse_norm) @ part.rows
        shrink = part.inverse_norm**2 * jnp.sum(d_cosine * part.cosine, 0)
        d_rows = (d_cosine.T @ unit) * part.inverse_norm[:, None] - part.rows * shrink[:, None]
        kept = lax.dynamic_slice_in_dim(d_centres, part.start, chunk)
        d_rows = jnp.where(part.fresh[:, None], d_rows, kept)  # the last chunk overlaps the previous one
        return d_unit, lax.dynamic_update_slice_in_dim(d_centres, d_rows, part.start, 0)

    zeros = jnp.zeros_like(features), jnp.zeros_like(centres)
    d_unit, d_centres = lax.fori_loop(0, -(-centres.shape[0] // chunk), body, zeros)
    _, true_vjp = jax.vjp(lambda u, w: scale * target(jnp.sum(u * vectors.unit(w), -1)), unit, centres[labels])
    d_true_unit, d_true_centres = true_vjp((jnp.exp(true - log_total) - 1.0) * gradient)
    return unit_vjp(d_unit + d_true_unit)[0], d_centres.at[labels].add(d_true_centres), None


_chunked.defvjp(_chunked_forward, _chunked_backward)


class _Chunk(NamedTuple):
    rows: jax.Array  # [chunk, D]
    inverse_norm: jax.Array  # [chunk]
    cosine: jax.Array  # [N, chunk]
    hit: jax.Array  # [N, chunk] bool: the true class
    logits: jax.Array  # [N, chunk], -inf for classes of an earlier chunk
    start: jax.Array
    fresh: jax.Array  # [chunk] bool


def _chunk(unit, centres, labels, true, chunk, scale, i):
    """Chunk `i` of the classes; the last chunk is shifted to end at the last class."""
    start = jnp.minimum(i * chunk, centres.shape[0] - chunk)
    classes = start + jnp.arange(chunk)
    fresh = classes >= i * chunk
    rows = lax.dynamic_slice_in_dim(centres, start, chunk)
    inverse_norm = lax.rsqrt(jnp.maximum(jnp.sum(rows * rows, -1), EPS**2))
    cosine = (unit @ rows.T) * inverse_norm
    hit = labels[:, None] == classes
    logits = jnp.where(fresh, jnp.where(hit, true[:, None], scale * cosine), -jnp.inf)
    return _Chunk(rows, inverse_norm, cosine, hit, logits, start, fresh)


def sample_classes(rng: jax.Array, labels: jax.Array, num_local: int, rate: float) -> jax.Array:
    """Classes of this shard used in a step: those of the batch, and a random sample of the others.

    Args:
      rng: key of this device.
      labels: [M] labels of the global batch as local indices (outside 0..num_local-1: another shard).
      num_local: number of classes of this shard.
      rate: r, the fraction of the classes to sample.

    Returns:
      [K] sorted, distinct; K = max(int(r * num_local), min(M, num_local)), so that all classes of the batch fit.
    """
    count = max(int(rate * num_local), min(labels.shape[0], num_local))
    score = jax.random.uniform(rng, (num_local,))
    inside = (labels >= 0) & (labels < num_local)
    score = score.at[jnp.where(inside, labels, num_local)].set(2.0, mode="drop")
    return jnp.sort(lax.top_k(score, count)[1])


def sharded_margin_softmax_loss(
    features: jax.Array,
    local_centres: jax.Array,
    labels: jax.Array,
    *,
    axis_name: str,
    num_classes: int,
    sample_rate: float = 1.0,
    rng: jax.Array | None = None,
    **options: object,
) -> jax.Array:
    """`margin_softmax_loss` with class centres sharded over the devices of `axis_name`: Partial FC.

    Every device gathers all features and computes the logits of its own classes; maxima and sums are reduced over the
    axis. Centres that are not sampled in a step get a zero gradient, but weight decay and momentum still update them
    (Partial FC v2).

    Differentiate it as a per-device loss: its mean is the same on every device, so average the gradient of replicated
    parameters over the devices and divide that of the centres by the number of devices (`train.reduce_gradients`).

    Args:
      features: [N, D], of this device's samples.
      local_centres: [ceil(C / devices), D], rows of this device; rows beyond the last class are padding.
      labels: [N] int, 0..C-1, of this device's samples.
      axis_name: the mapped axis.
      num_classes: C.
      sample_rate: fraction of the classes used in a step.
      rng: key of this device; required if `sample_rate` < 1.
      **options: see `margin_logits`; margins and scale must be scalars.

    Returns:
      [N * devices] losses of the global batch.
    """
    if not 0 < sample_rate <= 1 or (sample_rate < 1 and rng is None):
        raise ValueError(
            f"sharded_margin_softmax_loss: sample_rate {sample_rate} with rng {rng}, expected above 0 and up to 1, "
            "and a key if it is below 1"
        )
    if local_centres.shape[0] * lax.axis_size(axis_name) < num_classes:
        raise ValueError(
            f"sharded_margin_softmax_loss: {local_centres.shape[0]} centres on each of {lax.axis_size(axis_name)} "
            f"devices, expected at least {num_classes} in all"
        )
    _check(features, local_centres, labels)
    features = lax.all_gather(features, axis_name, tiled=True)
    labels = lax.all_gather(labels, axis_name, tiled=True)
    num_local = local_centres.shape[0]
    first = lax.axis_index(axis_name) * num_local
    local_labels = labels - first
    classes = jnp.arange(num_local)
    if sample_rate < 1:
        classes = sample_classes(rng, local_labels, num_local, sample_rate)
        place = jnp.full((num_local,), -1).at[classes].set(jnp.arange(classes.shape[0]))
        inside = (local_labels >= 0) & (local_labels < num_local)
        local_labels = jnp.where(inside, place[jnp.clip(local_labels, 0, num_local - 1)], -1)
        local_centres = local_centres[classes]
    logits = margin_logits(vectors.unit(features) @ vectors.unit(local_centres).T, local_labels, **options)
    logits = jnp.where(first + classes < num_classes, logits, -jnp.inf)
    largest = lax.pmax(lax.stop_gradient(logits.max(1)), axis_name)
    total = lax.psum(jnp.exp(logits - largest[:, None]).sum(1), axis_name)
    hit = local_labels[:, None] == jnp.arange(classes.shape[0])
    true = lax.psum(jnp.where(hit, logits, 0.0).sum(1), axis_name)
    return jnp.log(total) + largest - true


def sphereface_logits(
    features: jax.Array, centres: jax.Array, labels: jax.Array, *, blend: ArrayLike, multiply: int = 4
) -> jax.Array:
    """The original SphereFace: |x| * (blend * cos + psi) / (1 + blend) at the true class, |x| * cos elsewhere.

    psi(theta) = (-1)^k cos(m * theta) - 2k on [k * pi / m, (k + 1) * pi / m] decreases monotonically from 1 to 1 - 2m
    (arXiv:1704.08063, Eq. 7). `blend` decreases in training: see `sphereface_blend`. Features are not normalised.

    Returns:
      [N, C] logits.
    """
    _check(features, centres, labels)
    features = _at_least_float32(features)
    cosine = vectors.unit(features) @ vectors.unit(centres).T
    true = jnp.take_along_axis(cosine, labels[:, None], 1)
    theta = jnp.arccos(jnp.clip(true, -1.0 + 1e-7, 1.0 - 1e-7))
    k = lax.stop_gradient(jnp.clip(jnp.floor(theta * multiply / jnp.pi), 0, multiply - 1))
    psi = jnp.where(k % 2 == 0, 1.0, -1.0) * jnp.cos(multiply * theta) - 2 * k
    hit = labels[:, None] == jnp.arange(centres.shape[0])
    norm = jnp.sqrt(jnp.maximum(jnp.sum(features * features, -1, keepdims=True), EPS**2))
    return norm * jnp.where(hit, (blend * true + psi) / (1 + blend), cosine)


def sphereface_blend(step: ArrayLike) -> jax.Array:
    """SphereFace's annealing of `blend`: max(5, 1000 / (1 + 0.12 step))."""
    return jnp.maximum(5.0, 1000.0 / (1.0 + 0.12 * jnp.asarray(step)))


def _at_least_float32(x: jax.Array) -> jax.Array:
    """Half precision is too coarse for scaled cosines (error about 0.25 at scale 64) and for arccos near +-1."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check(features: jax.Array, centres: jax.Array, labels: jax.Array) -> None:
    agree = features.ndim == centres.ndim == 2 and features.shape[1] == centres.shape[1]
    if not agree or labels.shape != features.shape[:1]:
        raise ValueError(
            f"margin softmax: features {features.shape}, centres {centres.shape} and labels {labels.shape}, "
            "expected [N, D], [C, D] and [N]"
        )
