"""Metrics of detections: rules by hand, the protocols' loops, pycocotools."""

import contextlib
import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facejax.metrics import detection as metric
from facejax.metrics.detection import Detections, Objects

A, B, C = [0, 0, 9, 9], [50, 0, 59, 9], [200, 200, 209, 209]
HALF = [0, 0, 9, 19]  # twice A's height in pixel indices: IoU exactly 0.5


def found(*rows, classes=None, points=None):
    return Detections([r[0] for r in rows] or np.zeros((0, 4)), [r[1] for r in rows], classes, points)


def loop_voc(detections, objects, label, threshold, strict, eleven_points):
    """The evaluation of one class as in the public Python code, with an exact 11-point grid."""
    rows = [(s, i, b) for i, d in enumerate(detections) for b, s, c in zip(d.boxes, d.scores, d.classes) if c == label]
    rows.sort(key=lambda row: -row[0])
    truth = [[[*b, bool(g), False] for b, c, g in zip(o.boxes, o.classes, o.ignored) if c == label] for o in objects]
    total = sum(not entry[4] for image in truth for entry in image)
    right, wrong, curve = 0, 0, []
    for _, image, (x1, y1, x2, y2) in rows:
        best, chosen = -1.0, None
        for entry in truth[image]:
            u1, v1, u2, v2 = entry[:4]
            w, h = max(min(x2, u2) - max(x1, u1) + 1, 0), max(min(y2, v2) - max(y1, v1) + 1, 0)
            iou = w * h / ((x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1) - w * h)
            if iou > best:
                best, chosen = iou, entry
        if best > threshold or (not strict and best == threshold):
            if not chosen[4]:
                right, wrong = right + (not chosen[5]), wrong + chosen[5]
                chosen[5] = True
        else:
            wrong += 1
        curve.append((right / total, right / (right + wrong) if right else 0.0))
    if eleven_points:
        return np.mean([max([p for r, p in curve if r >= j / 10], default=0.0) for j in range(11)])
    points = [(0.0, 0.0), *curve, (1.0, 0.0)]
    return sum((points[i][0] - points[i - 1][0]) * max(p for _, p in points[i:]) for i in range(1, len(points)))


def scene(seed, images=8, classes=3, side=120, points=None):
    """Integer boxes, so that ties are exact; detections are moved copies of objects, duplicates and strays."""
    rng = np.random.default_rng(seed)
    detections, objects = [], []
    for _ in range(images):
        n, m = rng.integers(0, 7, 2)
        corner = rng.integers(0, side, (n, 2))
        true = np.concatenate([corner, corner + rng.integers(3, rng.choice([12, 60, 130]), (n, 2))], 1)
        label = rng.integers(0, classes, n)
        again = np.r_[np.arange(n), np.flatnonzero(rng.random(n) < 0.4)]
        corner = rng.integers(0, side, (m, 2))
        boxes = np.concatenate([true[again] + rng.integers(-2, 3, (len(again), 4)),
                                np.concatenate([corner, corner + rng.integers(3, 60, (m, 2))], 1)])  # fmt: skip
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        marks = true.reshape(-1, 2, 2) + rng.normal(size=(n, 2, 2))
        shown = np.concatenate([marks[again] + rng.normal(size=(len(again), 2, 2)), np.zeros((m, 2, 2))])
        order = rng.permutation(len(boxes))
        detections.append(
            Detections(boxes[order], rng.integers(0, 10, len(boxes)) / 10,
                       np.r_[label[again], rng.integers(0, classes + 1, m)][order], shown[order])
        )  # fmt: skip
        objects.append(Objects(true, label, rng.random(n) < 0.2, points=marks))
    return detections, objects


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("eleven_points", [True, False])
def test_voc_equals_the_loop(seed, strict, eleven_points):
    detections, objects = scene(seed)
    result = metric.voc_ap(detections, objects, eleven_points=eleven_points, strict=strict, threshold=0.6)
    expected = [loop_voc(detections, objects, c, 0.6, strict, eleven_points) for c in range(3)]
    np.testing.assert_allclose(list(result.classes.values()), expected, rtol=1e-12)
    assert list(result.classes) == [0, 1, 2]
    assert result.mean == pytest.approx(np.mean(expected)) and 0.1 < result.mean < 0.95


