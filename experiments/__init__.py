"""One program for every paper: `python -m experiments.NAME`."""

import os
import sys

# glibc reads this when a process starts. With huge pages a CPU spends up to two fifths less on a small network's step.
if sys.platform == "linux" and sys.argv[0] == "-m" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
