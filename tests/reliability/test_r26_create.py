"""R26, R27: create makes one sprite, says what is true of it, and leaves others' sprites alone."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from emulation import Emulator, Fault
from support.configs import write
from support.program import Thopters
from support.runs import shorten
from support.waiting import until

CREATE = "POST /v1/sprites"


@pytest.fixture(autouse=True)
def configured(thopters: Thopters) -> None:
    path = thopters.home / ".sprite-thopters" / "config.json"
    write(path, {"secrets": {"MINE": "a value"}, "git": {"user": "A", "email": "a@b.c"}})


def environment_file(emulator: Emulator) -> Path:
    return emulator.sprite("dev").home / ".thopters" / "env"


def posts(emulator: Emulator) -> int:
    return len(emulator.journal.requests("POST", "/v1/sprites"))


def done_but_500(emulator: Emulator) -> None:
    emulator.fault(Fault(CREATE, "done_but", status=500))


def done_but_524(emulator: Emulator) -> None:
    """Have a proxy give up waiting, in a way that is no standard's."""
    emulator.fault(Fault(CREATE, "done_but", status=524))


def done_but_reset(emulator: Emulator) -> None:
    emulator.fault(Fault(CREATE, "done_but", status=None))


def done_but_slow(emulator: Emulator) -> None:
    """Drip the answer, so that it would take minutes."""
    emulator.fault(Fault(CREATE, "drip", interval=0.4))


def done_but_unseen(emulator: Emulator) -> None:
    """Have neither the answer nor the look afterwards tell, but the second POST's refusal."""
    emulator.fault(Fault(CREATE, "done_but", status=502))


MADE = {
    "500": (done_but_500, 0, 409, 1),
    "500, and late to be seen": (done_but_500, 2, 409, 1),
    "524": (done_but_524, 0, 409, 1),
    "reset": (done_but_reset, 0, 409, 1),
    "time-out": (done_but_slow, 0, 409, 1),
    "seen by the second 409": (done_but_unseen, 4, 409, 2),
    "seen by the second 400": (done_but_unseen, 4, 400, 2),
    "seen by the second 422": (done_but_unseen, 4, 422, 2),
}


QUICK = ("500", "524", "reset", "time-out", "seen by the second 409")
CASES = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in MADE]


@pytest.mark.parametrize("case", CASES)
def test_r26_a_sprite_that_was_made_unseen_is_ours(
    thopters: Thopters, emulator: Emulator, case: str
) -> None:
    prepare, hidden, duplicate, requests = MADE[case]
    shorten(thopters, CREATE_LIMIT_S=0.7, READ_BACK_LIMIT_S=1)
    emulator.personality.duplicate_status = duplicate
    emulator.personality.late_get = hidden
    prepare(emulator)
    done = thopters("create", "dev", "-v")
    assert done.code == 0, done
    assert done.out.startswith(f"dev\t{emulator.sprite('dev').url}\t")
    assert list(emulator.sprites) == ["dev"]
    assert (posts(emulator), emulator.account.creates) == (requests, 1)
    assert environment_file(emulator).read_bytes() == b"export MINE='a value'\n"


@pytest.mark.parametrize(
    ("hidden", "duplicate", "words"),
    [(0, 409, []), (0, 409, ["--json"]), (1, 409, ["--no-init"]), (1, 400, []), (1, 422, [])],
)
def test_r26_anothers_sprite_is_not_touched(
    thopters: Thopters, emulator: Emulator, hidden: int, duplicate: int, words: list[str]
) -> None:
    """It may be seen at once, or by the refusal of the POST alone."""
    emulator.personality.duplicate_status = duplicate
    sprite = emulator.add_sprite("dev", hidden_gets=hidden)
    done = thopters("create", "dev", *words)
    assert done.code == 5
    assert "there is a sprite dev already" in done.out + done.err
    assert "was created" not in done.out + done.err
    assert posts(emulator) == hidden
    assert list(emulator.sprites) == ["dev"] and emulator.sprite("dev") is sprite
    assert sprite.status == "cold" and not emulator.journal.requests("WS")
    assert not emulator.journal.executed
    assert not (sprite.home / ".thopters").exists()


def test_r26_what_was_never_made_is_not_claimed(thopters: Thopters, emulator: Emulator) -> None:
    shorten(thopters, READ_BACK_LIMIT_S=0.5)
    emulator.fault(Fault(CREATE, "status", status=500, times=None))
    done = thopters("create", "dev")
    assert (done.code, done.out) == (1, "")
    assert "cannot create dev: the API answered 500" in done.err
    assert (posts(emulator), len(emulator.sprites)) == (2, 0)


@pytest.mark.slow
def test_r26_with_the_real_limits(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.late_get = 11  # more GETs than half a minute has
    emulator.fault(Fault(CREATE, "done_but", status=502))
    done = thopters("create", "dev", timeout=150)
    assert done.code == 0, done
    assert (posts(emulator), emulator.account.creates) == (2, 1)


# R27


def create_past_a_hang(thopters: Thopters, emulator: Emulator, limit_s: float) -> float:
    """Create a sprite whose first commands are not answered; return how long it took."""
    began = time.monotonic()
    done = thopters("create", "dev", "-v")
    took = time.monotonic() - began
    assert done.code == 0, done
    assert took < limit_s, done
    assert environment_file(emulator).exists()
    scripts = [r.stdin for r in emulator.journal.requests("WS") if b"thopters-init" in r.stdin]
    assert len(scripts) == 1
    assert len(emulator.journal.executed) == 2  # the probe that was answered, and init
    sessions = emulator.sprite("dev").sessions.values()
    assert all(session.ended.wait(30) for session in sessions)
    return took


def test_r27_a_fresh_sprite_may_hang_at_first(thopters: Thopters, emulator: Emulator) -> None:
    shorten(thopters, PROBE_LIMIT_S=1.5)
    emulator.personality.wake_503 = 0
    emulator.fault(Fault("WS *", "hang", times=2))
    create_past_a_hang(thopters, emulator, 10.0)
    assert len(emulator.journal.requests("WS")) == 4


@pytest.mark.slow
def test_r27_a_fresh_sprite_may_hang_for_ten_seconds(
    thopters: Thopters, emulator: Emulator
) -> None:
    fault = emulator.fault(Fault("WS *", "hang", times=None))

    def wake() -> None:
        fault.times = 0

    timer = threading.Timer(10.0, wake)
    timer.start()
    assert create_past_a_hang(thopters, emulator, 20.0) > 10.0
    timer.join()


def test_r27_a_command_that_starts_and_is_not_attached_is_no_orphan(
    thopters: Thopters, emulator: Emulator
) -> None:
    """The probes' processes run in vain: they end, and only the answered ones count."""
    shorten(thopters, PROBE_LIMIT_S=2.0)
    emulator.personality.wake_503 = 0
    emulator.personality.attach_delay_s = 6.0

    def attach_from_the_second_on() -> None:
        until(lambda: len(emulator.journal.requests("WS")) > 1, limit_s=60)
        emulator.personality.attach_delay_s = 0.0

    waker = threading.Thread(target=attach_from_the_second_on)
    waker.start()
    done = thopters("create", "dev", "-v")
    waker.join()
    assert done.code == 0, done
    assert re.search(r"dev is not ready: ", done.err), done
    assert environment_file(emulator).exists()
    sessions = emulator.sprite("dev").sessions
    assert len(sessions) > 2
    until(lambda: all(session.ended.is_set() for session in sessions.values()), limit_s=45)
