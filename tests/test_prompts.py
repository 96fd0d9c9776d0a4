"""W10: what a question shows, what a no and Ctrl-C say, --dry-run, --timeout, and limits."""

from __future__ import annotations

import json
import re
import signal

import pytest
from emulation import Emulator, Fault
from support.program import Thopters
from support.sessions import writes
from support.terminals import CTRL_C, Start
from support.waiting import until

QUESTION = "Put the disk of dev back to v2? Its programs end; a checkpoint is taken first. [y/N]"


def furnish(emulator: Emulator, thopters: Thopters) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    for comment in ("one", "before the refactoring", "three", "four"):
        sprite.add_checkpoint(comment).made = emulator.clock.now() - 7300
    assert thopters("exec", "dev", "-d", "--name", "tests", "--", "sleep", "60").code == 0


@pytest.mark.parametrize(
    ("keys", "status", "said"),
    [("n\n", 2, "dev was left as it is"), (CTRL_C, -signal.SIGINT, "dev was not restored")],
)
def test_w10_restore_shows_what_it_asks_about(
    emulator: Emulator, thopters: Thopters, start: Start, keys: str, status: int, said: str
) -> None:
    furnish(emulator, thopters)
    session = start("restore", "dev", "v2", columns=200)
    session.expect(QUESTION)
    shown = session.screen.lines
    assert shown[0] == "v2 was made 2 hours ago: before the refactoring (2 checkpoints are newer)"
    assert re.fullmatch(r"this ends in dev: session \w+ \(sleep 60 in /\S+\)", shown[1])
    session.type(keys)
    assert session.end() == status
    assert said in session.screen.text and "error" not in session.screen.text
    assert len(emulator.sprite("dev").checkpoints) == 4


def test_w10_restore_does_not_wake_to_ask(emulator: Emulator, start: Start) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("one")
    emulator.fault(Fault("GET */exec", "status", status=400, times=None))
    session = start("restore", "dev", "v1", columns=200)
    session.expect("[y/N]")  # what can't be seen is left out
    session.type("\n")
    assert session.end() == 2
    assert session.screen.lines[0] == "v1 was made just now: one (none is newer)"


@pytest.mark.parametrize(
    ("words", "asked"),
    [(["destroy", "dev"], "Type dev"), (["pause", "dev"], "[y/N]"), (["url"], "Which sprite?")],
)
def test_w10_a_no_is_not_an_error(
    emulator: Emulator, thopters: Thopters, start: Start, words: list[str], asked: str
) -> None:
    furnish(emulator, thopters)
    session = start(*words, columns=200)
    session.expect(asked)
    session.type("\n")
    assert session.end() == 2
    assert "error" not in session.screen.text
    assert not emulator.journal.requests("DELETE")
    if words[0] != "url":
        session = start(*words, columns=200)
        session.expect(asked)
        session.type(CTRL_C)
        assert session.end() == -signal.SIGINT
        nothing = {"destroy": "nothing was destroyed", "pause": "nothing in dev was ended"}
        assert nothing[words[0]] in session.screen.text


