"""Bad networks: what comes of a command, in which words, and what the server has got.

N1, N2, N4 and N12 of the faults of November 2026, and connections that are kept and then not.
"""

from __future__ import annotations

import errno
import http.client
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from emulation.journal import Request
from emulation.state import Sprite
from emulation.wire import Wire
from support.certificates import OPENSSL, Authority
from support.configs import write
from support.networks import TIMED_OUT, Fickle, reset
from support.program import Thopters
from support.runs import Done, environ_for, run_here, shorten
from support.servers import Canned, ConnectProxy, Server, TlsRelay, read_head, response
from support.terminals import Tty
from support.units import FakeClock, make_console, make_transport
from support.waiting import until

import thopters as program

# what breaks a kept connection, between two requests or under the second one


def closes(number: int, sock: socket.socket, head: bytes = b"") -> bool:
    return False


def says_408(number: int, sock: socket.socket) -> bool:
    sock.sendall(TIMED_OUT)
    return False


def closes_under(number: int, sock: socket.socket, head: bytes) -> bool:
    return number == 0


def resets_under(number: int, sock: socket.socket, head: bytes) -> bool:
    if number:
        reset(sock)
    return number == 0


def answers_408(number: int, sock: socket.socket, head: bytes) -> bool:
    if number:
        sock.sendall(TIMED_OUT)
    return number == 0


BETWEEN: dict[str, dict[str, Any]] = {
    "closes after each answer": {"after": closes},
    "says 408 after each answer": {"after": says_408},
}
UNDER: dict[str, dict[str, Any]] = {
    "closes under the next request": {"before": closes_under},
    "resets under the next request": {"before": resets_under},
    "answers the next request with 408": {"before": answers_408},
}
COMMANDS: dict[str, tuple[list[str], str, int]] = {
    # what is run, the method of its change, and how often the server is to get that
    "list": (["list"], "GET", 3),
    "create": (["create", "new", "--no-init"], "POST", 1),
    "checkpoint": (["checkpoint", "dev"], "POST", 1),
    "url": (["url", "dev", "--public"], "PUT", 1),
    "destroy": (["destroy", "dev", "other", "--yes"], "DELETE", 2),
    "exec": (["exec", "dev", "--", "true"], "WS", 1),
    "init": (["init", "dev", "other"], "WS", 2),
    "sessions": (["sessions", "dev"], "GET", 1),
}


@pytest.fixture
def platform(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Return an emulator with three sprites, each on a page of its own."""
    monkeypatch.setattr(program, "READ_BACK_LIMIT_S", 1.0)
    emulator.personality.page_size = 1
    for name in ("dev", "other", "third"):
        emulator.add_sprite(name, status="running")
    return emulator


def run_behind(network: Server, emulator: Emulator, home: Path, words: list[str]) -> Done:
    environ = environ_for(emulator, str(home), SPRITES_API_URL=network.url)
    return run_here(words, environ)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", [*BETWEEN, *UNDER])
def test_n3_a_kept_connection_that_breaks_is_not_noticed(
    platform: Emulator, tmp_path: Path, kind: str, command: str
) -> None:
    words, method, times = COMMANDS[command]
    before = len(platform.journal)
    with Fickle(int(platform.url.rpartition(":")[2]), **(BETWEEN | UNDER)[kind]) as network:
        done = run_behind(network, platform, tmp_path, words)
    assert (done.code, "error" in done.err) == (0, False), done
    assert len(platform.journal.requests(method)) == times
    assert len(platform.journal) - before < 12
    assert not platform.journal.oddities


def test_n3_threads_have_a_connection_each(emulator: Emulator) -> None:
    """And leave it to the next one that asks."""
    at_once = threading.Barrier(4)

    def answer(request: Request, wire: Wire) -> None:
        if "together" in request.path:
            at_once.wait(10)
        wire.write(response(b"{}", 200, "Connection: keep-alive"))

    with Canned(answer, keeps=True) as server:
        credential = program.Credential(program.Secret("a token of a test"), "a test")
        transport = program.Transport(
            server.url, credential, console=make_console(), clock=FakeClock(), environ={}
        )
        for path in ("/one", "/two", "/together", "/three"):
            asking = [
                threading.Thread(target=transport.fetch, args=("GET", path))
                for _ in range(4 if path == "/together" else 1)
            ]
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join()
        assert (server.accepted, len(server.requests)) == (4, 7)
        transport.close()


def test_n3_another_thread_may_take_the_last_idle_connection() -> None:
    """Between the look whether there is one and the taking, as with many ports' connections."""

    class Shared(list[Any]):
        def __bool__(self) -> bool:
            there = len(self) > 0
            self.clear()
            return there

    transport = make_transport(FakeClock())
    takes: list[Callable[[], object]] = [
        lambda: transport._take_idle(changes=False),
        transport.close,
    ]
    for take in takes:
        transport._idle = Shared([(0.0, http.client.HTTPConnection("api.test"))])
        take()


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"{"])
def test_n3_what_nobody_asked_for_is_no_answer(extra: bytes) -> None:
    """A connection on which something came unasked is left, and what came with it."""

    def answer(request: Request, wire: Wire) -> None:
        wire.write(response(b'{"first": 1}', 200, "Connection: keep-alive"))
        if len(server.requests) == 1:
            wire.sock.sendall(extra)
            sent.set()

    sent = threading.Event()
    with Canned(answer, keeps=True) as server:
        credential = program.Credential(program.Secret("a token of a test"), "a test")
        transport = program.Transport(
            server.url, credential, console=make_console(), clock=program.Clock(), environ={}
        )
        assert transport.fetch("GET", "/").details() == {"first": 1}
        assert sent.wait(10)
        assert transport.fetch("POST", "/").details() == {"first": 1}
        assert server.accepted == 2
        transport.close()


