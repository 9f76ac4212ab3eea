"""A folder in the layout of the Hugging Face Hub: config.json, model.safetensors and a model card, README.md."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from facejax.interop.files import read_safetensors, write_safetensors
from facejax.interop.names import Rule, convert, flat

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LONGEST = 1 << 20
"""Bytes of a config.json that is read."""


def write_folder(folder: str | os.PathLike[str], config: Mapping[str, Any], variables: Any, card: str) -> None:
    """Writes the three files. config.json comes last: a folder that has one is whole.

    Args:
      folder: made if there is none.
      config: with "architecture" and "options", of JSON's types.
      variables: of the model.
      card: text of README.md.

    Raises:
      FileExistsError: the folder has one of the files.
    """
    folder = pathlib.Path(folder)
    for name in (CONFIG, WEIGHTS, CARD):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists: expected a folder without it")
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, variables)
    (folder / CARD).write_text(card, encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The config.json of a folder that `write_folder` wrote; its lists become tuples.

    Raises:
      FileNotFoundError: there is none.
      ValueError: not JSON, over 1 MB, or another library's.
    """
    path = pathlib.Path(folder) / CONFIG
    with path.open("rb") as file:
        data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise ValueError(f"{path}: over {LONGEST} bytes, expected the configuration of a model")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    found = config.get("library_name") if isinstance(config, dict) else None
    if found != "facejax":
        raise ValueError(f"{path}: library_name is {found!r}, expected 'facejax'")
    if not isinstance(config.get("architecture"), str) or not isinstance(config.get("options"), dict):
        raise ValueError(f"{path}: expected the name 'architecture' and the mapping 'options'")
    return _tuples(config)


def read_variables(folder: str | os.PathLike[str], template: Any) -> Any:
    """The variables in a folder; parts that were not written, such as those for training alone, are left out.

    Args:
      folder: of `write_folder`.
      template: shapes of the model's variables.

    Raises:
      ValueError: a tensor has no place in the model or another shape, or the file is damaged.
    """
    path = pathlib.Path(folder) / WEIGHTS
    tensors = read_safetensors(path)
    try:
        return fitted(tensors, template)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def fitted(tensors: Mapping[str, Any], template: Any) -> Any:
    """Variables of the template's structure without those that the tensors lack.

    Args:
      tensors: by the path of the variable with "/" between keys.
      template: shapes of the model's variables.

    Raises:
      ValueError: a tensor has no place in the template or another shape.
    """
    present: dict[str, Any] = {}
    for name, leaf in flat(template).items():
        if name in tensors:
            *outer, last = name.split("/")
            place = present
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = leaf
    return convert(tensors, [Rule("(.*)", r"\1")], present)


def jsonable(name: str, value: Any) -> Any:
    """An option as a value of JSON; a floating-point type becomes its name. Raises ValueError for other objects."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic) and value.ndim == 0:
        return value.item()
    if isinstance(value, (list, tuple)):
        return [jsonable(name, item) for item in value]
    try:
        return np.dtype(value).name
    except TypeError:
        kind = type(value).__name__
        raise ValueError(f"option {name} is a {kind}: expected numbers, names, types or lists of them") from None


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def model_card(
    config: Mapping[str, Any], about: str, source: str, *, detector: bool, page: str = "", license: str | None = None
) -> str:
    """Text of README.md: what the model is, its numbers, how to load it.

    Args:
      config: as in `write_folder`.
      about, source: the model's description, and where its published parameter count comes from.
      detector: whether it is one.
      page: text of the system's page in docs/systems: its first paragraph, sources and claims are quoted.
      license: of the weights, an SPDX identifier; None: the card says that it is not stated.
    """
    name, options = config["architecture"], config["options"]
    shape = " x ".join(map(str, config["input_shape"]))
    header = ["---", "library_name: facejax", "tags:", "- jax", "- flax"]
    lines = [*header, *([f"license: {license}"] if license else []), "---", "", f"# {name}", "", about + ".", ""]
    page = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", page)  # links within the repository
    lines += [*_paragraph(page), ""] if page else []
    lines += [
        "| | |", "|---|---|",
        f"| parameters | {config['parameters']:,} (the published number is from: {source}) |",
        f"| input of one sample | {shape} |",
        *(f"| {option} | `{json.dumps(value)}` |" for option, value in options.items()),
        f"| written by | facejax {config['facejax_version']} |",
        f"| licence of the weights | {license or 'not stated by whoever wrote this folder'} |",
        "| licence of the code | Apache-2.0 |", "",
        "## Use", "", "```python", "import facejax", "",
        'net, variables = facejax.from_pretrained("FOLDER")',
        *([f'detect = facejax.load_pretrained("{name}", "FOLDER")  # a function of photographs'] if detector else []),
        "```", "",
    ]  # fmt: skip
    return "\n".join([*lines, *_section(page, "Sources"), *_claims(page)]).rstrip() + "\n"


def _paragraph(page: str) -> Sequence[str]:
    """The page's first paragraph without what it says of files of the repository."""
    text = next((part for part in page.split("\n\n")[1:] if part.strip()), "")
    return [re.split(r"\s*Code:", text)[0].strip()]


def _section(page: str, title: str) -> list[str]:
    match = re.search(rf"^\*\*{title}:\*\*\n\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    return [f"## {title}", "", match[1], ""] if match else []


def _claims(page: str) -> list[str]:
    match = re.search(r"<!-- claims:begin -->\n(.*?)<!-- claims:end -->", page, re.DOTALL)
    if not match:
        return []
    told = "Measured by the library on its own small experiments, not with these weights:"
    return ["## Claims of the method", "", told, "", match[1].strip(), ""]