def test_voc_by_hand():
    def both(detections, objects, **options):
        return [metric.voc_ap(detections, objects, eleven_points=e, **options).mean for e in (True, False)]

    one, two = [Objects([A])], [Objects([A, B])]
    assert both([found((A, 0.5))], one) == [1, 1]
    assert both([found((HALF, 0.5))], one) == [0, 0]
    assert both([found((HALF, 0.5))], one, strict=False) == [1, 1]
    assert both([found((A, 0.9), (A, 0.8), (B, 0.7))], two) == pytest.approx([(6 + 5 * 2 / 3) / 11, 5 / 6])
    assert both([found((A, 0.9))], two) == pytest.approx([6 / 11, 1 / 2])
    difficult = [Objects([A, B], ignored=[True, False])]
    assert both([found((A, 0.9), (A, 0.8), (B, 0.7))], difficult) == [1, 1]
    assert both([found()], one) == [0, 0]
    # unlike WIDER FACE, a detection in an image without objects is false
    assert both([found((A, 0.9)), found((A, 0.8))], [Objects(np.zeros((0, 4))), Objects([A])]) == [0.5, 0.5]


def test_eleven_points_are_exact_tenths():
    objects = [Objects([[0, 100 * i, 9, 100 * i + 9] for i in range(10)])]
    detections = [Detections(objects[0].boxes[:3], [0.9, 0.8, 0.7])]
    assert metric.voc_ap(detections, objects, eleven_points=True).mean == pytest.approx(4 / 11)


def test_voc_classes():
    objects = [Objects([A, B], classes=[3, 7], ignored=[False, True])]
    right, wrong = found((A, 0.9), classes=[3]), found((A, 0.9), classes=[7])
    assert metric.voc_ap([right], objects, eleven_points=False) == (1, {3: 1})
    assert metric.voc_ap([wrong], objects, eleven_points=False) == (0, {3: 0})
    nothing = metric.voc_ap([right], [Objects(np.zeros((0, 4)))], eleven_points=False)
    assert np.isnan(nothing.mean) and nothing.classes == {}


