"""The emulator, seen by curl, by the `websockets` package and from its own command line.

What the official SDK makes of it stands in test_sdk.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from emulation import Emulator, Personality
from emulation.machine import SPRITE_UID, namespace_kind
from support.program import ROOT
from support.sessions import needs_curl, needs_namespace
from support.waiting import until


@pytest.fixture
def platform() -> Iterator[Emulator]:
    with Emulator(idle_s=30) as emulator:
        yield emulator


class Answer:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


def curl(
    emulator: Emulator, method: str, path: str, *options: str, token: str | None = None
) -> Answer:
    """Send one request by curl, with the right token unless another is given."""
    bearer = f"Authorization: Bearer {emulator.token if token is None else token}"
    words = ["curl", "-sS", "--max-time", "30", "-X", method, "-w", "\n%{http_code}"]
    done = subprocess.run(
        [*words, "-H", "@-", *options, emulator.url + path],
        input=bearer.encode(),  # others can see command lines
        capture_output=True,
        check=True,
        timeout=60,
    )
    body, _, status = done.stdout.rpartition(b"\n")
    return Answer(int(status), body)


def wake(emulator: Emulator, name: str) -> None:
    while not emulator.sprite(name).enter():
        pass


def run(emulator: Emulator, name: str, *argv: str, **query: str) -> tuple[bytes, int]:
    """Run a command by POST; return the text it printed and its exit status."""
    wake(emulator, name)
    asked = urlencode([*(("cmd", word) for word in argv), *query.items()])
    answer = curl(emulator, "POST", f"/v1/sprites/{name}/exec?{asked}")
    assert answer.status == 200, answer.body
    output, (stream, status) = answer.body[:-2], answer.body[-2:]
    assert stream == 3
    return output.replace(b"\1", b""), status  # a frame's number, before each piece of text


def test_the_contract_names_every_field_of_a_personality_and_no_other() -> None:
    text = (ROOT / "tests" / "emulation" / "CONTRACT.md").read_text()
    known = {field.name for field in dataclasses.fields(Personality)}
    assert known <= set(re.findall(r"`(\w+)(?:=[^`]*)?`", text))
    assert set(re.findall(r"`([a-z]\w*)=[^`]*`", text)) <= known
    assert max(map(len, text.splitlines())) <= 400


# requests


ROUTES = [
    ("GET", "/v1/sprites"),
    ("POST", "/v1/sprites"),
    ("GET", "/v1/sprites/dev"),
    ("PUT", "/v1/sprites/dev"),
    ("DELETE", "/v1/sprites/dev"),
    ("GET", "/v1/sprites/dev/exec"),
    ("POST", "/v1/sprites/dev/exec"),
    ("POST", "/v1/sprites/dev/checkpoint"),
    ("GET", "/v1/sprites/dev/checkpoints"),
    ("POST", "/v1/sprites/dev/checkpoints/v1/restore"),
    ("GET", "/no/such/route"),
]


@needs_curl
@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_request_without_the_token_is_refused(
    platform: Emulator, method: str, path: str, token: str
) -> None:
    platform.add_sprite("dev")
    answer = curl(platform, method, path, token=token)
    assert answer.status == 401
    assert answer.json()["error"] == "unauthorized"
    assert "dev" in platform.sprites


@needs_curl
@pytest.mark.parametrize("verb", ["suspend", "pause", "wake", "resume", "rename", "clone", "tasks"])
def test_what_the_platform_does_not_have_is_not_here(platform: Emulator, verb: str) -> None:
    platform.add_sprite("dev", status="running")
    for method in ("GET", "POST", "PUT"):
        assert curl(platform, method, f"/v1/sprites/dev/{verb}", "-d", "{}").status == 404
    assert platform.sprite("dev").status == "running"


@needs_curl
def test_an_update_cannot_rename(platform: Emulator) -> None:
    platform.add_sprite("dev")
    answer = curl(platform, "PUT", "/v1/sprites/dev", "-d", '{"name": "new", "labels": ["a"]}')
    assert (answer.json()["name"], answer.json()["labels"]) == ("dev", ["a"])
    assert list(platform.sprites) == ["dev"]


@needs_curl
@pytest.mark.parametrize("status", [400, 409, 422])
def test_a_sprite_from_create_to_delete(platform: Emulator, status: int) -> None:
    platform.personality.duplicate_status = status
    made = curl(platform, "POST", "/v1/sprites", "-d", '{"name": "dev"}')
    assert (made.status, made.json()["status"]) == (201, "cold")
    assert curl(platform, "POST", "/v1/sprites", "-d", '{"name": "dev"}').status == status
    assert curl(platform, "POST", "/v1/sprites", "-d", '{"name": "../x"}').status == 400
    assert curl(platform, "GET", "/v1/sprites/dev").json() == made.json()
    assert [item["name"] for item in curl(platform, "GET", "/v1/sprites").json()["sprites"]] == [
        "dev"
    ]
    assert curl(platform, "DELETE", "/v1/sprites/dev").status == 204
    assert curl(platform, "GET", "/v1/sprites/dev").status == 404


@needs_curl
def test_a_sleeping_sprite_says_that_it_starts_and_then_serves(platform: Emulator) -> None:
    platform.add_sprite("dev")
    first = curl(platform, "GET", "/v1/sprites/dev/exec")
    assert (first.status, first.json()["error"]) == (503, "sprite_starting")
    assert first.json()["retry_after_seconds"] > 0
    assert curl(platform, "GET", "/v1/sprites/dev/exec").json() == {"count": 0, "sessions": []}
    platform.add_sprite("other")
    again = curl(platform, "GET", "/v1/sprites/other/exec", "--retry", "2", "--retry-delay", "1")
    assert again.status == 200


@needs_curl
@pytest.mark.parametrize("status", [414, 431])
def test_a_long_url_is_refused(platform: Emulator, status: int) -> None:
    platform.personality.url_limit_status = status
    platform.add_sprite("dev", status="running")
    asked = urlencode({"cmd": "echo " + "x" * 41_000})
    assert curl(platform, "POST", f"/v1/sprites/dev/exec?{asked}").status == status
    assert platform.journal.executed == []


@needs_curl
def test_a_restricted_token_touches_its_prefix_alone(platform: Emulator) -> None:
    platform.personality.restricted_prefix = "ci-"
    platform.add_sprite("dev")
    platform.add_sprite("ci-1")
    assert curl(platform, "GET", "/v1/sprites/dev").status == 403
    assert curl(platform, "POST", "/v1/sprites", "-d", '{"name": "x"}').status == 403
    assert [item["name"] for item in curl(platform, "GET", "/v1/sprites").json()["sprites"]] == [
        "ci-1"
    ]


def raw(emulator: Emulator, method: str, path: str, *headers: str) -> socket.socket:
    """Send the head of a request on a connection of its own, with the right token."""
    host = emulator.url.removeprefix("http://")
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}",
        f"Authorization: Bearer {emulator.token}",
    ]
    name, _, port = host.partition(":")
    connection = socket.create_connection((name, int(port)), 20)
    connection.sendall("\r\n".join([*lines, *headers, "", ""]).encode())
    return connection


def read_lines(connection: socket.socket) -> Iterator[Any]:
    """Yield the documents of a chunked stream of lines, a line being a chunk."""
    with connection.makefile("rb") as stream:
        while stream.readline() != b"\r\n":
            pass
        while size := int(stream.readline(), 16):
            yield json.loads(stream.read(size))
            stream.readline()


UPGRADE = (
    "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)  # fmt: skip


@needs_curl
def test_a_new_sprite_answers_at_once_and_one_that_slept_does_not(platform: Emulator) -> None:
    curl(platform, "POST", "/v1/sprites", "-d", '{"name": "dev"}')
    path = "/v1/sprites/dev/exec?cmd=true"
    for status in (b"101", b"101", b"503", b"101"):
        with raw(platform, "GET", path, *UPGRADE) as connection:
            assert connection.recv(12) == b"HTTP/1.1 " + status
        if len(platform.journal.requests("WS")) == 2:
            platform.sprite("dev").pause()


@needs_curl
def test_a_get_may_say_cold_while_the_list_says_running(platform: Emulator) -> None:
    platform.add_sprite("dev", status="running")
    assert curl(platform, "GET", "/v1/sprites/dev").json()["status"] == "running"
    platform.personality.get_says_cold = True
    assert curl(platform, "GET", "/v1/sprites/dev").json()["status"] == "cold"
    listed = curl(platform, "GET", "/v1/sprites?prefix=dev").json()
    assert [item["status"] for item in listed["sprites"]] == ["running"]


@needs_curl
@pytest.mark.parametrize("query", ["", "?stdin=true", "?cmd=true&tty=true", "?cmd=true&id=1"])
def test_an_exec_by_post_wants_a_command_and_no_terminal(platform: Emulator, query: str) -> None:
    platform.add_sprite("dev", status="running")
    answer = curl(platform, "POST", f"/v1/sprites/dev/exec{query}")
    assert (answer.status, answer.body[:1].isalpha()) == (400, True)
    assert not platform.journal.executed


LIMIT = 10 << 20


@needs_curl
@pytest.mark.parametrize("when", ["late", "early"])
@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_the_body_of_an_exec_has_a_limit(
    platform: Emulator, tmp_path: Path, when: str, size: int
) -> None:
    platform.personality.post_limit_when = when
    platform.add_sprite("dev", status="running")
    (tmp_path / "body").write_bytes(bytes(size))
    words = ["--data-binary", f"@{tmp_path}/body", "-H", "Content-Type: application/octet-stream"]
    path = "/v1/sprites/dev/exec?cmd=wc&cmd=-c&stdin=true"
    for chunked in ([], ["-H", "Transfer-Encoding: chunked"]):
        answer = curl(platform, "POST", path, *words, *chunked)
        if size == LIMIT:
            assert (answer.status, answer.body) == (200, b"\1%d\n\3\0" % size)
        else:
            assert (answer.status, answer.json()) == (413, {"error": "Stdin exceeds 10 MiB"})
    assert len(platform.journal.executed) == (2 if size == LIMIT else 0)


@pytest.mark.parametrize("when", ["late", "early"])
def test_too_large_a_body_is_answered_before_it_is_read_or_after(
    platform: Emulator, when: str
) -> None:
    platform.personality.post_limit_when = when
    platform.add_sprite("dev", status="running")
    path, length = "/v1/sprites/dev/exec?cmd=true", f"Content-Length: {LIMIT + 1}"
    with raw(platform, "POST", path, length) as connection:
        if when == "late":
            connection.sendall(bytes(LIMIT))
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(100)
            connection.settimeout(20)
            connection.sendall(b"x")
            assert connection.recv(12) == b"HTTP/1.1 413"
            assert platform.journal[0].body_size == LIMIT + 1
            return
        answer = b""
        while data := connection.recv(4096):
            answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nConnection: close\r\n" in head
        assert json.loads(body) == {"error": "Stdin exceeds 10 MiB"}
        with pytest.raises(OSError):  # a reset, or a pipe that was broken by one
            for _ in range(100):
                connection.sendall(bytes(1 << 20))


@needs_curl
@pytest.mark.parametrize("when", ["late", "early"])
def test_a_stranger_hears_nothing_of_sizes(platform: Emulator, tmp_path: Path, when: str) -> None:
    platform.personality.post_limit_when = when
    (tmp_path / "body").write_bytes(bytes(LIMIT + 1))
    words = ["--data-binary", f"@{tmp_path}/body"]
    answer = curl(platform, "POST", "/v1/sprites/dev/exec?cmd=wc", *words, token="wrong")
    assert answer.status == 401


# lists


@needs_curl
def test_a_page_has_fifty_items_or_as_many_as_asked_for_up_to_500(platform: Emulator) -> None:
    for number in range(502):
        sprite = platform.add_sprite(f"many-{number:03}")
        sprite.status = "running" if number < 3 or number > 500 else "cold"

    def look(query: str) -> tuple[int, int, int, bool]:
        page = curl(platform, "GET", f"/v1/sprites?{query}").json()
        assert (page["name"], page["running_limit"], page["warm_limit"]) == ("acme", 10, 20)
        return len(page["sprites"]), page["running"], page["cold"], page["has_more"]

    platform.personality.list_counts = "returned"
    assert look("") == (50, 3, 47, True)
    assert look("max_results=500") == (500, 3, 497, True)
    assert look("max_results=500&continuation_token=after-many-499") == (2, 1, 1, False)
    assert look("prefix=many-1") == (50, 0, 50, True)
    assert not platform.journal.oddities
    assert look("max_results=501") == (500, 3, 497, True)
    assert "max_results above 500" in platform.journal.oddities[0]
    platform.personality.list_counts = "org"
    assert look("max_results=1&prefix=many-1") == (1, 4, 498, True)
    platform.personality.over_page_size = "refused"
    for wrong in ("501", "0", "-1", "x", ""):
        assert curl(platform, "GET", f"/v1/sprites?max_results={wrong}").status == 400, wrong


@needs_curl
@pytest.mark.parametrize("kind", ["full", "minimal"])
def test_bulk_load_brings_whole_or_minimal_items(platform: Emulator, kind: str) -> None:
    platform.personality.bulk_load = kind
    platform.add_sprite("dev")
    [item] = curl(platform, "GET", "/v1/sprites?bulk_load=true").json()["sprites"]
    assert (set(item) == {"name", "org_slug", "updated_at"}) == (kind == "minimal")
    [item] = curl(platform, "GET", "/v1/sprites").json()["sprites"]
    assert {"id", "name", "organization", "url", "status", "created_at", "updated_at"} <= set(item)
    assert "labels" not in item  # as long as there are none


def test_changes_are_watched_as_a_stream_of_lines(platform: Emulator) -> None:
    platform.personality.heartbeat_s = 0.3
    for name in ("dev", "other"):
        platform.add_sprite(name)
    accept = "Accept: application/x-ndjson"
    with raw(platform, "GET", "/v1/sprites?prefix=de", accept) as connection:
        lines = read_lines(connection)
        assert next(lines)["type"] == "heartbeat"
        wake(platform, "other")
        wake(platform, "dev")
        changed = next(line for line in lines if "type" not in line)
        assert (changed["name"], changed["status"]) == ("dev", "running")
        assert changed["org"] == {
            "name": "acme", "running": 2, "warm": 0, "cold": 0,
            "running_limit": 10, "warm_limit": 20,
        }  # fmt: skip
        assert {"running_version", "last_running_at", "last_warming_at", "timestamp"} < set(changed)
        platform.add_sprite("dev-2")
        assert next(line for line in lines if "type" not in line)["name"] == "dev-2"


@needs_curl
@pytest.mark.parametrize(
    ("accept", "face", "watches"),
    [
        ("application/x-ndjson", "alone", True),
        ("Application/X-NDJSON;q=0.9", "alone", True),
        ("application/json, application/x-ndjson", "alone", False),
        ("application/json, application/x-ndjson", "any", True),
        ("*/*", "any", False),
        ("", "any", False),
    ],
)
def test_a_list_becomes_a_watch_by_what_is_accepted(
    platform: Emulator, accept: str, face: str, watches: bool
) -> None:
    platform.personality.watch_accept = face
    with raw(platform, "GET", "/v1/sprites", f"Accept: {accept}") as connection:
        head = connection.recv(1000).partition(b"\r\n\r\n")[0]
    assert (b"\r\nContent-Type: application/x-ndjson" in head) == watches
    assert (b"\r\nTransfer-Encoding: chunked" in head) == watches


# settings, health, upgrades


@needs_curl
def test_who_may_open_a_private_url(platform: Emulator) -> None:
    platform.add_sprite("dev")

    def put(**settings: str) -> Any:
        document = json.dumps({"url_settings": settings})
        answer = curl(platform, "PUT", "/v1/sprites/dev", "-d", document)
        return answer.json()["url_settings"] if answer.status == 200 else answer.status

    for word in ("organization", "org_users"):
        assert put(auth="sprite", private_access=word)["private_access"] == "organization"
    assert curl(platform, "GET", "/v1/sprites/dev").json()["url_settings"] == {
        "auth": "sprite",
        "private_access": "organization",
    }
    platform.personality.members_word = "org_users"
    assert put(auth="sprite", private_access="organization")["private_access"] == "org_users"
    assert put(auth="sprite", private_access="admins")["private_access"] == "admins"
    assert put(auth="sprite", private_access="everybody") == 400
    assert put(auth="public", private_access="admins") == 400
    assert put(auth="open") == 400
    wrong = curl(platform, "PUT", "/v1/sprites/dev", "-d", '{"url_settings": "public"}')
    assert wrong.status == 400
    platform.personality.put_settings = "merged"
    assert put(auth="sprite") == {"auth": "sprite", "private_access": "admins"}
    assert put(auth="public") == {"auth": "public"}


@needs_curl
def test_a_look_at_the_health_wakes_nothing_and_a_restart_ends_what_runs(
    platform: Emulator,
) -> None:
    sprite = platform.add_sprite("dev")
    checked = curl(platform, "GET", "/v1/sprites/dev/check").json()
    assert (checked["sprite_name"], checked["status"]) == ("dev", "hibernated")
    assert sprite.status == "cold"
    run(platform, "dev", "sh", "-c", "sleep 1000 >/dev/null 2>&1 &")
    assert curl(platform, "GET", "/v1/sprites/dev/check").json()["status"] == "healthy"
    done = curl(platform, "POST", "/v1/sprites/dev/restart").json()
    assert set(done) == {"sprite_name", "machine_id", "message"}
    assert (sprite.machine.processes(), sprite.sessions) == (set(), {})


def upgrade(emulator: Emulator, **document: object) -> Any:
    """Return the last event of an upgrade, or the error that refused it."""
    answer = curl(emulator, "POST", "/v1/sprites/dev/upgrade", "-d", json.dumps(document))
    if answer.status != 200:
        assert answer.status == 409
        return answer.json()["error"]
    return [json.loads(line)["type"] for line in answer.body.splitlines()][-1]


@needs_curl
def test_an_upgrade_that_moves_the_storage_drops_the_checkpoints(platform: Emulator) -> None:
    sprite = platform.add_sprite("dev")
    run(platform, "dev", "sh", "-c", "echo kept > file")

    def checkpoints() -> list[str]:
        wake(platform, "dev")
        listed = curl(platform, "GET", "/v1/sprites/dev/checkpoints").json()
        return [item["id"] for item in listed if item["id"] != "Current"]

    def take() -> None:
        curl(platform, "POST", "/v1/sprites/dev/checkpoint")

    take()
    assert upgrade(platform) == "completed"  # of the runtime alone
    assert (checkpoints(), sprite.sessions) == (["v1"], {})
    platform.personality.upgrade = "none"
    assert upgrade(platform) == "no_upgrade"
    platform.personality.upgrade = "storage"
    for refused in ({}, {"allow_storage_migration": False}):
        assert upgrade(platform, **refused) == "storage_migration_required"
    assert checkpoints() == ["v1"]
    assert upgrade(platform, allow_storage_migration=True) == "completed"
    assert checkpoints() == []
    wake(platform, "dev")
    assert curl(platform, "POST", "/v1/sprites/dev/checkpoints/v1/restore").status == 404
    script = 'cat file; echo "$SPRITE_STORAGE_DRIVER"'
    assert run(platform, "dev", "sh", "-c", script) == (b"kept\nsbd\n", 0)
    take()
    assert checkpoints() == ["v2"]
    assert upgrade(platform) == "completed"  # nothing is left to move
    assert checkpoints() == ["v2"]
    old = {"version": "0.0.1-rc37"}
    assert upgrade(platform, **old) == "storage_migration_required"
    assert upgrade(platform, **old, allow_storage_migration=True) == "completed"
    assert (checkpoints(), sprite.storage) == ([], "")


# the place where commands run


@needs_curl
def test_commands_run_in_their_own_home_and_not_as_root(platform: Emulator) -> None:
    home = platform.add_sprite("dev").machine.home_inside
    assert run(platform, "dev", "sh", "-c", 'echo "$HOME"; pwd') == (
        f"{home}\n{home}\n".encode(),
        0,
    )
    uid = SPRITE_UID if os.geteuid() == 0 else os.geteuid()
    assert run(platform, "dev", "id", "-u") == (f"{uid}\n".encode(), 0)
    assert run(platform, "dev", "sh", "-c", "exit 7") == (b"", 7)
    assert run(platform, "dev", "no-such-program")[1] == 127


@needs_curl
@needs_namespace
def test_a_sprite_is_a_world_of_its_own(platform: Emulator) -> None:
    platform.add_sprite("one")
    platform.add_sprite("two")
    assert run(platform, "one", "sh", "-c", "pwd; echo 1 > /tmp/mine; echo 1 > file") == (
        b"/home/sprite\n",
        0,
    )
    assert run(platform, "two", "sh", "-c", "ls /home; ls /tmp; ls") == (b"sprite\n", 0)


@needs_curl
def test_the_stock_bashrc_returns_early_unless_interactive(platform: Emulator) -> None:
    sprite = platform.add_sprite("dev")
    with (sprite.home / ".bashrc").open("a") as stream:
        stream.write("export MARK=seen\n")
    for options, seen in (("-c", b""), ("-lc", b""), ("-ic", b"seen")):
        script = f"bash {options} 'echo \"$MARK\"' 2>/dev/null"
        assert run(platform, "dev", "sh", "-c", script) == (seen + b"\n", 0), options


@needs_curl
@pytest.mark.parametrize("replaces", [False, True])
def test_given_variables_replace_or_add(platform: Emulator, replaces: bool) -> None:
    platform.personality.env_replaces = replaces
    platform.add_sprite("dev")
    output, _ = run(platform, "dev", "/bin/sh", "-c", 'echo "$A-$USER"', env="A=1")
    assert output == (b"1-\n" if replaces else b"1-sprite\n")


@needs_curl
@pytest.mark.parametrize(("bad_dir", "status"), [("ignored", 200), ("error", 500)])
def test_a_missing_directory_is_ignored_or_refused(
    platform: Emulator, bad_dir: str, status: int
) -> None:
    platform.personality.bad_dir = bad_dir
    platform.add_sprite("dev", status="running")
    answer = curl(platform, "POST", "/v1/sprites/dev/exec?cmd=pwd&dir=%2Fno%2Fsuch")
    assert answer.status == status


@needs_curl
@pytest.mark.parametrize(("kind", "expected"), [("128+n", 143), ("255", 255)])
def test_a_leader_ended_by_a_signal(platform: Emulator, kind: str, expected: int) -> None:
    platform.personality.killed_exit = kind
    platform.add_sprite("dev")
    assert run(platform, "dev", "bash", "-c", "kill -TERM $$") == (b"", expected)


# checkpoints


@needs_curl
def test_a_restore_puts_the_files_back(platform: Emulator) -> None:
    sprite = platform.add_sprite("dev")
    run(platform, "dev", "sh", "-c", "echo one > f; ln -s f link; mkdir -m 700 d; mkfifo p")
    taken = curl(platform, "POST", "/v1/sprites/dev/checkpoint", "-d", '{"comment": "good"}')
    events = [json.loads(line) for line in taken.body.splitlines()]
    assert events[-1]["type"] == "complete"
    assert "  ID: v1" in [event["data"] for event in events]
    run(platform, "dev", "sh", "-c", "echo two > f; rm -r link d p; echo more > new")
    restored = curl(platform, "POST", "/v1/sprites/dev/checkpoints/v1/restore")
    assert json.loads(restored.body.splitlines()[-1])["type"] == "complete"
    until(lambda: sprite.status == "cold")  # the stream is over before the environment is
    assert run(platform, "dev", "sh", "-c", "cat f link; stat -c %a d; test -p p && ls") == (
        b"one\none\n700\nd\nf\nlink\np\n",
        0,
    )
    listed = curl(platform, "GET", "/v1/sprites/dev/checkpoints").json()
    assert [(item["id"], item.get("comment")) for item in listed] == [
        ("Current", None),
        ("v1", "good"),
    ]


@needs_curl
def test_the_specification_has_other_words_for_checkpoints(platform: Emulator) -> None:
    platform.personality.checkpoint_words = "openapi"
    platform.add_sprite("dev", status="running")

    def words(path: str) -> list[tuple[str, str]]:
        answer = curl(platform, "POST", f"/v1/sprites/dev/{path}")
        found = [json.loads(line) for line in answer.body.splitlines()]
        return [(event["type"], event["data"]) for event in found]

    assert words("checkpoint") == [
        ("info", "Creating checkpoint..."),
        ("info", "Stopping services..."),
        ("info", "Saving filesystem state..."),
        ("complete", "Checkpoint v1 created"),
    ]
    assert words("checkpoints/v1/restore") == [
        ("info", "Restoring to checkpoint v1..."),
        ("info", "Stopping services..."),
        ("info", "Restoring filesystem..."),
        ("complete", "Restored to v1"),
    ]


@needs_curl
@needs_namespace
def test_the_last_five_checkpoints_can_be_read_inside_but_not_written(platform: Emulator) -> None:
    platform.add_sprite("dev")
    for number in range(7):
        run(platform, "dev", "sh", "-c", f"echo {number} > number")
        curl(platform, "POST", "/v1/sprites/dev/checkpoint")
    assert run(platform, "dev", "sh", "-c", "cd /.sprite/checkpoints; ls; cat v3/number") == (
        b"v3\nv4\nv5\nv6\nv7\n2\n",
        0,
    )
    assert run(platform, "dev", "sh", "-c", "echo x 2>&- > /.sprite/checkpoints/v7/number")[1]
    curl(platform, "POST", "/v1/sprites/dev/checkpoints/v1/restore")
    until(lambda: platform.sprite("dev").status == "cold")
    assert run(platform, "dev", "cat", "number") == (b"0\n", 0)


# sleep


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@needs_curl
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc to look at")
def test_a_quiet_sprite_freezes_and_later_loses_its_processes(platform: Emulator) -> None:
    sprite = platform.add_sprite("dev")
    run(platform, "dev", "sh", "-c", "sleep 1000 >/dev/null 2>&1 &")
    [sleeper] = sprite.machine.processes()
    platform.clock.advance(29)
    assert sprite.status == "running"
    platform.clock.advance(2)
    assert sprite.status == "warm"
    until(lambda: state(sleeper) == "T")
    wake(platform, "dev")
    assert sprite.status == "running"
    until(lambda: state(sleeper) == "S")
    platform.clock.advance(31)
    platform.clock.advance(600)
    assert (sprite.status, sprite.machine.processes()) == ("cold", set())


@needs_curl
@pytest.mark.parametrize(("idle_from", "status"), [("quiet", "warm"), ("detached", "running")])
def test_a_quiet_session_holds_a_sprite_awake_or_not(
    platform: Emulator, idle_from: str, status: str
) -> None:
    platform.personality.idle_from = idle_from
    sprite = platform.add_sprite("dev", status="running")
    path = "/v1/sprites/dev/exec?cmd=sleep&cmd=1000&max_run_after_disconnect=1h"
    with raw(platform, "GET", path, *UPGRADE) as connection:
        connection.recv(12)
        until(lambda: sprite.sessions and [s for s in sprite.sessions.values() if s.clients])
        platform.clock.advance(31)
        assert sprite.status == status
    until(lambda: not any(session.clients for session in sprite.sessions.values()))
    platform.clock.advance(31)
    assert sprite.status == "warm"


def test_the_idle_window_of_all_tests_is_set_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Emulator().idle_s == float(os.environ.get("EMULATOR_IDLE_S", "30"))
    monkeypatch.setenv("EMULATOR_IDLE_S", "1.5")
    short = Emulator()
    assert (short.idle_s, short.personality.idle_from) == (1.5, "detached")
    assert Emulator(idle_s=7).idle_s == 7


INNER = ["curl", "-sS", "-w", "%{http_code}", "--unix-socket"]


@needs_curl
def test_the_tasks_of_the_inner_socket_hold_a_sprite_awake(platform: Emulator) -> None:
    sprite = platform.add_sprite("dev")
    wake(platform, "dev")
    inside = "/.sprite" if namespace_kind() else str(sprite.machine.run)

    def ask(method: str, path: str, body: str = "") -> tuple[Any, int]:
        words = [*INNER, f"{inside}/api.sock", "-X", method, "-d", body, f"http://sprite{path}"]
        output, status = run(platform, "dev", *words)
        assert status == 0
        document, code = output[:-3], int(output[-3:])
        return (json.loads(document) if document.startswith(b"{") else document), code

    assert ask("GET", "/v1/tasks") == ({"tasks": []}, 200)
    assert ask("PUT", "/v1/tasks/build", '{"expire": "5m"}')[1] == 200
    assert ask("POST", "/v1/tasks", '{"name": "build", "expire": 60}')[1] == 409
    assert ask("POST", "/v1/tasks", '{"name": "other", "expire": 60}')[1] == 201
    for bad in ("2h", "soon", 0, -5, True, None):
        assert ask("PUT", "/v1/tasks/x", json.dumps({"expire": bad}))[1] == 400, bad
    assert [task["name"] for task in ask("GET", "/v1/tasks")[0]["tasks"]] == ["build", "other"]
    assert ask("DELETE", "/v1/tasks/other")[1] == 204
    assert ask("DELETE", "/v1/tasks/other")[1] == 404
    assert ask("GET", "/v1/tasks/other")[1] == 404
    assert ask("GET", "/info")[0]["sprite_name"] == "dev"
    assert ask("POST", "/v1/checkpoints")[1] == 405
    assert ask("POST", "/v1/exec")[1] == 404
    for _ in range(4):
        platform.clock.advance(60)
        assert sprite.status == "running"
    platform.clock.advance(70)  # the task has expired
    platform.clock.advance(31)
    assert sprite.status == "warm"
    wake(platform, "dev")
    assert ask("GET", "/v1/tasks") == ({"tasks": []}, 200)


# over WebSocket


def open_socket(emulator: Emulator, path: str, *query: tuple[str, str]) -> Any:
    """Return the `websockets` package's client on a route, to be entered."""
    client = pytest.importorskip("websockets.sync.client")
    return client.connect(
        f"{emulator.url.replace('http', 'ws', 1)}{path}?{urlencode(query)}",
        additional_headers={"Authorization": f"Bearer {emulator.token}"},
        max_size=None,
        proxy=None,
        close_timeout=0,
    )


