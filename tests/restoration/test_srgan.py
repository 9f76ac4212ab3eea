import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.vgg import VGG
from facejax.restoration import srgan


def test_scores_have_the_published_shapes_and_sides_must_divide():
    net = srgan.Discriminator((4, 4, 4), hidden=4)
    images = jnp.ones((2, 16, 24, 3))
    variables = jax.eval_shape(lambda key: net.init(key, images, train=True), jax.random.key(0))
    assert variables["params"]["hidden"]["kernel"].shape == (2 * 3 * 4, 4)
    assert "bn0_0" not in variables["params"]
    scores = jax.eval_shape(lambda v: net.apply(v, images, train=False), variables)
    assert scores.shape == (2,) and scores.dtype == jnp.float32
    with pytest.raises(ValueError, match="expected sides that 8 divides"):
        net.init(jax.random.key(0), jnp.ones((1, 16, 20, 3)), train=True)


def test_relativistic_loss():
    real, fake = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    np.testing.assert_allclose(srgan.relativistic_loss(real, real), np.log1p(np.exp(-(real - real.mean()))) / 2
                               + np.log1p(np.exp(real - real.mean())) / 2, rtol=1e-5)  # fmt: skip
    found = srgan.relativistic_loss(real, fake)
    np.testing.assert_allclose(srgan.relativistic_loss(real + 3, fake + 3), found, rtol=1e-4)  # only differences count
    assert (
        srgan.relativistic_loss(real + 9, fake).mean() < found.mean() < srgan.relativistic_loss(real - 9, fake).mean()
    )
    split = jax.vmap(lambda a, b: srgan.relativistic_loss(a, b, "d"), axis_name="d")
    np.testing.assert_allclose(split(real.reshape(4, 2), fake.reshape(4, 2)).ravel(), found, rtol=1e-5)
    huge = jnp.bfloat16([300.0, -300.0])
    for loss in (
        srgan.relativistic_loss(huge, -huge),
        srgan.discriminator_loss(huge, -huge),
        srgan.generator_loss(huge),
    ):
        assert np.isfinite(loss.astype(jnp.float32)).all()


def test_features_before_and_after_relu():
    vgg = VGG((1, 2), (4, 6))
    images = np.random.default_rng(0).uniform(size=(1, 8, 12, 3)).astype(np.float32)
    params = vgg.init(jax.random.key(0), images, train=False)["params"]
    before, after = (srgan.vgg_features(vgg, params, images, "2_2", flag) for flag in (True, False))
    assert before.shape == (1, 4, 6, 6) and (before < 0).any()
    np.testing.assert_allclose(jnp.maximum(before, 0), after, atol=1e-5)
    whitened = (images - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    first = vgg.apply({"params": params}, whitened, train=False, features=True)["relu1_1"]
    np.testing.assert_allclose(srgan.vgg_features(vgg, params, images, "1_1", False), first, atol=1e-5)


def test_perceptual_loss():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(srgan.perceptual_loss(a, b, "l1"), np.abs(a - b).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(srgan.perceptual_loss(a, b, "l2"), np.square((a - b) / 12.75).mean((1, 2, 3)), rtol=1e-5)
    moved, fixed = jax.grad(lambda a, b: srgan.perceptual_loss(a, b, "l2").sum(), (0, 1))(a, b)
    assert (fixed == 0).all() and (moved != 0).all()
    with pytest.raises(ValueError, match="expected 'l1' or 'l2'"):
        srgan.perceptual_loss(a, b, "cosine")
