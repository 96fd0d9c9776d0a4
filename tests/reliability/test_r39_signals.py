"""R39: whenever a signal comes, the program dies of it, leaves nothing behind, and says the truth.

A point in time is the n-th request that reaches the server, and a moment more. So the points lie
all over a command, on a slow machine too. One that comes when all is done is a run like any other.
Inside of the program it is the n-th call of a function, so that none is missed by chance.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emulation import Emulator, Fault, write_launcher
from emulation.exec import Session as RemoteSession
from emulation.machine import namespace_kind
from support.configs import write
from support.ports import free_ports
from support.program import MODULE, Thopters
from support.runs import shorten
from support.sessions import session_of
from support.ssh import SSHD
from support.waiting import until

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POINTS = 20
STEP_S = 0.02  # between the moments after a request


class Scene:
    """A sprite, a command on its way, and what its words have to agree with."""

    def __init__(self, thopters: Thopters, emulator: Emulator, tmp_path: Path) -> None:
        self.thopters = thopters
        self.emulator = emulator
        self.tmp_path = tmp_path
        emulator.personality.attach_delay_s = 0.06  # so that there is something to interrupt
        emulator.personality.restore_delay_s = 0.3
        emulator.personality.wake_503 = 2
        path = thopters.home / ".sprite-thopters" / "config.json"
        write(path, {"secrets": {"MINE": "a value"}, "git": {"user": "A", "email": "a@b.c"}})

    def sprite(self) -> None:
        sprite = self.emulator.add_sprite("dev", status="running")
        sprite.add_checkpoint("first")
        (sprite.home / "since").touch()

    def slow_checkpoint(self) -> None:
        self.sprite()
        self.emulator.fault(Fault("POST */checkpoint", "drip", interval=0.002))

    def session(self) -> None:
        """Have a command in the sprite that keeps it awake."""
        self.sprite()
        sprite = self.emulator.sprite("dev")
        while not sprite.enter():
            pass
        kept = RemoteSession(sprite, self.emulator.personality, ["sleep", "60"], env=[],
                             directory="", tty=False, stdin=False)  # fmt: skip
        sprite.sessions[str(kept.id)] = kept

    def job(self) -> None:
        """Have a detached command in the sprite."""
        self.sprite()
        done = self.thopters("exec", "dev", "-d", "--", "sh", "-c", "echo up; exec sleep 60")
        assert done.code == 0, done
        self.id = done.out.strip()

    def program(self) -> None:
        self.sprite()
        folder = self.tmp_path / "programs"
        write_launcher(folder, "sprite", ["sh", "-c", "exec sleep 60"])
        self.thopters.env["PATH"] = f"{folder}{os.pathsep}{self.thopters.env['PATH']}"

    def nothing(self) -> None:
        pass

    def progress(self) -> tuple[int, list[str], bool]:
        """Return what changes as long as a command has something to do."""
        if "dev" not in self.emulator.sprites:
            return len(self.emulator.journal), [], False
        sprite = self.emulator.sprite("dev")
        made = [checkpoint.id for checkpoint in sprite.checkpoints]
        return len(self.emulator.journal), made, (sprite.home / ".thopters" / "env").exists()

    def created(self, out: str, err: str, interrupted: bool) -> None:
        exists = "dev" in self.emulator.sprites
        assert ("dev was created" in err) <= exists
        assert ("dev\t" in out) <= exists
        if exists and interrupted:
            assert "dev was created" in err or "may still be on its way" in err
            assert "thopters destroy dev" in err or "thopters list" in err

    def initialised(self, out: str, err: str, interrupted: bool) -> None:
        env = self.emulator.sprite("dev").home / ".thopters" / "env"
        content = env.read_bytes() if env.exists() else b""
        assert content in (b"", b"export MINE='a value'\n")
        assert ("dev: MINE" in out) <= bool(content)

    def executed(self, out: str, err: str, interrupted: bool) -> None:
        if "up" in out:  # else the platform ends it, ten seconds after its client has left
            sessions = self.emulator.sprite("dev").sessions.values()
            until(lambda: all(session.ended.is_set() for session in sessions), limit_s=15)

    def checkpointed(self, out: str, err: str, interrupted: bool) -> None:
        ids = [made.id for made in self.emulator.sprite("dev").checkpoints]
        assert set(out.split()) <= set(ids)

    def restored(self, out: str, err: str, interrupted: bool) -> None:
        sprite = self.emulator.sprite("dev")
        path = "/v1/sprites/dev/checkpoints/v1/restore"
        if "restored" in out:
            assert not (sprite.home / "since").exists()
        elif self.emulator.journal.requests("POST", path):
            assert "dev may or may not be at v1 now; the state before is checkpoint v2" in err
        if "checkpoint v2" in err:
            assert [made.id for made in sprite.checkpoints] == ["v1", "v2"]
        if "may or may not" not in err and not out:
            assert (sprite.home / "since").exists()

    def paused(self, out: str, err: str, interrupted: bool) -> None:
        if "is hibernating" in out:
            assert self.emulator.sprite("dev").status in ("warm", "cold")

    def left_alone(self, out: str, err: str, interrupted: bool) -> None:
        assert interrupted and out in ("", "up\r\n")
        assert not session_of(self.emulator.sprite("dev"), self.id).ended.is_set()

    def hosted(self, out: str, err: str, interrupted: bool) -> None:
        folder = self.thopters.home / ".ssh"
        texts = [path.read_text() if path.exists() else ""
                 for path in (folder / "thopters" / "config", folder / "thopters" / "known_hosts",
                              folder / "config")]  # fmt: skip
        assert ("Host dev.sprite\n" in texts[0]) <= ("dev.sprite-" in texts[1])
        assert ("Include " in texts[2]) <= ("Host dev.sprite\n" in texts[0])
        assert ("is set up" in out) <= ("Include " in texts[2])

    def watched(self, out: str, err: str, interrupted: bool) -> None:
        assert interrupted  # it has no end of its own
        assert re.fullmatch(r"([^\t]+\tdev\trunning\n)?", out)

    def proxied(self, out: str, err: str, interrupted: bool) -> None:
        assert interrupted  # it would go on for a minute


Prepare = Callable[[Scene], None]
Check = Callable[[Scene, str, str, bool], None]
# words, what is there before, how many requests come, and what the words agree with
COMMANDS: dict[str, tuple[list[str], Prepare, int, Check]] = {
    "create": (["create", "dev"], Scene.nothing, 6, Scene.created),
    "init": (["init", "dev"], Scene.sprite, 1, Scene.initialised),
    "exec": (
        ["exec", "dev", "--", "sh", "-c", "echo up; exec sleep 60"],
        Scene.sprite,
        1,
        Scene.executed,
    ),
    "checkpoint": (["checkpoint", "dev"], Scene.slow_checkpoint, 1, Scene.checkpointed),
    "restore": (["restore", "dev", "v1", "--yes"], Scene.sprite, 6, Scene.restored),
    "pause": (
        ["pause", "dev", "--force", "--timeout", "30"],
        Scene.session,
        7,
        Scene.paused,
    ),
    "list --watch": (["list", "--watch"], Scene.sprite, 1, Scene.watched),
    "logs -f": (["logs", "dev", "-f"], Scene.job, 2, Scene.left_alone),
    "wait": (["wait", "dev"], Scene.job, 2, Scene.left_alone),
    "proxy": (["proxy", "dev", "PORT"], Scene.program, 1, Scene.proxied),
    "proxy --native": (["proxy", "dev", "PORT", "--native"], Scene.sprite, 1, Scene.proxied),
}
if SSHD and namespace_kind() == "root":
    words = ["ssh", "--setup", "dev", "--yes"]
    COMMANDS["ssh --setup"] = (words, Scene.sprite, 5, Scene.hosted)


def default_signals() -> None:
    """Be in the child as if a shell had started it, whatever started the suite."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def processes_of(session: int) -> list[str]:
    """Return the living processes of a session, by their /proc/PID/stat."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{entry}/stat").read_text()
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(text)
    return found


def interrupt(scene: Scene, command: str, number: signal.Signals, point: int) -> bool:
    """Send a signal at one of the points of a command; return whether it came in time."""
    words, prepare, requests, check = COMMANDS[command]
    prepare(scene)
    scene.emulator.journal.clear()
    port = str(free_ports(1)[0])
    process = scene.thopters.start(
        *(port if word == "PORT" else word for word in words),
        start_new_session=True,
        preexec_fn=default_signals,
    )
    after = 1 + point * requests // POINTS
    moment = point - -(-(after - 1) * POINTS // requests)
    until(lambda: len(scene.emulator.journal) >= after or process.poll() is not None, limit_s=60)
    before = None
    try:
        process.wait(moment * STEP_S)
    except subprocess.TimeoutExpired:
        before = scene.progress()
        process.send_signal(number)
    scene.emulator.idle_s = 1.0  # no sooner: else a slow machine's signal comes when all is over
    out_bytes, err_bytes = process.communicate(timeout=60)
    out, err = out_bytes.decode(), err_bytes.decode()
    told = f"{command}, {number.name} after {after} requests: {process.returncode}\n{out}\n{err}"
    interrupted = process.returncode != 0
    assert process.returncode == (-number if interrupted else 0), told
    # it may just have ended, but not have gone on as if there had been none
    assert interrupted or before in (None, scene.progress()), told
    assert "Traceback" not in err and "Exception" not in err and "internal error" not in err, told
    replaced = command == "proxy" and not err  # by a program that says nothing of it
    assert not interrupted or replaced or "thopters: interrupted" in err, told
    try:
        check(scene, out, err, interrupted)
    except AssertionError as failure:
        raise AssertionError(told) from failure
    if os.path.isdir("/proc"):
        until(lambda: not processes_of(process.pid), limit_s=15)
    return interrupted


@pytest.fixture
def scene(thopters: Thopters, emulator: Emulator, tmp_path: Path) -> Iterator[Scene]:
    yield Scene(thopters, emulator, tmp_path)
    # what a client has left may just be starting: an emulator that is stopped then would lose it
    until(lambda: not emulator._wires, limit_s=45)


BAND = [
    (command, SIGNALS[(place + number) % 3], point)
    for place, command in enumerate(COMMANDS)
    for number, point in enumerate([(3 + 5 * place) % POINTS])
]


@pytest.mark.parametrize(("command", "number", "point"), BAND)
def test_r39_a_signal_ends_it_and_what_it_says_is_true(
    scene: Scene, command: str, number: signal.Signals, point: int
) -> None:
    interrupt(scene, command, number, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", range(POINTS))
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", COMMANDS)
def test_r39_a_signal_at_every_point(
    scene: Scene, command: str, number: signal.Signals, point: int
) -> None:
    interrupt(scene, command, number, point)


def test_r39_a_second_signal_ends_it_though_the_server_answers_no_more(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    process = thopters.start("exec", "dev", "--", "sh", "-c", "trap '' INT; echo up; sleep 60")
    assert process.stdout and process.stdout.readline() == b"up\n"
    emulator.fault(Fault("WS */exec", "hang", times=None))
    process.send_signal(signal.SIGINT)
    soon = time.monotonic() + 0.1  # one that comes at once is taken for the same
    until(lambda: len(emulator.journal.requests(path="/v1/sprites/dev/exec")) > 1, limit_s=60)
    until(lambda: time.monotonic() > soon)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT
    assert time.monotonic() - started < 3 * 3.0  # of which 3.0 s are waited


def test_r39_a_window_that_closes_sends_two_and_means_one(
    thopters: Thopters, emulator: Emulator
) -> None:
    """One comes from the system and one from the shell; the command gets its time to clean up."""
    sprite = emulator.add_sprite("dev", status="running")
    script = "trap 'sleep 0.5; touch cleaned; exit 3' HUP; echo up; while :; do sleep 0.05; done"
    process = thopters.start("exec", "dev", "--", "bash", "-c", script)
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGHUP)
    until(lambda: len(emulator.journal.requests(path="/v1/sprites/dev/exec")) > 1, limit_s=60)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 3
    assert (sprite.home / "cleaned").exists()


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        (
            ["exec", "dev", "--detach", "--", "sh", "-c", "touch ran; sleep 77"],
            "it may go on in dev as ",
        ),
        (["hold", "dev", "--for", "1h"], "dev may be held all the same: "),
    ],
    ids=["--detach", "hold"],
)
def test_r39_what_goes_on_is_said(
    thopters: Thopters, emulator: Emulator, words: list[str], goes_on: str
) -> None:
    shorten(thopters, START_WATCH_S=60, HOLD_FIRST_S=60)  # so that it is waited for
    sprite = emulator.add_sprite("dev", status="running")
    process = thopters.start(*words)
    begun = {"exec": "ran", "hold": ".thopters/hold"}[words[0]]
    until(lambda: (sprite.home / begun).exists(), limit_s=60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (-signal.SIGINT, b"")
    assert goes_on in err.decode(), err
    if words[0] == "exec":
        found = re.search("it may go on in dev as ([0-9a-f]{10}); look at it: (.*)", err.decode())
        assert found
        assert not session_of(sprite, found[1]).ended.is_set()
        assert found[1] in thopters(*found[2].split()[1:]).out
    else:
        assert b"thopters hold dev --release" in err
        assert thopters("hold", "dev", "--release").code == 0
        until(lambda: not sprite.machine.processes(), limit_s=60)


@pytest.mark.parametrize(
    ("command", "point"),
    [*((command, 0) for command in COMMANDS), ("exec", 19), ("checkpoint", 18), ("pause", 10)],
)
def test_r39_the_points_are_in_time(scene: Scene, command: str, point: int) -> None:
    """So that the tests above can fail: at these points a command is not over."""
    assert interrupt(scene, command, SIGNALS[len(command) % 3], point)


# Runs `list` over and over, each time in a process of its own that signals itself at the n-th call
# of a Python function, from the moment on at which the program has set its handlers
AT_CALL = """\
import json, os, sys, tempfile
sys.path.insert(0, sys.argv[1])
import argparse, email.parser, gc, http.client, random, signal, ssl, threading, urllib.request
import thopters
set_handler = signal.signal

