"""Every clustering method and the usual baselines on the same people, in one table.

    python -m experiments.clustering_board                                  # simulated embeddings, some minutes
    python -m experiments.clustering_board --noise 0.9 --people 100 --only hac,star_fc
    python -m experiments.clustering_board --source arcface               # rendered faces, embedded by ArcFace
    python -m experiments.clustering_board --source arrays --path DIR     # embeddings.npy, labels.npy of --save_arrays

Each runs in a process of its own, so that its seconds (imports, compilation and training included) and its peak memory
are its own. Thresholds are those with the best pairwise F on labelled people; the k-means are told the true number.
With --source arcface the labelled people are those that the recognition net learnt from, so thresholds and networks
meet looser clusters than they were made for; --views trains as many nets, of which only CDP's committee uses all. ODC
is not here: it learns its own features from pictures and clusters those.
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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import arcface
from experiments.clustering_common import BASELINES, baseline, choose
from facejax.clustering import ogmc
from facejax.data import pipeline
from facejax.data.synthetic import embeddings
from facejax.metrics import clustering, verification
from facejax.train import Report, app, map_batches, new_figure
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


def run(name: str, data: dict[str, Any], seed: int) -> dict[str, Any]:
    """One line of the table.

    Args:
      name: of METHODS or BASELINES, or "ogmc".
      data: settings as in `embeddings.SETTINGS`.
      seed: of the people and of the training.
    """
    start = time.monotonic()
    if name in METHODS:
        module, preset = METHODS[name]
        module = importlib.import_module(f"experiments.{module}")
        config = module.get_config(preset)
        config.update_from_flattened_dict({"seed": seed, **{f"data.{key}": value for key, value in data.items()}})
        metrics = app.run(config, module.build, quiet=True)[1].metrics
    else:
        labelled, people = embeddings.load(ConfigDict(data), seed)

        def cluster(here: embeddings.Embeddings, threshold: float) -> np.ndarray:
            if name == "ogmc":
                return online(here.features, threshold)
            return baseline(name, here.features, threshold, k=20, clusters=len(np.unique(here.labels)))

        if name == "ogmc":  # a stream takes its time: not more people to choose on than there are to cluster
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
    """OGMC's people [N], the rows of [N, D] arriving in order, with all its distances `scale` times the usual ones."""
    usual = ogmc.RULES
    rules = usual._replace(fuse=scale * usual.fuse, strong=scale * usual.strong, weak=scale * usual.weak)
    state = ogmc.empty(len(features), features.shape[1], len(features))
    return ogmc.labels(ogmc.observe_all(state, jnp.asarray(features), rules)).identity


def embed_faces(folder: pathlib.Path, nets: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Trains ArcFace nets on the face world and writes what they make of its training and of its unseen people.

    Args:
      folder: for features/*.bin and labels/*.meta.
      nets: how many, with seeds of their own.
      overrides: dotted fields of the ArcFace experiment.

    Returns:
      Settings as in `embeddings.SETTINGS`.
    """
    names: dict[str, list[str]] = {"train": [], "test": []}
    for part in ("features", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for seed in range(nets):
        config = arcface.get_config()
        config.update_from_flattened_dict({**overrides, "seed": seed, "model.embedding_size": 256})
        state = app.run(config, arcface.build, name=f"arcface, net {seed}", quiet=True)[0]
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state}
        net = arcface.make_backbone(config.model)

        def embed(variables: Any, images: jax.Array, net: Any = net) -> jax.Array:
            return net.apply(variables, arcface.preprocess(images), train=False)

        for split, source in zip(names, arcface.people(config), strict=True):
            examples = pipeline.fetch(source, range(len(source)))
            images = np.stack([arcface.picture(example, config.data.image_size) for example in examples])
            views = (map_batches(embed, variables, x, config.eval.batch_size) for x in (images, images[:, :, ::-1]))
            name = f"{split}{seed}"
            verification.flip_embedding(*views).astype("<f4").tofile(folder / "features" / f"{name}.bin")
            labels = "".join(f"{arcface.label(example)}\n" for example in examples)
            (folder / "labels" / f"{name}.meta").write_text(labels)
            names[split].append(name)
    return {
        "source": "files", "path": str(folder), "width": 256, **{key: ",".join(made) for key, made in names.items()},
    }  # fmt: skip


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a process of its own, whose peak memory begins at this one's."""
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
    chosen = {
        **embeddings.SETTINGS,
        "labelled": 1000,
        "people": 200,
        "width": 32,
        "noise": 0.7,
        "drift": 1.5,
        "views": 4,
    }
    for key, value in chosen.items():
        parser.add_argument(f"--{key}", type=type(value), default=value, help=f"data.{key} (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(EVERY), help="methods, with commas between them")
    parser.add_argument("--workdir", default="runs/clustering_board")
    arguments = vars(parser.parse_args())
    data = {key: arguments[key] for key in chosen}
    names = arguments["only"].split(",")
    if unknown := [name for name in names if name not in EVERY]:
        parser.error(f"no method {unknown[0]!r}: expected some of {', '.join(EVERY)}")
    if data["source"] == "arcface":
        data |= apart(embed_faces, pathlib.Path(arguments["workdir"]) / "embeddings", data["views"], {})
    rows = []
    print(f"{'method':18}" + "".join(f"{c:>12}" for c in COLUMNS))
    for name in names:
        rows.append(apart(run, name, data, arguments["seed"]))
        print(f"{name:18}" + "".join(f"{rows[-1][c]:>12}" for c in COLUMNS), flush=True)
    rows.sort(key=lambda row: -row["pairwise_f"])
    page = pathlib.Path(arguments["workdir"]) / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    report = Report({}, tables={"Clustering": rows}, figures={"Both F": figure(rows)})
    write_html(page, "clustering_board", report, [], str(data), __doc__.partition("\n")[0])
    print(f"report: {page}")


if __name__ == "__main__":
    main()
