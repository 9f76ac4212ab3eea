"""The decoder's layers and losses, morphs, Poisson blending, the data and the run of normalised faces."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import normalized_face as experiment
from facejax.data import normal_faces, transforms
from facejax.data.readers.landmarks import write_pts
from facejax.data.synthetic import factors
from facejax.data.synthetic.faces import png
from facejax.evaluate import normalization
from facejax.generation import normalized_face as system
from facejax.generation.normalized_face import Normalized
from facejax.train import Options, app
from facejax.train.dry_run import count, dry_run


def shapes(net, *inputs):
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


def test_published_layers():
    features = jnp.zeros((1, 1024))
    found = shapes(system.Decoder(), features)
    assert {name: count(part) for name, part in found.items()} == {
        "shared": 1024 * 1024 + 1024,
        "landmark_net": 1024 * 800 + 800 + 800 * 800 + 800 + 800 * 130 + 130,
        "texture_net": 52_531_555,
    }
    texture = {name: layer["kernel"].shape for name, layer in found["texture_net"].items()}
    assert texture == {
        "dense": (1024, 14 * 14 * 256), "up0": (5, 5, 256, 128), "up1": (5, 5, 128, 64), "up2": (5, 5, 64, 32),
        "up3": (5, 5, 32, 32), "out": (1, 1, 32, 3),
    }  # fmt: skip
    assert count(shapes(system.TextureNet(), features)) == 52_531_555
    assert "shared" not in shapes(system.Decoder(shared=0), features)


TINY = system.Decoder(5, 32, 6, (7,), (8, 6, 5, 4, 3))


def test_decoder_of_another_size():
    features = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    for size in (16, 48):
        net = TINY.clone(image_size=size)
        found = jax.eval_shape(lambda x, n=net: n.init_with_output(jax.random.key(0), x)[0], features)
        assert (found.offsets.shape, found.texture.shape) == ((3, 5, 2), (3, size, size, 3))
    found = jax.jit(lambda x: TINY.clone(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x)[0])(features)
    assert found.texture.dtype == found.offsets.dtype == jnp.float32
    assert np.isfinite(found.texture).all() and abs(found.offsets).max() < 0.05
    with pytest.raises(ValueError, match="TextureNet: 40 pixels and 5 widths: expected a multiple of 16 and 5"):
        shapes(TINY.clone(image_size=40), features)


def test_losses_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(system.landmark_loss(a, b), ((a - b) ** 2).mean((1, 2)), rtol=1e-5)
    x, y = rng.normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(system.texture_loss(x, y), abs(x - y).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(system.deviation(a), np.std(a - a.mean(0)), rtol=1e-6)
    e = np.float32([[3, 0], [1, 1], [-2, 0]])
    np.testing.assert_allclose(
        system.identity_loss(e, np.float32([[1, 0], [1, 0], [5, 0]])), [0, 1 - 0.5**0.5, 2], atol=1e-6
    )


def test_neighbours_by_brute_force():
    rng = np.random.default_rng(0)
    faces = Normalized(rng.random((7, 4, 2)).astype(np.float32), rng.normal(size=(7, 2, 2, 3)).astype(np.float32))
    distance = np.array([
        [10 * np.linalg.norm(a - b) + np.linalg.norm(s - t) for b, t in zip(*faces, strict=True)]
        for a, s in zip(*faces, strict=True)
    ])  # fmt: skip
    expected = [[j for j in np.argsort(row) if j != i][:3] for i, row in enumerate(distance)]
    np.testing.assert_array_equal(system.neighbours(faces, 3), expected)
    assert system.neighbours(faces, 200).shape == (7, 6)
    assert (system.neighbours(faces, 3) != system.neighbours(faces, 3, 0.0)).any()


def test_morphs_mix_shape_and_texture_independently():
    rng, n = np.random.default_rng(1), 400
    first, second = (Normalized(rng.random((n, 4, 2)), rng.random((n, 2, 2, 3))) for _ in range(2))
    found = system.morph(jax.random.key(0), first, second)
    alphas = [(x - a) / (b - a) for x, a, b in zip(found, first, second, strict=True)]
    single = np.stack([np.median(x.reshape(n, -1), 1) for x in alphas])
    for x, alpha in zip(alphas, single, strict=True):
        np.testing.assert_allclose(x.reshape(n, -1), np.broadcast_to(alpha[:, None], (n, x[0].size)), atol=5e-2)
    assert abs(np.corrcoef(single)[0, 1]) < 0.15
    assert (single >= -1e-3).all() and (single <= 1.001).all()
    np.testing.assert_allclose(single.mean(1), 0.5, atol=0.06)


def test_poisson_blending():
    """Against the dense equations of every unknown pixel; a constant offset of the source disappears."""
    rng, (height, width) = np.random.default_rng(2), (7, 9)
    source, target = rng.random((2, height, width, 2))
    mask = rng.random((height, width)) < 0.6
    mask[0, 0] = False
    blend = jax.jit(system.poisson_blend)
    found = blend(source, target, mask)
    places = [tuple(p) for p in np.argwhere(mask)]
    for c in range(2):
        matrix, right = np.zeros((len(places),) * 2), np.zeros(len(places))
        for i, (y, x) in enumerate(places):
            for q in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if not (0 <= q[0] < height and 0 <= q[1] < width):
                    continue
                matrix[i, i] += 1
                right[i] += source[y, x, c] - source[*q, c]
                if mask[q]:
                    matrix[i, places.index(q)] -= 1
                else:
                    right[i] += target[*q, c]
        np.testing.assert_allclose(found[..., c][mask], np.linalg.solve(matrix, right), atol=1e-3)
    np.testing.assert_array_equal(found[~mask], np.float32(target)[~mask])
    np.testing.assert_allclose(blend(target + 3, target, mask), target, atol=1e-3)


def test_hull():
    """Of a turned square the pixels inside, beside OpenCV's distance to the polygon."""
    points = np.float32([[9, 2], [16, 9], [9, 16], [2, 9], [9, 9]])
    outline = points[:4].reshape(-1, 1, 2)
    expected = [[cv2.pointPolygonTest(outline, (x + 0.5, y + 0.5), True) for x in range(18)] for y in range(18)]
    found, expected = np.asarray(system.hull(points, 18)), np.array(expected)
    assert found[expected > 0.1].all() and not found[expected < -0.1].any()
    assert not system.hull(points, 18).all()


