import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import deconvnet as experiment
from facejax.backbones import iresnet, mobilenet, resnet, vgg
from facejax.backbones.zfnet import ZFNet
from facejax.data import normalize
from facejax.data.synthetic import faces
from facejax.foundations import deconvnet
from facejax.nn.conv import Conv
from facejax.ops.pooling import max_pool
from facejax.train import Options, app
from facejax.train.dry_run import dry_run


class Small(nn.Module):
    """Convolution, ReLU, overlapping pool, contrast norm, convolution, ReLU."""

    rectify: bool = True

    @nn.compact
    def __call__(self, x, *, train):
        act = nn.relu if self.rectify else (lambda x: x)
        biases = nn.initializers.constant(0.7)
        x = act(Conv(4, 3, 2, 1, use_bias=True, bias_init=biases, name="conv1")(x))
        x = vgg.local_response_norm(max_pool(x, (3, 3), (2, 2)))
        return act(Conv(5, 3, 1, 1, use_bias=True, bias_init=biases, name="conv2")(x))


@pytest.fixture(scope="module")
def small():
    images = np.random.default_rng(0).normal(size=(2, 15, 13, 3)).astype(np.float32)
    net = Small()
    return net, net.init(jax.random.key(0), images, train=False), images


def by_hand(params, images, units, switches=True):
    """The deconvnet as the paper draws it, with loops, in float64."""
    forward = np.asarray(Small().apply({"params": params}, images, train=False), np.float64)
    kernels = [np.asarray(params[f"conv{i}"]["kernel"], np.float64) for i in (1, 2)]
    n, h, w, _ = images.shape
    sizes = [(h + 1) // 2, (w + 1) // 2]
    x = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
    first = np.zeros((n, *sizes, 4))
    for i, j in np.ndindex(*sizes):
        first[:, i, j] = np.einsum("nhwc,hwcf->nf", x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], kernels[0]) + 0.7
    first = np.maximum(first, 0)
    result = np.zeros(x.shape)
    for b, (row, column, channel) in enumerate(units):
        signal = max(forward[b, row, column, channel], 0)
        pooled = np.zeros(((sizes[0] - 1) // 2, (sizes[1] - 1) // 2, 4))
        for di, dj in np.ndindex(3, 3):
            i, j = row + di - 1, column + dj - 1
            if 0 <= i < pooled.shape[0] and 0 <= j < pooled.shape[1]:
                pooled[i, j] += signal * kernels[1][di, dj, :, channel]
        unpooled = np.zeros((*sizes, 4))
        for i, j, c in np.ndindex(*pooled.shape):
            window = (slice(2 * i, 2 * i + 3), slice(2 * j, 2 * j + 3), c)
            if switches:
                top = np.unravel_index(first[b][window].argmax(), (3, 3))
                unpooled[2 * i + top[0], 2 * j + top[1], c] += pooled[i, j, c]
            else:
                unpooled[window] += pooled[i, j, c]
        unpooled = np.maximum(unpooled, 0)
        for i, j in np.ndindex(*sizes):
            result[b, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += np.einsum("f,hwcf->hwc", unpooled[i, j], kernels[0])
    return result[:, 1:-1, 1:-1]


@pytest.mark.parametrize("switches", [True, False])
def test_projection_equals_the_papers_deconvnet(small, switches):
    net, variables, images = small
    fn = deconvnet.layer_of(net, variables, "", train=False)
    found = np.asarray(fn(images))
    units = np.stack([np.unravel_index(x.argmax(), x.shape) for x in found])
    rules = deconvnet.DECONVNET if switches else deconvnet.NO_SWITCHES
    projected = deconvnet.project(fn, images, units, rules)
    expected = by_hand(variables["params"], images, units, switches)
    np.testing.assert_allclose(projected, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(expected).max() > 0.1


def test_the_first_of_equal_maxima_is_the_switch():
    x = jnp.array([[1.0, 3, 3, 0], [3, 2, 0, 0]]).reshape(1, 2, 4, 1)
    pool = lambda x: max_pool(x, (2, 2), (2, 2))  # noqa: E731
    _, back = jax.vjp(deconvnet.follow(pool, deconvnet.DECONVNET), x)
    unpooled = back(pool(x))[0]
    np.testing.assert_array_equal(unpooled[0, :, :, 0], [[0, 3, 3, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(pool(unpooled), pool(x))
    _, back = jax.vjp(deconvnet.follow(pool, deconvnet.NO_SWITCHES), x)
    np.testing.assert_array_equal(back(pool(x))[0], 3 * jnp.ones((1, 2, 4, 1)))


def test_rectifiers_by_hand():
    x, signal = jnp.array([-1.0, 2, 3, -4]), jnp.array([5.0, -6, 7, -8])
    cases = {"DECONVNET": [5, 0, 7, 0], "GUIDED": [0, 0, 7, 0], "GRADIENT": [0, -6, 7, 0]}
    for rectifier in (nn.relu, nn.relu6, lambda x: jnp.maximum(x, 0), jax.checkpoint(nn.relu), jax.jit(nn.relu)):
        for rules, expected in cases.items():
            value, back = jax.vjp(deconvnet.follow(rectifier, getattr(deconvnet, rules)), x)
            np.testing.assert_array_equal(value, [0, 2, 3, 0])
            np.testing.assert_array_equal(back(signal)[0], expected)
    _, back = jax.vjp(deconvnet.follow(lambda x: jnp.maximum(x, 2.5), deconvnet.DECONVNET), x)
    np.testing.assert_array_equal(back(signal)[0], [0, 0, 7, 0])


def test_linear_network_gives_its_gradient():
    net, images = Small(rectify=False), jax.random.normal(jax.random.key(0), (2, 9, 9, 3))
    variables = net.init(jax.random.key(1), images, train=False)
    fn, units = deconvnet.layer_of(net, variables, "conv1", train=False), jnp.array([[0, 1, 2], [3, 3, 0]])
    value, back = jax.vjp(fn, images)
    place = (jnp.arange(2), *units.T)
    gradient = back(jnp.zeros_like(value).at[place].set(value[place]))[0]
    np.testing.assert_allclose(deconvnet.project(fn, images, units), gradient, atol=1e-6)


NETS = {
    "zfnet": (ZFNet(3, (4, 5, 6, 6, 5), hidden=7), 53, ("conv1", "conv3", "conv5", "classifier/fc6", "")),
    "vgg": (vgg.VGG((1, 1), (4, 6), num_classes=3, hidden=5), 16, ("conv2_1", "classifier/fc7")),
    "vgg_m": (vgg.VGGM((4, 5, 6, 6, 5)), 64, ("conv2", "conv5")),
    "resnet": (resnet.ResNet((1, 1), False, num_classes=3, widths=(4, 8)), 32, ("",)),
    "mobilenet": (mobilenet.MobileNetV2(3, 0.1), 32, ("",)),
    "iresnet": (iresnet.IResNet((1, 1), (4, 8), 6), 16, ("",)),
}


@pytest.mark.parametrize("name", NETS)
def test_any_layer_of_the_librarys_networks(name):
    net, size, layers = NETS[name]
    images = 50 * jax.random.normal(jax.random.key(0), (2, size, size, 3))
    variables = jax.jit(lambda key: net.init(key, images, train=False))(jax.random.key(1))

    def both(images, layer):
        fn = deconvnet.layer_of(net, variables, layer, train=False)
        plain, back = jax.vjp(fn, images)
        units = np.array([[s // 2 for s in plain.shape[1:]]] * 2)
        place = (jnp.arange(2), *units.T)
        gradient = back(jnp.zeros_like(plain).at[place].set(plain[place]))[0]
        return (
            plain,
            deconvnet.follow(fn, deconvnet.DECONVNET)(images),
            gradient,
            *(deconvnet.project(fn, images, units, rules) for rules in (deconvnet.GRADIENT, deconvnet.DECONVNET)),
        )

    for found in jax.jit(lambda images: [both(images, layer) for layer in layers])(images):
        plain, followed, gradient, same, projected = found
        np.testing.assert_allclose(followed, plain, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(same, gradient, atol=1e-5 * float(jnp.abs(gradient).max()))
        assert np.isfinite(projected).all()
        assert np.abs(projected).max() > 0


def test_strongest():
    x = np.zeros((3, 2, 2, 2))
    x[0, 1, 0, 0], x[2, 0, 1, 0], x[1, 1, 1, 1] = 5, 7, 2
    images, units = deconvnet.strongest(x, 2)
    np.testing.assert_array_equal(images[0], [2, 0])
    np.testing.assert_array_equal(units[0], [[0, 1, 0], [1, 0, 0]])
    assert images[1, 0] == 1
    np.testing.assert_array_equal(units[1, 0], [1, 1, 1])
    images, units = deconvnet.strongest(x[:, 0, 1], 1)
    np.testing.assert_array_equal((images[0], units[0, 0]), ([2], [0]))


def test_occlusion_equals_a_loop_over_squares():
    images = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    fn = lambda x: {"seen": x[:, 2, 3], "total": x.sum((1, 2, 3))}  # noqa: E731
    found, rows, columns = deconvnet.occlusion(fn, jnp.asarray(images), size=3, stride=2, value=0.5)
    assert found["seen"].shape == (2, 3, 2, 3)
    np.testing.assert_array_equal(rows, [1.5, 3.5, 5.5])
    np.testing.assert_array_equal(columns, [1.5, 3.5])
    for i, j in np.ndindex(3, 2):
        covered = images.copy()
        covered[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] = 0.5
        np.testing.assert_allclose(found["total"][:, i, j], covered.sum((1, 2, 3)), rtol=1e-4, atol=1e-4)
        inside = i in (0, 1) and j == 1
        np.testing.assert_allclose(found["seen"][:, i, j], 0.5 if inside else images[:, 2, 3])


def test_correspondence_by_hand():
    whole = jnp.array([[1.0, 2, 3], [1, 2, 3], [1, 2, 3]])
    covered = jnp.array([[0.0, 2, 4], [0, 3, 4], [0, 2, 2]])  # signs (+ 0 -), (+ - -), (+ 0 +)
    assert float(deconvnet.correspondence(whole, covered)) == pytest.approx(2 * (1 + 1 + 2) / (6 * 3))


def test_filters_are_limited():
    params = {"conv": jnp.ones((3, 3, 2, 4)) * jnp.array([0.02, 0.1, 0.3, 0.05]), "dense": jnp.ones((3, 3))}
    tx = optax.chain(optax.sgd(1.0), deconvnet.limit_filters(0.1))
    gradient = jax.tree.map(lambda x: -x, params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved["conv"][0, 0, 0], [0.04, 0.1, 0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose(moved["dense"], 2)


def test_bad_input_raises(small):
    net, variables, images = small
    fn = deconvnet.layer_of(net, variables, "conv1", train=False)
    with pytest.raises(ValueError, match=r"units \(2, 2\), expected \(2, 3\)"):
        deconvnet.project(fn, images, jnp.zeros((2, 2), int))
    with pytest.raises(ValueError, match="called no layer 'conv9'"):
        deconvnet.layer_of(net, variables, "conv9", train=False)(images)
    with pytest.raises(ValueError, match="a square of 14 pixels, expected 1 to 13"):
        deconvnet.occlusion(fn, images, size=14, stride=1)
    with pytest.raises(ValueError, match="1 image, expected 2"):
        deconvnet.correspondence(images[:1], images[:1])
    looped = lambda x: jax.lax.fori_loop(0, 2, lambda _, y: nn.relu(y), x)  # noqa: E731
    with pytest.raises(NotImplementedError, match=r"within a (scan|while): expected no loop or branch"):
        deconvnet.follow(looped, deconvnet.DECONVNET)(images)


def pictures(count, size, rng):
    return [faces.png(rng.integers(0, 255, (size, size, 3), np.uint8)) for _ in range(count)]


def smoke(**changes):
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.resized": 64, "data.image_size": 64, "train.steps": 3, "train.batch_size": 8, "train.log_every": 1,
            "train.devices": 1, "eval.batch_size": 8, "eval.pictures": 6, "eval.square": 12, "eval.stride": 16,
            "evolution.snapshots": (0.3, 1.0), **changes,
        }
    )  # fmt: skip
    return config


def test_smoke_on_glasses(monkeypatch):
    rng = np.random.default_rng(0)
    marks = rng.uniform(15, 50, (10, 68, 2)).astype(np.float32)
    world = [
        {"image": image, "landmarks68": mark, "glasses": i % 2}
        for i, (image, mark) in enumerate(zip(pictures(10, 64, rng), marks, strict=True))
    ]
    monkeypatch.setattr(faces, "load", lambda task, split, folder: world)
    state, report = app.run(smoke(), experiment.build, quiet=True)
    assert next(iter(report.metrics)) == "hits"
    assert report.metrics["hits"] == report.metrics["occlusion_hits"]
    by_chance = app.run(smoke(**{"eval.map": "chance"}), experiment.build, quiet=True)[1].metrics
    assert by_chance["hits"] == by_chance["chance_hits"] == pytest.approx(report.metrics["chance_hits"], abs=0.25)
    assert 0 < by_chance["hits"] < 1
    assert all(np.isfinite(value) for value in report.metrics.values())
    rows = report.tables["Correspondence: disagreement of a layer's changes when a part is covered"]
    assert [row["part"] for row in rows] == [*experiment.PARTS, "random"]
    assert all(0 <= row["conv5"] <= 1 for row in rows)
    assert report.images["Features over training"].shape == (4 * 3 * 48, 2 * 48, 3)
    assert report.images["Strongest of conv2"].shape == (8 * 48, 8 * 48, 3)
    assert report.arrays["occlusion"].shape[1:] == (4, 4)
    assert "Occlusion" in report.figures
    first, last = (np.asarray(state.history["conv1"]["kernel"][i]) for i in (0, 1))
    np.testing.assert_array_equal(last, state.params["conv1"]["kernel"])  # the last snapshot is the end
    assert np.abs(first).max() > 0
    assert (first != last).any()


def test_smoke_on_a_folder_with_ten_crops(tmp_path, picture_folder):
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        picture_folder(tmp_path / part, {name: rng.integers(0, 255, (count, 70, 70, 3)) for name in "abc"})
    config = smoke(**{"data.path": str(tmp_path), "data.image_size": 56, "data.classes": 3, "optim.filter_limit": 0.1})
    _, report = app.run(config, experiment.build, quiet=True)
    assert set(report.metrics) == {"accuracy", "top1_error", "top5_error"}
    assert report.metrics["top5_error"] == 0  # of three classes
    assert not report.tables


def test_ten_crops_are_the_corners_the_centre_and_their_mirrors():
    class Corner:  # scores by the first pixel of each crop
        def apply(self, _, images, train):
            first = images[:, 0, 0, 0] + normalize.IMAGENET_MEAN[0]
            return jnp.log(jnp.stack([first, 255 - first], 1))

    images = jnp.zeros((1, 4, 4, 3), jnp.uint8)
    seen = {(0, 0): 10, (0, 1): 20, (0, 2): 30, (0, 3): 40, (1, 1): 90, (1, 2): 100, (2, 0): 50, (2, 1): 60}
    for (row, column), value in {**seen, (2, 2): 70, (2, 3): 80}.items():
        images = images.at[0, row, column].set(value)
    found = experiment.ten_crops(Corner(), {}, images, 2)
    corners = [10, 30, 50, 70, 90, 20, 40, 60, 80, 100]
    np.testing.assert_allclose(found[0, 0], np.mean(corners) / 255, rtol=1e-5)
    one = experiment.ten_crops(Corner(), {}, images, 4)  # nothing to crop
    np.testing.assert_allclose(one[0, 0], 10 / 255, rtol=1e-5)


def test_half_of_the_images_get_a_grey_square_inside():
    image, rng = np.zeros((9, 12, 3), np.uint8), np.random.default_rng(0)
    grey, places = normalize.IMAGENET_MEAN.astype(np.uint8), set()
    for _ in range(1500):
        covered = experiment.cover_by_chance(image, 4, rng)
        rows, columns, _ = np.nonzero(covered)
        if len(rows):
            top, left = rows.min(), columns.min()
            places.add((int(top), int(left)))
            np.testing.assert_array_equal(covered[top : top + 4, left : left + 4], np.tile(grey, (4, 4, 1)))
            assert len(rows) == 4 * 4 * 3
        else:
            places.add(None)
    assert not image.any()
    assert places == {None, *((top, left) for top in range(6) for left in range(9))}
    shares = [experiment.cover_by_chance(image, 4, rng).any() for _ in range(400)]
    assert 0.4 < np.mean(shares) < 0.6
    assert experiment.cover_by_chance(image, 0, rng) is image


def test_landmarks_follow_the_crop():
    example = {"image": faces.png(np.zeros((64, 64, 3), np.uint8)), "landmarks68": np.full((68, 2), (32.0, 16.0))}
    np.testing.assert_allclose(experiment.landmarks_in_crop([example] * 2, 96, 90)[1, 0], [45, 21])


def test_presets_dry_run():
    for preset in experiment.PRESETS:
        config = experiment.get_config(preset)
        costs = dry_run(experiment.build(config), Options(**config.train))
        if preset == "imagenet":
            assert costs["parameters"] == 62_357_608


def test_unknown_names_raise():
    with pytest.raises(ValueError, match=r"model\.name is 'zf': expected one of tiny, tiny_vgg, zfnet"):
        experiment.build(smoke(**{"model.name": "zf"}))
    with pytest.raises(ValueError, match=r"eval\.map is 'cam': expected one of occlusion, gradient, deconvnet"):
        experiment.build(smoke(**{"eval.map": "cam"}))
