"""Readers of damaged files: each copy is read, or refused in one line that names the file; no process dies."""

import collections
import json
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import scipy.sparse

from facejax.data.readers import boxes, opinions, people
from facejax.data.readers.planetoid import read_planetoid
from facejax.interop import pytorch, tensorflow
from tests.checkpoints import write_tensorflow
from tests.damage import check
from tests.interop.test_readers import View, checkpoint

COPIES = 150

NATIVE = """
import io, pathlib, sys, tempfile, warnings
import cv2, h5py, jax, numpy as np, onnx
from onnx import helper, numpy_helper
from PIL import Image
from facejax.data.decoding import ImageFile, pixels
from facejax.interop import files
from facejax.interop.export import read_stablehlo, write_stablehlo
from tests.checkpoints import write_tensorflow
from tests.damage import check

warnings.simplefilter("ignore")
folder, copies = pathlib.Path(sys.argv[1]), int(sys.argv[2])
picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8), (0, 0), 2)
for suffix in ("jpg", "png", "webp", "gif", "tiff", "bmp", "avif"):
    Image.fromarray(picture).save(folder / f"a.{suffix}")
with h5py.File(folder / "a.h5", "w") as file:
    file["model_weights/conv/conv/kernel:0"] = np.ones((3, 3, 2, 2), np.float32)
    file.create_dataset("model_weights/d/d/kernel:0", data=np.eye(8), chunks=(4, 4), compression="gzip")
value = [helper.make_tensor_value_info(name, 1, [1, 3]) for name in "xy"]
weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", value[:1], value[1:], [weight])
(folder / "a.onnx").write_bytes(helper.make_model(graph).SerializeToString())
files.write_safetensors(folder / "a.safetensors", {"w": np.ones((2, 3), np.float32)})
write_stablehlo(folder / "a.stablehlo", lambda x: x @ np.ones((3, 2), "f4"), jax.ShapeDtypeStruct((1, 3), "f4"))
readers = {"h5": files.read_keras, "onnx": files.read_onnx, "safetensors": files.read_safetensors}
readers["stablehlo"] = read_stablehlo
for path in sorted(folder.iterdir()):
    read = readers.get(path.suffix[1:], lambda path: pixels(ImageFile.read(path), cv2.IMREAD_COLOR))
    read(path)
    print(path.name, check(path, path.read_bytes(), read, copies), flush=True)
"""


