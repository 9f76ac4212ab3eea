"""Runs over folders: what is written, interrupted runs, bad files, the command line."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from typing import ClassVar

import cv2
import numpy as np
import pytest
from PIL import Image

from facejax.analysis import draw, folder, main, photographs
from facejax.analysis.faces import Faces
from facejax.data.synthetic.faces import png


class Toy:
    """Finds as many faces as the mean brightness says, without a network."""

    settings: ClassVar = {"size": 64, "tiled": 0}

    def __init__(self, name="toy"):
        self.identity = {"detector": {"name": name, "sha256": "0" * 64}}

    def __call__(self, photo):
        photo = photographs.read(photo)[0] if isinstance(photo, (str, os.PathLike)) else photo
        count, (height, width) = int(photo.mean()) // 32, photo.shape[:2]
        boxes = np.tile(np.float32([0, 0, width, height]), (count, 1)) + np.arange(count, dtype=np.float32)[:, None]
        embeddings = np.random.default_rng(count).normal(size=(count, 4)).astype(np.float32)
        crops = np.full((count, 112, 112, 3), count, np.uint8)
        points = np.zeros((count, 5, 2), np.float32)
        return Faces((width, height), boxes, np.linspace(1, 0.5, count, dtype=np.float32), points, crops, embeddings,
                     pose=np.zeros((count, 3), np.float32), quality=np.full(count, 0.25))  # fmt: skip


@pytest.fixture
def album(tmp_path):
    """Five photographs with 0 to 4 faces, one of them in a folder below."""
    root = tmp_path / "album"
    (root / "more").mkdir(parents=True)
    for i in range(5):
        place = root / ("more" if i == 2 else "") / f"{i}.png"
        place.write_bytes(png(np.full((20 + i, 30, 3), 32 * i + 5, np.uint8)))
    (root / "notes.txt").write_text("no image")
    return root


def test_what_is_written(album, tmp_path):
    out = tmp_path / "out"
    assert folder.analyse([album], Toy(), out, progress=False) == 0
    records = folder.read_records(out)
    assert [r["file"] for r in records] == [f"../album/{n}.png" for n in ("0", "1", "3", "4", "more/2")]
    assert [len(r["faces"]) for r in records] == [0, 1, 3, 4, 2]
    assert [f["id"] for r in records for f in r["faces"]] == list(range(10))
    assert (records[1]["width"], records[1]["height"]) == (30, 21)
    face = records[1]["faces"][0]
    assert face["box"] == [0, 0, 30, 21] and face["quality"] == 0.25 and face["pose"] == [0, 0, 0]
    assert "age" not in face and "landmarks" not in face
    embeddings = folder.read_embeddings(out)
    assert embeddings.shape == (10, 4)
    np.testing.assert_array_equal(embeddings[4:8], np.random.default_rng(4).normal(size=(4, 4)).astype(np.float32))
    assert (cv2.imread(str(out / face["crop"])) == 1).all()
    assert cv2.imread(str(out / records[1]["picture"])).shape == (21, 30, 3)
    run = json.loads((out / "run.json").read_text())
    assert run["dimension"] == 4 and run["weights"] == Toy().identity and run["settings"] == Toy.settings


def test_pictures_of_one_name_are_kept_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "album" / name).mkdir(parents=True)
        (tmp_path / "album" / name / "x.png").write_bytes(png(np.zeros((5, 5, 3), np.uint8)))
    folder.analyse([tmp_path / "album"], Toy(), tmp_path / "out", progress=False)
    records = folder.read_records(tmp_path / "out")
    assert len({r["picture"] for r in records}) == len(list((tmp_path / "out" / "pictures").iterdir())) == 2


def test_numbers_that_json_lacks_are_left_out():
    faces = Faces((9, 9), np.zeros((2, 4)), np.zeros(2), age=np.array([np.inf, 30.0]))
    first, second = folder.described(faces)["faces"]
    assert "age" not in first and second["age"] == 30


def state(out):
    names = ("run.json", "faces.jsonl", "embeddings.f32")
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} | {
        name: (out / name).read_bytes() for name in names
    }


def test_a_second_run_adds_new_files_only(album, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    folder.analyse([album / "0.png", album / "1.png"], Toy(), out, progress=False)
    first = (out / "faces.jsonl").read_bytes()
    written = (out / "crops" / "00000000.png").stat().st_mtime_ns
    folder.analyse([album], Toy(), out, progress=False)
    folder.analyse([album], Toy(), whole, progress=False)
    assert (out / "faces.jsonl").read_bytes().startswith(first) and state(out) == state(whole)
    assert (out / "crops" / "00000000.png").stat().st_mtime_ns == written


@pytest.mark.parametrize("cut", [1, 30, 400])
def test_a_line_that_is_cut(album, tmp_path, cut):
    """Whatever the end of the files, the run goes on to the same result."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    for place in (out, whole):
        folder.analyse([album], Toy(), place, progress=False)
    content = (out / "faces.jsonl").read_bytes()
    (out / "faces.jsonl").write_bytes(content[:-cut])
    with (out / "embeddings.f32").open("ab") as rows:
        rows.write(b"half")
    folder.analyse([album], Toy(), out, progress=False)
    assert state(out) == state(whole)


