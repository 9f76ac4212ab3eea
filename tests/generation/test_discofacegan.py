"""DiscoFaceGAN's renderer in closed form, its losses by NumPy, its warp on moved faces, a tiny run of both stages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate

from experiments import discofacegan as experiment
from facejax.data import model_aligned
from facejax.data.synthetic.faces import png
from facejax.evaluate import control
from facejax.generation import discofacegan as disco
from facejax.generation.discofacegan import Latents, Layout
from facejax.morphable.procedural import procedural
from facejax.recipes import controlled
from facejax.train import parallel

LAYOUT, LATENTS = Layout(3, 2, 4), Latents(5, 3, 4, 3, 2)
PLACES = LAYOUT.slices()
head = partial(procedural, texture_size=32)
RNG = np.random.default_rng(0)
mesh = jax.jit(lambda face, coefficients: disco.mesh(face, coefficients, LAYOUT))
pair_loss = jax.jit(disco.expression_pair_loss)
light_pair_loss = jax.jit(disco.light_pair_loss)
landmarks = jax.jit(lambda face, coefficients: disco.landmarks(face, coefficients, LAYOUT))
render = jax.jit(lambda face, coefficients: disco.render(face, coefficients, LAYOUT, 16))


@pytest.fixture(scope="module", autouse=True)
def coarse_head():
    """The head with small textures."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (controlled, model_aligned):
            patch.setattr(module, "procedural", head)
        model_aligned._centre.cache_clear()
        yield


@pytest.fixture(scope="module")
def face():
    return disco.make_face(head(), LAYOUT, 300)


def coefficients(count, rng=RNG):
    found = rng.normal(size=(count, LAYOUT.size)) * 0.5
    found[:, PLACES["pose"]] *= 0.4
    found[:, PLACES["light"]] *= 0.1
    return found.astype(np.float32)


def test_order_of_coefficients_and_latents():
    published = Layout().slices()
    assert list(published) == ["identity", "expression", "pose", "light"]
    assert [p.stop for p in published.values()] == [160, 224, 227, 254] and Layout().size == 254
    assert Latents().slices()["pose"] == slice(176, 179) and Latents().size == 211
    nets = {name: place.stop - place.start for name, place in PLACES.items()}
    decoders = {}
    for i, (name, outputs) in enumerate(nets.items()):
        sizes = [LATENTS._asdict()[name], 6, 6, 6, outputs]
        decoders[name] = {
            f"Dense_{j}": {"kernel": RNG.normal(size=sizes[j : j + 2]), "bias": np.full(sizes[j + 1], i + 1.0)}
            for j in range(4)
        }
        decoders[name]["Dense_3"]["kernel"] *= 0
    latents = jnp.asarray(RNG.normal(size=(2, LATENTS.size)), jnp.float32)
    found, slopes = jax.jit(
        lambda d, z: (
            disco.inputs(d, z, LATENTS, LAYOUT),
            jax.grad(lambda d, z: disco.decoded(d, z, LATENTS, LAYOUT).sum(), (0, 1))(d, z),
        )
    )(decoders, latents)
    expected = np.repeat([1, 2, 3, 4], [5, 4, 3, 27])
    np.testing.assert_array_equal(found[0, :-2], expected)
    np.testing.assert_array_equal(found[:, -2:], latents[:, -2:])
    assert not any(np.any(x) for x in jax.tree.leaves(slopes))


@pytest.mark.parametrize("shape", [(4, 3), (7, 5)])
def test_loss_of_an_autoencoder(shape):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, shape[0], 6))
    mean, log_deviation = rng.normal(size=(2, *shape))
    gamma = 0.7
    expected = ((x - y) ** 2 / gamma**2 / 2 + np.log(gamma) + 0.918938533).sum(1)
    expected += (mean**2 + np.exp(log_deviation) ** 2 - 2 * log_deviation - 1).sum(1) / 2
    loss = jax.jit(disco.autoencoder_loss)
    np.testing.assert_allclose(loss(x, y, np.log(gamma), mean, log_deviation), expected, rtol=1e-5)
    assert jax.jit(jax.grad(lambda g: loss(x, x, g, mean, log_deviation).sum()))(0.0) == 6 * shape[0]


