"""Every clustering method and common baselines on the same held-out identities, in one table.

    python -m experiments.clustering_board                                  # simulated embeddings, some minutes
    python -m experiments.clustering_board --noise 0.9 --people 100 --only hac,star_fc
    python -m experiments.clustering_board --source arcface               # rendered faces, embedded by ArcFace
    python -m experiments.clustering_board --source arrays --path DIR     # embeddings.npy, labels.npy of --save_arrays

Each method runs in a process of its own, so that seconds (imports, compilation and training included) and peak memory
belong to that method alone. Thresholds have the best pairwise F on labelled identities; only the two k-means receive
the true number of identities. With --source arcface the labelled identities are those that the recognition network was
trained on, so their clusters are tighter than those of held-out ones; --views trains as many networks, and only CDP
uses more than the first. ODC learns its own features from images and clusters those, so it is left out.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import pathlib
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import jax.numpy as jnp
import numpy as np

from facejax.clustering import ogmc
from facejax.clustering.baselines import BASELINES, baseline
from facejax.data.identities import Identities
from facejax.data.synthetic import embeddings
from facejax.evaluate import verification
from facejax.evaluate.clustering import choose
from facejax.evaluate.embedder import Backbone, embed_flipped
from facejax.metrics import clustering
from facejax.train import Report, app, new_figure
from facejax.train.report import write_html

METHODS = {
    "cdp": ("cdp", "synthetic"),
    "cdp_single": ("cdp", "single"),
    "density": ("vegcn", "density"),
    "gcn_v": ("vegcn", "gcn_v"),
    "vegcn": ("vegcn", "synthetic"),
    "density_aware": ("density_aware", "synthetic"),
    "star_fc": ("star_fc", "synthetic"),
}
OGMC = np.linspace(0.5, 1.5, 11)
EVERY = (*METHODS, "ogmc", *BASELINES)
COLUMNS = ("pairwise_f", "bcubed_f", "nmi", "seconds", "peak MiB")


def run(name: str, data: dict[str, Any], held_out: dict[str, Any], seed: int) -> dict[str, Any]:
    """One line of the table.

    Args:
      name: of METHODS or BASELINES, or "ogmc".
      data: fields of `embeddings.Source`.
      held_out: fields of `embeddings.HeldOut`.
      seed: of the identities and of the training.
    """
    start = time.monotonic()
    if name in METHODS:
        module, preset = METHODS[name]
        module = importlib.import_module(f"experiments.{module}")
        config = module.get_config(preset)
        config.update({"seed": seed, "data": data, "eval": held_out})
        metrics = app.run(config, module.build, quiet=True)[1].metrics
    else:
        source = embeddings.Source(**data)
        labelled, people = source.known(seed), source.unseen(seed, embeddings.HeldOut(**held_out))

        def cluster(here: embeddings.Embeddings, threshold: float) -> np.ndarray:
            if name == "ogmc":
                return online(here.features, threshold)
            return baseline(name, here.features, threshold, k=20, clusters=len(np.unique(here.labels)))

        if name == "ogmc":  # streams are slow: the threshold is chosen on no more identities than are clustered
            part = len(np.unique(people.labels)) / len(np.unique(labelled.labels))
            labelled = embeddings.split(labelled, min(part, 1.0), seed)[0]
        thresholds = OGMC if name == "ogmc" else BASELINES[name]
        threshold = thresholds[0]
        if len(thresholds) > 1:
            threshold, _ = choose(labelled.labels, lambda t: cluster(labelled, t), thresholds)
        metrics = clustering.report(people.labels, cluster(people, threshold))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {key: round(float(metrics[key]), 4) for key in COLUMNS[:3]}
    return {"method": name, **row, "seconds": round(time.monotonic() - start, 1), "peak MiB": round(peak)}


def online(features: np.ndarray, scale: float) -> np.ndarray:
    """OGMC's identities [N] of the rows of [N, D] in order, with all its distances `scale` times the default ones."""
    usual = ogmc.RULES
    rules = usual._replace(fuse=scale * usual.fuse, strong=scale * usual.strong, weak=scale * usual.weak)
    state = ogmc.empty(len(features), features.shape[1], len(features))
    return ogmc.labels(ogmc.observe_all(state, jnp.asarray(features), rules)).identity


