"""The archive and its builder, run by the Pythons of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.program import ROOT
from support.pythons import SEARCH_PATH, find_python

SOURCES = ("build_pyz.py", "thopters.py", "LICENSE")
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
TOO_OLD = ("2.7", "3.6", "3.7", "3.8", "3.9", "3.10")
SHEBANG = b"#!/usr/bin/env python3\n"
TIMEOUT_S = 60


def python(version: str) -> str:
    found = find_python(version)
    if found is None:
        pytest.skip(f"no Python {version} here")
    return found


def clean_env(**extra: str) -> dict[str, str]:
    """Return an environment in which no variable of the caller's steers Python."""
    kept = {name: os.environ[name] for name in ("SYSTEMROOT", "TEMP") if name in os.environ}
    home = os.path.join(os.sep, "nonexistent")
    return {**kept, "PATH": SEARCH_PATH, "HOME": home, "THOPTERS_CONFIG": home, **extra}


def run(
    *argv: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    umask: int = -1,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(arg) for arg in argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        cwd=cwd,
        env=clean_env() if env is None else env,
        umask=umask,
        timeout=TIMEOUT_S,
        check=False,
    )


def copy_sources(folder: Path, program: str | None = None) -> Path:
    folder.mkdir(parents=True)
    for name in SOURCES:
        shutil.copyfile(ROOT / name, folder / name)
    if program is not None:
        (folder / "thopters.py").write_text(program, encoding="utf-8", newline="\n")
    return folder


def build(folder: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, folder / "build_pyz.py", *args)


def plant(folder: Path, names: set[str], mark: Path) -> Path:
    """Make a folder of modules that each leave a mark when somebody imports them."""
    folder.mkdir()
    for name in names:
        text = f"open({str(mark)!r}, 'a').write({name!r} + ' ')\nraise SystemExit('evil')\n"
        (folder / f"{name}.py").write_text(text)
    return folder


def assert_greeting(done: subprocess.CompletedProcess[str], version: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert 1 <= done.stderr.count("\n") <= 2 and done.stderr.endswith("\n")
    assert "error: " in done.stderr and "Python 3.11 or newer" in done.stderr
    assert f" {version}." in done.stderr and "python3.12 " in done.stderr
    assert "Traceback" not in done.stderr
