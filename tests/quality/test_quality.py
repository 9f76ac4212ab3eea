"""Losses, labels and networks of the quality papers, against golden numbers, oracles and planted truths."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from experiments import faceqnet as faceqnet_experiment
from facejax.backbones import vgg
from facejax.backbones.iresnet import EmbeddingHead, IResNet
from facejax.quality import (
    eqface,
    faceqnet,
    factors,
    human_quality,
    pcnet,
    qan,
    qan_pp,
    rankiqa,
    sdd_fiqa,
    ser_fiq,
    tinyfqnet,
)
from facejax.quality.pooling import set_pool
from facejax.recognition import arcface

KEY = jax.random.key(0)


def count(net, *shape, **options):
    """Parameters and batch statistics of a network."""
    found = jax.eval_shape(lambda: net.init(KEY, jnp.zeros(shape), **options))
    return [sum(x.size for x in jax.tree.leaves(found.get(part, {}))) for part in ("params", "batch_stats")]


def test_parameter_counts():
    assert count(tinyfqnet.TinyFQNet(), 1, 48, 48, 3, train=False)[0] == 21_473
    assert count(sdd_fiqa.QualityMobileFaceNet(), 1, 112, 112, 3, train=False)[0] == 961_409
    assert count(eqface.QualityHead(), 1, 25_088, train=False)[0] == 12_847_104
    assert count(qan_pp.QualityNet(), 1, 112, 112, 3, train=False)[0] == 122_569
    assert count(vgg.vgg16(num_classes=1), 1, 224, 224, 3, train=False)[0] == 134_264_641
    assert count(faceqnet_experiment.Pooled(), 1, 224, 224, 3, train=False) == [23_508_032, 53_120]


def unit_rows(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# --- pooling


def test_pool():
    rng = np.random.default_rng(0)
    features, weights = jnp.asarray(rng.normal(size=(2, 5, 3))), jnp.asarray(rng.random((2, 5)))
    chex.assert_trees_all_close(set_pool(features, jnp.ones((2, 5))), features.mean(1), rtol=1e-5)
    chex.assert_trees_all_close(set_pool(features, 7 * weights), set_pool(features, weights), rtol=1e-5)
    one = jnp.zeros((2, 5)).at[:, 2].set(0.3)
    chex.assert_trees_all_close(set_pool(features, one), features[:, 2], rtol=1e-6)
    chex.assert_trees_all_close(set_pool(features, jnp.zeros((2, 5))), features.mean(1), rtol=1e-5)
    order = jnp.array([3, 1, 4, 0, 2])
    chex.assert_trees_all_close(set_pool(features[:, order], weights[:, order]), set_pool(features, weights), rtol=1e-5)
    padded = jnp.concatenate([features, jnp.full((2, 2, 3), 9.0)], 1)
    mask = jnp.arange(7) < jnp.full((2, 1), 5)
    for weighting in ("l1", "minmax"):
        more = jnp.concatenate([weights, jnp.full((2, 2), 99.0)], 1)
        chex.assert_trees_all_close(
            set_pool(padded, more, mask, weighting=weighting),
            set_pool(features, weights, weighting=weighting),
            rtol=1e-5,
        )
    single = set_pool(features[:, :1], weights[:, :1])
    chex.assert_trees_all_close(single, features[:, 0], rtol=1e-6)
    assert not np.any(set_pool(features, weights, jnp.zeros((2, 5), bool)))
    with pytest.raises(ValueError, match="set_pool"):
        set_pool(features, weights[:, :4])


def test_minmax_pool_leaves_the_worst_out():
    features = jnp.eye(3)
    chex.assert_trees_all_close(
        set_pool(features, jnp.array([-1.0, 0.0, 3.0]), weighting="minmax"), jnp.array([0.0, 0.2, 0.8]), rtol=1e-6
    )
    scores = jnp.array([0.3, -2.0, 1.1])
    chex.assert_trees_all_close(
        set_pool(features, 5 * scores - 4, weighting="minmax"),
        set_pool(features, scores, weighting="minmax"),
        rtol=1e-5,
    )
    for few in (jnp.array([-1.0, 1.0]), jnp.array([0.5])):
        chex.assert_trees_all_close(
            set_pool(features[: len(few)], few, weighting="minmax"), features[: len(few)].mean(0), rtol=1e-6
        )
    chex.assert_trees_all_close(set_pool(features, jnp.full(3, 2.0), weighting="minmax"), features.mean(0), rtol=1e-6)


def test_slope_of_a_weight():
    rng = np.random.default_rng(1)
    features, weights, pull = (jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (4,), (3,)))
    weights = jnp.abs(weights) + 0.1
    slope = jax.grad(lambda w: set_pool(features, w) @ pull)(weights)
    chex.assert_trees_all_close(slope, (features - set_pool(features, weights)) @ pull / weights.sum(), atol=1e-6)


# --- hand-made factors


def test_factors_see_what_they_are_for():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    smooth = np.full((1, 16, 16, 3), 128, np.uint8)
    dark = (picture // 8).astype(np.uint8)
    assert factors.sharpness(picture) > 100 * factors.sharpness(smooth)
    assert factors.exposure(smooth) > 0.99 and factors.exposure(dark) < 0.2
    assert factors.contrast(picture) > 4 * factors.contrast(dark)
    half = smooth.copy()
    half[:, :, :8] = 20
    assert factors.light_symmetry(smooth) > 0.99 > factors.light_symmetry(half) + 0.5
    five = jnp.array([[[10.0, 10], [30, 10], [20, 20], [12, 30], [28, 30]]])
    chex.assert_trees_all_close(factors.frontality(five), jnp.ones(1), atol=1e-6)
    assert factors.frontality(five.at[0, 2, 0].set(28.0))[0] < 0.25
    chex.assert_trees_all_close(factors.eye_distance(five), jnp.array([20.0]))
    with pytest.raises(ValueError, match=r"expected \[N, H, W, 3\]"):
        factors.sharpness(picture[0])


# --- tinyFQnet


def test_centre_cosine():
    rng = np.random.default_rng(0)
    people = np.repeat([4, 9], 5)
    features = rng.normal(size=(10, 6)) * rng.uniform(0.1, 9, (10, 1))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    others = unit[1:5].sum(0)
    found = tinyfqnet.centre_cosine(features, people)
    assert found[0] == pytest.approx(unit[0] @ others / np.linalg.norm(others), rel=1e-5)
    own = tinyfqnet.centre_cosine(features, people, leave_one_out=False)
    assert (own > found).all()
    same = np.tile(features[:1], (3, 1))
    chex.assert_trees_all_close(tinyfqnet.centre_cosine(same, np.zeros(3, int)), np.ones(3, np.float32), rtol=1e-6)
    with pytest.raises(ValueError, match="1 people have one picture"):
        tinyfqnet.centre_cosine(features, np.r_[0, 0, 0, 0, 1, 1, 1, 1, 1, 2])


def test_balanced_draws():
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.uniform(0.93, 1.0, 980), rng.uniform(0.0, 0.1, 20)])
    drawn = labels[tinyfqnet.balanced_draws(rng, labels)]
    assert 0.4 < np.mean(drawn < 0.5) < 0.6


# --- SDD-FIQA


def test_wasserstein():
    chex.assert_trees_all_close(
        sdd_fiqa.wasserstein(jnp.array([0.8, 0.6, 0.7]), jnp.array([0.1, 0, 0.2])), 0.6, rtol=1e-5
    )
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(20, 7)), rng.normal(size=(20, 12)) + 1
    sizes = rng.integers(1, 8, 20)
    mask = np.arange(7) < sizes[:, None]
    found = sdd_fiqa.wasserstein(jnp.asarray(first), jnp.asarray(second), jnp.asarray(mask))
    expected = [stats.wasserstein_distance(a[:n], b) for a, b, n in zip(first, second, sizes, strict=True)]
    chex.assert_trees_all_close(np.asarray(found), np.array(expected), rtol=1e-4)
    chex.assert_trees_all_close(sdd_fiqa.wasserstein(jnp.arange(3.0), jnp.arange(3.0) - 5), 5.0, rtol=1e-6)


def test_pseudo_labels_order_pictures():
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(12), 9)
    spread = np.tile(np.linspace(0.05, 1.2, 9), 12)  # the first picture of each is the best
    features = unit_rows(rng, 12, 32)[people] + spread[:, None] * unit_rows(rng, 108, 32)
    shuffled = rng.permutation(108)
    for block in (2048, 50):
        labels = np.empty(108)
        labels[shuffled] = sdd_fiqa.pseudo_labels(
            KEY, features[shuffled], people[shuffled], samples=6, rounds=4, block=block
        )
        assert labels.min() >= 0 and labels.max() <= 100
        assert stats.spearmanr(labels, -spread).statistic > 0.8
    mated = sdd_fiqa.pseudo_labels(KEY, features, people, mated_only=True)
    assert stats.spearmanr(mated, -spread).statistic > 0.8


def test_pseudo_labels_meet_whom_they_should():
    """Two people, whose pictures agree within and oppose between: every distance is 2, less where a stranger is met."""
    features = np.repeat(np.eye(2), 4, 0) * [[1.0], [1], [1], [1], [1], [1], [1], [0.0]]
    with pytest.raises(ValueError, match="equally far"):
        sdd_fiqa.pseudo_labels(KEY, np.repeat(np.eye(2), 4, 0), np.repeat([0, 1], 4), samples=2)
    labels = sdd_fiqa.pseudo_labels(KEY, features, np.repeat([0, 1], 4), samples=3, rounds=2)
    assert labels.argmin() == 7 and (labels[:4] == 100).all()
    with pytest.raises(ValueError, match="1 of them with one picture"):
        sdd_fiqa.pseudo_labels(KEY, features, np.r_[np.zeros(7, int), 1])


# --- PCNet


def test_pair_confidence():
    embeddings = jnp.asarray(unit_rows(np.random.default_rng(0), 4, 5))
    people = jnp.array([0, 0, 0, 1])
    q = jnp.array([0.2, 0.5, 0.9, 0.4])
    cosine = embeddings @ embeddings.T
    expected = np.mean([(cosine[i, j] - min(q[i], q[j])) ** 2 for i in range(3) for j in range(3) if i != j])
    chex.assert_trees_all_close(pcnet.pair_confidence_loss(q, embeddings, people), expected, rtol=1e-5)
    slope = jax.grad(pcnet.pair_confidence_loss)(q, embeddings, people)
    assert slope[0] != 0 and slope[1] != 0 and slope[2] == 0 and slope[3] == 0
    both = jax.grad(lambda q: pcnet.pair_confidence_loss(q, embeddings, people, worse_only=False))(q)
    assert both[2] != 0
    assert not np.any(jax.grad(pcnet.pair_confidence_loss, 1)(q, embeddings, people))
    assert pcnet.pair_confidence_loss(q[2:], embeddings[2:], people[2:]) == 0


def test_pair_confidence_recovers_what_was_planted():
    """Embeddings whose cosines are products of planted lengths: the worse of two tells most of it."""
    rng = np.random.default_rng(0)
    truth = np.sort(rng.uniform(0.2, 1.0, 24))
    angle = np.arccos(truth)
    embeddings = np.concatenate([np.cos(angle)[:, None], np.sin(angle)[:, None] * unit_rows(rng, 24, 200)], 1)
    loss = jax.jit(
        jax.value_and_grad(lambda q: pcnet.pair_confidence_loss(q, jnp.asarray(embeddings), jnp.zeros(24, int)))
    )
    q = jnp.full(24, 0.5)
    for _ in range(400):
        q = q - 1.5 * loss(q)[1]
    assert stats.spearmanr(q[:-1], truth[:-1]).statistic > 0.95


# --- SER-FIQ


def test_robustness():
    axes = jnp.eye(4)[:, None]
    chex.assert_trees_all_close(ser_fiq.robustness(axes), jnp.array([0.3911406350]), rtol=1e-5)
    chex.assert_trees_all_close(ser_fiq.robustness(axes, as_printed=True), jnp.array([0.5143666305]), rtol=1e-5)
    chex.assert_trees_all_close(ser_fiq.robustness(jnp.ones((5, 2, 3))), jnp.ones(2), atol=1e-3)
    draws = jax.random.normal(KEY, (6, 3, 8))
    chex.assert_trees_all_close(ser_fiq.robustness(draws[::-1]), ser_fiq.robustness(draws), rtol=1e-5)
    chex.assert_trees_all_close(ser_fiq.robustness(9 * draws), ser_fiq.robustness(draws), rtol=1e-5)
    assert np.isfinite(ser_fiq.robustness(jnp.zeros((3, 1, 4)))).all()
    assert (np.diff(ser_fiq.rescaled(jnp.array([0.86, 0.88, 0.9]))) > 0).all()
    with pytest.raises(ValueError, match="T of 2 or more"):
        ser_fiq.robustness(draws[:1])


def test_head_repeats_what_the_network_ends_with():
    net = IResNet((1, 1), (4, 8), embedding_size=6, dropout=0.4)
    images = jax.random.normal(KEY, (3, 16, 16, 3))
    variables = net.init(KEY, images, train=False)
    maps = net.apply(variables, images, train=False, features=True)
    head = EmbeddingHead(6, 0.4)
    plain = head.apply(variables, maps["stage2"], train=False)
    chex.assert_trees_all_close(plain, maps["embedding"], rtol=1e-6)

    def embed(key):
        return head.apply(variables, maps["stage2"], train=False, drop=True, rngs={"dropout": key})

    draws = ser_fiq.stochastic_embeddings(embed, KEY, 300)
    assert draws.shape == (300, 3, 6)
    assert len(np.unique(np.asarray(draws)[:, 0, 0])) == 300
    error = np.abs(draws.mean(0) - plain) / (draws.std(0) / np.sqrt(300))
    assert error.max() < 5  # inverted dropout keeps the mean


def test_on_top_head():
    net = ser_fiq.OnTop(5, (8, 12))
    variables = net.init(KEY, jnp.ones((2, 4)), drop=False, classify=True)
    assert net.apply(variables, jnp.ones((2, 4)), drop=False).shape == (2, 12)
    assert net.apply(variables, jnp.ones((2, 4)), drop=False, classify=True).shape == (2, 5)


# --- FaceQnet


def test_gallery_labels():
    rng = np.random.default_rng(0)
    features, people = rng.normal(size=(8, 5)), np.repeat([3, 7], 4)
    compliance = np.array([0, 1, 2, 1, 5, 0, 0, 1])
    labels = faceqnet.gallery_labels(features, people, compliance)
    assert labels.min() == 0 and labels.max() == 1
    assert labels[2] == labels[4] == 1
    chex.assert_trees_all_close(faceqnet.gallery_labels(3 * features, people, compliance), labels, rtol=1e-5)
    fused = faceqnet.fused_labels(np.stack([labels, 1 - labels]))
    chex.assert_trees_all_close(fused, np.full(8, 0.5, np.float32), rtol=1e-6)
    with pytest.raises(ValueError, match="are equal"):
        faceqnet.gallery_labels(features, np.arange(8), compliance)


# --- RankIQA


def test_ranking_loss():
    zero = jnp.zeros(3, int)
    chex.assert_trees_all_close(
        rankiqa.ranking_loss(jnp.array([5.0, 0, -20]), jnp.arange(3), zero), jnp.array(5 / 3), rtol=1e-6
    )
    rng = np.random.default_rng(0)
    scores, level, group = rng.normal(size=24), np.tile(np.arange(4), 6), np.repeat([0, 1], 12)
    pairs = [(i, j) for i in range(24) for j in range(24) if level[i] < level[j] and group[i] == group[j]]
    naive = sum(max(0.0, 1 - (scores[i] - scores[j])) for i, j in pairs) / 24
    found = rankiqa.ranking_loss(jnp.asarray(scores), jnp.asarray(level), jnp.asarray(group), margin=1.0)
    chex.assert_trees_all_close(found, naive, rtol=1e-5)
    slope = jax.grad(lambda s: rankiqa.ranking_loss(s, jnp.asarray(level), jnp.asarray(group), margin=1.0))(
        jnp.asarray(scores)
    )
    active = [(i, j) for i, j in pairs if scores[i] - scores[j] < 1]
    counted = [(sum(j == k for _, j in active) - sum(i == k for i, _ in active)) / 24 for k in range(24)]
    chex.assert_trees_all_close(np.asarray(slope), np.array(counted), rtol=1e-5)
    assert rankiqa.ranking_loss(-10.0 * jnp.arange(3), jnp.arange(3), zero) == 0
    with pytest.raises(ValueError, match="ranking_loss"):
        rankiqa.ranking_loss(jnp.zeros(3), jnp.arange(3), jnp.zeros(2, int))


# --- human quality


def test_comparisons_recover_a_planted_order(tmp_path):
    truth = np.random.default_rng(0).permutation(np.linspace(-2, 2, 40))
    given = human_quality.simulate(np.random.default_rng(1), truth, workers=12, pairs=200, noise=0.3, taste=0.2)
    assert (given.first != given.second).all()
    ratings = human_quality.complete_ratings(KEY, given, 40)
    values = human_quality.human_quality(ratings)
    assert ratings.shape == (12, 40) and values.min() >= 0 and values.max() <= 1
    assert stats.kendalltau(values, truth).statistic > 0.85
    with pytest.raises(ValueError, match="worker 0 rates all faces alike"):
        human_quality.human_quality(np.zeros((1, 4)))
    file = tmp_path / "answers.csv"
    file.write_text("worker,better,worse\nann,a,b\nbob,c,a\n")
    read = human_quality.read_comparisons(file, ["a", "b", "c"])
    chex.assert_trees_all_equal(np.stack(read[:3]), np.array([[0, 1], [0, 2], [1, 0]]))
    file.write_text("worker,better,worse\nann,a,d\n")
    with pytest.raises(ValueError, match="line 2: 'a' and 'd'"):
        human_quality.read_comparisons(file, ["a", "b", "c"])
    file.write_text("worker,best\n")
    with pytest.raises(ValueError, match="no column better, worse"):
        human_quality.read_comparisons(file, ["a"])


def test_matcher_quality():
    rng = np.random.default_rng(0)
    people = np.repeat([0, 1, 2], 4)
    features = unit_rows(rng, 3, 16)[people] + 0.3 * rng.normal(size=(12, 16))
    gallery = np.repeat([0, 4, 8], 4)
    found = human_quality.matcher_quality(features, people, gallery)
    assert np.isnan(found[[0, 4, 8]]).all() and np.isfinite(found).sum() == 9
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    impostor = (unit @ unit[1])[4:]
    assert found[1] == pytest.approx((unit[1] @ unit[0] - impostor.mean()) / impostor.std(), rel=1e-5)


# --- EQFace


def test_confident_loss():
    rng = np.random.default_rng(0)
    cosine, labels = jnp.asarray(rng.uniform(-0.9, 0.9, (4, 6))), jnp.array([0, 3, 5, 1])
    chex.assert_trees_all_close(eqface.stretched(jnp.array([0.2, 0.6, 1.0])), jnp.array([0.0, 0.48, 0.96]), atol=1e-6)
    logits = arcface.margin_logits(cosine, labels, scale=0.96 * 64, easy=True)
    plain = jax.nn.logsumexp(logits, 1) - logits[jnp.arange(4), labels]
    chex.assert_trees_all_close(eqface.confident_loss(cosine, labels, jnp.ones(4), gamma=0.0), plain, rtol=1e-5)
    focal = eqface.confident_loss(cosine, labels, jnp.ones(4))
    chex.assert_trees_all_close(focal, (1 - jnp.exp(-plain)) ** 2 * plain, rtol=1e-5)
    blind = jnp.full(4, 0.15)
    chex.assert_trees_all_close(
        eqface.confident_loss(cosine, labels, blind), jnp.full(4, (1 - 1 / 6) ** 2 * np.log(6)), rtol=1e-5
    )
    slopes = jax.grad(lambda c, q: eqface.confident_loss(c, labels, q).sum(), (0, 1))(cosine, blind)
    chex.assert_trees_all_close(slopes, jax.tree.map(jnp.zeros_like, slopes), atol=1e-6)
    check_grads(
        lambda c, q: eqface.confident_loss(c, labels, q, scale=4.0), (cosine, jnp.full(4, 0.7)), 1, modes="rev",
        rtol=0.02, atol=0.02,
    )  # fmt: skip


def test_progress_is_the_weighted_mean():
    rng = np.random.default_rng(0)
    features, quality = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.random(5))
    for order in (range(5), (3, 1, 4, 0, 2)):
        progress = eqface.Progress(jnp.zeros(3), jnp.zeros(()))
        for i in order:
            progress = eqface.progressive_update(progress, features[i], quality[i])
        chex.assert_trees_all_close(progress.feature, set_pool(features, quality), rtol=1e-4)
    nothing = eqface.progressive_update(eqface.Progress(jnp.zeros(3), jnp.zeros(())), features[0], jnp.zeros(()))
    assert not np.any(nothing.feature)


# --- QAN, QAN++


def test_set_triplet_loss():
    sets, people = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4))), jnp.array([0, 0, 1, 1, 2, 2])
    unit = sets / jnp.linalg.norm(sets, axis=1, keepdims=True)
    distance = jnp.sum((unit[:, None] - unit) ** 2, -1)
    hinges = [
        max(0.0, float(distance[a, p] - distance[a, n]) + 0.5)
        for a in range(6) for p in range(6) for n in range(6)
        if a != p and people[a] == people[p] and people[a] != people[n]
    ]  # fmt: skip
    chex.assert_trees_all_close(qan.set_triplet_loss(sets, people, margin=0.5), np.mean(hinges), rtol=1e-4)
    assert qan.set_triplet_loss(sets, jnp.zeros(6, int)) == 0
    assert np.isfinite(jax.grad(qan.set_triplet_loss)(jnp.zeros((4, 3)), people[:4])).all()


def test_quality_branch_is_linear_up_to_its_pooling():
    branch = qan.QualityBranch(8, stem=True)
    images = jax.random.normal(KEY, (2, 48, 48, 3))
    variables = branch.init(KEY, images)
    assert branch.apply(variables, images).shape == (2,)
    middle = qan.QualityBranch(8)
    assert middle.apply(middle.init(KEY, images[:, :12, :12]), images[:, :12, :12]).shape == (2,)
    flat = jnp.ones((1, 48, 48, 3))
    logit = jax.scipy.special.logit
    one, two, three = (logit(branch.apply(variables, s * flat)) for s in (1.0, 2.0, 3.0))
    chex.assert_trees_all_close(two - one, three - two, atol=1e-4)


def test_arcnegface():
    cosine, label = jnp.array([[0.5, 0.1, -0.2]]), jnp.array([0])
    chex.assert_trees_all_close(
        qan_pp.arcnegface_logits(cosine, label), jnp.array([[1.510181, 20.233784, -4.076822]]), rtol=1e-5
    )
    cosine, label = jnp.asarray(np.random.default_rng(0).uniform(-0.95, 0.95, (5, 4))), jnp.array([0, 1, 2, 3, 0])
    chex.assert_trees_all_close(
        qan_pp.arcnegface_logits(cosine, label, alpha=1.0, sigma=1e12),
        arcface.margin_logits(cosine, label, easy=True),
        rtol=1e-4, atol=1e-3,
    )  # fmt: skip
