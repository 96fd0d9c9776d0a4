"""Waiting for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 60.0


def until(
    condition: Callable[[], object], what: str = "it comes about", limit_s: float = LIMIT_S
) -> None:
    """Wait until something is so."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.01)
