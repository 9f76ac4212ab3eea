"""TensorFlow checkpoints (`NAME.index` and `NAME.data-00000-of-0000N`) without TensorFlow; the published GAT.

The index is a table of sorted keys in blocks, whose values locate the tensors' bytes. The reader supports what
TensorFlow's Saver writes, uncompressed tables and unpartitioned numeric tensors, and verifies every checksum.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from facejax.formats import limits
from facejax.interop.names import Rule, convert

_MAGIC = 0xDB4775248B80FB57
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "<u1", 5: "<i2", 6: "<i1", 9: "<i8", 10: "<?", 19: "<f2"}
_POLYNOMIAL = 0x82F63B78


def read_checkpoint(prefix: str | os.PathLike[str], pattern: str = ".*") -> dict[str, np.ndarray]:
    """Tensors of a checkpoint, by name.

    Args:
      prefix: path of the files without ".index".
      pattern: regular expression that matches the whole names of the tensors to read.

    Raises:
      ValueError: another format, a damaged file, an unsupported type or compression, or no matching name.
    """
    path = pathlib.Path(f"{os.fspath(prefix)}.index")
    try:
        limits.memory(path.stat().st_size, "the file")
        entries = dict(_table(path.read_bytes()))
        header = _message(entries.pop(b"", b""))
        shards = _number(header, 1)
        if _number(header, 2):
            raise ValueError("the byte order is big-endian")
        total = 0
        chosen = {k.decode(): v for k, v in entries.items() if re.fullmatch(pattern, k.decode())}
        found = {}
        for name, value in chosen.items():
            try:
                found[name] = _tensor(prefix, shards, _message(value))
                total = limits.memory(total + found[name].nbytes, "the tensors together")
            except ValueError as error:
                raise ValueError(f"tensor {name}: {error}") from error
    except (OSError, ValueError, IndexError, OverflowError, TypeError, struct.error) as error:
        raise ValueError(f"{path}: not a readable TensorFlow checkpoint: {error}") from error
    if not found:
        raise ValueError(f"{path}: no tensor name matches {pattern!r}")
    return found


def gat(tensors: Mapping[str, np.ndarray], template: Any) -> Any:
    """The authors' GAT as variables of `facejax.graph.gat.GAT`.

    Heads are numbered consecutively over all layers. Head h has the maps conv1d_{3h} (features), conv1d_{3h + 1}
    (scores of the receiving node), conv1d_{3h + 2} (scores of its neighbours) and BiasAdd_h; index 0 has no suffix.

    Args:
      tensors: result of `read_checkpoint`; Adam's slots and powers and scalar counters are dropped.
      template: shapes of the model's variables.

    Raises:
      ValueError: names or shapes do not match the template.
    """
    parts = {(0, "kernel"): "kernel", (1, "kernel"): "destination", (1, "bias"): "destination_bias"}
    parts |= {(2, "kernel"): "source", (2, "bias"): "source_bias"}
    heads = [(layer, h) for layer, p in _layers(template["params"]) for h in range(p["kernel"].shape[0])]
    stacks: dict[str, list[np.ndarray]] = {}
    whole = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(conv1d|BiasAdd)(?:_(\d+))?/(kernel|bias|biases)", name)
        if not match:
            if tensor.ndim and not re.search(r"/Adam(_1)?$", name):
                whole[name] = tensor  # `convert` reports it
            continue
        number = int(match[2] or 0)
        head, part = (number, "bias") if match[1] == "BiasAdd" else (number // 3, parts.get((number % 3, match[3])))
        if head < len(heads) and part:
            stacks.setdefault(f"params/{heads[head][0]}/{part}", []).append((head, tensor))
        else:
            raise ValueError(f"{name}: found more heads, expected the model's {len(heads)}")
    for target, items in stacks.items():
        arrays = [tensor if tensor.ndim == 3 else tensor[None] for _, tensor in sorted(items, key=lambda item: item[0])]
        joined = np.concatenate(arrays)
        whole[target] = joined[:, 0] if target.endswith(("destination_bias", "source_bias")) else joined
    return convert(whole, [Rule("(.*)", r"\1")], template)


def _layers(params: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Layers in the order of the network: layer1, layer2, ..., output."""
    return sorted(params.items(), key=lambda item: (item[0] == "output", len(item[0]), item[0]))


