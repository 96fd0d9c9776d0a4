"""For how long a connection keeps its sprite awake, and what stands in a Host block."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from support.ssh import needs_ssh
from support.units import FakeClock

import thopters


def minutes_until_over(
    watch: thopters.SshWatch, clock: FakeClock, size: int, every_s: float
) -> float:
    """Let so many bytes go through at a time, and return after how many minutes it is over."""
    began = clock.now
    while not watch.verdict():
        watch.note(size)
        clock.now += every_s
        assert clock.now - began < 100 * 3600
    return (clock.now - began) / 60


def test_a_connection_is_over_when_hardly_anything_went_through_it() -> None:
    """An editor's pings, and nothing at all, are the same; so is work that goes on for a day."""
    rows = [
        (300, 5.0, 15, 17),  # 3,600 bytes a minute
        (0, 60.0, 15, 17),
        (1000, 5.0, 480, 481),  # 12,000: at most eight hours
        (5000, 600.0, 480, 481),  # a burst every ten minutes
        (5000, 1000.0, 15, 18),
    ]
    for size, every_s, least, most in rows:
        clock = FakeClock()
        watch = thopters.SshWatch(clock, 900.0)
        watch.note(6000)  # the keys and the login
        assert least <= minutes_until_over(watch, clock, size, every_s) <= most, (size, every_s)
    clock = FakeClock()
    assert 480 <= minutes_until_over(thopters.SshWatch(clock, None), clock, 0, 60.0) <= 481
    assert thopters.SshWatch(clock, 10.0).verdict() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (900, "15 minutes"),
        (28800, "8 hours"),
        (3600, "1 hour"),
        (90, "90 seconds"),
        (0.5, "0.5 seconds"),
    ],
)
def test_a_span_in_words(seconds: float, text: str) -> None:
    assert thopters.format_span(seconds) == text


ODD = ("a b", "50%d", "it's", "#1", "é", "a%%b", "~", "x$(id)")


@needs_ssh
@pytest.mark.parametrize("odd", ODD)
def test_a_block_is_read_by_ssh_and_by_us_as_it_was_meant(tmp_path: Path, odd: str) -> None:
    """Paths with what means something to ssh or to a shell, which is not run."""
    folder = tmp_path / odd
    folder.mkdir()
    printed = tmp_path / "printed"
    program = folder / "program"
    program.write_text(f'#!/bin/sh\nfor word; do echo "$word"; done > {printed}\n')
    program.chmod(0o755)
    host = thopters.SshHost(
        "dev", user="sprite", key=str(folder / "key"), api="https://x.example/a%20b", org=odd,
        identity="sprite-" + "0" * 36, limits=["--idle", "60"], program=[str(program)] * 2,
    )  # fmt: skip
    text = host.block(str(folder / "known"))
    (tmp_path / "config").write_text(text)
    include = tmp_path / "including"
    include.write_text(f"Include {thopters.ssh_quote(str(tmp_path / 'config'))}\n")
    done = subprocess.run(
        ["ssh", "-F", include, "-G", "dev.sprite"], capture_output=True, text=True, check=True
    )
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said["identityfile"] == thopters.ssh_unquote(thopters.ssh_quote(host.key)).replace(
        "%", "%%"
    )
    subprocess.run(["ssh", "-F", include, "dev.sprite"], capture_output=True, timeout=60)
    words = printed.read_text().splitlines()
    assert words == host.stdio()[1:]
    again = thopters.SshHost.from_block("dev", text)
    assert again and again.block(str(folder / "known")) == text
    assert (again.key, again.org, again.limits) == (host.key, odd, ["--idle", "60"])
    assert shlex.join(again.program) == shlex.join(host.program)


@pytest.mark.parametrize("path", ["/a\nb", '/a"b', "/a\\b", "/${HOME}/x", "/a*", "/[x]", "/a\x1bb"])
def test_a_path_that_ssh_can_not_be_told_is_refused(path: str) -> None:
    with pytest.raises(thopters.UsageError):
        thopters.ssh_quote(path)


@pytest.mark.parametrize(
    "text", ["", "Host dev.sprite\n", "Host dev.sprite\n  ProxyCommand x 'y\n"]
)
def test_a_block_that_is_not_ours_is_none(text: str) -> None:
    assert thopters.SshHost.from_block("dev", text) is None


@pytest.mark.parametrize(
    "out",
    [b"", b"user x y\nssh-ed25519 AAAA", b"user a;b\nssh-ed25519 " + b"A" * 68,
     b"user sprite\nssh-rsa " + b"A" * 68, b"user sprite\nssh-ed25519 " + b"A" * 68 + b"\nHost *"],
)  # fmt: skip
def test_what_a_sprite_says_of_itself_gets_into_no_file_unseen(out: bytes) -> None:
    with pytest.raises(thopters.NoAnswerError):
        thopters.SshThere(out)
