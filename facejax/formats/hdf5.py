"""Data sets of HDF5 files: in the file itself, and not larger than the limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from facejax.formats import limits


def read(group: Any, name: Any) -> np.ndarray:
    """The array of the data set `name` (or a reference to one) of an open file or group.

    Raises:
      ValueError: no such data set, one whose content lies in other files (external storage, a virtual data set, a link
        to a file), or one that is larger than `facejax.formats.limits` allow.
    """
    return np.asarray(checked(group, name)[()])


def checked(group: Any, name: Any) -> Any:
    """The h5py.Dataset that `read` reads."""
    import h5py

    if isinstance(name, str):
        parts = name.strip("/").split("/")
        for i in range(len(parts)):
            link = group.get("/".join(parts[: i + 1]), getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"no data set {name} in the file itself")
    item = group[name]
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"no data set {name}")
    if item.external or item.is_virtual:
        raise ValueError(f"the data set {item.name} lies in other files, expected its content in this one")
    limits.memory(math.prod(item.shape or ()) * item.dtype.itemsize, f"the data set {item.name}")
    limits.memory(math.prod(item.chunks or ()) * item.dtype.itemsize, f"a chunk of {item.name}")
    return item
