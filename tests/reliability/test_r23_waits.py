"""R23-R25: what is slow ends, and what failed is tried again where, when and as often as it may.

Most of it runs in this process, with small limits or a clock that only sleeping moves, against
servers whose bytes a test chooses.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from emulation.journal import Request
from emulation.wire import Wire
from support.program import MODULE, Result, Thopters
from support.runs import environ_for, run_here
from support.servers import Canned, Server, pump, response
from support.units import CANARY, FakeClock, make_console
from support.waiting import until

import thopters as program

TOKEN = "acme/1/tok/ottoman-sapphire"
STREAM_TYPE = "application/x-ndjson"
NOT_FOUND = response(b'{"error": "not_found"}', 404)
INTERIM = (  # answers that are not the last
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX: y\r\n\r\n"
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 3\r\n\r\nHTTP/1.1 199 \r\n\r\n"
)


def make_transport(url: str, clock: program.Clock, **environ: str) -> program.Transport:
    credential = program.Credential(program.Secret(CANARY), "a test")
    return program.Transport(
        url, credential, console=make_console(), clock=clock, environ=dict(environ)
    )


def errors_of(done: Result) -> list[str]:
    return [line for line in done.err.splitlines() if line.startswith("thopters: error: ")]


# R23: slow servers


class Slow(Server):
    """Sends `first`, then `piece` over and over; requests with the method `quick` get a 404."""

    def __init__(self, first: bytes = b"", piece: bytes = b"", quick: str = "") -> None:
        self.first, self.piece, self.quick = first, piece, quick
        self.methods: list[str] = []
        self.first_asked = 0.0  # on the monotonic clock
        super().__init__()

    def serve(self, sock: socket.socket) -> None:
        data = sock.recv(1 << 16)
        self.first_asked = self.first_asked or time.monotonic()
        self.methods.append(data.partition(b" ")[0].decode("latin-1"))
        if self.methods[-1] == self.quick:
            sock.sendall(NOT_FOUND)
            return
        sock.sendall(self.first)
        while not self.stopping.wait(0.02):
            sock.sendall(self.piece)


def slow(fault: str, quick: str = "", status: int = 200) -> Slow:
    """Return a server with one of the faults; for those of the network it is just silent."""
    if fault == "drips its head":
        return Slow(b"HTTP/1.1 200 OK\r\nX-Filler: ", b"x", quick)
    if fault == "drips its body":
        return Slow(response(b"", status, "Content-Length: 100000"), b" ", quick)
    if fault == "says 100 for ever":
        return Slow(piece=INTERIM, quick=quick)
    return Slow(quick=quick)


SLOW = ("answers nothing", "drips its head", "drips its body", "says 100 for ever")
MUTE = ("says nothing in TLS", "is behind a silent proxy", "has a name that is never found")
SLACK_S = 3.0  # thrice what the table allows


def fetch(transport: program.Transport, method: str, limit_s: float) -> None:
    transport.fetch_once(method, "/v1/sprites", None if method == "GET" else b"{}", limit_s)


def follow(transport: program.Transport, limit_s: float) -> None:
    for _ in transport.stream("/v1/sprites/dev/checkpoint", {}, limit_s=limit_s):
        pass


def open_socket(transport: program.Transport, limit_s: float) -> None:
    program.open_websocket(transport, "/v1/sprites/dev/exec", limit_s)


KINDS: dict[str, Callable[[program.Transport, float], None]] = {
    "list": lambda transport, limit_s: fetch(transport, "GET", limit_s),
    "create": lambda transport, limit_s: fetch(transport, "POST", limit_s),
    "checkpoint": follow,
    "exec": open_socket,
}


@pytest.fixture
def hanging_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the look-up of hang.test never end, until the test does."""
    real, over = socket.getaddrinfo, threading.Event()

    def look_up(host: Any, *more: Any, **options: Any) -> Any:
        if host == b"hang.test":
            over.wait()
            raise socket.gaierror("over")
        return real(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield
    over.set()


# ssl leaves what was reset before its handshake to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("limit_s", "silence_s"), [(0.4, 30.0), (1.5, 0.6)])
def test_r23_every_slow_fault_ends_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, hanging_names: None, limit_s: float, silence_s: float
) -> None:
    """All at once, each with a clock of its own; by the limit in all, or by silence before."""
    defaults: dict[str, Any] = program.Deadline.__init__.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "silence_s", silence_s)
    monkeypatch.setattr(program, "CONNECT_LIMIT_S", min(limit_s, silence_s))
    monkeypatch.setattr(program.RetryPolicy, "BACKOFF_S", 0.01)
    servers = {fault: slow(fault) for fault in (*SLOW, *MUTE)}
    proxy = servers["is behind a silent proxy"]
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "hang.test")
    urls = {fault: server.url for fault, server in servers.items()}
    urls[MUTE[0]] = urls[MUTE[0]].replace("http:", "https:")
    urls |= {MUTE[1]: "https://api.test", MUTE[2]: "https://hang.test"}

    def attempt(case: tuple[str, str]) -> tuple[str, str, float]:
        """Return how a request ended, in which words, and after how many seconds."""
        fault, kind = case
        transport = make_transport(urls[fault], program.Clock())
        started = time.monotonic()
        try:
            KINDS[kind](transport, limit_s)
        except program.ThoptersError as error:
            return type(error).__name__, error.message, time.monotonic() - started
        return "no error", "", 0.0

    cases = list(itertools.product(servers, KINDS))
    with ThreadPoolExecutor(len(cases)) as pool:
        try:
            results = list(pool.map(attempt, cases, timeout=30))
        finally:  # what has no end of its own ends with its server
            for server in servers.values():
                server.__exit__()
    assert len(results) == 28
    for (fault, kind), (error, message, took) in zip(cases, results, strict=True):
        assert error == ("NotSentError" if fault in MUTE else "BrokenAnswerError"), (fault, message)
        silent = fault in (SLOW[0], *MUTE)
        lowest = min(silence_s, limit_s) if silent else limit_s
        tries = program.RetryPolicy.TRIES if fault in MUTE and kind == "checkpoint" else 1
        assert lowest - 0.05 <= took <= tries * lowest + SLACK_S, (fault, kind, took)
        said = ("timed out", "did not answer in full within", "stopped answering")
        assert any(words in message for words in said), (fault, kind, message)
    # of what was not sent a stream has more tries; its own time begins with a connection
    tries = 3 + program.RetryPolicy.TRIES
    assert [server.accepted for server in servers.values()] == [4] * 4 + [tries] * 2 + [0]


