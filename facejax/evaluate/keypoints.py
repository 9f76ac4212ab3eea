"""Keypoints by heat maps: decoding them back to the images, and the protocols of faces, COCO and MPII."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from facejax.data import keypoints as crops_of
from facejax.data import normalize, pipeline
from facejax.data.keypoints import Layout
from facejax.data.pipeline import Source
from facejax.data.readers.people import CocoPeople
from facejax.metrics import keypoints, landmarks
from facejax.ops import heatmaps
from facejax.train import Report, map_batches, new_figure

DECODERS: dict[str, Callable[[jax.Array, float], tuple[jax.Array, jax.Array]]] = {
    "peak": lambda maps, sigma: heatmaps.peaks(maps),
    "shift": lambda maps, sigma: heatmaps.decode(maps),
    "taylor": lambda maps, sigma: heatmaps.decode_taylor(maps, sigma=sigma),
}
"""(maps, sigma) -> points and heights: the peak; moved a quarter pixel to the higher neighbour; a Taylor expansion."""


@dataclasses.dataclass(frozen=True)
class Crops:
    """Regions that a network looks at.

    Attributes:
      source: examples with "image", "centre" and "size".
      layout: of the keypoints.
      size: (H, W) of the network's input, pixels.
      enlarge: size of a region over that of its box.
    """

    source: Source
    layout: Layout
    size: tuple[int, int]
    enlarge: float = 1.0

    def load(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """{"image": uint8 [n, H, W, 3], "matrix": [n, 2, 3] from the image to the crop}."""
        found = [crops_of.plain(e, self.size, self.enlarge) for e in pipeline.fetch(self.source, rows)]
        return {name: np.stack([f[name] for f in found]) for name in found[0]}


def find(
    net: Any,
    variables: Any,
    crops: Crops,
    *,
    sigma: float,
    batch_size: int,
    decode: str = "shift",
    flip: bool = True,
    stride: int = 4,
    preprocess: Callable[[jax.Array], jax.Array] = normalize.imagenet,
) -> dict[str, np.ndarray]:
    """Keypoints of every example, in pixels of its image.

    Args:
      net, variables: the network, (images, train=) -> maps [N, H / stride, W / stride, K].
      crops: the examples.
      sigma: of the training targets, in pixels of the maps.
      batch_size: crops a call.
      decode: a key of `DECODERS`.
      flip: whether maps are averaged with those of the mirrored crop.
      stride: pixels of the crop per pixel of the maps.
      preprocess: uint8 [N, H, W, 3] -> the network's input.

    Returns:
      "points" of the chosen decoder and one entry of each decoder's name, [N, K, 2]; "heights" [N, K] of the peaks.
    """

    def predict(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = preprocess(batch["image"])
        maps = net.apply(variables, images, train=False)
        if flip:
            of_mirror = net.apply(variables, images[:, :, ::-1], train=False)
            maps = heatmaps.flip_average(maps, of_mirror, crops.layout.partners)
        decoded = {name: method(maps, sigma) for name, method in DECODERS.items()}
        points = {name: stride * points for name, (points, _) in decoded.items()}
        return {**points, "heights": decoded["peak"][1], "matrix": batch["matrix"]}

    found = map_batches(predict, variables, range(len(crops.source)), batch_size, crops.load)
    matrix = found.pop("matrix").astype(np.float64)
    back = np.linalg.inv(matrix[:, :, :2])
    points = {
        name: np.einsum("nij,nkj->nki", back, found[name] - matrix[:, None, :, 2]).astype(np.float32)
        for name in DECODERS
    }
    return {**points, "points": points[decode], "heights": found["heights"]}


def faces_report(crops: Crops, found: dict[str, np.ndarray], truth: np.ndarray) -> Report:
    """Landmark errors in percent of sqrt(width * height) of the true landmarks' box, because half profiles lack an eye.

    Args:
      crops: the faces.
      found: of `find`.
      truth: [N, K, 2] in pixels of the images.
    """
    sizes = landmarks.face_sizes(truth, "box")
    errors = {n: landmarks.normalized_mean_error(found[n], truth, sizes) for n in ("points", *DECODERS)}
    metrics = {
        "nme": 100 * float(errors["points"].mean()),
        "failures_at_8": 100 * landmarks.failure_rate(errors["points"], 0.08),
        "auc_at_8": 100 * landmarks.area_under_curve(errors["points"], 0.08),
        **{f"nme_{name}": 100 * float(errors[name].mean()) for name in DECODERS},
    }
    order = np.argsort(errors["points"])
    rows = order[np.linspace(0, len(order) - 1, 10).astype(int)]
    return Report(
        metrics,
        figures={
            "Faces from the smallest error to the largest: true (green) and predicted (red) points": overlay(
                crops, found["points"], rows, truth
            ),
            "Faces within an error": error_figure(errors["points"]),
        },
        arrays={"landmarks": found["points"], "errors": errors["points"]},
    )


def coco_report(
    crops: Crops, found: dict[str, np.ndarray], truth: CocoPeople, sigmas: np.ndarray = keypoints.COCO_SIGMAS
) -> Report:
    """COCO's average precision of people after rescoring and OKS-NMS.

    Args:
      crops: of a `PeopleSource`, annotated or detected people.
      found: of `find`.
      truth: the annotated people.
      sigmas: [K] of the OKS.
    """
    people, aspect = crops.source.people, crops.size[1] / crops.size[0]
    scores = keypoints.rescored([p.score for p in people], found["heights"])
    areas = np.array([np.prod(crops.enlarge * crops_of.shaped(p.size, aspect)) for p in people])
    rows = defaultdict(list)
    for row, person in enumerate(people):
        rows[person.image_id].append(row)
    detections = []
    for image_id in truth.image_ids:
        here = np.array(rows[image_id], int)
        points, score = found["points"][here], scores[here]
        kept = keypoints.oks_nms(points, score, areas[here], sigmas=sigmas)
        detections.append(keypoints.Detections(points[kept], score[kept]))
    people = [keypoints.People(**truth.truth(image_id)) for image_id in truth.image_ids]
    metrics = {k: 100 * v for k, v in keypoints.coco_keypoint_ap(detections, people, sigmas).items()}
    return _body_report(crops, found, metrics, {"scores": scores})


def files_report(crops: Crops, found: dict[str, np.ndarray], truth: CocoPeople) -> Report:
    """`coco_report` of any number of keypoints, each with the mean of COCO's sigmas."""
    sigmas = np.full(truth.joints, keypoints.COCO_SIGMAS.mean())
    note = f"average precision by OKS, in which every keypoint has the mean of COCO's sigmas, {sigmas[0]:.3f}"
    return coco_report(crops, found, truth, sigmas) | Report({}, notes={"ap": note})


