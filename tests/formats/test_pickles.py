import collections
import io
import os
import pickle

import numpy as np
import pytest

from facejax.formats import pickles
from tests.damage import check

PYTHON2 = b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n(I1\n(I2\ntp6\ncnumpy\ndtype\np7\n(S'i2'\nI0\nI1\ntp8\nRp9\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x01\\x00\\xff\\x00'\ntp10\nb."  # noqa: E501
"""np.array([1, 255], "<i2") of Python 2, protocol 0."""


def saved(path, value, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers(tmp_path, protocol):
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(3, 4)), rng.integers(0, 9, (2, 0, 3)), np.asfortranarray(rng.normal(size=(2, 5))),
        np.arange(4, dtype=">i2"), np.array([True, False]), np.array(2.5, np.float32), np.array(["ab", "c"]),
    ]  # fmt: skip
    shared = [1, 2]
    value = {
        "arrays": arrays,
        "tuple": (arrays[0], {"inner": arrays[1]}),
        "scalar": np.float64(1.5),
        "plain": [shared] * 2,
    }
    found = pickles.load(saved(tmp_path / "a.pkl", value, protocol))
    for a, b in zip(
        [*found["arrays"], found["tuple"][0], found["tuple"][1]["inner"]], [*arrays, *arrays[:2]], strict=True
    ):
        assert type(a) is np.ndarray
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    assert found["scalar"] == 1.5
    assert found["plain"][0] is found["plain"][1]
    tree = collections.defaultdict(list, {1: [2]})
    assert pickles.load(saved(tmp_path / "a.pkl", tree, protocol)) == {1: [2]}


def test_python_2(tmp_path):
    (tmp_path / "a.pkl").write_bytes(PYTHON2)
    np.testing.assert_array_equal(pickles.load(tmp_path / "a.pkl"), np.int16([1, 255]))


class Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Call(os.system, ("touch exploded",)), "pickle refers to posix.system"),
        (Call(eval, ("open('exploded', 'w')",)), r"pickle refers to __builtin__\.eval"),
        (Call(np.save, ("exploded.npy", 1)), r"pickle refers to numpy\.save"),
        (Call(np.ndarray, ((2, 2),)), ""),
        (np.array([1, None]), "an array without numbers, or of objects"),
        (np.zeros(2, [("a", "f4")]), "an array of type"),
        (io.StringIO("x"), "pickle refers to _io.StringIO"),
    ],
)
def test_nothing_else_is_made(tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "a.pkl", value)
    if message:
        with pytest.raises(ValueError, match=rf"a\.pkl: not a readable pickle of arrays: .*{message}"):
            pickles.load(tmp_path / "a.pkl")
    else:
        assert type(pickles.load(tmp_path / "a.pkl")) is pickles.Made
    assert os.listdir(tmp_path) == ["a.pkl"]


def test_damaged_pickles_are_read_or_refused(tmp_path):
    value = {"mean": np.arange(6.0), "names": ["a", "b"], "rows": [np.ones((2, 2), np.float32)]}
    data = pickle.dumps(value, 2)
    assert check(tmp_path / "f.pkl", data, pickles.load, 300) > 100


def test_state_of_other_instances_is_kept_apart(tmp_path):
    """Classes by name: what stands for an instance holds its state, and arrays within it are arrays."""
    with pytest.raises(ValueError, match=r"pickle refers to argparse\.Namespace"):
        pickles.load(saved(tmp_path / "a.pkl", __import__("argparse").Namespace(x=1)))
    made = pickles.load(
        saved(tmp_path / "a.pkl", __import__("argparse").Namespace(x=np.ones(2))),
        classes={("argparse", "Namespace"): pickles.Made},
    )
    np.testing.assert_array_equal(made.state["x"], [1, 1])
