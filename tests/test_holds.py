"""A hold lives as long as its command, or as somebody is there, and no longer.

The program runs with shorter limits. That a sprite was held is seen on one that falls asleep as
soon as nothing holds it; that a hold has ended, by its task, which would last for minutes more.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from emulation.exec import Session
from emulation.state import Sprite
from emulation.wire import Reply
from support.program import Thopters
from support.runs import shorten
from support.sessions import (
    IGNORING,
    detach,
    lasting_id,
    needs_curl,
    needs_namespace,
    refuse_websockets,
    session_of,
)
from support.terminals import LEAVE, Tty
from support.units import make_console
from support.waiting import until

import thopters as program

pytestmark = [needs_curl, needs_namespace]


def started(
    thopters: Thopters, sprite: Sprite, *words: str, **options: Any
) -> subprocess.Popen[bytes]:
    """Start an attached command, and return its client once the sprite is held."""
    shorten(thopters, HOLD_FIRST_S=0.1)
    client = thopters.start("exec", "dev", *words, **options)
    until(lambda: sprite.tasks, "it is held")
    return client


def until_held_on(emulator: Emulator, sprite: Sprite) -> None:
    """Wait until a hold has lasted twice, in a sprite that sleeps as soon as none does."""
    until(lambda: sprite.tasks, "it is held")
    [(name, task)] = sprite.tasks.items()
    end, emulator.idle_s = 2 * task["expires_at"] - task["started_at"], 0.5
    until(
        lambda: sprite.status != "running" or sprite.tasks[name]["expires_at"] > end,
        "it is held on",
    )
    assert sprite.status == "running"


def until_released(sprite: Sprite) -> None:
    """Wait until the hold is deleted, long before it would expire, and nothing is left running."""
    until(lambda: not sprite.live_tasks(), "the hold is released")
    until(lambda: not sprite.machine.processes(), "all has ended")
    assert sprite.inner and sprite.inner.requests[-1].startswith("DELETE /v1/tasks/thopters-")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["sleep", "600"], []),
        (["sh", "-c", IGNORING], []),
        (["sh", "-c", IGNORING], ["--signal", "KILL"]),
    ],
    ids=["HUP", "HUP, then KILL", "KILL"],
)
def test_kill_releases_the_hold(
    thopters: Thopters, sprite: Sprite, words: list[str], options: list[str]
) -> None:
    identity = detach(thopters, *words, options=("--hold",))
    until(lambda: sprite.tasks, "it is held")
    done = thopters("kill", "dev", identity, *options)
    assert (done.code, done.out) == (0, f"{identity} has ended\n"), done
    until_released(sprite)


def test_a_second_interrupt_releases_the_hold(thopters: Thopters, sprite: Sprite) -> None:
    script = "trap 'touch got' INT; while :; do sleep 0.05; done"
    client = started(thopters, sprite, "--", "sh", "-c", script)
    client.send_signal(signal.SIGINT)
    soon = time.monotonic() + 0.1  # one that comes at once is taken for the same
    until(lambda: (sprite.home / "got").exists() and time.monotonic() > soon, "the first one came")
    client.send_signal(signal.SIGINT)
    assert client.wait(30) == -signal.SIGINT
    until_released(sprite)


@pytest.mark.long
def test_a_client_that_is_killed_releases_the_hold(thopters: Thopters, sprite: Sprite) -> None:
    """The platform ends an attached command that has lost its client, by KILL."""
    started(thopters, sprite, "--", "sleep", "600").kill()
    [session] = sprite.sessions.values()
    until(session.ended.is_set, "it is ended", 40)
    until_released(sprite)


def test_what_a_shell_has_left_running_does_not_hold(thopters: Thopters, sprite: Sprite) -> None:
    shorten(thopters, HOLD_FIRST_S=0.1, HOLD_EVERY_S=0.3)
    with Tty(thopters, "shell", "dev", "--native", "--hold") as shell:
        shell.expect("$ ")
        until(lambda: sprite.tasks, "it is held")
        shell.type("setsid sh -c 'touch up; exec sleep 600' < /dev/null > /dev/null 2>&1 &\n")
        until(lambda: (sprite.home / "up").exists(), "it runs in the background")
        shell.type("exit\n")
        assert shell.end_restored() == 0
    until(lambda: not sprite.live_tasks(), "the hold is released")
    assert b"sleep\x00600\x00" in command_lines(sprite)


@pytest.mark.parametrize(
    ("document", "code"),
    [({"tasks": None}, 0), ({}, 1), ([], 1), ({"tasks": ["x"]}, 1), ({"tasks": [{"x": 1}]}, 1)],
    ids=json.dumps,
)
def test_a_list_that_is_not_understood_is_not_taken_for_no_holds(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, document: object, code: int
) -> None:
    assert sprite.inner
    monkeypatch.setattr(sprite.inner, "_answer", lambda *request: Reply.json(document))
    done = thopters("hold", "dev", "--release")
    assert done.code == code, done
    assert ("the API's list of holds in dev h" in done.err) == (code == 1)


def command_lines(sprite: Sprite) -> list[bytes]:
    """Return what runs in a sprite, the words of each with NULs behind them."""
    lines = []
    for pid in sprite.machine.processes():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return lines


def fail_refreshes(sprite: Sprite, monkeypatch: pytest.MonkeyPatch, numbers: set[int]) -> None:
    """Have the task API fail when it is asked for the so manieth time to set a task."""
    assert sprite.inner
    set_task, count = sprite.inner._set, itertools.count(1)

    def fail_some(method: str, name: str | None, body: bytes) -> Reply:
        if next(count) in numbers:
            return Reply.error(500, "internal", "try again")
        return set_task(method, name, body)

    monkeypatch.setattr(sprite.inner, "_set", fail_some)


UNTIL_GO = "until [ -e go ]; do sleep 0.1; done"
QUIET = f"{UNTIL_GO}; exit 42"


@pytest.mark.parametrize(
    ("tty", "failing"), [("-T", set()), ("-T", {1, 2}), ("-T", {3, 4}), ("-t", set()), ("-t", {3})]
)
def test_a_quiet_command_outlives_many_idle_windows(
    thopters: Thopters,
    emulator: Emulator,
    sprite: Sprite,
    monkeypatch: pytest.MonkeyPatch,
    tty: str,
    failing: set[int],
) -> None:
    fail_refreshes(sprite, monkeypatch, failing)
    shorten(thopters, HOLD_FIRST_S=0.1, HOLD_EVERY_S=0.7, HOLD_AGAIN_S=0.1, HOLD_EXPIRY_S=4)
    client = thopters.start("exec", "dev", tty, "--", "sh", "-c", QUIET)
    until_held_on(emulator, sprite)
    emulator.idle_s = 30.0
    (sprite.home / "go").touch()
    assert client.wait(30) == 42
    until_released(sprite)


def test_p9_a_command_that_has_ended_holds_nothing_though_nobody_takes_its_output(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    """By POST the script may then wait for ever, for the platform need not end it."""
    refuse_websockets(emulator)
    client = started(thopters, sprite, "--", "head", "-c", "30M", "/dev/zero")

    def has_ended() -> bool:
        client.send_signal(signal.SIGINT)
        return client.poll() is not None

    until(has_ended, "the second signal has ended it")
    until(lambda: not sprite.tasks, "it is not held any more")


def test_without_the_task_api_nothing_keeps_asking(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_refreshes(sprite, monkeypatch, set(range(1000)))
    shorten(thopters, HOLD_FIRST_S=0.02, HOLD_EVERY_S=0.02, HOLD_AGAIN_S=0.02)
    client = thopters.start("exec", "dev", "--", "sh", "-c", f"{UNTIL_GO}; sleep 0.5; exit 42")

    until(lambda: sprite.inner and len(sprite.inner.requests) >= 3, "it has asked")
    (sprite.home / "go").touch()
    assert client.wait(30) == 42
    assert sprite.inner and sprite.inner.requests == sprite.inner.requests[:1] * 3


def test_a_detached_command_needs_its_client_no_more(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    script = "until [ -e go ]; do sleep 0.1; done; echo done > told"
    shorten(thopters, HOLD_FIRST_S=0.1, HOLD_EVERY_S=0.5, HOLD_EXPIRY_S=4)
    client = thopters.start("exec", "dev", "--detach", "--hold", "--", "sh", "-c", script)
    assert client.stdout and client.stdout.readline()
    client.kill()
    until_held_on(emulator, sprite)
    (sprite.home / "go").touch()
    until(lambda: sprite.status == "warm", "it sleeps")
    assert ((sprite.home / "told").read_text(), sprite.live_tasks()) == ("done\n", {})


# a terminal, which lives on without its client


def at_prompt(thopters: Thopters, *words: str) -> Tty:
    """Start something on a terminal that waits for a line."""
    shorten(thopters, HOLD_FIRST_S=0.1, HOLD_EVERY_S=0.5, HOLD_AGAIN_S=0.3, HOLD_EXPIRY_S=4)
    return Tty(thopters, *words)


@pytest.mark.parametrize(
    ("leaves", "says_cold"), [("by Ctrl-\\", False), ("by a kill", False), ("by Ctrl-\\", True)]
)
@pytest.mark.long
def test_a_terminal_is_held_while_somebody_is_there(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, leaves: str, says_cold: bool
) -> None:
    """N6: a GET may call it cold, and then the list counts."""
    emulator.personality.get_says_cold = says_cold
    with at_prompt(thopters, "exec", "dev", "--", "sh", "-c", "read line; exit 3") as terminal:
        until_held_on(emulator, sprite)
        if leaves == "by a kill":
            terminal.process.kill()
        else:
            terminal.type(LEAVE)
            terminal.expect("the session goes on, and dev may sleep when all is quiet; back to it")
        until(lambda: sprite.status == "warm", "it sleeps")
    [session] = [session for session in sprite.sessions.values() if session.tty]
    assert not session.ended.is_set()
    emulator.idle_s = 30.0
    with at_prompt(thopters, "attach", "dev", lasting_id(session)) as terminal:
        until_held_on(emulator, sprite)
        terminal.type("\n")
        assert terminal.end_restored() == 3
    until_released(sprite)


def test_n1_a_hold_that_can_not_be_refreshed_is_told_at_once(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    """Once, until it can be again, and with what follows from it."""
    told = "[the hold of dev can't be refreshed ("
    emulator.idle_s = 30.0
    with at_prompt(thopters, "exec", "dev", "--", "sh", "-c", "read line; exit 3") as terminal:
        until(lambda: sprite.tasks, "it is held")
        for _ in range(2):
            fault = emulator.fault(Fault("WS *", "status", status=409, times=None))
            terminal.expect(told)
            terminal.expect("so dev may sleep in 0 minutes, when all is quiet; still trying]\r\n")
            wait_for_sockets(emulator, 2)
            fault.times = 0
            wait_for_sockets(emulator, 2)
        terminal.type("\n")
        assert terminal.end_restored() == 3
        assert terminal.text.count(told) == 2


def wait_for_sockets(emulator: Emulator, count: int) -> None:
    before = len(emulator.journal.requests("WS"))
    until(lambda: len(emulator.journal.requests("WS")) >= before + count, "more are asked for")


def test_a_terminal_that_is_to_be_held_needs_nobody(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    with at_prompt(thopters, "exec", "dev", "--hold", "--", "sh", "-c", "read line") as terminal:
        until(lambda: sprite.tasks, "it is held")
        terminal.process.kill()
        until_held_on(emulator, sprite)
    [session] = [session for session in sprite.sessions.values() if session.tty]
    session.write(b"\n")
    until_released(sprite)


@pytest.mark.parametrize("words", [["exec", "dev", "--no-hold", "--", "bash"], ["attach", "dev"]])
def test_nobody_keeps_an_idle_prompt_awake(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, words: list[str]
) -> None:
    """What looks for a hold to refresh looks once, and does not wake what sleeps."""
    if words[0] == "attach":
        detach(thopters, "bash")
    before = len(emulator.journal.requests("WS"))
    with at_prompt(thopters, *words) as terminal:
        terminal.expect("$ ")
        emulator.idle_s = 0.9
        terminal.expect("has paused")
        until(terminal.is_raw, "it waits for a key")
        opened = [request.path for request in emulator.journal.requests("WS")][before:]
        opened = opened[2 if words[0] == "attach" else 1 :]  # behind the look for it
        assert opened in ([], ["/v1/sprites/dev/exec"])
        terminal.type(LEAVE)
        assert terminal.end_restored() == 0
    assert (sprite.status, sprite.tasks) == ("warm", {})


# commands, and holds by hand, as the platform has them


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a hold begin at once and expire soon, so that its refreshing is needed."""
    monkeypatch.setattr(program, "HOLD_FIRST_S", 0.2)
    monkeypatch.setattr(program, "HOLD_EVERY_S", 0.5)
    monkeypatch.setattr(program, "HOLD_EXPIRY_S", 4)
    yield


