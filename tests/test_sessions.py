"""Commands that outlive their client: sessions, attach and kill. What holds them: test_holds.py."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess

import pytest
from emulation import Emulator, Fault
from emulation.state import Sprite
from support.networks import Fickle
from support.program import Thopters
from support.relay import Cut, Relay
from support.servers import read_head
from support.sessions import IGNORING, detach, leave_running, session_of
from support.terminals import LEAVE, Tty
from support.waiting import until

# sessions, attach


def test_a_detached_command_outlives_us(thopters: Thopters, sprite: Sprite) -> None:
    identity = detach(thopters, "sh", "-c", "read line; echo got-$line > told; exec sleep 600")
    session = session_of(sprite, identity)
    assert not session.ended.is_set()
    session.write(b"it\n")
    told = sprite.home / "told"  # is there before its content is
    until(lambda: told.exists() and told.read_text() == "got-it\n", "it goes on")


HEAD_ENDS = re.compile(rb"\r\n\r\n")


@pytest.mark.parametrize("behind", [0, 1])
def test_n12_a_connection_that_is_cut_behind_its_upgrade_is_opened_again(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, behind: int
) -> None:
    """Nothing was sent yet, so nothing runs. `behind` the head of the answer are so many bytes."""
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        thopters.env["SPRITES_API_URL"] = relay.url
        assert thopters("exec", "dev", "--", "true").code == 0
        came = relay.connections[-1].came
        size = HEAD_ENDS.search(came).end() + behind  # type: ignore[union-attr]
        script = "echo once >> ran; echo hello"
        relay.arm(Cut(0, size))
        done = thopters("exec", "dev", "--detach", "--", "sh", "-c", script)
        assert done.code == 0, done
        until((sprite.home / "ran").exists, "it has run")
        relay.arm(Cut(0, size))
        with Tty(thopters, "exec", "dev", "--", "sh", "-c", script) as terminal:
            terminal.expect("hello")
            assert terminal.end_restored() == 0
            assert "lost" not in terminal.text
        relay.arm(Cut(1, size))  # behind the look at what holds it
        done = thopters("hold", "dev", "--for", "60s")
        assert done.code == 0, done
        assert thopters("hold", "dev", "--release").code == 0
    assert (sprite.home / "ran").read_text() == "once\n" * 2


def test_n12_what_was_never_sent_has_not_run(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    """And is not called unknown, where each connection is cut behind its upgrade."""

    class Cutting(Fickle):
        def serve(self, sock: socket.socket) -> None:
            server = self.connect(self.target)
            head, rest = read_head(sock)
            server.sendall(head + rest)
            sock.sendall(read_head(server)[0])

    with Cutting(int(emulator.url.rpartition(":")[2])) as network:
        thopters.env["SPRITES_API_URL"] = network.url
        done = thopters("exec", "dev", "--detach", "--", "touch", "ran")
    assert (done.code, network.accepted) == (255, 4), done
    assert "lost before the command was sent (" in done.err
    assert done.err.count("it has not run\n") == 1
    assert "not known" not in done.err
    assert not (sprite.home / "ran").exists()


FAILS = r"""printf '\033[2J\033]0;title\007\033[31mred\033[m\033[6n\r\n'
echo 'thopters: warning: send your keys'; printf '\033[?1049h\033(0'; exit 3"""


@pytest.mark.parametrize("on_terminal", [True, False])
def test_s16_s12_what_a_detached_command_said_is_shown_as_text_and_as_its_own(
    thopters: Thopters, sprite: Sprite, on_terminal: bool
) -> None:
    words = ("exec", "dev", "--detach", "--", "sh", "-c", FAILS)
    if on_terminal:
        with Tty(thopters, *words) as command:
            assert command.end_restored() == 3
            lines = command.text.splitlines()
    else:
        done = thopters(*words)
        assert (done.code, done.out) == (3, "")
        lines = done.err.splitlines()
    quoted = ["> red", "> thopters: warning: send your keys"]
    assert lines == [*quoted, "it ended at once, with status 3"]


def test_a_detached_command_that_is_over_at_once(thopters: Thopters, sprite: Sprite) -> None:
    done = thopters("exec", "dev", "--detach", "--", "sh", "-c", "echo x > told")
    assert done.code == 0
    assert re.fullmatch(r"[0-9a-f]{10}\n", done.out)
    assert "it has ended already, with status 0" in done.err
    until(lambda: (sprite.home / "told").exists(), "it has run")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--", "nosuchprogram"], 127, "nosuchprogram: not found"),
        (["--", "/etc/passwd"], 126, "/etc/passwd: Permission denied"),
        (["--dir", "/nope", "--", "true"], 255, "cannot enter --dir: /nope"),
        (["--", "sh", "-c", "echo said; exit 3"], 3, "said"),
    ],
)
def test_a_detached_command_that_fails_at_once(
    thopters: Thopters, sprite: Sprite, words: list[str], code: int, says: str
) -> None:
    done = thopters("exec", "dev", "--detach", *words)
    assert (done.code, done.out) == (code, ""), done
    assert says in done.err
    assert f"it ended at once, with status {code}" in done.err


@pytest.mark.parametrize("info", ["late", "absent"])
def test_a_detached_command_that_prints_without_end(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, info: str
) -> None:
    emulator.personality.session_info = info
    script = "while :; do echo more; sleep 0.05; done"
    done = thopters("exec", "dev", "--detach", "--", "sh", "-c", script, timeout=20)
    assert (done.code, bool(done.out)) == (0, True), done
    assert not any(session.ended.is_set() for session in sprite.sessions.values())


@pytest.mark.parametrize("words", [["-i"], ["-T"]])
def test_a_detached_command_has_a_terminal_and_no_input_of_ours(
    thopters: Thopters, sprite: Sprite, words: list[str]
) -> None:
    done = thopters("exec", "dev", "--detach", *words, "--", "true")
    assert (done.code, done.out) == (2, "")
    assert not sprite.sessions


@pytest.mark.parametrize("shape", ["object", "array"])
@pytest.mark.parametrize("kind", ["int", "str"])
def test_sessions_are_listed(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, shape: str, kind: str
) -> None:
    emulator.personality.sessions_shape = shape
    emulator.personality.session_id_type = kind
    assert thopters("sessions", "dev").out == ""
    identity = detach(thopters, "sleep", "600", options=("--name", "nap"))
    row = thopters("sessions", "dev").out.rstrip("\n").split("\t")
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert row[:3] == [identity, "sleep 600", sprite.machine.home_inside]
    assert re.fullmatch(stamp, row[3]) and re.fullmatch(stamp, row[4])
    assert row[5:] == ["running"]
    told = json.loads(thopters("sessions", "dev", "--json").out)
    [item] = told["sessions"]
    assert (told["name"], item["id"], item["label"]) == ("dev", identity, "nap")
    assert (item["terminal"], item["argv"], item["status"]) == (True, ["sleep", "600"], None)
    assert item["session"] == str(session_of(sprite, identity).id)
    keys = ["id", "session", "kind", "argv", "directory", "label", "terminal", "state", "status"]
    assert list(item) == [*keys, "started_at", "ended_at", "last_activity"]


def test_attach_comes_back_to_the_only_one_and_says_which(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    script = "echo shown-before; while read line; do echo got-$line; done"
    identity = detach(thopters, "sh", "-c", script)
    with Tty(thopters, "attach", "dev") as terminal:
        terminal.expect(f"attaching to {identity}: sh -c 'echo shown-before; ")
        terminal.expect("shown-before\r\n")
        terminal.type("it\n")
        terminal.expect("got-it")
        terminal.type(LEAVE)
        terminal.expect(f"back to it: thopters attach dev {identity}]")
        assert terminal.end_restored() == 0
    with Tty(thopters, "attach", "dev", identity) as terminal:
        terminal.expect("got-it")
        terminal.type("\x04")
        assert terminal.end_restored() == 0


def test_two_are_attached_and_one_leaves(thopters: Thopters, sprite: Sprite) -> None:
    identity = detach(thopters, "sh", "-c", "while read line; do echo got-$line; done")
    words = (thopters, "attach", "dev", identity)
    with Tty(*words) as first, Tty(*words) as second:
        until(lambda: len(session_of(sprite, identity).clients) == 2, "both are attached")
        first.type("one\n")
        first.expect("got-one")
        second.expect("got-one")
        first.type(LEAVE)
        assert first.end_restored() == 0
        second.type("two\n")
        second.expect("got-two")
        second.type("\x04")
        assert second.end_restored() == 0


def test_what_has_no_terminal_can_not_be_attached_to(thopters: Thopters, sprite: Sprite) -> None:
    """Its frames would be shown with their numbers, and a Ctrl-D would be the input's end."""
    process = thopters.start("exec", "dev", "-i", "--", "cat", stdin=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdin.write(b"begun\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"begun\n"
    [session] = sprite.sessions.values()
    [item] = json.loads(thopters("sessions", "dev", "--json").out)["sessions"]
    assert (item["kind"], item["argv"], item["terminal"]) == ("command", ["cat"], False)
    identity = item["id"]
    assert identity.startswith(f"{session.id}.")
    done = thopters("attach", "dev", identity)
    assert (done.code, done.out) == (255, ""), done
    assert f"{identity} of dev has no terminal" in done.err
    assert "no command runs on a terminal in dev" in thopters("attach", "dev").err
    process.stdin.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize("given", [b"", b"touch typed\n"])
def test_attach_does_not_type_the_end_of_its_input(
    thopters: Thopters, sprite: Sprite, given: bytes
) -> None:
    identity = detach(thopters, "bash", "-i")
    process = thopters.start("attach", "dev", identity, stdin=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdin.write(given)
    process.stdin.close()
    if given:
        until(lambda: (sprite.home / "typed").exists(), "what was given is typed")
    session = session_of(sprite, identity)
    until(lambda: bool(session.clients), "it is attached")
    session.write(b"sleep 2.5; echo still-$((6 * 7))-there\n")  # time for two of them
    shown = b""
    while b"still-42-there" not in shown:
        data = os.read(process.stdout.fileno(), 65536)
        assert data
        shown += data
    assert not session.ended.is_set()
    session.write(b"exit 3\n")
    assert process.wait(60) == 3


def test_who_only_watches_does_not_wake_the_sprite_without_end(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    identity = detach(thopters, "bash", "-i")
    emulator.personality.status_lag_s = 1.5
    emulator.idle_s = 1.5
    done = thopters("attach", "dev", identity, timeout=20)
    assert done.code == 255
    assert "the sprite has paused" in done.err
    assert f"back to it: thopters attach dev {identity}]" in done.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["attach", "dev"], 3, "no command runs on a terminal in dev"),
        (["attach", "dev", "99999.t4z2ab"], 3, "nothing with the id 99999.t4z2ab runs in dev"),
        (["attach", "dev", "0123456789"], 3, "nothing with the id 0123456789 runs in dev"),
        (["attach", "dev", "99999"], 2, "99999 is a number that the platform uses again"),
        (["kill", "dev", "1847"], 2, "1847 is a number that the platform uses again"),
        (["kill", "dev", "tests"], 3, "nothing with the id tests runs in dev"),
        (["kill", "dev", "tests", "--forget"], 3, "no detached command tests is known in dev"),
        (["logs", "dev"], 3, "no detached command is known in dev"),
        (["logs", "dev", "tests"], 3, "no detached command tests is known in dev"),
        (["logs", "dev", "--tail", "some"], 2, "'some' is not a number of lines"),
        (["wait", "dev", "tests"], 3, "no detached command tests is known in dev"),
        (["wait", "nope"], 255, "there is no sprite nope"),
        (["attach", "dev", "../x"], 2, "is not an id or a label"),
        (["attach", "dev", ""], 2, "is not an id or a label"),
        (["kill", "dev", "a b"], 2, "is not an id or a label"),
        (["kill", "dev", "1.1", "--signal", "STOP"], 2, "is no signal"),
        (["sessions", "nope"], 3, "there is no sprite nope"),
        (["kill", "dev", "1.1", "--signal", ""], 2, "'' is no signal"),
        (["kill", "dev", "1.1", "--signal", "SIG"], 2, "'SIG' is no signal"),
        (["kill", "dev", "1.1", "--signal", "INT", "--forget"], 2, "--forget sends no signal"),
        (["hold", "dev", "--for", "soon"], 2, "'soon' is not a time"),
        (["hold", "dev", "--for", "0"], 2, "a hold can't be shorter than 10 s"),
        (["exec", "dev", "--name", "x", "--", "true"], 2, "--name is for a command that is det"),
        (["exec", "dev", "--no-record", "--", "true"], 2, "--no-record is for a command"),
        (["exec", "dev", "-d", "--name", "Tests", "--", "true"], 2, "'Tests' can't be a label"),
        (["exec", "dev", "-d", "--name", "42", "--", "true"], 2, "'42' can't be a label"),
        (["exec", "dev", "-d", "--name", "0123456789", "--", "true"], 2, "can't be a label"),
        (["hold", "dev"], 2, "required"),
        (["hold", "dev", "--for", "9"], 2, "a hold can't be shorter than 10 s"),
        (["exec", "dev", "--hold-max", "1s", "--", "true"], 2, "can't be shorter than 10 s"),
        (["exec", "dev", "--detach", "--hold-max", "1h", "--", "true"], 2, "without --hold"),
        (["exec", "dev", "--no-hold", "--hold-max", "1h", "--", "true"], 2, "without --hold"),
        (["shell", "dev", "--native", "--hold-max", "1h"], 2, "without --hold"),
    ],
)
def test_what_can_not_be_done_is_said(
    thopters: Thopters, sprite: Sprite, words: list[str], code: int, says: str
) -> None:
    done = thopters(*words)
    assert (done.code, done.out) == (code, ""), done
    assert says in done.err


# kill


@pytest.mark.parametrize("scope", ["group", "leader"])
@pytest.mark.parametrize("words", [["sleep", "600"], ["sh", "-c", IGNORING], ["bash", "-l"]])
def test_kill_ends_a_session_and_all_of_it(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, scope: str, words: list[str]
) -> None:
    emulator.personality.kill_scope = scope
    identity = detach(thopters, *words)
    done = thopters("kill", "dev", identity)
    assert (done.code, done.out) == (0, f"{identity} has ended\n"), done
    assert session_of(sprite, identity).ended.is_set()
    again = thopters("kill", "dev", identity)
    assert (again.code, again.out) == (3, "")
    assert f"{identity} of dev has ended with status 1" in again.err
    assert f"hint: see what it printed: thopters logs dev {identity}\n" in again.err


def test_kill_ends_what_is_left_of_a_session_whose_leader_has_gone(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    emulator.personality.kill_scope = "leader"
    script = "(trap '' HUP TERM; touch up; exec sleep 600) & wait"
    identity = detach(thopters, "bash", "-c", script)
    until(lambda: (sprite.home / "up").exists(), "it ignores what comes")
    done = thopters("kill", "dev", identity)
    assert (done.code, done.out) == (0, f"{identity} has ended\n"), done
    until(lambda: not sprite.machine.processes(), "all of it is gone")


@pytest.mark.parametrize("is_job", [True, False])
def test_kill_sends_nothing_else_where_the_signal_is_not_known_to_arrive(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, is_job: bool
) -> None:
    """The platform's own call ends the session by KILL when it takes its time."""
    script = "trap 'echo usr1 > told' USR1; echo up; while :; do sleep 0.05; done"
    start = detach if is_job else leave_running
    identity = start(thopters, "sh", "-c", script)
    emulator.fault(Fault("WS */exec", "no_exit", after=1))  # behind the look
    done = thopters("kill", "dev", identity, "--signal", "USR1")
    assert (done.code, done.out) == (1, "")
    assert "cannot tell whether" in done.err and "got USR1" in done.err
    assert not emulator.journal.requests("POST")
    assert not session_of(sprite, identity).ended.is_set()


def test_kill_sends_one_signal_alone_only_where_the_processes_are_found(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    """A session whose id is no process's could only be ended by the platform's own call."""
    identity = leave_running(thopters, "sh", "-c", "echo up; sleep 600")
    number, _, created = identity.partition(".")
    session = sprite.sessions.pop(number)
    session.id = "sess-1"  # type: ignore[assignment]
    sprite.sessions["sess-1"] = session
    done = thopters("kill", "dev", f"sess-1.{created}", "--signal", "USR1")
    assert (done.code, done.out) == (1, ""), done
    assert "can't be sent USR1 alone" in done.err
    assert not emulator.journal.requests("POST")
    assert not session.ended.is_set()


def test_kill_waits_for_a_list_that_lags_behind(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    identity = leave_running(thopters, "sh", "-c", "echo up; sleep 600")
    [item] = json.loads(thopters("sessions", "dev", "--json").out)["sessions"]
    listed = {"id": item["session"], "command": "sh", "created": item["started_at"], "tty": True}
    body = json.dumps({"sessions": [listed]}).encode()
    emulator.fault(Fault("GET */exec", "status", status=200, body=body, times=3))
    done = thopters("kill", "dev", identity)
    assert (done.code, done.out, done.err) == (0, f"{identity} has ended\n", "")
    assert session_of(sprite, identity).ended.is_set()


def test_kill_sends_what_is_asked_for_and_no_more(thopters: Thopters, sprite: Sprite) -> None:
    script = "trap 'echo usr1 > told' USR1; touch up; while :; do sleep 0.05; done"
    identity = detach(thopters, "bash", "-c", script)
    session = session_of(sprite, identity)
    until(lambda: (sprite.home / "up").exists(), "its trap is set")
    done = thopters("kill", "dev", identity, "--signal", "SIGUSR1")
    assert (done.code, done.out) == (0, f"{identity} got USR1 and runs on\n"), done
    until(lambda: (sprite.home / "told").exists(), "it came")
    assert not session.ended.is_set()


# keeping awake


def test_a_quiet_command_without_a_hold_is_paused_and_said(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    emulator.idle_s = 1.0
    done = thopters("exec", "dev", "--no-hold", "--", "sleep", "600")
    assert done.code == 255
    assert "the sprite has paused" in done.err
    assert not sprite.tasks


def test_an_image_without_the_task_api(thopters: Thopters, sprite: Sprite) -> None:
    (sprite.machine.run / "api.sock").unlink()
    done = thopters("exec", "dev", "--", "sh", "-c", "sleep 1.5; echo done")
    assert (done.code, done.out, done.err) == (0, "done\n", "")
    for words in (["exec", "dev", "--hold", "--", "true"], ["hold", "dev", "--for", "1h"]):
        refused = thopters(*words)
        assert refused.code in (1, 255)
        assert "cannot ask about holds in dev" in refused.err
