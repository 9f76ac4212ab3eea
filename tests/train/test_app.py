"""The command line: presets, overrides, workdirs, dry runs; claims, reports and optimizers."""

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import types

import chex
import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image, ImageSequence

from facejax.data import pipeline
from facejax.data.decoding import BadImage, ImageFile
from facejax.ops.conv import conv, conv_transpose
from facejax.train import Experiment, Options, Report, app, logging, optim, train
from facejax.train.checkpoint import Progress
from facejax.train.claims import Claim, Runs, check_same, gains, measure, verdict
from facejax.train.dry_run import dry_run, flops, peak_bytes
from facejax.train.logging import read_metrics
from facejax.train.report import (
    FRAME_MILLISECONDS,
    _image_png,
    circumstances,
    commit,
    curves,
    image_grid,
    new_figure,
    write_html,
)

PROGRAM = str(pathlib.Path(__file__).with_name("toy.py"))
ROOT = str(pathlib.Path(__file__).parents[2])
FAST = ["--config.train.steps=2", "--config.train.log_every=1"]


def command(*flags):
    environment = {**os.environ, "PYTHONPATH": ROOT, "XLA_FLAGS": "--xla_backend_optimization_level=1"}
    done = subprocess.run(
        [sys.executable, PROGRAM, *flags], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def refused(*flags):
    code, _, err = command(*flags)
    assert code == 1
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_presets(toy):
    assert toy.get_config("dropout").model.dropout == 0.3
    with pytest.raises(
        ValueError, match=r"no preset 'droput' \(did you mean 'dropout'\?\); presets: synthetic, dropout"
    ):
        toy.get_config("droput")
    with pytest.raises(ValueError, match=r"preset 'x' sets 'model\.depth', which is not in the base configuration"):
        app.preset(toy.BASE, {"x": {"model.depth": 3}}, "x")
    assert app.preset(toy.BASE, {"x": {"model": {"dropout": 0.1}}}, "x").model.sharded is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=droput"], "no preset 'droput' (did you mean 'dropout'?); presets: synthetic, dropout, sharded"),
        (["--config.train.stps=3"], "unknown field --config.train.stps (did you mean 'train.steps'?)"),
        (["--config=nothing.py:x"], "--config: there is no file nothing.py"),
        (["dropout"], "unexpected word 'dropout': expected flags, such as --config=PRESET (see --help)"),
        (["--check_data"], "--check_data: this preset reads no image files: expected one that does"),
        (["--average=2"], "--average=2: expected --eval_only beside it, training averages no checkpoints"),
    ],
)
def test_invalid_flags_raise(flags, message):
    assert message in refused(*flags)


def test_check_data_lists_bad_images(capsys):
    good = cv2.imencode(".png", np.zeros((2, 2), np.uint8))[1].tobytes()
    images = [{"image": ImageFile(good, "a.png")}, {"image": [ImageFile(good), ImageFile(good[:9], "b.png")]}] * 2

    def check(images):
        app.check_data(Experiment(None, train_data=lambda: pipeline.train_batches(images, None, 2, seed=0)))

    with pytest.raises(
        ValueError, match=r"^2 of 4 images are bad \(--config\.train\.on_bad=skip trains without them\)$"
    ):
        check(images)
    assert [line[:8] for line in capsys.readouterr().out.splitlines()] == ["b.png: a"] * 2
    check(images[::2])
    assert capsys.readouterr().out == "all 2 images decode\n"


def test_bad_images_are_replaced_and_counted(tmp_path, toy, monkeypatch):
    whole = toy.load

    def load(examples, rngs):
        if any(e["label"] == 3 for e in examples):
            raise BadImage("an image of label 3")
        return whole(examples, rngs)

    monkeypatch.setattr(toy, "load", load)
    config = toy.get_config()
    config.train.update(steps=2, log_every=1, eval_every=0, batch_size=64)
    experiment = dataclasses.replace(toy.build(config), evaluate=lambda state: Report({"x": 0.0}))
    with pytest.raises(BadImage, match="label 3"):
        train(experiment, Options(**config.train), seed=0, quiet=True)
    with pytest.warns(UserWarning, match="label 3; another image of its batch takes its place"):
        train(experiment, Options(**{**config.train, "on_bad": "skip"}), seed=0, quiet=True, workdir=tmp_path)
    first, second, _ = read_metrics(tmp_path / "metrics.jsonl")
    assert 0 < first["train/replaced"] < second["train/replaced"]
    with pytest.raises(ValueError, match=r"train\.on_bad is 'drop': expected 'error' or 'skip'"):
        Options(8, 8, on_bad="drop")


