"""R17: short commands of our own that end with a status which is not theirs prove nothing.

A shell that is killed, that is not there or that can't begin gives a status too: 137, 127, 255.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from emulation import Emulator, Fault
from emulation.exec import Session
from emulation.state import Sprite
from support.program import Thopters
from support.runs import shorten
from support.sessions import leave_running, needs_curl, needs_namespace, session_of, upgrades
from support.terminals import ASLEEP, BACK, LOST, Tty, open_shell
from support.units import CANARY, FakeClock, make_console
from support.waiting import until

import thopters as program

STATUSES = [127, 137, 255]
statuses = pytest.mark.parametrize("status", STATUSES)


def end_by(emulator: Emulator, status: int, *, after: int = 0, times: int | None = 1) -> None:
    """Have a command of the program end with a status, as far as the program can see."""
    actions = [("message", b"\x01thopters-exec 7\n"), ("message", bytes((3, status)))]
    emulator.fault(Fault("WS */exec", "ws", actions=actions, after=after, times=times))


def a_session(thopters: Thopters, sprite: Sprite) -> tuple[str, Session]:
    script = "trap : USR1; echo up; while :; do sleep 0.05; done"
    identity = leave_running(thopters, "sh", "-c", script)
    session = session_of(sprite, identity)
    until(lambda: not session.clients, "the emulator has seen that who began it left")
    return identity, session


@statuses
def test_r17_a_signal_that_was_not_sent_is_not_called_sent(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, status: int
) -> None:
    identity, session = a_session(thopters, sprite)
    end_by(emulator, status, after=1)  # behind the look
    done = thopters("kill", "dev", identity, "--signal", "USR1")
    assert (done.code, done.out) == (1, ""), done
    assert f"cannot tell whether session {identity} of dev got USR1" in done.err
    assert f"the command for it ended with {status}" in done.err
    assert not session.ended.is_set()
    end_by(emulator, status, after=1)  # then the platform is asked
    assert thopters("kill", "dev", identity).out == f"{identity} has ended\n"
    assert session.ended.is_set()


@pytest.mark.parametrize("status", [127])
def test_r17_a_disk_that_nobody_has_looked_at_is_not_called_the_old_one(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, status: int
) -> None:
    shorten(thopters, WAKE_LIMIT_S=5)
    (sprite.home / "work").write_text("before")
    sprite.add_checkpoint("first")
    (sprite.home / "work").write_text("after")
    end_by(emulator, status, after=1, times=None)  # the first leaves the marker
    done = thopters("restore", "dev", "v1", "--yes")
    assert done.code == 7, done
    assert (sprite.home / "work").read_text() == "before"
    assert "dev may or may not be at v1 now; the state before is checkpoint v2" in done.err
    assert "still shows" not in done.err


@statuses
@pytest.mark.parametrize("words", [["hold", "dev", "--for", "1h"], ["hold", "dev", "--release"]])
def test_r17_the_image_is_not_blamed(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, words: list[str], status: int
) -> None:
    end_by(emulator, status)
    done = thopters(*words)
    assert (done.code, done.out) == (1, ""), done
    assert f"cannot ask about holds in dev: the command for it ended with {status}" in done.err


@statuses
def test_r17_what_may_have_been_put_is_not_called_absent(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, status: int
) -> None:
    (thopters.home / "file").write_text("x")
    end_by(emulator, status)
    done = thopters("cp", "file", "dev:file")
    assert done.code == 1
    assert f"cannot copy: the command in dev ended with {status}" in done.err
    assert "hint: some of it may be in place" in done.err


@needs_curl
@needs_namespace
def test_r17_one_lost_helper_does_not_end_the_hold_of_who_is_attached(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    shorten(thopters, HOLD_EVERY_S=0.2, HOLD_AGAIN_S=0.1)

    def told() -> int:
        return sum(b"/proc/$1/fd/9" in way.stdin for way in emulator.journal.requests("WS"))

    with Tty(thopters, "exec", "dev", "-t", "--", "sh", "-c", "echo begun; exec sleep 60") as tty:
        tty.expect("begun")
        until(lambda: told() >= 2, "the loop is told that somebody is attached")
        end_by(emulator, 143)
        before = told()
        until(lambda: told() >= before + 3, "it is told again and again")


@pytest.mark.parametrize(("reader", "status"), [("cat", 0), ("exit", 3)], ids=["reads", "gone"])
def test_r17_only_a_loop_that_reads_is_told(reader: str, status: int) -> None:
    """Where it has given up, or its time was up, nobody tries again."""
    script = f"exec 9> >({reader}); wait $!; echo; read -r x"
    script = script if reader == "exit" else script.replace("wait $!; ", "")
    words = ["bash", "-c", script, "_thopters"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"\n"
        cmdline = Path(f"/proc/{process.pid}/cmdline")
        words = ["bash", "-c", program.HERE_SCRIPT.decode(), "thopters", str(process.pid)]
        assert b"_thopters" in cmdline.read_bytes()
        done = subprocess.run(words, capture_output=True, timeout=60)
        process.kill()
    assert done.returncode == status, done


def test_r40_what_was_typed_for_the_sprite_is_not_left_to_the_local_shell(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    shorten(thopters, AWAY_LIMIT_S=0)
    with open_shell(thopters, columns=400) as shell:
        emulator.fault(Fault("GET *", "reset", times=None))
        emulator.fault(Fault("WS */exec/*", "reset", times=None))
        sprite.drop_connections()
        shell.expect(LOST)
        shell.type("rm -rf build\r")
        shell.process.wait(60)
        assert shell.waiting == 0
        assert shell.end_restored() == 255
        assert BACK.search(shell.text)


def test_r40_what_was_typed_before_a_session_was_there_is_dropped_too(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    shorten(thopters, WAKE_LIMIT_S=2)
    emulator.fault(Fault("WS */exec", "starting", times=None))
    with Tty(thopters, "shell", "dev", "--native", columns=200) as shell:
        until(shell.is_quiet, "it is waited for")
        shell.type("rm -rf build\r")
        shell.process.wait(60)
        assert shell.waiting == 0
        assert shell.end_restored() == 255


def test_r40_a_report_wakes_no_sprite_whose_status_lags(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    shorten(thopters, IDLE_BEFORE_PAUSE_S=0)
    emulator.personality.status_lag_s = 2.0
    with open_shell(thopters) as shell:
        asked = upgrades(emulator)
        sprite.pause()
        shell.type("\x1b[I\x1b[<35;1")  # of the focus, and half of one of the mouse
        shell.expect(ASLEEP)
        assert (sprite.status, upgrades(emulator)) == ("warm", asked)


# what the API denies once


def test_r17_an_attach_stays_below_the_apis_address_and_waits_for_the_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, asked = FakeClock(), list[str]()
    transport = program.Transport(
        "https://gate.example/sprites", program.Credential(program.Secret(CANARY), "a test"),
        console=make_console(), clock=clock, environ={},
    )  # fmt: skip

    def refuse(sprite: object, target: str, limit_s: float) -> NoReturn:
        asked.append(target)
        raise program.NotFoundError("no")

    seen: Any = program.Session({"id": 12, "created": "2027-01-15T08:00:00Z"})
    monkeypatch.setattr(program.Sprite, "list_sessions", lambda _: [seen])
    monkeypatch.setattr(program, "upgrade_once", refuse)
    sprite = program.SpritesApi(transport).sprite("dev")

    def attach(created_at: float = seen.created_at) -> program.TerminalSession | None:
        return program.attach_terminal(sprite, lambda _: None, "12", created_at)

    with pytest.raises(program.ThoptersError, match="is listed, but can't be attached to"):
        attach()
    path = "/sprites/v1/sprites/dev/exec"
    assert set(asked[:-1]) == {f"{path}/12"} and len(asked) > 5
    assert asked[-1] == f"{path}?id=12&tty=true&stdin=true"
    assert program.SESSION_LAG_S <= sum(clock.slept) <= program.SESSION_LAG_S + 1
    asked.clear()
    assert attach(seen.created_at - 86400) is None  # its number is another's now
    assert not asked
    listed = iter([[seen], [seen], []])
    monkeypatch.setattr(program.Sprite, "list_sessions", lambda _: next(listed))
    assert attach() is None


def test_r17_a_session_that_a_404_denies_once_is_attached_to_again(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    with Tty(thopters, "shell", "dev", "--native") as shell:
        shell.expect("$ ")
        shell.ask("here=same; echo now-$here", "now-same")
        body = json.dumps({"error": "not_found", "message": "sprite not found"}).encode()
        emulator.fault(Fault("WS */exec/*", "status", status=404, body=body))
        sprite.drop_connections()
        shell.expect("attaching again]")
        shell.type("echo it-is-$here\r")
        shell.expect("it-is-same")
        assert len(sprite.sessions) == 1


def test_r17_sprites_of_before_rc30_know_a_session_by_the_query(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    identity, session = a_session(thopters, sprite)
    words = "404 page not found"
    page: dict[str, Any] = {"status": 404, "body": words.encode(), "content_type": "text/plain"}
    emulator.fault(Fault("WS */exec/*", "status", times=None, **page))
    process = thopters.start("attach", "dev", identity)
    until(lambda: bool(session.clients), "it is attached")
    os.killpg(session.process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL


def test_r17_a_session_that_is_listed_and_never_found_is_an_error(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    identity, session = a_session(thopters, sprite)
    emulator.fault(Fault("WS *", "status", status=404, after=1, times=None))  # behind the look
    done = thopters("attach", "dev", identity)
    assert done.code == 255
    assert f"session {session.id} of dev is listed, but can't be attached to" in done.err
    assert not session.ended.is_set()


@pytest.mark.parametrize("age_s", [86_400, 0])
def test_r26_a_sprite_that_a_get_has_missed_is_not_called_ours(
    thopters: Thopters, emulator: Emulator, age_s: int
) -> None:
    """Its creation can't be told from a POST that failed, but by its age."""
    shorten(thopters, READ_BACK_LIMIT_S=1)
    sprite = emulator.add_sprite("dev", status="running")
    sprite.created_at = emulator.clock.now() - age_s
    emulator.fault(Fault("GET /v1/sprites/dev", "status", status=404))
    emulator.fault(Fault("POST /v1/sprites", "status", status=500))
    done = thopters("create", "dev", "--no-init")
    assert done.code == (5 if age_s else 0), done
    assert ("there is a sprite dev already" in done.err) == bool(age_s)