def open_exec(emulator: Emulator, argv: list[str], **query: str) -> Any:
    wake(emulator, "dev")
    words = [("cmd", word) for word in argv]
    return open_socket(emulator, "/v1/sprites/dev/exec", *words, *query.items())


def read_until_exit(connection: Any) -> tuple[dict[int, bytes], bytes]:
    """Return the bytes of each stream, and the exit frame."""
    streams = {1: b"", 2: b""}
    while True:
        message = connection.recv(timeout=20)
        if isinstance(message, bytes) and message[0] in streams:
            streams[message[0]] += message[1:]
        elif isinstance(message, bytes) or json.loads(message)["type"] == "exit":
            return streams, message if isinstance(message, bytes) else message.encode()


def test_a_command_over_the_websocket_has_its_streams_apart(platform: Emulator) -> None:
    platform.add_sprite("dev")
    script = "cat; echo oops >&2; exit 3"
    with open_exec(platform, ["sh", "-c", script], stdin="true") as connection:
        connection.send([b"\0", b"fragmented ", b"input"])
        connection.send(b"\4")
        assert read_until_exit(connection) == ({1: b"fragmented input", 2: b"oops\n"}, b"\3\3")
    assert platform.journal.oddities == []


@pytest.mark.parametrize(
    ("form", "frame"),
    [("byte", b"\3\x07"), ("be32", b"\3\0\0\0\x07"), ("json", b'{"type": "exit", "exit_code": 7}')],
)
def test_the_exit_status_comes_in_each_known_form(
    platform: Emulator, form: str, frame: bytes
) -> None:
    platform.personality.exit_form = form
    platform.add_sprite("dev")
    with open_exec(platform, ["sh", "-c", "exit 7"]) as connection:
        assert read_until_exit(connection)[1] == frame