def test_readers_of_native_libraries(tmp_path):
    """In a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", NATIVE, str(tmp_path), str(COPIES)], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    refused = dict(line.split() for line in ran.stdout.splitlines())
    assert len(refused) == 11
    assert all(0 < int(count) < COPIES for count in refused.values())


def written(path, content):
    path.write_text(json.dumps(content))
    return path


PERSON = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "keypoints": [1, 1, 2] * 3}
COCO = {"images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}], "annotations": [PERSON]}


def read_people(path):
    found = people.CocoPeople(path, path.parent)
    found.people()
    return [found.truth(i) for i in found.image_ids]


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (COCO | {"categories": [{"id": 1, "name": "x"}]}, lambda path: boxes.read_coco(path, path.parent)),
        (COCO, read_people),
        (
            [{"image": "a.jpg", "center": [1, 2], "scale": 1.5, "joints": [[1, 2]] * 4, "joints_vis": [1] * 4}],
            lambda path: people.read_mpii(path, path.parent),
        ),
    ],
    ids=["boxes", "people", "mpii"],
)
def test_json(tmp_path, content, read):
    path = written(tmp_path / "a.json", content)
    read(path)
    assert check(path, path.read_bytes(), read, COPIES) > COPIES / 2


def test_csv(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"")
    path = tmp_path / "a.csv"
    path.write_text('name,opinion,reference\na.png,1.5,r\n"b.png",2,r\nc.png,3,q\n')
    opinions.read(path)
    assert check(path, path.read_bytes(), opinions.read, COPIES) > COPIES / 2


@pytest.fixture
def planetoid(tmp_path):
    rows = scipy.sparse.csr_matrix(np.eye(4, 5, dtype=np.float32))
    labels = np.eye(3, dtype=np.int32)[[0, 1, 2, 0]]
    graph = collections.defaultdict(list, {i: [(i + 1) % 6] for i in range(6)})
    parts = {"x": rows, "y": labels, "allx": rows, "ally": labels, "tx": rows[:2], "ty": labels[:2], "graph": graph}
    for name, part in parts.items():
        (tmp_path / f"ind.cora.{name}").write_bytes(pickle.dumps(part, 2))
    (tmp_path / "ind.cora.test.index").write_text("5\n4\n")
    return tmp_path


@pytest.mark.parametrize("part", ["tx", "allx", "ally", "graph", "test.index"])
def test_planetoid(planetoid, part):
    path = planetoid / f"ind.cora.{part}"
    found = read_planetoid(planetoid, "cora")
    np.testing.assert_array_equal(found.features[:4], np.eye(4, 5))
    np.testing.assert_array_equal(found.features[[5, 4]], np.eye(2, 5))
    refused = check(path, path.read_bytes(), lambda _: read_planetoid(planetoid, "cora"), COPIES, name="ind.cora")
    assert refused > COPIES / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": np.int32([0, 1, 2, 5])}, r"a sparse matrix of \(4, 5\) with indices outside 0 to 4"),
        ({"indices": np.int32([0, 1, 2, -1])}, r"a sparse matrix of \(4, 5\) with indices outside 0 to 4"),
        ({"indptr": np.int32([0, 2, 1, 3, 4])}, r"whose indptr is not increasing from 0 to at most 4"),
        ({"indptr": np.int32([0, 1, 2, 3, 9])}, r"whose indptr is not increasing from 0 to at most 4"),
        ({"indptr": np.int32([0, 4])}, "whose indptr is not increasing"),
        ({"_shape": (4, -5)}, "a sparse matrix without a shape"),
        ({"data": [1.0]}, "a sparse matrix without data, indices and indptr"),
    ],
)
def test_an_inconsistent_sparse_matrix_is_refused_before_use(planetoid, change, message):
    matrix = scipy.sparse.csr_matrix(np.eye(4, 5, dtype=np.float32))
    matrix.__dict__.update(change)
    (planetoid / "ind.cora.allx").write_bytes(pickle.dumps(matrix, 2))
    with pytest.raises(ValueError, match=rf"ind\.cora\.allx: not a readable Planetoid file: .*{message}"):
        read_planetoid(planetoid, "cora")


def test_tensorflow(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_tensorflow(tmp_path / "a.ckpt", {"w": array})
    np.testing.assert_array_equal(tensorflow.read_checkpoint(tmp_path / "a.ckpt")["w"], array)
    for name in ("a.ckpt.index", "a.ckpt.data-00000-of-00001"):
        path = tmp_path / name
        refused = check(
            path, path.read_bytes(), lambda _: tensorflow.read_checkpoint(tmp_path / "a.ckpt"), COPIES, name="a.ckpt"
        )
        assert refused > COPIES / 2


def test_tensors_that_outgrow_their_storage_are_counted_first(tmp_path, monkeypatch):
    path, data = tmp_path / "a.pt", {"0": np.zeros(4, np.float32).tobytes()}
    checkpoint(path, {"a": View("0", 4, 0, (30, 100), (0, 0))}, data)
    assert pytorch.read_state_dict(path)["a"].shape == (30, 100)
    monkeypatch.setenv("FACEJAX_MAX_GIB", "1e-5")  # 10,737 bytes
    with pytest.raises(
        ValueError, match=r"a\.pt: .*a tensor of shape \(30, 100\): .* GiB, expected at most 1e-05 \(FACEJAX_MAX_GIB"
    ):
        pytorch.read_state_dict(path)
    checkpoint(path, {name: View("0", 4, 0, (10, 100), (0, 0)) for name in "abc"}, data)
    with pytest.raises(ValueError, match=r"a\.pt: .*the tensors together: 1\.12e-05 GiB"):
        pytorch.read_state_dict(path)


def test_names_of_shared_containers_are_counted(tmp_path, monkeypatch):
    path, data = tmp_path / "a.pt", {"0": np.zeros(4, np.float32).tobytes()}
    shared = {"w": View("0", 4, 0, (4,), (1,))}
    checkpoint(path, {"a": [shared, shared], "b": shared["w"]}, data)
    assert set(pytorch.read_state_dict(path)) == {"a.0.w", "a.1.w", "b"}
    monkeypatch.setattr(pytorch, "NAMES", 6)
    with pytest.raises(ValueError, match=r"a\.pt: names of more than 6 values"):
        pytorch.read_state_dict(path)


def test_images_in_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json, image 1: '\.\./a\.jpg': expected the path of an image within"):
        content = COCO | {"images": [COCO["images"][0] | {"file_name": "../a.jpg"}], "categories": [{"id": 1}]}
        boxes.read_coco(written(tmp_path / "a.json", content), tmp_path)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2, 2)))
    (tmp_path / "a.csv").write_text("name,opinion\n../a.png,1\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 2: '\.\./a\.png': expected the path"):
        opinions.read(tmp_path / "a.csv")


def test_hdf5_data_in_other_files_are_refused(tmp_path):
    import h5py

    from facejax.interop import files

    with h5py.File(tmp_path / "a.h5", "w") as file:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "b.h5"), "x", (4,))
        file.create_virtual_dataset("conv/kernel:0", layout)
    with pytest.raises(
        ValueError, match=r"a\.h5: .*/conv/kernel:0 lies in other files, expected its content in this one"
    ):
        files.read_keras(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("conv/kernel:0", (4,), "f4", external=[(str(tmp_path / "raw"), 0, 16)])
    with pytest.raises(ValueError, match=r"a\.h5: .*lies in other files"):
        files.read_keras(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["conv/kernel:0"] = np.zeros(4, np.float32)
        file["conv/other"] = h5py.ExternalLink(str(tmp_path / "b.h5"), "x")
    assert set(files.read_keras(tmp_path / "a.h5")) == {"conv/kernel"}
