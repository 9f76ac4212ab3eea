import argparse
import collections
import io
import json
import os
import pickle
import zipfile

import h5py
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facejax.interop import files, tensorflow, vggface
from facejax.interop.names import Rule, batch_norm, convert
from facejax.interop.pytorch import read_state_dict, read_weights

FILES = ("mobilefacenet/068.ckpt", "retinaface_mnet025/mobilenet0.25_Final.pth", "3ddfa_v2/mb05_120x120.pth")


class Global:
    """Pickles as a reference to a name in another module."""

    def __init__(self, name):
        self.name = name


class Writer(pickle._Pickler):
    """Writes a zip checkpoint's data.pkl without PyTorch."""

    def persistent_id(self, obj):
        return (
            ("storage", Global("torch FloatStorage"), obj[1], "cpu", obj[2])
            if isinstance(obj, tuple) and obj[:1] == ("S",)
            else None
        )

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + obj.name.replace(" ", "\n").encode() + b"\n")
        else:
            super().save(obj, save_persistent_id)


class View:
    def __init__(self, key, numel, offset, size, stride, *bits):
        self.arguments = (("S", key, numel), offset, size, stride, False, {}, *bits)

    def __reduce__(self):
        return Global("torch._utils _rebuild_tensor_v2"), self.arguments


class Rebuild(Writer):
    def reducer_override(self, obj):
        return NotImplemented

    def save_reduce(self, func, args, *rest, **kwargs):
        if isinstance(func, Global):
            self.save(func)
            self.save(args)
            self.write(pickle.REDUCE)
        else:
            super().save_reduce(func, args, *rest, **kwargs)


def checkpoint(path, value, storages):
    stream = io.BytesIO()
    Rebuild(stream, 2).dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", stream.getvalue())
        for key, data in storages.items():
            archive.writestr(f"m/data/{key}", data)


def test_zip_checkpoint_with_shared_strided_storage(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    value = {"epoch": 3, "state_dict": {"a": View("0", 12, 0, (3, 4), (4, 1)), "b": View("0", 12, 1, (2, 3), (1, 4))}}
    checkpoint(tmp_path / "m.pt", value, {"0": numbers.tobytes()})
    found = read_state_dict(tmp_path / "m.pt")
    np.testing.assert_array_equal(found["a"], numbers.reshape(3, 4))
    np.testing.assert_array_equal(found["b"], numbers.reshape(3, 4).T[1:3])
    assert set(read_state_dict(tmp_path / "m.pt", "state_dict")) == {"a", "b"}
    with pytest.raises(ValueError, match="no key 'net', expected"):
        read_state_dict(tmp_path / "m.pt", "net")


def test_view_beyond_its_storage_raises(tmp_path):
    checkpoint(tmp_path / "m.pt", {"a": View("0", 4, 1, (4,), (1,))}, {"0": np.zeros(4, np.float32).tobytes()})
    with pytest.raises(ValueError, match="exceeds its storage of 4 elements"):
        read_state_dict(tmp_path / "m.pt")
    checkpoint(tmp_path / "m.pt", {"a": View("0", 4, 0, (4,), (1,))}, {"0": b"1234"})
    with pytest.raises(ValueError, match="storage 0 has 4 bytes, expected 16"):
        read_state_dict(tmp_path / "m.pt")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize(
    ("zipped", "message"),
    [
        (True, r"bomb\.pt: no tensors found, expected at least one$"),
        (False, r"bomb\.pt: not a readable PyTorch checkpoint: neither a zip file nor a legacy checkpoint$"),
    ],
)
def test_malicious_pickle_is_not_executed(tmp_path, monkeypatch, zipped, message):
    monkeypatch.chdir(tmp_path)
    if zipped:
        with zipfile.ZipFile("bomb.pt", "w") as archive:
            archive.writestr("m/data.pkl", pickle.dumps({"a": Bomb()}))
    else:
        (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=message):
        read_state_dict("bomb.pt")
    assert not (tmp_path / "exploded").exists()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4), st.integers(0, 300))
def test_fuzzed_checkpoints_raise_value_errors_only(tmp_path_factory, changes, cut):
    path = tmp_path_factory.mktemp("fuzz") / "f.pt"
    checkpoint(path, {"a": View("0", 6, 0, (2, 3), (3, 1))}, {"0": np.arange(6, dtype=np.float32).tobytes()})
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        assert read_state_dict(path)
    except ValueError as error:
        assert "f.pt" in str(error)


