"""What each route does, as strict and as odd as the platform."""

from __future__ import annotations

import contextlib
import datetime
import json
import queue
import random
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .exec import Attachment, Session, StartError, parse_duration
from .faults import Fault
from .journal import Request
from .state import Checkpoint, Sprite
from .wire import BINARY, TEXT, Gone, Reply, ServerSocket, Wire, accept_key

if TYPE_CHECKING:
    from .server import Emulator

NAME = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
VERSION = "0.0.1-rc48"
OLD_VERSION = "0.0.1-rc37"  # the last with the old storage
NDJSON = "application/x-ndjson"


class Call:
    """One request on its way through: everything a route may need."""

    def __init__(
        self, emulator: Emulator, request: Request, wire: Wire, faults: list[Fault]
    ) -> None:
        self.emulator = emulator
        self.account = emulator.account
        self.personality = emulator.personality
        self.request = request
        self.wire = wire
        self.faults = faults

    def fault(self, kind: str) -> Fault | None:
        return next((fault for fault in self.faults if fault.kind == kind), None)

    def document(self, *known: str) -> dict[str, Any]:
        """Return the JSON body; keys that the platform does not know are noted."""
        try:
            document = json.loads(self.request.body or b"{}")
        except ValueError:
            return {}
        if not isinstance(document, dict):
            return {}
        for key in set(document) - set(known):
            self.emulator.journal.oddities.append(f"{self.request}: unknown key {key}")
        return document

    def check_query(self, *known: str) -> None:
        for key in {key for key, _ in self.request.query} - set(known):
            self.emulator.journal.oddities.append(f"{self.request}: unknown parameter {key}")

    def first(self, name: str, default: str = "") -> str:
        return next(iter(self.request.values(name)), default)

    def open_websocket(self, headers: dict[str, str] | None = None) -> ServerSocket:
        asked = self.request.headers
        key = asked.get("Sec-WebSocket-Key", "")
        if asked.get("Sec-WebSocket-Version") != "13" or not key:
            raise Refused(Reply.text(400, "Bad Request"))
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
        reply = Reply(101, headers={**upgrade, **(headers or {})})
        del reply.headers["Content-Type"]
        reply.headers["Sec-WebSocket-Accept"] = accept_key(key)
        self.request.status = 101
        reply.send(self.wire, self.emulator.clock.now())
        return ServerSocket(self.wire, self.request, self.emulator.journal.oddities.append)


class Refused(Exception):
    """A route says no."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


Route = Callable[..., "Reply | None"]

MEMBERS = ("organization", "org_users")  # two words for one private_access


def require(call: Call, name: str) -> Sprite:
    restricted = call.personality.restricted_prefix
    if restricted and not name.startswith(restricted):
        raise Refused(Reply.error(403, "forbidden", "token is restricted to a name prefix"))
    sprite = call.account.sprites.get(name)
    if sprite is None:
        raise Refused(Reply.error(404, "not_found", "sprite not found"))
    return sprite


# the words of what stands before a machine, and of the machine
WAKE_FORMS = {
    "proxy error": Reply.text(502, "Proxy error"),
    "not ready": Reply.text(503, "Process not ready after 30s"),
}


def enter(call: Call, name: str) -> Sprite:
    """Return a sprite that is awake, waking it; 503 while that takes time."""
    sprite = require(call, name)
    is_starting = call.fault("starting")
    if is_starting or not sprite.enter():
        if not is_starting and call.personality.wake_form != "sprite_starting":
            raise Refused(WAKE_FORMS[call.personality.wake_form])
        raise Refused(
            Reply.error(
                503,
                "sprite_starting",
                f"Sprite '{name}' is starting. Please retry your request.",
                sprite_id=sprite.id,
                retry_after_seconds=0.05,
            )
        )
    return sprite


# sprites


def create_sprite(call: Call) -> Reply:
    known = ("name", "url_settings", "labels", "wait_for_capacity", "config", "environment")
    document = call.document(*known, "runtime")
    name, personality, account = document.get("name"), call.personality, call.account
    if (
        not isinstance(name, str)
        or not re.fullmatch(NAME, name)
        or len(name) > personality.max_name
    ):
        return Reply.error(400, "invalid_request", "invalid sprite name")
    restricted = personality.restricted_prefix
    if restricted and not name.startswith(restricted):
        return Reply.error(403, "forbidden", "token is restricted to a name prefix")
    wanted = url_settings(document)
    with account.lock:
        if name in account.sprites:
            status = personality.duplicate_status
            code = {409: "conflict", 422: "name_taken"}.get(status, "invalid_request")
            return Reply.error(status, code, "a sprite with this name already exists")
        limited = rate_limit(call)
        if limited:
            return limited
        account.creates += 1
        sprite = account.add(name)
    sprite.is_new = True
    sprite.url_settings = wanted or sprite.url_settings
    sprite.labels = document.get("labels") or []
    return Reply.json(sprite.to_json(), 201)


def url_settings(document: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are asked for; a wrong word in them is refused."""
    wanted = document.get("url_settings") or {}
    if not isinstance(wanted, dict):
        raise Refused(Reply.error(400, "invalid_request", "invalid url_settings"))
    auth = wanted.get("auth", "sprite")
    access = wanted.get("private_access")
    if auth not in ("sprite", "public") or access not in (None, "admins", *MEMBERS):
        raise Refused(Reply.error(400, "invalid_request", "invalid url_settings"))
    if access and auth != "sprite":
        raise Refused(Reply.error(400, "invalid_request", "private_access needs auth sprite"))
    return dict(wanted)


