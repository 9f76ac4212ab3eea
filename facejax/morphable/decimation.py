"""Coarser versions of a triangle mesh, and the way back: parts of meshes, edge collapse, barycentric upsampling.

Garland & Heckbert, "Surface simplification using quadric error metrics", SIGGRAPH 1997. As in CoMA (Ranjan et al.,
ECCV 2018, arXiv:1807.10267) an edge collapses onto one of its ends, so coarse vertices are a part of the fine ones.
"""

from __future__ import annotations

import heapq

import numpy as np
from scipy.spatial import cKDTree

BORDER = 1.0
"""Weight of the planes that hold an open mesh's border in place."""


def part(triangles: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The triangles all of whose vertices are kept.

    Args:
      triangles: [T, 3].
      keep: [V] bool.

    Returns:
      (rows [V'] of the vertices in use, triangles [T', 3] that index them).
    """
    chosen = np.asarray(triangles)[np.asarray(keep)[triangles].all(1)]
    rows, places = np.unique(chosen, return_inverse=True)
    return rows, places.reshape(-1, 3).astype(np.int32)


def edges(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(undirected edges [E, 2], number of triangles at each [E]) of triangles [T, 3]."""
    sides = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), 1)
    return np.unique(sides, axis=0, return_counts=True)


def decimate(vertices: np.ndarray, triangles: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Collapses the edges of least quadric error until `count` vertices are left.

    Args:
      vertices: [V, 3]; each must belong to a triangle.
      triangles: [T, 3].
      count: vertices to keep. More stay where every further collapse would turn a triangle over; a vertex that loses
        its last triangle leaves too.

    Returns:
      (rows [V'] of the vertices that stay, triangles [T', 3] that index them).
    """
    vertices, triangles = np.asarray(vertices, np.float64), np.asarray(triangles)
    quadrics = _quadrics(vertices, triangles)
    faces = [set() for _ in vertices]  # triangles of each vertex
    for t, corners in enumerate(triangles):
        for v in corners:
            faces[v].add(t)
    corners, alive = triangles.copy(), np.ones(len(vertices), bool)
    queue: list[tuple[float, int, int]] = []

    def push(v: int) -> None:
        for u in {int(u) for t in faces[v] for u in corners[t]} - {v}:
            for gone, kept in ((u, v), (v, u)):
                place = np.append(vertices[kept], 1)
                heapq.heappush(queue, (float(place @ (quadrics[gone] + quadrics[kept]) @ place), gone, kept))

    for v in range(len(vertices)):
        push(v)
    left = len(vertices)
    while left > count and queue:
        cost, gone, kept = heapq.heappop(queue)
        shared = faces[gone] & faces[kept]
        place = np.append(vertices[kept], 1)
        if not (alive[gone] and alive[kept] and shared):
            continue
        if cost < place @ (quadrics[gone] + quadrics[kept]) @ place - 1e-12:  # out of date; the new cost is queued
            continue
        moved = corners[list(faces[gone] - shared)]
        if not len(moved) or _turns(vertices, moved, gone, kept):
            continue
        for t in shared:
            for v in corners[t]:
                faces[v].discard(t)
        for t in faces[gone]:
            corners[t][corners[t] == gone] = kept
        faces[kept] |= faces[gone]
        faces[gone], alive[gone], left = set(), False, left - 1
        quadrics[kept] = quadrics[kept] + quadrics[gone]
        push(kept)
    found = sorted({t for v in np.flatnonzero(alive) for t in faces[v]})
    rows, places = np.unique(corners[found], return_inverse=True)
    return rows, places.reshape(-1, 3).astype(np.int32)


def upsampling(
    fine: np.ndarray, coarse: np.ndarray, triangles: np.ndarray, candidates: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest point of a coarse mesh to each fine vertex, in barycentric coordinates.

    Args:
      fine: [V, 3].
      coarse: [V', 3].
      triangles: [T, 3] of the coarse mesh.
      candidates: triangles that are tried for a vertex, those with the nearest centres.

    Returns:
      (corners [V, 3] int32 rows of `coarse`, weights [V, 3] float32, at least 0, with sum 1).
    """
    middles = coarse[triangles].mean(1)
    near = cKDTree(middles).query(fine, min(candidates, len(triangles)))[1].reshape(len(fine), -1)
    a, b, c = (coarse[triangles[near, i]] for i in range(3))  # [V, K, 3]
    weights = _nearest_weights(fine[:, None], a, b, c)
    distance = np.sum((weights[..., :1] * a + weights[..., 1:2] * b + weights[..., 2:] * c - fine[:, None]) ** 2, -1)
    rows, best = np.arange(len(fine)), distance.argmin(1)
    return triangles[near[rows, best]].astype(np.int32), weights[rows, best].astype(np.float32)


def _quadrics(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """[V, 4, 4] sums of the squared distances from the planes of the triangles, and from borders."""
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    areas = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals / np.maximum(areas, 1e-12)
    planes = np.concatenate([normals, -np.sum(normals * a, 1, keepdims=True)], 1)
    quadrics = np.zeros((len(vertices), 4, 4))
    for i in range(3):
        np.add.at(quadrics, triangles[:, i], areas[:, :, None] * planes[:, :, None] * planes[:, None])
    sides, counts = edges(triangles)
    border = {tuple(side) for side in sides[counts == 1].tolist()}
    for t, corners in enumerate(triangles.tolist()):
        for u, v in zip(corners, corners[1:] + corners[:1], strict=True):
            if (min(u, v), max(u, v)) in border:
                along = vertices[v] - vertices[u]
                across = np.cross(along, normals[t])
                plane = np.append(across, -across @ vertices[u]) / max(np.linalg.norm(across), 1e-12)
                quadric = BORDER * (along @ along) * np.outer(plane, plane)
                quadrics[u] += quadric
                quadrics[v] += quadric
    return quadrics


def _turns(vertices: np.ndarray, triangles: np.ndarray, gone: int, kept: int) -> bool:
    """Whether a triangle turns over, or degenerates, when its corner `gone` moves to `kept`."""
    after = np.where(triangles == gone, kept, triangles)
    old, new = (
        np.cross(vertices[x[:, 1]] - vertices[x[:, 0]], vertices[x[:, 2]] - vertices[x[:, 0]])
        for x in (triangles, after)
    )
    lengths = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    return bool(np.any(np.sum(old * new, 1) <= 0.1 * lengths))


def _nearest_weights(p: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Barycentric coordinates [..., 3] of the nearest points to p [..., 3] on triangles a, b, c [..., 3]."""
    ab, ac, ap = b - a, c - a, p - a
    d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
    d20, d21 = (ap * ab).sum(-1), (ap * ac).sum(-1)
    area = np.maximum(d00 * d11 - d01 * d01, 1e-20)
    v, w = (d11 * d20 - d01 * d21) / area, (d00 * d21 - d01 * d20) / area
    options = [np.stack([1 - v - w, v, w], -1)]
    for start, end, i, j in ((a, b, 0, 1), (b, c, 1, 2), (c, a, 2, 0)):
        side = end - start
        t = np.clip(((p - start) * side).sum(-1) / np.maximum((side * side).sum(-1), 1e-20), 0, 1)
        weights = np.zeros((*t.shape, 3))
        weights[..., i], weights[..., j] = 1 - t, t
        options.append(weights)
    stacked = np.stack(options, -2)
    places = (
        stacked[..., :1] * a[..., None, :] + stacked[..., 1:2] * b[..., None, :] + stacked[..., 2:] * c[..., None, :]
    )
    distance = np.sum((places - p[..., None, :]) ** 2, -1)
    distance[..., 0] = np.where((options[0] >= 0).all(-1), distance[..., 0], np.inf)
    return np.take_along_axis(stacked, distance.argmin(-1)[..., None, None], -2)[..., 0, :]
