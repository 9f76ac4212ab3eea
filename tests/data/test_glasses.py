"""Drawn glasses: mask, tint, glare, pose, codes; pairs, training batches, CelebA's folder, bad input."""

import numpy as np
import pytest

from facejax.data import glasses
from facejax.data.glasses import CODE, Face, GlassesImages, Style, draw, face_mask, random_style, style_code
from facejax.data.landmarks import MIRROR_68
from facejax.data.synthetic import faces

POINTS = np.array([[10.0, 12.0], [22.0, 12.0], [16.0, 18.0], [12.0, 24.0], [20.0, 24.0]])
PLAIN = Style(0.35, 0.25, 2.0, 0.1, np.zeros(3), np.ones(3), 0.0, 0.0, 0.7, 0.0)


def grey(size=32, value=120):
    return np.full((size, size, 3), value, np.uint8)


def points68(size=32):
    """Landmarks on an ellipse, with eyes and mouth where `POINTS` has them."""
    angle = np.linspace(0, np.pi, 17)
    found = np.repeat(POINTS[2][None], 68, 0)
    found[:17] = np.stack([16 - 14 * np.cos(angle), 12 + 18 * np.sin(angle)], 1)
    found[36:42], found[42:48], found[48], found[54] = POINTS[0], POINTS[1], POINTS[3], POINTS[4]
    return found * size / 32


def test_only_the_mask_changes_and_an_ellipse_has_its_area():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    worn, mask = draw(image, 2 * POINTS, PLAIN)
    np.testing.assert_array_equal(worn[~mask], image[~mask])
    assert mask[25, 20] and mask[25, 44] and mask[24, 32] and not mask[24, 2] and not mask[10].any()
    lens = mask.sum() - 2 * 24 * (0.1 * 24) / 2
    np.testing.assert_allclose(lens, 2 * np.pi * (0.45 * 24) * (0.35 * 24), rtol=0.12)
    bottomless, none = draw(image, POINTS - [0, 60], PLAIN)
    assert not none.any() and (bottomless == image).all()


def test_lenses_frame_and_glare_have_their_colours():
    red = PLAIN._replace(lens=np.array([1.0, 0, 0]), tint=0.5, frame=np.array([0, 0, 1.0]))
    worn, _ = draw(grey(), POINTS, red)
    np.testing.assert_allclose(worn[12, 10], [0.5 * 120 + 127.5, 60, 60], atol=1)
    large, _ = draw(grey(128), 4 * POINTS, red)
    np.testing.assert_array_equal(large[48, 64], [0, 0, 255])  # the bridge
    clear, _ = draw(grey(), POINTS, PLAIN)
    np.testing.assert_array_equal(clear[12, 10], [120] * 3)
    shining, _ = draw(grey(), POINTS, PLAIN._replace(glare=1.0))
    assert shining[12, 9:11].min() > 200 and shining[11, 7, 0] < 160
    moved, _ = draw(grey(), POINTS, PLAIN._replace(glare=1.0, place=0.2))
    assert moved[12, 10, 0] < 160


def test_a_turned_head_narrows_the_far_lens_and_temples_end_at_the_ears():
    turned = POINTS.copy()
    turned[2, 0] += 4
    widths = [draw(grey(), p, PLAIN)[1][11:14].any(0) for p in (POINTS, turned)]
    sides = [(row[:16].sum(), row[16:].sum()) for row in widths]
    assert sides[0][0] == sides[0][1] == sides[1][0] > sides[1][1]
    ears = np.array([[2.0, 13.0], [30.0, 13.0]])
    reach = draw(grey(), POINTS, PLAIN, ears)[1].any(0)
    assert reach[2:30].all() and not reach[0] and not reach[31] and not widths[0][3]
    inside = draw(grey(), POINTS, PLAIN, np.array([[9.0, 13.0], [23.0, 13.0]]))[1]
    np.testing.assert_array_equal(inside, draw(grey(), POINTS, PLAIN)[1])


def test_mirrored_faces_get_mirrored_landmarks():
    face = Face(np.arange(32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8), points68(), 3)
    again = face.mirrored().mirrored()
    np.testing.assert_array_equal(again.bare, face.bare)
    np.testing.assert_allclose(again.points, face.points)
    np.testing.assert_allclose(face.mirrored().points[0], [32 - face.points[16, 0], face.points[16, 1]])
    five = Face(face.bare, POINTS, 3).mirrored()
    np.testing.assert_allclose(five.points, POINTS)
    assert MIRROR_68[0] == 16


def test_styles_and_codes():
    rng = np.random.default_rng(0)
    styles = [random_style(rng) for _ in range(300)]
    codes = np.stack([style_code(style) for style in styles])
    assert codes.shape == (300, CODE) and codes.dtype == np.float32 and not style_code(None).any()
    assert (codes[:, 0] == 1).all() and codes.min() >= 0 and codes.max() <= 1.01
    np.testing.assert_allclose(np.mean([style.tint > 0.06 for style in styles]), 0.5, atol=0.1)
    np.testing.assert_allclose(np.mean([style.glare > 0 for style in styles]), 0.4, atol=0.1)
    assert random_style(rng, 0.0, 0.0).tint == 0.06 and random_style(rng, 1.0, 1.0).glare >= 0.3


