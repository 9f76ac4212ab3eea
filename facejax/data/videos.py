"""Videos with motion blur: pairs of blurred and sharp frames, averaged from sharp frames at a high rate or read.

    python -m facejax.data.videos SHARP PAIRS --window 7 --period 7 --gamma 2.2

SHARP/VIDEO/*.png are sharp frames at a high rate (240 a second in GoPro_Large_all). PAIRS/VIDEO/blur/NUMBER.png and
PAIRS/VIDEO/sharp/NUMBER.png are written, the layout of GoPro_Large.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from facejax.data import decoding, pipeline, transforms
from facejax.data.readers.folder import image_files, listed
from facejax.data.synthetic import faces

TASK = "video_sharp"


class Pair(NamedTuple):
    """Frames of a video.

    Attributes:
      blurred, sharp: [T, H, W, 3] uint8.
    """

    blurred: np.ndarray
    sharp: np.ndarray


class Video(Protocol):
    """A video of which any part can be read."""

    name: str

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Pair:
        """Frames start..stop - 1."""


def average(frames: Sequence[np.ndarray], gamma: float = 2.2) -> np.ndarray:
    """The frame that a camera takes whose shutter is open during sharp frames.

    Light is averaged, which a camera with the response light^(1 / gamma) stores.

    Args:
      frames: [K, H, W, 3] uint8.
      gamma: of the response; 1 averages stored values.

    Returns:
      [H, W, 3] uint8.
    """
    if gamma <= 0:
        raise ValueError(f"gamma is {gamma}: expected a response above 0")
    light = (np.arange(256) / 255) ** gamma
    mean = sum(light[frame] for frame in frames) / len(frames)
    return np.rint(255 * mean ** (1 / gamma)).astype(np.uint8)


def exposures(count: int, window: int, period: int) -> Iterator[range]:
    """Numbers of the sharp frames in every exposure: `window` frames, the first of each `period` after the last's.

    The sharp frame of an exposure is its middle one.

    Args:
      count: number of sharp frames.
      window: an odd number of frames.
      period: frames from one exposure to the next.

    Raises:
      ValueError: an even window, a period below 1, or fewer frames than a window.
    """
    if window < 1 or window % 2 == 0 or period < 1:
        raise ValueError(f"window {window}, period {period}: expected an odd window, and both 1 or more")
    if count < window:
        raise ValueError(f"a video of {count} frames: expected at least the {window} of one exposure")
    return (range(start, start + window) for start in range(0, count - window + 1, period))


@dataclasses.dataclass(frozen=True)
class ArrayVideo:
    """A video in memory."""

    name: str
    pair: Pair

    def __len__(self) -> int:
        return len(self.pair.sharp)

    def read(self, start: int, stop: int) -> Pair:
        return Pair(*(frames[start:stop] for frames in self.pair))

    @classmethod
    def averaged(cls, name: str, frames: np.ndarray, window: int, period: int, gamma: float) -> ArrayVideo:
        """From sharp frames [F, H, W, 3]; see `exposures`."""
        spans = list(exposures(len(frames), window, period))
        blurred = np.stack([average(frames[span.start : span.stop], gamma) for span in spans])
        return cls(name, Pair(blurred, frames[[span[window // 2] for span in spans]]))


@dataclasses.dataclass(frozen=True)
class FolderVideo:
    """A video of image files.

    Attributes:
      folder: holds one folder of blurred and one of sharp frames, with the same file names.
      blurred, sharp: the files, in order.
    """

    folder: pathlib.Path
    blurred: tuple[pathlib.Path, ...]
    sharp: tuple[pathlib.Path, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    def __len__(self) -> int:
        return len(self.sharp)

    def read(self, start: int, stop: int) -> Pair:
        """Frames start..stop - 1. Raises ValueError if one has another size than the others."""
        both = read_frames([*self.blurred[start:stop], *self.sharp[start:stop]])
        return Pair(*np.split(both, 2))


def read_frames(paths: Sequence[pathlib.Path], size: tuple[int, int] | None = None) -> np.ndarray:
    """Images of equal size, [N, H, W, 3] uint8 RGB; see `read_frame`.

    Args:
      paths: the files.
      size: (height, width) that is expected; None: that of the first.

    Raises:
      ValueError: a file has another size.
    """
    frames: list[np.ndarray] = []
    for path in paths:
        frames.append(read_frame(path))
        height, width = frames[-1].shape[:2]
        size = size or (height, width)
        if size != (height, width):
            raise ValueError(
                f"{path}: {height} x {width} pixels: expected {size[0]} x {size[1]}, as the first frame of the video"
            )
    return np.stack(frames)


def read_frame(path: pathlib.Path) -> np.ndarray:
    """An image file as [H, W, 3] uint8 RGB; an EXIF orientation is ignored.

    Raises:
      ValueError: the file does not decode, has another depth than 8 bits, or an alpha channel.
    """
    image = decoding.pixels(decoding.ImageFile.read(path), cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint8:
        raise ValueError(f"{path}: {8 * image.dtype.itemsize} bits a channel: expected 8")
    if image.ndim == 3 and image.shape[2] != 3:
        raise ValueError(f"{path}: {image.shape[2]} channels: expected RGB or grey without alpha")
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)


def read_folder(root: str | pathlib.Path, blurred: str = "blur", sharp: str = "sharp") -> list[FolderVideo]:
    """Videos in GoPro_Large's layout: root/VIDEO/blur/NUMBER.png and root/VIDEO/sharp/NUMBER.png, in natural order.

    Args:
      root: the folder.
      blurred, sharp: names of the folders of frames; GoPro_Large's "blur_gamma" is averaged in light.

    Raises:
      ValueError: there is no video, or the file names of a video differ.
    """
    root = pathlib.Path(root).expanduser()
    videos = []
    for folder in listed(root):
        if not ((folder / blurred).is_dir() and (folder / sharp).is_dir()):
            continue
        pair = [image_files(folder / part) for part in (blurred, sharp)]
        names = [{path.stem for path in part} for part in pair]
        if names[0] != names[1] or not names[0]:
            odd = sorted(names[0] ^ names[1])
            raise ValueError(
                f"{folder}: {len(pair[0])} blurred and {len(pair[1])} sharp frames"
                + (f", {odd[0]} in one of them only" if odd else "")
                + ": expected the same file names, at least one"
            )
        videos.append(FolderVideo(folder, *map(tuple, pair)))
    if not videos:
        raise ValueError(f"{root}: no videos: expected VIDEO/{blurred}/NUMBER.png and VIDEO/{sharp}/NUMBER.png")
    return videos


def write_averaged(
    source: str | pathlib.Path, target: str | pathlib.Path, window: int = 7, period: int = 7, gamma: float = 2.2
) -> int:
    """Makes GoPro_Large's layout from sharp frames source/VIDEO/*.png; returns the number of blurred frames.

    Args:
      source: folder of videos at a high rate.
      target: folder to write; must not exist, and is there only when complete.
      window, period: see `exposures`.
      gamma: see `average`.
    """
    source, target = (pathlib.Path(path).expanduser() for path in (source, target))
    if target.exists():
        raise ValueError(f"{target} exists already: expected a new folder")
    videos = [(folder, frames) for folder in listed(source) if folder.is_dir() and (frames := image_files(folder))]
    if not videos:
        raise ValueError(f"{source}: no videos: expected VIDEO/*.png")
    total, partial = 0, target.with_name(target.name + ".partial")
    for folder, frames in videos:
        parts = [partial / folder.name / part for part in ("blur", "sharp")]
        for part in parts:
            part.mkdir(parents=True, exist_ok=True)
        size = read_frame(frames[0]).shape[:2]
        for number, span in enumerate(exposures(len(frames), window, period), 1):
            seen = read_frames(frames[span.start : span.stop], size)
            for part, image in zip(parts, (average(seen, gamma), seen[window // 2]), strict=True):
                (part / f"{number:06}.png").write_bytes(faces.png(image))
            total += 1
    partial.rename(target)
    return total


@dataclasses.dataclass(frozen=True)
class DeblurVideos:
    """The `data` section of a video deblurring experiment.

    Attributes:
      source: "face_world" (rendered heads that move), or "path".
      path: with source "path", a folder with train and test, each in GoPro_Large's layout.
      blurred: with source "path", name of the folders of blurred frames: "blur", or "blur_gamma".
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      window: sharp frames averaged to a blurred one, in the face world.
      period: sharp frames from one blurred frame to the next, in the face world.
      gamma: of the camera's response, in the face world; 1 averages stored values.
      clip: frames of a training clip.
      crop: side of a training clip, pixels.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    source: str = "face_world"
    path: str = ""
    blurred: str = "blur"
    data_dir: str = ""
    window: int = 7
    period: int = 8
    gamma: float = 2.2
    clip: int = 6
    crop: int = 32
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.source not in ("face_world", "path"):
            raise ValueError(f"data.source is {self.source!r}: expected face_world or path")

    def videos(self, split: str) -> Sequence[Video]:
        """All videos of "train" or "test"."""
        if self.source == "path":
            return read_folder(pathlib.Path(self.path) / split, self.blurred)
        return _rendered(self.data_dir, split, self.window, self.period, self.gamma)

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches {"blurred", "sharp"}: uint8 [N, clip, crop, crop, 3]. See `Clips`."""
        clips = Clips(self.videos("train"), self.clip)
        options = {"threads": self.threads, "workers": self.workers, "checked": self._frames}
        return pipeline.train_batches(clips, cropping(self.crop), batch_size, seed=seed, **options)

    def _frames(self) -> list[dict[str, Any]]:
        """The files of all frames."""
        videos = [*self.videos("train"), *self.videos("test")] if self.source == "path" else []
        return [{"path": file} for video in videos for file in (*video.blurred, *video.sharp)]


@functools.lru_cache(maxsize=2)
def _rendered(data_dir: str, split: str, window: int, period: int, gamma: float) -> list[ArrayVideo]:
    source = faces.load(TASK, split, data_dir or None)
    videos = []
    for example in pipeline.fetch(source, range(len(source))):
        frames = np.stack([transforms.decode(image, upright=False) for image in example["image"]])
        videos.append(ArrayVideo.averaged(f"person {example['person']}", frames, window, period, gamma))
    return videos


class Clips:
    """Every part of `length` frames of every video, as a source of pairs.

    Raises:
      ValueError: no video has so many frames.
    """

    def __init__(self, videos: Sequence[Video], length: int):
        self._videos, self._length = videos, length
        self._starts = np.cumsum([0, *(max(len(video) - length + 1, 0) for video in videos)])
        if not self._starts[-1]:
            longest = max(map(len, videos), default=0)
            raise ValueError(f"the longest video has {longest} frames: expected at least data.clip {length}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Pair:
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        start = index - int(self._starts[number])
        return self._videos[number].read(start, start + self._length)


def cropping(size: int) -> Callable[[Sequence[Pair], Sequence[np.random.Generator]], dict[str, np.ndarray]]:
    """Batches of random square crops, mirrored with probability 0.5; the same part of all frames of a clip."""

    def crop(pair: Pair, rng: np.random.Generator) -> list[np.ndarray]:
        height, width = pair.sharp.shape[1:3]
        if min(height, width) < size:
            raise ValueError(f"frames of {height} x {width} pixels: expected at least data.crop {size}")
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        cut = [frames[:, top : top + size, left : left + size] for frames in pair]
        return [transforms.flip(frames) for frames in cut] if rng.random() < 0.5 else cut

    def load(pairs: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        blurred, sharp = zip(*(crop(pair, rng) for pair, rng in zip(pairs, rngs, strict=True)), strict=True)
        return {"blurred": np.stack(blurred), "sharp": np.stack(sharp)}

    return load


def main() -> None:
    """Averages a folder of sharp videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of VIDEO/*.png, sharp frames at a high rate")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--window", type=int, default=7, help="sharp frames in an exposure, odd")
    parser.add_argument("--period", type=int, default=7, help="sharp frames from one exposure to the next")
    parser.add_argument("--gamma", type=float, default=2.2, help="of the camera's response; 1 averages stored values")
    found = parser.parse_args()
    try:
        count = write_averaged(found.source, found.target, found.window, found.period, found.gamma)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{count} pairs of frames in {found.target}")


if __name__ == "__main__":
    main()
