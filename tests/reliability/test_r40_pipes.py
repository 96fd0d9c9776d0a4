"""R40, R41: readers that leave, disks that are full, and the `sprite` program in every state.

Where that program is absent the shell and the ports are ours (SPEC.md, section 4).
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from emulation import Emulator, Fault, write_launcher
from support.ports import free_ports
from support.program import Result, Thopters, both
from support.sessions import refuse_websockets
from support.waiting import until

# R40

# words, and the status where nothing can be written: exec's own failures are 255
OUTPUTS = {
    "ls": (["ls"], 1),
    "list --json": (["list", "--json"], 1),
    "list -q": (["list", "-q"], 1),
    "info": (["info", "s-00000"], 1),
    "doctor": (["doctor"], 1),
    "checkpoints": (["checkpoints", "s-00000"], 1),
    "url --json": (["url", "s-00000", "--json"], 1),
    "config": (["config"], 1),
    "help": (["help"], 1),
    "--version": (["--version"], 1),
    "completion": (["completion", "bash"], 1),
    "use": (["use", "s-00000"], 1),
    "help of a command": (["exec", "--help"], 1),
    "exec": (["exec", "s-00000", "--", "echo", "x"], 255),
    "ssh": (["ssh", "--config", "s-00000"], 1),
    "proxy": (["proxy", "s-00000", "{port}"], 1),
}
LONG = ["exec", "s-00000", "--", "seq", "200000"]
each_output = pytest.mark.parametrize("output", OUTPUTS)


def with_port(words: list[str]) -> list[str]:
    [port] = free_ports(1)
    return [word.format(port=port) for word in words]


@pytest.fixture
def many(emulator: Emulator) -> Emulator:
    """Return an emulator with one sprite that lists thousands, more than a pipe takes."""
    emulator.add_sprite("s-00000", status="running").add_checkpoint("first")
    names = [f"s-{number:05}" for number in range(10_000)]
    body = json.dumps({"sprites": [{"name": name, "status": "cold"} for name in names]}).encode()
    emulator.fault(Fault("GET /v1/sprites", "status", status=200, body=body, times=None))
    return emulator


@pytest.mark.parametrize("words", [OUTPUTS["ls"][0], OUTPUTS["list --json"][0], LONG],
                         ids=["ls", "--json", "exec"])  # fmt: skip
def test_r40_into_head(thopters: Thopters, many: Emulator, words: list[str]) -> None:
    line = f"{shlex.join([*thopters.argv, *words])} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], env=thopters.env, capture_output=True, text=True)
    first, status = done.stdout.splitlines()
    assert first in ("{", "1") or first.startswith("s-00000\t")
    assert status == "141"
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    sessions = many.sprite("s-00000").sessions.values()
    until(lambda: all(session.ended.is_set() for session in sessions), limit_s=45)


@each_output
def test_r40_nobody_reads_at_all(thopters: Thopters, many: Emulator, output: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = thopters.start(*with_port(OUTPUTS[output][0]), stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGPIPE, err
    assert b"Traceback" not in err and b"error" not in err and b"Exception" not in err


@each_output
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_r40_a_full_disk(thopters: Thopters, many: Emulator, output: str, unbuffered: str) -> None:
    thopters.env["PYTHONUNBUFFERED"] = unbuffered
    words, code = OUTPUTS[output]
    with open("/dev/full", "wb") as full:
        process = thopters.start(*with_port(words), stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    errors = [line for line in err.splitlines() if line.startswith(b"thopters: error: ")]
    assert errors == [b"thopters: error: cannot write the output: No space left on device"], err
    assert b"Traceback" not in err and b"Exception" not in err


READERS = {
    "exec": (["exec", "dev", "-i", "--", "cat"], 255),
    "exec by POST": (["exec", "dev", "-i", "--", "cat"], 255),
    "exec on a terminal": (["exec", "dev", "-t", "--", "sleep", "60"], 255),
    "cp": (["cp", "-", "dev:copied"], 1),
    "proxy": (["proxy", "dev", "-W", "localhost:{port}"], 1),
}


@pytest.mark.parametrize("reader", READERS)
def test_r40_a_stdin_that_can_not_be_read(
    thopters: Thopters, emulator: Emulator, tmp_path: Path, reader: str
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    if "POST" in reader:
        refuse_websockets(emulator)
    words, code = READERS[reader]
    stdin = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = thopters.start(*(word.format(port=port) for word in words), stdin=stdin)
        os.close(stdin)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b""), err
    why = b"thopters: error: cannot read stdin: Bad file descriptor"
    assert err.splitlines()[-1].endswith(why)
    assert err.count(b"error") == 1 and not (sprite.home / "copied").exists()
    for request in emulator.journal.requests("WS")[:1]:  # its input is not said to have ended
        assert b"\4" not in [message[:1] for _, message in request.received]


def test_r40_stderr_that_nobody_reads_ends_only_what_says_something(
    thopters: Thopters, many: Emulator
) -> None:
    """As SIGPIPE would, behind the answer if there is one."""
    lines = {
        "ls": (0, "s-00000\t"),
        "url none": (-signal.SIGPIPE, ""),
        "url none --json": (3, '{\n  "schema_version": 1,\n  "error": {\n    "code": "not_fo'),
        "url s-00000 --public": (-signal.SIGPIPE, "https://s-00000-"),
        "exec none -- true": (-signal.SIGPIPE, ""),
        "exec s-00000 -- sh -c 'echo x >&2; exit 7'": (-signal.SIGPIPE, ""),
    }
    for line, (code, told) in lines.items():
        reader, writer = os.pipe()
        os.close(reader)
        process = thopters.start(*shlex.split(line), stderr=writer)
        os.close(writer)
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out.decode()[: len(told) or None]) == (code, told), line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_r40_a_full_disk_for_stderr_changes_no_status(thopters: Thopters, many: Emulator) -> None:
    words = {"ls": 0, "url none": 3, "exec none -- true": 255, "exec s-00000 -- sh -c 'exit 7'": 7}
    for line, code in words.items():
        with open("/dev/full", "wb") as full:
            process = thopters.start(*shlex.split(line), stderr=full)
            out, _ = process.communicate(timeout=60)
        assert process.returncode == code, line
        assert (out != b"") == (line == "ls")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_r40_a_full_disk_ends_the_command_as_a_closed_pipe_does(
    thopters: Thopters, emulator: Emulator
) -> None:
    """Not only ten seconds later, when the platform does it, by a KILL."""
    sprite = emulator.add_sprite("dev", status="running")
    script = "trap 'echo told > told; exit' TERM; while :; do echo more; sleep 0.05; done"
    with open("/dev/full", "wb") as full:
        process = thopters.start("exec", "dev", "--", "sh", "-c", script, stdout=full)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, b"cannot write the output" in err) == (255, True), err
    until(lambda: (sprite.home / "told").exists())


def test_r39_a_signal_that_did_not_get_through_is_sent_again(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    process = thopters.start("exec", "dev", "--", "sh", "-c", "echo up; exec sleep 60")
    assert process.stdout and process.stdout.readline() == b"up\n"
    emulator.fault(Fault("WS */exec", "ws", actions=[("drop", None)], times=2))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=50)
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_r40_a_signal_ends_it_though_nobody_reads_stderr(
    thopters: Thopters, emulator: Emulator, number: signal.Signals
) -> None:
    """As a tee that dies of the same ^C leaves it, in a loop that is to end."""
    emulator.add_sprite("dev", status="running")
    reader, writer = os.pipe()
    script = "echo up; exec sleep 60"  # a shell may take an INT and still wait for its sleep
    process = thopters.start("exec", "dev", "--", "sh", "-c", script, stderr=writer)
    os.close(writer)
    assert process.stdout and process.stdout.readline() == b"up\n"
    os.close(reader)
    process.send_signal(number)
    assert process.wait(60) == -number


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["list", "--json"], ["list"]], ids=" ".join)
def test_r40_an_answer_waits_where_a_pipe_does_not_block(
    thopters: Thopters, many: Emulator, words: list[str], unbuffered: str
) -> None:
    thopters.env["PYTHONUNBUFFERED"] = unbuffered
    whole = thopters(*words).out_bytes
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = thopters.start(*words, stdout=writer)
    until(lambda: not select.select([], [writer], [], 0)[1])  # it is full
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == whole
    assert process.wait(60) == 0


def test_r40_what_is_said_waits_where_a_pipe_does_not_block(thopters: Thopters) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = thopters.start("list", "x" * 100_000, stderr=writer)
    until(lambda: not select.select([], [writer], [], 0)[1])  # it is full
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read().endswith(b"xxx\nhint: see: thopters list --help\n")
    assert process.wait(60) == 2


def test_r40_a_terminal_that_goes_away_changes_no_outcome(
    thopters: Thopters, emulator: Emulator
) -> None:
    """As one does whose window is closed behind a command that was told not to care."""
    emulator.idle_s = 5.0
    emulator.add_sprite("dev", status="running")
    master, slave = os.openpty()
    process = thopters.start("pause", "dev", stderr=slave)
    os.close(slave)
    shown = b""
    while b"waiting for dev to fall asleep" not in shown:
        shown += os.read(master, 1 << 16)
    os.close(master)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out[:25]) == (0, b"dev is hibernating after ")


# what a shell says to close a stream, and the exit status, stdout and stderr that come of it
UNWRITABLE = "thopters: error: cannot write the output: Bad file descriptor\n"
UNREADABLE = "thopters: error: cannot read stdin: Bad file descriptor\n"
CLOSED = [
    ("config >&-", 1, "", UNWRITABLE),
    ("url s-00000 --json >&-", 1, "", UNWRITABLE),
    ("exec s-00000 -- echo x >&-", 255, "", UNWRITABLE),
    ("exec s-00000 -- sh -c 'exit 7' >&-", 7, "", ""),
    ("exec s-00000 -- sh -c 'echo x; echo y >&2; exit 7' 2>&-", 7, "x\n", ""),
    ("exec none -- true 2>&-", 255, "", ""),
    ("exec s-00000 -- cat <&-", 0, "", ""),
    ("exec s-00000 -i -- cat <&-", 255, "", UNREADABLE),
    ("cp - s-00000:kept <&-", 1, "", UNREADABLE),
    ("destroy s-00000 <&- >&- 2>&-", 2, "", ""),
]


@both
@pytest.mark.parametrize(("line", "code", "out", "err"), CLOSED, ids=[item[0] for item in CLOSED])
def test_r40_a_stream_that_is_closed(
    thopters: Thopters, many: Emulator, line: str, code: int, out: str, err: str
) -> None:
    """What is opened in its place, a socket or a file, is nothing of the user's."""
    kept = many.sprite("s-00000").home / "kept"
    kept.write_text("kept")
    command = f"{shlex.join(thopters.argv)} {line}"
    done = subprocess.run(
        ["bash", "-c", command], env=thopters.env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)
    assert kept.read_text() == "kept"


