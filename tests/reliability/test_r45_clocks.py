"""R45: ages go by the server's clock, so that a table is the same under every clock of ours."""

from __future__ import annotations

import datetime
import json
from email.utils import format_datetime
from pathlib import Path

import pytest
from emulation import Emulator, Fault
from support.runs import environ_for, run_here

import thopters as program

UTC = datetime.timezone.utc
SERVER = datetime.datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DAY, YEAR = 86400.0, 365.25 * 86400

# what the API tells, what a terminal shows, what a pipe gets
STAMPS: list[tuple[object, str, str]] = [
    ("2026-03-01T12:00:00Z", "just now", "2026-03-01T12:00:00Z"),
    ("2026-03-01T11:59:51Z", "just now", "2026-03-01T11:59:51Z"),
    ("2026-03-01T11:59:50Z", "10 seconds ago", "2026-03-01T11:59:50Z"),
    ("2026-03-01T11:59:00Z", "1 minute ago", "2026-03-01T11:59:00Z"),
    ("2026-03-01T11:00:01Z", "59 minutes ago", "2026-03-01T11:00:01Z"),
    ("2026-03-01T11:00:00Z", "1 hour ago", "2026-03-01T11:00:00Z"),
    ("2026-02-28T12:00:00Z", "1 day ago", "2026-02-28T12:00:00Z"),
    ("2026-01-30T12:00:00Z", "1 month ago", "2026-01-30T12:00:00Z"),
    ("2024-02-29T12:00:00Z", "2 years ago", "2024-02-29T12:00:00Z"),
    ("2026-03-01T12:01:59Z", "just now", "2026-03-01T12:01:59Z"),
    ("2026-03-01T12:03:00Z", "2026-03-01T12:03:00Z", "2026-03-01T12:03:00Z"),
    ("2036-03-01T12:00:00Z", "2036-03-01T12:00:00Z", "2036-03-01T12:00:00Z"),
    ("2026-03-01T13:30:00+02:00", "30 minutes ago", "2026-03-01T11:30:00Z"),
    ("2026-03-01T11:30:00.123456789Z", "29 minutes ago", "2026-03-01T11:30:00Z"),
    ("2026-03-01T11:30:00", "30 minutes ago", "2026-03-01T11:30:00Z"),
    ("0001-01-01T00:00:00Z", "never", "never"),
    ("2026-03-01T11:59:60Z", "-", "-"),
    ("", "-", "-"),
    (None, "-", "-"),
    (1772366400, "-", "-"),
]
assert len(STAMPS) == 20
SKEWS = (0.0, DAY, -DAY, 10 * YEAR, -10 * YEAR)


def answer(emulator: Emulator, route: str, document: object, date: str | None) -> None:
    headers = {} if date is None else {"Date": date}
    body = json.dumps(document).encode()
    emulator.fault(Fault(route, "status", status=200, body=body, times=None, headers=headers))


def skew(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have our own clock be wrong."""
    ours = SERVER + datetime.timedelta(seconds=seconds)
    monkeypatch.setattr(program.Clock, "utc", lambda self: ours)


@pytest.mark.parametrize("seconds", SKEWS)
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_r45_tables_are_the_same_under_every_clock(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    seconds: float, terminal: bool,
) -> None:  # fmt: skip
    skew(monkeypatch, seconds)
    monkeypatch.setattr(program.Activity, "SHOW_AFTER_S", 3600.0)
    date = format_datetime(SERVER, usegmt=True)
    names = [f"s{number:02}" for number in range(len(STAMPS))]
    pairs = list(zip(names, STAMPS, strict=True))
    items = [{"name": n, "status": "cold", "updated_at": stamp} for n, (stamp, _, _) in pairs]
    rows = [{"id": n, "create_time": stamp, "comment": n} for n, (stamp, _, _) in pairs]
    answer(emulator, "GET /v1/sprites", {"sprites": items}, date)
    answer(emulator, "GET */checkpoints", rows, date)
    environ = environ_for(emulator, str(tmp_path))
    expected = {name: age if terminal else iso for name, (_, age, iso) in pairs}
    for words, place in ((["list"], 2), (["checkpoints", "dev"], 1)):
        done = run_here(words, environ, terminal=terminal)
        assert (done.code, done.err) == (0, "")
        lines = done.out.splitlines()[2 if terminal else 0 :]
        # two spaces at least are between columns
        cells = [
            [cell.strip() for cell in line.split("  " if terminal else "\t") if cell.strip()]
            for line in lines
        ]
        assert {row[0]: row[place] for row in cells} == expected, words


@pytest.mark.parametrize("date", ["soon", ""])
def test_r45_without_the_servers_clock_ours_is_used(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, date: str
) -> None:
    skew(monkeypatch, DAY)
    item = {"name": "dev", "status": "cold", "updated_at": "2026-03-01T12:00:00Z"}
    answer(emulator, "GET /v1/sprites", {"sprites": [item]}, date)
    done = run_here(["list"], environ_for(emulator, str(tmp_path)), terminal=True)
    assert done.out.splitlines()[-1].endswith("  1 day ago"), done


@pytest.mark.parametrize("years", [-10, -1 / 365.25, 1 / 365.25, 10])
def test_r45_the_servers_clock_may_be_anywhere(
    emulator: Emulator, tmp_path: Path, years: float
) -> None:
    """And what it made an hour before its own time is an hour old."""
    emulator.clock._ahead = years * YEAR
    emulator.add_sprite("dev", updated_at=emulator.clock.now() - 3700)
    done = run_here(["list"], environ_for(emulator, str(tmp_path)), terminal=True)
    assert done.out.splitlines()[-1].endswith("  1 hour ago"), done
