"""R48: what the platform is known to answer is understood, and the emulator answers in that shape.

These are the answers that its documentation shows and that others have seen live, not a recording
of ours: there was no token for one. A program that reads them right, and an emulator that sends
nothing else, are as true as their sources.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Thopters
from emulation import Emulator
from emulation.journal import Request
from emulation.wire import Wire
from servers import Canned, response

TOKEN = "acme/1/tok/ottoman-sapphire"
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
LAST_PAGE = {"sprites": [MADE], "has_more": False, "next_continuation_token": None}
MINIMAL = {"name": "my-sprite", "org_slug": "my-org", "updated_at": "2026-01-13T10:30:00Z"}
SESSION = {
    "id": 1847,
    "command": "/usr/bin/bash",
    "created": "2026-08-05T10:00:00Z",
    "workdir": "/home/sprite",
    "tty": True,
    "bytes_per_second": 0,
    "is_active": True,
    "last_activity": "2026-08-05T10:01:00Z",
}
CHECKPOINTS: list[dict[str, Any]] = [
    {"id": "v3", "create_time": "2026-01-13T10:30:00Z", "comment": "before", "health": ""},
    {"id": "v2", "create_time": "2026-01-12T10:30:00Z", "health": "mount_failed"},
    {"id": "auto-1a2b", "create_time": "2026-01-11T10:30:00Z", "is_auto": True},
    {"id": "Current", "create_time": "2026-01-14T10:30:00Z"},
]
EVENTS = [
    {"type": "info", "data": "Creating checkpoint..."},
    {"type": "info", "data": "Checkpoint created successfully"},
    {"type": "info", "data": "\nCheckpoint Details:"},
    {"type": "info", "data": "  ID: v3"},
    {"type": "info", "data": "  Created: 2026-01-13T10:30:00Z"},
    {"type": "info", "data": "  Path: checkpoints/v3"},
    {"type": "complete", "data": "Checkpoint v3 created successfully"},
]
RATE = {
    "error": "sprite_creation_rate_limited",
    "message": "Rate limit exceeded",
    "limit": 10,
    "window_seconds": 60,
    "retry_after_seconds": 61,
}
STARTING = {
    "error": "sprite_starting",
    "sprite_id": "sprite-1",
    "message": "Sprite 'x' is starting. Please retry your request.",
    "retry_after_seconds": 1,
}
NOT_FOUND = {"error": "not_found", "message": "sprite not found"}


def answer(document: object, status: int = 200, *headers: str) -> bytes:
    return response(json.dumps(document).encode(), status, *headers)


def text(words: str, status: int) -> bytes:
    return response(words.encode(), status, kind="text/plain; charset=utf-8")


STREAM = "\n".join(map(json.dumps, EVENTS)).encode() + b"\n"
ONE = "/v1/sprites/my-sprite"
LIST = "/v1/sprites?max_results=50&bulk_load=true"
# the words, what the server answers to what, the exit status, and what comes on stdout and stderr
GOLDEN: dict[str, tuple[list[str], dict[str, bytes], int, str, str]] = {
    "list": (
        ["list"],
        {
            f"GET {LIST}": answer(PAGE),
            f"GET {LIST}&continuation_token=page-2": answer(LAST_PAGE),
        },
        0,
        "my-sprite\thibernating\t2026-01-13T10:30:00Z\nworker-1\trunning\t2026-09-09T09:00:00Z\n",
        "1 running of 5, 0 warm of 10, 1 cold\n",
    ),
    "list of names": (
        ["list"],
        {
            f"GET {LIST}": answer({**LAST_PAGE, "sprites": [MINIMAL]}),
            f"GET {ONE}": answer(MADE),
        },
        0,
        "my-sprite\thibernating\t2026-01-13T10:30:00Z\n",
        "",
    ),
    "create too often": (
        ["create", "my-sprite", "--no-init"],
        {
            f"GET {ONE}": answer(NOT_FOUND, 404),
            "POST /v1/sprites": answer(RATE, 429, "Retry-After: 30"),
        },
        6,
        "",
        "Rate limit exceeded",
    ),
    "url": (
        ["url", "my-sprite"],
        {f"GET {ONE}": answer(MADE)},
        0,
        "https://my-sprite-abc123.sprites.app\n",
        "",
    ),
    "sessions": (
        ["sessions", "my-sprite"],
        {f"GET {ONE}/exec": answer({"count": 1, "sessions": [SESSION]})},
        0,
        "1847\t",
        "",
    ),
    "sessions as documented": (
        ["sessions", "my-sprite"],
        {f"GET {ONE}/exec": answer([{**SESSION, "id": "1847"}])},
        0,
        "1847\t",
        "",
    ),
    "checkpoints": (
        ["checkpoints", "my-sprite"],
        {f"GET {ONE}/checkpoints": answer(CHECKPOINTS)},
        0,
        "v3\t2026-01-13T10:30:00Z\tbefore\nv2\t2026-01-12T10:30:00Z\t\n",
        "thopters: warning: the platform says of checkpoint v2: mount_failed\n",
    ),
    "checkpoint": (
        ["checkpoint", "my-sprite"],
        {
            f"GET {ONE}": answer(MADE),
            f"GET {ONE}/checkpoints": answer(CHECKPOINTS),
            f"GET {ONE}/checkpoints?includeAuto=true": answer(CHECKPOINTS),
            f"POST {ONE}/checkpoint": response(STREAM, kind="application/x-ndjson"),
        },
        0,
        "v3\n",
        "Creating checkpoint...\n",
    ),
    "a token that is refused": (
        ["list"],
        {f"GET {LIST}": text("Missing or invalid authentication", 401)},
        4,
        "",
        "the API refused the token from SPRITE_TOKEN",
    ),
    "nobody behind the door": (
        ["url", "my-sprite"],
        {f"GET {ONE}": text("Proxy error", 502)},
        1,
        "",
        "the API answered 502: Proxy error",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_r48_known_answers_are_understood(thopters: Thopters, case: str) -> None:
    words, answers, code, out, err = GOLDEN[case]
    asked = []

    def reply(request: Request, wire: Wire) -> None:
        asked.append(f"{request.method} {request.target}")
        wire.write(answers.get(asked[-1]) or text("404 page not found", 404))

    with Canned(reply) as server:
        done = thopters(*words, env={"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN})
    assert set(asked) <= set(answers), done
    exact = out.endswith("\n")
    assert (done.code, done.out if exact else done.out[: len(out)]) == (code, out), done
    assert err in done.err and bool(err) == bool(done.err), done


# the shape of what the emulator answers


def shape(value: object) -> object:
    """Return a document with the kinds of its values in their place; a list's are one."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return {bool: "boolean", int: "number", float: "number", str: "text"}.get(type(value), "null")


