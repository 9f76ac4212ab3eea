"""RetinaFace's dense branches: graph convolutions, the mesh decoder, the renderer, and their losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.detection import retinaface_mesh as mesh
from facejax.detection.base import Truth
from facejax.detection.retinaface import MobileNetBody, RetinaFace, RetinaFaceNet
from facejax.morphable.lighting import incidence
from facejax.morphable.rasterizer import rasterize


def patch(rows, columns):
    """A bent patch that faces the viewer, -0.7..0.7 wide: vertices and triangles."""
    y, x = (v.ravel() for v in np.mgrid[-0.7 : 0.7 : rows * 1j, -0.7 : 0.7 : columns * 1j])
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    lower = np.stack([corner, corner + 1, corner + columns], -1)
    upper = np.stack([corner + 1, corner + columns + 1, corner + columns], -1)
    return np.stack([x, y, 0.2 - 0.3 * (x * x + y * y)], -1), np.concatenate([lower, upper]).astype(np.int32)


@pytest.fixture(scope="module")
def hierarchy():
    return mesh.Hierarchy.of(*patch(7, 6), (14, 6))


def dense_laplacian(level):
    matrix = np.zeros((level.vertices, level.vertices))
    for v, around in enumerate(level.neighbours):
        around = around[around < level.vertices]
        matrix[v, around], matrix[v, v] = -1, len(around)
    return matrix


def test_polynomials_are_cosines_of_the_eigenvalues(hierarchy):
    x = np.random.default_rng(0).normal(size=(3, 42, 2)).astype(np.float32)
    values, vectors = np.linalg.eigh(dense_laplacian(hierarchy.levels[0]))
    np.testing.assert_allclose(hierarchy.levels[0].largest, values[-1], rtol=1e-6)
    angles = np.arccos(np.clip(2 * values / values[-1] - 1, -1, 1))
    found = mesh.chebyshev(x, hierarchy.levels[0], 6)
    for k in range(6):
        expected = np.einsum("uk,k,vk,nvc->nuc", vectors, np.cos(k * angles), vectors, x)
        np.testing.assert_allclose(found[:, :, k], expected, atol=2e-5)


def test_constants_are_in_the_kernel(hierarchy):
    for level in hierarchy.levels:
        found = mesh.chebyshev(jnp.ones((level.vertices, 1)), level, 5)
        np.testing.assert_allclose(found[..., 0], np.tile([1.0, -1, 1, -1, 1], (level.vertices, 1)), atol=1e-5)


def test_order_one_is_a_layer_per_vertex(hierarchy):
    x = np.random.default_rng(0).normal(size=(2, 42, 3)).astype(np.float32)
    net = mesh.ChebConv(4, hierarchy.levels[0], 1)
    variables = net.init(jax.random.key(0), x)
    theta = variables["params"]["theta"]
    expected = x @ np.asarray(theta["kernel"])[0] + theta["bias"]
    np.testing.assert_allclose(net.apply(variables, x), expected, atol=1e-5)


def test_upsampling_of_a_level(hierarchy):
    level, coarser = hierarchy.levels[:2]
    x = np.random.default_rng(0).normal(size=(coarser.vertices, 3)).astype(np.float32)
    found = np.asarray(mesh.upsample(x, level))
    np.testing.assert_allclose(found[level.rows], x, atol=1e-6)
    np.testing.assert_allclose(mesh.upsample(jnp.ones_like(x), level), np.ones_like(found), atol=1e-6)


@pytest.fixture(scope="module")
def decoder(hierarchy):
    """A decoder of meshes that vary in three directions, with the meshes."""
    rng, (vertices, _) = np.random.default_rng(0), patch(7, 6)
    mean = np.concatenate([vertices, np.full((42, 3), 0.6)], -1)
    x, y = vertices[:, 0], vertices[:, 1]
    basis = np.zeros((3, 42, 6))
    basis[0, :, 0], basis[1, :, 2], basis[2, :, 3] = 0.1 * x, 0.1 * x * y, 0.15 * y
    noise = 0.002 * rng.normal(size=(300, 42, 6))
    meshes = (mean + np.einsum("mk,kvc->mvc", rng.normal(size=(300, 3)), basis) + noise).astype(np.float32)
    net = mesh.MeshDecoder(hierarchy, (8, 8), 3)
    return net, mesh.pretrained(meshes[:200], net, 3, steps=400, batch_size=16, rate=1e-2), meshes


def test_decoder_against_principal_components(decoder):
    net, frozen, meshes = decoder
    train, test = ((x - frozen["mean"]) / frozen["scale"] for x in (meshes[:200], meshes[200:]))
    flat = np.asarray(train).reshape(200, -1)
    components = np.linalg.svd(flat, full_matrices=False)[2][:3]
    pca = test.reshape(100, -1) @ components.T @ components

    @jax.jit
    def fit(codes):
        def step(codes, _):
            def energy(x):
                return jnp.sum(jnp.mean((net.apply({"params": frozen["params"]}, x) - test) ** 2, (1, 2)))

            return codes - 0.5 * jax.grad(energy)(codes), None

        return jax.lax.scan(step, codes, length=200)[0]

    codes = fit(jnp.zeros((100, 3)))
    ours = (mesh.decode(net, frozen, codes) - frozen["mean"]) / frozen["scale"]
    errors = [np.sqrt(np.mean((x.reshape(test.shape) - test) ** 2)) for x in (0 * test, pca, ours)]
    assert errors[1] < errors[2] < 0.5 * errors[0]


def test_camera():
    points = np.float32([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]])
    np.testing.assert_allclose(
        mesh.project(points, jnp.zeros(7), 20)[:, :2], [[10, 10], [10 + 20 * 0.3, 10], [10, 10 - 20 * 0.3], [10, 10]],
        atol=1e-5,
    )  # fmt: skip
    nearer = mesh.project(points, jnp.zeros(7).at[2].set(np.log(0.5)), 20)
    np.testing.assert_allclose(nearer[1, 0], 10 + 20 * 0.6, atol=1e-4)
    assert nearer[3, 2] > nearer[0, 2]
    turned = mesh.project(points, jnp.zeros(7).at[4].set(np.pi / 2), 20)  # yaw: the nose turns to the right
    np.testing.assert_allclose(turned[3, :2], [10 + 20 * 0.6, 10], atol=1e-4)


def test_light_on_a_plane():
    vertices, triangles = patch(5, 5)
    flat = np.concatenate([vertices * [1, 1, 0], np.full((25, 3), 0.5)], -1).astype(np.float32)
    light = jnp.array([0, 0, 0, *np.log([2, 1, 0.5]), *np.log([0.4, 0.4, 0.2])])

    @jax.jit
    def render(light):
        return mesh.render(flat, triangles, incidence(triangles, 25), jnp.zeros(7), light, 20)

    image, covered = render(light)
    np.testing.assert_allclose(image[10, 10], 0.5 * np.array([1 + 0.2, 0.5 + 0.2, 0.25 + 0.1]), rtol=2e-3)
    assert covered.sum() == pytest.approx((1.4 * 0.6 * 20) ** 2, rel=0.15)
    assert not image[0].any()
    behind = render(light.at[2].set(-20))[0]
    np.testing.assert_allclose(behind[10, 10], 0.5 * np.array([0.2, 0.2, 0.1]), rtol=1e-5)


def test_crop_of_a_ramp():
    rows, columns = np.mgrid[:12, :16] + 0.5
    image = np.stack([columns, rows], -1).astype(np.float32)
    crop = mesh.crop_image(image, jnp.array([[8.0, 6.0, 8.0, 4.0]]), 4)[0]
    np.testing.assert_allclose(crop[0, :, 0], [5, 7, 9, 11], atol=1e-5)
    np.testing.assert_allclose(crop[:, 0, 1], [4.5, 5.5, 6.5, 7.5], atol=1e-5)


@pytest.fixture(scope="module")
def branch(decoder):
    return mesh.PixelBranch(decoder[0], code=3, crop=12, count=2)


def test_pixel_loss_and_its_gradient(branch, decoder):
    """Against finite differences where no pixel changes its triangle; and descent lowers the loss."""
    rng = np.random.default_rng(1)
    frozen = decoder[1]
    target = branch.draw(frozen, jnp.asarray(rng.normal(size=(1, 19)) * 0.3, jnp.float32))[0]
    vector = jnp.asarray(rng.normal(size=(1, 19)) * 0.05, jnp.float32)

    def loss(vector):
        drawn, covered = branch.draw(frozen, vector)
        return mesh.pixel_loss(drawn, covered, target)[0]

    slope = jax.jit(jax.value_and_grad(loss))

    def triangles(vector):
        shape = mesh.decode(branch.net, frozen, vector[0, :3])[:, :3]
        return rasterize(mesh.project(shape, vector[0, 3:10], 12), branch.net.hierarchy.triangles, 12, 12).triangle

    value, gradient = slope(vector)
    assert np.isfinite(gradient).all()
    shown, compared, step = jax.jit(triangles), 0, 2e-3
    for i in range(19):
        nudge = step * jnp.eye(19)[i]
        if (shown(vector + nudge) == shown(vector - nudge)).all():
            difference = (slope(vector + nudge)[0] - slope(vector - nudge)[0]) / (2 * step)
            np.testing.assert_allclose(gradient[0, i], difference, rtol=0.05, atol=2e-3, err_msg=str(i))
            compared += 1
    assert compared >= 12
    for _ in range(40):
        after, gradient = slope(vector)
        vector = vector - 0.05 * gradient
    assert after < 0.75 * value


def scene(points=5):
    """Two images, the second without faces; anchors of 16 x 16 inputs."""
    rng = np.random.default_rng(0)
    boxes, mask = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), bool)
    boxes[0, 0], mask[0, 0] = [6, 8, 36, 40], True
    places, visible = np.zeros((2, 3, points, 2), np.float32), np.zeros((2, 3, points), bool)
    places[0, 0], visible[0, 0] = 10 + 20 * rng.random((points, 2)), True
    truth = Truth(*map(jnp.asarray, (boxes, np.zeros((2, 3), int), places, visible, mask)))
    model = RetinaFace(None, strides=(16,), sides=((32, 64),))
    return model, truth, jnp.asarray(rng.random((2, 64, 48, 3)), jnp.float32), rng


def test_pixel_term(branch, decoder):
    model, truth, images, rng = scene()
    anchors, matches = model.anchors((64, 48)), model.matches(truth, (64, 48))
    raw = jnp.asarray(rng.normal(size=(2, len(anchors), branch.outputs)) * 0.1, jnp.float32)

    def loss(raw):
        term = branch.terms({"dense": raw, "decoder": decoder[1]}, images, truth, anchors, matches, 0.5)["pixels"]
        return term.value(), term

    (value, term), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(raw)
    best = np.flatnonzero(np.asarray(matches.positive[0]))
    used = np.asarray(mesh.chosen(matches, truth, anchors, 2).anchors[0])[: int(term.count[0])]
    assert set(used) <= set(best)
    np.testing.assert_array_equal(term.count, [min(2, len(best)), 0])
    drawn, covered = map(np.asarray, jax.jit(branch.draw)(decoder[1], raw[0, used]))
    crops = np.asarray(mesh.crop_image(images[0], jnp.asarray(anchors[used]), 12))
    expected = (255 * np.abs(drawn - crops).sum(-1) * covered).sum() / 144
    np.testing.assert_allclose(term.total, [expected, 0], rtol=1e-4)
    np.testing.assert_allclose(value, 0.5 * expected / len(used), rtol=1e-4)
    moved = np.abs(gradient).sum(-1) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved[0]), np.sort(used))
    assert np.isfinite(gradient).all()
    assert not moved[1].any()


def test_vertex_losses_by_hand():
    target = jnp.array([[0.0, 0], [3, 4], [9, 9]])
    predicted = jnp.array([[1.0, 0], [3, 2], [0, 0]])
    sides = np.array([[0, 1], [1, 2]])
    visible = jnp.array([True, True, False])
    distance, edge = mesh.vertex_losses(predicted, target, sides, visible)
    np.testing.assert_allclose(distance, (1 + 2) / 2)
    np.testing.assert_allclose(edge, 5 - np.sqrt(8), rtol=1e-6)
    slope = jax.grad(lambda x: sum(mesh.vertex_losses(x, target, sides, visible)))(jnp.zeros((3, 2)))
    assert np.isfinite(slope).all()


def test_vertex_terms():
    model, truth, images, _ = scene(5 + 3)
    anchors, matches = model.anchors((64, 48)), model.matches(truth, (64, 48))
    branch = mesh.VertexBranch(3, np.array([[0, 1], [1, 2]]), count=4)
    goal = mesh.box.encode_points(truth.points[:, :1, 5:], anchors, 0.1).reshape(2, len(anchors), -1)
    losses = jax.jit(lambda raw: branch.terms({"dense": raw}, images, truth, anchors, matches, 2.0))
    terms = losses(goal)
    np.testing.assert_allclose([terms[k].value() for k in ("vertices", "edges")], 0, atol=1e-5)
    terms = losses(goal + 0.5)
    np.testing.assert_allclose(terms["vertices"].value(), 2 * (0.5 + 0.5), rtol=1e-5)
    np.testing.assert_allclose(terms["edges"].value(), 0, atol=1e-5)
    assert terms["vertices"].count[1] == 0
    with pytest.raises(ValueError, match=r"truth has 5 points: expected 5 and 3 vertices"):
        branch.terms({"dense": goal}, images, scene()[1], anchors, matches, 1.0)


def test_network_carries_the_decoder(branch, decoder):
    """A detector's loss uses the decoder among the variables."""
    body = MobileNetBody(4, ((4, 1), (4, 2), (4, 2), (4, 2), (4, 2)))
    net = mesh.WithDecoder(RetinaFaceNet(body, 4, dense=branch.outputs), branch.net, 3)
    model = RetinaFace(net, dense=branch, weights=(0.0, 0.0, 0.0, 1.0))
    _, truth, _, rng = scene()
    images = jnp.asarray(rng.integers(0, 256, (2, 64, 48, 3)), jnp.uint8)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), model.preprocess(images), train=False))
    assert jax.tree.map(jnp.shape, variables["decoder"]["frozen"]) == jax.tree.map(jnp.shape, decoder[1])
    raw = jax.eval_shape(lambda v: net.apply(v, model.preprocess(images), train=False), variables)
    terms = jax.eval_shape(lambda raw: model.losses(raw, truth, (64, 48)), raw)
    assert set(terms) == {"boxes", "logits", "points", "pixels"}


def test_decoder_needs_a_width_per_step(hierarchy):
    with pytest.raises(ValueError, match=r"MeshDecoder.features are 4: expected one per step, 2"):
        mesh.MeshDecoder(hierarchy).init(jax.random.key(0), jnp.zeros((1, 3)))
