"""R37, R38: destroy and restore do nothing without consent and claim nothing that was not seen.

What was typed is typed on a real terminal; what was done is counted in the emulator's journal.
"""

from __future__ import annotations

import re
import signal
import subprocess
from typing import Any

import pytest
from emulation import Emulator, Fault
from support.program import Thopters
from support.sessions import writes
from support.terminals import CTRL_C, CTRL_D, Start
from support.waiting import until

# R37

NO_NAMES = {
    "wrong": "deb\n",
    "empty": "\n",
    "end of input": CTRL_D,
    "end of input after the name": "dev" + CTRL_D + CTRL_D,
    "trailing space": "dev \n",
    "leading space": " dev\n",
    "another case": "DEV\n",
    "yes": "yes\n",
    "twice": "devdev\n",
}


@pytest.mark.parametrize("case", NO_NAMES)
def test_r37_destroy_takes_the_very_name_alone(emulator: Emulator, start: Start, case: str) -> None:
    emulator.add_sprite("dev")
    session = start("destroy", "dev", columns=200)
    session.expect("Type dev to destroy it: ")
    session.type(NO_NAMES[case])
    assert session.end() == 2, session.output
    assert "that is not the name: nothing was destroyed" in session.screen.text
    assert "destroyed dev" not in session.screen.text
    assert not writes(emulator)
    assert list(emulator.sprites) == ["dev"]


def test_r37_destroy_without_a_terminal_sends_nothing(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev")
    for words in (["destroy", "dev"], ["destroy", "dev", "--json"], ["restore", "dev", "v1"]):
        done = thopters(*words, stdin=b"dev\nyes\ny\n")
        assert done.code == 2
        assert "--yes" in done.out + done.err
    assert not len(emulator.journal)


@pytest.mark.parametrize("status", [302, 307])
def test_r37_a_redirected_destroy_is_a_failure(
    thopters: Thopters, emulator: Emulator, status: int
) -> None:
    emulator.add_sprite("dev")
    elsewhere = f"{emulator.url}/v1/sprites/dev"
    emulator.fault(Fault("DELETE *", "redirect", status=status, location=elsewhere, times=None))
    done = thopters("destroy", "dev", "--yes")
    assert (done.code, done.out) == (1, "")
    assert f"the API answered {status}, a redirect to 127.0.0.1, which is never" in done.err
    assert len(emulator.journal.requests("DELETE")) == 1
    assert list(emulator.sprites) == ["dev"]


PORTAL = {"status": 200, "body": b"<html>", "content_type": "text/html"}


@pytest.mark.parametrize(
    ("kind", "params", "code", "left"),
    [
        ("done_but", {"status": None}, 0, []),  # the second DELETE finds nothing: it is gone
        ("done_but", {"status": 500}, 0, []),
        ("reset", {}, 0, []),
        ("status", {"status": 404}, 3, ["dev"]),  # at the first it proves nothing
        ("status", {"status": 403}, 4, ["dev"]),
        ("status", {"status": 418}, 1, ["dev"]),
        pytest.param("status", PORTAL, 7, ["dev"], marks=pytest.mark.slow),
    ],
    ids=["reset when done", "500 when done", "reset", "404", "403", "418", "a portal"],
)
def test_r37_destroyed_is_what_is_seen_gone(
    thopters: Thopters,
    emulator: Emulator,
    kind: str,
    params: dict[str, Any],
    code: int,
    left: list[str],
) -> None:
    emulator.add_sprite("dev")
    emulator.fault(Fault("DELETE *", kind, **params))
    done = thopters("destroy", "dev", "--yes")
    assert done.code == code, done
    assert done.out == ("destroyed dev\n" if code == 0 else "")
    assert list(emulator.sprites) == left
    if code == 0:
        assert emulator.journal[-1].status == 404


# R38


@pytest.fixture
def checkpointed(emulator: Emulator) -> Any:
    """Return a sprite with a checkpoint v1, and a file that came since."""
    sprite = emulator.add_sprite("dev", status="running")
    sprite.add_checkpoint("first")
    (sprite.home / "since").touch()
    return sprite


RESTORE = "POST /v1/sprites/dev/checkpoints/v1/restore"


def restores(emulator: Emulator) -> int:
    return len(emulator.journal.requests("POST", RESTORE[5:]))


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("ndjson_error", {}),
        ("ndjson_no_complete", {}),
        pytest.param("reset", {}, marks=pytest.mark.slow),
        pytest.param("done_but", {"status": 500}, marks=pytest.mark.slow),
        ("status", {"status": 429, "body": b'{"error": "x", "retry_after_seconds": 9999}'}),
        pytest.param("status", PORTAL, marks=pytest.mark.slow),
        ("cut_response", {"size": 230}),
    ],
    ids=["error", "no complete", "reset", "500", "429", "portal", "cut"],
)
def test_r38_without_a_backup_nothing_is_restored(
    thopters: Thopters, emulator: Emulator, checkpointed: Any, kind: str, params: dict[str, Any]
) -> None:
    emulator.fault(Fault("POST */checkpoint", kind, **params))
    done = thopters("restore", "dev", "v1", "--yes")
    assert done.code in (1, 6) and done.out == "", done
    assert "restored" not in done.err
    assert restores(emulator) == 0
    assert (checkpointed.home / "since").exists()


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("ndjson_error", {}),
        ("ndjson_no_complete", {}),
        ("reset", {}),
        ("done_but", {"status": 502}),
        ("status", {"status": 200, "body": b"", "content_type": "application/x-ndjson"}),
        ("cut_response", {"size": 330}),
        *(
            pytest.param("cut_response", {"size": size}, marks=pytest.mark.slow)
            for size in range(10, 330, 40)
        ),
    ],
)
def test_r38_a_restore_that_is_not_complete_is_not_claimed(
    thopters: Thopters, emulator: Emulator, checkpointed: Any, kind: str, params: dict[str, Any]
) -> None:
    emulator.fault(Fault(RESTORE, kind, **params))
    done = thopters("restore", "dev", "v1", "--yes")
    assert (done.code, done.out) == (1, ""), done
    assert "dev may or may not be at v1 now; the state before is checkpoint v2" in done.err
    assert "restored" not in done.err
    assert restores(emulator) == 1
    # where its removal was cut off by the restore, the restore takes it away
    until(lambda: not list(checkpointed.home.glob(".thopters-restore-*")), "the marker is gone")


