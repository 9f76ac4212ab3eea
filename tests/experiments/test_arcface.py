import importlib
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import __main__ as catalog
from experiments import arcface
from facejax.data.readers.recordio import write_records
from facejax.interop import arcface_torch
from facejax.train import Options, app, parallel
from facejax.train.dry_run import dry_run
from tests.selection import full_but


def smoke(path, **changes):
    config = arcface.get_config("folder")
    config.update_from_flattened_dict(
        {
            "data.path": str(path), "data.image_size": 16, "data.held_out": 0.25, "data.classes": 6,
            "model.name": "tiny", "model.embedding_size": 8, "train.steps": 3, "train.batch_size": 8,
            "train.log_every": 1, "eval.batch_size": 8,
            **changes,
        }
    )  # fmt: skip
    return config


def finished(workdir, report, steps, metric="tar_at_far_1e-1"):
    """Checks what every run leaves; returns the training losses."""
    assert 0 <= report.metrics[metric] <= 1
    assert (workdir / "report.html").stat().st_size > 20_000
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*steps, steps[-1]]
    return [line["train/loss"] for line in lines[:-1]]


def test_smoke_of_a_sharded_head(photographs, tmp_path):
    config = smoke(photographs, **{"loss.sharded": True, "loss.sample_rate": 0.5, "data.augment": "dali"})
    _, report = app.run(config, arcface.build, workdir=tmp_path, quiet=True)
    assert report.arrays["embeddings"].shape == (8, 8)
    finished(tmp_path, report, [1, 2, 3])


@pytest.mark.parametrize("kind", ["softmax", "arcnegface"])
def test_a_step_of_other_losses(photographs, kind):
    run = arcface.build(smoke(photographs, **{"loss.kind": kind, "train.devices": 1}))
    executor, batches = parallel.make_executor(run, "shard_map", 1), run.train_data()
    state = executor.init(0)
    before = np.asarray(state.params["head"])
    for _ in range(2):
        state, metrics = executor.step(state, executor.put(next(batches)))
    batches.close()
    assert np.isfinite(float(metrics["loss"].total)) and (np.asarray(state.params["head"]) != before).any()


def test_training_lowers_the_loss_of_people_it_sees_and_packs_are_evaluated(photographs, pack, tmp_path):
    config = smoke(photographs, **{"train.steps": 30, "train.log_every": 10, "eval.packs": str(pack)})
    _, report = app.run(config, arcface.build, workdir=tmp_path / "run", save_arrays=tmp_path / "arrays", quiet=True)
    assert jax.device_count() == 8
    losses = finished(tmp_path / "run", report, [10, 20, 30], "mine_accuracy")
    assert losses[-1] < 0.9 * losses[0]
    assert np.load(tmp_path / "arrays" / "mine_embeddings.npy").shape == (40, 8)


def test_a_pack_trains_in_chunks_and_labels_beyond_the_classes_raise(photographs, tmp_path):
    images = [((photographs / f"p{i % 8}" / "0.png").read_bytes(), i % 8) for i in range(16)]
    write_records(tmp_path, images, (24, 24))
    config = smoke(tmp_path, **{"data.classes": 6, "loss.chunk": 4})
    _, report = app.run(config, arcface.build, workdir=tmp_path / "run", quiet=True)
    finished(tmp_path / "run", report, [1, 2, 3])
    with pytest.raises(ValueError, match=r"found label 7 with data\.classes 4: expected 0 to 3"):
        everybody = {"data.classes": 4, "data.held_out": 0.0, "eval.packs": "mine.bin"}
        app.run(smoke(tmp_path, **everybody), arcface.build, quiet=True)


def test_the_data_and_the_packs_are_checked_before_training(photographs, pack):
    """Nothing is compiled: six of eight people train."""
    for changes, message in (
        ({"data.classes": 5}, r"found label 5 with data\.classes 5: expected 0 to 4 \(data\.classes=0 counts"),
        ({"data.path": "nowhere"}, "nowhere: expected a folder that contains"),
        ({"eval.packs": f"{pack},nowhere.bin"}, r"nowhere\.bin"),
        ({"eval.packs": __file__}, "not a verification pack"),
    ):
        experiment = arcface.build(smoke(photographs, **{"data.classes": 6} | changes))
        with pytest.raises((ValueError, OSError), match=message):
            experiment.train_data()
    with pytest.warns(UserWarning, match=r"6 classes with data\.classes 9"):
        arcface.build(smoke(photographs, **{"data.classes": 9})).train_data().close()


@pytest.mark.parametrize(("name", "reader"), [("arcface", "load"), ("vpl", "load"), ("magface", "load_magface")])
def test_training_begins_with_published_weights(monkeypatch, name, reader):
    def load(path, template):
        assert path == "published.pth"
        return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), template)

    monkeypatch.setattr(arcface_torch, reader, load)
    experiment = importlib.import_module(f"experiments.{name}")
    config = experiment.get_config()
    assert experiment.build(config).prepare is None
    config.start.weights = "published.pth"
    run = experiment.build(config)
    state = jax.jit(run.init)(jax.random.key(0), run.prepare())
    batch_stats = state.model_state.get("batch_stats", state.model_state)
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves((state.params["backbone"], batch_stats)))
    assert np.std(state.params["head"]) > 0
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, run.abstract_state(0))


