"""Digits: the scale of MNIST's pixels, splits of scikit-learn's digits, errors."""

import numpy as np
import pytest

from facejax.data import digits
from facejax.data.builders import store
from facejax.data.digits import DigitImages


def test_mnist_is_scaled_to_minus_one_to_one(monkeypatch):
    image = np.zeros((28, 28, 1), np.uint8)
    image[0, 1] = 255
    monkeypatch.setattr(store, "prepared", lambda builder, split: [{"image": image, "label": 3}] * 2)
    data = digits.read_mnist("", "train")
    assert data["image"].shape == (2, 784)
    assert (data["image"][0, :3] == [-1, 1, -1]).all()
    assert data["label"].tolist() == [3, 3]


def test_splits_follow_the_seed_and_do_not_overlap():
    train, test = DigitImages(train=300).split(seed=0)
    assert (train["image"].shape, test["image"].shape) == ((300, 64), (1497, 64))
    assert train["image"].min() == -1
    assert train["image"].max() == 1
    again, other = (DigitImages(train=300).split(seed)[0]["image"] for seed in (0, 1))
    np.testing.assert_array_equal(again, train["image"])
    assert (other != train["image"]).any()


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match=r"data\.source is 'cifar': expected digits or mnist"):
        DigitImages(source="cifar")
    with pytest.raises(ValueError, match=r"data\.train is 1797: expected 1 to 1796"):
        DigitImages(train=1797).split(seed=0)
