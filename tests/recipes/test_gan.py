"""Adversarial steps and growing runs: turns, averages, stages beside the authors' rule, restarts, resume, faults."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from facejax.data.generation import GenerationImages
from facejax.evaluate.generation import GenerationProtocol
from facejax.ops import adversarial
from facejax.recipes import gan
from facejax.recipes.gan import DISCRIMINATOR, GENERATOR, Adam, Gan, GanState, Growth, Play, Progressive
from facejax.train import Mean, Options, Report, RunError, parallel, train, warm_start


def authors_schedule(growth, resolution, batch_size, rate, steps):
    """Per step: resolution, weight of the new layers, batch size, rate, optimizers reset; by the code's formulas."""
    top, first, rows, shown, last = np.log2(resolution), np.log2(growth.first), [], 0, None
    sizes, rates = growth.batch_sizes, growth.rates
    for _ in range(steps):
        phase, within = divmod(shown, growth.stable + growth.fading)
        level = top - first - phase
        if growth.fading:
            level -= max(within - growth.stable, 0) / growth.fading
        level = max(level, 0.0)
        stage = int(top - np.floor(level) - first)
        reset = last is not None and (np.floor(level) != np.floor(last) or np.ceil(level) != np.ceil(last))
        size = sizes[stage] if sizes else batch_size
        rows.append(
            (growth.first << stage, 1 - (level - np.floor(level)), size, rates[stage] if rates else rate, reset)
        )
        shown, last = shown + size, level
    return rows


@pytest.mark.parametrize(
    ("growth", "resolution"),
    [
        (Growth(4, 60, 40, (16, 12, 7, 4)), 32),
        (Growth(4, 64, 32, (), (1.0, 2.0, 3.0)), 16),
        (Growth(8, 50, 0), 32),
        (Growth(16), 16),
    ],
)
def test_stages_follow_the_authors_rule(growth, resolution):
    stages = growth.stages(resolution, 16, 0.5)
    for done, (size, alpha, batch, rate, reset) in enumerate(authors_schedule(growth, resolution, 16, 0.5, 80)):
        stage = [s for s in stages if s.begin <= done][-1]
        assert (stage.resolution, stage.batch_size, stage.rate) == (size, batch, rate)
        np.testing.assert_allclose(stage.alpha(jnp.asarray(done)), alpha, atol=1e-6)
        assert (bool(stage.faded(jnp.asarray(done))) or 0 < done == stage.begin) == reset, done


def test_bad_growth():
    with pytest.raises(ValueError, match=r"growth.first is 64: expected at most the 32 pixels of the data"):
        Growth(64).stages(32, 16, 1.0)
    with pytest.raises(ValueError, match=r"growth.first is 12: expected a power of two"):
        Growth(12).stages(32, 16, 1.0)
    with pytest.raises(ValueError, match=r"growth.rates has 2 values: expected 4, for 4 pixels up"):
        Growth(4, rates=(1.0, 2.0)).stages(32, 16, 1.0)
    with pytest.raises(ValueError, match=r"growth.stable is 8, growth.fading -4: expected 0 or more"):
        Growth(4, 8, -4).stages(8, 16, 1.0)
    with pytest.raises(ValueError, match=r"growth.batch_sizes is \(8, 0\): expected 1 or more of each"):
        Growth(4, 8, 4, (8, 0)).stages(8, 16, 1.0)


def test_lazy_regularisation():
    """StyleGAN2: the generator's regulariser every 4th step, the discriminator's every 16th."""
    choose = gan.lazy_choice({"r1": 16, "path": 4})
    assert [choose(n) for n in (1, 2, 4, 5, 16, 17)] == ["r1+path", "plain", "plain", "path", "plain", "r1+path"]
    assert gan.lazy_names({"r1": 16, "path": 4}) == {"r1+path", "path", "plain"}
    assert gan.lazy_names({"r1": 2, "path": 3}) == {"r1+path", "r1", "path", "plain"}
    slower = Adam(0.002, 0.0, 0.99).lazy(4)
    np.testing.assert_allclose([slower.rate, slower.b1, slower.b2], [0.0016, 0.0, 0.99199], rtol=1e-5)
    np.testing.assert_allclose(Adam(0.002).lazy(16).b2, 0.99059, rtol=1e-5)


def test_decay_of_the_average():
    assert gan.average_decay(0.999, 16) == 0.999
    np.testing.assert_allclose(gan.average_decay(10_000, 32), 0.99778, rtol=1e-5)


