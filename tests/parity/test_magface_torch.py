import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.recognition import magface

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def torch_loss(features, centres, labels, kind, magnitudes, scale):
    """The paper's formulas with the angle addition theorem, as in the reference."""
    lower, upper, least, most, lambda_g = magnitudes
    length = features.norm(dim=1).clamp(lower, upper)
    margin = (most - least) / (upper - lower) * (length - lower) + least
    cosine = torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(centres).T
    if kind == "arcface":
        moved = cosine * margin.cos()[:, None] - (1 - cosine**2).sqrt() * margin.sin()[:, None]
        moved = torch.where(cosine > 0, moved, cosine)
    else:
        moved = cosine - margin[:, None]
    hit = torch.nn.functional.one_hot(labels, len(centres)).bool()
    identity = torch.nn.functional.cross_entropy(scale * torch.where(hit, moved, cosine), labels, reduction="none")
    return identity + lambda_g * (length / upper**2 + 1 / length)


@pytest.mark.parametrize(("kind", "magnitudes"), [("arcface", magface.MAG_ARCFACE), ("cosface", magface.MAG_COSFACE)])
def test_losses_and_gradients(kind, magnitudes):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(11, 16))
    labels = rng.integers(0, 11, 24)
    features = (centres[labels] + 1.5 * rng.normal(size=(24, 16))) * rng.uniform(0.5, 30, (24, 1))
    inputs = [torch.tensor(x, requires_grad=True) for x in (features, centres)]
    theirs = torch_loss(*inputs, torch.tensor(labels), kind, magnitudes, 64.0)
    theirs.sum().backward()
    lengths = np.linalg.norm(features, axis=1)
    true = np.sum(features * centres[labels], 1)
    assert (lengths < 10).any() and (lengths > 110).any() and (true < 0).any()  # the data covers every branch

    def total(features, centres):
        losses = magface.magface_loss(features, centres, jnp.asarray(labels), kind=kind, magnitudes=magnitudes)
        return losses.sum(), losses

    with jax.enable_x64(True):
        gradients, losses = jax.jit(jax.grad(total, (0, 1), has_aux=True))(jnp.asarray(features), jnp.asarray(centres))
    np.testing.assert_allclose(losses, theirs.detach(), rtol=1e-9)
    for ours, leaf in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(ours, leaf.grad, rtol=1e-6, atol=1e-9)
