import numpy as np

from facejax.data import sources
from facejax.data.synthetic.faces import png
from facejax.evaluate import groups, verification
from facejax.metrics.verification import tar_at_far
from facejax.recognition.groupface import group_aware_similarity


def test_many_images_need_no_matrix_of_all_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 6)
    features = np.eye(40)[labels] + 0.5 * rng.normal(size=(240, 40))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    source = [{"image": png(np.full((4, 4, 3), i, np.uint8)), "label": label} for i, label in enumerate(labels)]
    decoded, decode = [], sources.image
    monkeypatch.setattr(sources, "image", lambda example, size: decoded.append(size) or decode(example, size))

    def verify():
        return verification.verify_held_out(source, 4, lambda found: features).metrics

    whole = verify()
    assert len(decoded) <= 8 * 12 + 2 * 8  # those of the report alone, here where the embedder decodes none
    shapes = []
    original = np.triu_indices
    monkeypatch.setattr(np, "triu_indices", lambda n, k: shapes.append(n) or original(n, k))
    monkeypatch.setattr(verification, "MOST", 120)
    part = verify()
    assert shapes[0] == 120
    assert part["rank1"] == whole["rank1"] and part["tar_at_far_1e-2"] == whole["tar_at_far_1e-2"]
    assert abs(part["equal_error_rate"] - whole["equal_error_rate"]) < 0.05
    assert abs(part["genuine_angle"] - whole["genuine_angle"]) < 5


def test_census_counts_pairs():
    labels = np.array([3, 3, 3, 5, 5, 9])
    same = labels[:, None] == labels
    upper = np.triu(np.ones((6, 6), bool), 1)
    expected = {
        "people": 3,
        "images": 6,
        "genuine pairs": (same & upper).sum(),
        "impostor pairs": (~same & upper).sum(),
    }
    assert verification.census(labels) == expected


def test_group_aware_pairs_equal_a_matrix_of_all_pairs():
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat(np.arange(7), 4))
    found = groups.Grouped(*(rng.normal(size=(28, width)) for width in (5, 3, 2)))
    upper = np.triu_indices(28, 1)
    distance = np.linalg.norm(found.decision[:, None] - found.decision, axis=-1)[upper]
    scores = group_aware_similarity((found.embedding @ found.embedding.T)[upper], distance, beta=0.3, gamma=0.5)
    expected = tar_at_far(scores, (labels[:, None] == labels)[upper], verification.FARS)
    pairs = groups.group_aware_pairs(found, labels, beta=0.3, gamma=0.5)
    np.testing.assert_array_equal(pairs.tar(verification.FARS), expected)
