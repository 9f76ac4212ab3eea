"""PRNet's network against PyTorch, with TensorFlow's paddings written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.interop.prnet import load
from facejax.models import variable_shapes
from facejax.reconstruction import prnet
from tests.checkpoints import write_tensorflow

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.parity
WIDTH = 1
DOUBLED = (1, 4, 7, 10, 12)
"""Numbers of the transposed convolutions with stride 2."""


def numbered(name, number):
    return f"{name}_{number}" if number else name


def published(rng):
    """Random tensors under the names of the authors' checkpoint, with some of what training keeps beside them."""
    found = {"beta1_power": np.float32(0.9), "resfcn256/Conv/weights/Adam": np.zeros((4, 4, 3, WIDTH), np.float32)}

    def norm(name, channels):
        for kind, low in (("gamma", 0.5), ("beta", 0.1), ("moving_mean", -0.5), ("moving_variance", 0.5)):
            found[f"resfcn256/{name}/BatchNorm/{kind}"] = np.float32(rng.uniform(low, low + 0.7, channels))

    def kernel(name, *shape):
        found[f"resfcn256/{name}/weights"] = np.float32(
            rng.normal(size=shape) / np.sqrt(np.prod(shape) / min(shape[2:]))
        )

    last = WIDTH
    kernel("Conv", 4, 4, 3, last)
    norm("Conv", last)
    for i in range(10):
        block, made, half = numbered("resBlock", i), WIDTH << (i // 2 + 1), WIDTH << (i // 2)
        kernel(f"{block}/Conv", 1, 1, last, half)
        kernel(f"{block}/Conv_1", 4, 4, half, half)
        kernel(f"{block}/Conv_2", 1, 1, half, made)
        for name, channels in ((f"{block}/Conv", half), (f"{block}/Conv_1", half), (block, made)):
            norm(name, channels)
        if i % 2 == 0:
            kernel(f"{block}/shortcut", 1, 1, last, made)
        last = made
    widths = [WIDTH << level for level in (5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 0, 0)] + [3] * 3
    for i, made in enumerate(widths):
        kernel(numbered("Conv2d_transpose", i), 4, 4, made, last)
        norm(numbered("Conv2d_transpose", i), made)
        last = made
    return found


def tensor(x):
    return torch.tensor(np.asarray(x, np.float64))


def norm(x, tensors, where):
    names = ("moving_mean", "moving_variance", "gamma", "beta")
    return F.batch_norm(x, *(tensor(tensors[f"resfcn256/{where}/BatchNorm/{n}"]) for n in names), eps=1e-3)


def conv(x, tensors, where, stride=1):
    weight = tensor(tensors[f"resfcn256/{where}/weights"]).permute(3, 2, 0, 1)
    size = weight.shape[-1]
    total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
    x = F.pad(x, (total // 2, total - total // 2) * 2)
    return F.conv2d(x, weight, stride=stride)


def unit(x, tensors, where, stride=1):
    return torch.relu(norm(conv(x, tensors, where, stride), tensors, where))


def reference(tensors, images):
    x = unit(images.permute(0, 3, 1, 2), tensors, "Conv")
    for i in range(10):
        block, stride = numbered("resBlock", i), 2 - i % 2
        y = unit(x, tensors, f"{block}/Conv")
        y = unit(y, tensors, f"{block}/Conv_1", stride)
        y = conv(y, tensors, f"{block}/Conv_2")
        x = conv(x, tensors, f"{block}/shortcut", stride) if stride == 2 else x
        x = torch.relu(norm(x + y, tensors, block))
    for i in range(17):
        where = numbered("Conv2d_transpose", i)
        weight = tensor(tensors[f"resfcn256/{where}/weights"]).permute(3, 2, 0, 1)
        if i in DOUBLED:
            x = F.conv_transpose2d(x, weight, stride=2, padding=1)
        else:
            x = F.conv_transpose2d(x, weight)[..., 1:-2, 1:-2]
        x = norm(x, tensors, where)
        x = torch.sigmoid(x) if i == 16 else torch.relu(x)
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [32, 96])
def test_outputs_and_gradients(size, tmp_path):
    """With the weights of a checkpoint as the authors' code saves it."""
    rng = np.random.default_rng(size)
    tensors, images = published(rng), rng.uniform(size=(2, size, size, 3))
    write_tensorflow(tmp_path / "256_256_resfcn256_weight", tensors)
    with jax.enable_x64(True):
        net = prnet.Net(WIDTH, dtype=jnp.float64)
        shapes = jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
        variables = jax.tree.map(np.float64, load(tmp_path / "256_256_resfcn256_weight", shapes))
        run = lambda x: net.apply(variables, x, train=False).astype(jnp.float64)  # noqa: E731
        found, slope = run(images), jax.jit(jax.grad(lambda x: (run(x) ** 2).sum()))(images)
    given = torch.tensor(images, requires_grad=True)
    expected = reference(tensors, given)
    (expected**2).sum().backward()
    assert np.ptp(found) > 0.01
    np.testing.assert_allclose(found, expected.detach(), atol=2e-6)
    np.testing.assert_allclose(slope, given.grad, atol=1e-4 * float(given.grad.abs().max()))


def test_other_checkpoints_are_refused(tmp_path):
    tensors = published(np.random.default_rng(0))
    kernel = tensors.pop("resfcn256/resBlock_9/Conv_1/weights")
    write_tensorflow(tmp_path / "part", tensors)
    template = variable_shapes("prnet", width=WIDTH)
    with pytest.raises(
        ValueError, match=r"part: not the weights of this PRNet: .*missing: params/block5_2/conv2/conv/"
    ):
        load(tmp_path / "part.index", template)
    write_tensorflow(tmp_path / "more", {**tensors, "resfcn256/resBlock_9/Conv_1/weights": kernel, "other": kernel})
    with pytest.raises(ValueError, match=r"unused: other \(4, 4, 16, 16\)"):
        load(tmp_path / "more.data-00000-of-00001", template)