def coco_loop(detections, objects):
    """Through COCO's own files: dictionaries and loadRes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for i, (d, o) in enumerate(zip(detections, objects)):
        for g, (x1, y1, x2, y2) in enumerate(o.boxes.tolist()):
            area = (x2 - x1) * (y2 - y1) if o.areas is None else o.areas[g]
            annotations.append({
                "id": len(annotations) + 1, "image_id": i + 50, "category_id": int(o.classes[g]),
                "iscrowd": int(o.ignored[g]), "area": area, "bbox": [x1, y1, x2 - x1, y2 - y1],
            })  # fmt: skip
        for (x1, y1, x2, y2), s, c in zip(d.boxes.tolist(), d.scores, d.classes):
            results.append({"image_id": i + 50, "category_id": int(c), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": s})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": [{"id": i + 50} for i in range(len(objects))], "annotations": annotations,
                        "categories": [{"id": i} for i in range(3)]}  # fmt: skip
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(2))
def test_coco_equals_pycocotools_through_its_files(seed, capsys):
    pytest.importorskip("pycocotools")
    detections, objects = scene(seed, images=40)
    if seed:
        rng = np.random.default_rng(seed)
        objects = [Objects(o.boxes, o.classes, o.ignored, rng.uniform(0, 2e4, len(o.boxes))) for o in objects]
    result = metric.coco_ap(detections, objects)
    expected = coco_loop(detections, objects)
    assert (expected >= 0).all() and 0.1 < expected[0] < 0.9
    assert list(result) == list(metric.COCO_NAMES)
    np.testing.assert_allclose(list(result.values()), expected, rtol=1e-12)
    assert capsys.readouterr().out == ""


def test_coco_by_hand():
    pytest.importorskip("pycocotools")
    one, two = [Objects([A])], [Objects([A, B])]
    perfect = metric.coco_ap([found((A, 0.5))], one)
    assert [perfect[name] for name in ("ap", "ar1", "ap_small")] == pytest.approx([1, 1, 1])
    assert np.isnan(perfect["ap_large"])
    assert metric.coco_ap([found((A, 0.9))], two)["ap"] == pytest.approx(51 / 101)
    # continuous boxes: A is 9 x 9 and HALF 9 x 19, so the IoU is 9 / 19
    assert metric.coco_ap([found((HALF, 0.9))], one)["ap50"] == 0
    assert metric.coco_ap([found(([0, 0, 9, 18], 0.9))], one)["ap50"] == pytest.approx(1)
    assert metric.coco_ap([found((A, 0.9)), found()], [*two, *one])["ap"] == pytest.approx(34 / 101)
    # a box with x2 below x1 covers nothing and is false
    assert metric.coco_ap([found(([9, 0, 0, 9], 0.9), (A, 0.8))], one)["ap"] == pytest.approx(1 / 2)
    assert metric.coco_ap([found()], one)["ap"] == 0
    assert np.isnan(list(metric.coco_ap([found((A, 0.9))], [Objects(np.zeros((0, 4)))]).values())).all()


def test_coco_without_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match="coco_ap needs pycocotools: pip install pycocotools"):
        metric.coco_ap([found((A, 0.5))], [Objects([A])])


def test_size_split():
    tall = [300, 0, 340, 50]
    objects = [Objects([A, B, tall]), Objects([C], ignored=[True]), Objects([A])]
    detections = [found((A, 0.9), (tall, 0.8), (C, 0.1)), found((C, 0.95)), found((A, 1.0))]
    heights = {"all": (0, np.inf), "small": (0, 9.5), "nine": (9, 50), "tall": (50, 51), "none": (60, 70)}
    result = {k: c.ap for k, c in metric.size_split_ap(detections, objects, heights).items()}
    none = result.pop("none")
    assert result == pytest.approx({"all": 3 / 4, "small": 2 / 3, "nine": 2 / 3, "tall": 1})
    assert np.isnan(none)


def test_precision_and_recall_at_a_score():
    objects = [Objects([A, B]), Objects(np.zeros((0, 4))), Objects([C], ignored=[True])]
    detections = [found((A, 0.9), (A, 0.6), (B, 0.3)), found((B, 0.5)), found((C, 0.8))]
    for score, expected in ((0.95, (np.nan, 0)), (0.9, (1, 1 / 2)), (0.6, (1 / 2, 1 / 2)), (0.5, (1 / 3, 1 / 2)),
                            (0.0, (1 / 2, 1))):  # fmt: skip
        np.testing.assert_allclose(metric.precision_recall(detections, objects, score), expected)
    edge = [found(([0, 0, 9, 18], 0.9))]  # continuous IoU of exactly 0.5
    assert metric.precision_recall(edge, [Objects([A])], 0.5) == (1, 1)
    assert metric.precision_recall(edge, [Objects([A])], 0.5, 0.51) == (0, 0)
    other = [found((A, 0.9), classes=[1])]
    assert metric.precision_recall(other, [Objects([A])], 0.5) == (0, 0)
    assert np.isnan(metric.precision_recall(other, [Objects([A], ignored=[True])], 0.5)[1])


def test_landmark_error_by_hand():
    points = np.array([[0.0, 0], [8, 0], [4, 4], [0, 8], [8, 8]])
    first, second = [0, 0, 16, 4], [100, 0, 116, 4]  # sqrt(16 * 4) = 8
    objects = [
        Objects([first, second], points=[points, points + 100]),
        Objects([C], points=[points]),
        Objects([first], ignored=[True], points=[points]),
    ]
    detections = [
        found(
            (first, 0.5), (second, 0.9), (first, 0.8), points=points + np.array([[[7, 7]], [[100, 102]], [[0, 0.4]]])
        ),
        found(([0, 0, 5, 5], 0.9), points=[points]),
        found((first, 0.9), points=[points + 50]),
    ]
    result = metric.landmark_error(detections, objects)
    np.testing.assert_allclose(np.sort(result.errors), [0.05, 0.25])
    assert (result.nme, result.failure_rate, result.faces) == (pytest.approx(0.15), 0.5, 3)
    assert metric.landmark_error(detections, objects, limit=0.3).failure_rate == 0
    lost = metric.landmark_error(detections[1:2], objects[1:2])
    assert np.isnan(lost.nme) and np.isnan(lost.failure_rate) and len(lost.errors) == 0 and lost.faces == 1


def test_landmark_error_equals_a_loop():
    detections, objects = scene(5, images=20, classes=1)
    errors = []
    for d, o in zip(detections, objects):
        taken = {}
        for k in np.argsort(-d.scores, kind="stable"):
            if d.classes[k] != 0 or not len(o.boxes):
                continue
            low, high = np.maximum(d.boxes[k, :2], o.boxes[:, :2]), np.minimum(d.boxes[k, 2:], o.boxes[:, 2:])
            inside = np.maximum(high - low, 0).prod(1)
            areas = (o.boxes[:, 2:] - o.boxes[:, :2]).prod(1)
            iou = inside / ((d.boxes[k, 2:] - d.boxes[k, :2]).prod() + areas - inside)
            g = int(np.argmax(iou))
            if iou[g] >= 0.5 and not o.ignored[g] and g not in taken:
                taken[g] = np.linalg.norm(d.points[k] - o.points[g], axis=1).mean() / areas[g] ** 0.5
        errors += taken.values()
    result = metric.landmark_error(detections, objects)
    np.testing.assert_allclose(np.sort(result.errors), np.sort(errors))
    assert len(errors) > 20 and result.faces == sum((~o.ignored).sum() for o in objects) > len(errors)
    assert 0 < result.failure_rate == np.mean(np.array(errors) > 0.1) < 1


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_properties(seed):
    detections, objects = scene(seed, images=3)
    rng = np.random.default_rng(seed)
    distinct = [Detections(d.boxes, d.scores - np.arange(len(d.scores)) / 1024, d.classes) for d in detections]
    orders = [rng.permutation(len(d.scores)) for d in distinct]
    mixed = [Detections(d.boxes[o], d.scores[o], d.classes[o]) for d, o in zip(distinct, orders)]
    base, again = (metric.voc_ap(d, objects, eleven_points=False).classes for d in (distinct, mixed))
    assert base == again and all(0 <= value <= 1 for value in base.values())
    levels = np.linspace(0, 1, 11)
    recalls = [metric.precision_recall(detections, objects, s)[1] for s in levels]
    assert not (np.diff(recalls) > 0).any()
    apart = [Objects(np.c_[o.boxes[:, :2], o.boxes[:, :2] + 8] + 300 * np.arange(len(o.boxes))[:, None], o.classes)
             for o in objects]  # fmt: skip
    copies = [Detections(o.boxes, rng.random(len(o.boxes)), o.classes) for o in apart]
    if sum(len(o.boxes) for o in apart):
        assert metric.voc_ap(copies, apart, eleven_points=True).mean == 1
        assert metric.precision_recall(copies, apart, 0.0) == (1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Detections([A], [np.nan]), "Detections: scores has a value that is not finite"),
        (lambda: Detections([[0, 0, np.inf, 1]], [1.0]), "Detections: boxes has a value that is not finite"),
        (lambda: Detections([A], [1.0, 2.0]), r"Detections: boxes \(1, 4\), expected \[2, 4\]"),
        (lambda: Detections([A], [1.0], [1, 2]), r"Detections: classes \(2,\), expected \[1\]"),
        (lambda: Detections([A], [1.0], points=[[1, 2]]), r"Detections: points \(1, 2\), expected \[1, P, 2\]"),
        (lambda: Objects([A[:3]]), r"Objects: boxes \(1, 3\), expected \[1, 4\]"),
        (lambda: Objects([[0, 9, 5, 8]]), "Objects: a box has x2 below x1 or y2 below y1"),
        (lambda: Objects([A], points=[[[np.nan, 1]]]), "Objects: points has a value that is not finite"),
        (lambda: metric.voc_ap([], [Objects([A])], eleven_points=True), "0 images of detections and 1 of objects"),
        (lambda: metric.precision_recall([], [], 0.5), "expected one or more"),
        (lambda: metric.landmark_error([found((A, 1))], [Objects([A])]), "an image has no points"),
    ],
)
def test_invalid_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()