def test_spread_of_outputs():
    person = np.array([1, 1, 4, 4])
    outputs = np.array([0.0, 2.0, 10.0, 12.0])[:, None] * np.ones((4, 6))
    assert normalization.spread(outputs, person) == (1.0, 25.0)


SIZE = 16


def person(number, view=0):
    """An example in place of a rendered one: smooth colours and 68 points that differ from person to person."""
    rng = np.random.default_rng([number, 0])
    image = cv2.resize(rng.integers(0, 256, (3, 3, 3)).astype(np.uint8), (SIZE, SIZE))
    points = np.random.default_rng(7).uniform(2, 14, (68, 2)) + rng.normal(size=(68, 2)) * 0.3
    return {"image": png(np.roll(image, view, 1)), "person": number, "landmarks68": points}


@pytest.fixture(scope="module")
def world():
    """Eight training people and two others, in another order than their photographs'."""

    def load(task, split, data_dir):
        people = range(8) if split == "train" else range(8, 10)
        return [person(p, view) for view in range(min(task.per_person, 2)) for p in people][:: -1 if task.vary else 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normal_faces.faces, "load", load)
        yield
    normal_faces._load.cache_clear()
    normal_faces._textures.cache_clear()


@pytest.fixture(scope="module")
def config(world):
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.image_size": SIZE, "model.shared": 8, "model.hidden": (8,),
            "model.channels": (8, 8, 4, 4, 4), "morph.neighbours": 3, "train.batch_size": 8, "train.steps": 2,
            "train.devices": 1, "eval.batch_size": 8,
        }
    )  # fmt: skip
    return config


def test_the_same_person_from_the_front():
    assert (normal_faces.NORMAL.seed, normal_faces.NORMAL.ranges) == (
        normal_faces.PHOTOGRAPHS.seed, normal_faces.PHOTOGRAPHS.ranges,
    )  # fmt: skip
    ranges = dataclasses.replace(normal_faces.PHOTOGRAPHS.ranges, glasses=1.0, noise=1.0, jpeg=1.0, defocus=1.0)
    who = factors.person(0, 3, (4, 5), ranges)
    first, second = (normal_faces.normalised({**who, **factors.picture(0, 3, i, 6, ranges)}, 0) for i in range(2))
    for name in set(first) - {"background_seed", "degrade_seed", "motion_angle"}:
        if not name.startswith(("frame", "occluder_", "tint")):  # of what is not there
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    for name in who:
        np.testing.assert_array_equal(first[name], who[name])
    assert not (first["pose"].any() or first["expression_strength"].any() or first["glasses"] or first["noise"])


