"""R43: the archive is the same everywhere, is not to be led astray, and never runs in part.

The builds and the interpreters are those of support/archives.py.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from support.archives import (
    SHEBANG,
    SUPPORTED,
    TOO_OLD,
    assert_greeting,
    clean_env,
    copy_sources,
    plant,
    python,
    run,
)
from support.pythons import find_python


def test_r43_two_builds_by_every_python_are_one_file(tmp_path: Path, pyz: Path) -> None:
    hashes = {hashlib.sha256(pyz.read_bytes()).hexdigest()}
    interpreters = [found for found in map(find_python, SUPPORTED) if found]
    for number, interpreter in enumerate([sys.executable, *interpreters]):
        folder = copy_sources(tmp_path / str(number))
        for _ in range(2):
            done = run(interpreter, folder / "build_pyz.py")
            assert (done.returncode, done.stderr) == (0, "")
            hashes.add(hashlib.sha256((folder / "thopters.pyz").read_bytes()).hexdigest())
    assert len(hashes) == 1
    there = [version for version in SUPPORTED[:3] if find_python(version)]
    if len(there) < 3:
        pytest.skip(f"only {len(there)} of Python {', '.join(SUPPORTED[:3])} built it")


def test_r43_modules_that_lie_about_are_not_imported(tmp_path: Path, pyz: Path) -> None:
    mark = tmp_path / "mark"
    names = {"json", "ssl", "socket", "argparse", "urllib", "subprocess", "thopters", "signal"}
    evil = plant(tmp_path / "evil", names, mark)
    for cwd, python_path in ((evil, ""), (evil, "."), (tmp_path, "evil"), (tmp_path, str(evil))):
        env = clean_env(PYTHONPATH=python_path)
        for words, code in ((["--version"], 0), (["exec", "--help"], 0), (["config"], 0)):
            done = run(sys.executable, pyz, *words, cwd=cwd, env=env)
            assert done.returncode == code, done
        assert run(sys.executable, pyz, "list", cwd=cwd, env=env).returncode == 4  # no token
    assert not mark.exists()


@pytest.mark.parametrize("version", TOO_OLD)
def test_r43_an_old_python_greets(pyz: Path, version: str) -> None:
    assert_greeting(run(python(version), pyz, "list"), version)


def test_r43_a_truncated_archive_never_runs(tmp_path: Path, pyz: Path) -> None:
    data, cut = pyz.read_bytes(), tmp_path / "cut.pyz"
    first_line = len(SHEBANG)
    for tenth in range(10):
        cut.write_bytes(data[: max(first_line + 1, len(data) * tenth // 10)])
        done = run(sys.executable, "-S", cut, "--version")
        assert (done.returncode, done.stdout) == (1, ""), tenth
