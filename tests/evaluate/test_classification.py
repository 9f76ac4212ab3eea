"""Figures of mistakes and the SVM protocol of bilinear CNNs."""

import numpy as np
import pytest

from facejax.evaluate import classification


def flat(rows):
    """Images of 2 x 2 pixels whose value is their row."""
    return np.broadcast_to(np.array(rows, np.uint8)[:, None, None, None], (len(rows), 2, 2, 3))


def test_mistakes_are_ordered_by_confidence_above_the_predicted_class():
    label, guess = np.array([0, 1, 2, 0, 1]), np.array([1, 1, 0, 3, 2])  # row 3 names a class without images
    confidence = np.array([0.4, 0.9, 0.8, 0.99, 0.3])
    (grid,) = classification.mistakes(flat, guess, label, confidence).values()
    np.testing.assert_array_equal(grid[::2, ::2, 0], [[2, 0, 4], [0, 1, 2]])
    (grid,) = classification.mistakes(flat, guess, label, confidence, columns=1).values()
    np.testing.assert_array_equal(grid[::2, ::2, 0], [[2], [0]])
    assert classification.mistakes(flat, label, label, confidence) == {}


def test_svms_are_calibrated_by_medians():
    rng = np.random.default_rng(0)
    centres, labels = 4 * np.eye(3, 6), np.arange(60) % 3
    known = centres[labels] + 0.3 * rng.normal(size=(60, 6))
    scores = classification.svm_scores(known, labels, known)
    np.testing.assert_array_equal(scores.argmax(1), labels)
    for label in range(3):
        assert np.median(scores[labels == label, label]) == pytest.approx(1)
        assert np.median(scores[labels != label, label]) == pytest.approx(0, abs=1e-12)


def test_figures():
    scores = np.eye(4)[[0, 1, 2, 3, 0]]
    figure = classification.confusion_figure(scores, np.array([0, 1, 2, 3, 1]))
    counts = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(counts, np.eye(4) + np.eye(4)[[1]].T @ np.eye(4)[[0]])
    line = classification.rank_figure(np.array([0, 0, 1, 3]), 4).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [50, 75, 75, 100])
