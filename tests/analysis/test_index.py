import argparse
import os
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("faiss")

from facejax.analysis import index as indexes
from facejax.analysis import main
from facejax.analysis.index import Index
from tests.analysis.runs import FakeAnalyzer, faces_of, people


@pytest.fixture
def album(tmp_path):
    """Six files with one to three faces each, and an analyzer that knows them."""
    rows, _ = people(6, 3)
    names = [f"{i}.jpg" for i in range(6)]
    (tmp_path / "album").mkdir()
    for name in names:
        (tmp_path / "album" / name).write_text(name)
    faces = {name: faces_of(rows[3 * i : 3 * i + 1 + i % 3]) for i, name in enumerate(names)}
    return tmp_path / "album", FakeAnalyzer(faces)


def files(folder):
    return sorted(folder.iterdir())


def test_search_is_that_of_all_products(album, tmp_path):
    folder, analyzer = album
    with Index.create(tmp_path / "index", analyzer.identity) as index:
        assert index.search(np.eye(16)[:2]) == [[], []]
        assert indexes.extend(index, files(folder), analyzer) == {}
        index.update()
        rows = np.concatenate([analyzer.faces[f"{i}.jpg"].embeddings for i in range(6)])
        names = [str(folder / f"{i}.jpg") for i in range(6) for _ in range(1 + i % 3)]
        queries = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
        for query, matches in zip(queries, index.search(queries, 4), strict=True):
            best = np.argsort(-rows @ query)[:4]
            assert [(m.id, m.file) for m in matches] == [(i + 1, names[i]) for i in best]
            np.testing.assert_allclose([m.similarity for m in matches], rows[best] @ query, rtol=1e-5)
        assert matches[0].box[2] in (10, 20, 30) and len(index.search(queries[:1], 99)[0]) == len(index) == 12
        with pytest.raises(ValueError, match=r"expected \[Q, 16\]"):
            index.search(queries[:, :8])


def test_only_what_is_new_or_changed_is_looked_at(album, tmp_path):
    folder, analyzer = album
    with Index.create(tmp_path / "index", analyzer.identity) as index:
        indexes.extend(index, files(folder)[:4], analyzer)
        (folder / "x.jpg").write_text("junk")
        indexes.extend(index, files(folder), analyzer)
        assert analyzer.seen == [f"{i}.jpg" for i in range(6)] + ["x.jpg"]
        index.update()
    analyzer.seen.clear()
    (folder / "1.jpg").write_text("another picture")
    analyzer.faces["1.jpg"] = faces_of(-np.eye(16)[:1])
    with Index.create(tmp_path / "index", analyzer.identity) as index:
        faults = indexes.extend(index, files(folder), analyzer)
        assert analyzer.seen == ["1.jpg"] and list(faults) == [str(folder / "x.jpg")]
        match = index.search(-np.eye(16)[:1], 1)[0][0]
        assert (match.id, match.file) == (13, str(folder / "1.jpg"))  # ids 2 and 3 are not used again
        assert {m.id for m in index.search(np.eye(16)[:1], 99)[0]} == {1, *range(4, 14)}


KILLED = """
import os, pathlib, shutil, sys
import faiss
import numpy as np
from facejax.analysis import index as indexes
from tests.analysis.runs import FakeAnalyzer, faces_of, people

root = pathlib.Path(sys.argv[1])
rows, _ = people(5, 2)
names = [f"{i}.jpg" for i in range(5)]
faces = {name: faces_of(rows[2 * i : 2 * i + 2]) for i, name in enumerate(names)}
for name in names:
    (root / name).write_text(name)

def build(countdown):
    # Every statement of SQLite and every step of writing faiss's file is a place to die.
    def step(*_):
        nonlocal countdown
        countdown -= 1
        if countdown < 0:
            os._exit(9)

    connect, write, replace = indexes.sqlite3.connect, faiss.write_index, pathlib.Path.replace
    def traced(*args, **options):
        database = connect(*args, **options)
        database.set_trace_callback(step)
        return database
    def halved(vectors, path):
        step()
        write(vectors, path)
        data = pathlib.Path(path).read_bytes()
        pathlib.Path(path).write_bytes(data[: len(data) // 2])
        step()
        pathlib.Path(path).write_bytes(data)
    def replaced(self, target):
        step()
        result = replace(self, target)
        step()
        return result
    indexes.sqlite3.connect, faiss.write_index, pathlib.Path.replace = traced, halved, replaced
    with indexes.Index.create(root / "index", FakeAnalyzer({}).identity) as index:
        indexes.extend(index, [root / name for name in names], FakeAnalyzer(faces))
        index.update()
        for _, count, error in index.photographs():
            assert count == 2 and error is None
        held = [m for row in index.search(rows, 1) for m in row]
        assert [m.file for m in held] == [str(root / name) for name in names for _ in range(2)]
        assert all(m.similarity > 0.999 for m in held) and [m.id for m in held] == list(range(1, 11))

def child(countdown):
    pid = os.fork()
    if not pid:
        try:
            build(countdown)
            os._exit(0)
        except BaseException as error:
            print(repr(error))
            sys.stdout.flush()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

codes, countdown = [], 0
while not codes or codes[-1] == 9:  # killed at the first step, at the second, ...: each time from the beginning
    shutil.rmtree(root / "index", ignore_errors=True)
    codes.append(child(countdown))
    if codes[-1] == 9:
        again = child(1 << 30)
        assert again == 0, (countdown, again)
    countdown += 1
resumed, countdown = [], 3
shutil.rmtree(root / "index")
while not resumed or resumed[-1] == 9:  # killed again and again on its way, a little later each time
    resumed.append(child(countdown))
    countdown += 2
assert codes[-1] == resumed[-1] == 0, (codes, resumed)
print(len(codes), len(resumed))
"""


