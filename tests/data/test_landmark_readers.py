import json
import struct

import cv2
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from facejax.data.landmarks import MIRRORS
from facejax.data.readers import ages, head_pose, landmarks
from facejax.data.transforms import decode
from facejax.metrics import pose

RNG = np.random.default_rng(0)


def picture(path, turned=b""):
    """Writes a small image and returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        turned or cv2.imencode(path.suffix.lower(), RNG.integers(0, 255, (40, 30, 3), np.uint8))[1].tobytes()
    )
    return path.read_bytes()


def matlab(path, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, values)
    return path


def cells(*values):
    found = np.empty((len(values), 1), object)
    found[:, 0] = [*values]
    return found


def damaged(message):
    return pytest.raises(ValueError, match=message)


@pytest.fixture
def sample(test_data):
    """Name of a data set -> (folder, [(image name, points [L, 2])]) of real images."""

    def load(name):
        folder = test_data / "landmark_samples" / name
        found = json.loads((folder / f"test_{name}.json").read_text())
        names = {image["id"]: image["file_name"] for image in found["images"]}
        rows = [(names[a["image_id"]], np.reshape(a["keypoints"], (-1, 3))[:, :2]) for a in found["annotations"]]
        return folder, rows

    return load


def check_samples(source, rows, shift):
    """Each real image is read as it is, and the points are those of the annotation."""
    assert len(source) == len(rows)
    for example, (_, points) in zip([source[i] for i in range(len(source))], rows, strict=True):
        np.testing.assert_allclose(example["points"], points - shift, atol=1e-3)
        height, width = decode(example["image"], upright=False).shape[:2]
        inside = (example["points"] > -20) & (example["points"] < [width + 20, height + 20])
        assert inside.mean() > 0.95


def test_pts(tmp_path):
    points = RNG.uniform(-5, 200, (68, 2))
    landmarks.write_pts(tmp_path / "a.pts", points)
    assert f"{points[0, 0] + 1:.6f}" in (tmp_path / "a.pts").read_text()  # MATLAB's first pixel is 1
    np.testing.assert_allclose(landmarks.read_pts(tmp_path / "a.pts", 68), points, atol=1e-4)
    (tmp_path / "b.pts").write_bytes(b"version: 1\r\nn_points:  2\r\n{\r\n1 1\r\n2.5 4\r\n}\r\n")
    np.testing.assert_array_equal(landmarks.read_pts(tmp_path / "b.pts"), [[0, 0], [1.5, 3]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: '': expected 'version: 1'"),
        ("version: 2\n", "line 1: 'version: 2'"),
        ("version: 1\nn_points: 99999999999\n{\n}", "line 2: expected 'n_points: ' and a number"),
        ("version: 1\nn_points: 3\n{\n1 1\n2 2\n}", "6 lines: expected 7: a header, and 3 points in braces"),
        ("version: 1\nn_points: 2\n{\n1 1\n2 nan\n}", "line 5: '2 nan': expected 2 finite numbers"),
        ("version: 1\nn_points: 2\n{\n1 1\n2 2 2\n}", "line 5: '2 2 2': expected 2 finite numbers"),
        ("version: 1\nn_points: 1\n{\n1 1\n}\nmore", "6 lines: expected 5"),
    ],
)
def test_damaged_pts(tmp_path, text, message):
    (tmp_path / "x.pts").write_text(text)
    with damaged(rf"x\.pts.*{message}"):
        landmarks.read_pts(tmp_path / "x.pts")


def test_lines_end_at_newlines_only(tmp_path):
    (tmp_path / "x.txt").write_bytes("a\u2028b\r\nc\x0cd\n\n".encode())
    assert landmarks.read_lines(tmp_path / "x.txt") == ["a\u2028b", "c\x0cd"]


def test_large_pts_is_not_read(tmp_path):
    with (tmp_path / "x.pts").open("wb") as file:
        file.truncate(landmarks.PTS_BYTES + 1)
    with damaged("1048577 bytes: expected at most 1048576"):
        landmarks.read_pts(tmp_path / "x.pts")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4))
def test_fuzzed_pts_raises_value_errors_only(tmp_path_factory, changes):
    data = bytearray(b"version: 1\nn_points: 3\n{\n1.5 2.5\n3 4\n5 6\n}\n")
    for place, value in changes:
        data[place % len(data)] = value
    file = tmp_path_factory.mktemp("fuzz") / "x.pts"
    file.write_bytes(bytes(data))
    try:
        assert np.isfinite(landmarks.read_pts(file)).all()
    except ValueError as error:
        assert str(file) in str(error)


def test_300w(tmp_path, turned_jpeg, sample):
    folder, rows = sample("300w")
    for part, (name, points) in zip(("01_Indoor", "02_Outdoor"), rows, strict=True):
        picture(tmp_path / part / name, (folder / name).read_bytes())
        landmarks.write_pts(tmp_path / part / f"{name[:-4]}.pts", points - 1)
    check_samples(landmarks.read_300w(tmp_path, "private"), rows, 1)
    with damaged("split 'test': expected one of train, common, challenging, full, private"):
        landmarks.read_300w(tmp_path, "test")
    with damaged("afw: no .pts files"):
        landmarks.read_300w(tmp_path, "train")
    (tmp_path / "ibug").mkdir()
    landmarks.write_pts(tmp_path / "ibug" / "none.pts", np.zeros((68, 2)))
    with damaged(r"none\.pts: 0 images of this name beside it"):
        landmarks.read_300w(tmp_path, "challenging")
    stored = turned_jpeg(np.zeros((20, 30, 3), np.uint8), 6)
    picture(tmp_path / "ibug" / "none.JPG", stored)
    example = landmarks.read_300w(tmp_path, "challenging")[0]
    assert example["image"] == stored
    assert sorted(example) == ["image", "name", "points"]


def wflw_line(points, name, box="10 20 90 120", flags="0 1 0 0 1 0"):
    return f"{' '.join(f'{v:.6f}' for v in np.ravel(points))} {box} {flags} {name}"


def test_wflw(tmp_path, sample):
    folder, rows = sample("wflw")
    (tmp_path / "list.txt").write_text("\n".join(wflw_line(p, n) for n, p in rows) + "\n")
    source = landmarks.read_wflw(tmp_path / "list.txt", folder)
    check_samples(source, rows, 0)
    np.testing.assert_array_equal(source[0]["box"], [10, 20, 90, 120])
    assert [k for k, flag in source[0]["attributes"].items() if flag] == ["expression", "occlusion"]
    points = np.zeros((98, 2))
    for line, message in (
        (wflw_line(points[1:], "a.png"), "205 fields: expected 207"),
        (wflw_line(points, "a.png", flags="0 1 0 0 1 2"), "attributes '0 1 0 0 1 2': expected six times 0 or 1"),
        (wflw_line(points, "a.png", box="10 20 10 120"), "box 10, 20 to 10, 120: expected x1 < x2"),
        (wflw_line(points, "../a.png"), "expected the path of an image within its folder"),
        (wflw_line(points + np.inf, "a.png"), "expected 200 finite numbers"),
    ):
        (tmp_path / "list.txt").write_text(f"{wflw_line(points, 'a.png')}\n{line}\n")
        with damaged(f"list.txt, line 2: .*{message}"):
            landmarks.read_wflw(tmp_path / "list.txt", folder)


def aflw_file(path, rows, **changes):
    count = len(rows)
    values = {
        "nameList": cells(*(name for name, _ in rows)),
        "bbox": np.tile([1.0, 91, 2, 92], (count, 1)),
        "data": np.stack([points.T.ravel() for _, points in rows]),
        "mask_new": np.ones((count, 19)),
        "ra": np.arange(count, 0, -1.0)[None],
    }
    return matlab(path, **{**values, **changes})


def test_aflw(tmp_path, sample):
    folder, rows = sample("aflw")
    mask = np.ones((2, 19))
    mask[0, 4] = 0
    file = aflw_file(tmp_path / "AFLWinfo_release.mat", rows, mask_new=mask)
    check_samples(landmarks.read_aflw(file, folder, "train", 2), rows[::-1], 0)  # in the order of ra
    test = landmarks.read_aflw(file, folder, "test", 0)
    np.testing.assert_array_equal(test[0]["box"], [1, 2, 91, 92])
    assert [test[i]["visible"].sum() for i in range(2)] == [19, 18]
    assert [face.name for face in landmarks.read_aflw(file, folder, "frontal", 0).faces] == [rows[1][0]]
    assert len(landmarks.read_aflw(file, folder, "test", 1)) == 1
    with damaged(r"in ra each of 1\.\.2 once"):
        landmarks.read_aflw(aflw_file(tmp_path / "x.mat", rows, ra=np.ones((1, 2))), folder, "test")
    with damaged(r"data of shape \(2, 42\) and type float64: expected finite numbers \[2, 38\]"):
        landmarks.read_aflw(aflw_file(tmp_path / "x.mat", rows, data=np.zeros((2, 42))), folder, "test")
    with damaged("split 'val': expected train, test or frontal"):
        landmarks.read_aflw(file, folder, "val")


def cofw_values(sample):
    folder, rows = sample("cofw")
    images = [decode((folder / name).read_bytes(), upright=False) for name, _ in rows]
    hidden = np.zeros((2, 29))
    hidden[1, 7] = 1
    phis = np.concatenate([np.stack([points.T.ravel() + 1 for _, points in rows]), hidden], 1)
    return images, phis, np.array([[5.0, 6, 100, 120]] * 2), rows


def check_cofw(source, images, rows):
    check_samples(source, rows, 0)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(decode(source[i]["image"], upright=False), image)
    np.testing.assert_array_equal(source[0]["box"], [4, 5, 104, 125])
    assert source[0]["visible"].all()
    assert np.flatnonzero(~source[1]["visible"]).tolist() == [7]


def hdf5(path, images, phis, boxes):
    """A file as MATLAB 7.3 writes it: axes in reverse order, cells as references, 512 bytes before the HDF5 part."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = np.empty((1, len(images)), h5py.ref_dtype)
        for i, image in enumerate(images):
            refs[0, i] = file.create_dataset(f"#refs#/{i}", data=image.T).ref
        file.create_dataset("IsT", data=refs, dtype=h5py.ref_dtype)
        file["phisT"], file["bboxesT"] = phis.T, boxes.T
    return path


