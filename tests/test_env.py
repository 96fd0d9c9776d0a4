"""Keys for life: `env`, the record of who has which keys, pushes that wait until a sprite wakes.

Who gets keys is decided by the record and the user's words; what a sprite says decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from emulation.state import Sprite
from support.configs import mode, write
from support.keys import record_keys
from support.program import MODULE, Thopters
from support.runs import environ_for, run_here
from support.terminals import Start

import thopters as program

GIT = {"user": "Ann", "email": "ann@example.org"}
PLAIN = {"ANTHROPIC_API_KEY": "sk-canary-one-0001", "GITHUB_PAT": "ghp_canary_two_0002"}


@pytest.fixture
def config(thopters: Thopters) -> Path:
    path = thopters.home / ".sprite-thopters" / "config.json"
    write(path, {"secrets": PLAIN, "git": GIT})
    return path


def record_of(config: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(config.with_name("config.json.record").read_bytes())
    return document


def env_of(sprite: Sprite) -> dict[str, str]:
    """Return the variables in a sprite's environment file, of which each is a line."""
    path = sprite.home / ".thopters" / "env"
    text = path.read_text() if path.exists() else ""
    return dict(re.findall(r"(?m)^export (\w+)='(.*)'$", text))


def states(thopters: Thopters, *names: str) -> dict[str, dict[str, str]]:
    done = thopters("env", "check", *names, "--json")
    told = json.loads(done.out)
    found = {item["name"]: item["keys"] for item in told["checked"]}
    differs = any(set(keys.values()) - {"current"} for keys in found.values())
    assert (done.code, told["errors"]) == (int(differs), []), done
    return found


def set_key(thopters: Thopters, name: str, value: str, *words: str) -> None:
    assert thopters("env", "set", name, *words, stdin=value.encode() + b"\n").code == 0


# set, list, unset