@pytest.mark.parametrize("name", ["magface", "virface"])
def test_packs_are_checked_before_training_on_the_face_world(name):
    experiment = importlib.import_module(f"experiments.{name}")
    config = experiment.get_config()
    config.eval.packs = "nowhere.bin"
    with pytest.raises(ValueError, match=r"nowhere\.bin: not a verification pack"):
        experiment.build(config).train_data()


@pytest.mark.parametrize(("held_out", "packs", "expected"), [(0.25, "", 6), (0.0, "mine.bin", 8)])
@pytest.mark.parametrize("name", ["arcface", "magface", "vpl", "groupface", "virface"])
def test_classes_0_counts_the_training_identities(photographs, capsys, name, held_out, packs, expected):
    module = importlib.import_module(f"experiments.{name}")
    config = module.get_config("virclass" if name == "virface" else "synthetic")
    config.update_from_flattened_dict(
        {"data.source": "path", "data.path": str(photographs), "data.classes": 0, "data.held_out": held_out,
         "eval.packs": packs}
    )  # fmt: skip
    state = module.build(config).abstract_state(0)
    assert state.params["head"].shape[0] == expected
    assert f"data.classes: {expected}, counted in the data" in capsys.readouterr().out
    assert config.data.classes == 0


def test_a_run_without_anybody_to_verify_does_not_begin(photographs):
    experiment = arcface.build(smoke(photographs, **{"data.held_out": 0.0}))
    sentence = r"no identity is held out for verification: set data\.held_out or eval\.packs"
    with pytest.raises(ValueError, match=sentence):
        experiment.train_data()


def test_unknown_options_raise(photographs):
    with pytest.raises(ValueError, match=r"model\.name is 'resnet51': expected one of tiny, iresnet18"):
        arcface.build(smoke(photographs, **{"model.name": "resnet51"}))
    with pytest.raises(ValueError, match=r"loss\.kind is 'sphere': expected 'margin', 'arcnegface' or 'softmax'"):
        app.run(smoke(photographs, **{"loss.kind": "sphere"}), arcface.build, quiet=True)
    with pytest.raises(ValueError, match="'arcnegface' needs the dense head: set"):
        app.run(smoke(photographs, **{"loss.kind": "arcnegface", "loss.chunk": 4}), arcface.build, quiet=True)
    with pytest.raises(ValueError, match=r"data\.augment is 'more': expected one of flip, dali"):
        arcface.build(smoke(photographs, **{"data.augment": "more"})).train_data()
    with pytest.raises(ValueError, match="no identity is held out for verification"):
        app.run(smoke(photographs, **{"data.held_out": 0.0, "data.classes": 8}), arcface.build, quiet=True)


PARAMETERS = {
    "casia_r50": 43_590_336 + 10_572 * 512,
    "ms1mv2_r100": 65_155_648 + 85_744 * 512,
    "ms1mv3_mbf": 2_059_520 + 93_432 * 512,
    "ms1mv3_r50": 43_590_336 + 93_432 * 512,
    "ms1mv3_r100": 65_155_648 + 93_432 * 512,
    "glint360k_r100": 65_155_648 + 360_232 * 512,
    "webface42m_r100_pfc02": 65_155_648 + 2_059_912 * 512,
}


@pytest.mark.parametrize("preset", full_but(PARAMETERS, "ms1mv3_mbf", "webface42m_r100_pfc02"))
def test_full_scale_presets_dry_run(preset):
    """Class rows are padded to a multiple of the devices."""
    config = arcface.get_config(preset)
    costs = dry_run(arcface.build(config), Options(**config.train))
    assert costs["parameters"] == PARAMETERS[preset]
    macs = {"mobilefacenet": 0.4375e9, "iresnet50": 6.31e9, "iresnet100": 12.09e9}[config.model.name]
    forward_backward = costs["step flops per device"] / costs["batch per device"] / 2 / macs
    assert 2.9 < forward_backward < 8  # the head's share is the rest
    assert costs["activation bytes per device (estimate)"] > 1e8


def test_published_settings():
    config = arcface.get_config("ms1mv3_r50")
    assert config.train.steps == 5057 * 20 + (5_179_510 // 1024 - 5057) * 20
    assert config.loss.to_dict()["scale"] == 64.0
    assert config.loss.angle == 0.5
    assert arcface.get_config("casia_r50").train.steps == 32_000


def test_every_experiment_has_what_the_table_reads():
    for system in catalog.SYSTEMS:
        if system.program.exists():
            module = importlib.import_module(f"experiments.{system.program.stem}")
            assert list(module.PRESETS) == system.presets()
            assert callable(module.get_config)
            assert callable(module.build)
    assert len(catalog.SYSTEMS) == 66


def test_experiments_have_at_most_300_lines():
    files = pathlib.Path(arcface.__file__).parent.glob("*.py")
    lengths = {file.name: file.read_text().count("\n") for file in files}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_readme_table_is_up_to_date():
    readme = pathlib.Path(catalog.ROOT / "README.md").read_text()
    assert catalog.markdown() in readme, "run: python -m experiments.claims --pages"


def test_the_list_of_experiments_prints():
    done = subprocess.run(
        [sys.executable, "-m", "experiments"], capture_output=True, text=True, check=True, cwd=catalog.ROOT
    )
    assert "arcface" in done.stdout
    assert "of 66 built" in done.stdout
