"""Many sprites by a pattern: which are meant, which are left asleep, and what is said of all."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from emulation.state import Sprite
from support.configs import write
from support.program import Thopters
from support.runs import environ_for, run_here, shorten
from support.sessions import refuse_websockets, writes
from support.terminals import Start
from support.waiting import until

LOCKED = b'{"error": "locked", "message": "it is locked"}'


def fill(emulator: Emulator, awake: int, asleep: int = 0, prefix: str = "x-") -> list[str]:
    """Make sprites, the first ones awake, and return their names."""
    names = [f"{prefix}{number:03}" for number in range(awake + asleep)]
    for place, name in enumerate(names):
        emulator.add_sprite(name, status="running" if place < awake else "cold")
    return names


def awake(emulator: Emulator) -> list[str]:
    return [name for name, sprite in emulator.sprites.items() if sprite.status == "running"]


# which ones


def test_a_pattern_stands_for_what_list_shows_and_no_other(
    thopters: Thopters, emulator: Emulator
) -> None:
    names = fill(emulator, 1, 199)
    emulator.add_sprite("y-000", status="running")
    emulator.personality.page_size = 50
    assert [line.split()[0] for line in thopters("list", "x-*").out.splitlines()] == names
    emulator.journal.clear()
    done = thopters("list", "x-0?7", "y-*", "--json")
    shown = [sprite["name"] for sprite in json.loads(done.out)["sprites"]]
    assert shown == [f"x-0{ten}7" for ten in range(10)] + ["y-000"]
    assert thopters("destroy", "y-*", "--yes").code == 0
    assert thopters("list", "y*").code == 3
    emulator.add_sprite("y-000", status="running")
    emulator.journal.clear()
    done = thopters("list", "z*")
    assert (done.code, done.out, "no sprite's name matches 'z*'" in done.err) == (3, "", True)
    assert thopters("list", "x*", "dev").code == 2
    # the configured prefix counts, for patterns alone
    write(thopters.home / ".sprite-thopters" / "config.json", {"defaults": {"prefix": "y-"}})
    assert [line.split()[0] for line in thopters("list", "*").out.splitlines()] == ["y-000"]
    done = thopters("exec", "x-*", "--", "true")
    assert (done.code, "among those that start with y-" in done.err) == (3, True)
    assert thopters("exec", "x-000", "--", "true").code == 0
    assert not writes(emulator)


WRONG = [
    ["exec", "x*/", "--", "true"],
    ["exec", "x*"],
    ["exec", "x*", "-i", "--", "true"],
    ["exec", "x*", "-t", "--", "true"],
    ["exec", "x*", "--detach", "--", "true"],
    ["exec", "x*", "-j", "0", "--", "true"],
    ["exec", "x*", "-j", "65", "--", "true"],
    ["cp", "-", "x*:f"],
    ["cp", "x*:f", "."],
    ["shell", "x*"],
    ["restore", "x*", "v1", "--yes"],
    ["destroy", "x*", "--yes", "--count", "some"],
]


def test_what_no_pattern_can_be_for_asks_nothing(emulator: Emulator, tmp_path: Path) -> None:
    fill(emulator, 2)
    for words in WRONG:
        done = run_here(words, environ_for(emulator, str(tmp_path)))
        assert (done.code, done.out) == (2, ""), done
    assert not len(emulator.journal)


# what is said


def test_whole_lines_of_both_streams_with_the_name_before_each(
    thopters: Thopters, emulator: Emulator
) -> None:
    names = fill(emulator, 9, 2)
    script = "for n in 1 2 3; do printf a$n-; printf e$n- >&2; sleep 0.05; echo b; echo f >&2; done"
    script += "; printf last; exit 0"
    done = thopters("exec", "x-*", "--", "sh", "-c", script)
    assert done.code == 0, done
    *err, summary = done.err.splitlines()
    for lines, words in (
        (done.out.splitlines(), ["a1-b", "a2-b", "a3-b", "last"]),
        (err, ["e1-f", "e2-f", "e3-f"]),
    ):
        for name in names[:9]:
            assert [line[7:] for line in lines if line.startswith(f"{name}: ")] == words
        assert len(lines) == 9 * len(words)
    assert summary == "9 done; 2 left asleep: x-009, x-010 (--wake takes them too)"
    assert len(awake(emulator)) == 9


def test_without_websockets_each_goes_by_post(thopters: Thopters, emulator: Emulator) -> None:
    names = fill(emulator, 9)
    emulator.personality.list_items = "minimal"  # so that there are connections to take up
    refuse_websockets(emulator)
    done = thopters("exec", "x-*", "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.code, sorted(done.out.splitlines())) == (0, [f"{name}: out" for name in names])
    assert sorted(done.err.splitlines()) == ["9 done", *(f"{name}: err" for name in names)]


def test_lines_come_while_others_have_none(thopters: Thopters, emulator: Emulator) -> None:
    fill(emulator, 3)
    script = "[ -e quick ] && echo early; until [ -e go ]; do sleep 0.05; done; echo late"
    (emulator.sprite("x-001").home / "quick").touch()
    process = thopters.start("exec", "x-*", "--", "sh", "-c", script)
    assert process.stdout and process.stdout.readline() == b"x-001: early\n"
    for name in ("x-000", "x-001", "x-002"):
        (emulator.sprite(name).home / "go").touch()
    out, _ = process.communicate(timeout=60)
    assert sorted(out.splitlines()) == [b"x-000: late", b"x-001: late", b"x-002: late"]


def test_the_worst_status_counts_and_each_failure_is_named(
    thopters: Thopters, emulator: Emulator
) -> None:
    fill(emulator, 4)
    (emulator.sprite("x-001").home / "bad").touch()
    words = ["exec", "x-*", "--", "sh", "-c", "[ ! -e bad ] || exit 7"]
    done = thopters(*words)
    assert (done.code, done.err) == (7, "3 done; 1 failed: x-001 (7)\n")
    emulator.fault(Fault("WS */x-002/exec", "status", times=None, status=423, body=LOCKED))
    done = thopters(*words)
    assert done.code == 255
    assert "x-002: thopters: error: cannot run a command in x-002: " in done.err
    assert done.err.endswith("2 done; 2 failed: x-001 (7), x-002\n")


def test_one_that_is_gone_meanwhile_keeps_no_other_from_its_turn(
    thopters: Thopters, emulator: Emulator
) -> None:
    names = fill(emulator, 4)
    shown = emulator.sprite("x-001").to_json

    def vanish() -> dict[str, Any]:
        item = shown()
        emulator.sprites.pop("x-001", None)
        return item

    emulator.sprite("x-001").to_json = vanish  # type: ignore[method-assign]
    done = thopters("checkpoint", "x-*", "--json")
    told = json.loads(done.out)
    assert done.code == 3
    assert [item["name"] for item in told["checkpointed"]] == [names[0], *names[2:]]
    assert [(error["name"], error["code"]) for error in told["errors"]] == [("x-001", "not_found")]
    assert (told["asleep"], done.err) == ([], "")


# asleep


@pytest.mark.parametrize(
    "words",
    [
        ["exec", "x-*", "--", "touch", "f"],
        ["cp", "f", "x-*:"],
        ["checkpoint", "x-*"],
        ["init", "x-*", "dev"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_goes_into_sprites_leaves_sleepers_asleep_unless_wake(
    thopters: Thopters, emulator: Emulator, words: list[str]
) -> None:
    write(thopters.home / ".sprite-thopters" / "config.json", {"secrets": {"MINE": "a value"}})
    (thopters.home / "f").write_text("text\n")
    names = fill(emulator, 2)
    emulator.add_sprite("dev", status="running")
    if words[0] == "init":
        assert thopters("init", *names).code == 0
    emulator.sprite("x-001").pause()
    done = thopters(*words)
    named = words[-1] == "dev"
    assert done.code == 0, done
    assert ("the keys go in when these are next used: x-001\n" in done.err) == named
    assert done.err.splitlines()[-1] == (
        f"{1 + named} done; 1 left asleep: x-001 (--wake takes them too)"
    )
    assert emulator.sprite("x-001").status == "warm"
    emulator.sprite("x-000").pause()
    emulator.journal.clear()
    if not named:
        done = thopters(*words)
        assert (done.code, done.out) == (6, "")
        assert (
            "all 2 sprites that match are asleep, and none was woken" in done.err
            and "--wake" in done.err
        )
        assert {request.method for request in emulator.journal} == {"GET"}
        assert not set(names) & set(awake(emulator))
    split = words.index("--") if "--" in words else len(words)
    done = thopters(*words[:split], "--wake", *words[split:])
    assert done.code == 0, done
    assert set(names) <= set(awake(emulator))
    if words[0] in ("exec", "cp"):
        assert all((emulator.sprite(name).home / "f").exists() for name in names)


def test_pause_list_and_destroy_wake_nothing(thopters: Thopters, emulator: Emulator) -> None:
    fill(emulator, 1, 3)
    emulator.idle_s = 0.5
    done = thopters("pause", "x-*")
    assert done.code == 0, done
    assert sorted(done.out.splitlines())[1:] == [
        f"x-00{n}: is hibernating already" for n in (1, 2, 3)
    ]
    assert thopters("list", "x-*").code == 0
    done = thopters("destroy", "x-*", "--yes")
    assert (done.code, emulator.sprites) == (0, {})
    assert sorted(done.out.splitlines()) == [f"x-00{n}: destroyed" for n in range(4)]
    inside = [r for r in emulator.journal if r.path.endswith("/exec") and "x-000" not in r.path]
    assert not inside


# the plan's limit


@pytest.fixture
def most_awake(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets, for each time that a sprite is entered, how many are awake."""
    counts: list[int] = []
    enter = Sprite.enter

    def counted(sprite: Sprite) -> bool:
        entered = enter(sprite)
        counts.append(len(awake(emulator)))
        return entered

    monkeypatch.setattr(Sprite, "enter", counted)
    return counts


