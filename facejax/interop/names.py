"""Strict conversion of another framework's tensor names and layouts to Flax variables.

Every source tensor must fill exactly one variable of its shape, and every variable must be filled. A single error
counts all missing, unused and mismatched tensors and lists ten.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rule:
    """A mapping from source tensors to variables.

    Attributes:
      source: regular expression that matches the whole source name.
      target: path of the variable with "/" between keys, starting with the collection ("params", "batch_stats"); it may
        refer to the expression's groups. An empty target drops the tensor, if `dropped` holds for it.
      layout: change of layout: "same"; "conv" (O, I, H, W to H, W, I, O); "conv_transpose" (I, O, H, W to H, W, I, O);
        "linear" (O, I to I, O); "flatten" (a linear layer after a flattened feature map, whose inputs change from
        C, H, W to H, W, C order).
      channels: C, for "flatten".
      dropped: what a dropped tensor must be, a key of `DROPPED`; every rule has either this or a target.
    """

    source: str
    target: str
    layout: str = "same"
    channels: int = 0
    dropped: str = ""

    def __post_init__(self) -> None:
        if bool(self.target) == bool(self.dropped):
            raise ValueError(f"Rule({self.source!r}): expected either a target or what is dropped")


DROPPED: Mapping[str, Callable[[np.ndarray], bool]] = {
    "ones": lambda x: bool(np.all(np.abs(x - 1) <= 1e-6)),
    "zeros": lambda x: not np.any(x),
    "a count": lambda x: x.ndim == 0,
    "a shape": lambda x: x.ndim == 1 and x.dtype.kind == "i",
    "of a dense layer": lambda x: x.ndim in (1, 2),
    "of a part that the template lacks": lambda x: True,
}
"""Conditions on tensors that no variable holds."""

IGNORED = Rule(r".*\.num_batches_tracked", "", dropped="a count")


def batch_norm(source: str, target: str, scale: bool = True) -> list[Rule]:
    """Rules from PyTorch's batch norm to `facejax.nn.norm.BatchNorm`; without `scale`, its weight must be all ones."""
    names = {
        "bias": "params/{}/norm/bias",
        "running_mean": "batch_stats/{}/norm/mean",
        "running_var": "batch_stats/{}/norm/var",
    }
    weight = rf"{source}\.weight"
    scales = Rule(weight, f"params/{target}/norm/scale") if scale else Rule(weight, "", dropped="ones")
    return [scales, *(Rule(rf"{source}\.{name}", place.format(target)) for name, place in names.items())]


def convert(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], template: Any) -> Any:
    """Variables with the structure of `template`, filled from `tensors`.

    Args:
      tensors: source name -> array.
      rules: the first rule that matches a name applies.
      template: variables or their shapes, from `jax.eval_shape` of a model's init.

    Raises:
      ValueError: tensors are missing, unused, duplicate or of another shape; the message lists ten of them, with the
        likely cause where all are of one kind. If batch norms alone are missing and biases alone unused, it names the
        exporter's option.
    """
    wanted, tree = flat(template), jax.tree.structure(template)
    found: dict[str, np.ndarray] = {}
    wrong = []
    for name, tensor in tensors.items():
        rule, match = next(((r, m) for r in (*rules, IGNORED) if (m := re.fullmatch(r.source, name))), (None, None))
        if rule is None:
            wrong.append(f"unused: {name} {tensor.shape}")
            continue
        if rule.dropped:
            if not DROPPED[rule.dropped](tensor):
                wrong.append(
                    f"unused: {name} {tensor.shape}, because it is not {rule.dropped}, which the model assumes"
                )
            continue
        target = match.expand(rule.target)
        if target not in wanted:
            wrong.append(f"unused: {name}, because the model has no {target}")
        elif target in found:
            wrong.append(f"duplicate: {name} also fills {target}")
        else:
            array = laid_out(tensor, rule)
            if array.shape != tuple(wanted[target].shape):
                wrong.append(f"shape: {name} gives {array.shape}, {target} has {tuple(wanted[target].shape)}")
            found[target] = array
    missing = [name for name in wanted if name not in found]
    if _folded(missing, wanted, wrong):
        raise ValueError(
            f"batch norms are missing, the first is {missing[0]}, as in an ONNX file whose "
            "exporter folded them into the convolutions: export again with optimize=False"
        )
    wrong += [f"missing: {name} {tuple(wanted[name].shape)}" for name in missing]
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        listed = "; ".join(wrong[:10]) + more
        raise ValueError(f"the weights do not match the model{_cause(wrong, found)} in {len(wrong)} places: {listed}")
    return tree.unflatten([np.asarray(found[name], leaf.dtype) for name, leaf in wanted.items()])


def _cause(wrong: Sequence[str], found: Mapping[str, Any]) -> str:
    """What differences of one kind alone tell."""
    kinds = {text.partition(":")[0] for text in wrong}
    if not found and "unused" in kinds:
        return " (no name is one of this architecture's)"
    causes = {
        "missing": " (the file holds a part of the model)",
        "unused": " (the file holds more than the model)",
        "shape": " (the names agree: another width, embedding or number of classes)",
    }
    return causes[kinds.pop()] if len(kinds) == 1 and kinds <= causes.keys() else ""


def _folded(missing: Sequence[str], wanted: Mapping[str, Any], wrong: Sequence[str]) -> bool:
    """Whether whole batch norms alone are missing and nothing but biases is wrong."""
    layers = {name.partition("/")[2].rpartition("/norm/")[0] for name in missing}
    whole = [name for name in wanted if name.partition("/")[2].rpartition("/norm/")[0] in layers]
    return bool(layers) and "" not in layers and whole == missing and all("bias" in w.split()[1] for w in wrong)


def flat(tree: Any) -> dict[str, Any]:
    """Leaves by their path with "/" between keys. Raises ValueError where two leaves have one name."""
    found: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        add(found, "/".join(str(getattr(k, "key", k)) for k in keys), leaf)
    return found


def add(found: dict[str, Any], name: str, value: Any) -> None:
    """Adds a tensor under a new name. Raises ValueError if there is one of this name."""
    if name in found:
        raise ValueError(f"two tensors have the name {name}, expected one")
    found[name] = value


def subtree(tree: Any, template: Any) -> Any:
    """The part of the nested dicts `tree` with the keys of `template`. Raises KeyError for a missing key."""
    return {k: subtree(tree[k], v) for k, v in template.items()} if isinstance(template, dict) else tree


def laid_out(tensor: np.ndarray, rule: Rule) -> np.ndarray:
    """The tensor in Flax's layout."""
    if rule.layout == "same":
        return tensor
    expected = {"conv": 4, "conv_transpose": 4, "linear": 2, "flatten": 2}[rule.layout]
    if tensor.ndim != expected:
        return tensor  # `convert` reports the shape
    if rule.layout == "conv":
        return tensor.transpose(2, 3, 1, 0)
    if rule.layout == "conv_transpose":
        return tensor.transpose(2, 3, 0, 1)
    if rule.layout == "linear":
        return tensor.T
    outputs, inputs = tensor.shape
    side = round((inputs // rule.channels) ** 0.5)
    return tensor.reshape(outputs, rule.channels, side, side).transpose(2, 3, 1, 0).reshape(inputs, outputs)