def test_light_in_closed_form(face):
    """Without light every vertex has 0.8 sqrt(pi) / 2; the functions are those of the code at three normals."""
    still = coefficients(2)
    still[:, PLACES["light"]] = 0
    made = mesh(face, still)
    texture = face.colour + np.tensordot(still[:, 3:5], face.texture, ((1,), (2,)))
    np.testing.assert_allclose(made.colours, 0.8 * np.sqrt(np.pi) / 2 * texture, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(disco.shading)(np.eye(3), np.zeros((3, 9))), np.full((3, 3), 0.70898), rtol=1e-5)
    slope = jax.jit(jax.grad(lambda x: mesh(face, x).colours[..., 0].sum()))(still)[:, PLACES["light"]]
    np.testing.assert_allclose(slope[:, 0], np.sqrt(np.pi) / 2 * texture[..., 0].sum(1), rtol=1e-4)
    assert np.any(slope[:, 1:9]) and not np.any(slope[:, 9:])
    a1c1, a2c2 = 2 * np.pi / np.sqrt(3) * np.sqrt(3 / (4 * np.pi)), np.pi / np.sqrt(2) * 3 * np.sqrt(5 / (12 * np.pi))
    expected = np.zeros((3, 9))
    expected[:, 0] = np.sqrt(np.pi) / 2
    expected[0, [3, 6, 8]] = -a1c1, -a2c2 / (2 * np.sqrt(3)), a2c2 / 2
    expected[1, [1, 6, 8]] = -a1c1, -a2c2 / (2 * np.sqrt(3)), -a2c2 / 2
    expected[2, [2, 6]] = a1c1, a2c2 / np.sqrt(3)
    np.testing.assert_allclose(jax.jit(disco.harmonics)(np.eye(3)), expected, atol=1e-6)


def test_light_is_fitted():
    light = RNG.normal(size=(3, 9)).astype(np.float32) * 0.1
    fitted = jax.jit(lambda light: disco.light_coefficients(lambda normals: disco.shading(normals, light)))
    found = fitted(light)
    np.testing.assert_allclose(found, light.ravel(), atol=2e-3)


def test_turns(face):
    a, b, c = angles = np.array([0.3, -0.5, 0.2])
    x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    y = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    z = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    turn, back = jax.jit(lambda x: (disco.turn(x), disco.angles_of(disco.turn(x))))(angles)
    np.testing.assert_allclose(turn, np.array(z) @ y @ x, atol=1e-6)
    np.testing.assert_allclose(back, angles, atol=1e-6)
    turned, still = coefficients(1), coefficients(1, np.random.default_rng(5))
    still[:] = turned
    turned[:, PLACES["pose"]], still[:, PLACES["pose"]] = angles, 0
    back = np.asarray(mesh(face, turned).vertices) @ turn  # the inverse turn
    np.testing.assert_allclose(back, mesh(face, still).vertices, atol=1e-5)


def test_projection_by_hand():
    """The code's camera: focal length 1015 * 1.22 and 128 pixels of half a side, 10 - z in front of it."""
    points = np.array([[[0, 0, 0], [0.5, -0.25, 1.5]]], np.float32)
    for size in (256, 33):
        found = disco.projected(jnp.asarray(points), size)[..., :2] * (256 / size)
        focal = 1015 * 1.22 / (10 - 1.5)
        np.testing.assert_allclose(found, [[[128, 128], [128 + 0.5 * focal, 128 + 0.25 * focal]]], rtol=1e-5)
    found = disco.projected(jnp.asarray(points), 224, disco.PERCEPTION_ZOOM)
    np.testing.assert_allclose(found[0, 1, 0], 112 + 0.5 * 1015 / 8.5, rtol=1e-5)


def test_rendering(face):
    wanted = coefficients(2)
    found = render(face, wanted)
    assert found.images.shape == (2, 16, 16, 3) and found.mask.shape == (2, 16, 16, 1)
    assert 0.1 < float(found.mask.mean()) < 0.9
    np.testing.assert_array_equal(found.images[found.mask[..., 0] == 0], -1)
    marks = landmarks(face, wanted)
    np.testing.assert_allclose(16 * marks, found.points[:, -68:, :2], rtol=1e-4, atol=1e-4)
    moved = landmarks(face, np.concatenate([wanted, np.full((2, 3), 0.1, np.float32)], 1))
    assert (moved[..., 0] > marks[..., 0]).all() and (moved[..., 1] < marks[..., 1]).all()  # right and up


