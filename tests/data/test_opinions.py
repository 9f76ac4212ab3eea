"""Opinion scores in users' CSV files and in the layouts of LIVE and TID2013."""

import numpy as np
import pytest
import scipy.io

from facejax.data.readers import opinions, tables
from facejax.data.synthetic.faces import png


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(np.zeros((2, 2, 3), np.uint8)))


@pytest.fixture
def live(tmp_path):
    """Three images per distortion, the second a copy of its reference; info.txt lists them in another order."""
    names, dmos = [], []
    for kind in opinions.LIVE_FOLDERS:
        references = ["bikes.bmp", "caps.bmp", "bikes.bmp"]
        for i, name in enumerate(references):
            write_image(tmp_path / kind / f"img{i + 1}.bmp")
            write_image(tmp_path / "refimgs" / name)
        lines = [f"{name} img{i + 1}.bmp 0.5" for i, name in enumerate(references)]
        (tmp_path / kind / "info.txt").write_bytes("\r\n".join([lines[2], lines[0], lines[1], "", ""]).encode())
        names += references
        dmos += [10.0 + len(dmos), 0.0, 40.0 + len(dmos)]
    orgs = np.tile([0, 1, 0], 5)[None]
    scipy.io.savemat(tmp_path / "dmos.mat", {"dmos": np.array(dmos)[None], "orgs": orgs})
    scipy.io.savemat(tmp_path / "refnames_all.mat", {"refnames_all": np.array(names, object)[None]})
    return tmp_path


def test_live(live):
    found = opinions.read(live)
    assert [str(p.relative_to(live)) for p in found.paths[:4]] == [
        "jp2k/img1.bmp", "jp2k/img2.bmp", "jp2k/img3.bmp", "jpeg/img1.bmp"
    ]  # fmt: skip
    np.testing.assert_array_equal(found.opinion[:6], [-10, 0, -40, -13, 0, -43])
    assert found.reference.tolist() == 5 * ["bikes.bmp", "caps.bmp", "bikes.bmp"]
    assert found.kind.tolist() == list(np.repeat(["jp2k", "jpeg", "wn", "gblur", "fastfading"], 3))


def swap(path, old, new):
    text = path.read_bytes().replace(old.encode(), new.encode(), 1)
    path.write_bytes(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: swap(r / "wn/info.txt", "img1.bmp 0.5", "img1.bmp"), r"wn/info\.txt, line 2: .*expected 'reference"),
        (
            lambda r: swap(r / "wn/info.txt", "img1.bmp", "im1.bmp"),
            r"wn/info\.txt, line 2: image 'im1.bmp': expected",
        ),
        (lambda r: swap(r / "wn/info.txt", "img1", "img2"), r"wn/info\.txt, line 3: image 'img2.bmp': expected"),
        (lambda r: swap(r / "wn/info.txt", "img3", "img7"), r"wn/info\.txt, line 1: .*wn/img7\.bmp does not exist"),
        (
            lambda r: swap(r / "wn/info.txt", "caps", "cups"),
            r"wn/info\.txt, line 3: .*refimgs/cups\.bmp does not exist",
        ),
        (
            lambda r: swap(r / "wn/info.txt", "caps", "bikes"),
            r"line 3: img2\.bmp of 'bikes\.bmp', but .* caps\.bmp at 8",
        ),
        (lambda r: (r / "wn/info.txt").write_text(""), r"wn/info\.txt: no lines: expected 'reference image"),
        (
            lambda r: scipy.io.savemat(r / "dmos.mat", {"dmos": np.zeros(9)}),
            r"dmos\.mat: dmos has 9 values: expected 15",
        ),
        (
            lambda r: scipy.io.savemat(r / "dmos.mat", {"dmos": np.zeros(15)}),
            r"dmos\.mat: .*no variable orgs, only dmos",
        ),
        (lambda r: (r / "dmos.mat").write_bytes(b"no"), r"dmos\.mat: expected a MATLAB file with dmos: no header"),
        (
            lambda r: scipy.io.savemat(r / "dmos.mat", {"dmos": np.ones(15), "orgs": np.tile([0, 1, 0], 5)}),
            r"dmos\.mat: dmos is 1\.0 at 2: expected 0 for a copy",
        ),
        (
            lambda r: scipy.io.savemat(r / "dmos.mat", {"dmos": np.full(15, np.nan), "orgs": np.zeros(15)}),
            r"dmos\.mat: dmos is nan at 1: expected a finite number",
        ),
    ],
)
def test_malformed_live_raises(live, change, message):
    change(live)
    with pytest.raises(ValueError, match=message):
        opinions.read(live)


def test_image_missing_in_live_raises(live):
    (live / "wn" / "info.txt").write_text("bikes.bmp img1.bmp 1\nbikes.bmp img3.bmp 1\n")
    with pytest.raises(ValueError, match=r"wn/info\.txt: no line for img2\.bmp: expected img1 to img2"):
        opinions.read(live)


@pytest.fixture
def tid2013(tmp_path):
    """As in the data set, names differ in case between the list and the files."""
    for name in ("I01_01_1.bmp", "i01_01_2.bmp", "I02_24_5.BMP"):
        write_image(tmp_path / "distorted_images" / name)
    for name in ("I01.BMP", "i02.bmp"):
        write_image(tmp_path / "reference_images" / name)
    (tmp_path / "mos_with_names.txt").write_text("5.51429 I01_01_1.bmp\n5.56757 I01_01_2.bmp\n0.5 i02_24_5.bmp\n")
    return tmp_path


