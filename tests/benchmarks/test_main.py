"""The record of the benchmarks and its table."""

from __future__ import annotations

import json
import pathlib
import sys
import types
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import compare


def row(ours: list[float], **peers: list[float]) -> dict[str, Any]:
    seconds = {name.replace("_", " "): values for name, values in peers.items()} | {"facejax": ours}
    about = {"benchmark": "nms", "work": "8 images", "ours": "facejax", "date": "2026-01-02T03:04:05"}
    return {**about, "seconds": seconds, "device": "cpu", "threads": 2, "load": 0.5, "versions": {"jax": "0.10.2"}}


def test_a_comparison_is_appended_where_a_file_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(compare.JOURNAL, raising=False)
    compare.record("nothing", {"facejax": [1.0]})
    journal = tmp_path / "journal.jsonl"
    monkeypatch.setenv(compare.JOURNAL, str(journal))
    monkeypatch.setattr(sys, "argv", ["/somewhere/nms.py"])
    compare.compare("an empty call", {"peer": lambda: None, "facejax": lambda: None}, repeats=3)
    compare.record("sums", {"two passes": [0.5, 0.25], "one pass": [0.125]}, "two passes")
    first, second = benchmarks.read(journal)
    assert (first["work"], first["benchmark"], len(first["seconds"]["peer"])) == ("an empty call", "nms", 3)
    assert "jax" in first["versions"] and first["threads"] >= 1
    assert benchmarks.ratios(second) == {"one pass": 0.5}
    assert len(journal.read_text().splitlines()) == 2


def test_table_has_the_median_run_of_each_comparison() -> None:
    runs = [
        row([0.5, 0.2], a_peer=[0.8, 1.0], facejax_on_the_host=[0.1]),
        row([0.1], a_peer=[1.2], other=[2.5]),
        row([0.3], a_peer=[0.6]),
    ]
    first, second = benchmarks.table(runs).splitlines()[2:]
    assert "| 200 ms | a peer 800 ms | 4.00 | 2.00-12.00 (3) |" in first
    assert "| 100 ms | other 2.50 s | 25.00 | 25.00-25.00 (1) |" in second
    assert "load 0.5, jax 0.10.2" in first


def test_page_gets_the_table_between_its_marks(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{benchmarks.BEGIN}\nold\n{benchmarks.END}\nafter\n")
    for _ in range(2):
        benchmarks.write_page(page, [row([1.0], peer=[2.0])])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("| `nms` |") == 1
    page.write_text("no marks")
    with pytest.raises(ValueError, match=r"performance\.md: expected <!-- benchmarks:begin -->"):
        benchmarks.write_page(page, [])


def test_the_project_page_is_of_the_recorded_runs(tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "performance.md"
    copy.write_text(benchmarks.PAGE.read_text())
    benchmarks.write_page(copy, benchmarks.read(benchmarks.JSONL))
    assert copy.read_text() == benchmarks.PAGE.read_text()


@pytest.mark.parametrize(
    ("given", "message"), [(["nothing"], "there is no benchmark nothing"), (["gcn"], "gcn: expected --data DATA")]
)
def test_wrong_names_and_missing_data_are_named(
    given: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *given])
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert message in capsys.readouterr().err


def test_a_failed_benchmark_ends_with_one(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    journal = tmp_path / "journal.jsonl"
    monkeypatch.setattr(benchmarks, "JSONL", journal)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "nms", "knn"])
    journal.write_text(json.dumps(row([1.0], peer=[3.0])) + "\n")
    monkeypatch.setattr(benchmarks, "run", lambda name, threads, data: int(name == "knn"))
    assert benchmarks.main() == 1
    monkeypatch.setattr(benchmarks, "run", lambda name, threads, data: 0)
    assert benchmarks.main() == 0


def test_arguments_name_the_data_and_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    done = types.SimpleNamespace(returncode=0)
    monkeypatch.setattr(benchmarks.subprocess, "run", lambda command, **_: seen.append(command[3:]) or done)
    assert benchmarks.run("analysis", 1, "/data") == benchmarks.run("nms", 2, "") == 0
    assert seen == [["/data", "--speed", "--threads", "1"], []]


def test_every_benchmark_of_the_list_is_a_program() -> None:
    for name in benchmarks.RUNS:
        assert (benchmarks.ROOT / "benchmarks" / f"{name}.py").is_file()
