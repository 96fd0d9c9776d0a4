"""File systems that lack something, for a child process: calls of the C library that fail there.

A library is compiled and loaded before the C library (LD_PRELOAD); where that can't be done, the
test is skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# What each call says instead of doing its work, and None where it does nothing and is content
SOURCE = """\
#include <errno.h>
#include <sys/types.h>
#define SAYS(code) { if (code) { errno = code; return -1; } return 0; }
int chmod(const char *path, mode_t mode) SAYS(CHMOD)
int fchmod(int fd, mode_t mode) SAYS(CHMOD)
int fchmodat(int folder, const char *path, mode_t mode, int flags) SAYS(CHMOD)
#ifdef FLOCK
int flock(int fd, int operation) SAYS(FLOCK)
#endif
"""


def lacking(folder: Path, *, modes: str = "0", locks: str = "") -> dict[str, str]:
    """Return the variables that give a child a file system without modes, or without locks.

    `modes` and `locks` are names of errors in C; "0" is a success that changes nothing, and without
    `locks` there are some.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no library can be put before the C library here")
    source, library = folder / "lacking.c", folder / "lacking.so"
    source.write_text(SOURCE)
    defined = [f"-DCHMOD={modes}", *([f"-DFLOCK={locks}"] if locks else [])]
    argv = [compiler, "-shared", "-fPIC", *defined, "-o", str(library), str(source)]
    subprocess.run(argv, check=True, capture_output=True)
    library.chmod(0o755)
    return {"LD_PRELOAD": os.fspath(library)}
