"""Parameter vectors, image conventions, crops, whitening, and the published files of 3DDFA."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.morphable import crops, parameters, tddfa_files
from facejax.morphable.parameters import Layout, LinearFace
from facejax.ops import rotation

LAYOUT = Layout(3, 2)
V = 9


@pytest.fixture(scope="module")
def face():
    rng = np.random.default_rng(0)
    bases = rng.normal(size=(V, 3, 5)).astype(np.float32)
    triangles = np.int32([[0, 1, 2], [2, 3, 4], [6, 7, 8]])
    return LinearFace(
        jnp.asarray(rng.normal(size=(V, 3)), jnp.float32), jnp.asarray(bases), triangles, jnp.arange(8, -1, -2), LAYOUT
    )


@pytest.fixture(scope="module")
def vectors():
    return jnp.asarray(np.random.default_rng(1).normal(size=(4, LAYOUT.size)), jnp.float32)


def test_a_vector_is_rows_of_pose_then_shape_then_expression(face, vectors):
    """The published column-major formula, with the bases as columns x0, y0, z0, x1, ..."""
    column = np.asarray(face.mean).reshape(-1, 1)
    bases = np.asarray(face.bases).reshape(3 * V, 5)
    for vector, found in zip(np.asarray(vectors), parameters.reconstruct(face, vectors), strict=True):
        pose = vector[:12].reshape(3, -1)
        points = (column + bases @ vector[12:, None]).reshape(3, -1, order="F")
        np.testing.assert_allclose(found, (pose[:, :3] @ points + pose[:, 3:]).T, rtol=2e-5, atol=1e-5)
    np.testing.assert_array_equal(parameters.from_column(column), face.mean)
    np.testing.assert_array_equal(parameters.from_column(bases), face.bases)
    parts = parameters.split(vectors, LAYOUT)
    np.testing.assert_array_equal(parts.pose[:, 1, 3], vectors[:, 7])
    np.testing.assert_array_equal(parameters.join(parts), vectors)


@pytest.mark.parametrize(("size", "layout"), [(62, (40, 10)), (72, (40, 20)), (141, (100, 29))])
def test_published_layouts(size, layout):
    parts = parameters.split(jnp.zeros((2, size)))
    assert (parts.shape.shape[-1], parts.expression.shape[-1]) == layout


def test_61_numbers_have_no_depth():
    vector = jnp.arange(61.0)[None]
    full = parameters.with_depth(vector, -1.0)
    np.testing.assert_array_equal(full[0, 9:14], [9, 10, -1, 11, 12])


def test_pose_of_a_matrix():
    angles = jnp.array([[0.3, -0.7, 0.2], [0.0, 1.2, -0.4]])
    turn = rotation.from_euler(angles)
    pose = parameters.compose(jnp.array([2.0, 3.0]), turn, jnp.ones((2, 3)))
    scale, found, shift = parameters.decompose(pose)
    np.testing.assert_allclose(scale, [2, 3], rtol=1e-5)
    np.testing.assert_allclose(found, turn, atol=1e-6)
    np.testing.assert_array_equal(shift, np.ones((2, 3)))
    np.testing.assert_allclose(parameters.pose_scale(pose), [2, 3], rtol=1e-5)
    np.testing.assert_allclose(parameters.nearest_rotation(3 * turn), turn, atol=1e-5)
    mirrored = parameters.nearest_rotation(turn[0] * jnp.array([1, 1, -1.0]))
    np.testing.assert_allclose(jnp.linalg.det(mirrored), 1, rtol=1e-5)
    assert np.isfinite(jax.grad(lambda p: parameters.decompose(p)[1].sum())(jnp.zeros((3, 4)))).all()


def test_conventions_by_hand():
    points = np.float32([[10, 20, 30]])
    for convention, expected in (
        (crops.V1, [10, 101, 30]),
        (crops.V2, [9, 100, 29]),
        (crops.FACE3D, [10, 99, 30]),
        (crops.FACEJAX, [10, 100, 30]),
    ):
        found = crops.to_image(points, 120, convention)
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(crops.from_image(found, 120, convention), points)


@pytest.mark.parametrize("convention", [crops.FACEJAX, crops.V1, crops.V2])
@pytest.mark.parametrize("size", [48, 61])
def test_parameters_move_as_their_points_do(face, vectors, convention, size):
    roi = np.float32([[3, -5, 43, 35], [10, 12, 100, 102], [0, 0, 77, 77], [-9, 4, 21, 34]])
    image = crops.to_image(parameters.reconstruct(face, vectors), 77, convention)
    moved = crops.crop_parameters(vectors, roi, size, 77, convention)
    found = crops.to_image(parameters.reconstruct(face, moved), size, convention)
    expected = crops.crop_points(image, roi, size)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(crops.uncrop_points(expected, roi, size), image, rtol=1e-4, atol=2e-4)
    back = crops.uncrop_parameters(moved, roi, size, 77, convention)
    np.testing.assert_allclose(back, vectors, rtol=1e-4, atol=1e-4)
    on_host = crops.crop_parameters(np.asarray(vectors), roi, size, 77, convention)
    assert isinstance(on_host, np.ndarray)
    np.testing.assert_allclose(on_host, moved, rtol=1e-5, atol=1e-5)


def test_regions_by_hand():
    left, top, right, bottom = crops.roi_from_box([10.0, 20.0, 31.0, 51.0])
    assert right - left == bottom - top == int(1.58 * 26)
    np.testing.assert_allclose([(left + right) / 2, (top + bottom) / 2], [20.5, 35.5 + 0.14 * 26])
    marks = np.array([[0.0, 0.0], [4.0, 1.0], [2.0, 3.0]])
    left, top, right, bottom = crops.roi_from_landmarks(marks)
    np.testing.assert_allclose([right - left, bottom - top], 4 * np.sqrt(2))
    np.testing.assert_allclose([(left + right) / 2, (top + bottom) / 2], [2, 1.5])
    left, top, right, bottom = crops.roi_around(marks, 1.6)
    np.testing.assert_allclose([right - left, (top + bottom) / 2], [1.6 * 3.5, 1.5])


def test_whitening_inverts_and_keeps_what_does_not_vary():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(50, 4)) * [1, 1e6, 1e-4, 0] + [0, 5, 1e-3, 76.65]
    whitening = parameters.Whitening.of(data)
    white = whitening.whiten(jnp.asarray(data, jnp.float32))
    np.testing.assert_allclose(white[:, :3].std(0), 1, rtol=1e-3)
    np.testing.assert_allclose(white[:, 3], 0, atol=1e-4)
    np.testing.assert_allclose(whitening.restore(white), data, rtol=1e-4, atol=1e-6)


def test_subset_keeps_whole_triangles_and_landmarks(face):
    small = parameters.subset(face, np.array([2, 3, 4, 8, 6]))
    np.testing.assert_array_equal(small.triangles, [[0, 1, 2]])
    np.testing.assert_array_equal(small.landmarks68, [3, 4, 2, 0, -1])
    vector = jnp.ones((1, LAYOUT.size))
    whole = parameters.reconstruct(face, vector)[:, [2, 3, 4, 8, 6]]
    np.testing.assert_allclose(parameters.reconstruct(small, vector), whole, rtol=1e-6)
    np.testing.assert_allclose(parameters.reconstruct(parameters.at_vertices(face, jnp.array([4, 4])), vector)[:, 1],
                               parameters.reconstruct(face, vector)[:, 4])  # fmt: skip


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda face: parameters.split(jnp.zeros(63)), "parameters of 63 numbers, expected one of 62, 72, 141"),
        (
            lambda face: parameters.reconstruct(face, jnp.zeros((1, 18))),
            "parameters of 18 numbers, expected 17: 12 of pose, 3 of shape, 2 of expression",
        ),
        (lambda face: parameters.Whitening.of(np.zeros((1, 4))), r"vectors \(1, 4\), expected \[N, D\]"),
        (lambda face: parameters.Whitening.of(np.full((3, 4), np.nan)), "finite numbers"),
        (
            lambda face: parameters.Whitening(jnp.zeros(4), jnp.ones(4)).restore(jnp.zeros(5)),
            "parameters of 5 numbers, but the whitening has 4",
        ),
        (lambda face: parameters.subset(face, np.array([0, 9])), "expected .* indices 0 to 8"),
        (lambda face: parameters.subset(face, np.array([1, 1])), "twice"),
        (lambda face: parameters.from_column(np.zeros(7)), "7 coordinates, expected a multiple of three"),
        (lambda face: crops.roi_from_box([5, 5, 5, 9]), "expected .* x1 < x2 and y1 < y2"),
        (lambda face: crops.roi_from_box([5, 5, np.nan, 9]), "finite"),
        (lambda face: crops.roi_from_landmarks(np.ones((68, 2))), "all in one place, expected a face"),
        (lambda face: crops.roi_from_landmarks(np.full((68, 2), np.inf)), "finite"),
        (lambda face: crops.crop_points(np.ones((1, 2, 2)), np.ones((1, 5)), 9), r"regions \(1, 5\)"),
    ],
)
def test_bad_input(face, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(face)


def dense_arrays(count=80):
    rng = np.random.default_rng(0)
    angle = np.arange(count) * 2.4
    height = np.linspace(-1, 1, count)
    mean = np.stack([np.cos(angle), height, np.sin(angle)], 1).reshape(-1, 1)
    return {
        "mean": mean,
        "shape_basis": rng.normal(size=(3 * count, 4)),
        "expression_basis": rng.normal(size=(3 * count, 2)),
        "triangles": np.array([[0, 1, 2], [5, 6, 7]]).T,
        "landmarks": (3 * np.arange(68)[:, None] + np.arange(3)).ravel(),
    }


def test_dense_face_of_columns():
    arrays = dense_arrays()
    face = tddfa_files.dense_face(**arrays)
    assert face.layout == (4, 2)
    np.testing.assert_allclose(face.mean, arrays["mean"].reshape(-1, 3), rtol=1e-6)
    np.testing.assert_allclose(
        face.bases[7, 1], [*arrays["shape_basis"][22], *arrays["expression_basis"][22]], rtol=1e-6
    )
    np.testing.assert_array_equal(face.landmarks68, np.arange(68))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape_basis": np.zeros((237, 4))}, "the shape basis is .*, expected 240 rows"),
        ({"expression_basis": np.zeros(240)}, "the expression basis"),
        ({"triangles": np.array([[0, 1, 80]])}, "vertex indices 0 to 79"),
        ({"landmarks": np.arange(67)}, "expected 68 vertex indices"),
        ({"landmarks": np.arange(204)[::-1]}, "3v, 3v \\+ 1, 3v \\+ 2"),
    ],
)
def test_dense_face_of_another_size(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        tddfa_files.dense_face(**{**dense_arrays(), **change})


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps({"mean": np.zeros(62, np.float32)}), "expected the arrays mean and std"),
        (pickle.dumps({"mean": np.zeros(61), "std": np.ones(61)}), "expected 62 numbers each"),
        (pickle.dumps({"mean": np.zeros(62), "std": np.zeros(62)}), "deviations above 0"),
        (pickle.dumps([Evil()]), "refers to builtins.print"),
        (b"\x80\x04K", "not a readable pickle"),
    ],
)
def test_bad_whitening_files(tmp_path, content, sentence):
    (tmp_path / "w.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        tddfa_files.read_whitening(tmp_path / "w.pkl", 62)


def test_published_files_give_the_recorded_landmarks_and_angles(test_data):
    """3DDFA_V2's own code recorded these from the network's raw output on photographs."""
    folder = test_data / "weights" / "3ddfa_v2"
    known = np.load(folder / "reference.npz")
    whitening = tddfa_files.read_whitening(folder / "configs" / "param_mean_std_62d_120x120.pkl", 62)
    older = tddfa_files.read_whitening(folder / "3ddfa_v1_configs" / "param_whitening.pkl", 62)
    assert not np.allclose(whitening.mean, older.mean, rtol=1e-2)
    vectors = whitening.restore(jnp.asarray(known["crops_param_normalized"]))
    np.testing.assert_allclose(vectors, known["crops_param"], rtol=1e-5, atol=1e-3)
    face = tddfa_files.read_landmark_face(test_data / "aflw2000")
    points = crops.to_image(np.asarray(parameters.reconstruct(face, vectors)), 120, crops.V2)
    points = crops.uncrop_points(points, known["crops_roi_boxes"], 120)
    points[..., 2] -= points[..., 2].min(1, keepdims=True)
    expected = np.moveaxis(known["crops_landmarks68_image_xyz"], 1, 2)
    expected = expected - [0, 0, 1] * expected.min(1, keepdims=True)
    np.testing.assert_allclose(points, expected, atol=2e-3)
    scale, turn, shift = parameters.decompose(parameters.split(vectors).pose)
    np.testing.assert_allclose(scale, known["crops_scale"], rtol=1e-5)
    np.testing.assert_allclose(turn, known["crops_R"], atol=1e-5)
    np.testing.assert_allclose(shift, known["crops_t"], rtol=1e-5)
    angles = np.degrees(rotation.to_euler_zyx(turn))[:, [1, 0, 2]]
    np.testing.assert_allclose(angles, known["crops_pose_yaw_pitch_roll_deg"], atol=1e-3)
    np.testing.assert_allclose(crops.roi_from_box(known["crops_boxes"][:, :4]), known["crops_roi_boxes"], atol=1e-3)
    with pytest.raises(ValueError, match=r"w_shp_base.txt: \(204, 40\), expected \(204, 39\)"):
        tddfa_files.read_landmark_face(test_data / "aflw2000", Layout(39, 10))


def test_published_landmark_indices(test_data):
    from facejax.morphable.bfm import LANDMARKS68

    flat = np.load(test_data / "weights" / "3ddfa_v2" / "3ddfa_v1_configs" / "keypoints_sim.npy")
    np.testing.assert_array_equal(tddfa_files.landmark_vertices(flat), LANDMARKS68)
    means = [np.load(test_data / "weights" / "3ddfa_v2" / "3ddfa_v1_configs" / f"{n}.npy") for n in ("u_shp", "u_exp")]
    face = tddfa_files.read_landmark_face(test_data / "aflw2000")
    mean = parameters.from_column(sum(means))
    np.testing.assert_allclose(mean[list(LANDMARKS68)], face.mean, rtol=1e-5, atol=0.1)