def play(number, at):
    seen = 0
    def count(frame, event, arg):
        nonlocal seen
        if event == "call":
            if seen == at:
                os.write(sent, b"x")
                os.kill(os.getpid(), number)
            seen += 1
    def set_and_count(which, handler):
        set_handler(which, handler)
        if which == signal.SIGHUP and handler is not signal.SIG_DFL:  # the last of the three
            sys.setprofile(count)
    signal.signal = set_and_count
    status = thopters.main(["list"])
    if at < 0:
        print("calls", seen, flush=True)
    thopters.leave(status)

for line in sys.stdin:
    number, at = map(int, line.split())
    was_sent, sent = os.pipe()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            play(number, at)
        os.close(sent)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        text = said.read().decode()
    answer = [os.waitstatus_to_exitcode(status), text, bool(os.read(was_sent, 1))]
    os.close(was_sent)
    print(json.dumps(answer), flush=True)
"""


class Player:
    """A process in which `list` is played again and again."""

    def __init__(self, thopters: Thopters) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", AT_CALL, str(MODULE.parent)],
            env=thopters.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=default_signals,
        )

    def play(self, number: int, at: int) -> tuple[int, str, bool]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{number} {at}\n".encode())
        self.process.stdin.flush()
        code, text, was_sent = json.loads(self.process.stdout.readline())
        return code, text, was_sent

    def close(self) -> None:
        self.process.communicate()


def signal_at_calls(thopters: Thopters, step: int) -> None:
    """Signal at the first thirty calls, the last thirty, and at every so-manieth between."""
    player = Player(thopters)
    failures = []
    try:
        code, text, _ = player.play(0, -1)
        assert code == 0, text
        calls = int(text.split("calls ")[1])
        assert calls > 500
        places = [*range(30), *range(30, calls - 30, step), *range(calls - 30, calls + 2)]
        for place in places:
            number = SIGNALS[place % 3]
            code, text, was_sent = player.play(number, place)
            # the last places are behind the last call, and how many calls there are varies a little
            assert was_sent or place > calls - 30
            late = code == 0 and not was_sent and "dev\t" in text
            noisy = "Traceback" in text or "Exception" in text or text.count("\n") > 3
            if noisy or not (late or code == -number):
                failures.append((place, calls, number.name, code, text))
    finally:
        player.close()
    assert not failures, f"{len(failures)} of {len(places)}, such as {failures[:3]}"


def test_r39_a_signal_at_some_calls_of_a_function(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    signal_at_calls(thopters, 60)


@pytest.mark.slow
def test_r39_a_signal_at_every_call_of_a_function(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    signal_at_calls(thopters, 1)