def test_r23_what_is_closed_before_tls_begins_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python wraps such a socket without a handshake, and what is sent on it is plain."""
    listener = socket.create_server(("127.0.0.1", 0))

    def connect(addresses: object, deadline: program.Deadline) -> tuple[socket.socket, object]:
        sock = socket.create_connection(listener.getsockname())
        sock.shutdown(socket.SHUT_RDWR)  # as a deadline does it
        listener.accept()[0].close()
        until(lambda: not is_connected(sock), "both sides of it are closed")
        return sock, None

    monkeypatch.setattr(program, "connect_tcp", connect)
    monkeypatch.setattr(program, "resolve", lambda *_: [])
    with listener, pytest.raises(program.NotSentError, match="the connection was closed"):
        fetch(make_transport("https://api.test", program.Clock()), "POST", 5.0)


def is_connected(sock: socket.socket) -> bool:
    try:
        return bool(sock.getpeername())
    except OSError:
        return False


@pytest.mark.parametrize("fault", [SLOW[0], SLOW[1], SLOW[3], MUTE[0]])
def test_r23_a_command_sent_by_post_has_its_answer_begin_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """What comes then, the output of a command, may take as long as it likes."""
    monkeypatch.setattr(program, "REQUEST_LIMIT_S", 0.4)
    monkeypatch.setattr(program, "CONNECT_LIMIT_S", 0.4)
    monkeypatch.setattr(program.RetryPolicy, "BACKOFF_S", 0.01)
    with slow(fault) as server:
        url = server.url.replace("http:", "https:") if fault == MUTE[0] else server.url
        api = program.SpritesApi(make_transport(url, program.Clock()))
        nobody: dict[int, Any] = {1: lambda data: None, 2: lambda data: None}
        started = time.monotonic()
        with pytest.raises((program.ExecLost, program.NotSentError)):
            session = program.PostSession(api.sprite("dev"), nobody, 120.0)
            session.run(program.RemoteCommand([b"true"]))
        session.close()
        tries = 4 if fault == MUTE[0] else 1  # without TLS nothing was sent
        assert tries * 0.35 <= time.monotonic() - started <= tries * 0.4 + SLACK_S
        assert server.accepted == tries


def test_r23_a_detached_command_begins_within_the_limit() -> None:
    clock = FakeClock()

    class Pinging:
        """A connection on which nothing comes but pings."""

        def receive_in_small_parts(self, most_bytes: int) -> None:
            pass

        def messages(self) -> list[tuple[int, bytes]]:
            return []

        def wait(self, seconds: float) -> None:
            clock.sleep(seconds)

    websocket: Any = Pinging()
    decoder = program.TerminalDecoder(attached=False)
    session = program.TerminalSession(websocket, clock, lambda data: None, decoder)
    with pytest.raises(program.ExecLost, match="it did not begin within 60 s"):
        session.watch_start()
    assert 60 <= clock.now - 1000.0 <= 62


BEFORE_ANSWERS = {
    "list": (b'{"sprites": [{"name": "dev", "status": "cold"}]}', "GET", "dev\t"),
    "checkpoint dev": (b'{"type": "complete", "data": "Checkpoint v1 created"}', "POST", "v1\n"),
}


@pytest.mark.parametrize("command", BEFORE_ANSWERS)
def test_r23_what_comes_before_an_answer_is_not_the_answer(
    thopters: Thopters, command: str
) -> None:
    body, method, says = BEFORE_ANSWERS[command]
    with Canned(lambda _, wire: wire.write(INTERIM * 2 + response(body))) as server:
        env = {"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN}
        done = thopters(*command.split(), env=env)
    assert done.code == 0 and done.out.startswith(says), done
    assert server.methods() == [method]


def test_r23_what_comes_before_an_upgrade_is_not_the_answer(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    port = int(emulator.url.rpartition(":")[2])

    def serve(sock: socket.socket) -> None:
        target = server.connect(port)
        sock.sendall(INTERIM)
        pump(sock, target)

    with Server() as server:
        server.serve = serve  # type: ignore[method-assign]
        done = thopters("exec", "dev", "--", "echo", "x", env={"SPRITES_API_URL": server.url})
    assert (done.code, done.out, done.err) == (0, "x\n", "")
    assert [request.method for request in emulator.journal] == ["WS"]


QUICK_PROGRAM = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
import thopters
limit_s = float(sys.argv.pop(1))
thopters.Transport.fetch.__kwdefaults__["limit_s"] = limit_s
thopters.CREATE_LIMIT_S = thopters.STREAM_LIMIT_S = thopters.REQUEST_LIMIT_S = limit_s
thopters.READ_BACK_LIMIT_S = limit_s
thopters.RetryPolicy.BACKOFF_S = 0.01
thopters.leave(thopters.main())
"""
SLOW_COMMANDS = {  # with the number of limits that they may take in all
    "list": (["list"], 4),
    "create": (["create", "new", "--no-init"], 4),  # two tries, and two looks for what they did
    "checkpoint": (["checkpoint", "dev"], 1),
    "exec": (["exec", "dev", "--", "true"], 4),
}


