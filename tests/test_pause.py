"""`pause`: what may be ended and with whose consent, and that nothing which sleeps is woken.

A sprite falls asleep here when a test lets it: once the program does nothing but look at its
status. So no test depends on how fast the machine is.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

import emulation.exec as exec_module
import pytest
from emulation import SPRITE_PROGRAM, Emulator, Fault
from emulation.exec import Session as RemoteSession
from emulation.state import Sprite
from emulation.wire import Reply
from support.program import Result, Thopters
from support.relay import Relay
from support.sessions import asked, lasting_id, needs_curl, needs_namespace
from support.terminals import CTRL_C, CTRL_D, Start
from support.waiting import until

STATUS = "GET /v1/sprites/dev"
LISTED = "GET /v1/sprites"
# at sessions from outside and from inside, and at holds
LOOK = ["GET /v1/sprites/dev/exec", *["WS /v1/sprites/dev/exec"] * 2]
CHATTER = ["sh", "-c", "while :; do echo x; sleep 0.05; done"]


def awake(emulator: Emulator, name: str = "dev") -> Sprite:
    """Make a sprite and wake it, so that it has its task API too."""
    sprite = emulator.add_sprite(name)
    while not sprite.enter():
        pass
    return sprite


def hold(emulator: Emulator, sprite: Sprite, name: str = "agent") -> None:
    now = emulator.clock.now()
    sprite.tasks[name] = {"started_at": now, "expires_at": now + 3600}


def chatter(
    thopters: Thopters,
    emulator: Emulator,
    name: str = "dev",
    words: Sequence[str] = CHATTER,
) -> tuple[subprocess.Popen[bytes], RemoteSession]:
    """Start a command that prints for ever and holds nothing; return its client and its session."""
    before = set(emulator.sprite(name).sessions)
    process = thopters.start("exec", name, "--no-hold", "--", *words)
    assert process.stdout
    assert process.stdout.readline() == b"x\n"
    [identity] = set(emulator.sprite(name).sessions) - before
    emulator.journal.clear()
    return process, emulator.sprite(name).sessions[identity]


def until_watched(emulator: Emulator, process: subprocess.Popen[bytes], name: str = "dev") -> None:
    """Wait until the program has looked inside and only asks for the status, or has ended."""
    path = f"/v1/sprites/{name}"
    until(
        lambda: len(emulator.journal.requests("GET", path)) > 1 or process.poll() is not None,
        limit_s=30.0,
    )


def let_sleep(emulator: Emulator, process: subprocess.Popen[bytes], name: str = "dev") -> None:
    """Have every sprite sleep that nothing keeps awake, once that disturbs no look inside."""
    until_watched(emulator, process, name)
    emulator.idle_s = 0.5


def sleep_when_watched(
    emulator: Emulator, sprite: Sprite, *, cold: bool = False, looks: int = 1
) -> None:
    """Have a sprite fall asleep when its status is asked for after `looks`, before the answer."""
    show, path = sprite.shown_status, f"/v1/sprites/{sprite.name}"

    def fall_asleep() -> str:
        watched = len(emulator.journal.requests("GET", path)) > looks
        quiet = all(session.ended.is_set() for session in sprite.sessions.values())
        if sprite.status == "running" and watched and quiet:
            sprite.pause(cold=cold)
        return show()

    sprite.shown_status = fall_asleep  # type: ignore[method-assign]


def result(process: subprocess.Popen[bytes]) -> Result:
    out, err = process.communicate(timeout=60)
    return Result(subprocess.CompletedProcess(process.args, process.returncode, out, err))


def pause(thopters: Thopters, emulator: Emulator, *words: str) -> Result:
    """Run `pause dev` on a sprite that falls asleep as soon as it is watched, if it can."""
    process = thopters.start("pause", "dev", *words)
    let_sleep(emulator, process)
    return result(process)


# asleep already


@pytest.mark.parametrize("status", ["warm", "cold"])
@pytest.mark.parametrize("words", [[], ["--force"], ["--no-wait"], ["--timeout", "0"]])
def test_a_sleeping_sprite_is_told_and_not_touched(
    thopters: Thopters, emulator: Emulator, status: str, words: list[str]
) -> None:
    sprite = awake(emulator)
    hold(emulator, sprite)
    sprite.pause(cold=status == "cold")
    done = thopters("pause", "dev", *words)
    assert (done.code, done.out, done.err) == (0, "dev is hibernating already\n", "")
    assert set(asked(emulator)) == {STATUS, LISTED}
    assert (sprite.status, list(sprite.tasks)) == (status, ["agent"])


def test_a_sleeping_sprite_in_json(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    done = thopters("pause", "dev", "--json")
    told = json.loads(done.out)
    [paused] = told["paused"]
    assert isinstance(paused.pop("seconds"), float)
    assert paused == {"name": "dev", "was": "cold", "status": "cold", "ended": []}
    assert (done.code, done.err, told["errors"]) == (0, "", [])


def test_n6_a_sprite_that_a_get_calls_cold_is_not_asleep_while_it_is_listed_as_running(
    thopters: Thopters, emulator: Emulator
) -> None:
    """Either may be behind, so both have to say that it sleeps; there and in the end."""
    emulator.personality.get_says_cold = True
    sprite = awake(emulator)
    hold(emulator, sprite)
    done = thopters("pause", "dev", "--timeout", "1", "--json")
    told = json.loads(done.out)
    assert (done.code, told["paused"]) == (7, [])
    assert told["errors"][0]["message"].startswith("dev is still running after 1 s: ")
    assert "it may be kept awake by hold agent" in told["errors"][0]["message"]
    done = pause(thopters, emulator, "--force")
    assert (done.code, sprite.tasks, sprite.status) == (0, {}, "warm")
    assert re.fullmatch(r"dev is hibernating after \d+\.\d s\n", done.out)


def test_n6_a_token_that_may_not_list_has_the_word_of_a_get(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="warm")
    emulator.fault(Fault("GET /v1/sprites", "status", status=403, times=None))
    assert thopters("pause", "dev").out == "dev is hibernating already\n"


# quiet


def test_a_quiet_sprite_is_watched_until_it_sleeps(thopters: Thopters, emulator: Emulator) -> None:
    sprite = awake(emulator)
    done = pause(thopters, emulator)
    assert re.fullmatch(r"dev is hibernating after \d+\.\d s\n", done.out)
    assert (done.code, done.err) == (0, "")
    before, *look = asked(emulator)[:4]
    assert (before, look) == (STATUS, LOOK)
    assert set(asked(emulator)[4:]) == {STATUS, LISTED}
    assert sprite.status == "warm"  # the last look has not woken it


@pytest.mark.parametrize("status", ["warm", "cold"])
def test_a_quiet_sprite_in_json(thopters: Thopters, emulator: Emulator, status: str) -> None:
    sprite = awake(emulator)
    sleep_when_watched(emulator, sprite, cold=status == "cold")
    told = json.loads(thopters("pause", "dev", "--json").out)
    [paused] = told["paused"]
    assert paused.pop("seconds") >= 0
    assert paused == {"name": "dev", "was": "running", "status": status, "ended": []}
    assert told["errors"] == []
    assert sprite.status == status


def test_a_quiet_sprite_that_stays_awake_times_out(thopters: Thopters, emulator: Emulator) -> None:
    """Something that no look finds, such as a request to its URL, can keep it awake."""
    sprite = awake(emulator)
    done = thopters("pause", "dev", "--timeout", "0")
    assert (done.code, done.out) == (7, "")
    assert "error: dev is still running after 0 s: no session and no hold was found" in done.err
    assert "hint: open connections, through its URL too, keep it awake" in done.err
    assert asked(emulator) == [STATUS, *LOOK, STATUS, *LOOK]
    assert sprite.status == "running"


def test_no_wait_does_not_say_that_it_sleeps(thopters: Thopters, emulator: Emulator) -> None:
    awake(emulator)
    done = thopters("pause", "dev", "--no-wait")
    assert done.out == "dev is running; it falls asleep by itself when all is quiet\n"
    assert (done.code, done.err) == (0, "")
    assert asked(emulator) == [STATUS, *LOOK, STATUS]
    [paused] = json.loads(thopters("pause", "dev", "--no-wait", "--json").out)["paused"]
    assert (paused["was"], paused["status"]) == ("running", "running")


def test_no_wait_says_no_sleep_of_a_status_that_lags(
    thopters: Thopters, emulator: Emulator
) -> None:
    """The look inside has just woken it, so a status that says otherwise is an old one."""
    emulator.personality.status_lag_s = 3600.0
    sprite = awake(emulator)
    sprite.pause()
    done = thopters("pause", "dev", "--no-wait")
    assert (done.code, sprite.status) == (0, "running")
    assert "hibernating" not in done.out


def test_an_interrupt_ends_the_wait(thopters: Thopters, emulator: Emulator) -> None:
    sprite = awake(emulator)
    process = thopters.start("pause", "dev")
    until_watched(emulator, process)
    process.send_signal(signal.SIGINT)
    done = result(process)
    assert (done.code, done.out) == (-signal.SIGINT, "")
    assert done.err == "thopters: interrupted\n"
    assert sprite.status == "running"


def test_a_sprite_destroyed_meanwhile_is_no_sprite_asleep(
    thopters: Thopters, emulator: Emulator
) -> None:
    awake(emulator)
    process = thopters.start("pause", "dev")
    until_watched(emulator, process)
    emulator.account.remove("dev")
    done = result(process)
    assert (done.code, done.out) == (3, "")
    assert "there is no sprite dev" in done.err


# sessions


def test_without_consent_a_session_is_named_and_goes_on(
    thopters: Thopters, emulator: Emulator
) -> None:
    sprite = awake(emulator)
    client, session = chatter(thopters, emulator)
    done = thopters("pause", "dev", "--timeout", "1")
    assert (done.code, done.out) == (7, "")
    words = re.escape(f"{shlex.join(CHATTER)} in {sprite.machine.home_inside}")
    keeper = rf"session {re.escape(lasting_id(session))} \({words}, last active \S.*\)"
    said, error, next_step = done.err.splitlines()
    assert re.fullmatch(f"dev may be kept awake by {keeper}", said)
    told = f"thopters: error: dev is still running after 1 s: it may be kept awake by {keeper}"
    assert re.fullmatch(told, error)
    assert next_step == "hint: end these: thopters pause dev --force"
    first, *rest = asked(emulator)
    assert (first, rest[:3], rest[-3:]) == (STATUS, LOOK, LOOK)
    assert set(rest[3:-3]) == {STATUS}
    assert client.poll() is None
    assert not session.ended.is_set()
    assert sprite.status == "running"


def test_force_ends_a_session_and_the_sprite_sleeps(thopters: Thopters, emulator: Emulator) -> None:
    sprite = awake(emulator)
    client, session = chatter(thopters, emulator)
    done = pause(thopters, emulator, "--force", "--json")
    assert done.code == 0, done
    told = json.loads(done.out)
    [paused] = told["paused"]
    assert paused.pop("seconds") > 0
    ended = [f"session {lasting_id(session)}"]
    assert paused == {"name": "dev", "was": "running", "status": "warm", "ended": ended}
    assert told["errors"] == []
    assert f"dev may be kept awake by session {lasting_id(session)} (" in done.err
    assert session.exit_code == 128 + signal.SIGTERM
    assert client.wait(30) == 128 + signal.SIGTERM
    assert sprite.status == "warm"


def test_n3_a_wait_for_sleep_goes_over_the_connection_there_is(
    thopters: Thopters, emulator: Emulator
) -> None:
    sprite = awake(emulator)
    chatter(thopters, emulator)
    sleep_when_watched(emulator, sprite, looks=3)
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        done = thopters("pause", "dev", "--force", env={"SPRITES_API_URL": relay.url})
        assert (done.code, sprite.status) == (0, "warm"), done
        assert len(emulator.journal.requests("GET", "/v1/sprites/dev")) > 3
        assert len(relay.connections) <= 4


def open_console(thopters: Thopters, emulator: Emulator) -> RemoteSession:
    """Open a terminal session by the stand-in for the `sprite` program, up to its prompt."""
    console = subprocess.Popen(
        [*SPRITE_PROGRAM, "-s", "dev", "console"],
        env=thopters.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    thopters.started.append(console)  # to be ended with the others
    assert console.stdout
    screen = b""
    while not screen.endswith((b"$ ", b"# ")):
        data = os.read(console.stdout.fileno(), 65536)
        assert data, screen
        screen += data
    [session] = emulator.sprite("dev").sessions.values()
    emulator.journal.clear()
    return session


def test_force_ends_a_terminal_by_a_hangup(thopters: Thopters, emulator: Emulator) -> None:
    """An interactive shell ignores SIGTERM, and would only be killed after ten seconds."""
    sprite = awake(emulator)
    session = open_console(thopters, emulator)
    done = thopters("pause", "dev", "--force", "--no-wait")
    assert done.code == 0, done
    keeper = f"session {lasting_id(session)} (shell in {sprite.machine.home_inside}, last active "
    assert done.err.startswith(f"dev may be kept awake by {keeper}")
    assert session.ended.is_set()
    assert session.exit_code == 128 + signal.SIGHUP


@pytest.mark.parametrize("shape", ["object", "array"])
@pytest.mark.parametrize("kind", ["int", "str"])
def test_sessions_are_found_in_every_shape(
    thopters: Thopters, emulator: Emulator, shape: str, kind: str
) -> None:
    emulator.personality.sessions_shape = shape
    emulator.personality.session_id_type = kind
    awake(emulator)
    sessions = [chatter(thopters, emulator)[1] for _ in range(2)]
    done = thopters("pause", "dev", "--force", "--no-wait", "--json")
    [paused] = json.loads(done.out)["paused"]
    assert set(paused["ended"]) == {f"session {lasting_id(session)}" for session in sessions}
    assert len(paused["ended"]) == 2
    assert all(session.ended.is_set() for session in sessions)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("ndjson_error", "cannot end session {} of dev: the storage is not ready"),
        ("ndjson_no_complete", "cannot tell whether the API could end session {} of dev"),
        (
            "reset",
            "cannot tell whether the API could end session {} of dev: the connection to 127.0.0.1",
        ),
    ],
)
def test_a_session_that_may_live_on_is_a_failure(
    thopters: Thopters, emulator: Emulator, fault: str, message: str
) -> None:
    awake(emulator)
    _, session = chatter(thopters, emulator, words=("sh", "-c", "trap '' TERM; " + CHATTER[2]))
    # the looks at sessions and holds are let through; that a signal is sent from inside is not
    emulator.fault(Fault("WS */exec", "ws", actions=[("drop", None)], after=2))
    emulator.fault(Fault("POST */kill", fault))
    done = thopters("pause", "dev", "--force")
    assert (done.code, done.out) == (1, "")
    assert "thopters: error: " + message.format(lasting_id(session)) in done.err
    assert asked(emulator)[-1] == f"POST /v1/sprites/dev/exec/{session.id}/kill"
    assert len(emulator.journal.requests("POST")) == 1


@pytest.mark.parametrize("status", [404, 410])
def test_a_session_that_ended_by_itself_is_no_failure(
    thopters: Thopters, emulator: Emulator, start: Start, status: int
) -> None:
    sprite = awake(emulator)
    words = ("sh", "-c", "echo x; until [ -e go ]; do sleep 0.05; done")
    _, session = chatter(thopters, emulator, words=words)
    asking = start("pause", "dev", "--no-wait", columns=200)
    asking.expect("End it, so that dev can sleep? [y/N] ")
    (sprite.home / "go").touch()
    assert session.ended.wait(30)
    if status == 404:
        del sprite.sessions[str(session.id)]
    asking.type("y\n")
    assert asking.end() == 0
    assert "dev is running; it falls asleep by itself" in asking.screen.text
    [request] = emulator.journal.requests("POST")
    assert request.status == status


# holds


@needs_curl
@needs_namespace
def test_without_consent_a_hold_is_named_and_holds(thopters: Thopters, emulator: Emulator) -> None:
    sprite = awake(emulator)
    hold(emulator, sprite)
    end = datetime.datetime.fromtimestamp(sprite.tasks["agent"]["expires_at"])
    done = pause(thopters, emulator, "--timeout", "1")
    assert (done.code, done.out) == (7, "")
    said, error, _ = done.err.splitlines()
    keeper = rf"hold agent \(until ({end:%Y-%m-%d} )?{end:%H:%M} \((1h|59m\d+s)\)\)"
    assert re.fullmatch(f"dev may be kept awake by {keeper}", said)
    assert re.search(f" 1 s: it may be kept awake by {keeper}$", error)
    assert (sprite.status, list(sprite.tasks)) == ("running", ["agent"])
    assert not emulator.journal.requests("POST")


@needs_curl
@needs_namespace
def test_force_releases_a_hold_and_the_sprite_sleeps(
    thopters: Thopters, emulator: Emulator
) -> None:
    sprite = awake(emulator)
    hold(emulator, sprite)
    done = pause(thopters, emulator, "--force")
    assert re.fullmatch(r"dev is hibernating after \d+\.\d s\n", done.out), done
    assert "dev may be kept awake by hold agent (until " in done.err
    assert (done.code, sprite.tasks, sprite.status) == (0, {}, "warm")
    assert sprite.inner
    looks = ["GET /v1/tasks", "DELETE /v1/tasks/agent", "GET /v1/tasks"]
    assert sprite.inner.requests == looks


SPRITE_ENV = """\
#!/bin/sh
exec curl -sS --unix-socket /.sprite/api.sock -X "$3" "http://sprite$4"
"""


@needs_curl
@needs_namespace
def test_a_hold_that_is_still_there_was_not_released(
    thopters: Thopters, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The platform's own program says that all is well, whatever the task API has answered."""
    sprite = awake(emulator)
    folder = sprite.home / "bin"
    folder.mkdir()
    (folder / "sprite-env").write_text(SPRITE_ENV)
    (folder / "sprite-env").chmod(0o755)
    path = f"{sprite.machine.home_inside}/bin:{exec_module.DEFAULT_PATH}"
    monkeypatch.setattr(exec_module, "DEFAULT_PATH", path)
    hold(emulator, sprite)
    assert sprite.inner
    real = sprite.inner._answer

    def answer(method: str, path: str, body: bytes) -> Reply:
        return Reply.text(500, "no") if method == "DELETE" else real(method, path, body)

    monkeypatch.setattr(sprite.inner, "_answer", answer)
    done = thopters("pause", "dev", "--force", "--no-wait", "--json")
    assert done.code == 1, done
    told = json.loads(done.out)
    assert told["paused"] == []
    assert told["errors"][0]["message"] == "hold agent of dev can't be ended: it is still there"
    assert sprite.inner.requests.count("DELETE /v1/tasks/agent") == 2  # the second by sprite-env


