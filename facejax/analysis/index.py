"""`facejax index` and `facejax search`: the faces of many photographs, and those most like a given one.

An index is a folder of two files. SQLite's `index.sqlite` is the truth: the weights, the photographs, and each face
with its embedding, one transaction a photograph. `vectors.faiss`, faiss's exact flat index with the same ids, is a copy
that is brought up to date, or made anew, whenever it lacks or exceeds what SQLite holds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from facejax.analysis.faces import Faces

DATABASE, VECTORS = "index.sqlite", "vectors.faiss"
FORMAT = 1
SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE photographs (
  id INTEGER PRIMARY KEY AUTOINCREMENT, file TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL, modified INTEGER NOT NULL,
  error TEXT);
CREATE TABLE faces (
  id INTEGER PRIMARY KEY AUTOINCREMENT, photograph INTEGER NOT NULL REFERENCES photographs (id),
  x0 REAL NOT NULL, y0 REAL NOT NULL, x1 REAL NOT NULL, y1 REAL NOT NULL, score REAL NOT NULL, embedding BLOB NOT NULL);
CREATE INDEX faces_of_photograph ON faces (photograph);
"""
ROWS = 16384
"""Embeddings that are read from SQLite at a time."""
PROBES = 16
"""Embeddings of the copy that are compared with SQLite's."""


class Match(NamedTuple):
    """A face of the index.

    Attributes:
      id: of the face, never used again.
      file: absolute path of the photograph when it was indexed.
      box: x0, y0, x1, y1 in pixels.
      similarity: cosine to the query.
    """

    id: int
    file: str
    box: tuple[float, float, float, float]
    similarity: float


