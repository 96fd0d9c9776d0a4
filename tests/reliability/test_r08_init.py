"""R08-R11: the keys arrive in a sprite as they are, for every way in, and damage nothing.

The work is done by the helpers of support/keys.py; here are the figures of the scorecard.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from emulation import Emulator
from support.configs import write
from support.keys import (
    BLOCK,
    SEEN,
    SHOW,
    WAYS,
    WITHOUT,
    Settings,
    answer_of,
    as_text,
    carry,
    failed,
    homes,
    limit_files,
    run_init,
    tree,
    values_of,
)
from support.program import Thopters
from support.words import nasty_words


def test_r08_random_values_arrive_and_none_is_run(home: Path) -> None:
    carry(home, nasty_words(random.randrange(1 << 30), 500))


@pytest.mark.slow
def test_r08_a_hundred_thousand_values_arrive_and_none_is_run(home: Path) -> None:
    carry(home, nasty_words(random.randrange(1 << 30), 100_000))


def test_r08_random_values_arrive_through_the_whole_program(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    words = [word for word in nasty_words(random.randrange(1 << 30), 500) if word]
    names = [f"V{number}" for number in range(len(words))]
    write(config, {"secrets": dict(zip(names, map(as_text, words), strict=True))})
    sprite = emulator.add_sprite("dev", status="running")
    assert thopters("init", "dev").code == 0
    assert values_of(sprite.home, names) == words


def test_r09_init_three_times_in_odd_homes(tmp_path: Path) -> None:
    first = random.randrange(1 << 30)
    homes(tmp_path, range(first, first + 3))


@pytest.mark.slow
def test_r09_init_three_times_in_two_hundred_odd_homes(tmp_path: Path) -> None:
    first = random.randrange(1 << 30)
    homes(tmp_path, range(first, first + 200))


IN_TERMINAL = [*WITHOUT, "script", "-qec"]


@pytest.mark.parametrize("way", ["a program", "bash -lc", "bash -ic"])
def test_r10_a_shell_sees_every_value(
    thopters: Thopters, emulator: Emulator, config: Path, way: str
) -> None:
    emulator.add_sprite("dev", status="running")
    assert thopters("init", "dev").code == 0
    done = thopters("exec", "dev", "--", *WAYS[way])
    assert (done.code, done.out) == (0, answer_of(way))


def test_r10_a_terminal_sees_every_value(
    thopters: Thopters, emulator: Emulator, config: Path, console: None
) -> None:
    emulator.add_sprite("dev", status="running")
    assert thopters("init", "dev").code == 0
    login = thopters("shell", "dev", stdin=SHOW.encode() + b"; exit\n")
    assert SEEN in login.out, login
    if not shutil.which("script"):
        pytest.skip("script is not installed, so there is no second terminal")
    typed = SHOW.encode() + b"; exit\n"
    done = thopters("exec", "dev", "-i", "--", *IN_TERMINAL, "bash -i", "/dev/null", stdin=typed)
    assert SEEN in done.out, done


@pytest.mark.parametrize("name", [".bashrc", ".profile"])
@pytest.mark.parametrize("flaw", ["broken block", "read-only", "a folder"])
def test_r11_a_start_up_file_that_can_not_be_changed_is_named(
    thopters: Thopters, emulator: Emulator, config: Path, name: str, flaw: str
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    file = sprite.home / name
    if flaw == "broken block":
        file.write_bytes(b"# mine\n" + BLOCK[:-20])
    if flaw == "a folder":
        file.unlink()
        file.mkdir()
    sprite.machine.own(sprite.home)
    if flaw == "read-only":
        file.chmod(0o444)
    before = {place: tree(sprite.home)[place] for place in (".bashrc", ".profile")}
    done = thopters("init", "dev")
    assert (done.code, done.out) == (1, "")
    assert "thopters: error: cannot put all keys into dev: ~/" + name in done.err
    assert "thopters init dev" in done.err
    assert tree(sprite.home)[name] == before[name]
    assert not [left for left in os.listdir(sprite.home) if "new" in left]


def test_r11_a_full_disk_is_said_and_leaves_every_byte(home: Path) -> None:
    """However little fits: the file that did not is named, and is as it was."""
    contents = {".bashrc": b"# mine\n" * 60, ".profile": b"# mine, too\n" * 40}
    for name, content in contents.items():
        (home / name).write_bytes(content)
    for size in (1, 100, 400, 520, 560):
        said = failed(run_init(home, Settings({"A": "x" * 300}), preexec_fn=limit_files(size)))
        named = [name for name in (*contents, ".thopters/env") if f"fail ~/{name} can't be" in said]
        assert named, (size, said)
        for name, content in contents.items():
            is_left = name in named or ".thopters/env" in named
            expected = content if is_left else BLOCK + content
            assert (home / name).read_bytes() == expected, (size, name)
