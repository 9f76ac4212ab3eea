"""Reads PyTorch checkpoints without PyTorch: zip files and the older stream of pickles. The unpickler builds arrays and
plain containers, puts an inert placeholder for everything else, and never runs code from a file.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import mmap
import os
import pathlib
import pickle
import struct
import warnings
import zipfile
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from facejax.formats import limits
from facejax.formats.pickles import PythonUnpickler
from facejax.interop.damage import unreadable
from facejax.interop.names import add

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
}
_VIEWS = {
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "complex32": np.dtype([("real", np.float16), ("imag", np.float16)]),
}
"""Types without a storage of their own."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
KEYS = ("state_dict", "model_state_dict", "model", "net", "params", "state_dict_ema", "model_ema", "params_ema", "ema")
"""Usual keys of state dicts; of several in one file, the first is read."""
_TRAINING = ("optim", "scheduler", "lr_scheduler", "scaler", "rng", "loss", "criterion")
"""Beginnings of keys whose tensors are no weights."""


def read_weights(path: str | os.PathLike[str], key: str | None = None) -> dict[str, np.ndarray]:
    """As `read_state_dict`, without the prefixes of `PREFIXES` that all names share.

    Where only a path can be given, as on the command line, FILE:KEY stands for both.
    """
    if key is None and not os.path.exists(path):
        file, _, last = os.fspath(path).rpartition(":")
        path, key = (file, last) if os.path.isfile(file) else (path, None)
    tensors = read_state_dict(path, key)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def read_state_dict(path: str | os.PathLike[str], key: str | None = None) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint, by their dotted path.

    Args:
      path: a file of `torch.save`.
      key: key of the state dict in the saved dict; None: the first of `KEYS` in it, with a warning if there are others,
        or the only entry with tensors, or all tensors.

    Raises:
      ValueError: another format, a damaged file, or no tensors. Objects other than tensors, modules and plain
        containers are not made: nothing stands for them. A module, as `torch.save(model)` writes it, is read as its
        state dict.
    """
    path = pathlib.Path(path)
    try:
        loaded = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, "PyTorch checkpoint", error) from error
    except Exception as error:  # damaged pickles raise various exceptions
        raise unreadable(path, "PyTorch checkpoint", f"{type(error).__name__}: {error}") from error
    if key is not None:
        if not isinstance(loaded, dict) or key not in loaded:
            keys = ", ".join(map(repr, _state_dicts(loaded))) or "none"
            raise ValueError(f"{path}: no key {key!r}, expected a saved dict with it; its keys with tensors: {keys}")
        loaded = loaded[key]
    try:
        tensors = _flatten(_chosen(loaded, path) if key is None else loaded)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not tensors:
        raise ValueError(f"{path}: no tensors found, expected at least one")
    return tensors


def read_pickled_modules(path: str | os.PathLike[str], key: str | None = None) -> dict[str, np.ndarray]:
    """All tensors of a plain pickle of modules, by their dotted path, as NVIDIA's code writes its networks.

    Modules that carry their source code ("persistent classes") are not made, and their code does not run.

    Args:
      path: the file.
      key: of one of the modules in the pickled dict, such as "G_ema"; None: all.

    Raises:
      ValueError: another format, a damaged file, no such key, or no tensors.
    """
    try:
        limits.memory(os.stat(path).st_size, "the file")
        with open(path, "rb") as file:
            loaded = _Resolver().resolve(_PlainUnpickler(file, {}).load())
        chosen = loaded if key is None else loaded[key] if isinstance(loaded, dict) and key in loaded else None
        tensors = _flatten(chosen)
    except Exception as error:  # damaged pickles raise various exceptions
        raise unreadable(path, "pickle of modules", f"{type(error).__name__}: {error}") from error
    if not tensors:
        keys = ", ".join(map(repr, _state_dicts(loaded))) or "none"
        raise ValueError(f"{os.fspath(path)}: no tensors under {key!r}; keys with tensors: {keys}")
    return tensors


def _state_dicts(loaded: Any) -> list[str]:
    items = loaded.items() if isinstance(loaded, dict) else ()
    return [k for k, v in items if isinstance(k, str) and isinstance(v, dict) and _has_tensors(v)]


def _chosen(loaded: Any, path: pathlib.Path) -> Any:
    """The state dict in a checkpoint of a training run, at any depth."""
    while inner := _state_dicts(loaded):
        usual = next((key for key in KEYS if key in inner), None)
        others = [key for key in inner if key != usual and not key.startswith(_TRAINING)]
        if usual and others:
            warnings.warn(f"{path}: reads {usual!r}, not {', '.join(map(repr, others))}; key selects", stacklevel=4)
        if not usual and (len(inner) > 1 or any(isinstance(v, np.ndarray) for v in loaded.values())):
            break
        loaded = loaded[usual or inner[0]]
    return loaded


@dataclasses.dataclass
class _Storage:
    """A one-dimensional buffer that tensors are views of."""

    dtype: Any
    numel: int
    data: np.ndarray | None = None


@dataclasses.dataclass
class _Tensor:
    """A view of a storage, resolved after the storage has been read."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    bits: frozenset[str] = frozenset()  # the lazy "neg" and "conj"
    dtype: Any = None  # of an untyped storage

    def array(self) -> np.ndarray:
        data = self.storage.data
        if data is None:
            raise ValueError("a tensor's storage is missing")
        if self.dtype is not None:
            data = data.view(self.dtype)
        numbers = (self.offset, *self.size, *self.stride)
        if any(not isinstance(n, int) or n < 0 for n in numbers) or len(self.size) != len(self.stride):
            raise ValueError(f"a tensor has invalid sizes {self.size} and strides {self.stride}")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if math.prod(self.size) and last >= len(data):
            raise ValueError(f"a tensor of shape {self.size} exceeds its storage of {len(data)} elements")
        if not math.prod(self.size):
            return np.zeros(self.size, data.dtype)
        limits.memory(math.prod(self.size) * data.itemsize, f"a tensor of shape {self.size}")
        strides = [s * data.itemsize for s in self.stride]
        view = np.ndarray(self.size, data.dtype, data.view(np.uint8), self.offset * data.itemsize, strides)
        if view.dtype.names:
            view = view["real"].astype(np.float32) + 1j * view["imag"].astype(np.float32)
        view = np.conj(view) if "conj" in self.bits else view.copy()
        return -view if "neg" in self.bits else view


