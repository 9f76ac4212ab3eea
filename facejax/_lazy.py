"""Packages that import their modules when an attribute asks for them (PEP 562)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any


def lazy(
    package: str, path: Sequence[str], *names: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    Args:
      package: the package's `__name__`.
      path: its `__path__`. Every public module and package in it becomes an attribute, imported at its first use.
      *names: what else the package defines in public.
    """
    modules = {found.name for found in pkgutil.iter_modules(path) if not found.name.startswith("_")}
    public = sorted({*modules, *names})

    def get(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: public, public