@pytest.mark.parametrize(
    ("old_s", "refusals"), [(1.0, 6), pytest.param(2.5, 50, marks=pytest.mark.slow)]
)
def test_r38_a_sprite_that_is_not_ready_is_waited_for(
    thopters: Thopters, emulator: Emulator, checkpointed: Any, old_s: float, refusals: int
) -> None:
    """The old environment answers for a while, then nothing does, then the new one."""
    emulator.personality.restore_delay_s = old_s
    emulator.personality.wake_503 = refusals  # of 50 ms each, so of five seconds in all
    done = thopters("restore", "dev", "v1", "--yes", "-v")
    assert done.code == 0, done
    found = re.fullmatch(r"restored dev to v1 in ([\d.]+) s\n", done.out)
    assert found and float(found[1]) >= old_s + refusals * 0.05, done
    # a look that took too long on a busy machine has not seen its refusal
    assert refusals * 0.9 <= done.err.count("503 sprite_starting") <= refusals
    assert "dev is not ready" in done.err
    assert not (checkpointed.home / "since").exists()
    assert restores(emulator) == 1


@pytest.mark.parametrize(
    ("keys", "status"),
    [("\n", 2), ("n\n", 2), (CTRL_D, 2), ("y" + CTRL_D + CTRL_D, 2), (CTRL_C, -signal.SIGINT)],
    ids=["enter", "no", "end of input", "end of input after y", "^C"],
)
def test_r38_no_answer_but_yes_restores(
    emulator: Emulator, checkpointed: Any, start: Start, keys: str, status: int
) -> None:
    session = start("restore", "dev", "v1", columns=200, stdout=subprocess.PIPE)
    session.expect("[y/N] ")
    session.type(keys)
    assert session.end() == status, session.output
    assert session.process.stdout and session.process.stdout.read() == b""
    assert not writes(emulator)
    assert (checkpointed.home / "since").exists()
