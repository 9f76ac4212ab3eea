"""Which tests run: those marked `full` only when asked for, by `-m full` or `--full-changed`.

`-m smoke` imports the files with smoke tests alone: importing all takes as long as the tests themselves.
"""

import ast
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    text = "also run a full test if its file, what it imports or what that imports changed in the last 20 commits"
    parser.addoption("--full-changed", action="store_true", help=text)


def pytest_ignore_collect(collection_path, config):
    if config.option.markexpr == "smoke" and collection_path.suffix == ".py":
        return "mark.smoke" not in collection_path.read_text() or None


def pytest_collection_modifyitems(config, items):
    full = [item for item in items if item.get_closest_marker("full")]
    if "full" in config.option.markexpr:
        return
    changed = changed_files() if config.option.full_changed else set()
    runs = {path: changed is None or bool(sources(path) & changed) for path in {item.path for item in full}}
    left = {item for item in full if not runs[item.path]}
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]


def changed_files():
    """Files that differ from the commit 20 before HEAD; None where git or that commit is missing: then all run."""
    try:
        command = ["git", "diff", "--name-only", "HEAD~20"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {ROOT / name for name in found.stdout.splitlines()}


def sources(path):
    """The test file, the modules of this repository that it imports, and those that these import."""
    found = {path}
    for _ in range(2):
        found |= {module for source in found for module in imported(source)}
    return found


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            stem = ROOT.joinpath(*name.split("."))
            yield from (file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file())


def full_but(names, *kept):
    """Parameters of a sweep of which only those in `kept` run by default."""
    return [pytest.param(name, marks=() if name in kept else pytest.mark.full) for name in names]