@pytest.mark.parametrize("faults", [SLOW[:2], SLOW[2:]], ids=" or ".join)
def test_r23_commands_end_too(thopters: Thopters, faults: tuple[str, ...]) -> None:
    """As children, whose limits are a second and a half instead of a minute and more."""
    limit_s = 1.5
    thopters.argv = [sys.executable, "-c", QUICK_PROGRAM, str(MODULE.parent), str(limit_s)]
    thopters.env["SPRITE_TOKEN"] = TOKEN
    cases = list(itertools.product(faults, SLOW_COMMANDS))
    servers, running = {}, {}
    for fault, name in cases:
        quick = "GET" if name == "create" else ""
        server = slow(fault, quick, 500 if name == "exec" else 200)
        servers[fault, name] = server
        thopters.env["SPRITES_API_URL"] = server.url
        running[fault, name] = thopters.start(*SLOW_COMMANDS[name][0])
    ended: dict[tuple[str, str], float] = {}

    def all_have_ended() -> bool:
        for case, process in running.items():
            if process.poll() is not None:
                ended.setdefault(case, time.monotonic())
        return len(ended) == len(cases)

    until(all_have_ended, "each has ended")
    for case in cases:
        process = running[case]
        out, err = process.communicate()
        took = ended[case] - servers[case].first_asked  # what a start takes is the machine's
        servers[case].__exit__()
        name, text = case[1], err.decode()
        assert process.returncode == (255 if name == "exec" else 1), (case, text)
        assert out == b"" and text.count("thopters: error: ") == 1, (case, text)
        assert "Traceback" not in text
        assert took <= 3 * (SLOW_COMMANDS[name][1] * limit_s + 1), (case, took)
        methods = servers[case].methods
        assert methods.count("POST") == {"create": 2, "checkpoint": 1}.get(name, 0), case
        assert len(methods) == 4 or name in ("create", "checkpoint"), case