def test_no_more_are_woken_at_once_than_the_plan_allows(
    thopters: Thopters, emulator: Emulator, most_awake: list[int]
) -> None:
    shorten(thopters, SLOT_LOOK_EVERY_S=0.1)
    names = fill(emulator, 1, 7)
    emulator.personality.running_limit = 3
    emulator.idle_s = 0.5
    done = thopters("exec", "x-*", "--wake", "-j", "6", "--", "sh", "-c", "sleep 0.1; echo ok")
    assert (done.code, sorted(done.out.splitlines())) == (0, [f"{name}: ok" for name in names])
    assert max(most_awake) == 3
    assert done.err.count("the plan allows 3 sprites awake at once: the others wait") == 1


def test_resume_says_which_ones_the_plan_has_no_room_for(
    thopters: Thopters, emulator: Emulator, most_awake: list[int]
) -> None:
    fill(emulator, 0, 5)
    emulator.add_sprite("other", status="running")
    emulator.personality.running_limit = 3
    done = thopters("resume", "x-*", "--json")
    told = json.loads(done.out)
    assert (done.code, len(told["resumed"]), len(told["errors"])) == (6, 2, 3)
    assert {error["code"] for error in told["errors"]} == {"limit"}
    assert max(most_awake) == 3


def test_where_a_sprite_never_falls_asleep_the_others_are_not_waited_for_long(
    thopters: Thopters, emulator: Emulator
) -> None:
    shorten(thopters, SLOT_LOOK_EVERY_S=0.1, SLOT_LIMIT_S=0.5)
    fill(emulator, 2, 2)
    emulator.personality.running_limit = 3
    done = thopters("exec", "x-*", "--wake", "--", "true")
    assert (done.code, done.err.count("was left asleep: the plan allows 3")) == (255, 1)
    assert done.err.splitlines()[-1].startswith("3 done; 1 failed: x-00")