def test_output_before_the_attachment_is_kept_up_to_16_kib(platform: Emulator) -> None:
    platform.personality.attach_delay_s = 1.0
    platform.add_sprite("dev")
    script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done"
    with open_exec(platform, ["sh", "-c", script]) as connection:
        output = read_until_exit(connection)[0][1]
    assert len(output) == 16384
    assert output.endswith(b"line 4999\n")


def test_the_socket_stays_open_after_the_exit(platform: Emulator) -> None:
    platform.personality.hold_after_exit_s = 0.5
    platform.add_sprite("dev")
    with open_exec(platform, ["true"]) as connection:
        read_until_exit(connection)
        with pytest.raises(TimeoutError):
            connection.recv(timeout=0.1)
        with pytest.raises(Exception, match="1000"):
            connection.recv(timeout=10)


@pytest.mark.parametrize(("told", "kind"), [(None, str), ("str", str), ("int", int)])
def test_a_session_tells_its_id_as_a_text_or_as_a_number(
    platform: Emulator, told: str | None, kind: type
) -> None:
    if told:
        platform.personality.session_info_id_type = told
        platform.personality.session_id_type = told
    platform.add_sprite("dev")
    with open_exec(platform, ["cat"], stdin="true") as connection:
        identity = json.loads(connection.recv(timeout=20))["session_id"]
        [listed] = curl(platform, "GET", "/v1/sprites/dev/exec").json()["sessions"]
    assert type(identity) is kind
    assert type(listed["id"]) is (kind if told else int)
    assert str(listed["id"]) == str(identity)