@pytest.mark.parametrize("size", [21, 32])
def test_warp_of_a_face_that_moves(face, size):
    """A face that moves by whole pixels: the warped first image is the second one, where both are seen."""

    @jax.jit
    def warped(face, wanted):
        first = disco.render(face, wanted, LAYOUT, size)
        displacement = disco.flow(first.points, first.points + jnp.array([2.0, -3.0, 0.0]), face, size)
        both = jnp.concatenate([displacement, jnp.zeros_like(displacement)])
        return first.images, displacement, disco.warped(jnp.tile(first.images, (2, 1, 1, 1)), both)

    images, displacement, found = map(np.asarray, warped(face, coefficients(1)))
    found, still = found[:1], found[1:]
    inside = np.abs(displacement).sum(-1) > 0
    assert inside.sum() > 30
    np.testing.assert_allclose(displacement[inside], np.tile([3.0, -2.0], (inside.sum(), 1)), atol=1e-3)
    np.testing.assert_allclose(found[inside], np.roll(images, (-3, 2), (1, 2))[inside], atol=2e-3)
    np.testing.assert_allclose(still, images, atol=1e-6)


def test_pairs_that_do_not_differ(face):
    wanted, images = coefficients(1), jnp.asarray(RNG.normal(size=(1, 16, 16, 3)), jnp.float32)
    made = render(face, wanted)
    np.testing.assert_allclose(pair_loss(images, images, made, made, face), 1e-4, rtol=1e-5)  # sqrt(1e-8)
    eyes = disco.Seen(wanted[:, :5], wanted[:, -27:], landmarks(face, wanted))
    np.testing.assert_allclose(light_pair_loss(eyes, eyes, (images, images)), 0, atol=1e-6)
    other = eyes._replace(identity=-eyes.identity, landmarks=eyes.landmarks + 1 / 256)
    expected = 2 * 2 + 1000 / 224**2 + 4
    np.testing.assert_allclose(light_pair_loss(eyes, other, (images, images + 2)), expected, rtol=1e-5)
    latents = disco.pairs(jax.random.key(0), jnp.zeros((2, LATENTS.size)), "light", LATENTS)
    assert np.flatnonzero(np.any(latents, 0)).tolist() == list(range(8, 12))


def test_expression_pair_by_numpy(face):
    """The mean distance of smoothed colours where the first mesh does not stand alone; nothing moves."""
    made = render(face, coefficients(1))
    fake, other = RNG.normal(size=(2, 1, 16, 16, 3)).astype(np.float32)
    two = made._replace(mask=made.mask.at[:, 6:9].set(0.0))
    kept = 1 - np.asarray(made.mask * (1 - two.mask))[0, ..., 0]
    line = np.exp(-np.array([4, 1, 0, 1, 4]) / 8)
    kernel = np.outer(line, line)[..., None] / line.sum() ** 2
    gap = correlate(fake[0] - other[0], kernel, mode="constant")
    expected = (np.sqrt((gap**2).sum(-1) + 1e-8) * kept).sum() / kept.sum()
    assert kept.sum() < 256
    np.testing.assert_allclose(pair_loss(fake, other, made, two, face), [expected], rtol=1e-4)


def test_what_only_the_first_mesh_covers_is_not_compared(face):
    wanted = coefficients(1)
    one = render(face, wanted)
    two = one._replace(mask=jnp.zeros_like(one.mask))
    images = jnp.zeros((1, 16, 16, 3))
    slopes = jax.jit(jax.grad(lambda x: pair_loss(images, x, one, two, face).sum()))(images + 0.5)
    deep = correlate(np.asarray(one.mask[0, ..., 0]), np.ones((5, 5)), mode="constant") == 25
    assert deep.any() and not np.any(slopes[0][deep])
    assert np.any(slopes[0][~deep])


