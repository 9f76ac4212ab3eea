"""Reconstructed faces: errors of landmarks, dense and in 3D by bins of yaw; overlays of mesh, landmarks and depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from facejax.data.readers.aflw2000_crops import SIZE, Aflw2000Crops
from facejax.data.reconstruction import Faces
from facejax.metrics import landmarks, reconstruction
from facejax.morphable import crops, fit, pncc
from facejax.morphable.lighting import incidence
from facejax.morphable.parameters import LinearFace, reconstruct
from facejax.train import Report, image_grid, map_batches, new_figure

SHOWN = 8


class Surfaces(NamedTuple):
    """Reconstructed faces in their crops, pixels with the first one's centre at 0.5.

    Attributes:
      landmarks68: [N, 68, 2].
      vertices: [N, V, 3] of the face region, or None.
    """

    landmarks68: np.ndarray
    vertices: np.ndarray | None = None


def check_crops(images: np.ndarray) -> None:
    """ValueError for crops [N, S, S, 3] without a face: values that are not finite, or one colour throughout."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"crops {images.shape}, expected [N, S, S, 3]")
    for i, image in enumerate(images):
        if not np.isfinite(image).all():
            raise ValueError(f"crop {i} has values that are not finite, expected an image")
        if (image == image[0, 0]).all():
            raise ValueError(
                f"crop {i} has one colour throughout, expected a face: does its region lie in the picture?"
            )


def regress(predict: Callable[[Any, jax.Array], Any], variables: Any, images: np.ndarray, batch_size: int) -> Any:
    """What `predict`, (variables, uint8 crops [n, S, S, 3]) -> arrays, gives for all crops [N, S, S, 3]."""
    check_crops(images)
    return map_batches(predict, variables, images, batch_size)


def surfaces(
    face: LinearFace,
    vectors: np.ndarray,
    size: int,
    batch_size: int = 128,
    convention: crops.Convention = crops.FACEJAX,
) -> Surfaces:
    """Faces of vectors [N, D] in crops of `size` pixels."""
    found = map_batches(lambda f, v: crops.to_image(reconstruct(f, v), size, convention), face, vectors, batch_size)
    return Surfaces(found[:, np.asarray(face.landmarks68), :2], found)


def fitted(
    face: LinearFace, points: np.ndarray, size: int, weights: np.ndarray | None = None, noise: float = 1.0
) -> Surfaces:
    """The baseline without a network for parameters: the face fitted to landmarks [N, 68, 2] of its crop.

    Args:
      face: of coefficients in standard deviations.
      points: detected landmarks, pixels.
      size: of the crops.
      weights: [N, 68], such as the visibility.
      noise: expected error of a coordinate, pixels.

    Raises:
      ValueError: landmarks that are not finite.
    """
    if not np.isfinite(points).all():
        row = int(np.argmin(np.isfinite(points).all((1, 2))))
        raise ValueError(f"the landmarks of face {row} are not finite, expected pixels of its crop")
    upright = np.stack([points[..., 0], size - points[..., 1]], -1)
    vectors = fit.fit_landmarks(face, jnp.asarray(upright, jnp.float32), weights, noise=noise)
    return surfaces(face, np.asarray(vectors), size)


def errors(found: Surfaces, true: Surfaces) -> dict[str, np.ndarray]:
    """Errors [N] in percent: "nme" of the landmarks, "dense" of all vertices in the image, "shape" in 3D.

    All are over sqrt(width * height) of the box of the true landmarks, or of the true vertices; "shape" is the mean
    distance after the best similarity.
    """
    sizes = landmarks.face_sizes(true.landmarks68, "box")
    result = {"nme": landmarks.normalized_mean_error(found.landmarks68, true.landmarks68, sizes)}
    if found.vertices is not None and true.vertices is not None:
        if found.vertices.shape != true.vertices.shape:
            raise ValueError(f"vertices {found.vertices.shape}, expected {true.vertices.shape} as the true ones")
        flat = true.vertices[..., :2]
        boxes = landmarks.face_sizes(flat, "box")
        dense = landmarks.normalized_mean_error(found.vertices[..., :2], flat, boxes)
        pairs = zip(found.vertices, true.vertices, boxes, strict=True)
        shape = [reconstruction.procrustes_error(*pair) for pair in pairs]
        result |= {"dense": dense, "shape": np.array(shape)}
    return {name: 100 * np.asarray(values, np.float64) for name, values in result.items()}