def test_a_key_is_stored_and_shown_masked(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    done = thopters("env", "set", "MINE", stdin=b"canary with 'quotes'\r\n")
    assert (done.code, done.out) == (0, "stored MINE\n")
    set_key(thopters, "OWN", "two\nlines", "--for", "deploy-*")
    stored = json.loads(config.read_bytes())
    assert stored["secrets"]["MINE"] == "canary with 'quotes'"
    assert stored["secrets"]["OWN"] == "two\nlines"
    done = thopters("env", "list")
    assert done.out.splitlines() == [
        "ANTHROPIC_API_KEY\t**** (18 characters)\t*\t-",
        "GITHUB_PAT\t**** (19 characters)\t*\t-",
        "MINE\t**** (20 characters)\t*\t-",
        "OWN\t**** (9 characters)\tdeploy-*\t-",
    ]
    told = json.loads(thopters("env", "list", "--json").out)["keys"]
    assert told["OWN"] == {"length": 9, "for": "deploy-*", "sprites": []}
    set_key(thopters, "OWN", "new")  # keeps whom it is for
    assert json.loads(config.read_bytes())["only_for"] == {"OWN": "deploy-*"}
    set_key(thopters, "OWN", "new", "--for", "*")
    done = thopters("env", "unset", "OWN", "MINE")
    assert (done.code, done.out) == (0, "removed OWN, MINE\n")
    assert "revoke it where it was issued" in done.err
    stored = json.loads(config.read_bytes())
    assert (stored["secrets"], stored["only_for"]) == (PLAIN, {})
    assert thopters("env", "unset", "OWN").code == 1
    assert not len(emulator.journal)


def test_the_first_key_makes_the_configuration(thopters: Thopters) -> None:
    set_key(thopters, "MINE", "canary")
    path = thopters.home / ".sprite-thopters" / "config.json"
    assert (mode(path.parent), mode(path)) == (0o700, 0o600)
    assert json.loads(path.read_bytes())["secrets"] == {"MINE": "canary"}


def test_on_a_terminal_the_value_is_asked_for_and_not_shown(start: Start, config: Path) -> None:
    session = start("env", "set", "MINE")
    session.expect("MINE:")
    session.type("canary-typed\r")
    assert session.end() == 0
    assert "canary" not in session.screen.text
    assert json.loads(config.read_bytes())["secrets"]["MINE"] == "canary-typed"


WRONG_VALUES = {
    "nothing": b"",
    "an empty line": b"\n",
    "a NUL": b"c4nary\0x",
    "too long": b"c4nary" * 30_000,
    "a login that renews itself": b'{"tokens": {"id": "c4nary", "refresh_token": "c4nary"}}',
    "another such": b'{"claudeAiOauth": {"refreshToken": "c4nary"}}',
    "its refresh token alone": b"sk-ant-ort01-c4nary",
}


def test_what_can_be_no_key_is_refused_and_not_repeated(thopters: Thopters, config: Path) -> None:
    before = config.read_bytes()
    for why, value in WRONG_VALUES.items():
        done = thopters("env", "set", "MINE", stdin=value)
        assert (done.code, done.out, "c4nary" in done.err) == (2, "", False), (why, done)
    for words in (["PATH"], ["MINE=c4nary"], ["MINE", "c4nary"], ["c4n-ary"], ["_thopters"]):
        done = thopters("env", "set", *words, stdin=b"value\n")
        assert (done.code, "c4n" in done.out + done.err) == (2, False), done
    done = thopters("env", "set", "GITHUB_PAT", stdin=b"${c4nary}\n")
    assert (done.code, "c4nary" in done.err) == (2, False)
    assert config.read_bytes() == before


# who gets which


def test_only_sprites_that_match_ever_get_a_key(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    for name in ("deploy-1", "dev"):
        emulator.add_sprite(name, status="running")
    set_key(thopters, "DEPLOY", "canary-deploy", "--for", "deploy-?")
    assert thopters("init", "deploy-1", "dev").code == 0
    assert thopters("create", "deploy-20").code == 0
    assert [set(env_of(s)) - set(PLAIN) for s in emulator.sprites.values()] == [
        {"DEPLOY"}, set(), set(),
    ]  # fmt: skip
    sent = [r for r in emulator.journal if b"canary-deploy" in r.stdin + r.body]
    assert {request.path for request in sent} == {"/v1/sprites/deploy-1/exec"}
    set_key(thopters, "DEPLOY", "canary-deploy", "--for", "d*-20")
    assert states(thopters)["deploy-1"]["DEPLOY"] == "not in the configuration"
    assert thopters("env", "push").code == 0
    assert "DEPLOY" not in env_of(emulator.sprite("deploy-1"))
    assert "DEPLOY" in env_of(emulator.sprite("deploy-20"))


def test_create_says_which_keys_went_in(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    done = thopters("create", "dev")
    assert done.code == 0
    assert "keys in dev: ANTHROPIC_API_KEY, GITHUB_PAT; git as Ann <ann@example.org>\n" in done.err
    record = record_of(config)
    (identity, item), *more = record["sprites"].items()
    assert not more and emulator.sprite("dev").id.endswith(identity)
    assert (item["name"], item["keys"]) == ("dev", sorted(PLAIN))
    assert item["generation"] == item["wanted"] == record["generation"] == 1
    assert mode(config.with_name("config.json.record")) == 0o600


def test_a_pattern_gives_keys_to_nobody_who_has_none(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    for name in ("x-1", "x-2", "x-3"):
        emulator.add_sprite(name, status="running")
    for command in (["init"], ["env", "push"], ["env", "check"]):
        done = thopters(*command, "x-*")
        assert (done.code, done.out) == (3, ""), done
        assert "left out, as they have no keys from here: x-1, x-2, x-3" in done.err
    done = thopters("env", "push")
    assert (done.code, "no sprite has keys from here" in done.err, "left out" in done.err) == (
        3, True, False,
    )  # fmt: skip
    assert not emulator.journal.requests("WS")
    assert thopters("env", "push", "x-1").code == 0
    done = thopters("init", "x-*", "x-3")
    assert (done.code, "left out, as they have no keys from here: x-2\n" in done.err) == (0, True)
    assert [bool(env_of(sprite)) for sprite in emulator.sprites.values()] == [True, False, True]


def test_one_that_was_made_again_gets_nothing_unasked(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    emulator.add_sprite("dev", status="running")
    assert thopters("init", "dev").code == 0
    emulator.sprite("dev").pause()
    assert thopters("env", "push", "*").code == 6  # which leaves the push for later
    del emulator.sprites["dev"]
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("")
    for words in (
        ["env", "push"],
        ["init", "d*"],
        ["restore", "dev", "v1", "--yes"],
        ["exec", "dev", "--", "true"],
        ["resume", "dev"],
    ):
        done = thopters(*words)
        assert done.code == (3 if words[0] in ("env", "init") else 0), done
        again = "left out, as they were made again since keys went in: dev" in done.err
        assert again == (words[0] in ("env", "init"))
    assert not (sprite.home / ".thopters").exists()
    assert thopters("init", "dev").code == 0
    assert env_of(sprite) == PLAIN
    assert states(thopters) == {"dev": dict.fromkeys(PLAIN, "current")}


def test_one_that_is_made_again_while_others_get_theirs_gets_nothing(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    for name in ("x-1", "x-2"):
        emulator.add_sprite(name, status="running")
    assert thopters("init", "x-1", "x-2").code == 0
    emulator.sprite("x-1").to_json, shown = listed_once(emulator, "x-1")  # type: ignore[method-assign]
    done = thopters("env", "push")
    assert (done.code, shown) == (1, ["x-1"]), done
    assert "x-1: thopters: error: x-1 was made anew meanwhile" in done.err
    assert env_of(emulator.sprite("x-1")) == {}


def listed_once(emulator: Emulator, name: str) -> tuple[Any, list[str]]:
    """Return what shows a sprite, which is made anew behind that, and the names it was for."""
    shown: list[str] = []
    show = emulator.sprite(name).to_json

    def shows() -> dict[str, Any]:
        item = show()
        shown.append(name)
        emulator.add_sprite(name, status="running")
        return item

    return shows, shown


def test_a_destroyed_one_is_forgotten(thopters: Thopters, emulator: Emulator, config: Path) -> None:
    assert thopters("create", "dev").code == 0
    assert thopters("destroy", "dev", "--yes").code == 0
    assert record_of(config)["sprites"] == {}
    assert thopters("env", "list").out.splitlines()[0].endswith("\t-")


# what a sprite has


def change_there(sprite: Sprite, name: str, value: str) -> None:
    path = sprite.home / ".thopters" / "env"
    lines = path.read_text().splitlines(True)
    kept = [line for line in lines if not line.startswith(f"export {name}=")]
    path.write_text("".join(kept) + f"export {name}='{value}'\n")
    sprite.machine.own(path)


def test_what_was_changed_there_is_left_without_force(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    assert thopters("init", "dev").code == 0
    theirs = "it'\"'\"'s & \\n theirs"
    change_there(sprite, "ANTHROPIC_API_KEY", theirs)
    set_key(thopters, "GITHUB_PAT", "ghp_canary_three_3")
    assert states(thopters, "dev") == {
        "dev": {"ANTHROPIC_API_KEY": "changed there", "GITHUB_PAT": "old"}
    }
    for words in (["env", "push", "dev"], ["init", "dev"], ["env", "push"]):
        done = thopters(*words)
        assert done.code == 1, done
        assert "ANTHROPIC_API_KEY was changed in dev and was left; --force replaces it" in done.err
        assert env_of(sprite) == {"ANTHROPIC_API_KEY": theirs, "GITHUB_PAT": "ghp_canary_three_3"}
    seen = thopters("exec", "dev", "--", "printenv", "ANTHROPIC_API_KEY").out
    assert seen == "it's & \\n theirs\n"
    assert thopters("env", "push", "dev", "--force").code == 0
    assert states(thopters) == {"dev": dict.fromkeys(PLAIN, "current")}


def test_a_restore_leaves_what_was_changed_there_before_the_checkpoint(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    assert thopters("init", "dev").code == 0
    change_there(sprite, "ANTHROPIC_API_KEY", "theirs")
    sprite.add_checkpoint("")
    set_key(thopters, "GITHUB_PAT", "ghp_canary_four_4")
    done = thopters("restore", "dev", "v1", "--yes")
    assert done.code == 0, done
    assert "ANTHROPIC_API_KEY was changed in dev and was left" in done.err
    assert env_of(sprite) == {"ANTHROPIC_API_KEY": "theirs", "GITHUB_PAT": "ghp_canary_four_4"}


def test_each_state_of_a_key_is_told(thopters: Thopters, emulator: Emulator, config: Path) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    write(config, {"secrets": {"A": "1", "B": "2", "C": "3", "D": "4", "E": "5"}, "git": GIT})
    assert thopters("init", "dev").code == 0
    write(config, {"secrets": {"A": "1", "B": "new", "C": "3", "E": "5", "F": "6"}, "git": GIT})
    change_there(sprite, "C", "theirs")
    change_there(sprite, "E", "5")
    done = thopters("env", "check", "dev")
    assert (done.code, done.out.splitlines()) == (
        1,
        [
            "dev: A: current",
            "dev: B: old",
            "dev: C: changed there",
            "dev: D: not in the configuration",
            "dev: E: current",
            "dev: F: missing",
        ],
    )


def test_a_sprite_can_make_no_mark(thopters: Thopters, emulator: Emulator, config: Path) -> None:
    """Those of another sprite, or for another variable, prove nothing, and odd files do no harm."""
    for name in ("one", "two"):
        emulator.add_sprite(name, status="running")
    assert thopters("init", "one", "two").code == 0
    one, two = (emulator.sprite(name).home / ".thopters" for name in ("one", "two"))
    config_now = {name: value + "-new" for name, value in PLAIN.items()}
    write(config, {"secrets": config_now, "git": GIT})
    assert set(states(thopters, "one")["one"].values()) == {"old"}
    (two / "marks").write_bytes((one / "marks").read_bytes())
    assert set(states(thopters, "two")["two"].values()) == {"changed there"}
    odd = (
        "exit 3\nexport ANTHROPIC_API_KEY='x'\nkey GITHUB_PAT 0\nthopters-look-ok\nreadonly PATH\n"
    )
    (two / "env").write_text(odd)
    found = states(thopters, "two")["two"]
    assert found == {"ANTHROPIC_API_KEY": "missing", "GITHUB_PAT": "missing"}
    (two / "env").unlink()
    assert set(states(thopters, "two")["two"].values()) == {"missing"}


def test_what_a_sprite_says_of_its_keys_is_shown_as_names_alone() -> None:
    seal = program.Seal(bytes(32), "dev")
    said = b"key \x1b[2J x\nkey A x\nkey B-C x\nmark\n\nkey D\nmore of it\nthopters-look-ok\n"
    assert program.key_states(said, seal, {}) == {"A": "not in the configuration"}
    assert program.key_states(said[:-2], seal, {}) is None


# pending


USES: dict[str, list[str]] = {
    "exec": ["exec", "dev", "--", "true"],
    "exec in many": ["exec", "d*", "--wake", "--", "true"],
    "shell": ["shell", "dev"],
    "attach": ["attach", "dev"],
    "resume": ["resume", "dev"],
    "cp into": ["cp", ".sprite-thopters/config.json.lock", "dev:f"],
    "cp out of": ["cp", "dev:.profile", "profile"],
    "proxy -W": ["proxy", "dev", "-W", "localhost:1"],
}
assert {words[0] for words in USES.values()} == {
    "exec", "shell", "attach", "resume", "cp", "proxy",
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_what_goes_into_a_sprite_next_puts_pending_keys_in_first(
    thopters: Thopters, emulator: Emulator, config: Path, use: str
) -> None:
    sprite = emulator.add_sprite("dev")
    (sprite.home / ".profile").write_text("# mine\n")
    sprite.machine.own(sprite.home)
    record_keys(config, sprite.id, "dev", ["OLD"])
    done = thopters("env", "push")
    assert (done.code, sprite.status) == (6, "cold"), done
    assert "dev (pending)" in thopters("env", "list").out
    done = thopters(*USES[use], stdin=b"exit\n" if use == "shell" else None)
    assert env_of(sprite) == PLAIN, done
    assert done.err.count("dev got its new keys: ANTHROPIC_API_KEY, GITHUB_PAT; git as Ann") == 1
    assert "pending" not in thopters("env", "list").out
    emulator.journal.clear()
    done = thopters("exec", "dev", "--", "true")
    assert "got its new keys" not in done.err
    assert [request.method for request in emulator.journal] == ["WS"]


def test_pending_keys_that_can_not_go_in_keep_nobody_from_the_sprite(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    sprite = emulator.add_sprite("dev")
    record_keys(config, sprite.id, "dev", ["OLD"])
    assert thopters("env", "push").code == 6
    body = b'{"error": "locked", "message": "it is locked"}'
    emulator.fault(Fault("GET /v1/sprites/dev", "status", status=423, body=body))
    done = thopters("exec", "dev", "--", "echo", "ran")
    assert (done.code, done.out) == (0, "ran\n")
    assert "the new keys are not in dev: " in done.err and "it is locked" in done.err
    assert thopters("resume", "dev").code == 0
    assert env_of(sprite) == PLAIN


def test_a_push_that_fails_is_pending_unless_the_keys_are_in(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    (sprite.home / ".thopters").write_text("in the way\n")
    assert thopters("init", "dev").code == 1
    assert "dev (pending)" in thopters("env", "list").out
    (sprite.home / ".thopters").unlink()
    (sprite.home / ".bashrc").write_text("# >>> thopters >>>\n")
    done = thopters("exec", "dev", "--", "true")
    assert (done.code, "the new keys are not in dev: cannot put all" in done.err) == (0, True)
    assert "pending" not in thopters("env", "list").out
    assert env_of(sprite) == PLAIN


# rotation


def test_rotation_on_twenty_sprites(thopters: Thopters, emulator: Emulator, config: Path) -> None:
    """5 asleep, 3 restored, one destroyed, one made again, one changed there: the table is true."""
    names = [f"x-{number:02}" for number in range(20)]
    for name in names:
        emulator.add_sprite(name, status="running")
    assert thopters("init", *names, "-j", "4").code == 0
    restored, asleep = names[5:8], names[:5]
    for name in restored:
        emulator.sprite(name).add_checkpoint("")
    set_key(thopters, "GITHUB_PAT", "ghp_canary_second")
    assert thopters("env", "push", "-j", "4").code == 0
    for name in restored:  # by somebody else
        emulator.sprite(name).restore(emulator.sprite(name).checkpoints[0])
        emulator.sprite(name).status = "running"
    for name in asleep:
        emulator.sprite(name).pause()
    emulator.account.remove("x-18")
    emulator.account.remove("x-19")
    emulator.add_sprite("x-19", status="running")
    change_there(emulator.sprite("x-17"), "ANTHROPIC_API_KEY", "theirs")
    set_key(thopters, "ANTHROPIC_API_KEY", "sk-canary-third")

    found = states(thopters)
    assert list(found) == names[5:18]
    usual = {"ANTHROPIC_API_KEY": "old", "GITHUB_PAT": "current"}
    expected = dict.fromkeys(names[5:18], usual)
    expected |= dict.fromkeys(restored, dict.fromkeys(PLAIN, "old"))
    expected["x-17"] = {**usual, "ANTHROPIC_API_KEY": "changed there"}
    assert found == expected

    emulator.journal.clear()
    done = thopters("env", "push", "x-*", "-j", "4")
    assert done.code == 1, done
    assert "left out, as they were made again since keys went in: x-19\n" in done.err
    summary = f"12 done; 1 failed: x-17 (1); 5 left asleep: {', '.join(asleep)} (--wake takes "
    assert done.err.splitlines()[-1].startswith(summary)
    assert all(emulator.sprite(name).status == "warm" for name in asleep)
    assert not emulator.journal.requests(path="/v1/sprites/x-19/exec")
    expected = dict.fromkeys(names[5:18], dict.fromkeys(PLAIN, "current"))
    expected["x-17"] = {**expected["x-05"], "ANTHROPIC_API_KEY": "changed there"}
    assert states(thopters) == expected
    listed = json.loads(thopters("env", "list", "--json").out)["keys"]["GITHUB_PAT"]["sprites"]
    assert [item["name"] for item in listed if item["pending"]] == asleep
    assert thopters("exec", "x-00", "--", "true").code == 0
    assert env_of(emulator.sprite("x-00"))["ANTHROPIC_API_KEY"] == "sk-canary-third"
    no_value_left(thopters, emulator, config)


def no_value_left(thopters: Thopters, emulator: Emulator, config: Path) -> None:
    """Assert that no value, and no plain digest of one, is where it may not be."""
    values = [*PLAIN.values(), *json.loads(config.read_bytes())["secrets"].values()]
    forms = [value.encode() for value in values]
    digests = [hashlib.new(kind, form) for kind in ("md5", "sha1", "sha256") for form in forms]
    forms += [digest.hexdigest().encode() for digest in digests] + [d.digest() for d in digests]
    for path in thopters.home.rglob("*"):
        if path.is_file() and path != config:
            assert not [form for form in forms if form in path.read_bytes()], path
    allowed = {"env", ".git-credentials"}
    for sprite in emulator.sprites.values():
        for path in sprite.home.rglob("*"):
            if path.is_file() and path.name not in allowed:
                assert not [form for form in forms if form in path.read_bytes()], path
    for request in emulator.journal:
        assert not [form for form in forms if form in request.head], request
        if b"thopters-init" not in request.stdin:
            assert not [form for form in forms if form in request.stdin + request.body], request


# unset


def test_unset_says_where_a_key_still_is(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    for name in ("x-1", "x-2", "x-3"):
        emulator.add_sprite(name, status="running").add_checkpoint("before")
        emulator.sprite(name).checkpoints[0].made -= 100
    assert thopters("init", "x-1", "x-2").code == 0
    for name in ("x-1", "x-2", "x-3"):
        emulator.sprite(name).add_checkpoint("behind")
    emulator.sprite("x-2").pause()
    emulator.journal.clear()
    done = thopters("env", "unset", "GITHUB_PAT")
    assert (done.code, done.out) == (0, "removed GITHUB_PAT\n")
    assert done.err.splitlines() == [
        "the next push takes it out of: x-1, x-2 (thopters env push)",
        "checkpoints that may still hold it:",
        "  x-1: v2",
        "  x-2: unknown, as it was not looked at",
        "to make a key worthless, revoke it where it was issued",
    ]
    assert {r.path for r in emulator.journal} == {"/v1/sprites", "/v1/sprites/x-1/checkpoints"}
    assert thopters("env", "push").code == 0
    assert list(env_of(emulator.sprite("x-1"))) == ["ANTHROPIC_API_KEY"]
    told = json.loads(thopters("env", "unset", "ANTHROPIC_API_KEY", "--json").out)
    assert told == {
        "schema_version": 1,
        "removed": ["ANTHROPIC_API_KEY"],
        "sprites": [{"name": "x-1", "checkpoints": ["v2"]}, {"name": "x-2", "checkpoints": None}],
    }
    # to remove a key here nobody has to be reached
    done = thopters("env", "unset", "GITHUB_PAT", env={"SPRITE_TOKEN": ""})
    assert (done.code, "  x-2: unknown, as it was not looked at" in done.err) == (0, True)


# the record


def test_a_damaged_record_is_named_and_left_and_nobody_gets_keys_by_it(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("")
    path = config.with_name("config.json.record")
    environ = environ_for(emulator, str(thopters.home))
    for content in (b"{", b"[]", b"{}", b'{"version": 1, "key": "x", "sprites": {}}',
                    b'{"version": 2, "key": "00", "sprites": {}}',
                    b'{"version": 1, "key": "00", "sprites": {"a": {}}}',
                    json.dumps({"version": 1, "key": "00" * 32, "generation": "1",
                                "sprites": {}}).encode()):  # fmt: skip
        write(path, content)
        for words in (["env", "push"], ["env", "list"], ["init", "dev"]):
            done = run_here(words, environ)
            assert done.code == 1 and str(path) in done.err, done
        assert run_here(["url", "dev"], environ).code == 0
        assert path.read_bytes() == content
    assert thopters("exec", "dev", "--", "true").code == 0
    assert not (sprite.home / ".thopters").exists()


def test_where_no_record_can_be_kept_those_that_are_named_get_keys(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    """The configuration comes by a pipe, or lies in a folder that can't be written in."""
    emulator.add_sprite("dev", status="running")
    read, wrote = os.pipe()
    os.write(wrote, config.read_bytes())
    os.close(wrote)
    env = {"THOPTERS_CONFIG": f"/dev/fd/{read}"}
    done = thopters("init", "dev", env=env, pass_fds=[read])
    os.close(read)
    assert (done.code, env_of(emulator.sprite("dev"))) == (0, PLAIN), done
    options = thopters.as_somebody()
    config.parent.chmod(0o500)
    done = thopters("init", "dev", **options)
    config.parent.chmod(0o700)
    assert done.code == 0, done
    assert "it is not recorded which sprites have keys" in done.err
    assert {path.name for path in config.parent.iterdir()} == {"config.json"}


KILL = """\
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import thopters
at, count = int(sys.argv.pop(1)), 0
def killing(function):
    def wrapped(*words, **options):
        step()
        result = function(*words, **options)
        step()
        return result
    return wrapped
def step():
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)
for name in ("replace_file", "run_script"):
    setattr(thopters, name, killing(getattr(thopters, name)))
os.replace = killing(os.replace)
thopters.leave(thopters.main())
"""


def test_killed_at_any_step_a_push_is_whole_or_pending(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    """Steps are what comes before and behind each file that is put in place, and each script."""
    sprite = emulator.add_sprite("dev", status="running")
    assert thopters("init", "dev").code == 0
    at = code = 0
    while code != 0 or at == 0:
        at += 1
        assert at < 30
        before, wanted = env_of(sprite), record_of(config)["generation"]
        values = {name: f"{value}-{at}" for name, value in PLAIN.items()}
        write(config, {"secrets": values, "git": GIT})
        words = [sys.executable, "-c", KILL, str(MODULE.parent), str(at), "env", "push", "dev"]
        code = subprocess.run(words, env=thopters.env, capture_output=True).returncode
        assert code in (0, -signal.SIGKILL)
        item = record_of(config)["sprites"][sprite.id[-36:]]
        has_begun, is_pending = item["wanted"] > wanted, item["generation"] != item["wanted"]
        assert env_of(sprite) in ((before, values) if has_begun else (before,))
        assert is_pending or env_of(sprite) == (values if has_begun else before), at
        found = states(thopters, "dev")["dev"]
        assert set(found.values()) <= {"current", "old"}, found
        if is_pending:
            assert thopters("exec", "dev", "--", "true").code == 0
            assert env_of(sprite) == values
    assert at > 10
    left = {path.name for path in config.parent.iterdir()}
    assert left <= {f"config.json{end}" for end in ("", ".lock", ".record", ".record.new")}


def test_a_push_without_names_reaches_those_beyond_the_prefix(
    thopters: Thopters, dev: Emulator
) -> None:
    thopters.env |= {"ANTHROPIC_API_KEY": "sk-ant-the-first"}
    assert thopters("setup", "--from-env").code == 0
    assert thopters("init", "dev").code == 0
    thopters.env |= {"ANTHROPIC_API_KEY": "sk-ant-the-second", "THOPTERS_PREFIX": "web-"}
    assert thopters("setup", "--from-env").code == 0
    assert "dev: ANTHROPIC_API_KEY: old" in thopters("env", "check").out
    assert thopters("env", "push").code == 0
    done = thopters("exec", "dev", "--", "printenv", "ANTHROPIC_API_KEY")
    assert done.out == "sk-ant-the-second\n"


def test_a_dry_run_of_a_push_says_who_would_get_what_and_asks_no_sprite(
    thopters: Thopters, emulator: Emulator, config: Path
) -> None:
    emulator.add_sprite("x-1", status="running")
    emulator.add_sprite("x-2", status="running")
    emulator.add_sprite("y-1", status="running")
    assert thopters("init", "x-1", "x-2").code == 0
    emulator.sprite("x-2").pause()
    before = env_of(emulator.sprite("x-1"))
    assert thopters("env", "set", "MY_KEY", stdin=b"a value").code == 0
    record = Path(f"{config}.record").read_text()
    emulator.journal.clear()
    done = thopters("env", "push", "--dry-run")
    assert (done.code, done.out) == (
        0,
        "x-1: would get ANTHROPIC_API_KEY, GITHUB_PAT, MY_KEY\n",
    )
    assert "the keys would go in when these are next used: x-2\n" in done.err
    told = json.loads(thopters("env", "push", "--dry-run", "--wake", "--json").out)
    names = ["ANTHROPIC_API_KEY", "GITHUB_PAT", "MY_KEY"]
    assert told["would_push"] == [{"name": name, "variables": names} for name in ("x-1", "x-2")]
    assert thopters("env", "push", "y-2", "--dry-run").code == 3
    assert {r.method for r in emulator.journal} == {"GET"}
    assert {r.path for r in emulator.journal} == {"/v1/sprites", "/v1/sprites/y-2"}
    assert emulator.sprite("x-2").status == "warm"
    assert env_of(emulator.sprite("x-1")) == before
    assert Path(f"{config}.record").read_text() == record
