"""Random access to examples: subsets of a source, rows of arrays, images decoded on access."""

from __future__ import annotations

import bisect
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from facejax.data import decoding, pipeline, transforms
from facejax.data.pipeline import Source


def label(example: Mapping[str, Any]) -> int:
    """The class of an example: its "label", or the face world's "person"."""
    return int(example["person"] if "person" in example else example["label"])


def labels(source: Source) -> np.ndarray:
    """Classes [N] of all examples: the source's `labels`, or read from every example."""
    known = getattr(source, "labels", None)
    return np.array(known if known is not None else [label(source[i]) for i in range(len(source))])


def image(example: Mapping[str, Any], size: int) -> np.ndarray:
    """The image of an example, decoded and resized: uint8 [size, size, 3]."""
    return transforms.resize(transforms.decode(example["image"]), size, size)


INSPECTED = 64
"""Number of images that `warn_unaligned` inspects."""


def warn_unaligned(files: Iterable[Any], size: int, where: str) -> None:
    """A warning if images are stretched to size x size, or differ in size, as photographs do and aligned crops do not.

    Args:
      files: paths or contents of image files; the first `INSPECTED` that are images count.
      size: side of the network's input, pixels.
      where: what the warning calls them.
    """
    sides = []
    for file in itertools.islice(files, INSPECTED):
        try:
            sides.append(decoding.size(file if isinstance(file, bytes) else decoding.ImageFile.read(file)))
        except (decoding.BadImage, OSError):
            continue
    stretched = [s for s in sides if abs(s[0] - s[1]) > 0.02 * max(s)]
    advice = "align faces first (facejax.data.transforms.align)"
    if stretched:
        width, height = stretched[0]
        warnings.warn(
            f"{where}: {len(stretched)} of the first {len(sides)} images are not square, such as {width} x {height}, "
            f"and are stretched to {size} x {size}: {advice}",
            stacklevel=3,
        )
    elif len(set(sides)) > 1:
        (low, _), (high, _) = min(sides), max(sides)
        warnings.warn(
            f"{where}: the first {len(sides)} images have sides of {low} to {high} pixels, so they look like no "
            f"aligned crops: {advice}",
            stacklevel=3,
        )


class Subset:
    """Some examples of a source, as {"image": encoded bytes, "label": int}.

    Args:
      source: examples with "image" and a class.
      rows: [M] int, indices of the examples.
      labels: [M] int, classes that replace the examples' own.

    Attributes:
      whole: the source that it is a part of, directly or not.
    """

    def __init__(self, source: Source, rows: Sequence[int], labels: Sequence[int] | None = None):
        self._source, self._rows, self.labels = source, rows, labels
        self.whole = getattr(source, "whole", source)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[int(self._rows[index])]
        return {
            "image": example["image"],
            "label": int(label(example) if self.labels is None else self.labels[index]),
        }


class Part:
    """Some examples of a source, as they are.

    Args:
      source: the examples.
      rows: [M] int, indices of those in the part.

    Attributes:
      whole: as of `Subset`.
    """

    def __init__(self, source: Source, rows: Sequence[int]):
        self._source, self._rows = source, rows
        self.whole = getattr(source, "whole", source)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._source[int(self._rows[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return pipeline.fetch(self._source, [self._rows[i] for i in indices])


class Chain:
    """The examples of several sources, one after the other."""

    def __init__(self, *parts: Source):
        self._parts, self._ends = parts, list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Any:
        part = bisect.bisect(self._ends, index)
        return self._parts[part][index - (self._ends[part] - len(self._parts[part]))]


class Indexed:
    """The images of a source, each with its row under "index", such as for a memory bank."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._source[index]["image"], "index": index}


class Rows:
    """Rows of arrays as examples.

    Args:
      arrays: name -> [N, ...].
      order: [M] int, the rows in order, with repetitions; None: each row once.
    """

    def __init__(self, arrays: Mapping[str, Any], order: np.ndarray | None = None):
        self._arrays = arrays
        self._order = np.arange(len(next(iter(arrays.values())))) if order is None else order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: array[self._order[index]] for name, array in self._arrays.items()}


class Groups:
    """One example per identity: the rows [M] of its images. A batch then contains each identity at most once.

    Args:
      labels: [N] int, identity of every row.
      whole: the source of the images, if known.
    """

    def __init__(self, labels: Sequence[int], whole: Source | None = None):
        self.whole = self if whole is None else whole
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(np.asarray(labels)[order], prepend=np.nan))
        self._rows = np.split(order, starts[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._rows[index]


class Images:
    """Images of a source, decoded on access: indexed like an array [..., S, S, 3] uint8.

    Args:
      source: source of encoded images.
      rows: [...] int, indices of the images.
      size: S, pixels.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, source: Source, rows: np.ndarray, size: int):
        self._source, self._rows, self._size = source, rows, size
        self.shape = (*rows.shape, size, size, 3)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = self._rows[index]
        found = [image(e, self._size) for e in pipeline.fetch(self._source, np.ravel(rows))]
        return np.stack(found).reshape(*np.shape(rows), *self.shape[-3:])

    @property
    def names(self) -> list[str]:
        """Names of all images in order: "identity/file.jpg" of a folder, else the row in the source."""
        names = self.source_names
        return [names[i] for i in self._rows.ravel()]

    @property
    def source_names(self) -> Sequence[str]:
        """Names of all images of the source, including those outside `rows`."""
        return getattr(self._source, "names", None) or [str(i) for i in range(len(self._source))]

    def take(self, places: np.ndarray) -> Images:
        """Images at `places`, [...] int along the first axis, without decoding them."""
        return Images(self._source, self._rows[places], self._size)

    def reshape(self, *shape: int) -> Images:
        """The same images with other leading axes; the last three axes stay."""
        return Images(self._source, self._rows.reshape(shape[:-3]), self._size)


def names(images: np.ndarray | Images) -> list[str]:
    """Names of images [N, S, S, 3] in files: `Images.names`, or the row numbers of an array."""
    return getattr(images, "names", None) or [str(i) for i in range(len(images))]


def take(images: np.ndarray | Images, places: np.ndarray) -> np.ndarray | Images:
    """Images at `places`, [...] int along the first axis."""
    return images.take(places) if isinstance(images, Images) else images[places]
