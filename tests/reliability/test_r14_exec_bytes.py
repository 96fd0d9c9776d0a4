"""R14-R16, R19: any amount of output and input arrives, in little memory, at any pace."""

from __future__ import annotations

import hashlib
import io
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from emulation import Emulator
from emulation.journal import Request
from emulation.wire import ServerSocket, Wire, accept_key
from support.frames import EXITS, GREETING, OUT, PREAMBLE, REST, Deaf, Peer, server_frame
from support.program import Thopters, both
from support.relay import Cut, Relay
from support.runs import environ_for, shorten
from support.servers import Canned
from support.sessions import refuse_websockets
from support.terminals import Tty
from support.units import FakeClock

import thopters as program

MIB = 1 << 20
MOST_MEMORY = 64_000_000
TRUE = program.RemoteCommand([b"true"])
NOWHERE: dict[int, program.Sink] = {1: lambda data: None, 2: lambda data: None}

# output


def give_block(emulator: Emulator) -> bytes:
    """Put a file of random bytes, of an odd size, into a sprite."""
    block = random.Random(14).randbytes(MIB + 13)
    sprite = emulator.add_sprite("dev", status="running")
    (sprite.home / "block").write_bytes(block)
    return block


def writer(count: int) -> str:
    """Return a script that writes the block so many times, each time behind another number."""
    return f"i=0; while [ $i -lt {count} ]; do echo $i; cat block; i=$((i + 1)); done"


def digest(block: bytes, count: int) -> str:
    expected = hashlib.sha256()
    for number in range(count):
        expected.update(b"%d\n" % number + block)
    return expected.hexdigest()


class Reader(threading.Thread):
    """Reads a stream of a program to its end, and watches the memory that the program takes."""

    def __init__(self, process: subprocess.Popen[bytes], stream: IO[bytes] | None) -> None:
        super().__init__()
        assert stream
        self.stream = stream
        self.status = Path(f"/proc/{process.pid}/status")
        self.hash = hashlib.sha256()
        self.peak = 0
        self.start()

    def run(self) -> None:
        while data := self.stream.read(MIB):
            self.hash.update(data)
            if self.status.exists():
                fields = dict(line.split(":\t") for line in self.status.read_text().splitlines())
                if "VmHWM" in fields:  # a process that has ended has none
                    self.peak = max(self.peak, int(fields["VmHWM"].split()[0]) << 10)


def check_output(thopters: Thopters, emulator: Emulator, out: int, err: int) -> None:
    """Have a command write so many blocks to both streams at once, and all of them arrive."""
    block = give_block(emulator)
    script = f"({writer(out)}) & ({writer(err)}) >&2; wait"
    process = thopters.start("exec", "dev", "--", "sh", "-c", script)
    readers = [Reader(process, process.stdout), Reader(process, process.stderr)]
    for reader in readers:
        reader.join()
    assert process.wait(60) == 0
    told = [reader.hash.hexdigest() for reader in readers]
    assert told == [digest(block, out), digest(block, err)]
    if Path("/proc/self/status").exists():
        assert 0 < max(reader.peak for reader in readers) <= MOST_MEMORY


@both
def test_r14_both_streams_at_once_arrive_exactly(thopters: Thopters, emulator: Emulator) -> None:
    check_output(thopters, emulator, 32, 32)


def test_r14_both_streams_arrive_exactly_by_post(thopters: Thopters, emulator: Emulator) -> None:
    refuse_websockets(emulator)
    check_output(thopters, emulator, 4, 4)
    assert [kind for _, _, kind in emulator.journal.executed] == ["post"]


@pytest.mark.slow
def test_r14_a_gigabyte_on_each_stream(thopters: Thopters, emulator: Emulator) -> None:
    check_output(thopters, emulator, 1024, 1024)


@pytest.mark.slow
def test_r15_five_gigabytes_in_little_memory(thopters: Thopters, emulator: Emulator) -> None:
    check_output(thopters, emulator, 5 * 1024, 0)  # how fast is for tests/bench to say


# input

SIZES = (0, 1, 125, 126, 127, 65535, 65536, 65537, 3 * MIB)


