"""Clips of blurred videos with landmarks: averages, geometry, moments, 300VW's folders, bad input."""

import cv2
import numpy as np
import pytest

from facejax.data import landmark_videos
from facejax.data.landmark_images import Augmentation
from facejax.data.landmark_videos import ArrayFrames, LandmarkVideos, Starts
from facejax.data.landmarks import MIRROR_68
from facejax.data.readers.landmarks import write_pts

STILL = Augmentation(0.0, 0.0, 0.0, flip=0.0, colour=0.0)


def dots(count=30):
    """Frames with a bright dot that moves by one pixel, the first landmark; the others are the corners of a square."""
    images, points = np.zeros((count, 64, 64, 3), np.uint8), np.zeros((count, 68, 2), np.float32)
    points[:] = np.float32([[10, 12], [50, 12], [50, 52], [10, 52]])[np.arange(68) % 4]
    for t in range(count):
        points[t, 0] = 15 + t, 30
        images[t, 30, 15 + t] = 255
    return ArrayFrames(images, points)


@pytest.fixture
def videos(monkeypatch):
    monkeypatch.setattr(landmark_videos, "_rendered", lambda *_: [dots(), dots(26)])
    return LandmarkVideos(image_size=64, windows=(1, 3, 7), test_clip=5, augment=STILL, gamma=1.0)


def brightest(image):
    """Centre of mass of the dot."""
    weights = image[..., 0].astype(float)
    rows, columns = np.mgrid[: len(image), : len(image)]
    return np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()


def test_landmarks_belong_to_the_middle_of_the_blur(videos):
    for window in (1, 3, 7):
        first, second = videos.test(window)
        assert first.blurred.shape == (5, 64, 64, 3) and first.points.shape == (5, 68, 2)
        np.testing.assert_array_equal(first.points, second.points)
        for t in range(5):
            for image in (first.blurred[t], first.sharp[t]):
                np.testing.assert_allclose(brightest(image), first.points[t, 0], atol=0.1)
        assert (first.blurred[0] > 0).any(-1).sum() >= window
    assert np.array_equal(videos.test(1)[0].blurred, videos.test(1)[0].sharp)


def test_every_blur_shows_the_same_moments(videos):
    clips = [videos.test(window)[0] for window in (1, 3, 7)]
    for clip in clips[1:]:
        np.testing.assert_array_equal(clip.points, clips[0].points)
        np.testing.assert_array_equal(clip.sharp, clips[0].sharp)
    scale = 64 / (1.25 * 40)
    np.testing.assert_allclose(np.diff(clips[0].points[:, 0, 0]), 4 * scale, rtol=1e-4)


def test_training_clips_are_turned_and_mirrored_as_a_whole(videos):
    moving = LandmarkVideos(
        image_size=64, windows=(3,), clip=4, augment=Augmentation(20.0, 0.1, 0.05, flip=0.5, colour=0.0), gamma=1.0
    )
    batch = next(moving.batches(16, 0))
    assert batch["blurred"].shape == (16, 4, 64, 64, 3) and batch["points"].shape == (16, 4, 68, 2)
    mirrored = 0
    for frames, points in zip(batch["sharp"], batch["points"], strict=True):
        partner = np.linalg.norm(brightest(frames[0]) - points[0, [0, MIRROR_68[0]]], axis=-1).argmin()
        mirrored += partner
        for image, marks in zip(frames, points, strict=True):
            np.testing.assert_allclose(brightest(image), marks[[0, MIRROR_68[0]][partner]], atol=0.6)
    assert 2 < mirrored < 14


def test_all_starts():
    source = Starts([dots(10), dots(3), dots(8)], 7)
    assert len(source) == 4 + 0 + 2
    assert [(len(frames), start) for frames, start in (source[i] for i in range(6))] == [
        (10, 0), (10, 1), (10, 2), (10, 3), (8, 0), (8, 1),
    ]  # fmt: skip


def write_300vw(root, frames=8, notes=8):
    for part in ("frames", "annot"):
        (root / "train" / "001" / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(1, frames + 1):
        cv2.imwrite(str(root / "train" / "001" / "frames" / f"{i:06}.jpg"), rng.integers(0, 255, (40, 50, 3)))
    for i in range(1, notes + 1):
        write_pts(root / "train" / "001" / "annot" / f"{i:06}.pts", rng.uniform(5, 35, (68, 2)) + i)


def test_300vw(tmp_path):
    write_300vw(tmp_path)
    data = LandmarkVideos("300vw", path=str(tmp_path), windows=(1, 3), period=1, clip=3)
    (video,) = data.videos("train")
    assert len(video) == 8 and video.image(0).shape == (40, 50, 3)
    assert video.points[7].mean() > video.points[0].mean()
    batch = next(data.batches(2, 0))
    assert batch["blurred"].shape == (2, 3, 32, 32, 3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda _: LandmarkVideos("youtube"), "data.kind is 'youtube': expected one of face_world, 300vw"),
        (lambda _: LandmarkVideos("300vw", 98), "data.landmarks is 98: 300vw has 68"),
        (lambda _: LandmarkVideos(windows=(1, 4)), r"data.windows is \(1, 4\): expected odd numbers"),
        (lambda _: Starts([dots(5)], 7), "the longest video has 5 frames: expected at least 7 for a clip"),
        (
            lambda data: data(test_clip=9).test(1),
            "a test video of 30 frames: expected at least 39 for data.test_clip 9",
        ),
    ],
)
def test_bad_input(make, sentence, monkeypatch):
    monkeypatch.setattr(landmark_videos, "_rendered", lambda *_: [dots()])
    with pytest.raises(ValueError, match=sentence):
        make(lambda **fields: LandmarkVideos(windows=(7,), **fields))


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match=r"no videos: expected VIDEO/frames/NUMBER.jpg"):
        landmark_videos.read_300vw(tmp_path, "train")
    write_300vw(tmp_path, frames=3, notes=2)
    with pytest.raises(ValueError, match=r"001: 3 frames and 2 annotations, 000003 in one of them only: expected"):
        landmark_videos.read_300vw(tmp_path, "train")
