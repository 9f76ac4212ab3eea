"""Official protocols run on a trained network, with their figures: network and data in, `Report` out."""

from facejax._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__)
