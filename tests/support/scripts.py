"""What is sent to a sprite, run as the sprite runs it: in real bash, in a made-up home."""

from __future__ import annotations

import subprocess
from pathlib import Path

import thopters


def run_script(
    home: Path, script: bytes, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run what is sent to a sprite as the sprite runs it."""
    base = {"HOME": str(home), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["bash", "-c", thopters.BOOTSTRAP],
        input=script,
        env=base | (environ or {}),
        cwd=home,
        capture_output=True,
        timeout=60,
    )
