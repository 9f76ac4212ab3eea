"""DyStyle's network by hand, its masks, its losses, its run, its presets."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import dystyle as experiment
from facejax.data import factor_faces
from facejax.data.factor_faces import FactorFaces
from facejax.evaluate import editing, generation
from facejax.generation import dystyle
from facejax.recipes import editing as recipe
from facejax.recipes import sampling
from facejax.recipes.gan import GENERATOR, GanState
from facejax.train import Options, app, checkpoint
from facejax.train.dry_run import dry_run

N, L, D, A = 5, 3, 4, 3
NET = dystyle.DyStyle(A, L, D, (6, 5))
CODES = np.random.default_rng(0).normal(size=(N, L, D)).astype(np.float32)
VALUES = np.random.default_rng(1).uniform(-1, 1, (N, A)).astype(np.float32)
ACTIVE = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 1]], bool)


@pytest.fixture(scope="module")
def variables():
    """Of a network that changes codes: the affine layer is not zero."""
    made = jax.jit(NET.init)(jax.random.key(0), CODES, VALUES, ACTIVE)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(x) + 0.4 * rng.normal(size=x.shape).astype(np.float32), made)


apply = jax.jit(NET.apply)


def by_hand(params, codes, values, active):
    """One layer of one sample, with loops over experts, in float64."""

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def slope(x):
        return np.where(x > 0, x, 0.2 * x)

    chosen = np.flatnonzero(active)
    if not len(chosen):
        return codes
    proxies = []
    for i in chosen:
        x = np.append(codes, values[i])
        layers = [{k: v[i] for k, v in params["experts"][f"Dense_{j}"].items()} for j in range(3)]
        for layer in layers[:-1]:
            x = slope(dense(layer, x))
        proxies.append(dense(layers[-1], x))
    q, k, v = ([dense(params[name], p) for p in proxies] for name in ("q", "k", "v"))
    total = np.zeros_like(codes)
    for i in range(len(chosen)):
        powers = [np.exp(q[i] @ k[j]) for j in range(len(chosen))]
        total += sum(p / sum(powers) * x for p, x in zip(powers, v, strict=True))
    gamma, beta = np.split(dense(params["affine"], total), 2)
    return codes * (1 + gamma) + beta


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def test_network_by_hand(variables):
    params = double(variables)["params"]["layers"]
    expected = [
        [
            by_hand(jax.tree.map(lambda x, i=i: x[i], params), double(CODES)[n, i], VALUES[n], ACTIVE[n])
            for i in range(L)
        ]
        for n in range(N)
    ]
    np.testing.assert_allclose(apply(variables, CODES, VALUES, ACTIVE), expected, rtol=2e-5, atol=2e-5)


def test_gradients_by_hand(variables):
    """Of a weighted sum of the output, by finite differences of the loops: targets, codes, and a parameter each."""
    weights = np.random.default_rng(2).normal(size=(L, D))

    def loss(params, codes, values, n):
        out = NET.apply({"params": params}, codes[None], values[None], ACTIVE[n : n + 1])[0]
        return jnp.sum(out * weights)

    def loops(params, codes, values, n):
        layers = [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(L)]
        found = [by_hand(layer, c, values, ACTIVE[n]) for layer, c in zip(layers, codes, strict=True)]
        return np.sum(np.array(found) * weights)

    params = double(variables)["params"]
    slopes = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)
    for n in (0, 2):
        found = slopes(variables["params"], CODES[n], VALUES[n], n)
        given = (params, double(CODES[n]), double(VALUES[n]))
        leaves, structure = jax.tree.flatten(given)
        for number, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(found), strict=True)):
            place = tuple(np.random.default_rng(number).integers(leaf.shape))
            ends = []
            for step in (-1e-5, 1e-5):
                moved = [x.copy() for x in leaves]
                moved[number][place] += step
                ends.append(loops(*jax.tree.unflatten(structure, moved), n))
            np.testing.assert_allclose(slope[place], (ends[1] - ends[0]) / 2e-5, rtol=3e-3, atol=3e-3)


def test_untrained_changes_nothing():
    made = jax.jit(NET.init)(jax.random.key(0), CODES, VALUES, ACTIVE)
    np.testing.assert_array_equal(apply(made, CODES, VALUES, ACTIVE), CODES)


def test_nothing_active_changes_nothing(variables):
    found = apply(variables, CODES, VALUES, ACTIVE)
    np.testing.assert_array_equal(found[3], CODES[3])
    assert np.abs(np.delete(found - CODES, 3, 0)).max((1, 2)).min() > 0.01


def test_order_of_the_experts(variables):
    order = [2, 0, 1]
    experts = jax.tree.map(lambda x: x[:, order], variables["params"]["layers"]["experts"])
    moved = {"params": {"layers": {**variables["params"]["layers"], "experts": experts}}}
    found = apply(moved, CODES, VALUES[:, order], ACTIVE[:, order])
    np.testing.assert_allclose(found, apply(variables, CODES, VALUES, ACTIVE), rtol=1e-5, atol=1e-5)


def test_inactive_targets_and_experts_have_no_influence(variables):
    nonsense = np.where(ACTIVE, VALUES, np.nan)
    np.testing.assert_array_equal(apply(variables, CODES, nonsense, ACTIVE), apply(variables, CODES, VALUES, ACTIVE))

    def loss(variables, values):
        return jnp.sum(NET.apply(variables, CODES[1:3], values, ACTIVE[1:3]) ** 2)

    params, values = jax.jit(jax.grad(loss, (0, 1)))(variables, VALUES[1:3])
    assert not values[~ACTIVE[1:3]].any()
    assert np.all(values[ACTIVE[1:3]] != 0)
    params = jax.jit(jax.grad(lambda v, values: jnp.sum(NET.apply(v, CODES[1:2], values, ACTIVE[1:2]) ** 2)))(
        variables, VALUES[1:2]
    )
    for leaf in jax.tree.leaves(params["params"]["layers"]["experts"]):
        assert leaf[:, 0].any() and leaf[:, 2].any() and not leaf[:, 1].any()


@pytest.mark.parametrize("scaled", [False, True])
def test_attention(scaled):
    rng = np.random.default_rng(0)
    queries, keys, values = 3 * rng.normal(size=(3, N, A, D)).astype(np.float32)
    found = dystyle.attention(queries, keys, ACTIVE, scaled=scaled)
    for n, i, j in itertools.product(range(N), range(A), range(A)):
        inside = ACTIVE[n, i] and ACTIVE[n, j]
        powers = np.exp(keys[n] @ queries[n, i] / (D**0.5 if scaled else 1)) * ACTIVE[n]
        np.testing.assert_allclose(found[n, i, j], powers[j] / powers.sum() if inside else 0, rtol=2e-5)
    assert found[2, 1, 1] == 1
    fused = dystyle.fuse(queries, keys, values, ACTIVE, scaled=scaled)
    np.testing.assert_array_equal(fused[2], values[2, 1])
    np.testing.assert_array_equal(fused[3], 0)
    np.testing.assert_allclose(fused, np.einsum("nij,njd->nd", found, values), rtol=1e-4, atol=1e-5)


def test_one_active_attribute_has_no_gradient_through_attention():
    queries, keys, values = np.random.default_rng(0).normal(size=(3, 1, A, D)).astype(np.float32)
    slopes = jax.grad(lambda q, k: dystyle.fuse(q, k, values, ACTIVE[2:3]).sum(), (0, 1))(queries, keys)
    assert not any(map(np.any, slopes))
    far = jax.grad(lambda q: dystyle.fuse(q, keys, values, ACTIVE[:1]).sum())(1e4 * queries)
    assert np.isfinite(far).all()


def test_low_precision(variables):
    net = NET.clone(dtype=jnp.bfloat16)
    found = net.apply(variables, CODES, VALUES, ACTIVE)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found[3], CODES[3])
    np.testing.assert_allclose(found, apply(variables, CODES, VALUES, ACTIVE), atol=0.3)


def test_wishes():
    binary = (False, True, False, False)
    draw = jax.jit(lambda key, most: dystyle.configurations(key, 4000, binary, most))
    values, active = draw(jax.random.key(0), 4)
    np.testing.assert_allclose(np.bincount(active.sum(1), minlength=5) / 4000, [0, 0.25, 0.25, 0.25, 0.25], atol=0.03)
    np.testing.assert_allclose(active.mean(0), 0.625, atol=0.03)
    assert set(np.unique(values[:, 1])) == {-1, 1}
    np.testing.assert_allclose(np.percentile(values[:, 0], [25, 50, 75]), [-0.5, 0, 0.5], atol=0.06)
    assert (draw(jax.random.key(0), 1)[1].sum(1) == 1).all()
    assert [int(dystyle.easy_to_hard(step, 10, 4)) for step in (0, 9, 10)] == [1, 1, 4]


def test_losses_by_hand():
    binary = (False, True, False)
    found, outputs = np.random.default_rng(0).normal(size=(2, N, A)).astype(np.float32)
    wish = np.where(binary, np.sign(VALUES), VALUES)
    wanted = dystyle.targets(found, wish, ACTIVE, binary)
    said = np.where(binary, 1 / (1 + np.exp(-found)), found)
    np.testing.assert_allclose(wanted, np.where(ACTIVE, np.where(binary, wish > 0, wish), said), rtol=1e-6)
    p = 1 / (1 + np.exp(-outputs.astype(np.float64)))
    entropy = -wanted * np.log(p) - (1 - wanted) * np.log(1 - p)
    losses = dystyle.attribute_loss(outputs, wanted, binary)
    np.testing.assert_allclose(losses, np.where(binary, entropy, (outputs - wanted) ** 2), rtol=1e-4, atol=1e-6)
    slopes = jax.grad(lambda x: dystyle.attribute_loss(x, wanted, binary).sum())(outputs)
    np.testing.assert_allclose(slopes, np.where(binary, p - wanted, 2 * (outputs - wanted)), rtol=1e-4, atol=1e-6)
    assert not np.any(jax.grad(lambda x: dystyle.targets(x, wish, ACTIVE, binary).sum())(found))
    a, b = CODES[:, 0], CODES[:, 1]
    cosine = np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(dystyle.identity_loss(a, b), 1 - cosine, rtol=1e-5)
    np.testing.assert_allclose(dystyle.norm_loss(CODES + 0.5, CODES), 0.25, rtol=1e-5)


def test_contrastive_loss_by_hand():
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    one = features / np.linalg.norm(features, axis=1, keepdims=True)
    for n, loss in enumerate(dystyle.contrastive_loss(features, 0.5)):
        powers = np.exp(one @ one[n] / 0.5)
        expected = -np.log(powers[(n + 3) % 6] / (powers.sum() - powers[n]))
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="5 samples, expected an even number"):
        dystyle.contrastive_loss(features[:5])


@pytest.mark.parametrize("projected", [False, True])
def test_linear_edits_of_a_linear_world(projected):
    """Attributes that are linear in w: conditional directions edit exactly, single ones move the others."""
    rng = np.random.default_rng(0)
    normals, codes = rng.normal(size=(D, A)), rng.normal(size=(50, D))
    fitted = dystyle.linear_map(codes, codes @ normals + [1, 2, 3])
    np.testing.assert_allclose(fitted[0], normals, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(fitted[1], [1, 2, 3], rtol=1e-3)
    flat = np.repeat(CODES[:, :1], L, 1)
    edited = dystyle.linear_edit(flat, VALUES, ACTIVE, fitted, projected=projected)
    before, after = (np.asarray(x)[:, 0] @ normals + [1, 2, 3] for x in (flat, edited))
    wanted = np.where(ACTIVE, VALUES, before)
    if projected:
        np.testing.assert_allclose(after, wanted, atol=2e-3)
    else:
        np.testing.assert_allclose(after[2, 1], VALUES[2, 1], atol=2e-3)
        assert np.abs(after - wanted)[2, [0, 2]].max() > 0.1
    np.testing.assert_array_equal(edited[3], flat[3])


def test_bad_input(variables):
    for codes, values in ((CODES[:, :2], VALUES), (CODES, VALUES[:, :2]), (CODES, VALUES[:2])):
        with pytest.raises(ValueError, match=r"DyStyle: codes .*, expected \[N, 3, 4\], \[N, 3\], \[N, 3\]"):
            NET.apply(variables, codes, values, ACTIVE)


def parameters(net):
    given = jnp.zeros((1, net.layers, net.size)), jnp.zeros((1, net.attributes)), jnp.zeros((1, net.attributes), bool)
    made = jax.eval_shape(net.init, jax.random.key(0), *given)
    return sum(x.size for x in jax.tree.leaves(made))


def test_full_size():
    """Layer by layer: experts of 513 inputs, two hidden layers of 512, three projections, scale and shift."""
    dense = 513 * 512
    expert = 514 * 512 + 2 * dense
    assert parameters(dystyle.DyStyle()) == 18 * (9 * expert + 3 * dense + 2 * dense) == 151_372_800
    for net in (dystyle.DyStyle(), NET):
        fields = {name: getattr(net, name) for name in ("attributes", "layers", "size", "hidden")}
        ours, other = parameters(net), parameters(dystyle.Concatenation(**fields))
        assert 0.9 < other / ours <= 1


def test_concatenation(variables):
    net = dystyle.Concatenation(A, L, D, width=5)
    made = net.init(jax.random.key(0), CODES, VALUES, ACTIVE)
    np.testing.assert_array_equal(net.apply(made, CODES, VALUES, ACTIVE), CODES)
    rng = np.random.default_rng(0)
    made = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), made)
    found = net.apply(made, CODES, VALUES, ACTIVE)
    np.testing.assert_array_equal(found[3], CODES[3])
    nonsense = np.where(ACTIVE, VALUES, np.nan)
    np.testing.assert_array_equal(net.apply(made, CODES, nonsense, ACTIVE), found)


FACES = FactorFaces(image_size=16, shapes=3, layers=4, train=64, test=16)


def test_codes_of_known_factors():
    """The map to codes is inverted; a layer's change moves the factors by its share; values are uniform."""
    vectors = FACES.draw("test")
    codes = np.asarray(FACES.codes(vectors))
    assert codes.shape == (16, 4, 8)
    np.testing.assert_allclose(FACES.vectors(codes), vectors, atol=1e-5)
    other = np.asarray(FACES.codes(vectors[::-1]))
    mixed = np.concatenate([other[:, :1], codes[:, 1:]], 1)
    place = np.append(np.linspace(0, 3, 5), [1, 1, 1])
    weight = np.exp(-0.5 * (np.arange(4)[:, None] - place) ** 2)
    share = weight[0] / weight.sum(0)
    np.testing.assert_allclose(FACES.vectors(mixed), share * vectors[::-1] + (1 - share) * vectors, atol=1e-5)
    values = np.asarray(FACES.values(np.random.default_rng(0).normal(size=(4000, 8))))
    np.testing.assert_allclose(np.percentile(values[:, 0], [25, 50, 75]), [-0.5, 0, 0.5], atol=0.06)
    assert set(np.unique(values[:, 2])) == {-1, 1}
    assert len(np.unique(FACES.draw("train"))) > 500
    with pytest.raises(ValueError, match=r"data.attributes has 'hat': expected some of yaw, pitch"):
        FactorFaces(attributes=("yaw", "hat"))
    with pytest.raises(ValueError, match=r"data.slope is 0: expected above 0 to 1"):
        FactorFaces(slope=0)


