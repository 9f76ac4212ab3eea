"""2DASL's landmark map, losses, critic and run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import asl2d as experiment
from facejax.data import reconstruction
from facejax.data.synthetic.faces import png
from facejax.morphable import crops, parameters
from facejax.morphable.parameters import Layout, LinearFace, Whitening
from facejax.reconstruction import asl2d
from facejax.train.dry_run import count, dry_run
from facejax.train.loop import Options
from tests.selection import full_but

LAYOUT, N = Layout(3, 2), 3
NAMES = ["17", "19", "21", "22", "24", "26", "36", "37+40", "39", "42", "43+46", "45", "31", "30", "35", "48", "62+66"]


def points_of(names, points):
    """The 18 points by their names."""
    return np.stack([np.mean([points[..., int(i), :] for i in name.split("+")], 0) for name in names], -2)


@pytest.fixture(scope="module")
def marks():
    rng = np.random.default_rng(0)
    arrays = (jnp.asarray(x, jnp.float32) for x in (rng.normal(size=(80, 3)), rng.normal(size=(80, 3, 5)) / 3))
    face = LinearFace(*arrays, jnp.zeros((0, 3), jnp.int32), jnp.arange(5, 73, dtype=jnp.int32), LAYOUT)
    return asl2d.landmarks(face)


@pytest.fixture(scope="module")
def whitening():
    rng = np.random.default_rng(1)
    mean = np.r_[8, 0, 0, 16, 0, 8, 0, 16, 0, 0, 8, 0, np.zeros(5)]
    return Whitening(*(jnp.asarray(x, jnp.float32) for x in (mean, rng.uniform(0.5, 2, LAYOUT.size))))


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.normal(size=(2, N, LAYOUT.size)) * 0.5, jnp.float32)


def test_eighteen_points():
    points = np.random.default_rng(0).normal(size=(N, 68, 2))
    found = asl2d.eighteen(points)
    np.testing.assert_allclose(found, points_of([*NAMES, "54"], points))
    matrix, shift = np.array([[0.3, -2.0], [1.1, 0.7]]), np.array([5.0, -3.0])
    np.testing.assert_allclose(asl2d.eighteen(points @ matrix + shift), found @ matrix + shift)
    assert len(asl2d.WEIGHTS) == 18
    weights = dict(zip([*NAMES, "54"], asl2d.WEIGHTS, strict=True))
    assert {name for name, w in weights.items() if w == 2} == {"30", "62+66"}
    assert {name for name, w in weights.items() if w == 1} == {"37+40", "43+46", "48", "54"}


def published_map(points68, size):
    """The published test code, in NumPy; points beyond the opposite border are left out."""
    points = points68.T.copy()
    points[points > size - 1] = size - 1
    index = np.int32(np.floor(points_of([*NAMES, "54"], points.T))).T
    index = index[:, (index >= -size).all(0)]
    found = np.zeros((size, size)) - 1
    found[index[1], index[0]] = 1
    return found


@pytest.mark.parametrize("size", [32, 21, 37])
def test_map_is_that_of_the_published_code(size):
    points = np.random.default_rng(size).uniform(-0.4 * size, 1.3 * size, (N, 68, 2)).astype(np.float32)
    points[0, 30] = [-0.5, 3]  # the last column of row 3
    points[1, 30] = [3, -1.5 * size]
    draw = jax.jit(lambda p: asl2d.landmark_map(p, size))
    found = draw(points)
    assert found.shape == (N, size, size, 1)
    assert found[0, 3, size - 1, 0] == 1
    for ours, row in zip(found[..., 0], points, strict=True):
        np.testing.assert_array_equal(ours, published_map(row, size))
    assert (draw(np.full_like(points, -9.0 * size)) == -1).all()
    slope = jax.jit(jax.grad(lambda p: draw(p).sum()))(points)
    np.testing.assert_array_equal(slope, 0)


def test_the_map_stays_beside_the_picture():
    points, images = np.full((1, 68, 2), 4.5, np.float32), np.full((1, 9, 9, 3), 0.25, jnp.bfloat16)
    inputs = np.asarray(jax.jit(asl2d.stacked)(images, points))
    assert inputs.dtype == jnp.bfloat16
    np.testing.assert_array_equal(inputs[..., :3], images)
    assert (inputs[0, 4, 4, 3], inputs[..., 3].sum()) == (1, 1 - 80)


@pytest.mark.parametrize("size", [32, 45])
def test_landmark_loss_by_hand(size):
    rng = np.random.default_rng(0)
    found, points = rng.uniform(0, size, (2, N, 68, 2))
    visible = rng.random((N, 68)) < 0.6
    visible[2] = False
    weights = [2.0 if n in ("30", "62+66") else 1.0 if n in ("37+40", "43+46", "48", "54") else 0.5
               for n in [*NAMES, "54"]]  # fmt: skip
    given, truth = (x.astype(np.float32) for x in (found, points))
    for seen in (visible, np.ones((N, 68), bool)):
        expected = []
        for i in range(N):
            total, norm = 0.0, 0.0
            for name, weight in zip([*NAMES, "54"], weights, strict=True):
                if all(seen[i, int(j)] for j in name.split("+")):
                    a, b = (points_of([name], p[i])[0] for p in (found, points))
                    total, norm = total + weight * ((a - b) ** 2).sum() / (size / 2) ** 2, norm + weight
            expected.append(total / norm if norm else 0.0)
        ours = jax.jit(lambda p, seen=seen: asl2d.landmark_loss(p, truth, size, None if seen.all() else seen))
        np.testing.assert_allclose(ours(given), expected, rtol=1e-5)
        direction = rng.normal(size=found.shape).astype(np.float32)
        slope = np.vdot(jax.jit(jax.grad(lambda p, ours=ours: ours(p).sum()))(given), direction)
        ahead, behind = (np.sum(ours(given + h * direction)) for h in (0.5, -0.5))
        np.testing.assert_allclose(slope, ahead - behind, rtol=1e-3)  # the loss is quadratic: differences are exact
        np.testing.assert_array_equal(ours(truth), 0)


def test_landmarks_in_3d_ignore_depth(marks, whitening, pair):
    found, true = pair
    first, second = (np.asarray(parameters.reconstruct(marks, whitening.restore(p)), np.float64)
                     for p in (found.at[:, 11].set(true[:, 11]), true))  # fmt: skip
    loss = jax.jit(lambda p: asl2d.landmark_loss_3d(p, true, marks, whitening, 32))
    np.testing.assert_allclose(loss(found), ((first - second) ** 2).mean((1, 2)) / 16**2, rtol=1e-4)
    np.testing.assert_allclose(loss(found.at[:, 11].add(5.0)), loss(found), rtol=1e-6)
    np.testing.assert_allclose(loss(true), 0, atol=1e-12)


def test_projection_is_that_of_the_vertices(marks, whitening, pair):
    placed = asl2d.projected(pair[0], marks, whitening, 32)
    vertices = np.asarray(parameters.reconstruct(marks, whitening.restore(pair[0])))
    np.testing.assert_allclose(placed, np.stack([vertices[..., 0], 32 - vertices[..., 1]], -1), rtol=1e-5)
    moved = asl2d.projected(pair[0], marks, whitening, 32, crops.V1)
    np.testing.assert_allclose(moved - placed, np.broadcast_to([0, 1], placed.shape), atol=1e-4)


def test_layers_of_the_critic_and_size_of_crops():
    net, critic = asl2d.Net(5, (1, 1, 1, 1), (4, 4, 4, 4)), asl2d.Critic()
    shapes = jax.eval_shape(
        lambda k: critic.init(k, jnp.zeros((1, 2048)), jnp.zeros((1, 62)), train=False), jax.random.key(0)
    )
    layers = ((2110, 512), (512, 1024), (1024, 1024), (1024, 1), (1, 1))
    assert count(shapes["params"]) == sum(a * b + b for a, b in layers)
    with pytest.raises(ValueError, match="crops of 144 x 144 pixels, expected at most 128"):
        jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, 144, 144, 4)), train=False), jax.random.key(0))


def test_critic_ignores_depth_and_drops_in_training(pair):
    critic, features = asl2d.Critic((8, 16, 16)), jnp.ones((N, 4))
    params = jax.jit(lambda k: critic.init(k, features, pair[0], train=False))(jax.random.key(0))
    score = jax.jit(functools.partial(critic.apply, params, features), static_argnames="train")
    found = score(pair[0], train=False)
    assert found.shape == (N,)
    np.testing.assert_array_equal(score(pair[0].at[:, 11].add(3.0), train=False), found)
    assert (score(pair[0].at[:, 12].add(3.0), train=False) != found).all()
    one, two = (score(pair[0], train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
    assert (one != two).any()


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "300wlp_wild"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset == "300wlp_wild":
        assert costs["parameters"] == 23_638_206 + 2_656_771


@pytest.fixture(scope="module")
def small_world(face_examples):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction.faces, "load", lambda *_: face_examples[0])
        reconstruction._load.cache_clear()
        yield
    reconstruction._load.cache_clear()


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Three crops in AFLW2000-3D's layout, of which the second has no detected landmarks."""
    root, rng = tmp_path_factory.mktemp("benchmark"), np.random.default_rng(0)
    (root / "crops").mkdir()
    for name in "abc":
        (root / "crops" / name).write_bytes(png(rng.integers(0, 255, (120, 120, 3)).astype(np.uint8)))
    (root / "crops.list").write_text("a b c")
    points = rng.uniform(10, 100, (3, 3, 68))
    arrays = {
        "AFLW2000-3D_crop.roi_box": np.tile([10.0, 20, 129, 139], (3, 1)),
        "AFLW2000-3D.pts68": points,
        "AFLW2000-3D-Reannotated.pts68": points[:, :2],
        "AFLW2000-3D.pose": np.array([-10.0, 40, 70]),
        "AFLW2000-3D-new.pose": np.array([10.0, 40, 70]),
    }
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    lines = [",".join(["a", *map(str, points[0, :2].T.ravel())]), ",".join(["c", *map(str, points[2, :2].T.ravel())])]
    (root / "detected.txt").write_text("\n".join(lines))
    return root


