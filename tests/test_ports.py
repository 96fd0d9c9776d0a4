"""Ports of a sprite from here: `proxy` with its listeners, and `proxy -W` on stdin and stdout.

The emulated platform connects to this machine, so a server of a test stands for one in the sprite.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emulation import SPRITE_PROGRAM, Emulator, Fault, write_launcher
from support.frames import Deaf
from support.ports import free_ports
from support.program import MODULE, Thopters, both
from support.units import make_console
from support.waiting import until

import thopters as program

linux_only = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="counted in /proc")

LIMIT_S = 30.0
MB = 1 << 20


# --- servers and clients ----------------------------------------------------------------


Handler = Callable[[socket.socket], object]


class Server:
    """A server in a "sprite": each connection is a thread of `handle`."""

    def __init__(self, handle: Handler, port: int = 0) -> None:
        self.handle = handle
        self.open = 0  # connections
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with self._lock:
                    self.open += 1
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            sock.settimeout(LIMIT_S)
            self.handle(sock)
        with self._lock:
            self.open -= 1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a close alone leaves accept() waiting
        self._listener.close()


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server."""
    servers = []

    def serve(handle: Handler, port: int = 0) -> Server:
        servers.append(Server(handle, port))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def wait_for_the_end(sock: socket.socket) -> None:
    """Say nothing, and read until the other side has gone."""
    sock.settimeout(None)
    while sock.recv(1 << 16):
        pass


def blocks(seed: int, size: int) -> Iterator[bytes]:
    """Yield `size` bytes that are the same for a seed."""
    block = random.Random(seed).randbytes(MB)
    for start in range(0, size, MB):
        yield block[: min(MB, size - start)]


def digest(parts: Iterator[bytes]) -> str:
    known = hashlib.sha256()
    for part in parts:
        known.update(part)
    return known.hexdigest()


def send_all(sock: socket.socket, seed: int, size: int) -> None:
    """Send it; where the other side goes before that, what it got shows it."""
    with contextlib.suppress(OSError):
        for part in blocks(seed, size):
            sock.sendall(part)


def receive(sock: socket.socket, size: int) -> Iterator[bytes]:
    """Yield exactly `size` bytes, fewer if they end."""
    while size and (part := sock.recv(min(size, 1 << 18))):
        size -= len(part)
        yield part


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), LIMIT_S)


def has_ended(sock: socket.socket) -> bool:
    """Return whether the other side closes without a word, by an end or a reset."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def is_open(port: int) -> bool:
    """Return whether somebody listens on a port of this machine."""
    for host in ("127.0.0.1", "::1"):
        with contextlib.suppress(OSError):
            connect(port, host).close()
            return True
    return False


OPEN_PORTS = b"every user of this machine and any page in your browser can reach these ports\n"


class Forwarding:
    """`thopters proxy dev ...` that has said that it listens."""

    def __init__(self, thopters: Thopters, *ports: str, **options: Any) -> None:
        words = ("proxy", "dev", *ports, "--native")
        self.process = thopters.start(*words, **options)
        assert self.process.stdout
        self.lines = [self.process.stdout.readline() for _ in ports]

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, signum: int = signal.SIGTERM) -> tuple[int, str]:
        """Stop it; return its status and what it has said on stderr since it listens."""
        self.process.send_signal(signum)
        _, said = self.process.communicate(timeout=LIMIT_S)
        assert said.startswith(OPEN_PORTS), said
        return self.process.returncode, said.removeprefix(OPEN_PORTS).decode()


def forward(thopters: Thopters, server: Server, **options: Any) -> tuple[Forwarding, int]:
    """Forward a free port to a server's; return that port."""
    [local] = free_ports(1)
    return Forwarding(thopters, f"{local}:{server.port}", **options), local


# --- the web ----------------------------------------------------------------------------


class Web(http.server.BaseHTTPRequestHandler):
    """Answers a GET with its path, and a POST with what was posted."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self.path.encode())

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[int]:
    """Return the port of a web server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(host: str, port: int, method: str, path: str, body: bytes = b"") -> bytes:
    connection = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        return connection.getresponse().read()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_web_server_is_reached_on_both_addresses(
    thopters: Thopters, dev: Emulator, web: int, host: str
) -> None:
    [local] = free_ports(1)
    forwarding = Forwarding(thopters, f"{local}:{web}")
    assert forwarding.lines == [f"localhost:{local} -> dev:{web}\n".encode()]
    posted = random.Random(1).randbytes(300_000)
    assert ask(host, local, "GET", "/page") == b"/page"
    assert ask(host, local, "POST", "/", posted) == posted
    assert forwarding.end() == (-signal.SIGTERM, "thopters: interrupted\n")
    opened = dev.journal.requests("WS", "/v1/sprites/dev/proxy")
    first = {json.dumps(json.loads(request.received[0][1])) for request in opened}
    assert (len(opened), first) == (2, {json.dumps({"host": "localhost", "port": web})})
    assert not dev.journal.executed