# destroy


def test_destroy_by_a_pattern_wants_the_number_typed(emulator: Emulator, start: Start) -> None:
    fill(emulator, 2)
    emulator.add_sprite("dev")
    for typed in ("3", "y", "x-000", ""):
        session = start("destroy", "x-*", columns=200)
        session.expect("Type the number of sprites, 2, to destroy them: ")
        assert "x-000 (running, https://" in session.screen.text
        assert "x-001 (running, https://" in session.screen.text
        session.type(typed + "\r")
        assert session.end() == 2
        assert "that is not the number: nothing was destroyed" in session.screen.text
    assert not writes(emulator)
    session = start("destroy", "x-*", columns=200)
    session.expect("to destroy them: ")
    session.type("2\r")
    assert session.end() == 0
    assert list(emulator.sprites) == ["dev"]


@pytest.mark.parametrize("pattern", ["*", "**", "?*"])
def test_destroy_of_all_wants_their_number_too(
    thopters: Thopters, emulator: Emulator, pattern: str
) -> None:
    fill(emulator, 2)
    assert thopters("destroy", pattern).code == 2
    assert not len(emulator.journal)
    for words in ([], ["--count", "1"], ["--count", "3"]):
        done = thopters("destroy", pattern, "--yes", *words)
        assert (done.code, done.out) == (2, ""), done
        assert "nothing was destroyed" in done.err
    assert not writes(emulator)
    assert thopters("destroy", pattern, "--yes", "--count", "2").code == 0
    assert not emulator.sprites