def faces_report(test: Faces, found: Surfaces, face: LinearFace, others: dict[str, Surfaces] | None = None) -> Report:
    """Errors on the face world's held-out faces.

    Args:
      test: the crops with their truth.
      found: the system's faces.
      face: the linear model of the true vectors.
      others: further results by name, such as a baseline, for the table.

    Returns:
      "nme", the mean of the three bins; "nme_0_30", "nme_30_60", "nme_60_90", "nme_std", "nme_images"; the same for
      "dense" and "shape" where there are vertices.
    """
    size = test.images.shape[1]
    true = surfaces(face, test.parameters, size)._replace(landmarks68=test.landmarks68)
    own = errors(found, true)
    metrics, rows = {}, []
    for name, values in own.items():
        bins = reconstruction.by_yaw(values, test.yaw)
        metrics |= {name: bins["mean"], **{f"{name}_{k}": v for k, v in bins.items() if k != "mean"}}
    for who, result in {"this system": found, **(others or {})}.items():
        for name, values in (own if result is found else errors(result, true)).items():
            rows.append({"result": who, "measure": name, **reconstruction.by_yaw(values, test.yaw)})
    chosen = spread(own["nme"])
    return Report(
        metrics,
        tables={"Errors by yaw, %: mean and std are of the three bins": rows},
        figures={"Error over yaw": yaw_figure(test.yaw, own["nme"])},
        images={
            "From the smallest error to the largest: landmarks (true green), mesh, depth": overlays(
                test, found, face, chosen
            )
        },
        arrays={"landmarks": found.landmarks68, "errors": own["nme"]},
        notes={
            "nme": "mean distance of the 68 landmarks over sqrt(width * height) of their box, mean of the three bins",
            "dense": "the same of all vertices of the face",
            "shape": "mean distance in 3D after the best similarity, over the size of the face's box",
        },
    )


def aflw2000_report(benchmark: Aflw2000Crops, points: np.ndarray) -> Report:
    """The benchmark of 3DDFA on AFLW2000-3D.

    Args:
      benchmark: the crops with their labels.
      points: [N, 68, 2] landmarks in the coordinates of the labels.

    Returns:
      "nme", the mean of the three bins on the original labels, "nme_images", and the same on the labels corrected by
      hand as "renewed_nme", "renewed_nme_images"; a table of all bins by both divisions; crops with their landmarks.
    """
    metrics, rows, found = {}, [], {}
    for label, truth in (("nme", benchmark.landmarks68), ("renewed_nme", benchmark.reannotated)):
        values = 100 * landmarks.normalized_mean_error(points, truth, landmarks.face_sizes(truth, "box"))
        found[label] = values
        for division, yaw in (("fitted pose", benchmark.yaw), ("AFLW's labels", benchmark.yaw_aflw)):
            bins = reconstruction.by_yaw(values, yaw)
            rows.append({"points": label, "yaw": division, **bins})
            if division == "fitted pose":
                metrics |= {label: bins["mean"], f"{label}_std": bins["std"], f"{label}_images": bins["images"]}
    return Report(
        metrics,
        tables={"AFLW2000-3D, 68 points, NME in %": rows},
        images={
            "AFLW2000-3D, from the smallest error to the largest: landmarks (true green, predicted red)": crop_overlays(
                benchmark, points, spread(found["nme"])
            )
        },
        arrays={"landmarks": points},
    )


