"""`python -m experiments`, the list of all systems."""

import subprocess
import sys


def test_the_list_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['list']; from experiments import __main__ as catalog; catalog.main(); "
        "print([m for m in ('jax', 'numpy', 'ml_collections', 'facejax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *systems, total, heavy = done.stdout.splitlines()
    assert len(systems) == 66
    assert "of 66 built" in total
    assert heavy == "[]"


def test_a_dry_run_of_a_method_without_training_is_refused():
    command = [sys.executable, "-m", "experiments.ogmc", "--dry_run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("--dry_run: this preset trains nothing: expected one that does")
