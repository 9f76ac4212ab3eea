"""TensorFlow checkpoints without TensorFlow, as its Saver writes them: uncompressed, one file of data."""

import struct

import numpy as np


def varint(number):
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


def checksum(data):
    """CRC-32C bit by bit, masked as in TensorFlow's tables."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_tensorflow(prefix, tensors):
    """A checkpoint of float32 tensors by name."""
    entries, offset = [(b"", b"\x08\x01")], 0
    for name, tensor in sorted(tensors.items()):
        shape = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08" + varint(n) for n in np.shape(tensor)))
        data = np.asarray(tensor, "<f4").tobytes()
        where = b"\x20" + varint(offset) + b"\x28" + varint(len(data)) + b"\x35" + checksum(data)
        entries.append((name.encode(), b"\x08\x01\x12" + varint(len(shape)) + shape + where))
        offset += len(data)

    def block(items):
        rows = b"".join(b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in items)
        body = rows + struct.pack("<II", 0, 1)
        return body + b"\0" + checksum(body + b"\0")

    content = b"".join(np.asarray(tensor, "<f4").tobytes() for _, tensor in sorted(tensors.items()))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(content)
    data = block(entries)
    index = block([(entries[-1][0], varint(0) + varint(len(data) - 5))])
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    table = data + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table)