def test_a_workdir_of_another_run_raises(tmp_path):
    run = tmp_path / "run"
    assert command(f"--workdir={run}", *FAST)[0] == 0
    assert "is a run of experiment:synthetic" not in command(f"--workdir={run}", *FAST, "--config.train.steps=3")[2]
    assert "model.dropout was 0.0 and is 0.3): choose another --workdir" in refused(
        f"--workdir={run}", *FAST, "--config=dropout"
    )
    saved = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**saved, "experiment": "pfld:synthetic"}))
    assert "is a run of pfld:synthetic, not of" in refused(f"--workdir={run}", *FAST)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    assert "holds files but no config.json" in refused(f"--workdir={tmp_path / 'other'}", *FAST)


def test_a_workdir_that_cannot_be_created_raises(tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(f"--workdir={tmp_path / 'file' / 'run'}", *FAST)


def test_a_finished_run_can_be_evaluated_again(tmp_path):
    assert command(f"--workdir={tmp_path}", *FAST)[0] == 0
    before = (tmp_path / "metrics.jsonl").read_text()
    code, out, err = command(f"--workdir={tmp_path}", *FAST, "--eval_only")
    assert code == 0, err
    assert "accuracy" in out
    assert (tmp_path / "metrics.jsonl").read_text() == before
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64" in page and "<h2>Run</h2>" in page


def test_checkpoints_can_be_averaged(tmp_path, toy):
    config = toy.get_config()
    config.optim.schedule.kind = "constant"
    states = []
    for config.train.steps in (3, 4):
        states.append(toy.app.run(config, toy.build, workdir=tmp_path, quiet=True)[0])
    mean, _ = toy.app.run(config, toy.build, workdir=tmp_path, eval_only=True, average=2, quiet=True)
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *(state.params for state in states))
    chex.assert_trees_all_close(mean.params, expected, rtol=1e-6)
    chex.assert_trees_all_equal(mean.params, mean.ema)
    newest, _ = toy.app.run(config, toy.build, workdir=tmp_path, eval_only=True, quiet=True)
    chex.assert_trees_all_equal((newest.params, newest.ema), (states[1].params, states[1].ema))
    with pytest.raises(ValueError, match=r"--average=3: .* holds 2 checkpoints"):
        toy.app.run(config, toy.build, workdir=tmp_path, eval_only=True, average=3, quiet=True)


def test_a_run_that_has_come_further_is_refused_and_stays(tmp_path, toy):
    config = toy.get_config()
    config.train.steps = 3
    toy.app.run(config, toy.build, workdir=tmp_path, quiet=True)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    config.train.steps = 2
    sentence = rf"^{tmp_path} has come to step 3: expected train\.steps of at least that, got 2$"
    with pytest.raises(ValueError, match=sentence):
        toy.app.run(config, toy.build, workdir=tmp_path, quiet=True)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=sentence):
        train(toy.build(config), Options(**config.train), seed=0, workdir=tmp_path, quiet=True)
    toy.app.run(config, toy.build, workdir=tmp_path, eval_only=True, quiet=True)


def test_eval_only_without_a_checkpoint_raises(tmp_path):
    assert "holds no checkpoint" in refused(f"--workdir={tmp_path / 'none'}", "--eval_only")
    assert not (tmp_path / "none").exists()