ODD_NAMES = [
    "two words",
    "a/b",
    "..",
    "100%25",
    "who?#&=+",
    "'\"$(touch /home/sprite/owned)`\\",
    "{a,b}[1-3]*",
    "-X",
    "ünïcode ☃",
    "red\x1b[31m\n\r\t",
]


@needs_curl
@needs_namespace
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_hold_of_any_name_is_released(thopters: Thopters, emulator: Emulator, name: str) -> None:
    sprite = awake(emulator)
    hold(emulator, sprite, name)
    done = thopters("pause", "dev", "--force", "--no-wait", "--json")
    told = json.loads(done.out)
    assert told["errors"] == []
    [paused] = told["paused"]
    assert paused["ended"] == [f"hold {name}"]
    assert (done.code, sprite.tasks) == (0, {})
    assert not (sprite.home / "owned").exists()


@needs_curl
@needs_namespace
def test_a_holds_name_is_shown_as_escapes(thopters: Thopters, emulator: Emulator) -> None:
    hold(emulator, awake(emulator), "red\x1b[31m\n\r\t")
    done = thopters("pause", "dev", "--timeout", "0")
    assert done.code == 7
    assert done.err.count(r"kept awake by hold red\x1b[31m\n\r\t (until ") == 2
    assert "\x1b" not in done.err