# answers that come before a request is sent to its end, or late


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("status", [413, 403])
def test_n4_a_refusal_is_heard_while_the_body_is_being_sent(
    thopters: Thopters, emulator: Emulator, status: int, how: str
) -> None:
    """Nothing has run, so nothing is unknown; the rest of the body is never read.

    What has only closed its own side may leave us with a full window and without a word.
    """
    shorten(thopters, SILENCE_TIMEOUT_S=0.7)
    emulator.add_sprite("dev", status="running")
    page = {"status": 403, "body": b"<html>", "content_type": "text/html", "times": None}
    emulator.fault(Fault("WS *", "status", **page))  # type: ignore[arg-type]
    refusal = response(b'{"error": "not today"}', status, "Connection: close")
    begun = threading.Event()

    def before(number: int, sock: socket.socket, head: bytes) -> bool:
        if not head.startswith(b"POST "):
            return True
        begun.set()
        sock.sendall(refusal)
        if how == "reset":
            until(lambda: len(sock.recv(1 << 16)) > 0, "the body has begun")
            reset(sock)
        return False

    with Fickle(int(emulator.url.rpartition(":")[2]), before=before) as network:
        thopters.env["SPRITES_API_URL"] = network.url
        done = thopters("exec", "dev", "-i", "--", "cat", stdin=bytes(9 << 20))
    assert begun.is_set()
    assert done.code == 255, done
    assert "not today" in done.err, done
    assert "not known whether" not in done.err, done
    assert not emulator.journal.requests("POST")


def test_n4_a_request_does_not_become_the_rest_of_a_body() -> None:
    """A server that refuses early and keeps the connection still waits for what was not sent."""

    class Early(Server):
        def serve(self, sock: socket.socket) -> None:
            head, _ = read_head(sock)
            asked.append(head[:4])
            big = head.startswith(b"POST ")
            sock.sendall(response(b"{}", 413 if big else 200, "Connection: keep-alive"))
            assert done.wait(30)

    asked: list[bytes] = []
    done = threading.Event()
    credential = program.Credential(program.Secret("a token of a test"), "a test")
    with Early() as server:
        clock = program.Clock()
        transport = program.Transport(
            server.url, credential, console=make_console(), clock=clock, environ={}
        )
        statuses = []
        try:
            for method, body in (("POST", bytes(16 << 20)), ("GET", None)):
                with program.Deadline(60.0, clock, silence_s=1.0) as deadline:
                    head = transport.send(method, "/", {}, deadline, body)
                    statuses.append(transport.read_answer(head, deadline).status)
        finally:
            transport.close()
            done.set()
    assert (statuses, asked) == ([413, 200], [b"POST", b"GET "])


def test_an_answer_may_come_late(thopters: Thopters, emulator: Emulator) -> None:
    """Later than what is waited for a close, and than a first address may take."""
    emulator.add_sprite("dev", status="running")
    go_on = threading.Event()

    def before(number: int, sock: socket.socket, head: bytes) -> bool:
        return not go_on.wait(0.4)  # this is what it is for

    with Fickle(int(emulator.url.rpartition(":")[2]), before=before) as network:
        thopters.env["SPRITES_API_URL"] = network.url
        done = thopters("url", "dev", "--public")
    assert (done.code, network.accepted) == (0, 1), done
    assert len(emulator.journal.requests("PUT")) == 1


