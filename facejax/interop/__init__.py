"""Interoperation with other frameworks: readers of weight files, conversion to Flax variables, export."""

from facejax._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__)
