r"""R31: what comes from elsewhere reaches no terminal and no pipe but as harmless text.

Every field that the platform fills, a sprite, GitHub or the `sprite` program, holds 30 payloads,
and every output for people is looked at. A control or format character in it is a failure, and so
is text that was dropped: it has to be there in escapes.
"""

from __future__ import annotations

import json
import os
import re
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault, write_launcher
from emulation.journal import Request
from emulation.wire import ServerSocket, Wire, accept_key
from support.configs import KEYS, GitHub, write
from support.program import Thopters
from support.runs import environ_for, run_here
from support.servers import Canned
from support.terminals import Session, Start

import thopters as program

PAYLOADS = (
    "\x1b[2J", "\x1b[31m", "\x1b]0;owned\x07", "\x1b]8;;http://evil/\x1b\\", "\x1b[6n", "\x1bc",
    "\x1bP+q\x1b\\", "\x1b[?1049h", "\x9b31m", "\x9d0;x\x9c", "\x90x\x9c", "\a", "\b\b\b", "\t",
    "\x7f", "\0", "\r", "\n", "\r\nok\tdone", "\x0b\x0c", "\x85", "\u2028\u2029", "\u202edcba",
    "\u2066x\u2069", "\u200b\u200d\ufeff", "\u00ad", "\ue000\U000f0000", "\U000e0041", "\ud800",
    "\ufff9\u061c\u180e",
)  # fmt: skip
assert len(PAYLOADS) == 30
ALL = "(" + "|".join(PAYLOADS) + ")"


def escaped(text: str) -> str:
    """Say how a text should be shown; written anew here, as the program's own is on trial."""
    shown = ""
    for char in text:
        number, kind = ord(char), unicodedata.category(char)
        if kind[0] != "C" and kind not in ("Zl", "Zp"):
            shown += char
        elif char in "\t\n\r":
            shown += {"\t": r"\t", "\n": r"\n", "\r": r"\r"}[char]
        elif number < 0x100:
            shown += f"\\x{number:02x}"
        else:
            shown += f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return shown


def assert_harmless(text: str, where: object) -> None:
    bad = [
        c for c in text if (c != "\n" and unicodedata.category(c)[0] == "C") or c in "\u2028\u2029"
    ]
    assert not bad, (bad, where)


def answer(
    emulator: Emulator, route: str, document: object, status: int = 200, **params: Any
) -> None:
    body = json.dumps(document).encode()
    emulator.fault(Fault(route, "status", status=status, body=body, times=None, **params))


def item(**fields: object) -> dict[str, object]:
    base: dict[str, object] = {"name": "dev", "status": "running", "url": "https://dev.example"}
    return {**base, "organization": "acme", **fields}


def listed(field: str) -> Callable[[Emulator, str], None]:
    def prepare(emulator: Emulator, text: str) -> None:
        answer(emulator, "GET /v1/sprites", {"sprites": [item(**{field: text})]})

    return prepare


def looked_at(field: str) -> Callable[[Emulator, str], None]:
    def prepare(emulator: Emulator, text: str) -> None:
        answer(emulator, "GET /v1/sprites/dev", item(**{field: text}))

    return prepare


def checkpoint(field: str) -> Callable[[Emulator, str], None]:
    def prepare(emulator: Emulator, text: str) -> None:
        row = {"id": "v1", "create_time": "2026-01-01T00:00:00Z", "comment": "x"}
        answer(emulator, "GET */checkpoints", [{**row, field: text}])

    return prepare


def who(emulator: Emulator, text: str) -> None:
    """Have a sprite's URL be open to whom nobody has heard of, whatever is set."""
    answer(emulator, "GET /v1/sprites/dev", item(url_settings={"auth": text}))


def refusal(
    route: str, status: int, field: str = "message", **params: Any
) -> Callable[[Emulator, str], None]:
    def prepare(emulator: Emulator, text: str) -> None:
        document = {"error": "bad", "retry_after_seconds": 0, field: text}
        answer(emulator, route, document, status, **params)

    return prepare


