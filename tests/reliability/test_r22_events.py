"""R22: in a stream of events nothing but `complete` is a success, for checkpoint and restore.

The platform answers 200 and tells everything else in lines of JSON. Here it is given the lines,
sound, broken or cut short; what the command claims has to agree with them and with the emulator.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from emulation import Emulator, Fault
from emulation.journal import Request
from emulation.state import Sprite
from emulation.wire import Wire
from support.program import Thopters
from support.runs import Done, environ_for, run_here, shorten
from support.servers import Canned, response

import thopters as program

NDJSON = "application/x-ndjson"


def line(kind: str, **fields: object) -> bytes:
    return json.dumps({"type": kind, **fields, "time": "2026-01-13T10:30:00Z"}).encode() + b"\n"


BEGIN = line("info", data="Creating checkpoint...")
ID = line("info", data="  ID: v1")
DONE = line("complete", data="Checkpoint v1 created successfully")

FAILURES = {
    "error line": BEGIN + line("error", error="the storage is not ready"),
    "error line with data": BEGIN + line("error", data="the storage is not ready"),
    "error line without words": BEGIN + line("error"),
    "error beside complete": BEGIN + line("complete", error="the storage is not ready"),
    "error before complete": BEGIN + line("error", error="no") + DONE,
    "error behind complete": BEGIN + ID + DONE + line("error", error="no"),
    "error key behind complete": BEGIN + ID + DONE + line("info", data="x") + line("x", error="no"),
    "error key in an info": BEGIN + line("info", error="no") + DONE,
    "no complete": BEGIN + ID,
    "nothing": b"",
    "empty lines": b"\n\r\n\n",
    "complete as a word": BEGIN + ID + b"complete\n",
    "complete as JSON text": BEGIN + ID + b'"complete"\n',
    "complete in a list": BEGIN + ID + b'[{"type": "complete"}]\n',
    "complete in the words": BEGIN + line("info", data='{"type": "complete"}'),
    "complete in capitals": BEGIN + line("COMPLETE", data="Checkpoint v1 created"),
    "complete as a list": BEGIN + b'{"type": ["complete"]}\n',
    "completed": BEGIN + line("completed", data="Checkpoint v1 created"),
    "complete cut short": BEGIN + DONE[:-3],
    "complete cut in two": BEGIN + DONE[:10] + b"\n" + DONE[10:],
    "bad JSON before complete": BEGIN + b"{oops}\n" + DONE,
    "bad UTF-8 before complete": BEGIN + b'{"type": "info", "data": "\xff\xfe"}\n' + DONE,
    "html": b"<html><body>complete</body></html>\n",
    "a line of 10 MB": BEGIN + b'{"type": "info", "data": "' + b"x" * 10_000_000 + b'"}\n' + DONE,
    "200,000 deep": BEGIN + b"[" * 200_000 + b"\n" + DONE,
    "17 MB of lines": BEGIN + line("info", data="x" * 1000) * 17_000 + DONE,
    "only carriage returns": (BEGIN + DONE).replace(b"\n", b"\r"),
    "utf-16": (BEGIN + DONE).decode().encode("utf-16"),
}
SUCCESSES = {
    "as it should be": BEGIN + ID + DONE,
    "without the last newline": BEGIN + ID + DONE[:-1],
    "CRLF": (BEGIN + ID + DONE).replace(b"\n", b"\r\n"),
    "a byte order mark": b"\xef\xbb\xbf" + BEGIN + ID + DONE,
    "blank lines": BEGIN + b"\n \n" + ID + b"\n" + DONE,
    "no spaces": (BEGIN + ID + DONE).replace(b": ", b":").replace(b"ID:v1", b"ID: v1"),
    "unknown events": BEGIN + line("heartbeat") + b"{}\n" + ID + DONE,
    "odd types": BEGIN + b'{"type": 7, "data": ["x"]}\n' + ID + DONE,
    "a line of 900 kB": BEGIN + line("info", data="x" * 900_000) + ID + DONE,
    "what follows complete": BEGIN + ID + DONE + line("info", data="bye") + b"{oops\n",
    "error without an error": line("info", error=None) + ID + line("complete", error=None),
}


class NoWaiting(program.Clock):
    def __init__(self) -> None:
        self.skipped = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.skipped

    def sleep(self, seconds: float) -> None:
        self.skipped += seconds


class Place:
    """A sprite with a checkpoint, whose server says what it is given."""

    def __init__(self, emulator: Emulator, home: Path) -> None:
        self.emulator = emulator
        self.environ = environ_for(emulator, str(home))
        self.sprite: Sprite = emulator.add_sprite("dev", status="running")
        (self.sprite.home / "work").write_text("before")
        self.sprite.add_checkpoint("mine").made -= 60
        (self.sprite.home / "work").write_text("after")

    def run(self, *argv: str) -> Done:
        done = run_here(argv, self.environ)
        assert "internal error" not in done.err, done
        assert "Traceback" not in done.err, done
        assert (done.code == 0) == ("thopters: error: " not in done.err), done
        return done

    def say(self, route: str, body: bytes, kind: str = "status", **more: object) -> None:
        """Have the next request be answered so, with nothing done (or, "done_but", all of it)."""
        answer = {"status": 200, "body": body, "content_type": NDJSON} | more
        self.emulator.fault(Fault(route, kind, **answer))  # type: ignore[arg-type]


@pytest.fixture
def place(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    clock = NoWaiting()
    monkeypatch.setattr(program, "Clock", lambda: clock)
    monkeypatch.setattr(program, "WAKE_LIMIT_S", 3.0)
    return Place(emulator, tmp_path)


@pytest.mark.parametrize("name", FAILURES)
def test_r22_checkpoint_that_is_not_complete_is_none(place: Place, name: str) -> None:
    place.say("POST */checkpoint", FAILURES[name])
    done = place.run("checkpoint", "dev")
    assert (done.code, done.out) == (1, "")
    assert len(place.emulator.journal.requests("POST")) == 1  # never a second one


@pytest.mark.parametrize("name", SUCCESSES)
def test_r22_checkpoint_that_is_complete_tells_its_id(place: Place, name: str) -> None:
    place.say("POST */checkpoint", SUCCESSES[name])
    done = place.run("checkpoint", "dev")
    assert (done.code, done.out) == (0, "v1\n"), done
    assert len(place.emulator.journal.requests("POST")) == 1


@pytest.mark.parametrize("name", FAILURES)
def test_r22_restore_that_is_not_complete_is_none(place: Place, name: str) -> None:
    place.say("POST */restore", FAILURES[name])
    done = place.run("restore", "dev", "v1", "--yes")
    assert (done.code, done.out) == (1, "")
    assert "may or may not be at v1 now; the state before is checkpoint v2" in done.err
    assert not list(place.sprite.home.glob(".thopters-restore-*"))
    posts = [r.path for r in place.emulator.journal.requests("POST")]
    assert posts == ["/v1/sprites/dev/checkpoint", "/v1/sprites/dev/checkpoints/v1/restore"]


@pytest.mark.parametrize("name", FAILURES)
def test_r22_no_restore_without_a_complete_backup(place: Place, name: str) -> None:
    place.say("POST */checkpoint", FAILURES[name])
    done = place.run("restore", "dev", "v1", "--yes")
    assert (done.code, done.out) == (1, "")
    assert [r.path for r in place.emulator.journal.requests("POST")] == [
        "/v1/sprites/dev/checkpoint"
    ]
    assert (place.sprite.home / "work").read_text() == "after"


@pytest.mark.parametrize("name", SUCCESSES)
def test_r22_restore_that_is_only_said_to_be_complete_is_none(place: Place, name: str) -> None:
    place.say("POST */restore", SUCCESSES[name])
    done = place.run("restore", "dev", "v1", "--yes")
    assert (done.code, done.out) == (7, "")
    assert "dev still shows the disk from before; the state before is checkpoint v2" in done.err
    assert (place.sprite.home / "work").read_text() == "after"


@pytest.mark.parametrize("status", [408, 500, 502, 504, 524])
def test_r22_an_answer_that_is_no_definite_no_says_nothing(place: Place, status: int) -> None:
    place.emulator.fault(Fault("POST */checkpoint", "done_but", status=status))
    done = place.run("checkpoint", "dev")
    assert (done.code, done.out) == (1, "")
    assert f"cannot tell whether the API could checkpoint dev: it answered {status}" in done.err
    assert [made.id for made in place.sprite.checkpoints] == ["v1", "v2"]


def test_r22_an_answer_of_another_type_is_no_stream(place: Place) -> None:
    for kind in ("text/html", "text/plain", "application/octet-stream"):
        place.say("POST */checkpoint", BEGIN + ID + DONE, content_type=kind)
        done = place.run("checkpoint", "dev")
        assert (done.code, done.out) == (1, "")


# the id is in prose alone

PROSE = {
    "details": ([ID, line("complete")], "v1"),
    "details among others": ([line("info", data="\nDetails:\n  ID: v1\n  Path: x\n"), DONE], "v1"),
    "the last line": ([DONE], "v1"),
    "message for data": ([line("complete", message="Checkpoint v1 created")], "v1"),
    "no id, but a new one has our words": ([line("complete", data="done")], "v2"),
    "an id that bends a path": ([line("info", data="ID: ../v9"), line("complete")], "v2"),
    "an id with an escape": ([line("info", data="ID: v9\x1b[2J"), line("complete")], "v2"),
    "an id that is too long": ([line("info", data="ID: " + "v" * 65), line("complete")], "v2"),
    "an id that is an option": ([line("info", data="ID: --yes"), line("complete")], "v2"),
}


@pytest.mark.parametrize("name", PROSE)
def test_r22_the_id_is_found_in_prose(place: Place, name: str) -> None:
    events, identity = PROSE[name]
    place.say("POST */checkpoint", BEGIN + b"".join(events), "done_but")
    done = place.run("checkpoint", "dev", "--comment", "mine")
    assert (done.code, done.out) == (0, identity + "\n"), done
    looks = place.emulator.journal.requests("GET")
    assert len(looks) == (0 if identity == "v1" else 1)  # only where the stream does not tell
    assert "\x1b" not in done.err


def test_r22_an_id_that_is_nowhere_is_not_made_up(place: Place) -> None:
    place.say("POST */checkpoint", BEGIN + line("complete", data="done"))
    done = place.run("checkpoint", "dev", "--comment", "of somebody else")
    assert (done.code, done.out) == (1, "")
    assert "the checkpoint of dev was made, but its id was not told" in done.err


UNTOLD = BEGIN + line("complete", data="done")


def test_r22_an_older_one_is_not_taken_for_the_new_one(thopters: Thopters, place: Place) -> None:
    """The list lags behind, and shows what has the same words."""
    place.say("POST */checkpoint", UNTOLD)
    done = thopters("checkpoint", "dev", "--comment", "mine")
    assert (done.code, done.out) == (1, ""), done
    assert "the checkpoint of dev was made, but its id was not told" in done.err
    place.say("POST */checkpoint", UNTOLD, "done_but")
    done = thopters("checkpoint", "dev", "--comment", "mine")
    assert (done.code, done.out) == (0, "v2\n"), done


@pytest.mark.parametrize("stamps", ["offset", "nanoseconds"])
def test_r22_the_new_one_is_known_by_every_stamp(
    thopters: Thopters, place: Place, stamps: str
) -> None:
    place.emulator.personality.stamps = stamps
    place.say("POST */checkpoint", UNTOLD, "done_but")
    done = thopters("checkpoint", "dev", "--comment", "mine")
    assert (done.code, done.out) == (0, "v2\n"), done


def test_r22_of_two_new_ones_none_is_ours_for_certain(thopters: Thopters, place: Place) -> None:
    place.sprite.add_checkpoint("mine").made += 60  # by somebody else, just now
    place.say("POST */checkpoint", UNTOLD, "done_but")
    done = thopters("checkpoint", "dev", "--comment", "mine")
    assert (done.code, done.out) == (1, ""), done
    assert "the checkpoint of dev was made, but its id was not told" in done.err


def test_r22_an_older_backup_is_not_taken_for_the_new_one(thopters: Thopters, place: Place) -> None:
    """However young it is: restore has seen it before."""
    place.sprite.add_checkpoint("before restore of v1").made += 60
    place.say("POST */checkpoint", UNTOLD)
    done = thopters("restore", "dev", "v1", "--yes")
    assert (done.code, done.out) == (1, ""), done
    assert "was made, but its id was not told" in done.err and "v2" not in done.err
    assert (place.sprite.home / "work").read_text() == "after"
    place.say("POST */checkpoint", UNTOLD, "done_but")
    done = thopters("restore", "dev", "v1", "--yes")
    assert done.code == 0, done
    assert "undo it: thopters restore dev v3" in done.err


@pytest.mark.parametrize("comment", ["ID: v7 is no good", "after Checkpoint v7 created by Bob"])
def test_r22_words_of_ours_in_the_prose_are_no_id(place: Place, comment: str) -> None:
    # a platform may say back the comment, which speaks of another checkpoint
    words = [line("info", data=f"Creating checkpoint: {comment}"), DONE]
    place.say("POST */checkpoint", b"".join(words))
    done = place.run("checkpoint", "dev", "--comment", comment)
    assert (done.code, done.out) == (0, "v1\n"), done


# the same through a process of its own


@pytest.mark.parametrize(
    "name",
    [
        *("error line", "no complete", "a line of 10 MB", "CRLF", "error without an error"),
        *("error behind complete", "what follows complete"),
    ],
)
def test_r22_the_program_itself(thopters: Thopters, place: Place, name: str) -> None:
    place.say("POST */checkpoint", (FAILURES | SUCCESSES)[name])
    done = thopters("checkpoint", "dev")
    assert (done.code, done.out) == ((0, "v1\n") if name in SUCCESSES else (1, "")), done


def test_r22_nobody_waits_long_for_the_end_behind_complete(thopters: Thopters) -> None:
    shorten(thopters, LAST_WORDS_S=0.3)

    def answer(request: Request, wire: Wire) -> None:
        wire.write(response(BEGIN + ID + DONE, 200, "Content-Length: 9999", kind=NDJSON))
        server.stopping.wait()

    with Canned(answer) as server:
        env = {"SPRITES_API_URL": server.url, "SPRITE_TOKEN": "acme/1/tok/ottoman"}
        started = time.monotonic()
        done = thopters("checkpoint", "dev", env=env)
        took = time.monotonic() - started
    assert (done.code, done.out) == (0, "v1\n"), done
    assert took < program.SILENCE_TIMEOUT_S / 2