class _Inert(dict):
    """Stands for every name that a pickle refers to, and for what it would make; arguments are not used.

    Entries that the pickle sets, as those of a defaultdict, are kept; of the state, the tensors and parts of a module.
    """

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        for part in ("_parameters", "_buffers", "_modules"):
            if isinstance(state, dict) and isinstance(state.get(part), dict):
                self.update(state[part])

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    add = append
    __hash__ = object.__hash__
    __eq__ = object.__eq__
    __ne__ = object.__ne__


class _Unpickler(PythonUnpickler):
    def __init__(self, file: Any, storages: dict[str, _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """Objects that a pickle can't change for later calls: new functions, strings for types, classes in C."""
        allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _view(*arguments),
            ("torch._utils", "_rebuild_tensor"): lambda *arguments: _view(*arguments),
            ("torch._utils", "_rebuild_tensor_v3"): lambda *arguments: _view_as(*arguments),
            ("torch._tensor", "_rebuild_from_type_v2"): lambda rebuild, _, arguments, *__: rebuild(*arguments),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
            ("torch", "Size"): tuple,
        }
        if (module, name) in allowed:
            return allowed[module, name]
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return name
        if module == "torch" and name in _VIEWS:
            return name
        if module.partition(".")[0] == "torch" and (name.startswith("_rebuild") or name.endswith("Storage")):
            raise pickle.UnpicklingError(f"pickle refers to {module}.{name}, expected dense tensors of known types")
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # (_, class, file, source code), of legacy files
            return _Inert
        kind, dtype, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(numel, int) or dtype not in _DTYPES or (view and view[0] is not None):
            raise pickle.UnpicklingError(f"pickle refers to {kind!r}, expected a storage")
        return self._storages.setdefault(str(key), _Storage(np.dtype(_DTYPES[dtype]), numel))


class _PlainUnpickler(_Unpickler):
    """Of a pickle without `torch.save`: tensors bring their storages as bytes, persistent classes their state."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda data: _storage(data)
        if name == "_reconstruct_persistent_obj":
            return lambda meta: _module(meta)
        return super().find_class(module, name)


def _storage(data: Any) -> _Storage:
    found = _read_stream(io.BytesIO(data))
    if not isinstance(found, _Storage):
        raise pickle.UnpicklingError("the bytes of a storage hold something else")
    return found


def _module(meta: Any) -> _Inert:
    found = _Inert()
    if isinstance(meta, dict):
        found.__setstate__(meta.get("state"))
    return found


def _view(
    storage: Any, offset: int, size: Any, stride: Any, gradient: Any = False, hooks: Any = None, metadata: Any = None
) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor has no storage")
    bits = metadata or {}
    if not isinstance(bits, dict) or set(bits) - {"neg", "conj"}:
        raise pickle.UnpicklingError(f"a tensor has unknown bits {bits!r}, expected 'neg' or 'conj'")
    return _Tensor(storage, offset, tuple(size), tuple(stride), frozenset(bit for bit in bits if bits[bit]))


def _view_as(
    storage: Any, offset: int, size: Any, stride: Any, gradient: Any, hooks: Any, dtype: Any, *bits: Any
) -> Any:
    if dtype not in _VIEWS:
        raise pickle.UnpicklingError("a tensor of an unknown type")
    return dataclasses.replace(_view(storage, offset, size, stride, gradient, hooks, *bits), dtype=_VIEWS[dtype])


def _read_zip(path: pathlib.Path) -> Any:
    storages: dict[str, _Storage] = {}
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
        if len(names) != 1:
            raise ValueError("the archive contains no data.pkl")
        if any("/code/" in name for name in archive.namelist()):
            raise ValueError("a TorchScript archive, expected a state dict: save model.state_dict()")
        root = names[0][: -len("data.pkl")]
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("the byte order is not little-endian")
        limits.memory(archive.getinfo(names[0]).file_size, names[0])
        loaded = _Unpickler(io.BytesIO(archive.read(names[0])), storages).load()
        places = {key: archive.getinfo(f"{root}data/{key}") for key in storages}
        limits.memory(sum(place.file_size for place in places.values()), "the storages together")
        for key, storage in storages.items():
            size, expected = places[key].file_size, storage.numel * storage.dtype.itemsize
            if size != expected:
                raise ValueError(f"storage {key} has {size} bytes, expected {expected}")
            storage.data = np.frombuffer(archive.read(places[key]), storage.dtype)
    return _Resolver().resolve(loaded)


def _read_legacy(path: pathlib.Path) -> Any:
    limits.memory(path.stat().st_size, "the file")
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        return _read_stream(file)


def _read_stream(file: BinaryIO | mmap.mmap) -> Any:
    storages: dict[str, _Storage] = {}
    if _Unpickler(file, storages).load() != _LEGACY_MAGIC:
        raise ValueError("neither a zip file nor a legacy checkpoint")
    for _ in range(2):  # protocol version, system information
        _Unpickler(file, storages).load()
    loaded = _Unpickler(file, storages).load()
    for key in _Unpickler(file, storages).load():
        storage = storages.get(str(key))
        if storage is None:
            raise ValueError(f"no tensor uses storage {key}")
        (numel,) = struct.unpack("<q", file.read(8))
        size = storage.numel * storage.dtype.itemsize
        data = file.read(size)
        if numel != storage.numel or len(data) != size:
            raise ValueError(f"storage {key} is truncated: {len(data)} bytes, expected {size}")
        storage.data = np.frombuffer(data, storage.dtype)
    return _Resolver().resolve(loaded)


class _Resolver:
    """Puts arrays in place of tensors, and lists in place of tuples; what the file shares stays shared."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}
        self._bytes = 0

    def resolve(self, value: Any) -> Any:
        if not isinstance(value, _Tensor | dict | list | tuple):
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        made: Any
        if isinstance(value, _Tensor):
            made = value.array()
            self._bytes = limits.memory(self._bytes + made.nbytes, "the tensors together")
        elif isinstance(value, dict):
            made = {k: self.resolve(v) for k, v in value.items()}
        else:
            made = [self.resolve(v) for v in value]
        self._done[id(value)] = value, made  # the value stays, so that no other has its id
        return made


def _has_tensors(value: Any) -> bool:
    left, seen = [value], set()
    while left:
        value = left.pop()
        if isinstance(value, np.ndarray):
            return True
        if isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)
    return False


NAMES = 1 << 20
"""The most tensors and other values that the containers of a file may hold, shared ones counted again."""


def _flatten(loaded: Any) -> dict[str, np.ndarray]:
    """Tensors by their dotted path, in the order of the file."""
    found: dict[str, np.ndarray] = {}
    visited = 0

    def visit(value: Any, prefix: str) -> None:
        nonlocal visited
        visited += 1
        if visited > NAMES or len(prefix) > 4096:
            raise ValueError(f"names of more than {NAMES} values or 4096 characters, expected a state dict")
        if isinstance(value, np.ndarray):
            add(found, prefix, value)
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            visit(inner, f"{prefix}.{key}" if prefix else str(key))

    visit(loaded, "")
    return found
