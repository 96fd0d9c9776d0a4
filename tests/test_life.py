"""The life of a sprite, as its commands have it: create, resume, checkpoint, restore, destroy.

Pausing has a module of its own, test_pause.py, and so have the keys, test_keys.py."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from emulation import Emulator, Fault
from support.configs import write
from support.program import Thopters
from support.sessions import asked
from support.terminals import Start
from support.waiting import until

# create


def test_create_makes_a_sprite_that_runs_commands(thopters: Thopters, emulator: Emulator) -> None:
    done = thopters("create", "dev")
    sprite = emulator.sprite("dev")
    assert done.code == 0
    name, url, seconds = done.out.rstrip("\n").split("\t")
    assert (name, url) == ("dev", sprite.url)
    assert float(seconds) >= 0
    assert "there is no configuration, so the sprite gets no keys" in done.err
    assert "hint: " not in done.err  # what could come next is for a terminal
    assert sprite.status == "running"
    assert [r.body for r in emulator.journal.requests("POST")] == [b'{"name": "dev"}']


def test_create_no_init_says_nothing_of_keys(thopters: Thopters, emulator: Emulator) -> None:
    done = thopters("create", "dev", "--no-init")
    assert done.code == 0
    assert "keys" not in done.err


def test_create_json(thopters: Thopters, emulator: Emulator) -> None:
    made = json.loads(thopters("create", "dev", "--json").out)
    assert made["name"] == "dev"
    assert made["url"] == emulator.sprite("dev").url
    assert made["created"] is True


@pytest.mark.parametrize("status", [409, 400, 422])
def test_create_refuses_what_exists(thopters: Thopters, emulator: Emulator, status: int) -> None:
    emulator.personality.duplicate_status = status
    emulator.add_sprite("dev")
    done = thopters("create", "dev")
    assert (done.code, done.out) == (5, "")
    assert "there is a sprite dev already" in done.err
    assert asked(emulator) == ["GET /v1/sprites/dev"]


@pytest.mark.parametrize("status", [409, 400, 422])
def test_create_meets_one_made_meanwhile(
    thopters: Thopters, emulator: Emulator, status: int
) -> None:
    """The look beforehand misses it; the POST's answer decides."""
    emulator.personality.duplicate_status = status
    emulator.add_sprite("dev", hidden_gets=1)
    done = thopters("create", "dev")
    assert done.code == 5
    assert not emulator.journal.executed


@pytest.mark.parametrize("status", [409, 400, 422])
@pytest.mark.parametrize("words", [[], ["--no-init"]], ids=str)
def test_create_if_missing_takes_one_made_meanwhile(
    thopters: Thopters, emulator: Emulator, words: list[str], status: int
) -> None:
    emulator.personality.duplicate_status = status
    sprite = emulator.add_sprite("dev", hidden_gets=1)
    done = thopters("create", "dev", "--if-missing", "--json", *words)
    assert done.code == 0, done
    made = json.loads(done.out)
    assert (made["created"], made["url"]) == (False, sprite.url)
    assert (made["init"] is None) == ("--no-init" in words)
    assert len(emulator.journal.requests("POST", "/v1/sprites")) == 1
    assert emulator.account.creates == 0
    if "--no-init" in words:
        assert sprite.status == "cold" and not emulator.journal.executed


def test_create_if_missing_takes_what_exists(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    done = thopters("create", "dev", "--if-missing", "--json")
    assert done.code == 0
    assert json.loads(done.out)["created"] is False
    assert not emulator.journal.requests("POST")


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500, "body": b"<html>oops</html>", "content_type": "text/html"},
        {"status": 503, "body": b"{}"},
        {"status": None},
        {"status": 201, "body": b"<html>login</html>", "content_type": "text/html"},
        {"status": 201, "body": b'{"na', "content_type": "application/json"},
    ],
)
def test_create_that_was_done_though_the_answer_says_no(
    thopters: Thopters, emulator: Emulator, fault: dict[str, Any]
) -> None:
    emulator.personality.late_get = 2
    emulator.fault(Fault("POST /v1/sprites", "done_but", **fault))
    done = thopters("create", "dev")
    assert done.code == 0, done
    assert len(emulator.journal.requests("POST", "/v1/sprites")) == 1


