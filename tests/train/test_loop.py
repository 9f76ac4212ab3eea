"""Exact resume after a kill at any moment, and errors of a run that cannot continue."""

import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import psutil
import pytest

from facejax.train import Options, RunError, train
from facejax.train.logging import MetricsFile

PROGRAM = str(pathlib.Path(__file__).with_name("toy.py"))
ROOT = str(pathlib.Path(__file__).parents[2])


def start(workdir, *flags, **kwargs):
    environment = {**os.environ, "PYTHONPATH": ROOT, "XLA_FLAGS": "--xla_backend_optimization_level=1"}
    return subprocess.Popen(
        [sys.executable, PROGRAM, f"--workdir={workdir}", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **kwargs,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def fingerprint(workdir):
    step = max(ocp.utils.checkpoint_steps(workdir / "checkpoints"))
    state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")
    leaves = jax.tree.leaves({k: state[k] for k in ("params", "opt_state", "model_state", "ema")})
    return step, hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest()


STEPS, KILLS = 60, 6
FLAGS = ["--config=dropout", f"--config.train.steps={STEPS}", "--config.test.step_seconds=0.02"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A workdir, what its parameters are, its log."""
    workdir = tmp_path_factory.mktemp("whole")
    code, _, err = finish(start(workdir, *FLAGS))
    assert code == 0, err
    return workdir, fingerprint(workdir), (workdir / "metrics.jsonl").read_text()


def saved_steps(workdir):
    folder = workdir / "checkpoints"
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def test_sigkill_at_any_moment_loses_nothing(tmp_path, uninterrupted):
    """Kills after a number of checkpoints, every second one during a save."""
    rng = random.Random(0)
    for kills in range(KILLS):
        process = start(tmp_path, *FLAGS)
        before, seen_writing = set(saved_steps(tmp_path)), False
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            names = saved_steps(tmp_path)
            writing = any("tmp" in name and name not in before for name in names)
            if writing if kills % 2 else any(n.isdigit() and n not in before for n in names):
                if not kills % 2:
                    time.sleep(rng.random() * 0.05)
                seen_writing = writing
                break
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"the run ended before {KILLS} kills"
        assert seen_writing or kills % 2 == 0
    code, _, err = finish(start(tmp_path, *FLAGS))
    assert code == 0, err
    assert fingerprint(tmp_path) == uninterrupted[1]
    assert (tmp_path / "metrics.jsonl").read_text() == uninterrupted[2]


def test_a_truncated_log_reports_its_new_length(tmp_path):
    """A checkpoint before the next line must not store the length of the killed run's log."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    log = MetricsFile(path, 12)
    assert log.length == 12
    log.write(2, {"loss": 1.0})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2, "loss": 1.0}\n'


def test_a_log_that_lost_entries_keeps_its_whole_lines(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')
    log = MetricsFile(path, 24)
    assert (
        "has 16 bytes and had 24 at the checkpoint: its last entries are lost, the first 12" in capsys.readouterr().err
    )
    assert log.length == 12
    log.write(3, {})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def logged(workdir):
    log = workdir / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_signals_save_and_give_their_exit_codes_and_a_second_run_is_refused(tmp_path, uninterrupted):
    """One run, ended three times; another one is started on its workdir while it is halted in its last part."""
    flags, ended_at = [*FLAGS, "--config.train.save_every=1000", "--config.test.step_seconds=0.05"], 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, None):
        before, process = logged(tmp_path), start(tmp_path, *flags)
        while logged(tmp_path) <= before:
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(number or signal.SIGSTOP)
        if number is None:
            break
        asked = time.monotonic()
        code, _, err = finish(process)
        assert code == 128 + number, err
        step = max(map(int, saved_steps(tmp_path)))
        assert f"stopped after step {step}: the same command goes on from there" in err
        assert "Traceback" not in err
        assert time.monotonic() - asked < 10
        assert ended_at < step < STEPS
        ended_at = step
    code, _, err = finish(start(tmp_path, *flags))
    process.send_signal(signal.SIGCONT)
    assert code == 1
    assert f"another run uses {tmp_path}: wait for its end or choose another --workdir" in err
    code, _, err = finish(process)
    assert code == 0, err
    assert fingerprint(tmp_path) == uninterrupted[1]
    assert (tmp_path / "metrics.jsonl").read_text() == uninterrupted[2]


def test_workers_end_with_a_killed_parent(tmp_path):
    process = start(tmp_path, *FLAGS, "--config.data.workers=2", "--config.train.steps=2000")
    while not saved_steps(tmp_path):
        time.sleep(0.05)
        assert process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=10)
    assert [c.pid for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE] == []


def options(**changes):
    return Options(batch_size=32, steps=8, log_every=4, save_every=3, save_seconds=0.0, **changes)


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path):
    config = toy.get_config()
    config.test.nan_at = 5
    with pytest.raises(RunError, match=rf"step 5: loss is nan; the last good checkpoint is {tmp_path}/checkpoints/3"):
        train(toy.build(config), options(), seed=0, workdir=tmp_path, quiet=True)
    assert saved_steps(tmp_path) == ["3"]
    with pytest.raises(RunError, match="no checkpoint was saved"):
        train(toy.build(config), options(), seed=0, quiet=True)


def test_a_full_disk_raises_and_keeps_the_last_checkpoint(tmp_path, uninterrupted):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    limited = start(tmp_path, *FLAGS, "--config.train.steps=400")
    resource.prlimit(limited.pid, resource.RLIMIT_FSIZE, (2000, 2000))
    code, _, err = finish(limited)
    assert code == 1
    (message,) = [
        line for line in err.splitlines() if line.startswith("experiments.")
    ]  # Python may print warnings after it
    assert f"could not be written to {tmp_path}/checkpoints" in message
    assert f"the last good checkpoint is {tmp_path}/checkpoints/{STEPS}" in message
    assert fingerprint(tmp_path) == uninterrupted[1]


@pytest.mark.smoke
def test_batch_shape_mismatch_raises(toy):
    config = toy.get_config()
    experiment = toy.build(config)
    config.train.batch_size = 64
    other = toy.build(config)
    mixed = type(experiment)(
        experiment.evaluate, experiment.init, experiment.train_step, other.train_data, experiment.batch
    )
    with pytest.raises(ValueError, match=r"train_data yielded a batch of .*64.*the experiment expects .*32"):
        train(mixed, options(), seed=0, quiet=True)


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"train\.log_every is 0: expected 1 or more"):
        Options(batch_size=4, steps=1, log_every=0)


@pytest.mark.smoke
def test_metrics_are_means_over_the_window(toy, tmp_path):
    config = toy.get_config()
    train(toy.build(config), options(), seed=0, workdir=tmp_path, quiet=True)
    coarse = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    fine_dir = tmp_path / "fine"
    fine_dir.mkdir()
    fine_options = Options(batch_size=32, steps=8, log_every=1, save_every=100)
    train(toy.build(config), fine_options, seed=0, workdir=fine_dir, quiet=True)
    fine = [json.loads(line) for line in (fine_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [point["train/loss"] for point in fine if "train/loss" in point]
    logged = [point["train/loss"] for point in coarse if "train/loss" in point]
    np.testing.assert_allclose(logged, [np.mean(losses[:4]), np.mean(losses[4:])], rtol=1e-6)
