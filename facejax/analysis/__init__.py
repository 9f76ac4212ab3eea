"""Photographs in, everything about their faces out, from published weights: boxes, points, embeddings, pose, meshes."""

from facejax._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, FaceAnalyzer="analyzer", Faces="faces")