# holds


@pytest.fixture
def held(thopters: Thopters, sprite: Sprite) -> Iterator[str]:
    done = thopters("hold", "dev", "--for", "1h")
    assert done.code == 0, done
    yield next(iter(sprite.live_tasks()))


@needs_curl
@needs_namespace
def test_a_hold_that_died_is_not_taken_for_anothers(thopters: Thopters, sprite: Sprite) -> None:
    """Its file may name a process that is another's by now."""
    started = thopters.start("exec", "dev", "--hold", "--", "sleep", "60")
    until(sprite.live_tasks, "the other hold is there")
    task = next(iter(sprite.live_tasks()))
    (sprite.home / ".thopters").mkdir(exist_ok=True)
    (sprite.home / ".thopters" / "hold").write_text(f"0123456789abcdef {task}\n")
    sprite.machine.own(sprite.home / ".thopters")
    done = thopters("hold", "dev", "--release")
    assert (done.code, done.out) == (0, "dev was not held by hand\n"), done
    assert task in sprite.live_tasks() and started.poll() is None
    assert not (sprite.home / ".thopters" / "hold").exists()


@needs_curl
@needs_namespace
def test_a_hold_that_can_not_be_noted_says_so_at_once(thopters: Thopters, sprite: Sprite) -> None:
    (sprite.home / ".thopters").write_text("")
    done = thopters("hold", "dev", "--for", "1h")
    assert (done.code, done.out) == (1, ""), done
    assert "cannot hold dev: the command for it has ended" in done.err


@needs_curl
@needs_namespace
@pytest.mark.usefixtures("held")
def test_a_hold_by_hand_is_released(thopters: Thopters, sprite: Sprite) -> None:
    done = thopters("hold", "dev", "--release")
    assert done.out == "dev may sleep again\n", done
    assert not sprite.live_tasks()


# signals


def test_r39_a_signal_waits_for_what_is_done_whole() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), program.SignalsWait():
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.05)  # it has come, and is not seen
        done.append(True)
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
