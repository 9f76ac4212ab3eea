import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import vib as experiment
from facejax.backbones import resnet
from facejax.foundations import vib
from facejax.train import Options, app, parallel
from facejax.train.dry_run import count, dry_run

LN2 = np.log(2)


class OnResNet(nn.Module):
    """A stochastic head behind a convolutional trunk."""

    @nn.compact
    def __call__(self, images, *, train):
        trunk = resnet.ResNet((1, 1), False, widths=(4, 8), name="trunk")
        maps = trunk(images, train=train, features=True)
        return vib.VIBHead(num_classes=3, latent=4, name="head")(maps["c3"].mean((1, 2)))


@pytest.fixture(scope="module")
def gaussian():
    """Three Gaussians over four numbers with full covariances."""
    raw = np.random.default_rng(0).normal(size=(3, 4 + 10)).astype(np.float32)
    raw[:, 4:8] += 5
    return vib.posterior(jnp.asarray(raw), "full")


def test_divergence_worked_by_hand():
    mean = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, -4.0], [0.0, 0.0]])
    scale = jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.5, 2.0]])
    nats = [0, 0.5, 12.5, 0.5 * (0.25 + 4 - 2)]
    np.testing.assert_allclose(vib.kl_bits(vib.Posterior(mean, scale)), np.array(nats) / LN2, rtol=1e-6)
    full = vib.Posterior(mean, jax.vmap(jnp.diag)(scale))
    np.testing.assert_allclose(vib.kl_bits(full), np.array(nats) / LN2, rtol=1e-6)


def test_divergence_of_full_covariances(gaussian):
    factor, mean = np.asarray(gaussian.scale, np.float64), np.asarray(gaussian.mean, np.float64)
    covariance = factor @ factor.swapaxes(1, 2)
    trace, log_det = np.trace(covariance, axis1=1, axis2=2), np.linalg.slogdet(covariance)[1]
    np.testing.assert_allclose(vib.kl_bits(gaussian), 0.5 * (trace + (mean**2).sum(1) - 4 - log_det) / LN2, rtol=1e-5)


def test_divergence_is_the_mean_log_ratio_of_samples(gaussian):
    codes = np.asarray(vib.sample(gaussian, jax.random.key(0), 40_000), np.float64)
    noise = np.linalg.solve(np.asarray(gaussian.scale, np.float64), (codes - gaussian.mean)[..., None])[..., 0]
    log_p = -0.5 * (noise**2).sum(-1) - np.log(np.asarray(gaussian.diagonal)).sum(1)
    ratio = log_p + 0.5 * (codes**2).sum(-1)
    np.testing.assert_allclose(ratio.mean(0) / LN2, vib.kl_bits(gaussian), atol=0.05)


def test_gradient_of_the_divergence_by_the_mean_is_the_mean(gaussian):
    gradient = jax.grad(lambda mean: vib.kl_bits(gaussian._replace(mean=mean)).sum() * LN2)(gaussian.mean)
    np.testing.assert_allclose(gradient, gaussian.mean, rtol=1e-6)


def test_gradients_are_finite_where_a_deviation_vanishes():
    gradient = jax.grad(lambda raw: vib.kl_bits(vib.posterior(raw)).sum())(jnp.full((1, 4), -300.0))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_samples_have_the_posterior_s_moments(gaussian, covariance):
    if covariance == "diagonal":
        gaussian = vib.Posterior(gaussian.mean, gaussian.diagonal)
    codes = np.asarray(vib.sample(gaussian, jax.random.key(1), 20_000))
    factor = np.asarray(gaussian.scale)
    factor = factor if factor.ndim == 3 else np.stack([np.diag(s) for s in factor])
    np.testing.assert_allclose(codes.mean(0), gaussian.mean, atol=0.06)
    for i in range(3):
        np.testing.assert_allclose(np.cov(codes[:, i].T), factor[i] @ factor[i].T, atol=0.12)


def test_deviations_begin_small():
    found = vib.posterior(jnp.zeros((1, 6)))
    np.testing.assert_allclose(found.scale, 0.006715, rtol=1e-4)
    full = vib.posterior(jnp.arange(5.0)[None], "full")  # mean 0 1, rho 2 3, below 4
    expected = np.array([[np.log1p(np.exp(-3)), 0], [4, np.log1p(np.exp(-2))]])
    np.testing.assert_allclose(full.scale[0], expected, rtol=1e-5)


