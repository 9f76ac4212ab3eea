import mmap
import time

import jax.numpy as jnp
import pytest

from benchmarks.compare import MIB, compare, peak_memory


def test_contenders_take_turns_and_ratios_refer_to_the_first(capsys):
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.04)

    def quick():
        calls.append("quick")
        time.sleep(0.01)
        return jnp.ones(3), "text"

    results = compare("sleeping", {"slow": slow, "quick": quick}, repeats=3, warmup=2, unit="images", amount=8)
    assert calls[:4] == ["slow", "slow", "quick", "quick"]  # warm-up
    assert calls[4:6] == ["slow", "quick"]  # memory
    assert calls[6:] == ["slow", "quick", "quick", "slow", "slow", "quick"]
    assert len(results["slow"].seconds) == 3 and results["slow"].ratio == 1
    assert results["quick"].ratio == pytest.approx(results["slow"].median / results["quick"].median)
    assert results["quick"].ratio > 1.5
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["slow", "quick"]
    assert all(line.endswith("images/s") for line in lines)


def test_peak_memory_sees_what_is_freed_again():
    def grow():
        with mmap.mmap(-1, 64 * MIB) as fresh:  # not what an earlier test has left to the allocator
            fresh.write(bytes(64 * MIB))

    assert peak_memory(grow) > 50 * MIB


def test_nothing_to_compare_gets_a_sentence():
    with pytest.raises(ValueError, match="0 contenders, 5 repeats; expected one or more of each"):
        compare("nothing", {})
