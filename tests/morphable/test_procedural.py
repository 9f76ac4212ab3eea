"""The procedural head: a valid mesh, valid bases, landmarks at the facial features, expressions with their effect."""

import chex
import numpy as np
import pytest

from facejax.morphable import model as morphable
from facejax.morphable import procedural as package
from facejax.morphable.procedural import procedural

MIRROR68 = [
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38, 37, 36,
    41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),
]  # fmt: skip


@pytest.fixture(scope="module")
def head():
    return procedural()


@pytest.fixture(scope="module")
def mean(head):
    return np.asarray(head.mean_shape)


def posed(head, name, strength=1.0):
    """Vertices of one expression at full strength."""
    return np.asarray(morphable.shape(head, np.zeros(1), strength * head.expressions[name]))


def people(head, count, seed=0):
    rng = np.random.default_rng(seed)
    coefficients = np.clip(rng.normal(size=(count, len(head.identity_std))), -3, 3).astype(np.float32)
    return np.asarray(morphable.shape(head, coefficients, np.zeros((count, 1), np.float32)))


def test_sizes_and_types(head):
    vertices = head.mean_shape.shape[0]
    assert 4000 <= vertices <= 8000
    assert len(head.identity_std) >= 40 and len(head.expression_std) >= 10 and len(head.expressions) >= 10
    assert min(head.albedo_mean.shape[:2]) >= 128 and len(head.albedo_std) == 40
    assert len(package.SHAPE_CONTROLS) >= 60
    chex.assert_shape(head.identity_basis, (vertices, 3, len(head.identity_std)))
    chex.assert_shape(head.expression_basis, (vertices, 3, len(head.expression_std)))
    chex.assert_shape([head.uv, head.landmarks68, head.landmarks98], [(vertices, 2), (68,), (98,)])
    chex.assert_type([head.mean_shape, head.identity_basis, head.albedo_basis, head.uv], np.float32)
    chex.assert_type([head.triangles, head.landmarks68, head.landmarks98, head.symmetry], np.int32)
    chex.assert_tree_all_finite(head)
    assert float(head.uv.min()) >= 0 and float(head.uv.max()) <= 1
    assert head is procedural()


def test_bases_are_orthonormal_and_ordered_by_variance(head):
    for basis, std in (
        (head.identity_basis, head.identity_std),
        (head.expression_basis, head.expression_std),
        (head.albedo_basis, head.albedo_std),
    ):
        flat = np.asarray(basis, np.float64).reshape(-1, len(std))
        np.testing.assert_allclose(flat.T @ flat, np.eye(len(std)), atol=1e-5)
        assert np.all(np.diff(np.asarray(std)) <= 0) and np.all(np.asarray(std) > 0)


def test_identity_basis_has_the_variance_of_the_controls(head):
    """The total variance of the components equals that of the displacement fields of the controls."""
    mesh = package.mesh()
    total = 0.0
    for name, sigma in package.SHAPE_CONTROLS.items():
        ends = [package.sculpt(mesh, lambda n, v=v, k=name: v * (n == k), lambda n: 0.0) for v in (sigma, -sigma)]
        total += np.sum(((ends[0] - ends[1]) / 2) ** 2)
    share = np.sum(np.asarray(head.identity_std) ** 2) / total
    assert 0.98 < share <= 1 + 1e-5


