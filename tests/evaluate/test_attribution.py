"""Maps of evidence: peaks on the part that decides, hit rates, patches of projections."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from facejax.data import normalize, transforms
from facejax.data.synthetic import faces
from facejax.evaluate import attribution
from facejax.foundations import deconvnet


def test_maps_of_a_score_of_the_eyes_peak_on_the_eyes():
    task = dataclasses.replace(faces.TASKS["attributes"], per_person=1)
    examples = [example for _, example in faces.generate(task, range(8))]
    boxes = attribution.eye_boxes(np.stack([e["landmarks68"] for e in examples]))
    rows, columns = np.mgrid[:64, :64] + 0.5
    seen = attribution.inside(np.stack([rows, columns], -1), boxes[:, None, None])[..., None]
    images = np.stack([transforms.decode(e["image"]) for e in examples])
    x = normalize.centred(jnp.asarray(images))

    def score(x):
        return jnp.sum(jnp.abs(x) * seen, (1, 2, 3))

    covered, *centres = deconvnet.occlusion(score, x, size=12, stride=4)
    fall = np.asarray(score(x))[:, None, None] - np.asarray(covered)
    assert attribution.hit_rate(fall, centres, boxes) == 1
    assert attribution.hit_rate(fall[:, ::-1], centres, boxes) < 0.5


def test_hits_are_peaks_inside_the_boxes_of_the_eyes():
    marks = np.zeros((2, 68, 2))
    marks[:, 36:48] = np.linspace((20, 10), (40, 16), 12)  # (x, y): 20 wide, 6 tall
    boxes = attribution.eye_boxes(marks)
    np.testing.assert_allclose(boxes[0], [[6, 16], [20, 44]])
    maps, centres = np.zeros((2, 3, 3)), (np.array([5.0, 15, 25]), np.array([10.0, 30, 50]))
    maps[0, 1, 1], maps[1, 0, 1] = 1, 1
    assert attribution.hit_rate(maps, centres, boxes) == 0.5


def test_zero_is_grey_and_patches_hold_the_reached_region():
    back = np.zeros((8, 8, 3), np.float32)
    back[2:4, 3:5] = [[[2.0, -2, 0], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]]]
    image = np.zeros((8, 8, 3), np.uint8)
    image[2:4, 3:5] = 200
    projection, picture = attribution.patch(image, back, 2)
    np.testing.assert_array_equal(projection[0, 0], [255, 1, 128])
    assert (picture == 200).all()
    assert (attribution.visible(0 * back) == 128).all()
