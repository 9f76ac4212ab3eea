"""Images for generators: sizes, folders, grey and transparent pictures, growing batches, the catalogue."""

import dataclasses

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from facejax.data import generation
from facejax.data.builders import store
from facejax.data.decoding import BadImage
from facejax.data.generation import GenerationImages
from facejax.data.synthetic import faces
from facejax.data.synthetic.faces import png


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, picture_folder):
    rng = np.random.default_rng(0)
    images = {"b": rng.integers(0, 256, (11, 16, 20, 3)), "a/c": rng.integers(0, 256, (3, 17, 16, 3))}
    return picture_folder(tmp_path_factory.mktemp("pictures"), images)


def test_folders_are_read_at_any_depth_in_natural_order(pictures):
    (pictures / ".hidden.png").write_bytes(b"")
    found = generation.Pictures(pictures)
    names = [str(path.relative_to(pictures)) for path in found.paths]
    assert names == [f"a/c/{i}.png" for i in range(3)] + [f"b/{i}.png" for i in range(11)]
    with pytest.raises(ValueError, match="no pictures, expected files"):
        generation.Pictures(pictures / "missing")


def test_the_centre_is_averaged_down():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)
    means = image[:, 2:10].reshape(4, 2, 4, 2, 3).mean((1, 3))
    np.testing.assert_allclose(generation.square(png(image), 4), means, atol=0.51)
    with pytest.raises(ValueError, match=r"an image of 8 x 12 pixels: expected data.image_size, 16, or more"):
        generation.square(png(image), 16)


def test_celebas_crop():
    image = np.zeros((218, 178, 3), np.uint8)
    image[121 - 64 : 121 + 64, 89 - 64 : 89 + 64] = 200
    assert (generation.square(png(image), 128, celeba=True) == 200).all()
    image[57, 25] = 0
    assert (generation.square(png(image), 128, celeba=True)[0, 0] == 0).all()
    with pytest.raises(ValueError, match="expected CelebA's aligned 218 x 178"):
        generation.square(png(image[:200]), 128, celeba=True)


def encoded(array, suffix=".png"):
    return cv2.imencode(suffix, array)[1].tobytes()


def test_grey_and_transparent_pictures():
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    np.testing.assert_array_equal(generation.opaque(encoded(grey)), np.repeat(grey[..., None], 3, -1))
    blue = np.zeros((4, 4, 4), np.uint8)
    blue[..., 0], blue[:2, :, 3], blue[2, :, 3] = 200, 255, 51
    found = generation.opaque(encoded(blue))
    assert found[0, 0].tolist() == [0, 0, 200] and found[3, 0].tolist() == [255] * 3
    assert found[2, 0].tolist() == [204, 204, 244]
    deep = generation.opaque(encoded(blue.astype(np.uint16) * 257))
    np.testing.assert_array_equal(deep, found)
    assert np.abs(generation.opaque(encoded(grey, ".jpg")).astype(int) - grey[..., None]).max() < 8


def test_batches_of_growing_size(pictures):
    data = GenerationImages(source="folder", path=str(pictures), image_size=16, threads=1)
    stages = [(4, 6, 2), (8, 4, 1), (16, 2, 9)]

    def run(stream, count):
        return [next(stream)["image"] for _ in range(count)]

    stream = data.staged_batches(stages, 3)
    whole = run(stream, 6)
    stream.close()
    assert [x.shape for x in whole] == [(6, 4, 4, 3)] * 2 + [(4, 8, 8, 3)] + [(2, 16, 16, 3)] * 3
    for done in (1, 2, 3, 4):
        first, second = (data.staged_batches(stages, 3) for _ in range(2))
        run(first, done)
        second.set_state(first.get_state())
        for one, other in zip(whole[done:], run(second, 6 - done), strict=True):
            np.testing.assert_array_equal(one, other)
        first.close()
        second.close()


def test_a_bad_picture_is_named_or_replaced(tmp_path, picture_folder):
    data = GenerationImages("folder", str(picture_folder(tmp_path, {"a": np.zeros((6, 16, 16, 3))})), image_size=16)
    (tmp_path / "a" / "4.png").write_bytes(b"none")
    with pytest.raises(BadImage, match=r"a/4\.png: an image of 4 bytes does not decode"):
        next(data.batches(6, 0))
    stream = data.batches(6, 0)
    stream.replace_bad()
    with pytest.warns(UserWarning, match=r"a/4\.png"):
        assert next(stream)["image"].shape == (6, 16, 16, 3)
    assert stream.replaced == 1