@pytest.mark.parametrize("name", FILES)
def test_published_checkpoints(test_data, name):
    path = test_data / "weights" / name
    found = read_state_dict(path)
    listed = json.loads((path.parent / "layers.json").read_text())
    listed = listed if isinstance(listed, list) else listed["tensors"]
    assert {(t["name"], tuple(t["shape"])) for t in listed} == {(k, v.shape) for k, v in found.items()}


def test_keras_onnx_and_safetensors(tmp_path):
    with h5py.File(tmp_path / "k.h5", "w") as file:
        file["model_weights/conv/conv/kernel:0"] = np.ones((3, 3, 1, 2))
        file["optimizer_weights/m"] = np.zeros(3)
    assert set(files.read_keras(tmp_path / "k.h5")) == {"conv/conv/kernel"}
    tensor = onnx.numpy_helper.from_array(np.arange(6.0).reshape(2, 3), "w")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])), tmp_path / "o.onnx")
    np.testing.assert_array_equal(files.read_onnx(tmp_path / "o.onnx")["w"], np.arange(6.0).reshape(2, 3))
    variables = {"params": {"a": {"kernel": np.ones((2, 3), np.float32)}}}
    files.write_safetensors(tmp_path / "s.safetensors", variables)
    assert files.read_safetensors(tmp_path / "s.safetensors")["params/a/kernel"].shape == (2, 3)


@pytest.mark.parametrize("read", [files.read_keras, files.read_onnx, files.read_safetensors, read_state_dict])
def test_other_files_raise(tmp_path, read):
    for content in (b"", b"hello, world" * 20):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match="file: "):
            read(tmp_path / "file")


@pytest.mark.parametrize(("name", "read"), [("fsanet", files.read_keras), ("scrfd", files.read_onnx)])
def test_published_files(test_data, name, read):
    paths = [p for p in (test_data / "weights" / name).iterdir() if p.suffix in (".h5", ".onnx")]
    for path in paths:
        assert all(np.isfinite(v).all() for v in read(path).values() if v.dtype.kind == "f")


TEMPLATE = {
    "params": {"fc": {"kernel": np.zeros((8, 5))}, "bn": {"norm": {"scale": np.zeros(3), "bias": np.zeros(3)}}},
    "batch_stats": {"bn": {"norm": {"mean": np.zeros(3), "var": np.zeros(3)}}},
}
RULES = [Rule(r"fc\.weight", "params/fc/kernel", "flatten", 2), *batch_norm("bn", "bn")]


def tensors(**changes):
    names = {f"bn.{n}": np.ones(3) for n in ("weight", "bias", "running_mean", "running_var")}
    return {"fc.weight": np.arange(40.0).reshape(5, 8), **names, "bn.num_batches_tracked": np.array(7), **changes}


def test_dense_kernel_after_flatten():
    kernel = convert(tensors(), RULES, TEMPLATE)["params"]["fc"]["kernel"]
    features = np.random.default_rng(0).normal(size=(2, 2, 2))  # C, H, W
    expected = tensors()["fc.weight"] @ features.ravel()
    np.testing.assert_allclose(features.transpose(1, 2, 0).ravel() @ kernel, expected)


def test_error_lists_all_mismatches():
    with pytest.raises(ValueError, match="in 4 places") as error:
        given = tensors(extra=np.zeros(2))
        del given["bn.bias"]
        given["bn.weight"] = np.ones(4)
        convert(given, [*RULES, Rule("extra", "params/nowhere")], {**TEMPLATE, "more": np.zeros(1)})
    for part in ("unused: extra", "missing: params/bn/norm/bias", "missing: more", r"shape: bn.weight gives (4,)"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"unused: odd \(2,\)"):
        convert(tensors(odd=np.zeros(2)), RULES, TEMPLATE)


def test_dropped_tensors_must_be_what_the_model_assumes():
    """A trained scale, as MagFace's last batch norm has, changes the embeddings."""
    rules = [RULES[0], *batch_norm("bn", "bn", scale=False)]
    template = {**TEMPLATE, "params": {**TEMPLATE["params"], "bn": {"norm": {"bias": np.zeros(3)}}}}
    convert(tensors(), rules, template)
    with pytest.raises(ValueError, match=r"unused: bn.weight \(3,\), because it is not ones, which the model assumes"):
        convert(tensors(**{"bn.weight": np.float32([1, 1.2, 1])}), rules, template)
    with pytest.raises(ValueError, match=r"expected either a target or what is dropped"):
        Rule("x", "")
    with pytest.raises(ValueError, match=r"num_batches_tracked \(3,\), because it is not a count"):
        convert(tensors(**{"bn.num_batches_tracked": np.zeros(3)}), RULES, TEMPLATE)