def test_s15_who_can_reach_the_ports_is_said_once(
    thopters: Thopters, dev: Emulator, serve: Serve, web: int
) -> None:
    """On stderr, when it starts; the one port of -W is the caller's own connection."""
    pairs = [f"{local}:{web}" for local in free_ports(3)]
    forwarding = Forwarding(thopters, *pairs)
    for pair in pairs:
        assert ask("127.0.0.1", int(pair.partition(":")[0]), "GET", "/page") == b"/page"
    assert forwarding.end() == (-signal.SIGTERM, "thopters: interrupted\n")
    done = thopters("proxy", "dev", "-W", f"localhost:{web}", stdin=b"GET / HTTP/1.0\r\n\r\n")
    assert (done.code, done.err) == (0, ""), done


@linux_only
def test_s18_no_other_address_of_this_machine_leads_to_the_port(
    thopters: Thopters, dev: Emulator, web: int
) -> None:
    """127.0.0.2 is one, as those of a network are."""
    [local] = free_ports(1)
    Forwarding(thopters, f"{local}:{web}")
    assert is_open(local)
    with pytest.raises(ConnectionRefusedError):
        connect(local, "127.0.0.2")


def test_several_ports_each_lead_to_their_own(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    servers = [serve(lambda sock, word=word: sock.sendall(word)) for word in (b"a", b"b", b"c")]
    pairs = list(zip(free_ports(3), servers, strict=True))
    forwarding = Forwarding(thopters, *(f"{local}:{server.port}" for local, server in pairs))
    said = [f"localhost:{local} -> dev:{server.port}\n".encode() for local, server in pairs]
    assert forwarding.lines == said
    for (local, _), word in zip(pairs, (b"a", b"b", b"c"), strict=True):
        with connect(local) as client:
            assert read_all(client) == word


# --- ports that are not free ------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use_is_named_with_the_next_free_one(
    thopters: Thopters, dev: Emulator, host: str
) -> None:
    """Whoever holds one of the two addresses would get what is meant for the sprite."""
    other, local = free_ports(2)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, local), family=family):
        words = ("proxy", "dev", f"{other}:80", f"{local}:3000", "--native")
        done = thopters(*words, timeout=10)
    assert (done.code, done.out) == (1, "")
    assert f"cannot listen on local port {local}: Address already in use" in done.err
    assert f"{local + 1}:3000" in done.err
    assert not is_open(other)
    assert not len(dev.journal)


def test_a_port_that_is_taken_on_one_address_is_not_offered(
    thopters: Thopters, dev: Emulator
) -> None:
    [local] = free_ports(1)
    with (
        socket.create_server(("127.0.0.1", local)),
        socket.create_server(("::1", local + 1), family=socket.AF_INET6),
    ):
        done = thopters("proxy", "dev", f"{local}:3000", "--native")
    assert done.code == 1
    assert f"{local + 1}:3000" not in done.err


def test_the_port_that_is_offered_is_not_one_that_was_asked_for(
    thopters: Thopters, dev: Emulator
) -> None:
    [local] = free_ports(1)
    with socket.create_server(("127.0.0.1", local)):
        done = thopters("proxy", "dev", f"{local}", f"{local + 1}", "--native")
    assert done.code == 1
    assert f"{local + 1}:{local}" not in done.err


@pytest.mark.parametrize(
    "words", [[], ["0"], ["65536"], ["80:"], ["x"], ["8080", "8080:80"], ["80", "-W", "a:1"]]
)
def test_wrong_ports_are_refused_unsent(
    thopters: Thopters, dev: Emulator, words: list[str]
) -> None:
    done = thopters("proxy", "dev", *words)
    assert (done.code, done.out) == (2, "")
    assert not len(dev.journal)


def test_an_unknown_sprite_is_named_and_nothing_listens(
    thopters: Thopters, emulator: Emulator
) -> None:
    [local] = free_ports(1)
    done = thopters("proxy", "nosuch", str(local), "--native")
    assert (done.code, done.out) == (3, "")
    assert "nosuch" in done.err


# --- nobody there -----------------------------------------------------------------------


