"""Pickles of NumPy arrays and plain containers. Nothing that a pickle names is imported or called.

Python's own unpickler is used, not the one in C, since it takes no more memory than the file has bytes.
"""

from __future__ import annotations

import io
import math
import os
import pathlib
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from facejax.formats import limits

PythonUnpickler = pickle._Unpickler


class Made:
    """What a pickle makes in place of an instance; its state is kept as an attribute."""

    state: Any = None

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(Made):
    def __init__(self, code: Any = "", *_: Any):
        self.code = code

    def dtype(self) -> np.dtype:
        """The type, if its items are numbers, booleans or strings of a fixed length."""
        swapped = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 2 else "|"
        code, swapped = (x.decode("latin-1") if isinstance(x, bytes) else x for x in (self.code, swapped))
        if not isinstance(code, str) or not re.fullmatch(r"[biufcSU]\d{1,9}", code) or swapped not in tuple("<>|="):
            raise pickle.UnpicklingError(f"an array of type {code!r}, expected numbers or strings")
        made = np.dtype(code if swapped in "|=" else swapped + code)
        if not made.itemsize:
            raise pickle.UnpicklingError("an array of empty strings")
        return made


class _Array(Made):
    """An array whose content is checked before it is made."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _filled(data, dtype, shape, "F" if fortran else "C")


def _filled(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    data = data.encode("latin-1") if isinstance(data, str) else data  # as Python 2 wrote bytes
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array without numbers, or of objects")
    kind = dtype.dtype()
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        raise pickle.UnpicklingError("an array without a shape")
    if math.prod(shape) * kind.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {shape} and type {kind} in {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape, order=order).copy()


def _made(value: np.ndarray) -> _Array:
    made = _Array()
    made.value = value
    return made


def _scalar(dtype: Any, data: Any = b"") -> np.generic:
    return _filled(data, dtype, (), "C")[()]


def _encoded(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return text.encode("latin-1")


class _Unpickler(PythonUnpickler):
    def __init__(self, file: io.BytesIO, encoding: str, classes: Mapping[tuple[str, str], type[Made]]):
        super().__init__(file, encoding=encoding)
        self._classes = classes

    def find_class(self, module: str, name: str) -> Any:
        if made := next((m for (start, n), m in self._classes.items() if n == name and module.startswith(start)), None):
            return made
        calls: dict[str, Callable[..., Any]] = {}
        if re.fullmatch(r"numpy(\._?core\.(multiarray|numeric))?", module):
            calls = {
                "ndarray": Made,
                "dtype": _Dtype,
                "_reconstruct": lambda *_: _Array(),
                "_frombuffer": lambda data, dtype, shape, order, *_: _made(_filled(data, dtype, shape, order)),
                "scalar": _scalar,
            }
        elif module == "_codecs":
            calls = {"encode": _encoded}
        elif module == "collections":
            calls = {"defaultdict": lambda *_: {}, "OrderedDict": lambda *_: {}}
        elif module in ("builtins", "__builtin__"):
            calls = {
                "list": Made,
                "int": Made,
                "bytes": lambda *_: b"",
            }  # a defaultdict's factories, an empty array's data
        if name not in calls:
            raise pickle.UnpicklingError(f"pickle refers to {module}.{name}, expected arrays and containers only")
        return calls[name]

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, Made):
            raise pickle.UnpicklingError("a state of something other than an array")
        made.__setstate__(state)

    dispatch: ClassVar = {**PythonUnpickler.dispatch, pickle.BUILD[0]: load_build}


def load(
    path: str | os.PathLike[str],
    kind: str = "readable pickle of arrays",
    encodings: tuple[str, ...] = ("latin1",),
    classes: Mapping[tuple[str, str], type[Made]] | None = None,
) -> Any:
    """Arrays and plain containers of a pickle file. A container in two places is one object, as in the file.

    Args:
      path: the file.
      kind: what the file should be, for errors.
      encodings: of the strings that Python 2 wrote; the first that fits.
      classes: (beginning of the module, name) -> what stands for its instances, besides arrays.

    Raises:
      ValueError: the file is damaged, refers to anything else, or is larger than `facejax.formats.limits` allow.
    """
    try:
        limits.memory(pathlib.Path(path).stat().st_size, "the file")
        data = pathlib.Path(path).read_bytes()
        for i, encoding in enumerate(encodings):
            try:
                return _resolved(_Unpickler(io.BytesIO(data), encoding, classes or {}).load(), {})
            except UnicodeDecodeError:
                if i + 1 == len(encodings):
                    raise
    except Exception as error:  # damaged pickles raise various exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a {kind}: {reason}") from error


def _resolved(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """The value with arrays in place of what stands for them, in the containers as they are."""
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array without content")
        return value.value
    if isinstance(value, Made) and id(value) not in done:
        done[id(value)] = value, value
        value.state = _resolved(value.state, done)
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, tuple):
        made = tuple(_resolved(v, done) for v in value)
        done[id(value)] = value, made  # the old value stays, so that no other has its id
        return made
    done[id(value)] = value, value
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        value[key] = _resolved(item, done)
    return value