def test_cofw_of_old_files(tmp_path, sample):
    images, phis, boxes, rows = cofw_values(sample)
    images[1] = images[1][..., 0]  # the grey files
    file = matlab(tmp_path / "COFW_test.mat", IsT=cells(*images), phisT=phis, bboxesT=boxes)
    images[1] = images[1][..., None].repeat(3, -1)
    check_cofw(landmarks.read_cofw(file, "test"), images, rows)
    with damaged("no variable IsTr, only IsT, phisT, bboxesT"):
        landmarks.read_cofw(file, "train")
    for name, value, message in (
        ("IsT", cells(np.zeros((3, 4))), r"image 1: float64 \(3, 4\): expected uint8"),
        ("phisT", phis[:, 1:], r"phisT of shape \(2, 86\)"),
        ("phisT", phis + 1, "face 2: occlusion 2: expected 0 or 1"),
        ("bboxesT", -boxes, "box .* expected x1 < x2"),
    ):
        wrong = {"IsT": cells(*images), "phisT": phis, "bboxesT": boxes, name: value}
        with damaged(message):
            landmarks.read_cofw(matlab(tmp_path / "x.mat", **wrong), "test")


def test_cofw_of_new_files(tmp_path, sample, monkeypatch):
    images, phis, boxes, rows = cofw_values(sample)
    file = hdf5(tmp_path / "COFW_test_color.mat", images, phis, boxes)
    check_cofw(landmarks.read_cofw(file, "test"), images, rows)
    with damaged("no data set IsTr in the file itself"):
        landmarks.read_cofw(file, "train")
    whole = file.read_bytes()
    (tmp_path / "cut.mat").write_bytes(whole[:900])
    with damaged(r"cut\.mat: expected a MATLAB file with IsT, phisT, bboxesT"):
        landmarks.read_cofw(tmp_path / "cut.mat", "test")
    floats = hdf5(tmp_path / "floats.mat", [x.astype(float) for x in images], phis, boxes)
    with damaged("IsT, image 2: float64"):
        landmarks.read_cofw(floats, "test")[1]
    with monkeypatch.context() as patch, damaged(r"the data set /phisT: .* FACEJAX_MAX_GIB sets the limit"):
        patch.setenv("FACEJAX_MAX_GIB", "1e-6")
        landmarks.read_cofw(file, "test")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"an HDF5 file needs h5py: pip install 'facejax\[convert\]'"):
        landmarks.read_cofw(file, "test")


