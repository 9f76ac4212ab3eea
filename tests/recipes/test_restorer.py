"""Training of networks that enlarge images: what begins a run, and the step of generator and discriminator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from facejax.backbones.vgg import VGG
from facejax.data.restoration import RestorationImages
from facejax.recipes import restorer
from facejax.restoration import srgan
from facejax.restoration import super_resolution as sr
from facejax.train import Experiment, Report, parallel

DATA = RestorationImages(scale=2, patch=8)
NET = sr.EDSR(2, 4, 1, image_range=1.0)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (4, side, side, 3)).astype(np.uint8) for name, side in (("low", 4), ("high", 8))}


def test_parameters_of_another_scale_begin_a_run():
    made, start = (jax.jit(sr.EDSR(s, 4, 1).init)(jax.random.key(s), jnp.zeros((1, 4, 4, 3)))["params"] for s in (4, 3))
    found = restorer.begun(made, start)
    for name in ("first", "block0_conv1", "after_body", "last"):
        np.testing.assert_array_equal(found[name]["kernel"], start[name]["kernel"])
    np.testing.assert_array_equal(found["up1"]["kernel"], made["up1"]["kernel"])  # of another shape
    np.testing.assert_array_equal(found["up2"]["kernel"], made["up2"]["kernel"])
    with pytest.raises(ValueError, match="start: no parameter has the name and shape"):
        restorer.begun(made, {"else": jnp.zeros(3)})


def adversarial(kind, **changes):
    options = restorer.Adversary(kind, 0.3, 0.2, 0.5, layer="1_1", ema_decay=0.9, **changes)
    fields = restorer.batch_fields(DATA, NET, 4)
    discriminator, vgg = srgan.Discriminator((4, 4), hidden=3), VGG((1,), (4,))
    parts = restorer.adversarial(NET, discriminator, vgg, options, optax.sgd(0.1), fields, dict)
    return discriminator, vgg, Experiment(lambda state: Report({}), **parts)


@pytest.mark.parametrize("kind", ["relativistic", "plain"])
def test_both_networks_follow_their_own_losses(batch, kind):
    """One step of gradient descent, recomputed from the losses at the old parameters."""
    discriminator, vgg, built = adversarial(kind)
    executor = parallel.make_executor(built, "shard_map", 1)
    start = jax.tree.map(np.asarray, executor.local(executor.init(0)).replace(rng=0))
    state, metrics = executor.step(executor.init(0), executor.put(batch))
    low, high = (batch[name] / np.float32(255) for name in ("low", "high"))

    def scores(params, images):
        variables = {"params": params, "batch_stats": start.model_state["discriminator"]}
        return discriminator.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    @jax.jit
    def updated(params):
        def generator(own):
            fake = NET.apply({"params": own}, low)
            real, false = scores(params["discriminator"], high), scores(params["discriminator"], fake)
            fooled = srgan.relativistic_loss(false, real) if kind == "relativistic" else jax.nn.softplus(-false)
            features = [srgan.vgg_features(vgg, start.model_state["vgg"], x, "1_1", True) for x in (fake, high)]
            return (
                0.3 * fooled.mean()
                + 0.5 * jnp.abs(features[0] - features[1]).mean()
                + 0.2 * jnp.abs(fake - high).mean()
            )

        def discriminator(own):
            real, false = scores(own, high), scores(own, NET.apply({"params": params["generator"]}, low))
            if kind == "relativistic":
                return srgan.relativistic_loss(real, false).mean()
            return srgan.discriminator_loss(real, false).mean()

        losses = {"generator": generator, "discriminator": discriminator}
        return {k: jax.tree.map(lambda p, g: p - 0.1 * g, params[k], jax.grad(f)(params[k])) for k, f in losses.items()}

    expected, found = updated(start.params), executor.local(state)
    for want, got, old in zip(*map(jax.tree.leaves, (expected, found.params, start.params)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
        assert not np.array_equal(got, old) or not np.any(old)
    for want, got, old in zip(*map(jax.tree.leaves, (expected, found.ema, start.params)), strict=True):
        np.testing.assert_allclose(got, 0.9 * old + 0.1 * want, rtol=1e-3, atol=1e-5)
    for got, old in zip(*map(jax.tree.leaves, (found.model_state["vgg"], start.model_state["vgg"])), strict=True):
        np.testing.assert_array_equal(got, old)
    assert metrics["right"].count == 4


def test_wrong_kind():
    with pytest.raises(ValueError, match=r"adversary\.kind is 'hinge': expected 'relativistic' or 'plain'"):
        restorer.Adversary("hinge")
