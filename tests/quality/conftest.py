"""Settings with which every quality experiment runs whole in seconds, and fixtures that the tests share."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.train import Options, app
from facejax.train.dry_run import dry_run

SMALL = {
    "data.people": 6,
    "data.test_people": 6,
    "recogniser.steps": 2,
    "train.steps": 2,
    "train.devices": 1,
    "train.batch_size": 8,
}


@pytest.fixture(scope="module")
def configured(small_world):
    """("name:preset", **changes) -> the experiment's module, and its configuration made small."""

    def make(run, **changes):
        name, preset = run.split(":")
        module = importlib.import_module(f"experiments.{name}")
        config = module.get_config(preset)
        config.data.data_dir = str(small_world)
        config.update_from_flattened_dict({**SMALL, **changes})
        return module, config

    return make


@pytest.fixture(scope="module")
def smoke(configured):
    """Runs an experiment whole, made small: its state and report."""

    def run(name, **changes):
        module, config = configured(name, **changes)
        state, report = app.run(config, module.build, quiet=True)
        assert all(np.isfinite(value) for value in report.metrics.values()), report.metrics
        assert report.figures and report.images
        return state, report

    return run


@pytest.fixture(scope="module")
def split_raises(configured):
    """Checks that tracing raises a ValueError where a device gets a part of what belongs together."""

    def check(run, message, **changes):
        module, config = configured(run, **changes)
        with pytest.raises(ValueError, match=message):
            dry_run(module.build(config), Options(**config.train))

    return check


@pytest.fixture(scope="module")
def raises(configured):
    """Checks that an experiment raises a ValueError."""

    def check(run, message, **changes):
        module, config = configured(run, **changes)
        with pytest.raises(ValueError, match=message):
            app.run(config, module.build, quiet=True)

    return check


@pytest.fixture
def presets_trace():
    """Checks that the step of every preset of an experiment can be traced at its full size."""

    def check(name):
        module = importlib.import_module(f"experiments.{name}")
        assert module.CLAIM is not None
        for preset in module.PRESETS:
            config = module.get_config(preset)
            experiment = module.build(config)
            if experiment.train_step is not None:
                assert dry_run(experiment, Options(**config.train))["parameters"] > 0

    return check


@pytest.fixture
def count():
    """Parameters and batch statistics of a network for inputs of a shape."""

    def sizes(net, *shape, **options):
        found = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros(shape), **options))
        return [sum(x.size for x in jax.tree.leaves(found.get(part, {}))) for part in ("params", "batch_stats")]

    return sizes


@pytest.fixture
def unit_rows():
    """(generator, *shape) -> random vectors of unit length."""

    def draw(rng, *shape):
        x = rng.normal(size=shape)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    return draw
