"""ONNX files of recognition networks, and MagFace's checkpoints, from PyTorch networks with random weights."""

import warnings

import jax
import numpy as np
import pytest

from facejax.backbones.iresnet import IResNet
from facejax.backbones.mobilefacenet import MobileFaceNet
from facejax.interop import arcface_torch
from facejax.recognition.magface import Magnified

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytest.importorskip("onnx")
from benchmarks import torch_recognition
from tests.parity.networks import assert_near, nchw, numpy_nhwc, randomized, template

pytestmark = pytest.mark.parity


def pair(name, size):
    """(ours, PyTorch's with random weights) for images of size pixels."""
    if name == "iresnet":
        ours = IResNet((1, 2, 1, 1), (8, 8, 16, 16), 12)
        theirs = randomized(torch_recognition.IResNet((1, 2, 1, 1), (8, 8, 16, 16), 12, size=size))
        torch.nn.init.ones_(theirs.features.weight)
        return ours, theirs.eval()
    blocks, scale = {"mobilefacenet": ((1, 1, 1, 1), 2), "mobilefacenet_large": ((2, 1, 1, 1), 1)}[name]
    ours = MobileFaceNet(blocks, scale, embedding_size=12)
    return ours, randomized(torch_recognition.MobileFaceNet(blocks, scale, 12, size=size)).eval()


def exported(theirs, path, size, folded):
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(theirs, torch.zeros(1, 3, size, size), path, dynamo=False, training=mode)
    return path


def images(size):
    return np.random.default_rng(size).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def assert_same(ours, variables, theirs, size):
    found = jax.jit(lambda v, x: ours.apply(v, x, train=False))(variables, images(size))
    assert_near(found, numpy_nhwc(theirs(nchw(images(size)))), 2e-5)


@pytest.mark.parametrize(
    ("name", "size", "folded"),
    [
        ("iresnet", 48, True),
        ("iresnet", 61, True),
        ("iresnet", 33, False),
        ("mobilefacenet", 48, True),
        ("mobilefacenet", 80, False),
        ("mobilefacenet_large", 32, True),
    ],
)
def test_onnx(name, size, folded, tmp_path):
    ours, theirs = pair(name, size)
    exported(theirs, tmp_path / "w.onnx", size, folded)
    variables = arcface_torch.load(tmp_path / "w.onnx", template(ours, images(size)))
    assert_same(ours, variables, theirs, size)


def test_an_onnx_file_of_another_network(tmp_path):
    ours, theirs = pair("iresnet", 33)
    path = exported(theirs, tmp_path / "w.onnx", 33, True)
    with pytest.raises(ValueError, match=r"w\.onnx: its layers are 11 Conv, .*; expected 13 Conv"):
        arcface_torch.load(path, template(IResNet((1, 2, 2, 1), (8, 8, 16, 16), 12), images(33)))
    with pytest.raises(ValueError, match=r"shape: params/fc/kernel gives \(144, 12\)"):
        arcface_torch.load(path, template(IResNet((1, 2, 1, 1), (8, 8, 16, 16), 10), images(33)))
    torch.nn.init.constant_(theirs.features.weight, 2.0)
    exported(theirs, tmp_path / "w.onnx", 33, True)
    with pytest.raises(ValueError, match="params/features/norm/scale"):
        arcface_torch.load(path, template(ours, images(33)))


@pytest.mark.parametrize(("prefix", "size"), [("features.module.", 48), ("module.features.", 61)])
def test_magface(prefix, size, tmp_path):
    theirs = randomized(torch_recognition.IResNet((1, 2, 1, 1), (8, 8, 16, 16), 12, size=size)).eval()
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            layer.eps = 2e-5
            layer.running_var *= 1e-4  # so small that the epsilon matters
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    head = prefix.replace("features.", "") + "fc.weight"
    torch.save({"epoch": 1, "state_dict": {**state, head: torch.zeros(12, 5)}}, tmp_path / "m.pth")
    ours = Magnified(IResNet((1, 2, 1, 1), (8, 8, 16, 16), 12))
    variables = arcface_torch.load_magface(tmp_path / "m.pth", template(ours, images(size)))
    assert_same(ours, variables, theirs, size)
    with torch.no_grad():
        theirs.features.weight[3] = 0
    torch.save({prefix + name: tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"m\.pth: features\.weight has a zero"):
        arcface_torch.load_magface(tmp_path / "m.pth", template(ours, images(size)))
