import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.ops import nms as ops


def scene(seed, count=60, spread=40.0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, spread, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 25, (count, 2))], -1).astype(np.float32)
    scores = rng.uniform(0.05, 1, count).astype(np.float32)
    scores[: count // 4] = scores[0]  # ties
    return boxes, scores


def overlap(a, b, extra):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + extra for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0] + extra) * (x[3] - x[1] + extra) for x in (a, b)]
    return shared / (sum(areas) - shared)


def greedy(boxes, scores, threshold, extra=0, labels=None):
    left, kept = list(np.argsort(-scores, kind="stable")), []
    while left:
        best, *left = left
        kept.append(best)
        left = [
            i
            for i in left
            if (labels is not None and labels[i] != labels[best]) or overlap(boxes[best], boxes[i], extra) <= threshold
        ]
    return kept


def rows(result):
    found, kept = result
    assert (np.asarray(found)[~np.asarray(kept)] == 0).all()
    return list(np.asarray(found)[np.asarray(kept)])


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("form", ["tiled", "matrix"])
def test_greedy_equals_brute_force(form, plus_one, monkeypatch):
    if form == "matrix":
        monkeypatch.setattr(ops.lax, "platform_dependent", lambda cpu, default: default())
    monkeypatch.setattr(ops, "TILE", 16)
    monkeypatch.setattr(ops, "CHUNK", 8)
    for seed in range(3):
        boxes, scores = scene(seed)
        labels = np.random.default_rng(seed).integers(0, 2, len(boxes))
        for kind in (None, labels):
            brute = greedy(boxes, scores, 0.3, plus_one, kind)
            found = rows(ops.nms(boxes, scores, threshold=0.3, count=60, labels=kind, plus_one=plus_one))
            assert found == brute
            assert rows(ops.nms(boxes, scores, threshold=0.3, count=5, labels=kind, plus_one=plus_one)) == brute[:5]


def test_mask_candidates_and_batches():
    scenes = [scene(seed) for seed in (3, 4)]
    boxes, scores = (np.stack(x) for x in zip(*scenes, strict=True))
    mask = scores > 0.3
    batched = jax.jit(jax.vmap(lambda b, s, m: ops.nms(b, s, threshold=0.4, count=70, mask=m, candidates=20)))
    found = batched(boxes, scores, mask)
    for i in range(2):
        best = np.argsort(-np.where(mask[i], scores[i], -1), kind="stable")[:20]
        best = best[mask[i][best]]
        brute = [best[k] for k in greedy(boxes[i][best], scores[i][best], 0.4)]
        assert rows((found[0][i], found[1][i])) == brute
    nothing = ops.nms(boxes[0], scores[0], threshold=0.4, count=4, mask=np.zeros(60, bool))
    assert rows(nothing) == []


def test_the_threshold_itself_survives():
    boxes = np.float32([[0, 0, 2, 1], [1, 0, 3, 1]])  # IoU 1 / 3
    scores = np.float32([0.9, 0.8])
    third = float(ops.box.iou(boxes[0], boxes[1]))
    assert rows(ops.nms(boxes, scores, threshold=third, count=2)) == [0, 1]
    assert rows(ops.nms(boxes, scores, threshold=third - 1e-4, count=2)) == [0]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_equals_brute_force(method):
    boxes, scores = scene(5, 30)
    left, expected = scores.astype(float).copy(), []
    alive = np.ones(len(boxes), bool)
    while (alive & (left >= 1e-3)).any():
        best = int(np.argmax(np.where(alive & (left >= 1e-3), left, -1)))
        expected.append((best, left[best]))
        alive[best] = False
        for i in np.flatnonzero(alive):
            x = overlap(boxes[best], boxes[i], 1)
            left[i] *= np.exp(-(x**2) / 0.5) if method == "gaussian" else (1 - x if x > 0.3 else 1)
    found, lowered, kept = ops.soft_nms(boxes, scores, count=40, method=method, plus_one=True)
    assert list(np.asarray(found)[np.asarray(kept)]) == [i for i, _ in expected]
    np.testing.assert_allclose(np.asarray(lowered)[np.asarray(kept)], [s for _, s in expected], rtol=2e-4)
    with pytest.raises(ValueError, match="soft_nms: method is 'hard', expected linear or gaussian"):
        ops.soft_nms(boxes, scores, count=4, method="hard")


def test_a_narrow_gaussian_is_greedy_with_any_overlap():
    boxes, scores = scene(6, 30)
    found, _, kept = ops.soft_nms(boxes, scores, count=30, method="gaussian", sigma=1e-9)
    assert list(np.asarray(found)[np.asarray(kept)]) == greedy(boxes, scores, 1e-4)


def test_disjoint_boxes_come_back_sorted():
    boxes = np.float32([[i * 10, 0, i * 10 + 5, 5] for i in range(6)])
    scores = np.float32([0.3, 0.9, 0.1, 0.5, 0.7, 0.2])
    order = list(np.argsort(-scores))
    for method in ("linear", "gaussian"):
        found, lowered, kept = ops.soft_nms(boxes, scores, count=6, method=method)
        assert list(found) == order and kept.all()
        np.testing.assert_allclose(lowered, scores[order], rtol=1e-6)
    assert rows(ops.nms(boxes, scores, threshold=0.0, count=6)) == order


@pytest.mark.parametrize("singles", [True, False])
def test_vote_equals_brute_force(singles):
    boxes, scores = scene(7, 40, 80.0)
    left, expected = list(np.argsort(-scores, kind="stable")), []
    while left:
        best = left[0]
        group = [i for i in left if i == best or overlap(boxes[best], boxes[i], 1) >= 0.3]
        left = [i for i in left if i not in group]
        if len(group) > 1 or singles:
            weight = scores[group]
            expected.append([*(weight @ boxes[group] / weight.sum()), scores[best]])
    found, best, kept = ops.vote(boxes, scores, count=50, singles=singles)
    result = np.concatenate([found, best[:, None]], 1)[np.asarray(kept)]
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert not np.asarray(found)[~np.asarray(kept)].any()


def test_a_nan_score_takes_no_part():
    boxes, scores = scene(8, 5, 500.0)
    scores[2] = np.nan
    assert 2 not in rows(ops.nms(jnp.asarray(boxes), jnp.asarray(scores), threshold=0.5, count=5))
