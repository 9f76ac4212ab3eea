import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rankiqa as experiment
from facejax.backbones import vgg
from facejax.data import distorted, normalize, transforms
from facejax.data.distorted import PADDING, RATED, Distorter
from facejax.data.distortions import DISTORTIONS
from facejax.data.readers import opinions
from facejax.data.synthetic.faces import png
from facejax.evaluate import image_quality
from facejax.evaluate.quality import score
from facejax.interop import torchvision
from facejax.metrics.quality import spearman
from facejax.quality import rankiqa


def test_ranking_loss():
    zero = jnp.zeros(3, int)
    chex.assert_trees_all_close(
        rankiqa.ranking_loss(jnp.array([5.0, 0, -20]), jnp.arange(3), zero), jnp.array(5 / 3), rtol=1e-6
    )
    assert rankiqa.ranking_loss(-10.0 * jnp.arange(3), jnp.arange(3), zero) == 0
    with pytest.raises(ValueError, match="ranking_loss"):
        rankiqa.ranking_loss(jnp.zeros(3), jnp.arange(3), jnp.zeros(2, int))


def test_ranking_loss_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    scores, level, group = rng.normal(size=24), np.tile(np.arange(4), 6), np.repeat([0, 1], 12)

    def loss(scores):
        return rankiqa.ranking_loss(scores, jnp.asarray(level), jnp.asarray(group), margin=1.0)

    pairs = [(i, j) for i in range(24) for j in range(24) if level[i] < level[j] and group[i] == group[j]]
    naive = sum(max(0.0, 1 - (scores[i] - scores[j])) for i, j in pairs) / 24
    found = loss(jnp.asarray(scores))
    chex.assert_trees_all_close(found, naive, rtol=1e-5)
    chex.assert_trees_all_close(loss(jnp.asarray(scores) + 3), found, rtol=1e-4)
    active = [(i, j) for i, j in pairs if scores[i] - scores[j] < 1]
    counted = [(sum(j == k for _, j in active) - sum(i == k for i, _ in active)) / 24 for k in range(24)]
    chex.assert_trees_all_close(np.asarray(jax.grad(loss)(jnp.asarray(scores))), np.array(counted), rtol=1e-5)


def test_equal_scores_break_every_pair():
    gradient = jax.grad(lambda s: rankiqa.ranking_loss(s, jnp.arange(4), jnp.zeros(4, int)))(jnp.ones(4))
    chex.assert_trees_all_close(gradient, jnp.array([-3.0, -1, 1, 3]) / 4)


def test_presets_trace(presets_trace):
    presets_trace("rankiqa")


def test_smoke(smoke):
    _, report = smoke("rankiqa:synthetic", **{"train.batch_size": 32})
    assert -1 <= report.metrics["srocc"] <= 1
    assert {"Score over level", "Error over discarded"} <= report.figures.keys()


def test_single_images_of_people(smoke, tmp_path, picture_folder):
    """Without genuine pairs only distortion levels are evaluated."""
    rng = np.random.default_rng(0)
    picture_folder(tmp_path, {f"p{i}": rng.integers(0, 256, (1, 48, 48, 3)) for i in range(12)})
    _, report = smoke(
        "rankiqa:synthetic", **{"train.batch_size": 32, "data.source": "path", "data.path": str(tmp_path)}
    )
    assert report.metrics.keys() == {"srocc", "neighbours_ranked"}


