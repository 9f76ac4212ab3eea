import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.foundations import vib

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_divergence_and_its_gradients(covariance):
    latent = 5
    raw = np.random.default_rng(0).normal(size=(6, vib.encoder_width(latent, covariance))).astype(np.float32) * 2
    leaf = torch.tensor(raw, dtype=torch.float64, requires_grad=True)
    mean, scale = leaf[:, :latent], torch.nn.functional.softplus(leaf[:, latent : 2 * latent] - 5)
    distributions = torch.distributions
    if covariance == "full":
        rows, columns = torch.tril_indices(latent, latent, -1)
        factor = torch.diag_embed(scale)
        factor = factor.index_put((torch.arange(6)[:, None], rows[None], columns[None]), leaf[:, 2 * latent :])
        p = distributions.MultivariateNormal(mean, scale_tril=factor)
        prior = distributions.MultivariateNormal(torch.zeros(latent).double(), torch.eye(latent).double())
        theirs = distributions.kl_divergence(p, prior)
    else:
        theirs = distributions.kl_divergence(distributions.Normal(mean, scale), distributions.Normal(0.0, 1.0)).sum(1)
    theirs = theirs / np.log(2)
    theirs.sum().backward()
    ours, gradient = jax.value_and_grad(lambda x: vib.kl_bits(vib.posterior(x, covariance)).sum())(jnp.asarray(raw))
    np.testing.assert_allclose(vib.kl_bits(vib.posterior(jnp.asarray(raw), covariance)), theirs.detach(), rtol=1e-5)
    np.testing.assert_allclose(ours, theirs.sum().detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-4, atol=1e-5)
