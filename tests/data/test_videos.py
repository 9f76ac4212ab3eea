"""Videos with motion blur: averaging, folders of frames and what is wrong with them, clips and crops."""

import sys

import cv2
import numpy as np
import pytest

from facejax.data import videos
from facejax.data.synthetic import faces
from facejax.data.videos import ArrayVideo, Clips, DeblurVideos, Pair, average, exposures, read_folder


def frames(count, height=6, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def write(folder, images, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        (folder / f"{names[i] if names else i}.png").write_bytes(faces.png(image))


def test_average_by_hand():
    pair = np.zeros((2, 1, 1, 3), np.uint8)
    pair[1] = 255
    assert average(pair, 1.0).tolist() == [[[128] * 3]]  # 127.5 rounds to even
    assert average(pair, 2.2).tolist() == [[[round(255 * 0.5 ** (1 / 2.2))] * 3]]
    some = frames(5)
    np.testing.assert_array_equal(average(some, 1.0), np.rint(some.mean(0)))
    np.testing.assert_array_equal(average(some[:1]), some[0])
    with pytest.raises(ValueError, match="gamma is 0: expected a response above 0"):
        average(some, 0)


def test_exposures_and_their_middle_frames():
    assert list(exposures(10, 3, 4)) == [range(3), range(4, 7)]
    assert list(exposures(11, 3, 4)) == [range(3), range(4, 7), range(8, 11)]
    some = frames(11)
    video = ArrayVideo.averaged("v", some, 3, 4, 2.2)
    assert len(video) == 3
    np.testing.assert_array_equal(video.read(1, 3).sharp, some[[5, 9]])
    np.testing.assert_array_equal(video.read(1, 2).blurred[0], average(some[4:7]))
    for wrong in ((10, 2, 1), (10, 3, 0), (10, -1, 1)):
        with pytest.raises(ValueError, match="expected an odd window, and both 1 or more"):
            exposures(*wrong)
    with pytest.raises(ValueError, match="a video of 2 frames: expected at least the 3 of one exposure"):
        exposures(2, 3, 1)


def test_builder_and_reader(tmp_path, monkeypatch, capsys):
    fast = {name: frames(13, seed=i) for i, name in enumerate(("a2", "a10"))}
    for name, images in fast.items():
        write(tmp_path / "fast" / name, images)
    command = ["videos", str(tmp_path / "fast"), str(tmp_path / "pairs"), "--window=3", "--period=5"]
    monkeypatch.setattr(sys, "argv", command)
    videos.main()
    assert capsys.readouterr().out == f"6 pairs of frames in {tmp_path / 'pairs'}\n"
    found = read_folder(tmp_path / "pairs")
    assert [(video.name, len(video)) for video in found] == [("a2", 3), ("a10", 3)]
    for video in found:
        expected = ArrayVideo.averaged(video.name, fast[video.name], 3, 5, 2.2)
        for ours, theirs in zip(video.read(0, 3), expected.pair, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(SystemExit) as ended:
        videos.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"{tmp_path / 'pairs'} exists already: expected a new folder\n"
    with pytest.raises(ValueError, match=r"no videos: expected VIDEO/\*.png"):
        videos.write_averaged(tmp_path / "fast" / "a2", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_frames_are_in_natural_order(tmp_path):
    images = frames(12)
    for part in ("blur", "sharp"):
        write(tmp_path / "v" / part, images)
    np.testing.assert_array_equal(read_folder(tmp_path)[0].read(8, 12).sharp, images[8:])


def test_grey_frames_are_read_as_rgb(tmp_path):
    grey = frames(1)[0, ..., 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    np.testing.assert_array_equal(videos.read_frame(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, -1))


def spoilt(kind, images):
    """PNG bytes of the first image with a fault."""
    bgr = images[0][..., ::-1]
    return {
        "16 bits a channel: expected 8": lambda: cv2.imencode(".png", bgr.astype(np.uint16) * 257)[1].tobytes(),
        "4 channels: expected RGB or grey without alpha": lambda: cv2.imencode(
            ".png", np.concatenate([bgr, bgr[..., :1]], -1)
        )[1].tobytes(),
        "6 x 7 pixels: expected 6 x 8, as the first frame": lambda: faces.png(images[0][:, :-1]),
        "an image of 30 bytes does not decode": lambda: faces.png(images[0])[:30],
        "an image of 0 bytes does not decode": lambda: b"",
    }[kind]()


@pytest.mark.parametrize(
    "fault",
    [
        "16 bits a channel: expected 8", "4 channels: expected RGB or grey without alpha",
        "6 x 7 pixels: expected 6 x 8, as the first frame",
        "an image of 30 bytes does not decode", "an image of 0 bytes does not decode",
    ],
)  # fmt: skip
def test_a_bad_frame_in_the_middle_is_named(tmp_path, fault):
    images = frames(5)
    for part in ("blur", "sharp"):
        write(tmp_path / "v" / part, images)
    (tmp_path / "v/blur/2.png").write_bytes(spoilt(fault, images))
    (video,) = read_folder(tmp_path)
    with pytest.raises(ValueError, match=rf"blur/2\.png: {fault}"):
        video.read(0, 5)
    assert len(video.read(3, 5).sharp) == 2


def test_frames_of_both_splits_are_checked_once(tmp_path):
    for folder in ("train/v/blur", "train/v/sharp", "test/v/blur", "test/v/sharp"):
        write(tmp_path / folder, frames(3))
    (tmp_path / "test/v/blur/1.png").write_bytes(b"none")
    data = videos.DeblurVideos("path", str(tmp_path), clip=2, crop=4)
    count, flaws = data.batches(2, seed=0).check_images()
    assert count == 12
    assert [flaw.partition(": ")[0] for flaw in flaws] == [str(tmp_path / "test/v/blur/1.png")]


def test_missing_frames_are_an_error(tmp_path):
    write(tmp_path / "v/blur", frames(3))
    write(tmp_path / "v/sharp", frames(3), ["0", "1", "7"])
    with pytest.raises(ValueError, match="v: 3 blurred and 3 sharp frames, 2 in one of them only: expected the same"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match=r"no videos: expected VIDEO/blur_gamma/NUMBER\.png and VIDEO/sharp"):
        read_folder(tmp_path, "blur_gamma")
    for path in (tmp_path / "v").glob("*/*"):
        path.unlink()
    with pytest.raises(ValueError, match="v: 0 blurred and 0 sharp frames: expected the same file names, at least one"):
        read_folder(tmp_path)


def test_clips_are_all_parts_of_all_videos():
    made = [ArrayVideo(str(n), Pair(frames(n), frames(n, seed=1))) for n in (4, 2, 3)]
    clips = Clips(made, 3)
    assert len(clips) == 3
    np.testing.assert_array_equal(clips[1].sharp, made[0].pair.sharp[1:])
    np.testing.assert_array_equal(clips[2].blurred, made[2].pair.blurred)
    with pytest.raises(ValueError, match=r"the longest video has 1 frames: expected at least data.clip 2"):
        Clips([ArrayVideo("one", Pair(frames(1), frames(1)))], 2)


def test_crops_show_the_same_part_of_all_frames():
    at = np.arange(6 * 8, dtype=np.uint8).reshape(1, 6, 8, 1) + np.zeros((4, 1, 1, 3), np.uint8)
    load = videos.cropping(3)
    rngs = [np.random.default_rng(i) for i in range(100)]
    batch = load([Pair(at, at)] * 100, rngs)
    assert batch["blurred"].shape == (100, 4, 3, 3, 3)
    np.testing.assert_array_equal(batch["blurred"], batch["sharp"])
    np.testing.assert_array_equal(batch["sharp"], batch["sharp"][:, :1].repeat(4, 1))
    steps = np.diff(batch["sharp"][:, 0, 0, :, 0].astype(int), axis=1)
    assert set(np.unique(steps)) == {-1, 1}
    corners = {int(crop.min()) for crop in batch["sharp"]}
    assert corners <= {row * 8 + column for row in range(4) for column in range(6)}
    assert {corner // 8 for corner in corners} == set(range(4)) and {corner % 8 for corner in corners} == set(range(6))
    with pytest.raises(ValueError, match=r"frames of 6 x 8 pixels: expected at least data.crop 7"):
        videos.cropping(7)([Pair(at, at)], rngs[:1])


def test_section(tmp_path):
    with pytest.raises(ValueError, match=r"data.source is 'folder': expected face_world or path"):
        DeblurVideos("folder")
    for split in ("train", "test"):
        for part in ("blur", "sharp"):
            write(tmp_path / split / "v" / part, frames(6))
    data = DeblurVideos("path", str(tmp_path), clip=2, crop=4)
    assert [len(video) for video in data.videos("test")] == [6]
    batches = data.batches(3, 0)
    first = next(batches)
    assert {name: (x.shape, x.dtype) for name, x in first.items()} == dict.fromkeys(
        ("blurred", "sharp"), ((3, 2, 4, 4, 3), np.uint8)
    )
    batches.close()


def test_heads_move_smoothly():
    first = {
        "degrade_seed": np.array(3), "pose": np.zeros(3), "jitter": np.zeros(3), "expression_strength": np.zeros(4),
        "age": np.array(30.0),
    }  # fmt: skip
    views = [faces.gliding(first, view) for view in range(80)]
    assert all(view["age"] == 30 for view in views)
    for name, most in (("pose", 0.05), ("jitter", 2 / 64), ("expression_strength", 0.06)):
        track = np.stack([view[name] for view in views])
        steps = np.abs(np.diff(track, axis=0))
        assert 0.1 * most < steps.max() < most, name
        assert np.abs(np.diff(track, n=2, axis=0)).max() < 0.25 * steps.max(), name
    assert (faces.gliding(first, 5)["pose"] == views[5]["pose"]).all()