def test_lapa(tmp_path, sample):
    folder, rows = sample("lapa")
    for name, points in rows:
        picture(tmp_path / "test/images" / name, (folder / name).read_bytes())
        (tmp_path / "test/landmarks").mkdir(exist_ok=True)
        lines = "\n".join(f"{x} {y}" for x, y in points)
        (tmp_path / "test/landmarks" / f"{name[:-4]}.txt").write_text(f"106\n{lines}\n")
    check_samples(landmarks.read_lapa(tmp_path, "test"), rows, 0)
    (tmp_path / "test/landmarks/a.txt").write_text("105\n1 1\n")
    with damaged(r"a\.txt: 2 lines: expected '106', and 106 points"):
        landmarks.read_lapa(tmp_path, "test")
    with damaged("val/landmarks: no .txt files"):
        landmarks.read_lapa(tmp_path, "val")


@pytest.mark.parametrize("count", sorted(MIRRORS))
def test_mirror_maps(count, sample):
    """Permutations that are their own inverse, and under which a flipped real face is near to itself."""
    partners = MIRRORS[count]
    assert sorted(partners) == list(range(count))
    np.testing.assert_array_equal(partners[partners], np.arange(count))
    name = {19: "aflw", 29: "cofw", 68: "300w", 98: "wflw", 106: "lapa"}[count]
    for _, points in sample(name)[1]:
        flipped = points[partners] * [-1, 1]
        a, b = (p - p.mean(0) for p in (points, flipped))
        u, _, v = np.linalg.svd(a.T @ b)
        apart = np.linalg.norm(a - b @ (u @ v).T, axis=1) / np.linalg.norm(a, axis=1).mean()
        assert apart.mean() < 0.3
        assert apart.max() < 1.1


