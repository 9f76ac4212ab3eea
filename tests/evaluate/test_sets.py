import numpy as np
import pytest

from facejax.data.quality_faces import QualityFaces, Sets
from facejax.evaluate import sets
from facejax.metrics import verification


def test_sets_of_one_image(small_world):
    """Weights have no influence on sets of one image."""
    test = QualityFaces(data_dir=str(small_world), people=6, test_people=6).sets("test", 1)
    count = len(test.people)
    features, weights = np.random.default_rng(0).normal(size=(count, 8)), np.random.default_rng(1).random(count)
    report = sets.assess(features, weights, "l1", test)
    assert report.metrics["set_tar_at_far_1e-1"] == report.metrics["mean_tar_at_far_1e-1"]


def test_weights_choose_the_informative_images():
    """Every set holds one image of its person and one of noise: with the weights on the former all pairs verify."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(6), 3)
    features = np.stack([np.eye(8)[people], 3 * rng.normal(size=(18, 8))], 1).reshape(36, 8)
    weights, fault = np.tile([1.0, 0.0], 18), np.tile([0.2, 0.9], (18, 1))
    test = Sets(np.zeros((18, 2, 4, 4, 3), np.uint8), people, fault)
    report = sets.assess(features, weights, "l1", test)
    assert next(iter(report.metrics)) == "set_tar_at_far_1e-2"
    assert report.metrics["set_tar_at_far_1e-2"] == 1 > report.metrics["mean_tar_at_far_1e-2"]
    assert report.metrics["clean_auc"] == 1
    mean = features.reshape(18, 2, 8).mean(1)
    tar = verification.all_pairs_tar(mean, people, (1e-1,))[0]
    assert report.metrics["mean_tar_at_far_1e-1"] == pytest.approx(tar)
    plain = sets.assess(features, np.ones(36), "l1", test)
    assert "clean_auc" not in plain.metrics and not plain.figures
