"""`facejax group`: the faces of a folder in groups of one person each, and how certain each face's place is.

The certainty of a face is a margin of mean cosines: to the other faces of its group, less to the faces of the
runner-up, the group that is next most like it. A face alone has no others; the typical value of the run, the median
over all faces in company, stands for them. A low certainty therefore means a face that is as near to another group as
to its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

NEIGHBOURS = 10
UNCERTAIN = 0.25
"""Faces with a lower certainty are listed."""
LARGEST = 20_000
"""Faces of the largest component that average linkage takes: its distances need 8 bytes a pair."""
BLOCK = 2**24
"""Elements of a block of cosines."""
SHEET = 200
"""Faces of a contact sheet: the most central ones of a group."""
WRITTEN = ("people", "groups.jsonl", "uncertain.jsonl", "index.html")
"""What `write` makes."""


class Method(NamedTuple):
    """A way to group faces.

    Attributes:
      threshold: by default.
      about: what is joined, for the command's help.
    """

    threshold: float
    about: str


METHODS = {
    "average": Method(0.48, "groups whose mean cosine is above the threshold, the most similar first"),
    "rank_order": Method(0.2, "neighbours whose rank-order distance is below the threshold"),
    "density": Method(0.48, "each face and its nearest denser neighbour, if their cosine is above the threshold"),
    "components": Method(0.5, "neighbours whose cosine is above the threshold"),
    "cdp": Method(0.5, "the same, with components of over 600 faces split at rising thresholds"),
    "star_fc": Method(0.7, "neighbours that STAR-FC's network finds to be one person; needs --star_fc"),
}
"""The first is the default."""


class Grouping(NamedTuple):
    """N faces in G groups.

    Attributes:
      group: [N] number of the group, the largest group being 0.
      own: [N] mean cosine to the other faces of the group; NaN of a face alone.
      runner_up: [N] the group of others with the highest mean cosine; -1 where there is one group only.
      other: [N] that mean cosine; NaN without it.
      certainty: [N] own (of a face alone: the median of all own) less other; 1 without a runner-up.
    """

    group: np.ndarray
    own: np.ndarray
    runner_up: np.ndarray
    other: np.ndarray
    certainty: np.ndarray


def cluster(
    embeddings: np.ndarray,
    method: str = "average",
    threshold: float | None = None,
    *,
    k: int = NEIGHBOURS,
    star_fc: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """A number for each face; equal numbers mean one group.

    Args:
      embeddings: [N, D].
      method: one of `METHODS`.
      threshold: None: that of the method.
      k: neighbours of a face, itself included; all methods but "average" look at them only.
      star_fc: safetensors file of the variables of `facejax.clustering.star_fc.EdgeNet`, for "star_fc".

    Raises:
      ValueError: an unknown method, a missing or unfitting file, or too many faces for "average".
    """
    from facejax.clustering import baselines, cdp, vegcn
    from facejax.metrics.clustering import singletons
    from facejax.ops import knn
    from facejax.ops.vectors import unit_rows

    if method not in METHODS:
        raise ValueError(f"method is {method!r}: expected one of {', '.join(METHODS)}")
    threshold = METHODS[method].threshold if threshold is None else threshold
    features = unit_rows(embeddings, np.float32)
    if len(features) < 2:
        return np.arange(len(features))
    if method == "average":
        return average_linkage(features, threshold)
    near = knn.knn(features, min(k, len(features)))
    if method == "rank_order":
        return baselines.rank_order(near, threshold)
    if method == "density":
        return vegcn.trees_to_labels(vegcn.nearest_peaks(near, knn.density(near)), threshold)
    if method == "components":
        return baselines.neighbour_components(near, threshold)
    if method == "cdp":
        return singletons(cdp.propagate(cdp.vote(near, [], threshold, 0), len(features)))
    return _star_fc(features, near, threshold, star_fc)


def average_linkage(features: np.ndarray, threshold: float) -> np.ndarray:
    """Agglomerative clustering by mean cosine, until no two groups have one above the threshold.

    Two such groups have a pair of faces with a cosine above the threshold. So groups lie within the connected
    components of all such pairs, and each component is treated alone: exact, without a matrix of all pairs.

    Args:
      features: [N, D] of length 1.
      threshold: a cosine.

    Returns:
      [N] numbers of groups.

    Raises:
      ValueError: a component has more than `LARGEST` faces.
    """
    from scipy.cluster import hierarchy

    from facejax.ops.components import connected_components

    count = len(features)
    component = np.arange(count)
    step = max(1, BLOCK // count)
    for start in range(0, count, step):
        products = features[start : start + step] @ features[start:].T
        rows, columns = np.nonzero(products > threshold)
        joined = connected_components(component[start + rows], component[start + columns], count)
        component = joined[component]
    order = np.argsort(component, kind="stable")
    labels, used = np.empty(count, int), 0
    for members in np.split(order, np.flatnonzero(np.diff(component[order])) + 1):
        if len(members) > LARGEST:
            raise ValueError(
                f"{len(members):,} faces hang together above a cosine of {threshold:g}, expected at most {LARGEST:,} "
                "for average linkage: take a higher --threshold or another --method"
            )
        found = np.ones(len(members), int)
        if len(members) > 1:
            part = features[members].astype(np.float64)
            distances = (1 - part @ part.T)[np.triu_indices(len(part), 1)]
            found = hierarchy.fcluster(hierarchy.linkage(distances, "average"), 1 - threshold, "distance")
        labels[members] = used + found - 1
        used += found.max()
    return labels


def _star_fc(features: np.ndarray, near: Any, threshold: float, file: str | os.PathLike[str] | None) -> np.ndarray:
    import jax
    import jax.numpy as jnp

    from facejax.clustering import star_fc
    from facejax.interop import files
    from facejax.interop.names import flat
    from facejax.ops import knn

    if file is None:
        raise ValueError("the method star_fc needs --star_fc FILE, the weights of its network")
    graph, edges, net = knn.affinity(near), star_fc.directed_edges(near), star_fc.EdgeNet()
    ends = jnp.zeros(1, int)
    template = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.asarray(features), graph, ends, ends))
    found = files.read_safetensors(file)
    wanted = {name: leaf.shape for name, leaf in flat(template).items()}
    given = {name: tensor.shape for name, tensor in found.items()}
    if wanted != given:
        name = next(name for name in [*wanted, *given] if wanted.get(name) != given.get(name))
        raise ValueError(f"{file}: {name} is {given.get(name)}, expected {wanted.get(name)} of STAR-FC's network for "
                         f"embeddings of {features.shape[1]} numbers")  # fmt: skip
    variables = jax.tree.unflatten(jax.tree.structure(template), [found[name] for name in wanted])
    nodes = net.apply(variables, jnp.asarray(features), graph, method=star_fc.EdgeNet.ends)
    probability = np.asarray(star_fc.edge_probabilities(net, variables, nodes, edges, chunk=2**14))
    return star_fc.cluster(edges, probability, len(features), score=threshold, shared=0.72)


def grouping(embeddings: np.ndarray, labels: np.ndarray) -> Grouping:
    """Groups by falling size, and the certainty of each face; see `Grouping`.

    Args:
      embeddings: [N, D].
      labels: [N], equal within a group.
    """
    from facejax.ops.vectors import unit_rows

    features = unit_rows(embeddings, np.float32)
    _, first, labels, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    place = np.empty(len(sizes), int)
    place[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    group = place[labels]
    sums = np.zeros((len(sizes), features.shape[1]), np.float32)
    np.add.at(sums, group, features)
    sizes = np.bincount(group, minlength=len(sizes))
    count = len(group)
    own, other, runner_up = np.full(count, np.nan), np.full(count, np.nan), np.full(count, -1)
    step = max(1, BLOCK // max(len(sizes), 1))
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        mine = group[rows]
        means = features[rows] @ sums.T
        here = means[np.arange(len(rows)), mine]
        own[rows] = np.where(sizes[mine] > 1, (here - 1) / np.maximum(sizes[mine] - 1, 1), np.nan)
        means /= sizes
        means[np.arange(len(rows)), mine] = -np.inf
        if len(sizes) > 1:
            runner_up[rows] = means.argmax(1)
            other[rows] = means.max(1)
    company = sizes[group] > 1
    usual = np.median(own[company]) if company.any() else 1.0
    certainty = np.where(runner_up < 0, 1.0, np.where(company, own, usual) - other)
    return Grouping(group, own, runner_up, other, certainty)


def write(run: str | os.PathLike[str], out: str | os.PathLike[str], found: Grouping, uncertain: float) -> int:
    """Writes a grouping: groups.jsonl, uncertain.jsonl, people/GROUP with crops, people/GROUP.png, and index.html.

    Faces alone share the folder people/alone. Crops are copies.

    Args:
      run: folder of the run with the faces.
      out: an existing folder.
      found: of the faces in the order of their ids.
      uncertain: faces below this certainty are listed in uncertain.jsonl, the least certain first.

    Returns:
      How many are.
    """
    from facejax.analysis import folder as runs
    from facejax.analysis import page

    run, out = pathlib.Path(run), pathlib.Path(out)
    faces = sorted(
        ((face, record["file"]) for record in runs.read_records(run) for face in record.get("faces", ())),
        key=lambda pair: pair[0]["id"],
    )
    sizes = np.bincount(found.group, minlength=1)
    lines = []
    for row, (face, file) in enumerate(faces):
        values = {name: getattr(found, name)[row].item() for name in Grouping._fields}
        lines.append(
            {"id": face["id"], "file": file, **{n: _plain(v) for n, v in values.items()}, "crop": face.get("crop")}
        )
        if lines[-1]["runner_up"] == -1:
            lines[-1]["runner_up"] = None
    folders = [f"{group:05d}" if size > 1 else "alone" for group, size in enumerate(sizes)]
    for name in dict.fromkeys(folders):
        (out / "people" / name).mkdir(parents=True)
    for line in lines:
        if line["crop"]:
            stem = pathlib.PurePath(line["file"]).stem[:80]
            copy = out / "people" / folders[line["group"]] / f"{line['id']:08d}_{stem}.png"
            shutil.copyfile(run / line["crop"], copy)
    central = sorted((line for line in lines if line["crop"]), key=lambda line: (line["group"], -(line["own"] or 0)))
    for name, members in itertools.groupby(central, lambda line: folders[line["group"]]):
        members = list(members)[:SHEET]
        _sheet(
            out / "people" / f"{name}.png",
            [run / m["crop"] for m in members],
            [m["certainty"] for m in members],
            uncertain,
        )
    doubtful = sorted((line for line in lines if line["certainty"] < uncertain), key=lambda line: line["certainty"])
    page.write(run, out / "index.html", {line["id"]: page.Place(line["group"], line["certainty"]) for line in lines})
    for name, part in (("uncertain.jsonl", doubtful), ("groups.jsonl", lines)):
        (out / name).write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in part))
    return len(doubtful)


def _plain(value: float) -> float | None:
    return None if value != value else round(value, 4)


def _sheet(path: pathlib.Path, crops: Sequence[pathlib.Path], certainty: Sequence[float], uncertain: float) -> None:
    """A picture of faces with their certainties; uncertain ones are framed in red."""
    from PIL import Image, ImageDraw

    side, text, columns = 112, 16, min(10, len(crops))
    sheet = Image.new("RGB", (columns * side, -(-len(crops) // columns) * (side + text)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (crop, value) in enumerate(zip(crops, certainty, strict=True)):
        x, y = i % columns * side, i // columns * (side + text)
        with Image.open(crop) as image:
            sheet.paste(image.convert("RGB").resize((side, side)), (x, y))
        colour = "red" if value < uncertain else "black"
        if value < uncertain:
            draw.rectangle((x, y, x + side - 1, y + side - 1), outline=colour, width=3)
        draw.text((x + 4, y + side + 2), f"{value:.2f}", fill=colour)
    sheet.save(path)


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    from facejax.analysis import main

    about = "\n".join(f"  {name:11} {m.about} (threshold {m.threshold:g})" for name, m in METHODS.items())
    parser = subparsers.add_parser(
        "group",
        help="groups of the same person",
        description="Groups the faces of a folder by person. Nothing is moved: each group gets a folder of crops.",
        epilog=f"methods:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photographs", nargs="+", help="image files and folders of them, or the folder of a run")
    parser.add_argument("--out", required=True, help="new folder of the groups; an interrupted command goes on")
    parser.add_argument("--method", choices=METHODS, default=next(iter(METHODS)))
    parser.add_argument("--threshold", type=float, help="default: that of the method; see --calibration")
    parser.add_argument("--calibration", metavar="FILE", help="`facejax compare --save`: average linkage's threshold")
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS, help=f"of a face (default {NEIGHBOURS})")
    parser.add_argument("--star_fc", metavar="FILE", help="safetensors file of STAR-FC's variables")
    parser.add_argument("--uncertain", type=float, default=UNCERTAIN, help=f"list faces below (default {UNCERTAIN})")
    main.common(parser)


def _threshold(args: argparse.Namespace, identity: Mapping[str, Mapping[str, str]]) -> float | None:
    """The threshold of the command: its own, or for average linkage that of the weights' usual operating point."""
    from facejax.analysis import compare

    if args.threshold is not None or args.method != "average":
        return args.threshold
    calibration = compare.known(identity, args.calibration)
    if calibration:
        return calibration.point(None).threshold
    print(
        f"no operating point was measured for {compare.recogniser(identity)['name']}: the threshold "
        f"{METHODS['average'].threshold:g} is that of another network; --threshold and --calibration set it",
        file=sys.stderr,
    )
    return None


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand: 0, or 1 if a photograph was unreadable.

    Everything is made in OUT.partial, which becomes OUT at the end; a killed command finds its analysis there.

    Raises:
      ValueError, OSError: wrong usage, or an invalid folder.
    """
    from facejax.analysis import folder as runs
    from facejax.analysis import main, photographs

    out = pathlib.Path(args.out).absolute()
    partial = out.with_name(f"{out.name}.partial")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{args.out} is not empty: expected a new folder for the groups")
    if partial.exists() and not {path.name for path in partial.iterdir()} <= {"analysis", *WRITTEN}:
        raise ValueError(f"{partial} holds other files: expected what an interrupted command left there, or nothing")
    if args.neighbours < 2:
        raise ValueError(f"--neighbours is {args.neighbours}: expected 2 or more, a face itself being one")
    source, failed = pathlib.Path(args.photographs[0]), 0
    given = len(args.photographs) == 1 and (source / "run.json").is_file()
    if not given:
        photographs.files(args.photographs)  # a wrong name fails before networks are read
        source = partial / "analysis"
        source.mkdir(parents=True, exist_ok=True)
        analyzer = main.analyzer(args)
        options = {"progress": sys.stderr.isatty(), "max_pixels": args.max_pixels}
        failed = runs.analyse(args.photographs, analyzer, source, **options)
    embeddings = runs.read_embeddings(source)
    if not len(embeddings) or not embeddings.shape[1]:
        raise ValueError(f"{source}: no embeddings there, expected faces and a recogniser among the weights")
    threshold = _threshold(args, runs.read_run(source)["weights"])
    labels = cluster(embeddings, args.method, threshold, k=args.neighbours, star_fc=args.star_fc)
    found = grouping(embeddings, labels)
    for name in WRITTEN:  # by a killed command
        left = partial / name
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    partial.mkdir(exist_ok=True, parents=True)
    doubtful = write(source, partial, found, args.uncertain)
    if out.exists():
        out.rmdir()
    partial.rename(out)
    sizes = np.bincount(found.group)
    print(
        f"{args.out}: {len(labels):,} faces, {int((sizes > 1).sum()):,} groups of two or more, "
        f"{int((sizes == 1).sum()):,} faces alone, {doubtful:,} uncertain"
    )
    return int(failed > 0)