def test_a_config_file_defines_its_own_presets(tmp_path, toy):
    file = tmp_path / "mine.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(pathlib.Path(PROGRAM).parent)!r})\n"
        "import toy\nPRESETS = {'tiny': {'model.dropout': 0.2}}\n"
        "def get_config(name): return toy.app.preset(toy.BASE, PRESETS, name)\n"
    )
    code, out, err = command(f"--config={file}:tiny", "--dry_run")
    assert code == 0, err
    assert "parameters " in out


def test_dry_run_counts_exactly(toy):
    config = toy.get_config("sharded")
    config.train.devices = 4
    costs = dry_run(toy.build(config), Options(**config.train))
    assert costs["parameters"] == 3 * 3 * 3 * 8 + 8 + 16 + (4 * 4 * 8 * 12 + 12) + 16 * 12
    assert costs["batch per device"] == 8
    replicated, head = costs["parameters"] - 16 * 12, 16 * 12 // 4
    expected = 4 * 3 * (replicated + head) + 4 * 16 + 16 + 2 * 4
    assert abs(costs["state bytes per device"] - expected) <= 8


def test_flops_are_counted_through_loops_and_calls():
    def step(x, w):
        x, _ = jax.lax.scan(lambda c, _: (jax.jit(jnp.dot)(c, w), None), x, length=5)
        return nn.Conv(4, (3, 3), padding="VALID").apply(
            {"params": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}}, x.reshape(1, 8, 8, 2)
        )

    jaxpr = jax.make_jaxpr(step)(jnp.ones((16, 8)), jnp.ones((8, 8))).jaxpr
    assert flops(jaxpr) == 5 * 2 * 16 * 8 * 8 + 2 * 6 * 6 * 4 * 9 * 2