def rate_limit(call: Call) -> Reply | None:
    personality, account = call.personality, call.account
    if personality.create_limit is not None and account.creates >= personality.create_limit:
        reply = Reply.error(429, "sprite_creation_rate_limited", "Rate limit exceeded",
                            limit=personality.create_limit, window_seconds=60,
                            retry_after_seconds=1)  # fmt: skip
        reply.headers["Retry-After"] = "1"
        personality.create_limit = None
        return reply
    running = sum(sprite.status == "running" for sprite in account.sprites.values())
    if personality.running_limit is not None and running >= personality.running_limit:
        return Reply.error(429, "concurrent_sprite_limit_exceeded", "Too many running sprites",
                           limit=personality.running_limit, current_count=running,
                           upgrade_available=True,
                           upgrade_url="https://fly.io/plans")  # fmt: skip
    return None


def list_sprites(call: Call) -> Reply:
    call.check_query("prefix", "max_results", "continuation_token", "bulk_load")
    if wants_watch(call):
        return Reply(200, content_type=NDJSON, pieces=watch_lines(call))
    personality = call.personality
    after = call.first("continuation_token").removeprefix("after-")
    rest = [sprite for sprite in sprites_shown(call) if sprite.name > after]
    size = page_size(call)
    page, more = rest[:size], len(rest) > size
    shape = personality.list_items
    if call.first("bulk_load") == "true" and personality.bulk_load == "minimal":
        shape = "minimal"
    body: dict[str, Any] = {
        "sprites": [list_item(sprite, shape) for sprite in page],
        "has_more": more,
        "next_continuation_token": f"after-{page[-1].name}" if more else None,
    }
    of_org = personality.list_counts == "org"
    numbers = org_numbers(call, list(call.account.sprites.values()) if of_org else page)
    if personality.list_org == "top":
        body |= numbers
    elif personality.list_org == "nested":
        body["org"] = numbers
    return Reply.json(body)


def sprites_shown(call: Call) -> list[Sprite]:
    """Return what the token and the prefix let through, by name."""
    wanted = (call.first("prefix"), call.personality.restricted_prefix)
    found = [s for s in list(call.account.sprites.values()) if all(map(s.name.startswith, wanted))]
    return sorted(found, key=lambda sprite: sprite.name)


def page_size(call: Call) -> int:
    asked = call.first("max_results", "50")
    if not asked.isdigit() or int(asked) < 1:
        raise Refused(Reply.error(400, "invalid_request", "max_results must be 1 to 500"))
    if int(asked) > 500:
        if call.personality.over_page_size == "refused":
            raise Refused(Reply.error(400, "invalid_request", "max_results must be 1 to 500"))
        call.emulator.journal.oddities.append(f"{call.request}: max_results above 500")
    return min(int(asked), 500, call.personality.page_size)


