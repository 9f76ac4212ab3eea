"""Recorded claims: what each row holds, which seeds are run next, and the pages that are written from the rows."""

import ast
import json

import pytest

from experiments import __main__ as catalog
from experiments.claims import BEGIN, END, pages, plan
from facejax.train.claims import Claim, check_same, gains, markdown, verdict

STEMS = sorted({s.program.stem for s in catalog.SYSTEMS if s.program.exists()})
RECORDS = sorted(catalog.record("x").parent.iterdir())
ROW = {
    "id": "toy.gain", "experiment": "toy", "claim": "m above b and c", "seeds": [0, 1, 2, 1000], "metric": "x",
    "better": "higher", "method": "m", "baseline": ["b", "c"],
    "values": {"b": [0.1, 0.2, 0.1, 0.2], "c": [0.1] * 4, "m": [0.3, 0.4, 0.3, 0.4]},
    "gains": {"b": [0.2, 0.2, 0.2], "c": [0.25, 0.158, 0.342]}, "verdict": "undecided", "seconds": 1, "commit": "x",
}  # fmt: skip
CLAIM = Claim("toy.gain", "m above b and c", "x", "higher", "m", ("b", "c"))


def claims(stem):
    """The claims in an experiment's source, made without importing it."""
    tree = ast.parse((catalog.ROOT / "experiments" / f"{stem}.py").read_text())
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "Claim")
    value = ast.literal_eval
    return [Claim(*map(value, c.args), **{k.arg: value(k.value) for k in c.keywords}) for c in calls]


def test_ids_are_unique_and_begin_with_the_experiment():
    found = [(stem, claim.id) for stem in STEMS for claim in claims(stem)]
    assert len({key for _, key in found}) == len(found)
    for stem, key in found:
        assert key.removeprefix(f"{stem}.").isidentifier(), key


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_rows_follow_from_their_values(record):
    assert record.stem in STEMS
    for row in map(json.loads, record.read_text().splitlines()):
        claim = Claim(row["id"], row["claim"], row["metric"], row["better"], row["method"], tuple(row["baseline"]))
        assert row["verdict"] == verdict(claim, row["values"])
        assert row["gains"] == {k: [round(x, 6) for x in g] for k, g in gains(claim, row["values"]).items()}
        assert all(len(values) == len(row["seeds"]) for values in row["values"].values())
        assert len(set(row["seeds"])) == len(row["seeds"])


@pytest.mark.parametrize("stem", STEMS)
def test_the_last_row_of_a_claim_is_of_its_comparison(stem):
    recorded = catalog.recorded(stem)
    for claim in claims(stem):
        if claim.id in recorded:
            check_same(claim, recorded[claim.id])
            assert recorded[claim.id]["experiment"] == (claim.system or stem)


def test_pages_are_written_from_the_rows():
    for page, text in pages().items():
        assert page.read_text() == text, f"{page.name}: run python -m experiments.claims --pages"


def test_pages_name_their_experiments(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    system = catalog.System("Toy", "toys/toy", "toy")
    monkeypatch.setattr(catalog, "SYSTEMS", (system,))
    for folder in ("experiments", "results/claims", "docs/systems/toys", "facejax/toys"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "facejax/toys/toy.py").touch()
    (tmp_path / "experiments/toy.py").write_text("CLAIM = Claim('toy.gain', 'reworded', metric='x')")
    (tmp_path / "README.md").write_text("# All\n\n" + catalog.markdown() + "\n\nMore.\n")
    page, other = (tmp_path / "docs/systems" / name for name in ("toys/toy.md", "index.md"))
    page.write_text(f"# Toy (`toy`)\n\nClaim:\n{BEGIN}{END}\nEnd.\n")
    other.write_text("# Board (`toy_board`)\n")
    assert "Not measured yet." in pages()[page]
    catalog.record("toy").write_text(json.dumps(ROW) + "\n")
    written = pages()
    assert "| reworded | `x`, higher is better | `m` 0.3500 ± 0.0577 | `b` 0.1500 ± 0.0577 |" in written[page]
    assert written[page].startswith("# Toy (`toy`)\n\nClaim:\n" + BEGIN)
    assert written[page].endswith(END + "\nEnd.\n")
    assert "| Toy | toys | `toy` |  | claim undecided |\n\nMore." in written[tmp_path / "README.md"]
    assert other not in written
    page.write_text(written[page])
    assert pages()[page] == written[page]
    page.write_text("# Toy (`toy`)\n")
    with pytest.raises(ValueError, match=r"toy\.md: expected <!-- claims:begin -->"):
        pages()


def test_the_table_has_a_line_for_each_baseline():
    lines = markdown([ROW]).splitlines()
    assert lines[2].endswith("| +0.2000 [+0.2000, +0.2000] | 0 to 2, 1000 | undecided |")
    assert lines[3] == "|  |  |  | `c` 0.1000 ± 0.0000 | +0.2500 [+0.1580, +0.3420] |  |  |"
    assert "Settings may have been chosen on seeds below 1000" in lines[-1]
    assert "Settings" not in markdown([ROW | {"seeds": [1000, 1001, 1002, 1003]}])
    hundreds = ROW | {"values": {k: [100 * x for x in v] for k, v in ROW["values"].items()}}
    assert "`m` 35.00 ± 5.77" in markdown([hundreds])


def test_which_seeds_are_run():
    assert plan(CLAIM, {}) == [(CLAIM, range(1000, 1005), None)]
    assert plan((CLAIM,), {}, count=2)[0][1] == range(1000, 1002)
    assert plan(CLAIM, {"toy.gain": ROW | {"seeds": [0, 1, 2]}}, more=2)[0][1] == range(1000, 1002)
    assert plan(CLAIM, {"toy.gain": ROW}, "toy.gain", more=2) == [(CLAIM, range(1001, 1003), ROW)]


@pytest.mark.parametrize(
    ("recorded", "flags", "message"),
    [
        ({}, {"only": "toy.loss"}, "no claim 'toy.loss' in this experiment; claims: toy.gain"),
        ({}, {"count": 1}, "seeds is 1, expected 2 or more"),
        ({}, {"more": 1}, "toy.gain: there is no recorded row"),
        ({"toy.gain": ROW}, {"more": 0}, "--more takes a number above 0"),
        ({"toy.gain": ROW}, {"more": 1, "count": 2}, "--more takes a number above 0, and no --seeds beside it"),
        ({"toy.gain": ROW | {"metric": "y"}}, {"more": 1}, "the recorded metric is 'y', but now it is 'x'"),
    ],
)
def test_runs_that_cannot_be_planned_raise(recorded, flags, message):
    with pytest.raises(ValueError, match=message):
        plan(CLAIM, recorded, **flags)