def run_held(emulator: Emulator, script: str, *, hold_max_s: int = 100) -> int:
    """Run a command as exec does, in this process."""
    credential = program.Credential(program.Secret(emulator.token), "the test")
    transport = program.Transport(
        emulator.url, credential, console=make_console(), clock=program.Clock(), environ={}
    )
    api = program.SpritesApi(transport)
    session = program.open_exec(api.sprite("dev"), {1: lambda _: None, 2: lambda _: None})
    try:
        words = [b"sh", b"-c", script.encode()]
        return session.run(program.RemoteCommand(words, hold_max_s=hold_max_s))
    finally:
        session.close()


@needs_curl
@needs_namespace
def test_a_quiet_command_that_is_held_outlives_many_idle_windows(
    emulator: Emulator, sprite: Sprite, quick: None
) -> None:
    statuses: list[int] = []
    command = threading.Thread(target=lambda: statuses.append(run_held(emulator, QUIET)))
    command.start()
    until_held_on(emulator, sprite)
    assert sprite.inner
    assert sprite.inner.requests.count(sprite.inner.requests[0]) >= 3  # refreshed
    emulator.idle_s = 30.0
    (sprite.home / "go").touch()
    command.join(60)
    assert statuses == [42]
    until(lambda: not sprite.tasks, "the hold is released")


