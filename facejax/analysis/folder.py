"""The folder of a run: what was found in each photograph, written photograph by photograph.

    OUT/run.json         versions, weights, settings, length of the embeddings
    OUT/faces.jsonl      a line for each photograph
    OUT/embeddings.f32   float32 rows, little-endian, in the order of the faces' ids
    OUT/crops/ID.png     aligned faces
    OUT/pictures/*.jpg   annotated photographs

A line is {"file", "width", "height", "picture", "faces": [{"id", "box", "score", "crop", and "points", "landmarks",
"pose", "age", "quality" where known}]}, with "note" where the file holds more than was looked at; or {"file", "error"}.
Files are named relative to OUT. A line ends a photograph: what was written after the last whole line is cut off when
the folder is opened again.
"""

from __future__ import annotations

import collections
import fcntl
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

import facejax
from facejax.analysis import draw, photographs
from facejax.analysis.faces import Faces

FORMAT = 1
WORKERS = min(4, os.cpu_count() or 1)
"""Photographs that are analysed side by side: on a CPU, the networks leave a part of the cores idle."""


class Folder:
    """An open folder of a run; one program writes to it at a time.

    Attributes:
      path: OUT.
    """

    def __init__(self, path: pathlib.Path, run: dict[str, Any], lines: Any, rows: Any, number: int, count: int):
        self.path = path
        self._run, self._lines, self._rows, self._number, self._count = run, lines, rows, number, count

    @classmethod
    def open(cls, out: str | os.PathLike[str], identity: Mapping[str, Any], settings: Mapping[str, Any]) -> Folder:
        """A new folder, or that of an earlier run with the same weights and settings.

        Args:
          out: OUT.
          identity: the weights, see `FaceAnalyzer.identity`.
          settings: what else changes the results, by name.

        Raises:
          ValueError: OUT is no folder, holds other files, belongs to a run with other weights or settings, or another
            program writes to it.
        """
        path = pathlib.Path(out)
        wanted = json.loads(json.dumps({"weights": identity, "settings": settings}))
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file: expected a folder for the results")
        if not (path / "run.json").exists():
            if path.exists() and any(path.iterdir()):
                raise ValueError(f"{path} holds files of others: expected a new folder, an empty one or that of a run")
            path.mkdir(parents=True, exist_ok=True)
            run = {"format": FORMAT, "facejax": facejax.__version__, "dimension": None, **wanted}
            _write_json(path / "run.json", run)
        run = read_run(path)
        for part, given in wanted.items():
            if run[part] != given:
                raise ValueError(f"{path} belongs to a run with other {part}, {_difference(run[part], given)}: "
                                 "expected the same, or another folder")  # fmt: skip
        for name in ("crops", "pictures"):
            (path / name).mkdir(exist_ok=True)
        lines, rows = ((path / name).open("ab+") for name in ("faces.jsonl", "embeddings.f32"))
        try:
            fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{path}: another program writes to it, expected to be the only one") from error
        return cls(path, run, lines, rows, *_cut(lines, rows, run["dimension"]))

    def append(self, file: str, faces: Faces, picture: np.ndarray | None = None, note: str = "") -> None:
        """Writes a photograph's faces.

        Args:
          file: the photograph, relative to OUT.
          faces: what was found.
          picture: the annotated photograph, uint8 RGB [H, W, 3].
          note: a sentence about the file.
        """
        record: dict[str, Any] = {"file": file, **({"note": note} if note else {}), **described(faces, self._count)}
        if picture is not None:
            record["picture"] = f"pictures/{self._number:08d}_{pathlib.PurePath(file).stem[:80]}.jpg"
            _write_image(self.path / record["picture"], picture, [cv2.IMWRITE_JPEG_QUALITY, 88])
        for face, crop in zip(record["faces"], () if faces.crops is None else faces.crops, strict=False):
            face["crop"] = f"crops/{face['id']:08d}.png"
            _write_image(self.path / face["crop"], crop, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if faces.embeddings is not None:
            self._set_dimension(faces.embeddings.shape[1])
            self._rows.write(np.ascontiguousarray(faces.embeddings, "<f4").tobytes())
            self._rows.flush()
        self._count += len(faces)
        self._line(record)

    def failed(self, file: str, error: str) -> None:
        """Writes why a file gave nothing."""
        self._line({"file": file, "error": error})

    def records(self) -> list[dict[str, Any]]:
        """The last line of each photograph, in the order of the first ones."""
        return read_records(self.path)

    def embeddings(self) -> np.ndarray:
        """[faces, D] of all ids: a read-only memory map; [faces, 0] without embeddings."""
        return read_embeddings(self.path)

    def close(self) -> None:
        """Lets others write to the folder."""
        self._lines.close()
        self._rows.close()

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_dimension(self, dimension: int) -> None:
        if self._run["dimension"] is None:
            self._run["dimension"] = dimension
            _write_json(self.path / "run.json", self._run)
        if self._run["dimension"] != dimension:
            raise ValueError(f"embeddings of {dimension} numbers: expected {self._run['dimension']} as in {self.path}")

    def _line(self, record: Mapping[str, Any]) -> None:
        self._lines.write(json.dumps(record).encode() + b"\n")
        self._lines.flush()
        self._number += 1


def described(faces: Faces, first: int = 0) -> dict[str, Any]:
    """What a line says of a photograph: its size, and the faces with ids from `first` on."""
    found = []
    for i in range(len(faces)):
        face: dict[str, Any] = {"id": first + i, "box": _rounded(faces.boxes[i], 2)}
        face["score"] = _rounded(faces.scores[i], 4)
        for name in ("points", "landmarks", "pose", "age", "quality"):
            value = getattr(faces, name)
            if value is not None and np.isfinite(value[i]).all():  # JSON has no infinity
                face[name] = _rounded(value[i], 4 if name == "quality" else 2)
        found.append(face)
    return {"width": faces.size[0], "height": faces.size[1], "faces": found}


def read_run(out: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of OUT/run.json. Raises ValueError where there is none of this format."""
    path = pathlib.Path(out) / "run.json"
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable, expected the folder of a run of facejax") from error
    if not isinstance(run, dict) or run.get("format") != FORMAT or {"weights", "settings", "dimension"} - set(run):
        raise ValueError(f"{path}: expected a run of facejax of format {FORMAT}")
    return run


def read_records(out: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The last whole line of each photograph in OUT/faces.jsonl, in the order of the first ones."""
    found: dict[str, dict[str, Any]] = {}
    with open(pathlib.Path(out) / "faces.jsonl", "rb") as lines:
        for record in _whole(lines):
            found[record["file"]] = record
    return list(found.values())


def read_embeddings(out: str | os.PathLike[str]) -> np.ndarray:
    """A read-only memory map [faces, D] of OUT/embeddings.f32; [faces, 0] where the run made none."""
    dimension = read_run(out)["dimension"] or 0
    with open(pathlib.Path(out) / "faces.jsonl", "rb") as lines:
        count = sum(len(record.get("faces", ())) for record in _whole(lines))
    if not count or not dimension:
        return np.zeros((count, dimension), np.float32)
    return np.memmap(pathlib.Path(out) / "embeddings.f32", "<f4", "r", shape=(count, dimension))


def analyse(
    paths: Sequence[str | os.PathLike[str]],
    analyzer: Any,
    out: str | os.PathLike[str],
    *,
    progress: bool = True,
    max_pixels: int = photographs.MAX_PIXELS,
) -> int:
    """Analyses photographs and folders of them into OUT; what is there already is kept, failed files are tried again.

    Args:
      paths: files, and folders that are searched for images.
      analyzer: a `FaceAnalyzer`.
      out: OUT, see `Folder.open`.
      progress: show a bar.
      max_pixels: larger photographs are refused.

    Returns:
      The number of unreadable files; each is named on standard error.
    """
    out, failed = pathlib.Path(out), 0

    def work(file: pathlib.Path) -> tuple[Faces, np.ndarray, str]:
        photo, note = photographs.read(file, max_pixels)
        faces = analyzer(photo)
        return faces, draw.annotated(photo, faces), note

    with Folder.open(out, analyzer.identity, analyzer.settings) as folder:
        known = {record["file"]: record for record in folder.records()}
        files = photographs.files(paths, leave_out=out)
        left = [file for file in files if "faces" not in known.get(relative(file, out), {})]
        done = len(files) - len(left)
        with tqdm(total=len(files), initial=done, unit="photo", disable=not progress) as bar:
            for file, result in ahead(work, left):
                name = relative(file, out)
                try:
                    faces, picture, note = result.result()
                except (ValueError, OSError) as error:
                    failed += 1
                    sentence = " ".join(str(error).split())
                    tqdm.write(sentence if str(file) in sentence else f"{file}: {sentence}", file=sys.stderr)
                    if known.get(name, {}).get("error") != sentence:
                        folder.failed(name, sentence)
                else:
                    if note:
                        tqdm.write(f"{file}: {note}", file=sys.stderr)
                    folder.append(name, faces, picture, note)
                bar.update()
    return failed


def relative(file: str | os.PathLike[str], out: str | os.PathLike[str]) -> str:
    """A file's path from OUT, with "/" between the parts."""
    return pathlib.PurePath(os.path.relpath(os.path.abspath(file), os.path.abspath(out))).as_posix()


def ahead(
    work: Callable[[pathlib.Path], Any], files: Sequence[pathlib.Path]
) -> Iterator[tuple[pathlib.Path, Future[Any]]]:
    """The files in order with their results, which `WORKERS` threads make before their turn."""
    pool, pending = ThreadPoolExecutor(WORKERS), collections.deque[tuple[pathlib.Path, Future[Any]]]()
    try:
        for file in files:
            pending.append((file, pool.submit(work, file)))
            if len(pending) > 2 * WORKERS:
                yield pending.popleft()
        yield from pending
    finally:
        pool.shutdown(cancel_futures=True)


def _whole(lines: Any) -> Iterator[dict[str, Any]]:
    """The records of the lines up to the first one that is cut or damaged; the file then stands behind the last."""
    lines.seek(0)
    while True:
        start = lines.tell()
        line = lines.readline()
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict) or "file" not in record:
            lines.seek(start)
            return
        yield record


def _cut(lines: Any, rows: Any, dimension: int | None) -> tuple[int, int]:
    """Cuts both files to the last photograph that is whole in both; the numbers of lines and of faces that are left."""
    width, size = 4 * (dimension or 0), os.fstat(rows.fileno()).st_size
    number, count, end = 0, 0, 0
    for record in _whole(lines):
        more = len(record.get("faces", ()))
        if width * (count + more) > size:
            break
        number, count, end = number + 1, count + more, lines.tell()
    lines.truncate(end)
    rows.truncate(width * count)
    lines.seek(0, os.SEEK_END)
    return number, count


def _difference(ours: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The first difference of two nested dicts, as words."""
    name = next(name for name in [*ours, *given] if ours.get(name) != given.get(name))
    return f"{name} {json.dumps(ours.get(name))} and not {json.dumps(given.get(name))}"


def _rounded(value: Any, digits: int) -> Any:
    return np.asarray(value, np.float64).round(digits).tolist()


def _write_json(path: pathlib.Path, value: Any) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(new, path)


def _write_image(path: pathlib.Path, image: np.ndarray, options: Sequence[int]) -> None:
    encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1]
    path.write_bytes(encoded.tobytes())