def test_layers_are_added_at_any_depth():
    new = {"a": {"x": 1, "y": 2}, "b": {"z": {"v": 3}}, "c": 4}
    assert gan.merged(new, {"a": {"x": 10}, "c": 40}) == {"a": {"x": 10, "y": 2}, "b": {"z": {"v": 3}}, "c": 40}
    assert new["a"] == {"x": 1, "y": 2}


def draw(average, model_state, latents, resolution, alpha):
    """A colour for every latent vector."""
    return jnp.broadcast_to((latents @ average["w"])[:, None, None], (len(latents), resolution, resolution, 3))


def score(own, images):
    return jnp.sum(images.mean((1, 2)) * own["v"], -1)


def plays(resolution, alpha):
    def images(params, real, rng):
        return draw(params[GENERATOR], None, jax.random.normal(rng, (len(real), 2)), real.shape[1], alpha)

    def discriminate(params, model_state, batch, rng):
        scores = [score(params[DISCRIMINATOR], x) for x in (batch["image"], images(params, batch["image"], rng))]
        losses = adversarial.logistic_discriminator_loss(*scores)
        return losses.mean(), (model_state, {"discriminator_loss": Mean.of(losses)})

    def generate(params, model_state, batch, rng):
        scores = score(params[DISCRIMINATOR], images(params, batch["image"], rng))
        losses = adversarial.logistic_generator_loss(scores)
        return losses.mean(), ({"turns": model_state["turns"] + 1}, {"generator_loss": Mean.of(losses)})

    return [Play(DISCRIMINATOR, discriminate), Play(GENERATOR, generate)]


def init(rng, resolution):
    """The layers of a resolution have no use but to appear."""
    layers = {f"layer{r}": jax.random.normal(rng, (r,)) for r in (8, 16) if r <= resolution}
    params = {GENERATOR: {"w": jax.random.normal(rng, (2, 3)), **layers}, DISCRIMINATOR: {"v": jnp.ones(3), **layers}}
    return params, {"turns": jnp.zeros(())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, picture_folder):
    rng = np.random.default_rng(0)
    return picture_folder(tmp_path_factory.mktemp("grown"), {"a": rng.integers(0, 256, (24, 16, 16, 3))})


def run(folder, **changes):
    made = Progressive(
        Gan(2, init, plays, draw),
        GenerationImages("folder", str(folder), image_size=16, threads=1),
        Growth(4, 24, 16, (8, 8, 4)),
        Adam(0.1),
        Options(batch_size=8, steps=14, log_every=100, save_every=1, save_seconds=0.0, devices=2),
        GenerationProtocol(images=12, batch_size=8),
        average=0.5,
        faded=lambda images, alpha: alpha * images,
        seed=0,
    )
    return dataclasses.replace(made, **changes)


def test_players_take_turns():
    """The generator's loss sees the discriminator's update, the average the generator's."""
    state = GanState.begin(jax.random.key(3), *init(jax.random.key(0), 4), 4)
    rates = {DISCRIMINATOR: optax.sgd(0.5), GENERATOR: optax.sgd(0.25)}
    state = state.replace(opt_state={name: tx.init(state.params[name]) for name, tx in rates.items()})
    batch = {"image": np.random.default_rng(0).normal(size=(8, 4, 4, 3)).astype(np.float32)}
    rng = jax.random.key(1)

    def step(microbatches):
        mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
        given = lambda state: gan.play(  # noqa: E731
            state, batch, rng, plays(4, 1.0), rates, decay=0.75, microbatches=microbatches
        )
        everywhere = jax.sharding.PartitionSpec()
        return jax.jit(jax.shard_map(given, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False))(
            state
        )

    found, metrics = step(1)
    params, model_state = dict(state.params), state.model_state
    for number, (player, loss) in enumerate(plays(4, 1.0)):
        key = jax.random.fold_in(rng, number)

        def own(own, player=player, loss=loss, key=key):
            return loss({**params, player: own}, model_state, batch, key)[0]

        slope, rate = jax.grad(own)(params[player]), {DISCRIMINATOR: 0.5, GENERATOR: 0.25}[player]
        params[player] = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params[player], slope)
    chex.assert_trees_all_close(found.params, params, rtol=1e-5)
    average = 0.75 * state.params[GENERATOR]["w"] + 0.25 * params[GENERATOR]["w"]
    np.testing.assert_allclose(found.ema[GENERATOR]["w"], average, rtol=1e-5)
    assert found.ema.keys() == {GENERATOR} and metrics.keys() == {"discriminator_loss", "generator_loss"}
    assert (found.step, found.model_state["turns"]) == (1, 1)
    sliced, metrics = step(2)
    assert sliced.model_state["turns"] == 2 and metrics["generator_loss"].count == 8