def embed_faces(folder: pathlib.Path, nets: int, overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains ArcFace networks on the face world and writes embeddings of its training and held-out identities.

    Args:
      folder: for features/*.bin and labels/*.meta.
      nets: how many, with seeds of their own.
      overrides: dotted fields of the ArcFace experiment.

    Returns:
      Fields of `embeddings.Source` and of `embeddings.HeldOut`.
    """
    arcface = importlib.import_module("experiments.arcface")
    names: dict[str, list[str]] = {"train": [], "test": []}
    for part in ("features", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for seed in range(nets):
        config = arcface.get_config()
        config.update_from_flattened_dict({**overrides, "seed": seed, "model.embedding_size": 256})
        state = app.run(config, arcface.build, name=f"arcface, net {seed}", quiet=True)[0]
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state}
        net = Backbone(**config.model).make()
        for split, source in zip(names, Identities(**config.data).split(seed), strict=True):
            images, labels = verification.held_out_images(source, config.data.image_size)
            name = f"{split}{seed}"
            features = embed_flipped(net, variables, images, config.eval.batch_size)
            features.astype("<f4").tofile(folder / "features" / f"{name}.bin")
            (folder / "labels" / f"{name}.meta").write_text("".join(f"{label}\n" for label in labels))
            names[split].append(name)
    data = {"source": "files", "path": str(folder), "width": 256, "train": ",".join(names["train"])}
    return data, {"test": ",".join(names["test"])}


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Result of the function in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def figure(rows: list[dict[str, Any]]) -> Any:
    """Bars of both F, the best method on top."""
    drawing, axis = new_figure(6.5, 0.3 * len(rows) + 1)
    place = np.arange(len(rows))[::-1]
    for shift, name in ((0.2, "pairwise_f"), (-0.2, "bcubed_f")):
        axis.barh(place + shift, [row[name] for row in rows], 0.4, label=name)
    axis.set_yticks(place, [row["method"] for row in rows])
    axis.set(xlim=(0, 1))
    axis.legend(frameon=False, fontsize=8)
    return drawing


def main() -> None:
    """Prints the table and writes report.html."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sections = {
        "data": asdict(embeddings.Source(labelled=1000, width=32, noise=0.7, drift=1.5, views=4)),
        "eval": asdict(embeddings.HeldOut(people=200)),
    }
    for section, fields in sections.items():
        for key, value in fields.items():
            parser.add_argument(f"--{key}", type=type(value), default=value, help=f"{section}.{key} (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(EVERY), help="methods, separated by commas")
    parser.add_argument("--workdir", default="runs/clustering_board")
    arguments = vars(parser.parse_args())
    data, held_out = ({key: arguments[key] for key in fields} for fields in sections.values())
    names = arguments["only"].split(",")
    if unknown := [name for name in names if name not in EVERY]:
        parser.error(f"no method {unknown[0]!r}: expected some of {', '.join(EVERY)}")
    if data["source"] == "arcface":
        folder = pathlib.Path(arguments["workdir"]) / "embeddings"
        for fields, made in zip((data, held_out), apart(embed_faces, folder, data["views"], {}), strict=True):
            fields.update(made)
    rows = []
    print(f"{'method':18}" + "".join(f"{c:>12}" for c in COLUMNS))
    for name in names:
        rows.append(apart(run, name, data, held_out, arguments["seed"]))
        print(f"{name:18}" + "".join(f"{rows[-1][c]:>12}" for c in COLUMNS), flush=True)
    rows.sort(key=lambda row: -row["pairwise_f"])
    page = pathlib.Path(arguments["workdir"]) / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    report = Report({}, tables={"Clustering": rows}, figures={"Both F": figure(rows)})
    write_html(page, "clustering_board", report, [], str({"data": data, "eval": held_out}), __doc__.partition("\n")[0])
    print(f"report: {page}")


if __name__ == "__main__":
    main()