def _tensor(prefix: str | os.PathLike[str], shards: int, entry: Mapping[int, list[Any]]) -> np.ndarray:
    kind, shard, offset, size = (_number(entry, field) for field in (1, 3, 4, 5))
    if kind not in _DTYPES or 7 in entry:
        raise ValueError("partitioned variable, expected a whole one" if 7 in entry else f"type {kind} is not numeric")
    dimensions = _message(entry[2][0]).get(2, []) if 2 in entry else []
    shape = tuple(_number(_message(d), 1) for d in dimensions)
    dtype = np.dtype(_DTYPES[kind])
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{size} bytes do not match shape {shape} of {dtype}")
    file = pathlib.Path(f"{os.fspath(prefix)}.data-{shard:05d}-of-{shards:05d}")
    with file.open("rb") as data:
        there = max(os.fstat(data.fileno()).st_size - offset, 0)
        if size > there:
            raise ValueError(f"{file.name} is truncated, {size - there} bytes are missing")
        data.seek(offset)
        found = data.read(size)
    if len(found) != size:
        raise ValueError(f"{file.name} is truncated, {size - len(found)} bytes are missing")
    _check(found, entry[6][0] if 6 in entry else None, file.name)
    return np.frombuffer(found, dtype).reshape(shape).copy()


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a sorted table; its footer locates the index block."""
    if len(data) < 48 or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("no footer of a table, expected it at the end")
    footer = data[-48:]
    place = _varint(footer, _varint(footer, 0)[1])[1]
    for _, handle in _block(data, footer, place):
        yield from _block(data, handle, 0)


def _block(data: bytes, handle: bytes, place: int) -> Iterator[tuple[bytes, bytes]]:
    offset, place = _varint(handle, place)
    size, _ = _varint(handle, place)
    if offset + size + 5 > len(data) - 48:
        raise ValueError(f"the block at {offset} of {size} bytes exceeds the table")
    if data[offset + size]:
        raise ValueError(f"the block at {offset} is compressed, expected no compression")
    _check(data[offset : offset + size + 1], struct.unpack_from("<I", data, offset + size + 1)[0], f"block at {offset}")
    block = data[offset : offset + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        new, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or place + new + length > end:
            raise ValueError(f"the block at {offset} has an invalid entry")
        key = key[:shared] + block[place : place + new]
        place += new + length
        yield key, block[place - length : place]


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        value |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return value, place
    raise ValueError("a varint of more than 64 bits")


def _message(data: bytes) -> dict[int, list[Any]]:
    """The fields of a protocol buffer: number -> values, integers or bytes."""
    fields: dict[int, list[Any]] = {}
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        if tag & 7 == 0:
            value, place = _varint(data, place)
        elif tag & 7 == 5:
            value, place = struct.unpack_from("<I", data, place)[0], place + 4
        elif tag & 7 == 2:
            size, place = _varint(data, place)
            value, place = data[place : place + size], place + size
        else:
            raise ValueError(f"unsupported wire type {tag & 7}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: Mapping[int, list[Any]], field: int) -> int:
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {field} is not a number")
    return value


def _crc32c_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [(c >> 1) ^ (_POLYNOMIAL if c & 1 else 0) for c in table]
    return table


_TABLE = _crc32c_table()


def _check(data: bytes, expected: int | None, where: str) -> None:
    """Raises ValueError unless the masked CRC-32C of `data` equals `expected`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    if expected != ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF:
        raise ValueError(f"{where}: checksum mismatch")
