"""facejax: 66 papers on faces, vision and graphs, re-implemented in JAX and Flax."""

__version__ = "0.1.0"
