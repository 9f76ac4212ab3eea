import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from facejax.ops import vectors
from facejax.recognition import arcface
from facejax.recognition.arcface import ARCFACE, COMBINED, COSFACE, SOFTMAX, SPHEREFACE, Margins

COSINES = np.array([[0.5, 0.1, -0.2], [0.9, 0.3, 0.0], [-0.95, 0.2, 0.4]])
LABELS = np.zeros(3, np.int32)


def cross_entropy(logits, labels):
    return jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


@pytest.mark.parametrize(
    ("margins", "targets", "loss"),
    [
        (SOFTMAX, [32, 57.6, -60.8], 28.800001),
        (ARCFACE, [1.510181, 37.174244, -62.937857], 31.145058),
        (COSFACE, [9.6, 35.2, -83.2], 36.279985),
        (COMBINED, [1.391375, 33.983268, -76.790132], 35.801806),
        (SPHEREFACE, [10.011806, 52.498277, -50.130753], 25.252467),
    ],
)
def test_golden_logits_and_losses(margins, targets, loss):
    with jax.enable_x64(True):
        logits = arcface.margin_logits(jnp.asarray(COSINES), jnp.asarray(LABELS), margins=margins)
        np.testing.assert_allclose(logits[:, 0], targets, rtol=1e-5)
        np.testing.assert_allclose(logits[:, 1:], 64 * COSINES[:, 1:])
        np.testing.assert_allclose(cross_entropy(logits, LABELS).mean(), loss, rtol=1e-5)


def test_golden_gradients():
    def loss(cosine, grad_mode):
        logits = arcface.margin_logits(cosine, jnp.zeros(len(cosine), jnp.int32), grad_mode=grad_mode)
        return cross_entropy(logits, jnp.zeros(len(cosine), jnp.int32)).mean()

    straight = jax.grad(loss)(jnp.float32(COSINES), "straight_through")
    golden = [[-21.174047, 21.174047, 1e-7], [0, 0, 0], [-21.333334, 5.8896e-05, 21.333275]]
    np.testing.assert_allclose(straight, golden, rtol=1e-4, atol=1e-6)
    exact = jax.grad(loss)(jnp.float32(COSINES[:1]), "exact")
    np.testing.assert_allclose(exact, [[-73.328629, 63.522137, 3e-7]], rtol=1e-4, atol=1e-6)


def test_gradient_is_finite_at_the_ends_of_the_cosine():
    for mode in ("exact", "straight_through"):
        gradient = jax.vmap(jax.grad(lambda c, m=mode: arcface.target_cosine(c, ARCFACE, grad_mode=m)))
        assert np.isfinite(gradient(jnp.array([-1.0, 1.0, 1.0000001]))).all()
    zero = jax.grad(lambda x: arcface.margin_softmax_loss(x, jnp.eye(3), jnp.array([0])).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(zero).all()


def test_easy_margin_is_monotonic():
    cosine = jnp.cos(jnp.linspace(0.01, jnp.pi - 0.01, 200))
    guarded = arcface.target_cosine(cosine, ARCFACE, easy=True)
    assert (np.diff(guarded) < 0).all()
    assert not (np.diff(arcface.target_cosine(cosine, ARCFACE)) < 0).all()
    below = cosine > jnp.cos(jnp.pi - 0.5)
    np.testing.assert_allclose(guarded[below], arcface.target_cosine(cosine, ARCFACE)[below], rtol=1e-5)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(16, 8)).astype(np.float32)
    centres = rng.normal(size=(21, 8)).astype(np.float32)
    return jnp.asarray(features), jnp.asarray(centres), jnp.asarray(rng.integers(0, 21, 16), jnp.int32)


