"""InsightFace training packs: train.rec, train.idx and property.

A RecordIO part consists of a magic word, a word of flag and length, the payload, and padding to four bytes. Writers
split a payload at each magic word that it contains at a multiple of four bytes; joining the parts restores the word.
"""

from __future__ import annotations

import os
import pathlib
import struct
from collections.abc import Iterable
from typing import Any

from facejax.data import text
from facejax.data.decoding import ImageFile
from facejax.formats import texts

MAGIC = 0xCED7230A
_WORD = struct.Struct("<I")
_HEADER = struct.Struct("<IfQQ")


class RecordFile:
    """A pack as a source of {"image", "label"}; threads and forked processes can share it.

    Args:
      path: train.rec; its folder also contains train.idx and, optionally, property.

    Attributes:
      num_classes: number of classes by property, else by the index record, else by the largest label.
      image_size: (height, width) by property, or None.

    Raises:
      ValueError: a file is malformed; also raised by indexing.
    """

    def __init__(self, path: str | pathlib.Path):
        self._path = pathlib.Path(path)
        self._size = self._path.stat().st_size
        self._offsets = _read_index(self._path.with_suffix(".idx"), self._size)
        self._file = os.open(self._path, os.O_RDONLY)
        first = self._header(0) if 0 in self._offsets else None
        if first is not None and len(first[0]) == 2 and not first[1]:
            people, end = (int(v) for v in first[0])
            if not 1 <= people <= end:
                raise ValueError(f"{self._path}: record 0 has values {people} and {end}, expected increasing ones")
            self._keys = range(1, people)
            classes = end - people
        else:
            self._keys = sorted(self._offsets)
            classes = 0
        missing = next((k for k in self._keys if k not in self._offsets), None)
        if missing is not None:
            raise ValueError(f"{self._path.with_suffix('.idx')}: no offset of record {missing}, expected by record 0")
        self.image_size = None
        described = self._path.with_name("property")
        if described.exists():
            fields = texts.read(described).strip().split(",")
            if len(fields) != 3 or not all(f.isascii() and f.strip(" ").isdecimal() for f in fields):
                raise ValueError(f"{described}: expected one line 'classes,height,width'")
            classes, *self.image_size = (int(f) for f in fields)
        self.num_classes = classes or 1 + max((self[i]["label"] for i in range(len(self))), default=-1)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels, body = self._header(self._keys[index])
        return {"image": ImageFile(body, f"{self._path}, record {self._keys[index]}"), "label": int(labels[0])}

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def _header(self, key: int) -> tuple[tuple[float, ...], bytes]:
        """Labels and encoded image of a record."""
        offset = self._offsets[key]
        payload = self._payload(offset)
        if len(payload) < _HEADER.size:
            raise ValueError(
                f"{self._path}: the record at offset {offset} has {len(payload)} bytes, expected 24 or more"
            )
        flag, label, *_ = _HEADER.unpack_from(payload)
        start = _HEADER.size + 4 * flag
        if start > len(payload):
            raise ValueError(f"{self._path}: the record at offset {offset} is too short for its {flag} labels")
        labels = struct.unpack_from(f"<{flag}f", payload, _HEADER.size) if flag else (label,)
        if not all(abs(v) < 2**31 and v == int(v) for v in labels):
            raise ValueError(f"{self._path}: the record at offset {offset} has a label that is not a class number")
        return labels, payload[start:]

    def _payload(self, offset: int) -> bytes:
        parts, start = [], offset
        while True:
            head = os.pread(self._file, 8, offset)
            if len(head) < 8:
                raise ValueError(f"{self._path}: truncated at offset {offset}, expected a record")
            magic, word = struct.unpack("<II", head)
            flag, length = word >> 29, word & (1 << 29) - 1
            if magic != MAGIC:
                raise ValueError(f"{self._path}: no record at offset {offset} (found {magic:#x}, expected {MAGIC:#x})")
            if offset + 8 + length > self._size:
                raise ValueError(f"{self._path}: the record at offset {offset} of {length} bytes ends past the file")
            if flag > 3 or (flag in (0, 1)) != (not parts):
                raise ValueError(f"{self._path}: the parts of the record at offset {start} are out of order")
            parts.append(os.pread(self._file, length, offset + 8))
            if flag in (0, 3):
                return _WORD.pack(MAGIC).join(parts)
            offset += 8 + length + -length % 4


def write_records(folder: str | pathlib.Path, images: Iterable[tuple[bytes, int]], size: tuple[int, int]) -> None:
    """Writes a pack without an index of identities: every record is an image.

    Args:
      folder: folder for train.rec, train.idx and property.
      images: (encoded bytes, label) pairs.
      size: (height, width) for property.
    """
    folder = pathlib.Path(folder)
    classes = 0
    with (folder / "train.rec").open("wb") as file, (folder / "train.idx").open("w") as index:
        for key, (image, label) in enumerate(images):
            index.write(f"{key}\t{file.tell()}\n")
            file.write(encode_record(image, label, key))
            classes = max(classes, label + 1)
    (folder / "property").write_text(f"{classes},{size[0]},{size[1]}\n")


def encode_record(image: bytes, label: float, key: int, labels: tuple[float, ...] = ()) -> bytes:
    """The bytes of a record; a non-empty vector `labels` replaces `label`."""
    header = _HEADER.pack(len(labels), 0.0 if labels else label, key, 0)
    payload = header + struct.pack(f"<{len(labels)}f", *labels) + image
    cuts = [i for i in range(0, len(payload) - 3, 4) if payload[i : i + 4] == _WORD.pack(MAGIC)]
    parts, start = [], 0
    for cut in cuts:
        parts.append(payload[start:cut])
        start = cut + 4
    parts.append(payload[start:])
    flags = [0] if len(parts) == 1 else [1] + [2] * (len(parts) - 2) + [3]
    blocks = [
        struct.pack("<II", MAGIC, f << 29 | len(p)) + p + bytes(-len(p) % 4) for f, p in zip(flags, parts, strict=True)
    ]
    return b"".join(blocks)


def _read_index(path: pathlib.Path, size: int) -> dict[int, int]:
    offsets = {}
    for number, line in enumerate(text.lines(texts.read(path)), 1):
        fields = line.split("\t")
        if len(fields) != 2 or not all(f.isascii() and f.strip(" ").isdecimal() for f in fields):
            raise ValueError(f"{path}: line {number} is {line[:60]!r}, expected 'key<TAB>offset'")
        key, offset = (int(f) for f in fields)
        if offset >= size:
            raise ValueError(f"{path}: line {number} points at {offset}, past the end of the .rec ({size} bytes)")
        offsets[key] = offset
    if not offsets:
        raise ValueError(f"{path}: no records in the index")
    return offsets
