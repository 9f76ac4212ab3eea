"""Motion-blurred videos of faces with landmarks: clips, and the `data` section of video alignment runs.

A blurred frame is the average of an odd number of sharp frames (`facejax.data.videos`); its landmarks are those of the
middle one. One region, the square around all landmarks of a clip, is cropped from all of its frames. Integer
coordinates are pixel centres.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data import pipeline, transforms
from facejax.data.keypoints import moved
from facejax.data.landmark_images import Augmentation, changed, crop, jittered, region_matrix, square
from facejax.data.landmarks import MIRRORS
from facejax.data.readers.folder import image_files, listed
from facejax.data.readers.landmarks import read_pts
from facejax.data.synthetic import faces
from facejax.data.videos import TASK, average, exposures, read_frame

KINDS = {"face_world": (68, 98), "300vw": (68,)}
"""Kind of data -> possible numbers of landmarks."""


class Clip(NamedTuple):
    """Frames of a face.

    Attributes:
      blurred, sharp: [T, S, S, 3] uint8.
      points: [T, L, 2] in pixels of the frames.
    """

    blurred: np.ndarray
    sharp: np.ndarray
    points: np.ndarray


@dataclasses.dataclass(frozen=True)
class ArrayFrames:
    """Sharp frames in memory: images [F, H, W, 3] uint8 and points [F, L, 2]."""

    images: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def image(self, index: int) -> np.ndarray:
        return self.images[index]


@dataclasses.dataclass(frozen=True)
class FolderFrames:
    """Sharp frames in files, with points [F, L, 2]."""

    files: tuple[pathlib.Path, ...]
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def image(self, index: int) -> np.ndarray:
        return read_frame(self.files[index])


Frames = ArrayFrames | FolderFrames


def read_300vw(root: str | pathlib.Path, split: str) -> list[FolderFrames]:
    """Videos of 300VW as files of frames: root/split/VIDEO/frames/NUMBER.jpg and root/split/VIDEO/annot/NUMBER.pts.

    Raises:
      ValueError: there is no video, or frames and annotations of one have different names.
    """
    folder, videos = pathlib.Path(root).expanduser() / split, []
    for video in listed(folder) if folder.is_dir() else ():
        if not (video / "annot").is_dir():
            continue
        images, notes = image_files(video / "frames"), sorted((video / "annot").glob("*.pts"))
        names = [{path.stem for path in paths} for paths in (images, notes)]
        if names[0] != names[1] or not notes:
            odd = sorted(names[0] ^ names[1])
            raise ValueError(
                f"{video}: {len(images)} frames and {len(notes)} annotations"
                + (f", {odd[0]} in one of them only" if odd else "")
                + ": expected the same file names, at least one"
            )
        images = tuple(sorted(images, key=lambda path: path.stem))
        videos.append(FolderFrames(images, np.stack([read_pts(path, 68) for path in notes])))
    if not videos:
        raise ValueError(f"{folder}: no videos: expected VIDEO/frames/NUMBER.jpg and VIDEO/annot/NUMBER.pts")
    return videos


@functools.lru_cache(maxsize=2)
def _rendered(data_dir: str, split: str, landmarks: int) -> list[ArrayFrames]:
    source, videos = faces.load(TASK, split, data_dir or None), []
    for example in pipeline.fetch(source, range(len(source))):
        images = np.stack([transforms.decode(image, upright=False) for image in example["image"]])
        points = np.asarray(example[f"landmarks{landmarks}"]) - 0.5  # from corners of pixels to their centres
        videos.append(ArrayFrames(images, points.astype(np.float32)))
    return videos


@dataclasses.dataclass(frozen=True)
class LandmarkVideos:
    """The `data` section of an experiment that finds landmarks in videos.

    Attributes:
      kind: "face_world" (rendered heads that move) or "300vw".
      landmarks: number of landmarks.
      path: folder of the data; not of the face world.
      data_dir: folder of the face world's prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the frames, pixels.
      enlarge: side of the crop relative to the square around all landmarks of a clip.
      windows: odd numbers of sharp frames averaged to a blurred one; a training clip has one of them at random.
      period: sharp frames from one blurred frame to the next.
      gamma: of the camera's response; 1 averages stored values.
      clip: frames of a training clip.
      test_clip: frames of a test clip; each test video gives one, from its start.
      augment: random changes of training clips, the same in all frames of one.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    kind: str = "face_world"
    landmarks: int = 68
    path: str = ""
    data_dir: str = ""
    image_size: int = 32
    enlarge: float = 1.25
    windows: tuple[int, ...] = (1, 5, 9, 13)
    period: int = 4
    gamma: float = 2.2
    clip: int = 5
    test_clip: int = 16
    augment: Augmentation = dataclasses.field(default_factory=lambda: Augmentation(10.0, 0.1, 0.03))
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"data.kind is {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.landmarks not in KINDS[self.kind]:
            possible = " or ".join(map(str, KINDS[self.kind]))
            raise ValueError(f"data.landmarks is {self.landmarks}: {self.kind} has {possible}")
        if not self.windows or any(w < 1 or w % 2 == 0 for w in self.windows):
            raise ValueError(f"data.windows is {tuple(self.windows)}: expected odd numbers of 1 or more")
        if not isinstance(self.augment, Augmentation):
            object.__setattr__(self, "augment", Augmentation(**self.augment))

    def videos(self, split: str) -> Sequence[Frames]:
        """The sharp frames of all videos of "train" or "test"."""
        if self.kind == "300vw":
            return read_300vw(self.path, split)
        return _rendered(self.data_dir, split, self.landmarks)

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches {"blurred", "sharp": uint8 [N, clip, S, S, 3], "points": [N, clip, L, 2]}."""
        source = Starts(self.videos("train"), (self.clip - 1) * self.period + max(self.windows))
        options = {"threads": self.threads, "workers": self.workers, "checked": self._frames}
        return pipeline.train_batches(source, self._load, batch_size, seed=seed, **options)

    def _frames(self) -> list[dict[str, Any]]:
        """The files of all frames."""
        videos = [*self.videos("train"), *self.videos("test")] if self.kind == "300vw" else []
        return [{"path": file} for video in videos for file in video.files]

    def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a training batch."""
        video = jax.ShapeDtypeStruct((batch_size, self.clip, self.image_size, self.image_size, 3), jnp.uint8)
        points = jax.ShapeDtypeStruct((batch_size, self.clip, self.landmarks, 2), jnp.float32)
        return {"blurred": video, "sharp": video, "points": points}

    def test(self, window: int) -> list[Clip]:
        """The first `test_clip` frames of every test video at one strength of blur; the same moments at every one."""
        length, widest = (self.test_clip - 1) * self.period, max(self.windows)
        clips = []
        for frames in self.videos("test"):
            if len(frames) < length + widest:
                raise ValueError(
                    f"a test video of {len(frames)} frames: expected at least {length + widest} for data.test_clip "
                    f"{self.test_clip}"
                )
            clips.append(self._clip(frames, (widest - window) // 2, window, self.test_clip, None))
        return clips

    def _clip(self, frames: Frames, start: int, window: int, count: int, rng: np.random.Generator | None) -> Clip:
        spans = list(exposures(len(frames) - start, window, self.period))[:count]
        middles = [start + span[window // 2] for span in spans]
        points = frames.points[middles]
        x, y, side = square(points.reshape(-1, 2))
        region, angle, mirror = (x, y, self.enlarge * side), 0.0, False
        if rng is not None:
            region, angle = jittered(region, self.augment, rng)
            mirror = rng.random() < self.augment.flip
        matrix = region_matrix(region, angle, self.image_size, mirror)
        images = {i: frames.image(i) for i in sorted({start + i for span in spans for i in span})}
        blurred = [average([images[start + i] for i in span], self.gamma) for span in spans]
        sharp = [images[i] for i in middles]
        both = [np.stack([crop(image, matrix, self.image_size) for image in part]) for part in (blurred, sharp)]
        points = moved(points.astype(float), matrix)
        if mirror:
            points = points[:, MIRRORS[self.landmarks]]
        if rng is not None:
            seed = int(rng.integers(2**32))
            both = [np.stack([changed(x, self.augment, np.random.default_rng(seed)) for x in part]) for part in both]
        return Clip(*both, points.astype(np.float32))

    def _load(self, examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        clips = []
        for (frames, start), rng in zip(examples, rngs, strict=True):
            window = int(rng.choice(self.windows))
            clips.append(self._clip(frames, start + (max(self.windows) - window) // 2, window, self.clip, rng))
        return {name: np.stack([getattr(clip, name) for clip in clips]) for name in Clip._fields}


class Starts:
    """A source of (frames, start): every start of a clip of `length` sharp frames.

    Raises:
      ValueError: no video has so many frames.
    """

    def __init__(self, videos: Sequence[Frames], length: int):
        self._videos = videos
        self._ends = np.cumsum([max(len(video) - length + 1, 0) for video in videos])
        if not len(videos) or not self._ends[-1]:
            longest = max(map(len, videos), default=0)
            raise ValueError(f"the longest video has {longest} frames: expected at least {length} for a clip")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Frames, int]:
        number = int(np.searchsorted(self._ends, index, "right"))
        return self._videos[number], index - int(self._ends[number - 1] if number else 0)
