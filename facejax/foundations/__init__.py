"""Methods that faces borrow from: attention, bottlenecks, second-order pooling, deformation, visualisation."""

from facejax._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__)