def lp_file(path, rng, points=68, **changes):
    picture(path.with_suffix(".jpg"))
    values = {"pt2d": rng.uniform(100, 300, (2, points)), "Pose_Para": rng.uniform(-1, 1, (1, 7))}
    return matlab(path, **{**values, "Shape_Para": rng.normal(size=(199, 1)), **changes})


def test_300w_lp(tmp_path, sample):
    folder, rows = sample("300wlp")
    angles = np.array([[0.1, -0.7, 0.2, 1, 2, 3, 4e-4]])
    for name, points in rows:
        picture(tmp_path / name, (folder / name).read_bytes())
        matlab(tmp_path / f"{name[:-4]}.mat", pt2d=points.T, Pose_Para=angles, Exp_Para=np.zeros((29, 1)))
    source = head_pose.read_folder(tmp_path)
    check_samples(source, rows, 1)
    np.testing.assert_allclose(source[0]["pose"], [-0.1, 0.7, -0.2], rtol=1e-6)
    np.testing.assert_allclose(pose.to_labels(source[0]["pose"]), np.degrees([-0.7, 0.1, 0.2]), rtol=1e-5)
    np.testing.assert_allclose(source[0]["box"][:2], rows[0][1].min(0) - 1, rtol=1e-5)
    found = head_pose.read_parameters(tmp_path / f"{rows[0][0][:-4]}.mat")
    assert {name: value.shape for name, value in found.items()} == {
        "Pose_Para": (7,),
        "Exp_Para": (29,),
        "pt2d": (2, 68),
    }


def test_aflw2000(tmp_path):
    rng = np.random.default_rng(0)
    flat = rng.uniform(100, 300, (2, 21))
    flat[:, [3, 8]] = -1
    solid = rng.uniform(50, 400, (3, 68))
    lp_file(tmp_path / "image00002.mat", rng, pt2d=flat, pt3d_68=solid)
    example = head_pose.read_folder(tmp_path)[0]
    np.testing.assert_allclose(example["points"], solid[:2].T - 1, rtol=1e-6)
    seen = np.delete(flat, [3, 8], 1) - 1
    np.testing.assert_allclose(example["box"], [*seen.min(1), *seen.max(1)], rtol=1e-6)
    np.testing.assert_array_equal(head_pose.counted(np.array([[1.0, -1, 5, 5], [2, 3, -1, -2]])), [1, 1, 0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Pose_Para": np.zeros((1, 6))}, r"Pose_Para of shape \(6,\) and type float64: expected finite numbers \[7\]"),
        ({"Pose_Para": np.full((1, 7), np.nan)}, "Pose_Para of shape"),
        ({"pt2d": np.zeros((2, 5))}, "pt2d has 5 points: expected 68 or 21"),
        ({"pt2d": np.zeros((2, 21))}, "pt2d has 0 points in the image"),
        ({"pt2d": np.ones((2, 21))}, "no pt3d_68 and 21 points in pt2d"),
        ({"pt3d_68": np.zeros((2, 68))}, r"pt3d_68 of shape \(2, 68\)"),
        ({"Shape_Para": np.array(["x"])}, "Shape_Para of shape"),
    ],
)
def test_damaged_300w_lp(tmp_path, changes, message):
    lp_file(tmp_path / "a.mat", np.random.default_rng(0), **changes)
    with damaged(rf"a\.mat: {message}"):
        head_pose.read_folder(tmp_path)


