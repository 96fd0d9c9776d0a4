"""What list -q, list --watch, info and doctor tell; none of them changes or wakes anything."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from emulation import Emulator, Fault
from emulation.state import Sprite
from support.configs import write
from support.program import Thopters
from support.terminals import Start

# list -q


def test_list_q_prints_names_alone(thopters: Thopters, emulator: Emulator) -> None:
    for name in ("b", "a"):
        emulator.add_sprite(name)
    done = thopters("list", "-q")
    assert (done.code, done.out, done.err) == (0, "a\nb\n", "")
    emulator.account.remove("a")
    emulator.account.remove("b")
    done = thopters("list", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


# list --watch


class Watch:
    """A list that is watched; its lines come without their times."""

    def __init__(self, thopters: Thopters, *words: str) -> None:
        self.process = thopters.start("list", "--watch", *words, start_new_session=True)

    def lines(self, count: int) -> list[str]:
        stream: IO[bytes] = self.process.stdout  # type: ignore[assignment]
        found = [stream.readline().decode() for _ in range(count)]
        for line in found:
            assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\t", line), found
        return [line.partition("\t")[2].rstrip("\n") for line in found]

    def interrupt(self) -> tuple[int, bytes, bytes]:
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def watch(thopters: Thopters, emulator: Emulator) -> Iterator[Watch]:
    emulator.add_sprite("dev", status="cold")
    emulator.add_sprite("other", status="running")
    watch = Watch(thopters)
    yield watch
    watch.process.kill()
    watch.process.communicate()


def test_list_watch_prints_each_change_and_wakes_nothing(watch: Watch, emulator: Emulator) -> None:
    assert watch.lines(2) == ["dev\thibernating", "other\trunning"]
    emulator.account.remove("other")
    emulator.add_sprite("new", status="running")
    assert watch.lines(2) == ["new\trunning", "other\tgone"]
    emulator.account.remove("new")
    emulator.add_sprite("new", status="warm")  # another one of that name
    assert watch.lines(2) == ["new\tgone", "new\thibernating"]
    code, out, err = watch.interrupt()
    assert (code, out, err.splitlines()[-1]) == (-signal.SIGINT, b"", b"thopters: interrupted")
    assert emulator.sprite("dev").status == "cold"
    assert {request.path for request in emulator.journal} <= {"/v1/sprites", "/v1/sprites/other"}


def test_list_watch_goes_on_over_a_failure_and_believes_no_list_alone(
    watch: Watch, emulator: Emulator
) -> None:
    assert len(watch.lines(2)) == 2
    empty = {"status": 200, "body": b'{"sprites": []}', "content_type": "application/json"}
    emulator.fault(Fault("GET /v1/sprites", "status", **empty))  # type: ignore[arg-type]
    emulator.fault(Fault("GET /v1/sprites", "status", after=1, status=400))
    emulator.fault(Fault("GET /v1/sprites", "status", after=2, status=400))
    while len(emulator.journal.requests("GET", "/v1/sprites")) < 5:
        assert watch.process.poll() is None
    emulator.add_sprite("new")
    assert watch.lines(1) == ["new\thibernating"]  # and nothing was gone
    _, _, err = watch.interrupt()
    assert err.count(b"warning: cannot list sprites") == 1 and b"the watch goes on" in err


def test_list_watch_ends_where_the_token_is_refused(watch: Watch, emulator: Emulator) -> None:
    assert len(watch.lines(2)) == 2
    emulator.fault(Fault("GET *", "status", status=401, times=None))
    out, err = watch.process.communicate(timeout=60)
    assert (watch.process.returncode, out) == (4, b"") and b"refused the token" in err


# info

STATES = [("running", True, True), ("warm", False, True), ("cold", False, False)]


@pytest.mark.parametrize(("status", "looks_inside", "lists_checkpoints"), STATES)
def test_info_looks_no_deeper_than_a_sprite_is_awake(
    thopters: Thopters, emulator: Emulator, status: str, looks_inside: bool, lists_checkpoints: bool
) -> None:
    sprite = emulator.add_sprite("dev", status=status)
    sprite.add_checkpoint("a comment")
    done = thopters("info", "dev", "--json")
    assert done.code == 0, done
    told = json.loads(done.out)
    assert (told["name"], told["status"], told["id"]) == ("dev", status, sprite.id)
    assert told["state"] == ("running" if status == "running" else "hibernating")
    assert told["auth"] == "sprite" and told["url"] == sprite.url
    assert told["sessions"] == told["holds"] == ([] if looks_inside else None)
    ids = [item["id"] for item in told["checkpoints"] or ()]
    assert ids == (["v1"] if lists_checkpoints else [])
    assert (told["checkpoints"] is None) == (not lists_checkpoints)
    if status == "cold":
        assert sprite.status == "cold"
    inside = [request for request in emulator.journal if "/exec" in request.path]
    assert bool(inside) == looks_inside


def test_info_tells_what_runs_and_who_may_open_it(
    thopters: Thopters, sprite: Sprite, start: Start
) -> None:
    sprite.url_settings = {"auth": "sprite", "private_access": "admins"}
    for number in range(7):
        sprite.add_checkpoint(f"number {number}")
    assert thopters("exec", "dev", "-d", "--name", "tests", "--", "sleep", "60").code == 0
    assert thopters("hold", "dev", "--for", "1h").code == 0
    done = thopters("info", "dev")
    assert done.code == 0 and all(line.count("\t") == 1 for line in done.out.splitlines()), done
    facts = done.out.splitlines()
    assert facts[0] == "state\trunning" and "open to\tadmins of the org" in facts
    assert re.search(r"^session\t\w+ tests: sleep 60 in /", done.out, re.M)
    assert re.search(r"^hold\t\S+: until ", done.out, re.M)
    assert re.search(r"^checkpoint\tv7: \S+Z, number 6$", done.out, re.M)
    assert facts[-1] == "checkpoint\t2 older: thopters checkpoints dev"
    session = start("info", "dev", columns=60)
    assert session.end() == 0
    assert re.search(r"^created +(just now|\d+ seconds ago)$", session.screen.text, re.M)


def test_info_tells_the_rest_where_the_sprite_does_not_answer(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("")
    body = b'{"error": "wedged", "message": "the disk is wedged"}'
    emulator.fault(Fault("GET */exec", "status", status=500, body=body, times=None))
    emulator.fault(Fault("GET */checkpoints", "status", status=400, body=body, times=None))
    done = thopters("info", "dev", "--json")
    told = json.loads(done.out)
    assert (done.code, told["sessions"], told["checkpoints"]) == (0, None, None)
    assert done.err.count("warning: ") == 2 and "the disk is wedged" in done.err
    done = thopters("info", "nothing")
    assert (done.code, done.out) == (3, "")


# doctor


def states(out: str) -> dict[str, str]:
    return {name: state for state, name, *_ in (line.split("\t") for line in out.splitlines())}


NAMES = [
    "python", "certificates", "proxy", "token", "api", "clock", "plan", "sprite program",
    "configuration",
]  # fmt: skip


def test_doctor_finds_all_in_order(thopters: Thopters, emulator: Emulator, console: None) -> None:
    config = thopters.home / ".sprite-thopters" / "config.json"
    write(config, {"secrets": {}})
    emulator.add_sprite("dev")
    done = thopters("doctor")
    assert (done.code, states(done.out)) == (0, dict.fromkeys(NAMES, "ok")), done
    assert "from SPRITE_TOKEN, org acme, valid" in done.out
    assert "0 running, and the plan allows 10" in done.out
    document = json.loads(thopters("doctor", "--json").out)
    assert [check["name"] for check in document["checks"]] == NAMES
    assert set(document["checks"][0]) == {"name", "state", "message", "hint"}
    assert emulator.sprite("dev").status == "cold"
    assert {request.method for request in emulator.journal} == {"GET"}


def test_doctor_warns_of_what_is_absent(thopters: Thopters, emulator: Emulator) -> None:
    del thopters.env["SPRITE_TOKEN"]
    done = thopters("doctor")
    found = states(done.out)
    absent = {"token", "clock", "plan", "sprite program", "configuration"}
    assert (done.code, {name for name in found if found[name] == "warning"}) == (0, absent), done
    assert "sprite login" in done.out and "thopters setup" in done.out
    assert not len(emulator.journal)  # without a token nothing is asked


def test_doctor_changes_no_mode_and_names_the_command(
    thopters: Thopters, emulator: Emulator
) -> None:
    config = thopters.home / ".sprite-thopters" / "config.json"
    write(config, {"secrets": {"MINE": "a value"}})
    config.chmod(0o644)
    config.parent.chmod(0o755)
    done = thopters("doctor")
    assert states(done.out)["configuration"] == "warning"
    assert f"chmod 600 {config}" in done.out and f"chmod 700 {config.parent}" in done.out
    assert stat.S_IMODE(os.stat(config).st_mode) == 0o644
    assert stat.S_IMODE(os.stat(config.parent).st_mode) == 0o755


def test_doctor_says_what_is_broken_and_what_to_do(thopters: Thopters, emulator: Emulator) -> None:
    config = thopters.home / ".sprite-thopters" / "config.json"
    config.parent.mkdir()
    config.write_text("{")
    thopters.env["SSL_CERT_FILE"] = "/nothing/there"
    thopters.env["THOPTERS_CA_BUNDLE"] = str(thopters.home)
    thopters.env["SPRITE_TOKEN"] = "acme/1/tok/not-the-right-one"
    done = thopters("doctor")
    found = states(done.out)
    broken = {"certificates", "token", "configuration"}
    assert (done.code, {name for name in found if found[name] == "failure"}) == (1, broken), done
    assert "not-the-right-one" not in done.out and "sprite login" in done.out
    done = thopters("doctor", env={"SPRITES_API_URL": "http://127.0.0.1:1"})
    assert (done.code, states(done.out)["api"]) == (1, "failure")
    assert "cannot reach 127.0.0.1" in done.out
    done = thopters("doctor", env={"SPRITES_API_URL": "http://example.com"})
    assert (done.code, states(done.out)["api"]) == (1, "failure"), done


@pytest.mark.parametrize(
    ("offset_s", "says"), [(0, "ok"), (7200, "2h behind"), (-86400, "24h ahead")]
)
def test_doctor_compares_the_clocks(
    thopters: Thopters, emulator: Emulator, offset_s: int, says: str
) -> None:
    emulator.clock._ahead = offset_s
    done = thopters("doctor")
    line = next(line for line in done.out.splitlines() if "\tclock\t" in line)
    assert says in line and line.startswith("warning" if offset_s else "ok")


def test_doctor_warns_where_the_plan_is_full(thopters: Thopters, emulator: Emulator) -> None:
    for number in range(10):  # the limit that the emulated lists tell
        emulator.add_sprite(f"s{number}", status="running")
    done = thopters("doctor")
    assert states(done.out)["plan"] == "warning" and "thopters pause NAME" in done.out


def test_doctor_is_lines_on_a_terminal(emulator: Emulator, start: Start, tmp_path: Path) -> None:
    session = start("doctor", columns=200)
    assert session.end() == 0
    assert "ok       token: from SPRITE_TOKEN, org acme, valid" in session.screen.text
