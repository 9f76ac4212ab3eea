"""WIDER FACE's average precision: every rule by hand, a literal loop, the official ground truth, recorded results."""

import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from facejax.metrics import wider_face as metric

GOLDEN = {"easy": 7211, "medium": 13319, "hard": 31958}
FACE, OTHER, FAR = [10, 10, 20, 20], [100, 10, 20, 20], [500, 500, 20, 20]
EDGE = [0, 0, 19, 19]  # on no face


def ap(detections, boxes, counted):
    """AP of one image and a second one, where the only face is found at a score of 1."""
    rows = [[*box, score] for box, score in detections]
    found = metric.evaluate([rows, [[*FACE, 1.0]]], [boxes, [FACE]], {"": [counted, [0]]})[""]
    return found.ap


def literal(detections, boxes, subsets, threshold=0.5):
    """The protocol as its loops; detections are sorted."""
    scores = np.concatenate([d[:, 4] for d in detections])
    low, high = scores.min(), scores.max()
    results = {}
    for name, counted in subsets.items():
        total, faces = np.zeros((1000, 2)), 0
        for found, true, mask in zip(detections, boxes, counted):
            faces += mask.sum()
            if not len(found) or not len(true):
                continue
            recalled, proposal, running = np.zeros(len(true)), np.ones(len(found)), np.zeros(len(found))
            for h, (x, y, w, h_, _) in enumerate(found):
                overlaps = []
                for u, v, wt, ht in true:
                    iw = min(x + w, u + wt) - max(x, u) + 1
                    ih = min(y + h_, v + ht) - max(y, v) + 1
                    inside = iw * ih if iw > 0 and ih > 0 else 0.0
                    overlaps.append(inside / ((w + 1) * (h_ + 1) + (wt + 1) * (ht + 1) - inside))
                best = int(np.argmax(overlaps))
                if overlaps[best] >= threshold:
                    if not mask[best]:
                        recalled[best], proposal[h] = -1, -1
                    elif recalled[best] == 0:
                        recalled[best] = 1
                running[h] = np.sum(recalled == 1)
            normalized = (found[:, 4] - low) / (high - low)
            for t in range(1000):
                kept = np.flatnonzero(normalized >= 1 - (t + 1) / 1000)
                if len(kept):
                    total[t] += np.sum(proposal[: kept[-1] + 1] == 1), running[kept[-1]]
        precision = np.array([r / p if p else 0.0 for p, r in total])
        recall = total[:, 1] / faces
        points = [(0.0, 0.0), *zip(recall, precision), (1.0, 0.0)]
        area = sum((points[i][0] - points[i - 1][0]) * max(p for _, p in points[i:]) for i in range(1, 1002))
        results[name] = precision, recall, area
    return results


def scene(seed, images=6, side=60, sizes=(4, 30), most=8):
    """Integer boxes, so that ties are exact; detections are moved copies of boxes, duplicates and strays."""
    rng = np.random.default_rng(seed)
    detections, boxes, masks = [], [], []
    for _ in range(images):
        n, m = rng.integers(0, most, 2)
        true = np.c_[rng.integers(0, side, (n, 2)), rng.integers(*sizes, (n, 2))].astype(float)
        stray = np.c_[rng.integers(0, side, (m, 2)), rng.integers(*sizes, (m, 2))].astype(float)
        copies = np.concatenate([true, true[rng.random(n) < 0.5], stray])
        copies += rng.integers(-2, 3, copies.shape) * (rng.random((len(copies), 1)) < 0.7)
        found = np.c_[copies, rng.integers(0, 12, len(copies))]
        detections.append(found[np.argsort(-found[:, 4], kind="stable")])
        boxes.append(true)
        masks.append(rng.random(n) < 0.7)
    return detections, boxes, masks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [1, 2**22])
def test_equals_the_literal_loop(monkeypatch, seed, block):
    monkeypatch.setattr(metric, "BLOCK_ELEMENTS", block)
    detections, boxes, masks = scene(seed)
    subsets = {"some": masks, "all": [np.ones(len(b), bool) for b in boxes]}
    expected = literal(detections, boxes, subsets)
    found = metric.evaluate(detections, boxes, subsets)
    for name, (precision, recall, area) in expected.items():
        np.testing.assert_array_equal(found[name].precision, precision)
        np.testing.assert_array_equal(found[name].recall, recall)
        assert found[name].ap == pytest.approx(area, abs=1e-12)
        assert 0.1 < area < 0.95