def test_a_terminal_takes_its_size_and_its_input(platform: Emulator) -> None:
    platform.add_sprite("dev")
    script = "stty size; read line; stty size; echo got $line; exit 4"
    with open_exec(platform, ["sh", "-c", script], tty="true", cols="91", rows="17") as connection:
        seen = b""

        def read_to(text: bytes) -> None:
            nonlocal seen
            while text not in seen:
                message = connection.recv(timeout=20)
                seen += message if isinstance(message, bytes) else b""

        read_to(b"17 91\r\n")
        connection.send('{"type": "resize", "cols": 120, "rows": 40}')
        connection.send(b"words\r")
        read_to(b"40 120\r\ngot words\r\n")
        assert json.loads(connection.recv(timeout=20)) == {"type": "exit", "exit_code": 4}


def test_a_terminal_can_be_left_and_found_again(platform: Emulator) -> None:
    platform.add_sprite("dev")
    with open_exec(platform, ["sh", "-c", "echo first; read x; echo $x"], tty="true") as first:
        info = json.loads(first.recv(timeout=20))
        while b"first" not in first.recv(timeout=20):
            pass
    path = f"/v1/sprites/dev/exec/{info['session_id']}"
    with open_socket(platform, path) as second:
        assert json.loads(second.recv(timeout=20))["session_id"] == info["session_id"]
        assert b"first" in second.recv(timeout=20)
        second.send(b"again\r")
        seen = b""
        while seen.count(b"again") < 2:  # its echo, and what the command prints
            seen += second.recv(timeout=20)


