import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from facejax.data import decoding, readers, transforms
from facejax.data.decoding import BadImage, ImageFile


@pytest.fixture(scope="module")
def picture():
    y, x = np.mgrid[:40, :56]
    return Image.fromarray(np.stack([4 * x, 5 * y, 255 - 3 * x], -1).astype(np.uint8))


def content(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "JPEG", "PNG", "WEBP", "BMP", "AVIF", "PPM"])
def test_formats(picture, kind):
    encoded = content(picture, kind)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), int)
    assert np.abs(transforms.decode(encoded) - expected).max() <= 1
    for share in (0.2, 0.6, 0.9):
        with pytest.raises(BadImage, match="bytes does not decode"):
            transforms.decode(encoded[: int(share * len(encoded))])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(picture, kind, orientation):
    """A TIFF is turned as other files are, although OpenCV turns it with any flag and Pillow when it opens it."""
    stored, exif = np.asarray(picture), Image.Exif()
    exif[0x0112] = orientation
    turned = {
        2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1), 7: stored[::-1, ::-1].swapaxes(0, 1), 8: stored[:, ::-1].swapaxes(0, 1),
    }  # fmt: skip
    for compression in (None, "tiff_lzw")[: 1 + (kind == "TIFF")]:
        encoded = content(picture, kind, exif=exif, **({"compression": compression} if compression else {}))
        np.testing.assert_array_equal(transforms.decode(encoded, upright=False), stored)
        np.testing.assert_array_equal(transforms.decode(encoded), turned.get(orientation, stored))
        assert decoding.size(encoded) == picture.size


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_tiff_of_the_other_byte_order_is_turned(picture):
    """And one whose directory lies beyond its end is left to the readers."""
    grey = picture.convert("L")
    rows = np.asarray(grey).tobytes()
    tags = {256: 56, 257: 40, 258: 8, 262: 1, 273: 122, 274: 6, 277: 1, 278: 40, 279: len(rows)}
    directory = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    encoded = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + directory + bytes(4) + rows
    np.testing.assert_array_equal(transforms.decode(encoded, upright=False)[..., 0], np.asarray(grey))
    np.testing.assert_array_equal(transforms.decode(encoded)[..., 0], np.asarray(grey)[::-1].T)
    for cut in (3, 7, 9, 60):
        with pytest.raises(BadImage):
            transforms.decode(encoded[:cut])
    with pytest.raises(BadImage):
        transforms.decode(encoded[:4] + b"\xff" * 4 + encoded[8:])


@pytest.mark.parametrize("kind", ["GIF", "AVIF"])
def test_pillow_reads_what_opencv_is_built_without(picture, kind, monkeypatch):
    encoded = content(
        picture, kind, **({"append_images": [picture.rotate(180)], "save_all": True} if kind == "GIF" else {})
    )
    expected = transforms.decode(encoded)
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: None)
    np.testing.assert_array_equal(transforms.decode(encoded), expected)
    with pytest.raises(BadImage):
        transforms.decode(content(picture, "PNG"))


def test_a_jpeg_cut_short_is_refused_whatever_opencv_does(picture, monkeypatch):
    """OpenCV before 5.0 fills the rest with grey. A thumbnail has an end of its own; some files go on after theirs."""
    exif = b"Exif\0\0" + content(picture, "JPEG")
    whole = content(picture, "JPEG", exif=exif)
    progressive = content(picture, "JPEG", progressive=True)
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: np.zeros((2, 2, 3), np.uint8))
    for good in (whole, progressive, whole + b"\0" * 9, whole[:-2] + b"\xff\xff\xd9", whole[:2] + b"\xff" + whole[2:]):
        assert decoding.pixels(good, cv2.IMREAD_COLOR).shape == (2, 2, 3)
    for cut in (whole[:-1], whole[: len(exif) + 100], whole[:30], whole[:3], progressive[: len(progressive) // 2]):
        with pytest.raises(BadImage, match=f"^an image of {len(cut)} bytes does not decode: a JPEG cut short$"):
            transforms.decode(cut)


def test_errors_name_the_file_or_the_record(picture, tmp_path):
    (tmp_path / "ann").mkdir()
    for name in ("a.jfif", "b.gif", "c.tif"):
        (tmp_path / "ann" / name).write_bytes(content(picture, {"a": "JPEG", "b": "GIF", "c": "TIFF"}[name[0]]))
    (tmp_path / "ann" / "d.png").write_bytes(b"x" * 700)
    source = readers.read(tmp_path)
    assert [transforms.decode(source[i]["image"]).shape for i in range(3)] == [(40, 56, 3)] * 3
    with pytest.raises(
        BadImage, match=rf"^{tmp_path}/ann/d\.png: an image of 700 bytes does not decode: expected a JPEG"
    ):
        transforms.decode(source[3]["image"])
    with pytest.raises(BadImage, match=r"^train\.rec, record 7: an image of 0 bytes"):
        transforms.decode(ImageFile(b"", "train.rec, record 7"))


def test_sizes_are_read_before_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    for suffix in (".jpg", ".png", ".webp", ".bmp", ".tiff", ".ppm"):
        assert decoding.size(cv2.imencode(suffix, pixels)[1].tobytes()) == (9, 6)
    for kind in ("GIF", "AVIF"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        assert decoding.size(stream.getvalue()) == (9, 6)
    with pytest.raises(BadImage, match="an image of 9 bytes does not decode: expected a JPEG, PNG"):
        decoding.size(b"no image.")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_pictures_above_the_limit_are_refused(suffix, monkeypatch):
    encoded = ImageFile(cv2.imencode(suffix, np.zeros((20, 30, 3), np.uint8))[1].tobytes(), "big.file")
    monkeypatch.setenv("FACEJAX_MAX_MEGAPIXELS", "0.0006")
    assert transforms.decode(encoded).shape == (20, 30, 3)
    monkeypatch.setenv("FACEJAX_MAX_MEGAPIXELS", "0.0005")
    with pytest.raises(
        BadImage, match=r"big\.file: .* 30 x 20 pixels: expected at most 0\.0005 million \(FACEJAX_MAX_ME"
    ):
        transforms.decode(encoded)


def test_a_png_of_more_pixels_than_its_bytes_can_hold_is_refused(monkeypatch):
    encoded = cv2.imencode(".png", np.zeros((40, 50), np.uint8))[1].tobytes()
    assert transforms.decode(encoded).shape == (40, 50, 3)
    monkeypatch.setattr(decoding, "DEFLATE", 2)
    with pytest.raises(BadImage, match="50 x 40 pixels in so few bytes"):
        transforms.decode(encoded)
