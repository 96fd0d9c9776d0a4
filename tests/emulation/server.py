"""The server: accepts connections, lets faults act, journals, and keeps time."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import secrets
import socket
import tempfile
import threading
import traceback
from http import HTTPStatus
from pathlib import Path
from typing import Any

from .faults import Fault
from .journal import Journal, Request
from .personality import Personality
from .routes import Call, is_exec_post, route, too_much_input
from .state import Account, Clock, Sprite
from .wire import Gone, Reply, Wire, body_pieces, read_request

TICK_S = 0.2
EARLY_CLOSE_S = 0.5  # between an answer to a half-read request and the reset


class Emulator:
    """A platform on a loopback port, for as long as it is entered."""

    def __init__(
        self,
        *,
        token: str | None = None,
        org: str = "acme",
        personality: Personality | None = None,
        idle_s: float | None = None,  # 30 unless EMULATOR_IDLE_S says otherwise
        cold_s: float = 600.0,
    ) -> None:
        # one that nobody else on this machine knows: whoever has it can run commands as we do
        self.token = token or f"{org}/1290577/{secrets.token_hex(16)}/{secrets.token_hex(16)}"
        self.org = org
        self.personality = personality or Personality()
        given = os.environ.get("EMULATOR_IDLE_S") if idle_s is None else None
        if given:  # seconds; so short a window was seen only behind the last session's end
            self.personality.idle_from = "detached"
        self.idle_s = float(given or (30.0 if idle_s is None else idle_s))
        self.cold_s = cold_s
        self.clock = Clock()
        self.journal = Journal()
        self.stopping = threading.Event()
        self._faults: list[Fault] = []
        self._wires: set[Wire] = set()

    def start(self) -> Emulator:
        base = Path(tempfile.mkdtemp(prefix="sprites-"))
        base.chmod(0o711)
        self.account = Account(self.org, base, self.clock, self.personality)
        self.clock.changed.append(self.apply_idle)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        works = (self._accept, self._tick)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        self.stopping.set()
        # a close would leave the thread in accept(), and later on a descriptor used again
        with contextlib.suppress(OSError):
            socket.create_connection(self._listener.getsockname()).close()
        for thread in self._threads:
            thread.join()
        self._listener.close()
        for wire in list(self._wires):
            wire.close()
        self.account.close()

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def sprites(self) -> dict[str, Sprite]:
        return self.account.sprites

    def sprite(self, name: str) -> Sprite:
        return self.account.sprites[name]

    def add_sprite(self, name: str, *, status: str = "cold", **fields: Any) -> Sprite:
        """Make a sprite as if it had been there before; times are seconds since 1970."""
        sprite = self.account.add(name)
        sprite.status = sprite._shown_before = status
        for key, value in fields.items():
            setattr(sprite, key, value)
        return sprite

    def fault(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    def apply_idle(self) -> None:
        for sprite in list(self.account.sprites.values()):
            sprite.apply_idle(self.idle_s, self.cold_s)

    def _tick(self) -> None:
        while not self.stopping.wait(TICK_S):
            self.apply_idle()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self.stopping.is_set():
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire = Wire(sock)
            self._wires.add(wire)
            threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, wire: Wire) -> None:
        try:
            while self._serve_one(wire):
                pass
        except Gone:
            pass
        except Exception:
            if not self.stopping.is_set():
                self.journal.oddities.append(traceback.format_exc())
        finally:
            wire.close()
            self._wires.discard(wire)

    def _serve_one(self, wire: Wire) -> bool:
        """Serve one request; return whether the connection can serve another."""
        request = read_request(wire)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            request.method = "WS"
        self.journal.add(request)
        faults = [f for f in self._faults if f.take(request.method, request.raw_path)]
        self._set_cuts(wire, faults)
        if request.method != "WS" and not self._take_body(wire, request):
            self._refuse_early(wire, request)
            return False
        reply = self._instead(wire, faults) or self._answer(wire, request, faults)
        if reply is None:
            return False
        reply = self._spoil(wire, faults, reply)
        request.status = reply.status
        request.shorten()
        reply.send(wire, self.clock.now(), with_body=request.method != "HEAD")
        return request.headers.get("Connection", "").lower() not in ("close", "upgrade")

    def _is_authorized(self, request: Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {self.token}"

    def _take_body(self, wire: Wire, request: Request) -> bool:
        """Read the body, but of an exec's no more than decides; False if it is refused unread."""
        limit = self.personality.post_limit if is_exec_post(request) else None
        early = self.personality.post_limit_when == "early" and self._is_authorized(request)
        if limit is not None and early and int(request.headers.get("Content-Length") or 0) > limit:
            return False
        parts = []
        for piece in body_pieces(wire, request.headers):
            kept = piece if limit is None else piece[: max(limit + 1 - request.body_size, 0)]
            parts.append(kept)
            request.body_size += len(piece)
            if limit is not None and early and request.body_size > limit:
                return False
        request.body = b"".join(parts)
        return True

    def _refuse_early(self, wire: Wire, request: Request) -> None:
        """Answer while the body is still on its way, and close after a moment, as Go's server."""
        reply = too_much_input()
        reply.headers["Connection"] = "close"
        request.status = reply.status
        reply.send(wire, self.clock.now())
        wire.end()
        self.stopping.wait(EARLY_CLOSE_S)

    def _answer(self, wire: Wire, request: Request, faults: list[Fault]) -> Reply | None:
        if not self._is_authorized(request):
            return Reply.error(401, "unauthorized", "Missing or invalid authentication")
        call = Call(self, request, wire, faults)
        try:
            return route(call)
        finally:
            for sprite in list(self.account.sprites.values()):
                sprite.wires.discard(wire)

    def _set_cuts(self, wire: Wire, faults: list[Fault]) -> None:
        for fault in faults:
            if fault.kind == "cut_response":
                wire.cut_out = fault.params["size"]
            elif fault.kind == "cut_request":
                wire.cut_in = fault.params["size"]
            elif fault.kind == "drip":
                wire.drip_s = fault.params.get("interval", 0.05)

    def _instead(self, wire: Wire, faults: list[Fault]) -> Reply | None:
        """Return the answer of a fault that keeps the request from being carried out."""
        for fault in faults:
            if fault.kind == "reset":
                wire.reset()
            if fault.kind == "hang":
                self.stopping.wait()
                raise Gone
            if fault.kind == "status":
                return given_reply(fault)
            if fault.kind == "redirect":
                location = {"Location": fault.params["location"]}
                return Reply(fault.params.get("status", 302), headers=location)
        return None

    def _spoil(self, wire: Wire, faults: list[Fault], reply: Reply) -> Reply:
        """Change the answer to a request that was carried out."""
        for fault in faults:
            if fault.kind == "done_but":
                for _ in reply.pieces or ():
                    pass  # what streams does its work as it is read
                if fault.params.get("status") is None:
                    wire.reset()
                return given_reply(fault)
            if fault.kind == "gzip":
                reply.body = gzip.compress(reply.body)
                reply.headers["Content-Encoding"] = "gzip"
            if fault.kind == "no_final_chunk":
                reply.final_chunk = False
        return reply


def given_reply(fault: Fault) -> Reply:
    """Return the answer that a fault gives; a refusal without a body is the API's own."""
    params = fault.params
    word = "" if params["status"] >= 500 else HTTPStatus(params["status"]).name.lower()
    own = json.dumps({"error": word} if params["status"] >= 400 and word else {}).encode()
    return Reply(
        params["status"],
        params.get("body", own),
        content_type=params.get("content_type", "application/json"),
        headers=params.get("headers"),
    )