def test_nobody_listening_there_is_a_warning_and_the_others_go_on(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    good = serve(echo)
    local, other, empty = free_ports(3)
    forwarding = Forwarding(thopters, f"{local}:{empty}", f"{other}:{good.port}")
    with connect(other) as before, connect(local) as client:
        before.sendall(b"a")
        assert before.recv(1) == b"a"
        assert has_ended(client)
        before.sendall(b"b")
        assert before.recv(1) == b"b"
    serve(echo, empty)  # it is started only now
    with connect(local) as client:
        client.sendall(b"c")
        assert client.recv(1) == b"c"
    _, said = forwarding.end()
    assert said.count("thopters: warning: ") == 1
    assert f"cannot reach port {empty} of localhost in dev" in said


@pytest.mark.parametrize(
    "answer", [{"status": 400}, {"status": 500}, {"status": 200, "body": b"[]"}]
)
def test_a_refused_connection_is_a_warning_and_the_next_one_works(
    thopters: Thopters, dev: Emulator, serve: Serve, answer: dict[str, Any]
) -> None:
    dev.fault(Fault("WS /v1/sprites/dev/proxy", "status", times=4, **answer))
    forwarding, local = forward(thopters, serve(echo))
    refused = 1 if answer["status"] == 500 else 4  # a 500 is tried again, four times in all
    for _ in range(refused):
        with connect(local) as client:
            assert has_ended(client)
    with connect(local) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
    assert forwarding.end()[1].count("thopters: warning: ") == refused


# --- a login that is replaced while it runs ----------------------------------------------


def store_login(thopters: Thopters, emulator: Emulator, token: str) -> None:
    """Store a token as the `sprite` program does."""
    org = {"name": "acme", "token": token}
    document = {"urls": {emulator.url: {"url": emulator.url, "orgs": {"acme": org}}}}
    folder = thopters.home / ".sprites"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "new").write_text(json.dumps(document))
    (folder / "new").chmod(0o600)
    (folder / "new").rename(folder / "sprites.json")