def bare_refusal(emulator: Emulator, text: str) -> None:
    """Answer with an error that is no JSON."""
    body = text.encode("utf-8", "surrogatepass")
    emulator.fault(Fault("GET *", "status", status=400, body=body, times=None,
                         content_type="text/plain"))  # fmt: skip


def in_header(text: str) -> str:
    """Return what of a text can be in a header at all."""
    return "".join(char for char in text if " " <= char <= "\xff")


def content_type(emulator: Emulator, text: str) -> None:
    emulator.fault(Fault("GET *", "status", status=200, content_type="text/" + in_header(text)))


def redirect(emulator: Emulator, text: str) -> None:
    location = "https://h" + in_header(text).replace("/", "") + "/x"
    emulator.fault(Fault("GET *", "redirect", status=302, location=location, times=None))


def request_id(emulator: Emulator, text: str) -> None:
    headers = {"fly-request-id": in_header(text)}
    answer(emulator, "GET *", item(), headers=headers)


def events(route: str, *last: dict[str, str]) -> Callable[[Emulator, str], None]:
    def prepare(emulator: Emulator, text: str) -> None:
        told: list[dict[str, str]] = [{"type": "info", "data": text}, *last]
        lines = [{key: value.replace("TEXT", text) for key, value in e.items()} for e in told]
        body = "".join(json.dumps(line) + "\n" for line in lines).encode()
        kind = "application/x-ndjson"
        emulator.sprite("dev").add_checkpoint("first")
        emulator.fault(Fault(route, "status", status=200, body=body, content_type=kind))

    return prepare


