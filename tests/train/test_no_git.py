"""Claims on a machine without git."""

import types

from facejax.train.claims import Runs


def test_commit_is_unknown_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Runs("toy", types.SimpleNamespace()).commit == "unknown"
