"""The networks of `facejax --demo` on photographs: `python -m benchmarks.demo_photographs DATA`.

DATA holds faces/photos with retinaface_boxes.json (boxes and points of a published RetinaFace, which are the
reference), aflw2000 (the crops of AFLW2000-3D), faces/att_faces (AT&T's faces) and weights/fsanet (50 crops of
AFLW2000-3D with all angles); what it lacks is left out.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import cv2
import numpy as np
from scipy import stats

from facejax.analysis import FaceAnalyzer, demo
from facejax.data import distortions, readers, sources, transforms
from facejax.data.readers.aflw2000_crops import SIZE, Aflw2000Crops
from facejax.evaluate.verification import tar_metrics
from facejax.metrics import detection, landmarks, pose, verification
from facejax.metrics.detection import Detections, Objects
from facejax.predictor import Predictor, opened
from facejax.train import map_batches

MARGINS = np.array([-0.03, -0.21, 0.03, 0.04])
"""Of a face's box from forehead to chin beyond that of its landmarks, over the latter's height; of rendered faces."""
STRONGEST = {"blur": 6.0, "resolution": 10.0}
"""Deviation in pixels and factor of the strongest degradation."""


def face_boxes(points: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] from forehead to chin of landmarks [N, 68, 2]."""
    low, high = points.min(1), points.max(1)
    return np.concatenate([low, high], 1) + MARGINS * (high - low)[:, 1:]


def seen(name: str, images: list[np.ndarray], boxes: np.ndarray, points: np.ndarray | None = None) -> np.ndarray:
    """Crops [N, side, side, 3] of one face in each image, by the rule of a network."""
    rule, crops = demo.networks()[name].rule, []
    for i, image in enumerate(images):
        found = rule(boxes[i : i + 1], None if points is None else points[i : i + 1], image.shape[1::-1])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crops.append(cv2.warpAffine(image, found.matrices[0], (rule.side, rule.side), flags=flags))
    return np.stack(crops)


def said(name: str, crops: np.ndarray) -> np.ndarray:
    """What a network makes of crops."""
    network = demo.networks()[name]
    return map_batches(
        lambda variables, images: network.module.apply(variables, network.preprocess(images), train=False),
        network.variables, crops, 50,
    )  # fmt: skip


def reference(folder: pathlib.Path) -> dict[str, Objects]:
    """Name of the photograph -> recorded faces, without those whose middle lies in a better one's box."""
    found = {}
    for name, faces in json.loads((folder / "retinaface_boxes.json").read_text()).items():
        boxes = np.array([face["box_xyxy"] for face in faces]).reshape(-1, 4)
        points = np.array([face["landmarks_xy"] for face in faces]).reshape(-1, 5, 2)
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        better = [[(m > b[:2]).all() and (m < b[2:]).all() for b in boxes[:i]] for i, m in enumerate(middles)]
        kept = np.array([not any(row) for row in better], bool)
        found[name] = Objects(boxes[kept], np.zeros(kept.sum(), int), points=points[kept])
    return found


def detections(predict: Predictor, images: list[np.ndarray], size: int = demo.SIZE) -> list[Detections]:
    """Of each image."""
    found = [predict(image, size) for image in images]
    return [Detections(f.boxes[f.mask], f.scores[f.mask], f.labels[f.mask], f.points[f.mask]) for f in found]


def photographs(folder: pathlib.Path) -> None:
    """Recall, precision and the error of five points."""
    true = reference(folder)
    images, objects = [opened(folder / name) for name in true], list(true.values())
    count = sum(len(o.boxes) for o in objects)
    predict = Predictor(demo.detector(0.02), demo.variables()["detector"], demo.SIZE)
    for size in (160, 192, 224, 256, 320, 448):
        found = detections(predict, images, size)
        precision, recall = detection.precision_recall(found, objects, demo.SCORE)
        ap = detection.voc_ap(found, objects, eleven_points=False).mean
        print(f"photographs, {size} pixels: recall {recall:.3f}, precision {precision:.3f} at score {demo.SCORE}; "
              f"AP {100 * ap:.1f}; the detector's five points "
              f"{100 * detection.landmark_error(found, objects).nme:.1f} % of the box; {count} faces")  # fmt: skip
    faces = FaceAnalyzer.from_weights([], demo=True)(images)
    found = [Detections(f.boxes, f.scores, np.zeros(len(f), int), f.points) for f in faces]
    precision, recall = detection.precision_recall(found, objects, 0.0)
    error = detection.landmark_error(found, objects).nme
    print(f"photographs, as analysed: recall {recall:.3f}, precision {precision:.3f}; "
          f"five points {100 * error:.1f} % of the box")  # fmt: skip