def test_a_linear_solve_is_followed():
    """It holds only triangular solves, which are not counted, and matrices that are."""
    jaxpr = jax.make_jaxpr(lambda a, b: jnp.linalg.solve(a, b) @ b.T)(jnp.eye(3), jnp.ones((3, 2))).jaxpr
    assert flops(jaxpr) == 2 * 3 * 3 * 2
    assert peak_bytes(jaxpr) >= 4 * (9 + 6)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_flops_of_a_convolution_and_its_gradients(groups):
    """With strides and groups, the gradients of images and of the kernel each cost as much as the convolution."""
    images, kernel = jnp.zeros((2, 8, 8, 16)), jnp.zeros((2, 2, 16 // groups, 16))

    def forward(images, kernel):
        return conv(images, kernel, stride=(2, 2), groups=groups)

    def backward(images, kernel):
        return jax.vjp(forward, images, kernel)[1](jnp.ones((2, 4, 4, 16)))

    once = 2 * (2 * 4 * 4 * 16) * (2 * 2 * 16 // groups)
    assert flops(jax.make_jaxpr(forward)(images, kernel).jaxpr) == once
    assert flops(jax.make_jaxpr(lambda x, k: (forward(x, k), backward(x, k)))(images, kernel).jaxpr) == 4 * once


def test_flops_of_a_transposed_convolution():
    images, kernel = jnp.zeros((1, 4, 4, 8)), jnp.zeros((2, 2, 8, 4))
    jaxpr = jax.make_jaxpr(lambda x, k: conv_transpose(x, k, (2, 2), ((0, 0), (0, 0))))(images, kernel).jaxpr
    assert flops(jaxpr) == 2 * (4 * 4 * 8) * (2 * 2 * 4)


def test_peak_is_the_largest_sum_of_live_arrays():
    def f(x):
        a = x * 2
        b = a + 1
        return (a * b).sum()

    jaxpr = jax.make_jaxpr(f)(jnp.ones(1000)).jaxpr
    assert peak_bytes(jaxpr) == 3 * 4000


def claim(**changes):
    return Claim(
        **{"id": "toy.m", "text": "", "metric": "x", "better": "higher", "method": "m", "baseline": ("b",)} | changes
    )


def test_verdict_is_of_the_paired_t_interval():
    five = [1.0, 1.1, 1.0, 0.9, 1.0]
    assert verdict(claim(), {"m": [2.0, 2.1, 2.2, 2.0, 2.1], "b": five}) == "shows"
    assert verdict(claim(), {"m": [2.0, 0.5, 1.0, 2.0, 0.9], "b": five}) == "does not show here"
    assert verdict(claim(), {"m": five, "b": [2.0, 2.1, 2.2, 2.0, 2.1]}) == "does not show here"
    assert verdict(claim(better="lower"), {"m": five, "b": [2.0, 2.1, 2.2, 2.0, 2.1]}) == "shows"
    assert verdict(claim(), {"m": [2.0, 2.1, 2.2, 2.0], "b": [1.0, 1.0, 1.1, 1.0]}) == "undecided"
    both = {"m": [2.0, 2.1, 2.2, 2.0, 2.1], "b": five, "c": [2.0, 2.2, 2.1, 2.1, 2.0]}
    assert verdict(claim(baseline=("b", "c")), both) == "does not show here"


def test_gains_have_the_interval_of_a_paired_t_test():
    """The differences 1 to 5: mean 3, standard deviation sqrt(2.5); t(0.975, 4) = 2.776445 from tables."""
    mean, low, high = gains(claim(), {"m": [1.0, 3.0, 5.0, 7.0, 9.0], "b": [0.0, 1.0, 2.0, 3.0, 4.0]})["b"]
    chex.assert_trees_all_close((mean, low, high), (3.0, 3 - 2.776445 * 0.5**0.5, 3 + 2.776445 * 0.5**0.5), atol=1e-6)
    assert gains(claim(better="lower"), {"m": [1.0, 2.0, 3.0], "b": [2.0, 3.0, 4.0]})["b"] == (1.0, 1.0, 1.0)


def test_claims_that_cannot_be_measured_raise():
    with pytest.raises(ValueError, match=r"claim 'toy\.m': better is 'up'"):
        claim(better="up")
    with pytest.raises(ValueError, match="seeds is 1, expected 2 or more"):
        claim(seeds=1)


def test_a_claim_runs_both_sides_over_seeds(toy, capsys):
    helps = claim(metric="accuracy", method="dropout", baseline=("synthetic",))
    runs = Runs("toy", toy, {"train.steps": 1, "train.log_every": 1})
    row = measure(runs, helps, range(1000, 1002))
    assert {k: len(v) for k, v in row["values"].items()} == {"synthetic": 2, "dropout": 2}
    assert row["verdict"] == "undecided"
    json.dumps(row)


def test_further_seeds_are_added_to_a_row(monkeypatch):
    monkeypatch.setattr(Runs, "metrics", lambda self, preset, seed: {"x": seed + (preset == "m")})
    first = measure(Runs("toy", None), claim(), range(1000, 1003))
    both = measure(Runs("toy", None), claim(text="reworded"), range(1003, 1005), first)
    assert both["seeds"] == [1000, 1001, 1002, 1003, 1004]
    assert both["values"] == {"b": [1000, 1001, 1002, 1003, 1004], "m": [1001, 1002, 1003, 1004, 1005]}
    assert (first["verdict"], both["verdict"], both["gains"]) == ("undecided", "shows", {"b": [1, 1, 1]})
    assert both["claim"] == "reworded"
    check_same(claim(seeds=9), both)
    for change in ({"metric": "y"}, {"better": "lower"}, {"method": "n"}, {"baseline": ("b", "c")}):
        with pytest.raises(ValueError, match=f"the recorded {next(iter(change))} is .* measure anew"):
            check_same(claim(**change), both)


def test_presets_that_differ_only_in_evaluation_are_trained_once(monkeypatch):
    trained = []
    monkeypatch.setattr(app, "run", lambda config, *_, **__: (trained.append(config) or "state", Report({"x": 1.0})))
    module = types.SimpleNamespace(
        get_config=lambda preset: app.preset(
            {"seed": 0, "model": {"width": 1}, "eval": {"by": ""}},
            {"a": {}, "b": {"eval.by": "b"}, "c": {"model.width": 2}},
            preset,
        ),
        build=lambda config: Experiment(lambda state: Report({"x": 2.0 + (state == "state")})),
    )
    runs = Runs("toy", module)
    assert [runs.metrics(preset, 0)["x"] for preset in ("a", "a", "b", "c")] == [1.0, 1.0, 3.0, 1.0]
    assert [config.model.width for config in trained] == [1, 2]
    assert runs.metrics("b", 1)["x"] == 1.0  # another seed trains again


def test_report_is_one_self_contained_page(tmp_path):
    figure, axis = new_figure(3, 2)
    axis.plot([1, 2])
    report = Report(
        {"a<b": 0.5}, {"T": [{"x": 1, "y": "z"}], "none": []}, {"F": figure}, {"I": np.zeros((4, 4, 3), np.uint8)}
    ) | Report({}, images={"A": np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)}, notes={"a<b": "a rate"})
    history = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0}, {"step": 2, "eval/once": 1.0}]
    run = circumstances(types.SimpleNamespace(params={"a": np.zeros((2, 3)), "b": np.zeros(4)}), 61.6)
    write_html(tmp_path / "r.html", "title", report, history, "config", "about", run)
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/png;base64") == 4
    assert "a&lt;b" in page and "<p>a&lt;b: a rate.</p>" in page
    assert "http" not in page
    for name, value in (("commit", commit()), ("parameters", 10), ("seconds of this command", 62)):
        assert f"<td>{name}</td><td>{value}</td>" in page
    assert f"jax {jax.__version__}, " in page and f"{jax.device_count()} x {jax.devices()[0].device_kind}" in page
    assert "parameters" not in circumstances(None, 0.0)
    assert len(curves(history).axes) == 1
    assert image_grid(np.zeros((5, 4, 6, 3), np.uint8), 3).shape == (8, 18, 3)