def test_r40_what_was_told_before_a_signal_is_told(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("a", status="cold")
    emulator.add_sprite("b", status="running")
    process = thopters.start("pause", "a", "b")
    until(lambda: len(emulator.journal.requests("GET", "/v1/sprites/b")) > 2, limit_s=60)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert out.startswith(b"a is hibernating already"), (out, err)


def test_thopters_debug_shows_where_and_changes_no_outcome(
    thopters: Thopters, emulator: Emulator
) -> None:
    for words in (["exec", "none", "--", "true"], ["url", "none", "--json"], ["ls", "--nonsense"]):
        plain, shown = thopters(*words), thopters(*words, env={"THOPTERS_DEBUG": "1"})
        assert (shown.code, shown.out) == (plain.code, plain.out)
        assert shown.err.startswith("Traceback (most recent call last):\n")
        assert shown.err.endswith(plain.err)


# R41


@pytest.fixture
def folder(thopters: Thopters, tmp_path: Path) -> Path:
    """Return the first folder of PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    thopters.env["PATH"] = f"{folder}{os.pathsep}{thopters.env['PATH']}"
    return folder


def words_of(command: str) -> list[str]:
    return ["shell", "dev"] if command == "shell" else ["proxy", "dev", str(free_ports(1)[0])]


def pass_on(thopters: Thopters, folder: Path, command: str, script: str) -> Result:
    write_launcher(folder, "sprite", ["sh", "-c", script])
    return thopters(*words_of(command))


BAND = (0, 1, 2, 3, 42, 126, 127, 128, 130, 254, 255)


@pytest.mark.parametrize("command", ["shell", "proxy"])
def test_r41_some_statuses_are_passed_on(
    thopters: Thopters, emulator: Emulator, folder: Path, command: str
) -> None:
    emulator.add_sprite("dev", status="running")
    for code in BAND[::2] if command == "shell" else BAND[::5]:
        done = pass_on(thopters, folder, command, f"exit {code}")
        assert (done.code, done.out, done.err) == (code, "", "")


@pytest.mark.slow
def test_r41_every_status_is_passed_on(
    thopters: Thopters, emulator: Emulator, folder: Path
) -> None:
    emulator.add_sprite("dev", status="running")
    for code in range(256):
        assert pass_on(thopters, folder, "shell", f"exit {code}").code == code


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "PIPE", "INT", "HUP"])
def test_r41_its_death_is_passed_on(
    thopters: Thopters, emulator: Emulator, folder: Path, name: str
) -> None:
    emulator.add_sprite("dev", status="running")
    done = pass_on(thopters, folder, "shell", f"kill -{name} $$")
    assert (done.code, done.err) == (-signal.Signals["SIG" + name], "")


def test_r41_one_that_hangs_is_ended_by_our_signals(
    thopters: Thopters, emulator: Emulator, folder: Path
) -> None:
    emulator.add_sprite("dev", status="running")
    write_launcher(folder, "sprite", ["sh", "-c", "echo up; exec sleep 600"])
    process = thopters.start(*words_of("shell"))
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM


RELATIVE = ("", ".:bin", "./bin:../home/bin", "/nowhere:~/bin:")


@pytest.fixture
def here(thopters: Thopters, emulator: Emulator) -> Path:
    """Have a `sprite` where we happen to be, and nowhere else; return what it would leave."""
    emulator.add_sprite("dev", status="running")
    for place in (thopters.home, thopters.home / "bin"):
        write_launcher(place, "sprite", ["/bin/sh", "-c", "echo >> ran"])
    return thopters.home / "ran"


@pytest.mark.parametrize("path", RELATIVE)
def test_r41_what_lies_about_is_not_run_and_a_shell_is_ours(
    thopters: Thopters, here: Path, path: str
) -> None:
    thopters.env["PATH"] = path
    done = thopters("shell", "dev", "-v", stdin=b"exit 7\n")
    assert done.code == 7, done
    assert not here.exists()
    thopters.env["PATH"] = str(thopters.home / "bin")  # but here it is found
    assert thopters("shell", "dev").code == 0
    assert here.exists()


def test_r41_what_lies_about_is_not_run_and_a_proxy_is_ours(thopters: Thopters, here: Path) -> None:
    thopters.env["PATH"] = RELATIVE[1]
    process = thopters.start(*words_of("proxy"))
    assert process.stdout and b" -> dev:" in process.stdout.readline()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert not here.exists()


def test_r40_a_pipe_that_does_not_block_is_waited_for(
    thopters: Thopters, emulator: Emulator
) -> None:
    """Node and others make the pipes so that they share with their children."""
    emulator.add_sprite("dev", status="running")
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    words = ("exec", "dev", "--", "head", "-c", "1000000", "/dev/zero")
    process = thopters.start(*words, stdout=write_end)
    os.close(write_end)
    select.select([read_end], [], [])
    with open(read_end, "rb") as pipe:
        assert len(pipe.read()) == 1_000_000
    assert process.wait(30) == 0


def test_r40_stdin_that_does_not_block_is_waited_for(
    thopters: Thopters, emulator: Emulator
) -> None:
    """By POST, where all of it is read before anything is sent."""
    emulator.add_sprite("dev", status="running")
    refuse_websockets(emulator)
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.write(write_end, b"one ")
    process = thopters.start("exec", "dev", "-i", "--", "cat", stdin=read_end)
    until(lambda: not select.select([read_end], [], [], 0)[0])
    os.write(write_end, b"two")
    os.close(write_end)
    assert process.communicate(timeout=30) == (b"one two", b"")
    os.close(read_end)