def test_n10_a_new_login_is_taken_up_by_a_proxy_that_runs(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    del thopters.env["SPRITE_TOKEN"]
    old, new = dev.token, "acme/1/another-token/0123456789"
    store_login(thopters, dev, old)
    forwarding, local = forward(thopters, serve(echo))

    def is_answered() -> bool:
        with connect(local) as client, contextlib.suppress(ConnectionError):
            client.sendall(b"a")
            return client.recv(1) == b"a"
        return False

    assert is_answered()
    dev.token = new
    assert not is_answered()  # it is refused, and there is no other token yet
    store_login(thopters, dev, new)
    assert is_answered() and is_answered()
    _, said = forwarding.end()
    refused = [line for line in said.splitlines() if "thopters: warning: " in line]
    assert len(refused) == 1 and "the API refused the token from" in refused[0], said
    sent = [
        request.headers["Authorization"]
        for request in dev.journal.requests("WS", "/v1/sprites/dev/proxy")
    ]
    assert sent == [f"Bearer {token}" for token in (old, old, old, new, new)]
    assert old not in said and new not in said


# --- much at once -----------------------------------------------------------------------


def exchange(thopters: Thopters, serve: Serve, size: int) -> None:
    """Have both sides send as much at the same time, and compare the hashes."""
    seen: list[str] = []
    done = threading.Event()

    def both_ways(sock: socket.socket) -> None:
        sender = threading.Thread(target=send_all, args=(sock, 2, size))
        sender.start()
        seen.append(digest(receive(sock, size)))
        sender.join()
        done.set()

    _, local = forward(thopters, serve(both_ways))
    with connect(local) as client:
        sender = threading.Thread(target=send_all, args=(client, 1, size))
        sender.start()
        assert digest(receive(client, size)) == digest(blocks(2, size))
        sender.join()
        assert done.wait(LIMIT_S)
    assert seen == [digest(blocks(1, size))]


def test_64_mb_go_both_ways_at_once(thopters: Thopters, dev: Emulator, serve: Serve) -> None:
    exchange(thopters, serve, 64 * MB)


class Forgetful(list[tuple[int, bytes]]):
    """A journal's list that keeps nothing, where gigabytes pass."""

    def append(self, item: tuple[int, bytes]) -> None:
        pass


@pytest.mark.slow
def test_1_gib_goes_both_ways_at_once(
    thopters: Thopters, dev: Emulator, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emulation import journal

    monkeypatch.setattr(
        journal.Request, "received", property(lambda self: Forgetful(), lambda self, value: None),
        raising=False,
    )  # fmt: skip
    exchange(thopters, serve, 1024 * MB)


def test_a_client_that_sends_all_before_it_reads_is_not_stuck(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    """As without us: what the server can't get rid of does not keep it from reading."""
    size = 32 * MB
    taken = threading.Event()

    def talk_and_listen(sock: socket.socket) -> None:
        sender = threading.Thread(target=send_all, args=(sock, 2, size))
        sender.start()
        if digest(receive(sock, size)) == digest(blocks(1, size)):
            taken.set()
        sender.join()

    _, local = forward(thopters, serve(talk_and_listen))
    with connect(local) as client:
        client.settimeout(10.0)
        for part in blocks(1, size):
            client.sendall(part)
        assert taken.wait(30.0)
        assert digest(receive(client, size)) == digest(blocks(2, size))


def test_200_connections_at_once(thopters: Thopters, dev: Emulator, serve: Serve) -> None:
    server = serve(echo)
    _, local = forward(thopters, server)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(local)) for _ in range(200)]
        for number, client in enumerate(clients):
            client.sendall(b"%d\n" % number * 100)
        until(lambda: server.open == 200, "all connections are open", 60)
        for number, client in enumerate(clients):
            sent = b"%d\n" % number * 100
            assert b"".join(receive(client, len(sent))) == sent
    assert len(dev.journal.requests("WS", "/v1/sprites/dev/proxy")) == 200


@linux_only
@pytest.mark.long
def test_more_connections_than_descriptors_do_not_end_it(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    server = serve(echo)

    def few_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    forwarding, local = forward(thopters, server, preexec_fn=few_descriptors)
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(connect(local))
        until(lambda: server.open >= 10, "some connections are open")

    def is_answered() -> bool:
        with contextlib.suppress(ConnectionError), connect(local) as client:
            client.sendall(b"a")
            return client.recv(1) == b"a"
        return False

    until(is_answered, "it goes on when the others have ended")
    code, said = forwarding.end()
    assert code == -signal.SIGTERM, said
    assert "Traceback" not in said


@linux_only
def test_a_connection_that_has_to_wait_for_a_descriptor_is_told_once(
    thopters: Thopters, dev: Emulator, serve: Serve, tmp_path: Path
) -> None:
    with (tmp_path / "said").open("wb") as stderr:
        forwarding, local = forward(thopters, serve(echo), stderr=stderr)

    def allow(count: int) -> None:
        resource.prlimit(forwarding.pid, resource.RLIMIT_NOFILE, (count, usual[1]))

    def said() -> str:
        return (tmp_path / "said").read_bytes().removeprefix(OPEN_PORTS).decode()

    def waits() -> int:
        text = Path(f"/proc/{forwarding.pid}/status").read_text()
        return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    def see_told(warnings: str) -> None:
        allow(0)
        with connect(local) as client:
            until(lambda: said() == warnings, "it is told")
            before = waits()
            until(lambda: waits() > before + 6, "it is tried some times more")
            allow(usual[0])
            client.sendall(b"a")
            assert client.recv(1) == b"a"
        assert said() == warnings

    usual = resource.prlimit(forwarding.pid, resource.RLIMIT_NOFILE)
    warning = "thopters: warning: a connection could not be taken: Too many open files\n"
    see_told(warning)
    see_told(warning * 2)


# A connection's thread is the only one that can't be started
NO_THREAD = """\
import sys, threading
sys.path.insert(0, sys.argv.pop(1))
import thopters
start = threading.Thread.start
def start_unless_full(thread):
    if getattr(thread._target, "__name__", "") == "_forward":
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = start_unless_full
thopters.leave(thopters.main())
"""


def test_a_connection_without_a_thread_is_reset_and_told(
    thopters: Thopters, dev: Emulator, serve: Serve, tmp_path: Path
) -> None:
    thopters.argv = [sys.executable, "-c", NO_THREAD, str(MODULE.parent)]
    with (tmp_path / "said").open("wb") as stderr:
        _, local = forward(thopters, serve(echo), stderr=stderr)
    with pytest.raises(ConnectionResetError), connect(local) as client:  # maybe in the connect
        client.recv(1)
    why = "a connection could not be taken: no thread can be started"
    until(lambda: f"warning: {why}" in (tmp_path / "said").read_text(), "it is told")


# --- slow ones, and what they cost ------------------------------------------------------


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def until_it_stands_still(count: Callable[[], int]) -> int:
    """Wait until a number has not changed for half a second, and return it."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.02)
        if count() != last:
            last, since = count(), time.monotonic()
    return last


@linux_only
def test_a_slow_reader_here_holds_the_server_up(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    size, sent = 96 * MB, [0]

    def send_counted(sock: socket.socket) -> None:
        for part in blocks(1, size):
            sock.sendall(part)
            sent[0] += len(part)

    forwarding, local = forward(thopters, serve(send_counted))
    before = resident_mb(forwarding.pid)
    with connect(local) as client:
        until(lambda: sent[0], "the server sends")
        assert until_it_stands_still(lambda: sent[0]) < size // 2
        assert resident_mb(forwarding.pid) - before < 12
        assert digest(receive(client, size)) == digest(blocks(1, size))
    assert resident_mb(forwarding.pid) - before < 12


@linux_only
def test_a_slow_reader_there_holds_the_client_up(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    size, sent = 96 * MB, [0]
    begin, seen = threading.Event(), list[str]()

    def read_late(sock: socket.socket) -> None:
        assert begin.wait(LIMIT_S)
        seen.append(digest(receive(sock, size)))
        sock.sendall(b"thanks")

    def send_counted() -> None:
        for part in blocks(1, size):
            client.sendall(part)
            sent[0] += len(part)

    forwarding, local = forward(thopters, serve(read_late))
    before = resident_mb(forwarding.pid)
    with connect(local) as client:
        sender = threading.Thread(target=send_counted)
        sender.start()
        assert until_it_stands_still(lambda: sent[0]) < size // 2
        assert resident_mb(forwarding.pid) - before < 12
        begin.set()
        sender.join()
        assert b"".join(receive(client, 6)) == b"thanks"
    assert seen == [digest(blocks(1, size))]
    assert resident_mb(forwarding.pid) - before < 12


# --- ends -------------------------------------------------------------------------------


def test_an_answer_comes_after_the_client_has_sent_all(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    goes_on = threading.Event()

    def answer_in_parts(sock: socket.socket) -> None:
        assert b"".join(receive(sock, 7)) == b"request"
        sock.sendall(b"one ")
        assert goes_on.wait(LIMIT_S)
        sock.sendall(b"two")

    _, local = forward(thopters, serve(answer_in_parts))
    with connect(local) as client:
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        assert b"".join(receive(client, 4)) == b"one "
        goes_on.set()
        assert read_all(client) == b"two"


@pytest.mark.parametrize("size", [0, 1, 1 * MB])
def test_a_server_that_speaks_and_closes_first(
    thopters: Thopters, dev: Emulator, serve: Serve, size: int
) -> None:
    _, local = forward(thopters, serve(lambda sock: send_all(sock, 1, size)))
    with connect(local) as client:
        assert read_all(client) == b"".join(blocks(1, size))
        client.shutdown(socket.SHUT_WR)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def until_as_before(pid: int, before: tuple[int, int]) -> None:
    """Wait until no more files and threads are there; what it started with may be less by now."""
    until(lambda: open_files(pid) <= before[0] and threads(pid) <= before[1], "all is closed")


@linux_only
def test_a_client_that_vanishes_leaves_nothing(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    server = serve(wait_for_the_end)
    forwarding, local = forward(thopters, server)
    before = open_files(forwarding.pid), threads(forwarding.pid)
    clients = [connect(local) for _ in range(5)]
    for client in clients:
        client.sendall(b"hello")
    until(lambda: server.open == 5, "the connections are open")
    assert open_files(forwarding.pid) > before[0]
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    until(lambda: not dev.sprite("dev").open_proxies, "the platform learns of it", 10)
    until_as_before(forwarding.pid, before)


@linux_only
def test_many_connections_one_after_the_other_leave_nothing(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    forwarding, local = forward(thopters, serve(lambda sock: sock.sendall(sock.recv(1))))
    before = open_files(forwarding.pid), threads(forwarding.pid)
    for _ in range(100):
        with connect(local) as client:
            client.sendall(b"a")
            assert read_all(client) == b"a"
    until_as_before(forwarding.pid, before)
    assert forwarding.end() == (-signal.SIGTERM, "thopters: interrupted\n")


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_a_sprite_that_went_to_sleep_is_woken_by_the_next_connection(
    thopters: Thopters, dev: Emulator, serve: Serve, cold: bool
) -> None:
    forwarding, local = forward(thopters, serve(echo))
    sprite = dev.sprite("dev")
    for _ in range(2):
        with connect(local) as client:
            client.sendall(b"a")
            assert client.recv(1) == b"a"
            sprite.pause(cold=cold)
            assert has_ended(client)
        assert sprite.status == ("cold" if cold else "warm")
    with connect(local) as client:
        client.sendall(b"b")
        assert client.recv(1) == b"b"
    assert sprite.status == "running"
    assert forwarding.end() == (-signal.SIGTERM, "thopters: interrupted\n")


@both
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_its_listeners_and_connections(
    thopters: Thopters, dev: Emulator, serve: Serve, signum: int
) -> None:
    server = serve(echo)
    forwarding, local = forward(thopters, server)
    with connect(local) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        assert forwarding.end(signum) == (-signum, "thopters: interrupted\n")
        assert has_ended(client)
    assert not is_open(local)
    until(lambda: not dev.sprite("dev").open_proxies, "the platform learns of it")


# --- silence ----------------------------------------------------------------------------


class Joined:
    """`join` in a thread of this process, with limits that can be waited for."""

    def __init__(self, emulator: Emulator, port: int) -> None:
        environ = {"SPRITES_API_URL": emulator.url, "SPRITE_TOKEN": emulator.token}
        app = program.App(make_console(), environ, program.Clock())
        self.websocket = program.open_port(app.sprite("dev"), "localhost", port)
        ours, self.client = socket.socketpair()
        self.client.settimeout(LIMIT_S)
        self.why = ""
        self._ours = ours
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._ours:
            try:
                source = program.SocketInput(self._ours)
                program.bridge(self.websocket, program.Clock(), source, self._ours.sendall)
            except (program.WebSocketLost, OSError) as lost:
                self.why = str(lost)
            self.websocket.close()

    def end(self, limit_s: float = LIMIT_S) -> str:
        """Wait until it has ended by itself, and return why."""
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), "the connection is still joined"
        self.client.close()
        return self.why

    def close(self) -> None:
        self.client.close()
        with contextlib.suppress(OSError):
            self.websocket.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT_S)


Join = Callable[[int], Joined]


@pytest.fixture
def join(dev: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Join]:
    """Return a function that joins a port, where 45 s of silence are less than two."""
    monkeypatch.setattr(program, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(program, "DEAD_AFTER_S", 1.5)
    monkeypatch.setattr(program, "LINGER_S", 0.6)
    made: list[Joined] = []

    def join(port: int) -> Joined:
        made.append(Joined(dev, port))
        return made[-1]

    yield join
    for joined in made:
        joined.close()


def test_a_quiet_connection_is_kept_by_pings(dev: Emulator, serve: Serve, join: Join) -> None:
    joined = join(serve(echo).port)
    select.select([joined.client], [], [], 4.0)  # nothing comes, for longer than the limit
    joined.client.sendall(b"a")
    assert joined.client.recv(1) == b"a"


def test_a_slow_reader_here_is_no_silence_of_the_server(
    dev: Emulator, serve: Serve, join: Join
) -> None:
    size = 8 * MB
    joined = join(serve(lambda sock: send_all(sock, 1, size)).port)
    select.select([], [], [], 4.0)  # so long it reads nothing
    assert digest(receive(joined.client, size)) == digest(blocks(1, size)), joined.why


def test_a_slow_reader_there_is_no_silence_of_the_server(
    dev: Emulator, serve: Serve, join: Join
) -> None:
    """A server that can't get rid of our bytes may not come to answering our pings."""
    size, begin, seen = 32 * MB, threading.Event(), list[str]()

    def read_late(sock: socket.socket) -> None:
        assert begin.wait(LIMIT_S)
        seen.append(digest(receive(sock, size)))
        sock.sendall(b"a")

    joined = join(serve(read_late).port)
    sender = threading.Thread(target=send_all, args=(joined.client, 1, size))
    sender.start()
    select.select([], [], [], 4.0)
    begin.set()
    assert joined.client.recv(1) == b"a", joined.why
    sender.join()
    assert seen == [digest(blocks(1, size))]


def test_what_was_sent_last_arrives_however_slowly_it_is_read(
    dev: Emulator, serve: Serve, join: Join
) -> None:
    """The client has sent all and closed, what is on its way waits, and nothing comes back."""
    size, rest, seen = 24 * MB, 16 * MB, list[str]()

    def read_slowly(sock: socket.socket) -> None:
        parts = list(receive(sock, size - rest))
        for _ in range(rest // MB):
            time.sleep(0.1)
            parts.extend(receive(sock, MB))
        seen.append(digest(iter(parts)))

    joined = join(serve(read_slowly).port)
    send_all(joined.client, 1, size)
    joined.client.shutdown(socket.SHUT_WR)
    joined.end()
    until(lambda: seen, "the server has read all")
    assert seen == [digest(blocks(1, size))]


def test_the_wait_for_an_answer_has_an_end(dev: Emulator, serve: Serve, join: Join) -> None:
    server = serve(wait_for_the_end)
    joined = join(server.port)
    joined.client.sendall(b"a")
    joined.client.shutdown(socket.SHUT_WR)
    assert joined.client.recv(1) == b""
    assert joined.end() == "nothing came any more"
    until(lambda: not dev.sprite("dev").open_proxies, "the platform learns of it")


def test_an_answer_in_drops_is_waited_for(dev: Emulator, serve: Serve, join: Join) -> None:
    def drip(sock: socket.socket) -> None:
        for byte in b"an answer":
            select.select([], [], [], 0.2)
            sock.sendall(bytes((byte,)))

    joined = join(serve(drip).port)
    joined.client.shutdown(socket.SHUT_WR)
    assert read_all(joined.client) == b"an answer"


def test_a_platform_that_is_gone_is_found_out(dev: Emulator, serve: Serve, join: Join) -> None:
    """It is connected still, but no ping is answered."""
    joined = join(serve(wait_for_the_end).port)
    [wire] = dev.sprite("dev").wires
    wire.cut_in = None

    wire.sock = Deaf(wire.sock)  # type: ignore[assignment]
    assert joined.client.recv(1) == b""
    assert joined.end() == "nothing was heard for 2 s"


# --- stdin and stdout -------------------------------------------------------------------


@pytest.mark.long
def test_an_answer_that_does_not_end_is_not_called_whole(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    """As a server's that keeps its connection open: what came is all, or not."""

    def answer(sock: socket.socket) -> None:
        sock.sendall(sock.recv(100).upper())
        wait_for_the_end(sock)

    port = serve(answer).port
    done = thopters("proxy", "dev", "-W", f"localhost:{port}", stdin=b"text")
    assert (done.code, done.out) == (1, "TEXT"), done
    said = f"error: nothing came from localhost:{port} in dev for 10 s after the end of the input"
    assert said in done.err and "was lost" not in done.err


def test_stdin_and_stdout_are_the_connection(thopters: Thopters, dev: Emulator, web: int) -> None:
    request = b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    done = thopters("proxy", "dev", "-W", f"localhost:{web}", stdin=request)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("HTTP/1.1 200 OK\r\n")
    assert done.out.endswith("\r\n\r\n/page")
    [opened] = dev.journal.requests("WS")
    assert json.loads(opened.received[0][1]) == {"host": "localhost", "port": web}


@pytest.mark.parametrize("size", [0, 1, 5 * MB])
def test_any_bytes_go_through_stdin_and_stdout(
    thopters: Thopters, dev: Emulator, serve: Serve, size: int
) -> None:
    data = bytes(range(256)) * (size // 256) + b"\n\r\0\xff"[: size % 256]

    def mirror(sock: socket.socket) -> None:
        sock.sendall(b"".join(receive(sock, len(data))))

    done = thopters("proxy", "dev", "-W", f"127.0.0.1:{serve(mirror).port}", stdin=data)
    assert (done.code, done.err) == (0, "")
    assert done.out_bytes == data


def test_a_server_that_greets_and_leaves_ends_it_though_stdin_is_open(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    """As ssh starts it: the server speaks first, and stdin stays open.

    N6: the connection is closed by a frame, so it is no pause, whatever a GET says.
    """
    dev.personality.get_says_cold = True
    leave = threading.Event()

    def greet(sock: socket.socket) -> None:
        sock.sendall(b"SSH-2.0-server\r\n")
        leave.wait(LIMIT_S)

    port = serve(greet).port
    started = thopters.start("proxy", "dev", "-W", f":{port}", stdin=subprocess.PIPE)
    assert started.stdout
    assert started.stdout.readline() == b"SSH-2.0-server\r\n"
    leave.set()
    assert started.wait(LIMIT_S) == 0


@pytest.mark.parametrize(
    "address",
    ["", "x", "22", "host:", ":0", "h:65536", "h:-1", "a b:1", "h:1:2", "ho\nst:22", "é:1"],
)
def test_what_is_no_address_is_wrong_usage(thopters: Thopters, dev: Emulator, address: str) -> None:
    done = thopters("proxy", "dev", "-W", address)
    assert (done.code, done.out) == (2, "")
    assert not len(dev.journal)


@pytest.mark.parametrize("host", ["localhost", "", "[::1]", "127.0.0.1"])
def test_a_refused_connection_is_an_error_in_words(
    thopters: Thopters, dev: Emulator, host: str
) -> None:
    [port] = free_ports(1)
    done = thopters("proxy", "dev", "-W", f"{host}:{port}", stdin=b"request")
    named = host.strip("[]") or "localhost"
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"thopters: error: cannot reach port {port} of {named} in dev: ")


def test_a_closed_stdout_ends_it_as_a_closed_pipe_does(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    server = serve(lambda sock: send_all(sock, 1, 4 * MB))
    started = thopters.start("proxy", "dev", "-W", f"localhost:{server.port}")
    assert started.stdout
    assert started.stdout.read(1)
    started.stdout.close()
    assert started.wait(LIMIT_S) == -signal.SIGPIPE


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_joined_stdin(
    thopters: Thopters, dev: Emulator, serve: Serve, signum: int
) -> None:
    server = serve(echo)
    started = thopters.start(
        "proxy", "dev", "-W", f"localhost:{server.port}", stdin=subprocess.PIPE
    )
    assert started.stdin and started.stdout
    started.stdin.write(b"a")
    started.stdin.flush()
    assert started.stdout.read(1) == b"a"
    started.send_signal(signum)
    assert started.wait(LIMIT_S) == -signum
    until(lambda: not dev.sprite("dev").open_proxies, "the platform learns of it")


def test_ssh_ends_us_by_a_hangup_and_nothing_is_said(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    server = serve(echo)
    started = thopters.start(
        "proxy", "dev", "-W", f"localhost:{server.port}", stdin=subprocess.PIPE
    )
    assert started.stdin and started.stdout and started.stderr
    started.stdin.write(b"a")
    started.stdin.flush()
    assert started.stdout.read(1) == b"a"
    started.send_signal(signal.SIGHUP)
    assert started.wait(LIMIT_S) == 0
    assert started.stderr.read() == b""


# --- what is lost, and no end -----------------------------------------------------------


def break_off(dev: Emulator) -> None:
    """Reset the platform's connections."""
    for wire in list(dev.sprite("dev").wires):
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire._closed = True
        wire.sock.shutdown(socket.SHUT_RD)
        wire.sock.close()


@pytest.mark.parametrize("how", ["reset", "pause"])
def test_what_was_cut_off_is_no_success_of_stdin_and_stdout(
    thopters: Thopters, dev: Emulator, serve: Serve, how: str
) -> None:
    server = serve(lambda sock: (sock.sendall(b"half"), sock.recv(1)))
    started = thopters.start(
        "proxy", "dev", "-W", f"localhost:{server.port}", stdin=subprocess.PIPE
    )
    assert started.stdout and started.stderr
    assert started.stdout.read(4) == b"half"
    if how == "reset":
        break_off(dev)
    else:
        dev.sprite("dev").pause()
    assert started.wait(LIMIT_S) == 1
    assert started.stderr.read().startswith(b"thopters: error: the connection to dev was lost: ")


def test_what_was_cut_off_is_reset_for_the_client(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    forwarding, local = forward(thopters, serve(lambda sock: (sock.sendall(b"half"), sock.recv(1))))
    with connect(local) as client:
        assert b"".join(receive(client, 4)) == b"half"
        break_off(dev)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    _, said = forwarding.end()
    assert "thopters: warning: a connection to port " in said


# --- the sprite program -----------------------------------------------------------------


@pytest.fixture
def sprite_program(thopters: Thopters, tmp_path: Path) -> None:
    """Put a `sprite` program first in PATH, which has the same token."""
    folder = tmp_path / "programs"
    write_launcher(folder, "sprite", SPRITE_PROGRAM)
    thopters.env["PATH"] = f"{folder}{os.pathsep}{thopters.env['PATH']}"


def first_line(thopters: Thopters, *words: str) -> bytes:
    started = thopters.start("proxy", "dev", *words)
    assert started.stdout
    return started.stdout.readline()


@pytest.mark.usefixtures("sprite_program")
def test_the_sprite_program_forwards_where_it_reaches_the_same_sprite(
    thopters: Thopters, dev: Emulator, serve: Serve
) -> None:
    server, [local] = serve(echo), free_ports(1)
    said = first_line(thopters, f"{local}:{server.port}")
    assert said == f"Forwarding localhost:{local} -> {server.port}\n".encode()
    with connect(local) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"


@pytest.mark.parametrize("way", ["option", "variable", "another org", "absent"])
def test_ours_forwards_where_that_program_is_not_wanted_or_not_right(
    thopters: Thopters, dev: Emulator, request: pytest.FixtureRequest, way: str
) -> None:
    if way != "absent":
        request.getfixturevalue("sprite_program")
    if way == "variable":
        thopters.env["THOPTERS_NATIVE"] = "1"
    if way == "another org":
        login = thopters.home / ".sprites" / "sprites.json"
        login.parent.mkdir(mode=0o700)
        orgs = {name: {"name": name, "api_token": dev.token} for name in ("acme", "other")}
        document = {
            "version": "1",
            "current_selection": {"url": dev.url, "org": "other"},
            "urls": {dev.url: {"url": dev.url, "orgs": orgs}},
        }
        login.write_text(json.dumps(document))
        login.chmod(0o600)
    [local] = free_ports(1)
    words = [f"{local}:80", *(["--native"] if way == "option" else [])]
    assert first_line(thopters, *words) == f"localhost:{local} -> dev:80\n".encode()
