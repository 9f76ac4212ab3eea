"""Training runs that several papers share, wired from plain arguments: recogniser, scorer of images, pooling of sets."""