def test_sizes_of_matlab_variables_are_checked_first(tmp_path):
    """A header that claims 2^31 columns, and no data."""
    shape = struct.pack("<IIiiiI", 5, 8, 1, 2**31 - 1, 0, 0)[:16]
    array = struct.pack("<IIIIII", 6, 8, 6, 0, 0, 0)[:16] + shape + struct.pack("<HH4s", 1, 4, b"pt2d")
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
    (tmp_path / "a.mat").write_bytes(header + struct.pack("<II", 14, len(array)) + array)
    with damaged("it ends within an element"):
        head_pose.matfile.variables(tmp_path / "a.mat", ("pt2d",))
    (tmp_path / "a.mat").write_bytes(b"nothing")
    with damaged(r"a\.mat: expected a MATLAB file with pt2d, Pose_Para"):
        head_pose.read_parameters(tmp_path / "a.mat")
    with damaged("no .mat files"):
        head_pose.read_folder(tmp_path / "empty")


def test_catalogue():
    rng = np.random.default_rng(0)
    relative, angles = rng.uniform(0.2, 0.8, (68, 2)), rng.uniform(-1, 1, 7)
    found = head_pose.from_catalogue({"image": b"x", "landmarks_origin": relative, "pose_params": angles})
    np.testing.assert_allclose(found["points"], relative * 450 - 1, rtol=1e-6)
    np.testing.assert_allclose(found["pose"], -angles[:3], rtol=1e-6)
    found = head_pose.from_catalogue({"image": b"x", "landmarks_68_3d_xy_normalized": relative})
    assert sorted(found) == ["box", "image", "points"]
    with damaged("tfds set 'mnist': expected the300w_lp or aflw2k3d"):
        head_pose.Catalogue("mnist")
    with damaged("tfds set 'the300w_lp', not prepared as ArrayRecord in /nowhere"):
        head_pose.Catalogue("the300w_lp", "/nowhere")


def biwi_text(matrix):
    rows = "\n".join(" ".join(f"{v:.9f}" for v in row) + " " for row in matrix)
    return f"{rows}\n\n10.5 -3 900 \n"


def test_biwi(tmp_path):
    labels = np.array([[25.0, -10, 5], [-60, 30, 20]])
    for folder, matrix in zip(("01", "12"), pose.to_biwi(labels), strict=True):
        stored = picture(tmp_path / folder / "frame_00003_rgb.png")
        (tmp_path / folder / "frame_00003_pose.txt").write_text(biwi_text(matrix))
    source = head_pose.read_biwi(tmp_path)
    np.testing.assert_allclose(pose.to_labels([face.pose for face in source.faces]), labels, atol=1e-4)
    assert [face.person for face in source.faces] == ["01", "12"]
    assert source[1]["image"] == stored
    np.testing.assert_array_equal(head_pose.read_biwi_pose(tmp_path / "01/frame_00003_pose.txt")[1], [10.5, -3, 900])
    (tmp_path / "12/frame_00003_rgb.png").unlink()
    with damaged(r"frame_00003_pose\.txt: no frame_00003_rgb\.png beside it"):
        head_pose.read_biwi(tmp_path)
    with damaged(r"no NN/frame_NNNNN_pose\.txt"):
        head_pose.read_biwi(tmp_path / "01")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3) * 1.02, "are no rotation"),
        (np.diag([1, 1, -1.0]), "are no rotation"),
        (np.eye(2), "line 1: .*3 finite"),
    ],
)
def test_damaged_biwi(tmp_path, matrix, message):
    (tmp_path / "a.txt").write_text(biwi_text(matrix) if len(matrix) == 3 else "1 0\n0 1\n0 0\n1 1\n")
    with damaged(message):
        head_pose.read_biwi_pose(tmp_path / "a.txt")


