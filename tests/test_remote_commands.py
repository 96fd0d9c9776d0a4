"""Commands in a sprite by `exec`: their words, their streams and their status."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from emulation.state import Sprite
from support.program import Thopters
from support.runs import MEASURE, shorten
from support.sessions import detach, lasting_id, refuse_websockets
from support.waiting import until


def test_exec_streams_and_status(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    done = thopters("exec", "dev", "--", "bash", "-c", "echo out; echo err >&2; exit 42")
    assert (done.code, done.out, done.err) == (42, "out\n", "err\n")


def test_exec_keeps_everything_out_of_the_url(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    done = thopters(
        "exec", "dev", "--dir", "/", "--env", "K=canary-1", "--", "echo", "canary-2", "canary-3"
    )
    assert done.out == "canary-2 canary-3\n"
    (request,) = emulator.journal.requests()
    assert b"canary" not in request.head
    assert b"canary-3" in request.stdin
    assert len(request.target) < 300
    assert not emulator.journal.oddities


def test_s18_each_upgrade_has_a_key_of_its_own(thopters: Thopters, emulator: Emulator) -> None:
    """RFC 6455, 4.1: by it an answer that was kept somewhere is known for what it is."""
    emulator.add_sprite("dev", status="running")
    for _ in range(2):
        assert thopters("exec", "dev", "--", "true").code == 0
    keys = {request.headers["Sec-WebSocket-Key"] for request in emulator.journal.requests("WS")}
    assert len(keys) == 2
    assert all(len(set(base64.b64decode(key))) > 4 for key in keys)


def test_s18_what_we_run_for_ourselves_runs_without_the_users_variables(
    thopters: Thopters, emulator: Emulator
) -> None:
    """The file that sets them is the sprite's to write, and could change what our scripts do."""
    sprite = emulator.add_sprite("dev", status="running")
    identity = detach(thopters, "sleep", "600")
    (sprite.home / ".thopters" / "env").write_text("echo >> ~/read\nexport PATH=/nowhere\n")
    sprite.machine.own(sprite.home)
    for words, code in (
        (["hold", "dev", "--for", "1h"], 0),
        (["hold", "dev", "--release"], 0),
        (["sessions", "dev"], 0),
        (["logs", "dev"], 0),
        (["wait", "dev", "--timeout", "0"], 7),
        (["kill", "dev", identity], 0),
        (["kill", "dev", identity, "--forget"], 0),
    ):
        done = thopters(*words)
        assert done.code == code, done
    assert not (sprite.home / "read").exists()
    assert thopters("exec", "dev", "--", "/bin/true").code == 0
    assert (sprite.home / "read").read_text() == "\n"