@needs_curl
@pytest.mark.parametrize("shape", ["object", "array"])
@pytest.mark.parametrize("scope", ["group", "leader"])
def test_sessions_are_listed_and_killed(platform: Emulator, shape: str, scope: str) -> None:
    platform.personality.sessions_shape = shape
    platform.personality.kill_scope = scope
    sprite = platform.add_sprite("dev")
    script = "trap 'exit 9' TERM; sleep 1000 & echo ready; wait"
    with open_exec(platform, ["bash", "-c", script]) as connection:
        while connection.recv(timeout=20) != b"\1ready\n":
            pass
        listed = curl(platform, "GET", "/v1/sprites/dev/exec").json()
        [session] = listed if shape == "array" else listed["sessions"]
        killing = f"/v1/sprites/dev/exec/{session['id']}/kill"
        killed = curl(platform, "POST", killing + "?signal=SIGTERM&timeout=1s")
        events = [json.loads(line)["type"] for line in killed.body.splitlines()]
        # the leader's child holds the output open, so a session is over when both are gone
        assert events[0] == "signal"
        assert events[-1] == ("complete")
        assert len(sprite.machine.processes()) == (0 if scope == "group" else 1)
        assert curl(platform, "POST", killing.replace(str(session["id"]), "1")).status == 404
    sprite.machine.signal_all(signal.SIGKILL)