def test_dropped_dense_layers_are_dense():
    rules = vggface.resnet50_rules()
    with pytest.raises(ValueError, match=r"unused: fc1/kernel \(3, 3, 2, 2\), because it is not of a dense layer"):
        convert({"fc1/kernel": np.zeros((3, 3, 2, 2)), "fc2/kernel": np.zeros((2, 2))}, rules, {})


def test_unknown_tensors_of_gat_are_reported():
    known = {"conv1d/kernel/Adam": np.zeros((1, 2)), "beta1_power": np.zeros(())}
    with pytest.raises(ValueError, match=r"in 1 places: unused: dense/kernel"):
        tensorflow.gat({**known, "dense/kernel": np.zeros((2, 2))}, {"params": {}})


def test_lazy_negative_bit(tmp_path):
    """As PyTorch stores the imaginary part of a conjugate."""
    numbers = np.arange(4, dtype=np.float32)
    checkpoint(tmp_path / "m.pt", {"a": View("0", 4, 1, (2,), (2,), {"neg": True})}, {"0": numbers.tobytes()})
    np.testing.assert_array_equal(read_state_dict(tmp_path / "m.pt")["a"], [-1, -3])
    checkpoint(tmp_path / "m.pt", {"a": View("0", 4, 1, (2,), (2,), {"odd": True})}, {"0": numbers.tobytes()})
    with pytest.raises(ValueError, match=r"unknown bits \{'odd': True\}, expected 'neg' or 'conj'"):
        read_state_dict(tmp_path / "m.pt")


def test_two_tensors_of_one_name_raise(tmp_path):
    view = View("0", 1, 0, (1,), (1,))
    for value in ({"a.b": view, "a": {"b": view}}, {"a": {1: view, "1": view}}):
        checkpoint(tmp_path / "m.pt", {"x": view, **value}, {"0": np.zeros(1, np.float32).tobytes()})
        with pytest.raises(ValueError, match=r"m\.pt: two tensors have the name a\.[b1], expected one"):
            read_state_dict(tmp_path / "m.pt")
    one, path = np.zeros(1, np.float32), tmp_path / "s.safetensors"
    with pytest.raises(ValueError, match="two tensors have the name a/b, expected one"):
        files.write_safetensors(path, {"a/b": one, "a": {"b": one}})
    with h5py.File(tmp_path / "k.h5", "w") as file:
        file["model_weights/a"], file["a"] = one, one
    with pytest.raises(ValueError, match="two tensors have the name a, expected one"):
        files.read_keras(tmp_path / "k.h5")


def test_safetensors_keep_scalars_and_arrays_that_are_not_contiguous(tmp_path):
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    variables = {"s": np.float32(2.5), "j": jnp.int32(3), "t": table.T, "c": table[:, ::2], "r": table[::-1]}
    files.write_safetensors(tmp_path / "s.safetensors", variables)
    found = files.read_safetensors(tmp_path / "s.safetensors")
    for name, value in variables.items():
        assert found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)


def test_constant_nodes_of_onnx_are_weights(tmp_path):
    weights = {"w": np.arange(6.0).reshape(2, 3), "shape": np.array([2, 3]), "slope": np.array(0.1)}
    nodes = [
        onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
        for name, array in weights.items()
    ]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], [])), tmp_path / "o.onnx")
    found = files.read_onnx(tmp_path / "o.onnx")
    assert set(found) == {"w"}
    np.testing.assert_array_equal(found["w"], weights["w"])


@pytest.mark.parametrize("biases", [(), ("fc.weight_bias",), ("fc.bias",)])
def test_folded_batch_norm_is_refused_in_one_sentence(biases):
    """PyTorch's exporter stores the folded numbers under the original names."""
    folded = {"fc.weight": tensors()["fc.weight"], **{name: np.zeros(5) for name in biases}}
    with pytest.raises(ValueError, match=r"^batch norms are missing, .*with optimize=False$"):
        convert(folded, RULES, TEMPLATE)
    with pytest.raises(ValueError, match="missing: params/bn/norm/bias"):
        convert({**folded, "bn.weight": np.ones(3)}, RULES, TEMPLATE)
    with pytest.raises(ValueError, match="unused: odd"):
        convert({**folded, "odd": np.ones(3)}, RULES, TEMPLATE)


