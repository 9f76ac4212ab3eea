import cv2
import numpy as np
import pytest

from facejax.data import restoration as data
from facejax.data.landmarks import MIRROR_68
from facejax.metrics import image as metric
from facejax.ops.resize import imresize_on_host


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def generators(count, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(count)]


@pytest.mark.parametrize(("scale", "size"), [(4, 8), (3, 9), (2, 16), (8, 16)])
def test_a_patch_is_part_of_the_pair_of_whole_images(scale, size):
    image = noise(41, 37)
    high = data.divisible(image, scale)
    assert high.shape[0] % scale == high.shape[1] % scale == 0 and min(high.shape[:2]) > 37 - scale
    low = data.small(high, scale)
    seen = set()
    for i in range(30):
        cut = data.window(image, scale, size, np.random.default_rng(i))
        edge = data.MARGIN * scale
        places = np.argwhere((high[::scale, ::scale] == cut[edge, edge]).all(-1))
        row, column = places[0]
        patch = cut[edge:-edge, edge:-edge]
        np.testing.assert_array_equal(patch, high[row * scale :, column * scale :][:size, :size])
        mine = data.small(cut, scale)[data.MARGIN : -data.MARGIN, data.MARGIN : -data.MARGIN].astype(int)
        wanted = low[row:, column:][: size // scale, : size // scale]
        assert np.abs(mine - wanted).max() <= 1 and (mine != wanted).mean() < 0.01  # a half rounds either way
        seen |= {row == 0, row * scale + size == high.shape[0]}
    assert seen == {True, False}  # borders are among them


def test_batches_turn_both_images_together():
    examples = [{"image": noise(40, 44, seed=i)} for i in range(8)]
    batch = data.loader(4, 24)(examples, generators(8))
    assert batch["low"].shape == (8, 6, 6, 3) and batch["high"].shape == (8, 24, 24, 3)
    again = data.small(batch["high"], 4)[:, 2:-2, 2:-2].astype(int)
    assert np.abs(batch["low"][:, 2:-2, 2:-2] - again).max() <= 1
    assert all(x.dtype == np.uint8 for x in batch.values())


def test_batches_of_faces_mirror_landmarks_and_parsing():
    face = {"image": noise(32, 32), "points": np.random.default_rng(0).uniform(2, 30, (68, 2))}
    batch = data.loader(8, 32, points=True)([face] * 8, generators(8))
    mirrored = (batch["high"] != face["image"]).any((1, 2, 3))
    assert mirrored.any() and not mirrored.all()
    for flag, high, points, parsing in zip(mirrored, batch["high"], batch["points"], batch["parsing"], strict=True):
        back = (np.float32([32, 0]) - points * [1, -1])[MIRROR_68] if flag else points
        np.testing.assert_allclose(back, face["points"], atol=1e-4)
        np.testing.assert_array_equal(high[:, ::-1] if flag else high, face["image"])
        np.testing.assert_array_equal(parsing, data.parsing_maps(points, 32, 16))
    five = data.loader(8, 32, points=True)([{**face, "points": face["points"][:5]}] * 2, generators(2))
    assert five["points"].shape == (2, 5, 2) and five["parsing"].shape == (2, 16, 16, 0)
    with pytest.raises(ValueError, match=r"data\.points: expected faces with landmarks, of data\.patch 32 pixels"):
        data.loader(8, 32, points=True)([{"image": noise(40, 32), "points": face["points"]}], generators(1))


def test_parsing():
    angle = np.linspace(0, np.pi, 17)
    points = np.zeros((68, 2))
    points[:17] = 32 - 24 * np.stack([np.cos(angle), -np.sin(angle)], 1)
    points[17:27] = np.stack([np.linspace(14, 50, 10), np.full(10, 20)], 1)
    points[27:36] = [[32, 24], [32, 28], [32, 32], [32, 36], [27, 38], [29, 39], [32, 39], [35, 39], [37, 38]]
    points[36:42], points[42:48] = ([[x, 27] for x in range(18, 24)], [[x, 27] for x in range(40, 46)])
    points[48:68] = 44
    maps = data.parsing_maps(points, 64, 64)
    assert maps.shape == (64, 64, 10) and (maps.sum(-1) == 1).all()
    classes = maps.argmax(-1)
    named = {data.PARSING[classes[y, x]] for x, y in ((2, 2), (32, 50), (16, 20), (46, 20), (32, 36))}
    assert named == {"background", "skin", "right brow", "left brow", "nose"}


def test_images_of_8_bits_only():
    def png(image):
        return cv2.imencode(".png", image)[1].tobytes()

    colour = noise(5, 4)
    np.testing.assert_array_equal(data.decoded(png(colour[..., ::-1]), "a.png"), colour)
    np.testing.assert_array_equal(data.decoded(png(colour[..., 0]), "a.png"), colour[..., :1].repeat(3, -1))
    for image, message in (
        (np.zeros((4, 4, 4), np.uint8), "a.png: an image with 4 channels: expected RGB or grey, without alpha"),
        (np.zeros((4, 4, 3), np.uint16), "a.png: an image of uint16: expected 8 bits a channel"),
    ):
        with pytest.raises(ValueError, match=message):
            data.decoded(png(image), "a.png")
    with pytest.raises(ValueError, match=r"a\.png: an image of \d+ bytes does not decode"):
        data.decoded(b"no image", "a.png")


def test_sides_must_divide():
    with pytest.raises(ValueError, match="images of 8 x 9 pixels: expected sides that 4 divides"):
        data.small(noise(8, 9), 4)
    with pytest.raises(ValueError, match=r"an image of 9 x 30 pixels: expected at least data\.patch 12"):
        data.window(noise(9, 30), 4, 12, np.random.default_rng(0))
    for section in ({"patch": 30}, {"scale": 1}):
        with pytest.raises(ValueError, match="expected a multiple of 2 or more"):
            data.RestorationImages(**section)


def test_folders(tmp_path, picture_folder):
    picture_folder(tmp_path / "x", {"b": noise(3, 21, 26), "a": noise(1, 30, 20), ".hidden": noise(1, 9, 9)})
    section = data.RestorationImages(str(tmp_path / "x"), str(tmp_path / "x"), patch=16, repeats=3, memory=True)
    assert [pair.name for pair in section.tests()["x"]] == ["0", "0", "1", "2"]
    assert [pair.high.shape for pair in section.tests()["x"]][:2] == [(28, 20, 3), (20, 24, 3)]
    pair = section.tests()["x"][0]
    np.testing.assert_array_equal(pair.low, data.small(pair.high, 4))
    batches = section.batches(12, 0)
    batch, position = next(batches), batches.get_state()
    assert batch["high"].shape == (12, 16, 16, 3) and position["length"] == 12
    again = section.batches(12, 0)
    np.testing.assert_array_equal(next(again)["high"], batch["high"])
    again.set_state(position)
    np.testing.assert_array_equal(next(again)["high"], next(batches)["high"])
    for source in (batches, again):
        source.close()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no images: expected files such as"):
        data.Folder(tmp_path / "empty")


def test_an_image_that_is_too_small_is_named(tmp_path, picture_folder):
    picture_folder(tmp_path, {"x": noise(1, 30, 15)})
    section = data.RestorationImages(str(tmp_path), str(tmp_path), scale=16, patch=16, threads=1)
    with pytest.raises(
        ValueError, match=r"0: an image of 30 x 15 pixels: expected at least 16 on each side, as data\.sc"
    ):
        section.tests()
    with pytest.raises(ValueError, match=r"0: an image of 30 x 15 pixels: expected at least data\.patch 16"):
        next(section.batches(1, 0))


def test_photographs_of_both_splits_differ():
    train, test = (data.Photographs(split) for split in ("train", "test"))
    names = [{source[i]["name"] for i in range(len(source))} for source in (train, test)]
    assert not names[0] & names[1] and len(test) == 2
    assert all(test[i]["image"].shape == (512, 512, 3) and test[i]["image"].dtype == np.uint8 for i in range(2))


def test_mixed_sources_have_equal_shares():
    mixed = data.Mixed([[f"a{i}" for i in range(9)], ["b0", "b1"]])
    found = [mixed[i] for i in range(len(mixed))]
    assert len(found) == 17 and found.count("b0") == 4 and found.count("a3") == 1


def test_celeba():
    image, marks = noise(218, 178), {f"{name}_{axis}": 100 for name in data.CELEBA_POINTS for axis in "xy"}
    face = data.celeba_face(image, marks, 128)
    assert face["image"].shape == (128, 128, 3)
    np.testing.assert_allclose(face["points"], [[100.5 * 128 / 178, 80.5 * 128 / 178]] * 5)
    spot = np.zeros_like(image)
    spot[99:102, 99:102] = 255
    found = np.unravel_index(data.celeba_face(spot, marks, 128)["image"][..., 0].argmax(), (128, 128))
    np.testing.assert_allclose(np.array(found)[::-1] + 0.5, face["points"][0], atol=0.6)
    whole = data.celeba_face(image, marks, 178)["image"]
    np.testing.assert_array_equal(whole, image[20:198])


def test_unknown_catalogue():
    with pytest.raises(ValueError, match="tfds set 'mnist': expected one of div2k, celeb_a"):
        data.Catalogue("mnist", "train", 128)
    with pytest.raises(ValueError, match="tfds set 'div2k/bicubic_x4', not prepared as ArrayRecord in /nowhere"):
        data.Catalogue("div2k/bicubic_x4", "train", 128, "/nowhere")


def test_set5_has_the_published_bicubic_numbers(test_data):
    """28.42 dB and 0.8104 at x4, as super-resolution papers print; theirs reduce the rounded luminance, not RGB."""
    pairs = data.RestorationImages(test=str(test_data / "sr/Set5")).tests()["Set5"]
    truth = [np.rint(metric.luma(pair.high)) for pair in pairs]
    found = [metric.eight_bit(imresize_on_host(imresize_on_host(y, 1 / 4), 4)) for y in truth]
    numbers = [
        np.mean([measure(x, y, shave=4) for x, y in zip(found, truth, strict=True)])
        for measure in (metric.psnr, metric.ssim)
    ]
    assert [f"{numbers[0]:.2f}", f"{numbers[1]:.4f}"] == ["28.42", "0.8104"]
    ours = [metric.eight_bit(imresize_on_host(pair.low, 4)) for pair in pairs]
    colour = [metric.psnr(x, pair.high, shave=4, luminance=True) for x, pair in zip(ours, pairs, strict=True)]
    assert np.mean(colour) == pytest.approx(28.43, abs=0.005)