@pytest.mark.parametrize("size", [8, 13])
def test_losses_by_numpy(size):
    rng = np.random.default_rng(size)
    fake, image = rng.uniform(-1, 1, (2, 3, size, size, 3))
    mask = (rng.random((3, size, size, 1)) < 0.5).astype(float)
    distance = np.sqrt(((fake - image) ** 2).sum(-1) + 1e-8)
    expected = [(d * m[..., 0]).sum() / m.sum() for d, m in zip(distance, mask, strict=True)]
    np.testing.assert_allclose(jax.jit(disco.pixel_loss)(fake, image, mask), expected, rtol=1e-5)
    means = [[(x[i] * mask[i]).sum((0, 1)) / mask[i].sum() for i in range(3)] for x in (fake, image)]
    np.testing.assert_allclose(
        jax.jit(disco.colour_loss)(fake, image, mask), np.linalg.norm(np.subtract(*means), axis=1), rtol=1e-4
    )
    np.testing.assert_allclose(jax.jit(disco.colour_loss)(fake, fake, mask), 1e-4, rtol=1e-5)  # sqrt(1e-8)
    line = np.exp(-np.array([4, 1, 0, 1, 4]) / 8)
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    smooth = [[correlate(x[..., c], kernel, mode="constant") for c in range(3)] for x in fake]
    np.testing.assert_allclose(jax.jit(disco.smoothed)(fake), np.moveaxis(smooth, 1, -1), atol=1e-6)
    marks = rng.random((2, 3, 68, 2))
    gap = 224 * (marks[0] - marks[1])
    np.testing.assert_allclose(jax.jit(disco.landmark_loss)(*marks), (gap**2).mean((1, 2)) / 224**2, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(disco.light_loss)(*marks[..., 0]), np.abs(gap[..., 0]).mean(1) / 224, rtol=1e-5)


def test_floor_of_the_identity_loss():
    features, wanted = np.array([[3.0, 0], [1, 1], [0, 1]]), np.array([[1.0, 0]] * 3)
    np.testing.assert_allclose(jax.jit(disco.identity_loss)(features, wanted), [0.3, 0.3, 1], atol=1e-6)
    slopes = jax.jit(jax.grad(lambda x: disco.identity_loss(x, wanted).sum()))(features)
    assert not np.any(slopes[:2]) and np.any(slopes[2])


def test_truncation_moves_by_the_identity_alone():
    styles, of_identity = RNG.normal(size=(2, 10, 3)), RNG.normal(size=(2, 3))
    average = RNG.normal(size=3)
    truncated = jax.jit(disco.truncated)
    found = truncated(styles, of_identity, average, 0.4)
    np.testing.assert_allclose(found[:, :8], styles[:, :8] + 0.6 * (average - of_identity)[:, None], rtol=1e-5)
    np.testing.assert_allclose(found[:, 8:], styles[:, 8:], rtol=1e-6)
    np.testing.assert_allclose(truncated(styles, of_identity, average, 1.0), styles, rtol=1e-6)


def test_disentanglement_by_hand():
    spreads = np.array([[1.0, 0.1, 0.2], [0.5, 2.0, 0.5], [0.1, 0.1, 1.0]])
    np.testing.assert_allclose(disco.disentanglement(spreads, np.ones(3)), [50, 16, 100])
    np.testing.assert_allclose(disco.disentanglement(spreads, [1, 2, 1])[0], 1 / 0.05 / 0.2)
    assert disco.spread(np.array([[[1.0, 0], [-1, 0]], [[0, 3], [0, -3]]])) == pytest.approx(np.sqrt(5))
    asked = np.array([[0.0], [2.0]])
    assert control.explained(asked, asked + 0.5) == 0.75
    assert control.pose_error(np.zeros((2, 3)), np.array([[0, 0.1, 0], [0, 0, -0.3]])) == pytest.approx(
        np.degrees(0.2), rel=1e-4
    )


def test_portraits_are_aligned():
    """The head's centre goes to the image's middle, one unit of the camera's axes to `zoom` half sides."""
    pose, camera = np.array([0.2, -0.4, 0.1]), np.array([30.0, 0.2, 33.0, 28.0])
    centre = np.asarray(disco.face_centre(head()))
    cos, sin = np.cos(0.2), np.sin(0.2)
    points = np.asarray(jax.jit(disco.rotation.from_euler)(pose)) @ centre + np.array([[0, 0, 0], [0.1, 0.2, 0]])
    points = points[:, :2] * [1, -1]
    seen = 30 * points @ np.array([[cos, -sin], [sin, cos]]).T + camera[2:]
    move = model_aligned.alignment(camera, pose, 40, 1.25)
    found = np.concatenate([seen - 0.5, np.ones((2, 1))], 1) @ move.T + 0.5
    np.testing.assert_allclose(found, [[20, 20], [20 + 25 * 0.1, 20 - 25 * 0.2]], atol=1e-4)