def test_objects_of_a_training_run_are_placeholders(tmp_path):
    view = View("0", 2, 0, (2,), (1,))
    value = {
        "epoch": 3, "state_dict": {"a": view}, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5),
        "seen": {1, 2}, "milestones": collections.Counter([3, 3]), "more": collections.defaultdict(list, {"x": [1]}),
        "device": Global("torch device"), "type": np.dtype("f4"), "key": {(1, frozenset([2])): 3},
    }  # fmt: skip
    checkpoint(tmp_path / "m.pt", value, {"0": np.float32([1, 2]).tobytes()})
    found = read_state_dict(tmp_path / "m.pt")
    assert list(found) == ["a"]
    np.testing.assert_array_equal(found["a"], [1, 2])


def test_malicious_parts_beside_tensors_are_inert(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    view = View("0", 2, 0, (2,), (1,))
    value = {"a": view, "b": Bomb(), "c": Global("builtins exec"), "d": Global("os system"), "e": Evaluate()}
    checkpoint("m.pt", value, {"0": np.float32([1, 2]).tobytes()})
    assert list(read_state_dict("m.pt")) == ["a"]
    assert not (tmp_path / "exploded").exists()
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"torch\nFloatStorage", b"os\nsystem", b"torch\nSize"):
        state = pickle.dumps((None, {"__defaults__": (1, 2, {"neg": True})}), 2)[2:-1]
        with zipfile.ZipFile("state.pt", "w") as archive:  # sets attributes of what the name stands for
            archive.writestr("m/data.pkl", b"\x80\x02c" + name + b"\n" + state + b"b.")
        with pytest.raises(ValueError, match=r"state\.pt: "):
            read_state_dict("state.pt")
    np.testing.assert_array_equal(read_state_dict("m.pt")["a"], [1, 2])


class Evaluate:
    def __reduce__(self):
        return eval, ("open('exploded', 'w')",), {"__class__": 1}


def test_shared_prefixes_are_stripped(tmp_path):
    view, data = View("0", 1, 0, (1,), (1,)), {"0": np.zeros(1, np.float32).tobytes()}
    for names, expected in (
        (["module._orig_mod.a", "module._orig_mod.b.c"], ["a", "b.c"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["backbone.model.a"], ["a"]),
    ):
        checkpoint(tmp_path / "m.pt", {"state_dict": dict.fromkeys(names, view)}, data)
        assert list(read_weights(tmp_path / "m.pt")) == expected
    checkpoint(tmp_path / "m.pt", {"state_dict": {"model.a": view}, "state_dict_ema": {"model.b": view}}, data)
    assert list(read_weights(tmp_path / "m.pt", "state_dict_ema")) == ["b"]


def test_a_mismatch_lists_ten_names():
    with pytest.raises(ValueError, match="in 300 places: ") as error:
        convert({f"odd{i}": np.zeros(2) for i in range(300)}, [], {})
    assert str(error.value).count("unused") == 10
    assert str(error.value).endswith("; and 290 more")


def test_one_state_dict_of_several_is_chosen_and_named(tmp_path):
    names, path = ("a", "b", "c"), tmp_path / "m.pt"
    views = {name: {f"module.{name}": View("0", 1, 0, (1,), (1,))} for name in names}
    data = {"0": np.zeros(1, np.float32).tobytes()}
    saved = {"state_dict_ema": views["b"], "state_dict": views["a"], "optimizer": views["c"]}
    checkpoint(path, saved, data)
    with pytest.warns(UserWarning, match=r"m\.pt: reads 'state_dict', not 'state_dict_ema'; key selects$"):
        assert list(read_weights(path)) == ["a"]
    assert list(read_weights(path, "state_dict_ema")) == list(read_weights(f"{path}:state_dict_ema")) == ["b"]
    with pytest.raises(ValueError, match=r"its keys with tensors: 'state_dict_ema', 'state_dict', 'optimizer'$"):
        read_weights(f"{path}:odd")
    checkpoint(path, {"encoder": views["a"], "decoder": views["b"]}, data)
    assert list(read_weights(path)) == ["encoder.module.a", "decoder.module.b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n<!DOCTYPE html>", "it is a web page, expected the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it is a pointer of Git LFS, expected the file itself"),
    ],
)
@pytest.mark.parametrize("read", [files.read_keras, files.read_onnx, files.read_safetensors, read_state_dict])
def test_accidents_of_downloads(tmp_path, read, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=f"file: not a readable .*: {message}"):
        read(tmp_path / "file")