def mpii_report(crops: Crops, found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> Report:
    """PCKh.

    Args:
      crops: MPII's people.
      found: of `find`.
      truth: of `facejax.data.readers.people.read_mpii_truth`.
    """
    sizes = keypoints.head_sizes(truth["heads"])
    metrics = keypoints.pckh(found["points"], truth["points"], truth["visible"], sizes)
    return _body_report(crops, found, {"pckh": metrics.pop("mean"), **metrics}, {})


REPORTS: dict[str, Callable[[Crops, dict[str, np.ndarray], Any], Report]] = {
    "face_world": faces_report,
    "coco": coco_report,
    "mpii": mpii_report,
    "files": files_report,
}
"""By the kind of `facejax.data.keypoints.KeypointImages`."""


def _body_report(
    crops: Crops, found: dict[str, np.ndarray], metrics: dict[str, float], arrays: dict[str, Any]
) -> Report:
    """Metrics, and the first ten people with their predicted keypoints."""
    figure = overlay(crops, found["points"], np.arange(min(10, len(crops.source))))
    return Report(metrics, figures={"Predicted keypoints": figure}, arrays={"keypoints": found["points"], **arrays})


def overlay(crops: Crops, points: np.ndarray, rows: np.ndarray, truth: np.ndarray | None = None) -> Any:
    """Crops with predicted points and links in red and true points in green.

    Args:
      crops: the examples.
      points, truth: [N, K, 2] in pixels of the images.
      rows: [n] int, examples shown.
    """
    columns = -(-len(rows) // 2)
    figure, axes = new_figure(2 * columns, 4 * crops.size[0] / crops.size[1], 2, columns)
    for axis in axes.ravel():
        axis.set_axis_off()
    shown = crops.load(rows)
    for axis, i, image, matrix in zip(axes.ravel(), rows, shown["image"], shown["matrix"], strict=False):
        axis.imshow(image)
        if truth is not None:
            axis.plot(*crops_of.moved(truth[i], matrix).T, ".", color="lime", markersize=2)
        predicted = crops_of.moved(points[i], matrix)
        for link in crops.layout.links:
            axis.plot(*predicted[list(link)].T, color="red", linewidth=1)
        axis.plot(*predicted.T, ".", color="red", markersize=2)
        axis.set(xlim=(-0.5, crops.size[1] - 0.5), ylim=(crops.size[0] - 0.5, -0.5))
    return figure


def error_figure(errors: np.ndarray) -> Any:
    """The cumulative error curve up to 15 % of errors [N], in parts of the face's size."""
    figure, axis = new_figure(5, 3.2)
    levels = np.linspace(0, 0.15, 151)
    axis.plot(100 * levels, 100 * landmarks.cumulative_error(errors, levels))
    axis.set(xlabel="error, % of the face's size", ylabel="faces, %", ylim=(0, 101), xlim=(0, 15))
    return figure


def taps_figure(
    images: np.ndarray,
    truth: np.ndarray,
    points: np.ndarray,
    offsets: np.ndarray | None,
    rows: np.ndarray,
    *,
    reach: int,
    point: int = 30,
) -> Any:
    """Images with true points (green), predicted points (red) and the taps of a deformable 3x3 filter (crosses).

    Args:
      images: [N, S, S, 3] uint8.
      truth, points: [N, L, 2] in parts of the image's side.
      offsets: [N, S', S', 2 * G * 9] in pixels of a feature map, of which the first group is shown; None has no taps.
      rows: [n] int, images shown; n is even.
      reach: distance of the filter's taps without offsets, in pixels of the feature map (its dilation).
      point: whose place the filter is shown at (30 is the nose tip).
    """
    size = images.shape[1]
    figure, axes = new_figure(2.2 * len(rows) / 2, 4.6, 2, len(rows) // 2)
    for axis, i in zip(axes.ravel(), rows, strict=True):
        axis.imshow(images[i], extent=(0, size, size, 0))
        axis.plot(*truth[i].T * size, ".", color="lime", markersize=2)
        axis.plot(*points[i].T * size, ".", color="red", markersize=2)
        if offsets is not None:
            cells = offsets.shape[1]
            column, row = (truth[i, point] * cells).astype(int).clip(0, cells - 1)
            shift = offsets[i, row, column].reshape(-1, 9, 2)[0]
            grid = reach * (np.indices((3, 3)).reshape(2, 9).T - 1)
            y, x = ((grid + shift + [row, column] + 0.5) * size / cells).T
            axis.plot(x, y, "x", color="cyan", markersize=4)
        axis.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[])
        axis.grid(False)
    return figure