@pytest.fixture(scope="module")
def rated(tmp_path_factory, picture_folder):
    """Changes for a run on opinions: ten images to be distorted, twelve rated ones of three references."""
    root, rng = tmp_path_factory.mktemp("rated"), np.random.default_rng(0)
    picture_folder(root, {"pictures": rng.normal(128, 40, (10, 40, 44, 3))})
    lines = ["name,opinion,reference"]
    for i in range(12):
        (root / f"{i}.png").write_bytes(png(np.full((30 + i, 40, 3), 20 * i, np.uint8)))
        lines.append(f"{i}.png,{0.5 * (i // 3)},{'abc'[i % 3]}")
    (root / "rated.csv").write_text("\n".join(lines))
    return {
        "data.source": "path", "data.path": str(root), "data.image_size": 24,
        "opinions.path": str(root / "rated.csv"), "opinions.batch": 5, "opinions.peak": 1e-3, "opinions.crops": 2,
        "levels": {**experiment.NONE, "noise": (0.01, 0.1), "brighter": (10.0, 40.0), "darker": (-10.0, -40.0)},
        "kinds_per_image": 2, "loss.ranking": 2, "train.batch_size": 12, "train.steps": 4,
    }  # fmt: skip


class Small(nn.Module):
    """Score of the mean colours and their deviations."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(1)(jnp.concatenate([images.mean((1, 2)), images.std((1, 2))], -1))[:, 0]


@pytest.fixture
def small_net(monkeypatch):
    monkeypatch.setitem(experiment.NETS, "tiny", Small)


def with_changes(configured, changes, **more):
    levels = changes["levels"]
    _, config = configured("rankiqa:synthetic", **{k: v for k, v in {**changes, **more}.items() if k != "levels"})
    with config.ignore_type():
        config.levels.update(levels)
    return config


def test_batches_of_series_then_of_opinions(configured, rated):
    config = with_changes(configured, rated)
    wired = experiment.build(config)
    stream = wired.train_data()
    batches = [next(stream) for _ in range(4)]
    assert all({k: (v.shape, v.dtype) for k, v in b.items()} == {k: (s.shape, s.dtype) for k, s in wired.batch.items()}
               for b in batches)  # fmt: skip
    distorter = Distorter(config.levels, config.kinds_per_image)
    numbers = [list(DISTORTIONS).index(kind) for kind in distorter.kinds]
    for batch in batches[:2]:  # two images, two of the three kinds each, three levels
        assert batch["level"].tolist() == 4 * [0, 1, 2]
        drawn = batch["kind"].reshape(2, 2, 3)
        assert (drawn == drawn[..., :1]).all() and (drawn[:, 0, 0] != drawn[:, 1, 0]).all()
        assert np.isin(drawn, numbers).all()
    pairs = [distorter.series(batches[0]["image"][0], np.random.default_rng(i), 2) for i in range(8)]
    assert {row["kind"] for pair in pairs for row in pair} == {*numbers}
    for batch in batches[2:]:
        assert batch["kind"].tolist() == 5 * [RATED] + 7 * [PADDING]
        colour = batch["image"][:5].mean((1, 2, 3))
        chex.assert_trees_all_close(batch["opinion"][:5], (0.5 * (colour // 60)).astype(np.float32))
    position = stream.get_state()
    after = [next(stream) for _ in range(2)]
    stream.close()
    again = wired.train_data()
    again.set_state(position)
    for one, two in zip(after, [next(again) for _ in range(2)], strict=True):
        chex.assert_trees_all_equal(one, two)
    again.close()


def test_references_are_split_by_the_seed(rated):
    found, tested = opinions.read(rated["opinions.path"]), set()
    for seed in range(8):
        parts = found.split(seed)
        names = {split: {int(path.stem) % 3 for path in part.paths} for split, part in parts.items()}
        assert names["train"] | names["test"] == {0, 1, 2} and not names["train"] & names["test"]
        assert [len(parts[split].opinion) for split in ("train", "test")] == [8, 4]
        tested |= {*names["test"]}
    assert tested == {0, 1, 2}


def test_the_loss_ranks_series_and_then_regresses_opinions(configured, rated, small_net):
    """Neither padding nor the images of the other stage contribute."""
    config = with_changes(configured, rated)
    wired = experiment.build(config)
    stream = wired.train_data()
    batches = [next(stream) for _ in range(3)]
    stream.close()
    state = jax.jit(wired.init)(jax.random.key(0))

    step = jax.jit(jax.vmap(wired.train_step, (None, 0, None), axis_name="data"))

    def loss(batch, number):
        now = state.replace(step=jnp.array(number, jnp.int32))
        _, metrics = step(now, jax.tree.map(lambda x: x[None], batch), jax.random.key(1))
        return float(metrics["loss"].total[0] / metrics["loss"].count[0])

    def scores(batch):
        images = normalize.symmetric(jnp.asarray(batch["image"]))
        return Small().apply({"params": state.params}, images, train=True)

    ranked = rankiqa.ranking_loss(scores(batches[0]), batches[0]["level"], batches[0]["kind"], margin=1.0)
    assert loss(batches[0], 1) == pytest.approx(float(ranked), rel=1e-4)
    error = 0.5 * np.mean((scores(batches[2])[:5] - batches[2]["opinion"][:5]) ** 2)
    assert loss(batches[2], 2) == pytest.approx(float(error), rel=1e-4)


def test_a_run_on_opinions(configured, rated, small_net):
    config = with_changes(configured, rated)
    _, report = experiment.app.run(config, experiment.build, quiet=True)
    assert report.metrics.keys() == {"srocc", "neighbours_ranked", "lcc"}
    assert report.metrics["srocc"] == pytest.approx(spearman(report.arrays["scores"], report.arrays["opinions"]))
    assert report.metrics["lcc"] == pytest.approx(np.corrcoef(report.arrays["scores"], report.arrays["opinions"])[0, 1])
    assert {"Score over level", "Score over opinion"} <= report.figures.keys()


class Grey:
    """A network whose score is the mean grey."""

    def apply(self, variables, images, train):
        assert images.shape[1:] == (24, 24, 3)
        return images.mean((1, 2, 3))


def test_a_score_is_the_mean_over_random_crops(rated):
    """Of images of one grey the score is that grey; crops of a ramp lie everywhere."""
    test = opinions.read(rated["opinions.path"]).split(0)["test"]
    crops = distorted.Crops(test.paths, 24, 30, 0)
    report = image_quality.assess_opinions(score(Grey(), {}, crops, 8), test.opinion, 30)
    expected = np.array([20 * int(path.stem) for path in test.paths]) / 127.5 - 1
    np.testing.assert_allclose(report.arrays["scores"], expected, atol=1e-5)
    assert [report.metrics[name] for name in ("srocc", "lcc")] == pytest.approx([1, 1]) and len(test.paths) == 4
    rng, ramp = np.random.default_rng(0), np.repeat(np.arange(30, dtype=np.uint8)[:, None], 40, 1)[..., None]
    tops = [distorted.crop(ramp, 24, rng, "")[0, 0, 0] for _ in range(100)]
    lefts = [distorted.crop(ramp.swapaxes(0, 1), 24, rng, "")[0, 0, 0] for _ in range(100)]
    assert {*tops} == {*lefts} == {*range(7)}  # the last place is one of them


def test_crops_do_not_depend_on_the_slices(rated):
    paths = opinions.read(rated["opinions.path"]).paths
    crops = distorted.Crops(paths, 24, 3, 5)
    assert crops.shape == (36, 24, 24, 3) and len(crops) == 36
    np.testing.assert_array_equal(crops[4:11], np.concatenate([crops[i : i + 1] for i in range(4, 11)]))


def test_small_images_and_bad_settings_raise(configured, rated, tmp_path):
    def wrong(message, **changes):
        with pytest.raises(ValueError, match=message):
            experiment.build(with_changes(configured, rated, **changes))

    paths = opinions.read(rated["opinions.path"]).paths
    with pytest.raises(ValueError, match=r"\d+\.png has \d+ x 40 pixels: expected 41 x 41 or more"):
        distorted.Crops(paths, 41, 1, 0)[:1]
    example, rngs = {"image": png(np.zeros((20, 30, 3), np.uint8))}, [np.random.default_rng(0)]
    with pytest.raises(ValueError, match=r"an image of data\.path has 20 x 30 pixels: expected 24 x 24"):
        Distorter({**experiment.NONE, "noise": (0.1,)}).load(24)([example], rngs)
    (tmp_path / "a.png").write_bytes(example["image"])
    (tmp_path / "one.csv").write_text("name,opinion,reference\na.png,1,x\n")
    with pytest.raises(ValueError, match=r"/one\.csv: images of 1 references: expected 3 or more to split"):
        opinions.read(tmp_path / "one.csv").split(0)
    with pytest.raises(ValueError, match=r"data\.path is empty: expected a folder"):
        distorted.images_of("", "train")
    wrong(r"train\.batch_size is 13: expected whole series of 6", **{"train.batch_size": 13})
    wrong(r"train\.batch_size is 12: expected whole series of 6, and opinions\.batch at", **{"opinions.batch": 13})
    wrong(r"opinions\.peak is 0\.0: expected a learning rate", **{"opinions.peak": 0.0})
    wrong(r"kinds_per_image is 4: expected 0, or 1 to 3 where", kinds_per_image=4)
    wrong(r"model\.weights is given, but model\.name is 'tiny'", **{"model.weights": "a.pth"})


def test_images_to_be_distorted_are_split(rated):
    known, new = (distorted.images_of(rated["data.path"], split) for split in ("train", "test"))
    assert (len(known), len(new)) == (8, 2)
    images = [part[i]["image"] for part in (known, new) for i in range(len(part))]
    assert len({*images}) == 10
    assert transforms.decode(known[0]["image"]).shape == (40, 44, 3)


def test_the_authors_levels():
    """Of LIVE as their supplement rounds them; of TID2013 nine of eighteen lists a step."""
    live, tid = (experiment.get_config(name) for name in ("live", "tid2013"))
    np.testing.assert_allclose(np.array(live.levels.kernel_blur) / 6, [1.2, 2.5, 6.5, 15.2, 33.2], atol=0.05)
    np.testing.assert_allclose(live.levels.noise, [0.001, 0.006, 0.022, 0.088, 1], atol=5e-4)
    np.testing.assert_allclose(live.levels.jpeg2000, [52, 150, 343, 600, 1200], atol=0.4)
    makers = [Distorter(config.levels, config.kinds_per_image) for config in (live, tid)]
    assert makers[0].kinds == ["noise", "jpeg", "jpeg2000", "kernel_blur"]
    assert len(makers[1].kinds) == 18 and makers[1].size == 45 == tid.train.batch_size
    assert 2 * makers[0].size == 48 == live.train.batch_size
    for config, maker in zip((live, tid), makers, strict=True):
        for kind in maker.kinds:
            levels = np.abs(np.array(config.levels[kind]) - (kind.endswith("contrast") or kind == "saturation"))
            assert (np.diff(levels) * (-1 if kind in ("jpeg", "colour_quantisation") else 1) > 0).all()


def test_rates_of_the_authors(configured, rated):
    """Ranking, then fine-tuning: biases twice, fc8 ten times, fc6 and fc7 ten times while fine-tuning; momentum off."""
    config = experiment.get_config("live")
    config.optim.unlock()
    config.optim.momentum = 0.0
    config.optim.schedule.boundaries, config.opinions.boundaries, config.train.steps = (1,), (1,), 4
    params = {"conv1_1": {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}, "classifier": {
        name: {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)} for name in ("fc6", "fc7", "fc8")}}  # fmt: skip
    tx = experiment.two_stages(config, 2)
    state, grads = tx.init(params), jax.tree.map(lambda x: 3 * x, params)
    for rate, middle in ((1e-5, 1), (1e-6, 1), (1e-6, 10), (5e-7, 10)):
        updates, state = tx.update(grads, state, params)
        times = {"conv1_1": 1, "fc6": middle, "fc7": middle, "fc8": 10}
        for name, multiple in times.items():
            found = updates.get(name) or updates["classifier"][name]
            np.testing.assert_allclose(found["kernel"], -rate * multiple * (3 + 5e-4), rtol=1e-5)
            np.testing.assert_allclose(found["bias"], -rate * multiple * 2 * 3, rtol=1e-5)


def test_weights_of_torchvision_for_raw_images(configured, rated, monkeypatch, tmp_path):
    """A narrow VGG-16: the first map of BGR of 0..255 is that of the normalised image, except at the border."""
    net, rng = vgg.VGG((2, 2, 3, 3, 3), (2, 2, 2, 2, 512), 1, hidden=3), np.random.default_rng(0)
    raw = experiment.Raw(net)
    images = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    shapes = jax.eval_shape(lambda: raw.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    trunk = shapes["params"]["trunk"]
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    tensors = {"classifier.6.weight": np.zeros((1000, 3)), "classifier.6.bias": np.zeros(1000)}
    for place, name in zip(places, sorted(k for k in trunk if k.startswith("conv")), strict=True):
        tensors[f"features.{place}.weight"] = rng.normal(size=trunk[name]["kernel"].shape).transpose(3, 2, 0, 1)
        tensors[f"features.{place}.bias"] = rng.normal(size=trunk[name]["bias"].shape)
    for place, name in ((0, "fc6"), (3, "fc7")):
        tensors[f"classifier.{place}.weight"] = rng.normal(size=trunk["classifier"][name]["kernel"].shape).T
        tensors[f"classifier.{place}.bias"] = rng.normal(size=3)
    monkeypatch.setattr(torchvision, "read_weights", lambda path, key: tensors)
    template = {**trunk, "classifier": {k: v for k, v in trunk["classifier"].items() if k != "fc8"}}
    weights = tmp_path / "vgg16.pth"
    weights.write_bytes(b"PK")
    found = experiment.read_weights(str(weights), template)
    assert jax.tree.structure(found) == jax.tree.structure(template)
    monkeypatch.setitem(experiment.NETS, "vgg16", lambda: raw)
    changes = {"model.name": "vgg16", "model.weights": str(weights), "data.image_size": 64}
    wired = experiment.build(with_changes(configured, rated, **changes))
    begun = jax.jit(wired.init)(jax.random.key(0), wired.prepare()).params["trunk"]
    last = begun["classifier"].pop("fc8")
    chex.assert_trees_all_equal(begun, found)
    assert last["kernel"].std() > 0
    whole = {**found, "classifier": {**found["classifier"], "fc8": {"kernel": np.ones((3, 1)), "bias": np.ones(1)}}}
    kernel, bias = tensors["features.0.weight"].transpose(2, 3, 1, 0), tensors["features.0.bias"]
    plain = {**whole, "conv1_1": {"kernel": kernel, "bias": bias}}
    normal = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    named = jax.jit(lambda params, images: net.apply({"params": params}, images, train=False, features=True))
    expected = named(plain, normal.astype(np.float32))["relu1_1"]
    maps = named(whole, images[..., ::-1].astype(np.float32))
    inside = slice(1, -1)
    chex.assert_trees_all_close(maps["relu1_1"][:, inside, inside], expected[:, inside, inside], rtol=1e-4, atol=1e-4)
    scores = jax.jit(lambda x: raw.apply({"params": {"trunk": whole}}, normalize.symmetric(x), train=False))(images)
    chex.assert_trees_all_close(scores, maps["logits"][:, 0], rtol=1e-3)


def test_series_split_over_devices_raise(split_raises):
    split_raises(
        "rankiqa:synthetic", "16 of 32 images meet on a device", **{"train.batch_size": 32, "train.devices": 2}
    )
    split_raises(
        "rankiqa:synthetic", "16 of 32 images meet on a device", **{"train.batch_size": 32, "train.microbatches": 2}
    )


def test_bad_input(raises):
    raises("rankiqa:synthetic", "train.batch_size is 20: expected room for series of 24", **{"train.batch_size": 20})
