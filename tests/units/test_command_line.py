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
