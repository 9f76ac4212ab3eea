"""The GPU's benchmark in its tiny form."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import types
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu import LISTS, Work

OTHERS = (
    "array_record", "chex", "cv2", "einops", "grain", "matplotlib", "ml_collections", "PIL", "sklearn", "tensorboardX",
    "tensorflow_datasets", "torch", "tqdm",
)  # fmt: skip
"""Packages that a machine with jax, flax, optax and orbax may lack; our side needs no torch."""
PROGRAM = """
import json, sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
from benchmarks import gpu
for name in gpu.LISTS:
    for row in gpu.measure("facejax", name):
        print(json.dumps(row))
"""


@pytest.fixture(scope="module")
def ours() -> list[dict[str, Any]]:
    """The rows of our side of all lists, measured without the packages of `OTHERS`."""
    command = [sys.executable, "-c", PROGRAM, *OTHERS]
    result = subprocess.run(command, cwd=pathlib.Path(gpu.__file__).parents[1], capture_output=True, text=True)
    assert not result.returncode, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("name", LISTS)
def test_list_runs_without_other_packages(name: str, ours: list[dict[str, Any]]) -> None:
    rows = [row for row in ours if row.get("list") == name]
    assert rows
    assert all(row.get("facejax", 0) > 0 for row in rows), rows


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name, entry in LISTS.items() if "PyTorch" in entry.sides])
def test_pytorch_measures_the_same(name: str) -> None:
    pytest.importorskip("torch", reason="needs the parity extra")
    from benchmarks import gpu_facejax

    entry = LISTS[name]
    rows = [row for row in gpu.measure("PyTorch", name, compiled=entry.compiled) if "list" in row]
    assert all(row.get("PyTorch", 0) > 0 for row in rows), rows
    works = getattr(gpu_facejax, name)(entry.tiny_batch, **entry.tiny)
    assert [(row["what"], row["unit"]) for row in rows] == [(w.what, w.unit) for w in works][: len(rows)]


def test_program(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A list that does not fit is skipped and said; the other runs in a process of its own."""
    monkeypatch.setitem(LISTS, "recognition", LISTS["recognition"]._replace(seconds=10_000))
    path = tmp_path / "gpu.json"
    given = ["recognition", "margin_head", "--tiny", "--margin_head_batch", "2", "3", "--json", str(path)]
    assert gpu.main(given) == 0
    found = json.loads(path.read_text())
    assert found["skipped"] == ["recognition"] and found["device"] == "cpu"
    assert [(row["batch"], row["facejax"] > 0) for row in found["rows"]] == [(2, True), (3, True)]
    output = capsys.readouterr().out
    assert "recognition: skipped, " in output and "| margin head of 50 classes, training | 3 |" in output


def test_a_list_ends_with_the_budget() -> None:
    found = list(gpu.rows(0.0, "facejax", "margin_head"))
    assert found == [{"list": "margin_head", "error": "facejax: the budget ended"}]


def test_a_failure_is_a_row_and_the_next_measurement_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("too little memory\nat 0x0")

    side = types.ModuleType("side")
    side.about, side.free, side.wait = dict, lambda: None, lambda _: None
    side.prnet = lambda batch, **_: [Work("first", 1, fail), Work("second", 1, lambda: lambda: None)]
    monkeypatch.setitem(sys.modules, "side", side)
    monkeypatch.setitem(gpu.SIDES, "facejax", "side")
    _, first, second = gpu.measure("facejax", "prnet")
    assert first["error"] == "facejax: RuntimeError: too little memory" and "facejax" not in first
    assert second["facejax"] > 0


def test_full_sizes_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    side = types.ModuleType("side")
    side.about = lambda: {"device": "cpu"}
    monkeypatch.setitem(sys.modules, "side", side)
    monkeypatch.setitem(gpu.SIDES, "PyTorch", "side")
    with pytest.raises(RuntimeError, match="PyTorch finds no GPU"):
        next(gpu.measure("PyTorch", "prnet", tiny=False))


def test_ratio_and_share_of_the_peak() -> None:
    product = {"list": "recognition", "what": gpu.PRODUCT, "batch": 8, "unit": "FLOP"}
    work = {"list": "recognition", "what": "a net", "batch": 8, "unit": "images"}
    failed = {"list": "recognition", "what": "another", "batch": 8, "unit": "images", "error": "facejax: no memory"}
    found = gpu.merged(
        [
            *(product | {"facejax": 900.0}, work | {"facejax": 30.0, "flops": 10.0}, failed),
            *(product | {"PyTorch": 1000.0}, work | {"PyTorch": 20.0, "form": "compiled"}),
            failed | {"error": "PyTorch: none"},
        ]
    )
    assert found[1]["ratio"] == 1.5 and found[1]["share"] == pytest.approx(0.3)
    lines = gpu.table(found).splitlines()
    assert lines[3] == "| recognition | a net | 8 | 30 images/s | 20 images/s (compiled) | 1.50 | 30.0% |"
    assert "another; facejax: no memory; PyTorch: none |" in lines[4]


def test_unknown_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["nothing"])
    assert "there is no list nothing: expected of recognition, scrfd" in capsys.readouterr().err
