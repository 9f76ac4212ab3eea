"""ODC's neck and weighted loss compared with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from facejax.clustering import odc
from tests.parity.networks import keep_biased_variances

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def test_neck_equals_torch_in_training_with_gradients():
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(16, 12)).astype(np.float32), rng.normal(size=(16, 5)).astype(np.float32)
    neck = odc.Neck(8, 5, dropout=0.0)
    variables = neck.init(jax.random.key(0), x, train=False)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(12, 8),
        torch.nn.BatchNorm1d(8, momentum=0.001, affine=False),
        torch.nn.ReLU(),
        torch.nn.Linear(8, 5),
        torch.nn.ReLU(),
    )
    for name, layer in (("fc0", theirs[0]), ("fc1", theirs[3])):
        layer.weight.data = torch.tensor(np.array(variables["params"][name]["kernel"]).T)
        layer.bias.data = torch.tensor(np.array(variables["params"][name]["bias"]))

    def loss(params):
        held = {"params": params, "batch_stats": variables["batch_stats"]}
        y, updated = neck.apply(held, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y * target), (y, updated["batch_stats"]["bn0"]["norm"])

    gradients, (y, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
    keep_biased_variances(theirs)
    expected = theirs(torch.tensor(x))
    (expected * torch.tensor(target)).sum().backward()
    np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(statistics["mean"], theirs[1].running_mean, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], theirs[1].running_var, atol=1e-6)
    for name, layer in (("fc0", theirs[0]), ("fc1", theirs[3])):
        np.testing.assert_allclose(gradients[name]["kernel"], layer.weight.grad.T, atol=2e-5)


def test_weighted_loss_equals_torch():
    """The form in the training step: losses times weights, divided by the mean weight of the batch."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 4)).astype(np.float32), rng.integers(0, 4, 20)
    memory = odc.Memory(jnp.zeros((9, 1)), jnp.array([0, 0, 0, 0, 1, 1, 2, 3, 3]), jnp.zeros((4, 1)))
    weights = odc.class_weights(memory)
    counts = torch.tensor([4.0, 2, 1, 2])
    theirs = (1 / (counts + 1e-5)) ** 0.5
    theirs /= theirs.sum()
    np.testing.assert_allclose(weights, theirs, rtol=1e-6)

    def loss(logits):
        losses = weights[labels] * optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean() / weights[labels].mean()

    value, gradient = jax.value_and_grad(loss)(logits)
    given = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(given, torch.tensor(labels), weight=theirs)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, given.grad, atol=1e-7)