def test_n5_an_interrupt_ends_a_copy_in_pieces_on_a_dead_network(
    thopters: Thopters, emulator: Emulator, authority: Authority
) -> None:
    """What was sent ahead is to be removed, but no new connection comes about."""
    shorten(thopters, URGENT_LIMIT_S=0.5)
    emulator.add_sprite("dev", status="running")
    page = {"status": 403, "body": b"<html>", "content_type": "text/html", "times": None}
    emulator.fault(Fault("WS *", "status", **page))  # type: ignore[arg-type]
    is_dead = threading.Event()

    def before(number: int, sock: socket.socket, head: bytes) -> bool:
        if len(emulator.journal.requests("POST")):
            is_dead.set()
            assert relay.stopping.wait(60)
        return True

    class Relay(TlsRelay):
        def serve(self, sock: socket.socket) -> None:
            if is_dead.is_set():
                self.stopping.wait(60)
            super().serve(sock)

    network = Fickle(int(emulator.url.rpartition(":")[2]), before=before)
    relay = Relay(network.port, authority.issue("server"))
    (thopters.home / "big").write_bytes(os.urandom(20 << 20))
    with network, relay:
        thopters.env["SPRITES_API_URL"] = relay.url
        thopters.env["THOPTERS_CA_BUNDLE"] = str(authority.certificate)
        process = thopters.start("cp", "big", "dev:big")
        assert is_dead.wait(60)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=40)
        assert process.returncode == -signal.SIGINT


# N1: connecting may take longer than what is waited for a sprite


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if OPENSSL is None:
        pytest.skip("there is no openssl program here")
    return Authority(tmp_path_factory.mktemp("slow") / "authority")


@pytest.fixture
def slow_way(
    thopters: Thopters, emulator: Emulator, authority: Authority
) -> Iterator[ConnectProxy]:
    """Have the program go through a proxy that takes longer for a connection than a probe may."""
    certificate = authority.issue("server")
    shorten(thopters, PROBE_LIMIT_S=0.5, URGENT_LIMIT_S=0.5, READY_LIMIT_S=6, HOLD_EVERY_S=0.5)
    with (
        TlsRelay(int(emulator.url.rpartition(":")[2]), certificate) as relay,
        ConnectProxy(relay.port, delay_s=0.8) as proxy,
    ):
        thopters.env |= {
            "SPRITES_API_URL": "https://api.test",
            "THOPTERS_CA_BUNDLE": str(authority.certificate),
            "HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}",
        }
        yield proxy


@pytest.mark.long
def test_n1_what_reaches_the_api_is_enough_for_every_command(
    thopters: Thopters, emulator: Emulator, slow_way: ConnectProxy
) -> None:
    """`create` and `resume` wait for a command in short probes; and ^C is passed on."""
    write(thopters.home / ".sprite-thopters" / "config.json", {"secrets": {"MY_KEY": "value"}})
    done = thopters("create", "dev", timeout=60)
    assert done.code == 0, done
    sprite = emulator.sprite("dev")
    assert "MY_KEY" in (sprite.home / ".thopters" / "env").read_text()
    sprite.pause()
    assert thopters("resume", "dev", timeout=60).code == 0
    process = thopters.start("exec", "dev", "--", "sh", "-c", "echo up; sleep 600")
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert all(session.ended.wait(10) for session in sprite.sessions.values())
    assert slow_way.accepted < 14


@pytest.mark.long
def test_n1_a_hold_is_refreshed_over_a_slow_way(
    thopters: Thopters, sprite: Sprite, slow_way: ConnectProxy
) -> None:
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", "read line; exit 3") as terminal:
        until(lambda: sprite.tasks, "it is held")
        [expiry] = [task["expires_at"] for task in sprite.tasks.values()]
        until(lambda: later(sprite, expiry + 1), "it is refreshed")
        terminal.type("\n")
        assert terminal.end_restored() == 3
        assert "can't be refreshed" not in terminal.text


def later(sprite: Sprite, expiry: float) -> bool:
    return all(task["expires_at"] > expiry for task in sprite.tasks.values())


# N2: addresses


