"""R44, R48: every command works in every locale, and what it asks of the platform is known.

All commands are run in a row, in an order in which each works. An endpoint that comes or goes has
to be entered in the contract below, and so be looked up in what is known of the live platform; with
a token in THOPTERS_LIVE_TOKEN that is asked, too.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import unicodedata
from typing import Any

import pytest
from emulation import Emulator, Fault
from emulation.routes import ROUTES
from support.configs import write
from support.program import Result, Thopters
from support.runs import COMMANDS, ODD, play
from support.sessions import leave_running
from support.shapes import MADE, PAGE, SEEN, differences, fetch, shape
from support.terminals import Start

import thopters as program

LIVE_TOKEN = os.environ.get("THOPTERS_LIVE_TOKEN")  # before a fixture seals the environment

PLAIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SETTINGS = {
    "C": {"LC_ALL": "C", **PLAIN},
    "POSIX": {"LC_ALL": "POSIX", **PLAIN},
    "C.UTF-8": {"LC_ALL": "C.UTF-8"},
    "a missing one": {"LC_ALL": "xx_YY.ISO-8859-1", **PLAIN},
    "none": {"LANG": "", **PLAIN},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "cp437": {"PYTHONIOENCODING": "cp437"},
    "shift_jis": {"PYTHONIOENCODING": "shift_jis"},
    "ascii": {"PYTHONIOENCODING": "ascii:strict"},
}
assert len(SETTINGS) == 9


def in_development_mode(thopters: Thopters) -> None:
    """Have Python tell of what is left open, and stop at every warning."""
    thopters.argv = [sys.executable, "-X", "dev", "-W", "error", *thopters.argv[1:]]


def check(words: list[str], done: Result) -> None:
    for bad in ("Traceback", "Exception", "Warning", "internal error", "codec"):
        assert bad not in done.err, (words, done)
    if "caf\u00e9 \u2603" in words[-1]:  # what a command says passes as it is
        assert done.out_bytes == "caf\u00e9 \u2603\n".encode()
    if words == ["list"] or words[0] == "checkpoints":
        assert done.out.count("\t") == 2
    if words == ["sessions", "dev"]:
        assert re.fullmatch("([^\t]+\t){5}running\n", done.out)
    if words[0] == "sessions" and "--all" in words:  # a record holds the same text in every locale
        [item] = json.loads(done.out)["sessions"]
        assert item["argv"] == ["sh", "-c", "read line; exit 3", ODD]
        assert (item["label"], item["state"], item["status"]) == ("tests", "ended", 3)
    if "--json" in words:
        assert json.loads(done.out)["schema_version"] == 1
    if words[0] == "logs":
        assert done.out_bytes == b"a line\r\n"


class Journey:
    """What came of running every command, each in another setting, in development mode."""

    def __init__(self, thopters: Thopters, emulator: Emulator) -> None:
        in_development_mode(thopters)
        thopters.use(emulator)
        write(thopters.home / ".sprite-thopters" / "config.json", {"secrets": {"MINE": "a value"}})
        self.steps: list[tuple[list[str], Result]] = []
        self.asked: set[tuple[str, str]] = set()
        for step in play(thopters, emulator, *SETTINGS.values()):
            self.steps.append(step)
            self.note(emulator)
        # a session that no command of ours reaches is ended by the platform
        emulator.add_sprite("dev", status="running")
        session = leave_running(thopters, "sh", "-c", "echo up; exec sleep 60")
        emulator.fault(Fault("WS */exec", "ws", actions=[("drop", None)], after=1))
        self.steps.append((["kill"], thopters("kill", "dev", session)))
        # where WebSockets are refused, a command goes by POST
        emulator.fault(Fault("WS *", "status", status=403, body=b"no", content_type="text/plain"))
        self.steps.append((["exec"], thopters("exec", "dev", "--", "true")))
        self.note(emulator)
        self.oddities = emulator.journal.oddities

    def note(self, emulator: Emulator) -> None:
        self.asked |= {(r.method, template(r.raw_path)) for r in emulator.journal}
        emulator.journal.clear()


# R44


@pytest.mark.long
def test_r44_r48_every_command_in_one_of_nine_locales_asks_what_the_contract_has(
    thopters: Thopters, emulator: Emulator
) -> None:
    journey = Journey(thopters, emulator)
    assert {command.name for command in program.COMMANDS} == COMMANDS
    for words, done in journey.steps:
        check(words, done)
    assert journey.asked == CONTRACT
    assert not journey.oddities  # no parameter and no key that the platform lacks


@pytest.mark.slow
@pytest.mark.parametrize("development", [False, True], ids=["plain", "development"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_r44_every_command_in_every_locale(
    thopters: Thopters, emulator: Emulator, setting: str, development: bool
) -> None:
    if development:
        in_development_mode(thopters)
    for words, done in play(thopters, emulator, SETTINGS[setting]):
        check(words, done)


def widened(line: str) -> str:
    """Return a line with as many characters as it has columns."""
    return "".join(c + "\0" * (unicodedata.east_asian_width(c) in "WF") for c in line)


def check_columns(output: str, *names: str) -> str:
    """Assert that all cells begin below their names, two columns behind the widest one before.

    Returns what the rule is made of.
    """
    header, *lines = map(widened, output.splitlines())
    assert header.split() == list(names)
    starts = [header.index(name) for name in names]
    for start, end in itertools.pairwise(starts):
        cells = [line[start : end - 2] for line in lines]
        assert all(line[end - 2 : end] == "  " and line[end] > " " for line in lines), output
        assert all(cell[0] > " " for cell in cells), output
        assert len(cells[0]) == max(len(cell.rstrip()) for cell in [header[start:end], *cells[1:]])
        assert len(set(cells[0])) == 1
    return lines[0][0]


@pytest.mark.parametrize(
    "setting",
    [
        name if name in ("C", "C.UTF-8", "cp437") else pytest.param(name, marks=pytest.mark.slow)
        for name in SETTINGS
    ],
)
def test_r44_columns_are_aligned(
    thopters: Thopters, emulator: Emulator, start: Start, setting: str
) -> None:
    thopters.env |= SETTINGS[setting]
    # where there is none, the Python that starts it on a terminal sets C.UTF-8
    by_locale = "ascii" if setting in ("C", "POSIX", "a missing one") else "utf-8"
    encoding = SETTINGS[setting].get("PYTHONIOENCODING", by_locale).partition(":")[0]
    sprite = emulator.add_sprite("dev", status="running")
    emulator.add_sprite("a-longer-name")
    emulator.personality.list_org = "absent"  # so that nothing but the table is written
    for comment in ("ascii", "na\u00efve", "\u65e5\u672c\u8a9e \u2603", "\x1b[2J"):
        sprite.add_checkpoint(comment)
    stamp = "2026-12-01T10:00:00Z"
    sessions = [
        {"id": 7, "command": "/bin/vi", "created": stamp},
        {"id": 1847, "command": "/\u65e5\u672c", "created": stamp},
    ]
    body = json.dumps(sessions).encode()
    emulator.fault(Fault("GET */exec", "status", status=200, body=body))
    bars = set()
    for words, rows, names in (
        (["checkpoints", "dev"], 4, ("ID", "Made", "Comment")),
        (["list"], 2, ("Name", "Status", "Updated")),
        (["sessions", "dev"], 2, ("ID", "Command", "Directory", "Started", "Active", "State")),
    ):
        session = start(*words)
        assert session.end() == 0, session.output
        output = session.output.decode(encoding)
        bars.add(check_columns(output, *names))
        assert len(output.splitlines()) == 2 + rows
    assert bars in ({"-"}, {"\u2500"})


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_r44_a_plain_terminal_gets_no_escapes(
    thopters: Thopters, emulator: Emulator, start: Start, plain: dict[str, str]
) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("first")
    thopters.env |= plain
    for words, code in (
        (["list"], 0), (["url", "none"], 3), (["restore", "dev"], 0),
    ):  # fmt: skip
        session = start(*words, columns=200)
        assert session.end() == code
        assert b"\x1b" not in session.output, words


@pytest.mark.parametrize("setting", ["C", "cp437", "ascii"])
def test_r44_json_is_exact_wherever_it_is_written(
    thopters: Thopters, emulator: Emulator, setting: str
) -> None:
    comment = "na\u00efve \u2603 \x1b[2J \U0001f40d"
    emulator.add_sprite("dev", status="running").add_checkpoint(comment)
    done = thopters("checkpoints", "dev", "--json", env=SETTINGS[setting])
    assert done.out_bytes.isascii()
    assert json.loads(done.out_bytes)["checkpoints"][0]["comment"] == comment


# R48

CONTRACT = {
    ("GET", "/v1/sprites"),
    ("POST", "/v1/sprites"),
    ("GET", "/v1/sprites/{name}"),
    ("PUT", "/v1/sprites/{name}"),
    ("DELETE", "/v1/sprites/{name}"),
    ("WS", "/v1/sprites/{name}/exec"),
    ("WS", "/v1/sprites/{name}/exec/{session}"),
    ("POST", "/v1/sprites/{name}/exec"),
    ("GET", "/v1/sprites/{name}/exec"),
    ("POST", "/v1/sprites/{name}/exec/{session}/kill"),
    ("WS", "/v1/sprites/{name}/proxy"),
    ("POST", "/v1/sprites/{name}/checkpoint"),
    ("GET", "/v1/sprites/{name}/checkpoints"),
    ("POST", "/v1/sprites/{name}/checkpoints/{id}/restore"),
}


def template(path: str) -> str:
    """Return a path with its variable parts named; one of an unknown shape stays as it is."""
    path = re.sub(r"^(/v1/sprites)/[^/]+", r"\1/{name}", path)
    path = re.sub(r"/exec/[^/]+", "/exec/{session}", path)
    return re.sub(r"/checkpoints/[^/]+", "/checkpoints/{id}", path)


def test_r48_the_emulator_serves_each_of_them() -> None:
    for method, path in CONTRACT:
        one = path.format(name="dev", session="7", id="v1")
        served = [pattern for verb, pattern, _ in ROUTES if verb == method]
        assert any(re.fullmatch(pattern, one) for pattern in served), (method, path)


def filled(told: Any, known: Any) -> Any:
    """Return what was told with what is null or empty in it, and so has no shape, as it is known.

    The first of a list stands for all.
    """
    if told is None or told == []:
        return known
    if isinstance(told, list) and isinstance(known, list):
        return [filled(told[0], known[0])]
    if isinstance(told, dict) and isinstance(known, dict):
        return {key: filled(value, known.get(key)) for key, value in told.items()}
    return told


OPTIONAL = (
    "private_access", "config", "environment", "bucket_name", "primary_region", "version",
    "environment_version", "last_started_at", "last_active_at",
)  # fmt: skip


def test_r48_the_live_platform_has_the_same_shapes(thopters: Thopters) -> None:
    """Only what can be looked at without making anything."""
    if not LIVE_TOKEN:
        pytest.skip("there is no THOPTERS_LIVE_TOKEN, so the live platform was not asked")
    path = "/v1/sprites?max_results=1&bulk_load=true"
    page = fetch(program.DEFAULT_API_URL, LIVE_TOKEN, "GET", path)
    one = {**SEEN, "url_settings": MADE["url_settings"], "last_warming_at": MADE["updated_at"]}
    known = {**PAGE, "sprites": [one]}
    assert differences(shape(filled(page, known)), shape(known), OPTIONAL) == []
    thopters.env["SPRITE_TOKEN"] = LIVE_TOKEN
    done = thopters("list", "--json")
    assert done.code == 0, done
    assert "sprites" in done.out and "counts" in done.out
    missing = thopters("url", "thopters-no-such-sprite", "--json")
    assert missing.code == 3, missing