def test_notebooks_show_figures_without_pyplot():
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(new_figure(3, 2)[0])
    assert shown["image/png"].startswith(b"\x89PNG")


def test_a_sequence_of_images_is_an_animation():
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
    found = Image.open(io.BytesIO(_image_png(frames)))
    assert found.n_frames == 3 and found.info["duration"] == FRAME_MILLISECONDS and found.info["loop"] == 0
    np.testing.assert_array_equal([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(found)], frames)
    np.testing.assert_array_equal(Image.open(io.BytesIO(_image_png(frames[0]))), frames[0])


def test_schedules():
    cosine = optim.schedule("cosine", 1.0, 100, warmup=10)
    np.testing.assert_allclose([cosine(i) for i in (0, 5, 10, 55, 100)], [0, 0.5, 1, 0.5, 0], atol=1e-6)
    step = optim.schedule("step", 0.1, 30, boundaries=(10, 20))
    np.testing.assert_allclose([step(i) for i in (9, 10, 11, 21)], [0.1, 0.01, 0.01, 0.001], rtol=1e-5)
    linear = optim.schedule("polynomial", 0.1, 10)
    np.testing.assert_allclose([linear(i) for i in (0, 5, 10)], [0.1, 0.05, 0], atol=1e-7)
    noam = optim.schedule("inverse_sqrt", 1.0, 100, warmup=4)
    np.testing.assert_allclose([noam(i) for i in (2, 4, 16)], [0.5, 1, 0.5], rtol=1e-6)
    falling = optim.schedule("exponential", 1e-2, 104, warmup=4, end=1e-4)
    np.testing.assert_allclose([falling(i) for i in (2, 4, 54, 104)], [5e-3, 1e-2, 1e-3, 1e-4], rtol=1e-4)
    with pytest.raises(ValueError, match=r"schedule.end is 0.0: an exponential schedule needs one above 0"):
        optim.schedule("exponential", 1.0, 10)
    with pytest.raises(ValueError, match="expected one of constant, cosine"):
        optim.schedule("cosin", 1.0, 10)


def test_boundaries_that_fall_on_one_step_all_count():
    step = optim.schedule("step", 1.0, 20, warmup=2, boundaries=(10, 10, 15))
    np.testing.assert_allclose([step(i) for i in (9, 10, 15)], [1, 0.01, 0.001], rtol=1e-5)
    plan = {"kind": "step", "peak": 1.0, "boundaries": (0.5, 0.52)}
    tx = optim.from_config({"name": "sgd", "momentum": 0.0, "schedule": plan}, 20)
    state, moves = tx.init(jnp.zeros(())), []
    for _ in range(11):
        move, state = tx.update(jnp.ones(()), state)
        moves.append(float(move))
    np.testing.assert_allclose(moves[9:], [-1, -0.01], rtol=1e-5)