def test_invariances(problem):
    features, centres, labels = problem
    loss = arcface.margin_softmax_loss(features, centres, labels)
    lengths = jnp.linspace(0.5, 3, 16)[:, None]
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (8, 8)))[0]
    order = jax.random.permutation(jax.random.key(1), 16)
    for same in (
        arcface.margin_softmax_loss(features * lengths, centres, labels),
        arcface.margin_softmax_loss(features, centres * 7, labels),
        arcface.margin_softmax_loss(features @ rotation, centres @ rotation, labels),
        arcface.margin_softmax_loss(features[order], centres, labels[order])[jnp.argsort(order)],
    ):
        np.testing.assert_allclose(same, loss, rtol=2e-4, atol=2e-4)
    gradient = jax.grad(lambda x: arcface.margin_softmax_loss(x, centres, labels).sum())(features)
    np.testing.assert_allclose(jnp.sum(gradient * features, -1), 0, atol=2e-4)
    plain = cross_entropy(64 * vectors.unit(features) @ vectors.unit(centres).T, labels)
    np.testing.assert_allclose(
        arcface.margin_softmax_loss(features, centres, labels, margins=SOFTMAX), plain, rtol=1e-5
    )
    small, large = (
        arcface.margin_softmax_loss(features, centres, labels, margins=Margins(angle=m)) for m in (0.1, 0.3)
    )
    assert (large > small).all()


def test_exact_gradient_equals_finite_differences(problem):
    with jax.enable_x64(True):
        features, centres = (jnp.asarray(x, jnp.float64) for x in problem[:2])

        def loss(features, centres):
            return arcface.margin_softmax_loss(features, centres, problem[2], margins=COMBINED, scale=8.0).mean()

        jax.test_util.check_grads(loss, (features, centres), order=1, modes=["rev"], rtol=1e-5)


def test_margins_and_scale_per_sample(problem):
    features, centres, labels = problem
    angles, scales = jnp.linspace(0, 0.5, 16), jnp.linspace(10, 30, 16)
    together = arcface.margin_softmax_loss(features, centres, labels, margins=Margins(angle=angles), scale=scales)
    for i in (0, 7, 15):
        alone = arcface.margin_softmax_loss(
            features[i : i + 1], centres, labels[i : i + 1], margins=Margins(angle=angles[i]), scale=scales[i]
        )
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-4)


def test_interclass_filtering_zeroes_only_close_negatives():
    logits = arcface.margin_logits(jnp.float32(COSINES), jnp.array([0, 0, 2]), margins=SOFTMAX, filter_above=0.35)
    np.testing.assert_allclose(logits / 64, [[0.5, 0.1, -0.2], [0.9, 0.3, 0], [-0.95, 0.2, 0.4]], rtol=1e-6)
    logits = arcface.margin_logits(jnp.float32(COSINES), jnp.array([1, 1, 1]), margins=SOFTMAX, filter_above=0.35)
    np.testing.assert_allclose(logits / 64, [[0, 0.1, -0.2], [0, 0.3, 0], [-0.95, 0.2, 0]], rtol=1e-6)


@pytest.mark.parametrize("chunk", [4, 7, 21, 100])
@pytest.mark.parametrize("grad_mode", ["exact", "straight_through"])
def test_chunked_equals_dense(problem, chunk, grad_mode):
    features, centres, labels = problem
    weights = jnp.linspace(0.5, 1.5, 16)
    options = {"margins": COMBINED, "scale": 16.0, "grad_mode": grad_mode}

    def total(loss):
        return lambda f, c: jnp.sum(weights * loss(f, c))

    dense = total(lambda f, c: arcface.margin_softmax_loss(f, c, labels, **options))
    chunked = total(lambda f, c: arcface.chunked_margin_softmax_loss(f, c, labels, chunk=chunk, **options))
    chex.assert_trees_all_close(
        jax.value_and_grad(chunked, (0, 1))(features, centres),
        jax.value_and_grad(dense, (0, 1))(features, centres),
        rtol=3e-6,
        atol=1e-5,
    )


def test_chunked_allocates_no_full_logits():
    n, c, d = 64, 20_000, 16
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (c, d))]
    labels = jnp.zeros(n, jnp.int32)

    def temporary(loss):
        gradient = jax.jit(jax.grad(lambda f, w: loss(f, w, labels).mean(), (0, 1)))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    chunked = temporary(lambda f, w, y: arcface.chunked_margin_softmax_loss(f, w, y, chunk=500))
    assert chunked < n * c * 4 / 2
    assert temporary(arcface.margin_softmax_loss) > n * c * 4