def test_create_waits_when_the_api_asks_to(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.create_limit = 0
    done = thopters("create", "dev", "-v")
    assert done.code == 0
    assert "429 sprite_creation_rate_limited; trying again in 1.0 s" in done.err


def test_create_at_the_plans_limit(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.running_limit = 1
    emulator.add_sprite("busy", status="running")
    done = thopters("create", "dev")
    assert done.code == 6
    assert "Too many running sprites" in done.err
    assert "https://fly.io/plans" in done.err
    assert len(emulator.journal.requests("POST")) == 1


def test_create_outlives_an_exec_that_hangs_at_first(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.fault(Fault("WS /v1/sprites/dev/exec", "hang", times=1))
    done = thopters("create", "dev")
    assert done.code == 0


# checkpoint


@pytest.mark.parametrize("told", ["details", "complete", "none"])
def test_checkpoint_prints_its_id(thopters: Thopters, emulator: Emulator, told: str) -> None:
    emulator.personality.checkpoint_id_text = told
    emulator.add_sprite("dev")
    done = thopters("checkpoint", "dev", "--comment", "known good")
    assert (done.code, done.out) == (0, "v1\n")
    assert "Creating checkpoint..." not in done.err  # the platform's own lines, for -v alone
    assert "hint: " not in done.err
    (made,) = emulator.sprite("dev").checkpoints
    assert made.comment == "known good"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ndjson_error", "the storage is not ready"),
        ("ndjson_no_complete", "cut short"),
        ("no_final_chunk", ""),
    ],
)
def test_checkpoint_without_its_end_is_no_success(
    thopters: Thopters, emulator: Emulator, kind: str, message: str
) -> None:
    emulator.add_sprite("dev", status="running")
    emulator.fault(Fault("POST */checkpoint", kind))
    done = thopters("checkpoint", "dev")
    if kind == "no_final_chunk":  # `complete` has come by then
        assert (done.code, done.out) == (0, "v1\n")
        return
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert len(emulator.journal.requests("POST")) == 1


@pytest.mark.parametrize("order", ["newest", "creation", "shuffled"])
def test_checkpoints_are_shown_newest_first(
    thopters: Thopters, emulator: Emulator, order: str
) -> None:
    emulator.personality.checkpoints_order = order
    sprite = emulator.add_sprite("dev", status="running")
    for number in range(1, 13):
        sprite.add_checkpoint(f"c{number}", auto=number % 4 == 0)
        emulator.clock.advance(1)
    done = thopters("checkpoints", "dev")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == [f"v{n}" for n in range(9, 0, -1)]
    assert rows[0][2] == "c11"
    everything = json.loads(thopters("checkpoints", "dev", "--all", "--json").out)
    ids = [item["id"] for item in everything["checkpoints"]]
    assert len(ids) == 12
    assert "Current" not in ids


def test_a_checkpoint_that_the_platform_doubts_is_named(
    thopters: Thopters, emulator: Emulator
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    for _ in range(2):
        sprite.add_checkpoint("fine")
    sprite.checkpoints[0].health = "mount_failed"
    warning = "thopters: warning: the platform says of checkpoint v1: mount_failed\n"
    done = thopters("checkpoints", "dev")
    assert (done.code, done.out.count("fine"), done.err) == (0, 2, warning)
    told = json.loads(thopters("checkpoints", "dev", "--json").out)["checkpoints"]
    assert [item["health"] for item in told] == [None, "mount_failed"]
    assert warning in thopters("restore", "dev", "v1", "--yes").err
    assert warning not in thopters("restore", "dev", "v2", "--yes").err


# restore


def test_restore_puts_the_disk_back(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.restore_delay_s = 1.0
    sprite = emulator.add_sprite("dev")
    thopters("exec", "dev", "--", "sh", "-c", "echo precious > notes")
    thopters("checkpoint", "dev")
    thopters("exec", "dev", "--", "rm", "notes")
    done = thopters("restore", "dev", "v1", "--yes")
    assert done.code == 0, done
    assert done.out.startswith("restored dev to v1 in ")
    assert "undo it: thopters restore dev v2" in done.err
    assert sprite.checkpoints[1].comment == "before restore of v1"
    assert (sprite.home / "notes").read_text() == "precious\n"
    assert sorted(p.name for p in sprite.home.iterdir()) == [".bashrc", ".profile", "notes"]
    assert len(emulator.journal.requests("POST", "/v1/sprites/dev/checkpoints/v1/restore")) == 1
    assert thopters("restore", "dev", "2", "--yes", "--no-backup").code == 0
    assert not (sprite.home / "notes").exists()
    assert len(sprite.checkpoints) == 2


def test_restore_without_an_id_lists_them(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("first")
    done = thopters("restore", "dev")
    assert done.code == 0
    assert done.out.startswith("v1\t") and done.err == ""


def test_restore_needs_consent(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("first")
    done = thopters("restore", "dev", "v1")
    assert (done.code, done.out) == (2, "")
    assert "--yes" in done.err
    assert not len(emulator.journal)


@pytest.mark.parametrize(
    ("identity", "code"), [("v9", 3), ("Current", 2), ("active", 2), ("../x", 2), ("a b", 2)]
)
def test_restore_of_what_is_none(
    thopters: Thopters, emulator: Emulator, identity: str, code: int
) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("first")
    done = thopters("restore", "dev", identity, "--yes")
    assert (done.code, done.out) == (code, "")
    assert not emulator.journal.requests("POST")


def test_restore_is_not_begun_when_the_backup_fails(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("first")
    emulator.fault(Fault("POST */checkpoint", "ndjson_error"))
    done = thopters("restore", "dev", "v1", "--yes")
    assert (done.code, done.out) == (1, "")
    assert not emulator.journal.requests("POST", "/v1/sprites/dev/checkpoints/v1/restore")


@pytest.mark.parametrize("kind", ["ndjson_error", "ndjson_no_complete", "reset"])
def test_restore_that_fails_says_what_is_left(
    thopters: Thopters, emulator: Emulator, kind: str
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("first")
    emulator.fault(Fault("POST */restore", kind))
    done = thopters("restore", "dev", "v1", "--yes")
    assert (done.code, done.out) == (1, "")
    assert "the state before is checkpoint v2" in done.err
    assert len(emulator.journal.requests("POST", "/v1/sprites/dev/checkpoints/v1/restore")) == 1


@pytest.mark.parametrize("words", [[], ["--no-backup"]], ids=str)
def test_restore_that_is_never_asked_for_leaves_nothing_behind(
    thopters: Thopters, emulator: Emulator, words: list[str]
) -> None:
    """The marker is put, but the answer to that is lost."""
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("first")
    emulator.fault(Fault("WS */exec", "no_exit"))
    done = thopters("restore", "dev", "v1", "--yes", *words)
    assert (done.code, done.out) == (1, ""), done
    present = "" if words else "; checkpoint v2 holds the present state"
    assert f"dev was not restored{present}\n" in done.err
    assert b": > ~/.thopters-restore-" in emulator.journal.requests("WS")[0].stdin
    assert not list(sprite.home.glob(".thopters-restore-*"))
    assert not emulator.journal.requests("POST", "/v1/sprites/dev/checkpoints/v1/restore")


@pytest.mark.parametrize(
    ("status", "code", "note"),
    [
        (400, 1, "dev was not restored; checkpoint v2 holds the present state"),
        (403, 4, "dev was not restored; checkpoint v2 holds the present state"),
        (404, 3, "dev was not restored; checkpoint v2 holds the present state"),
        (429, 6, "dev was not restored; checkpoint v2 holds the present state"),
        (408, 1, "dev may or may not be at v1 now; the state before is checkpoint v2"),
        (202, 1, "dev may or may not be at v1 now; the state before is checkpoint v2"),
        (504, 1, "dev may or may not be at v1 now; the state before is checkpoint v2"),
        (524, 1, "dev may or may not be at v1 now; the state before is checkpoint v2"),
    ],
)
def test_restore_that_is_refused_says_what_that_means(
    thopters: Thopters, emulator: Emulator, status: int, code: int, note: str
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("first")
    body = b'{"error": "no", "message": "no", "retry_after_seconds": 61}'
    emulator.fault(Fault("POST */restore", "status", status=status, body=body))
    done = thopters("restore", "dev", "v1", "--yes")
    assert (done.code, done.out) == (code, ""), done
    notes = [line for line in done.err.splitlines() if line.startswith("dev ")]
    assert notes[-1] == note and "v2" in note
    assert "error: checkpoint v2 of the present was made, but " in done.err
    assert not list(sprite.home.glob(".thopters-restore-*"))


# destroy


@pytest.mark.parametrize("status", [204, 200])
def test_destroy(thopters: Thopters, emulator: Emulator, status: int) -> None:
    emulator.personality.delete_status = status
    emulator.add_sprite("dev")
    emulator.add_sprite("other")
    done = thopters("destroy", "dev", "--yes")
    assert (done.code, done.out) == (0, "destroyed dev\n")
    assert list(emulator.sprites) == ["other"]
    assert asked(emulator)[-1] == "GET /v1/sprites/dev"


def test_destroy_needs_consent(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    done = thopters("destroy", "dev", stdin=b"dev\n")
    assert (done.code, done.out) == (2, "")
    assert "--yes" in done.err
    assert not len(emulator.journal)


def test_destroy_several_goes_on_and_reports_the_worst(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("a")
    emulator.add_sprite("c")
    done = thopters("destroy", "a", "b", "c", "--yes")
    assert (done.code, done.out) == (3, "destroyed a\ndestroyed c\n")
    assert "there is no sprite b" in done.err
    assert not emulator.sprites


@pytest.mark.long
def test_destroy_that_the_api_only_claims(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    emulator.fault(Fault("DELETE *", "status", status=204, body=b"", times=None))
    done = thopters("destroy", "dev", "--yes")
    assert (done.code, done.out) == (7, "")
    assert "still there" in done.err


def test_destroy_done_though_the_answer_is_lost(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    emulator.fault(Fault("DELETE *", "done_but", status=None))
    done = thopters("destroy", "dev", "--yes")
    assert (done.code, done.out) == (0, "destroyed dev\n")


# resume


@pytest.mark.parametrize("status", ["warm", "cold", "running"])
def test_resume_wakes_and_tells_what_it_was(
    thopters: Thopters, emulator: Emulator, status: str
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    if status != "running":
        sprite.pause(cold=status == "cold")
    done = thopters("resume", "dev")
    was = "was running already, and answered" if status == "running" else "was hibernating, woke"
    assert re.fullmatch(rf"dev {was} in \d+\.\d\d s\n", done.out), done
    assert (done.code, sprite.status) == (0, "running")


def test_resume_of_several_tries_each(thopters: Thopters, emulator: Emulator) -> None:
    for name in ("a", "c"):
        emulator.add_sprite(name)
    done = thopters("wake", "a", "b", "c", "a", "--json")
    assert done.code == 3
    told = json.loads(done.out)
    assert [(item["name"], item["was"]) for item in told["resumed"]] == [
        ("a", "cold"),
        ("c", "cold"),
    ]
    assert [error["code"] for error in told["errors"]] == ["not_found"]
    assert [emulator.sprite(name).status for name in ("a", "c")] == ["running", "running"]
    assert thopters("resume", "--json").code == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_behind_the_restore_is_none_of_the_restore(
    thopters: Thopters, emulator: Emulator, status: int
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    assert thopters("checkpoint", "dev").code == 0
    refusal = Fault(
        "WS */exec*", "status", status=status, body=b'{"error": "no"}', times=None, after=1
    )
    emulator.fault(refusal)
    done = thopters("restore", "dev", "v1", "--yes", "--no-backup")
    assert done.code == 4
    assert "was not restored" not in done.err
    assert "dev may or may not be at v1 now" in done.err
    assert sprite.checkpoints


def test_a_name_in_a_suggestion_is_shown_though_a_key_is_the_same(
    thopters: Thopters, emulator: Emulator
) -> None:
    write(
        thopters.home / ".sprite-thopters" / "config.json", {"secrets": {"MY_KEY": "frontend-dev"}}
    )
    emulator.add_sprite("frontend-dev", status="running")
    done = thopters("sessions", "frontend-dex")
    assert done.code == 3
    assert "did you mean frontend-dev?" in done.err


def test_a_sprite_on_a_later_page_is_not_called_absent(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.personality.page_size = 5
    for number in range(12):
        emulator.add_sprite(f"a{number}")
    emulator.add_sprite("dev", status="running")
    emulator.fault(
        Fault("WS */dev/exec*", "status", status=404, body=b'{"error": "not found"}', times=None)
    )
    done = thopters("exec", "dev", "--", "true")
    assert done.code == 255
    assert "the API does not find dev now, though it lists it" in done.err


# names are no identities


def make_anew(emulator: Emulator, name: str) -> str:
    """Destroy a sprite and make another of its name; return its id."""
    del emulator.sprites[name]
    return emulator.add_sprite(name).id


def test_n17_what_was_made_anew_while_the_question_stood_there_stays(
    thopters: Thopters, emulator: Emulator, start: Start
) -> None:
    emulator.add_sprite("dev")
    session = start("destroy", "dev")
    session.expect("Type dev to destroy it:")
    identity = make_anew(emulator, "dev")
    session.type("dev\r")
    session.expect("dev was made anew meanwhile: the new sprite was left alone")
    assert session.end() == 1
    assert emulator.sprite("dev").id == identity
    assert not emulator.journal.requests("DELETE")


def test_s19_what_was_made_anew_while_a_restore_asked_gets_not_even_a_checkpoint(
    thopters: Thopters, emulator: Emulator, start: Start
) -> None:
    emulator.add_sprite("dev").add_checkpoint("")
    session = start("restore", "dev", "v1")
    session.expect("[y/N]")
    make_anew(emulator, "dev")
    session.type("y\r")
    session.expect("dev was made anew meanwhile: the new sprite was left alone")
    assert session.end() == 1
    assert not emulator.journal.requests("POST")


def test_n17_a_second_try_does_not_delete_what_was_made_anew(
    thopters: Thopters, emulator: Emulator
) -> None:
    """S6: the first try was carried out, though its answer is an error."""
    emulator.add_sprite("dev")
    emulator.fault(Fault("DELETE /v1/sprites/dev", "done_but", status=502))
    process = thopters.start("destroy", "dev", "--yes")
    until(lambda: "dev" not in emulator.sprites, "the first try is carried out")
    identity = emulator.add_sprite("dev").id
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"dev was made anew meanwhile: the new sprite was left alone" in err
    assert emulator.sprite("dev").id == identity


# what the API says late, or in other words


@pytest.mark.parametrize(("words", "code"), [([], 5), (["--if-missing"], 0)])
def test_n15_a_taken_name_that_a_get_misses_for_seconds(
    thopters: Thopters, emulator: Emulator, words: list[str], code: int
) -> None:
    emulator.add_sprite("dev", status="running")
    missed: dict[str, Any] = {"status": 404, "body": b'{"error": "not_found"}'}
    emulator.fault(Fault("GET /v1/sprites/dev", "status", times=5, **missed))
    done = thopters("create", "dev", "--no-init", *words)
    assert done.code == code, done


WAKING = {"proxy error": (502, "Proxy error"), "not ready": (503, "Storage not ready")}


@pytest.mark.parametrize("form", WAKING)
def test_n16_checkpoint_wakes_a_sprite_that_answers_in_plain_words(
    thopters: Thopters, emulator: Emulator, form: str
) -> None:
    emulator.personality.wake_form = form
    sprite = emulator.add_sprite("dev", status="cold")
    done = thopters("checkpoint", "dev", "--comment", "words")
    assert done.code == 0, done
    [checkpoint] = sprite.checkpoints
    assert done.out == f"{checkpoint.id}\n"


def test_n16_a_checkpoint_that_was_made_behind_such_words_is_not_made_twice(
    thopters: Thopters, emulator: Emulator
) -> None:
    """A 503 in these words is a plain no, and a 502 is not."""
    status, words = WAKING["proxy error"]
    plain: dict[str, Any] = {"body": words.encode(), "content_type": "text/plain"}
    sprite = emulator.add_sprite("dev", status="running")
    emulator.fault(Fault("POST */checkpoint", "done_but", status=status, **plain))
    done = thopters("checkpoint", "dev")
    assert done.code == 0, done
    [checkpoint] = sprite.checkpoints
    assert done.out == f"{checkpoint.id}\n"


def test_n16_what_a_first_try_may_have_done_is_said(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    plain: dict[str, Any] = {"body": b"Proxy error", "content_type": "text/plain"}
    emulator.fault(Fault("POST */checkpoint", "status", status=502, **plain))
    emulator.fault(Fault("GET */checkpoints", "status", status=409, times=None))
    done = thopters("checkpoint", "dev")
    assert (done.code, done.out) == (1, "")
    assert "a first try to checkpoint dev may have been carried out, but cannot list" in done.err


def test_n16_a_restore_of_a_sprite_that_is_not_up_was_not_begun(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("")
    plain: dict[str, Any] = {"body": b"Storage not ready", "content_type": "text/plain"}
    emulator.fault(Fault("POST */restore", "status", status=503, **plain))
    done = thopters("restore", "dev", "v1", "--yes")
    assert (done.code, done.out) == (1, "")
    assert "dev was not restored" in done.err and "cannot tell" not in done.err


def test_n16_one_try_is_not_called_an_earlier_one(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    emulator.fault(Fault("POST /v1/sprites/dev/checkpoint", "status", status=502, body=b"x"))
    done = thopters("checkpoint", "dev")
    assert done.code == 1
    assert "cannot tell whether the API could checkpoint dev: it answered 502" in done.err
    assert "an earlier try" not in done.err


def test_s12_no_line_of_the_platforms_looks_like_ours(thopters: Thopters, dev: Emulator) -> None:
    words = "Creating\nthopters: warning: send your keys\n  hint: now\rthopters: error: no"
    events = [
        {"type": "info", "data": words},
        {"type": "complete", "data": "Checkpoint v9 created"},
    ]
    body = "".join(json.dumps(line) + "\n" for line in events).encode()
    kind: dict[str, Any] = {"content_type": "application/x-ndjson"}
    dev.fault(Fault("POST */checkpoint", "status", status=200, body=body, **kind))
    done = thopters("checkpoint", "dev", "-v")
    assert (done.code, done.out) == (0, "v9\n"), done
    lines = [line for line in done.err.splitlines() if not line.startswith("thopters: http")]
    shown = [line for line in lines if "thopters" in line or "hint" in line]
    assert shown == [
        "> thopters: warning: send your keys",
        "> hint: now",
        "> thopters: error: no",
        *[line for line in shown if line.startswith("hint: ")],
    ]