@needs_curl
@needs_namespace
@pytest.mark.parametrize("end", ["exit 0", "exit 7", "kill -TERM $$", "kill -KILL $$"])
def test_a_hold_ends_with_its_command_however_it_ends(
    emulator: Emulator, sprite: Sprite, quick: None, end: str
) -> None:
    run_held(emulator, f"until grep -q . held 2> /dev/null; do sleep 0.1; ls > /dev/null; "
                       f"[ $SECONDS -lt 1 ] || break; done; sleep 0.6; {end}")  # fmt: skip
    assert sprite.inner
    assert any(request.startswith("PUT ") for request in sprite.inner.requests)
    until(lambda: not sprite.live_tasks(), "the hold is released")


@needs_curl
@needs_namespace
def test_a_hold_has_an_end(emulator: Emulator, sprite: Sprite, quick: None) -> None:
    began = time.monotonic()
    statuses: list[int] = []
    script = "until [ -e released ]; do sleep 0.1; done"
    command = threading.Thread(
        target=lambda: statuses.append(run_held(emulator, script, hold_max_s=3))
    )
    command.start()
    asked = sprite.inner.requests if sprite.inner else []
    until(lambda: asked and asked[-1].startswith("DELETE "), "it is released")
    assert time.monotonic() - began > 2
    count = len(asked)
    assert [request[:4] for request in asked[:-1]] == ["PUT "] * (count - 1) and count > 1
    (sprite.home / "released").touch()
    command.join(60)
    assert (statuses, len(asked)) == ([0], count)


