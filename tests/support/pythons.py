"""Where the other Pythons of this machine are, and the program as each of them keeps it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SEARCH_PATH = os.environ.get("PATH", os.defpath)  # taken before any fixture seals it


def real_home() -> Path:
    """Return the home of the password file, whatever HOME says in a test."""
    if sys.platform == "win32":
        return Path.home()
    import pwd

    return Path(pwd.getpwuid(os.getuid()).pw_dir)


@functools.cache
def find_python(version: str) -> str | None:
    """Return the path of a working interpreter such as "3.9", or None."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    # pyenv's own first: its shims on PATH are slow, and fail where the version is not selected
    installed = real_home().glob(f".pyenv/versions/{version}.*/bin/python")
    candidates = [str(path) for path in sorted(installed, reverse=True)]
    on_path = shutil.which(f"python{version}", path=SEARCH_PATH)
    if on_path:
        candidates.append(on_path)
    probe = "import sys; sys.stdout.write('%d.%d %s' % (sys.version_info[:2] + (sys.executable,)))"
    for candidate in candidates:
        try:
            done = subprocess.run(
                [candidate, "-c", probe], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        found, _, executable = done.stdout.partition(" ")
        if done.returncode == 0 and found == version:
            return executable or candidate
    return None


@functools.cache
def compiled_by(python: str) -> Path:
    """Return the program as that Python keeps it; to compile it for each run costs as much as it.

    It lies where Python looks for it when the program is imported.
    """
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import thopters; print(thopters.__cached__)"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    argv = [python, "-S", "-c", code, str(ROOT)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    path = Path(done.stdout.strip())
    assert path.exists(), f"{python} cannot keep what it has compiled"
    return path