def test_growth_end_to_end(folder, tmp_path):
    """Counts of Adam show its restarts; each resolution is traced once; the strip fills; a resumed run is the same."""
    made, traces = run(folder), []

    def counted(resolution, alpha):
        traces.append(resolution)
        return plays(resolution, alpha)

    experiment = dataclasses.replace(made, gan=dataclasses.replace(made.gan, plays=counted)).experiment()
    counts = []

    def watched(name, step):
        def run_step(state, batch, rng):
            state, metrics = step(state, batch, rng)
            return state, metrics | {"count": Mean.of(state.opt_state[GENERATOR][0].count)}

        return run_step

    steps = {name: watched(name, step) for name, step in experiment.train_step.items()}
    executor = parallel.make_executor(dataclasses.replace(experiment, train_step=steps), "shard_map", 2)
    state, data = executor.init(5), experiment.train_data()
    for number in range(1, 15):
        name = experiment.step_name(number)
        state = executor.grow(state, number)
        state, metrics = executor.step(state, executor.put(next(data)), name)
        counts.append((name, round(float(metrics["alpha"].total / 2), 3), int(metrics["count"].total / 2)))
    data.close()
    assert traces == [4, 8, 16]
    assert counts == [
        ("4x4", 1, 1), ("4x4", 1, 2), ("4x4", 1, 3), ("4x4", 1, 4),
        ("8x8", 0.5, 1), ("8x8", 1, 1), ("8x8", 1, 2), ("8x8", 1, 3), ("8x8", 1, 4),
        ("16x16", 0.5, 1), ("16x16", 0.75, 2), ("16x16", 1, 1), ("16x16", 1, 2), ("16x16", 1, 3),
    ]  # fmt: skip
    frames = np.asarray(state.frames)
    assert frames.shape == (8, 16, 16, 16, 3) and (frames.std((1, 2, 3, 4)) > 0).all()
    layers = init(jax.random.fold_in(jax.random.key(5), 16), 16)[0][GENERATOR]
    for tree in (state.params[GENERATOR], state.ema[GENERATOR]):
        np.testing.assert_array_equal(tree["layer16"], layers["layer16"])
        assert tree.keys() == layers.keys() and (tree["layer8"] != layers["layer8"]).all()
    sheet = made.sample(executor.local(state), range(16))
    np.testing.assert_array_equal(frames[-1], sheet)

    experiment = dataclasses.replace(experiment, evaluate=lambda state: Report({}))
    whole, _ = train(experiment, made.options, seed=5, quiet=True)
    chex.assert_trees_all_equal(whole.params, executor.local(state).params)
    for steps in (5, 11, 14):
        options = dataclasses.replace(made.options, steps=steps)
        resumed, _ = train(experiment, options, seed=5, workdir=tmp_path, quiet=True)
    chex.assert_trees_all_equal(resumed.replace(rng=0), whole.replace(rng=0))
    smaller = run(folder, data=dataclasses.replace(made.data, image_size=8), growth=Growth(4, 24, 16))
    with pytest.raises(ValueError, match=r"checkpoint 14 holds another state: ema.generator.layer16, "):
        warm_start.newest(tmp_path, smaller.experiment())


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path):
    def broken(resolution, alpha):
        discriminate, generate = plays(resolution, alpha)

        def exploded(params, model_state, batch, rng):
            loss, (model_state, _) = discriminate.loss(params, model_state, batch, rng)
            factor = jnp.where(model_state["turns"] == 3, jnp.nan, 1)
            return loss * factor, (model_state, {"discriminator_loss": Mean.of(loss * factor)})

        return [Play(DISCRIMINATOR, exploded), generate]

    made = run(folder, gan=Gan(2, init, broken, draw))
    with pytest.raises(RunError, match=r"step 4: discriminator_loss is nan; the last good checkpoint is .*3"):
        train(made.experiment(), made.options, seed=0, workdir=tmp_path, quiet=True)


def test_what_does_not_fit_is_refused_before_training(folder):
    with pytest.raises(ValueError, match="a batch at 16x16 has 5 images: expected a multiple of 2 devices"):
        run(folder, growth=Growth(4, 24, 16, (8, 8, 5))).experiment().train_data()
    with pytest.raises(ValueError, match="24 examples, fewer than one batch of 32"):
        run(folder, growth=Growth(4, 24, 16, (8, 32, 4))).experiment().train_data()
