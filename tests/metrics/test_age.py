import numpy as np
import pytest

from facejax.metrics import age

pytestmark = pytest.mark.smoke


def test_by_hand():
    truth, predicted = [20, 30, 40, 50], [23.0, 30, 37.5, 60]
    assert age.age_error(predicted, truth) == pytest.approx((3 + 0 + 2.5 + 10) / 4)
    assert age.cumulative_score(predicted, truth, 3) == 0.5
    assert age.cumulative_score(predicted, truth, 3, strict=False) == 0.75
    assert age.cumulative_score(predicted, truth, 100) == 1


def test_wrong_input_raises():
    with pytest.raises(ValueError, match="true age 121, expected 0 to 120 years"):
        age.age_error([1.0, 2], [3, 121])
    with pytest.raises(ValueError, match="true age nan"):
        age.age_error([1.0], [np.nan])
    with pytest.raises(ValueError, match="a prediction is not finite"):
        age.age_error([np.inf], [3])
    with pytest.raises(ValueError, match=r"predicted \(2,\) and truth \(3,\), expected \[N\] twice"):
        age.cumulative_score([1, 2], [1, 2, 3], 5)
    with pytest.raises(ValueError, match="N above 0"):
        age.age_error([], [])
    with pytest.raises(ValueError, match="years 0, expected a number above 0"):
        age.cumulative_score([1], [1], 0)