@pytest.mark.slow
@pytest.mark.parametrize("fault", SLOW)
def test_r23_the_real_limits(thopters: Thopters, fault: str) -> None:
    """Minutes of waiting: a try is 60 s in all, or 30 s of silence, and there are four."""
    thopters.env["SPRITE_TOKEN"] = TOKEN
    with slow(fault) as listing, slow(fault, status=500) as opening:
        thopters.env["SPRITES_API_URL"] = listing.url
        started = time.monotonic()
        running = [thopters.start("list")]
        thopters.env["SPRITES_API_URL"] = opening.url
        running.append(thopters.start("exec", "dev", "--", "true"))
        each_s = program.SILENCE_TIMEOUT_S if fault == SLOW[0] else program.REQUEST_LIMIT_S
        for process, code in zip(running, (1, 255), strict=True):
            out, err = process.communicate(timeout=600)
            took = time.monotonic() - started
            assert (process.returncode, out) == (code, b"")
            assert err.count(b"thopters: error: ") == 1
            assert 4 * each_s <= took <= 4 * (each_s + 1) + 3.5
        assert listing.accepted == opening.accepted == 4


# R24: how often each request is sent

GET_DEV = {"name": "dev", "status": "running", "url": "https://dev.example"}
STARTING_50 = b'{"error": "sprite_starting", "retry_after_seconds": 50}'


def reset(wire: Wire) -> None:
    wire.reset()


def send(data: bytes) -> Callable[[Wire], None]:
    return lambda wire: wire.write(data)


def say_nothing(wire: Wire) -> None:
    while wire.read(1 << 16):
        pass


