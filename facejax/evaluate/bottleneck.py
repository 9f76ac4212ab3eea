"""Information and robustness of classifiers with a stochastic bottleneck (deep VIB), and figures of them.

Alemi, Fischer, Dillon, Murphy. Deep variational information bottleneck. ICLR 2017. arXiv:1612.00410.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.foundations import vib
from facejax.train import map_batches, new_figure


def rate_bits(posterior: vib.Posterior | None, logits: jax.Array) -> jax.Array:
    """KL divergence of the code, [N] bits; 0 without a bottleneck. Logits are [S, N, C]."""
    return vib.kl_bits(posterior) if posterior else jnp.zeros(logits.shape[1])


def measure(
    net: vib.Classifier,
    params: Any,
    data: dict[str, np.ndarray],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    attacks: Sequence[float] = (),
) -> dict[str, Any]:
    """Errors and information of several networks (members) on the same images.

    Args:
      net: the architecture.
      params: of M members, a leading axis on every array.
      data: {"image": [N, D] in -1..1, "label": [N] int}.
      samples: codes per image.
      batch_size: images a call.
      seed: of the codes.
      attacks: sizes of fast gradient steps, in pixel values of -1..1.

    Returns:
      [N, M] each: "wrong" bool, with predictions averaged over the samples; "wrong_one_sample" bool; "bits", the
      cross-entropy; "kl", `rate_bits`; and "fooled": size of the attack -> errors under it, bool.
    """

    def member(params: Any, key: jax.Array, batch: dict[str, jax.Array]) -> dict[str, Any]:
        def classify(images: jax.Array, key: jax.Array) -> tuple[jax.Array, vib.Posterior | None]:
            return net.apply({"params": params}, images, train=False, samples=samples, rngs={"latent": key})

        def wrong(logits: jax.Array) -> jax.Array:
            return vib.averaged_log_probabilities(logits).argmax(1) != batch["label"]

        def objective(images: jax.Array) -> jax.Array:
            log_q = vib.averaged_log_probabilities(classify(images, key)[0])
            return -jnp.take_along_axis(log_q, batch["label"][:, None], 1)[:, 0]

        logits, posterior = classify(batch["image"], key)
        fresh = jax.random.fold_in(key, 1)
        attacked = {size: vib.fast_gradient_sign(objective, batch["image"], size) for size in attacks}
        return {
            "wrong": wrong(logits),
            "wrong_one_sample": wrong(logits[:1]),
            "bits": vib.cross_entropy_bits(logits, batch["label"]).mean(0),
            "kl": rate_bits(posterior, logits),
            "fooled": {size: wrong(classify(images, fresh)[0]) for size, images in attacked.items()},
        }

    members = jax.tree.leaves(params)[0].shape[0]
    keys = jax.random.split(jax.random.key(seed), members)
    return map_batches(
        lambda variables, batch: jax.vmap(member, (0, 0, None), 1)(*variables, batch),
        (params, keys),
        data,
        batch_size,
    )


def sweep_figure(betas: Sequence[float], columns: dict[str, np.ndarray], label_bits: float) -> Any:
    """Errors over beta, the information plane, and both bounds of I(Z; X) and I(Z; Y) over beta.

    Args:
      betas: B of them.
      columns: name -> [B], the metrics of `experiments/vib.py`.
      label_bits: entropy of a label.
    """
    figure, (left, middle, right) = new_figure(12, 3.6, 1, 3)
    places = np.arange(len(betas))
    for name, label in (
        ("train_error", "training"),
        ("test_error", "test, samples averaged"),
        ("test_error_one_sample", "test, one sample"),
    ):
        left.plot(places, columns[name], marker="o", markersize=3, label=label)
    left.set(yscale="symlog", ylabel="error, %")
    for part, prefix in (("training", "train_"), ("test", "")):
        upper, lower = columns[f"{prefix}image_information"], columns[f"{prefix}label_information"]
        middle.plot(upper, lower, marker="o", markersize=3, label=part)
        right.plot(places, upper, marker="o", markersize=3, label=f"I(Z; X), {part}")
        if part == "test":
            for beta, x, y in zip(betas, upper, lower, strict=True):
                middle.annotate(f"{beta:g}", (x, y), fontsize=7, xytext=(2, -8), textcoords="offset points")
    middle.axhline(label_bits, color="grey", linestyle=":")
    middle.set(xscale="symlog", xlabel="I(Z; X), bits (upper bound)", ylabel="I(Z; Y), bits (lower bound)")
    right.axhline(label_bits, color="grey", linestyle=":", label="bits of a label")
    right.set(yscale="symlog", ylabel="bits")
    for axis in (left, right):
        axis.set_xticks(places, [f"{beta:g}" for beta in betas], rotation=60, fontsize=8)
        axis.set_xlabel("beta")
    for axis in (left, middle, right):
        axis.legend(frameon=False, fontsize=8)
    return figure


def attack_figure(betas: Sequence[float], attacks: Sequence[float], columns: dict[str, np.ndarray]) -> Any:
    """Error over the size of a fast gradient step, a line per beta; arguments as of `sweep_figure`."""
    figure, axis = new_figure(5, 3.2)
    errors = np.stack([columns["test_error"], *(columns[f"fgsm_error_{size:g}"] for size in attacks)])
    for i, beta in enumerate(betas):
        axis.plot([0, *attacks], errors[:, i], marker="o", markersize=3, color=f"{i / max(len(betas), 2):.2f}")
        axis.annotate(f"{beta:g}", (attacks[-1], errors[-1, i]), fontsize=7, xytext=(4, -2), textcoords="offset points")
    axis.set(xlabel="fast gradient step, pixels of -1..1", ylabel="test error, %")
    return figure


def plane_figure(net: vib.Classifier, params: Any, data: dict[str, np.ndarray], shown: int = 500) -> Any:
    """Posteriors in a code of two numbers, outlines of one standard deviation, over the decoder's classes.

    Args:
      net, params: one network with `latent` 2.
      data: {"image": [N, D] in -1..1, "label": [N] int}.
      shown: images at most.
    """
    import matplotlib

    variables = {"params": params}
    _, posterior = net.apply(variables, data["image"][:shown], train=False, samples=0)
    mean = np.asarray(posterior.mean)
    turn = np.linspace(0, 2 * np.pi, 40)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    factors = posterior.scale if posterior.scale.ndim == 3 else jax.vmap(jnp.diag)(posterior.scale)
    outlines = mean[:, :, None] + np.asarray(factors) @ circle
    edge = 1.1 * np.abs(outlines).max()
    ticks = np.linspace(-edge, edge, 200, dtype=np.float32)
    grid = np.stack(np.meshgrid(ticks, ticks), -1)
    certain = jax.nn.softmax(net.apply(variables, grid, method="decode"))
    figure, axis = new_figure(6, 5.4)
    colors = matplotlib.colormaps["tab10"].colors
    pale = 1 - np.asarray(certain.max(-1, keepdims=True)) * (1 - np.asarray(colors)[np.asarray(certain.argmax(-1))])
    axis.imshow(pale, extent=(-edge, edge, -edge, edge), origin="lower", alpha=0.25)
    for outline, label in zip(outlines, data["label"], strict=False):
        axis.plot(*outline, color=colors[label], linewidth=0.6)
    for digit in np.unique(data["label"][:shown]):
        axis.plot([], [], color=colors[digit], label=str(digit))
    axis.set(xlabel="z1", ylabel="z2")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
