"""3DDFA's MobileNet and costs against PyTorch modules of the same layers and column-major formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.mobilenet import V1_LAYERS
from facejax.morphable.parameters import Layout, LinearFace, Whitening
from facejax.reconstruction import tddfa

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

WIDTH, D = 0.25, 62


class TorchMobileNet(torch.nn.Module):
    """Convolution, then depthwise and pointwise ones, each with batch norm and ReLU; mean; one dense layer."""

    def __init__(self, inputs=3):
        super().__init__()

        def block(given, made, kernel, stride, groups):
            conv = torch.nn.Conv2d(given, made, kernel, stride, kernel // 2, groups=groups, bias=False)
            return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(made), torch.nn.ReLU())

        last = int(32 * WIDTH)
        self.stem, self.layers = block(inputs, last, 3, 2, 1), torch.nn.ModuleList()
        for channels, stride in V1_LAYERS:
            made = int(channels * WIDTH)
            self.layers.extend([block(last, last, 3, stride, last), block(last, made, 1, 1, 1)])
            last = made
        self.fc = torch.nn.Linear(last, D)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean((2, 3)))


def copied(variables, net):
    """Flax variables with a PyTorch network's numbers."""
    params, stats = (jax.tree.map(np.asarray, variables[k]) for k in ("params", "batch_stats"))
    names = ["stem"] + [f"{kind}{i}" for i in range(1, len(V1_LAYERS) + 1) for kind in ("depthwise", "pointwise")]
    for name, (conv, norm, _) in zip(names, [net.stem, *net.layers], strict=True):
        params[name]["conv"]["kernel"] = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
        params[name]["bn"]["norm"] = {"scale": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()}
        stats[name]["bn"]["norm"] = {"mean": norm.running_mean.numpy(), "var": norm.running_var.numpy()}
    params["fc"] = {"kernel": net.fc.weight.detach().numpy().T, "bias": net.fc.bias.detach().numpy()}
    return {"params": params, "batch_stats": stats}


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    net = TorchMobileNet()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    ours = tddfa.mobilenet(WIDTH)
    variables = jax.eval_shape(lambda k: ours.init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    return net.eval(), ours, copied(variables, net)


@pytest.mark.parametrize("size", [40, 37, 51])
def test_network(networks, size):
    net, ours, variables = networks
    images = np.random.default_rng(size).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    found = ours.apply(variables, jnp.asarray(images), train=False)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def problem():
    """Columns of a small Basel-like model, whitening, predicted and true whitened vectors."""
    rng = np.random.default_rng(0)
    vertices, layout = 20, Layout()
    u = rng.normal(size=(3 * vertices, 1)) * 5e4
    bases = rng.normal(size=(3 * vertices, 50)) * np.r_[np.full(40, 0.1), np.full(10, 5e4)]
    mean = np.r_[3.2e-4, 0, 0, 60.7, 0, 4.4e-4, 0, 69.4, 0, 0, 4e-4, -76.7, np.zeros(50)]
    std = np.r_[np.tile([2e-4, 2e-4, 2e-4, 17], 3), np.full(40, 2e5), np.full(10, 0.5)]
    vectors = rng.normal(size=(2, 3, D)) * 0.5
    face = LinearFace(
        jnp.asarray(u.reshape(-1, 3), jnp.float32),
        jnp.asarray(bases.reshape(-1, 3, 50), jnp.float32),
        jnp.zeros((0, 3), jnp.int32),
        jnp.arange(20),
        layout,
    )
    whitening = Whitening(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
    return face, whitening, (u, bases, mean, std), vectors


def torch_vertices(columns, vector):
    u, bases, mean, std = (torch.from_numpy(x) for x in columns)
    p = vector * std + mean
    pose = p[:, :12].reshape(-1, 3, 4)
    points = (u + bases @ p[:, 12:, None]).reshape(len(p), -1, 3).permute(0, 2, 1)
    return pose[:, :, :3] @ points + pose[:, :, 3:], points, p


def torch_vdc(columns, predicted, target):
    predicted = torch.cat([predicted[:, :11], target[:, 11:12], predicted[:, 12:]], 1)
    difference = torch_vertices(columns, predicted)[0] - torch_vertices(columns, target)[0]
    return (difference**2).mean((1, 2))


def torch_wpdc(columns, predicted, target):
    with torch.no_grad():
        _, points, true = torch_vertices(columns, target)
        change = (torch_vertices(columns, predicted)[2] - true).abs()
        lengths = points.norm(dim=2)
        row = torch.cat([lengths, torch.full((len(lengths), 1), points.shape[2] ** 0.5)], 1)
        form = tddfa.MEAN_SCALE * torch.from_numpy(columns[1]).norm(dim=0).expand(len(lengths), -1)
        weights = change * torch.cat([row, row, row, form], 1) + 1e-6
        weights[:, 11] = 0
        weights = weights / weights.max(1, keepdim=True).values
    return (weights * (predicted - target) ** 2).mean(1)


@pytest.mark.parametrize("name", ["vdc", "wpdc"])
def test_costs_and_gradients(problem, name):
    face, whitening, columns, (predicted, target) = problem
    given = torch.from_numpy(predicted).requires_grad_()
    theirs = {"vdc": torch_vdc, "wpdc": torch_wpdc}[name]
    expected = theirs(columns, given, torch.from_numpy(target))
    expected.sum().backward()
    options = {"scale": tddfa.MEAN_SCALE} if name == "wpdc" else {}

    def ours(p):
        return getattr(tddfa, name)(p, jnp.asarray(target, jnp.float32), face, whitening, **options)

    found = jnp.asarray(predicted, jnp.float32)
    np.testing.assert_allclose(ours(found), expected.detach().numpy(), rtol=1e-4)
    slope = jax.grad(lambda p: ours(p).sum())(found)
    np.testing.assert_allclose(slope, given.grad.numpy(), atol=1e-4 * np.abs(given.grad.numpy()).max())