@needs_curl
def test_a_pause_drops_the_connections_and_a_restore_ends_the_commands(platform: Emulator) -> None:
    sprite = platform.add_sprite("dev")
    for cut in ("pause", "restore"):
        with open_exec(platform, ["sh", "-c", "echo ready; sleep 1000"]) as connection:
            while connection.recv(timeout=20) != b"\1ready\n":
                pass
            if cut == "pause":
                platform.clock.advance(31)  # a quiet command holds nothing awake
                assert sprite.status == "warm"
            else:
                curl(platform, "POST", "/v1/sprites/dev/checkpoint")
                curl(platform, "POST", "/v1/sprites/dev/checkpoints/v1/restore")
            with pytest.raises(Exception, match="no close frame"):
                connection.recv(timeout=20)
    until(lambda: not sprite.machine.processes())


def test_a_port_is_reached_and_holds_the_sprite_awake(platform: Emulator) -> None:
    sprite = platform.add_sprite("dev", status="running")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with open_socket(platform, "/v1/sprites/dev/proxy") as connection:
            connection.send(json.dumps({"host": "", "port": port}))
            assert json.loads(connection.recv(timeout=20))["status"] == "connected"
            peer, _ = server.accept()
            with peer:
                connection.send(b"to the port")
                assert peer.recv(100) == b"to the port"
                peer.sendall(b"and back")
                assert connection.recv(timeout=20) == b"and back"
                platform.clock.advance(100)
                assert sprite.status == "running"
        until(lambda: not sprite.open_proxies)
        platform.clock.advance(31)
        assert sprite.status == "warm"


