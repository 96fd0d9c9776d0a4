"""R28 and R29: lists of many pages, and bodies that are not what they should be.

And how our requests look beside those that curl sends for the same calls.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from emulation.journal import Request
from emulation.wire import Wire
from support.program import Thopters
from support.runs import MEASURE, run_here, shorten
from support.servers import Canned, response
from support.units import FakeClock
from support.waiting import until

import thopters as program

TOKEN = "acme/1/tok/ottoman-sapphire"


def errors_in(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("thopters: error: ")]


# R28: lists of many pages


@pytest.mark.parametrize("most", [620, pytest.param(1600, marks=pytest.mark.slow)])
def test_r28_a_list_is_whole_and_sorted(thopters: Thopters, emulator: Emulator, most: int) -> None:
    names = [f"s{number * 7919 % most:04}" for number in range(most)]
    made = iter(names)
    for count, requests in ((0, 1), (1, 1), (500, 1), (501, 2), (most, -(-most // 500))):
        for name in itertools.islice(made, count - len(emulator.sprites)):
            emulator.add_sprite(name)
        emulator.journal.clear()
        done = thopters("list")
        assert done.code == 0, done
        found = [line.split("\t")[0] for line in done.out.splitlines()]
        assert found == sorted(names[:count])
        assert [request.method for request in emulator.journal] == ["GET"] * requests
        assert all(request.values("max_results") == ["500"] for request in emulator.journal)
        document = json.loads(thopters("list", "--json").out)
        assert [item["name"] for item in document["sprites"]] == sorted(names[:count])
        assert document["counts"]["cold"]["count"] == count
    assert not emulator.journal.oddities


def page(names: list[str], token: object, **more: object) -> bytes:
    sprites = [{"name": name, "status": "cold"} for name in names]
    document = {"sprites": sprites, "has_more": True, "next_continuation_token": token}
    return response(json.dumps(document | more).encode())


def numbered(number: int) -> bytes:
    return page([f"s{number}"], f"t{number}")


ENDLESS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "new tokens for ever": (numbered, 1000),
    "one token": (lambda number: page([f"s{number}"], "same"), 2),
    "a circle": (lambda number: page([f"s{number}"], f"t{number % 3}"), 4),
    "no token": (lambda number: page(["a"], None), 1),
    "an empty token": (lambda number: page(["a"], ""), 1),
    "a token of another type": (lambda number: page(["a"], 7), 1),
    "no token on the second page": (lambda number: page(["a"], None if number else "t"), 2),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_r28_a_list_that_does_not_end_is_an_error(thopters: Thopters, kind: str) -> None:
    make, requests = ENDLESS[kind]
    numbers = itertools.count()
    with Canned(lambda _, wire: wire.write(make(next(numbers)))) as server:
        done = thopters("list", env={"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN})
    assert (done.code, done.out) == (1, ""), done
    assert len(errors_in(done.err)) == 1 and "does not end" in done.err
    assert len(server.requests) == requests


def test_r28_what_comes_twice_is_shown_once(thopters: Thopters) -> None:
    """A list can move between two pages; the later page knows better."""
    pages = [
        page(["b", "a", "b"], "1"),
        page(["b", "c"], "2"),
        page(["a", "d", "b"], None, has_more=False).replace(b'"cold"', b'"warm"'),
    ]
    with Canned(lambda _, wire: wire.write(pages[len(server.requests) - 1])) as server:
        env = {"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN}
        done = thopters("list", "--json", env=env)
    assert done.code == 0, done
    shown = [(item["name"], item["status"]) for item in json.loads(done.out)["sprites"]]
    assert shown == [("a", "warm"), ("b", "warm"), ("c", "cold"), ("d", "warm")]
    tokens = [request.values("continuation_token") for request in server.requests]
    assert tokens == [[], ["1"], ["2"]]


UNREADABLE: dict[str, object] = {
    "no object": "words",
    "an object without the list": {},
    "an error": {"error": "nope"},
    "another object": {"status": "ok"},
    "a list under another name": {"items": []},
    "no list": {"{}": {}},
    "false for a list": {"{}": False},
    "texts": {"{}": ["dev", "main"]},
    "lists": {"{}": [["dev"]]},
    "one that is null": {"{}": [{"name": "dev", "id": "v1"}, None]},
    "one without a name": {"{}": [{"name": "dev", "id": "v1"}, {"status": "cold"}]},
    "one with an empty name": {"{}": [{"name": "", "id": ""}]},
    "one with a name of another type": {"{}": [{"name": ["x"], "id": ["x"]}]},
}


def with_key(document: object, key: str) -> bytes:
    return response(json.dumps(document).replace('"{}"', json.dumps(key)).encode())


@pytest.mark.parametrize("name", UNREADABLE)
def test_r28_a_list_that_is_not_understood_is_no_empty_one(thopters: Thopters, name: str) -> None:
    for words, key in ((["list"], "sprites"), (["kill", "dev", "1847.t4z2ab"], "sessions")):
        with Canned(partial(give, with_key(UNREADABLE[name], key))) as server:
            done = thopters(*words, env={"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN})
        assert (done.code, done.out) == (1, ""), done
        assert re.search(f"the API's list of {key}( of dev)? h", done.err), done
        check_one_line(name, done.err)


@pytest.mark.parametrize("items", [["v1"], [{"comment": "x"}], [{"id": "v1"}, None], [{"id": 7}]])
def test_r28_checkpoints_that_are_not_understood_are_not_left_out(
    thopters: Thopters, items: list[object]
) -> None:
    for words in (["checkpoints", "dev"], ["restore", "dev", "v9", "--yes"]):
        with Canned(partial(give, response(json.dumps(items).encode()))) as server:
            done = thopters(*words, env={"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN})
        assert (done.code, done.out, server.methods()) == (1, "", ["GET"]), done
        assert "the API's list of checkpoints of dev holds something without id" in done.err


@pytest.mark.parametrize(
    "body",
    [{"sprites": None, "sessions": None}, {"sprites": [], "sessions": [], "count": 0}],
    ids=["null", "empty"],
)
def test_r28_an_empty_list_may_be_null(
    thopters: Thopters, emulator: Emulator, body: object
) -> None:
    emulator.add_sprite("dev", status="running")
    emulator.fault(Fault("GET *", "status", status=200, body=json.dumps(body).encode(), times=None))
    listed, sessions = thopters("list"), thopters("sessions", "dev")
    assert (listed.code, sessions.code) == (0, 0)
    assert "there are no sprites" in listed.err
    assert "no command runs in dev" in sessions.err


def test_r28_what_is_no_text_is_asked_for_and_shown_all_the_same(thopters: Thopters) -> None:
    """JSON can hold half of a pair of UTF-16, which no text can."""
    pages = [page(["\ud800x"], "\ud800t"), page(["a"], None, has_more=False)]
    pages = [data.replace(b'"status"', b'"others"') for data in pages]

    def answer(request: Request, wire: Wire) -> None:
        named = b'{"name": "a", "status": "cold"}'
        if request.target.startswith("/v1/sprites?"):
            wire.write(pages[len(server.requests) - 1])
        else:
            wire.write(response(named) if request.target == "/v1/sprites/a" else GONE)

    with Canned(answer) as server:
        done = thopters("list", env={"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN})
    assert (done.code, done.out.split()) == (
        0,
        ["a", "hibernating", "-", "\\ud800x", "unknown", "-"],
    )
    targets = [request.target.partition("?")[0] for request in server.requests]
    assert targets == ["/v1/sprites"] * 2 + ["/v1/sprites/a", "/v1/sprites/%ED%A0%80x"]
    assert server.requests[1].target.endswith("&continuation_token=%ED%A0%80t")


# R29: bodies

GONE = response(b'{"error": "not_found"}', 404)
PORTAL = b"<html><body>Please log in to the network \x1b[2J</body></html>"
FINE = b'{"sprites": [], "has_more": false}'
DEEP = b'{"sprites": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
GZIP = response(gzip.compress(FINE), 200, "Content-Encoding: gzip")
BODIES = {
    "portal": response(PORTAL, kind="text/html; charset=utf-8"),
    "portal that says it is JSON": response(PORTAL),
    "portal with its own status": response(PORTAL, 511, kind="text/html"),
    "gzip": GZIP,
    "gzip that is not declared": response(gzip.compress(FINE)),
    "gzip of an error": response(gzip.compress(b"{}"), 400, "Content-Encoding: gzip"),
    "latin-1": response('{"sprites": [{"name": "café"}]}'.encode("latin-1")),
    "NaN": response(b'{"sprites": [], "running": NaN}'),
    "infinity": response(b'{"sprites": [], "running": -Infinity}'),
    "200,000 deep": response(DEEP),
    "200,000 deep and cut": response(b"[" * 200_000),
    "200,000 deep error": response(DEEP, 400),
    "5,000 digits": response(b'{"sprites": [], "running": ' + b"7" * 5000 + b"}"),
    "5,000 digits in an error": response(b'{"message": ' + b"7" * 5000 + b"}", 400),
    "nothing": response(b""),
    "trailing words": response(FINE + b"x"),
    "half": response(FINE[:20]),
    "no object and no list": response(b'"words"'),
}


def endless(head: bytes, block: bytes, _: Request, wire: Wire) -> None:
    """Send `block` over and over, 2 GB at most, until the reader has had enough."""
    wire.write(head)
    for _number in range((2 << 30) // len(block)):
        wire.write(block)


def lengthy(status: int, *headers: str) -> bytes:
    return response(b"", status, *headers)


CHUNK = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
ENDLESS_HEAD = lengthy(500, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
HUGE: dict[str, Callable[[Request, Wire], None]] = {
    "99 GB": partial(endless, lengthy(200, "Content-Length: 99000000000"), b" " * (1 << 20)),
    "99 GB that do not come": lambda _, wire: wire.write(
        lengthy(200, "Content-Length: 99000000000") + FINE
    ),
    "2 GB of an error": partial(endless, lengthy(500, "Content-Length: 2147483648"), CHUNK),
    "2 GB of an error in chunks": partial(endless, ENDLESS_HEAD, CHUNK),
}


def give(data: bytes, _: Request, wire: Wire) -> None:
    wire.write(data)


SCHEDULE: dict[str, Callable[[Request, Wire], None]] = {
    **{name: partial(give, data) for name, data in BODIES.items()},
    **HUGE,
}


def measured(
    thopters: Thopters, answers: dict[str, Callable[[Request, Wire], None]], words: list[str]
) -> Iterator[tuple[str, int, str, str, int, float]]:
    """Run the program against all of the answers at once; yield how each run ended."""
    servers, running = {}, {}
    argv = thopters.argv
    try:
        for name, answer in answers.items():
            servers[name] = Canned(answer)
            thopters.env |= {"SPRITES_API_URL": servers[name].url, "SPRITE_TOKEN": TOKEN}
            thopters.argv = [sys.executable, "-S", "-c", MEASURE, *argv]
            running[name] = thopters.start(*words)
        for name, process in running.items():
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0, err
            code, *texts, peak, took = json.loads(out)
            yield name, code, texts[0], texts[1], peak, took
    finally:
        thopters.argv = argv
        for server in servers.values():
            server.__exit__()


def check_one_line(name: str, err: str) -> None:
    """Assert one error and at most a hint, both short, and nothing that a terminal obeys."""
    lines = err.splitlines()
    assert len(errors_in(err)) == 1 and lines[0].startswith("thopters: error: "), (name, err)
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), (name, err)
    assert max(map(len, lines)) <= 500, (name, err)
    assert err.replace("\n", "").isprintable(), (name, err)
    assert "internal error" not in err and "Traceback" not in err, (name, err)


@pytest.mark.parametrize("again", [True, False], ids=["tried four times", "tried once"])
def test_r29_no_body_takes_long_or_much_or_more_than_a_line(
    thopters: Thopters, again: bool
) -> None:
    repeated = {"gzip", "gzip of an error", *HUGE}  # these are no whole answers
    answers = {name: SCHEDULE[name] for name in SCHEDULE if (name in repeated) == again}
    runs = 0
    for name, code, out, err, peak, took in measured(thopters, answers, ["list"]):
        assert (code, out) == (1, ""), (name, err)
        check_one_line(name, err)
        assert peak <= 64 << 20, (name, peak)
        assert took <= 3 * 5.0, (name, took)
        runs += 1
    assert runs == (len(repeated) if again else len(BODIES) - 2)


def test_r29_the_measure_sees_what_is_large(tmp_path: Path) -> None:
    argv = [sys.executable, "-S", "-c", MEASURE, sys.executable, "-c", "x = b'1' * (100 << 20)"]
    done = subprocess.run(argv, capture_output=True, check=True, timeout=60)
    assert 100 << 20 <= json.loads(done.stdout)[3] <= 200 << 20


ASKING = {
    "list": ["list"],
    "info": ["info", "dev"],
    "url": ["url", "dev"],
    "change": ["url", "dev", "--public"],
    "create": ["create", "dev", "--no-init"],
    "init": ["init", "dev"],
    "pause": ["pause", "dev"],
    "resume": ["resume", "dev"],
    "exec": ["exec", "dev", "--", "true"],
    "checkpoint": ["checkpoint", "dev"],
    "checkpoints": ["checkpoints", "dev"],
    "restore": ["restore", "dev", "v1", "--yes"],
    "destroy": ["destroy", "dev", "--yes"],
}


@pytest.mark.parametrize("name", BODIES)
def test_r29_every_command_meets_every_body(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """In one process, with a clock that only sleeping moves."""
    monkeypatch.setattr(program, "Clock", FakeClock)
    for command, words in ASKING.items():
        with Canned(partial(give, BODIES[name])) as server:
            environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "NO_COLOR": "1"}
            environ |= {"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN}
            done = run_here(words, environ)
            assert done.code == (255 if command == "exec" else 1), (command, done)
            errors = [line for line in done.err.splitlines() if "error: " in line]
            assert len(errors) == 1 and "internal error" not in errors[0], (command, done)
            assert done.out == "" and max(map(len, done.err.splitlines())) <= 500
            assert done.err.replace("\n", "").isprintable(), done
            assert 1 <= len(server.requests) < 70


def test_r29_a_body_after_creation_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What says 201 in words that are none is looked for, and asked for once more at most."""
    monkeypatch.setattr(program, "Clock", FakeClock)
    for name, data in BODIES.items():
        made = data.replace(b"HTTP/1.1 200 ", b"HTTP/1.1 201 ")

        def answer(request: Request, wire: Wire, made: bytes = made) -> None:
            wire.write(made if request.method == "POST" else GONE)

        with Canned(answer) as server:
            environ = {"HOME": str(tmp_path), "SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN}
            done = run_here(["create", "dev", "--no-init"], environ)
        assert (done.code, done.out) == (1, ""), (name, done)
        assert len(errors_in(done.err)) == 1, (name, done)
        assert 1 <= server.methods().count("POST") <= 2, (name, server.methods())


@pytest.mark.parametrize("auth", ["public", "sprite"])
def test_r29_a_change_is_seen_by_a_get_whatever_its_own_answer_is(
    thopters: Thopters, auth: str
) -> None:
    settings = {"auth": "sprite"}
    sprite = {"name": "dev", "url": "https://dev.example", "url_settings": settings}

    def answer(request: Request, wire: Wire) -> None:
        if request.method == "PUT":
            settings["auth"] = auth
            wire.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            wire.write(response(json.dumps(sprite).encode()))

    with Canned(answer) as server:
        env = {"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN}
        done = thopters("url", "dev", "--public", env=env)
    assert server.methods()[-2:] == ["PUT", "GET"]
    if auth == "public":
        assert (done.code, done.out) == (0, "https://dev.example\n"), done
    else:
        assert (done.code, done.out) == (1, ""), done
        assert "the API accepted the change, but the URL of dev is still sprite" in done.err


# beside curl

LINE = re.compile(rb"(GET|POST|PUT|DELETE) (/[!-~]*) HTTP/1\.1")
CHANGES = {
    # words, how many GETs are answered, and what is said
    "url": (["url", "dev", "--public"], 1, "the API accepted the change of the URL of dev, but "),
    "destroy": (["destroy", "dev", "--yes"], 1, "the API said that it deletes dev, but "),
    "checkpoint": (["checkpoint", "dev"], 0, "the checkpoint of dev was made, but "),
    "restore": (
        ["restore", "dev", "v1", "--yes"],
        2,
        "checkpoint v2 of the present was made, but ",
    ),
    "create": (["create", "new", "--no-init"], 1, "new may have been created ("),
}


def error_of(out: bytes) -> dict[str, str]:
    """Return the error in an answer, of several names that of the first."""
    answer = json.loads(out)
    error: dict[str, str] = answer["error"] if "error" in answer else answer["errors"][0]
    return error


@pytest.mark.parametrize("change", CHANGES)
def test_r28_a_change_before_the_network_went_away_is_told(
    thopters: Thopters, emulator: Emulator, change: str
) -> None:
    """What fails is the look afterwards: that nothing was sent would be false."""
    shorten(thopters, READ_BACK_LIMIT_S=0.5)
    emulator.add_sprite("dev", status="running")
    words, answered, says = CHANGES[change]
    untold = json.dumps({"type": "complete", "data": "done"}).encode()
    told = {"status": 200, "body": untold, "content_type": "application/x-ndjson"}
    if change == "checkpoint":
        emulator.fault(Fault("POST */checkpoint", "done_but", **told))  # type: ignore[arg-type]
    emulator.sprite("dev").add_checkpoint("first")
    emulator.fault(Fault("WS *", "hang"))
    emulator.fault(Fault("POST /v1/sprites", "done_but", status=None))
    emulator.fault(Fault("GET *", "hang", after=answered))
    process = thopters.start(*words, "--json")
    until(lambda: len(emulator.journal) > answered + 1, limit_s=60)
    emulator.stop()
    out, _ = process.communicate(timeout=60)
    error = error_of(out)
    assert (process.returncode, error["code"]) == (1, "no_answer"), error
    assert error["message"].startswith(says) and "cannot reach 127.0.0.1" in error["message"]


def test_r28_what_a_pause_has_ended_is_told(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    started = thopters("exec", "dev", "--detach", "--", "sleep", "600")
    emulator.journal.clear()
    emulator.fault(Fault("GET /v1/sprites/dev", "hang", after=2))
    process = thopters.start("pause", "dev", "--force", "--json")
    until(lambda: len(emulator.journal.requests("GET", "/v1/sprites/dev")) > 2, limit_s=60)
    emulator.stop()
    out, _ = process.communicate(timeout=60)
    error = error_of(out)
    assert (process.returncode, error["code"]) == (1, "no_answer"), error
    ended = f"session {started.out.strip()} of dev ended, but cannot reach 127.0.0.1: "
    assert error["message"].startswith(ended), error


@pytest.mark.parametrize("words", [["url", "dev"], ["resume", "dev"], ["destroy", "dev", "--yes"]])
def test_r28_a_get_that_misses_a_sprite_once_is_not_believed(
    thopters: Thopters, emulator: Emulator, words: list[str]
) -> None:
    """Seen live: a 404 now and then for a sprite that is there."""
    emulator.add_sprite("dev", status="running")
    fault = emulator.fault(Fault("GET /v1/sprites/dev", "status", status=404))
    assert thopters(*words).code == 0
    assert fault.times == 0
    if "dev" in emulator.sprites:
        emulator.fault(Fault("GET /v1/sprites/dev", "status", status=404, times=None))
        done = thopters(*words)
        assert (done.code, "did you mean" in done.err) == (3, False)
        assert "the API does not find dev now, though it lists it" in done.err


# N8: what answers in the API's place says nothing about a token or a sprite

FOREIGN = {
    "a page": (b"<html>Blocked by policy", "text/html"),
    "a text": (b"404 page not found\n", "text/plain"),  # any server's that is written in Go
    "JSON": (b'{"message": "Forbidden"}', "application/json"),
    "nothing": (b"", "text/plain"),
}
ASK_ALL = (
    ["list"],
    ["info", "dev"],
    ["url", "dev"],
    ["url", "dev", "--public"],
    ["checkpoint", "dev"],
    ["exec", "dev", "--", "true"],
    ["destroy", "dev", "--yes"],
    ["create", "new", "--no-init"],
    ["sessions", "dev"],
    ["logs", "dev"],
    ["wait", "dev"],
)


@pytest.mark.parametrize("kind", FOREIGN)
def test_n8_a_status_that_the_api_did_not_give_blames_nobody(
    emulator: Emulator, tmp_path: Path, kind: str
) -> None:
    body, content_type = FOREIGN[kind]
    emulator.add_sprite("dev", status="running")
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SPRITE_TOKEN": emulator.token}
    environ["SPRITES_API_URL"] = emulator.url
    for words, status in itertools.product(ASK_ALL, (401, 402, 403, 404, 409, 410)):
        if kind == "a text" and words[0] in ("exec", "sessions", "checkpoint", "logs", "wait"):
            continue  # there it may be the VM's own server
        fault = emulator.fault(
            Fault("* *", "status", status=status, body=body, content_type=content_type, times=None)
        )
        done = run_here(words, environ)
        fault.times = 0
        assert done.code == (255 if words[0] in ("exec", "wait") else 1), (words, status, done)
        says = f"something between here and the API answered {status}: "
        assert says in done.err, (words, status, done)
        assert "hint: a login page or a filter of the network may have" in done.err
        for word in ("token", "there is no sprite", "did you mean", "is taken"):
            assert word not in done.err, (words, status, done)
    assert list(emulator.sprites) == ["dev"]


def test_n8_a_sprite_that_a_filter_denies_is_not_taken_for_destroyed(
    thopters: Thopters, emulator: Emulator
) -> None:
    """The first try may have failed before it was carried out; a filter's 404 proves nothing."""
    emulator.add_sprite("dev", status="running")
    page: dict[str, Any] = {"status": 404, "body": b"<html>", "content_type": "text/html"}
    emulator.fault(Fault("DELETE *", "status", status=502))
    emulator.fault(Fault("DELETE *", "status", after=1, times=None, **page))
    done = thopters("destroy", "dev", "--yes")
    assert (done.code, done.out) == (1, "")
    assert "cannot tell whether the API could destroy dev" in done.err


def test_n8_the_words_of_the_vms_own_server_count_inside_a_sprite(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    text: dict[str, Any] = {"content_type": "text/plain; charset=utf-8"}
    body = b"Missing or invalid authentication\n"
    emulator.fault(Fault("* */exec", "status", status=401, body=body, times=None, **text))
    for words, code in (
        (["sessions", "dev"], 4),
        (["exec", "dev", "--", "true"], 255),
        (["logs", "dev"], 4),
        (["wait", "dev"], 255),
    ):
        done = thopters(*words)
        assert done.code == code, done
        assert "the API refused the token from SPRITE_TOKEN" in done.err


@pytest.mark.parametrize("path", ["exec", "checkpoints"])
def test_r28_a_list_may_be_null_itself(thopters: Thopters, emulator: Emulator, path: str) -> None:
    emulator.add_sprite("dev", status="running")
    emulator.fault(Fault(f"GET */{path}", "status", status=200, body=b"null"))
    assert thopters("sessions" if path == "exec" else path, "dev").code == 0


def test_r28_checkpoints_of_one_second_are_in_their_order(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    made = [{"id": f"v{number}", "create_time": "2026-01-02T03:04:05Z"} for number in (9, 11, 10)]
    body = json.dumps(made).encode()
    emulator.fault(Fault("GET */checkpoints", "status", status=200, body=body))
    rows = thopters("checkpoints", "dev").out.splitlines()
    assert [row.split("\t")[0] for row in rows] == ["v11", "v10", "v9"]


@pytest.mark.parametrize(("status", "code"), [(429, 6), (403, 4), (409, 1)])
@pytest.mark.parametrize("words", [["url", "dev", "--public"], ["destroy", "dev", "--yes"]])
def test_r28_a_no_to_the_second_try_is_not_one_to_the_first(
    thopters: Thopters, emulator: Emulator, words: list[str], status: int, code: int
) -> None:
    emulator.add_sprite("dev", status="running")
    body = b'{"error": "no", "message": "no", "retry_after_seconds": 61}'
    for method in ("PUT", "DELETE"):
        # of a DELETE that was done the look before the second try would show it
        kind = "done_but" if method == "PUT" else "status"
        emulator.fault(Fault(f"{method} *", kind, status=502))
        emulator.fault(Fault(f"{method} *", "status", after=1, status=status, body=body))
    done = thopters(*words)
    assert (done.code, done.out) == (code, ""), done
    assert re.search("error: an earlier try to .* dev may have been carried out, but ", done.err)


def test_r28_a_success_of_another_kind_is_no_refusal(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    body = json.dumps({"type": "complete", "data": "Checkpoint v7 created"}).encode()
    emulator.fault(Fault("POST */checkpoint", "status", status=201, body=body))
    done = thopters("checkpoint", "dev")
    assert (done.code, done.out) == (1, "")
    assert "cannot tell whether the API could checkpoint dev: it answered 201" in done.err


NO_THREADS = """\
import os, sys, threading
sys.path.insert(0, sys.argv.pop(1))
allowed, start = int(sys.argv.pop(1)), threading.Thread.start
def start_some(self):
    global allowed
    if not allowed:
        raise RuntimeError("can't start new thread")
    allowed -= 1
    start(self)
threading.Thread.start = start_some
import thopters
thopters.leave(thopters.main())
"""


@pytest.mark.parametrize("command", ["list", "checkpoint", "exec", "cp", "proxy"])
def test_r28_where_no_thread_can_be_started(
    thopters: Thopters, emulator: Emulator, tmp_path: Path, command: str
) -> None:
    """As in a container that may have few processes: no bug of ours, and no outcome is lost."""
    (tmp_path / "file").write_text("x")
    words = {
        "checkpoint": ["checkpoint", "dev"],
        "exec": ["exec", "dev", "--", "true"],
        "cp": ["cp", str(tmp_path / "file"), "dev:file"],
        "proxy": ["proxy", "dev", "-W", "localhost:1"],
    }.get(command, [command])
    sprite = emulator.add_sprite("dev", status="running")
    codes = []
    for allowed in (0, 1, 2, 3, 7):
        program_words = ["-c", NO_THREADS, str(program.__file__).rpartition("/")[0], str(allowed)]
        thopters.argv = [sys.executable, *program_words]
        made = len(sprite.checkpoints)
        done = thopters(*words)
        codes.append(done.code)
        assert "internal error" not in done.err and "Traceback" not in done.err, done
        if done.code and command != "proxy":
            assert "error: no thread can be started" in done.err, done
        if command == "checkpoint":
            assert bool(done.out) == (len(sprite.checkpoints) > made), done
    assert codes[0] and (command == "proxy" or not codes[-1])


@pytest.mark.parametrize("words", [["url", "dev", "--public"], ["destroy", "dev", "--yes"]])
def test_r28_a_request_that_was_lost_is_not_called_unsent(
    thopters: Thopters, emulator: Emulator, words: list[str]
) -> None:
    """The first try may have been carried out, though the others never got away."""
    emulator.add_sprite("dev", status="running")
    for method in ("PUT", "DELETE"):
        emulator.fault(Fault(f"{method} *", "hang"))
    process = thopters.start(*words, "--json")
    until(
        lambda: emulator.journal.requests("PUT") or emulator.journal.requests("DELETE"), limit_s=60
    )
    emulator.stop()
    out, _ = process.communicate(timeout=60)
    error = error_of(out)
    assert (process.returncode, error["code"]) == (1, "no_answer"), error
    assert error["message"].endswith("; an earlier try may have been carried out")


HEADER = re.compile(rb"[A-Z][A-Za-z0-9]*(?:-[A-Z][A-Za-z0-9]*)*: [!-~](?:[ -~]*[!-~])?")
OWN = {"Accept-Encoding", "Connection"}  # what curl does without

CALLS = {
    "list": (["list"], "GET"),
    "create": (["create", "new", "--no-init"], "POST"),
    "change": (["url", "dev", "--public"], "PUT"),
    "checkpoint": (["checkpoint", "dev", "--comment", "wörds"], "POST"),
    "exec": (["exec", "dev", "--", "true"], "WS"),
    "destroy": (["destroy", "dev", "--yes"], "DELETE"),
}


def names_of(request: Request) -> list[str]:
    return list(request.headers.keys())


def test_r28_our_requests_look_like_curls(thopters: Thopters, emulator: Emulator) -> None:
    curl = shutil.which("curl", path="/usr/local/bin:/usr/bin:/bin")
    if curl is None:
        pytest.skip("curl is not installed")
    emulator.personality.hold_after_exit_s = 0.0
    emulator.add_sprite("dev", status="running")
    for call in CALLS:
        compare(thopters, emulator, curl, call)
    assert not emulator.journal.oddities


def compare(thopters: Thopters, emulator: Emulator, curl: str, call: str) -> None:
    """Have curl send the same request, and look at what came of both."""
    words, method = CALLS[call]
    emulator.journal.clear()
    done = thopters(*words)
    assert done.code == 0, done
    ours = emulator.journal.requests(method)[0]
    options = ["-X", method if method != "WS" else "GET"]
    given = {"Authorization", "User-Agent", "Accept", "Content-Type"}
    upgrade = {"Upgrade", "Sec-WebSocket-Version", "Sec-WebSocket-Key", "Connection"}
    if method == "WS":
        given |= upgrade
    for name in names_of(ours):
        if name in given:
            options += ["-H", f"{name}: {ours.headers[name]}"]
    if ours.body:
        options += ["--data-binary", "@-"]
    if call in ("create", "destroy"):  # so that it can be done once more
        emulator.account.remove("new") if call == "create" else emulator.add_sprite("dev")
    emulator.journal.clear()
    if method == "WS":  # curl has nothing to say there
        emulator.fault(Fault("WS */exec", "status", status=404))
    argv = [curl, "-sS", "--http1.1", "--verbose", "--max-time", "30", "--path-as-is", "-g"]
    spoken = subprocess.run(
        [*argv, *options, emulator.url + ours.target],
        input=ours.body,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=60,
    )
    theirs = emulator.journal.requests(method)[0]
    said = [line[2:].rstrip(b"\r") for line in spoken.stderr.split(b"\n") if line[:2] == b"> "]
    assert b"\r\n".join(said) == theirs.head.removesuffix(b"\r\n")  # the journal is true
    lines = ours.head.split(b"\r\n")
    assert lines[-2:] == [b"", b""] and ours.head.count(b"\n") == len(lines) - 1
    found = LINE.fullmatch(lines[0])
    assert found and found[2] == ours.target.encode()
    assert lines[0] == theirs.head.split(b"\r\n")[0]
    assert all(HEADER.fullmatch(line) for line in lines[1:-2]), ours.head
    names = names_of(ours)
    assert len(names) == len({name.lower() for name in names}), names
    assert set(names) - set(names_of(theirs)) <= OWN, names
    assert set(names_of(theirs)) - set(names) <= ({"Accept"} if method == "WS" else set())
    for name in set(names) & set(names_of(theirs)):
        assert ours.headers[name] == theirs.headers[name], name
    assert ours.headers["Host"] == emulator.url.removeprefix("http://")
    assert ours.headers["Accept-Encoding"] == "identity"
    assert ours.headers["User-Agent"] == f"thopters/{program.__version__}"
    assert ours.body == theirs.body


def test_r28_no_request_says_more_than_it_has_to(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    allowed = {
        "Accept", "Accept-Encoding", "Authorization", "Connection", "Content-Length",
        "Content-Type", "Host", "Sec-Websocket-Key", "Sec-Websocket-Version", "Upgrade",
        "User-Agent",
    }  # fmt: skip
    for words, _ in CALLS.values():
        assert thopters(*words).code == 0
    for request in emulator.journal:
        assert {name.title() for name in names_of(request)} <= allowed
        body = ("Content-Length" in request.headers, "Content-Type" in request.headers)
        assert body == ((True, True) if request.method in ("POST", "PUT") else (False, False))
        assert request.headers.get("Connection") == ("Upgrade" if request.method == "WS" else None)
