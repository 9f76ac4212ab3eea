"""Training runs that several papers share, from plain arguments: a recogniser, a scorer of images, pooling of sets."""
