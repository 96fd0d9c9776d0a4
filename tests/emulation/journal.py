"""What the emulator was asked, to the byte, for tests to assert on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from email.message import Message
from urllib.parse import parse_qsl, unquote

KEPT_BYTES = 1 << 16  # of what is sent; gigabytes pass through here


class Request:
    """One request and its answer's status; for a WebSocket also the messages."""

    def __init__(self, head: bytes, method: str, target: str, headers: Message) -> None:
        self.head = head
        self.method = method
        self.target = target
        self.headers = headers
        self.raw_path, _, raw_query = target.partition("?")
        self.path = unquote(self.raw_path)
        self.query = parse_qsl(raw_query, keep_blank_values=True)
        self.body = b""
        self.status: int | None = None
        self.received: list[tuple[int, bytes]] = []
        self.sent: list[tuple[int, bytes]] = []

    @property
    def stdin(self) -> bytes:
        """Return all that came for stream 0, a command's input."""
        return b"".join(data[1:] for code, data in self.received if code == 2 and data[:1] == b"\0")

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.query if key == name]

    def __repr__(self) -> str:
        return f"<{self.method} {self.target} {self.status}>"


class Journal:
    """The requests in their order, what was really run, and what looked odd."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._changed = threading.Condition()
        self.executed: list[tuple[str, list[str], str]] = []  # sprite, argv, "ws" or "post"
        self.oddities: list[str] = []

    def add(self, request: Request) -> None:
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._requests.clear()
            self.executed.clear()

    def requests(self, method: str | None = None, path: str | None = None) -> list[Request]:
        with self._changed:
            return [
                request
                for request in self._requests
                if method in (None, request.method) and path in (None, request.path)
            ]

    def wait(self, count: int, timeout: float = 10.0) -> None:
        """Wait until `count` requests have come."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, timeout):
                raise TimeoutError(f"{len(self._requests)} of {count} requests came")

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests())

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, index: int) -> Request:
        return self.requests()[index]