def test_face_regions():
    hull = face_mask(points68(64), 64)
    assert hull[40, 32] and hull[26, 6] and not hull[10, 32] and not hull[62, 6]
    ellipse = face_mask(2 * POINTS, 64)
    assert ellipse[40, 32] and ellipse[14, 32] and not ellipse[2, 2] and 0.6 < ellipse.mean() < 0.8


@pytest.fixture
def world(monkeypatch):
    rng = np.random.default_rng(0)
    found = []
    for i in range(8):
        bare = rng.integers(60, 200, (32, 32, 3)).astype(np.uint8)
        worn = bare.copy()
        worn[10:14, 5:27] = 0
        found.append(Face(bare, points68(), i // 2, worn))
    monkeypatch.setattr(glasses, "_world", lambda data_dir, size, split: tuple(found))
    return found


def test_pairs_of_both_kinds_of_glasses(world):
    data = GlassesImages(image_size=32)
    pairs, rendered = data.pairs(), data.rendered()
    for found in (pairs, rendered):
        assert found.worn.shape == (8, 32, 32, 3) and found.person.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        np.testing.assert_array_equal(found.worn[~found.glasses], found.bare[~found.glasses])
        np.testing.assert_array_equal(found.bare, [face.bare for face in world])
    assert rendered.glasses.sum() == 8 * 4 * 22 and not rendered.style.any() and (pairs.style[:, 0] == 1).all()
    np.testing.assert_array_equal(data.pairs().worn, pairs.worn)
    assert len({x.tobytes() for x in pairs.glasses}) > 4


def test_batches_of_both_tasks(world):
    batches = {task: GlassesImages(image_size=32, task=task, plain=0.3).batches(8, 0) for task in ("remove", "add")}
    made = {task: [next(stream) for _ in range(4)] for task, stream in batches.items()}
    for stream in batches.values():
        stream.close()
    whole = {k: {name: np.concatenate([b[name] for b in v]) for name in v[0]} for k, v in made.items()}
    np.testing.assert_array_equal(whole["remove"]["image"], whole["add"]["target"])
    np.testing.assert_array_equal(whole["remove"]["target"], whole["add"]["image"])
    batch = whole["remove"]
    assert batch["masks"].shape == (32, 32, 32, 2) and batch["masks"].dtype == np.uint8
    worn = batch["masks"][..., 0].any((1, 2))
    assert 0 < (~worn).sum() < 20
    np.testing.assert_array_equal(batch["style"].any(1), worn)
    np.testing.assert_array_equal((batch["image"] != batch["target"]).any((1, 2, 3)), worn)
    outside = batch["masks"][..., 0] == 0
    np.testing.assert_array_equal(batch["image"][outside], batch["target"][outside])
    known = {x.tobytes() for face in world for x in (face.bare, face.bare[:, ::-1])}
    assert {x.tobytes() for x in batch["target"]} <= known and len({x.tobytes() for x in batch["target"]}) > 8


def test_celebas_folder(tmp_path):
    images, names = tmp_path / "img_align_celeba", [f"{i:06d}.jpg" for i in range(4)]
    images.mkdir()
    picture = np.full((218, 178, 3), 90, np.uint8)
    for name in names:
        (images / name).write_bytes(faces.png(picture))
    rows = "".join(f"{name} {wears} -1\n" for name, wears in zip(names, ["-1", "1", "-1", "-1"], strict=True))
    (tmp_path / "list_attr_celeba.txt").write_text(f"4\nEyeglasses Smiling\n{rows}")
    columns = " ".join(f"{part}_{axis}" for part in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
                       for axis in "xy")  # fmt: skip
    rows = "".join(f"{name}  69 111 108 111 88 135 72 152 105 152\n" for name in names)
    (tmp_path / "list_landmarks_align_celeba.txt").write_text(f"4\n{columns}\n{rows}")
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{n} {s}\n" for n, s in zip(names, "0022", strict=True)))
    data = GlassesImages("celeba", str(tmp_path), image_size=89, tests=1)
    assert data.rendered() is None
    pairs = data.pairs()
    assert pairs.worn.shape == (1, 89, 89, 3) and (pairs.bare == 90).all() and pairs.glasses[0, 45, 35]
    assert len(glasses.CelebA(str(tmp_path), "train", 89)) == 1  # the other one wears glasses
    np.testing.assert_allclose(glasses.CelebA(str(tmp_path), "test", 178)[0].points[0], [69.5, 91.5])
    stream = data.batches(1, 0)
    assert next(stream)["image"].shape == (1, 89, 89, 3)
    stream.close()
    (tmp_path / "list_attr_celeba.txt").unlink()
    with pytest.raises(ValueError, match=r"list_attr_celeba\.txt: no such file, expected CelebA's list"):
        data.pairs()


def test_bad_settings_raise(tmp_path):
    for options, message in (
        ({"source": "lfw"}, "data.source is 'lfw': expected one of face_world, celeba"),
        ({"task": "swap"}, "data.task is 'swap': expected one of remove, add"),
        ({"plain": 1.5}, r"data.plain is 1.5: expected a share in 0..1"),
    ):
        with pytest.raises(ValueError, match=message):
            GlassesImages(**options)
