"""The configuration part of `--help`: every field with its default and its meaning.

A field's meaning is the trailing comment on its line in the dict BASE of the experiment's source, or in a dict that
BASE includes from another module (`**module.NAME`, `module.NAME["section"]`, an imported name, a function's result); a
section's is on the line where it opens or closes.
The meanings of a dataclass's fields (`asdict(Class(...))`, and of `train`) come from "Attributes:" in the class's
docstring. This module imports no further modules of the experiment.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import inspect
import io
import pathlib
import re
import sys
import tokenize
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

VALUE_WIDTH = 28


USUAL = {
    r"seed": "of initial weights, of the order of examples and of every random draw",
    r"eval\.batch_size": "examples a call",
    r"(\w+_)?optim(\.\w+)*\.name": "of the optimizer (facejax.train.optim)",
    r".*weight_decay": "L2 regulariser weight",
    r".*learning_rate": "step size of the optimizer",
    r".*clip": "greatest norm of the gradient; 0 is none",
    r".*clip_only": "sub-tree of the parameters whose gradient is clipped; empty is all",
    r".*optim(\.\w+)*\.(b2|eps|momentum)": "of the optimizer",
    r".*optim(\.\w+)*\.nesterov": "whether SGD's momentum is that of Nesterov",
    r".*optim(\.\w+)*\.decay": 'parameters with weight decay: "all", or "kernels", those with two or more axes',
    r".*dropout": "rate, 0..1",
    r"data\.data_dir": "where prepared data lies; empty is $FACEJAX_DATA_DIR, else ~/.cache/facejax",
    r"data\.image_size": "side of the network's input, pixels",
    r"data\.threads": "batches loaded at once in this process",
    r"data\.workers": "processes that load besides; 0 loads in this one",
    r".*schedule\.kind": "of the learning rate over steps (facejax.train.optim.schedule)",
    r".*schedule\.peak": "greatest learning rate",
    r".*schedule\.end": "learning rate at the end",
    r".*schedule\.warmup": "steps of linear warm-up; below 1 a share of all steps",
    r".*schedule\.boundaries": "steps at which a step schedule falls; below 1 shares of all steps",
    r".*schedule\.factor": "of the learning rate at every fall",
    r".*schedule\.every": "steps between two falls of an exponential schedule",
    r".*schedule\.power": "of a polynomial schedule",
}
"""Meanings of fields that most experiments have, by pattern of the dotted name; a comment in the source goes first."""


class Source(NamedTuple):
    """A module: its parsed source, its trailing comments by line, and its variables."""

    tree: ast.Module
    comments: Mapping[int, str]
    variables: Mapping[str, Any]


class Found(NamedTuple):
    """An expression and the module that contains it."""

    node: ast.AST | None
    source: Source | None


NOTHING = Found(None, None)


def describe_fields(fields: Iterable[tuple[str, Any]], meanings: Mapping[str, str]) -> str:
    """One line per field: name, default, meaning; a line for the section precedes them if the section has a meaning.

    Args:
      fields: (dotted name, default).
      meanings: dotted name of a field or a section -> meaning.
    """
    rows, sections = [], set()
    for name, value in fields:
        parts = name.split(".")
        for section in (".".join(parts[:i]) for i in range(1, len(parts))):
            if section not in sections and section in meanings:
                rows.append((f"{section}.*", "", meanings[section]))
            sections.add(section)
        rows.append((name, repr(value), meanings.get(name) or _usual(name)))
    width = max((len(name) for name, _, _ in rows), default=0)
    return "\n".join(f"  {name:{width}}  {value:{VALUE_WIDTH}}  {about}".rstrip() for name, value, about in rows)


def _usual(name: str) -> str:
    return next((text for pattern, text in USUAL.items() if re.fullmatch(pattern, name)), "")


def field_meanings(variables: Mapping[str, Any], name: str = "BASE") -> dict[str, str]:
    """Dotted field -> its trailing comment in the dict `name` of a module.

    Args:
      variables: of the module, such as `get_config.__globals__`.
      name: of the dict; without it the result is empty.
    """
    return _meanings(_variable(name, _source(variables)))


def attribute_meanings(documented: type) -> dict[str, str]:
    """Attribute -> its text in the section "Attributes:" of a docstring; names separated by commas share one text.

    Attributes of base classes and, with a dot, those of fields that are dataclasses themselves are included.
    """
    found = {}
    for base in reversed(documented.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for names, text in re.findall(r"^  (\w[\w, ]*): (.*(?:\n {4,}.*)*)", section, re.M):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    for field in dataclasses.fields(documented) if dataclasses.is_dataclass(documented) else ():
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{name}": text for name, text in attribute_meanings(type(value)).items()}
    return found


def _meanings(found: Found) -> dict[str, str]:
    match found.node:
        case ast.Dict():
            return _of_dict(found.node, found.source)
        case ast.Name() | ast.Attribute():
            return _meanings(_follow(found))
        case ast.Subscript(value=whole, slice=ast.Constant(value=section)):
            return _below(section, _meanings(Found(whole, found.source)))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _meanings(Found(left, found.source)) | _meanings(Found(right, found.source))
        case ast.Call(func=ast.Name("asdict") | ast.Attribute(attr="asdict"), args=[ast.Call(func=made)]):
            documented = _value(made, found.source.variables)
            return attribute_meanings(documented) if isinstance(documented, type) else {}
        case ast.Call(func=function):
            return _meanings(_returned(_follow(Found(function, found.source))))
    return {}


def _key_lines(node: ast.Dict) -> set[int]:
    """Lines on which the keys of a dict begin."""
    return {key.lineno for key in node.keys if key is not None}


def _of_dict(node: ast.Dict, source: Source) -> dict[str, str]:
    meanings: dict[str, str] = {}
    lines = [key.lineno for key in node.keys if key is not None]
    for key, value in zip(node.keys, node.values, strict=True):
        inner = _meanings(Found(value, source))
        if key is None:
            meanings |= inner
        elif isinstance(key, ast.Constant):
            if inner:
                meanings = {field: text for field, text in meanings.items() if not field.startswith(f"{key.value}.")}
            meanings |= {f"{key.value}.{field}": text for field, text in inner.items()}
            alone = lines.count(key.lineno) == 1 and value.end_lineno != node.end_lineno
            opens = isinstance(value, ast.Dict) and key.lineno not in {value.end_lineno, *_key_lines(value)}
            comment = source.comments.get(value.end_lineno) or (source.comments.get(key.lineno) if opens else None)
            if alone and comment:
                meanings[str(key.value)] = comment
    return meanings


def _below(section: str, meanings: Mapping[str, str]) -> dict[str, str]:
    prefix = f"{section}."
    return {field.removeprefix(prefix): text for field, text in meanings.items() if field.startswith(prefix)}


def _follow(found: Found) -> Found:
    """The expression that defines a name or an attribute of a module."""
    match found.node:
        case ast.Name(id=name):
            return _variable(name, found.source)
        case ast.Attribute(value=place, attr=name):
            module = _value(place, found.source.variables)
            return _variable(name, _source(vars(module))) if isinstance(module, types.ModuleType) else NOTHING
    return NOTHING


def _value(node: ast.AST, variables: Mapping[str, Any]) -> Any:
    """The value of `a` or `a.b` in these variables; None for other expressions."""
    match node:
        case ast.Name(id=name):
            return variables.get(name)
        case ast.Attribute(value=place, attr=name):
            return getattr(_value(place, variables), name, None)
    return None


def _variable(name: str, source: Source | None) -> Found:
    """The last assignment or definition of a name in a module, or in the module that exports it."""
    for node in reversed(source.tree.body if source else ()):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                return Found(value, source)
            case ast.AnnAssign(target=ast.Name(id=target), value=value) if target == name:
                return Found(value, source)
            case ast.FunctionDef(name=target) if target == name:
                return Found(node, source)
            case ast.ImportFrom(module=module, names=names, level=level):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        place = importlib.util.resolve_name(
                            "." * level + (module or ""), source.variables.get("__package__")
                        )
                        there = sys.modules.get(place)
                        return _variable(alias.name, _source(vars(there))) if there else NOTHING
    return NOTHING


def _returned(found: Found) -> Found:
    """The expression in a function's final return statement."""
    if isinstance(found.node, ast.FunctionDef) and isinstance(found.node.body[-1], ast.Return):
        return Found(found.node.body[-1].value, found.source)
    return NOTHING


def _source(variables: Mapping[str, Any]) -> Source | None:
    file = variables.get("__file__")
    return Source(*_parsed(file), variables) if file and file.endswith(".py") else None


@functools.cache
def _parsed(file: str) -> tuple[ast.Module, dict[int, str]]:
    text = pathlib.Path(file).read_text()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
    }
    return ast.parse(text), comments
