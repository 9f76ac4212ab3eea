"""From another framework's names and layouts to Flax variables, strictly.

Every source tensor is used exactly once and every variable filled exactly once, with its own shape; what is missing,
left over or of another shape is said in one error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where tensors go.

    Attributes:
      source: regular expression that a source name matches whole.
      target: path of the variable with "/" between keys, with the expression's groups in it; it begins with the
        collection ("params", "batch_stats"). An empty target leaves the tensor out on purpose.
      layout: how it is laid out there: "same"; "conv" (O, I, H, W to H, W, I, O); "linear" (O, I to I, O);
        "flatten" (a linear layer after a flattened picture: its inputs go from C, H, W to H, W, C order).
      channels: C, for "flatten".
    """

    source: str
    target: str
    layout: str = "same"
    channels: int = 0


IGNORED = Rule(r".*\.num_batches_tracked", "")


def batch_norm(source: str, target: str, scale: bool = True) -> list[Rule]:
    """Rules of PyTorch's batch norm onto `facejax.nn.norm.BatchNorm`; without a scale, the source's must not exist."""
    names = {
        "bias": "params/{}/norm/bias",
        "running_mean": "batch_stats/{}/norm/mean",
        "running_var": "batch_stats/{}/norm/var",
    }
    names |= {"weight": "params/{}/norm/scale"} if scale else {"weight": ""}
    return [Rule(rf"{source}\.{name}", place.format(target) if place else "") for name, place in names.items()]


def convert(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], template: Any) -> Any:
    """Variables of the shape of `template`, filled from `tensors`.

    Args:
      tensors: source name -> array.
      rules: the first that matches a name decides.
      template: variables or their shapes, from `jax.eval_shape` of a model's init.

    Raises:
      ValueError: names everything that is missing, left over, filled twice or of another shape.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(template)
    wanted = {"/".join(str(getattr(k, "key", k)) for k in path): leaf for path, leaf in paths}
    found: dict[str, np.ndarray] = {}
    wrong = []
    for name, tensor in tensors.items():
        rule, match = next(((r, m) for r in (*rules, IGNORED) if (m := re.fullmatch(r.source, name))), (None, None))
        if rule is None:
            wrong.append(f"left over: {name} {tensor.shape}")
            continue
        if not rule.target:
            continue
        target = match.expand(rule.target)
        if target not in wanted:
            wrong.append(f"left over: {name}, for {target} is not in the model")
        elif target in found:
            wrong.append(f"twice: {target}, the second time by {name}")
        else:
            array = laid_out(tensor, rule)
            if array.shape != tuple(wanted[target].shape):
                wrong.append(f"shape: {name} gives {array.shape}, {target} has {tuple(wanted[target].shape)}")
            found[target] = array
    wrong += [f"missing: {name} {tuple(leaf.shape)}" for name, leaf in wanted.items() if name not in found]
    if wrong:
        raise ValueError(f"the weights do not fit the model in {len(wrong)} places: " + "; ".join(wrong))
    return tree.unflatten([np.asarray(found[name], leaf.dtype) for name, leaf in wanted.items()])


def subtree(tree: Any, template: Any) -> Any:
    """The part of nested dicts `tree` that `template` has too. Raises KeyError at what the tree lacks."""
    return {k: subtree(tree[k], v) for k, v in template.items()} if isinstance(template, dict) else tree


def laid_out(tensor: np.ndarray, rule: Rule) -> np.ndarray:
    """A tensor in Flax's layout."""
    if rule.layout == "same":
        return tensor
    expected = {"conv": 4, "linear": 2, "flatten": 2}[rule.layout]
    if tensor.ndim != expected:
        return tensor  # its shape will not fit, and is said so
    if rule.layout == "conv":
        return tensor.transpose(2, 3, 1, 0)
    if rule.layout == "linear":
        return tensor.T
    outputs, inputs = tensor.shape
    side = round((inputs // rule.channels) ** 0.5)
    return tensor.reshape(outputs, rule.channels, side, side).transpose(2, 3, 1, 0).reshape(inputs, outputs)
