"""Training runs that several papers share, from plain arguments: a recogniser, a scorer of images, pooling of sets."""

from facejax._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__)
