"""The face world: reproducible bytes, and ground truth that matches the pixels."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from facejax.data.synthetic import degrade, faces
from facejax.data.synthetic import factors as factor
from facejax.data.synthetic.faces import TASKS, Task, generate, load
from facejax.data.synthetic.factors import Ranges
from facejax.data.synthetic.render import TEMPLATE, Renderer
from facejax.morphable.procedural import procedural

PLAIN = Ranges(glasses=0, defocus=0, noise=0, jpeg=0, jitter=0, hair=1)


def decode(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(float)


@pytest.fixture(scope="module")
def renderer():
    return Renderer(procedural(), 32, aligned=True)


def draw(renderer, count=16, ranges=PLAIN, **changes):
    head = procedural()
    dimensions = (head.identity_std.shape[0], head.albedo_std.shape[0])
    one = [
        {**factor.person(0, i, dimensions, ranges), **factor.picture(0, i, 0, len(head.expressions), ranges), **changes}
        for i in range(count)
    ]
    stacked = factor.stack(one)
    return stacked, renderer(stacked)


def test_bytes_do_not_depend_on_other_examples():
    task = Task("t", 32, per_person=2, aligned=True)
    whole = dict(generate(task, range(3)))
    part = dict(generate(task, range(1, 2)))
    assert sorted(whole) == list(range(6))
    for number in (2, 3):
        assert whole[number]["image"] == part[number]["image"]
    assert whole[0]["image"] != whole[1]["image"]


def test_aligned_faces_match_the_template(renderer):
    _, found = draw(renderer)
    marks = found["landmarks68"]
    five = np.stack([marks[:, 36:42].mean(1), marks[:, 42:48].mean(1), marks[:, 30], marks[:, 48], marks[:, 54]], 1)
    assert np.abs(five.mean(1) - TEMPLATE.mean(0) * 32).max() < 0.1
    assert np.abs(five - TEMPLATE * 32).mean() < 2.0


def test_ground_truth_matches_the_image(renderer):
    _, found = draw(renderer)
    for i in range(16):
        marks, visible = found["landmarks68"][i], found["visible68"][i]
        at = np.floor(marks[visible]).astype(int)
        assert (found["alpha"][i][at[:, 1], at[:, 0]] > 0.4).mean() > 0.95
        left, top, right, bottom = found["box"][i]
        inner = marks[17:]
        assert (inner[:, 0] >= left - 1).all() and (inner[:, 0] <= right + 1).all()
        assert (inner[:, 1] >= top - 1).all() and (inner[:, 1] <= bottom + 1).all()


def test_rotated_head_occludes_its_far_side():
    renderer = Renderer(procedural(), 32, aligned=False)
    _, found = draw(renderer, pose=np.array([0.0, 1.2, 0.0]))
    _, front = draw(renderer, pose=np.zeros(3))
    assert found["visible68"][:, 8:17].mean() < 0.6 < found["visible68"][:, 0:8].mean()
    assert front["visible68"][:, 17:].mean() > 0.9
    assert found["landmarks68"][:, 30, 0].mean() > front["landmarks68"][:, 30, 0].mean() + 3


def test_glasses_change_the_eye_region_only(renderer):
    bare, with_glasses = (draw(renderer, glasses=np.array(v), tint=np.array(0.8))[1]["face"] for v in (0.0, 1.0))
    change = np.abs(with_glasses - bare).mean((0, 3))
    eyes = slice(10, 20)
    assert change[eyes].mean() > 10 * np.delete(change, np.arange(32)[8:22], 0).mean()


def test_every_factor_changes_the_image(renderer):
    head = procedural()
    base_factors, base = draw(renderer, 16, PLAIN)
    for name, value in {
        "light_direction": np.array([2.0, 0.3, 0.5]),
        "expression_strength": np.eye(len(head.expressions))[0],
        "hair": np.array(0.0),
        "age": np.array(90.0),
    }.items():
        changed = draw(renderer, 16, PLAIN, **{name: value})[1]["face"]
        assert np.abs(changed - base["face"]).mean() > 1e-3, name
    clean = {k: v[0] for k, v in base_factors.items()}
    image = np.clip(base["face"][0], 0, 1) ** 0.45
    for name, value in {
        "motion": 12.0,
        "defocus": 2.0,
        "resolution": 4.0,
        "noise": 10.0,
        "jpeg": 20.0,
        "occluder": 0.4,
    }.items():
        clean_image, degraded = (
            degrade.degrade(image, {**clean, name: np.array(v)}) for v in (1.0 if name == "resolution" else 0.0, value)
        )
        assert np.abs(clean_image.astype(float) - degraded).mean() > 0.5, name


@pytest.mark.parametrize("name", sorted(TASKS))
def test_examples_match_the_features_of_their_task(name):
    views = min(TASKS[name].views, 3)
    task = dataclasses.replace(TASKS[name], image_size=32, train=1, test=1, per_person=1, views=views)
    _, example = next(iter(generate(task, range(1))))
    features = faces.face_features(task)
    assert set(example) == set(features)
    for key, feature in features.items():
        if isinstance(feature, tfds.features.Tensor):
            assert np.shape(example[key]) == feature.shape, key


def test_every_third_view_of_hopeless_has_all_degradations():
    task = dataclasses.replace(TASKS["hopeless"], image_size=32, per_person=1)
    _, example = next(iter(generate(task, range(1))))
    for name, strongest in faces.STRONGEST.items():
        none = 1.0 if name == "resolution" else 0.0
        np.testing.assert_allclose(example[name], [none, none, strongest] * 2, err_msg=name)
    assert len(np.unique(example["pose"], axis=0)) == 6


def test_pairs_and_videos_vary_the_intended_factors():
    clean = dataclasses.replace(TASKS["pairs_glasses"], image_size=32, per_person=1)
    _, pair = next(iter(generate(clean, range(1))))
    assert pair["glasses"].tolist() == [1, 0]
    np.testing.assert_array_equal(pair["landmarks68"][0], pair["landmarks68"][1])
    video = dataclasses.replace(TASKS["video"], image_size=32, per_person=1, views=4)
    _, clip = next(iter(generate(video, range(1))))
    steps = np.abs(np.diff(clip["pose"], axis=0)).max(1)
    assert (steps > 0).all() and (steps < 0.4).all()


def test_changed_settings_change_the_key():
    task = TASKS["recognition"]
    assert task.key != dataclasses.replace(task, seed=1).key
    assert task.key != dataclasses.replace(task, ranges=Ranges(yaw=0.3)).key
    assert task.key == dataclasses.replace(task).key


def test_unknown_and_duplicate_names_raise():
    with pytest.raises(ValueError, match=r"unknown task 'recognitoin', expected one of recognition,"):
        load("recognitoin", "train")
    with pytest.raises(ValueError, match="'video' exists already"):
        faces.register(Task("video"))


PREPARE = """
import sys
from facejax.data.synthetic.faces import Task, load
source = load(Task("killed", 32, 12, 2, 16, aligned=True), "train", sys.argv[1])
print(len(source), sorted(source[i]["person"] for i in range(len(source)))[-1])
"""


def test_interrupted_preparation_is_discarded(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-c", PREPARE, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("facejax_faces/*/incomplete.*/*")):
        time.sleep(0.005)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("facejax_faces/*/incomplete.*"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["192", "11"]
    assert not list(tmp_path.glob("facejax_faces/*/incomplete.*"))