# what goes wrong, and which kind of failure that is
FAILURES: dict[str, tuple[Callable[[Wire], None], str | None]] = {
    "refused connection": (reset, program.NOT_SENT),  # nothing listens
    "429": (send(response(b'{"error": "rate"}', 429)), program.BUSY),
    "503 starting": (send(response(STARTING_50, 503)), program.STARTING),
    "408": (send(response(b"{}", 408)), program.AMBIGUOUS),
    "500": (send(response(b'{"error": "internal"}', 500)), program.AMBIGUOUS),
    "502": (send(response(b"<html>", 502, kind="text/html")), program.AMBIGUOUS),
    "503": (send(response(b"{}", 503)), program.AMBIGUOUS),
    "504": (send(response(b"{}", 504)), program.AMBIGUOUS),
    "broken off": (reset, program.AMBIGUOUS),
    "no answer, then the end": (send(b""), program.AMBIGUOUS),
    "cut short": (
        send(response(b'{"name"', 200, "Content-Length: 99", kind=STREAM_TYPE)),
        program.AMBIGUOUS,
    ),
    "timed out": (say_nothing, program.AMBIGUOUS),
    "403": (send(response(b'{"error": "forbidden"}', 403)), None),
    "501": (send(response(b'{"error": "no such thing"}', 501)), None),
}
TIMES: dict[str | None, int] = {
    program.NOT_SENT: 4,
    program.BUSY: 4,
    program.STARTING: 3,  # 50 s and 50 s; with the next it would be more than 120 s
    program.WAKING: 10,  # 30 s of waits, the longest of which are 4 s
    program.AMBIGUOUS: 4,
    None: 1,
}
WAITS: dict[str | None, list[float]] = {
    program.NOT_SENT: [0.5, 1.0, 2.0],
    program.BUSY: [60.0, 60.0, 60.0],
    program.STARTING: [50.0, 50.0],
    program.WAKING: [0.5, 1.0, 2.0, *[4.0] * 6],
    program.AMBIGUOUS: [0.5, 1.0, 2.0],
    None: [],
}


def exec_by_post(api: program.SpritesApi) -> None:
    api.websockets_refused = True
    open_exec(api)


def open_exec(api: program.SpritesApi) -> None:
    program.run_script(api.sprite("dev"), b":", limit_s=3600.0, open_limit_s=120.0)


def drain(words: Iterator[str]) -> None:
    for _ in words:
        pass


GATEWAY = ("502", "503", "504")  # from the way into a sprite they may mean that it wakes
WAKERS = ("opening exec", "GET of sessions")

REQUESTS: dict[str, tuple[bool, Callable[[program.SpritesApi], object]]] = {
    # whether it may be sent again when it may have been carried out; and the request
    "GET": (True, lambda api: api.sprite("dev").find()),
    "PUT": (True, lambda api: api.sprite("dev").set_url_auth("public")),
    "DELETE": (True, lambda api: api.sprite("dev").delete("")),
    "opening exec": (True, open_exec),
    "GET of sessions": (True, lambda api: api.sprite("dev").list_sessions()),
    "exec by POST": (False, exec_by_post),
    "POST of create": (
        False,
        lambda api: api.fetch_json(api.create_sprite("dev"), "create dev"),
    ),
    "POST of checkpoint": (
        False,
        lambda api: drain(api.sprite("dev").create_checkpoint("words", 600.0)),
    ),
    "POST of restore": (
        False,
        lambda api: drain(api.sprite("dev").restore_checkpoint("v1", 600.0)),
    ),
}


