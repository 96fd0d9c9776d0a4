"""What the emulator was asked, to the byte, for tests to assert on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from email.message import Message
from urllib.parse import parse_qsl, unquote

KEPT_BYTES = 1 << 16  # of a body, and of each way of a WebSocket; gigabytes pass through here


class Request:
    """One request and its answer's status; for a WebSocket also the messages.

    Of a body, and of the messages each way, the beginning is kept, and the sizes tell the whole.
    """

    def __init__(self, head: bytes, method: str, target: str, headers: Message) -> None:
        self.head = head
        self.method = method
        self.target = target
        self.headers = headers
        self.raw_path, _, raw_query = target.partition("?")
        self.path = unquote(self.raw_path)
        self.query = parse_qsl(raw_query, keep_blank_values=True)
        self.kept_bytes = KEPT_BYTES
        self.body = b""  # whole until the answer has been given
        self.body_size = 0
        self.status: int | None = None
        self.received: list[tuple[int, bytes]] = []
        self.sent: list[tuple[int, bytes]] = []
        self.received_size = self.sent_size = 0  # payload bytes, of all that passed

    def add_received(self, opcode: int, message: bytes) -> None:
        left = self.kept_bytes - self.received_size
        self.received_size += len(message)
        if left > 0:
            self.received.append((opcode, message[:left]))

    def add_sent(self, opcode: int, parts: Sequence[bytes | memoryview]) -> None:
        left = self.kept_bytes - self.sent_size
        self.sent_size += sum(map(len, parts))
        if left > 0:
            self.sent.append((opcode, b"".join(bytes(part[:left]) for part in parts)[:left]))

    def shorten(self) -> None:
        """Keep no more of the body than its beginning: what wanted the rest has it."""
        self.body = self.body[: self.kept_bytes]

    @property
    def stdin(self) -> bytes:
        """Return what is kept of stream 0, a command's input."""
        return b"".join(data[1:] for code, data in self.received if code == 2 and data[:1] == b"\0")

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.query if key == name]

    def __repr__(self) -> str:
        return f"<{self.method} {self.target} {self.status}>"


class Journal:
    """The requests in their order, what was really run, and what looked odd.

    A test that has to see more than the beginning of what comes sets `kept_bytes` before it comes.
    """

    def __init__(self) -> None:
        self.kept_bytes = KEPT_BYTES
        self._requests: list[Request] = []
        self._changed = threading.Condition()
        self.executed: list[tuple[str, list[str], str]] = []  # sprite, argv, "ws" or "post"
        self.oddities: list[str] = []

    def add(self, request: Request) -> None:
        request.kept_bytes = self.kept_bytes
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