def test_perfect_edits_and_factors(monkeypatch):
    head = SimpleNamespace(identity_std=np.ones(5), albedo_std=np.ones(4), expressions=dict.fromkeys(("a", "jaw_open")))
    monkeypatch.setattr(factor_faces, "procedural", lambda: head)
    vectors = FACES.draw("test")
    values = np.where(FACES.binary, -np.asarray(FACES.values(vectors)), 0.5).astype(np.float32)
    active = np.random.default_rng(0).random((16, 5)) < 0.5
    changed = FACES.changed(vectors, values, active)
    np.testing.assert_array_equal(changed[:, 5:], vectors[:, 5:])
    wanted = np.where(active, values, FACES.values(vectors))
    np.testing.assert_allclose(FACES.values(changed), wanted, atol=1e-5)
    factors = FACES.factors(changed)
    np.testing.assert_allclose(factors["pose"][:, 1], 0.6 * wanted[:, 0], atol=1e-5)
    np.testing.assert_array_equal(factors["glasses"] > 0.5, wanted[:, 2] > 0)
    assert factors["hair_colour"][wanted[:, 4].argmax()].sum() > factors["hair_colour"][wanted[:, 4].argmin()].sum()
    np.testing.assert_allclose(factors["expression_strength"][:, 1], 0.45 * (wanted[:, 1] + 1), atol=1e-5)
    np.testing.assert_array_equal(factors["identity"], np.pad(vectors[:, 5:].clip(-2, 2), ((0, 0), (0, 2))))


