"""CDP: a committee of networks decides which pairs match; labels that spread along them cluster held-out identities.

    python -m experiments.cdp                                   # simulated embeddings of four networks, seconds
    python -m experiments.cdp --config=vote                     # or single, components: nothing is trained
    python -m experiments.cdp --config=emore_u200k --config.data.path=DIR   # the authors' data folder
    python -m experiments.cdp ... --eval_only --config.eval.people=200      # a trained mediator, other identities

The authors' data are DIR/labeled/emore_l200k and DIR/unlabeled/emore_u200k, each with features/NETWORK.bin and
meta.txt; data.train and eval.test name other files, one name per network, the base first.
Published (authors' README, emore_u200k, pairwise F): single 89.16, vote of five networks 93.13, mediator 95.79. The
threshold has the best pairwise F on the labelled identities.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.clustering import cdp
from facejax.data.synthetic import embeddings
from facejax.data.synthetic.embeddings import Embeddings
from facejax.evaluate.clustering import choose
from facejax.metrics import clustering
from facejax.ops import knn
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, share, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(embeddings.Source(views=4)),
    "graph": {
        "k": 15,  # neighbours of a face, itself included
        "method": "exact",  # or "approximate" or "faiss"
    },
    "pairs": {
        "kind": "mediator",  # or "vote"
        "accept": 3,  # networks besides the base that must list a pair (vote)
        "max_size": 40,  # faces of a component that is not split
        "step": 0.05,  # share of the way to 1 by which the threshold rises
    },
    "mediator": {"learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 1e-4},  # SGD
    "train": asdict(Options(batch_size=1024, steps=2000, log_every=200, save_every=500)),  # batch_size: pairs
    "eval": asdict(embeddings.HeldOut()),
}  # fmt: skip
NETWORKS = ("nas", "resnet50", "resnet101", "densenet121", "ir")
PRESETS = {
    "synthetic": {},
    "vote": {"pairs.kind": "vote"},
    "single": {"pairs.kind": "vote", "pairs.accept": 0},
    "components": {"pairs.kind": "vote", "pairs.accept": 0, "pairs.max_size": 10**9},
    "emore_u200k": {
        "data": {
            "source": "files",
            "width": 256,
            "train": ",".join(f"labeled/emore_l200k/{name}" for name in NETWORKS),
        },
        "eval.test": ",".join(f"unlabeled/emore_u200k/{name}" for name in NETWORKS),
        "pairs": {"max_size": 600, "accept": 4},
    },
}
CLAIM = Claim(
    "cdp.mediator",
    "a mediator over a committee of networks clusters held-out identities better than thresholded neighbours of one "
    "network",
    metric="pairwise_f",
    better="higher",
    method="synthetic",
    baseline=("single", "components"),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: the mediator is the only network; its pairs lie on every device."""
    settings, batch_size, net = config.pairs, config.train.batch_size, cdp.Mediator()
    if settings.kind not in ("mediator", "vote"):
        raise ValueError(f"pairs.kind is {settings.kind!r}: expected mediator or vote")
    data = embeddings.Source(**config.data)
    networks = data.views
    if data.source == "files":
        networks, unseen = (len(names.split(",")) for names in (data.train, config.eval.test))
        if networks != unseen:
            raise ValueError(f"data.train names {networks} networks, eval.test {unseen}: expected as many")
    if settings.kind == "vote" and data.source != "arrays" and not 0 <= settings.accept < networks:
        raise ValueError(
            f"pairs.accept is {settings.accept}: expected 0 to {networks - 1}, the networks beside the base"
        )
    labelled = functools.cache(lambda: data.known(config.seed))

    def neighbours(people: Embeddings) -> list[knn.Neighbours]:
        return [knn.knn(view, config.graph.k, method=config.graph.method) for view in people.views]

    def read(people: Embeddings) -> tuple[cdp.Pairs, jax.Array]:
        """All candidate pairs and the mediator's inputs [P, 3M + 2]."""
        near = neighbours(people)
        pairs = cdp.undirected(cdp.candidates(near[0]))
        return pairs, cdp.mediator_features(people.views, near, pairs)

    def scored(people: Embeddings, state: TrainState | None) -> cdp.Pairs:
        """All pairs that may be kept, scored by the mediator, or without one by the base network's cosine."""
        if state is None:
            near = neighbours(people)
            return cdp.vote(near[0], near[1:], -1.0, settings.accept)
        pairs, features = read(people)
        logits = net.apply({"params": state.params}, features)
        return pairs._replace(score=np.asarray(jax.nn.softmax(logits)[:, 1]))

    def clusters(pairs: cdp.Pairs, count: int, threshold: float) -> np.ndarray:
        """Clusters [N] of the pairs that score above the threshold; -1 for items without any."""
        kept = cdp.Pairs(*(x[pairs.score > threshold] for x in pairs))
        return cdp.propagate(kept, count, max_size=settings.max_size, step=settings.step)

    def evaluate(state: TrainState | None) -> Report:
        known, people = labelled(), data.unseen(config.seed, embeddings.HeldOut(**config.eval))
        pairs = scored(known, state)
        thresholds = np.quantile(pairs.score, np.linspace(0.02, 0.98, 49))
        best, figure = choose(known.labels, lambda t: clusters(pairs, len(known.labels), t), thresholds)
        found = clusters(scored(people, state), len(people.labels), best)
        return Report(
            {
                **clustering.report(people.labels, found),
                "discarded": float((found < 0).mean()),
                "threshold": best,
                "people": float(people.labels.max() + 1),
            },
            figures={"Threshold, chosen on labelled identities": figure},
            arrays={"clusters": found},
        )

    if settings.kind == "vote":
        return Experiment(evaluate)
    tx = optax.chain(
        optax.add_decayed_weights(config.mediator.weight_decay),
        optax.sgd(config.mediator.learning_rate, config.mediator.momentum),
    )

    def init(rng: jax.Array) -> TrainState:
        width = 3 * len(labelled().views) - 1
        return TrainState.create(rng, net.init(jax.random.split(rng)[0], jnp.zeros((1, width)))["params"], tx)

    def resident() -> dict[str, Any]:
        pairs, features = read(labelled())
        return {
            "features": features,
            "same": (labelled().labels[pairs.a] == labelled().labels[pairs.b]).astype(np.int32),
        }

    def loss_fn(params: Any, _: Any, batch: dict[str, jax.Array], __: jax.Array) -> Any:
        logits = net.apply({"params": params}, batch["features"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["same"])
        return losses.mean(), ({}, {"loss": Mean.of(losses)})

    update = supervised_step(loss_fn, tx)

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        shared = jax.random.fold_in(jax.random.split(state.rng)[1], state.step)  # the same draw on all devices
        chosen = jax.random.randint(shared, (batch_size,), 0, len(batch["same"]))[share(batch_size)[0]]
        return update(state, {name: x[chosen] for name, x in batch.items()}, rng)

    return Experiment(evaluate, init, train_step, resident=resident)


if __name__ == "__main__":
    app.main(get_config, build)