@pytest.mark.parametrize("size", SIZES)
def test_r16_input_arrives_exactly(thopters: Thopters, emulator: Emulator, size: int) -> None:
    emulator.add_sprite("dev", status="running")
    emulator.journal.kept_bytes = 1 << 23
    data = random.Random(size).randbytes(size)
    done = thopters("exec", "-i", "dev", "--", "cat", stdin=data)
    assert (done.code, done.out_bytes, done.err) == (0, data, "")
    (request,) = emulator.journal.requests("WS")
    assert request.stdin.partition(b"\0")[2] == data
    assert [code for code, message in request.received if message[:1] == b"\4"] == [2]


@pytest.mark.slow
def test_r16_a_gigabyte_of_input(thopters: Thopters, emulator: Emulator) -> None:
    block = give_block(emulator)
    process = thopters.start("exec", "-i", "dev", "--", "sha256sum", stdin=subprocess.PIPE)
    assert process.stdin
    for number in range(1024):
        process.stdin.write(b"%d\n" % number + block)
    process.stdin.close()
    assert process.stdout
    assert process.stdout.read().split()[0].decode() == digest(block, 1024)
    assert process.wait(60) == 0


@pytest.fixture
def pair() -> Iterator[tuple[program.WebSocket, FakeClock, Peer]]:
    """Return a WebSocket, its clock, which only moves when told, and the server's end."""
    near, far = socket.socketpair()  # what is sent has arrived, so the clock may run ahead
    clock = FakeClock()
    websocket = program.WebSocket(Peer(near), b"", clock)  # type: ignore[arg-type]
    with near, far:
        yield websocket, clock, Peer(far)


def test_r16_the_time_of_a_slow_reader_is_no_silence(
    pair: tuple[program.WebSocket, FakeClock, Peer],
) -> None:
    websocket, clock, far = pair
    came = bytearray()

    def read_slowly(data: bytes | memoryview) -> None:
        clock.sleep(3 * program.DEAD_AFTER_S)
        came.extend(data)

    session = program.StreamSession(websocket, clock, {1: read_slowly, 2: came.extend})
    far.sock.sendall(GREETING + PREAMBLE)
    sent = 0

    def wait(timeout_s: float, others: object = ()) -> list[object]:
        nonlocal sent  # the server goes on each time that it is waited for
        sent += 1
        far.sock.sendall(server_frame(2, b"\x01" + b"%d\n" % sent) if sent < 5 else EXITS["byte"])
        return []

    websocket.wait = wait  # type: ignore[method-assign]
    assert session.run(TRUE) == 0
    assert came == b"1\n2\n3\n4\n"


