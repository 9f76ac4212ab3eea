"""Eight simulated devices, quick compilation and a shared compilation cache for every test and its subprocesses.

Of several workers (`pytest -n 2`) one gets all tests of a file, so that a module's fixtures are made once.
"""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "facejax-test-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()  # Grain reads absl flags.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def _compiled_functions_are_let_go():
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Folder of real data and published weights: $FACEJAX_TEST_DATA or ../shared/data beside the checkout."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    root = pathlib.Path(os.environ.get("FACEJAX_TEST_DATA", default))
    if not root.is_dir():
        pytest.skip(f"no test data at {root}: set FACEJAX_TEST_DATA")
    return root
