"""What the platform is known to answer, and the shape of what the emulator answers."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Collection
from typing import Any

MADE: dict[str, Any] = {  # documented
    "id": "01234567-89ab-cdef-0123-456789abcdef",
    "name": "my-sprite",
    "organization": "my-org",
    "url": "https://my-sprite-abc123.sprites.app",
    "url_settings": {"auth": "sprite"},
    "status": "cold",
    "created_at": "2026-01-13T10:30:00Z",
    "updated_at": "2026-01-13T10:30:00Z",
}
SEEN: dict[str, Any] = {  # seen live
    "id": "sprite-1",
    "name": "worker-1",
    "organization": "acme",
    "status": "running",
    "created_at": "2026-09-07T12:00:00+02:00",
    "updated_at": "2026-09-09T09:00:00Z",
    "url": "https://worker-1-abcd.sprites.app",
    "url_settings": {"auth": "sprite", "private_access": "admins"},
    "labels": ["ci"],
    "last_running_at": "2026-09-09T11:30:00+02:00",
    "last_warming_at": None,
}
PAGE = {
    "name": "acme",
    "running": 1,
    "warm": 0,
    "cold": 1,
    "running_limit": 5,
    "warm_limit": 10,
    "has_more": True,
    "next_continuation_token": "page-2",
    "sprites": [SEEN],
}


def shape(value: object) -> object:
    """Return a document with kinds in its values' place, but for the words that programs go by."""
    if isinstance(value, dict):
        return {k: item if k in ("type", "error") else shape(item) for k, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return {bool: "boolean", int: "number", float: "number", str: "text"}.get(type(value), "null")


def differences(
    told: object, known: object, more: Collection[str] = (), where: str = ""
) -> list[str]:
    """Return where a shape is not as known; the keys in `more` may come in addition."""
    if isinstance(known, dict) and isinstance(told, dict):
        keys = [*known, *(key for key in told if key not in known and key not in more)]
        pairs = [(f".{key}", told.get(key, "nothing"), known.get(key, "nothing")) for key in keys]
    elif isinstance(known, list) and isinstance(told, list) and len(told) == len(known):
        pairs = [(f"[{n}]", told[n], known[n]) for n in range(len(known))]
    else:
        return [] if told == known else [f"{where}: {told}, not {known}"]
    return [line for at, one, two in pairs for line in differences(one, two, more, where + at)]


def fetch(url: str, token: str, method: str, path: str, document: object = None) -> Any:
    """Return what a platform answers: a document, or the list of a stream's."""
    data = None if document is None else json.dumps(document).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, data, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), AnyStatus())
    with opener.open(request, timeout=30) as answer:
        body: bytes = answer.read()
        is_stream = "ndjson" in answer.headers["Content-Type"]
    return [json.loads(line) for line in body.splitlines()] if is_stream else json.loads(body)


class AnyStatus(urllib.request.HTTPErrorProcessor):
    def http_response(self, request: Any, response: Any) -> Any:
        return response