@pytest.mark.parametrize(("asked", "code"), [("{}", "1003"), ('{"port": 1}', "1011")])
def test_a_port_that_cannot_be_had(platform: Emulator, asked: str, code: str) -> None:
    platform.add_sprite("dev", status="running")
    with open_socket(platform, "/v1/sprites/dev/proxy") as connection:
        connection.send(asked)
        with pytest.raises(Exception, match=code):
            connection.recv(timeout=20)


# what it keeps


@needs_curl
def test_it_keeps_the_beginning_of_what_passes_and_counts_the_rest(
    platform: Emulator, tmp_path: Path
) -> None:
    platform.add_sprite("dev", status="running")
    (tmp_path / "body").write_bytes(b"x" * 3_000_000)
    path = "/v1/sprites/dev/exec?cmd=wc&cmd=-c&stdin=true"
    answer = curl(platform, "POST", path, "--data-binary", f"@{tmp_path}/body")
    assert b"3000000" in answer.body
    [posted] = platform.journal.requests("POST")
    assert (posted.body, posted.body_size) == (b"x" * 65536, 3_000_000)
    platform.journal.clear()
    with open_exec(platform, ["cat"], stdin="true") as connection:
        for _ in range(30):
            connection.send(b"\0" + b"y" * 100_000)
        connection.send(b"\4")
        streams, _ = read_until_exit(connection)
    assert streams[1] == b"y" * 3_000_000
    [request] = platform.journal.requests("WS")
    assert (request.received_size, request.stdin) == (30 * 100_001 + 1, b"y" * 65535)
    assert request.sent_size > 3_000_000
    assert sum(len(data) for _, data in request.sent) == 65536