@needs_curl
@needs_namespace
def test_a_hold_that_ended_by_itself_is_no_failure(
    thopters: Thopters, emulator: Emulator, start: Start
) -> None:
    sprite = awake(emulator)
    hold(emulator, sprite)
    asking = start("pause", "dev", "--no-wait", columns=200)
    asking.expect("End it, so that dev can sleep? [y/N] ")
    sprite.tasks.clear()
    asking.type("y\n")
    assert asking.end() == 0, asking.output
    assert "dev is running; it falls asleep by itself" in asking.screen.text


@needs_curl
@needs_namespace
def test_sessions_and_holds_are_ended_together(
    thopters: Thopters, emulator: Emulator, start: Start
) -> None:
    sprite = awake(emulator)
    _, session = chatter(thopters, emulator)
    hold(emulator, sprite)
    asking = start("pause", "dev", "--no-wait", columns=200)
    asking.expect("End all 2, so that dev can sleep? [y/N] ")
    asking.type("y\n")
    assert asking.end() == 0
    assert session.ended.is_set()
    assert not sprite.tasks


@pytest.mark.parametrize("lack", ["no socket", "no answer"])
def test_where_holds_cannot_be_asked_for_they_are_unknown(
    thopters: Thopters, emulator: Emulator, lack: str
) -> None:
    (awake(emulator).machine.run / "api.sock").unlink()
    unanswered = Fault("WS */exec", "ws", actions=[("drop", None)], times=None)
    if lack == "no answer":
        unanswered.after = 1  # the look at sessions
        emulator.fault(unanswered)
    done = thopters("pause", "dev", "--no-wait")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("dev is running")
    unanswered.after = 1
    done = thopters("pause", "dev", "--no-wait", "-v")
    assert done.code == 0
    assert "thopters: cannot ask about holds in dev: " in done.err


