"""PNCC, depth, shading, UV layouts and mesh files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.morphable import export, lighting, pncc, uv

GRID = 6


@pytest.fixture(scope="module")
def sheet():
    """A curved square, 6 x 6 vertices, in pixels of a 24 x 24 picture, y down, bulging towards the viewer."""
    y, x = np.mgrid[:GRID, :GRID].reshape(2, -1) * 4.0 + 2
    vertices = np.stack([x, y, 20 - ((x - 12) ** 2 + (y - 12) ** 2) / 20], -1).astype(np.float32)
    return jnp.asarray(vertices), uv.grid_triangles(np.ones((GRID, GRID), bool))


def test_code_spans_zero_to_one():
    mean = jnp.asarray(np.random.default_rng(0).normal(size=(50, 3)) * [1, 5, 1e5])
    code = pncc.coordinate_code(mean)
    np.testing.assert_allclose(code.min(0), 0, atol=1e-6)
    np.testing.assert_allclose(code.max(0), 1, atol=1e-6)


def test_published_code_is_the_mean_shape(test_data):
    configs = test_data / "weights" / "3ddfa_v2"
    mean = sum(np.load(configs / "3ddfa_v1_configs" / f"{n}.npy") for n in ("u_shp", "u_exp")).reshape(-1, 3)
    kept = mean[np.load(configs / "configs" / "indices.npy")]
    np.testing.assert_allclose(
        pncc.coordinate_code(jnp.asarray(kept)), np.load(configs / "configs" / "ncc_code.npy").T, atol=2e-2
    )


def test_pncc_shows_the_code_of_the_nearest_surface(sheet):
    vertices, triangles = sheet
    behind = vertices * jnp.array([1, 1, 0.0])
    both = jnp.concatenate([behind, vertices])
    faces = np.concatenate([triangles, triangles + len(vertices)])
    code = jnp.concatenate([jnp.full_like(vertices, 0.9), pncc.coordinate_code(vertices)])
    picture = pncc.render_pncc(both[None], faces, code, (24, 24))[0]
    assert (np.diff(picture[12, 3:21, 0]) > 0).all()  # red grows with x
    assert (np.diff(picture[3:21, 12, 1]) > 0).all()
    np.testing.assert_array_equal(picture[0, 0], 0)
    at = np.asarray(vertices[:, :2]).astype(int)
    expected = (np.asarray(vertices[:, :2]) - 2 - 0.0) / 20
    inner = (at > 2).all(1) & (at < 22).all(1)
    found = np.asarray(picture)[at[:, 1], at[:, 0], :2][inner]
    np.testing.assert_allclose(found, expected[inner] + 0.5 / 20, atol=1e-4)  # a pixel's centre is at + 0.5


def test_depth_and_shading(sheet):
    vertices, triangles = sheet
    incident = lighting.incidence(triangles, len(vertices))
    draw = jax.jit(lambda v: pncc.shaded(v, triangles, incident, (24, 24)))
    picture, fragments = draw(vertices)
    depth = np.asarray(pncc.depth_picture(fragments))
    assert depth[12, 12] == depth.max() == pytest.approx(1)
    assert depth[depth > 0].min() == pytest.approx(0.2)
    assert depth[0, 0] == 0
    assert picture[12, 12, 0] > picture[20, 4, 0] > 0  # the light comes from above right, the front is brightest
    image = jnp.full((24, 24, 3), 100, jnp.uint8)
    mixed = np.asarray(pncc.blend(image, picture, fragments.triangle >= 0, 1.0))
    np.testing.assert_array_equal(mixed[0, 0], 100)
    np.testing.assert_allclose(mixed[12, 12], np.round(255 * picture[12, 12]), atol=1)


def test_grid_triangles_face_the_viewer_and_leave_holes():
    mask = np.ones((3, 4), bool)
    mask[0, 0] = False
    triangles = uv.grid_triangles(mask)
    assert len(triangles) == 2 * 5
    assert 0 not in triangles
    y, x = np.divmod(triangles, 4)
    (ax, bx, cx), (ay, by, cy) = x.T, -y.T  # y up
    assert ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > 0).all()


def test_texture_is_the_image_under_the_positions():
    image = jnp.asarray(np.random.default_rng(0).random((5, 7, 3)))
    rows, columns = jnp.mgrid[:5, :7]
    positions = jnp.stack([columns + 0.5, rows + 0.5, jnp.zeros_like(rows, float)], -1)
    np.testing.assert_allclose(uv.texture_of(image, positions), image, atol=1e-6)


def test_prnets_layout(test_data, tmp_path):
    layout = uv.read_prnet_layout(test_data / "prnet_uv")
    assert layout.mask.sum() == 43_867
    flat = np.loadtxt(test_data / "prnet_uv" / "face_ind.txt").astype(int)
    np.testing.assert_array_equal(np.flatnonzero(layout.mask), flat)
    assert (layout.weights[~layout.mask] == 0).all()
    levels = layout.weights[tuple(layout.landmarks68.T)]
    assert (levels > 15.9).mean() > 0.95
    assert layout.landmarks68[30, 1] == pytest.approx(127.5, abs=3)  # the nose is in the middle
    with pytest.raises(ValueError, match=r"uv_face_mask.png: expected a picture of 256 x 256"):
        uv.read_prnet_layout(tmp_path)


def read_ply(path):
    head, body = path.read_bytes().split(b"end_header\n")
    return head.decode(), body


def test_obj_counts_from_one(sheet, tmp_path):
    vertices, triangles = sheet
    texture = np.zeros((2, 2, 3), np.uint8)
    places = np.linspace(0, 1, 2 * len(vertices)).reshape(-1, 2)
    colours = np.full_like(vertices, 0.25)
    export.write_obj(tmp_path / "a.obj", vertices, triangles, colours=colours, uv=places, texture=texture)
    lines = [line.split() for line in (tmp_path / "a.obj").read_text().splitlines()]
    points = np.array([line[1:] for line in lines if line[0] == "v"], float)
    np.testing.assert_allclose(points, np.concatenate([vertices, colours], 1), rtol=1e-5)
    faces = [[int(corner.split("/")[0]) for corner in line[1:]] for line in lines if line[0] == "f"]
    np.testing.assert_array_equal(np.array(faces) - 1, triangles)
    marks = np.array([line[1:] for line in lines if line[0] == "vt"], float)
    np.testing.assert_allclose(marks, places * [1, -1] + [0, 1], atol=1e-5)
    assert "map_Kd a.png" in (tmp_path / "a.mtl").read_text()
    assert (tmp_path / "a.png").is_file()


def test_ply_in_both_forms(sheet, tmp_path):
    vertices, triangles = sheet
    colours = np.full_like(vertices, 1.0)
    export.write_ply(tmp_path / "b.ply", vertices, triangles, colours=colours)
    head, body = read_ply(tmp_path / "b.ply")
    assert "binary_little_endian" in head
    assert f"element vertex {len(vertices)}" in head
    kind = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
    points = np.frombuffer(body[: kind.itemsize * len(vertices)], kind)
    np.testing.assert_array_equal(points["xyz"], vertices)
    np.testing.assert_array_equal(points["rgb"], 255)
    rows = np.frombuffer(body[kind.itemsize * len(vertices) :], np.dtype([("n", "u1"), ("c", "<i4", 3)]))
    np.testing.assert_array_equal(rows["c"], triangles)
    export.write_ply(tmp_path / "c.ply", vertices, triangles, binary=False)
    lines = read_ply(tmp_path / "c.ply")[1].decode().splitlines()
    np.testing.assert_allclose([list(map(float, line.split())) for line in lines[: len(vertices)]], vertices, rtol=1e-5)
    assert lines[-1] == "3 " + " ".join(map(str, triangles[-1]))


@pytest.mark.parametrize("write", [export.write_obj, export.write_ply])
def test_bad_meshes(sheet, tmp_path, write):
    vertices, triangles = np.asarray(sheet[0]), sheet[1]
    path = tmp_path / "x"
    with pytest.raises(ValueError, match="expected 0 to 35"):
        write(path, vertices, triangles + 1)
    with pytest.raises(ValueError, match="vertex 3 is not finite"):
        write(path, np.where(np.arange(36)[:, None] == 3, np.nan, vertices), triangles)
    with pytest.raises(ValueError, match=r"colours \(35, 3\), expected \(36, 3\)"):
        write(path, vertices, triangles, colours=vertices[1:])
    assert not path.exists()
