"""ResNet against a PyTorch module written from the paper's tables, with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones import resnet
from facejax.interop.names import Rule, batch_norm, convert

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional


class Block(nn.Module):
    """Convolutions of (outputs, kernel, stride), all 3x3 dilated, beside an identity or a 1x1 of the whole stride."""

    def __init__(self, inputs, plan, dilation):
        super().__init__()
        self.depth, a, whole = len(plan), inputs, 1
        for i, (b, kernel, stride) in enumerate(plan, 1):
            reach = dilation if kernel == 3 else 1
            conv = nn.Conv2d(a, b, kernel, stride, reach * (kernel // 2), reach, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
            a, whole = b, whole * stride
        self.downsample = None
        if (a, whole) != (inputs, 1):
            self.downsample = nn.Sequential(nn.Conv2d(inputs, a, 1, whole, bias=False), nn.BatchNorm2d(a))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(F.relu(y) if i > 1 else y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Reference(nn.Module):
    """Table 1 of the paper; `kind` is of its blocks, and the last stage can dilate by 2 instead of its stride."""

    def __init__(self, kind, depths, widths, classes, dilated):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False), nn.BatchNorm2d(widths[0])
        a = widths[0]
        for i, (depth, c) in enumerate(zip(depths, widths, strict=True), 1):
            blocks = []
            for j in range(depth):
                s = 2 if j == 0 and i > 1 and not (dilated and i == 4) else 1
                plan = {
                    "basic": [(c, 3, s), (c, 3, 1)],
                    "v1": [(c, 1, s), (c, 3, 1), (4 * c, 1, 1)],
                    "v1.5": [(c, 1, 1), (c, 3, s), (4 * c, 1, 1)],
                }[kind]
                blocks.append(Block(a, plan, 2 if dilated and i == 4 else 1))
                a = plan[-1][0]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.fc = nn.Linear(a, classes)

    def forward(self, x):
        """Scores, and the four stages' maps."""
        maps = [F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return self.fc(maps[-1].mean((2, 3))), maps[1:]


def rules():
    """torchvision's names onto ours."""
    block, ours = r"layer(\d)\.(\d+)\.", r"layer\1_\2/"
    return [
        Rule(r"conv1\.weight", "params/conv1/kernel", "conv"),
        *batch_norm("bn1", "bn1"),
        Rule(block + r"conv(\d)\.weight", rf"params/{ours}conv\3/kernel", "conv"),
        *batch_norm(block + r"bn(\d)", ours + r"bn\3"),
        Rule(block + r"downsample\.0\.weight", rf"params/{ours}shortcut_conv/kernel", "conv"),
        *batch_norm(block + r"downsample\.1", ours + "shortcut_bn"),
        Rule(r"fc\.weight", "params/fc/kernel", "linear"),
        Rule(r"fc\.bias", "params/fc/bias"),
    ]


def randomised(net):
    torch.manual_seed(0)
    for key, tensor in net.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif key.endswith(("bias", "running_mean")):
            tensor.normal_(0, 0.2)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.2)
        elif tensor.ndim > 1:
            nn.init.kaiming_normal_(tensor)
    return net


def nchw(images):
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), requires_grad=True)


def nhwc(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def assert_near(ours, theirs, tolerance, name=""):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max(), err_msg=name)


def assert_trees_near(ours, theirs, tolerance):
    for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert_near(got, want, tolerance, jax.tree_util.keystr(path))


@pytest.mark.parametrize("output_stride", [32, 16])
@pytest.mark.parametrize("kind", ["basic", "v1.5", "v1"])
def test_resnet(kind, output_stride):
    """Tested: scores and maps with running statistics. Trained: scores, moved means and every gradient.

    In double precision: few numbers a channel make batch statistics touchy, and rounding moves rectifiers.
    """
    depths, widths, classes = (1, 1, 1, 2), (8, 12, 16, 24), 5
    ours = resnet.ResNet(
        depths,
        kind != "basic",
        classes,
        widths,
        output_stride=output_stride,
        stride_in_1x1=kind == "v1",
        dtype=jnp.float64,
    )
    theirs = randomised(Reference(kind, depths, widths, classes, output_stride == 16)).double()
    images = np.random.default_rng(0).normal(size=(2, 50, 79, 3))  # every stride of 2 meets an odd and an even side
    with jax.enable_x64(True):
        template = jax.eval_shape(lambda key: ours.init(key, images, train=False), jax.random.key(0))

        def converted(values):
            return convert({k: np.array(v) for k, v in values.items()}, rules(), template)

        variables = converted(theirs.state_dict())
        trunk = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "fc"}}

        @jax.jit
        def evaluate(variables, trunk):
            scores = ours.apply(variables, images, train=False)
            return scores, ours.apply(trunk, images, train=False, features=True)

        @jax.jit
        def train(params, images):
            def loss(params, images):
                scores, moved = ours.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
                return jnp.sin(scores).sum(), (scores, moved["batch_stats"])

            return jax.grad(loss, (0, 1), has_aux=True)(params, images)

        scores, maps = evaluate(variables, trunk)
        wanted, wanted_maps = theirs.eval()(nchw(images))
        assert_near(scores, wanted.detach().numpy(), 1e-6)
        for i, want in enumerate(wanted_maps, 2):
            assert_near(maps[f"c{i}"], nhwc(want), 1e-6, f"c{i}")

        (d_params, d_images), (scores, statistics) = train(variables["params"], images)
        inputs = nchw(images)
        wanted, _ = theirs.train()(inputs)
        wanted.sin().sum().backward()
        assert_near(scores, wanted.detach().numpy(), 1e-6)
        assert_near(d_images, nhwc(inputs.grad), 1e-5)
        expected = converted(theirs.state_dict() | {k: v.grad for k, v in theirs.named_parameters()})
    assert_trees_near(d_params, expected["params"], 1e-5)
    means = [
        jax.tree_util.tree_map_with_path(lambda path, x: x if path[-1].key == "mean" else np.ones(1), tree)
        for tree in (statistics, expected["batch_stats"])
    ]
    assert_trees_near(*means, 1e-6)  # PyTorch keeps the unbiased variance, Flax the biased one
