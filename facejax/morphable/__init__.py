"""Morphable models of the head: geometry, camera, light and rasteriser."""

from facejax._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__)
