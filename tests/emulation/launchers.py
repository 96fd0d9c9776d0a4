"""Programs under a name of their own, for a folder of PATH."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SPRITE_PROGRAM = (sys.executable, str(Path(__file__).with_name("sprite_program.py")))


def write_launcher(folder: Path, name: str, argv: Sequence[str]) -> None:
    """Make `name` in `folder` a program that becomes `argv` and passes its words on."""
    folder.mkdir(exist_ok=True)
    launcher = folder / name
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
    launcher.chmod(0o755)
