"""Faults that tests order for single requests."""

from __future__ import annotations

import threading
from fnmatch import fnmatchcase
from typing import Any


class Fault:
    """Breaks requests that match `route`: "METHOD path-pattern", "WS ..." for an upgrade.

    The method `*` is any.

    kind, with its parameters:
      status       answer `status`, `body`, `headers`, `content_type`; nothing is done
      done_but     do it, then answer so; status=None resets the connection instead
      starting     503 sprite_starting
      reset        reset the connection before anything is done
      hang         accept and never answer
      redirect     `status` and `location`
      gzip         the right answer, compressed though nobody asked
      drip         the answer, a byte every `interval` seconds
      cut_response the first `size` bytes of all that the server sends, then the end
      cut_request  only `size` bytes behind the request's head are read, then a reset
      no_final_chunk  a chunked body that lacks its last chunk
      ndjson_error, ndjson_no_complete   in a stream of events
      no_exit      an exec's command runs to its end, and then the connection is lost
      ws           `actions`: what an exec socket sends instead of output; see exec.py
    The first `after` matches are let through, then `times` are broken (None: all).
    """

    def __init__(
        self, route: str, kind: str, *, times: int | None = 1, after: int = 0, **params: Any
    ) -> None:
        self.method, _, self.pattern = route.partition(" ")
        self.kind = kind
        self.times = times
        self.after = after
        self.params = params
        self._lock = threading.Lock()

    def take(self, method: str, raw_path: str) -> bool:
        """Return whether this request is to be broken, and count it."""
        if self.method not in ("*", method) or not fnmatchcase(raw_path, self.pattern):
            return False
        with self._lock:
            if self.after:
                self.after -= 1
                return False
            if self.times is not None:
                if not self.times:
                    return False
                self.times -= 1
            return True