@pytest.mark.parametrize(
    ("words", "route", "says"),
    [
        (
            ["checkpoint", "a"],
            "POST */checkpoint",
            ["a checkpoint of a may have been made; look: thopters checkpoints a"],
        ),
        (
            ["destroy", "a", "b", "c", "--yes"],
            "DELETE */b",
            [
                "b may or may not be destroyed; look: thopters list --prefix b",
                "done: a\n",
                "not begun: c\n",
            ],
        ),
        (
            ["restore", "a", "v1", "--yes"],
            "POST */checkpoint",
            ["a checkpoint of a may have been made", "a was not restored"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_w10_ctrl_c_says_what_state_things_are_in(
    emulator: Emulator, thopters: Thopters, words: list[str], route: str, says: list[str]
) -> None:
    for name in ("a", "b", "c"):
        emulator.add_sprite(name, status="running").add_checkpoint("")
    emulator.fault(Fault(route, "hang"))
    process = thopters.start(*words)
    method, _, end = route.partition(" *")
    until(lambda: [r for r in emulator.journal.requests(method) if r.path.endswith(end)])
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    for words_of_it in says:
        assert words_of_it in err.decode(), err
    assert out.decode() == ("destroyed a\n" if "c" in words else "")


def test_dry_runs_say_what_would_be_done_and_do_nothing(
    emulator: Emulator, thopters: Thopters
) -> None:
    furnish(emulator, thopters)
    emulator.add_sprite("idle", status="cold")
    emulator.journal.clear()
    done = thopters("destroy", "dev", "idle", "none", "--dry-run")
    assert done.code == 3 and "there is no sprite none" in done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("would destroy dev (running, https://")
    assert lines[1].startswith("would destroy idle (hibernating, https://")
    told = json.loads(thopters("destroy", "idle", "--dry-run", "--yes", "--json").out)
    assert told["would_destroy"] == ["idle"]

    done = thopters("pause", "dev", "idle", "--dry-run", "--force")
    lines = done.out.splitlines()
    assert re.fullmatch(r"would end in dev: session \w+ \(sleep 60 in /.*\)", lines[0]), done
    assert lines[1:] == ["idle is hibernating; nothing would be ended"]
    told = json.loads(thopters("pause", "dev", "--dry-run", "--json").out)
    [item] = told["would_pause"]
    assert (item["name"], item["status"]) == ("dev", "running")
    assert re.fullmatch(r"session \w+", item["would_end"][0])

    done = thopters("restore", "dev", "v2", "--dry-run")
    lines = done.out.splitlines()
    assert lines[0].startswith("would restore dev: v2 was made 2 hours ago: before the ref")
    assert re.fullmatch(r"would end in dev: session \w+ \(sleep 60 in /\S+\)", lines[1])
    assert lines[2:] == ["would take a checkpoint of the present first"]
    told = json.loads(thopters("restore", "dev", "v2", "--dry-run", "--json").out)["would_restore"]
    assert (told["newer"], told["backup"], len(told["sessions"])) == (2, True, 1)
    assert thopters("restore", "dev", "v9", "--dry-run").code == 3

    assert not writes(emulator) and len(emulator.sprite("dev").checkpoints) == 4
    assert emulator.sprite("idle").status == "cold"
    assert "\trunning\n" in thopters("sessions", "dev").out


@pytest.mark.parametrize(
    ("words", "route"),
    [
        (["resume", "dev"], "WS *"),
        (["create", "new", "--no-init"], "WS *"),
        (["checkpoint", "dev"], "POST */checkpoint"),
        (["restore", "dev", "v1", "--yes", "--no-backup"], "POST */restore"),
        (["restore", "dev", "v1", "--yes"], "POST */checkpoint"),
    ],
    ids=" ".join,
)
def test_timeout_ends_what_waits(
    emulator: Emulator, thopters: Thopters, words: list[str], route: str
) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("")
    emulator.fault(Fault(route, "hang", times=None))
    done = thopters(*words, "--timeout", "1", "--json", timeout=50)
    assert done.code == 7, done
    document = json.loads(done.out)
    error = document["error"] if "error" in document else document["errors"][0]
    assert error["code"] == "timed_out"


def test_timeout_does_not_wait_longer_than_it_may_for_a_busy_api(
    emulator: Emulator, thopters: Thopters
) -> None:
    emulator.add_sprite("dev", status="running")
    body = b'{"error": "rate_limited", "retry_after_seconds": 50}'
    emulator.fault(Fault("POST */checkpoint", "status", status=429, body=body, times=None))
    assert thopters("checkpoint", "dev", "--timeout", "2", timeout=40).code == 6


@pytest.mark.parametrize(
    ("details", "says"),
    [
        (
            {"limit": 10, "current_count": 10},
            "slow down (the limit is 10, 10 now)\nhint: wait, or let another",
        ),
        (
            {"limit": 5, "window_seconds": 3600, "retry_after_seconds": 90},
            "slow down (the limit is 5 in 1h)\nhint: wait 1m30s, or let another",
        ),
        ({"limit": "10", "current_count": True}, "slow down\nhint: wait, or let another"),
    ],
    ids=str,
)
def test_w10_a_429_tells_seconds_and_limit(
    emulator: Emulator, thopters: Thopters, details: dict[str, object], says: str
) -> None:
    document = {"error": "concurrent_sprite_limit_exceeded", "message": "slow down", **details}
    body = json.dumps(document).encode()
    emulator.fault(Fault("POST /v1/sprites", "status", status=429, body=body, times=None))
    done = thopters("create", "new")
    assert done.code == 6 and f"thopters: error: cannot create new: {says}" in done.err, done


def test_w7_the_platforms_lines_are_for_v_alone(emulator: Emulator, thopters: Thopters) -> None:
    emulator.personality.restore_delay_s = 0.05
    emulator.add_sprite("dev", status="running")
    for options in ([], ["-v"]):
        made = thopters("checkpoint", "dev", *options)
        assert ("> " in made.err) == bool(options)
        assert made.out.strip() in ("v1", "v2", "v3")
        done = thopters("restore", "dev", made.out.strip(), "--yes", *options)
        assert ("> " in done.err) == bool(options)
        assert re.fullmatch(r"restored dev to v\d in [\d.]+ s\n", done.out)


def test_a_checkpoint_on_a_terminal_is_one_line_and_a_hint(
    emulator: Emulator, start: Start
) -> None:
    emulator.add_sprite("dev", status="running")
    session = start("checkpoint", "dev")
    assert session.end() == 0
    line, hint, last = session.screen.lines
    assert re.fullmatch(r"checkpoint v1 of dev was made in [\d.]+ s", line)
    assert (hint, last) == ("hint: go back to it: thopters restore dev v1", "")


@pytest.mark.parametrize("verbose", [[], ["-v"]], ids=str)
def test_w4_a_state_has_one_word(
    emulator: Emulator, thopters: Thopters, verbose: list[str]
) -> None:
    behind = " (warm)" if verbose else ""
    emulator.add_sprite("dev", status="warm")
    assert thopters("pause", "dev", *verbose).out == f"dev is hibernating{behind} already\n"
    assert f"\thibernating{behind}\t" in thopters("list", *verbose).out
    done = thopters("resume", "dev", *verbose)
    assert done.out.startswith(f"dev was hibernating{behind}, woke in ")