def test_killed_at_every_step_it_goes_on(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps, resumed = map(int, done.stdout.split()[-2:])
    assert steps > 40 and resumed > 3


def made(folder, analyzer, target):
    with Index.create(target, analyzer.identity) as index:
        indexes.extend(index, files(folder), analyzer)
        index.update()


@pytest.mark.parametrize("harm", ["gone", "cut", "junk", "older", "of another index"])
def test_the_copy_of_the_vectors_is_made_anew(album, tmp_path, harm):
    folder, analyzer = album
    made(folder, analyzer, tmp_path / "index")
    path = tmp_path / "index" / indexes.VECTORS
    whole = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "of another index":
        turned = {name: faces_of(-f.embeddings) for name, f in analyzer.faces.items()}
        made(folder, FakeAnalyzer(turned), tmp_path / "other")
        shutil.copy(tmp_path / "other" / indexes.VECTORS, path)
    elif harm == "older":
        with Index.open(tmp_path / "index") as index:
            (folder / "6.jpg").write_text("new")
            index.add(folder / "6.jpg", faces_of(-np.eye(16)[:1]))
    else:
        path.write_bytes(whole[:-100] if harm == "cut" else b"junk" * 99)
    with Index.open(tmp_path / "index") as index:
        query = analyzer.faces["5.jpg"].embeddings
        assert [m[0].file for m in index.search(query, 1)] == [str(folder / "5.jpg")] * 3
        if harm == "older":
            assert index.search(-np.eye(16)[:1], 1)[0][0].file == str(folder / "6.jpg")
        else:
            assert path.read_bytes() == whole


def test_indices_that_are_refused(album, tmp_path):
    folder, analyzer = album
    made(folder, analyzer, tmp_path / "index")
    other = FakeAnalyzer({}, "b" * 64)
    with pytest.raises(ValueError, match=r"an index of net \(sha256 aaaaaaaaaaaa\), not of the weights in use, net"):
        Index.create(tmp_path / "index", other.identity)
    with pytest.raises(ValueError, match="neither an index nor empty"):
        Index.create(folder, analyzer.identity)
    with pytest.raises(FileNotFoundError, match="no index there"):
        Index.open(folder)
    with pytest.raises(ValueError, match="no recogniser among the weights"):
        Index.create(tmp_path / "new", {"detector": {"name": "boxes", "sha256": "d"}})
    for name, content in (("text", b"SQLite it is not" * 99), ("empty", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / indexes.DATABASE).write_bytes(content)
        with pytest.raises(ValueError, match="no index of this program"):
            Index.open(tmp_path / name)
    with sqlite3.connect(tmp_path / "index" / indexes.DATABASE) as database:
        database.execute("UPDATE settings SET value = '2' WHERE name = 'format'")
    with pytest.raises(ValueError, match="an index of format 2, expected 1"):
        Index.open(tmp_path / "index")


def test_a_photograph_is_added_whole_or_not_at_all(album, tmp_path):
    folder, analyzer = album
    made(folder, analyzer, tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        for wrong in (faces_of(np.eye(8)), faces_of(np.full((2, 16), np.nan))):
            with pytest.raises(ValueError, match="expected finite ones of 16 numbers"):
                index.add(folder / "0.jpg", wrong)
        assert len(index) == 12 and index.known(folder / "0.jpg")


def test_commands(album, tmp_path, monkeypatch, capsys):
    folder, analyzer = album
    (folder / "x.jpg").write_text("junk")
    (folder / "none.jpg").write_text("nobody")
    analyzer.faces["none.jpg"] = analyzer.faces["0.jpg"][[]]
    monkeypatch.setattr(main, "analyzer", lambda args: analyzer)
    parser = argparse.ArgumentParser()
    indexes.add_parser(parser.add_subparsers(dest="command"))

    def command(*argv):
        return indexes.run(parser.parse_args([*map(str, argv)]))

    assert command("index", folder, "--index", tmp_path / "index") == 1
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'index'}: 12 faces in 8 photographs\n"
    assert told.err == f"{folder / 'x.jpg'}: an image of 4 bytes does not decode\n"
    assert command("search", tmp_path / "index", folder / "2.jpg", "--top", 2) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1 + 3 * 2 and lines[1][1:4] == ["0", "1", "1.0000"] and lines[1][5] == str(folder / "2.jpg")
    assert command("search", tmp_path / "index", folder / "none.jpg", folder / "x.jpg") == 1
    assert "none.jpg: no face found" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--top is 0"):
        command("search", tmp_path / "index", folder / "2.jpg", "--top", 0)