@needs_curl
@needs_namespace
def test_a_detached_command_is_held_until_it_ends(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    identity = detach(thopters, "sh", "-c", "read line; exit 0", options=("--hold",))
    held = f"thopters-{session_of(sprite, identity).id}"
    until(lambda: held in sprite.tasks, "it is held")
    emulator.idle_s = 0.5
    until(lambda: sprite.clock.now() - session_of(sprite, identity).last_output > 2, "long enough")
    assert sprite.status == "running"
    session_of(sprite, identity).write(b"\n")
    until(lambda: not sprite.tasks, "the hold is released")
    until(lambda: sprite.status == "warm", "it sleeps")


@needs_curl
@needs_namespace
def test_hold_and_release_by_hand(thopters: Thopters, emulator: Emulator, sprite: Sprite) -> None:
    done = thopters("hold", "dev", "--for", "1h30m")
    assert done.code == 0, done
    assert re.fullmatch(r"dev stays awake until [-\d ]*\d\d:\d\d \(1h30m\)\n", done.out)
    [first] = sprite.tasks
    done = thopters("hold", "dev", "--for", "2h")
    assert done.code == 0, done
    until(lambda: first not in sprite.tasks, "the first one is replaced")
    [second] = sprite.tasks
    paused = thopters("pause", "dev", "--timeout", "0")
    assert paused.code == 7, paused
    assert f"hold {second} (until " in paused.err
    done = thopters("hold", "dev", "--release")
    assert (done.code, done.out) == (0, "dev may sleep again\n")
    assert not sprite.tasks
    assert thopters("hold", "dev", "--release").out == "dev was not held by hand\n"


def test_a_hold_that_ends_once_its_file_is_gone_is_still_released(tmp_path: Path) -> None:
    """The keeper looks at its file, and may do so before the script looks at anything else."""
    (tmp_path / ".thopters").mkdir()
    (tmp_path / ".thopters" / "hold").write_text("0123456789abcdef thopters-7\n")
    words = ["bash", "-c", "read", "keeper", "0123456789abcdef"]
    keeper = subprocess.Popen(words, stdin=subprocess.PIPE)
    remove = tmp_path / "rm"
    remove.write_text(
        f'#!/bin/sh\n/bin/rm "$@" && kill -KILL {keeper.pid}\n'
        f"while grep -qsa . /proc/{keeper.pid}/cmdline; do :; done\n"
    )
    remove.chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    with keeper:
        until(lambda: b"read" in Path(f"/proc/{keeper.pid}/cmdline").read_bytes())
        script = program.RELEASE_SCRIPT.decode()
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"thopters-7\n", b"")
        assert keeper.wait(60) == -signal.SIGKILL
    assert not (tmp_path / ".thopters" / "hold").exists()