def test_cross_entropy_and_its_regularisers():
    labels = jnp.array([0, 1])
    np.testing.assert_allclose(vib.cross_entropy_bits(jnp.zeros((5, 2, 10)), labels), np.log2(10), rtol=1e-6)
    q = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    logits = jnp.log(jnp.asarray(q)) + 7
    np.testing.assert_allclose(vib.cross_entropy_bits(logits, labels), [1, -np.log2(0.75)], rtol=1e-5)
    smooth = 0.7 * np.eye(3)[[0, 1]] + 0.1
    np.testing.assert_allclose(
        vib.cross_entropy_bits(logits, labels, label_smoothing=0.3), -(smooth * np.log2(q)).sum(1), rtol=1e-5
    )
    entropy = -(q * np.log2(q)).sum(1)
    penalised = vib.cross_entropy_bits(logits, labels, confidence_penalty=0.2)
    np.testing.assert_allclose(penalised, [1 - 0.2 * entropy[0], -np.log2(0.75) - 0.2 * entropy[1]], rtol=1e-5)


def test_probabilities_are_averaged_not_logits():
    logits = jnp.log(jnp.array([[[0.99, 0.01]], [[0.4, 0.6]], [[0.4, 0.6]]]))
    np.testing.assert_allclose(jnp.exp(vib.averaged_log_probabilities(logits)), [[0.596667, 0.403333]], rtol=1e-5)


def test_a_head_stands_on_any_features():
    head = vib.VIBHead(num_classes=3, latent=2, covariance="full", dtype=jnp.bfloat16)
    features = jax.random.normal(jax.random.key(0), (4, 7))
    variables = head.init(jax.random.key(1), features, samples=0)
    logits, posterior = head.apply(variables, features, samples=6, rngs={"latent": jax.random.key(2)})
    assert logits.shape == (6, 4, 3)
    assert posterior.scale.shape == (4, 2, 2)
    assert posterior.mean.dtype == posterior.scale.dtype == jnp.float32
    assert not np.allclose(logits[0].astype(float), logits[1].astype(float))


def test_without_noise_it_is_a_deterministic_network():
    net = vib.Classifier(num_classes=3, widths=(8,), latent=4)
    images = jax.random.normal(jax.random.key(0), (5, 6))
    params = net.init(jax.random.key(1), images, train=False, samples=0)["params"]
    params["head"]["encoder"]["bias"] = params["head"]["encoder"]["bias"].at[4:].set(-1e3)
    logits, _ = net.apply({"params": params}, images, train=False, samples=3, rngs={"latent": jax.random.key(2)})
    hidden = jax.nn.relu(images @ params["hidden_0"]["kernel"])
    by_hand = hidden @ params["head"]["encoder"]["kernel"][:, :4] @ params["head"]["decoder"]["kernel"]
    for draw in logits:
        np.testing.assert_allclose(draw, by_hand, rtol=1e-5, atol=1e-6)


def test_fast_gradient_of_a_linear_loss():
    weights, images = jnp.array([2.0, -3.0, 0.0]), jnp.array([[0.0, 0.5, 0.2], [0.95, -0.95, 0.0]])
    moved = vib.fast_gradient_sign(lambda x: x @ weights, images, 0.1)
    np.testing.assert_allclose(moved, [[0.1, 0.4, 0.2], [1.0, -1.0, 0.0]], rtol=1e-6)


HIDDEN = 803_840 + 1_049_600
PARAMETERS = {
    "mnist": 2_380_810,
    "mnist_deterministic": HIDDEN + 10_250,
    "mnist_plane": HIDDEN + 1024 * 5 + 5 + 30,
    "mnist_sweep": len(experiment.SWEEP) * 2_380_810,
}


@pytest.mark.parametrize("preset", [name for name in experiment.PRESETS if name.startswith("mnist")])
def test_full_scale_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    assert costs["parameters"] == PARAMETERS.get(preset, PARAMETERS["mnist_deterministic"])


def test_parameter_count():
    shapes = jax.eval_shape(
        lambda key: vib.Classifier().init(key, jnp.zeros((1, 784)), train=False, samples=0), jax.random.key(0)
    )
    assert count(shapes["params"]) == HIDDEN + 524_800 + 2_570 == 2_380_810


def smoke(preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.train": 300, "model.widths": (32,), "model.repeats": 1, "train.steps": 120, "train.log_every": 40,
            "optim.ema": 0.9, "optim.learning_rate": 5e-3, "eval.samples": 4, "eval.attacks": (0.2,), **changes,
        }
    )  # fmt: skip
    return app.run(config, experiment.build, quiet=True)


def test_larger_betas_leave_less_information_in_the_code():
    state, report = smoke("sweep", **{"loss.betas": (0.0, 3e-2, 10.0), "model.latent": 8, "model.repeats": 2})

    def found(name):
        return [report.metrics[f"{name}_beta_{beta}"] for beta in ("0", "0.03", "10")]

    assert max(found("test_error")[:2]) < 15
    assert found("test_error")[2] > 60
    free, paid, closed = found("image_information")
    assert free > paid + 3
    assert paid > closed + 1
    assert closed < 0.5
    assert abs(found("label_information")[2]) < 0.1
    assert jax.tree.leaves(state.params)[0].shape[0] == 6
    assert set(report.figures) == {"Over beta", "Under attack"}


