"""The commands that look and change settings, several sprites at once, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from emulation import Emulator, Fault
from support.configs import write
from support.program import Thopters
from support.relay import Relay

# list


def test_list_is_sorted_and_whole_over_pages(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.page_size = 2
    for name in ("b", "a", "c", "e", "d"):
        emulator.add_sprite(name)
    done = thopters("list")
    assert done.code == 0
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["a", "b", "c", "d", "e"]
    assert len(emulator.journal) == 3
    assert "0 running (plan allows 10), 5 hibernating\n" in done.err
    assert {sprite.status for sprite in emulator.sprites.values()} == {"cold"}


def test_list_states_and_stamps(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("a", status="running", updated_at=0)
    emulator.add_sprite("b", status="warm", updated_at=86400)
    emulator.add_sprite("c", status="cold", updated_at=86400)
    emulator.add_sprite("d", status="exploding", updated_at=86400)
    done = thopters("ls")
    assert done.out == (
        "a\trunning\t1970-01-01T00:00:00Z\n"
        "b\thibernating\t1970-01-02T00:00:00Z\n"
        "c\thibernating\t1970-01-02T00:00:00Z\n"
        "d\texploding\t1970-01-02T00:00:00Z\n"
    )
    assert "b\thibernating (warm)\t" in thopters("ls", "-v").out
    items = json.loads(thopters("list", "--json").out)["sprites"]
    assert [(item["state"], item["status"]) for item in items] == [
        ("running", "running"),
        ("hibernating", "warm"),
        ("hibernating", "cold"),
        ("exploding", "exploding"),
    ]


@pytest.mark.parametrize("shape", ["full", "minimal"])
@pytest.mark.parametrize("org", ["top", "nested", "absent"])
def test_list_in_every_shape(thopters: Thopters, emulator: Emulator, shape: str, org: str) -> None:
    emulator.personality.list_items, emulator.personality.list_org = shape, org
    emulator.personality.unknown_fields = emulator.personality.null_url_settings = True
    emulator.add_sprite("dev", status="running")
    done = thopters("list")
    assert done.out.startswith("dev\trunning\t")
    assert ("1 running (plan allows 10)" in done.err) == (org != "absent")


def test_list_prefix(thopters: Thopters, emulator: Emulator) -> None:
    for name in ("issue-1", "issue-2", "dev"):
        emulator.add_sprite(name)
    assert len(thopters("list", "--prefix", "issue-").out.splitlines()) == 2
    config = thopters.home / "config.json"
    config.write_text('{"defaults": {"prefix": "de"}}')
    env = {"THOPTERS_CONFIG": str(config)}
    assert len(thopters("list", env=env).out.splitlines()) == 1
    assert len(thopters("list", "--prefix", "", env=env).out.splitlines()) == 3


def test_list_of_nothing(thopters: Thopters, emulator: Emulator) -> None:
    done = thopters("list")
    assert (done.code, done.out) == (0, "")
    assert "thopters create NAME" in done.err
    assert json.loads(thopters("list", "--json").out)["sprites"] == []


@pytest.mark.parametrize("token", [b"null", b'"after-a"'])
def test_list_that_does_not_end_is_an_error(
    thopters: Thopters, emulator: Emulator, token: bytes
) -> None:
    body = b'{"sprites": [{"name": "a"}], "has_more": true, "next_continuation_token": %s}' % token
    emulator.fault(Fault("GET /v1/sprites", "status", status=200, body=body, times=None))
    done = thopters("list")
    assert (done.code, done.out) == (1, "")
    assert "does not end" in done.err
    assert len(emulator.journal) <= 2


# connections


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["list"], 1),
        (["create", "new", "--no-init"], 2),
        (["create", "new"], 3),
        (["url", "dev", "--public"], 1),
        (["checkpoint", "dev"], 1),
        (["resume", "dev"], 2),
        (["restore", "dev", "v1", "--yes"], 4),
        (["destroy", "dev", "dev-2", "--yes"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_n3_a_command_opens_few_connections(
    thopters: Thopters, emulator: Emulator, config: Path, words: list[str], most: int
) -> None:
    """One for all requests, and one for each session in the sprite after the first."""
    emulator.personality.page_size = 2
    emulator.personality.restore_delay_s = 0.0
    for name in ("dev", "dev-2", "dev-3"):
        emulator.add_sprite(name, status="cold" if words[0] == "resume" else "running")
    if words[0] == "restore":
        assert thopters("init", "dev").code == 0  # so that it puts the keys in again
    emulator.sprite("dev").add_checkpoint("")
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        done = thopters(*words, env={"SPRITES_API_URL": relay.url})
        assert done.code == 0, done
        assert 1 <= len(relay.connections) <= most


# several, and what is not known


def test_what_is_not_known_to_be_done_is_named(thopters: Thopters, emulator: Emulator) -> None:
    for name in ("a", "b", "c"):
        emulator.add_sprite(name, status="running")
    emulator.fault(Fault("PUT /v1/sprites/a", "done_but", status=None, times=None))
    done = thopters("url", "a", "--public")
    assert (done.code, emulator.sprite("a").url_settings) == (1, {"auth": "public"})
    assert "error: cannot tell whether the API could change the URL of a: the conn" in done.err
    emulator.fault(Fault("POST /v1/sprites/a/checkpoint", "done_but", status=None))
    done = thopters("checkpoint", "a")
    assert (done.code, len(emulator.sprite("a").checkpoints)) == (1, 1)
    assert "error: cannot tell whether the API could checkpoint a: the connection" in done.err
    emulator.fault(Fault("DELETE /v1/sprites/b", "reset", times=None))
    done = thopters("destroy", "a", "b", "c", "--yes", "--json")
    told = json.loads(done.out)
    assert (done.code, told["destroyed"]) == (1, ["a", "c"])
    [error] = told["errors"]
    assert (error["name"], error["code"]) == ("b", "no_answer")
    assert error["message"].startswith("cannot tell whether the API could destroy b: ")


def test_each_failure_of_several_has_its_name(thopters: Thopters, emulator: Emulator) -> None:
    for name in ("a", "b"):
        emulator.add_sprite(name, status="running")
    emulator.fault(Fault("GET /v1/sprites/b", "reset", times=None))
    done = thopters("resume", "a", "b", "nothing", "--json")
    errors = json.loads(done.out)["errors"]
    assert [error["name"] for error in errors] == ["b", "nothing"]
    assert errors[0]["message"].startswith("b")
    done = thopters("resume", "a", "b")
    assert re.search("^thopters: error: b.*", done.err, re.M), done


# url, rename


def test_url(thopters: Thopters, emulator: Emulator) -> None:
    sprite = emulator.add_sprite("dev")
    assert thopters("url", "dev").out == sprite.url + "\n"
    done = thopters("url", "dev", "--public")
    assert (done.code, done.out) == (0, sprite.url + "\n")
    assert "anybody can now open" in done.err
    assert "thopters url dev --private" in done.err
    assert sprite.url_settings == {"auth": "public"}
    assert json.loads(thopters("url", "dev", "--private", "--json").out) == {
        "schema_version": 1,
        "name": "dev",
        "url": sprite.url,
        "auth": "sprite",
        "private_access": None,
    }
    assert sprite.url_settings == {"auth": "sprite"}
    assert sprite.status == "cold"


@pytest.mark.parametrize(
    ("access", "who"),
    [("admins", "admins"), ("organization", "members"), ("org_users", "members")],
)
def test_url_that_is_private_already_keeps_who_may_open_it(
    thopters: Thopters, emulator: Emulator, access: str, who: str
) -> None:
    sprite = emulator.add_sprite("dev")
    sprite.url_settings = {"auth": "sprite", "private_access": access}
    if access != "admins":
        emulator.personality.members_word = access
    done = thopters("url", "dev", "--private")
    assert (done.code, done.out) == (0, sprite.url + "\n")
    assert f"only {who} of the org can open it" in done.err
    assert sprite.url_settings == {"auth": "sprite", "private_access": access}
    assert json.loads(thopters("url", "dev", "--json").out)["private_access"] == access


def test_url_change_that_did_not_take_is_an_error(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    emulator.fault(Fault("PUT /v1/sprites/dev", "status", status=200, body=b"{}"))
    done = thopters("url", "dev", "--public")
    assert (done.code, done.out) == (1, "")
    assert "is still sprite" in done.err


def test_rename_says_why_not(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    done = thopters("rename", "dev", "dev-2")
    assert (done.code, done.out) == (1, "")
    assert "no way to rename" in done.err
    assert "thopters create dev-2" in done.err
    assert not len(emulator.journal)


# of several


LOCKED = b'{"error": "locked", "message": "it is locked"}'


@pytest.mark.parametrize("words", [[], ["--json"]], ids=str)
@pytest.mark.parametrize("command", ["destroy", "pause", "resume", "init"])
def test_of_several_each_is_told_whatever_fails(
    thopters: Thopters, emulator: Emulator, command: str, words: list[str]
) -> None:
    for name in "abcd":
        emulator.add_sprite(name, status="cold" if command == "pause" else "running")
    route = {"destroy": "DELETE */{}", "init": "WS */{}/exec"}.get(command, "GET */{}")
    emulator.fault(Fault(route.format("b"), "status", times=None, status=423, body=LOCKED))
    emulator.fault(Fault(route.format("c"), "status", times=None, status=401))
    consent = ["--yes"] if command == "destroy" else []
    done = thopters(command, "a", "b", "c", "d", *consent, *words)
    assert done.code == 4, done
    whys = ["it is locked", "the API refused the token"]
    if words:
        document = json.loads(done.out)
        [made] = (document[key] for key in document if key not in ("errors", "schema_version"))
        names = [item if isinstance(item, str) else item["name"] for item in made]
        assert names == ["a", "d"]
        told = [error["message"] for error in document["errors"]]
        assert "thopters: error: " not in done.err
    else:
        assert [line[0] for line in done.out.replace("destroyed ", "").splitlines()] == ["a", "d"]
        told = [line for line in done.err.splitlines() if line.startswith("thopters: error: ")]
    assert len(told) == 2 and all(why in text for why, text in zip(whys, told, strict=True)), told


@pytest.mark.parametrize("command", ["destroy", "pause", "resume", "init"])
def test_of_several_the_first_tells_what_would_fail_for_all(
    thopters: Thopters, emulator: Emulator, command: str
) -> None:
    for method in ("GET", "DELETE", "WS"):
        emulator.fault(Fault(f"{method} *", "status", times=None, status=401))
    consent = ["--yes"] if command == "destroy" else []
    done = thopters(command, "a", "b", "c", *consent, "--json")
    assert done.code == 4
    assert json.loads(done.out)["error"]["code"] == "not_authenticated"
    assert len(emulator.journal) == 1


# bad input, bad answers


def test_no_token(thopters: Thopters) -> None:
    for words in (["list"], ["create", "dev"], ["url", "dev"]):
        done = thopters(*words)
        assert (done.code, done.out) == (4, "")
        assert "no token for https://api.sprites.dev" in done.err
        assert "sprite login" in done.err


def test_refused_token(thopters: Thopters, emulator: Emulator) -> None:
    thopters.env["SPRITE_TOKEN"] = "acme/1/tok/not-the-right-one"
    done = thopters("list")
    assert (done.code, done.out) == (4, "")
    assert "refused the token from SPRITE_TOKEN" in done.err
    assert "not-the-right-one" not in done.err


def test_restricted_token(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.restricted_prefix = "team-"
    done = thopters("create", "dev")
    assert done.code == 4
    assert "restricted to a name prefix" in done.err


@pytest.mark.parametrize(
    "fault",
    [
        ("status", {"status": 200, "body": b"<html>hello", "content_type": "text/html"}),
        ("status", {"status": 200, "body": b'{"sprites": [', "content_type": "application/json"}),
        ("status", {"status": 200, "body": b"[" * 200_000}),
        ("status", {"status": 200, "body": b'{"sprites": NaN}'}),
        ("status", {"status": 502, "body": b"<html>", "content_type": "text/html"}),
        ("gzip", {}),
        ("cut_response", {"size": 250}),
        ("cut_response", {"size": 20}),
        ("redirect", {"location": "https://evil.example/x", "status": 307}),
    ],
    ids=lambda fault: fault[0],
)
def test_bad_answers_are_one_sentence(
    thopters: Thopters, emulator: Emulator, fault: tuple[str, dict[str, object]]
) -> None:
    emulator.add_sprite("dev")
    kind, params = fault
    emulator.fault(Fault("GET /v1/sprites", kind, times=None, **params))  # type: ignore[arg-type]
    done = thopters("list")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("thopters: error: ")
    assert len(done.err.splitlines()) <= 2
    if kind == "redirect":
        assert "evil.example" in done.err
        assert len(emulator.journal) == 1


def test_unreachable(thopters: Thopters) -> None:
    thopters.env |= {"SPRITES_API_URL": "http://127.0.0.1:1", "SPRITE_TOKEN": "a/b/c/12345678"}
    done = thopters("list")
    assert (done.code, done.out) == (1, "")
    assert "cannot reach 127.0.0.1: Connection refused" in done.err


# the list tells the truth


def test_n7_the_counts_are_of_all_that_was_listed(thopters: Thopters, emulator: Emulator) -> None:
    """A page tells of its own sprites alone."""
    emulator.personality.page_size = 3
    for number in range(7):
        emulator.add_sprite(f"s{number}", status="running" if number < 4 else "cold")
    assert "4 running (plan allows 10), 3 hibernating\n" in thopters("list").err
    told = "4 running (plan allows 10), 3 hibernating: 0 warm (plan allows 20), 3 cold\n"
    assert told in thopters("list", "-v").err
    counts = json.loads(thopters("list", "--json").out)["counts"]
    assert counts["running"] == {"count": 4, "limit": 10}
    assert counts["cold"] == {"count": 3, "limit": None}


def test_n7_a_list_names_json_and_event_streams_alone_name_ndjson(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    assert thopters("list").code == thopters("checkpoint", "dev").code == 0
    for request in emulator.journal:
        is_stream = request.path.endswith("/checkpoint")
        assert ("ndjson" in request.headers.get("Accept", "")) == is_stream, request
        assert not request.values("bulk_load")


def test_w9_what_a_configured_prefix_hides_is_said(thopters: Thopters, emulator: Emulator) -> None:
    path = thopters.home / ".sprite-thopters" / "config.json"
    write(path, {"defaults": {"prefix": "issue-"}})
    for name in ("issue-1", "dev"):
        emulator.add_sprite(name)
    hidden = "only names that start with issue- are listed; all: thopters list --prefix ''"
    done = thopters("list")
    assert (done.out.split("\t")[0], hidden in done.err) == ("issue-1", True)
    done = thopters("list", "--prefix", "")
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["dev", "issue-1"]
    assert hidden not in done.err
