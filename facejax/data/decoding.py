"""Content of image files to pixels; errors name the file or the record."""

from __future__ import annotations

import io
import os
import pathlib

import cv2
import numpy as np
from PIL import Image, ImageOps

FORMATS = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or PGM"


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
    OpenCV is built without them.

    Args:
      encoded: content of the file; errors name the origin of an `ImageFile`.
      flags: of `cv2.imdecode`.

    Raises:
      BadImage: the image does not decode.
    """
    image, whole = None, _whole(encoded)
    if encoded and whole:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
        image = _with_pillow(encoded, flags) if image is None else image
    if image is None:
        origin = getattr(encoded, "origin", "")
        reason = f"expected a {FORMATS} file" if whole else "a JPEG cut short"
        raise BadImage(f"{origin}{': ' * bool(origin)}an image of {len(encoded)} bytes does not decode: {reason}")
    return image


def _whole(encoded: bytes) -> bool:
    """Whether the content is no JPEG, or one with the marker of its end after its first scan.

    The segments before the scan are skipped by their lengths, since a thumbnail in them has such a marker, too.
    """
    if encoded[:3] != b"\xff\xd8\xff":
        return True
    place = 2
    while encoded[place : place + 1] == b"\xff" and encoded[place + 1 : place + 2] not in (b"\xda", b""):
        filler = encoded[place + 1] == 0xFF
        place += 1 if filler else 2 + int.from_bytes(encoded[place + 2 : place + 4])
    return encoded.rfind(b"\xff\xd9") > place


def _with_pillow(encoded: bytes, flags: int) -> np.ndarray | None:
    if encoded[:4] != b"GIF8" and encoded[4:12] != b"ftypavif":
        return None
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            kept = flags == cv2.IMREAD_UNCHANGED or flags & cv2.IMREAD_IGNORE_ORIENTATION
            image = np.asarray((opened if kept else ImageOps.exif_transpose(opened)).convert("RGB"))
    except (OSError, SyntaxError, ValueError):  # Pillow's own errors
        return None
    return image[..., ::-1]