def test_measures_of_edits_by_hand():
    binary = (False, True)
    before, after = np.array([[0.0, 1.0], [0.5, -2.0], [0.2, 3.0]]), np.array([[0.4, 1.0], [0.1, 2.0], [0.2, -1.0]])
    values, active = np.array([[0.5, 1], [1, 1], [0, -1]]), np.array([[1, 0], [0, 1], [0, 0]], bool)
    found = editing.edit_metrics(before, after, values, active, binary)
    joint = np.mean([0.1 / 2, 0, 0.4 / 2, 0, 0, 1])
    expected = {"control_error": 0.1, "drift": 0.2, "accuracy": 1, "kept": 0.5, "joint": joint}
    assert found == pytest.approx(expected)
    (row,) = editing.by_count(before, after, values, active, binary)
    assert row["edited"] == 1 and row["faces"] == 2 and row["drift"] == pytest.approx(0.4)
    ramps, only = editing.sweeps(2, binary, 3)
    assert ramps.tolist() == [[-1, -1], [0, 1], [1, 1]] * 3
    assert only.tolist() == [[True, False]] * 3 + [[False, True]] * 3 + [[True, False]] * 3


def blocks(faces, vectors):
    """In place of the renderer: bars whose brightness is the attributes'."""
    values = np.asarray(faces.values(vectors))
    images = np.repeat(values, -(-faces.image_size // values.shape[1]), 1)[:, : faces.image_size]
    images = np.broadcast_to(images[:, None, :, None], (len(vectors), faces.image_size, faces.image_size, 3))
    return np.rint((images + 1) * 127.5).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def drawn():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FactorFaces, "render", blocks)
        patch.setattr(recipe, "NETS", {"training": ((4,), 3), "held_out": ((3,), 3)})
        yield


def tiny(preset, **changes):
    config = experiment.get_config(preset)
    small = {
        "data.image_size": 16, "data.shapes": 3, "data.layers": 4, "data.train": 64, "data.test": 16,
        "data.attributes": ("yaw", "mouth", "glasses", "skin", "hair"), "predictor.steps": 2, "predictor.batch_size": 8,
        "model.hidden": (8,), "train.batch_size": 16, "train.steps": 2, "train.devices": 2, "eval.images": 16,
        "eval.batch_size": 8,
    }  # fmt: skip
    with config.ignore_type():
        config.update_from_flattened_dict({**small, **changes})
    return config


def test_run(tmp_path):
    config = tiny("contrastive", **{"model.dtype": "bfloat16"})
    state, report = app.run(config, experiment.build, name="dystyle:contrastive", workdir=tmp_path, quiet=True)
    assert {"drift", "control_error", "true_drift", "perfect_drift", "identity", "pixel_error"} < report.metrics.keys()
    assert all(np.isfinite(value) for value in report.metrics.values())
    assert set(state.params) == {"editor"} and set(state.model_state) == {"held_out"}
    sheet, rows = report.images.values()
    assert sheet.shape == (6 * 16, 9 * 16, 3) and rows.shape == (3 * 16, 8 * 16, 3)
    same, step = sampling.newest_images("dystyle", experiment.build, experiment.sample, tmp_path, [3, 5])
    assert step == 2
    faces = FactorFaces(**config.data)
    np.testing.assert_allclose(same, faces.render(generation.latents([3, 5], faces.size)).astype(float), atol=1)
    moved = state.replace(params=jax.tree.map(lambda x: x + 0.3, state.params))
    edited = experiment.sample(config, moved, [3, 5], edits="yaw=-1,glasses=1")
    np.testing.assert_array_equal(edited[1:], experiment.sample(config, moved, [5], edits="yaw=-1,glasses=1"))
    assert np.abs(edited.astype(int) - same).max() > 20


def test_edits_of_words():
    faces = FactorFaces(attributes=["yaw", "glasses", "skin"])
    values, active = recipe.wish("skin=-0.25, glasses=.5", faces)
    assert values.tolist() == [0, 1, -0.25] and active.tolist() == [False, True, True]
    assert not recipe.wish("", faces)[1].any()
    for words in ("age=1", "yaw", "yaw=2", "yaw=nan", "yaw=1=2"):
        with pytest.raises(
            ValueError, match=rf"--edits: '{words}', expected ATTRIBUTE=NUMBER, -1 to 1, of yaw, glasses"
        ):
            recipe.wish(words, faces)


@pytest.mark.parametrize("name", ["directions", "projected"])
def test_run_of_directions(name):
    """Where the map to codes is a rotation, a code tells its factors: conditional directions change nothing else."""
    config = tiny(name, **{"data.slope": 1.0, "data.train": 500})
    state, report = app.run(config, experiment.build, quiet=True)
    assert state is None
    assert report.metrics["true_control_error"] < 0.3
    assert report.metrics["true_drift"] < (0.03 if name == "projected" else 0.2)


@pytest.fixture(scope="module")
def stylegan(tmp_path_factory):
    """The folder of a run of StyleGAN2, and its averaged generator."""
    net = recipe.Generator(resolution=4, latent_size=6, base=16, largest=4, mapping_layers=1).net
    params = {GENERATOR: jax.jit(net.init)(jax.random.key(3), jnp.zeros((1, 6)))["params"]}
    state = GanState.begin(jax.random.key(0), params, {}, 4)
    folder = tmp_path_factory.mktemp("stylegan")
    saver = checkpoint.Checkpointer(folder / "checkpoints", 1, 0.0)
    saver.save(state, iter(()), checkpoint.Progress(step=0))
    saver.close()
    return str(folder), params[GENERATOR]


def test_run_with_a_generator(stylegan):
    """Codes of a trained StyleGAN2, with predictors of rendered faces before it."""
    changes = {"resolution": 4, "latent_size": 6, "base": 16, "largest": 4, "mapping_layers": 1}
    changes = {f"generator.{name}": value for name, value in changes.items()}
    changes |= {"generator.workdir": stylegan[0], "data.image_size": 8, "data.layers": 2}
    config = tiny("gpu", **changes)
    made = experiment.build(config)
    state = jax.jit(made.init)(jax.random.key(0), made.prepare())
    assert {"training", "held_out", "generator"} == state.model_state.keys()
    jax.tree.map(np.testing.assert_array_equal, state.model_state["generator"]["params"], stylegan[1])
    metrics = made.evaluate(state).metrics
    assert metrics["drift"] == 0 and metrics["kept"] == 1 and "true_drift" not in metrics
    assert metrics["control_error"] > 0 and metrics["identity"] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"holds \(4, 4, 4\) as .*const: expected \(4, 4, 2\), of StyleGAN2"):
        experiment.build(tiny("gpu", **{**changes, "generator.largest": 2})).prepare()
    with pytest.raises(ValueError, match=r"data.layers is 5: expected 2, the generator's"):
        experiment.build(tiny("gpu", **{**changes, "data.layers": 5}))
    with pytest.raises(ValueError, match=r"generator.workdir is empty: expected a finished run"):
        experiment.build(tiny("gpu", **{**changes, "generator.workdir": ""})).prepare()


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_presets(preset):
    config = experiment.get_config(preset)
    made = experiment.build(config)
    if made.train_step is None:
        assert preset in ("directions", "projected")
        return
    costs = dry_run(made, Options(**config.train))
    expected = {"gpu": 52_556_800 + 10 * 788_480, "ffhq": 94_602_240 + 18 * 788_480}
    layers, width = config.data.layers, config.generator.latent_size
    if preset in expected:
        assert (layers, width) == ({"gpu": 10, "ffhq": 18}[preset], 512)
        assert costs["parameters"] == expected[preset]
    else:
        assert costs["parameters"] == pytest.approx(264_960, rel=0.1)
