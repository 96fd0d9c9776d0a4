"""R05: no redirect is followed, and no token goes anywhere with one.

A second server waits at the place that a redirect names. Every name leads to this machine, so a
program that follows does arrive there; the last test sees that the trap catches one.
"""

from __future__ import annotations

import itertools
import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulation.journal import Request
from emulation.wire import Wire
from support.certificates import OPENSSL, Authority
from support.program import Thopters
from support.runs import run_here
from support.servers import Canned, TlsRelay, response

TOKEN = "acme/1/tok/ottoman-sapphire"
STATUSES = (301, 302, 303, 307, 308)
TARGETS = ("another host", "another port", "without TLS", "itself")
COMMANDS = {
    "GET": ["list"],
    "POST": ["create", "dev", "--no-init"],
    "PUT": ["url", "dev", "--public"],
    "DELETE": ["destroy", "dev", "--yes"],
}
MORE = {
    "WS": ["exec", "dev", "--", "true"],
    "STREAM": ["checkpoint", "dev"],
}
SPRITE = {"name": "dev", "status": "running", "url": "https://dev.example"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if OPENSSL is None:
        pytest.skip("openssl is not installed")
    return Authority(tmp_path_factory.mktemp("certificates") / "authority")


class Trap:
    """An API that redirects one method, with and without TLS, and the place that it names."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.method, self.status, self.location = "GET", 302, ""
        self.elsewhere = Canned(lambda _, wire: wire.write(response(b'{"sprites": []}')))
        self.api = Canned(self._answer)
        self.secure = TlsRelay(self.api.port, authority.issue("server"))
        self.servers = (self.elsewhere, self.api, self.secure)

    def _answer(self, request: Request, wire: Wire) -> None:
        if request.method == self.method:
            wire.write(response(b"{}", self.status, f"Location: {self.location}"))
        elif self.method == "POST" and "checkpoint" not in request.target:
            wire.write(response(b'{"error": "not_found"}', 404))
        else:
            wire.write(response(json.dumps(SPRITE).encode()))

    def set(self, kind: str, status: int, target: str) -> dict[str, str]:
        """Arm the trap, and return the variables of a user of this API."""
        self.api.requests.clear()
        self.method, self.status = "POST" if kind == "STREAM" else kind, status
        port = self.elsewhere.port
        url = self.secure.url if target == "without TLS" else self.api.url
        place = {
            "another host": f"http://evil.test:{port}",
            "another port": f"http://127.0.0.1:{port}",
            "without TLS": f"http://localhost:{port}",
            "itself": url,
        }[target]
        self.location = f"{place}/v1/sprites?a=b"
        bundle = str(self.authority.certificate)
        return {"SPRITES_API_URL": url, "SPRITE_TOKEN": TOKEN, "THOPTERS_CA_BUNDLE": bundle}

    def check(self, done: Any, kind: str, target: str) -> None:
        """Assert that the redirect was asked for once, reported, and that nobody came."""
        assert done.code == (255 if kind == "WS" else 1), done
        assert done.out == "", done
        errors = [line for line in done.err.splitlines() if "error: " in line]
        host = {"another host": "evil.test", "another port": "127.0.0.1"}.get(target)
        host = host or ("localhost" if target == "without TLS" else "127.0.0.1")
        assert len(errors) == 1, done
        assert f"answered {self.status}, a redirect to {host}, which is never" in errors[0], done
        assert "sapphire" not in done.err, done
        assert self.elsewhere.accepted == 0
        before = (
            ["GET"] if kind in ("POST", "PUT", "DELETE") else []
        )  # to look whether there is one
        assert self.api.methods() == [*before, self.method]
        for request in self.api.requests:
            assert request.headers.get_all("Authorization") == [f"Bearer {TOKEN}"]


@pytest.fixture
def trap(authority: Authority) -> Iterator[Trap]:
    trap = Trap(authority)
    yield trap
    for server in reversed(trap.servers):
        server.__exit__()


@pytest.fixture
def all_names_lead_here(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def look_up(host: Any, *more: Any, **options: Any) -> Any:
        return real("127.0.0.1", *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.usefixtures("all_names_lead_here")
@pytest.mark.parametrize("kind", [*COMMANDS, *MORE])
def test_r05_no_redirect_is_followed(trap: Trap, tmp_path: Path, kind: str) -> None:
    for status, target in itertools.product(STATUSES, TARGETS):
        environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        environ |= trap.set(kind, status, target)
        trap.check(run_here((COMMANDS | MORE)[kind], environ), kind, target)


def test_r05_as_a_child(thopters: Thopters, trap: Trap) -> None:
    kinds = [*COMMANDS, *MORE]
    for number, kind in enumerate(kinds):
        status, target = STATUSES[number % 5], TARGETS[number % 4]
        done = thopters(*(COMMANDS | MORE)[kind], env=trap.set(kind, status, target))
        trap.check(done, kind, target)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*COMMANDS, *MORE])
def test_r05_every_redirect_as_a_child(thopters: Thopters, trap: Trap, kind: str) -> None:
    for status, target in itertools.product(STATUSES, TARGETS):
        done = thopters(*(COMMANDS | MORE)[kind], env=trap.set(kind, status, target))
        trap.check(done, kind, target)


def test_r05_a_place_that_is_none_is_said_too(trap: Trap, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"} | trap.set("GET", 302, "itself")
    places = ("", "/v1/sprites", "//", "nonsense", "http://[::1", "http://[no]/", "\x1b[2J", "é")
    for location in places:
        trap.api.requests.clear()
        trap.location = location
        done = run_here(["list"], environ)
        assert (done.code, done.out) == (1, ""), done
        assert "302, a redirect to nowhere, which is never followed" in done.err
        assert done.err.isascii() and done.err.replace("\n", "").isprintable()
        assert trap.api.methods() == ["GET"]


@pytest.mark.usefixtures("all_names_lead_here")
@pytest.mark.parametrize("target", TARGETS[:2])
def test_r05_the_trap_catches_one_that_follows(trap: Trap, target: str) -> None:
    url = trap.set("GET", 302, target)["SPRITES_API_URL"]
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
    assert [r.headers["Authorization"] for r in trap.elsewhere.requests] == [f"Bearer {TOKEN}"]