def aflw2000(folder: pathlib.Path) -> None:
    """Detection, landmarks and yaw on 2,000 crops."""
    crops = Aflw2000Crops(folder)
    corner, sides = crops.roi[:, None, :2], crops.roi[:, None, 2:] - crops.roi[:, None, :2] + 1
    truth = (crops.landmarks68 - corner + 0.5) * (SIZE / sides)  # continuous pixels of the crops
    images, boxes = list(crops.images(np.arange(len(crops)))), face_boxes(truth)
    sizes = landmarks.face_sizes(truth, "box")

    def measured(title: str, rows: np.ndarray, given: np.ndarray) -> None:
        chosen = [images[i] for i in rows]
        raw = said("landmarks", seen("landmarks", chosen, given))["points"]
        rects = demo.FaceSquare()(given, None, (SIZE, SIZE)).rects[:, None]
        points = rects[..., :2] + raw * (rects[..., 2:] - rects[..., :2])
        errors = landmarks.normalized_mean_error(points, truth[rows], sizes[rows])
        yaw, known = said("pose", seen("pose", chosen, given))[:, 0], crops.signed_yaw[rows]
        within = np.abs(known) <= pose.LIMIT
        miss = np.abs(yaw - known)
        print(f"AFLW2000-3D, {title}: {len(rows)} faces; NME {100 * errors.mean():.2f} %, median "
              f"{100 * np.median(errors):.2f} %; yaw {miss[within].mean():.2f} degrees, of zero "
              f"{np.abs(known[within]).mean():.2f}; " + "; ".join(
                  f"|yaw| {low} to {high}: NME {100 * errors[part].mean():.2f}, yaw {miss[part].mean():.2f}"
                  for low, high in ((0, 30), (30, 60), (60, 99))
                  for part in [(np.abs(known) >= low) & (np.abs(known) < high)]
                  if part.any()))  # fmt: skip

    measured("true boxes", np.arange(len(crops)), boxes)
    found = detections(demo_predictor(), images, 128)
    best = [f.boxes[0] if len(f.boxes) else np.zeros(4) for f in found]
    hit = np.array([overlap(b, t) >= 0.5 for b, t in zip(best, boxes, strict=True)])
    print(f"AFLW2000-3D, detector: the best of {np.mean([len(f.boxes) for f in found]):.2f} boxes a crop hits "
          f"{100 * hit.mean():.1f} % of the faces")  # fmt: skip
    if hit.any():
        rows = np.flatnonzero(hit)
        measured("detected boxes", rows, np.stack(best)[rows])


def demo_predictor() -> Predictor:
    """The detector as it is shipped."""
    return Predictor(demo.detector(), demo.variables()["detector"], demo.SIZE)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return shared / max((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared, 1e-9)


def angles(file: pathlib.Path) -> None:
    """All angles of the 50 crops of FSA-Net's protocol: the landmarks' box with a margin of 0.6."""
    known = np.load(file, allow_pickle=False)
    crops, truth = known["aflw2000_first50_input_uint8_bgr"], known["aflw2000_first50_pose_yaw_pitch_roll"]
    side = crops.shape[1]
    corners = np.float64([[0.6, 0.6], [1.6, 1.6]]) / 2.2 * side
    boxes = np.tile(face_boxes(corners[None]), (len(crops), 1))
    found = said("pose", seen("pose", list(crops[..., ::-1]), boxes))
    errors = pose.pose_errors(found, truth)
    zero = pose.pose_errors(np.zeros_like(truth), truth)
    print(f"AFLW2000-3D, {errors.faces} crops: yaw {errors.yaw:.2f}, pitch {errors.pitch:.2f}, roll {errors.roll:.2f}, "
          f"mean {errors.mean:.2f} degrees; of zeros {zero.yaw:.2f}, {zero.pitch:.2f}, {zero.roll:.2f}")  # fmt: skip


def att_faces(folder: pathlib.Path) -> None:
    """Identification unaligned and aligned, and the quality of degraded faces."""
    source = readers.read(folder)
    examples = [source[i] for i in range(len(source))]
    images, people = [transforms.decode(e["image"]) for e in examples], np.array([sources.label(e) for e in examples])
    whole = np.stack([transforms.resize(image, 112, 112) for image in images])
    faces = FaceAnalyzer.from_weights([], demo=True)(images)
    hit = np.array([len(f) > 0 for f in faces])
    print(f"AT&T, detector: {hit.sum()} of {len(hit)} faces, {np.mean([len(f) for f in faces]):.2f} boxes each")
    aligned = np.stack([f.crops[0] if len(f) else image for f, image in zip(faces, whole, strict=True)])
    for title, crops in (("unaligned", whole), ("aligned", aligned)):
        features = said("recogniser", crops)
        rank1 = verification.leave_one_out_rank1(features, people)
        tars = ", ".join(f"{value:.3f}" for value in tar_metrics(features, people).values())
        print(f"AT&T, {title}: rank-1 {rank1:.3f}; TAR at FAR 1e-1, 1e-2, 1e-3: {tars}")
    rng = np.random.default_rng(0)
    for kind, most in STRONGEST.items():
        strength = rng.random(len(aligned))
        degrade = getattr(distortions, kind)
        low = 1.0 if kind == "resolution" else 1e-3
        worse = np.stack([degrade(x, max(most * s, low), rng) for x, s in zip(aligned, strength, strict=True)])
        rank = stats.spearmanr(said("quality", worse), -strength)[0]
        print(f"AT&T, quality: rank correlation {rank:.3f} with the lack of {kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    data = parser.parse_args().data
    for measure, place in (
        (photographs, "faces/photos"), (aflw2000, "aflw2000"), (angles, "weights/fsanet/300W_LP_reference.npz"),
        (att_faces, "faces/att_faces"),
    ):  # fmt: skip
        if (data / place).exists():
            measure(data / place)


if __name__ == "__main__":
    main()