def test_triangles_form_surfaces(head, mean):
    triangles = np.asarray(head.triangles)
    assert triangles.min() == 0 and triangles.max() == len(mean) - 1
    assert len(np.unique(triangles)) == len(mean), "a vertex without a triangle"
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    assert len(np.unique(edges, axis=0)) == len(edges), "an edge is used twice in one direction"
    corners = mean[triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    assert np.mean(area < 1e-9) < 0.01


def test_winding_is_counter_clockwise_outside(head, mean):
    triangles = np.asarray(head.triangles)
    corners = mean[triangles]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outward = np.sum(normal * (corners.mean(1) - np.array([0.0, 0.0, -0.1])), 1)
    area = np.linalg.norm(normal, axis=1)
    skin = np.asarray(head.regions["skin"])[triangles].all(1)
    assert area[skin & (outward > 0)].sum() > 0.985 * area[skin].sum()
    for side in (-1, 1):
        ball = np.flatnonzero(np.asarray(head.regions["eyes"]) & (side * mean[:, 0] > 0))
        inside = np.isin(triangles, ball).all(1)
        assert normal[inside, 2].sum() > 0


def test_head_is_closed_at_the_back_and_below(head, mean):
    """The only boundary edges of the skin are at the eyes, the mouth and the seam at the back."""
    triangles = np.asarray(head.triangles)
    skin = np.asarray(head.regions["skin"] | head.regions["neck"])
    triangles = triangles[skin[triangles].all(1)]
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    known = {tuple(e) for e in edges}
    border = np.array([e for e in known if e[::-1] not in known])
    where = mean[border].mean(1)
    eye = (np.abs(np.abs(where[:, 0]) - 0.285) < 0.16) & (np.abs(where[:, 1] - 0.13) < 0.09) & (where[:, 2] > 0)
    mouth = (np.abs(where[:, 0]) < 0.25) & (np.abs(where[:, 1] + 0.52) < 0.05) & (where[:, 2] > 0)
    seam = (where[:, 2] < -0.5) & (np.abs(np.hypot(where[:, 0], where[:, 1] - 0.1) - 0.3) < 0.05)
    assert np.all(eye | mouth | seam)
    rim = mean[np.unique(border[seam])]
    gaps = np.linalg.norm(rim[:, None] - rim[None], axis=-1) + np.eye(len(rim))
    assert gaps.min(1).max() < 1e-6, "the seam is open"


def test_mean_is_symmetric(head, mean):
    partner = np.asarray(head.symmetry)
    np.testing.assert_array_equal(partner[partner], np.arange(len(partner)))
    np.testing.assert_allclose(mean[partner], mean * [-1, 1, 1], atol=1e-5)
    landmarks = np.asarray(head.landmarks68)
    np.testing.assert_array_equal(partner[landmarks], landmarks[MIRROR68])
    for name in ("smile", "jaw_open", "eyes_closed", "puff"):
        moved = posed(head, name)
        np.testing.assert_allclose(moved[partner], moved * [-1, 1, 1], atol=1e-5)
    np.testing.assert_allclose(posed(head, "wink_left")[partner], posed(head, "wink_right") * [-1, 1, 1], atol=1e-5)


def test_landmarks68_have_the_order_of_300w(head, mean):
    p = mean[np.asarray(head.landmarks68)]
    assert len(np.unique(np.asarray(head.landmarks68))) == 68
    assert np.all(np.diff(p[:17, 0]) > 0) and p[8, 1] == p[:, 1].min() and abs(p[8, 0]) < 1e-6
    assert np.all(np.diff(p[17:27, 0]) > 0) and np.all(p[17:27, 1] > p[36:48, 1].max())
    assert np.all(np.diff(p[27:31, 1]) < 0) and np.abs(p[27:31, 0]).max() < 1e-6
    assert p[30, 2] == p[:, 2].max() and np.all(np.diff(p[31:36, 0]) > 0)
    for first in (36, 42):
        eye = p[first : first + 6]
        assert eye[0, 0] == eye[:, 0].min() and eye[3, 0] == eye[:, 0].max()
        assert eye[1:3, 1].min() > eye[[0, 3], 1].max() > eye[4:, 1].max() and eye[1, 0] < eye[2, 0] > eye[5, 0]
    assert np.all(np.diff(p[48:55, 0]) > 0) and np.all(np.diff(p[54:60, 0]) < 0)
    assert np.all(np.diff(p[60:65, 0]) > 0) and np.all(np.diff(p[64:68, 0]) < 0)
    assert np.all(p[49:54, 1] > p[61:64, 1].max()) and np.all(p[55:60, 1] < p[65:68, 1].min())


def test_landmarks98_have_the_order_of_wflw(head, mean):
    p = mean[np.asarray(head.landmarks98)]
    assert len(np.unique(np.asarray(head.landmarks98))) == 98
    assert np.all(np.diff(p[:33, 0]) > 0)
    for brow in (p[33:42], p[42:51]):
        assert brow[:5, 1].mean() > brow[5:, 1].mean() + 0.02 and np.all(np.diff(brow[:5, 0]) > 0)
        assert np.all(np.diff(brow[5:, 0]) < 0)
    for eye, pupil in ((p[60:68], p[96]), (p[68:76], p[97])):
        assert eye[0, 0] == eye[:, 0].min() and eye[4, 0] == eye[:, 0].max()
        assert eye[1:4, 1].min() > eye[5:, 1].max()
        assert eye[5:, 1].min() < pupil[1] < eye[1:4, 1].max() and eye[1, 0] < pupil[0] < eye[3, 0]
    same = {0: 0, 32: 16, 16: 8, 60: 36, 64: 39, 68: 42, 72: 45, 76: 48, 82: 54, 88: 60, 92: 64, 85: 57, 54: 30, 57: 33}
    for wflw, w300 in same.items():
        np.testing.assert_allclose(p[wflw], mean[np.asarray(head.landmarks68)[w300]], atol=1e-6)
    assert len(head.boundaries) == 13
    for name, line in head.boundaries.items():
        assert np.isin(np.asarray(line), np.asarray(head.landmarks98)).all(), name


def test_expressions_have_the_named_effect(head, mean):
    marks = np.asarray(head.landmarks68)
    rest = mean[marks]

    def moved(name):
        return posed(head, name)[marks]

    def gap(p):
        return np.linalg.norm(p[62] - p[66])

    def lids(p):
        return [np.linalg.norm(p[[37, 38]].mean(0) - p[[41, 40]].mean(0)), np.linalg.norm(p[43:45] - p[[47, 46]])]

    assert gap(moved("jaw_open")) > gap(rest) + 0.12 and moved("jaw_open")[8, 1] < rest[8, 1] - 0.1
    assert np.all(moved("smile")[[48, 54], 1] > rest[[48, 54], 1] + 0.04)
    assert np.all(np.abs(moved("smile")[[48, 54], 0]) > np.abs(rest[[48, 54], 0]) + 0.02)
    assert np.all(moved("corners_down")[[48, 54], 1] < rest[[48, 54], 1] - 0.03)
    assert np.all(moved("brow_raise")[17:27, 1] > rest[17:27, 1] + 0.03)
    assert np.all(moved("brow_frown")[[21, 22], 1] < rest[[21, 22], 1] - 0.02)
    assert max(lids(moved("eyes_closed"))) < 0.25 * min(lids(rest))
    assert lids(moved("wink_left"))[0] < 0.25 * lids(rest)[0] and lids(moved("wink_left"))[1] > 0.95 * lids(rest)[1]
    assert np.ptp(moved("pucker")[48:60, 0]) < 0.8 * np.ptp(rest[48:60, 0])
    assert np.ptp(moved("lips_press")[48:60, 1]) < 0.8 * np.ptp(rest[48:60, 1])
    cheek = np.argmin(np.linalg.norm(mean - [0.42, -0.42, 0.5], axis=1))
    assert posed(head, "puff")[cheek, 0] > mean[cheek, 0] + 0.04
    assert moved("sneer")[31:36, 1].mean() > rest[31:36, 1].mean() + 0.01


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_lids_stay_outside_the_eyeballs(head, strength):
    """No vertex of a closing lid is inside the eyeball."""
    vertices = posed(head, "eyes_closed", strength)
    ball = vertices[np.asarray(head.landmarks98)[97]] - [0, 0, 0.15]
    mesh = package.mesh()
    lid = (mesh.part == 0) & (np.hypot((mesh.labels[:, 0] - 0.285) / 0.14, (mesh.labels[:, 1] - 0.13) / 0.085) < 1)
    lid &= mesh.labels[:, 2] > 0
    distance = np.linalg.norm(vertices[lid] - ball, axis=1)
    assert lid.sum() > 60 and distance.min() > 0.1495


def test_random_identities_keep_the_order_of_landmarks(head):
    p = people(head, 64)
    marks = p[:, np.asarray(head.landmarks68)]
    eyes, nose, mouth = marks[:, 36:48, 1], marks[:, 27:36, 1], marks[:, 48:68, 1]
    assert np.all(eyes.min(1) > mouth.max(1) + 0.2) and np.all(nose.min(1) > mouth.max(1))
    assert np.all(marks[:, 17:27, 1].mean(1) > eyes.max(1))
    for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46)):
        assert np.all(marks[:, upper, 1] > marks[:, lower, 1] + 0.01), "a flipped eyelid"
    assert np.all(np.diff(marks[:, 48:55, 0], axis=1) > 0)
    assert np.all(marks[:, 51, 1] > marks[:, 57, 1] + 0.05)
    spread = np.linalg.norm(p - p.mean(0), axis=-1).mean()
    assert 0.02 < spread < 0.12