def test_embeddings_that_are_cut(album, tmp_path):
    """A photograph counts when its rows are there as well."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    for place in (out, whole):
        folder.analyse([album], Toy(), place, progress=False)
    os.truncate(out / "embeddings.f32", 4 * 4 * 5)
    folder.analyse([album], Toy(), out, progress=False)
    assert state(out) == state(whole)


SLOW = """
    import sys, time
    sys.path.insert(0, sys.argv[3])
    from test_folder import Toy
    from facejax.analysis import folder

    class Slow(Toy):
        def __call__(self, photo):
            time.sleep(0.05)
            return super().__call__(photo)

    folder.analyse([sys.argv[1]], Slow(), sys.argv[2], progress=False)
"""


def test_killed_and_started_again(tmp_path):
    album, out, whole = (tmp_path / name for name in ("album", "out", "whole"))
    album.mkdir()
    for i in range(60):
        (album / f"{i:02}.png").write_bytes(png(np.full((40, 40, 3), 40 + 2 * i, np.uint8)))
    command = [sys.executable, "-c", textwrap.dedent(SLOW), album, out, pathlib.Path(__file__).parent]
    process = subprocess.Popen(command)
    lines = out / "faces.jsonl"
    deadline = time.monotonic() + 120
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(ValueError, match="another program writes to it"):
        folder.Folder.open(out, Toy().identity, Toy.settings)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 5 <= lines.read_bytes().count(b"\n") < 60
    folder.analyse([album], Toy(), out, progress=False)
    folder.analyse([album], Toy(), whole, progress=False)
    assert state(out) == state(whole)


def test_other_runs_and_other_files_are_refused(album, tmp_path):
    out = tmp_path / "out"
    folder.analyse([album], Toy(), out, progress=False)
    before = state(out)
    with pytest.raises(ValueError, match=r"a run with other weights, detector .*toy.* and not .*other"):
        folder.analyse([album], Toy("other"), out, progress=False)
    with pytest.raises(ValueError, match="a run with other settings, size 64 and not 32"):
        folder.Folder.open(out, Toy().identity, {"size": 32, "tiled": 0})
    assert state(out) == before
    with pytest.raises(ValueError, match="holds files of others"):
        folder.analyse([album], Toy(), album, progress=False)
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        folder.analyse([album], Toy(), album / "0.png", progress=False)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a run of facejax"):
        folder.analyse([album], Toy(), tmp_path / "odd", progress=False)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def odd(tmp_path, turned_jpeg):
    """Unusual photographs, and files that are none."""
    root = tmp_path / "odd"
    root.mkdir()
    gradient = np.tile(np.linspace(0, 200, 40).astype(np.uint8)[None, :, None], (30, 1, 3))
    frames = [Image.fromarray(np.full((9, 9, 3), v, np.uint8)) for v in (70, 200)]
    jpeg = encoded(Image.fromarray(gradient), "JPEG")
    contents = {
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "cmyk.jpg": encoded(Image.fromarray(gradient).convert("CMYK"), "JPEG"),
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "deep.png": cv2.imencode(".png", np.full((9, 9, 3), 40_000, np.uint16))[1].tobytes(),
        "empty.png": b"",
        "huge.png": encoded(Image.new("1", (12_000, 10_000)), "PNG"),
        "pixel.png": png(np.full((1, 1, 3), 80, np.uint8)),
        "text.jpg": b"not an image",
        "turned.jpg": turned_jpeg(gradient, 6),
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return root


def test_odd_files_do_not_stop_a_run(odd, tmp_path, capsys):
    """One sentence for each file that is left out; the others are analysed; a file that was mended is taken up."""
    out = tmp_path / "out"
    assert folder.analyse([odd], Toy(), out, progress=False) == 4
    said = capsys.readouterr().err.splitlines()
    records = {pathlib.Path(r["file"]).name: r for r in folder.read_records(out)}
    wrong = {
        "cut.jpg": "a JPEG cut short", "empty.png": "does not decode", "text.jpg": "expected a JPEG",
        "huge.png": r"12000 x 10000 pixels, expected at most 100000000",
    }  # fmt: skip
    for name, words in wrong.items():
        assert words in records[name]["error"] and sum(name in line and words in line for line in said) == 1
    assert len(said) == len(wrong) + 1
    assert (records["turned.jpg"]["width"], records["turned.jpg"]["height"]) == (30, 40)
    assert [len(records[n]["faces"]) for n in ("cmyk.jpg", "deep.png", "pixel.png", "animated.gif")] == [3, 4, 2, 2]
    assert records["animated.gif"]["note"] == "it has 2 pictures, of which the first was analysed"
    (odd / "cut.jpg").write_bytes((odd / "pixel.png").read_bytes())
    assert folder.analyse([odd], Toy(), out, progress=False) == 3
    records = {pathlib.Path(r["file"]).name: r for r in folder.read_records(out)}
    assert len(records["cut.jpg"]["faces"]) == 2 and len(records) == 9
    assert folder.read_embeddings(out).shape == (sum(len(r.get("faces", ())) for r in records.values()), 4)
    assert (out / "faces.jsonl").read_text().count("error") == 4


def test_libraries_add_no_lines_about_damaged_files(tmp_path):
    """OpenCV and Pillow write lines of their own, past `sys.stderr`."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3)).astype(np.uint8))
    for kind in ("TIFF", "WEBP", "GIF"):
        content = encoded(image, kind)
        (tmp_path / f"cut.{kind}").write_bytes(content[: len(content) // 2])
    program = """
import sys
from facejax.analysis import main
main._prepare()
from facejax.analysis import folder
from tests.analysis.test_folder import Toy
sys.exit(folder.analyse([sys.argv[1]], Toy(), sys.argv[2], progress=False))
"""
    command = [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(tmp_path / f"cut.{k}") for k in ("GIF", "TIFF", "WEBP")]


def test_files_among_paths(album, tmp_path):
    assert [p.name for p in photographs.files([album / "notes.txt", album])] == [
        "notes.txt", "0.png", "1.png", "3.png", "4.png", "2.png"
    ]  # fmt: skip
    assert len(photographs.files([album, album / "0.png"])) == 5
    assert len(photographs.files([album], leave_out=album / "more")) == 4
    with pytest.raises(ValueError, match="no file or folder"):
        photographs.files([tmp_path / "nothing"])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no image files, expected at least one of jpg"):
        photographs.files([tmp_path / "none"])


def test_pictures():
    """Drawn over a copy; larger photographs are reduced."""
    photo = np.zeros((300, 400, 3), np.uint8)
    faces = Faces((400, 300), np.float32([[100, 50, 200, 180]]), np.float32([0.9]), np.float32([[[120, 90]] * 5]),
                  landmarks=np.float32([[[150, 150]] * 68]), pose=np.float32([[30, 0, 0]]),
                  age=np.float32([33]))  # fmt: skip
    drawn = draw.annotated(photo, faces, side=200)
    assert drawn.shape == (150, 200, 3) and not photo.any()
    assert tuple(drawn[60, 50]) == draw.GREEN and tuple(drawn[45, 60]) == draw.RED
    assert draw.caption(faces, 0) == "0.90, 33 y"
    blue = np.argwhere((drawn == draw.BLUE).all(-1))
    assert blue[:, 1].min() < 70 and blue[:, 1].max() < 80  # the face looks to the photograph's left


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setattr(main, "analyzer", lambda arguments: Toy())


def test_the_command(toys, album, odd, tmp_path, capsys):
    """Lines without --out, a folder with it; the exit code tells whether all files were read."""
    assert main.main([str(album / "1.png"), str(album / "3.png")]) == 0
    one, three = map(json.loads, capsys.readouterr().out.splitlines())
    assert one["file"] == str(album / "1.png") and len(three["faces"]) == 3
    assert main.main([str(odd / "text.jpg"), str(album / "1.png")]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "text.jpg" in said.err and len(said.out.splitlines()) == 1
    assert main.main([str(album), "--out", str(tmp_path / "out")]) == 0
    assert "10 faces in 5 photographs" in capsys.readouterr().err
    assert main.main(["analyse", str(odd), "--out", str(tmp_path / "other")]) == 1
    assert "4 files unreadable" in capsys.readouterr().err
    assert main.main([str(album), "--out", str(album)]) == 2
    assert capsys.readouterr().err.startswith(f"facejax: {album} holds files of others")
    assert main.main([str(tmp_path / "missing.jpg")]) == 2
    with pytest.raises(SystemExit) as usage:
        main.main(["analyse"])
    assert usage.value.code == 2


def test_no_weights(album, capsys):
    assert main.main([str(album)]) == 2
    assert "expected --weights PATH (see facejax weights), or --demo" in capsys.readouterr().err
    assert main.main([str(album), "--weights", str(album)]) == 2
    assert "no detector of faces among the weights" in capsys.readouterr().err


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "facejax.analysis", "weights"], capture_output=True, text=True)
    assert done.returncode == 0 and "SCRFD-500MF with points" in done.stdout and not done.stderr