def test_a_duplicate_is_false_and_an_ignored_box_is_neither():
    assert ap([(FACE, 0.8), (EDGE, 0)], [FACE], [0]) == 1
    # found, duplicate, second face found: precision 3/4 at the end
    assert ap([(FACE, 0.8), (FACE, 0.7), (OTHER, 0.6), (EDGE, 0)], [FACE, OTHER], [0, 1]) == pytest.approx(
        2 / 3 + 3 / 4 / 3
    )
    assert ap([(OTHER, 0.9), (OTHER, 0.85), (FACE, 0.8), (EDGE, 0)], [FACE, OTHER], [0]) == 1
    assert ap([(FAR, 0.9), (FACE, 0.8), (EDGE, 0)], [FACE, OTHER], [0]) == pytest.approx(1 / 2 + 2 / 3 / 2)


def test_only_the_best_box_can_be_taken():
    close = [12, 10, 20, 20]  # IoU with FACE 399 / 483
    # Both detections prefer FACE: the second is a duplicate though it covers the free box by more than half.
    assert ap([(FACE, 0.9), (FACE, 0.8), (EDGE, 0)], [FACE, close], [0, 1]) == pytest.approx(2 / 3)
    # Exactly equal boxes: the first is taken; if it is ignored, the detection is ignored.
    assert ap([(FACE, 0.9), (FACE, 0.8), (EDGE, 0)], [FACE, FACE], [0]) == pytest.approx(1)
    assert ap([(FACE, 0.9), (FACE, 0.8), (EDGE, 0)], [FACE, FACE], [1]) == pytest.approx(1 / 2)


def test_threshold_is_reached_with_pixel_indices():
    # 10 x 10 pixels against 10 x 20: IoU 0.5 with one added to each size, 9 * 9 / (9 * 19) = 0.47 without.
    assert ap([([0, 0, 9, 9], 0.9), (FAR, 0)], [[0, 0, 9, 19]], [0]) == 1
    assert ap([([0, 0, 9, 8.99], 0.9), (FAR, 0)], [[0, 0, 9, 19]], [0]) == pytest.approx(1 / 2)


def test_images_without_boxes_or_detections():
    box, row = [FACE], [*FACE, 1.0]
    low = [*FAR, 0.0]
    curve = metric.evaluate([[row, low], [[*FAR, 0.9]], []], [box, [], box], {"": [[0], [], [0]]})[""]
    assert curve.precision[0] == curve.precision[150] == 1  # the false detection of 0.9 isn't counted
    assert curve.precision[-1] == 1 / 2
    assert curve.recall[-1] == 1 / 2
    nothing = metric.evaluate([[], []], [box, box], {"": [[0], [0]], "none": [[], []]})
    assert nothing[""].ap == 0 and not nothing[""].precision.any()
    assert np.isnan(nothing["none"].ap) and np.isnan(nothing["none"].recall).all()


def test_constant_scores_count_nothing():
    with pytest.warns(UserWarning, match=r"all scores are 0\.5"):
        curve = metric.evaluate([[[*FACE, 0.5]]], [[FACE]], {"": [[0]]})[""]
    assert curve.ap == 0 and not curve.recall.any()


def test_thresholds_are_on_normalised_scores():
    # raw scores 7, 6, 5 normalise to 1, 0.5, 0; the thresholds begin at 0.999 and end at 0
    rows = [[*FACE, 7.0], [*OTHER, 6.0], [*FAR, 5.0]]
    curve = metric.evaluate([rows], [[FACE, OTHER]], {"": [[0, 1]]})[""]
    np.testing.assert_array_equal(curve.recall, np.where(np.arange(1000) < 499, 0.5, 1))
    np.testing.assert_array_equal(curve.precision, np.r_[np.ones(999), 2 / 3])


