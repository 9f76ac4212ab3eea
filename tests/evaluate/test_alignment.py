import dataclasses

import jax.numpy as jnp
import numpy as np

from facejax.data.landmark_images import Faces, region_matrix
from facejax.data.synthetic.faces import png
from facejax.evaluate import alignment


def make_faces(count=6, size=32):
    rng = np.random.default_rng(0)
    points = rng.uniform(10, 50, (count, 68, 2))
    images = [{"image": png(rng.integers(0, 255, (60, 60, 3)).astype(np.uint8))} for _ in range(count)]
    matrices = np.stack([region_matrix((30 + i, 29, 50 + i), 5.0 * i, size) for i in range(count)])
    subsets = {"odd": np.arange(count) % 2 == 1, "none": np.zeros(count, bool)}
    return Faces(images, matrices, size, points, np.ones((count, 68), bool), subsets)


def test_estimates_return_to_the_image():
    faces = make_faces()

    def predict(variables, images):
        return {"points": jnp.broadcast_to(variables, (len(images), 68, 2)), "first": jnp.zeros((len(images), 68, 2))}

    corner = jnp.array([3.0, 7.0])
    found = alignment.find(predict, corner, faces, batch_size=4)
    for i, matrix in enumerate(faces.matrices):
        np.testing.assert_allclose(
            found["points"][i] @ matrix[:, :2].T + matrix[:, 2], np.tile(corner, (68, 1)), atol=1e-4
        )


def test_boxes_of_the_data_set_are_the_sizes():
    """As on AFLW, whose errors are divided by the side of the given box."""
    faces = make_faces()
    boxes = np.tile(np.float64([0, 0, 10, 40]), (len(faces), 1))
    made = alignment.report(
        dataclasses.replace(faces, boxes=boxes),
        {"points": faces.points + np.array([3, 4])},
        normalizer="box",
        limit=0.08,
    )
    np.testing.assert_allclose(made.arrays["errors"], 5 / 20)


def test_report_by_hand():
    faces = make_faces()
    sizes = np.sqrt(np.prod(faces.points.max(1) - faces.points.min(1), -1))
    errors = np.array([0.01, 0.02, 0.03, 0.09, 0.2, 0.05])
    points = faces.points + np.stack([errors * sizes, 0 * sizes], -1)[:, None]
    made = alignment.report(faces, {"points": points, "first": faces.points}, normalizer="box", limit=0.08)
    np.testing.assert_allclose(made.metrics["nme"], 100 * errors.mean())
    np.testing.assert_allclose(made.metrics["nme_odd"], 100 * errors[[1, 3, 5]].mean())
    np.testing.assert_allclose(made.metrics["failures_at_8"], 100 * 2 / 6)
    np.testing.assert_allclose(made.metrics["auc_at_8"], 100 * np.clip(1 - errors / 0.08, 0, 1).mean(), atol=0.1)
    assert made.metrics["nme_first"] == 0 and "nme_none" not in made.metrics
    (rows,) = made.tables.values()
    assert [row["faces"] for row in rows] == ["all", "odd"]