class Index:
    """An open index; a context manager. Made by `Index.create` or `Index.open`.

    Attributes:
      folder: where it lies.
      identity: the weights that made its embeddings, by stage: {"name", "sha256"}.
      width: D, length of the embeddings; 0 while there is no face.
    """

    def __init__(self, folder: pathlib.Path, database: sqlite3.Connection):
        self.folder, self._database = folder, database
        settings = dict(database.execute("SELECT name, value FROM settings"))
        if settings.get("format") != str(FORMAT):
            raise ValueError(f"{folder}: an index of format {settings.get('format')}, expected {FORMAT}")
        self.identity = json.loads(settings["identity"])
        self._vectors: Any = None

    @classmethod
    def create(cls, folder: str | os.PathLike[str], identity: Mapping[str, Mapping[str, str]]) -> Index:
        """A new index in a folder that does not exist or is empty, or the index that is there.

        Raises:
          ValueError: the folder holds something else, or an index of other weights.
        """
        folder = pathlib.Path(folder)
        path, temporary = folder / DATABASE, folder / f"{DATABASE}.new"
        if not path.exists():
            left = (temporary, temporary.with_name(f"{temporary.name}-journal"))  # by a killed command
            if folder.is_dir() and not set(folder.iterdir()) <= set(left):
                raise ValueError(f"{folder}: neither an index nor empty, expected one of them for a new index")
            recogniser(identity)
            folder.mkdir(parents=True, exist_ok=True)
            for file in left:
                file.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(temporary)) as database:
                database.executescript(SCHEMA)
                values = {"format": str(FORMAT), "identity": json.dumps(identity)}
                with database:
                    database.executemany("INSERT INTO settings VALUES (?, ?)", values.items())
            temporary.replace(path)
        return cls.open(folder, identity)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], identity: Mapping[str, Mapping[str, str]] | None = None) -> Index:
        """An index; its recogniser must be that of `identity`, unless that is None.

        Raises:
          FileNotFoundError: there is no index.
          ValueError: the file is no index, or of other weights.
        """
        folder = pathlib.Path(folder)
        path = folder / DATABASE
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: no index there, expected a folder that `facejax index` wrote")
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=30)
        try:
            made = cls(folder, database)
            if identity is not None:
                made._check(identity)
        except (sqlite3.DatabaseError, KeyError) as error:
            database.close()
            raise ValueError(f"{path}: no index of this program ({error})") from None
        except ValueError:
            database.close()
            raise
        return made

    def _check(self, identity: Mapping[str, Mapping[str, str]]) -> None:
        mine, given = recogniser(self.identity), recogniser(identity)
        if mine["sha256"] != given["sha256"]:
            raise ValueError(
                f"{self.folder}: an index of {mine['name']} (sha256 {mine['sha256'][:12]}), not of the weights in use, "
                f"{given['name']} ({given['sha256'][:12]}); embeddings of two networks cannot be compared"
            )

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    def __len__(self) -> int:
        return self._database.execute("SELECT COUNT(*) FROM faces").fetchone()[0]

    @property
    def width(self) -> int:
        row = self._database.execute("SELECT LENGTH(embedding) FROM faces LIMIT 1").fetchone()
        return row[0] // 4 if row else 0

    def photographs(self) -> Iterator[tuple[str, int, str | None]]:
        """(file, number of faces, error or None) of all photographs, in the order in which they came."""
        yield from self._database.execute(
            "SELECT file, (SELECT COUNT(*) FROM faces WHERE photograph = p.id), error FROM photographs p ORDER BY id"
        )

    def known(self, file: str | os.PathLike[str]) -> bool:
        """Whether a photograph is in the index as it is now, by path, size and time of change."""
        path = os.path.abspath(file)
        row = self._database.execute("SELECT bytes, modified FROM photographs WHERE file = ?", (path,)).fetchone()
        return row is not None and row == _state(path)

    def add(self, file: str | os.PathLike[str], faces: Faces | None, error: str | None = None) -> None:
        """Adds a photograph with its faces, in place of what was known of the path; all or nothing.

        Args:
          file: of the photograph.
          faces: found on it; None of a file that cannot be read.
          error: why it cannot be read.

        Raises:
          ValueError: embeddings of another length, or not finite.
        """
        path, rows = os.path.abspath(file), []
        if faces is not None and len(faces):
            embeddings = np.ascontiguousarray(faces.embeddings, "<f4")
            if embeddings.shape[1] != (self.width or embeddings.shape[1]) or not np.isfinite(embeddings).all():
                raise ValueError(f"{path}: embeddings {embeddings.shape}, expected finite ones of {self.width} numbers")
            rows = [
                (*map(float, (*box, score)), row.tobytes())
                for box, score, row in zip(faces.boxes, faces.scores, embeddings, strict=True)
            ]
        with self._database as database:
            database.execute("BEGIN IMMEDIATE")
            old = database.execute("SELECT id FROM photographs WHERE file = ?", (path,)).fetchone()
            if old:
                database.execute("DELETE FROM faces WHERE photograph = ?", old)
                database.execute("DELETE FROM photographs WHERE id = ?", old)
            number = database.execute(
                "INSERT INTO photographs (file, bytes, modified, error) VALUES (?, ?, ?, ?)",
                (path, *_state(path), error),
            ).lastrowid
            database.executemany(
                "INSERT INTO faces (photograph, x0, y0, x1, y1, score, embedding) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(number, *row) for row in rows],
            )

    def update(self) -> None:
        """Brings faiss's copy up to date with SQLite and writes it, if the folder can be written.

        Ids are never used again, so the copy is right if its ids begin SQLite's list of them, and the rest is added.

        Raises:
          ValueError: faiss is not installed.
        """
        faiss = _faiss()
        path = self.folder / VECTORS
        wanted = np.fromiter((i for (i,) in self._database.execute("SELECT id FROM faces ORDER BY id")), np.int64)
        vectors = None
        if path.is_file():
            with contextlib.suppress(RuntimeError):  # of faiss, for a damaged file
                vectors = faiss.read_index(os.fspath(path))
        if not self._right(vectors, wanted):
            vectors = faiss.IndexIDMap2(faiss.IndexFlatIP(self.width or 1))
        held = vectors.ntotal
        for start in range(held, len(wanted), ROWS):
            ids = wanted[start : start + ROWS]
            vectors.add_with_ids(self._embeddings(int(ids[0]), int(ids[-1])), ids)
        self._vectors = vectors
        if held < len(wanted) or not path.is_file():
            temporary = path.with_suffix(".new")
            try:
                faiss.write_index(vectors, os.fspath(temporary))
                temporary.replace(path)
            except (OSError, RuntimeError) as error:
                print(f"{path} could not be written ({error}): the next search makes it anew", file=sys.stderr)

    def _right(self, vectors: Any, wanted: np.ndarray) -> bool:
        """Whether the copy's ids begin the list [N], and some of its embeddings are SQLite's."""
        faiss = _faiss()
        if not isinstance(vectors, faiss.IndexIDMap2) or vectors.d != (self.width or 1) or vectors.ntotal > len(wanted):
            return False
        ids = faiss.vector_to_array(vectors.id_map)
        if not np.array_equal(ids, wanted[: len(ids)]):
            return False
        flat = faiss.downcast_index(vectors.index)
        probed = np.unique(np.linspace(0, len(ids) - 1, PROBES).astype(int)) if len(ids) else []
        return all(
            np.array_equal(flat.reconstruct(int(i)), self._embeddings(int(ids[i]), int(ids[i]))[0]) for i in probed
        )

    def _embeddings(self, first: int, last: int) -> np.ndarray:
        """Embeddings of the faces with ids from `first` to `last`, in their order."""
        rows = self._database.execute("SELECT embedding FROM faces WHERE id BETWEEN ? AND ? ORDER BY id", (first, last))
        return np.frombuffer(b"".join(row for (row,) in rows), "<f4").reshape(-1, self.width).astype(np.float32)

    def search(self, queries: np.ndarray, top: int = 10) -> list[list[Match]]:
        """The `top` most similar faces of each query, the most similar first.

        Args:
          queries: [Q, D] of length 1.
          top: at least 1.

        Raises:
          ValueError: queries of another length.
        """
        if self._vectors is None:
            self.update()
        queries = np.ascontiguousarray(queries, np.float32)
        if not self._vectors.ntotal:
            return [[] for _ in queries]
        if queries.ndim != 2 or queries.shape[1] != self._vectors.d:
            raise ValueError(f"queries are {queries.shape}: expected [Q, {self._vectors.d}], as the index has")
        similarity, ids = self._vectors.search(queries, min(top, self._vectors.ntotal))
        return [[self._match(int(i), float(s)) for i, s in zip(*row)] for row in zip(ids, similarity)]

    def _match(self, number: int, similarity: float) -> Match:
        file, *box = self._database.execute(
            "SELECT file, x0, y0, x1, y1 FROM faces JOIN photographs p ON p.id = photograph WHERE faces.id = ?",
            (number,),
        ).fetchone()
        return Match(number, file, tuple(box), similarity)