def test_zero_sized_boxes_have_one_pixel():
    assert ap([([5, 5, 0, 0], 0.9), (FAR, 0)], [[5, 5, 0, 0]], [0]) == 1
    assert ap([([5, 5, -3, 4], 0.9), (FAR, 0)], [[5, 5, 0, 11]], [0]) == pytest.approx(1 / 2)  # nothing is covered


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(-50, 50))
def test_properties(seed, shift):
    detections, boxes, masks = scene(seed, images=3)
    scores = np.concatenate(detections)[:, 4]
    if not np.concatenate(masks).any() or not len(scores) or np.ptp(scores) == 0:
        return

    def evaluate(found, chosen=masks):
        return metric.evaluate(found, boxes, {"": chosen})[""]

    base, rng = evaluate(detections), np.random.default_rng(seed)
    assert 0 <= base.ap <= 1 and (np.diff(base.recall) >= 0).all()
    assert evaluate(detections, [np.flatnonzero(m) for m in masks]).ap == base.ap
    assert evaluate([d * [1, 1, 1, 1, 4] + [0, 0, 0, 0, shift] for d in detections]).ap == base.ap
    distinct = [np.c_[d[:, :4], d[:, 4] - np.arange(len(d)) / 1024] for d in detections]
    assert evaluate([rng.permutation(d) for d in distinct]).ap == evaluate(distinct).ap
    beside = [np.concatenate([d, np.c_[b[~m], np.full((~m).sum(), scores.max())]])
              for d, b, m in zip(detections, boxes, masks)]  # fmt: skip
    assert (evaluate(beside).recall >= base.recall).all()
    stray = [np.concatenate([d, [[900, 900, 5, 5, scores.max()]]]) if len(b) else d for d, b in zip(detections, boxes)]
    lower = evaluate(stray)
    assert (lower.precision < base.precision)[base.precision > 0].all()
    np.testing.assert_array_equal(lower.recall, base.recall)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[[0, 0, 1, 1, np.nan]]], [[FACE]], {"": [[0]]}), "detections of image 0: expected finite"),
        (([[], [[0, 0, 1, 1, 1], [0, 0, 1, np.inf, 1]]], [[], []], {}), "detections of image 1: expected finite"),
        (([[[0, 0, 1, 1]]], [[FACE]], {"": [[0]]}), r"detections of image 0: shape \(1, 4\), expected \[N, 5\]"),
        (([[]], [[FACE, [*OTHER[:3], np.nan]]], {"": [[0]]}), "boxes of image 0: expected finite"),
        (([[]], [[FACE], [FACE]], {}), "1 images of detections and 2 of boxes"),
        (([[]], [[FACE]], {"x": [[0], [0]]}), "subset x: 2 images, expected 1"),
        (([[]], [[FACE]], {"x": [[1]]}), r"subset x, image 0: expected \[1\] bool or indices below 1"),
        (([[]], [[FACE]], {"x": [[-1]]}), "indices below 1"),
        (([[]], [[FACE]], {"x": [[True, False]]}), "subset x, image 0"),
        (([[]], [[FACE]], {}, 0), "threshold 0, expected"),
    ],
)
def test_invalid_input_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        metric.evaluate(*arguments)


@pytest.fixture(scope="module")
def folder(test_data):
    if not (test_data / "wider_face_eval").is_dir():
        pytest.skip(f"no wider_face_eval in {test_data}")
    return test_data / "wider_face_eval"


@pytest.fixture(scope="module")
def truth(folder):
    return metric.read_truth(folder)


def test_golden_counts(truth):
    assert len({name.split("/")[0] for name in truth.names}) == 61
    assert len(truth.names) == len(set(truth.names)) == len(truth.boxes) == 3226
    boxes = np.concatenate(truth.boxes)
    assert len(boxes) == 39708
    assert (boxes[:, 2:] <= 0).any(1).sum() == 11
    flat = {name: np.concatenate(masks) for name, masks in truth.subsets.items()}
    assert {name: mask.sum() for name, mask in flat.items()} == GOLDEN
    assert (flat["easy"] <= flat["medium"]).all() and (flat["medium"] <= flat["hard"]).all()


def test_recorded_detections(folder, truth):
    recorded = np.load(folder / "synthetic_predictions_reference.npz")
    assert truth.names == recorded["image_names"].tolist()
    detections = np.split(recorded["dets_xywh_score"], np.cumsum(recorded["dets_per_image"])[:-1])
    curves = metric.evaluate(detections, truth.boxes, truth.subsets)
    aps = [curves[name].ap for name in metric.SUBSETS]
    np.testing.assert_allclose(aps, recorded["ap_easy_medium_hard"], atol=1e-9)
    np.testing.assert_allclose(aps, [0.704732, 0.728243, 0.546230], atol=1e-6)


