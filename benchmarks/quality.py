"""Quality methods at scale compared with direct implementations: `python -m benchmarks.quality [--images 100000]`.

Labels of SDD-FIQA versus a loop over images with SciPy; SER-FIQ with one pass of the trunk versus passes of the whole
network; a discard curve over a million pairs versus sorting the remaining pairs at every discarded fraction.
"""

from __future__ import annotations

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from facejax.backbones.iresnet import EmbeddingHead, iresnet18
from facejax.metrics import quality
from facejax.quality import sdd_fiqa, ser_fiq


def seconds(run) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def loop_labels(features: np.ndarray, people: np.ndarray, samples: int = 24, rounds: int = 12) -> np.ndarray:
    """Labels [N] by a loop over images."""
    rng = np.random.default_rng(1)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = np.empty((rounds, len(people)))
    for i, person in enumerate(people):
        own, others = np.flatnonzero(people == person), np.flatnonzero(people != person)
        for k in range(rounds):
            near = rng.choice(own[own != i], min(samples, len(own) - 1), replace=False)
            far = rng.choice(others, samples, replace=False)
            found[k, i] = stats.wasserstein_distance(unit[near] @ unit[i], unit[far] @ unit[i])
    found -= found.min(1, keepdims=True)
    return (100 * found / found.max(1, keepdims=True)).mean(0)


def labels(images: int, few: int = 5000) -> None:
    """SDD-FIQA: 12 rounds of 24 + 24 similarities, for images with varying distance from their identity's centre."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(images // 40), 40)
    spread = rng.uniform(0.5, 2.0, (len(people), 1))
    features = rng.normal(size=(images // 40, 512))[people] + spread * rng.normal(size=(len(people), 512))
    features, small = features.astype(np.float32), people < few // 40
    peak = memory()
    took = seconds(lambda: sdd_fiqa.pseudo_labels(jax.random.key(0), features, people))
    print(f"SDD-FIQA labels of {len(people)} x 512: {took:.1f} s, {memory() - peak:.2f} GiB more than before")
    features, people = features[small], people[small]
    sdd_fiqa.pseudo_labels(jax.random.key(0), features, people, rounds=1)  # compiles
    found = []
    fast = seconds(lambda: found.append(sdd_fiqa.pseudo_labels(jax.random.key(0), features, people)))
    slow = seconds(lambda: found.append(loop_labels(features, people)))
    print(
        f"  of {len(people)}: {fast:.2f} s, loop over images {slow:.1f} s: {slow / fast:.0f} times (rank "
        f"correlation {stats.spearmanr(*found).statistic:.4f})"
    )


def memory() -> float:
    """Peak resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def masks(count: int = 100) -> None:
    """SER-FIQ: one pass of the trunk and `count` of the head, versus `count` passes of the whole network."""
    net = iresnet18(dropout=0.4)
    images = jnp.zeros((4, 112, 112, 3))
    variables = net.init(jax.random.key(0), images, train=False)
    head = EmbeddingHead(512, 0.4)

    @jax.jit
    def plain(images):
        return net.apply(variables, images, train=False)

    @jax.jit
    def scores(images):
        last = net.apply(variables, images, train=False, features=True)["stage4"]

        def embed(key):
            return head.apply(variables, last, train=False, drop=True, rngs={"dropout": key})

        return ser_fiq.robustness(ser_fiq.stochastic_embeddings(embed, jax.random.key(0), count))

    @jax.jit
    def dropped(images, key):
        last = net.apply(variables, images, train=False, features=True)["stage4"]
        return head.apply(variables, last, train=False, drop=True, rngs={"dropout": key})

    def passes(images):
        return [dropped(images, key) for key in jax.random.split(jax.random.key(0), count)]

    for run in (plain, scores, lambda images: dropped(images, jax.random.key(0))):
        jax.block_until_ready(run(images))
    one, all_masks = (min(seconds(lambda run=run: run(images)) for _ in range(3)) for run in (plain, scores))
    whole = seconds(lambda: passes(images))
    print(f"SER-FIQ, {count} masks of iresnet18: {all_masks / one:.2f} times one pass")
    print(f"  {count} passes {whole:.2f} s: {whole / all_masks:.1f} times")


def discard_curves(pairs: int = 1_000_000) -> None:
    """Both kinds of curve."""
    rng = np.random.default_rng(0)
    same = rng.random(pairs) < 0.05
    distance, scores = rng.normal(np.where(same, 0.3, 0.5), 0.08), rng.random(pairs)
    fixed = seconds(lambda: quality.error_discard_curve(-distance[same], scores[same], -0.45))
    curve, plain = [], []
    anew = seconds(lambda: curve.append(quality.fnmr_discard_curve(distance, same, scores, 1e-3).errors))
    slow = seconds(lambda: plain.append(sorted_anew(distance, same, scores, 1e-3)))
    apart = np.abs(curve[0] - plain[0]).max()
    print(f"discard curves of {pairs} pairs: A {fixed:.2f} s, B {anew:.2f} s")
    print(f"  sorted again at every fraction {slow:.2f} s: {slow / anew:.2f} times (errors agree to {apart:.1e})")


def sorted_anew(distance: np.ndarray, same: np.ndarray, scores: np.ndarray, fmr: float) -> np.ndarray:
    """Errors [20] of curve B, by sorting and thresholding the remaining pairs at every fraction."""
    order, errors = np.argsort(scores), []
    for ratio in quality.DISCARD_RATIOS:
        kept = order[int(ratio * len(order)) :]
        candidates = np.sort(distance[kept])[::-1]
        impostors = np.sort(distance[kept][~same[kept]])
        reached = np.searchsorted(impostors, candidates, side="right") / len(impostors)
        threshold = candidates[np.argmin(np.abs(reached - fmr))]
        errors.append(np.mean(distance[kept][same[kept]] >= threshold))
    return np.array(errors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    labels(arguments.images)  # first, because it reads the peak memory of the process
    discard_curves()
    masks()