def ask(emulator: Emulator, method: str, path: str, document: object = None) -> Any:
    """Return what the emulator answers: a document, or the list of a stream's."""
    data = None if document is None else json.dumps(document).encode()
    headers = {"Authorization": f"Bearer {emulator.token}", "Content-Type": "application/json"}
    request = urllib.request.Request(emulator.url + path, data, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), AnyStatus())
    with opener.open(request, timeout=30) as answer:
        body: bytes = answer.read()
        is_stream = "ndjson" in answer.headers["Content-Type"]
    return [json.loads(line) for line in body.splitlines()] if is_stream else json.loads(body)


class AnyStatus(urllib.request.HTTPErrorProcessor):
    def http_response(self, request: Any, response: Any) -> Any:
        return response


def make(emulator: Emulator) -> Any:
    return ask(emulator, "POST", "/v1/sprites", {"name": "my-sprite"})


def list_one(emulator: Emulator) -> Any:
    emulator.personality.page_size = 1
    for name in ("a", "b"):
        emulator.add_sprite(name, status="running").url_settings = SEEN["url_settings"]
        emulator.sprite(name).labels = ["ci"]
    page = ask(emulator, "GET", "/v1/sprites?max_results=1&bulk_load=true")
    page["sprites"][0]["last_running_at"] = ""  # a stamp, or null before it has run
    return page


def list_names(emulator: Emulator) -> Any:
    emulator.personality.list_items, emulator.personality.org_key = "minimal", "org_slug"
    emulator.add_sprite("a")
    return ask(emulator, "GET", "/v1/sprites")["sprites"]


def list_sessions(emulator: Emulator) -> Any:
    sprite = emulator.add_sprite("dev", status="running")
    while not sprite.enter():
        pass
    made = urllib.request.Request(
        f"{emulator.url}/v1/sprites/dev/exec?cmd=sleep&cmd=60&path=sleep",
        b"",
        {"Authorization": f"Bearer {emulator.token}"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(made, timeout=30):  # its head comes when the command has been started
        return ask(emulator, "GET", "/v1/sprites/dev/exec")


def list_checkpoints(emulator: Emulator) -> Any:
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("before")
    sprite.checkpoints[0].health = "mount_failed"
    emulator.personality.current_row = False
    return ask(emulator, "GET", "/v1/sprites/dev/checkpoints")


def checkpoint(emulator: Emulator) -> Any:
    emulator.add_sprite("dev", status="running")
    return ask(emulator, "POST", "/v1/sprites/dev/checkpoint", {"comment": "before"})


def wake(emulator: Emulator) -> Any:
    emulator.add_sprite("dev", status="cold")
    return ask(emulator, "GET", "/v1/sprites/dev/exec")


def make_too_often(emulator: Emulator) -> Any:
    emulator.personality.create_limit = 0
    return make(emulator)


def look_for_nothing(emulator: Emulator) -> Any:
    return ask(emulator, "GET", "/v1/sprites/nothing")


SHAPES: dict[str, tuple[Callable[[Emulator], Any], object]] = {
    "create": (make, MADE),
    "list": (list_one, PAGE),
    "list of names": (list_names, [MINIMAL]),
    "sessions": (list_sessions, {"count": 1, "sessions": [SESSION]}),
    "checkpoints": (list_checkpoints, [{**CHECKPOINTS[1], "comment": "before"}]),
    "checkpoint": (checkpoint, EVENTS),
    "starting": (wake, STARTING),
    "too many": (make_too_often, RATE),
    "not found": (look_for_nothing, NOT_FOUND),
}


@pytest.mark.parametrize("case", SHAPES)
def test_r48_the_emulator_answers_in_the_known_shape(emulator: Emulator, case: str) -> None:
    """No key is missing or of another kind; what it adds, others have seen live."""
    get, known = SHAPES[case]
    told = get(emulator)
    assert lacks(shape(told), shape(known)) == [], told


def lacks(told: object, known: object, where: str = "") -> list[str]:
    """Return where a shape is not as known; it may have more."""
    if isinstance(known, dict) and isinstance(told, dict):
        return [
            line
            for key, kind in known.items()
            for line in lacks(told.get(key, "nothing"), kind, f"{where}.{key}")
        ]
    if isinstance(known, list) and isinstance(told, list) and known and told:
        return lacks(told[0], known[0], where + "[]")
    return [] if told == known else [f"{where}: {told}, not {known}"]
