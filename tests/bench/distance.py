"""The benchmarks over a distance: a relay delays each byte, and the platform behind it speaks TLS.

So a TLS handshake takes its round trips. The first bytes of a connection wait for one more, which
is what TCP needs to connect. The relay takes whatever comes at once, so it limits no rate. It does
not imitate TCP's slow start, which makes new connections slower still.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import queue
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from measuring import Bench, Contender, Platform, Row, anything, compare, platform
from support.certificates import OPENSSL, Authority
from support.servers import Server, TlsRelay

SPRITES = 1_000
PLATFORM_PAGE = 500
SMALL_PAGE = 50  # the older documentation's
LIST_TARGET = 0.6  # of the SDK's time
QUIET_S = 3.0  # until a sprite sleeps, so that a pause has to look several times
BUSY = ["exec", "two", "--detach", "--", "sh", "-c", "while :; do date; sleep 0.1; done"]
PROBES = 5
MANY = 8  # sprites for one command
MANY_TARGET = 3.0  # times that one of them takes


class Relay(Server):
    """Passes what comes on to `port`, each way half a round trip later."""

    def __init__(self, port: int, round_trip_s: float) -> None:
        self.target = port
        self.round_trip_s = round_trip_s
        super().__init__()

    def serve(self, sock: socket.socket) -> None:
        server = self.connect(self.target)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # to connect costs a round trip, but here the client is connected at once
        ways = ((sock, server, self.round_trip_s), (server, sock, 0.0))
        threads = [threading.Thread(target=self._carry, args=way, daemon=True) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.release(sock, server)

    def _carry(self, source: socket.socket, sink: socket.socket, first_s: float) -> None:
        """Pass one way on, and its end."""
        under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        sender = threading.Thread(target=deliver, args=(under_way, sink), daemon=True)
        sender.start()
        data = b"begin"
        while data:
            try:
                data = source.recv(1 << 18)
            except OSError:
                data = b""
            due = time.monotonic() + self.round_trip_s / 2 + first_s
            under_way.put((due, data))
            first_s = 0.0
        sender.join()


def deliver(under_way: queue.SimpleQueue[tuple[float, bytes]], sink: socket.socket) -> None:
    """Send each piece when it is due, and not before those ahead of it."""
    with contextlib.suppress(OSError):
        while True:
            due, data = under_way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)


class Distance:
    """A platform far away, and how the program and the SDK get there."""

    def __init__(
        self, bench: Bench, platform: Platform, relay: Relay, certificate: Path, program: list[str]
    ) -> None:
        self.bench = bench
        self.platform = platform
        self.relay = relay
        self.certificate = certificate
        self.program = program
        self.env = {
            "SPRITES_API_URL": f"https://127.0.0.1:{relay.port}",
            "SPRITE_TOKEN": platform.token,
            "THOPTERS_CA_BUNDLE": str(certificate),
            "THOPTERS_CONFIG": str(bench.home / "config.json"),
        }

    def ours(self, *words: str) -> Contender:
        return Contender(" ".join(words), [*self.program, *words], anything, env=self.env)

    def theirs(self, contender: Contender) -> Contender:
        """Return the SDK's, which loads one certificate here in place of the hundreds it brings."""
        return contender._replace(env=self.env | {"SSL_CERT_FILE": str(self.certificate)})

    def count(self, contender: Contender) -> int:
        """Return how many connections it opens."""
        before = self.relay.accepted
        self.bench.check(contender)
        return self.relay.accepted - before

    def ask_nearby(self, method: str, path: str, document: object = None) -> None:
        """Have the platform do something between two runs, without the distance."""
        connection = http.client.HTTPConnection("127.0.0.1", self.platform.api_port)
        body = None if document is None else json.dumps(document)
        headers = {"Authorization": f"Bearer {self.platform.token}"}
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            connection.getresponse().read()

    def probe(self) -> str:
        """Say what a connection and a request take here, by a client that does nothing else."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        connecting: list[float] = []
        asking: list[float] = []
        for _ in range(PROBES):
            connection = http.client.HTTPSConnection("127.0.0.1", self.relay.port, context=context)
            began = time.perf_counter()
            with contextlib.closing(connection):
                for times in (connecting, asking):
                    # the first answer holds what TCP and TLS take, the second one does not
                    connection.request("GET", "/v1/sprites?max_results=1")
                    connection.getresponse().read()
                    times.append(time.perf_counter() - began)
                    began = time.perf_counter()
        first, later = (statistics.median(times) * 1000 for times in (connecting, asking))
        return (
            f"Over the distance the first request on a connection takes {first:.0f} ms, "
            f"the next one {later:.0f} ms"
        )


@contextlib.contextmanager
def far_away(bench: Bench, program: list[str], round_trip_s: float) -> Iterator[Distance]:
    authority = Authority(bench.home / "authority")
    certificate = authority.issue("server")
    (bench.home / "config.json").write_text('{"secrets": {"ANTHROPIC_API_KEY": "sk-ant-bench"}}')
    (bench.home / "config.json").chmod(0o600)
    with (
        platform(bench, SPRITES) as emulator,
        TlsRelay(emulator.api_port, certificate) as tls,
        Relay(tls.port, round_trip_s) as relay,
    ):
        yield Distance(bench, emulator, relay, authority.certificate, program)


# --- rows -------------------------------------------------------------------------------


def lines(count: int) -> Callable[[bytes, int], bool]:
    return lambda first, size: len(first.splitlines()) == count


def connections_row(what: str, ours: int, most: int | None) -> Row:
    row = Row(f"{what}: connections", str(ours))
    return row if most is None else row._replace(target=f"<= {most}", kept=ours <= most)


def pairs(
    far: Distance, sdk: Callable[[str], Contender]
) -> Iterator[tuple[Contender, Contender, int | None]]:
    """Yield ours, the SDK's, and how many connections ours may open; the platform is then set."""

    def listing(title: str, count: int, prefix: str = "") -> tuple[Contender, Contender]:
        own = far.ours("ls", "--prefix", prefix)._replace(label=title, sound=lines(count))
        source = f"names = [s.name for s in client.list_all_sprites({prefix!r})]\n"
        other = sdk(source + "print(*names, sep='\\n')")._replace(sound=lines(count))
        return own, far.theirs(other)

    def changing(
        words: Sequence[str], source: str, before: Callable[[], object]
    ) -> tuple[Contender, Contender]:
        own, other = far.ours(*words), far.theirs(sdk(source))
        return own._replace(prepare=before), other._replace(prepare=before)

    yield *listing("ls, 1 page", SPRITES // 10, "bench-0"), 1
    own, other = listing(f"ls of {SPRITES:,}", SPRITES)
    yield own, other._replace(limit=LIST_TARGET), 1
    far.platform.set(page_size=SMALL_PAGE)
    yield *listing(f"ls of {SPRITES:,} in {SPRITES // SMALL_PAGE} pages", SPRITES), 1
    far.platform.set(page_size=PLATFORM_PAGE)

    remove = functools.partial(far.ask_nearby, "DELETE", "/v1/sprites/new")
    make = functools.partial(far.ask_nearby, "POST", "/v1/sprites", {"name": "new"})
    run = "raise SystemExit({}.run('true').returncode)"
    for words, most in ((["create", "new", "--no-init"], 2), (["create", "new"], 3)):
        own, other = changing(words, run.format("client.create_sprite('new')"), remove)
        yield own, other._replace(label=f"{other.label}, and run true"), most
    words = ["exec", "dev", "--", "true"]
    far.bench.check(far.ours(*words))  # so it is awake for the SDK, which does not wait
    yield *changing(words, run.format("client.sprite('dev')"), lambda: None), None
    yield *changing(["destroy", "new", "--yes"], "client.destroy_sprite('new')", make), None


def together(far: Distance) -> Iterator[tuple[Contender, Contender]]:
    """Yield a command for many sprites, and the same one for one of them."""
    for number in range(MANY):
        far.bench.check(far.ours("create", f"many-{number}"))
    for head, tail in ((["exec"], ["--", "true"]), (["env", "check"], [])):
        one = far.ours(*head, "many-0", *tail)
        yield far.ours(*head, "many-*", *tail), one._replace(limit=MANY_TARGET)


def counts(far: Distance) -> Iterator[Row]:
    """Yield a row for each of the other commands that have a target: a sprite's life, once."""
    for name in ("one", "two"):
        far.bench.check(far.ours("create", name))
    steps = (
        ("url --public", 1, ["url", "one", "--public"]),
        ("checkpoint", 1, ["checkpoint", "two"]),
        ("restore", 4, ["restore", "two", "v1", "--yes"]),
        ("pause of a busy sprite", 4, ["pause", "two", "--force"]),
        ("resume", 2, ["resume", "two"]),
        ("destroy of two", 1, ["destroy", "one", "two", "--yes"]),
    )
    for what, most, words in steps:
        if words[0] == "pause":
            far.bench.check(far.ours(*BUSY))
            far.platform.set(idle_s=QUIET_S)
        yield connections_row(what, far.count(far.ours(*words)), most)
        far.platform.set(idle_s=3600.0)


def distance(
    bench: Bench,
    program: list[str],
    sdk: Callable[[str], Contender],
    rounds: int,
    round_trip_s: float,
) -> tuple[list[Row], list[str]]:
    """Return the rows of commands over a distance, and what to know about them."""
    if not OPENSSL:
        return [], ["Over the distance nothing was measured: openssl is not installed"]
    rows: list[Row] = []
    with far_away(bench, program, round_trip_s) as far:
        for ours, theirs, most in pairs(far, sdk):
            rows += compare(bench, rounds, ours, [theirs])[0]
            row = connections_row(ours.label, far.count(ours), most)
            if theirs.argv:
                row = row._replace(against=theirs.label, theirs=str(far.count(theirs)))
            rows.append(row)
        for ours, one in together(far):
            rows += compare(bench, rounds, ours, [one])[0]
        rows += counts(far)
        return rows, [far.probe()]