# consent


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ("\n", 2),
        ("n\n", 2),
        ("dev\n", 2),
        (CTRL_D, 2),
        (CTRL_C, -signal.SIGINT),
    ],
)
def test_nothing_is_ended_without_a_yes(
    thopters: Thopters, emulator: Emulator, start: Start, keys: str, status: int
) -> None:
    awake(emulator)
    client, session = chatter(thopters, emulator)
    asking = start("pause", "dev", columns=200)
    asking.expect(f"dev may be kept awake by session {lasting_id(session)} (")
    asking.expect("End it, so that dev can sleep? [y/N] ")
    assert asked(emulator) == [STATUS, *LOOK]
    asking.type(keys)
    assert asking.end() == status
    said = "dev was left as it is" if status == 2 else "interrupted"
    assert said in asking.screen.text
    assert asked(emulator) == [STATUS, *LOOK]
    assert client.poll() is None
    assert not session.ended.is_set()


def test_a_yes_ends_the_session_and_the_sprite_sleeps(
    thopters: Thopters, emulator: Emulator, start: Start
) -> None:
    sprite = awake(emulator)
    _, session = chatter(thopters, emulator)
    asking = start("pause", "dev", columns=200)
    asking.expect("[y/N] ")
    sleep_when_watched(emulator, sprite)
    asking.type("y\n")
    assert asking.end() == 0
    assert re.search(r"^dev is hibernating after \d+\.\d s$", asking.screen.text, re.M)
    assert asking.settings_after == asking.settings_before
    assert session.ended.is_set()
    assert sprite.status == "warm"


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_nobody_is_asked_without_a_terminal_at_both_ends(
    thopters: Thopters, emulator: Emulator, start: Start, stream: str
) -> None:
    awake(emulator)
    _, session = chatter(thopters, emulator)
    elsewhere = subprocess.DEVNULL if stream == "stdin" else subprocess.PIPE
    unasked = start("pause", "dev", "--no-wait", columns=200, **{stream: elsewhere})
    unasked.type("y\n")
    assert unasked.end() == 0
    pipe = unasked.process.stderr
    said = pipe.read().decode() if pipe else unasked.screen.text
    assert ("hint: --force ends what keeps it awake" in said) == (pipe is None)
    assert "[y/N]" not in said
    assert not emulator.journal.requests("POST")
    assert not session.ended.is_set()


