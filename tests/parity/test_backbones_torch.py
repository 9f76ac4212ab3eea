"""Backbones and shared layers compared with PyTorch, with equal weights: values, gradients and batch statistics."""

import argparse
import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones import iresnet, mobilefacenet
from facejax.interop import arcface_torch
from facejax.interop.pytorch import read_state_dict
from facejax.nn.conv import Conv, ConvTranspose
from facejax.nn.norm import BatchNorm, PReLU
from facejax.ops import pooling
from tests.parity.networks import assert_equal_training, assert_near, converted, nchw, numpy_nhwc, randomized, template

torch = pytest.importorskip("torch")
from benchmarks import torch_recognition

pytestmark = pytest.mark.parity
F = torch.nn.functional


@pytest.fixture
def normal():
    """Standard normal arrays of a shape; every test has a generator of its own."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape, np.float32)


def assert_layer(ours, theirs, x, kernel=None, layout=None):
    """Values and gradients of sum(sin(y)) with respect to the image and, if given, the kernel."""
    arguments = [jnp.asarray(x)] + ([] if kernel is None else [jnp.asarray(kernel)])
    output, vjp = jax.vjp(ours, *arguments)
    gradients = vjp(jnp.cos(output))
    tensors = [nchw(x)]
    if kernel is not None:
        tensors.append(torch.tensor(np.ascontiguousarray(kernel.transpose(layout)), requires_grad=True))
    reference = theirs(*tensors)
    reference.sin().sum().backward()
    assert_near(output, numpy_nhwc(reference))
    assert_near(gradients[0], numpy_nhwc(tensors[0].grad))
    if kernel is not None:
        assert_near(gradients[1], tensors[1].grad.numpy().transpose(np.argsort(layout)))


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (3, {"strides": 2, "padding": 1}),
        (3, {"strides": 2, "padding": 1, "groups": 8}),
        (3, {"padding": 2, "dilation": 2, "groups": 4}),
        (1, {"strides": 2}),
    ],
)
def test_conv(size, options, normal):
    kernel = normal(size, size, 8 // options.get("groups", 1), 16 if options.get("groups") != 8 else 8)
    module = Conv(kernel.shape[-1], size, **options)
    names = {"strides": "stride"}
    theirs = {names.get(k, k): v for k, v in options.items()}
    assert_layer(
        lambda x, k: module.apply({"params": {"kernel": k}}, x),
        lambda x, k: F.conv2d(x, k, **theirs),
        normal(2, 7, 6, 8),
        kernel,
        (3, 2, 0, 1),
    )


@pytest.mark.parametrize(("size", "stride", "padding"), [(4, 2, 1), (3, 2, 1), (5, 3, 2), (2, 2, 0)])
def test_conv_transpose(size, stride, padding, normal):
    module = ConvTranspose(5, size, stride, padding)
    assert_layer(
        lambda x, k: module.apply({"params": {"kernel": k}}, x),
        lambda x, k: F.conv_transpose2d(x, k, stride=stride, padding=padding),
        normal(2, 4, 5, 3),
        normal(size, size, 3, 5),
        (2, 3, 0, 1),
    )


POOLING = {
    "max 2": (lambda x: pooling.max_pool(x, (2, 2), (2, 2)), lambda x: F.max_pool2d(x, 2)),
    "max 3": (lambda x: pooling.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "avg": (lambda x: pooling.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))), lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "avg inside": (
        lambda x: pooling.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)), count_padding=False),
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    "max ceil": (
        lambda x: pooling.max_pool(x, (3, 3), (2, 2), pooling.ceil_padding(x.shape[1:3], (3, 3), (2, 2))),
        lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    ),
    "avg ceil": (
        lambda x: pooling.avg_pool(
            x, (5, 5), (3, 3), pooling.ceil_padding(x.shape[1:3], (5, 5), (3, 3)), count_padding=False
        ),
        lambda x: F.avg_pool2d(x, 5, 3, ceil_mode=True),
    ),
    "adaptive": (lambda x: pooling.adaptive_avg_pool(x, (4, 5)), lambda x: F.adaptive_avg_pool2d(x, (4, 5))),
    "adaptive small": (lambda x: pooling.adaptive_avg_pool(x, (9, 8)), lambda x: F.adaptive_avg_pool2d(x, (9, 8))),
    "nearest": (lambda x: pooling.upsample_nearest(x, 3), lambda x: F.interpolate(x, scale_factor=3)),
    "bilinear": (
        lambda x: pooling.resize_bilinear(x, (11, 4)),
        lambda x: F.interpolate(x, (11, 4), mode="bilinear", align_corners=False),
    ),
    "corners": (
        lambda x: pooling.resize_bilinear(x, (11, 4), align_corners=True),
        lambda x: F.interpolate(x, (11, 4), mode="bilinear", align_corners=True),
    ),
}


@pytest.mark.parametrize("name", POOLING)
def test_pooling(name, normal):
    assert_layer(*POOLING[name], normal(2, 7, 6, 3))


def test_prelu(normal):
    slope = normal(4)
    module = PReLU()
    assert_layer(
        lambda x, a: module.apply({"params": {"slope": a}}, x),
        lambda x, a: F.prelu(x, a),
        normal(2, 3, 3, 4),
        slope,
        (0,),
    )


def test_batch_norm_updates_running_averages_as_pytorch(normal):
    x, scale, bias, mean, var = normal(4, 3, 3, 5), normal(5), normal(5), normal(5), normal(5) ** 2
    theirs = torch.nn.BatchNorm2d(5)
    for target, value in zip(
        (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var), (scale, bias, mean, var), strict=True
    ):
        target.data = torch.tensor(value)
    variables = {
        "params": {"norm": {"scale": scale, "bias": bias}},
        "batch_stats": {"norm": {"mean": mean, "var": var}},
    }
    assert_near(BatchNorm().apply(variables, x, train=False), numpy_nhwc(theirs.eval()(nchw(x))))
    output, updated = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
    assert_near(output, numpy_nhwc(theirs.train()(nchw(x))))
    updated = updated["batch_stats"]["norm"]
    assert_near(updated["mean"], theirs.running_mean)
    unbiased = 0.9 * var + (updated["var"] - 0.9 * var) * 36 / 35
    assert_near(unbiased, theirs.running_var)


def paired(name):
    """(ours, PyTorch's with random weights, rules from its names to ours) at small sizes."""
    if name == "iresnet":
        ours = iresnet.IResNet((1, 2, 1, 1), (8, 8, 16, 16), 12)
        theirs = torch_recognition.IResNet((1, 2, 1, 1), (8, 8, 16, 16), 12, size=48)
        rules = arcface_torch.iresnet_rules(theirs.state_dict())
    else:
        blocks, scale = {"mobilefacenet": ((1, 1, 1, 1), 2), "mobilefacenet_large": ((2, 1, 1, 1), 1)}[name]
        ours = mobilefacenet.MobileFaceNet(blocks, scale, embedding_size=12)
        theirs = torch_recognition.MobileFaceNet(blocks, scale, 12, size=48)
        rules = arcface_torch.mobilefacenet_rules(theirs.state_dict())
    randomized(theirs)
    if name == "iresnet":
        torch.nn.init.ones_(theirs.features.weight)
    return ours, theirs, rules


NETWORKS = ["iresnet", "mobilefacenet", "mobilefacenet_large"]


def pictures():
    return np.random.default_rng(0).uniform(-1, 1, (6, 48, 48, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_backbone(name):
    """Compares evaluation and a training step in double precision, but for the last layers of ours.

    Among a million inputs of PReLUs some are so near to 0 that rounding to float32, ours or PyTorch's, changes the sign
    and with it the slope: then an input gradient moves by up to 3 % of the largest.
    """
    with jax.enable_x64(True):
        ours, theirs, rules = paired(name)
        ours, theirs = ours.clone(dtype=jnp.float64), theirs.double()
        variables = converted(theirs.state_dict(), rules, template(ours, pictures()))
        evaluated = jax.jit(lambda v: ours.apply(v, pictures(), train=False))(variables)
        assert_near(evaluated, numpy_nhwc(theirs.eval()(nchw(pictures()))), 3e-6)
        assert_equal_training(ours, theirs, pictures(), rules, outputs=3e-6, inputs=1e-5, params=1e-5, statistics=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_backbone_in_float32(name):
    """Ours in float32, PyTorch's in double; gradients without the kinks of PReLUs, at slope 1."""
    ours, theirs, rules = paired(name)
    theirs, images = theirs.double(), pictures().astype(np.float32)
    variables = converted(theirs.state_dict(), rules, template(ours, images))
    evaluated = jax.jit(lambda v: ours.apply(v, images, train=False))(variables)
    assert_near(evaluated, numpy_nhwc(theirs.eval()(nchw(images, torch.float64))))
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.PReLU):
            torch.nn.init.ones_(layer.weight)
    assert_equal_training(ours, theirs, images, rules, outputs=3e-5, inputs=5e-5, params=5e-5, statistics=1e-5)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["iresnet", "mobilefacenet"])
def test_weights_are_read_from_files(name, legacy, tmp_path):
    ours, theirs, rules = paired(name)
    torch.save(theirs.state_dict(), tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    shapes = template(ours, jnp.zeros((1, 48, 48, 3)))
    found = arcface_torch.load(tmp_path / "w.pt", shapes)
    chex.assert_trees_all_equal(found, converted(theirs.state_dict(), rules, shapes))


@pytest.mark.parametrize(("name", "count"), [("iresnet50", 43_590_848), ("iresnet100", 65_156_160)])
def test_reference_has_the_published_parameter_count(name, count):
    with torch.device("meta"):
        net = torch_recognition.IResNet(torch_recognition.DEPTHS[name])
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_of_training_runs_are_read(legacy, tmp_path):
    """All types of PyTorch, lazy bits, parameters with attributes, and objects of a training run."""
    numbers, parameter = torch.arange(6.0).reshape(2, 3), torch.nn.Parameter(torch.ones(3))
    parameter.tag = "head"
    imaginary = torch.view_as_complex(torch.arange(6.0).reshape(3, 2))
    tensors = {"parameter": parameter, "conj": imaginary.conj(), "neg": imaginary.clone().conj().imag}
    types = (torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.complex128, torch.int8)
    tensors |= {str(dtype): numbers.to(dtype).T for dtype in types}
    objects = {
        "args": argparse.Namespace(lr=0.1), "device": torch.device("cpu"), "dtype": torch.float16, "seen": {1, 2},
        "best": np.float64(0.5), "classes": collections.Counter("aab"),
        "log": collections.defaultdict(list, {"x": [1]}),
    }  # fmt: skip
    torch.save({"state_dict": tensors, **objects}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    found = read_state_dict(tmp_path / "w.pt")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        np.testing.assert_array_equal(
            found[name].astype(str(wide)[6:]), tensor.detach().to(wide).resolve_neg().resolve_conj()
        )
