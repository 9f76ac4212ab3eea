"""The HTML page of a run: its faces, sorted and filtered by quality, age, pose and group, without a server."""

from __future__ import annotations

import base64
import html
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2

MOST = 4000
"""Faces of a page, those with the highest scores; a face takes about 5 KB."""
SIDE = 112
"""Longest side of a face's picture in the page, pixels."""
PAGE = pathlib.Path(__file__).with_name("page.html")
"""The page, with places for its title and its data."""


class Place(NamedTuple):
    """Where a grouping put a face.

    Attributes:
      group: number of the group, from 0.
      certainty: see `facejax.analysis.groups`.
    """

    group: int
    certainty: float


def write(
    folder: str | os.PathLike[str],
    to: str | os.PathLike[str] | None = None,
    groups: Mapping[int, Place] | None = None,
    most: int = MOST,
) -> None:
    """Writes the page of a run: one file with style, program and the faces' pictures, which asks nothing of a network.

    Of more than `most` faces those with the highest scores are shown; the page says so, and faces.jsonl has them all.
    Links lead to the annotated photographs of the run.

    Args:
      folder: of the run.
      to: the file, replaced atomically; None: index.html in the folder.
      groups: the places of faces in a grouping, by the faces' ids.
      most: faces of the page.

    Raises:
      ValueError, OSError: the folder holds no run.
    """
    from facejax.analysis import folder as runs

    folder = pathlib.Path(folder)
    to = folder / "index.html" if to is None else pathlib.Path(to)
    records = runs.read_records(folder)
    faces = [(record, face) for record in records for face in record.get("faces", ())]
    best = sorted(sorted(range(len(faces)), key=lambda i: -faces[i][1]["score"])[:most])
    shown = [_described(folder, to, *faces[i], groups or {}) for i in best]
    failed = [{"file": r["file"], "error": r["error"]} for r in records if "error" in r]
    name = folder.resolve().name
    data = {"faces": shown, "failed": failed, "total": len(faces), "photographs": len(records) - len(failed)}
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # a name cannot end the script element
    parts = {"title": html.escape(name), "data": text}
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], PAGE.read_text("utf-8"))
    temporary = to.with_name(f"{to.name}.new")
    temporary.write_text(page, "utf-8")
    temporary.replace(to)


def _described(
    folder: pathlib.Path,
    to: pathlib.Path,
    record: Mapping[str, Any],
    face: Mapping[str, Any],
    groups: Mapping[int, Place],
) -> dict[str, Any]:
    """What the page holds of a face."""
    found = {"id": face["id"], "file": record["file"], "score": face["score"], "image": _thumbnail(folder, face)}
    found |= {name: face[name] for name in ("quality", "age") if face.get(name) is not None}
    if face.get("pose") is not None:
        found |= dict(zip(("yaw", "pitch", "roll"), face["pose"]))
    if "picture" in record:
        found["picture"] = _link(folder / record["picture"], to)
    if face["id"] in groups:
        found |= groups[face["id"]]._asdict()
    return found


def _thumbnail(folder: pathlib.Path, face: Mapping[str, Any]) -> str:
    """A data URI of the face's crop as JPEG; empty where it is missing."""
    image = cv2.imread(os.fspath(folder / face["crop"])) if "crop" in face else None
    if image is None:
        return ""
    scale = SIDE / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def _link(file: pathlib.Path, to: pathlib.Path) -> str:
    """Address of a file from the page."""
    from urllib.parse import quote

    return quote(os.fsencode(pathlib.PurePath(os.path.relpath(file.resolve(), to.parent.resolve())).as_posix()))
