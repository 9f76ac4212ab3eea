"""The command `facejax`: photographs in, faces with everything out.

    facejax PHOTO ... --weights DIR --out OUT      lines, pictures, crops and a page of the faces in photographs
    facejax compare A B --weights DIR              same person or not
    facejax group FOLDER --weights DIR --out OUT   groups of the same person
    facejax index FOLDER --weights DIR --index DIR an index of people
    facejax search INDEX PHOTO --weights DIR       the nearest people in it
    facejax weights [DIR]                          what can be read, from where, and what is installed

--demo in place of --weights takes small networks of this project. Without --out, the lines go to standard output.
Exit codes: 0 all is well, 1 some files could not be read (they are named), 2 a command that cannot be run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

COMMANDS = {
    "analyse": "facejax.analysis.main",
    "compare": "facejax.analysis.compare",
    "group": "facejax.analysis.groups",
    "index": "facejax.analysis.index",
    "search": "facejax.analysis.index",
    "weights": "facejax.analysis.weights",
}
"""Command -> the module with its `add_parser(subparsers)` and `run(arguments)`; `analyse` needs no name."""


def common(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of all commands that look at photographs."""
    parser.add_argument("--weights", action="append", default=[], metavar="PATH",
                        help="file or folder of published weights, found by content; may be repeated")  # fmt: skip
    parser.add_argument("--demo", action="store_true", help="small networks that come along, for a first look: they "
                        "take the places that no weights fill (docs/analysis_demo.md)")  # fmt: skip
    parser.add_argument("--size", type=int, help="side of the detector's input, pixels; default: the detector's")
    parser.add_argument("--tiled", type=int, default=0, metavar="SIDE",
                        help="look in tiles at photographs with a longer side than this, pixels; 0: never")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    parser.add_argument("--max_pixels", type=int, default=100_000_000, help="refuse photographs of more pixels")
    parser.add_argument("--verbose", action="store_true", help="tell what is used, and how often it was compiled")


def analyzer(arguments: argparse.Namespace) -> Any:
    """The `FaceAnalyzer` of the flags of `common`. Raises ValueError where no weights are given, or none fit."""
    from facejax.analysis.analyzer import FaceAnalyzer

    if not arguments.weights and not arguments.demo:
        raise ValueError("no weights given: expected --weights PATH (see facejax weights), or --demo")
    options = {"size": arguments.size, "tiled": arguments.tiled, "max_pixels": arguments.max_pixels}
    made = FaceAnalyzer.from_weights(arguments.weights, demo=arguments.demo, dtype=arguments.dtype, **options)
    if arguments.verbose:
        for stage, used in made.identity.items():
            print(f"{stage}: {used['name']} ({used['sha256'][:12]})", file=sys.stderr)
    return made


def add_parser(subparsers: Any) -> None:
    """The command `analyse`."""
    parser = subparsers.add_parser("analyse", help="faces in photographs (the default command)")
    parser.add_argument("photographs", nargs="+", help="image files, and folders that are searched for them")
    parser.add_argument("--out", help="folder of the results; an interrupted run goes on")
    common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command `analyse` and returns the exit code."""
    from facejax.analysis import folder, page, photographs

    if arguments.out:
        photographs.files(arguments.photographs)  # a wrong name fails before networks are read
        failed = folder.analyse(arguments.photographs, analyzer(arguments), arguments.out,
                                progress=sys.stderr.isatty(), max_pixels=arguments.max_pixels)  # fmt: skip
        page.write(arguments.out)
        print(f"{arguments.out}: {_summary(folder.read_records(arguments.out))}", file=sys.stderr)
        return int(failed > 0)
    files, made, failed = photographs.files(arguments.photographs), analyzer(arguments), 0
    for file in files:
        try:
            faces = made(photographs.read(file, arguments.max_pixels)[0])
        except (ValueError, OSError) as error:
            failed += 1
            print(_sentence(error), file=sys.stderr)
        else:
            print(json.dumps({"file": str(file), **folder.described(faces)}), flush=True)
    return int(failed > 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the command and returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser("facejax", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    if argv and argv[0] not in (*COMMANDS, "-h", "--help"):
        argv = ["analyse", *argv]
    chosen = COMMANDS.values() if not argv or argv[0] not in COMMANDS else [COMMANDS[argv[0]]]
    for module in dict.fromkeys(chosen):
        importlib.import_module(module).add_parser(subparsers)
    arguments = parser.parse_args(argv)
    compiled = _counting() if getattr(arguments, "verbose", False) else None
    try:
        code = importlib.import_module(COMMANDS[arguments.command]).run(arguments)
    except BrokenPipeError:  # the reader of the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        print(f"facejax: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("facejax: stopped; the same command goes on", file=sys.stderr)
        return 130
    if compiled is not None:
        print(f"{len(compiled)} programs compiled or read from the cache in {sum(compiled):.1f} s", file=sys.stderr)
    return int(code or 0)


def _counting() -> list[float]:
    """A list to which every later compilation appends its seconds."""
    import jax

    seconds: list[float] = []

    def note(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    return seconds


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _summary(records: Sequence[dict[str, Any]]) -> str:
    faces = sum(len(record.get("faces", ())) for record in records)
    failed = sum("error" in record for record in records)
    return f"{faces} faces in {len(records) - failed} photographs" + f", {failed} files unreadable" * bool(failed)


def _prepare() -> None:
    """Compiled programs are kept in the user's cache folder, and memory is taken in huge pages, as in experiments.

    OpenCV's own lines about damaged files are left out, as the command has a sentence for each. Environment variables
    that are set take precedence.
    """
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "facejax" / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def program() -> None:
    """The entry point."""
    _prepare()
    sys.exit(main())


if __name__ == "__main__":
    program()
