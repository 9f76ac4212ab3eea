"""PRNet's network against PyTorch, with TensorFlow's paddings written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.reconstruction import prnet

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.parity
WIDTH = 2


def tensor(x):
    return torch.tensor(np.asarray(x, np.float64))


def kernel(params):
    return tensor(params["kernel"]).permute(3, 2, 0, 1)


def norm(x, params, stats, where):
    scale, bias = (tensor(params[where]["norm"][n]) for n in ("scale", "bias"))
    mean, var = (tensor(stats[where]["norm"][n]) for n in ("mean", "var"))
    return F.batch_norm(x, mean, var, scale, bias, eps=1e-3)


def conv(x, weight, stride):
    size = weight.shape[-1]
    total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
    x = F.pad(x, (total // 2, total - total // 2) * 2)
    return F.conv2d(x, weight, stride=stride)


def unit(x, params, stats, stride=1):
    return torch.relu(norm(conv(x, kernel(params["conv"]), stride), params, stats, "bn"))


def reference(variables, images):
    params, stats = variables["params"], variables["batch_stats"]
    x = unit(images.permute(0, 3, 1, 2), params["stem"], stats["stem"])
    for level in range(1, 6):
        for i, stride in enumerate((2, 1), 1):
            p, s = params[f"block{level}_{i}"], stats[f"block{level}_{i}"]
            y = unit(x, p["conv1"], s["conv1"])
            y = unit(y, p["conv2"], s["conv2"], stride)
            y = conv(y, kernel(p["conv3"]), 1)
            x = conv(x, kernel(p["shortcut"]), stride) if "shortcut" in p else x
            x = torch.relu(norm(x + y, p, s, "bn"))
    last = max(int(name[2:]) for name in params if name.startswith("up") and not name.endswith("bn"))
    for i in range(1, last + 1):
        weight = tensor(params[f"up{i}"]["kernel"]).permute(2, 3, 0, 1)
        doubled = i in (2, 5, 8, 11, 13)
        x = (
            F.conv_transpose2d(x, weight, stride=2, padding=1)
            if doubled
            else F.conv_transpose2d(x, weight)[..., 1:-2, 1:-2]
        )
        x = norm(x, params, stats, f"up{i}_bn")
        x = torch.sigmoid(x) if i == last else torch.relu(x)
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [32, 96])
def test_outputs_and_gradients(size):
    net, rng = prnet.Net(WIDTH), np.random.default_rng(size)
    images = rng.uniform(size=(2, size, size, 3))
    with jax.enable_x64(True):
        variables = jax.jit(lambda k: net.init(k, jnp.zeros((1, 32, 32, 3)), train=False))(jax.random.key(0))
        variables = jax.tree.map(lambda x: np.asarray(x + 0.2 * rng.uniform(size=x.shape)), variables)
        net = prnet.Net(WIDTH, dtype=jnp.float64)
        run = lambda x: net.apply(variables, x, train=False).astype(jnp.float64)  # noqa: E731
        found, slope = run(images), jax.jit(jax.grad(lambda x: (run(x) ** 2).sum()))(images)
    given = torch.tensor(images, requires_grad=True)
    expected = reference(variables, given)
    (expected**2).sum().backward()
    np.testing.assert_allclose(found, expected.detach(), atol=2e-6)
    np.testing.assert_allclose(slope, given.grad, atol=1e-4 * float(given.grad.abs().max()))