@needs_curl
@needs_namespace
def test_attach_never_meets_what_holds(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    keeper = hold(thopters, sprite)
    assert "no command runs on a terminal" in thopters("attach", "dev").err
    [asked] = [r for r in emulator.journal if r.values("max_run_after_disconnect")]
    assert asked.values("max_run_after_disconnect") == ["0"]
    assert thopters("hold", "dev", "--release").code == 0
    assert keeper.ended.wait(60)


@needs_curl
@needs_namespace
@pytest.mark.slow
def test_what_holds_outlives_the_time_that_a_lost_client_gives(
    thopters: Thopters, sprite: Sprite
) -> None:
    keeper = hold(thopters, sprite)
    [task] = sprite.tasks
    left = time.monotonic()
    until(lambda: time.monotonic() - left > 12, "ten seconds and more pass")
    assert task in sprite.live_tasks() and not keeper.ended.is_set()


def hold(thopters: Thopters, sprite: Sprite) -> Session:
    """Hold a sprite by hand, and return the session that does it, as it is listed."""
    assert thopters("hold", "dev", "--for", "1h").code == 0
    identity = thopters("sessions", "dev").out.split("\t")[0]
    keeper = session_of(sprite, identity)
    until(lambda: not keeper.clients, "nobody is attached")
    return keeper


@needs_curl
@needs_namespace
@pytest.mark.long
def test_the_shortest_hold_is_seen_and_has_ended_when_it_is_released(
    thopters: Thopters, sprite: Sprite
) -> None:
    assert thopters("hold", "dev", "--for", "10").code == 0
    assert sprite.tasks
    until(lambda: not sprite.tasks, "it has ended")
    done = thopters("hold", "dev", "--release")
    assert (done.code, done.out) == (0, "dev was not held by hand\n"), done