def sharded(problem, kind, rate=1.0, classes=21):
    """Loss and gradients on eight devices, with centres padded to a multiple of eight."""
    features, centres, labels = problem
    padded = jnp.concatenate([centres, 100 * jnp.ones((-len(centres) % 8, centres.shape[1]))])

    def per_device(features, centres, labels):
        def loss(features, centres):
            key = jax.random.fold_in(jax.random.key(3), lax.axis_index("data"))
            return arcface.sharded_margin_softmax_loss(
                features, centres, labels, axis_name="data", num_classes=classes, sample_rate=rate, rng=key, scale=16.0
            ).mean()

        value, (d_features, d_centres) = jax.value_and_grad(loss, (0, 1))(features, centres)
        return value, d_features / 8, d_centres / 8

    if kind == "pmap":
        split = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), (features, padded, labels))
        value, *gradients = jax.pmap(per_device, "data", out_axes=(None, 0, 0))(*split)
        gradients = [g.reshape(-1, g.shape[-1]) for g in gradients]
    else:
        mesh = Mesh(np.array(jax.devices()), ("data",))
        mapped = jax.shard_map(
            per_device, mesh=mesh, in_specs=P("data"), out_specs=(P(), P("data"), P("data")), check_vma=False
        )
        value, *gradients = jax.jit(mapped)(features, padded, labels)
    return value, *gradients


