"""R17-R18: an exit status is believed exactly once, and no byte of output is made up.

The server's stream of a session is ended behind every byte and replaced by twenty malformed ones;
the body of an answer to POST is cut and joined at random, ended behind every byte, and damaged.
A socket pair, or a list of pieces, stands in for the connection.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from emulation import Emulator, Fault
from emulation.routes import rechunk
from support.frames import (
    BROKEN_FRAMES,
    ERR,
    EXITS,
    GOODBYE,
    GREETING,
    OUT,
    PREAMBLE,
    REST,
    Peer,
    cut,
    server_frame,
)
from support.program import Thopters
from support.runs import environ_for, run_here
from support.scripts import run_script
from support.sessions import refuse_websockets
from support.units import FakeClock, make_transport

import thopters as program


class Outcome:
    """What came of a command: its output, and a status or the reason why there is none."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._err = bytearray()
        self.status: int | None = None
        self.why = ""
        self.started = False

    @property
    def out(self) -> bytes:
        return bytes(self._out)

    @property
    def err(self) -> bytes:
        return bytes(self._err)

    def sinks(self) -> dict[int, program.Sink]:
        return {1: self._out.extend, 2: self._err.extend}


def run_session(stream: bytes, *, reset: bool = False) -> Outcome:
    """Run a command whose server sends `stream`, and then ends the connection."""
    outcome = Outcome()
    near, far = connected_pair()
    with near, far:
        far.sendall(stream)
        if reset:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            far.shutdown(socket.SHUT_WR)
        websocket = program.WebSocket(Peer(near), b"", FakeClock())  # type: ignore[arg-type]
        session = program.StreamSession(websocket, FakeClock(), outcome.sinks())
        if reset:
            wait_for(near, len(stream))
            far.close()
        try:
            outcome.status = session.run(program.RemoteCommand([b"true"]))
        except program.ExecLost as lost:
            outcome.why, outcome.started = str(lost), lost.started
        session.close()
    return outcome


def connected_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def wait_for(sock: socket.socket, size: int) -> None:
    """Wait until so many bytes have arrived; a reset may take what has not been seen."""
    sock.setblocking(True)
    while size and len(sock.recv(size, socket.MSG_PEEK)) < size:
        pass
    sock.setblocking(False)


# what a server sends for a command that writes "out 1\n", "err\n" and "out 2\n", in pieces


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize("form", EXITS)
def test_r17_a_session_cut_at_every_byte_succeeds_only_when_whole(form: str, reset: bool) -> None:
    begun = len(GREETING + PREAMBLE)
    stream = GREETING + PREAMBLE + REST + EXITS[form]
    succeeded = []
    for size in range(len(stream) + 1):
        outcome = run_session(stream[:size], reset=reset)
        assert OUT.startswith(outcome.out), size
        assert ERR.startswith(outcome.err), size
        if outcome.status is None:
            assert outcome.why
            assert outcome.started == (size >= begun), size
        else:
            assert (outcome.status, outcome.out, outcome.err) == (0, OUT, ERR)
            succeeded.append(size)
    assert succeeded == [len(stream)]


def test_r17_what_comes_after_the_status_changes_nothing() -> None:
    stream = GREETING + PREAMBLE + REST + EXITS["byte"]
    after = server_frame(2, b"\x03\x09") + server_frame(2, b"\x01late") + GOODBYE + b"\xff\xff"
    for size in range(len(after) + 1):
        outcome = run_session(stream + after[:size])
        assert (outcome.status, outcome.out, outcome.err) == (0, OUT, ERR), size


def binary(payload: bytes) -> bytes:
    return server_frame(2, payload)


def text(payload: bytes) -> bytes:
    return server_frame(1, payload)


# each in place of the exit status, and with a sound one behind it: too late to be believed
MALFORMED = {
    "status without a byte": binary(b"\x03"),
    "status of two bytes": binary(b"\x03\x00\x00"),
    "status of three bytes": binary(b"\x03\x00\x00\x00"),
    "status of five bytes": binary(b"\x03\x00\x00\x00\x00\x00"),
    "stream 0": binary(b"\x00x"),
    "stream 4": binary(b"\x04"),
    "stream 255": binary(b"\xff\x00"),
    "exit without a status": text(b'{"type": "exit"}'),
    "exit with null": text(b'{"type": "exit", "exit_code": null}'),
    "exit with a word": text(b'{"type": "exit", "exit_code": "0"}'),
    "exit with true": text(b'{"type": "exit", "exit_code": false}'),
    "exit with a fraction": text(b'{"type": "exit", "exit_code": 0.0}'),
    "exit with a list": text(b'{"type": "exit", "exit_code": [0]}'),
    "close 1000": GOODBYE,
    "close 1011": server_frame(8, struct.pack("!H", 1011) + b"internal"),
    "close without a code": server_frame(8, b""),
    "close of one byte": server_frame(8, b"\x03"),
    "http": b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    "zeros": bytes(64),
    "text": b"exit 0\n",
    **BROKEN_FRAMES,
}
assert len(MALFORMED) - len(BROKEN_FRAMES) == 20


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "not begun"])
@pytest.mark.parametrize("name", MALFORMED)
def test_r17_a_malformed_stream_is_no_status(name: str, begun: bool) -> None:
    before = GREETING + (PREAMBLE + REST if begun else b"")
    outcome = run_session(before + MALFORMED[name] + EXITS["byte"])
    assert outcome.status is None
    assert outcome.why
    assert outcome.started == begun
    assert (outcome.out, outcome.err) == ((OUT, ERR) if begun else (b"", b""))


