"""PRNet's network against PyTorch, with weights in a checkpoint of the authors' layout."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.interop.prnet import load
from facejax.models import variable_shapes
from facejax.reconstruction import prnet
from tests.checkpoints import write_tensorflow
from tests.parity.networks import assert_near, nchw, numpy_nhwc, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
from benchmarks import torch_prnet

pytestmark = pytest.mark.parity
WIDTH = 1
LAYERS = {"conv1": "/Conv", "conv2": "/Conv_1", "conv3": "/Conv_2", "shortcut": "/shortcut", "bn": ""}
KINDS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def published(net):
    """The network's tensors under the names of the authors' checkpoint, and some of what training keeps beside them."""
    found = {"beta1_power": np.float32(0.9), "resfcn256/Conv/weights/Adam": np.zeros((4, 4, 3, WIDTH), np.float32)}
    for name, value in net.state_dict().items():
        (first, *inner), kind = name.split(".")[:-1], name.rpartition(".")[2]
        places = [int(digits) for digits in re.findall(r"\d+", first)]
        if first == "stem":
            where = "Conv"
        elif first.startswith("up"):
            where = numbered("Conv2d_transpose", places[0] - 1)
        else:
            where = numbered("resBlock", 2 * places[0] + places[1] - 3) + LAYERS[inner[0]]
        if [first, *inner][-1].endswith("bn"):
            if kind in KINDS:
                found[f"resfcn256/{where}/BatchNorm/{KINDS[kind]}"] = value.numpy()
        else:
            found[f"resfcn256/{where}/weights"] = value.permute(2, 3, 1, 0).contiguous().numpy()
    return found


def numbered(name, number):
    return f"{name}_{number}" if number else name


@pytest.fixture(scope="module")
def theirs():
    return randomized(torch_prnet.PRNet(WIDTH)).eval()


@pytest.mark.parametrize("size", [32, 96])
def test_outputs_and_gradients(size, tmp_path, theirs):
    images = np.random.default_rng(size).uniform(size=(2, size, size, 3))
    write_tensorflow(tmp_path / "256_256_resfcn256_weight", published(theirs.float()))
    with jax.enable_x64(True):
        net = prnet.Net(WIDTH, dtype=jnp.float64)
        shapes = jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
        variables = jax.tree.map(np.float64, load(tmp_path / "256_256_resfcn256_weight", shapes))
        run = lambda x: net.apply(variables, x, train=False).astype(jnp.float64)  # noqa: E731
        found, slope = run(images), jax.jit(jax.grad(lambda x: (run(x) ** 2).sum()))(images)
    given = nchw(images, torch.float64)
    expected = theirs.double()(given)
    (expected**2).sum().backward()
    assert np.ptp(found) > 0.01
    np.testing.assert_allclose(found, numpy_nhwc(expected), atol=2e-6)
    assert_near(slope, numpy_nhwc(given.grad), 1e-4)


def test_other_checkpoints_are_refused(tmp_path, theirs):
    tensors = published(theirs.float())
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
