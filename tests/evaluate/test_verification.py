import numpy as np

from facejax.evaluate import verification


def test_many_images_need_no_matrix_of_all_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 6)
    features = np.eye(40)[labels] + 0.5 * rng.normal(size=(240, 40))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    images = rng.integers(0, 255, (240, 4, 4, 3)).astype(np.uint8)
    monkeypatch.setattr(verification, "images_of", lambda source, size: (images, labels, []))

    def verify():
        return verification.verify_held_out([], 4, lambda found: features).metrics

    whole = verify()
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
