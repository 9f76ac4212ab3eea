"""Packages whose modules are imported on first attribute access (PEP 562)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any


def lazy(
    package: str, path: Sequence[str], *names: str, **objects: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    Args:
      package: the package's `__name__`.
      path: its `__path__`. Every public module and subpackage becomes an attribute, imported on first use.
      *names: other public names that the package defines.
      **objects: public name -> the module of the package that has it; imported on first use, too.
    """
    modules = {found.name for found in pkgutil.iter_modules(path) if not found.name.startswith("_")}
    public = sorted({*modules, *names, *objects})

    def get(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in objects:
            return getattr(importlib.import_module(f"{package}.{objects[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: public, public
