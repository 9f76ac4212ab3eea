import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.morphable import model as morphable
from facejax.morphable.procedural import EXPRESSIONS, SHAPE_CONTROLS, procedural


@pytest.fixture(scope="module")
def head():
    return procedural(texture_size=128)


def test_sizes(head):
    assert head.mean_shape.shape[0] >= 3000
    assert head.identity_std.shape[0] >= 40
    assert head.expression_std.shape[0] >= 10
    assert min(head.albedo_mean.shape[:2]) >= 128
    assert len(SHAPE_CONTROLS) >= 60
    assert {"jaw_open", "smile", "brow_raise", "eyes_closed", "puff"} <= set(head.expressions)


@pytest.mark.parametrize("name", ["identity", "expression", "albedo"])
def test_bases_are_orthonormal_and_ordered(head, name):
    basis, std = getattr(head, f"{name}_basis"), np.asarray(getattr(head, f"{name}_std"))
    flat = np.asarray(basis).reshape(-1, basis.shape[-1])
    np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-4)
    assert (np.diff(std) <= 0).all()
    assert std[-1] > 0


def test_partners_mirror_the_mean(head):
    mean, partner = np.asarray(head.mean_shape), np.asarray(head.symmetry)
    np.testing.assert_array_equal(partner[partner], np.arange(len(partner)))
    np.testing.assert_allclose(mean[partner], mean * [-1, 1, 1], atol=1e-5)


def test_triangles_face_outward(head):
    mean, triangles = np.asarray(head.mean_shape), np.asarray(head.triangles)
    a, b, c = (mean[triangles[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    skin = np.asarray(head.regions["skin"])[triangles].all(1)
    outward = np.sum(normal * ((a + b + c) / 3 - [0, 0, -0.1]), 1)[skin]
    assert (outward > 0).mean() > 0.97
    edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), 1)
    assert np.unique(edges, axis=0, return_counts=True)[1].max() <= 2


def landmarks(head, **strength):
    expression = sum(
        (head.expressions[name] * value for name, value in strength.items()), jnp.zeros(len(EXPRESSIONS) - 1)
    )
    return np.asarray(morphable.shape(head, jnp.zeros(1), expression))[np.asarray(head.landmarks68)]


def test_landmarks_lie_in_their_order(head):
    p = landmarks(head)
    assert len(set(np.asarray(head.landmarks68).tolist())) == 68
    assert len(set(np.asarray(head.landmarks98).tolist())) == 98
    pairs = [
        (0, 16),
        (3, 13),
        (7, 9),
        (17, 26),
        (21, 22),
        (36, 45),
        (39, 42),
        (37, 44),
        (41, 46),
        (31, 35),
        (48, 54),
        (60, 64),
    ]
    for left, right in pairs:
        np.testing.assert_allclose(p[left] * [-1, 1, 1], p[right], atol=1e-4)
        assert p[left, 0] < p[right, 0]
    heights = [p[i, 1] for i in (19, 37, 41, 30, 33, 51, 62, 57, 8)]
    assert (np.diff(heights) < 0).all()
    assert p[30, 2] == p[:, 2].max()
    assert p[37, 1] > p[41, 1]
    q = np.asarray(head.mean_shape)[np.asarray(head.landmarks98)]
    assert q[96, 0] < 0 < q[97, 0]
    np.testing.assert_allclose(q[60], p[36], atol=1e-4)
    np.testing.assert_allclose(q[16], p[8], atol=1e-4)
    assert len(head.boundaries) == 13


def test_expressions_do_what_they_say(head):
    rest = landmarks(head)
    opened, smiling, shut, raised = (
        landmarks(head, **{n: 1.0}) for n in ("jaw_open", "smile", "eyes_closed", "brow_raise")
    )
    assert opened[62, 1] - opened[66, 1] > 0.1 > rest[62, 1] - rest[66, 1]
    assert opened[8, 1] < rest[8, 1] - 0.1
    assert smiling[54, 1] > rest[54, 1] + 0.04
    assert smiling[54, 0] > rest[54, 0]
    gap = [p[44, 1] - p[46, 1] for p in (rest, shut)]
    assert gap[1] < 0.35 * gap[0]
    assert raised[24, 1] > rest[24, 1] + 0.05
    puffed = morphable.shape(head, jnp.zeros(1), head.expressions["puff"])
    assert np.abs(puffed - head.mean_shape).max() > 0.05


def test_random_people_keep_their_features_in_place(head):
    coefficients = np.clip(np.random.default_rng(0).normal(size=(100, 48)), -2.5, 2.5)
    shapes = jax.jit(lambda c: morphable.shape(head, c, jnp.zeros((100, 1))))(coefficients)
    p = np.asarray(shapes)[:, np.asarray(head.landmarks68)]
    for above, below in ((19, 37), (37, 41), (39, 30), (30, 51), (51, 57), (57, 8)):
        assert (p[:, above, 1] > p[:, below, 1]).all()
    for left, right in ((36, 39), (39, 42), (42, 45), (31, 35), (48, 54)):
        assert (p[:, left, 0] < p[:, right, 0]).all()
    assert np.linalg.norm(shapes - head.mean_shape, axis=-1).std() > 0.01


def test_albedo_is_a_colour(head):
    coefficients = np.random.default_rng(0).normal(size=(4, 40))
    textures = jax.jit(lambda c: morphable.albedo(head, c))(coefficients)
    assert textures.shape == (4, 128, 128, 3)
    assert (textures >= 0).all()
    assert (textures <= 1).all()
    assert textures.mean((1, 2)).std() > 0.02


def test_the_same_arguments_give_the_same_head():
    first = procedural(texture_size=128)
    procedural.cache_clear()
    again = procedural(texture_size=128)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True))


def test_too_much_is_refused(head):
    with pytest.raises(ValueError, match="identity is 99, expected 1 to"):
        procedural(identity=99)
    with pytest.raises(ValueError, match="60 coefficients given, but the basis has 48"):
        morphable.shape(head, jnp.zeros(60), jnp.zeros(1))
