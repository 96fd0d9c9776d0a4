"""The API inside a sprite: HTTP on a Unix socket, for the sprite's own processes.

A task keeps the sprite awake until it expires or is deleted. The socket needs no token and any
user inside may use it; the public API has nothing of this.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .wire import Gone, Reply, Wire, read_body, read_request

if TYPE_CHECKING:
    from .state import Sprite

MAX_EXPIRE_S = 3600
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_expire(value: object) -> int | None:
    """Return the seconds of an integer or of a text such as 5m; None if it is neither."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    found = re.fullmatch(r"(\d+)([smh]?)", str(value))
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    return seconds if 0 < seconds <= MAX_EXPIRE_S else None


class TaskServer:
    """Serves /.sprite/api.sock of one sprite; `requests` lists what came, as "METHOD path"."""

    def __init__(self, sprite: Sprite) -> None:
        self.sprite = sprite
        self.requests: list[str] = []
        path = sprite.machine.run / "api.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        bind(self._listener, str(path))
        path.chmod(0o666)
        self._listener.listen()
        self._wires: set[Wire] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in list(self._wires):
            wire.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            wire = Wire(sock)
            self._wires.add(wire)
            threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, wire: Wire) -> None:
        with contextlib.suppress(Gone):
            while True:
                request = read_request(wire)
                request.body = read_body(wire, request.headers)
                self.requests.append(f"{request.method} {request.raw_path}")
                with self.sprite.lock:
                    reply = self._answer(request.method, request.raw_path, request.body)
                reply.send(wire, self.sprite.clock.now())
        wire.close()
        self._wires.discard(wire)

    def _answer(self, method: str, path: str, body: bytes) -> Reply:
        if path == "/v1/tasks" and method == "GET":
            tasks = self.sprite.live_tasks()
            return Reply.json({"tasks": [self._item(name) for name in tasks]})
        if path in ("/info", "/v1/checkpoints", "/v1/services"):
            return self._about(path) if method == "GET" else Reply.text(405, "Method Not Allowed")
        found = re.fullmatch(r"/v1/tasks(?:/([^/]+))?", path)
        if not found:
            return Reply.text(404, "404 page not found")
        return self._task(method, found[1] and unquote(found[1]), body)

    def _about(self, path: str) -> Reply:
        sprite = self.sprite
        if path == "/v1/services":
            return Reply.json([])
        if path == "/v1/checkpoints":
            return Reply.json([sprite.checkpoint_json(made) for made in sprite.checkpoints])
        names = {"sprite_id": sprite.id, "sprite_name": sprite.name, "sprite_url": sprite.url}
        return Reply.json({**names, "version": "0.0.1-rc48", "org": sprite.org})

    def _task(self, method: str, name: str | None, body: bytes) -> Reply:
        tasks = self.sprite.live_tasks()
        if method in ("POST", "PUT"):
            return self._set(method, name, body)
        if name not in tasks:
            return Reply.error(404, "not_found", "task not found")
        if method == "DELETE":
            del tasks[name]
            return Reply(204)
        return Reply.json(self._item(name)) if method == "GET" else Reply.text(405, "")

    def _set(self, method: str, name: str | None, body: bytes) -> Reply:
        try:
            document = json.loads(body)
            name = name or document["name"]
            seconds = parse_expire(document["expire"])
        except (ValueError, KeyError, TypeError):
            seconds = None
        if not isinstance(name, str) or not name or seconds is None:
            return Reply.error(400, "invalid_request", "name and expire (at most 1h) are needed")
        tasks, now = self.sprite.live_tasks(), self.sprite.clock.now()
        if method == "POST" and name in tasks:
            return Reply.error(409, "conflict", "a task with this name already exists")
        started = tasks[name]["started_at"] if name in tasks else now
        tasks[name] = {"started_at": started, "expires_at": now + seconds}
        return Reply.json(self._item(name), 201 if method == "POST" else 200)

    def _item(self, name: str) -> dict[str, Any]:
        task = self.sprite.tasks[name]
        return {"name": name, **{key: self.sprite.stamp(value) for key, value in task.items()}}


def bind(listener: socket.socket, path: str) -> None:
    """Bind to a path of any length, where the system lets us name its folder shortly."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        if len(os.fsencode(path)) > 100 and os.path.isdir("/proc/self/fd"):
            path = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
        listener.bind(path)
    finally:
        os.close(folder)
