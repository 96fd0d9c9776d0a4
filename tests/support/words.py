"""Words and names that make trouble: for a shell, for a path, for a terminal."""

from __future__ import annotations

import random


def nasty_words(seed: int, count: int) -> list[bytes]:
    """Return byte strings without NUL: known troublemakers, random ones and a long one."""
    rng = random.Random(seed)
    known = (
        b"|-|--|-n|-e|-c|'|''|'''|\"|\\|\\\\|\\'|'\\''|\\n|\\0|$|$HOME|${HOME}|$(id)|`id`|$'a'|$\"a\""
        b"|!|!!|!$|#|# a|~|~root|*|?|[a-z]|{a,b}|{1..3}|a=b|=|%|%s|if|;|&|&&|>|<|<<E|(|)"
        b"|a b| |  a  |\t|\n|\n\n|a\n|\na|\r\n|\r"
        b"|\x01|\x01\x01|\x7f|\x80|\x81|\x88|\xff|\xc3|\xe2'|\xe2\\|\xc3\xa9"
    ).split(b"|")
    every = bytes(range(1, 256))
    trouble = b"'\"\\$`!\n\r\t -~*?[]{}()<>|&;#=%\x01\x7f\x80\x81\x82\x83\x88\xc3\xa9\xe2\xff"
    made = [
        bytes(rng.choices(rng.choice((every, trouble)), k=rng.randrange(1, 30)))
        for _ in range(count)
    ]
    return [*known, b"|", every, *made, rng.randbytes(100_000).replace(b"\0", b"'")]


# What could bend a path, or be taken for an option
TWISTED = (
    "",
    ".",
    "..",
    "../a",
    "a/b",
    "/",
    "a\\b",
    "a b",
    " a",
    "a\n",
    "\na",
    "a\0",
    "a?b",
    "a#b",
    "a%2fb",
    "a;b",
    "a*",
    "é",
    "\u0661",
    "-",
    "-a",
    "--yes",
    "a\u202e",
    "\udcff",
)