def test_small_images_are_means_of_the_large(pictures):
    data = GenerationImages(source="folder", path=str(pictures), image_size=16, flip=False, threads=1)
    large, small = (next(data.batches(14, 0, size))["image"] for size in (16, 4))
    np.testing.assert_allclose(small, large.reshape(14, 4, 4, 4, 4, 3).mean((2, 4)), atol=0.51)


def test_mirrored_images(pictures):
    plain, flipped = (
        next(GenerationImages("folder", str(pictures), image_size=16, flip=flip).batches(14, 0))["image"]
        for flip in (False, True)
    )
    same = (plain == flipped).all((1, 2, 3))
    mirrored = (plain == flipped[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and same.any() and mirrored.any()


def test_real_images_of_the_face_world(monkeypatch):
    """Others are of the held-out people. The images are stand-ins: the split's first letter and a number."""
    generation._opened.cache_clear()

    def load(task, split, data_dir):
        assert (task, data_dir) == ("portraits", "somewhere")
        count = {"train": 30, "test": 10}[split]
        return [{"image": png(np.full((64, 64, 3), i + 100 * (split == "test"), np.uint8))} for i in range(count)]

    monkeypatch.setattr(faces, "load", load)
    data = GenerationImages(data_dir="somewhere")
    real, others = (images[:] for images in data.real(10))
    assert real.shape == others.shape == (10, 32, 32, 3)
    assert real[:, 0, 0, 0].tolist() == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    assert others[:, 0, 0, 0].tolist() == list(range(100, 110))
    assert data.real(11)[1] is None
    with pytest.raises(ValueError, match=r"eval.images is 31: expected at most the 30 images of face_world"):
        data.real(31)
    generation._opened.cache_clear()


def test_real_images_of_a_folder(pictures):
    data = GenerationImages(source="folder", path=str(pictures), image_size=16)
    every = np.stack([generation.square(e["image"], 16) for e in data.training()])
    real, others = (images[:] for images in data.real(7))
    np.testing.assert_array_equal(real, every[::2])
    np.testing.assert_array_equal(others, every[1::2])
    assert data.real(8)[1] is None


def test_bad_settings(pictures):
    with pytest.raises(ValueError, match=r"data.image_size is 48: expected a power of two, 4 or more"):
        GenerationImages(image_size=48)
    with pytest.raises(ValueError, match=r"data.source is 'lsun': expected one of face_world, folder, celeb_a"):
        GenerationImages("lsun")
    with pytest.raises(ValueError, match="14 examples, fewer than one batch of 16"):
        GenerationImages("folder", str(pictures), image_size=16).batches(16, 0)
    small = GenerationImages("folder", str(pictures), image_size=32, threads=1)
    with pytest.raises(ValueError, match=r"\d+\.png: an image of 1[67] x \d+ pixels: expected data.image_size, 32"):
        next(small.batches(4, 0))


class Celeba(tfds.core.GeneratorBasedBuilder):
    """Three images of the size of aligned CelebA."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(encoding_format="png")})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": ((i, {"image": png(np.full((218, 178, 3), 50 * i, np.uint8))}) for i in range(3))}

    def _generate_examples(self):
        raise NotImplementedError


def test_the_catalogue(tmp_path, monkeypatch):
    generation._opened.cache_clear()
    asked = []

    def builder(name, **options):
        asked.append(name)
        return Celeba(**options)

    monkeypatch.setattr(tfds, "builder", builder)
    data = GenerationImages("celeb_a", data_dir=str(tmp_path), image_size=64, threads=1)
    batch = next(data.batches(3, 0))["image"]
    assert batch.shape == (3, 64, 64, 3) and sorted(batch[:, 0, 0, 0]) == [0, 50, 100]
    GenerationImages("celeb_a_hq", data_dir=str(tmp_path), image_size=128).training()
    assert asked == ["celeb_a", "celeb_a_hq/128"]
    monkeypatch.setattr(store, "prepared", lambda *args: 1 / 0)
    generation._opened.cache_clear()
    with pytest.raises(ValueError, match=r"tfds set 'celeb_a' is not prepared in .*, and preparing it failed"):
        dataclasses.replace(data, image_size=32).training()