def crop_overlays(benchmark: Aflw2000Crops, points: np.ndarray, rows: np.ndarray, zoom: int = 2) -> np.ndarray:
    """One picture: the benchmark's crops `rows` with the landmarks `points` [N, 68, 2] of all, as labels are."""
    found, true = (zoom * benchmark.to_crops(x)[rows] for x in (points, benchmark.landmarks68))
    pictures = map(marked, benchmark.images(rows, zoom * SIZE), found, true)
    return image_grid(np.stack(list(pictures)), len(rows))


def aflw2000_surfaces(
    benchmark: Aflw2000Crops, predict: Callable[[Any, jax.Array], Any], variables: Any, size: int, batch_size: int
) -> Any:
    """What `predict` gives for the benchmark's crops, resized to `size` pixels."""

    def load(rows: np.ndarray) -> np.ndarray:
        images = benchmark.images(rows, size)
        check_crops(images)
        return images

    return map_batches(predict, variables, np.arange(len(benchmark)), batch_size, load)


def aflw2000_points(benchmark: Aflw2000Crops, points: np.ndarray, size: int) -> np.ndarray:
    """Landmarks [N, 68, 2] of crops of `size` pixels in the coordinates of the benchmark's labels."""
    return benchmark.to_originals(points * (SIZE / size))


def spread(values: np.ndarray, count: int = SHOWN) -> np.ndarray:
    """Indices of `count` faces from the smallest value to the largest."""
    return np.argsort(values)[np.linspace(0, len(values) - 1, min(count, len(values))).astype(int)]


def overlays(test: Faces, found: Surfaces, face: LinearFace, rows: np.ndarray, zoom: int = 3) -> np.ndarray:
    """One picture: under each chosen crop with its landmarks the mesh over it and the depth."""
    size = zoom * test.images.shape[1]
    incident = incidence(np.asarray(face.triangles), len(face.mean))
    pictures = [[], [], []]
    for i in rows:
        image = cv2.resize(test.images[i], (size, size), interpolation=cv2.INTER_CUBIC)
        pictures[0].append(marked(image, zoom * found.landmarks68[i], zoom * test.landmarks68[i]))
        if found.vertices is not None:
            vertices = jnp.asarray(zoom * found.vertices[i])
            mesh, depth = _drawn(vertices, face.triangles, incident, jnp.asarray(image))
            pictures[1].append(np.asarray(mesh))
            pictures[2].append(np.asarray(depth))
    return image_grid(np.stack([picture for line in pictures for picture in line]), len(rows))


def marked(image: np.ndarray, points: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """A copy of an image [H, W, 3] with points [L, 2] in red, and true ones in green below them."""
    image = np.array(image, order="C")
    for marks, colour in ((truth, (60, 220, 60)), (points, (255, 40, 40))):
        for x, y in () if marks is None else marks:
            cv2.circle(image, (round(float(x) - 0.5), round(float(y) - 0.5)), 1, colour, -1)
    return image


def yaw_figure(yaw: np.ndarray, values: np.ndarray) -> Any:
    """Errors [N] in percent over |yaw|."""
    figure, axis = new_figure(5, 3.2)
    axis.plot(np.abs(yaw), values, ".", markersize=3)
    for edge in (30, 60):
        axis.axvline(edge, color="grey", linewidth=0.8)
    axis.set(xlabel="|yaw|, degrees", ylabel="NME, %", ylim=(0, None))
    return figure


@jax.jit
def _drawn(vertices: jax.Array, triangles: jax.Array, incident: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mesh over an image, and the depth in grey, both uint8."""
    size = image.shape[:2]
    picture, fragments = pncc.shaded(vertices, triangles, incident, size, capacity=8 * size[0] * size[1])
    depth = jnp.round(255 * pncc.depth_picture(fragments)).astype(jnp.uint8)
    mesh = pncc.blend(image, picture, fragments.triangle >= 0)
    return mesh, jnp.broadcast_to(depth[..., None], image.shape)