def imdb_file(path, **changes):
    values = {
        "dob": np.array([[723671.0, 703186, 711677, 720000, 720000, 720000]]),  # the first: 6 May 1981
        "photo_taken": np.array([[2009, 1964, 2008, 2000, 2000, 2000]]),
        "full_path": cells(*(f"{i}/a.jpg" for i in range(6))).T,
        "gender": np.array([[1.0, 1, 0, np.nan, 0, 0]]),
        "face_score": np.array([[4.3, 2.6, -np.inf, 5, 5, 0.5]]),
        "second_face_score": np.array([[np.nan, np.nan, np.nan, np.nan, 2.0, np.nan]]),
    }
    return matlab(path, wiki={**values, **changes})


def test_imdb_wiki(tmp_path):
    source = ages.read_imdb_wiki(imdb_file(tmp_path / "wiki.mat"), tmp_path)
    assert [(face.name, face.age) for face in source.faces] == [("0/a.jpg", 28), ("1/a.jpg", 39)]
    assert source.faces[0].attributes == {"male": True}
    assert ages.age_when_taken(366 + 32, 50) == 49  # born on 1 February of year 1
    assert ages.age_when_taken(366 + 200, 50) == 48  # born in the second half of the year
    with damaged("none of 6 faces is left: expected a score of 9"):
        ages.read_imdb_wiki(tmp_path / "wiki.mat", tmp_path, 9)
    with damaged("lengths dob 2, photo_taken 6"):
        ages.read_imdb_wiki(imdb_file(tmp_path / "wiki.mat", dob=np.zeros((1, 2))), tmp_path)
    with damaged("no variable imdb, only wiki"):
        (tmp_path / "imdb.mat").write_bytes((tmp_path / "wiki.mat").read_bytes())
        ages.read_imdb_wiki(tmp_path / "imdb.mat", tmp_path)
    with damaged("wiki has no field dob"):
        ages.read_imdb_wiki(matlab(tmp_path / "wiki.mat", wiki={"age": 3}), tmp_path)


def test_morph(tmp_path):
    picture(tmp_path / "009055_1M54.JPG")
    stored = picture(tmp_path / "009056_00F17.jpg")
    source = ages.read_morph(tmp_path)
    assert [(f.person, f.age, f.attributes["male"]) for f in source.faces] == [
        ("009055", 54, True),
        ("009056", 17, False),
    ]
    assert source[1]["image"] == stored
    picture(tmp_path / "x.jpg")
    with damaged(r"x\.jpg: expected a name such as 009055_1M54\.JPG"):
        ages.read_morph(tmp_path)
    (tmp_path / "x.jpg").rename(tmp_path / "1_1M130.jpg")
    with damaged(r"1_1M130\.jpg: age 130: expected 0 to 120"):
        ages.read_morph(tmp_path)


def test_mega_age_and_lists(tmp_path):
    stored = picture(tmp_path / "test/1.jpg")
    (tmp_path / "list").mkdir()
    names, numbers = tmp_path / "list/test_name.txt", tmp_path / "list/test_age.txt"
    names.write_text("1.jpg\n2.jpg\n")
    numbers.write_text("5\n61\n")
    source = ages.read_mega_age(tmp_path, "test")
    assert source[0] == {"image": stored, "name": "1.jpg", "age": 5}
    assert source.faces[1].age == 61
    numbers.write_text("5\n-1\n")
    with damaged(r"test_age\.txt, line 2: age -1: expected 0 to 120"):
        ages.read_mega_age(tmp_path, "test")
    numbers.write_text("5\n")
    with damaged(r"test_name\.txt has 2 lines and test_age\.txt 1: expected as many"):
        ages.read_mega_age(tmp_path, "test")
    with damaged("split 'val': expected train or test"):
        ages.read_mega_age(tmp_path, "val")
    (tmp_path / "ages.txt").write_text("test/1.jpg 31.5\n/etc/x.jpg 3\n")
    with damaged(r"ages\.txt, line 2: '/etc/x\.jpg': expected the path of an image within its folder"):
        ages.read_age_list(tmp_path / "ages.txt", tmp_path)
    (tmp_path / "ages.txt").write_text("test/1.jpg 31.5\n")
    assert ages.read_age_list(tmp_path / "ages.txt", tmp_path)[0]["age"] == 31.5
