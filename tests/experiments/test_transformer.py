import gzip

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import transformer as experiment
from facejax.data import text
from facejax.data.synthetic import language
from facejax.foundations import transformer
from facejax.train import Options, app, optim, parallel
from facejax.train.dry_run import dry_run

SMALL = {
    "data.pairs": 60, "data.test_pairs": 6, "model.width": 16, "model.heads": 2, "model.hidden": 16, "model.layers": 1,
    "train.batch_size": 128, "train.steps": 3, "train.log_every": 1, "eval.batch_size": 8, "eval.beam": 2,
}  # fmt: skip


def test_files_without_a_folder_raise():
    with pytest.raises(ValueError, match=r"data\.path is empty: expected a folder with train and test files"):
        experiment.corpus(experiment.get_config("small_multi30k"))


@pytest.mark.parametrize("preset", ["synthetic", "recurrent"])
def test_smoke(preset, tmp_path):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(SMALL)
    _, report = app.run(config, experiment.build, workdir=tmp_path, quiet=True)
    assert 0 <= report.metrics["exact_match"] <= 100
    assert len(report.tables["Translations"]) == 6
    assert ("Attention to the source" in report.figures) == (preset == "synthetic")


@pytest.mark.parametrize(("devices", "microbatches"), [(1, 1), (1, 4), (2, 2), (8, 1)])
def test_every_token_of_the_global_batch_counts_alike(devices, microbatches, monkeypatch):
    monkeypatch.setattr(optim, "optimizer", lambda *a, **k: optax.sgd(1.0))
    config = experiment.get_config()
    config.update_from_flattened_dict({**SMALL, "model.dropout": 0.0, "train.microbatches": microbatches})
    built, net = experiment.build(config), experiment.make_network(config, len(text.Words(language.words())))
    rng = np.random.default_rng(0)
    source, target = rng.integers(4, 20, (2, 8, 16)).astype(np.int32)
    target[np.arange(16) >= np.array([1, 2, 16, 15, 3, 1, 9, 4])[:, None]] = text.PAD

    def loss(params):
        logits = net.apply({"params": params}, source, text.shift(target), train=False)
        losses = transformer.smoothed_cross_entropy(logits, target, 0.1)
        return jnp.sum(losses, where=target != text.PAD) / np.sum(target != text.PAD)

    executor = parallel.make_executor(built, "shard_map", devices)
    start = executor.init(0)
    value, slope = jax.jit(jax.value_and_grad(loss))(start.params)
    expected = jax.tree.map(lambda p, g: np.asarray(p - g), start.params, slope)
    batch = {"source": source.ravel(), "target": target.ravel(), "bucket": np.zeros(128, np.int32)}
    state, metrics = executor.step(start, executor.put(batch))
    chex.assert_trees_all_close(jax.tree.map(np.asarray, state.params), expected, rtol=1e-5, atol=1e-5)
    assert float(metrics["loss"].total / metrics["loss"].count) == pytest.approx(float(value), rel=1e-5)
    assert metrics["loss"].count == 51


def test_files_in_two_buckets(tmp_path):
    pytest.importorskip("tokenizers")
    for part, seed in (("train", 0), ("new", 1)):
        for name, side in zip(("en", "de"), zip(*language.pairs(40, seed), strict=True), strict=True):
            (tmp_path / f"{part}.{name}.gz").write_bytes(gzip.compress("\n".join(side).encode()))
    config = experiment.get_config("small_multi30k")
    changes = {"data.path": str(tmp_path), "data.test": "new", "data.byte_pairs": 120, "data.lengths": (16, 64)}
    config.update_from_flattened_dict({**SMALL, **changes})
    state, report = app.run(config, experiment.build, quiet=True)
    assert set(report.metrics) == {"bleu_lower", "exact_match"}
    assert 0 <= report.metrics["bleu_lower"] <= 100
    config.data.lower = False
    assert set(experiment.build(config).evaluate(state).metrics) == {"bleu", "bleu_lower", "exact_match"}
    config.data.test = "absent"
    with pytest.raises(ValueError, match=r"absent\.en"):
        experiment.corpus(config)
    for sentences, message in (
        (["", " ", "\t"], r"long has no pair without an empty line, expected one sentence per line"),
        (["a b", "c"], r"long\.en 2 and long\.de 3 sentences, expected equally many"),
        (["a", "b", "c " * 90], "sentence 2 has 91 tokens with its end, expected at most 64"),
    ):
        (tmp_path / "long.en").write_text("\n".join(sentences))
        (tmp_path / "long.de").write_text("a\nb\nc")
        config.data.test = "long"
        with pytest.raises(ValueError, match=message):
            experiment.build(config).evaluate(None)


PARAMETERS = {
    "base_wmt14": 63_045_632,
    "big_wmt14": 214_171_648,
    "small_multi30k": 2_605_056,  # 10,000 x 128 and 4 x (132,480 + 198,784), with the attention's biases
    "small_multi30k_cpu": 2_605_056,
    "small_multi30k_minutes": 2_605_056,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_full_scale_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    assert costs["parameters"] == PARAMETERS[preset]


def test_unknown_names_raise():
    config = experiment.get_config()
    config.model.kind = "lstm"
    with pytest.raises(
        ValueError, match=r"model\.kind 'lstm': expected grammar or files, and transformer or recurrent"
    ):
        experiment.build(config)
