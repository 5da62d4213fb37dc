"""Memory pages of 2 MiB for commands that compute.

XLA takes one block of memory for the intermediate results of a step and returns it after the step. In pages of 4 KiB
the kernel then clears each of them anew: 180,000 page faults and a third of the CPU time of BERT-mini's step. The GNU C
library asks for large pages if GLIBC_TUNABLES says so when a process starts.
"""

import os
import sys

TUNABLE = "glibc.malloc.hugetlb=1"
SINCE = (2, 35)
"""version of glibc that has the tunable"""
COMMANDS = ("train", "evaluate", "predict", "generate", "prompt", "features", "sweep", "tune", "serve")


def restart_with_huge_pages() -> None:
    """Starts this command again with large pages, once.

    Does nothing where GLIBC_TUNABLES is set, glibc has no large pages, or the program came from standard input.
    """
    computes = any(word in COMMANDS for word in sys.argv[1:2])
    if not computes or "GLIBC_TUNABLES" in os.environ or glibc_version() < SINCE or sys.argv[0] in ("", "-"):
        return
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": TUNABLE})
    except OSError:  # not worth an error: the command goes on as it is
        pass


def glibc_version() -> tuple[int, ...]:
    """Such as (2, 36); () with another C library."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return tuple(map(int, version.split("."))) if name == "glibc" else ()
    except (AttributeError, ValueError, OSError):  # not known to this system
        return ()