def test_destroy_leaves_what_was_made_anew_since_it_was_listed(
    thopters: Thopters, emulator: Emulator
) -> None:
    names = fill(emulator, 20)
    first = emulator.sprite("x-007").to_json

    def listed() -> dict[str, Any]:
        item = first()
        emulator.add_sprite("x-007")
        return item

    emulator.sprite("x-007").to_json = listed  # type: ignore[method-assign]
    done = thopters("destroy", "x-*", "--yes")
    assert (done.code, list(emulator.sprites)) == (1, ["x-007"])
    assert "x-007 was made anew meanwhile: the new sprite was left alone" in done.err
    assert len(done.out.splitlines()) == len(names) - 1
    assert len(emulator.journal.requests("DELETE")) == len(names) - 1


# ended early


def test_an_interrupt_says_what_was_done_and_what_was_not(
    thopters: Thopters, emulator: Emulator
) -> None:
    """One hangs, one is waited for, one refuses, and with two at a time some have not begun."""
    names = fill(emulator, 6)
    (emulator.sprite("x-000").home / "quick").touch()
    emulator.fault(Fault("WS */x-001/exec", "status", times=None, status=423, body=LOCKED))
    emulator.fault(Fault("WS */x-002/exec", "hang", times=None))
    script = "[ -e quick ] || { touch began; trap 'touch told; exit 3' INT; sleep 60 & wait; }"
    process = thopters.start("exec", "x-*", "-j", "2", "--", "bash", "-c", script)
    began = emulator.sprite("x-003").home / "began"
    until(lambda: began.exists() or process.poll() is not None, limit_s=60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    lines = err.decode().splitlines()
    failed, begun = "failed: x-001", "begun, and it is not known whether it was done: x-002"
    # x-003 ends with another status than 0: a slow machine may hear of it too late
    assert {f"{failed}, x-003", begun} <= set(lines) or {failed, f"{begun}, x-003"} <= set(lines)
    assert f"not begun: {', '.join(names[4:])}" in lines
    assert [line for line in lines if line.startswith("done: ")] == ["done: x-000"]
    assert (emulator.sprite("x-003").home / "told").exists()
    assert not (emulator.sprite("x-004").home / "began").exists()


def test_an_interrupt_reaches_the_only_command_too(thopters: Thopters, emulator: Emulator) -> None:
    fill(emulator, 1)
    script = "trap 'touch told; exit 3' INT; touch began; sleep 60 & wait"
    process = thopters.start("exec", "x-*", "--", "bash", "-c", script)
    home = emulator.sprite("x-000").home
    until(lambda: (home / "began").exists() or process.poll() is not None, limit_s=60)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT
    until(lambda: (home / "told").exists(), limit_s=15)


def test_nobody_reads_the_output_any_more(thopters: Thopters, emulator: Emulator) -> None:
    fill(emulator, 3)
    script = "trap 'touch ended; exit' TERM PIPE; while :; do echo line; sleep 0.02; done"
    process = thopters.start("exec", "x-*", "--", "bash", "-c", script)
    assert process.stdout and process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == -signal.SIGPIPE
    homes = [emulator.sprite(f"x-00{n}").home for n in range(3)]
    until(lambda: all((home / "ended").exists() for home in homes), "all have ended")


# by names


def test_several_names_may_be_worked_on_at_a_time(thopters: Thopters, emulator: Emulator) -> None:
    names = fill(emulator, 0, 4)
    done = thopters("resume", *names, "-j", "4")
    assert done.code == 0, done
    assert sorted(line.split(" in ")[0] for line in done.out.splitlines()) == [
        f"{name} was hibernating, woke" for name in names
    ]


def test_copies_go_into_each(thopters: Thopters, emulator: Emulator) -> None:
    names = fill(emulator, 3)
    (thopters.home / "tree").mkdir()
    (thopters.home / "tree" / "f").write_bytes(os.urandom(200_000))
    (emulator.sprite("x-001").home / "tree").write_text("in the way\n")
    done = thopters("cp", "tree", "x-*:")
    assert done.code == 1
    assert re.search(r"x-001: thopters: error: cannot copy: .*\n", done.err), done
    assert done.err.endswith("2 done; 1 failed: x-001\n")
    for name in (names[0], names[2]):
        copied = (emulator.sprite(name).home / "tree" / "f").read_bytes()
        assert copied == (thopters.home / "tree" / "f").read_bytes()
