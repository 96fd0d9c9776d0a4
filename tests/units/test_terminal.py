"""What a remote program has set on the terminal, and what undoes it."""

from __future__ import annotations

import pytest

import thopters


@pytest.mark.parametrize(
    ("shown", "undone"),
    [
        (b"\x1b[>1u", b"\x1b[<1u\x1b[<1u"),
        (b"\x1b[>1u\x1b[>3u\x1b[<u", b"\x1b[<1u\x1b[<1u"),
        (b"\x1b[>1u\x1b[<9u", b""),
        (b"\x1b[=5u", b"\x1b[=0u"),
        (b"\x1b[=5;1u\x1b[=0u", b""),
        (b"\x1b[>4;2m", b"\x1b[>4m"),
        (b"\x1b[>4;2m\x1b[>4;0m", b""),
        (b"\x1b[>1u\x1b[?1049h", b"\x1b[<1u\x1b[?1049l\x1b[<1u"),
    ],
)
@pytest.mark.parametrize("cut", range(4))
def test_ways_of_sending_keys_are_undone(shown: bytes, undone: bytes, cut: int) -> None:
    modes = thopters.ShownModes()
    for piece in (shown[:cut], shown[cut:]):
        modes.take(piece)
    assert modes.undo() == (undone + b"\x1b>\x1b[m" if undone else b"")
    assert modes.undo() == b""