def test_r16_pings_go_out_while_the_reader_is_slow(
    pair: tuple[program.WebSocket, FakeClock, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "PING_INTERVAL_S", 0.01)
    websocket, clock, far = pair
    reading, pinged = threading.Event(), threading.Event()
    came = bytearray()

    def read_slowly(data: bytes | memoryview) -> None:
        came.extend(data)
        reading.set()
        assert pinged.wait(30)

    def serve() -> None:
        """Skip the frames of the client, which are short and masked, until a ping comes."""
        with far.sock.makefile("rb") as stream:
            far.sock.sendall(GREETING + PREAMBLE + REST)
            while True:
                first, size = stream.read(2)
                stream.read(4 + (size & 0x7F))
                if first == 0x80 | program.OP_PING and reading.is_set():
                    break
        pinged.set()
        far.sock.sendall(EXITS["byte"])

    server = threading.Thread(target=serve)
    server.start()
    session = program.StreamSession(websocket, clock, NOWHERE | {1: read_slowly})
    assert session.run(TRUE) == 0
    session.close()
    server.join()
    assert came == OUT


def test_r16_a_flood_of_pings_that_nobody_drains_takes_little_memory(thopters: Thopters) -> None:
    """And when the server reads again, the newest is answered."""
    flood = server_frame(9, b"x" * 125) * 8192  # a MiB
    memory: list[int] = []

    def answer(request: Request, wire: Wire) -> None:
        proof = accept_key(request.headers["Sec-WebSocket-Key"])
        wire.write(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: " + proof.encode() + b"\r\n\r\n")
        for _ in range(48):
            wire.write(flood)
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():
            fields = dict(line.split(":\t") for line in status.read_text().splitlines())
            memory.append(int(fields["VmRSS"].split()[0]) << 10)
        wire.write(GREETING + PREAMBLE + server_frame(9, b"the last"))
        websocket = ServerSocket(wire, request, lambda _: None)
        while websocket._frame()[1] != b"the last":
            pass
        wire.write(EXITS["byte"])

    with Canned(answer) as server:
        thopters.env |= {"SPRITES_API_URL": server.url, "SPRITE_TOKEN": "acme/1/tok/ottoman"}
        process = thopters.start("exec", "dev", "--", "true")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, b"", b"")
    assert max(memory, default=0) < 40 << 20


@pytest.mark.slow
def test_r16_a_reader_that_stops_for_a_minute(thopters: Thopters, emulator: Emulator) -> None:
    block = give_block(emulator)
    process = thopters.start("exec", "dev", "--", "sh", "-c", writer(64))
    assert process.stdout
    first = process.stdout.read(100)
    time.sleep(program.DEAD_AFTER_S + program.PING_INTERVAL_S)  # this is what is tried
    rest = process.stdout.read()
    assert process.wait(60) == 0
    assert hashlib.sha256(first + rest).hexdigest() == digest(block, 64)


# the end, and a server that says nothing more


def test_r19_nobody_waits_for_the_server_to_hang_up(emulator: Emulator, tmp_path: Path) -> None:
    emulator.personality.hold_after_exit_s = 5.0
    emulator.add_sprite("dev", status="running")
    environ = environ_for(emulator, str(tmp_path))
    console = program.Console(io.StringIO(), io.StringIO(), environ)
    api = program.App(console, environ, program.Clock()).api
    program.run_script(api.sprite("dev"), b":", limit_s=60)  # starts its machine
    started = time.monotonic()
    done = program.run_script(api.sprite("dev"), b":", limit_s=60)
    assert time.monotonic() - started < 1.5
    assert done == (0, b"", b"")


def test_r19_the_end_is_taken_at_once(
    pair: tuple[program.WebSocket, FakeClock, Peer],
) -> None:
    websocket, clock, far = pair
    far.sock.sendall(GREETING + PREAMBLE + REST + EXITS["byte"])
    started = time.monotonic()
    assert program.StreamSession(websocket, clock, NOWHERE).run(TRUE) == 0
    websocket.close()
    assert time.monotonic() - started < 0.2


def test_r19_the_program_leaves_while_the_server_holds_on(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.personality.hold_after_exit_s = 60.0
    emulator.add_sprite("dev", status="running")
    assert thopters("exec", "dev", "--", "sh", "-c", "exit 7", timeout=20).code == 7


@pytest.mark.parametrize("begun", [False, True], ids=["not begun", "begun"])
def test_r19_a_silent_server_is_given_up_after_45_s(
    pair: tuple[program.WebSocket, FakeClock, Peer], begun: bool
) -> None:
    websocket, clock, far = pair
    far.sock.sendall(GREETING + (PREAMBLE + REST if begun else b""))
    pause_by(websocket, clock)
    with pytest.raises(program.ExecLost, match="nothing was heard for 45 s") as caught:
        program.StreamSession(websocket, clock, NOWHERE).run(TRUE)
    assert 45.0 < clock.now - 1000.0 <= 50.0
    assert caught.value.started == begun


def test_r19_a_server_that_answers_pings_may_be_quiet_for_hours(
    pair: tuple[program.WebSocket, FakeClock, Peer],
) -> None:
    websocket, clock, far = pair
    far.sock.sendall(GREETING + PREAMBLE)

    def pong() -> None:
        if clock.now >= 1000.0 + 10_000.0:
            far.sock.sendall(EXITS["byte"])
        elif clock.now % program.PING_INTERVAL_S == 0:
            far.sock.sendall(server_frame(10))

    pause_by(websocket, clock, pong)
    assert program.StreamSession(websocket, clock, NOWHERE).run(TRUE) == 0


def test_r19_the_time_in_which_we_are_stopped_is_no_silence(
    pair: tuple[program.WebSocket, FakeClock, Peer],
) -> None:
    """By ^Z, or with the machine: no ping goes out then, so no answer can be there."""
    websocket, clock, _ = pair
    assert websocket.silence() == 0
    for _ in range(40):
        clock.sleep(1.0)
        before = websocket.silence()
    assert before == 40
    clock.sleep(3600)
    assert 40 < websocket.silence() <= 43
    for _ in range(10):
        clock.sleep(1.0)
        before = websocket.silence()
    assert 50 < before <= 53


def pause_by(websocket: program.WebSocket, clock: FakeClock, then: object = None) -> None:
    """Have a wait for the server take no time but the clock's."""

    def wait(timeout_s: float, others: object = ()) -> list[object]:
        clock.sleep(timeout_s)
        if callable(then):
            then()
        return []

    websocket.wait = wait  # type: ignore[method-assign]


def test_r19_the_program_gives_up_in_time(thopters: Thopters, emulator: Emulator) -> None:
    shorten(thopters, DEAD_AFTER_S=0.5, PING_INTERVAL_S=0.1)
    emulator.add_sprite("dev", status="running")
    # the same limits, and a server that answers: quiet for several times as long is no silence
    assert thopters("exec", "dev", "--", "sleep", "2").code == 0
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        relay.arm(Cut(connection=0, size=340, stay=True))
        thopters.env["SPRITES_API_URL"] = relay.url
        started = time.monotonic()
        done = thopters("exec", "dev", "--", "sh", "-c", "echo up; exec sleep 100")
        assert time.monotonic() - started < 10
        assert relay.connections[0].was_cut.is_set()
    assert done.code == 255
    assert "nothing was heard for" in done.err


SWALLOWED = 340  # bytes of the answer that still come: the upgrade, and the command's first line


@pytest.mark.parametrize("stdin", [b"", b"x" * 4000, None], ids=["empty", "some", "open"])
def test_n14_a_silent_server_is_noticed_though_input_is_forwarded(
    thopters: Thopters, emulator: Emulator, stdin: bytes | None
) -> None:
    shorten(thopters, DEAD_AFTER_S=0.5, PING_INTERVAL_S=0.1)
    emulator.add_sprite("dev", status="running")
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        relay.arm(Cut(connection=0, size=SWALLOWED, stay=True))
        thopters.env["SPRITES_API_URL"] = relay.url
        words = ("exec", "dev", "-i", "--", "sh", "-c", "echo up; exec sleep 100")
        if stdin is None:
            process = thopters.start(*words, stdin=subprocess.PIPE)
            code, err = process.wait(30), process.stderr.read().decode()  # type: ignore[union-attr]
        else:
            done = thopters(*words, stdin=stdin, timeout=30)
            code, err = done.code, done.err
        assert relay.connections[0].was_cut.is_set()
    assert code == 255
    assert "nothing was heard for" in err


@pytest.mark.parametrize("upward", [False, True], ids=["answers", "requests"])
def test_n14_a_copy_to_a_silent_server_ends(
    thopters: Thopters, emulator: Emulator, upward: bool
) -> None:
    """Its program always reads, so that no amount of input makes silence anything else."""
    shorten(thopters, DEAD_AFTER_S=0.5, PING_INTERVAL_S=0.1, GLANCE_LIMIT_S=0.3)
    emulator.add_sprite("dev", status="running")
    (thopters.home / "file").write_bytes(os.urandom(3 << 20))
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        relay.arm(Cut(connection=0, size=100_000 if upward else 300, upward=upward, stay=True))
        thopters.env["SPRITES_API_URL"] = relay.url
        done = thopters("cp", "file", "dev:file", timeout=30)
        assert relay.connections[0].was_cut.is_set()
    assert done.code == 1
    assert "cannot tell whether all was copied: nothing was heard for" in done.err


def test_n14_a_copy_over_a_slow_uplink_goes_on(thopters: Thopters, emulator: Emulator) -> None:
    """What a proxy has taken is on its way for longer than a dead server is waited for."""
    shorten(thopters, DEAD_AFTER_S=1.5, PING_INTERVAL_S=0.5)
    emulator.add_sprite("dev", status="running")
    data = os.urandom(3 << 20)
    (thopters.home / "file").write_bytes(data)
    with Relay(int(emulator.url.rpartition(":")[2]), pace=700_000) as relay:
        thopters.env["SPRITES_API_URL"] = relay.url
        done = thopters("cp", "file", "dev:file", timeout=60)
    assert (done.code, done.err) == (0, "")
    assert (emulator.sprite("dev").home / "file").read_bytes() == data


def test_n14_input_that_is_not_read_is_no_silence(thopters: Thopters, emulator: Emulator) -> None:
    """A server that is stuck with our input answers no pings; it is there all the same."""
    shorten(thopters, DEAD_AFTER_S=0.7, PING_INTERVAL_S=0.1)
    emulator.add_sprite("dev", status="running")
    size = 8 << 20
    done = thopters("exec", "dev", "-i", "--", "sh", "-c", "sleep 3; wc -c", stdin=bytes(size))
    assert (done.code, done.out.strip()) == (0, str(size))


def test_n13_a_loss_on_a_dead_network_is_said_at_once(
    thopters: Thopters, emulator: Emulator
) -> None:
    """The look that only words the message is tried once, and is short."""
    shorten(thopters, DEAD_AFTER_S=0.5, PING_INTERVAL_S=0.1, GLANCE_LIMIT_S=0.3)
    emulator.add_sprite("dev", status="running")
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        relay.arm(Cut(connection=0, size=SWALLOWED, stay=True, lasting=True))
        relay.later = Cut(connection=0, size=0, stay=True)
        thopters.env["SPRITES_API_URL"] = relay.url
        done = thopters("exec", "dev", "--", "sh", "-c", "echo up; exec sleep 100", timeout=20)
        assert len(relay.connections) == 2
    assert done.code == 255
    assert "nothing was heard for" in done.err


@pytest.mark.parametrize(("text", "lost"), [("x" * 8000, False), ("x" * 100, True)])
def test_r19_a_program_that_does_not_read_is_no_silence_of_the_server(
    thopters: Thopters, emulator: Emulator, text: str, lost: bool
) -> None:
    """A server that can't get rid of what is typed answers no pings; one that is gone neither."""
    emulator.add_sprite("dev", status="running")
    shorten(thopters, PING_INTERVAL_S=0.1, DEAD_AFTER_S=1.5)
    script = "stty raw -echo; echo begun; sleep 6; head -c $1 | wc -c; stty sane"
    words = ("--", "sh", "-c", script, "sh", str(len(text)))
    with Tty(thopters, "exec", "dev", "-t", *words) as command:
        command.expect("begun")
        if lost:
            [wire] = emulator.sprite("dev").wires
            wire.sock = Deaf(wire.sock)  # type: ignore[assignment]
        command.type(text)
        if not lost:
            command.expect(str(len(text)))
            assert command.end_restored() == 0
            assert "the connection was lost" not in command.text
            return
        command.expect("the connection was lost (nothing was heard for 2 s); ")
        command.expect("the last 100 bytes typed may not have arrived; attaching again]")


@pytest.mark.slow
def test_r19_the_program_gives_up_after_45_s(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    up = "up" * 50
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        thopters.env["SPRITES_API_URL"] = relay.url
        assert thopters("exec", "dev", "--", "echo", up).out == up + "\n"
        inside = relay.connections[0].came.index(up.encode()) + 50  # ids differ in length
        relay.arm(Cut(connection=0, size=inside, stay=True))
        started = time.monotonic()
        done = thopters("exec", "dev", "--", "sh", "-c", f"echo {up}; exec sleep 100", timeout=200)
        assert 45 <= time.monotonic() - started < 60
    assert done.code == 255
    assert "nothing was heard for 45 s" in done.err
