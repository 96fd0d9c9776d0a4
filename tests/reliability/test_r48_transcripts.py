"""R48: what the platform is known to answer is understood, and the emulator answers in that shape.

These are the answers that its documentation shows and that others have seen live, not a recording
of ours: there was no token for one. A program that reads them right, and an emulator that sends
nothing else, are as true as their sources.
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from emulation import Emulator
from emulation.journal import Request
from emulation.wire import TEXT, Wire, accept_key
from support.frames import server_frame
from support.program import Thopters
from support.runs import environ_for, run_here
from support.servers import Canned, response
from support.shapes import MADE, PAGE, SEEN, differences, fetch, shape
from support.waiting import until

TOKEN = "acme/1/tok/ottoman-sapphire"
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
NO_SESSIONS: dict[str, Any] = {"count": 0, "sessions": []}
INFO = {
    "type": "session_info",
    "session_id": "1847",
    "command": "bash",
    "created": 1767609000,
    "cols": 80,
    "rows": 24,
    "is_owner": True,
    "tty": True,
}
EXIT = {"type": "exit", "exit_code": 0}
KILLED: list[dict[str, Any]] = [
    {"type": "signal", "message": "sent", "signal": "SIGTERM", "pid": 1847},
    {"type": "exited"},
    {"type": "complete", "exit_code": 143},
]
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
RESTORED = [
    {"type": "info", "data": "Restoring from checkpoint v3..."},
    {"type": "complete", "data": "Restore from v3 complete"},
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


def stream(events: list[dict[str, Any]]) -> bytes:
    body = "".join(json.dumps(event) + "\n" for event in events).encode()
    return response(body, kind="application/x-ndjson")


def messages(*said: dict[str, Any] | bytes) -> bytes:
    """Return what a WebSocket sends: texts and binary messages."""
    return b"".join(
        server_frame(2, item)
        if isinstance(item, bytes)
        else server_frame(1, json.dumps(item).encode())
        for item in said
    )


PUBLIC: dict[str, Any] = {**MADE, "url_settings": {"auth": "public"}}
BEGUN = b"\1thopters-exec 1847\n"  # our own script's line
# and what our look inside says: no record, and one session, of a shell with nothing below it
SEEN_INSIDE = b"\1\0" + b"1847\0/home/me\0" + b"1\0/usr/bin/bash\0" + b"0\0"
LASTING = "1847.tjajs0"
ONE = "/v1/sprites/my-sprite"
LIST = "/v1/sprites?max_results=500"
# the words, what the server answers to what (and what if that is asked again), the exit status, and
# what comes on stdout and stderr
GOLDEN: dict[str, tuple[list[str], dict[str, bytes], int, str, str]] = {
    "list": (
        ["list"],
        {
            f"GET {LIST}": answer(PAGE),
            f"GET {LIST}&continuation_token=page-2": answer(LAST_PAGE),
        },
        0,
        "my-sprite\thibernating\t2026-01-13T10:30:00Z\nworker-1\trunning\t2026-09-09T09:00:00Z\n",
        "1 running (plan allows 5), 1 hibernating\n",
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
        {
            f"GET {ONE}/exec": answer({"count": 1, "sessions": [SESSION]}),
            f"WS {ONE}/exec": messages(BEGUN, SEEN_INSIDE, b"\3\0"),
        },
        0,
        f"{LASTING}\tshell\t/home/me\t2026-08-05T10:00:00Z\t2026-08-05T10:01:00Z\trunning\n",
        "",
    ),
    "sessions as documented": (
        ["sessions", "my-sprite"],
        {
            f"GET {ONE}/exec": answer([{**SESSION, "id": "1847"}]),
            f"WS {ONE}/exec": messages(BEGUN, b"\1\0", b"\3\0"),  # it has ended meanwhile
        },
        0,
        f"{LASTING}\t/usr/bin/bash\t-\t2026-08-05T10:00:00Z\t2026-08-05T10:01:00Z\trunning\n",
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
        ["checkpoint", "my-sprite", "-v"],
        {f"POST {ONE}/checkpoint": stream(EVENTS)},
        0,
        "v3\n",
        "Creating checkpoint...\n",
    ),
    "url --public": (
        ["url", "my-sprite", "--public"],
        {
            f"GET {ONE}": answer(MADE),
            f"PUT {ONE}": answer(PUBLIC),
            f"GET {ONE} again": answer(PUBLIC),
        },
        0,
        "https://my-sprite-abc123.sprites.app\n",
        "anybody can now open what my-sprite serves",
    ),
    "exec": (
        ["exec", "my-sprite", "--", "sh", "-c", "echo hi; echo no >&2; exit 3"],
        {f"WS {ONE}/exec": messages({**INFO, "tty": False}, BEGUN, b"\1hi\n", b"\2no\n", b"\3\3")},
        3,
        "hi\n",
        "no\n",
    ),
    "exec on a terminal": (
        ["exec", "my-sprite", "--detach", "--", "true"],
        {
            f"WS {ONE}/exec": messages(
                INFO,
                b"thopters-ready\r\n",
                b"thopters-unrecorded\r\nthopters-exec 1847\r\n\x1b[H\x1b[2J",
                EXIT,
            )
        },
        0,
        "1847.t8dzu0\n",
        "it has ended already, with status 0\n",
    ),
    "kill": (
        ["kill", "my-sprite", LASTING],
        {
            f"GET {ONE}/exec": answer({"count": 1, "sessions": [{**SESSION, "tty": False}]}),
            f"WS {ONE}/exec": messages(BEGUN, SEEN_INSIDE, b"\3\0"),
            f"WS {ONE}/exec again": messages(BEGUN, b"\3\3"),  # no such process group
            f"POST {ONE}/exec/1847/kill?signal=SIGTERM&timeout=10s": stream(KILLED),
            f"GET {ONE}/exec again": answer(NO_SESSIONS),
        },
        0,
        f"{LASTING} has ended\n",
        "",
    ),
    "restore": (
        ["restore", "my-sprite", "-v", "v3", "--yes", "--no-backup"],
        {
            f"GET {ONE}/checkpoints?includeAuto=true": answer(CHECKPOINTS),
            f"GET {ONE}": answer(MADE),
            f"WS {ONE}/exec": messages(BEGUN, b"\3\0"),  # the new file of ours is gone
            f"POST {ONE}/checkpoints/v3/restore": stream(RESTORED),
        },
        0,
        "restored my-sprite to v3 in ",
        "Restoring from checkpoint v3...\n",
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
    asked: list[str] = []

    def reply(request: Request, wire: Wire) -> None:
        is_socket = request.method == "WS"
        line = f"{request.method} {request.raw_path if is_socket else request.target}"
        again = f"{line} again"
        asked.append(again if line in asked and again in answers else line)
        known = answers.get(asked[-1])
        if known and is_socket:
            proof = accept_key(request.headers["Sec-WebSocket-Key"]).encode()
            wire.write(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: " + proof + b"\r\n\r\n" + known)
            while True:  # until the client has gone: to leave sooner would be a reset
                wire.read(1 << 16)
        else:
            wire.write(known or text("404 page not found", 404))

    with Canned(reply) as server:
        done = thopters(*words, env={"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN})
    assert set(asked) == set(answers), done
    exact = out.endswith("\n")
    assert (done.code, done.out if exact else done.out[: len(out)]) == (code, out), done
    assert err in done.err and bool(err) == bool(done.err), done


# the shape of what the emulator answers


def ask(emulator: Emulator, method: str, path: str, document: object = None) -> Any:
    return fetch(emulator.url, emulator.token, method, path, document)


def make(emulator: Emulator) -> Any:
    return ask(emulator, "POST", "/v1/sprites", {"name": "my-sprite"})


def open_up(emulator: Emulator) -> Any:
    emulator.add_sprite("dev")
    return ask(emulator, "PUT", "/v1/sprites/dev", {"url_settings": {"auth": "public"}})


def list_one(emulator: Emulator) -> Any:
    emulator.personality.page_size = 1
    fields = {"url_settings": SEEN["url_settings"], "labels": ["ci"], "last_running_at": 0.0}
    for name in ("a", "b"):
        emulator.add_sprite(name, status="running", **fields)
    return ask(emulator, "GET", "/v1/sprites?max_results=1&bulk_load=true")


def list_names(emulator: Emulator) -> Any:
    emulator.personality.list_items, emulator.personality.org_key = "minimal", "org_slug"
    emulator.add_sprite("a")
    return ask(emulator, "GET", "/v1/sprites")["sprites"]


@contextlib.contextmanager
def at_work(emulator: Emulator) -> Iterator[None]:
    """Have a command run in a sprite."""
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
        yield


def list_sessions(emulator: Emulator) -> Any:
    with at_work(emulator):
        return ask(emulator, "GET", "/v1/sprites/dev/exec")


def kill(emulator: Emulator) -> Any:
    with at_work(emulator):
        [identity] = emulator.sprite("dev").sessions
        query = "signal=SIGTERM&timeout=10s"
        return ask(emulator, "POST", f"/v1/sprites/dev/exec/{identity}/kill?{query}")


def start_on_a_terminal(emulator: Emulator) -> Any:
    """Return the texts of a session; a number for its id is another answer that is known."""
    home = emulator.add_sprite("dev", status="running").home
    done = run_here(["exec", "dev", "--detach", "--", "true"], environ_for(emulator, str(home)))
    assert done.code == 0, done
    [request] = emulator.journal.requests("WS")
    until(lambda: any(b'"exit"' in data for _, data in request.sent))
    return [json.loads(data) for opcode, data in request.sent if opcode == TEXT]


def list_checkpoints(emulator: Emulator) -> Any:
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("before")
    sprite.checkpoints[0].health = "mount_failed"
    emulator.personality.current_row = False
    return ask(emulator, "GET", "/v1/sprites/dev/checkpoints")


def checkpoint(emulator: Emulator) -> Any:
    emulator.add_sprite("dev", status="running")
    return ask(emulator, "POST", "/v1/sprites/dev/checkpoint", {"comment": "before"})


def restore(emulator: Emulator) -> Any:
    """Return the first event and the last: what is said in between is not known."""
    emulator.add_sprite("dev", status="running").add_checkpoint("first")
    first, *between, last = ask(emulator, "POST", "/v1/sprites/dev/checkpoints/v1/restore", {})
    assert {event["type"] for event in between} <= {"info"}
    return [first, last]


def wake(emulator: Emulator) -> Any:
    emulator.add_sprite("dev", status="cold")
    return ask(emulator, "GET", "/v1/sprites/dev/exec")


def make_too_often(emulator: Emulator) -> Any:
    emulator.personality.create_limit = 0
    return make(emulator)


def look_for_nothing(emulator: Emulator) -> Any:
    return ask(emulator, "GET", "/v1/sprites/nothing")


# what is asked, the answer that is known, and the keys that others have seen besides
LIVE_ONLY = ("labels", "last_running_at", "last_warming_at")
SHAPES: dict[str, tuple[Callable[[Emulator], Any], object, tuple[str, ...]]] = {
    "create": (make, MADE, LIVE_ONLY),
    "url settings": (open_up, PUBLIC, LIVE_ONLY),
    "list": (list_one, PAGE, ()),
    "list of names": (list_names, [MINIMAL], ()),
    "sessions": (list_sessions, {"count": 1, "sessions": [SESSION]}, ()),
    "kill": (kill, KILLED, ("message",)),  # of the one in the middle no more than a type is known
    "exec on a terminal": (start_on_a_terminal, [INFO, EXIT], ()),
    "checkpoints": (list_checkpoints, [{**CHECKPOINTS[1], "comment": "before"}], ()),
    "checkpoint": (checkpoint, EVENTS, ("time",)),
    "restore": (restore, RESTORED, ("time",)),
    "starting": (wake, STARTING, ()),
    "too many": (make_too_often, RATE, ()),
    "not found": (look_for_nothing, NOT_FOUND, ()),
}


@pytest.mark.parametrize("case", SHAPES)
def test_r48_the_emulator_answers_in_the_known_shape(emulator: Emulator, case: str) -> None:
    """No key is missing, of another kind or made up, and each event of a stream is there."""
    get, known, more = SHAPES[case]
    told = get(emulator)
    assert differences(shape(told), shape(known), more) == [], told
