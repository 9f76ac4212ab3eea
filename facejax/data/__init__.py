"""Image, text and graph data: readers, builders, synthetic data, augmentation, batches."""

from facejax._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__)
