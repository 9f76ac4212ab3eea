"""Helpers for the comparison of whole networks with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.interop.names import convert

torch = pytest.importorskip("torch", reason="needs the parity extra")
nn = torch.nn


def randomized(net):
    """Random weights and running averages, so that no layer is the identity."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in net.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif key.endswith(("bias", "running_mean")):
            tensor.normal_(0, 0.2, generator=generator)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.2, generator=generator)
        elif tensor.ndim > 1:
            nn.init.kaiming_normal_(tensor, generator=generator)
    return net


def nchw(array, dtype=None):
    """[N, H, W, C] -> a leaf tensor in PyTorch's layout, of the array's type or `dtype`."""
    rows = np.ascontiguousarray(np.asarray(array).transpose(0, 3, 1, 2))
    return torch.tensor(rows, dtype=dtype, requires_grad=True)


def numpy_nhwc(tensor):
    """Converts a tensor to an array; feature maps become [N, H, W, C]."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def assert_near(ours, theirs, tolerance=1e-5, name=""):
    """Asserts equality up to `tolerance` times the largest absolute value."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1e-3, np.abs(theirs).max()), err_msg=name)


def template(net, inputs):
    """Shapes of the variables of a network."""
    return jax.eval_shape(lambda key: net.init(key, inputs, train=False), jax.random.key(0))


def converted(state, rules, shapes):
    """Variables from a state dict, or from gradients with the same names."""
    return convert({name: np.asarray(tensor).copy() for name, tensor in state.items()}, rules, shapes)


def keep_biased_variances(net):
    """Makes PyTorch's running variances use the biased batch variance, as in Flax."""

    def correct(layer, inputs, _):
        if layer.training:
            rows = inputs[0].detach().movedim(1, -1).flatten(0, -2)
            layer.running_var = layer.running_var - layer.momentum * rows.var(0) / len(rows)

    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.register_forward_hook(correct)


def assert_equal_training(ours, theirs, images, rules, *, outputs, inputs, params, statistics):
    """Compares a training step: outputs, gradients of the sum of their sines, and updated running averages.

    Args:
      ours, theirs: networks with one output or a list of outputs; modifies theirs, whose precision may be higher.
      images: [N, H, W, C].
      rules: mapping from the names of theirs to ours.
      outputs, inputs, params, statistics: tolerances relative to the largest absolute value (for parameter gradients,
        the largest of all).
    """
    shapes = template(ours, images)
    variables = converted(theirs.state_dict(), rules, shapes)

    @jax.jit
    def train(params, images):
        def loss(params, images):
            found, moved = ours.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return sum(jnp.sin(y).sum() for y in jax.tree.leaves(found)), (found, moved.get("batch_stats", {}))

        return jax.grad(loss, (0, 1), has_aux=True)(params, images)

    (d_params, d_images), (found, moved) = train(variables["params"], images)
    keep_biased_variances(theirs)
    tensor = nchw(images, next(theirs.parameters()).dtype)
    wanted = theirs.train()(tensor)
    sum(y.sin().sum() for y in jax.tree.leaves(wanted)).backward()
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_near(got, numpy_nhwc(want), outputs)
    assert_near(d_images, numpy_nhwc(tensor.grad), inputs)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected = converted(theirs.state_dict() | gradients, rules, shapes)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected["params"]))
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(d_params), jax.tree.leaves(expected["params"]), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=params * largest, err_msg=jax.tree_util.keystr(path))
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(moved), jax.tree.leaves(expected.get("batch_stats", {})), strict=True
    ):
        assert_near(got, want, statistics, jax.tree_util.keystr(path))