@pytest.mark.parametrize("preset", ["dropout", "plane"])
def test_smoke(preset, tmp_path):
    _, report = smoke(preset, **{"train.steps": 60})
    assert report.metrics["test_error"] < 60
    assert report.metrics["fgsm_error_0.2"] > report.metrics["test_error"]
    assert ("image_information" in report.metrics) == (preset == "plane")
    assert ("The code" in report.figures) == (preset == "plane")
    for name, figure in report.figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=30)


def test_averaged_weights_are_evaluated(monkeypatch):
    monkeypatch.setattr(experiment, "report", lambda config, net, params, *data: params)
    config = experiment.get_config()
    config.update_from_flattened_dict({"model.widths": (8,), "model.repeats": 1, "optim.ema": 0.9})
    run = experiment.build(config)
    executor = parallel.make_executor(run, "shard_map", 1)
    start = jax.tree.map(np.asarray, executor.init(0).params)
    rng = np.random.default_rng(0)
    batch = {"image": rng.normal(size=(100, 64)).astype(np.float32), "label": np.arange(100, dtype=np.int32) % 10}
    state, _ = executor.step(executor.init(0), executor.put(batch))
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * np.asarray(new), start, state.params)
    chex.assert_trees_all_close(run.evaluate(state), expected, atol=1e-6)
    assert np.abs(state.params["hidden_0"]["kernel"] - expected["hidden_0"]["kernel"]).max() > 1e-4


def test_members_are_independent():
    kernels = []
    for other in (0.0, 1.0):
        config = experiment.get_config()
        config.update_from_flattened_dict({"loss.betas": (1e-2, other), "model.repeats": 1, "model.widths": (8,)})
        run = experiment.build(config)
        executor = parallel.make_executor(run, "shard_map", 1)
        state = executor.init(0)
        rng = np.random.default_rng(0)
        batch = {"image": rng.normal(size=(100, 64)).astype(np.float32), "label": np.arange(100, dtype=np.int32) % 10}
        for _ in range(3):
            state, _ = executor.step(state, executor.put(batch))
        kernels.append(np.asarray(state.params["hidden_0"]["kernel"]))
    np.testing.assert_allclose(kernels[0][0], kernels[1][0], rtol=1e-5, atol=1e-6)
    assert np.abs(kernels[0][1] - kernels[1][1]).max() > 1e-4


def test_bad_input_raises():
    with pytest.raises(ValueError, match="covariance 'banded', expected one of"):
        vib.posterior(jnp.zeros((1, 4)), "banded")
    with pytest.raises(ValueError, match=r"\(1, 6\) do not fill a full posterior"):
        vib.posterior(jnp.zeros((1, 6)), "full")
    with pytest.raises(ValueError, match=r"\(1, 5\) do not fill a diagonal posterior"):
        vib.posterior(jnp.zeros((1, 5)))
    with pytest.raises(ValueError, match=r"logits \(4, 3\) and labels \(5,\), expected"):
        vib.cross_entropy_bits(jnp.zeros((4, 3)), jnp.zeros(5, jnp.int32))


def test_a_head_on_a_convolutional_trunk_learns():
    """Which of three colours a noisy picture has; the divergence stays finite and gradients reach the stem."""
    net, labels = OnResNet(), jnp.arange(12) % 3
    images = 0.1 * jax.random.normal(jax.random.key(0), (12, 32, 32, 3)) + jnp.eye(3)[labels][:, None, None]
    keys = {"params": jax.random.key(1), "latent": jax.random.key(2)}
    variables = jax.jit(lambda: net.init(keys, images, train=False))()
    tx = optax.adam(1e-2)

    def loss(params, key):
        (logits, code), _ = net.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"], rngs={"latent": key}
        )
        error = optax.softmax_cross_entropy_with_integer_labels(logits[0], labels)
        return error.mean() + 1e-3 * vib.kl_bits(code).mean()

    @jax.jit
    def step(carry, key):
        params, opt = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, opt = tx.update(gradient, opt)
        return (optax.apply_updates(params, updates), opt), (value, jnp.abs(gradient["trunk"]["conv1"]["kernel"]).max())

    start = variables["params"], tx.init(variables["params"])
    _, (values, stem) = jax.lax.scan(step, start, jax.random.split(jax.random.key(3), 40))
    assert np.isfinite(values).all() and stem.min() > 0
    assert values[-5:].mean() < 0.3 < values[0]
