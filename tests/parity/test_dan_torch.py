"""DAN compared with a PyTorch network written from the authors' layers: landmarks of every stage, loss, gradients.

The network starts from random weights, so that the landmarks are turned, scaled and moved from stage to stage. The
gradients of the first stage flow through the transform estimate, the warps and the heatmap.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.alignment import dan
from facejax.interop.names import Rule, batch_norm
from tests.parity.networks import assert_near, converted, keep_biased_variances, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

LANDMARKS, WIDTHS, FEATURES, REACH = 5, (3, 4), 6, 3


class Stage(nn.Module):
    def __init__(self, inputs, size):
        super().__init__()
        for i, width in enumerate(WIDTHS, 1):
            for j in (1, 2):
                self.add_module(f"conv{i}_{j}", nn.Conv2d(inputs, width, 3, padding=1, bias=False))
                self.add_module(f"norm{i}_{j}", nn.BatchNorm2d(width, eps=1e-4))
                inputs = width
        side = size // 2 ** len(WIDTHS)
        self.fc1, self.norm = nn.Linear(inputs * side * side, FEATURES, bias=False), nn.BatchNorm1d(FEATURES, eps=1e-4)
        self.output = nn.Linear(FEATURES, 2 * LANDMARKS)

    def forward(self, x):
        for i in range(1, len(WIDTHS) + 1):
            for j in (1, 2):
                conv, norm = self.get_submodule(f"conv{i}_{j}"), self.get_submodule(f"norm{i}_{j}")
                x = F.relu(norm(conv(x)))
            x = F.max_pool2d(x, 2)
        x = F.relu(self.norm(self.fc1(x.flatten(1))))
        return self.output(x), x


class Later(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
        self.feature_image, self.bn = nn.Linear(FEATURES, (size // 2) ** 2), nn.BatchNorm2d(3, eps=1e-4)
        self.net = Stage(3, size)

    def forward(self, image, landmarks, features, mean):
        params = [best_fit(row.reshape(-1, 2), mean) for row in landmarks]
        warped = torch.stack([affine(picture[0], a, t) for picture, (a, t) in zip(image, params, strict=True)])
        moved = torch.stack(
            [(row.reshape(-1, 2) @ a + t).flatten() for row, (a, t) in zip(landmarks, params, strict=True)]
        )
        drawn = torch.stack([draw(row.reshape(-1, 2), self.size) for row in moved])
        small = F.relu(self.feature_image(features)).reshape(-1, 1, self.size // 2, self.size // 2)
        inputs = torch.cat([warped[:, None], drawn[:, None], F.interpolate(small, scale_factor=2)], 1)
        correction, _ = self.net(self.bn(inputs))
        found = []
        for row, (a, t) in zip(moved + correction, params, strict=True):
            inverse = torch.linalg.inv(a)
            found.append((row.reshape(-1, 2) @ inverse - t @ inverse).flatten())
        return torch.stack(found)


def best_fit(source, destination):
    s, d = source - source.mean(0), destination - destination.mean(0)
    a = (s * d).sum() / (s**2).sum()
    b = sum(s[i, 0] * d[i, 1] - s[i, 1] * d[i, 0] for i in range(len(s))) / (s**2).sum()
    matrix = torch.stack([torch.stack([a, b]), torch.stack([-b, a])])
    return matrix, destination.mean(0) - source.mean(0) @ matrix


def affine(image, matrix, shift):
    """Bilinear sampling, as `affine_transform` of the authors, but clipped to the whole image."""
    size, inverse = len(image), torch.linalg.inv(matrix)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    at = torch.stack([x.flatten(), y.flatten()], 1).double() @ inverse - shift @ inverse
    at = at.clamp(0, size - 1)
    low = at.detach().floor().long().clamp(max=size - 2)
    (dx, dy), (column, row) = (at - low).T, low.T
    value = (
        (1 - dx) * (1 - dy) * image[row, column]
        + dx * (1 - dy) * image[row, column + 1]
        + (1 - dx) * dy * image[row + 1, column]
        + dx * dy * image[row + 1, column + 1]
    )
    return value.reshape(size, size)


def draw(landmarks, size):
    """One image per landmark, as the authors draw them, and their maximum."""
    offsets = torch.tensor([(i, j) for i in range(-REACH, REACH + 1) for j in range(-REACH, REACH + 1)])
    images = []
    for landmark in landmarks.clamp(REACH, size - 1 - REACH):
        whole = landmark.detach().int()
        places = offsets + whole
        values = 1 / (1 + torch.sqrt(((offsets - (landmark - whole)) ** 2).sum(1) + 1e-6))
        images.append(
            torch.zeros(size, size, dtype=values.dtype).index_put((places[:, 1].long(), places[:, 0].long()), values)
        )
    return torch.stack(images).amax(0)


class Reference(nn.Module):
    def __init__(self, size, mean):
        super().__init__()
        self.mean = mean
        self.stage1, self.stage2 = Stage(1, size), Later(size)

    def forward(self, image):
        correction, features = self.stage1(image)
        first = self.mean.flatten() + correction
        return first, self.stage2(image, first, features, self.mean)


RULES = [
    rule
    for source, target in (("stage1", "stage1"), (r"stage(\d)\.net", r"stage\1/net"))
    for last in (r"\2" if "(" in source else r"\1",)
    for rule in (
        Rule(rf"{source}\.conv(\d_\d)\.weight", f"params/{target}/conv{last}/conv/kernel", "conv"),
        *batch_norm(rf"{source}\.norm(\d_\d)", f"{target}/conv{last}/bn"),
        Rule(rf"{source}\.fc1\.weight", f"params/{target}/fc1/kernel", "flatten", WIDTHS[-1]),
        *batch_norm(rf"{source}\.norm", f"{target}/bn1"),
        Rule(rf"{source}\.output\.weight", f"params/{target}/output/kernel", "linear"),
        Rule(rf"{source}\.output\.bias", f"params/{target}/output/bias"),
    )
] + [
    Rule(r"stage(\d)\.feature_image\.weight", r"params/stage\1/feature_image/kernel", "linear"),
    Rule(r"stage(\d)\.feature_image\.bias", r"params/stage\1/feature_image/bias"),
    *batch_norm(r"stage(\d)\.bn", r"stage\1/bn"),
]


@pytest.mark.parametrize("size", [16, 18, 22])
def test_training(size):
    """The pooled maps are 8 and 4, 9 and 4, 11 and 5 pixels wide."""
    rng = np.random.default_rng(size)
    mean = rng.uniform(0.25, 0.75, (LANDMARKS, 2)) * size
    images = rng.normal(size=(4, size, size, 1))
    truth = mean + rng.normal(size=(4, LANDMARKS, 2))
    sizes = rng.uniform(4, 8, 4)
    theirs = randomized(Reference(size, torch.tensor(mean))).double()
    with torch.no_grad():
        for stage in (theirs.stage1, theirs.stage2.net):
            stage.output.weight.mul_(0.6)

    ours = dan.DAN(2, size, REACH, LANDMARKS, WIDTHS, FEATURES, dropout=0.0)
    shapes = template(ours, images)
    constants = {dan.STATISTICS: {**jax.tree.map(jnp.ones_like, shapes.pop(dan.STATISTICS)), "mean_shape": mean}}
    constants[dan.STATISTICS]["mean_image"] *= 0
    variables = converted(theirs.state_dict(), RULES, shapes)

    @jax.jit
    def train(params):
        def loss(params):
            out, moved = ours.apply(
                {**variables, **constants, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            points = out["points"]
            return dan.landmark_error(points[-1], truth, sizes).mean(), (points, moved)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (points, moved)), gradients = train(variables["params"])
    keep_biased_variances(theirs)
    wanted = theirs.train()(torch.tensor(images.transpose(0, 3, 1, 2)))
    for ours_found, theirs_found in zip(points[1:], wanted, strict=True):
        assert_near(ours_found, theirs_found.detach().reshape(4, LANDMARKS, 2), 1e-5)
    distance = (wanted[-1].reshape(4, LANDMARKS, 2) - torch.tensor(truth)).norm(dim=-1).mean(1)
    expected = (distance / torch.tensor(sizes)).mean()
    assert_near(loss, expected.item())
    expected.backward()
    slopes = {name: p.grad for name, p in theirs.named_parameters()}
    after = converted(theirs.state_dict() | slopes, RULES, shapes)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(after["params"]))
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(after["params"]), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * largest, err_msg=jax.tree_util.keystr(path))
    assert max(np.abs(x).max() for x in jax.tree.leaves(after["params"]["stage1"])) > 1e-3 * largest
    for got, want in zip(jax.tree.leaves(moved), jax.tree.leaves(after["batch_stats"]), strict=True):
        assert_near(got, want, 1e-5)
