import cv2
import numpy as np
import pytest

from facejax.data import sources
from facejax.data.builders import packs
from facejax.data.decoding import pixels
from facejax.data.readers.verification import read_pack


@pytest.fixture
def people(tmp_path):
    """Images NAME/NAME_000n of one grey level each."""
    for i, name in enumerate(("Ann_Lee", "Bo")):
        (tmp_path / name).mkdir()
        for n in (1, 2, 3):
            cv2.imwrite(str(tmp_path / name / f"{name}_{n:04d}.{'png' if i else 'jpg'}"), np.full((4, 4), 20 * i + n))
    return tmp_path


def greys(pack):
    return [round(float(pixels(image, cv2.IMREAD_GRAYSCALE).mean())) for image in pack.images]


LFW = "2\t3\n" + "Ann_Lee\t1\t2\n" * 5 + "Ann_Lee\t3\tBo\t1\n" * 5


def test_lfw_pairs(people):
    (people / "pairs.txt").write_text(LFW)
    packs.main(["--pairs", str(people / "pairs.txt"), "--images", str(people), "--out", str(people / "x.bin")])
    pack = read_pack(people / "x.bin")
    assert pack.same.tolist() == [True] * 5 + [False] * 5
    assert greys(pack) == [1, 2] * 5 + [3, 21] * 5
    with pytest.raises(SystemExit, match=r"^facejax\.data\.builders\.packs: .*x\.bin exists: choose another name"):
        packs.main(["--pairs", "p", "--images", "i", "--out", str(people / "x.bin")])


def test_pairs_of_paths(people):
    (people / "with space.jpg").write_bytes((people / "Ann_Lee/Ann_Lee_0002.jpg").read_bytes())
    lines = ["with space.jpg\tAnn_Lee/Ann_Lee_0001.jpg\t1\n"] * 5 + ["Bo/Bo_0001.png Bo/Bo_0003.png 0\n"] * 5
    (people / "p.txt").write_text("".join(lines))
    pack = packs.make_pack(people / "p.txt", people)
    assert pack.same.tolist() == [True] * 5 + [False] * 5
    assert greys(pack) == [2, 1] * 5 + [21, 23] * 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LFW.replace("Bo\t1", "Bo\t9", 1), "line 7: no image .*Bo_0009.jpg, nor of another format"),
        (LFW.replace("Bo\t1", "Bo\tx", 1), "line 7: .*expected 'name number number' or 'name number name number'"),
        (
            LFW.replace("Bo\t1", "../x\t1", 1),
            "line 7: '../x/../x_0001': expected the path of an image",
        ),
        ("a.jpg b.jpg 1\n", "line 1: .*a.jpg does not exist"),
        ("a.jpg b.jpg 2\n", "line 1: 'a.jpg b.jpg 2': expected two paths of images and 1 or 0"),
        ("", "0 pairs of one person and 0 of two: expected ten pairs or more, of both kinds"),
        ("Bo/Bo_0001.png Bo/Bo_0003.png 0\n" * 12, "0 pairs of one person and 12 of two"),
    ],
)
def test_damaged_lists(people, text, message):
    (people / "pairs.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"pairs\.txt.*{message}"):
        packs.make_pack(people / "pairs.txt", people)


def encoded(height, width):
    return cv2.imencode(".png", np.zeros((height, width), np.uint8))[1].tobytes()


def test_images_that_are_no_aligned_crops_give_a_warning(recwarn):
    sources.warn_unaligned([encoded(112, 112)] * 3 + [b"no image"], 112, "here")
    sources.warn_unaligned([encoded(112, 112), encoded(50, 60)][:1], 112, "here")
    assert not recwarn
    with pytest.warns(UserWarning, match=r"here: 1 of the first 2 images are not square, such as 60 x 50, and"):
        sources.warn_unaligned([encoded(112, 112), encoded(50, 60)], 112, "here")
    with pytest.warns(UserWarning, match="here: the first 2 images have sides of 112 to 300 pixels, so"):
        sources.warn_unaligned([encoded(112, 112), encoded(300, 300)], 112, "here")
