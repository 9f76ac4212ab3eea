"""Convolutional networks that several papers share, and those that are papers of their own."""

from facejax._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__)