def test_tid2013(tid2013):
    found = opinions.read(tid2013)
    assert [p.name for p in found.paths] == ["I01_01_1.bmp", "i01_01_2.bmp", "I02_24_5.BMP"]
    np.testing.assert_array_equal(found.opinion, [5.51429, 5.56757, 0.5])
    assert found.reference.tolist() == ["i01", "i01", "i02"] and found.kind.tolist() == ["01", "01", "24"]


def test_latin_1_names_are_not_cut(live):
    """0x85 and 0xa0 are letters or signs of a name, not the end of a line or a field."""
    for folder in opinions.LIVE_FOLDERS:
        file = live / folder / "info.txt"
        file.write_bytes(file.read_bytes().replace(b"bikes", b"b\x85k\xa0s"))
    (live / "refimgs" / "bikes.bmp").rename(live / "refimgs" / "b\x85k\xa0s.bmp")
    names = np.array(5 * ["b\x85k\xa0s.bmp", "caps.bmp", "b\x85k\xa0s.bmp"], object)[None]
    scipy.io.savemat(live / "refnames_all.mat", {"refnames_all": names})
    assert opinions.read(live).reference[:2].tolist() == ["b\x85k\xa0s.bmp", "caps.bmp"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("5.51429 ", "", r"names\.txt, line 1: 'I01_01_1\.bmp': expected 'value name'"),
        ("5.56757", "high", r"names\.txt, line 2: value 'high': expected a finite number"),
        ("5.56757", "9.5", r"names\.txt, line 2: value 9\.5: expected 0 to 9"),
        ("I01_01_2", "I01_1_2", r"names\.txt, line 2: 'I01_1_2\.bmp': expected an image iRR_KK_L\.bmp"),
        ("I01_01_2", "i01_01_1", r"names\.txt, line 2: 'i01_01_1\.bmp': expected an image .* each once"),
        ("i02_24_5", "i02_23_5", r"names\.txt, line 3: .*distorted_images/i02_23_5\.bmp does not exist"),
    ],
)
def test_malformed_tid2013_raises(tid2013, old, new, message):
    swap(tid2013 / "mos_with_names.txt", old, new)
    with pytest.raises(ValueError, match=message):
        opinions.read(tid2013)


def test_missing_tid2013_reference_raises(tid2013):
    (tid2013 / "reference_images" / "i02.bmp").unlink()
    with pytest.raises(ValueError, match=r"line 3: .*reference_images/i02\.bmp does not exist"):
        opinions.read(tid2013)


def test_csv(tmp_path):
    for name in ("a.png", "more/b.png", "c.png"):
        write_image(tmp_path / name)
    file = tmp_path / "scores.csv"
    file.write_bytes(b"\xef\xbb\xbfname,opinion,reference\na.png,3,x\nmore/b.png,-1.5,x\nc.png,2,\n")
    found = opinions.read(file)
    assert found.paths[1] == tmp_path / "more" / "b.png" and found.reference.tolist() == ["x", "x", "c.png"]
    np.testing.assert_array_equal(found.opinion, [3, -1.5, 2])
    file.write_text("opinion,name\n1,a.png\n2,c.png\n")
    assert opinions.read(file).reference.tolist() == ["a.png", "c.png"]
    for text, message in (
        ("name,opinion\na.png,1\na.png,2\n", r"scores\.csv, line 3: 'a\.png' occurs twice"),
        ("name,opinion\nz.png,1\n", r"scores\.csv, line 2: .*z\.png does not exist"),
        ("name,opinion\na.png,inf\n", r"scores\.csv, line 2: opinion 'inf': expected a finite number"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            opinions.read(file)
    with pytest.raises(ValueError, match="expected LIVE's folder with dmos"):
        opinions.read(tmp_path)


def test_tables(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text('name,fit\nb,0.5\n"a",-1e-3\nz,7\n')
    np.testing.assert_array_equal(tables.numbers(file, "fit", ["a", "b"], ["a", "b", "z"]), [-1e-3, 0.5])
    for names, known, text, message in (
        (["a", "b"], (), None, r"scores\.csv, line 4: unknown image 'z': expected one such as 'a'"),
        (["a", "b", "c", "d"], ["z"], None, r"scores\.csv: no line for 'c', one of 2 missing: expected all 4 images"),
        (["a"], (), "name,fit\na,1\na,1\n", r"scores\.csv, line 3: 'a' occurs twice"),
        (["a"], (), "name,fit\na,nan\n", r"scores\.csv, line 2: fit 'nan': expected a finite number"),
        (["a"], (), "name,fit\na,\n", r"scores\.csv, line 2: fit '': expected a finite number"),
        (["a"], (), "name,fit\n\na\n", r"scores\.csv, line 3: expected 2 fields"),
        (["a"], (), "name,fit\na,1,2\n", r"scores\.csv, line 2: expected 2 fields"),
        (["a"], (), "name,score\na,1\n", r"scores\.csv: no column fit: expected name, fit"),
        (["a"], (), "name,fit\n", r"scores\.csv: no lines after the header"),
    ):
        if text is not None:
            file.write_text(text)
        with pytest.raises(ValueError, match=message):
            tables.numbers(file, "fit", names, known)