def test_force_asks_nothing_on_a_terminal(
    thopters: Thopters, emulator: Emulator, start: Start
) -> None:
    awake(emulator)
    _, session = chatter(thopters, emulator)
    forced = start("pause", "dev", "--force", "--no-wait", columns=200)
    assert forced.end() == 0
    assert "[y/N]" not in forced.screen.text
    assert session.ended.is_set()


# several


def test_all_are_looked_at_first_and_each_has_its_outcome(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("asleep")
    for name in ("one", "two"):
        sleep_when_watched(emulator, awake(emulator, name))
    emulator.add_sprite("busy", status="running")
    names = ["one", "asleep", "nope", "busy", "two", "one"]
    done = thopters("pause", *names, "--timeout", "1", "--json")
    assert (done.code, done.err) == (7, "")
    told = json.loads(done.out)
    outcome = [(item["name"], item["was"], item["status"]) for item in told["paused"]]
    assert outcome == [
        ("one", "running", "warm"),
        ("asleep", "cold", "cold"),
        ("two", "running", "warm"),
    ]
    assert [error["code"] for error in told["errors"]] == ["not_found", "timed_out"]
    assert "busy is still running after 1 s" in told["errors"][1]["message"]
    requests = asked(emulator)
    watched = requests.index("GET /v1/sprites/one", requests.index("GET /v1/sprites/one") + 1)
    looks = [f"GET /v1/sprites/{name}/exec" for name in ("one", "busy", "two")]
    assert [text for text in requests[:watched] if re.fullmatch("GET .*/exec", text)] == looks
    # in the end only the one that is awake is looked into again
    assert [text for text in requests[watched:] if re.fullmatch("GET .*/exec", text)] == looks[1:2]


def test_a_no_for_one_is_none_for_the_others(
    thopters: Thopters, emulator: Emulator, start: Start
) -> None:
    awake(emulator)
    emulator.add_sprite("other")
    _, session = chatter(thopters, emulator)
    asking = start("pause", "dev", "other", columns=200)
    asking.expect("End it, so that dev can sleep? [y/N] ")
    asking.type("n\n")
    assert asking.end() == 2
    assert "other is hibernating already" in asking.screen.text
    assert "dev was left as it is" in asking.screen.text
    assert not session.ended.is_set()


# what cannot be


def test_pause_of_no_sprite(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev-main", status="running")
    done = thopters("pause", "dev-mian", "--force")
    assert (done.code, done.out) == (3, "")
    assert "there is no sprite dev-mian" in done.err
    assert "did you mean dev-main?" in done.err
    assert asked(emulator) == ["GET /v1/sprites/dev-mian", "GET /v1/sprites"]


@pytest.mark.parametrize(("words", "code"), [(["--timeout", "0"], 7), (["--no-wait"], 0)])
def test_a_sprite_in_an_unknown_state_is_not_looked_into(
    thopters: Thopters, emulator: Emulator, words: list[str], code: int
) -> None:
    emulator.personality.unknown_status = "exploding\x1b[2J"
    emulator.add_sprite("dev", status="running")
    done = thopters("pause", "dev", "--force", *words)
    assert done.code == code
    assert r"exploding\x1b[2J" in (done.err if code else done.out)
    assert "\x1b" not in done.out + done.err
    assert "hibernating already" not in done.out
    assert set(asked(emulator)) == {STATUS}


def test_a_refused_token_is_not_tried_for_every_name(
    thopters: Thopters, emulator: Emulator
) -> None:
    thopters.env["SPRITE_TOKEN"] = "acme/1/tok/not-the-right-one"
    done = thopters("pause", "a", "b", "c")
    assert (done.code, done.out) == (4, "")
    assert len(emulator.journal) == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dev", "--timeout", "-1"],
        ["dev", "--timeout", "nan"],
        ["dev", "--timeout", "inf"],
        ["dev", "--timeout", "1e9"],
        ["dev", "--timeout", "0.5"],
        ["dev", "--timeout", "soon"],
        ["dev", "--timeout", ""],
        ["dev", "--timeout"],
        ["dev", "--yes"],
        ["dev", "../x"],
    ],
)
def test_wrong_usage_asks_for_nothing(
    thopters: Thopters, emulator: Emulator, words: list[str]
) -> None:
    awake(emulator)
    done = thopters("pause", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("thopters: error: ")
    assert not len(emulator.journal)


def test_errors_come_as_json_too(thopters: Thopters, emulator: Emulator) -> None:
    done = thopters("pause", "nope", "--json")
    told: dict[str, Any] = json.loads(done.out)
    assert (done.code, done.err, told["paused"]) == (3, "", [])
    assert [error["code"] for error in told["errors"]] == ["not_found"]


def test_a_session_whose_id_is_no_text_is_one_that_can_not_be_ended(
    thopters: Thopters, emulator: Emulator
) -> None:
    awake(emulator)
    body = json.dumps({"sessions": [{"id": "\ud800x", "command": "a"}]}).encode()
    emulator.fault(Fault("GET */exec", "status", status=200, body=body, times=None))
    done = thopters("pause", "dev", "--force", "--timeout", "1")
    assert (done.code, done.out) == (1, "")
    assert "error: session \\ud800x.0 of dev can't be ended: it still runs" in done.err
    kills = [request.raw_path for request in emulator.journal.requests("POST")]
    assert kills == ["/v1/sprites/dev/exec/%ED%A0%80x/kill"]