def test_regions(head, mean):
    regions = {name: np.asarray(mask) for name, mask in head.regions.items()}
    names = {"skin", "eyes", "brows", "nose", "lips", "neck", "ears", "teeth", "mouth", "scalp"}
    assert names <= set(regions) and all(mask.any() for mask in regions.values())
    assert not (regions["skin"] & (regions["neck"] | regions["ears"] | regions["teeth"] | regions["mouth"])).any()
    marks = np.asarray(head.landmarks68)
    assert regions["lips"][marks[48:60]].all() and regions["eyes"][marks[36:48]].all()
    assert regions["brows"][marks[17:27]].all() and regions["nose"][marks[27:31]].all()
    assert mean[regions["scalp"], 1].mean() > 0.3 and mean[regions["neck"], 1].max() < -0.4


def test_albedo(head):
    rng = np.random.default_rng(0)
    textures = np.asarray(morphable.albedo(head, rng.normal(size=(16, 40)).astype(np.float32)))
    assert textures.min() >= 0 and textures.max() <= 1
    size = textures.shape[1]
    uv = np.asarray(head.uv)
    texel = np.minimum((uv * size).astype(int), size - 1)
    colour = textures[:, texel[:, 1], texel[:, 0]]
    forehead = np.linalg.norm(np.asarray(head.mean_shape) - [0.2, 0.5, 0.65], axis=1) < 0.15
    skin = colour[:, forehead].mean(1)
    assert np.all(skin[:, 0] > skin[:, 2]), "skin is redder than blue"
    assert skin.mean(1).std() > 0.05, "all people have the same skin tone"
    pupils = colour[:, np.asarray(head.landmarks98)[96:]]
    assert pupils.max() < 0.15


def test_equal_seeds_give_equal_models(head):
    again = procedural.__wrapped__(albedo=3, texture_size=64)
    once_more = procedural.__wrapped__(albedo=3, texture_size=64)
    chex.assert_trees_all_equal(again, once_more)
    other = procedural.__wrapped__(seed=1, albedo=3, texture_size=64)
    np.testing.assert_array_equal(other.mean_shape, head.mean_shape)
    assert np.abs(np.asarray(other.albedo_basis) - np.asarray(again.albedo_basis)).max() > 1e-3


@pytest.mark.parametrize("argument", ["identity", "expression", "albedo"])
def test_too_many_dimensions_raise(argument):
    with pytest.raises(ValueError, match=f"procedural: {argument} is 1000, expected 1 to"):
        procedural(**{argument: 1000})


def test_too_many_coefficients_raise(head):
    with pytest.raises(ValueError, match="60 coefficients given, but the basis has 48"):
        morphable.shape(head, np.zeros(60, np.float32), np.zeros(1, np.float32))
