import numpy as np

from facejax.data import views


def test_recolouring():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    same = views.recolour(image, (0, 0, 0, 0), 0, np.random.default_rng(0))
    np.testing.assert_array_equal(same, image)
    turned = views.recolour(np.full((2, 2, 3), (200, 40, 40), np.uint8), (0, 0, 0, 0.5), 0, np.random.default_rng(0))
    assert {turned.min(), turned.max()} == {40, 200}  # other hue, equal brightness
    grey = views.recolour(image, (0.4, 0.4, 1.0, 0.5), 1.0, np.random.default_rng(1))
    assert (grey == grey[..., :1]).all()
    light = views.recolour(np.full((4, 4, 3), 100, np.uint8), (0.4, 0, 0, 0), 0, np.random.default_rng(2))
    assert 60 <= light[0, 0, 0] <= 140
    assert light[0, 0, 0] != 100
