"""What is said of a command line that is wrong, and help."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

import thopters


def test_no_help_is_coloured_by_python() -> None:
    """As it would be since 3.14, without a look at our settings."""
    parser: Any = thopters.build_parser(thopters.find_command(["exec"])[0])
    assert parser.color is False


def test_the_hint_of_a_lost_mark_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer versions of argparse split words: -in, with -i known, becomes -i and -n."""

    def parse(*_: object) -> tuple[argparse.Namespace, list[str]]:
        return argparse.Namespace(name="dev", command=["grep"]), ["-n", "foo", "file"]

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    with pytest.raises(thopters.UsageError) as caught:
        thopters.parse(["exec", "dev", "grep", "-in", "foo", "file"])
    assert caught.value.hint == "thopters exec dev -- grep -in foo file"


def guess(*words: str) -> str | None:
    with pytest.raises(thopters.UsageError) as caught:
        thopters.parse(list(words))
    return caught.value.hint


def test_w3_a_command_is_guessed_by_its_meaning() -> None:
    """The first are those that were seen to lead to a command that does something else."""
    for words, meant in {
        "delete remove": "destroy",
        "start": "resume",
        "stop suspend sleep": "pause",
        "status": "list",
        "version": "--version",
        "run execute": "exec",
        "login auth": "setup",
        "connect enter": "shell",
        "snapshot save": "checkpoint",
        "rollback undo": "restore",
        "scp upload": "cp",
        "forward tunnel": "proxy",
        "mv": "rename",
        "new": "create",
    }.items():
        for word in words.split():
            assert guess(word, "dev") == f"did you mean {meant}?", word


def test_w3_a_command_is_guessed_by_its_spelling_where_that_is_near() -> None:
    for word, meant in {
        "crate": "create", "craete": "create", "destory": "destroy", "exce": "exec",
        "pasue": "pause", "lsit": "list", "chekpoint": "checkpoint", "sesions": "sessions",
        "--verison": "--version", "--hlep": "--help",
    }.items():  # fmt: skip
        assert guess(word) == f"did you mean {meant}?"
    for word in ("frobnicate", "x", "list-all-of-them", "stat", "re", "--frob", "créer"):
        assert guess(word) == "see: thopters --help"


def test_w3_an_option_is_guessed_too() -> None:
    for words, meant in {
        "url dev --pubic": "--public",
        "destroy dev --force": "--yes",
        "destroy dev -y": "--yes",
        "pause dev --yes": "--force",
        "exec dev --no-hodl -- ls": "--no-hold",
        "exec dev --workdir=/x -- ls": "--dir",
        "checkpoint dev -m words": "--comment",
        "list --output json": "--json",
        "hold --relase dev": "--release",
        "list --hepl": "--help",
    }.items():
        assert guess(*words.split()) == f"did you mean {meant}?", words
    # no option is guessed that the command does not have
    assert guess("url", "dev", "--yes") == "see: thopters url --help"
    assert guess("list", "--frob") == "see: thopters list --help"


def test_w3_each_guess_is_something_that_there_is() -> None:
    commands = {name for command in thopters.COMMANDS for name in (command.name, *command.aliases)}
    assert set(thopters.MEANT) <= commands | {"--version"}
    options = {option for command in thopters.COMMANDS for option in command.options()}
    assert set(thopters.OPTIONS_MEANT) <= options | {"--version"}
    words = [word for meant in thopters.MEANT.values() for word in meant.split()]
    assert len(words) == len(set(words)) and not set(words) & commands