def small(preset, **changes):
    config = experiment.get_config(preset)
    small = {"data.image_size": 32, "data.people": 4, "train.batch_size": 4, "train.devices": 1, "loss.points": 8}
    config.update_from_flattened_dict({**small, **changes})
    return config


@pytest.fixture(scope="module")
def first_step(small_world, benchmark):
    """The run, its state, names of the metrics of a step with labels alone, and the result of a step with both."""
    config = small("synthetic", **{"loss.begin": 0.5, "train.steps": 2, "optim.schedule.warmup": 0})
    config.eval.update(path=str(benchmark), detections=str(benchmark / "detected.txt"))
    run = experiment.build(config)
    state = run.init(jax.random.key(0), run.prepare())
    batch = {**next(run.train_data()), **run.resident()}
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    whole = jax.sharding.PartitionSpec()
    steps = {
        name: jax.shard_map(step, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
        for name, step in run.train_step.items()
    }
    _, alone = jax.eval_shape(steps["labelled"], state, batch, jax.random.key(1))
    return run, state, set(alone), jax.jit(steps["assisted"])(state, batch, jax.random.key(1))


def changed(before, after):
    return [bool((a != b).any()) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]


def test_both_players_learn_once_faces_without_labels_join(first_step):
    run, state, alone, (after, metrics) = first_step
    assert [run.step_name(i) for i in (1, 2)] == ["labelled", "assisted"]
    assert alone == {"parameters", "landmarks_3d"}
    assert set(metrics) == alone | {"landmarks_2d", "cycle", "critic", "discriminator"}
    assert all(np.isfinite(mean.total) and mean.count == 4 for mean in metrics.values())
    for player in ("net", "critic"):
        assert all(changed(state.params[player], after.params[player]))
    assert all(changed(state.model_state["variables"], after.model_state["variables"]))


def test_evaluation_on_both_benchmarks(first_step):
    run, state, _, _ = first_step
    report = run.evaluate(state)
    rows = report.tables["Errors by yaw, %: mean and std are of the three bins"]
    detected = next(r for r in rows if r["result"] == "detected landmarks")
    assert 1 < detected["images"] < 6
    assert {"nme", "dense", "nme_3d", "icp", "aflw2000_nme", "aflw2000_renewed_nme"} <= set(report.metrics)
    assert all(np.isfinite(report.metrics[name]) for name in ("nme_images", "nme_3d", "icp", "aflw2000_nme_images"))
    known = reconstruction.ReconstructionFaces(people=4, image_size=32).whitening()
    np.testing.assert_allclose(state.model_state["whitening"].mean, known.mean)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model.name": "vgg"}, "model.name is 'vgg': expected one of tiny, resnet50"),
        ({"eval.protocol": "aflw2000", "eval.path": "a"}, "eval.detections is empty"),
        ({"data.kind": "crops"}, "data.wild is empty"),
    ],
)
def test_bad_configurations(change, sentence):
    config = experiment.get_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=sentence):
        experiment.build(config)