class Counted:
    """A server with one failure, a client whose clock is a fake, and the tries between them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: str, only: str = "") -> None:
        self.failure, self.only = failure, only
        self.act, self.kind = FAILURES[failure]
        self.server = Canned(self._answer)
        self.clock = FakeClock(jitter=1.0)
        self.connects = 0
        monkeypatch.setattr(program, "KEPT_LIMIT_S", 0.0)  # each try has a connection of its own
        real = program.connect_tcp
        dead = socket.socket()
        dead.bind(("127.0.0.1", 0))  # and does not listen
        self._dead = dead

        def connect(addresses: list[tuple[Any, ...]], deadline: program.Deadline) -> object:
            self.connects += 1
            if self.kind == program.NOT_SENT and (not only or self.connects > 1):
                addresses = [(*found[:4], dead.getsockname()) for found in addresses]
            return real(addresses, deadline)

        monkeypatch.setattr(program, "connect_tcp", connect)
        if failure == "timed out":
            watch = program.Deadline.watch

            def watch_shortly(deadline: program.Deadline, sock: socket.socket) -> None:
                deadline.silence_s = 0.05
                watch(deadline, sock)

            monkeypatch.setattr(program.Deadline, "watch", watch_shortly)
        self.api = program.SpritesApi(make_transport(self.server.url, self.clock))

    def _answer(self, request: Request, wire: Wire) -> None:
        if self.only and request.method != self.only:
            wire.write(NOT_FOUND)
        else:
            self.act(wire)

    def close(self) -> None:
        self._dead.close()
        self.server.__exit__()


@pytest.mark.parametrize("failure", FAILURES)
def test_r24_each_failure_of_each_request(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    for name, (repeatable, ask) in REQUESTS.items():
        with monkeypatch.context() as patch:
            counted = Counted(patch, failure)
            with pytest.raises((program.ThoptersError, program.ExecLost)):
                ask(counted.api)
            counted.close()
        kind = program.WAKING if failure in GATEWAY and name in WAKERS else counted.kind
        again = repeatable or kind != program.AMBIGUOUS
        assert counted.connects == (TIMES[kind] if again else 1), name
        assert counted.clock.slept == (WAITS[kind] if again else []), name
        arrived = 0 if counted.kind == program.NOT_SENT else counted.connects
        assert len(counted.server.requests) == arrived, name
        words = name.replace("opening exec", "WS").replace("exec by ", "").split()
        looks = {"GET"} if name == "DELETE" else set[str]()  # what has the name, before each try
        assert set(counted.server.methods()) <= {words[0]} | looks, name


CREATES = {program.AMBIGUOUS: 2} | {  # and of these only one can have had an effect
    kind: times for kind, times in TIMES.items() if kind != program.AMBIGUOUS
}


@pytest.mark.parametrize("failure", FAILURES)
def test_r24_create_as_a_whole(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    """Its POST is sent a second time only after the sprite has been looked for, for 30 s."""
    counted = Counted(monkeypatch, failure, only="POST")
    environ = {"SPRITES_API_URL": counted.server.url, "SPRITE_TOKEN": TOKEN, "HOME": "/nowhere"}
    app = program.App(make_console(), environ, counted.clock)
    app._api = counted.api
    assert counted.api.sprite("dev").find() is None  # the first step of create
    with pytest.raises(program.ThoptersError):
        program.create_or_find(app.sprite("dev"))
    counted.close()
    methods = counted.server.methods()
    if counted.kind == program.NOT_SENT:
        assert methods == ["GET"] and counted.connects == 1 + 4
        return
    assert methods.count("POST") == CREATES[counted.kind]
    if counted.kind == program.AMBIGUOUS:
        assert "GET" in methods[2 : methods.index("POST", 2)] and methods[-1] == "GET"
        assert 2 * 25 <= sum(counted.clock.slept) <= 2 * 30


LOST: dict[str, tuple[str, dict[str, Any]]] = {
    "drop": ("ws", {"actions": [("drop", None)]}),
    "close": ("ws", {"actions": [("close", 1011)]}),
    "nonsense": ("ws", {"actions": [("message", b"\x09?")]}),
    "reset": ("reset", {}),
    **{f"cut at {size}": ("cut_response", {"size": size}) for size in (0, 60, 245, 300, 360)},
    "500": ("status", {"status": 500}),
    "starting": ("starting", {}),
}


@pytest.mark.parametrize("by_post", [False, True], ids=["websocket", "post"])
def test_r24_a_command_is_started_once_at_most(
    thopters: Thopters, emulator: Emulator, by_post: bool
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    emulator.personality.hold_after_exit_s = 0.0
    if by_post:
        refusal: dict[str, Any] = {"status": 403, "body": b"<", "content_type": "text/html"}
        emulator.fault(Fault("WS */exec", "status", times=None, **refusal))
    codes = set()
    for number, (name, (kind, params)) in enumerate(LOST.items()):
        if by_post and kind == "ws":
            continue
        emulator.journal.clear()
        route = f"{'POST' if by_post else 'WS'} */exec"
        fault = emulator.fault(Fault(route, kind, **params))
        script = f"echo once >> ran{number}; echo out"
        done = thopters("exec", "dev", "--", "sh", "-c", script)
        fault.times = 0
        if by_post:
            started = sum(way == "post" for _, _, way in emulator.journal.executed)
        else:  # what was opened waits for the script, and without it runs nothing
            started = sum(script.encode() in way.stdin for way in emulator.journal)
        assert started <= 1, (name, done)
        if done.code == 0:
            assert done.out == "out\n", (name, done)
            assert (sprite.home / f"ran{number}").read_text() == "once\n", name
        assert done.code in (0, 255), (name, done)
        assert len(errors_of(done)) == (done.code == 255), (name, done)
        codes.add(done.code)
    assert codes == {0, 255}


FAILED_RESTORES: list[tuple[str, dict[str, Any]]] = [
    ("status", {"status": 500}),
    ("status", {"status": 502}),
    ("status", {"status": 409}),
    ("done_but", {"status": 500}),
    ("done_but", {"status": None}),
    ("reset", {}),
    ("cut_response", {"size": 0}),
    ("cut_response", {"size": 300}),
    ("no_final_chunk", {}),
    ("ndjson_error", {}),
    ("ndjson_no_complete", {}),
]


def test_r24_a_restore_is_sent_once(emulator: Emulator, tmp_path: Path) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("first")
    emulator.personality.hold_after_exit_s = 0.0
    emulator.personality.restore_delay_s = 0.0
    argv = ["restore", "dev", "v1", "--yes", "--no-backup"]
    for kind, params in FAILED_RESTORES:
        emulator.journal.clear()
        fault = emulator.fault(Fault("POST */restore", kind, times=None, **params))
        done = run_here(argv, environ_for(emulator, str(tmp_path)))
        fault.times = 0
        posts = [r for r in emulator.journal.requests("POST") if r.path.endswith("/restore")]
        assert len(posts) == 1, (kind, params, done)
        if kind != "no_final_chunk":  # there the last event came, whole
            assert (done.code, done.out) == (1, ""), (kind, params, done)
            assert done.err.count("thopters: error: ") == 1
            is_definite = (params.get("status") or 500) < 500
            says = "dev was not restored" if is_definite else "may or may not be at v1"
            assert says in done.err


# R25: Retry-After

DATE, LATER = "Date: Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:50:07 GMT"
BODY = b'{"error": "rate", "message": "so and so many an hour"}'


def wish(seconds: object) -> bytes:
    return json.dumps({"error": "rate", "retry_after_seconds": seconds}).encode()


# body, headers, and what is waited: None if that is for too long
FORMS: dict[str, tuple[bytes, list[str], float | None]] = {
    "nothing": (BODY, [], 60.0),
    "0": (BODY, ["Retry-After: 0"], 0.0),
    "5": (BODY, ["Retry-After: 5"], 5.0),
    "60": (BODY, ["Retry-After: 60"], 60.0),
    "61": (BODY, ["Retry-After: 61"], None),
    "1e9": (BODY, ["Retry-After: 1000000000"], None),
    "5000 digits": (BODY, ["Retry-After: " + "9" * 5000], None),
    "negative": (BODY, ["Retry-After: -5"], 0.0),
    "minus": (BODY, ["Retry-After: --5"], 60.0),
    "text": (BODY, ["Retry-After: soon"], 60.0),
    "fraction": (BODY, ["Retry-After: 1.5"], 60.0),
    "date": (BODY, [DATE, f"Retry-After: {LATER}"], 30.0),
    "date of the past": (BODY, [f"Date: {LATER}", f"Retry-After: {DATE[6:]}"], 0.0),
    "date of nowhere": (BODY, [f"Retry-After: {LATER}"], 60.0),
    "body": (wish(0.5), [], 0.5),
    "body and header": (wish(3), ["Retry-After: 7"], 3.0),
    "body of the past": (wish(-3), ["Retry-After: 7"], 0.0),
    "body too long": (wish(1e9), ["Retry-After: 7"], None),
    "body of no number": (wish("soon"), ["Retry-After: 7"], 7.0),
    "two headers": (BODY, ["Retry-After: 4", "Retry-After: 9"], 4.0),
}


def answer_with(data: bytes, _: Request, wire: Wire) -> None:
    wire.write(data)


def once_then_201(first: bytes) -> Callable[[Request, Wire], None]:
    left = [first]
    return lambda _, wire: wire.write(left.pop() if left else response(b"{}", 201))


def ask(transport: program.Transport, method: str) -> program.Answer:
    if method != "WS":
        return transport.fetch(method, "/v1/sprites", document={"a": 1})
    policy = program.RetryPolicy(repeatable=True)
    done = transport.retry(policy, lambda: program.open_websocket(transport, "/exec", 30))
    assert isinstance(done, program.Answer)
    return done


@pytest.mark.parametrize("method", ["GET", "POST", "WS"])
def test_r25_what_the_api_asks_for_is_what_is_waited(method: str) -> None:
    for name, (body, headers, wait) in FORMS.items():
        clock = FakeClock(jitter=0.5)
        with Canned(once_then_201(response(body, 429, *headers))) as server:
            done = ask(make_transport(server.url, clock), method)
            assert clock.slept == pytest.approx([] if wait is None else [wait], abs=0.05), name
            assert max(clock.slept, default=0.0) <= 60.0
            assert done.status == (429 if wait is None else 201), name
            assert len(server.requests) == (1 if wait is None else 2), name


@pytest.mark.parametrize(("form", "waits"), [("5", [5.0] * 3), ("nothing", [60.0] * 3)])
def test_r25_there_are_three_waits(form: str, waits: list[float]) -> None:
    body, headers, _ = FORMS[form]
    clock = FakeClock()
    with Canned(partial(answer_with, response(body, 429, *headers))) as server:
        done = make_transport(server.url, clock).fetch("GET", "/v1/sprites")
        assert (done.status, clock.slept, len(server.requests)) == (429, waits, 4)


def test_r25_a_limit_is_told_in_the_apis_words(thopters: Thopters) -> None:
    thopters.env["SPRITE_TOKEN"] = TOKEN
    for seconds, requests in (("1000000000", 1), ("0", 4)):
        refusal = response(BODY, 429, f"Retry-After: {seconds}")
        with Canned(partial(answer_with, refusal)) as server:
            done = thopters("list", env={"SPRITES_API_URL": server.url})
            assert (done.code, done.out) == (6, ""), done
            assert errors_of(done) == [
                "thopters: error: cannot list sprites: so and so many an hour"
            ]
            assert len(server.requests) == requests


def test_r25_a_wait_is_really_waited(thopters: Thopters) -> None:
    thopters.env["SPRITE_TOKEN"] = TOKEN
    came: list[float] = []

    def answer(_: Request, wire: Wire) -> None:
        came.append(time.monotonic())
        again = response(BODY, 429, "Retry-After: 1")
        wire.write(again if len(came) < 2 else response(b'{"sprites": []}'))

    with Canned(answer) as server:
        done = thopters("list", "-v", env={"SPRITES_API_URL": server.url})
    assert (done.code, done.out) == (0, ""), done
    assert done.err.count("429 rate; trying again in 1.0 s") == 1
    assert all(1.0 <= later - before <= 4.0 for before, later in itertools.pairwise(came))