def test_a_test_can_have_more_of_it_kept(platform: Emulator) -> None:
    platform.journal.kept_bytes = 1 << 20
    platform.add_sprite("dev")
    with open_exec(platform, ["wc", "-c"], stdin="true") as connection:
        connection.send(b"\0" + b"y" * 300_000)
        connection.send(b"\4")
        assert read_until_exit(connection)[0][1] == b"300000\n"
    [request] = platform.journal.requests("WS")
    assert request.stdin == b"y" * 300_000


# its command line


def run_emulator(*args: str, python: str = sys.executable, **options: Any) -> Any:
    words = [python, str(ROOT / "tests" / "emulator.py"), *args]
    return subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, **options
    )


@needs_curl
def test_s4_each_emulator_has_a_token_that_nobody_else_knows() -> None:
    """Whoever has it runs commands as whoever started the emulator."""
    known = "acme/1290577/tok-7f3a/9c1b-secret-5de2"  # once the same for all
    with Emulator() as one, Emulator() as two:
        for emulator, token in ((one, two.token), (two, one.token), (one, known)):
            for method, path in (("GET", "/v1/sprites"), ("POST", "/v1/sprites/dev/exec?cmd=id")):
                assert curl(emulator, method, path, token=token).status == 401
        assert curl(one, "GET", "/v1/sprites").status == 200
        assert not one.journal.executed
    script = 'echo "$SPRITE_TOKEN"; ps -o args= -p $PPID; thopters list'
    told = [run_emulator("--", "sh", "-c", script) for _ in range(2)]
    tokens = [done.stdout.split("\n")[0] for done in told]
    assert tokens[0] != tokens[1] and min(map(len, tokens)) > 40
    for done, token in zip(told, tokens, strict=True):
        assert done.returncode == 0 and "there are no sprites" in done.stderr, done
        assert (done.stdout + done.stderr).count(token) == 1


def test_the_demonstration_plays_the_whole_life(tmp_path: Path) -> None:
    done = run_emulator("--demo", env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "$ thopters exec dev -- cat notes.txt\nprecious work\n" in done.stdout
    assert done.stdout.count("destroyed dev\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_one_command_runs_in_that_environment(tmp_path: Path) -> None:
    script = "thopters create dev --no-init >&2 && thopters exec dev -- sh -c 'exit 42'"
    done = run_emulator("--", "sh", "-c", script, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 42, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_what_runs_in_a_sprite_there(tmp_path: Path) -> None:
    """What the emulator would ignore, all that it starts would."""
    script = "thopters create dev --no-init >&2; thopters exec dev -- sh -c 'kill -INT $$'"
    done = run_emulator("--", "sh", "-c", script, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 130, done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_nothing_stays_when_it_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    mark = os.urandom(16).hex()
    script = (
        "thopters create dev --no-init; "
        f"thopters exec dev --detach -- sh -c 'sleep 982; : {mark}'; echo up; exec sleep 983"
    )
    (folder := tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "emulator.py"), "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    with process:
        assert process.stdout
        while process.stdout.readline() != b"up\n":
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert list(folder.iterdir()) == []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError):
            assert mark.encode() not in Path(f"/proc/{entry}/cmdline").read_bytes()


@pytest.mark.parametrize("words", [["--"], ["--what"], ["--demo", "x"], ["ls"]])
def test_wrong_words_get_the_usage(words: list[str]) -> None:
    done = run_emulator(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "python3 tests/emulator.py --demo" in done.stderr


def test_it_works_without_mount_namespaces(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/usr/local/bin", "/usr/bin", "/bin"):
        for entry in sorted(Path(folder).glob("*")):
            link = programs / entry.name
            if entry.name not in ("unshare", "nsenter") and not link.is_symlink():
                link.symlink_to(entry)
    done = run_emulator("--demo", env={**os.environ, "PATH": str(programs)})
    assert done.returncode == 0, done.stderr
    assert "precious work\n" in done.stdout


ORDINARY = ["setpriv", "--reuid=52001", "--regid=52001", "--clear-groups", "env"]


def python_for_all() -> str | None:
    """Return an interpreter that another user can run."""
    for python in (sys.executable, "/usr/bin/python3"):
        probe = [*ORDINARY, python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if subprocess.run(probe, capture_output=True, cwd="/").returncode == 0:
            return python
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test has run it so already")
def test_it_works_for_an_ordinary_user() -> None:
    python = python_for_all() if shutil.which("setpriv") else None
    if python is None:
        pytest.skip("no interpreter that another user can run")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "tests", f"{folder}/tests", ignore=shutil.ignore_patterns("__*__"))
        shutil.copy(ROOT / "thopters.py", folder)
        subprocess.run(["chown", "-R", "52001", folder], check=True)
        done = subprocess.run(
            [*ORDINARY, python, f"{folder}/tests/emulator.py", "--demo"],
            env={"PATH": os.environ["PATH"], "HOME": "/", "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert "precious work\n" in done.stdout