@pytest.mark.parametrize("form", EXITS)
def test_r17_a_success_that_the_script_did_not_begin_is_none(form: str) -> None:
    outcome = run_session(GREETING + binary(b"\x02oops\n") + EXITS[form])
    assert (outcome.status, outcome.started) == (None, False)
    assert outcome.why
    # a failure is believed: a sprite without bash, or an input that was cut
    outcome = run_session(GREETING + binary(b"\x02oops\n") + binary(b"\x03\x7f"))
    assert (outcome.status, outcome.err) == (127, b"oops\n")


def test_r17_output_of_something_else_is_no_output() -> None:
    outcome = run_session(b"".join(binary(b"\x01" + b"x" * 1000) for _ in range(70)))
    assert (outcome.status, outcome.started, outcome.out) == (None, False, b"")


@pytest.mark.parametrize("name", MALFORMED)
def test_r17_the_command_says_that_the_status_is_unknown(
    emulator: Emulator, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    emulator.add_sprite("dev", status="running")
    actions = [("raw", PREAMBLE + REST + MALFORMED[name] + EXITS["byte"]), ("drop", None)]
    emulator.fault(Fault("WS */exec", "ws", actions=actions))
    done = run_here(["exec", "dev", "--", "true"], environ_for(emulator, str(tmp_path)))
    assert done.code == 255
    assert "thopters: error: the command's exit status is unknown" in done.err
    assert "internal error" not in done.err
    assert len(emulator.journal.requests("WS")) == 1
    out, err = capfd.readouterr()
    assert (out.encode(), err.encode()) == (OUT, ERR)


@pytest.mark.parametrize("option", ["-T", "-t"])
def test_r17_a_group_of_thousands_of_digits_is_none(
    thopters: Thopters, emulator: Emulator, option: str
) -> None:
    emulator.add_sprite("dev", status="running")
    digits = program.PREAMBLE + b"7" * 5000 + b"\r\n" + program.WIPE
    message = program.TTY_READY + digits if option == "-t" else b"\x01" + digits.replace(b"\r", b"")
    emulator.fault(Fault("WS */exec", "ws", actions=[("message", message), ("drop", None)]))
    done = thopters("exec", option, "dev", "--", "true")
    assert (done.code, done.out) == (255, ""), done
    assert "before the command answered" in done.err and "internal error" not in done.err
    assert len(emulator.journal.requests("WS")) == 1


HEAD = 170  # of what the server sends, the answer to the upgrade


@pytest.mark.parametrize("size", [15, HEAD, 250, 330])
def test_r17_the_program_itself_on_a_connection_that_is_cut(
    thopters: Thopters, emulator: Emulator, size: int
) -> None:
    emulator.add_sprite("dev", status="running")
    whole = "echo out; echo err >&2"
    for method in ("WS", "POST"):
        emulator.fault(Fault(f"{method} */exec", "cut_response", size=size, times=None))
    done = thopters("exec", "dev", "--", "sh", "-c", whole)
    assert done.code == 255
    assert "thopters: error: " in done.err
    assert "out\n".startswith(done.out)


# POST


class Told(NamedTuple):
    """What a command wrote and exited with, and what the script made of its two streams."""

    out: bytes
    err: bytes
    status: int
    sent_out: bytes
    sent_err: bytes
    mark: bytes

    def body(self, rng: random.Random) -> bytes:
        """Return the answer: frames of a stream's number and bytes, cut as a server happens to."""
        queues = []
        for number, data in ((1, self.sent_out), (2, self.sent_err)):
            places = [rng.randint(0, len(data)) for _ in range(rng.randrange(8))]
            queues.append([bytes((number,)) + piece for piece in cut(data, places) if piece])
        mixed = []
        while any(queues):
            mixed.append(rng.choice([queue for queue in queues if queue]).pop(0))
        return b"".join([*mixed, bytes((3, self.status))])

    def is_exact(self, outcome: Outcome) -> bool:
        return (outcome.status, outcome.out, outcome.err) == (self.status, self.out, self.err)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[Told]:
    """Run commands as a sprite does for a POST, half of them where there is no perl."""
    home = tmp_path_factory.mktemp("home")
    made = []
    for seed in range(24):
        rng = random.Random(seed)
        # bytes that mean something to the framing are as frequent as all others
        some = bytes((0, 1, 2, 3, 10, 32, 48, 97)), bytes(range(256))
        out, err = (bytes(rng.choices(rng.choice(some), k=rng.randrange(300))) for _ in "oe")
        (home / "out").write_bytes(out)
        (home / "err").write_bytes(err)
        status = rng.choice((0, 0, 1, 2, 3, 49, 97, 255))
        words = [b"sh", b"-c", b"cat out; cat err >&2; exit %d" % status]
        command = program.RemoteCommand(words, with_keys=bool(seed & 2))
        script = command.stream_script(in_hex=True) + b"\0"
        look = b"command -pv perl"
        assert look in script
        done = run_script(home, script.replace(look, b"false") if seed & 1 else script, {})
        assert done.returncode == status
        has_blanks = b" " in done.stdout.partition(program.HEX_MARK)[2]
        assert has_blanks == (seed & 1 and bool(out or command.with_keys))
        made.append(Told(out, err, status, done.stdout, done.stderr, command.mark))
    return made


def run_post(pieces: Iterable[bytes], mark: bytes = b"") -> Outcome:
    """Run a command whose answer's body comes in `pieces`."""
    outcome = Outcome()
    api = program.SpritesApi(make_transport(FakeClock()))
    session = program.PostSession(api.sprite("dev"), outcome.sinks(), 1.0)
    session._pieces = iter(pieces)
    session.decoder.mark = mark
    try:
        outcome.status = session.await_exit()
    except program.ExecLost as lost:
        outcome.why = str(lost)
    return outcome


def rechunked(rng: random.Random, body: bytes) -> list[bytes]:
    count = rng.choice((0, 1, 5, 50, len(body) * 2))
    places = (rng.randint(0, len(body)) for _ in range(count))
    return [piece for piece in cut(body, places) if piece]


def test_r18_four_hundred_streams_cut_and_joined_at_random_are_exact(
    commands: list[Told],
) -> None:
    for seed in range(400):
        rng, told = random.Random(seed), commands[seed % len(commands)]
        body = told.body(rng)
        for pieces in (rechunked(rng, body), [body], [bytes((byte,)) for byte in body]):
            outcome = run_post(pieces, told.mark)
            assert told.is_exact(outcome), (seed, outcome.why)


def test_r18_a_body_cut_at_every_byte_has_no_status(commands: list[Told]) -> None:
    """But where the command itself has told how it ended, after all that it has written."""
    for seed, told in enumerate(commands[:8]):
        rng = random.Random(seed)
        body = told.body(rng)
        for size in range(len(body)):
            pieces = rechunked(rng, body[:size]) if size % 7 == 0 else [body[:size]]
            outcome = run_post(pieces, told.mark)
            assert told.is_exact(outcome) or (outcome.status is None and outcome.why), (seed, size)
            assert outcome.status is None or size > len(told.out + told.err + told.mark) * 2
            assert told.out.startswith(outcome.out)
            assert told.err.startswith(outcome.err)


def test_r18_what_the_server_does_behind_the_status_is_not_waited_for(
    commands: list[Told],
) -> None:
    def pieces(body: bytes) -> Iterator[bytes]:
        yield body
        pytest.fail("more was read")

    for seed, told in enumerate(commands):
        assert told.is_exact(run_post(pieces(told.body(random.Random(seed))), told.mark))


def test_r18_what_is_sent_behind_the_end_is_no_output(commands: list[Told]) -> None:
    told = commands[0]
    for more in (b"\x0141", b"\x01.", b"\x02 41", b"\x02\n.\n"):
        outcome = run_post([b"\x01" + told.sent_out, b"\x02" + told.sent_err, more, b"\x03\0"])
        assert outcome.status is None
        assert outcome.why == "the server sent more than the command has written"


# Whatever a command's variables say to perl or to a shell, and whoever has ended the encoder
@pytest.mark.parametrize(
    "setting",
    ["PERL_UNICODE=SDA", "PERL5OPT=-MNoSuch", "PERLIO=:crlf", "PATH=/nowhere"],
)
def test_r18_variables_of_the_command_change_nothing_over_post(
    thopters: Thopters, emulator: Emulator, setting: str
) -> None:
    emulator.add_sprite("dev", status="running")
    refuse_websockets(emulator)
    bash = shutil.which("bash") or ""
    script = "printf 'hi\\xff\\n'; printf 'err\\xff\\n' >&2; exit 4"
    done = thopters("exec", "dev", "--env", setting, "--", bash, "-c", script)
    assert (done.code, done.out_bytes, done.err_bytes) == (4, b"hi\xff\n", b"err\xff\n")


@pytest.mark.parametrize("status", [408, 500, 502, 504, 524])
def test_r18_an_answer_that_is_no_definite_no_says_nothing_of_the_command(
    thopters: Thopters, emulator: Emulator, status: int
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    refuse_websockets(emulator)
    emulator.fault(Fault("POST */exec", "done_but", status=status))
    done = thopters("exec", "dev", "--", "touch", "done")
    assert (sprite.home / "done").exists()
    assert done.code == 255
    assert f"the API answered {status}" in done.err
    assert "it is not known whether it has run" in done.err


@pytest.mark.parametrize("name", ["TERM", "HUP", "QUIT", "INT"])
@pytest.mark.parametrize("way", ["WebSocket", "POST"])
def test_r18_a_command_that_handles_a_signal_keeps_its_status(
    thopters: Thopters, emulator: Emulator, way: str, name: str
) -> None:
    emulator.add_sprite("dev", status="running")
    if way == "POST":
        refuse_websockets(emulator)
    for trap, status in ((f"trap 'sleep 0.3; exit 9' {name}", 9), (f"trap '' {name}", 0)):
        script = f"{trap}; echo up; for i in 1 2 3 4 5 6; do sleep 0.2; done; exit 0"
        process = thopters.start("exec", "dev", "--", "bash", "-c", script)
        assert process.stdout and process.stdout.readline() == b"up\n"
        process.send_signal(getattr(signal, "SIG" + name))
        assert process.wait(60) == status, (name, way)


def test_r18_output_that_is_missing_is_no_success(thopters: Thopters, emulator: Emulator) -> None:
    """The command ends what encodes its output, the process behind its own pipe."""
    emulator.add_sprite("dev", status="running")
    refuse_websockets(emulator)
    script = """\
pipe=$(readlink /proc/$$/fd/1) found=
until [ "$found" ]; do  # it may begin after us
  for p in /proc/[0-9]*; do
    case $(cat "$p/comm") in perl|od) ;; *) continue;; esac  # a shell may be on its way to one
    if [ "$(readlink "$p/fd/0")" = "$pipe" ]; then kill -9 "${p#/proc/}" && found=1; fi
  done
done 2>&-
"""
    done = thopters("exec", "dev", "--", "sh", "-c", script)
    assert done.code == 255
    assert "a part of the command's output is missing" in done.err


@pytest.mark.parametrize("chunks", ["exact", "split", "merged"])
def test_r18_the_program_itself_over_post(
    thopters: Thopters, emulator: Emulator, chunks: str
) -> None:
    emulator.personality.post_chunks = chunks
    emulator.add_sprite("dev", status="running")
    refuse_websockets(emulator)
    data = bytes(range(256)) * 100
    done = thopters("exec", "-i", "dev", "--", "sh", "-c", "tee /dev/stderr; exit 3", stdin=data)
    assert (done.code, done.out_bytes, done.err_bytes) == (3, data, data)
    assert [kind for _, _, kind in emulator.journal.executed] == ["post"]


def test_r18_the_emulator_cuts_and_joins_at_random() -> None:
    frames = [bytes((1,)) + bytes(range(256)), bytes((2, 7)), bytes((3, 0))]
    for seed in range(400):
        pieces = list(rechunk(iter(frames * 5), "random", seed))
        assert b"".join(pieces) == b"".join(frames * 5)
        assert b"" not in pieces and pieces != frames * 5
        assert pieces == list(rechunk(iter(frames * 5), "random", seed))


def check_cut_and_joined(thopters: Thopters, emulator: Emulator, seeds: Iterable[int]) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    refuse_websockets(emulator)
    emulator.personality.post_chunks = "random"
    every = bytes(range(256))
    (sprite.home / "every").write_bytes(every)
    for seed in seeds:
        emulator.personality.post_seed = seed
        # each status in turn: the first of them are also what a frame begins with
        script = f"for n in 1 2 3; do cat every; cat every >&2; done; exit {seed % 256}"
        done = thopters("exec", "dev", "--", "sh", "-c", script)
        assert (done.code, done.out_bytes, done.err_bytes) == (seed % 256, every * 3, every * 3)
    assert {kind for _, _, kind in emulator.journal.executed} == {"post"}


def test_r18_a_body_cut_and_joined_at_random_is_exact(
    thopters: Thopters, emulator: Emulator
) -> None:
    check_cut_and_joined(thopters, emulator, (1, 2, 3))


@pytest.mark.slow
def test_r18_four_hundred_bodies_cut_and_joined_at_random_are_exact(
    thopters: Thopters, emulator: Emulator
) -> None:
    check_cut_and_joined(thopters, emulator, range(400))
