"""Core-seconds of every test file, its fixtures and subprocesses included: `pytest --cost`, and always under CI."""

import collections
import os

import pytest

_spent = collections.Counter()
_last = 0.0


def _core_seconds():
    return sum(os.times()[:4])  # User and system time of this process and of its children that ended.


def pytest_addoption(parser):
    parser.addoption("--cost", action="store_true", default="CI" in os.environ, help="core-seconds of every test file")


def pytest_runtest_logstart():
    global _last
    _last = _core_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    global _last
    report = yield
    now = _core_seconds()
    report.core_seconds, _last = now - _last, now  # Attributes of a report travel from xdist's workers.
    return report


def pytest_runtest_logreport(report):
    _spent[report.nodeid.partition("::")[0]] += getattr(report, "core_seconds", 0)  # None from a crashed worker.


def pytest_terminal_summary(terminalreporter, config):
    if config.option.cost:
        terminalreporter.section("core-seconds of every file")
        for name, seconds in [*_spent.most_common(), ("sum", _spent.total())]:
            terminalreporter.write_line(f"{seconds:9.1f}  {name}")
