"""Reader of the Basel Face Model, on a synthetic file in its format: a half cylinder with bumps and known bases."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from facejax.morphable import model
from facejax.morphable.bfm import SCALE, from_bfm

ROWS, COLUMNS = 14, 15
COUNT = ROWS * COLUMNS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("bfm"), np.random.default_rng(0)
    y, a = np.meshgrid(np.linspace(1, -1, ROWS), np.linspace(-1.4, 1.4, COLUMNS), indexing="ij")
    mean = np.stack([np.sin(a), y, np.cos(a)], -1).reshape(-1, 3) * 1e5
    first = (np.arange(ROWS - 1)[:, None] * COLUMNS + np.arange(COLUMNS - 1)).ravel()
    triangles = np.concatenate(
        [
            np.stack([first, first + COLUMNS, first + 1], -1),
            np.stack([first + 1, first + COLUMNS, first + COLUMNS + 1], -1),
        ]
    )
    basis = np.linalg.qr(rng.normal(size=(3 * COUNT, 6)))[0]
    content = {
        "shapeMU": mean.reshape(-1, 1), "shapePC": basis, "shapeEV": np.array([[5e5, 4e5, 3e5, 2e5, 1e5, 5e4]]).T,
        "texMU": np.full((3 * COUNT, 1), 127.5), "texPC": np.linalg.qr(rng.normal(size=(3 * COUNT, 5)))[0],
        "texEV": np.full((5, 1), 300.0), "tl": triangles[:, [1, 0, 2]] + 1,
    }  # fmt: skip
    scipy.io.savemat(folder / "01_MorphableModel.mat", content)
    expression = {"mu_exp": np.zeros((3 * COUNT, 1)), "w_exp": rng.normal(size=(3 * COUNT, 3)) * 1e4}
    scipy.io.savemat(folder / "Model_Exp.mat", expression)
    return folder / "01_MorphableModel.mat", folder / "Model_Exp.mat", content, expression


def read(files, **options):
    return from_bfm(*files[:2], landmarks68=tuple(range(68)), texture_size=48, **options)


def test_shape_space_equals_that_of_the_file(files):
    face = read(files)
    assert face.mean_shape.shape == (COUNT, 3)
    for name in ("identity", "expression", "albedo"):
        basis, std = (np.asarray(getattr(face, f"{name}_{part}")) for part in ("basis", "std"))
        flat = basis.reshape(-1, basis.shape[-1])
        np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-4)
        assert (np.diff(std) <= 1e-6).all()
    np.testing.assert_allclose(face.identity_std, files[2]["shapeEV"].ravel() * SCALE, rtol=1e-4)
    alpha = np.array([1.0, -2.0, 0.5, 0.3, 0.0, 1.5])
    moved = files[2]["shapePC"] @ (alpha * files[2]["shapeEV"].ravel()) * SCALE
    flat = np.asarray(face.identity_basis).reshape(-1, 6)
    np.testing.assert_allclose(flat @ (flat.T @ moved), moved, atol=1e-4)
    offset = files[3]["w_exp"][:, 1] * SCALE
    flat = np.asarray(face.expression_basis).reshape(-1, 3)
    np.testing.assert_allclose(flat @ (flat.T @ offset), offset, atol=1e-5)


def test_triangles_face_outward_and_partners_mirror(files):
    face = read(files)
    mean, triangles = np.asarray(face.mean_shape), np.asarray(face.triangles)
    a, b, c = (mean[triangles[:, i]] for i in range(3))
    assert (np.cross(b - a, c - a)[:, 2] > 0).mean() > 0.9
    np.testing.assert_allclose(mean[np.asarray(face.symmetry)], mean * [-1, 1, 1], atol=1e-5)


def test_albedo_equals_the_colour_of_the_file(files):
    face = read(files)
    texture = model.albedo(face, jnp.zeros(1))
    drawn = np.asarray(face.albedo_mean).sum(-1) > 0
    assert 0.2 < drawn.mean() < 0.8
    np.testing.assert_allclose(texture[drawn], 0.5**2.2, atol=1e-3)


def test_a_trimmed_mesh(files, tmp_path):
    keep = np.arange(COLUMNS, COUNT)
    rows = (3 * keep[:, None] + np.arange(3)).ravel()
    scipy.io.savemat(tmp_path / "e.mat", {"mu_exp": np.zeros((len(rows), 1)), "w_exp": files[3]["w_exp"][rows]})
    face = from_bfm(files[0], tmp_path / "e.mat", vertices=keep, landmarks68=tuple(range(68)), texture_size=32)
    assert face.mean_shape.shape[0] == len(keep)
    assert int(face.triangles.max()) == len(keep) - 1


def test_invalid_files_raise(files, tmp_path):
    (tmp_path / "no.mat").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no\.mat: expected a MATLAB file with shapeMU, .*: no header"):
        from_bfm(tmp_path / "no.mat", files[1])
    with pytest.raises(ValueError, match="no variable shapeMU, only mu_exp, w_exp"):
        from_bfm(files[1], files[1])
    with pytest.raises(ValueError, match=r"w_exp has 630 rows, expected 60 for 20 vertices"):
        from_bfm(*files[:2], vertices=np.arange(20))
    with pytest.raises(ValueError, match="expected 68 landmarks below 210, the largest is 52613"):
        from_bfm(*files[:2])