def _state(path: str) -> tuple[int, int]:
    """Size in bytes, time of the last change in ns."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise ValueError("an index needs faiss, which is not installed: pip install 'facejax[search]'") from None
    return faiss


def extend(
    index: Index, files: Sequence[str | os.PathLike[str]], analyzer: Callable[[Any], Faces], *, progress: bool = False
) -> dict[str, str]:
    """Adds the photographs that are new or have changed; killed and called again, it goes on.

    Args:
      index: to be extended.
      files: photographs.
      analyzer: path -> faces with embeddings; OSError and ValueError tell of a file that cannot be read.
      progress: show a bar.

    Returns:
      Of each file that cannot be read, now or when it was last looked at, what is wrong with it.
    """
    from tqdm import tqdm

    faults, unknown = {}, []
    for file in map(os.path.abspath, files):
        try:
            file.encode()
            if not index.known(file):
                unknown.append(file)
        except (UnicodeEncodeError, OSError) as error:
            faults[file] = str(error)
    bar = tqdm(unknown, initial=len(files) - len(unknown), total=len(files), unit="photo", disable=not progress)
    for file in bar:
        try:
            index.add(file, analyzer(file))
        except (OSError, ValueError) as error:
            index.add(file, None, str(error))
    wanted = set(map(os.path.abspath, files))
    return faults | {file: error for file, _, error in index.photographs() if error and file in wanted}


def add_parser(subparsers: Any) -> None:
    """Adds both subcommands."""
    from facejax.analysis import main

    parser = subparsers.add_parser(
        "index",
        help="an index of the faces in folders",
        description="Adds the faces of photographs to an index, which is made where there is none. Photographs that "
        "are in it already are skipped, unless they have changed.",
    )
    parser.add_argument("photographs", nargs="+", help="image files, and folders that are searched for them")
    parser.add_argument("--index", required=True, metavar="DIR", help="folder of the index")
    main.common(parser)
    parser = subparsers.add_parser(
        "search",
        help="the nearest faces in an index",
        description="The faces of an index that are most like each face of a photograph.",
    )
    parser.add_argument("index", metavar="INDEX", help="folder that `facejax index` wrote")
    parser.add_argument("photographs", nargs="+", metavar="PHOTOGRAPH")
    parser.add_argument("--top", type=int, default=10, help="how many faces (default 10)")
    main.common(parser)


def run(args: argparse.Namespace) -> int:
    """Runs "index" or "search": 0, or 1 if a photograph was unreadable.

    Raises:
      ValueError, OSError: wrong usage, no index, or one of other weights.
    """
    from facejax.analysis import main, photographs

    _faiss()
    if args.command == "search" and args.top < 1:
        raise ValueError(f"--top is {args.top}: expected 1 or more")
    files = photographs.files(args.photographs)
    if args.command == "search":
        Index.open(args.index).close()  # a wrong name fails before networks are read
    analyzer = main.analyzer(args)
    if args.command == "search":
        with Index.open(args.index, analyzer.identity) as index:
            return _search(index, files, analyzer, args.top)
    with Index.create(args.index, analyzer.identity) as index:
        faults = extend(index, files, analyzer, progress=sys.stderr.isatty())
        index.update()
        print(f"{args.index}: {len(index):,} faces in {sum(1 for _ in index.photographs()):,} photographs")
    for file, fault in faults.items():
        print(sentence(file, fault), file=sys.stderr)
    return int(bool(faults))


def _search(index: Index, files: Sequence[Any], analyzer: Callable[[Any], Faces], top: int) -> int:
    """Prints the matches of every face, tab-separated; 1 if a photograph is unreadable or has no face."""
    code = 0
    print("photograph\tface\trank\tsimilarity\tid\tfile\tbox")
    for file in files:
        try:
            faces = analyzer(file)
        except (OSError, ValueError) as error:
            print(sentence(file, str(error)), file=sys.stderr)
            code = 1
            continue
        if not len(faces):
            print(f"{file}: no face found", file=sys.stderr)
            code = 1
            continue
        for i, matches in enumerate(index.search(faces.embeddings, top)):
            for rank, match in enumerate(matches, 1):
                box = ",".join(f"{x:.0f}" for x in match.box)
                print(file, i, rank, f"{match.similarity:.4f}", match.id, match.file, box, sep="\t")
    return code


def recogniser(identity: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """{"name", "sha256"} of the weights that make embeddings. Raises ValueError where there are none."""
    if "recogniser" not in identity:
        raise ValueError(f"no recogniser among the weights ({', '.join(identity)}): expected one that makes embeddings")
    return identity["recogniser"]


def sentence(file: str | os.PathLike[str], fault: str) -> str:
    """A fault on one line that names the file once."""
    fault, file = " ".join(fault.split()), os.fspath(file)
    return fault if file in fault else f"{file}: {fault}"