def test_other_formats_cut_short(tmp_path):
    array = np.ones((30, 30), np.float32)
    with h5py.File(tmp_path / "k.h5", "w") as file:
        file["a/kernel"] = array
    tensor = onnx.numpy_helper.from_array(array, "w")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])), tmp_path / "o.onnx")
    files.write_safetensors(tmp_path / "s.safetensors", {"a": array})
    for name, read in {
        "k.h5": files.read_keras,
        "o.onnx": files.read_onnx,
        "s.safetensors": files.read_safetensors,
    }.items():
        path = tmp_path / name
        assert read(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=rf"{name}: .* \(a download cut short\?\)$"):
            read(path)


def test_external_data_of_onnx(tmp_path):
    """As PyTorch's exporter writes it by default."""
    tensor = onnx.numpy_helper.from_array(np.arange(600.0).reshape(2, 300), "w")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    onnx.save_model(model, path, save_as_external_data=True, location=data.name, size_threshold=0)
    np.testing.assert_array_equal(files.read_onnx(path)["w"], np.arange(600.0).reshape(2, 300))
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"m\.onnx: .*\(a download cut short\?\)$"):
        files.read_onnx(path)
    data.unlink()
    with pytest.raises(
        ValueError, match=r"weights are in 'm\.onnx\.data', expected beside it .*external_data=False\)$"
    ):
        files.read_onnx(path)


def test_keras_3(tmp_path):
    """The layouts that Keras 3.15 writes."""
    with h5py.File(tmp_path / "k.h5", "w") as file:
        file["model_weights/stem/sequential/stem/kernel"] = np.ones((3, 3, 1, 2))
        file["optimizer_weights/adam/sequential_stem_kernel_momentum"] = np.zeros((3, 3, 1, 2))
    assert set(files.read_keras(tmp_path / "k.h5")) == {"stem/sequential/stem/kernel"}
    layers = {
        "conv2d": ("stem", 1), "conv2d_1": ("second", 2), "separable_conv2d": ("third", 2), "dense": ("out", 2),
        "batch_normalization": ("bn", 4), "batch_normalization_1": ("plain_bn", 3), "odd": ("own", 1),
    }  # fmt: skip
    path = tmp_path / "k.weights.h5"
    with h5py.File(path, "w") as file:
        for group, (name, count) in layers.items():
            for i in range(count):
                file[f"layers/functional/layers/{group}/vars/{i}"] = np.full(2, i)
            file[f"layers/functional/layers/{group}/vars"].attrs["name"] = name
        for i in range(12):
            file[f"optimizer/vars/{i}"] = np.zeros(2)
    found = {name.removeprefix("layers/functional/layers/"): x for name, x in files.read_keras(path).items()}
    norm = ("gamma", "beta", "moving_mean", "moving_variance")
    expected = {
        "stem": ["kernel"], "second": ["kernel", "bias"], "third": ["depthwise_kernel", "pointwise_kernel"],
        "out": ["kernel", "bias"], "bn": norm, "plain_bn": "012", "own": "0",
    }  # fmt: skip
    numbered = {f"{layer}/{weight}": i for layer, names in expected.items() for i, weight in enumerate(names)}
    assert {name: int(x[0]) for name, x in found.items()} == numbered


@pytest.mark.parametrize(
    ("changes", "dropped", "cause"),
    [
        (
            {"fc.weight": np.zeros((6, 8))},
            (),
            r"the model \(the names agree: another width, .*\) in 1 places: shape: fc.weight",
        ),
        ({"more.weight": np.zeros(2)}, (), r"\(the file holds more than the model\) in 1 places: unused: more"),
        ({}, ("fc.weight",), r"\(the file holds a part of the model\) in 1 places: missing: params/fc/kernel"),
        ({"more.weight": np.zeros(2)}, ("fc.weight",), "the model in 2 places: unused: more"),
    ],
)
def test_a_mismatch_of_one_kind_names_its_cause(changes, dropped, cause):
    given = {name: x for name, x in tensors(**changes).items() if name not in dropped}
    with pytest.raises(ValueError, match=cause):
        convert(given, RULES, TEMPLATE)
    with pytest.raises(ValueError, match=r"\(no name is one of this architecture's\) in 6 places: unused: blocks.0.w"):
        convert({"blocks.0.w": np.zeros(2)}, RULES, TEMPLATE)
