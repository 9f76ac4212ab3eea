import gzip

import jax
import pytest

from experiments import transformer as experiment
from facejax.data.synthetic import language
from facejax.train import Options, app
from facejax.train.dry_run import dry_run

SMALL = {
    "data.pairs": 60, "data.test_pairs": 6, "model.width": 16, "model.heads": 2, "model.hidden": 16, "model.layers": 1,
    "train.batch_size": 128, "train.steps": 3, "train.log_every": 1, "eval.batch_size": 8, "eval.beam": 2,
}  # fmt: skip


@pytest.mark.parametrize("preset", ["synthetic", "recurrent"])
def test_smoke(preset, tmp_path):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(SMALL)
    _, report = app.run(config, experiment.build, workdir=tmp_path, quiet=True)
    assert 0 <= report.metrics["exact_match"] <= 100
    assert len(report.tables["Translations"]) == 6
    assert ("Attention to the source" in report.figures) == (preset == "synthetic")


def test_files_in_two_buckets(tmp_path):
    pytest.importorskip("tokenizers")
    for part, seed in (("train", 0), ("new", 1)):
        for name, side in zip(("en", "de"), zip(*language.pairs(40, seed), strict=True), strict=True):
            (tmp_path / f"{part}.{name}.gz").write_bytes(gzip.compress("\n".join(side).encode()))
    config = experiment.get_config("small_multi30k")
    changes = {"data.path": str(tmp_path), "data.test": "new", "data.byte_pairs": 120, "data.lengths": (16, 64)}
    config.update_from_flattened_dict({**SMALL, **changes})
    _, report = app.run(config, experiment.build, quiet=True)
    assert 0 <= report.metrics["bleu"] <= 100
    config.data.test = "absent"
    with pytest.raises(FileNotFoundError, match=r"absent\.en"):
        experiment.corpus(config)


PARAMETERS = {
    "base_wmt14": 63_045_632,
    "big_wmt14": 214_171_648,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_full_scale_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    assert costs["parameters"] == PARAMETERS[preset]


def test_small_multi30k_dry_run():
    config = experiment.get_config("small_multi30k")
    net = experiment.make_network(config, config.data.byte_pairs)
    shapes = jax.eval_shape(
        lambda key: net.init(key, *(jax.numpy.ones((1, 4), int),) * 2, train=False), jax.random.key(0)
    )
    layers = sum(x.size for x in jax.tree.leaves(shapes["params"])) - config.data.byte_pairs * 128
    assert layers == 4 * (132_480 + 198_784)  # encoder and decoder layers with biases


def test_bad_words_are_said():
    config = experiment.get_config()
    config.model.kind = "lstm"
    with pytest.raises(
        ValueError, match=r"model\.kind 'lstm': expected grammar or files, and transformer or recurrent"
    ):
        experiment.build(config)
