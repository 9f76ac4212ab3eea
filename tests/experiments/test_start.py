"""How a program starts: with huge pages, unless its user says otherwise."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.smoke

ASK = "import os, sys; sys.argv[0] = {!r}; import experiments; print(os.environ.get('GLIBC_TUNABLES'))"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        ("-m", {}, "glibc.malloc.hugetlb=1"),
        ("-m", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}, None),
        ("-c", {}, None),
    ],
)
def test_a_program_starts_again_with_huge_pages_and_an_import_does_not(program, given, expected):
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | given
    command = [sys.executable, "-c", ASK.format(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected or given.get("GLIBC_TUNABLES"))
