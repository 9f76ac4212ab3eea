"""Names of the stacked hourglasses of CornerNet's and CenterNet's PyTorch code."""

from __future__ import annotations

from facejax.interop.names import Rule, batch_norm


def rules(order: int, trunk: str = "trunk") -> list[Rule]:
    """Of an hourglass of a given order; `trunk` is its name in our network."""
    found = [*convolution(r"pre\.0", f"{trunk}/stem_conv"), *residual(r"pre\.1", f"{trunk}/stem_block", 1)]
    for depth in range(order):
        source = r"kps\.(\d+)" + r"\.low2" * depth + r"\.(up1|low1|low2|low3)\.(\d+)"
        found += residual(source, rf"{trunk}/stack\1" + "/low2" * depth + r"/\2_\3", 4)
    found += convolution(r"cnvs\.(\d+)", rf"{trunk}/features\1")
    for i in (0, 1):
        found += residual(rf"inters\.{i}", f"{trunk}/between{i + 1}", 1)
        found += pair(rf"inters_\.{i}", f"{trunk}/old{i + 1}")
        found += pair(rf"cnvs_\.{i}", f"{trunk}/new{i + 1}")
    return found


def head(source: str, target: str) -> list[Rule]:
    """Rules of a head; `source` and `target` share groups."""
    parts = ((r"0\.conv", "conv"), ("1", "output"))
    return [
        Rule(rf"{source}\.{theirs}\.{kind}", f"params/{target}/{ours}/{name}", layout)
        for theirs, ours in parts
        for kind, name, layout in (("weight", "kernel", "conv"), ("bias", "bias", "same"))
    ]


def convolution(source: str, target: str) -> list[Rule]:
    """A module of a convolution "conv" and a batch norm "bn"."""
    return [
        Rule(rf"{source}\.conv\.weight", f"params/{target}/conv/kernel", "conv"),
        *batch_norm(rf"{source}\.bn", f"{target}/bn"),
    ]


def pair(source: str, target: str) -> list[Rule]:
    """A convolution and a batch norm in a Sequential."""
    return [
        Rule(rf"{source}\.0\.weight", f"params/{target}/conv/kernel", "conv"),
        *batch_norm(rf"{source}\.1", f"{target}/bn"),
    ]


def residual(source: str, target: str, group: int) -> list[Rule]:
    """A residual block; `group` is the back-reference of its layers' number, so `source` may have groups."""
    found = pair(rf"{source}\.skip", f"{target}/shortcut")
    kernel = Rule(rf"{source}\.conv(\d)\.weight", rf"params/{target}/conv\{group}/conv/kernel", "conv")
    return [*found, kernel, *batch_norm(rf"{source}\.bn(\d)", rf"{target}/conv\{group}/bn")]