def test_s19_nothing_of_our_environment_goes_into_a_sprite_unasked(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    names = ("AWS_SECRET_ACCESS_KEY", "MINE", "LC_ALL", "EDITOR", "SSH_AUTH_SOCK", "BASH_ENV")
    thopters.env |= {name: f"canary-{name}" for name in names}
    done = thopters("exec", "dev", "--env", "MINE", "--", "env")
    assert re.findall("canary-.*", done.out) == ["canary-MINE"]
    sent = b"".join(r.head + r.body + r.stdin for r in emulator.journal)
    assert re.findall(rb"canary-\w+", sent) == [b"canary-MINE"]


def test_exec_passes_any_argument(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    words = [bytes(range(1, 256)), b"", b"-n", b"--", b"$(touch x)", b"a'b\"c\n", b"\xff\xfe", b"*"]
    done = thopters("exec", "dev", "--", "bash", "-c", 'printf "%s\\0" "$@"', "sh", *words)
    assert done.out_bytes.split(b"\0")[:-1] == words
    assert not (emulator.sprite("dev").home / "x").exists()


def test_exec_passes_long_arguments(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    words = ["x" * 100_000] * 8
    done = thopters("exec", "dev", "--", "bash", "-c", 'echo "${#1} $#"', "sh", *words)
    assert done.out == "100000 8\n"


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 254, 255])
def test_exec_status_is_exact(thopters: Thopters, emulator: Emulator, code: int) -> None:
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--", "bash", "-c", f"exit {code}")
    assert (done.code, done.err) == (code, "")


@pytest.mark.parametrize("form", ["byte", "be32", "json"])
@pytest.mark.parametrize("info", ["first", "late", "absent"])
def test_exec_in_every_dialect(
    thopters: Thopters, emulator: Emulator, form: str, info: str
) -> None:
    emulator.personality.exit_form, emulator.personality.session_info = form, info
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--", "bash", "-c", "echo hi; exit 3")
    assert (done.code, done.out) == (3, "hi\n")


@pytest.mark.parametrize("name", ["INT", "TERM", "KILL", "SEGV", "PIPE"])
@pytest.mark.parametrize("killed", ["128+n", "255"])
def test_exec_of_a_command_that_a_signal_ends(
    thopters: Thopters, emulator: Emulator, name: str, killed: str
) -> None:
    emulator.personality.killed_exit = killed
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--", "bash", "-c", f"kill -{name} $$")
    assert (done.code, done.err) == (128 + signal.Signals["SIG" + name], "")


def test_exec_of_what_is_not_there(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--", "no-such-program")
    assert done.code == 127
    assert "no-such-program: not found" in done.err


def test_exec_directory_and_variables(thopters: Thopters, emulator: Emulator) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    (sprite.home / "a b").mkdir()
    show = 'pwd; printf "%s|" "$A" "$B" "$C"'
    done = thopters(
        "exec", "dev", "--dir", "a b", "--env", "A=x,y '\n", "--env", "B", "--env", "C=",
        "--", "bash", "-c", show, env={"B": "from here"},
    )  # fmt: skip
    assert done.out == f"{sprite.machine.home_inside}/a b\nx,y '\n|from here||"


@pytest.mark.parametrize("bad_dir", ["ignored", "error"])
def test_exec_in_a_directory_that_is_not_there(
    thopters: Thopters, emulator: Emulator, bad_dir: str
) -> None:
    emulator.personality.bad_dir = bad_dir
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--dir", "/nowhere", "--", "touch", "ran")
    assert done.code == 255
    assert "thopters: error: cannot enter --dir: /nowhere: No such file" in done.err
    assert not (emulator.sprite("dev").home / "ran").exists()


def test_exec_has_a_home_whatever_the_default(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.default_home = False
    emulator.add_sprite("dev", status="running")
    assert thopters("exec", "dev", "--", "sh", "-c", 'echo "$HOME"').out.startswith("/")


def test_exec_forwards_input_only_when_asked(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    data = bytes(range(256)) * 5000
    done = thopters("exec", "-i", "dev", "--", "sha256sum", stdin=data)
    assert done.out.split()[0] == hashlib.sha256(data).hexdigest()
    done = thopters("exec", "dev", "--", "cat", stdin=b"not for the command")
    assert done.out == ""
    assert b"not for the command" not in emulator.journal[-1].stdin


def test_exec_leaves_a_loops_input_alone(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    program = " ".join(thopters.argv)
    loop = f"while read -r line; do {program} exec dev -- echo $line; done"
    done = subprocess.run(
        ["bash", "-c", loop], input=b"1\n2\n3\n4\n", env=thopters.env, capture_output=True
    )
    assert done.stdout == b"1\n2\n3\n4\n"


def test_exec_output_before_attachment_is_not_lost(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.attach_delay_s = 0.5
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--", "seq", "100000")
    assert done.out == "".join(f"{n}\n" for n in range(1, 100001))


def test_exec_wakes_a_sleeping_sprite(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.wake_503 = 3
    emulator.add_sprite("dev", status="cold")
    done = thopters("exec", "-v", "dev", "--", "echo", "awake")
    assert (done.code, done.out) == (0, "awake\n")
    assert done.err.count("503 sprite_starting") == 3
    assert len(emulator.journal.executed) == 1


@pytest.mark.parametrize(("form", "status"), [("proxy error", 502), ("not ready", 503)])
@pytest.mark.parametrize("words", [["exec", "dev", "--", "true"], ["sessions", "dev"]])
def test_a_sprite_that_does_not_say_that_it_wakes_is_waited_for_too(
    thopters: Thopters, emulator: Emulator, form: str, status: int, words: list[str]
) -> None:
    emulator.personality.wake_503, emulator.personality.wake_form = 4, form
    emulator.add_sprite("dev", status="cold")
    done = thopters("-v", *words)
    assert done.code == 0, done
    assert done.err.count(f"{status}; trying again in ") == 4


@pytest.mark.parametrize(
    ("actions", "started"),
    [
        ([("drop", None)], False),
        ([("close", 1011)], False),
        ([("message", b"\x07?")], False),
        ([("message", b"\x03")], False),
        ([("message", b"\x03\x00\x00")], False),
        ([("raw", b"\x82\x85")], False),
        ([("message", b"\x01thopters-exec 77\npart"), ("drop", None)], True),
        ([("message", b"\x01thopters-exec 77\n"), ("message", b"\x09")], True),
    ],
)
def test_exec_never_invents_a_status(
    thopters: Thopters, emulator: Emulator, actions: list[tuple[str, object]], started: bool
) -> None:
    emulator.add_sprite("dev", status="running")
    emulator.fault(Fault("WS */exec", "ws", actions=actions, times=None))
    done = thopters("exec", "dev", "--", "true")
    assert done.code == 255
    words = "the command's exit status is unknown" if started else "not known whether it has run"
    assert words in done.err
    assert len(emulator.journal.requests("WS")) == 1


def test_exec_says_that_the_sprite_paused(thopters: Thopters, emulator: Emulator) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    process = thopters.start("exec", "dev", "--", "sh", "-c", "echo up; exec sleep 100")
    assert process.stdout and process.stdout.readline() == b"up\n"
    sprite.pause()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 255
    assert b"the sprite has paused" in err
    assert b"it was not run again" in err
    assert len(emulator.journal.executed) == 1


@pytest.mark.parametrize("size", [0, 1, 5, 100, 200])
def test_exec_cut_on_its_way_runs_nothing(
    thopters: Thopters, emulator: Emulator, size: int
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    emulator.fault(Fault("WS */exec", "cut_request", size=size, times=1))
    done = thopters("exec", "dev", "--", "touch", "ran")
    assert done.code == 255
    assert "not known whether it has run" in done.err
    assert not (sprite.home / "ran").exists()


def test_exec_does_not_wait_for_the_servers_close(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.hold_after_exit_s = 60
    emulator.add_sprite("dev", status="running")
    assert thopters("exec", "dev", "--", "true", timeout=20).code == 0


# What a command leaves running: the end of the command is the end of exec


LEFT = "while :; do sleep 0.05; echo tick >> ticks; done"


@pytest.mark.parametrize(
    "holding", ["", "> log", "2> log", "< /dev/null > log"], ids=["both", "err", "out", "nohup"]
)
@pytest.mark.parametrize("way", ["socket", "post"])
def test_p9_a_server_that_a_command_leaves_running_is_not_waited_for(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, way: str, holding: str
) -> None:
    if way == "post":
        refuse_websockets(emulator)
    server = "nohup " if "null" in holding else ""
    script = f"{server}sh -c '{LEFT}' {holding} & printf 'a\\nb'; printf 'c\\035' >&2; exit 7"
    done = thopters("exec", "dev", "--", "sh", "-c", script, timeout=30)
    assert (done.code, done.out, done.err) == (7, "a\nb", "c\x1d")
    (session,) = sprite.sessions.values()
    assert not session.ended.is_set()  # its streams are open
    with contextlib.suppress(ProcessLookupError):  # the platform does so ten seconds later
        os.killpg(session.id, signal.SIGKILL)
    ticks = sprite.home / "ticks"
    until(lambda: not sprite.tasks, "nothing keeps the sprite awake")
    count = ticks.stat().st_size if ticks.exists() else 0
    until(lambda: ticks.exists() and ticks.stat().st_size > count + 5, "it runs on")


@pytest.mark.parametrize("words", [[], ["--no-hold"]], ids=["hold", "no-hold"])
def test_p9_a_command_is_killed_with_its_session(
    thopters: Thopters, sprite: Sprite, words: list[str]
) -> None:
    """As the platform does ten seconds after a client has gone."""
    process = thopters.start("exec", *words, "dev", "--", "sh", "-c", f"echo up; {LEFT}")
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.kill()
    process.communicate()
    (session,) = sprite.sessions.values()
    until(lambda: any(map(watches, sprite.machine.processes())), "it is watched")
    os.killpg(session.id, signal.SIGKILL)
    until(lambda: not sprite.machine.processes(), "nothing of it is left")


@pytest.mark.parametrize("way", ["socket", "post"])
def test_p9_what_a_helper_writes_last_arrives(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, way: str
) -> None:
    """bash waits for no `>(tee log)`, so the command has ended before its last words are out."""
    if way == "post":
        refuse_websockets(emulator)
    shorten(thopters, CLOSE_QUIET_S=30, CLOSE_LIMIT_S=30)
    script = "exec > >(sleep 0.2; exec tee log) 2>&1; echo some; echo words >&2; exit 7"
    done = thopters("exec", "dev", "--", "bash", "-c", script)
    assert (done.code, done.out, done.err) == (7, "some\nwords\n", "")


@pytest.mark.parametrize("way", ["socket", "post"])
def test_p9_a_server_that_keeps_writing_is_not_waited_for(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, way: str
) -> None:
    if way == "post":
        refuse_websockets(emulator)
    shorten(thopters, CLOSE_QUIET_S=30, CLOSE_LIMIT_S=0.3)
    script = "while :; do echo tick; sleep 0.01; done & exit 7"
    done = thopters("exec", "dev", "--", "sh", "-c", script, timeout=30)
    assert (done.code, done.err) == (7, "")
    assert set(done.out.split()) <= {"tick"}


def watches(pid: int) -> bool:
    """Tell whether this is the process beside a command, in a session of its own."""
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"thopters-hold" in line and os.getsid(pid) == pid
    return False


def test_p9_input_and_output_that_look_like_the_end_are_passed_on(
    thopters: Thopters, dev: Emulator
) -> None:
    process = thopters.start("exec", "dev", "-i", "--", "cat", stdin=subprocess.PIPE)
    assert process.stdin and process.stdout
    for part in (b"\x1d", b"\x1dthopters-end ", b"\x1dthopters-end 0\n", b"\x1d\x1d"):
        process.stdin.write(part)  # the next is written when this one is back
        process.stdin.flush()
        assert process.stdout.read(len(part)) == part
    process.stdin.close()
    assert process.wait(30) == 0
    assert process.stdout.read() == b""


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1", "KILL"])
def test_p9_kill_reaches_a_command_that_is_attached_to(
    thopters: Thopters, sprite: Sprite, name: str
) -> None:
    process = thopters.start("exec", "dev", "--", "sh", "-c", "echo up; exec sleep 600")
    assert process.stdout and process.stdout.readline() == b"up\n"
    (session,) = sprite.sessions.values()
    identity = lasting_id(session)
    done = thopters("kill", "dev", identity, "--signal", name)
    assert (done.code, done.out) == (0, f"{identity} has ended\n"), done
    assert process.wait(30) == 128 + signal.Signals[f"SIG{name}"]
    until(lambda: not sprite.machine.processes(), "nothing of it is left")


def test_p9_kill_ends_what_a_command_has_left(thopters: Thopters, sprite: Sprite) -> None:
    script = f"sh -c \"trap '' TERM; {LEFT}\" & exit 0"
    assert thopters("exec", "dev", "--", "sh", "-c", script).code == 0
    (session,) = sprite.sessions.values()
    identity = lasting_id(session)
    until(lambda: (sprite.home / "ticks").exists(), "it ignores TERM")
    done = thopters("kill", "dev", identity)
    assert (done.code, done.out) == (0, f"{identity} has ended\n"), done
    until(lambda: not sprite.machine.processes(), "all of it is gone")


def test_exec_interrupted_ends_the_command_too(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    process = thopters.start("exec", "dev", "--", "bash", "-c", "echo up; exec sleep 100")
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert b"Traceback" not in err
    sessions = emulator.sprite("dev").sessions.values()
    assert all(session.ended.wait(10) for session in sessions)


def test_exec_lets_the_command_handle_the_interrupt(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    script = "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.05; done"
    process = thopters.start("exec", "dev", "--", "bash", "-c", script)
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (9, b"caught\n")


@pytest.mark.parametrize("how", ["refused", "no answer"])
def test_n1_an_interrupt_that_can_not_be_passed_on_is_told_at_once(
    thopters: Thopters, emulator: Emulator, how: str
) -> None:
    shorten(thopters, PROBE_LIMIT_S=0.5)
    sprite = emulator.add_sprite("dev", status="running")
    script = "echo up; until [ -e go ]; do sleep 0.05; done; exit 7"
    process = thopters.start("exec", "dev", "--", "bash", "-c", script)
    assert process.stdout and process.stdout.readline() == b"up\n"
    refusal: dict[str, Any] = {"kind": "status", "status": 409} if how == "refused" else {}
    emulator.fault(Fault("WS *", times=None, **(refusal or {"kind": "hang"})))
    process.send_signal(signal.SIGINT)
    assert process.stderr
    line = process.stderr.readline().decode()
    assert line.startswith("thopters: warning: INT is not known to have reached the command in ")
    hint = process.stderr.readline().decode()
    assert hint == "hint: the command may go on there; look at it: thopters sessions dev\n"
    (sprite.home / "go").touch()
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 7


def test_exec_in_a_sprite_that_is_destroyed_meanwhile(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    process = thopters.start("exec", "dev", "--", "sh", "-c", "echo up; sleep 60")
    assert process.stdout and process.stdout.readline() == b"up\n"
    emulator.account.remove("dev")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 255
    assert (
        b"there is no sprite dev any more" in err
        and b"hint: see what there is: thopters list" in err
    )


def test_exec_into_a_closed_pipe(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    process = thopters.start("exec", "dev", "--", "yes")
    assert process.stdout and process.stdout.read(10) == b"y\ny\ny\ny\ny\n"
    process.stdout.close()
    assert process.wait(30) == -signal.SIGPIPE
    assert process.stderr and b"Traceback" not in process.stderr.read()
    assert all(session.ended.wait(15) for session in emulator.sprite("dev").sessions.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dev"], "there is no command to run"),
        (["dev", "--"], "there is no command to run"),
        (["dev", "uname", "a b"], "thopters exec dev -- uname 'a b'"),
        (["dev", "--env", "1X=2", "--", "true"], "--env wants NAME=VALUE"),
        (["dev", "--env", "NOT_SET_HERE", "--", "true"], "there is no such variable here"),
        (["dev", "--env", "UID=5", "--", "true"], "--env can't set UID"),
        (["--", "true"], "NAME"),
    ],
)
def test_exec_wrong_usage(
    thopters: Thopters, emulator: Emulator, words: list[str], message: str
) -> None:
    done = thopters("exec", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not len(emulator.journal)


def test_exec_of_our_own_failures_is_255(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev-main")
    done = thopters("exec", "dev-mian", "--", "true")
    assert done.code == 255
    assert "there is no sprite dev-mian" in done.err
    assert "did you mean dev-main?" in done.err


@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("command", ["init dev", "hold dev --release", "cp dev:x ."])
def test_s8_a_sprite_that_prints_without_end_fills_no_memory(
    thopters: Thopters, dev: Emulator, command: str, stream: int
) -> None:
    flood = ("message", bytes([stream]) + b"x\n" * (1 << 19))
    actions = [("message", b"\1thopters-exec 1\n"), *[flood] * 150]
    dev.fault(Fault("WS */exec", "ws", actions=actions, times=None))
    thopters.argv = [sys.executable, "-S", "-c", MEASURE, *thopters.argv]
    code, out, err, peak, _ = json.loads(thopters(*command.split()).out)
    assert code == (0 if (command, stream) == ("init dev", 2) else 1), (out, err)
    assert peak < 100 << 20
