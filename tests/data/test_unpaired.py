"""Unpaired images: blur, text, people of both domains, folders, crops, bad input."""

import cv2
import numpy as np
import pytest

from facejax.data import unpaired
from facejax.data.synthetic import faces
from facejax.data.unpaired import UnpairedImages, blur, text_image


def write(folder, images, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        (folder / f"{names[i] if names else i}.png").write_bytes(faces.png(image))


def noise(count, height=10, width=14, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def test_blur_is_a_mean_along_the_motion():
    image = np.zeros((15, 15, 3), np.uint8)
    image[7, 7] = 255
    flat, upright = blur(image, 4.0, 0.0), blur(image, 4.0, np.pi / 2)
    np.testing.assert_array_equal(flat, upright.swapaxes(0, 1))
    assert set(np.flatnonzero(flat[..., 0].any(1))) == {7}
    assert flat[7, 5:10, 0].tolist()[1:4] == [64] * 3 and abs(int(flat[7, ..., 0].sum()) - 255) <= 2
    constant = np.full((9, 9, 3), 130, np.uint8)
    np.testing.assert_array_equal(blur(constant, 6.0, 1.0), constant)


def test_text_is_dark_on_light_and_repeats():
    images = [text_image(32, np.random.default_rng(i)) for i in range(20)]
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)
    np.testing.assert_array_equal(images[3], text_image(32, np.random.default_rng(3)))
    spread = [np.percentile(image, 95) - np.percentile(image, 5) for image in images]
    assert min(spread) > 60 and np.mean([np.median(image) for image in images]) > 128


def test_domains_show_different_texts_of_which_one_is_blurred(monkeypatch):
    monkeypatch.setattr(unpaired, "TEXTS", {"train": 8, "test": 3})
    unpaired._sharp.cache_clear()
    data = UnpairedImages("text", image_size=16, shortest=3.0, longest=4.0)
    batches = data.batches(4, 0)
    whole = [next(batches) for _ in range(8)]
    batches.close()
    known = unpaired._sharp("text", "", 16, "train")
    mirrored = np.concatenate([known, known[:, :, ::-1]]).reshape(16, -1)

    def sources(images):
        return {int(np.abs(mirrored - x.reshape(1, -1).astype(int)).sum(1).argmin()) % 8 for x in images}

    assert sources(np.concatenate([b["sharp"] for b in whole])) == {0, 1, 2, 3}
    assert {x.tobytes() for b in whole for x in b["sharp"]} <= {x.reshape(16, 16, 3).tobytes() for x in mirrored}
    assert not {x.tobytes() for b in whole for x in b["blurred"]} & {
        x.tobytes() for x in mirrored.reshape(-1, 16, 16, 3)
    }
    pairs = data.pairs()
    assert len(pairs.sharp) == 3 and (pairs.kernels[:, 0] >= 3).all() and (pairs.kernels[:, 0] <= 4).all()
    for row, image, kernel in zip(pairs.blurred, pairs.sharp, pairs.kernels, strict=True):
        np.testing.assert_array_equal(row, blur(image, *kernel))
    unpaired._sharp.cache_clear()


def test_folders(tmp_path):
    for part, seed in (("trainA", 0), ("trainB", 1), ("testA", 2), ("testB", 3)):
        write(tmp_path / part, noise(3, seed=seed))
    data = UnpairedImages("path", str(tmp_path), image_size=8, resize=10)
    pairs = data.pairs()
    np.testing.assert_array_equal(pairs.sharp, noise(3, seed=2)[:, 1:9, 3:11])
    np.testing.assert_array_equal(pairs.blurred, noise(3, seed=3)[:, 1:9, 3:11])
    assert np.isnan(pairs.kernels).all()
    batches = data.batches(2, 0)
    batch = next(batches)
    batches.close()
    assert {name: x.shape for name, x in batch.items()} == dict.fromkeys(("sharp", "blurred"), (2, 8, 8, 3))
    crops = {noise(3, seed=1)[i, t : t + 8, l : l + 8][:, ::f].tobytes()
             for i in range(3) for t in range(3) for l in range(7) for f in (1, -1)}  # fmt: skip
    assert all(x.tobytes() in crops for x in batch["blurred"])  # as they are in trainB, not blurred again
    larger = UnpairedImages("path", str(tmp_path), image_size=12, resize=20).pairs()
    assert larger.sharp.shape == (3, 12, 12, 3)


def test_bad_folders_raise(tmp_path):
    data = UnpairedImages("path", str(tmp_path), image_size=8, resize=10)
    write(tmp_path / "testA", noise(2), ["a", "b"])
    write(tmp_path / "testB", noise(2), ["a", "c"])
    with pytest.raises(ValueError, match="2 images in testA and 2 in testB, b in one of them only: expected the same"):
        data.pairs()
    write(tmp_path / "trainA", noise(2))
    (tmp_path / "trainB").mkdir()
    with pytest.raises(ValueError, match=r"no blurred images: expected trainA/\*.png and trainB/\*.png"):
        data.batches(2, 0)
    (tmp_path / "testB" / "c.png").rename(tmp_path / "testB" / "b.png")
    alpha = np.concatenate([noise(1)[0], noise(1)[0, ..., :1]], -1)
    cv2.imwrite(str(tmp_path / "testB" / "b.png"), alpha)
    with pytest.raises(ValueError, match=r"b\.png: 4 channels: expected RGB or grey without alpha"):
        data.pairs()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "faces"}, "data.source is 'faces': expected one of face_world, text, path"),
        ({"shortest": 0.0}, "data.shortest is 0.0: expected above 0, at most data.longest"),
        ({"shortest": 20.0}, "data.shortest is 20.0: expected above 0, at most data.longest 14.0"),
        ({"source": "path", "image_size": 64}, "data.resize is 36: expected at least data.image_size 64"),
    ],
)
def test_bad_settings_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        UnpairedImages(**changes)