class BlackHole:
    """An address that swallows connections: a listener whose queue is full."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.address = self._listener.getsockname()
        self._waiting = [socket.socket() for _ in range(4)]
        for sock in self._waiting:
            sock.setblocking(False)
            sock.connect_ex(self.address)

    def close(self) -> None:
        for sock in (self._listener, *self._waiting):
            sock.close()


@pytest.fixture
def black_hole() -> Iterator[BlackHole]:
    hole = BlackHole()
    with socket.socket() as probe:
        probe.settimeout(0.3)
        if probe.connect_ex(hole.address) == 0:
            pytest.skip("a full queue swallows nothing here")
    yield hole
    hole.close()


def found(*addresses: Any) -> list[tuple[Any, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]


def test_n2_an_address_that_swallows_all_costs_a_moment_once(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, black_hole: BlackHole
) -> None:
    """restore opens four connections; and the name is looked up once."""
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("first")
    good = ("127.0.0.1", int(emulator.url.rpartition(":")[2]))
    looked_up, tried = [], []

    def resolve(host: str, port: int, deadline: program.Deadline) -> list[tuple[Any, ...]]:
        looked_up.append(host)
        return found(black_hole.address, good)

    begin = program.begin_connect

    def begin_connect(sock: socket.socket, address: Any) -> socket.socket:
        tried.append(address)
        return begin(sock, address)

    monkeypatch.setattr(program, "resolve", resolve)
    monkeypatch.setattr(program, "begin_connect", begin_connect)
    argv = ["restore", "dev", "v1", "--yes"]
    done = run_here(argv, environ_for(emulator, str(tmp_path)))
    assert done.code == 0, done
    assert looked_up == ["127.0.0.1"]
    assert (tried[0], {*tried[1:]}) == (black_hole.address, {good})
    assert len(tried) >= 5


def test_n2_a_refused_address_is_left_at_once(black_hole: BlackHole) -> None:
    with socket.socket() as closed, socket.create_server(("127.0.0.1", 0)) as listener:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        addresses = found(closed.getsockname(), listener.getsockname(), black_hole.address)
        with program.Deadline(10.0, program.Clock()) as deadline:
            sock, used = program.connect_tcp(addresses, deadline)
            with sock:
                assert sock.getpeername() == used[4] == listener.getsockname()
            with pytest.raises(ConnectionRefusedError):
                program.connect_tcp(found(closed.getsockname()), deadline)
        with program.Deadline(0.3, program.Clock()) as deadline, pytest.raises(TimeoutError):
            program.connect_tcp(found(black_hole.address, closed.getsockname()), deadline)


def test_n2_nothing_is_waited_for_where_an_address_fails_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with IPv6 where there is no way for it; and Windows can't wait for nothing."""
    begin, wait = program.begin_connect, program.wait_for

    def begin_connect(sock: socket.socket, address: Any) -> socket.socket:
        if address[0] == "192.0.2.1":
            sock.close()
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return begin(sock, address)

    def wait_for(readers: Any, writers: Any, timeout_s: float) -> Any:
        if not readers and not writers:
            raise OSError(10022, "An invalid argument was supplied")
        return wait(readers, writers, timeout_s)

    monkeypatch.setattr(program, "begin_connect", begin_connect)
    monkeypatch.setattr(program, "wait_for", wait_for)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        addresses = found(("192.0.2.1", 443), listener.getsockname())
        with program.Deadline(10.0, program.Clock()) as deadline:
            sock, used = program.connect_tcp(addresses, deadline)
            sock.close()
        assert used[4] == listener.getsockname()


def test_n2_the_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    six = [(socket.AF_INET6, 1, 6, "", (f"2001:db8::{n}", 443, 0, 0)) for n in range(3)]
    four = [(socket.AF_INET, 1, 6, "", (f"192.0.2.{n}", 443)) for n in range(2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [*six, *four])
    with program.Deadline(10.0, program.Clock()) as deadline:
        order = program.resolve("api.test", 443, deadline)
    assert order == [six[0], four[0], six[1], four[1], six[2]]


def test_n2_an_address_that_only_takes_connections_is_not_the_one_that_worked(
    emulator: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    authority: Authority,
) -> None:
    """As where large packets are lost: TCP stands, and TLS never comes.

    And when no address is left, the name is looked up again: it may lead elsewhere by then.
    """
    looked_up: list[str] = []
    monkeypatch.setattr(program, "CONNECT_LIMIT_S", 0.5)
    relay = TlsRelay(int(emulator.url.rpartition(":")[2]), authority.issue("server"))
    with Server() as silent, relay:
        good = ("127.0.0.1", relay.port)

        def resolve(host: str, port: int, deadline: program.Deadline) -> list[tuple[Any, ...]]:
            looked_up.append(host)
            addresses = [("127.0.0.1", silent.port), good]
            return found(*addresses) if len(looked_up) > 1 else found(addresses[0])

        monkeypatch.setattr(program, "resolve", resolve)
        bundle = str(authority.certificate)
        environ = environ_for(emulator, str(tmp_path), THOPTERS_CA_BUNDLE=bundle)
        done = run_here(["list"], environ | {"SPRITES_API_URL": relay.url})
        assert done.code == 0, done
        assert (silent.accepted, len(looked_up)) == (2, 2)
