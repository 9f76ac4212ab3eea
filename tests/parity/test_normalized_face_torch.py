"""Normalised faces compared with PyTorch: decoder, spline warp by grid_sample, losses, and all gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.generation import normalized_face as system
from facejax.interop.names import Rule
from facejax.ops import spline
from tests.parity.networks import assert_near, converted, nchw, numpy_nhwc, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

FEATURES, SHARED, HIDDEN, CHANNELS, POINTS = 11, 9, (7, 6), (8, 6, 5, 4, 3), 5


class TorchDecoder(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.side = size // 16
        self.shared = nn.Linear(FEATURES, SHARED)
        widths = (SHARED, *HIDDEN, 2 * POINTS)
        self.landmarks = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.dense = nn.Linear(SHARED, CHANNELS[0] * self.side**2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(*pair, 5, 2, 1) for pair in itertools.pairwise(CHANNELS))
        self.out = nn.Conv2d(CHANNELS[-1], 3, 1)

    def forward(self, features):
        x = y = F.relu(self.shared(features))
        for layer in self.landmarks[:-1]:
            y = F.relu(layer(y))
        x = F.relu(self.dense(x)).unflatten(1, (CHANNELS[0], self.side, self.side))
        for layer in self.up:
            x = F.relu(layer(x)[..., :-1, :-1])  # the transpose of TensorFlow's "SAME" convolution
        return self.landmarks[-1](y).unflatten(1, (POINTS, 2)), self.out(x)


RULES = [
    Rule("shared.weight", "params/shared/kernel", "linear"),
    Rule("shared.bias", "params/shared/bias"),
    *(
        Rule(f"landmarks.{i}.{theirs}", f"params/landmark_net/{name}/{ours}", layout)
        for i, name in enumerate(("hidden0", "hidden1", "out"))
        for theirs, ours, layout in (("weight", "kernel", "linear"), ("bias", "bias", "same"))
    ),
    Rule("dense.weight", "params/texture_net/dense/kernel", "linear"),
    Rule("dense.bias", "params/texture_net/dense/bias"),
    Rule(r"up\.(\d)\.weight", r"params/texture_net/up\1/kernel", "conv_transpose"),
    Rule(r"up\.(\d)\.bias", r"params/texture_net/up\1/bias"),
    Rule("out.weight", "params/texture_net/out/kernel", "conv"),
    Rule("out.bias", "params/texture_net/out/bias"),
]


def in_our_order(state, side):
    """Outputs of the dense layer are channels first in PyTorch and last here."""
    state = dict(state)
    for name in ("dense.weight", "dense.bias"):
        x = np.asarray(state[name])
        state[name] = np.moveaxis(x.reshape(CHANNELS[0], side, side, *x.shape[1:]), 0, 2).reshape(x.shape)
    return state


def torch_field(source, target, height, width, order, smoothing):
    """Displacements at the pixels, in sides of the image: the linear system of the spline written out."""
    sides = torch.tensor([width, height])
    fixed = torch.tensor([[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0.5]])
    points = torch.cat([target / sides, fixed])
    values = torch.cat([(target - source) / sides, torch.zeros(8, 2)])

    def phi(a, b):
        r = (a[:, None] - b).pow(2).sum(-1).clamp_min(1e-14).sqrt()
        return -r if order == 1 else r**2 * r.log()

    count = len(points)
    plane = torch.cat([points, torch.ones(count, 1)], 1)
    top = torch.cat([phi(points, points) + smoothing * torch.eye(count), plane], 1)
    matrix = torch.cat([top, torch.cat([plane.T, torch.zeros(3, 3)], 1)])
    solved = torch.linalg.solve(matrix, torch.cat([values, torch.zeros(3, 2)]))
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    queries = torch.stack([x, y], -1).reshape(-1, 2)
    found = phi(queries, points) @ solved[:count] + queries @ solved[count:-1] + solved[-1]
    return queries, found


def torch_warp(image, source, target, order, smoothing):
    height, width = image.shape[1:]
    queries, moved = torch_field(source, target, height, width, order, smoothing)
    grid = (2 * (queries - moved) - 1).reshape(1, height, width, 2)
    return F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]


@pytest.mark.parametrize(("height", "width", "order"), [(9, 12, 1), (16, 16, 2), (7, 5, 1)])
def test_warp(height, width, order):
    rng = np.random.default_rng(height)
    image = rng.normal(size=(1, height, width, 3)).astype(np.float32)
    source = (rng.uniform(0.2, 0.8, (6, 2)) * [width, height]).astype(np.float32)
    target = source + rng.uniform(-0.7, 0.7, (6, 2)).astype(np.float32)
    weights = rng.normal(size=image.shape).astype(np.float32)
    options = {"order": order, "smoothing": 1e-3}

    @jax.jit
    def ours(*inputs):
        def total(image, source, target):
            found = spline.warp(image, source, target, **options)
            return jnp.sum(found * weights[0]), found

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*inputs)

    (_, found), slopes = ours(image[0], source, target)
    picture, ends = nchw(image), [torch.tensor(x, requires_grad=True) for x in (source, target)]
    theirs = torch_warp(picture[0], *ends, **options)
    (theirs * nchw(weights).detach()[0]).sum().backward()
    assert_near(found, numpy_nhwc(theirs[None])[0], 1e-4)
    for got, want in zip(slopes, (numpy_nhwc(picture.grad)[0], *(x.grad for x in ends)), strict=True):
        assert_near(got, want, 2e-3)


@pytest.mark.parametrize("size", [16, 48])
def test_a_step_without_the_recogniser(size):
    """Landmark and texture losses, the rendered face, and gradients of all three."""
    torch.manual_seed(size)
    theirs = randomized(TorchDecoder(size))
    ours = system.Decoder(POINTS, size, SHARED, HIDDEN, CHANNELS)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, FEATURES)).astype(np.float32)
    mean = rng.uniform(0.3, 0.7, (POINTS, 2)).astype(np.float32)
    points = rng.uniform(0.2, 0.8, (3, POINTS, 2)).astype(np.float32)
    textures, weights = rng.normal(size=(2, 3, size, size, 3)).astype(np.float32)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), features)
    with torch.no_grad():
        theirs.landmarks[-1].weight *= 0.01  # small offsets, as in training
        theirs.landmarks[-1].bias *= 0.1
    variables = converted(in_our_order(theirs.state_dict(), size // 16), RULES, shapes)

    @jax.jit
    def step(variables):
        def total(variables):
            found = ours.apply(variables, features)
            images = system.warped(found.texture, size * mean[None], size * (mean + found.offsets), smoothing=1e-3)
            losses = (
                system.landmark_loss(mean + found.offsets, points),
                system.texture_loss(found.texture, textures),
                jnp.mean(images * weights, (1, 2, 3)),
            )
            return sum(x.mean() for x in losses), (losses, images)

        return jax.value_and_grad(total, has_aux=True)(variables)

    (_, (losses, images)), grads = step(variables)
    offsets, texture = theirs(torch.tensor(features))
    places = torch.tensor(mean) + offsets
    rendered = torch.stack([
        torch_warp(t, size * torch.tensor(mean), size * p, 1, 1e-3) for t, p in zip(texture, places, strict=True)
    ])  # fmt: skip
    expected = (
        (places - torch.tensor(points)).pow(2).mean((1, 2)),
        (texture - nchw(textures).detach()).abs().mean((1, 2, 3)),
        (rendered * nchw(weights).detach()).mean((1, 2, 3)),
    )
    assert_near(images, numpy_nhwc(rendered), 1e-4)
    for got, want in zip(losses, expected, strict=True):
        assert_near(got, want.detach(), 1e-4)
    sum(x.mean() for x in expected).backward()
    state = {name: p.grad for name, p in theirs.named_parameters()}
    truth = converted(in_our_order(state, size // 16), RULES, shapes)
    for branch in ("shared", "landmark_net", "texture_net"):
        wanted = jax.tree.leaves(truth["params"][branch])
        largest = max(np.abs(x).max() for x in wanted)
        for got, want in zip(jax.tree.leaves(grads["params"][branch]), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * largest, err_msg=branch)


def test_identity_loss():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 7)).astype(np.float32)
    theirs = torch.tensor(a, requires_grad=True)
    expected = 1 - F.cosine_similarity(theirs, torch.tensor(b))
    expected.sum().backward()
    np.testing.assert_allclose(system.identity_loss(a, b), expected.detach(), rtol=1e-5, atol=1e-6)
    assert_near(jax.grad(lambda x: system.identity_loss(x, b).sum())(a), theirs.grad, 1e-5)
