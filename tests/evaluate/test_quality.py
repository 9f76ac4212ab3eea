import numpy as np
import pytest

from facejax.data.quality_faces import QualityFaces, unmeasured
from facejax.evaluate import quality
from facejax.evaluate.quality import QualityProtocol
from facejax.ops import vectors

PROTOCOL = QualityProtocol()


def test_min_max():
    np.testing.assert_array_equal(quality.min_max(np.array([2.0, 4, 3])), [0, 1, 0.5])
    np.testing.assert_array_equal(quality.min_max(np.full(3, 7.0)), np.zeros(3))


def test_pairs():
    people = np.repeat([0, 1, 2], 10)
    first, second = quality.choose_pairs(people, 435)
    assert len(first) == 435 and (first < second).all()
    first, second = quality.choose_pairs(people, 100)
    same = people[first] == people[second]
    assert same.sum() == 3 * 45 and 40 < (~same).sum() <= 100
    assert len(set(zip(first[same], second[same], strict=True))) == 135
    features = np.random.default_rng(0).normal(size=(30, 4))
    pairs = quality.compare(features, people, first, second)
    unit = vectors.unit_rows(features)
    cosine = np.clip((unit[first] * unit[second]).sum(1), -1, 1)
    np.testing.assert_allclose(pairs.distance, np.arccos(cosine) / np.pi, rtol=1e-6)
    np.testing.assert_array_equal(pairs.same, same)


def embed(images, batch_size):
    return np.asarray(images[:].reshape(len(images), -1)[:, ::97], np.float64)


def test_scores_without_information_raise(small_world):
    test = QualityFaces(data_dir=str(small_world), people=6, test_people=6).load("test")
    with pytest.raises(ValueError, match=r"expected \(72,\), all finite"):
        PROTOCOL.assess(np.full(72, np.nan), test, embed)
    with pytest.raises(ValueError, match="all 72 values of a vector are equal"):
        PROTOCOL.assess(np.ones(72), test, embed)


def test_report_of_rendered_faces(small_world):
    test = QualityFaces(data_dir=str(small_world), people=6, test_people=6).load("test")
    report = PROTOCOL.assess(-test.fault + 1e-6 * np.arange(72), test, embed, {"more": np.ones(2)})
    assert report.metrics["fault_correlation"] > 0.99
    assert {"edc_area", "fault_correlation", "yaw_correlation"} <= report.metrics.keys()
    assert report.figures.keys() == {"Error over discarded", "Score over fault"}
    assert report.arrays.keys() == {"scores", "more"} and report.images


def test_unknown_degradations_and_absent_errors_are_left_out():
    """An area over a curve that begins without an error is undefined."""
    people = np.tile([0, 1], 10)
    test = unmeasured(np.zeros((20, 4, 4, 3), np.uint8), people)
    features = np.eye(2)[people] + 0.01 * np.random.default_rng(0).normal(size=(20, 2))
    pairs = PROTOCOL.compare(features, people)
    assert PROTOCOL.measures(np.arange(20.0), test, pairs).keys() == {"edc_area"}
