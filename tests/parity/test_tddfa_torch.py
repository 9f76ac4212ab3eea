"""3DDFA's MobileNet and costs against PyTorch modules of the same layers and column-major formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.mobilenet import V1_LAYERS
from facejax.models import load_pretrained
from facejax.morphable.parameters import Layout, LinearFace, Whitening
from facejax.reconstruction import tddfa

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

WIDTH, D = 0.25, 62


LAYERS = ("2_1", "2_2", "3_1", "3_2", "4_1", "4_2", "5_1", "5_2", "5_3", "5_4", "5_5", "5_6", "6")


class DepthWise(torch.nn.Module):
    """A depthwise and a pointwise convolution, each with batch norm and ReLU; the authors' names."""

    def __init__(self, given, made, stride):
        super().__init__()
        self.conv_dw = torch.nn.Conv2d(given, given, 3, stride, 1, groups=given, bias=False)
        self.bn_dw = torch.nn.BatchNorm2d(given)
        self.conv_sep = torch.nn.Conv2d(given, made, 1, bias=False)
        self.bn_sep = torch.nn.BatchNorm2d(made)

    def forward(self, x):
        return torch.relu(self.bn_sep(self.conv_sep(torch.relu(self.bn_dw(self.conv_dw(x))))))


class TorchMobileNet(torch.nn.Module):
    """A convolution, then depthwise blocks, the mean, one dense layer; the authors' names."""

    def __init__(self):
        super().__init__()
        last = int(32 * WIDTH)
        self.conv1, self.bn1 = torch.nn.Conv2d(3, last, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(last)
        for name, (channels, stride) in zip(LAYERS, V1_LAYERS, strict=True):
            made = int(channels * WIDTH)
            self.add_module(f"dw{name}", DepthWise(last, made, stride))
            last = made
        self.fc = torch.nn.Linear(last, D)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        for name in LAYERS:
            x = self.get_submodule(f"dw{name}")(x)
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The network, and ours with the weights of a checkpoint as the authors save it."""
    torch.manual_seed(0)
    net = TorchMobileNet()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    path, state = tmp_path_factory.mktemp("3ddfa") / "phase1.pth.tar", net.state_dict()
    torch.save({"epoch": 50, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return net.eval(), tddfa.mobilenet(WIDTH), load_pretrained("tddfa_mobilenet_025", path)


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
