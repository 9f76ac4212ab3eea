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