def test_sgd_equals_pytorch():
    """v = 0.9 v + g + wd w; w -= lr v, by hand for two steps."""
    tx = optim.optimizer("sgd", 0.1, weight_decay=0.01)
    params, state = {"w": jnp.array([2.0])}, tx.init({"w": jnp.array([2.0])})
    w, v = 2.0, 0.0
    for g in (1.0, -0.5):
        updates, state = tx.update({"w": jnp.array([g])}, state, params)
        params = optax.apply_updates(params, updates)
        v = 0.9 * v + g + 0.01 * w
        w -= 0.1 * v
        np.testing.assert_allclose(params["w"], w, rtol=1e-6)


def test_decay_and_clipping_apply_to_the_selected_parameters():
    params = {"backbone": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "head": jnp.ones((2, 2))}
    decay = optim.optimizer("adamw", 1.0, weight_decay=0.1, decay="kernels")
    updates, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
    np.testing.assert_allclose(updates["backbone"]["bias"], 0)
    np.testing.assert_allclose(updates["head"], -0.1)
    clipped = optim.optimizer("sgd", 1.0, momentum=0.0, clip=1.0, clip_only="backbone")
    updates, _ = clipped.update(jax.tree.map(lambda p: 10 * p, params), clipped.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates["backbone"]), 1, rtol=1e-5)
    np.testing.assert_allclose(updates["head"], -10)


def test_fractional_boundaries_scale_with_the_steps():
    config = {"name": "sgd", "momentum": 0.0, "schedule": {"kind": "step", "peak": 1.0, "boundaries": (0.5,)}}
    tx = optim.from_config(config, 4)
    params = {"w": jnp.zeros(1)}
    state, moves = tx.init(params), []
    for _ in range(4):
        updates, state = tx.update({"w": jnp.ones(1)}, state, params)
        moves.append(float(updates["w"][0]))
    np.testing.assert_allclose(moves, [-1, -1, -0.1, -0.1], rtol=1e-5)


def test_seeds_of_a_run(tmp_path):
    code, out, err = command("--seeds=2", f"--workdir={tmp_path}", *FAST)
    assert code == 0, err
    assert {"seed0", "seed1"} == {p.name for p in tmp_path.iterdir()}
    each = [float(line.split()[1]) for line in out.splitlines() if line.startswith("accuracy") and "+-" not in line]
    both = next(line.split() for line in out.splitlines() if line.endswith("(2 seeds)"))
    assert both[0] == "accuracy"
    assert len(each) == 2
    assert float(both[1]) == pytest.approx(np.mean(each), abs=1e-4)
    assert float(both[3]) == pytest.approx(np.std(each, ddof=1), abs=2e-4)


def test_speed_counts_the_examples_of_every_step(capsys, monkeypatch):
    """40 examples in two seconds and two of four steps: two seconds are left."""
    clock = iter((10.0, 12.0))
    monkeypatch.setattr(logging.time, "monotonic", lambda: next(clock))
    logger = logging.Logger(None, Progress(), 4)
    logger._lines = True
    logger.train(2, {"loss": 1.0}, 40)
    assert capsys.readouterr().out == "step 2/4  loss 1  20 samples/s  2 s left\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"config\.json: holds a list, expected a dict"),
        ("{", r"config\.json: not a readable JSON file"),
        ('{"experiment": 3}', r"config\.json: no experiment and no config, expected the file of a run"),
    ],
)
def test_a_damaged_config_is_named(tmp_path, toy, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        app.run(toy.get_config(), toy.build, name="toy", workdir=tmp_path, quiet=True)


def test_a_damaged_log_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a point of a log"):
        read_metrics(tmp_path / "metrics.jsonl")
