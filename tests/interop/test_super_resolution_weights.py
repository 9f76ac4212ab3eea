"""Published weights of EDSR and RRDBNet: the names of every code, and files that do not match."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.interop import super_resolution as interop
from facejax.restoration import super_resolution as sr

EDSR, RRDB = sr.EDSR(4, 4, 2), sr.RRDBNet(4, 4, 2, 3)
NAMES = {
    "the authors' EDSR": (EDSR, {
        "first": "head.0", "block0_conv1": "body.0.body.0", "block0_conv2": "body.0.body.2",
        "block1_conv1": "body.1.body.0", "block1_conv2": "body.1.body.2", "after_body": "body.2",
        "up1": "tail.0.0", "up2": "tail.0.2", "last": "tail.1",
    }),
    "BasicSR's EDSR": (EDSR, {
        "first": "conv_first", "block0_conv1": "body.0.conv1", "block0_conv2": "body.0.conv2",
        "block1_conv1": "body.1.conv1", "block1_conv2": "body.1.conv2", "after_body": "conv_after_body",
        "up1": "upsample.0", "up2": "upsample.2", "last": "conv_last",
    }),
    "BasicSR's RRDBNet": (RRDB, {
        "first": "conv_first", "after_body": "conv_body", "up1": "conv_up1", "up2": "conv_up2", "full": "conv_hr",
        "last": "conv_last",
        **{f"block{i}_dense{j}/conv{k}": f"body.{i}.rdb{j}.conv{k}" for i in (0, 1) for j in (1, 2, 3)
           for k in range(1, 6)},
    }),
    "ESRGAN's first code": (RRDB, {
        "first": "conv_first", "after_body": "trunk_conv", "up1": "upconv1", "up2": "upconv2", "full": "HRconv",
        "last": "conv_last",
        **{f"block{i}_dense{j}/conv{k}": f"RRDB_trunk.{i}.RDB{j}.conv{k}" for i in (0, 1) for j in (1, 2, 3)
           for k in range(1, 6)},
    }),
}  # fmt: skip


@pytest.mark.parametrize("code", NAMES)
def test_every_tensor_has_its_place(code, monkeypatch):
    net, names = NAMES[code]
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    rng, tensors = np.random.default_rng(0), {}
    for ours, theirs in names.items():
        layer = shapes["params"]
        for part in ours.split("/"):
            layer = layer[part]
        height, width, inputs, outputs = layer["kernel"].shape
        tensors[f"{theirs}.weight"] = rng.normal(size=(outputs, inputs, height, width)).astype(np.float32)
        tensors[f"{theirs}.bias"] = rng.normal(size=outputs).astype(np.float32)
    if code == "the authors' EDSR":
        tensors |= {f"{part}_mean.weight": np.zeros((3, 3, 1, 1), np.float32) for part in ("sub", "add")}
    monkeypatch.setattr(interop, "read_weights", lambda path, key: tensors)
    found = interop.load("weights.pt", shapes)["params"]
    for ours, theirs in names.items():
        layer = found
        for part in ours.split("/"):
            layer = layer[part]
        np.testing.assert_array_equal(layer["kernel"], tensors[f"{theirs}.weight"].transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(layer["bias"], tensors[f"{theirs}.bias"])
    del tensors[f"{names['last']}.bias"]
    with pytest.raises(ValueError, match="last/bias"):
        interop.load("weights.pt", shapes)
