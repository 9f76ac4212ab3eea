"""Our layers and backbones beside PyTorch modules of the same layers, written here from the layer lists."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones import iresnet, mobilefacenet
from facejax.interop import arcface_torch
from facejax.ops import conv, pooling

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn = torch.nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(outputs), nn.PReLU(outputs)
        self.conv2, self.bn3 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    def __init__(self, depths, widths, size, embedding):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        inputs = [widths[0], *widths[:-1]]
        for i, (depth, a, b) in enumerate(zip(depths, inputs, widths, strict=True), 1):
            blocks = [Block(a if j == 0 else b, b, 2 if j == 0 else 1) for j in range(depth)]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1] * (size // 16) ** 2, embedding)
        self.features = nn.BatchNorm1d(embedding)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def conv_block(a, b, kernel, stride=1, padding=0, groups=1, linear=False):
    layers = [nn.Conv2d(a, b, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(b)]
    return Layers(*layers, *([] if linear else [nn.PReLU(b)]))


class DepthWise(Layers):
    def __init__(self, a, b, expanded, stride=1, residual=False):
        super().__init__(
            conv_block(a, expanded, 1),
            conv_block(expanded, expanded, 3, stride, 1, expanded),
            conv_block(expanded, b, 1, linear=True),
        )
        self.residual = residual

    def forward(self, x):
        return self.layers(x) + x if self.residual else self.layers(x)


class MobileFaceNet(nn.Module):
    def __init__(self, blocks, scale, embedding):
        super().__init__()
        n, w = 64 * scale, 128 * scale
        self.layers = nn.ModuleList([conv_block(3, n, 3, 2, 1), conv_block(n, n, 3, 1, 1, 64)])
        for a, b, reduce, expand, count in (
            (n, n, 128, 128, blocks[1]),
            (n, w, 256, 256, blocks[2]),
            (w, w, 512, 256, blocks[3]),
        ):
            self.layers += [
                DepthWise(a, b, reduce, 2),
                Layers(*[DepthWise(b, b, expand, 1, True) for _ in range(count)]),
            ]
        self.conv_sep = conv_block(w, 512, 1)
        self.features = Layers(
            conv_block(512, 512, 7, groups=512, linear=True),
            nn.Flatten(),
            nn.Linear(512, embedding, bias=False),
            nn.BatchNorm1d(embedding),
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))


def randomised(module):
    """Random weights and statistics, so that no layer is the identity by accident."""
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, 0.1, 0.15) if p.ndim == 1 else nn.init.kaiming_normal_(p)
    for name, b in module.named_buffers():
        if "running" in name:
            nn.init.uniform_(b, 0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["iresnet", "mobilefacenet"])
def test_converted_weights_give_the_same_embeddings(tmp_path, kind, legacy):
    if kind == "iresnet":
        size, theirs = 32, IResNet((2, 1, 1, 1), (8, 8, 16, 16), 32, 12)
        ours = iresnet.IResNet((2, 1, 1, 1), (8, 8, 16, 16), 12)
    else:
        size, theirs = 112, MobileFaceNet((1, 1, 2, 1), 2, 12)
        ours = mobilefacenet.MobileFaceNet((1, 1, 2, 1), 2, embedding_size=12)
    theirs = randomised(theirs)
    if kind == "iresnet":
        nn.init.ones_(theirs.features.weight)
    torch.save(theirs.state_dict(), tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    images = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    template = jax.eval_shape(lambda key: ours.init(key, images, train=False), jax.random.key(0))
    variables = arcface_torch.load(tmp_path / "w.pt", template)
    mine = np.asarray(jax.jit(lambda v: ours.apply(v, images, train=False))(variables))
    with torch.no_grad():
        reference = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(mine, reference, atol=1e-5 * np.abs(reference).max() + 1e-6, rtol=1e-5)


def both(ours, theirs, *arrays):
    """Values and gradients of sum(cos(f)) by both frameworks; theirs sees NCHW and OIHW."""
    value, vjp = jax.vjp(ours, *map(jnp.asarray, arrays))
    tensors = [
        torch.from_numpy(a.transpose((0, 3, 1, 2) if i == 0 else (3, 2, 0, 1))).requires_grad_()
        for i, a in enumerate(arrays)
    ]
    output = theirs(*tensors)
    output.backward(torch.cos(output.detach()))
    gradients = [t.grad.numpy().transpose((0, 2, 3, 1) if i == 0 else (2, 3, 1, 0)) for i, t in enumerate(tensors)]
    reference = output.detach().numpy().transpose(0, 2, 3, 1)
    chex.assert_trees_all_close((value, vjp(jnp.cos(value))), (reference, tuple(gradients)), rtol=1e-4, atol=2e-5)


RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 9, 8, 6)).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_convolution(groups):
    kernel = RNG.normal(size=(3, 3, 6 // groups, 6)).astype(np.float32)
    both(
        lambda x, k: conv.conv(x, k, (2, 2), ((1, 1), (1, 1)), (1, 1), groups),
        lambda x, k: nn.functional.conv2d(x, k, None, 2, 1, 1, groups),
        IMAGE, kernel,
    )  # fmt: skip


def test_transposed_convolution():
    kernel = RNG.normal(size=(4, 4, 6, 5)).astype(np.float32)
    both(
        lambda x, k: conv.conv_transpose(x, k, (2, 2), ((1, 1), (1, 1))),
        lambda x, k: nn.functional.conv_transpose2d(x, k.transpose(0, 1), None, 2, 1),
        IMAGE, kernel,
    )  # fmt: skip


@pytest.mark.parametrize("align", [False, True])
def test_bilinear_resize(align):
    both(
        lambda x: pooling.resize_bilinear(x, (17, 5), align_corners=align),
        lambda x: nn.functional.interpolate(x, (17, 5), mode="bilinear", align_corners=align),
        IMAGE,
    )


def test_pooling():
    both(
        lambda x: pooling.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
        lambda x: nn.functional.max_pool2d(x, 3, 2, 1),
        IMAGE,
    )
    both(
        lambda x: pooling.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
        lambda x: nn.functional.avg_pool2d(x, 3, 2, 1),
        IMAGE,
    )
