import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones import vgg
from facejax.data.synthetic.faces import png
from facejax.quality import rankiqa


def test_parameter_count(count):
    assert count(vgg.vgg16(num_classes=1), 1, 224, 224, 3, train=False)[0] == 134_264_641


def test_ranking_loss():
    zero = jnp.zeros(3, int)
    chex.assert_trees_all_close(
        rankiqa.ranking_loss(jnp.array([5.0, 0, -20]), jnp.arange(3), zero), jnp.array(5 / 3), rtol=1e-6
    )
    assert rankiqa.ranking_loss(-10.0 * jnp.arange(3), jnp.arange(3), zero) == 0
    with pytest.raises(ValueError, match="ranking_loss"):
        rankiqa.ranking_loss(jnp.zeros(3), jnp.arange(3), jnp.zeros(2, int))


def test_ranking_loss_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    scores, level, group = rng.normal(size=24), np.tile(np.arange(4), 6), np.repeat([0, 1], 12)

    def loss(scores):
        return rankiqa.ranking_loss(scores, jnp.asarray(level), jnp.asarray(group), margin=1.0)

    pairs = [(i, j) for i in range(24) for j in range(24) if level[i] < level[j] and group[i] == group[j]]
    naive = sum(max(0.0, 1 - (scores[i] - scores[j])) for i, j in pairs) / 24
    found = loss(jnp.asarray(scores))
    chex.assert_trees_all_close(found, naive, rtol=1e-5)
    chex.assert_trees_all_close(loss(jnp.asarray(scores) + 3), found, rtol=1e-4)
    active = [(i, j) for i, j in pairs if scores[i] - scores[j] < 1]
    counted = [(sum(j == k for _, j in active) - sum(i == k for i, _ in active)) / 24 for k in range(24)]
    chex.assert_trees_all_close(np.asarray(jax.grad(loss)(jnp.asarray(scores))), np.array(counted), rtol=1e-5)


def test_equal_scores_break_every_pair():
    slope = jax.grad(lambda s: rankiqa.ranking_loss(s, jnp.arange(4), jnp.zeros(4, int)))(jnp.ones(4))
    chex.assert_trees_all_close(slope, jnp.array([-3.0, -1, 1, 3]) / 4)


def test_presets_trace(presets_trace):
    presets_trace("rankiqa")


def test_smoke(smoke):
    _, report = smoke("rankiqa:synthetic", **{"train.batch_size": 32})
    assert -1 <= report.metrics["srocc"] <= 1
    assert {"Score over level", "Error over discarded"} <= report.figures.keys()


def test_pictures_of_people_seen_once(smoke, tmp_path):
    """Nothing can be verified with them: levels are judged alone."""
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / f"p{i}").mkdir()
        (tmp_path / f"p{i}" / "0.png").write_bytes(png(rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)))
    _, report = smoke(
        "rankiqa:synthetic", **{"train.batch_size": 32, "data.source": "path", "data.path": str(tmp_path)}
    )
    assert report.metrics.keys() == {"srocc", "neighbours_ranked"}


def test_ladders_are_not_cut(cut):
    cut("rankiqa:synthetic", "16 of 32 pictures meet on a device", **{"train.batch_size": 32, "train.devices": 2})
    cut("rankiqa:synthetic", "16 of 32 pictures meet on a device", **{"train.batch_size": 32, "train.microbatches": 2})


def test_bad_input(refuses):
    refuses("rankiqa:synthetic", "train.batch_size is 20: expected room for ladders of 24", **{"train.batch_size": 20})