def exec_says(
    *parts: bytes, after: int = 0, times: int | None = None
) -> Callable[[Emulator, str], None]:
    """Have a sprite answer a command by itself; TEXT is the payload."""

    def prepare(emulator: Emulator, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        actions = [("message", part.replace(b"TEXT", data)) for part in parts]
        emulator.fault(Fault("WS */exec", "ws", actions=actions, after=after, times=times))

    return prepare


def close_reason(emulator: Emulator, text: str) -> None:
    reason = text.encode("utf-8", "replace")[:120]
    frame = struct.pack("!BBH", 0x88, len(reason) + 2, 1011) + reason
    emulator.fault(Fault("WS */exec", "ws", actions=[("raw", frame), ("drop", None)], times=None))


def sessions(field: str) -> Callable[[Emulator, str], None]:
    def prepare(emulator: Emulator, text: str) -> None:
        stamp = "2026-01-01T00:00:00Z"
        session = {"id": NUMBER, "command": "vim", "last_activity": stamp, "tty": True}
        answer(emulator, "GET */exec", {"sessions": [{**session, field: text}]})

    return prepare


def record(**fields: str) -> Prepare:
    """Have a sprite tell of the record of a command; TEXT is the payload."""

    def prepare(emulator: Emulator, text: str) -> None:
        words = {"argv": ["vim"], "label": "", "keeps_output": True, "hold_s": 0}
        words |= {key: fields[key] for key in fields.keys() & words.keys()}
        if "argv" in fields:
            words["argv"] = ["vim", fields["argv"]]
        about = json.dumps(words).replace("TEXT", json.dumps(text)[1:-1])
        told = {"id": "0123456789", "state": "running", "status": "-", "ended": ""}
        told |= {"started": "1767225600", "outer": str(NUMBER), "inner": "0", "rest": "whole"}
        told |= {"directory": "/home"}
        values = [fields.get(key, value) for key, value in told.items()]
        data = "\0".join([*values, about, "", ""]).encode()
        exec_says(START, b"\1" + data, b"\3\0", times=1)(emulator, text)

    return prepare


def in_turn(*prepares: Prepare) -> Prepare:
    def prepare(emulator: Emulator, text: str) -> None:
        for one in prepares:
            one(emulator, text)

    return prepare


def unrecorded(emulator: Emulator, text: str) -> None:
    """Have no room for a record, so that the platform's id stands for a command."""
    (emulator.sprite("dev").home / ".thopters").write_text("")
    session_info(emulator, text)


def session_info(emulator: Emulator, text: str) -> None:
    """Have a started session be told as another one."""
    info = json.dumps({"type": "session_info", "session_id": text}).encode()
    emulator.fault(Fault("WS */exec", "ws", actions=[("text", info)], times=None))


def kill_answered(tell: Prepare) -> Prepare:
    """Have the platform's own call be the one that ends a session, as no command can."""

    def prepare(emulator: Emulator, text: str) -> None:
        sessions("workdir")(emulator, "")
        emulator.fault(Fault("WS */exec", "ws", actions=[("drop", None)], after=1, times=None))
        tell(emulator, text)

    return prepare


def attach_refused(emulator: Emulator, text: str) -> None:
    sessions("workdir")(emulator, "")
    refusal("WS *", 400, after=1)(emulator, text)


def holds(emulator: Emulator, text: str) -> None:
    tasks = json.dumps({"tasks": [{"name": text, "expires_at": text}]}).encode()
    answer(emulator, "GET */exec", [])
    exec_says(START + tasks, b"\3\0", after=1)(emulator, "")


Prepare = Callable[[Emulator, str], None]
NUMBER = 9_999_999  # no process's
START = b"\1thopters-exec 7\n"
DONE = {"type": "complete", "data": "Checkpoint v1 created TEXT"}

# words, what the server is to do, the exit status, and how often the text is shown in full
OUTPUTS: dict[str, tuple[list[str], Prepare, int, int]] = {
    "list: name": (["list"], listed("name"), 0, 1),
    "list: status": (["list"], listed("status"), 0, 1),
    "list: time": (["list"], listed("updated_at"), 0, 0),
    "list -v: status": (["list", "-v"], listed("status"), 0, 1),
    "list: error": (["list"], refusal("GET *", 400), 1, 1),
    "list: bare error": (["list"], bare_refusal, 1, 0),
    "list: error's code": (["list"], refusal("GET *", 400, "error"), 1, 1),
    "list -v: busy": (["list", "-v"], refusal("GET *", 429, "error"), 6, 0),
    "list: limit": (["list"], refusal("GET *", 402), 6, 1),
    "list: plans": (["list"], refusal("GET *", 402, "upgrade_url"), 6, 1),
    "list: type": (["list"], content_type, 1, 0),
    "list: redirect": (["list"], redirect, 1, 0),
    "info: url": (["info", "dev"], looked_at("url"), 0, 1),
    "info: id": (["info", "dev"], looked_at("id"), 0, 1),
    "info: status": (["info", "dev"], looked_at("status"), 0, 1),
    "info: created": (["info", "dev"], looked_at("created_at"), 0, 0),
    "info: command": (["info", "dev"], sessions("command"), 0, 1),
    "info: hold": (["info", "dev"], holds, 0, 1),
    "info: comment": (["info", "dev"], checkpoint("comment"), 0, 1),
    "info: refused": (["info", "dev"], refusal("GET */checkpoints", 400), 0, 1),
    "doctor: error": (["doctor"], refusal("GET *", 400), 1, 2),
    "url": (["url", "dev"], looked_at("url"), 0, 1),
    "url --public: who": (["url", "dev", "--public"], who, 1, 1),
    "url: forbidden": (["url", "dev"], refusal("GET *", 403), 4, 1),
    "url --debug: id": (["--debug", "url", "dev"], request_id, 0, 0),
    "create: error": (["create", "new"], refusal("POST *", 400), 1, 1),
    "create: limit": (["create", "new"], refusal("POST *", 402), 6, 1),
    "destroy: status": (["destroy", "dev"], looked_at("status"), 2, 1),
    "destroy: url": (["destroy", "dev"], looked_at("url"), 2, 1),
    "destroy: refused": (["destroy", "dev", "--yes"], refusal("DELETE *", 409), 1, 1),
    "checkpoints: comment": (["checkpoints", "dev"], checkpoint("comment"), 0, 1),
    "checkpoints: id": (["checkpoints", "dev"], checkpoint("id"), 0, 1),
    "checkpoints: time": (["checkpoints", "dev"], checkpoint("create_time"), 0, 0),
    "checkpoints: health": (["checkpoints", "dev"], checkpoint("health"), 0, 1),
    "restore: comment": (["restore", "dev"], checkpoint("comment"), 0, 1),
    "restore: id": (["restore", "dev"], checkpoint("id"), 0, 2),
    "restore: ids": (["restore", "dev", "v9", "--yes"], checkpoint("id"), 3, 1),
    "checkpoint: words": (["checkpoint", "dev"], events("POST */checkpoint", DONE), 0, 0),
    "checkpoint: error": (
        ["checkpoint", "dev"],
        events("POST */checkpoint", {"type": "error", "error": "TEXT"}),
        1,
        1,
    ),
    "restore: words": (
        ["restore", "dev", "v1", "--yes", "--no-backup"],
        events("POST */restore", {"type": "error", "message": "TEXT"}),
        1,
        1,
    ),
    "pause: command": (["pause", "dev", "--no-wait"], sessions("command"), 0, 1),
    "pause: session": (["pause", "dev", "--no-wait"], sessions("id"), 0, 1),
    "pause: activity": (["pause", "dev", "--no-wait"], sessions("last_activity"), 0, 0),
    "pause: hold": (["pause", "dev", "--no-wait"], holds, 0, 1),
    "pause: status": (["pause", "dev", "--no-wait"], looked_at("status"), 0, 1),
    "sessions: command": (["sessions", "dev"], sessions("command"), 0, 1),
    "sessions: id": (["sessions", "dev"], sessions("id"), 0, 1),
    "sessions: activity": (["sessions", "dev"], sessions("last_activity"), 0, 0),
    "sessions: start": (["sessions", "dev"], sessions("created"), 0, 0),
    "sessions: argv": (["sessions", "dev"], record(argv="TEXT"), 0, 1),
    "sessions: directory": (["sessions", "dev"], record(directory="TEXT"), 0, 1),
    "sessions: label": (["sessions", "dev"], record(label="TEXT"), 0, 0),
    "sessions: record's id": (["sessions", "dev"], record(id="TEXT"), 0, 0),
    "sessions: state": (["sessions", "dev", "--all"], record(state="TEXT"), 0, 1),
    "sessions: times": (
        ["sessions", "dev"],
        record(started="TEXT", ended="TEXT", status="TEXT", outer="TEXT", rest="TEXT"),
        0,
        0,
    ),
    "logs: record's id": (["logs", "dev"], record(id="TEXT"), 3, 0),
    "logs: place": (
        ["logs", "dev"],
        in_turn(record(), exec_says(START + b"TEXT\n", b"\2TEXT", b"\3\0", after=1)),
        1,
        0,
    ),
    "wait: record's id": (["wait", "dev"], record(id="TEXT", state="ended", status="9"), 3, 0),
    "wait: status": (["wait", "dev"], record(state="ended", status="TEXT"), 255, 0),
    "pause: argv": (["pause", "dev", "--no-wait"], record(argv="TEXT"), 0, 1),
    "pause: directory": (["pause", "dev", "--no-wait"], record(directory="TEXT"), 0, 1),
    "pause: record's id": (["pause", "dev", "--no-wait"], record(id="TEXT"), 0, 0),
    "attach: argv": (
        ["attach", "dev"],
        in_turn(sessions("workdir"), record(argv="TEXT"), refusal("WS *", 400, "x", after=1)),
        255,
        1,
    ),
    "kill: directory": (
        ["kill", "dev", "0123456789"],
        record(state="lost", directory="TEXT", argv="TEXT"),
        3,
        0,
    ),
    "kill: refused": (["kill", "dev", f"{NUMBER}.0"], refusal("GET */exec", 400), 1, 1),
    "kill: call refused": (
        ["kill", "dev", f"{NUMBER}.0"],
        kill_answered(refusal("POST */kill", 400)),
        1,
        1,
    ),
    "kill: call's error": (
        ["kill", "dev", f"{NUMBER}.0"],
        kill_answered(events("POST */kill", {"type": "error", "message": "TEXT"})),
        1,
        1,
    ),
    "attach: refused": (["attach", "dev", f"{NUMBER}.0"], attach_refused, 255, 1),
    "proxy -W: refused": (["proxy", "dev", "-W", "a:1"], refusal("WS *", 400), 1, 1),
    "ssh: organization": (["ssh", "--config", "dev"], looked_at("organization"), 0, 0),
    "ssh: id": (["ssh", "--config", "dev"], looked_at("id"), 0, 0),
    "ssh: stderr": (
        ["ssh", "--setup", "dev", "--yes"],
        exec_says(START, b"\2TEXT", b"\3\1"),
        1,
        0,
    ),
    "hold: stderr": (
        ["hold", "dev", "--for", "1h"],
        exec_says(START + b"x", b"\2TEXT", b"\3\1"),
        1,
        0,
    ),
    "cp: stderr": (
        ["cp", "dev:x", "."],
        exec_says(START, b"\2TEXT", b"\3\1"),
        1,
        0,
    ),
    "resume: status": (["resume", "dev"], looked_at("status"), 0, 1),
    "exec: refused": (["exec", "dev", "--", "true"], refusal("WS *", 400), 255, 1),
    "exec: closed": (["exec", "dev", "--", "true"], close_reason, 255, 0),
    "exec --detach: session": (
        ["exec", "dev", "--detach", "--", "sleep", "60"],
        session_info,
        0,
        0,
    ),
    "exec --detach: no record": (
        ["exec", "dev", "--detach", "--", "sleep", "60"],
        unrecorded,
        0,
        3,
    ),
    "init: warning": (
        ["init", "dev"],
        exec_says(START + b"warn TEXT\nthopters-init-ok\n", b"\3\0"),
        0,
        0,
    ),
    "init: failure": (["init", "dev"], exec_says(START + b"fail TEXT\n", b"\3\1"), 1, 0),
    "init: stderr": (["init", "dev"], exec_says(START, b"\2TEXT", b"\3\1"), 1, 0),
}
ASKS = {name for name in OUTPUTS if re.match("pause: [^s]|pause: session|destroy: [su]", name)}
HEAVY = (
    "info: co", "info: h", "info: r", "doctor",
    "pause", "resume", "init", "restore", "checkpoint:", "attach", "proxy", "hold", "cp", "ssh: s",
    "kill: call", "exec --detach",
)  # fmt: skip
TWICE = {"checkpoint: error", "restore: words"}  # as progress too, if it is one line
HINTED = {"restore: id": 1, "exec --detach: no record": 2}  # of these in hints, for terminals
UNASKED = {"destroy: status", "destroy: url"}  # not shown where nobody can be asked
IN_LINES = {  # texts that are split at their own line ends, or cut
    "checkpoint: words", "init: warning", "init: failure", "init: stderr", "exec: closed",
    "list: bare error", "hold: stderr", "cp: stderr", "ssh: stderr",
}  # fmt: skip
# What is in bytes can hold neither a NUL, which ends a field, nor half of a pair of UTF-16
IN_BYTES = re.compile("(sessions|pause|kill): (directory|state|times)|.*: record's id")


def payload_for(output: str, payload: str) -> str:
    return re.sub("[\0\ud800]", "", payload) if IN_BYTES.match(output) else payload


@pytest.mark.parametrize(
    ("output", "every"),
    [
        *((output, 3) for output in OUTPUTS),
        *(pytest.param(output, 1, marks=pytest.mark.slow) for output in OUTPUTS),
    ],
)
def test_r31_each_output_is_harmless_with_every_payload_alone(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, every: int
) -> None:
    monkeypatch.setattr(program.Activity, "SHOW_AFTER_S", 3600.0)  # its line has a \r of its own
    monkeypatch.setattr(program.Clock, "sleep", lambda self, seconds: None)
    monkeypatch.setattr(program, "START_WATCH_S", 0.0)
    words, prepare, code, times = OUTPUTS[output]
    environ = environ_for(emulator, str(tmp_path))
    emulator.add_sprite("dev", status="running")
    heavy = output.startswith(HEAVY)
    first = list(OUTPUTS).index(output) % every
    cases = [(payload, True) for payload in (() if heavy else PAYLOADS[first::every])]
    for payload, terminal in [*cases, (ALL, True), (ALL, False)]:
        emulator._faults.clear()
        text = "{" + payload_for(output, payload) + "}"
        prepare(emulator, text)
        done = run_here(words, environ, terminal=terminal)
        said = done.out + done.err
        if words[0] == "wait" and terminal:
            said = said.removeprefix("\a")  # of ours
        columns = {"list": 3, "checkpoints": 3, "restore": 3, "sessions": 6, "info": 2, "doctor": 4}
        tabs = columns.get(words[0], 1) - 1
        tabs = 0 if terminal else tabs
        assert done.out.count("\t") == tabs * done.out.count("\n"), done  # between columns
        assert_harmless(said.replace("\t", "") if tabs else said, done)
        assert "internal error" not in said, done
        assert done.code == code, done
        if times and output not in IN_LINES | UNASKED:
            shown = times - (0 if terminal else HINTED.get(output, 0))
            assert said.count(escaped(text)) == shown, done


def check_screen(session: Session, output: str, text: str) -> None:
    """Assert that a text is shown, by a screen that takes nothing but a few sequences."""
    _, _, code, times = OUTPUTS[output]
    session.type("no\n")  # to whatever is asked
    assert session.end() == (2 if output in ASKS else code), session.output
    screen = session.screen
    assert set(screen.colours) <= {"31", "33", "36", "0"}
    if times and output not in IN_LINES:
        shown = screen.text.count(escaped(text))
        assert shown == times or (output in TWICE and shown == 2 * times), screen.text


# `wait` rings, and `logs` puts the screen back: the rest of what they say is looked at above
ON_SCREEN = [output for output in OUTPUTS if not output.startswith(("wait", "logs: record"))]
BAND = [
    output if number % 5 == 0 else pytest.param(output, marks=pytest.mark.slow)
    for number, output in enumerate(ON_SCREEN)
]


@pytest.mark.parametrize("output", BAND)
def test_r31_a_terminal_shows_all_payloads_as_escapes(
    emulator: Emulator, start: Start, output: str
) -> None:
    words, prepare, _, _ = OUTPUTS[output]
    emulator.add_sprite("dev", status="running")
    text = payload_for(output, ALL)
    prepare(emulator, text)
    check_screen(start(*words, columns=4000), output, text)


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
@pytest.mark.parametrize("output", ON_SCREEN)
def test_r31_a_terminal_shows_each_payload_as_escapes(
    emulator: Emulator, start: Start, output: str, payload: str
) -> None:
    words, prepare, _, _ = OUTPUTS[output]
    emulator.add_sprite("dev", status="running")
    text = "{" + payload_for(output, payload) + "}"
    prepare(emulator, text)
    check_screen(start(*words, columns=1000), output, text)


def test_r31_names_that_are_near_are_shown_as_escapes(emulator: Emulator, tmp_path: Path) -> None:
    """The hint of an unknown sprite names the nearest, whatever they are called."""
    environ = environ_for(emulator, str(tmp_path))
    for payload in PAYLOADS:
        emulator._faults.clear()
        near = "a-long-name-" + payload
        answer(emulator, "GET /v1/sprites", {"sprites": [item(name=near)]})
        done = run_here(["url", "a-long-name-x"], environ, terminal=True)
        assert done.code == 3
        assert_harmless(done.out + done.err, done)
        assert f"did you mean {escaped(near)}?" in done.err or len(payload) > 12, done


def test_r31_what_a_made_sprite_has_for_a_url(emulator: Emulator, tmp_path: Path) -> None:
    for terminal in (True, False):
        emulator._faults.clear()
        emulator.add_sprite("new", hidden_gets=1, status="running")
        answer(emulator, "POST /v1/sprites", item(name="new", url=f"https://{ALL}"), 201)
        environ = environ_for(emulator, str(tmp_path))
        done = run_here(["create", "new", "--no-init"], environ, terminal=terminal)
        assert done.code == 0, done
        assert_harmless(done.out.replace("\t", ""), done)
        assert done.out.count(escaped(ALL)) == 1
        emulator.account.remove("new")


def test_r31_whose_a_sprite_is(emulator: Emulator, tmp_path: Path) -> None:
    """Said with -v where the `sprite` program, with a login of its own, may reach another one."""
    write_launcher(tmp_path / "programs", "sprite", ["false"])
    orgs = {"urls": {emulator.url: {"orgs": {"acme": {"api_token": emulator.token}}}}}
    selected = {"current_selection": {"url": emulator.url, "org": "acme"}}
    write(tmp_path / ".sprites" / "sprites.json", orgs | selected)
    path = f"{tmp_path / 'programs'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    environ = environ_for(emulator, str(tmp_path), PATH=path)
    for payload in (*PAYLOADS, ALL):
        emulator._faults.clear()
        text = "{" + payload + "}"
        looked_at("organization")(emulator, text)
        refusal("WS *", 400)(emulator, "")  # of the shell that is ours then
        done = run_here(["shell", "dev", "-v"], environ, terminal=payload != ALL)
        assert done.code == 255, done
        assert_harmless(done.out + done.err, done)
        assert f"belongs to the org {escaped(text)}, but" in done.err, done


def test_r31_why_a_port_was_closed(emulator: Emulator, tmp_path: Path) -> None:
    told = b""

    def close(request: Request, wire: Wire) -> None:
        proof = accept_key(request.headers["Sec-WebSocket-Key"])
        wire.write(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: " + proof.encode() + b"\r\n\r\n")
        ServerSocket(wire, request, lambda _: None).send(8, struct.pack("!H", 1011), told)
        wire.end()
        while True:  # until the client has gone: to leave sooner would be a reset
            wire.read(1 << 16)

    with Canned(close) as server:
        environ = environ_for(emulator, str(tmp_path), SPRITES_API_URL=server.url)
        for payload in PAYLOADS:
            told = ("{" + payload + "}").encode("utf-8", "surrogatepass")
            done = run_here(["proxy", "dev", "-W", "a:1"], environ, terminal=True)
            assert done.code == 1, done
            assert_harmless(done.out + done.err, done)
            assert f"closed with code 1011: {escaped(told.decode('utf-8', 'replace'))}" in done.err


def test_r31_what_programs_and_github_say_in_setup(
    thopters: Thopters, emulator: Emulator, start: Start, tmp_path: Path
) -> None:
    """The `sprite` program's version, the org of its login, and GitHub's reason."""
    told = ALL.replace("\0", "").encode("utf-8", "replace")
    (tmp_path / "told").write_bytes(told)
    write_launcher(tmp_path / "programs", "sprite", ["cat", str(tmp_path / "told")])
    launcher = tmp_path / "programs" / "sprite"
    launcher.write_text(launcher.read_text().replace(' "$@"', ""))
    store = thopters.home / ".sprites" / "sprites.json"
    org = ALL.replace("\ud800", "")
    document = {"urls": {emulator.url: {"orgs": {org: {"api_token": emulator.token}}}}}
    write(store, {**document, "current_selection": {"url": emulator.url, "org": org}})
    github = GitHub()
    try:
        thopters.env |= {"THOPTERS_GITHUB_API": github.url, "GITHUB_PAT": KEYS["GITHUB_PAT"] + "x"}
        thopters.env["PATH"] = f"{tmp_path / 'programs'}{os.pathsep}{thopters.env['PATH']}"
        session = start("setup", "--from-env", columns=4000)
        assert session.end() == 1, session.output
    finally:
        github.close()
    lines = session.screen.lines
    assert lines[0].startswith("sprite program: ") and r"\x1b[2J" in lines[0]
    assert f"logged in, org {escaped(org)}" in lines[0]
    assert set(session.screen.colours) <= {"31", "33", "36", "0"}
