"""Content of image files to pixels; errors name the file or the record."""

from __future__ import annotations

import io
import os
import pathlib
import struct
import warnings
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image, ImageOps

from facejax.formats import limits

FORMATS = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or PGM"
PNG = b"\x89PNG\r\n\x1a\n"
TIFF = {b"II*\0": "<", b"MM\0*": ">"}
"""First bytes of a TIFF -> byte order."""
ORIENTATION = 274
"""Number of the tag in a TIFF."""
DEFLATE = 1032
"""The most bytes that one byte of a PNG's compression can stand for."""


class BadImage(ValueError):
    """An image file that does not decode."""


class ImageFile(bytes):
    """The content of an image file, with its origin for errors.

    Attributes:
      origin: path, or file and number of the record.
    """

    origin: str

    def __new__(cls, content: bytes, origin: str = "") -> ImageFile:
        made = super().__new__(cls, content)
        made.origin = origin
        return made

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ImageFile:
        """A file; its path is the origin."""
        return cls(pathlib.Path(path).read_bytes(), os.fspath(path))


def pixels(encoded: bytes, flags: int) -> np.ndarray:
    """An image as `cv2.imdecode` returns it: [H, W] or [H, W, C], colours in the order BGR.

    A JPEG without its end is refused; OpenCV before 5.0 fills the rest with grey. Pillow reads GIF and AVIF where
    OpenCV is built without them. A TIFF is turned as the flags say; OpenCV turns it whatever they say.

    Args:
      encoded: content of the file; errors name the origin of an `ImageFile`.
      flags: of `cv2.imdecode`.

    Raises:
      BadImage: the image does not decode.
    """
    if not _whole(encoded):
        raise _bad(encoded, f"a {'PNG' if encoded[:8] == PNG else 'JPEG'} cut short")
    width, height = size(encoded)
    try:
        limits.pixels(width, height)
    except ValueError as error:
        raise _bad(encoded, str(error)) from error
    if len(encoded) * DEFLATE < _png_bytes(encoded):
        raise _bad(encoded, f"{width} x {height} pixels in so few bytes")
    stored, orientation = _stored_tiff(encoded)
    try:
        image = cv2.imdecode(np.frombuffer(stored, np.uint8), flags)
    except cv2.error as error:
        raise _bad(encoded, error.err) from error
    if image is not None and not _as_stored(flags):
        image = _turned(image, orientation)
    image = _with_pillow(encoded, flags) if image is None else image
    if image is None:
        raise _bad(encoded, f"expected a {FORMATS} file")
    return image


def size(encoded: bytes) -> tuple[int, int]:
    """Width and height of an image as stored, which its first bytes tell.

    Raises:
      BadImage: no image.
    """
    if encoded[:8] == PNG and len(encoded) >= 26:
        return struct.unpack(">II", encoded[16:24])
    if encoded[:3] == b"\xff\xd8\xff" and (found := _jpeg_size(encoded)):
        return found
    if encoded[4:12] == b"ftypavif" and 0 <= (place := encoded.find(b"ispe")) < len(encoded) - 16:
        return struct.unpack(">II", encoded[place + 8 : place + 16])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(_stored_tiff(encoded)[0])) as opened:
                return opened.size
    except Exception as error:  # Pillow's readers raise various exceptions on damaged headers
        bomb = isinstance(error, Image.DecompressionBombError)
        raise _bad(encoded, str(error) if bomb else f"expected a {FORMATS} file") from error


def _as_stored(flags: int) -> bool:
    """Whether flags of `cv2.imdecode` ask for the pixels as they are stored, not turned."""
    return flags == cv2.IMREAD_UNCHANGED or bool(flags & cv2.IMREAD_IGNORE_ORIENTATION)


def _stored_tiff(encoded: bytes) -> tuple[bytes, int]:
    """A TIFF whose first directory says that it is upright, and the orientation that it said; others as they are, 1."""
    if (order := TIFF.get(bytes(encoded[:4]))) is None or len(encoded) < 8:
        return encoded, 1
    (place,) = struct.unpack_from(f"{order}I", encoded, 4)
    entries = struct.unpack_from(f"{order}H", encoded, place)[0] if place <= len(encoded) - 2 else 0
    for entry in range(place + 2, min(place + 2 + 12 * entries, len(encoded) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", encoded, entry)
        if (tag, kind) == (ORIENTATION, 3):
            return encoded[: entry + 8] + struct.pack(f"{order}H", 1) + encoded[entry + 10 :], value
    return encoded, 1


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels turned and mirrored as an orientation of 1 to 8 says; others are 1."""
    mirrored, turns = {2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 3), 7: (1, 3), 8: (0, 1)}.get(
        orientation, (0, 0)
    )
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, turns))


def _png_bytes(encoded: bytes) -> int:
    """Bytes of a PNG's rows before compression; 0 for another image."""
    if encoded[:8] != PNG:
        return 0
    width, height, depth, kind = struct.unpack(">IIBB", encoded[16:26])
    return height * (1 + (width * depth * {2: 3, 4: 2, 6: 4}.get(kind, 1) + 7) // 8)


def _bad(encoded: bytes, reason: str) -> BadImage:
    origin = getattr(encoded, "origin", "")
    return BadImage(f"{origin}{': ' * bool(origin)}an image of {len(encoded)} bytes does not decode: {reason}")


def _segments(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of the segments of a JPEG before its first scan, and of what follows them."""
    place = 2
    while encoded[place : place + 1] == b"\xff" and encoded[place + 1 : place + 2] not in (b"\xda", b""):
        yield encoded[place + 1], place
        filler = encoded[place + 1] == 0xFF
        place += 1 if filler else 2 + int.from_bytes(encoded[place + 2 : place + 4])
    yield 0, place


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    for marker, place in _segments(encoded):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(encoded) >= place + 9:
            height, width = struct.unpack(">HH", encoded[place + 5 : place + 9])
            return width, height
    return None


def _whole(encoded: bytes) -> bool:
    """False for a JPEG without the marker of its end after its first scan, and a PNG without its last chunk.

    The segments before the scan are skipped by their lengths, since a thumbnail in them has such a marker, too.
    """
    if encoded[:8] == PNG:
        place = len(PNG)
        while 0 < place <= len(encoded) - 12 and encoded[place + 4 : place + 8] != b"IEND":
            place += 12 + int.from_bytes(encoded[place : place + 4])
        return place <= len(encoded) - 12
    if encoded[:3] != b"\xff\xd8\xff":
        return True
    *_, (_, scan) = _segments(encoded)
    return encoded.rfind(b"\xff\xd9") > scan


def _with_pillow(encoded: bytes, flags: int) -> np.ndarray | None:
    if encoded[:4] != b"GIF8" and encoded[4:12] != b"ftypavif":
        return None
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            image = np.asarray((opened if _as_stored(flags) else ImageOps.exif_transpose(opened)).convert("RGB"))
    except Exception:  # Pillow's readers raise various exceptions on damaged images
        return None
    return image[..., ::-1]
