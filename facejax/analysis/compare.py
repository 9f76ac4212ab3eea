"""`facejax compare`: do two photographs show the same person, and how often is such an answer wrong?

An answer needs a threshold of the cosine similarity, and a threshold is worth what is known of its errors. A
calibration lists operating points with the error rates that one recogniser had on one list of pairs. Some are shipped
(`SHIPPED`, measured by this command); `--pairs` measures one on the user's own pairs. Without one, only the
similarity is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from facejax.analysis.index import recogniser, sentence
from facejax.formats import texts

if TYPE_CHECKING:
    from facejax.analysis.faces import Faces

SHIPPED = pathlib.Path(__file__).resolve().parents[1] / "assets" / "operating_points_v1.json"
"""Calibrations of published weights, a list of what `--save` writes."""
TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)
"""False match rates for which `calibrate` looks for a threshold, if the pairs are enough to count one false match."""
USUAL_FMR = 1e-3
RESAMPLES = 1000
FEWEST = 10
"""Number of people below which an interval is 0 to 1."""

LFW_NAME = re.compile(r"\.?[^./\\][^/\\]*")

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Point:
    """An operating point: pairs with a similarity of at least the threshold count as one person.

    Attributes:
      name: "FMR 0.1 %" (the largest false match rate that was allowed) or "equal error".
      threshold: a cosine, -1 to 1.
      fmr, fnmr: measured shares of impostor pairs above and of genuine pairs below the threshold, 0 to 1.
      fmr_interval, fnmr_interval: 95 % intervals of both.
    """

    name: str
    threshold: float
    fmr: float
    fmr_interval: Interval
    fnmr: float
    fnmr_interval: Interval


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Operating points of one recogniser on one list of pairs.

    Attributes:
      identity: of the stages that made the embeddings, by name: {"name", "sha256"}.
      pairs: what they were measured on.
      people, photographs, genuine, impostors: counts of what was compared.
      missing: photographs of the list without a face or not readable; their pairs are left out.
      points: by rising threshold.
    """

    identity: Mapping[str, Mapping[str, str]]
    pairs: str
    people: int
    photographs: int
    genuine: int
    impostors: int
    missing: int
    points: tuple[Point, ...]

    def fits(self, identity: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether the recogniser is that of `identity`."""
        return self.identity["recogniser"]["sha256"] == recogniser(identity)["sha256"]

    def point(self, fmr: float | None) -> Point:
        """The point with the largest false match rate of at most `fmr`; None: `USUAL_FMR`, or the strictest there is.

        Raises:
          ValueError: all points have a greater rate than `fmr`, or one below what the impostor pairs can show.
        """
        if fmr is not None and not 1 <= fmr * self.impostors <= self.impostors:
            raise ValueError(
                f"--fmr is {fmr:g}: {self.impostors:,} impostor pairs show rates of {1 / self.impostors:.2g} to 1"
            )
        fitting = [p for p in self.points if p.fmr <= (USUAL_FMR if fmr is None else fmr) + 1e-12]
        if not fitting and fmr is None:
            return self.points[-1]
        if not fitting:
            raise ValueError(
                f"--fmr is {fmr:g}: the operating points have {', '.join(f'{p.fmr:.2g}' for p in self.points)}"
            )
        return max(fitting, key=lambda p: p.fmr)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON to a new file.

        Raises:
          ValueError: the file exists.
        """
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(dataclasses.asdict(self), file, indent=1)
                file.write("\n")
        except FileExistsError:
            raise ValueError(f"{os.fspath(path)} exists: expected the name of a new file for the calibration") from None


def known(identity: Mapping[str, Mapping[str, str]], path: str | os.PathLike[str] | None = None) -> Calibration | None:
    """The calibration of a recogniser, in a file of the user's or else among the shipped ones; None: there is none.

    Raises:
      ValueError: the user's file is damaged, or of another recogniser.
    """
    found = load(path or SHIPPED)
    fitting = [c for c in found if c.fits(identity)]
    if path and not fitting:
        raise ValueError(
            f"{os.fspath(path)} was measured for {found[0].identity['recogniser']['name']}, not for the weights in "
            f"use, {recogniser(identity)['name']}: sha256 differs"
        )
    return fitting[0] if fitting else None


def load(path: str | os.PathLike[str]) -> list[Calibration]:
    """The calibrations of a JSON file: one as `Calibration.save` writes it, or a list of them.

    Raises:
      ValueError: the file holds something else.
    """
    try:
        content = json.loads(pathlib.Path(path).read_bytes())
        return [_calibration(entry) for entry in (content if isinstance(content, list) else [content])]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{os.fspath(path)} is no calibration as --save writes it ({reason})") from None


def _calibration(entry: Mapping[str, Any]) -> Calibration:
    points = tuple(
        Point(**{k: tuple(map(float, v)) if k.endswith("interval") else v for k, v in p.items()})
        for p in entry["points"]
    )
    made = Calibration(**{**entry, "points": points})
    made.identity["recogniser"]["sha256"].lower()
    numbers = [x for p in points for x in (p.threshold, p.fmr, p.fnmr, *p.fmr_interval, *p.fnmr_interval)]
    if not points or not all(-1.001 <= float(x) <= 1.001 for x in numbers):
        raise ValueError("expected points with thresholds in -1..1 and rates in 0..1")
    return made


class Pairs(NamedTuple):
    """A list of pairs.

    Attributes:
      files: F paths, each once.
      people: [F] number of the person on each.
      first, second: [N] places in `files`.
      same: [N] bool.
    """

    files: list[str]
    people: np.ndarray
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


def read_pairs(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Pairs:
    """A list of pairs: lines "a b same", or LFW's pairs.txt.

    "a b same" has two file names and 1 (one person) or 0, apart by tabs or, in lines without tabs, by spaces; empty
    lines and lines that begin with # are skipped. People follow from the pairs: files that genuine pairs join show one
    person. LFW's list begins with a line of one or two numbers; its lines are "name 1 2" and "name 1 other 2" for the
    files name/name_0001.jpg.

    Args:
      path: the list.
      root: folder of the files; None: that of the list.

    Raises:
      ValueError: a line that is neither, a contradiction, or no pair; errors name file and line.
    """
    path = pathlib.Path(path)
    root = path.parent if root is None else pathlib.Path(root)
    lines = enumerate(texts.lines(texts.read(path)), 1)
    numbered = [(n, line.strip()) for n, line in lines if line.strip() and not line.startswith("#")]
    lfw = bool(numbered) and re.fullmatch(r"\d+(\s+\d+)?", numbered[0][1]) is not None
    files: dict[str, int] = {}
    names: list[str] = []
    rows = []

    def place(file: str, name: str = "") -> int:
        if file not in files:
            files[file] = len(files)
            names.append(name)
        return files[file]

    for number, line in numbered[lfw:]:
        cells = re.split(r"\t+" if "\t" in line else r"\s+", line)
        ends = [(cells[0], n) for n in cells[1:]] if len(cells) == 3 else [tuple(cells[:2]), tuple(cells[2:])]
        if lfw and len(cells) in (3, 4) and all(LFW_NAME.fullmatch(name) and n.isdecimal() for name, n in ends):
            places = (place(os.path.normpath(root / name / f"{name}_{int(n):04d}.jpg"), name) for name, n in ends)
            rows.append((*places, ends[0][0] == ends[1][0], number))
        elif not lfw and len(cells) == 3 and cells[2] in ("0", "1"):
            rows.append((*(place(os.path.normpath(root / name)) for name in cells[:2]), cells[2] == "1", number))
        else:
            expected = '"name 1 2" or "name 1 other 2"' if lfw else '"a b 1" or "a b 0"'
            raise ValueError(f"{path}, line {number}: {line[:80]!r}, expected {expected}")
    if not rows:
        raise ValueError(f"{path}: no pair, expected lines of two file names and 1 or 0")
    first, second, same, line = (np.array(x) for x in zip(*rows, strict=True))
    if lfw:
        people = np.unique(names, return_inverse=True)[1]
    else:
        from facejax.ops.components import connected_components

        people = connected_components(first[same], second[same], len(files))
    wrong = ~same & (people[first] == people[second])
    if wrong.any():
        number = int(line[np.argmax(wrong)])
        raise ValueError(f"{path}, line {number}: an impostor pair, but other lines make both files one person")
    return Pairs(list(files), people, first, second, same)


def calibrate(
    scores: np.ndarray, same: np.ndarray, people: np.ndarray, targets: Sequence[float] = TARGETS
) -> tuple[Point, ...]:
    """Operating points of scored pairs.

    The threshold of a target is the lowest with no more false matches, halfway between two scores. Intervals: bootstrap
    over people (a pair counts as often as both of its people were drawn, Fogliato et al. 2024, arXiv:2306.01198),
    thresholds fixed. Where no error occurred, the upper end is the exact binomial bound of as many trials as there are
    people (FNMR) or disjoint pairs of people (FMR). Of fewer than ten people the intervals are 0 to 1.

    Args:
      scores: [N] similarities.
      same: [N] bool, genuine pairs.
      people: [N, 2] int, the people of each pair.
      targets: false match rates; those below one false match of all impostor pairs are left out.

    Raises:
      ValueError: no genuine or no impostor pair, or scores that are not finite.
    """
    from facejax.metrics.verification import check_pairs

    scores, same = check_pairs(scores, same)
    genuine, impostors = np.sort(scores[same]), np.sort(scores[~same])
    levels = np.unique(scores)
    cuts = np.concatenate([[levels[0]], (levels[1:] + levels[:-1]) / 2, [np.nextafter(levels[-1], np.inf)]])
    fmr = 1 - np.searchsorted(impostors, cuts) / len(impostors)
    fnmr = np.searchsorted(genuine, cuts) / len(genuine)
    gap = np.abs(fmr - fnmr).round(12)[::-1]  # the stricter of two equal ones
    chosen = {"equal error": len(gap) - 1 - int(np.argmin(gap))}
    for target in targets:
        if target * len(impostors) > 1 - 1e-9:
            chosen[f"FMR {100 * target:g} %"] = int(np.argmax(fmr <= target + 1e-12))
    resampled = _bootstrap(same, people)
    points = []
    for name, i in chosen.items():
        t = float(cuts[i])
        ranges = resampled(scores >= t)
        points.append(Point(name, t, float(fmr[i]), ranges[0], float(fnmr[i]), ranges[1]))
    return tuple(sorted(points, key=lambda p: p.threshold))


def _bootstrap(same: np.ndarray, people: np.ndarray) -> Callable[[np.ndarray], tuple[Interval, Interval]]:
    """Accepted pairs [N] -> 95 % intervals of FMR and FNMR over resampled people."""
    import scipy.sparse

    names, ends = np.unique(people, return_inverse=True)
    ends = ends.reshape(people.shape)
    count = len(names)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
    a, b = ends[~same].T
    person = ends[same, 0]

    def impostor(values: np.ndarray) -> np.ndarray:
        table = scipy.sparse.coo_matrix((values, (a, b)), (count, count)).tocsr()
        return ((table.T @ drawn.T).T * drawn).sum(1)

    def genuine(values: np.ndarray) -> np.ndarray:
        return drawn @ np.bincount(person, values, count)

    totals = impostor(np.ones(len(a))), genuine(np.ones(len(person)))
    trials = min(len(np.unique(a)), len(np.unique(b)), count // 2), len(np.unique(person))

    def intervals(accepted: np.ndarray) -> tuple[Interval, Interval]:
        found = []
        errors = accepted[~same].astype(float), (~accepted[same]).astype(float)
        for wrong, measure, total, number in zip(errors, (impostor, genuine), totals, trials, strict=True):
            some = total > 0
            low, high = np.quantile(measure(wrong)[some] / total[some], [0.025, 0.975]) if some.any() else (0.0, 1.0)
            if not wrong.any():
                high = 1 - 0.025 ** (1 / max(number, 1))
            found.append((float(low), float(high)) if count >= FEWEST else (0.0, 1.0))
        return found[0], found[1]

    return intervals


def largest(faces: Faces) -> int:
    """The face with the largest box.

    Raises:
      ValueError: no face.
    """
    if not len(faces):
        raise ValueError("no face found")
    return int(np.argmax((faces.boxes[:, 2:] - faces.boxes[:, :2]).prod(1)))


def measure(
    pairs: Pairs, analyzer: Callable[[str], Faces], about: str, identity: Mapping[str, Mapping[str, str]]
) -> tuple[Calibration, list[str]]:
    """Operating points of an analyzer on a list of pairs, from the largest face of each photograph.

    Returns:
      The calibration; and a sentence for each photograph that could not be used.

    Raises:
      ValueError: the usable pairs are all of one kind.
    """
    embeddings: list[Any] = []
    faults = []
    for file in _progress(pairs.files):
        try:
            faces = analyzer(file)
            embeddings.append(faces.embeddings[largest(faces)])
        except (OSError, ValueError) as error:
            embeddings.append(None)
            faults.append(sentence(file, str(error)))
    usable = np.array([e is not None for e in embeddings])
    kept = usable[pairs.first] & usable[pairs.second]
    width = next((len(e) for e in embeddings if e is not None), 1)
    rows = np.stack([np.zeros(width, np.float32) if e is None else e for e in embeddings])
    first, second, same = pairs.first[kept], pairs.second[kept], pairs.same[kept]
    if not same.any() or same.all():
        raise ValueError(
            f"{about}: {int(same.sum())} genuine and {int((~same).sum())} impostor pairs have a face on both "
            "photographs, expected some of each"
        )
    scores = np.einsum("nd,nd->n", rows[first], rows[second])
    ends = np.stack([pairs.people[first], pairs.people[second]], 1)
    counts = len(np.unique(ends)), len(np.unique([first, second])), int(same.sum()), int((~same).sum())
    return Calibration(identity, about, *counts, len(faults), calibrate(scores, same, ends)), faults


def _progress(files: Iterable[str]) -> Iterable[str]:
    from tqdm import tqdm

    return tqdm(files, unit="photograph", disable=not sys.stderr.isatty())


def describe(calibration: Calibration, point: Point) -> list[str]:
    """Two lines: an operating point and its error rates."""

    def rate(value: float, interval: Interval) -> str:
        return f"{_percent(value)} (95 % interval {_percent(interval[0])} to {_percent(interval[1])})"

    return [
        f'operating point "{point.name}": threshold {point.threshold:.4f}, false matches '
        f"{rate(point.fmr, point.fmr_interval)}, false non-matches {rate(point.fnmr, point.fnmr_interval)}",
        f"measured for {calibration.identity['recogniser']['name']} on {calibration.pairs}: {calibration.people:,} "
        f"people, {calibration.genuine:,} genuine and {calibration.impostors:,} impostor pairs",
    ]


def _percent(value: float) -> str:
    digits = 0 if value in (0, 1) else min(max(1 - math.floor(math.log10(100 * value)), 0), 4)
    return f"{100 * value:.{digits}f} %"


def compare(
    names: tuple[str, str], faces: tuple[Faces, Faces], *, every: bool = False
) -> tuple[str, list[tuple[int, int, float]]]:
    """Similarities of the faces of two photographs.

    Args:
      names: of the photographs.
      faces: found on them.
      every: all pairs; otherwise the largest face of each.

    Returns:
      A sentence that says what is compared; and (face of the first, face of the second, similarity), the most similar
      first.

    Raises:
      ValueError: a photograph without a face.
    """
    for name, found in zip(names, faces, strict=True):
        if not len(found):
            raise ValueError(f"{name}: no face found")
    chosen = [range(len(f)) if every else [largest(f)] for f in faces]
    table = faces[0].embeddings @ faces[1].embeddings.T
    pairs = sorted(((i, j, float(table[i, j])) for i in chosen[0] for j in chosen[1]), key=lambda p: -p[2])

    def said(name: str, found: Faces) -> str:
        count = len(found)
        return f"{name}: " + (
            "the only face" if count == 1 else f"{'all' if every else 'the largest'} of {count} faces"
        )

    return "; ".join(map(said, names, faces)), pairs


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    from facejax.analysis import main

    parser = subparsers.add_parser(
        "compare",
        help="do two photographs show the same person?",
        description="Says whether two photographs show the same person, at an operating point with known error rates.",
    )
    parser.add_argument("photographs", nargs="*", metavar="PHOTOGRAPH", help="two photographs; none only calibrates")
    parser.add_argument("--all", action="store_true", help="compare all faces; default: the largest of each photograph")
    parser.add_argument("--fmr", type=float, help="largest false match rate; default: 0.001, or the strictest measured")
    parser.add_argument("--calibration", metavar="FILE", help="operating points that --save wrote")
    parser.add_argument("--pairs", metavar="FILE", help='measure operating points: LFW\'s pairs.txt or lines "a b 1"')
    parser.add_argument("--root", metavar="FOLDER", help="folder of the files of --pairs; default: that of the list")
    parser.add_argument("--about", help="what the pairs are, for the calibration; default: the name of the list")
    parser.add_argument("--save", metavar="FILE", help="write the operating points of --pairs to a new JSON file")
    main.common(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand: 0, or 1 if a photograph was unreadable or without a face.

    Raises:
      ValueError: wrong usage, or a faulty list of pairs or calibration.
    """
    from facejax.analysis import main

    if len(args.photographs) != 2 and not (args.pairs and not args.photographs):
        raise ValueError(f"{len(args.photographs)} photographs: expected two, or none with --pairs")
    if args.pairs and args.calibration:
        raise ValueError("--pairs measures operating points, --calibration reads them: expected one of the two")
    if not args.pairs and (args.save or args.root or args.about):
        raise ValueError("--save, --root and --about need --pairs")
    if args.save and os.path.exists(args.save):
        raise ValueError(f"{args.save} exists: expected the name of a new file for the calibration")
    pairs = read_pairs(args.pairs, args.root) if args.pairs else None
    analyzer = main.analyzer(args)
    name = recogniser(analyzer.identity)["name"]
    code = 0
    if pairs:
        calibration, faults = measure(pairs, analyzer, args.about or os.path.basename(args.pairs), analyzer.identity)
        for fault in faults:
            print(fault, file=sys.stderr)
        code = int(bool(faults))
        print(*(describe(calibration, point)[0] for point in calibration.points), sep="\n")
        print(describe(calibration, calibration.points[0])[1])
        if args.save:
            calibration.save(args.save)
    else:
        calibration = known(analyzer.identity, args.calibration)
    if not args.photographs:
        return code
    if args.fmr is not None and not calibration:
        raise ValueError("--fmr needs an operating point, and none was measured for these weights: see --pairs")
    point = calibration.point(args.fmr) if calibration else None
    faces = []
    for file in args.photographs:
        try:
            found = analyzer(file)
            largest(found)
            faces.append(found)
        except (OSError, ValueError) as error:
            print(sentence(file, str(error)), file=sys.stderr)
            code = 1
    if len(faces) < 2:
        return 1
    said, similarities = compare(tuple(args.photographs), tuple(faces), every=args.all)
    print(said)
    for i, j, similarity in similarities:
        answer = "" if point is None else f": {'same person' if similarity >= point.threshold else 'different people'}"
        print(f"{f'faces {i} and {j}: ' if args.all else ''}similarity {similarity:.4f}{answer}")
    if point is None:
        print(f"no operating point was measured for {name}: --pairs measures one on pairs of yours")
    else:
        print(*describe(calibration, point), sep="\n")
    return code
