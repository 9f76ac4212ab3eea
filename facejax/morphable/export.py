"""Meshes as files: Wavefront .obj with colours or with a texture, and .ply."""

from __future__ import annotations

import os
import pathlib

import cv2
import numpy as np
from numpy.typing import ArrayLike


def write_obj(
    path: str | os.PathLike[str],
    vertices: ArrayLike,
    triangles: ArrayLike,
    *,
    colours: ArrayLike | None = None,
    uv: ArrayLike | None = None,
    texture: np.ndarray | None = None,
) -> None:
    """Writes a Wavefront file.

    Args:
      path: the .obj file. A texture goes beside it, into NAME.png and NAME.mtl.
      vertices: [V, 3] right-handed, y up (`facejax.morphable.crops.from_image` turns image coordinates).
      triangles: [T, 3], zero-based; the file counts from 1.
      colours: [V, 3] in 0..1, written after each vertex, which most programs read.
      uv: [V, 2] texture coordinates, v down; the file's v points up.
      texture: [H, W, 3] uint8 RGB; needs `uv`.

    Raises:
      ValueError: arrays that do not belong together, an index out of range, or values that are not finite.
    """
    path = pathlib.Path(path)
    vertices, triangles, colours = _checked("write_obj", vertices, triangles, colours)
    table = vertices if colours is None else np.concatenate([vertices, colours], 1)
    lines = ["v " + " ".join(f"{x:.6g}" for x in row) for row in table]
    corners = triangles + 1
    faces = [f"f {a} {b} {c}" for a, b, c in corners]
    head = []
    if uv is not None:
        uv = np.asarray(uv, np.float64)
        if uv.shape != (len(vertices), 2):
            raise ValueError(f"write_obj: uv {uv.shape}, expected {(len(vertices), 2)}")
        lines += [f"vt {u:.6g} {1 - v:.6g}" for u, v in uv]
        faces = [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in corners]
    if texture is not None:
        if uv is None:
            raise ValueError("write_obj: a texture without uv, expected texture coordinates")
        if not cv2.imwrite(os.fspath(path.with_suffix(".png")), np.ascontiguousarray(texture[..., ::-1])):
            raise ValueError(f"{path.with_suffix('.png')}: the texture cannot be written")
        material = f"newmtl skin\nKd 1 1 1\nmap_Kd {path.with_suffix('.png').name}\n"
        path.with_suffix(".mtl").write_text(material)
        head = [f"mtllib {path.with_suffix('.mtl').name}", "usemtl skin"]
    path.write_text("\n".join(head + lines + faces) + "\n")


def write_ply(
    path: str | os.PathLike[str],
    vertices: ArrayLike,
    triangles: ArrayLike,
    *,
    colours: ArrayLike | None = None,
    binary: bool = True,
) -> None:
    """Writes a PLY file, little-endian unless `binary` is False; arguments and errors as in `write_obj`."""
    vertices, triangles, colours = _checked("write_ply", vertices, triangles, colours)
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    fields += [] if colours is None else [("red", "u1"), ("green", "u1"), ("blue", "u1")]
    points = np.zeros(len(vertices), fields)
    for i, name in enumerate("xyz"):
        points[name] = vertices[:, i]
    if colours is not None:
        for i, name in enumerate(("red", "green", "blue")):
            points[name] = np.rint(255 * np.clip(colours[:, i], 0, 1))
    faces = np.zeros(len(triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, triangles
    kinds = {"<f4": "float", "u1": "uchar"}
    header = [
        "ply",
        f"format {'binary_little_endian' if binary else 'ascii'} 1.0",
        f"element vertex {len(points)}",
        *(f"property {kinds[kind]} {name}" for name, kind in fields),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header\n",
    ]
    if binary:
        body = points.tobytes() + faces.tobytes()
    else:
        rows = [" ".join(f"{x:.6g}" for x in row) for row in points.tolist()]
        body = "\n".join([*rows, *(f"3 {a} {b} {c}" for a, b, c in triangles), ""]).encode()
    pathlib.Path(path).write_bytes("\n".join(header).encode() + body)


def _checked(
    name: str, vertices: ArrayLike, triangles: ArrayLike, colours: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    vertices, triangles = np.asarray(vertices, np.float64), np.asarray(triangles)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f"{name}: vertices {vertices.shape} and triangles {triangles.shape}, expected [V, 3], [T, 3]")
    if not np.isfinite(vertices).all():
        raise ValueError(f"{name}: vertex {int(np.argmin(np.isfinite(vertices).all(1)))} is not finite")
    if len(triangles) and (triangles.min() < 0 or triangles.max() >= len(vertices)):
        raise ValueError(f"{name}: triangles go up to {triangles.max()}, expected 0 to {len(vertices) - 1}")
    if colours is not None:
        colours = np.asarray(colours, np.float64)
        if colours.shape != vertices.shape or not np.isfinite(colours).all():
            raise ValueError(f"{name}: colours {colours.shape}, expected {vertices.shape} finite numbers in 0..1")
    return vertices, triangles, colours
