"""The program on a terminal, as people have it: questions, tables, colours, the progress line.

Each run has a pseudo-terminal of its own, which controls it, so that ^C and ^D are typed as keys.
What the program writes is drawn on a small screen that knows the few control sequences which the
program may use; any other is an error, wherever it comes from.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from emulation import Emulator, Fault
from support.program import MODULE, Thopters
from support.sessions import writes
from support.terminals import CTRL_C, CTRL_D, Screen, Start

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals here", allow_module_level=True)


def run(start: Start, *words: str, columns: int = 80, **streams: Any) -> Screen:
    """Run to a good end and return the screen."""
    session = start(*words, columns=columns, **streams)
    assert session.end() == 0, session.output
    return session.screen


# destroy


def test_destroy_asks_for_the_name(emulator: Emulator, start: Start) -> None:
    url = emulator.add_sprite("dev").url
    session = start("destroy", "dev", columns=200)
    session.expect("Type dev to destroy it: ")
    asked = f"dev (hibernating, {url}) goes with all its files and checkpoints, for good."
    assert session.screen.lines[0] == asked
    assert not writes(emulator)
    session.type("dev\n")
    assert session.end() == 0
    assert session.screen.lines == [asked, "Type dev to destroy it: dev", "destroyed dev", ""]
    assert not emulator.sprites


# A signal that a thread other than the main one gets: what waits in the main one goes on waiting,
# as for a signal that comes just before the wait
UNNOTICED = """\
import signal, sys, threading
sys.path.insert(0, sys.argv.pop(1))
import thopters
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
thopters.leave(thopters.main())
"""


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        (["destroy", "dev"], "Type dev to destroy it: "),
        (["setup"], "ANTHROPIC_API_KEY [not set]: "),
    ],
)
def test_a_signal_just_before_a_wait_is_noticed(
    thopters: Thopters, emulator: Emulator, start: Start, words: list[str], prompt: str
) -> None:
    thopters.argv = [sys.executable, "-c", UNNOTICED, str(MODULE.parent)]
    emulator.add_sprite("dev")
    session = start(*words)
    session.expect(prompt)
    session.type(CTRL_C)
    assert session.end() == -signal.SIGINT
    assert session.settings_after == session.settings_before
    assert not writes(emulator)


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ("Dev\n", 2),
        ("de\n", 2),
        ("y\n", 2),
        ("yes\n", 2),
        ("\n", 2),
        ("d\udce9v\n", 2),  # the byte of another encoding
        (CTRL_D, 2),
        (CTRL_C, -signal.SIGINT),
        ("dev" + CTRL_C, -signal.SIGINT),
    ],
)
def test_destroy_takes_nothing_else_for_a_yes(
    thopters: Thopters, emulator: Emulator, start: Start, keys: str, status: int
) -> None:
    thopters.env["PYTHONIOENCODING"] = "utf-8:strict"  # as it is in most locales
    emulator.add_sprite("dev")
    session = start("destroy", "dev")
    session.expect("Type dev to destroy it: ")
    session.type(keys)
    assert session.end() == status
    said = b"that is not the name: nothing was destroyed" if status == 2 else b"interrupted"
    assert said in session.output
    assert not writes(emulator)
    assert list(emulator.sprites) == ["dev"]


@pytest.mark.parametrize(
    ("answers", "status", "left"),
    [
        (["a", "b"], 0, ["c"]),
        (["a", "c"], 2, ["a", "b", "c"]),
        (["b"], 2, ["a", "b", "c"]),
    ],
)
def test_destroy_asks_for_each_before_it_begins(
    emulator: Emulator, start: Start, answers: list[str], status: int, left: list[str]
) -> None:
    for name in ("a", "b", "c"):
        emulator.add_sprite(name)
    session = start("destroy", "a", "b")
    for name, answer in zip(("a", "b"), answers, strict=False):
        session.expect(f"Type {name} to destroy it: ")
        assert not writes(emulator)
        session.type(answer + "\n")
    assert session.end() == status
    assert session.screen.text.count("to destroy it:") == len(answers)
    assert sorted(emulator.sprites) == left


def test_destroy_yes_asks_nothing(emulator: Emulator, start: Start) -> None:
    emulator.add_sprite("dev")
    assert run(start, "destroy", "dev", "--yes").lines == ["destroyed dev", ""]


def test_a_question_waits_on_a_terminal_that_does_not_block(
    emulator: Emulator, start: Start
) -> None:
    emulator.add_sprite("dev", status="cold")
    session = start("destroy", "dev", blocking=False)
    session.expect("Type dev to destroy it: ")
    session.type("dev\n")
    assert session.end() == 0
    assert session.screen.lines[-2:] == ["destroyed dev", ""]


# restore


QUESTION = "back to v1? Its programs end; a checkpoint is taken first. [y/N]"


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ("\n", 2),
        ("n\n", 2),
        ("v1\n", 2),
        ("yy\n", 2),
        (CTRL_D, 2),
        (CTRL_C, -signal.SIGINT),
        ("y\n", 0),
        ("Y\n", 0),
        (" yes \n", 0),
    ],
)
def test_restore_asks_with_no_as_the_default(
    emulator: Emulator, start: Start, keys: str, status: int
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("first")
    (sprite.home / "since").touch()
    session = start("restore", "dev", "v1", columns=200)
    session.expect(QUESTION + " ")
    assert not writes(emulator)
    session.type(keys)
    assert session.end() == status
    assert session.settings_after == session.settings_before
    screen = session.screen
    assert screen.text.count(QUESTION) == 1
    if status == 0:
        assert re.search(r"^restored dev to v1 in [\d.]+ s$", screen.text, re.M)
        assert writes(emulator)[-1] == "POST /v1/sprites/dev/checkpoints/v1/restore"
        assert not (sprite.home / "since").exists()
        return
    said = "dev was left as it is" if status == 2 else "interrupted"
    assert said in screen.text
    assert not writes(emulator)
    assert (sprite.home / "since").exists()


def test_restore_without_backup_says_what_is_lost(emulator: Emulator, start: Start) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("first")
    session = start("restore", "dev", "v1", "--no-backup", columns=200)
    session.expect("the present state is lost. [y/N] ")
    session.type("y\n")
    assert session.end() == 0
    assert len(sprite.checkpoints) == 1


# who can be asked


@pytest.mark.parametrize("words", [["destroy", "dev"], ["restore", "dev", "v1"]])
@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_nobody_is_asked_without_a_terminal_at_both_ends(
    emulator: Emulator, start: Start, words: list[str], stream: str
) -> None:
    emulator.add_sprite("dev").add_checkpoint("first")
    elsewhere = subprocess.DEVNULL if stream == "stdin" else subprocess.PIPE
    session = start(*words, columns=200, **{stream: elsewhere})
    session.type("dev\ny\n")
    assert session.end() == 2
    pipe = session.process.stderr
    said = pipe.read().decode() if pipe else session.screen.text
    assert "there is no terminal to ask on" in said
    assert "--yes" in said
    assert not len(emulator.journal)
    assert list(emulator.sprites) == ["dev"]


def test_a_question_is_asked_though_the_answer_goes_elsewhere(
    emulator: Emulator, start: Start
) -> None:
    emulator.add_sprite("dev")
    session = start("destroy", "dev", stdout=subprocess.PIPE)
    session.expect("Type dev to destroy it: ")
    session.type("dev\n")
    assert session.end() == 0
    assert session.process.stdout
    assert session.process.stdout.read() == b"destroyed dev\n"


# tables and colours


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_tables_rows_are_aligned_and_as_wide_as_the_window(
    emulator: Emulator, start: Start, columns: int
) -> None:
    """The last column is cut, down to its name; the others stay whole."""
    now = emulator.clock.now()
    long = "x" * 63
    emulator.add_sprite("dev", status="running", updated_at=now)
    emulator.add_sprite(long, updated_at=now - 3 * 86400)
    session = start("ls", columns=columns, stderr=subprocess.PIPE)
    assert session.end() == 0
    width = 10 if columns == 200 else 7
    assert session.output.decode().split("\r\n") == [
        "Name".ljust(65) + "Status       Updated",
        "─" * 63 + "  " + "─" * 11 + "  " + "─" * width,
        "dev".ljust(65) + "running      " + ("just now" if width == 10 else "just n…"),
        long + "  hibernating  " + ("3 days ago" if width == 10 else "3 days…"),
        "",
    ]


def test_a_table_is_cut_where_wide_characters_count_twice(emulator: Emulator, start: Start) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("日本語" * 30)
    session = start("checkpoints", "dev", columns=60)
    assert session.end() == 0
    *_, row, _ = session.output.decode().split("\r\n")
    assert row.endswith("日…") or row.endswith("本…") or row.endswith("語…")
    assert 58 <= sum(2 if char in "日本語" else 1 for char in row) <= 60
    piped = start("checkpoints", "dev", columns=60, stdout=subprocess.PIPE)
    assert piped.end() == 0 and piped.process.stdout
    assert piped.process.stdout.read().decode().endswith("日本語" * 30 + "\n")


@pytest.mark.parametrize(
    ("comment", "width"),
    [("naïve, but not wide", 19), ("日本語を話す", 12), ("e\u0301" * 10, 10), ("\t" * 5, 10)],
    ids=["latin", "wide", "combining", "escaped"],
)
def test_a_column_is_as_wide_as_what_it_shows(
    emulator: Emulator, start: Start, comment: str, width: int
) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint(comment)
    session = start("checkpoints", "dev")
    assert session.end() == 0
    assert session.output.decode().split("\r\n") == [
        "ID  Made      Comment",
        "──  ────────  " + "─" * width,
        "v1  just now  " + comment.replace("\t", r"\t"),
        "",
    ]


@pytest.mark.parametrize(
    ("env", "coloured"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colour_is_in_labels_alone(
    thopters: Thopters, emulator: Emulator, start: Start, env: dict[str, str], coloured: bool
) -> None:
    thopters.env |= env
    emulator.add_sprite("dev", status="running")
    assert not run(start, "list").colours
    session = start("url", "deb")
    assert session.end() == 3
    assert session.screen.text == (
        "thopters: error: there is no sprite deb\nhint: did you mean dev?\n"
    )
    assert session.screen.colours == (["31", "0", "36", "0"] if coloured else [])
    assert (b"\x1b[31mthopters: error:\x1b[0m there" in session.output) == coloured


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_there_is_no_colour_where_no_terminal_is(
    emulator: Emulator, start: Start, stream: str
) -> None:
    session = start("url", "dev", **{stream: subprocess.PIPE})
    assert session.end() == 3
    assert bool(session.screen.colours) == (stream == "stdout")
    pipe = session.process.stdout or session.process.stderr
    assert pipe
    assert b"\x1b" not in pipe.read()


# the progress line


def test_the_progress_line_leaves_nothing_behind(emulator: Emulator, start: Start) -> None:
    emulator.personality.restore_delay_s = 2.0
    emulator.add_sprite("dev", status="running").add_checkpoint("first")
    session = start("restore", "dev", "v1", "--yes")
    session.expect("waiting for dev (")
    assert session.end() == 0
    *others, restored, hint, last = session.screen.lines
    assert others == []  # the platform's own lines are for -v
    assert re.fullmatch(r"restored dev to v1 in [\d.]+ s", restored)
    assert (hint, last) == ("hint: undo it: thopters restore dev v2", "")
    assert "waiting" not in session.screen.text


def keep_failing(emulator: Emulator) -> None:
    """Have the API fail for about three seconds, until the program gives up."""
    emulator.fault(Fault("GET /v1/sprites", "status", status=500, times=None))


def test_what_is_said_meanwhile_has_its_own_line(emulator: Emulator, start: Start) -> None:
    keep_failing(emulator)
    session = start("list", "-v")
    session.expect("listing sprites (")
    assert session.end() == 1
    lines = session.screen.lines
    assert [line.partition(":")[0] for line in lines] == ["thopters"] * 5 + [""]
    assert len([line for line in lines if re.search(r"trying again in [\d.]+ s$", line)]) == 3


def test_an_interrupt_leaves_nothing_of_the_progress_line(emulator: Emulator, start: Start) -> None:
    emulator.fault(Fault("GET /v1/sprites", "hang"))
    session = start("list")
    session.expect("listing sprites (")
    session.type(CTRL_C)
    assert session.end() == -signal.SIGINT
    assert session.screen.lines == ["thopters: interrupted", ""]


def test_there_is_no_progress_line_where_no_terminal_is(emulator: Emulator, start: Start) -> None:
    keep_failing(emulator)
    session = start("list", stderr=subprocess.PIPE)
    assert session.end() == 1
    assert session.output == b""
    assert session.process.stderr
    said = session.process.stderr.read()
    assert said.startswith(b"thopters: error: cannot list sprites: the API answered 500")
    assert not re.search(rb"[\r\x1b]|listing", said)


def test_quick_work_shows_no_progress_line(emulator: Emulator, start: Start) -> None:
    url = emulator.add_sprite("dev").url
    for _ in range(20):  # until a run is quick indeed, as on a busy machine not every one is
        began = time.monotonic()
        session = start("url", "dev")
        assert session.end() == 0
        if time.monotonic() - began < 0.7:
            break
    assert session.output.decode() == url + "\r\n"


# what comes from elsewhere


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\x7f\u202e\u2066\u200b\U000e0041end"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\x7f\u202e\u2066\u200b\U000e0041end"


def refuse(emulator: Emulator, route: str, status: int) -> None:
    body = json.dumps({"error": "bad", "message": HOSTILE}).encode()
    emulator.fault(Fault(route, "status", status=status, body=body, times=None))


def hostile_status(emulator: Emulator) -> None:
    emulator.personality.unknown_status = HOSTILE


def hostile_url(emulator: Emulator) -> None:
    emulator.sprite("dev").url = HOSTILE


def hostile_name(emulator: Emulator) -> None:
    emulator.add_sprite(HOSTILE)


def hostile_comment(emulator: Emulator) -> None:
    emulator.sprite("dev").add_checkpoint(HOSTILE)


@pytest.mark.parametrize(
    ("words", "prepare", "status"),
    [
        (["list"], hostile_status, 0),
        (["list"], hostile_name, 0),
        (["url", "dev"], hostile_url, 0),
        (["destroy", "dev"], hostile_url, 2),
        (["destroy", "dev"], hostile_status, 2),
        (["checkpoints", "dev"], hostile_comment, 0),
        (["restore", "dev"], hostile_comment, 0),
        (["list"], lambda emulator: refuse(emulator, "GET *", 400), 1),
        (["create", "new"], lambda emulator: refuse(emulator, "POST *", 400), 1),
        (["create", "new"], lambda emulator: refuse(emulator, "POST *", 402), 6),
        (["url", "dev"], lambda emulator: refuse(emulator, "GET *", 403), 4),
        (["exec", "dev", "--", "true"], lambda emulator: refuse(emulator, "WS *", 400), 255),
    ],
)
def test_remote_text_reaches_the_terminal_as_escapes(
    emulator: Emulator,
    start: Start,
    words: list[str],
    prepare: Callable[[Emulator], None],
    status: int,
) -> None:
    emulator.add_sprite("dev", status="running")
    prepare(emulator)
    session = start(*words, columns=1000)
    session.type("not a name\n")
    assert session.end() == status
    assert session.screen.text.count(SHOWN) == 1


def test_the_platforms_progress_reaches_the_terminal_as_escapes(
    emulator: Emulator, start: Start
) -> None:
    emulator.add_sprite("dev", status="running")
    events = [{"type": "info", "data": HOSTILE}, {"type": "error", "error": HOSTILE}]
    body = "".join(json.dumps(event) + "\n" for event in events).encode()
    kind = "application/x-ndjson"
    emulator.fault(Fault("POST */checkpoint", "status", status=200, body=body, content_type=kind))
    session = start("checkpoint", "dev", "-v", columns=1000)
    assert session.end() == 1
    progress = ["> " + line for line in SHOWN.split(r"\r")]  # each of its lines on one of ours
    failure = f"thopters: error: cannot checkpoint dev: {SHOWN}"
    assert session.screen.lines[1:] == [*progress, failure, ""]