def org_numbers(call: Call, sprites: list[Sprite]) -> dict[str, Any]:
    """Return how many of the sprites are in each state, and what the org may have."""
    statuses = [sprite.status for sprite in sprites]
    counts = {word: statuses.count(word) for word in ("running", "warm", "cold")}
    limit = 10 if call.personality.running_limit is None else call.personality.running_limit
    return {**counts, "name": call.account.org, "running_limit": limit, "warm_limit": 20}


def wants_watch(call: Call) -> bool:
    """Return whether a list is asked for as a stream: by that type alone, as far as is known."""
    accept = call.request.headers.get("Accept", "").lower()
    types = {part.partition(";")[0].strip() for part in accept.split(",")}
    return NDJSON in types if call.personality.watch_accept == "any" else types == {NDJSON}


def watch_lines(call: Call) -> Iterator[bytes]:
    """Yield a line for each change of a sprite, and heartbeats, until the client leaves."""
    seen = {sprite.id: watch_state(sprite) for sprite in sprites_shown(call)}
    beat = time.monotonic()
    while not call.emulator.stopping.is_set():
        for sprite in sprites_shown(call):
            if watch_state(sprite) != seen.get(sprite.id):
                seen[sprite.id] = watch_state(sprite)
                yield json.dumps(watch_item(call, sprite)).encode() + b"\n"
        if time.monotonic() - beat >= call.personality.heartbeat_s:
            beat = time.monotonic()
            yield json.dumps({"type": "heartbeat", "timestamp": stamp_now(call)}).encode() + b"\n"
        if select.select([call.wire.sock], [], [], 0.05)[0]:  # a client has no more to say
            raise Gone


def watch_state(sprite: Sprite) -> tuple[object, ...]:
    return sprite.shown_status(), sprite.last_running_at, sprite.last_warming_at


def watch_item(call: Call, sprite: Sprite) -> dict[str, Any]:
    return {
        "name": sprite.name,
        "status": sprite.shown_status(),
        "running_version": VERSION,
        "last_running_at": sprite.stamp(sprite.last_running_at),
        "last_warming_at": sprite.stamp(sprite.last_warming_at),
        "timestamp": stamp_now(call),
        "org": org_numbers(call, list(call.account.sprites.values())),
    }


