import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.ops import boxes as box
from facejax.ops.gaussian_targets import gaussian_radius, splat


@pytest.mark.parametrize(
    ("height", "width", "overlap", "exact", "radius"),
    [
        (10, 10, 0.3, True, 2.26139),
        (20, 40, 0.3, True, 5.78046),
        (20, 40, 0.7, True, 2.1548),
        (20, 40, 0.7, False, 7.3558),
    ],
)
def test_golden_radii(height, width, overlap, exact, radius):
    found = gaussian_radius(jnp.float32(height), jnp.float32(width), overlap, exact=exact)
    np.testing.assert_allclose(found, radius, rtol=2e-5)


def test_a_shift_by_the_radius_keeps_the_overlap():
    """In the worst of the three cases, the IoU is then exactly that asked for."""
    rng = np.random.default_rng(0)
    for height, width in rng.uniform(5, 80, (20, 2)):
        r = float(gaussian_radius(jnp.float32(height), jnp.float32(width), 0.4))
        true = jnp.array([0, 0, width, height])
        shifted = jnp.array(
            [[r, r, width + r, height + r], [r, r, width - r, height - r], [-r, -r, width + r, height + r]]
        )
        np.testing.assert_allclose(box.iou(true, shifted).min(), 0.4, rtol=1e-4)


def test_empty_boxes_have_no_radius_and_wrong_overlaps_are_refused():
    for exact in (True, False):
        np.testing.assert_array_equal(gaussian_radius(jnp.zeros(2), jnp.array([0.0, 0.0]), 0.7, exact=exact), 0)
    with pytest.raises(ValueError, match="gaussian_radius: overlap is 1, expected above 0 and below 1"):
        gaussian_radius(jnp.zeros(1), jnp.zeros(1), 1)


@pytest.mark.parametrize("size", [(16, 24), (13, 7)])
def test_splat_equals_brute_force(size):
    rng, classes = np.random.default_rng(1), 3
    places = np.stack([rng.integers(0, size[1], 9), rng.integers(0, size[0], 9)], -1)
    places[1] = places[0]
    radii, labels, mask = rng.integers(0, 6, 9), rng.integers(0, classes, 9), rng.uniform(size=9) > 0.2
    expected = np.zeros((*size, classes))
    for (x, y), r, c in zip(places[mask], radii[mask], labels[mask], strict=True):
        for row in range(max(0, y - r), min(size[0], y + r + 1)):
            for column in range(max(0, x - r), min(size[1], x + r + 1)):
                value = np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * ((2 * r + 1) / 6) ** 2))
                expected[row, column, c] = max(expected[row, column, c], value)
    draw = jax.jit(lambda *values: splat(*values, size, classes))
    found = draw(places, radii, labels, mask)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    centres = np.zeros((*size, classes), bool)
    centres[places[mask, 1], places[mask, 0], labels[mask]] = True
    np.testing.assert_array_equal(np.asarray(found) == 1, centres)
    order = rng.permutation(9)
    np.testing.assert_array_equal(draw(places[order], radii[order], labels[order], mask[order]), found)
    assert not np.asarray(draw(places, radii, labels, np.zeros(9, bool))).any()
