"""A checkpoint is read with the numbers that were saved, or it is named as damaged."""

import json
import pathlib
import random
import shutil
import subprocess
import sys
import zlib

import chex
import numpy as np
import pytest

from facejax.train import Options, RunError, checkpoint, train


def options(steps, **changes):
    return Options(batch_size=32, steps=steps, log_every=2, save_every=2, save_seconds=0.0, **changes)


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """A run of four steps with checkpoints of steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("finished")
    state, _ = train(toy.build(toy.get_config()), options(4), seed=0, workdir=workdir, quiet=True)
    return workdir, state


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def spoil(workdir, step):
    """Flips one bit in each eighth of the file that holds the numbers."""
    files = (workdir / "checkpoints" / str(step) / "state" / "d").iterdir()
    largest = max(files, key=lambda p: p.stat().st_size)
    for part in range(1, 8):
        flip(largest, part * largest.stat().st_size)


def change_record(workdir, folder, digest=True, **progress):
    file = workdir / "checkpoints" / str(folder) / "loop" / "metadata"
    content = json.loads(file.read_text())
    content["record"]["progress"].update(progress)
    if digest:
        content["digest"] = zlib.crc32(json.dumps(content["record"]).encode())
    file.write_text(json.dumps(content))


def test_no_flipped_bit_gives_other_numbers(workdir):
    """Three bits of every file: the checkpoint is damaged, or the bit held nothing that is read."""
    rng, directory, found = random.Random(0), workdir / "checkpoints", []
    whole = checkpoint.read(directory, 4)
    for path in sorted(p for p in (directory / "4").rglob("*") if p.is_file() and p.stat().st_size):
        for place in rng.sample(range(8 * path.stat().st_size), 3):
            flip(path, place)
            try:
                again = checkpoint.read(directory, 4)
                chex.assert_trees_all_equal(again.leaves, whole.leaves)
                assert (again.data, again.progress) == (whole.data, whole.progress), path
                found.append("same")
            except checkpoint.DamagedError:
                found.append("damaged")
            flip(path, place)
    assert found.count("damaged") >= 12
    checkpoint.read(directory, 4)


def test_digests_change_with_every_bit_and_with_the_order():
    leaf = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    changed = [leaf, leaf[::-1], leaf.T, leaf.view(np.int32), -leaf, np.append(leaf, 0.0).astype(np.float32)]
    for bit in range(32):
        other = leaf.copy()
        other.view(np.uint32)[1, 2] ^= np.uint32(1 << bit)
        changed.append(other)
    assert len({checkpoint.digests({"x": x})["x"] for x in changed}) == len(changed)


MANY_LEAVES = """
import numpy as np
from facejax.train import checkpoint, parallel
leaves = {}
for i in range(3):
    leaves[f"{i}"] = parallel.shard(np.zeros((800, 64), np.float32))
    leaves |= {f"{i}.{j}": parallel.replicate(np.zeros((64, 64), np.float32)) for j in range(60)}
for _ in range(50):
    checkpoint.digests(leaves)
