"""Seeds on a command line, and folders that hold no run to sample from."""

import json

import pytest

from facejax.recipes import sampling


def test_seeds():
    assert sampling.seeds("0-3") == [0, 1, 2, 3]
    assert sampling.seeds("8, 3,100-101") == [8, 3, 100, 101]
    for words in ("", "5-3", "1,,2", "-1", "a"):
        with pytest.raises(ValueError, match="expected numbers and ranges"):
            sampling.seeds(words)


def test_folders_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config.json: expected the --workdir of a run"):
        sampling.newest_images("pggan", None, None, tmp_path, [0])
    (tmp_path / "config.json").write_text(json.dumps({"experiment": "stylegan:tiny", "config": {}}))
    with pytest.raises(ValueError, match="is a run of stylegan:tiny: expected one of pggan"):
        sampling.newest_images("pggan", None, None, tmp_path, [0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--columns", "-2"), r"--columns is -2: expected 0 or more"),
        (("--truncation", "nan"), r"--truncation is nan: expected a finite number"),
        (("--truncation=-inf",), r"--truncation is -inf: expected a finite number"),
    ],
)
def test_options_that_give_no_image_are_named(tmp_path, monkeypatch, words, message):
    monkeypatch.setattr("sys.argv", ["stylegan", "--sample", str(tmp_path), *words])
    with pytest.raises(SystemExit, match=message):
        sampling.main("stylegan", None, None, None, {"truncation": 1.0})
