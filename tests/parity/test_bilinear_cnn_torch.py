"""VGG and bilinear pooling compared with PyTorch modules built here from the layer lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bilinear_cnn as experiment
from facejax.backbones import vgg
from facejax.foundations import bilinear_cnn
from facejax.interop.names import Rule, laid_out
from facejax.nn.norm import local_response_norm

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn = torch.nn


def trunk(depths, widths):
    layers, inputs = [], 3
    for depth, width in zip(depths, widths, strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


class SignedRoot(torch.autograd.Function):
    """The authors' rule: the exact root, with the derivative 0.5 / sqrt(|x| + eps)."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.sign() * x.abs().sqrt()

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return gradient * 0.5 / (x.abs() + 1e-5).sqrt()


def test_vgg_from_a_torchvision_file_and_bilinear_pooling_with_gradients(tmp_path, monkeypatch):
    torch.manual_seed(0)
    theirs = nn.ModuleDict({"features": trunk((1, 2), (4, 5)), "classifier": nn.Linear(3, 3)})
    torch.save(theirs.state_dict(), tmp_path / "vgg.pth")
    monkeypatch.setitem(experiment.TRUNKS, "tiny", (lambda **o: vgg.VGG((1, 2), (4, 5), **o), "relu2_2"))
    config = experiment.get_config()
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    net = experiment.make_network(config)
    params = net.init(jax.random.key(0), jnp.asarray(images), train=False)["params"]
    params |= experiment.read_weights({"trunk": str(tmp_path / "vgg.pth")}, params)

    def loss(trunk):
        described = net.apply({"params": {**params, "trunk": trunk}}, images, train=False, method="describe")
        return jnp.sum(jnp.cos(30 * described)), described

    (_, described), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params["trunk"])
    x = theirs["features"][:-1](torch.tensor(images.transpose(0, 3, 1, 2))).flatten(2)
    pooled = (x @ x.transpose(1, 2) / x.shape[2]).flatten(1)
    expected = nn.functional.normalize(SignedRoot.apply(pooled))
    torch.sum(torch.cos(30 * expected)).backward()
    np.testing.assert_allclose(described, expected.detach(), atol=1e-5)
    for name, place in (("conv1_1", 0), ("conv2_1", 3), ("conv2_2", 5)):
        weight = laid_out(theirs["features"][place].weight.grad.numpy(), Rule("", "kernel", "conv"))
        error = np.linalg.norm(gradient[name]["kernel"] - weight) / np.linalg.norm(weight)
        assert error < 1e-3, name


def test_local_response_norm():
    x = np.random.default_rng(1).normal(size=(2, 3, 3, 9)).astype(np.float32) * 10
    theirs = nn.functional.local_response_norm(torch.tensor(x.transpose(0, 3, 1, 2)), 5, 5e-4, 0.75, 2.0)
    np.testing.assert_allclose(
        local_response_norm(jnp.asarray(x)), theirs.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6
    )


def test_pooling():
    a, b = (np.random.default_rng(i).normal(size=(2, 3, 4, 5)).astype(np.float32) for i in range(2))
    theirs = torch.einsum("nhwa,nhwb->nab", torch.tensor(a), torch.tensor(b)) / 12
    np.testing.assert_allclose(bilinear_cnn.bilinear_pool(jnp.asarray(a), jnp.asarray(b)), theirs, atol=1e-6)
