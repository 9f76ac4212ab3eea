import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.recognition import virface

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity


def torch_losses(features, centres, labels, unlabelled, samples):
    """Both losses as in the reference: angle addition theorem, all virtual classes in use, a loop over samples."""
    unit = torch.nn.functional.normalize
    classes = torch.cat([unit(centres), unit(unlabelled)])
    fixed = torch.cat([unit(centres), unit(unlabelled).detach()])
    places = torch.arange(len(centres), len(classes)).repeat(len(samples))

    def loss(x, classes, labels):
        cosine = unit(x) @ classes.T
        moved = cosine * np.cos(0.5) - (1 - cosine**2).clamp(min=0).sqrt() * np.sin(0.5)
        moved = torch.where(cosine > np.cos(np.pi - 0.5), moved, cosine - 0.5 * np.sin(0.5))
        hit = torch.nn.functional.one_hot(labels, len(classes)).bool()
        return torch.nn.functional.cross_entropy(32 * torch.where(hit, moved, cosine), labels)

    return loss(features, classes, labels), loss(samples.flatten(0, 1), fixed, places)


def test_losses_and_gradients():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(11, 16))
    labels = rng.integers(0, 11, 9)
    features = centres[labels] + rng.normal(size=(9, 16))
    features[0] = -centres[labels[0]] + 0.1 * rng.normal(size=16)
    unlabelled = rng.normal(size=(6, 16))
    samples = unlabelled + 0.8 * rng.normal(size=(5, 6, 16))
    inputs = [torch.tensor(x, requires_grad=True) for x in (features, centres, unlabelled, samples)]
    theirs = torch_losses(inputs[0], inputs[1], torch.tensor(labels), inputs[2], inputs[3])
    sum(theirs).backward()

    def total(features, centres, unlabelled, samples):
        first = virface.virclass_loss(features, centres, jnp.asarray(labels), unlabelled).mean()
        second = virface.virinstance_loss(samples, centres, jnp.arange(6), unlabelled).mean()
        return first + second, (first, second)

    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in (features, centres, unlabelled, samples)]
        gradients, losses = jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))(*arrays)
    np.testing.assert_allclose(losses, [x.item() for x in theirs], rtol=1e-9)
    for ours, leaf in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(ours, leaf.grad, rtol=1e-6, atol=1e-9)


def test_generator_with_torchs_weights():
    torch.manual_seed(0)
    sizes = {"en1": (24, 12), "en_mean": (12, 5), "en_var": (12, 5), "de1": (5, 12), "de2": (12, 24)}
    layers = {name: torch.nn.Linear(*size) for name, size in sizes.items()}
    features = torch.randn(7, 24)
    hidden = layers["en1"](features).relu()
    mean, log_variance = layers["en_mean"](hidden), layers["en_var"](hidden)
    noise = jax.random.normal(jax.random.key(3), (2, 7, 5))
    code = mean + torch.exp(log_variance / 2) * torch.tensor(np.asarray(noise))
    samples = layers["de2"](layers["de1"](code).relu())
    divergence = -0.5 * torch.mean(1 + log_variance - mean**2 - torch.exp(log_variance))
    params = {
        name: {"kernel": jnp.asarray(layer.weight.detach().numpy().T), "bias": jnp.asarray(layer.bias.detach().numpy())}
        for name, layer in layers.items()
    }
    generator = virface.Generator(hidden=12, latent=5)
    made = generator.apply({"params": params}, jnp.asarray(features.numpy()), jax.random.key(3), draws=2)
    for ours, theirs in zip(made, (samples, mean, log_variance), strict=True):
        np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    found = virface.divergence(made.mean, made.log_variance).mean()
    np.testing.assert_allclose(found, divergence.item(), rtol=1e-5)