def stamp_now(call: Call) -> str:
    when = datetime.datetime.fromtimestamp(call.emulator.clock.now(), datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def list_item(sprite: Sprite, shape: str) -> dict[str, Any]:
    item = sprite.to_json()
    if shape == "full":
        return item
    return {"name": sprite.name, "org_slug": sprite.org, "updated_at": item["updated_at"]}


def get_sprite(call: Call, name: str) -> Reply:
    sprite = require(call, name)
    if sprite.hidden_gets:
        sprite.hidden_gets -= 1
        return Reply.error(404, "not_found", "sprite not found")
    item = sprite.to_json()
    if call.personality.get_says_cold and item["status"] == "running":
        item["status"] = "cold"
    return Reply.json(item)


def update_sprite(call: Call, name: str) -> Reply:
    sprite = require(call, name)
    document = call.document("url_settings", "labels", "clear_labels")
    if document.get("url_settings") is not None:
        wanted = url_settings(document)
        if call.personality.put_settings == "merged" and wanted.get("auth") != "public":
            wanted = sprite.url_settings | wanted
        sprite.url_settings = wanted
    if isinstance(document.get("labels"), list):
        sprite.labels = document["labels"]
    if document.get("clear_labels") is True:
        sprite.labels = []
    sprite.updated_at = call.emulator.clock.now()
    return Reply.json(sprite.to_json())


def delete_sprite(call: Call, name: str) -> Reply:
    require(call, name)
    call.account.remove(name)
    return Reply(call.personality.delete_status)


def check_sprite(call: Call, name: str) -> Reply:
    """Return a look at a sprite's health, which does not wake it."""
    sprite = require(call, name)
    return Reply.json({
        "sprite_name": sprite.name,
        "sprite_id": sprite.id,
        "status": "healthy" if sprite.status == "running" else "hibernated",
        "reason": None,
        "checked_at": stamp_now(call),
        "elapsed": "1ms",
    })  # fmt: skip


def restart_sprite(call: Call, name: str) -> Reply:
    sprite = require(call, name)
    sprite.restart()
    machine = sprite.id.removeprefix("sprite-").replace("-", "")[:14]
    return Reply.json({"sprite_name": name, "machine_id": machine, "message": "restarted"})


def upgrade_sprite(call: Call, name: str) -> Reply:
    """Bring the runtime up to date; to move the disk as well has to be allowed by the request."""
    sprite = require(call, name)
    document = call.document("allow_storage_migration", "version")
    kind = call.personality.upgrade
    if kind == "none":
        message = "no upgrade is published for this sprite's release lane"
        return Reply.error(409, "no_upgrade", message)
    storage = sprite.storage
    if kind == "storage":
        storage = "" if document.get("version") == OLD_VERSION else "sbd"
    if storage != sprite.storage and document.get("allow_storage_migration") is not True:
        message = "this upgrade changes the storage; allow_storage_migration is needed"
        return Reply.error(409, "storage_migration_required", message)
    return events(call, stamped(upgrade_events(sprite, storage)))


def upgrade_events(sprite: Sprite, storage: str) -> Iterator[dict[str, Any]]:
    yield {"type": "info", "data": "Stopping the sprite"}
    if storage != sprite.storage:
        yield {"type": "info", "data": "Moving the storage"}
        sprite.move_storage(storage)
    sprite.restart()
    yield {"type": "completed", "data": "Upgrade completed"}


# exec


def check_length(call: Call) -> None:
    limit, status = call.personality.url_limit, call.personality.url_limit_status
    if len(call.request.target) > limit:
        raise Refused(Reply.text(status, "URI Too Long"))


def start(call: Call, sprite: Sprite, *, tty: bool, stdin: bool) -> Session:
    request = call.request
    argv = request.values("cmd") or ["bash"]
    size = (int(call.first("cols", "80")), int(call.first("rows", "24")))
    try:
        session = Session(
            sprite,
            call.personality,
            argv,
            env=request.values("env"),
            directory=call.first("dir"),
            tty=tty,
            stdin=stdin,
            size=size,
        )
    except StartError as error:
        raise Refused(Reply.text(500, str(error))) from error
    sprite.sessions[str(session.id)] = session
    kind = "ws" if request.method == "WS" else "post"
    call.emulator.journal.executed.append((sprite.name, argv, kind))
    return session


def exec_websocket(call: Call, name: str) -> Reply | None:
    check_length(call)
    known = ("cmd", "path", "tty", "stdin", "cols", "rows", "env", "dir", "id")
    call.check_query(*known, "max_run_after_disconnect", "detachable", "cc")
    sprite = enter(call, name)
    if call.first("id"):
        return attach(call, name, call.first("id"))
    tty = call.first("tty") == "true"
    stdin = call.first("stdin", "true" if tty else "false") == "true"
    sprite.wires.add(call.wire)
    early = start(call, sprite, tty=tty, stdin=stdin) if call.personality.early_start else None
    connection = call.open_websocket({"X-Sprite-Capabilities": "signal"})
    session = early or start(call, sprite, tty=tty, stdin=stdin)
    linger = parse_duration(call.first("max_run_after_disconnect", "0" if tty else "10s"))
    Attachment(session, connection, call.faults, linger_s=linger).run()
    return None


def attach(call: Call, name: str, identity: str) -> Reply | None:
    sprite = enter(call, name)
    session = sprite.sessions.get(identity)
    if session is None or session.ended.is_set():
        return Reply.text(404, f"session not found: {identity}")
    sprite.wires.add(call.wire)
    connection = call.open_websocket({"X-Sprite-Capabilities": "signal"})
    Attachment(session, connection, call.faults, linger_s=None).run()
    return None


def is_exec_post(request: Request) -> bool:
    pattern = r"/v1/sprites/[^/]+/exec"
    return request.method == "POST" and bool(re.fullmatch(pattern, request.raw_path))


def too_much_input() -> Reply:
    return Reply.json({"error": "Stdin exceeds 10 MiB"}, 413)


def exec_post(call: Call, name: str) -> Reply:
    check_length(call)
    require(call, name)
    limit = call.personality.post_limit
    if limit is not None and call.request.body_size > limit:
        return too_much_input()
    if any(call.first(key) for key in ("tty", "id", "detachable", "cc")):
        return Reply.text(400, "not supported over POST")
    if not call.request.values("cmd"):
        return Reply.text(400, "cmd is required")
    call.check_query("cmd", "path", "stdin", "env", "dir")
    sprite = enter(call, name)
    with_input = call.first("stdin") == "true"
    session = start(call, sprite, tty=False, stdin=True)
    frames = post_frames(session)  # output is wired before the process starts
    if with_input:
        threading.Thread(target=feed, args=(session, call.request.body), daemon=True).start()
    else:
        session.end_input()
    pieces = rechunk(frames, call.personality.post_chunks, call.personality.post_seed)
    return Reply(200, content_type="application/octet-stream", pieces=pieces,
                 headers={"X-Content-Type-Options": "nosniff"})  # fmt: skip


def feed(session: Session, data: bytes) -> None:
    session.write(data)
    session.end_input()


def post_frames(session: Session) -> Iterator[bytes]:
    frames: queue.Queue[bytes | None] = queue.Queue(16)
    session.attach(lambda number, data: frames.put(bytes((number,)) + bytes(data)))

    def finish() -> None:
        session.ended.wait()
        frames.put(None)

    def all_frames() -> Iterator[bytes]:
        while (frame := frames.get()) is not None:
            yield frame
        yield bytes((3, (session.exit_code or 0) & 0xFF))

    threading.Thread(target=finish, daemon=True).start()
    return all_frames()


def rechunk(frames: Iterator[bytes], how: str, seed: int) -> Iterator[bytes]:
    """Change the boundaries as something between may: they are the only ones there are."""
    if how == "merged":
        yield b"".join(frames)
        return
    if how == "random":
        yield from rechunk_at_random(frames, random.Random(seed))
        return
    for frame in frames:
        if how == "split" and len(frame) > 1:
            half = len(frame) // 2
            yield frame[:half]
            yield frame[half:]
        else:
            yield frame


def rechunk_at_random(frames: Iterator[bytes], rng: random.Random) -> Iterator[bytes]:
    """Yield pieces of one byte, of some, and of several frames, whatever the frames are."""

    def some() -> int:
        return rng.randint(1, rng.choice((1, 10, 1000)))

    held, size = b"", some()
    for frame in frames:
        held += frame
        while len(held) >= size:
            yield held[:size]
            held, size = held[size:], some()
    if held:
        yield held


def head_exec(call: Call, name: str) -> Reply:
    require(call, name)
    return Reply(200, headers={"Sprite-Version": VERSION})


def list_sessions(call: Call, name: str) -> Reply:
    sprite = enter(call, name)
    items = [s.to_json() for s in list(sprite.sessions.values()) if not s.ended.is_set()]
    if call.personality.sessions_shape == "array":
        return Reply.json(items)
    return Reply.json({"count": len(items), "sessions": items})


def kill_session(call: Call, name: str, identity: str) -> Reply:
    call.check_query("signal", "timeout")
    sprite = enter(call, name)
    session = sprite.sessions.get(identity)
    if session is None:
        return Reply.text(404, f"session not found: {identity}")
    if session.ended.is_set():
        return Reply.text(410, "session has ended")
    given = call.document("signal", "timeout")
    word = call.first("signal", str(given.get("signal", "SIGTERM")))
    limit = parse_duration(call.first("timeout", "10s")) or 10.0
    if isinstance(given.get("timeout"), (int, float)):
        limit = float(given["timeout"])
    number = signal.Signals[word if word.startswith("SIG") else "SIG" + word]
    return events(call, kill_events(session, number, limit))


def kill_events(session: Session, number: signal.Signals, limit_s: float) -> Iterator[Any]:
    session.signal(number)
    named = {"signal": number.name, "pid": session.id}
    message = f"Signaling {number.name} to process group {session.id}"
    yield {"type": "signal", "message": message, **named}
    if not session.ended.wait(limit_s):
        yield {"type": "timeout", "message": "the process has not exited"}
        session.signal(signal.SIGKILL)
        session.ended.wait(2)
        yield {"type": "killed", "message": "Sent SIGKILL"}
    else:
        yield {"type": "exited", "message": "the process exited"}
    yield {"type": "complete", "exit_code": session.exit_code}


# checkpoints


def events(call: Call, items: Iterator[dict[str, Any]]) -> Reply:
    return Reply(200, content_type=NDJSON, pieces=event_lines(call, items))


def event_lines(call: Call, items: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    for number, item in enumerate(items):
        if number == 1 and call.fault("ndjson_error"):
            yield (
                json.dumps({"type": "error", "error": "the storage is not ready"}).encode() + b"\n"
            )
            return
        if item["type"] == "complete" and call.fault("ndjson_no_complete"):
            return
        yield json.dumps(item).encode() + b"\n"


def stamped(items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return ({"time": "2026-01-13T10:30:00Z", **item} for item in items)


def create_checkpoint(call: Call, name: str) -> Reply:
    sprite = enter(call, name)
    comment = call.document("comment").get("comment") or ""
    return events(call, stamped(checkpoint_events(call, sprite, str(comment))))


def checkpoint_events(call: Call, sprite: Sprite, comment: str) -> Iterator[dict[str, Any]]:
    yield {"type": "info", "data": "Creating checkpoint..."}
    if call.fault("ndjson_error"):
        yield {"type": "info", "data": "unreached"}
        return
    told = call.personality.checkpoint_id_text != "none"
    if call.personality.checkpoint_words == "openapi":
        yield {"type": "info", "data": "Stopping services..."}
        yield {"type": "info", "data": "Saving filesystem state..."}
        made = sprite.add_checkpoint(comment)
        yield {"type": "complete", "data": f"Checkpoint {made.id} created" if told else ""}
        return
    made = sprite.add_checkpoint(comment)
    yield {"type": "info", "data": "Checkpoint created successfully"}
    if call.personality.checkpoint_id_text == "details":
        stamp = sprite.stamp(made.made)
        yield {"type": "info", "data": "\nCheckpoint Details:"}
        yield {"type": "info", "data": f"  ID: {made.id}"}
        yield {"type": "info", "data": f"  Created: {stamp}"}
        yield {"type": "info", "data": f"  Path: checkpoints/{made.id}"}
    yield {"type": "complete", "data": f"Checkpoint {made.id} created successfully" if told else ""}


def list_checkpoints(call: Call, name: str) -> Reply:
    call.check_query("includeAuto", "history")
    sprite, personality = enter(call, name), call.personality
    wanted = call.first("includeAuto") == "true" or personality.include_auto_ignored
    items = [sprite.checkpoint_json(c) for c in sprite.checkpoints if wanted or not c.auto]
    if personality.checkpoints_order == "newest":
        items.reverse()
    elif personality.checkpoints_order == "shuffled":
        random.shuffle(items)
    if personality.current_row:
        items.insert(0, {"id": "Current", "create_time": sprite.stamp(call.emulator.clock.now())})
    return Reply.json(items)


def find_checkpoint(call: Call, sprite: Sprite, identity: str) -> Checkpoint:
    for checkpoint in sprite.checkpoints:
        if identity in (checkpoint.id, checkpoint.id.removeprefix("v")):
            return checkpoint
    raise Refused(Reply.error(404, "not_found", f"checkpoint {identity} not found"))


def get_checkpoint(call: Call, name: str, identity: str) -> Reply:
    sprite = enter(call, name)
    return Reply.json(sprite.checkpoint_json(find_checkpoint(call, sprite, identity)))


def delete_checkpoint(call: Call, name: str, identity: str) -> Reply:
    sprite = enter(call, name)
    sprite.checkpoints.remove(find_checkpoint(call, sprite, identity))
    return Reply(204)


RESTORE_WORDS = {
    "live": (
        "Restoring from checkpoint {}...",
        "Restarting the environment",
        "Restore from {} complete",
    ),
    "openapi": (
        "Restoring to checkpoint {}...",
        "Stopping services...",
        "Restoring filesystem...",
        "Restored to {}",
    ),
}


def restore_checkpoint(call: Call, name: str, identity: str) -> Reply:
    sprite = enter(call, name)
    checkpoint = find_checkpoint(call, sprite, identity)
    return events(call, stamped(restore_events(call, sprite, checkpoint)))


def restore_events(call: Call, sprite: Sprite, checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    first, *steps, last = RESTORE_WORDS[call.personality.checkpoint_words]
    yield {"type": "info", "data": first.format(checkpoint.id)}
    if call.fault("ndjson_error"):
        yield {"type": "info", "data": "unreached"}
        return

    def later() -> None:
        call.emulator.stopping.wait(call.personality.restore_delay_s)
        if not call.emulator.stopping.is_set():
            sprite.restore(checkpoint)

    restoring = threading.Thread(target=later, daemon=True)
    restoring.start()
    for step in steps:
        yield {"type": "info", "data": step}
    if not call.personality.restore_delay_s:
        restoring.join()
    yield {"type": "complete", "data": last.format(checkpoint.id)}


# proxy


def proxy(call: Call, name: str) -> Reply | None:
    sprite = enter(call, name)
    sprite.wires.add(call.wire)
    connection = call.open_websocket()
    messages = connection.messages()
    opcode, first = next(messages)
    try:
        wanted = json.loads(first) if opcode == TEXT else {}
        address = (wanted.get("host") or "localhost", int(wanted["port"]))
    except (ValueError, KeyError, TypeError):
        connection.close(1003, "bad request")
        return None
    try:
        target = socket.create_connection(address, 10)
        target.settimeout(None)
    except OSError:
        connection.close(1011, f"Failed to connect to target {address[0]}:{address[1]}")
        return None
    answer = {"status": "connected", "target": f"10.0.0.1:{address[1]}"}
    connection.send(TEXT, json.dumps(answer).encode())
    threading.Thread(target=pump_target, args=(target, connection), daemon=True).start()
    with contextlib.suppress(OSError), target, sprite.proxied():
        for _, data in messages:
            target.sendall(data)
    return None


def pump_target(target: socket.socket, connection: ServerSocket) -> None:
    with contextlib.suppress(OSError, Gone):
        while data := target.recv(1 << 16):
            connection.send(BINARY, data)
        connection.close(1000)
    connection.wire.end()


ROUTES: list[tuple[str, str, Route]] = [
    ("POST", r"/v1/sprites", create_sprite),
    ("GET", r"/v1/sprites", list_sprites),
    ("GET", r"/v1/sprites/([^/]+)", get_sprite),
    ("PUT", r"/v1/sprites/([^/]+)", update_sprite),
    ("DELETE", r"/v1/sprites/([^/]+)", delete_sprite),
    ("GET", r"/v1/sprites/([^/]+)/check", check_sprite),
    ("POST", r"/v1/sprites/([^/]+)/restart", restart_sprite),
    ("POST", r"/v1/sprites/([^/]+)/upgrade", upgrade_sprite),
    ("WS", r"/v1/sprites/([^/]+)/exec", exec_websocket),
    ("WS", r"/v1/sprites/([^/]+)/exec/([^/]+)", attach),
    ("POST", r"/v1/sprites/([^/]+)/exec", exec_post),
    ("HEAD", r"/v1/sprites/([^/]+)/exec", head_exec),
    ("GET", r"/v1/sprites/([^/]+)/exec", list_sessions),
    ("POST", r"/v1/sprites/([^/]+)/exec/([^/]+)/kill", kill_session),
    ("POST", r"/v1/sprites/([^/]+)/checkpoint", create_checkpoint),
    ("GET", r"/v1/sprites/([^/]+)/checkpoints", list_checkpoints),
    ("GET", r"/v1/sprites/([^/]+)/checkpoints/([^/]+)", get_checkpoint),
    ("DELETE", r"/v1/sprites/([^/]+)/checkpoints/([^/]+)", delete_checkpoint),
    ("POST", r"/v1/sprites/([^/]+)/checkpoints/([^/]+)/restore", restore_checkpoint),
    ("WS", r"/v1/sprites/([^/]+)/proxy", proxy),
]


def route(call: Call) -> Reply | None:
    """Return the answer; None where the connection was used up by a WebSocket."""
    from urllib.parse import unquote

    for method, pattern, handler in ROUTES:
        found = re.fullmatch(pattern, call.request.raw_path)
        if found and method == call.request.method:
            try:
                return handler(call, *map(unquote, found.groups()[:2]))
            except Refused as refused:
                return refused.reply
    return Reply.error(404, "not_found", "no such route")
