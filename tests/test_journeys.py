"""Each command as a user runs it, to the byte sent."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from support.program import Thopters, both
from support.sessions import asked

# create


def test_create_makes_a_sprite_that_runs_commands(thopters: Thopters, emulator: Emulator) -> None:
    done = thopters("create", "dev")
    sprite = emulator.sprite("dev")
    assert done.code == 0
    name, url, seconds = done.out.rstrip("\n").split("\t")
    assert (name, url) == ("dev", sprite.url)
    assert float(seconds) >= 0
    assert "there is no configuration, so the sprite gets no keys" in done.err
    assert "hint: thopters shell dev" in done.err
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


# list


def test_list_is_sorted_and_whole_over_pages(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.page_size = 2
    for name in ("b", "a", "c", "e", "d"):
        emulator.add_sprite(name)
    done = thopters("list")
    assert done.code == 0
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["a", "b", "c", "d", "e"]
    assert len(emulator.journal) == 3
    assert "0 running of 10, 0 warm of 20, 5 cold" in done.err
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
    assert ("1 running of 10" in done.err) == (org != "absent")


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


# exec


def test_exec_streams_and_status(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    done = thopters("exec", "dev", "--", "bash", "-c", "echo out; echo err >&2; exit 42")
    assert (done.code, done.out, done.err) == (42, "out\n", "err\n")


def test_exec_keeps_everything_out_of_the_url(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    done = thopters(
        "exec", "dev", "--dir", "/", "--env", "K=canary-1", "--", "echo", "canary-2", "canary-3"
    )
    assert done.out == "canary-2 canary-3\n"
    (request,) = emulator.journal.requests()
    assert b"canary" not in request.head
    assert b"canary-3" in request.stdin
    assert len(request.target) < 300
    assert not emulator.journal.oddities


def test_exec_passes_any_argument(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    words = [bytes(range(1, 256)), b"", b"-n", b"--", b"$(touch x)", b"a'b\"c\n", b"\xff\xfe", b"*"]
    done = thopters("exec", "dev", "--", "bash", "-c", 'printf "%s\\0" "$@"', "sh", *words)
    assert done.out_bytes.split(b"\0")[:-1] == words
    assert not (emulator.sprite("dev").home / "x").exists()


def test_exec_passes_long_arguments(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    words = ["x" * 100_000] * 8
    done = thopters("exec", "dev", "--", "bash", "-c", 'echo "${#1} $#"', "sh", *words)
    assert done.out == "100000 8\n"


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 254, 255])
def test_exec_status_is_exact(thopters: Thopters, emulator: Emulator, code: int) -> None:
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--", "bash", "-c", f"exit {code}")
    assert (done.code, done.err) == (code, "")


@pytest.mark.parametrize("form", ["byte", "be32", "json"])
@pytest.mark.parametrize("info", ["first", "late", "absent"])
def test_exec_in_every_dialect(
    thopters: Thopters, emulator: Emulator, form: str, info: str
) -> None:
    emulator.personality.exit_form, emulator.personality.session_info = form, info
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--", "bash", "-c", "echo hi; exit 3")
    assert (done.code, done.out) == (3, "hi\n")


@pytest.mark.parametrize("name", ["INT", "TERM", "KILL", "SEGV", "PIPE"])
@pytest.mark.parametrize("killed", ["128+n", "255"])
def test_exec_of_a_command_that_a_signal_ends(
    thopters: Thopters, emulator: Emulator, name: str, killed: str
) -> None:
    emulator.personality.killed_exit = killed
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--", "bash", "-c", f"kill -{name} $$")
    assert (done.code, done.err) == (128 + signal.Signals["SIG" + name], "")


def test_exec_of_what_is_not_there(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--", "no-such-program")
    assert done.code == 127
    assert "no-such-program: not found" in done.err


def test_exec_directory_and_variables(thopters: Thopters, emulator: Emulator) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    (sprite.home / "a b").mkdir()
    show = 'pwd; printf "%s|" "$A" "$B" "$C"'
    done = thopters(
        "exec", "dev", "--dir", "a b", "--env", "A=x,y '\n", "--env", "B", "--env", "C=",
        "--", "bash", "-c", show, env={"B": "from here"},
    )  # fmt: skip
    assert done.out == f"{sprite.machine.home_inside}/a b\nx,y '\n|from here||"


@pytest.mark.parametrize("bad_dir", ["ignored", "error"])
def test_exec_in_a_directory_that_is_not_there(
    thopters: Thopters, emulator: Emulator, bad_dir: str
) -> None:
    emulator.personality.bad_dir = bad_dir
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--dir", "/nowhere", "--", "touch", "ran")
    assert done.code == 255
    assert "thopters: error: cannot enter --dir: /nowhere: No such file" in done.err
    assert not (emulator.sprite("dev").home / "ran").exists()


def test_exec_has_a_home_whatever_the_default(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.default_home = False
    emulator.add_sprite("dev", status="running")
    assert thopters("exec", "dev", "--", "sh", "-c", 'echo "$HOME"').out.startswith("/")


def test_exec_forwards_input_only_when_asked(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    data = bytes(range(256)) * 5000
    done = thopters("exec", "-i", "dev", "--", "sha256sum", stdin=data)
    assert done.out.split()[0] == hashlib.sha256(data).hexdigest()
    done = thopters("exec", "dev", "--", "cat", stdin=b"not for the command")
    assert done.out == ""
    assert b"not for the command" not in emulator.journal[-1].stdin


def test_exec_leaves_a_loops_input_alone(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    program = " ".join(thopters.argv)
    loop = f"while read -r line; do {program} exec dev -- echo $line; done"
    done = subprocess.run(
        ["bash", "-c", loop], input=b"1\n2\n3\n4\n", env=thopters.env, capture_output=True
    )
    assert done.stdout == b"1\n2\n3\n4\n"


def test_exec_output_before_attachment_is_not_lost(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.attach_delay_s = 0.5
    emulator.add_sprite("dev", status="running")
    done = thopters("exec", "dev", "--", "seq", "100000")
    assert done.out == "".join(f"{n}\n" for n in range(1, 100001))


def test_exec_wakes_a_sleeping_sprite(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.wake_503 = 3
    emulator.add_sprite("dev", status="cold")
    done = thopters("exec", "-v", "dev", "--", "echo", "awake")
    assert (done.code, done.out) == (0, "awake\n")
    assert done.err.count("503 sprite_starting") == 3
    assert len(emulator.journal.executed) == 1


@pytest.mark.parametrize(("form", "status"), [("proxy error", 502), ("not ready", 503)])
@pytest.mark.parametrize("words", [["exec", "dev", "--", "true"], ["sessions", "dev"]])
def test_a_sprite_that_does_not_say_that_it_wakes_is_waited_for_too(
    thopters: Thopters, emulator: Emulator, form: str, status: int, words: list[str]
) -> None:
    emulator.personality.wake_503, emulator.personality.wake_form = 4, form
    emulator.add_sprite("dev", status="cold")
    done = thopters("-v", *words)
    assert done.code == 0, done
    assert done.err.count(f"{status}; trying again in ") == 4


@pytest.mark.parametrize(
    ("actions", "started"),
    [
        ([("drop", None)], False),
        ([("close", 1011)], False),
        ([("message", b"\x07?")], False),
        ([("message", b"\x03")], False),
        ([("message", b"\x03\x00\x00")], False),
        ([("raw", b"\x82\x85")], False),
        ([("message", b"\x01thopters-exec 77\npart"), ("drop", None)], True),
        ([("message", b"\x01thopters-exec 77\n"), ("message", b"\x09")], True),
    ],
)
def test_exec_never_invents_a_status(
    thopters: Thopters, emulator: Emulator, actions: list[tuple[str, object]], started: bool
) -> None:
    emulator.add_sprite("dev", status="running")
    emulator.fault(Fault("WS */exec", "ws", actions=actions, times=None))
    done = thopters("exec", "dev", "--", "true")
    assert done.code == 255
    words = "the command's exit status is unknown" if started else "not known whether it has run"
    assert words in done.err
    assert len(emulator.journal.requests("WS")) == 1


def test_exec_says_that_the_sprite_paused(thopters: Thopters, emulator: Emulator) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    process = thopters.start("exec", "dev", "--", "sh", "-c", "echo up; exec sleep 100")
    assert process.stdout and process.stdout.readline() == b"up\n"
    sprite.pause()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 255
    assert b"the sprite has paused" in err
    assert b"it was not run again" in err
    assert len(emulator.journal.executed) == 1


@pytest.mark.parametrize("size", [0, 1, 5, 100, 200])
def test_exec_cut_on_its_way_runs_nothing(
    thopters: Thopters, emulator: Emulator, size: int
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    emulator.fault(Fault("WS */exec", "cut_request", size=size, times=1))
    done = thopters("exec", "dev", "--", "touch", "ran")
    assert done.code == 255
    assert "not known whether it has run" in done.err
    assert not (sprite.home / "ran").exists()


def test_exec_does_not_wait_for_the_servers_close(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.hold_after_exit_s = 60
    emulator.add_sprite("dev", status="running")
    assert thopters("exec", "dev", "--", "true", timeout=20).code == 0


def test_exec_interrupted_ends_the_command_too(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    process = thopters.start("exec", "dev", "--", "bash", "-c", "echo up; exec sleep 100")
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert b"Traceback" not in err
    sessions = emulator.sprite("dev").sessions.values()
    assert all(session.ended.wait(10) for session in sessions)


def test_exec_lets_the_command_handle_the_interrupt(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    script = "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.05; done"
    process = thopters.start("exec", "dev", "--", "bash", "-c", script)
    assert process.stdout and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (9, b"caught\n")


def test_exec_in_a_sprite_that_is_destroyed_meanwhile(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    process = thopters.start("exec", "dev", "--", "sh", "-c", "echo up; sleep 60")
    assert process.stdout and process.stdout.readline() == b"up\n"
    emulator.account.remove("dev")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 255
    assert (
        b"there is no sprite dev any more" in err
        and b"hint: see what there is: thopters list" in err
    )


def test_exec_into_a_closed_pipe(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    process = thopters.start("exec", "dev", "--", "yes")
    assert process.stdout and process.stdout.read(10) == b"y\ny\ny\ny\ny\n"
    process.stdout.close()
    assert process.wait(30) == -signal.SIGPIPE
    assert process.stderr and b"Traceback" not in process.stderr.read()
    assert all(session.ended.wait(15) for session in emulator.sprite("dev").sessions.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dev"], "there is no command to run"),
        (["dev", "--"], "there is no command to run"),
        (["dev", "uname", "a b"], "thopters exec dev -- uname 'a b'"),
        (["dev", "--env", "1X=2", "--", "true"], "--env wants NAME=VALUE"),
        (["dev", "--env", "NOT_SET_HERE", "--", "true"], "there is no such variable here"),
        (["dev", "--env", "UID=5", "--", "true"], "--env can't set UID"),
        (["--", "true"], "NAME"),
    ],
)
def test_exec_wrong_usage(
    thopters: Thopters, emulator: Emulator, words: list[str], message: str
) -> None:
    done = thopters("exec", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not len(emulator.journal)


def test_exec_of_our_own_failures_is_255(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev-main")
    done = thopters("exec", "dev-mian", "--", "true")
    assert done.code == 255
    assert "there is no sprite dev-mian" in done.err
    assert "did you mean dev-main?" in done.err


# checkpoints


@pytest.mark.parametrize("told", ["details", "complete", "none"])
def test_checkpoint_prints_its_id(thopters: Thopters, emulator: Emulator, told: str) -> None:
    emulator.personality.checkpoint_id_text = told
    emulator.add_sprite("dev")
    done = thopters("checkpoint", "dev", "--comment", "known good")
    assert (done.code, done.out) == (0, "v1\n")
    assert "Creating checkpoint..." in done.err
    assert "thopters restore dev v1" in done.err
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


def test_options_may_stand_between_words(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("first")
    assert thopters("restore", "dev", "--yes", "v1").code == 0
    assert json.loads(thopters("url", "--json", "dev", "-v").out)["name"] == "dev"


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


@pytest.mark.parametrize("words", [["ls"], ["ls", "-la", "a b"], ["-i", "ls", "-la"]])
def test_a_command_without_its_mark_is_shown_with_it(thopters: Thopters, words: list[str]) -> None:
    done = thopters("exec", "dev", *words)
    own = words[words.index("ls") :]
    assert (done.code, done.out) == (2, "")
    assert f"hint: thopters exec dev -- {shlex.join(own)}\n" in done.err


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
    assert done.out.startswith("v1\t")
    assert "thopters restore dev v1" in done.err


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


# url, rename, destroy


def test_url(thopters: Thopters, emulator: Emulator) -> None:
    sprite = emulator.add_sprite("dev")
    assert thopters("url", "dev").out == sprite.url + "\n"
    done = thopters("url", "dev", "--public")
    assert (done.code, done.out) == (0, sprite.url + "\n")
    assert "anybody can now open" in done.err
    assert "thopters url dev --private" in done.err
    assert sprite.url_settings == {"auth": "public"}
    assert json.loads(thopters("url", "dev", "--private", "--json").out) == {
        "name": "dev",
        "url": sprite.url,
        "auth": "sprite",
        "private_access": None,
    }
    assert sprite.url_settings == {"auth": "sprite"}
    assert sprite.status == "cold"


@pytest.mark.parametrize(("access", "who"), [("admins", "admins"), ("org_users", "members")])
def test_url_that_is_private_already_keeps_who_may_open_it(
    thopters: Thopters, emulator: Emulator, access: str, who: str
) -> None:
    sprite = emulator.add_sprite("dev")
    sprite.url_settings = {"auth": "sprite", "private_access": access}
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
        (made,) = (document[key] for key in document if key != "errors")
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


# bad input, bad answers


HOSTILE = ["../x", "-rf", "a\x1b[31m", "", "x" * 200, "a%2fb"]  # R30 has all kinds
COMMANDS = [
    ["create"], ["resume"], ["exec", "NAME", "--", "true"], ["checkpoint"], ["checkpoints"],
    ["restore", "NAME", "v1", "--yes"], ["url"], ["rename", "NAME", "x"], ["destroy", "--yes"],
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_hostile_names_are_refused_unsent(
    thopters: Thopters, emulator: Emulator, words: list[str]
) -> None:
    for name in HOSTILE:
        argv = [name if word == "NAME" else word for word in words]
        if "NAME" not in words:
            argv.insert(1, name)
        done = thopters(*argv)
        assert (done.code, done.out) == (2, ""), (argv, done)
        assert "\x1b" not in done.err
        assert "Traceback" not in done.err
    assert not len(emulator.journal)


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


def test_errors_in_json(thopters: Thopters, emulator: Emulator) -> None:
    done = thopters("url", "nope", "--json")
    assert done.code == 3
    assert json.loads(done.out)["error"]["code"] == "not_found"
    done = thopters("list", "--json", "--nonsense")
    assert done.code == 2
    assert json.loads(done.out)["error"]["code"] == "usage"


# the program itself


@both
def test_version_and_help(thopters: Thopters) -> None:
    for words in (["--debug", "--version"], ["-v", "--debug", "--help"]):
        assert thopters(*words).out == thopters(words[-1]).out != ""
    done = thopters("--version")
    assert (done.code, done.err) == (0, "")
    assert re.match(r"thopters \d+\.\d+\.\d+ \(Python 3\.\d+", done.out)
    for words in ([], ["--help"], ["-h"], ["help"]):
        done = thopters(*words)
        assert done.code == 0
        assert "usage: thopters" in done.out
    for name in ("create", "ls", "exec", "restore"):
        assert thopters("help", name).out == thopters(name, "--help").out
        assert "examples:" in thopters("help", name).out


def test_unknown_words(thopters: Thopters) -> None:
    done = thopters("lst")
    assert done.code == 2
    assert "did you mean list?" in done.err or "did you mean ls?" in done.err
    assert thopters("--frob").code == 2
    assert thopters("list", "--frob").code == 2


def test_debug_shows_requests_and_no_secret(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    for words in (["--debug", "list", "--prefix", "d"], ["list", "--debug", "--prefix", "d"]):
        done = thopters(*words)
        assert "debug: GET /v1/sprites -> 200 in " in done.err
        assert "prefix" not in done.err
        assert emulator.token.rpartition("/")[2] not in done.err + done.out


def test_closed_pipe_and_full_disk(thopters: Thopters, emulator: Emulator) -> None:
    for number in range(40):
        emulator.add_sprite(f"sprite-{number:03}")
    program = " ".join(thopters.argv)
    done = subprocess.run(
        ["bash", "-c", f"{program} list | head -1; echo ${{PIPESTATUS[0]}}"],
        env=thopters.env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[0].startswith("sprite-000\t")
    assert done.stdout.splitlines()[1] in ("0", "141")
    assert "Traceback" not in done.stderr
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            process = thopters.start("list", stdout=full)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert b"thopters: error: cannot write the output: No space left" in err
        assert b"Traceback" not in err


@pytest.mark.parametrize("encoding", ["C", "POSIX", "C.UTF-8", "en_US.ISO-8859-1"])
def test_any_locale(thopters: Thopters, emulator: Emulator, encoding: str) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("naïve ☃ \x1b[2J\u202e")
    env = {"LC_ALL": encoding, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = thopters("checkpoints", "dev", env=env)
    assert (done.code, done.err) == (0, "")
    assert b"\x1b" not in done.out_bytes
    assert done.out.split("\t")[2].endswith("\\x1b[2J\\u202e\n")


@both
def test_no_warnings_of_python(thopters: Thopters, emulator: Emulator) -> None:
    thopters.argv[1:1] = ["-X", "dev", "-W", "error"]
    emulator.personality.wake_503 = 0
    for words in (
        ["create", "dev"], ["list"], ["exec", "dev", "--", "true"], ["checkpoint", "dev"],
        ["restore", "dev", "v1", "--yes"], ["destroy", "dev", "--yes"], ["url", "nope"],
    ):  # fmt: skip
        done = thopters(*words)
        assert "Warning" not in done.err, done
        assert done.code in (0, 3)


def test_nothing_is_written_at_home(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    before = sorted(os.listdir(thopters.home))
    for words in (["list"], ["exec", "dev", "--", "true"], ["checkpoint", "dev"]):
        assert thopters(*words).code == 0
    assert sorted(os.listdir(thopters.home)) == before
    assert emulator.journal.oddities == []


# resume


@pytest.mark.parametrize("status", ["warm", "cold", "running"])
def test_resume_wakes_and_tells_what_it_was(
    thopters: Thopters, emulator: Emulator, status: str
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    if status != "running":
        sprite.pause(cold=status == "cold")
    done = thopters("resume", "dev")
    was = "was running already, and answered" if status == "running" else f"was {status}, woke"
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