def portraits(count, seed):
    rng = np.random.default_rng(seed)
    return [
        {
            "image": png(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)),
            "camera": np.float32([30, 0.1, 16, 16]), "pose": rng.normal(size=3).astype(np.float32) * 0.2,
            "identity": rng.normal(size=48).astype(np.float32), "albedo": rng.normal(size=40).astype(np.float32),
            "expression": rng.random(len(head().expressions)).astype(np.float32),
            "light": rng.random(9).astype(np.float32),
        }
        for _ in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def config():
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.image_size": 4, "model.shape": 3, "model.texture": 2, "model.expression": 4, "model.identity": 5,
            "model.expression_latents": 3, "model.light": 4, "model.noise": 2, "model.widths": (8, 8, 8, 8),
            "model.vertices": 200, "model.style_size": 8, "model.mapping_layers": 1, "model.base": 32,
            "model.largest": 6, "loss.contrastive_after": -1, "growth.first": 4,
            "autoencoders.epochs": 1, "perception.steps": 2, "perception.widths": (4,), "perception.features": 8,
            "train.batch_size": 8, "train.steps": 2, "train.devices": 1, "eval.images": 16, "eval.batch_size": 16,
            "control.images": 16, "control.settings": 4, "control.values": 2, "control.batch_size": 16,
        }
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def small_world():
    sources = {split: portraits(32, i) for i, split in enumerate(("train", "test"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_aligned.faces, "load", lambda task, split, folder: sources[split])
        yield


@pytest.fixture(scope="module")
def state(config, small_world):
    """After a step of the run."""
    made = experiment.build(config)
    executor = parallel.make_executor(made, "shard_map", 1)
    images = next(iter(made.train_data()))
    state, metrics = executor.step(executor.init(0, made.prepare()), executor.put(images), made.step_name(1))
    assert metrics.keys() == {"discriminator_loss", "generator_loss", "pixels", "resolution", "alpha"}
    return jax.device_get(state)


def test_evaluation(config, small_world, state):
    report = experiment.build(config).evaluate(state)
    assert {"pose_error", "ds_pose", "explained_light", "frechet_random_cnn@16"} < report.metrics.keys()
    assert {"Pose from left to right", "Renderings, and images of the same coefficients"} < report.images.keys()


def test_what_was_prepared_stays_in_the_state(state):
    """Decoders, perception net and whitening are trained, and the same for all steps."""
    assert int(state.step) == 1
    means = state.model_state["whitening"]["mean"]
    wanted = portraits(32, 0)
    np.testing.assert_allclose(means[:3], np.mean([e["identity"][:3] for e in wanted], 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.model_state["perception"]["whitening"]["mean"][:-3], means, rtol=1e-4, atol=1e-6)
    assert state.model_state["face"].triangles.dtype == jnp.float32


def test_all_losses_of_a_step(config, state):
    """Perceptual losses and both pairs, on images of the generator; equal factors make no difference."""
    config = config.copy_and_resolve_references()
    config.loss.pixels_until, config.loss.light_pair = 2, 10.0
    system = experiment.system(config)

    @jax.jit
    def terms(params, frozen, fresh):
        players = controlled.Players(system, 4, 1.0, True)
        inputs = system.inputs(frozen, players.latents(jax.random.key(1), 2))
        fake = players.draw(params, frozen, inputs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(disco, "pairs", lambda rng, latents, factor, sizes: latents + fresh)
            inputs_of_pairs = players.pair_inputs(frozen, jax.random.key(2))
        pairs = players.compare(frozen, inputs_of_pairs, players.draw(params, frozen, inputs_of_pairs))
        return players.imitative(frozen, inputs[:, : system.model.layout.size], fake) | pairs

    found = terms(state.params, state.model_state, 0.0)
    assert set(found) == {"identity", "landmarks", "light", "colour", "expression_pair", "light_pair"}
    assert all(np.all(found[name] > 0) for name in ("identity", "landmarks", "light", "colour"))
    np.testing.assert_allclose(found["light_pair"], 0, atol=1e-4)
    np.testing.assert_allclose(found["expression_pair"], config.loss.expression_pair * 1e-4, rtol=1e-3)
    other = terms(state.params, state.model_state, 1.0)
    assert other["expression_pair"] > 2 * found["expression_pair"] and other["light_pair"] > found["light_pair"] + 1e-5


def test_the_discriminator_judges_images_of_pairs(config, state):
    """In the second stage both players' losses hold them, beside the first real images and their penalty."""
    system = experiment.system(config)
    first, second = (controlled.Players(system, 4, 1.0, contrastive) for contrastive in (False, True))
    real = jnp.asarray(RNG.uniform(-1, 1, (8, 4, 4, 3)), jnp.float32)
    key, params, frozen = jax.random.key(3), state.params, state.model_state

    @jax.jit
    def losses(params):
        return [
            getattr(player, turn)(params, frozen, {"image": real}, key)
            for turn in ("discriminate", "generate")
            for player in (first, second)
        ]

    @jax.jit
    def expected():
        score, (_, _, drawn, noise) = second.score(params), jax.random.split(key, 4)
        fake = second.draw(params, frozen, second.pair_inputs(frozen, drawn), noise)
        penalty = config.loss.gamma / 2 * jnp.sum(jax.grad(lambda x: score(x).sum())(real) ** 2, (1, 2, 3))
        judged = jnp.log1p(jnp.exp(score(fake))) + jnp.log1p(jnp.exp(-score(real[:4]))) + penalty[:4]
        return judged.mean(), jnp.log1p(jnp.exp(-score(fake))).mean()

    one, both, fooled, all_fooled = losses(params)
    judged, deceived = expected()
    np.testing.assert_allclose(both[0] - one[0], judged, rtol=1e-4)
    compared = sum(
        all_fooled[1][1][name].total / all_fooled[1][1][name].count for name in ("expression_pair", "light_pair")
    )
    np.testing.assert_allclose(all_fooled[0] - fooled[0] - compared, deceived, rtol=1e-3)
    with pytest.raises(ValueError, match="3 real images a device: expected at least 4"):
        second.discriminate(params, frozen, {"image": real[:3]}, key)


def test_imitation_while_layers_are_faded_in(config, state):
    """Renderings are compared at the detail that the images have: at alpha 0 that of the coarser resolution."""
    system = experiment.system(config)
    wanted = state.model_state["whitening"]["mean"] + np.zeros((2, 1), np.float32)
    drawn = controlled.rendered(state.model_state["face"], wanted, system.model.layout, 4)
    fake = jnp.asarray(RNG.uniform(-1, 1, (2, 4, 4, 3)), jnp.float32)

    @jax.jit
    def loss(fake, alpha):
        return controlled.Players(system, 4, alpha, False).imitative(state.model_state, wanted, fake)["pixels"]

    def coarse(x):
        return np.asarray(x).reshape(2, 2, 2, 2, 2, -1).mean((2, 4)).repeat(2, 1).repeat(2, 2)

    for alpha, share in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0)):
        image, mask = ((1 - share) * np.asarray(x) + share * coarse(x) for x in (drawn.images, drawn.mask))
        expected = 20 * disco.pixel_loss(fake, image, mask)
        np.testing.assert_allclose(loss(fake, alpha), expected, rtol=1e-5)
    assert np.ptp([float(loss(fake, alpha).sum()) for alpha in (0.0, 1.0)]) > 1e-2


def test_the_perception_net_sees_images_in_range(config, state):
    """Colours beyond -1..1 neither change what it sees nor have a gradient through it."""
    config = config.copy_and_resolve_references()
    config.loss.pixels_until = 2
    system = experiment.system(config)
    wanted = state.model_state["whitening"]["mean"] + np.zeros((2, 1), np.float32)

    @jax.jit
    def terms(fake):
        def seen(fake):
            found = controlled.Players(system, 4, 1.0, False).imitative(state.model_state, wanted, fake)
            return sum(found[name].sum() for name in ("identity", "landmarks", "light"))

        return jax.value_and_grad(seen)(fake)

    fake = jnp.asarray(RNG.uniform(-2, 2, (2, 4, 4, 3)), jnp.float32)
    (value, slopes), (cut, _) = terms(fake), terms(jnp.clip(fake, -1, 1))
    np.testing.assert_allclose(value, cut, rtol=1e-6)
    beyond = np.abs(np.asarray(fake)) > 1
    assert not np.any(np.asarray(slopes)[beyond]) and np.any(np.asarray(slopes)[~beyond])


def test_rnet_sees_small_images_enlarged_by_repetition(monkeypatch):
    net = controlled.Perception("rnet")
    monkeypatch.setattr(controlled.Perception, "net", lambda self, layout: self)
    monkeypatch.setattr(controlled.Perception, "apply", lambda self, variables, images: images, raising=False)
    images = jnp.asarray(RNG.normal(size=(1, 64, 64, 3)), jnp.float32)
    read = jax.jit(lambda x: net.read(LAYOUT, None, x, 256))
    np.testing.assert_allclose(read(images), read(np.asarray(images).repeat(4, 1).repeat(4, 2)), atol=1e-6)


def test_samples(config, state):
    assert experiment.sample(config, state, [0, 5], truncation=0.5).shape == (2, 4, 4, 3)


def test_the_mean_of_the_truncation_has_noise(config, state):
    """As in the authors' code: random noise beside the identities of the mean, none beside that of an image."""
    system, net = experiment.system(config), experiment.controlled(config, state)
    generator, size = system.model.networks(4)[0], system.model.layout.size
    draw = jax.jit(lambda x: system.whitened(state.model_state, system.inputs(state.model_state, x)))
    inputs = np.asarray(draw(experiment.generation.latents(range(config.control.images), system.model.latents.size)))
    place = system.model.layout.slices()["identity"]

    def run(method, x, **options):
        return generator.apply({"params": state.ema["generator"]}, x, method=method, **options)

    def alone(noise):
        kept = np.zeros_like(inputs)
        kept[:, place] = inputs[:, place]
        kept[:, size:] = noise * inputs[:, size:]
        return run("map", kept)

    styles = jnp.repeat(run("map", inputs)[:, None], generator.layers, 1)
    means = [styles + (alone(noise).mean(0) - alone(0))[:, None] for noise in (1, 0)]
    wanted, without = (run("synthesize", mean, alpha=1.0) for mean in means)
    found = net.images(net.inputs(experiment.generation.latents(range(16), net.latents.size), 16), 16, 0.0)
    np.testing.assert_allclose(found, experiment.generation.to_uint8(wanted), atol=1)
    assert np.abs(wanted - without).max() > 4 / 127.5


def test_stages(config):
    config = config.copy_and_resolve_references()
    config.loss.contrastive_after = 80
    config.train.steps = 12
    made = experiment.build(config)
    assert [made.choose(number) for number in (1, 10, 11, 12)] == ["4x4", "4x4", "contrastive", "contrastive"]
    config.loss.contrastive_after = -1
    assert set(experiment.build(config).train_step) == {"4x4"} and not experiment.build(config).grow


def test_the_second_stage_begins_with_new_optimizers(config, state):
    config = config.copy_and_resolve_references()
    config.loss.contrastive_after, config.train.steps = 80, 12
    grow = experiment.build(config).grow
    assert list(grow) == [11]
    begun = jax.jit(grow[11])(state)
    assert any(np.any(x) for x in jax.tree.leaves(state.opt_state))
    assert not any(np.any(x) for x in jax.tree.leaves(begun.opt_state))
    kept = [(x.step, x.params, x.ema, x.model_state) for x in (begun, state)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *kept))


def test_bad_settings(config):
    with pytest.raises(ValueError, match=r"perception\.name is 'facenet': expected small or rnet"):
        controlled.Perception("facenet")
    with pytest.raises(ValueError, match=r"data\.source is 'celeb_a': expected face_world or folder"):
        model_aligned.ModelAlignedImages("celeb_a")
    with pytest.raises(ValueError, match=r"data\.parameters is empty"):
        model_aligned.ModelAlignedImages("folder").coefficients(254)
    with pytest.raises(ValueError, match=r"perception\.weights: no\.npz: not a readable \.npz file: No such file"):
        controlled.read_variables("no.npz", {})
    with pytest.raises(ValueError, match=r"make_face: .* but the model has"):
        disco.make_face(head(), Layout(80, 80, 64))


def test_the_published_preset():
    config = experiment.get_config("ffhq_256")
    made, last = experiment.build(config), experiment.progressive(config).stages[-1]
    begin = last.begin + (config.loss.contrastive_after - last.images) // last.batch_size
    system = experiment.system(config)
    shapes = jax.eval_shape(system.model.networks(256)[0].init, jax.random.key(0), jnp.zeros((1, 286)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 25_970_517
    frozen = system.empty()
    assert sum(x.size for x in jax.tree.leaves(frozen["decoders"])) == 673_440 + 156_480 + 38_683 + 2_339
    assert sum(x.size for x in jax.tree.leaves(frozen["perception"]["params"])) == 24_034_625
    for count, images in ((config.train.steps, 20e6), (begin, 15e6)):
        assert last.images + (count - last.begin) * last.batch_size == pytest.approx(images, rel=1e-5)
    assert [made.choose(begin), made.choose(begin + 1)] == ["256x256", "contrastive"] and begin + 1 in made.grow