@pytest.mark.parametrize("kind", ["shard_map", "pmap"])
def test_sharded_equals_dense(problem, kind):
    features, centres, labels = problem

    def dense(features, centres):
        return arcface.margin_softmax_loss(features, centres, labels, scale=16.0).mean()

    value, (d_features, d_centres) = jax.value_and_grad(dense, (0, 1))(features, centres)
    sharded_value, sharded_d_features, sharded_d_centres = sharded(problem, kind)
    np.testing.assert_allclose(sharded_value, value, rtol=1e-5)
    np.testing.assert_allclose(sharded_d_features, d_features, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sharded_d_centres[:21], d_centres, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(sharded_d_centres[21:], 0)


def test_sampled_loss_is_below_the_full_one_with_zero_gradients_elsewhere():
    rng = np.random.default_rng(1)
    problem = (
        jnp.asarray(rng.normal(size=(8, 8)), jnp.float32),
        jnp.asarray(rng.normal(size=(400, 8)), jnp.float32),
        jnp.asarray(rng.integers(0, 400, 8), jnp.int32),
    )
    full, *_ = sharded(problem, "shard_map", 1.0, 400)
    part, _, d_centres = sharded(problem, "shard_map", 0.2, 400)
    assert part < full
    touched = np.abs(np.asarray(d_centres)).sum(1) > 0
    assert touched.sum() <= 8 * int(0.2 * 50)
    assert touched[np.asarray(problem[2])].all()


def test_sampled_classes_contain_each_class_of_the_batch_once():
    labels = jnp.array([3, 3, 40, -5, 99, 100, 7])
    classes = np.asarray(arcface.sample_classes(jax.random.key(0), labels, 100, 0.2))
    assert len(classes) == len(set(classes)) == 20
    assert {3, 40, 99, 7} <= set(classes)
    assert (np.diff(classes) > 0).all()
    assert len(arcface.sample_classes(jax.random.key(0), labels, 100, 0.01)) == 7
    assert len(arcface.sample_classes(jax.random.key(0), labels, 5, 0.01)) == 5
    other_shards = jnp.array([3, -1, -2, 100])
    drawn = [set(np.asarray(arcface.sample_classes(jax.random.key(i), other_shards, 100, 0.01))) for i in range(5)]
    assert set.intersection(*drawn) == {3}


def test_original_sphereface():
    theta = np.linspace(0.01, np.pi - 0.01, 50)
    features = np.stack([np.cos(theta), np.sin(theta)], 1).astype(np.float32) * 3
    logits = arcface.sphereface_logits(jnp.asarray(features), jnp.eye(2), jnp.zeros(50, jnp.int32), blend=0.0)
    psi = np.asarray(logits[:, 0]) / 3
    assert (np.diff(psi) < 0).all()
    np.testing.assert_allclose([psi[0], psi[-1]], [1, -7], atol=2e-3)
    np.testing.assert_allclose(logits[:, 1], 3 * np.sin(theta), rtol=1e-4)
    mixed = arcface.sphereface_logits(jnp.asarray(features), jnp.eye(2), jnp.zeros(50, jnp.int32), blend=5.0)
    np.testing.assert_allclose(mixed[:, 0], 3 * (5 * np.cos(theta) + psi) / 6, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(arcface.sphereface_blend(jnp.array([0, 100, 1e6])), [1000, 1000 / 13, 5], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("grad_mode", ["exact", "straight_through"])
def test_half_precision_is_computed_in_float32(problem, dtype, grad_mode):
    features, centres = (x.astype(dtype) for x in problem[:2])
    features = features.at[0].set(centres[problem[2][0]])  # an angle of zero
    options = {"scale": 64.0, "grad_mode": grad_mode}
    full = arcface.margin_softmax_loss(features.astype(jnp.float32), centres.astype(jnp.float32), problem[2], **options)
    for loss in (arcface.margin_softmax_loss, arcface.chunked_margin_softmax_loss):

        def total(features, centres, loss=loss):
            return loss(features, centres, problem[2], **options).sum()

        np.testing.assert_allclose(loss(features, centres, problem[2], **options), full, rtol=1e-5, atol=1e-4)
        gradients = jax.grad(total, (0, 1))(features, centres)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradients, (features, centres))
        chex.assert_tree_all_finite(gradients)


def test_shape_mismatch_raises():
    with pytest.raises(ValueError, match=r"features \(4, 3\), centres \(5, 2\) and labels \(4,\), expected"):
        arcface.margin_softmax_loss(jnp.ones((4, 3)), jnp.ones((5, 2)), jnp.zeros(4, jnp.int32))
    with pytest.raises(ValueError, match=r"expected \[N, C\] and \[N\]"):
        arcface.margin_logits(jnp.ones((4, 3)), jnp.zeros(5, jnp.int32))
    with pytest.raises(ValueError, match=r"scale of shape \(5,\), expected \(\) or \(4,\)"):
        arcface.margin_logits(jnp.ones((4, 3)), jnp.zeros(4, jnp.int32), scale=jnp.ones(5))


@pytest.mark.parametrize("margins", [(1.0, 0.5), Margins(angle=np.ones(5)), Margins(angle=np.ones((4, 1)))])
def test_invalid_margins_raise(margins):
    with pytest.raises(ValueError, match=r"expected three, each \(\) or \(4,\)"):
        arcface.target_cosine(jnp.ones(4), margins)


def test_plain_tuples_are_margins():
    cosine = jnp.float32(COSINES[:, 0])
    np.testing.assert_array_equal(
        arcface.target_cosine(cosine, (1.0, 0.3, 0.2)), arcface.target_cosine(cosine, COMBINED)
    )


def test_invalid_options_raise(problem):
    with pytest.raises(ValueError, match=r"grad_mode 'exakt', expected one of \('exact', 'straight_through'\)"):
        arcface.margin_softmax_loss(*problem, grad_mode="exakt")
    with pytest.raises(ValueError, match="chunk 0, expected at least 1"):
        arcface.chunked_margin_softmax_loss(*problem, chunk=0)
    with pytest.raises(ValueError, match="3 centres on each of 8 devices, expected at least 100 in all"):
        sharded(problem, "shard_map", classes=100)
    for rate in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match="expected above 0 and up to 1"):
            sharded(problem, "shard_map", rate)
    with pytest.raises(ValueError, match="a key if it is below 1"):
        arcface.sharded_margin_softmax_loss(*problem, axis_name="data", num_classes=21, sample_rate=0.5)