def test_true_boxes_as_detections(truth):
    rng = np.random.default_rng(0)
    detections = [np.c_[boxes, rng.random(len(boxes))] for boxes in truth.boxes]
    curves = metric.evaluate(detections, truth.boxes, truth.subsets)
    # A few annotated boxes repeat others, so that one of the two is missed.
    np.testing.assert_allclose([c.ap for c in curves.values()], [0.99987, 0.99993, 0.99988], atol=3e-5)


def cells(entries):
    column = np.empty((len(entries), 1), object)
    column[:, 0] = entries
    return column


@pytest.fixture
def small(tmp_path):
    """Ground truth of two events with two images and one, and predictions of the first and last."""
    root, predictions = tmp_path / "truth", tmp_path / "predictions"
    root.mkdir()
    boxes = cells([cells([np.int32([FACE, OTHER]), np.int32([FAR])]), cells([np.zeros((0, 4), np.int32)])])
    files = cells([cells([np.array(["a_1"]), np.array(["a_2"])]), cells([np.array(["b.x"])])])
    events = cells([np.array(["0--A"]), np.array(["1--B"])])
    scipy.io.savemat(
        root / "wider_face_val.mat", {"event_list": events, "file_list": files, "face_bbx_list": boxes}
    )  # fmt: skip
    none = np.zeros((0, 0), np.uint8)
    for name, first in (("easy", [[1]]), ("medium", [[2]]), ("hard", [[1], [2]])):
        chosen = cells([cells([np.uint8(first), none]), cells([none])])
        scipy.io.savemat(root / f"wider_{name}_val.mat", {"gt_list": chosen})
    for name, text in (("0--A/a_1", "0--A/a_1.jpg\n2\n10 10 20 20 0.9\n0 0 1 1 0.5 \n"), ("1--B/b.x", "b.x\n0\n\n")):
        path = predictions / f"{name}.txt"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return predictions, root


def test_command(small, capsys):
    metric.main([str(small[0]), "--truth", str(small[1])])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 of 3 images count as without detections: there is no ") and "a_2.txt" in said[0]
    assert said[1:] == ["easy   AP 1.000000", "medium AP 0.000000", "hard   AP 0.500000"]


def test_command_in_a_process(small):
    command = [sys.executable, "-m", "facejax.metrics.wider_face", str(small[0] / "none"), "--truth", str(small[1])]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert re.fullmatch(r"facejax\.metrics\.wider_face: \S+none: has no 0--A/a_1\.txt nor that of .*\n", run.stderr)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the image's name, a_1"),
        ("a_2\n0\n", "line 1: expected the image's name, a_1"),
        ("a_1\n", "line 2: '', expected the number of lines that follow, 0"),
        ("a_1\n2\n1 2 3 4 0.5\n", "line 2: '2', expected the number of lines that follow, 1"),
        ("a_1\n1\n1 2 3 4 0.5\n1 2 3 4 0.5\n", "line 2: '1', expected the number"),
        ("a_1\n2\n1 2 3 4 0.5\n1 2 3 4\n", "line 4: expected five finite numbers"),
        ("a_1\n1\n1 2 3 4 0.5 6\n", "line 3: expected five finite numbers"),
        ("a_1\n1\n1 2 3 x 0.5\n", "line 3: expected five finite numbers"),
        ("a_1\n1\n1 2 3 4 nan\n", "line 3: expected five finite numbers"),
        ("a_1\n1\n7\n", "line 3: expected five finite numbers"),
    ],
)
def test_damaged_predictions_raise(small, text, message):
    (small[0] / "0--A" / "a_1.txt").write_text(text)
    with pytest.raises(SystemExit, match=r"a_1\.txt, " + message):
        metric.main([str(small[0]), "--truth", str(small[1])])


def test_damaged_truth_raises(small):
    root = small[1]
    hard = root / "wider_hard_val.mat"
    whole = hard.read_bytes()
    one = cells([cells([np.uint8([[3]]), np.uint8([[1]])]), cells([np.zeros((0, 0), np.uint8)])])
    for content in ({"gt_list": one}, {"gt_list": one[:1]}, {"other": one}, {"gt_list": np.zeros((2, 1))}):
        scipy.io.savemat(hard, content)
        with pytest.raises(ValueError, match=r"wider_hard_val\.mat: not the ground truth of WIDER FACE"):
            metric.read_truth(root)
    hard.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"wider_hard_val\.mat: not the ground truth"):
        metric.read_truth(root)
    hard.unlink()
    with pytest.raises(SystemExit, match=r"wider_hard_val\.mat"):
        metric.main([str(small[0]), "--truth", str(root)])
