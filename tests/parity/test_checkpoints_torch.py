"""Checkpoints as strangers write them with `torch.save`, in both formats, compared with `torch.load`."""

import argparse
import collections
import pathlib
import warnings

import numpy as np
import pytest

from facejax.interop.pytorch import read_state_dict, read_weights

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3).T, "conv.bias": torch.ones(2, dtype=torch.bfloat16)}
BESIDE = {
    "counter": collections.Counter([1, 1, 2]), "set": {1, 2}, "args": argparse.Namespace(lr=0.1),
    "path": pathlib.Path("x"),
    "default": collections.defaultdict(list, {"x": [1]}), "type": torch.float16, "device": torch.device("cpu"),
    "best": np.float64(0.5), "state": np.random.default_rng(0).bit_generator.state, "rng": torch.get_rng_state(),
    "complex": complex(1, 2), "range": range(3), "slice": slice(1, 2), "history": np.ones(3),
}  # fmt: skip
TYPES = [
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "bfloat16", "float16"),
    *("complex32", "complex64", "complex128", "uint16", "uint32", "uint64", "int8", "bool"),
]


def saved(path, value, zipped):
    with warnings.catch_warnings():  # of experimental types
        warnings.simplefilter("ignore")
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_types_and_parameters(tmp_path, zipped):
    numbers = torch.tensor([[1.0, 2.0, 4.0], [0.5, 8.0, 1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = {name: numbers.to(getattr(torch, name)) for name in TYPES}
    marked = torch.nn.Parameter(numbers.T)
    marked.rate = {"factor": 2}
    found = read_state_dict(saved(tmp_path / "m.pth", {**tensors, "marked": marked}, zipped))
    assert set(found) == {*TYPES, "marked"}
    np.testing.assert_array_equal(found.pop("marked"), marked.detach().numpy())
    for name, array in found.items():
        assert array.dtype.name == name.replace("complex32", "complex64")
        kind = np.complex128 if "complex" in name else np.float64
        expected = tensors[name].to(torch.complex128 if "complex" in name else torch.float64)
        np.testing.assert_array_equal(array.astype(kind), expected.numpy())


@pytest.mark.parametrize("zipped", [True, False])
def test_training_runs_and_whole_modules(tmp_path, zipped):
    path = tmp_path / "m.pth"
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Sequential(torch.nn.BatchNorm2d(4)))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    run = {**BESIDE, "state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (
            net,
            {"epoch": 1, "model": torch.nn.DataParallel(net)},
            run,
            {"net": {**BESIDE, "params": WEIGHTS}},
        ):
            found = read_weights(saved(path, value, zipped))
            expected = WEIGHTS if isinstance(value, dict) and "net" in value else net.state_dict()
            assert set(found) == set(expected)
            for name, array in found.items():
                np.testing.assert_array_equal(array.astype(np.float32), expected[name].float().numpy())


def test_other_tensors_are_refused(tmp_path):
    scripted = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(scripted, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m\.pt: .* a TorchScript archive, expected a state dict"):
        read_weights(tmp_path / "m.pt")
    with pytest.raises(ValueError, match="_rebuild_sparse_tensor, expected dense tensors"):
        read_weights(saved(tmp_path / "m.pt", {"a": torch.eye(2).to_sparse()}, True))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_download_cut_short(tmp_path, zipped):
    path = saved(tmp_path / "m.pth", {"state_dict": {"a": torch.ones(500)}}, zipped)
    data = path.read_bytes()
    for share in (0.005, 0.012, 0.1, 0.155, 0.5, 0.99):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ValueError, match=r"m\.pth: .*\(a download cut short\?\)$"):
            read_weights(path)