"""


def test_digests_of_many_leaves_end(monkeypatch):
    """Programs with and without collectives, on eight devices: too many at once never end, and XLA aborts."""
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
    done = subprocess.run([sys.executable, "-c", MANY_LEAVES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_another_state_that_orbax_reads_is_damage(workdir):
    """The state of step 2 in the folder of step 4: whole files, other numbers."""
    directory = workdir / "checkpoints"
    shutil.rmtree(directory / "4" / "state")
    shutil.copytree(directory / "2" / "state", directory / "4" / "state")
    with pytest.raises(checkpoint.DamagedError, match=r"/4 is damaged: ema\.head differs from what was saved"):
        checkpoint.read(directory, 4)


def test_a_damaged_newest_checkpoint_is_set_aside(workdir, finished, toy, capsys):
    spoil(workdir, 4)
    state, _ = train(toy.build(toy.get_config()), options(4), seed=0, workdir=workdir, quiet=True)
    chex.assert_trees_all_equal((state.params, state.opt_state), (finished[1].params, finished[1].opt_state))
    said = capsys.readouterr().err
    assert f"{workdir}/checkpoints/4 is damaged: " in said and f"it is now {workdir}/damaged/4-" in said
    assert [p.name.partition("-")[0] for p in (workdir / "damaged").iterdir()] == ["4"]
    assert (workdir / "metrics.jsonl").read_text() == (finished[0] / "metrics.jsonl").read_text()


def test_without_an_intact_checkpoint_the_run_does_not_begin_anew(workdir, toy):
    for step in (2, 4):
        spoil(workdir, step)
    with pytest.raises(RunError, match=r"no checkpoint is left to resume from: .*/4 is damaged: .*/2 is damaged: "):
        train(toy.build(toy.get_config()), options(4), seed=0, workdir=workdir, quiet=True)
    assert checkpoint.saved_steps(workdir / "checkpoints") == [2, 4]


def test_step_record_and_folder_agree(workdir):
    directory = workdir / "checkpoints"
    change_record(workdir, 4, digest=False, log_bytes=1)
    with pytest.raises(RunError, match="/4 is damaged: its record differs from what was saved"):
        checkpoint.read(directory, 4)
    change_record(workdir, 2, step=3)
    with pytest.raises(RunError, match="/2 is damaged: it was saved as step 3"):
        checkpoint.read(directory, 2)
    (directory / "2" / "loop" / "metadata").rename(directory / "2" / "loop" / "process_0-of-1.json")
    with pytest.raises(RunError, match="/2 was saved by an earlier version"):
        checkpoint.read(directory, 2)


def test_another_state_is_refused_and_stays(workdir, toy):
    config = toy.get_config()
    config.optim.name = "adamw"
    with pytest.raises(ValueError, match=r"checkpoint 4 holds another state: opt_state\..* differ"):
        train(toy.build(config), options(6), seed=0, workdir=workdir, quiet=True)
    assert checkpoint.saved_steps(workdir / "checkpoints") == [2, 4]


def test_verify_names_damaged_checkpoints(workdir):
    shutil.copytree(workdir / "checkpoints/4", workdir / "best/4")
    spoil(workdir, 4)
    done = subprocess.run(
        [sys.executable, "-m", "facejax.train.verify", str(workdir)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{workdir}/checkpoints/2 is intact: 26 arrays\n{workdir}/checkpoints/4 is damaged: " in done.stdout
    assert f"{workdir}/best/4 is intact: 26 arrays\n" in done.stdout


def nine_classes(toy, devices):
    """Nine classes: 16 rows on eight devices, 10 on two, 9 on one."""
    config = toy.get_config("sharded")
    config.update_from_flattened_dict({"model.classes": 9, "train.devices": devices, "train.steps": 4})
    return config


def test_a_sharded_head_moves_between_device_counts(toy, tmp_path):
    """To one device, to all for the evaluation, and on to the end as on eight."""
    for steps, devices in ((1, 8), (2, 1), (3, 2), (4, 8)):
        config = nine_classes(toy, devices)
        config.train.steps, config.optim.schedule.kind = steps, "constant"
        state, _ = toy.app.run(config, toy.build, workdir=tmp_path, quiet=True)
        assert state.params["head"].shape == ({8: 16, 1: 9, 2: 10}[devices], 12)
    straight = nine_classes(toy, 8)
    straight.optim.schedule.kind = "constant"
    expected, _ = toy.app.run(straight, toy.build, quiet=True)
    chex.assert_trees_all_close(state.params["net"], expected.params["net"], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(state.params["head"][:9], expected.params["head"][:9], rtol=1e-4, atol=1e-5)
    for devices in (1, 2, 99):  # more than there are
        config.train.devices = devices
        again, _ = toy.app.run(config, toy.build, workdir=tmp_path, eval_only=True, quiet=True)
        np.testing.assert_array_equal(again.params["head"], state.params["head"])


def test_classes_are_not_cut_as_padding(toy, tmp_path):
    config = nine_classes(toy, 1)
    train(toy.build(config), options(2, devices=1), seed=0, workdir=tmp_path, quiet=True)
    config.model.classes = 8
    with pytest.raises(ValueError, match=r"holds .*head as float32\[9, 12\]: expected float32\[8, 12\]"):
        train(toy.build(config), options(4, devices=1), seed=0, workdir=tmp_path, quiet=True)