def test_people_and_their_textures(config):
    data = normal_faces.NormalFaces(**config.data)
    people = data.load("train")
    assert (people.images.shape, people.photographs.shape) == ((8, 16, 16, 3), (16, 16, 16, 3))
    np.testing.assert_array_equal(people.images[people.person[:8]], people.photographs[:8])
    np.testing.assert_array_equal(people.landmarks[people.person[8]], np.float32(person(0)["landmarks68"]))
    faces = data.textures(smoothing=1e-4)
    means = np.broadcast_to(people.mean_landmarks, people.landmarks.shape)
    back = system.warped(np.float32(faces), means, people.landmarks, smoothing=1e-4)
    assert abs(back - people.images).mean() < abs(np.float32(faces) - people.images).mean()
    batch = next(data.batches(faces, system.neighbours(Normalized(people.landmarks, faces / 255), 3), 8, 0))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in data.shapes(8).items()
    }
    own = np.array([np.flatnonzero((people.landmarks == points).all((1, 2)))[0] for points in batch["landmarks"]])
    np.testing.assert_array_equal(batch["texture"], faces[own])
    assert (batch["other_landmarks"] != batch["landmarks"]).any((1, 2)).all()


def test_a_run(config):
    state, report = app.run(config, experiment.build, name="normalized_face:synthetic", workdir=None, quiet=True)
    assert {"mae", "nme", "identity_cosine", "independent_cosine", "variance_ratio"} < report.metrics.keys()
    assert all(np.isfinite(x) for x in report.metrics.values())
    (picture,) = report.images.values()
    assert picture.shape == (2 * 16, 8 * 16, 3)
    assert report.arrays["outputs"].shape == (4, 16, 16, 3)
    frozen = experiment.build(config).prepare()
    jax.tree.map(np.testing.assert_array_equal, state.model_state["recogniser"], frozen["recogniser"])


def test_a_folder_of_people(tmp_path, config):
    people = normal_faces.NormalFaces(**config.data).load("train")
    for number in range(4):
        (tmp_path / f"p{number}").mkdir()
        for shift in (0, 2):
            stem = tmp_path / f"p{number}" / f"{shift}"
            moved = np.pad(people.images[number], ((shift, 2 - shift), (0, 2), (0, 0)), mode="edge")
            stem.with_suffix(".png").write_bytes(png(moved))
            write_pts(stem.with_suffix(".pts"), people.landmarks[number] + [0, shift] - 0.5)
    data = normal_faces.NormalFaces("folder", str(tmp_path), image_size=112, held_out=3)
    train, test = data.load("train"), data.load("test")
    assert (len(train.images), len(test.images)) == (3, 1)
    np.testing.assert_array_equal(train.person, [0, 0, 1, 1, 2, 2])
    for points in train.landmarks:  # the centres of five points agree, from pixels' corners
        centre = transforms.five_points(points).mean(0) - 0.5
        np.testing.assert_allclose(centre, transforms.template(112).mean(0), atol=1e-3)
    inner = (slice(None), slice(30, 90), slice(30, 90))
    pairs = train.photographs.reshape(3, 2, 112, 112, 3).astype(int)
    assert abs(pairs[:, 0] - pairs[:, 1])[inner].mean() < 1.5  # aligned, the shifted pictures are the same
    assert abs(train.images - pairs[:, 0])[inner].mean() < 1.5


def test_bad_input(config):
    with pytest.raises(ValueError, match=r"data\.kind is 'films': expected one of face_world, folder"):
        normal_faces.NormalFaces("films")
    with pytest.raises(ValueError, match=r"data\.held_out is 1: expected 2 or more"):
        normal_faces.NormalFaces(held_out=1)
    other = config.copy_and_resolve_references()
    other.morph.share = 1.5
    with pytest.raises(ValueError, match=r"morph\.share is 1\.5: expected 0 to 1"):
        experiment.build(other)
    with pytest.raises(ValueError, match=r"model\.layer is 'last': expected pooled or embedding"):
        experiment.identity(None, 16, "last", {}, jnp.zeros((1, 16, 16, 3)))


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_presets(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    assert costs["parameters"] == sum(costs["parameters by part"].values())
    if preset == "full":
        shared, landmarks = 512 * 1024 + 1024, 1024 * 800 + 800 + 800 * 800 + 800 + 800 * 136 + 136
        assert costs["parameters"] == 52_531_555 + shared + landmarks
