"""R01-R03: no secret is seen where it does not belong, whatever fails.

Every secret is a canary: 32 characters that are nowhere else. All commands run with and without
--debug, and under faults. Then everything that is left is searched for each canary, as it is and
encoded. Allowed are the configuration file, the Authorization header of the secret's own server,
and the input of init.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import shlex
import signal
import socket
import string
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emulation import Emulator, Fault, write_launcher
from support.configs import GitHub, write
from support.ports import free_ports
from support.program import Result, Thopters
from support.runs import COMMAND_LINES


def canary(rng: random.Random) -> str:
    """Return what shells, URLs and JSON all have to change."""
    return "".join(rng.choices(string.ascii_letters, k=16)) + "'\"$/+ %" + rng.randbytes(8).hex()


def forms(value: str) -> list[bytes]:
    data = value.encode()
    found = [data, data.hex().encode(), shlex.quote(value).encode()[1:-1]]
    found += [urllib.parse.quote(value, safe="").encode(), urllib.parse.quote_plus(value).encode()]
    found += [json.dumps(value)[1:-1].encode()]
    for before in range(3):
        inner = base64.b64encode(b"x" * before + data)[4:-4]
        found += [inner, inner.replace(b"+", b"-").replace(b"/", b"_")]
    return found


class Watch:
    """A user with canaries for secrets, whose programs tell how they were called."""

    def __init__(self, thopters: Thopters, emulator: Emulator, github: GitHub) -> None:
        rng = random.Random(os.urandom(8))
        self.thopters = thopters
        self.emulator = emulator
        self.github = github
        self.names = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GITHUB_PAT", "MINE")
        self.secrets = {name: canary(rng) for name in self.names}
        self.secrets["GITHUB_PAT"] = "ghp_" + rng.randbytes(16).hex()
        self.config = thopters.home / ".sprite-thopters" / "config.json"
        write(self.config, {"secrets": self.secrets, "git": {"user": "A", "email": "a@b.c"}})
        emulator.token = "acme/1/tok/" + rng.randbytes(16).hex()
        thopters.env |= {"SPRITE_TOKEN": emulator.token, "PYTHONHASHSEED": "0"}
        self.told = thopters.home.parent / "told"
        folder = thopters.home.parent / "programs"
        script = f"{{ tr '\\0' '\\n' < /proc/$$/cmdline; env; }} >> {shlex.quote(str(self.told))}"
        for name in ("sprite", "git", "secret-tool"):
            write_launcher(folder, name, ["sh", "-c", f"{script}; exit 1", name])
        thopters.env["PATH"] = f"{folder}{os.pathsep}{thopters.env['PATH']}"

    def ready(self, command: str, *options: str) -> Callable[[], Result]:
        """Make what a command needs, and return what runs it."""
        file = self.thopters.home / "file"
        file.write_text("text\n")
        known = {"file": str(file), "web": str(self.github.server.server_port)}
        pattern = " ".join(ALL[command])
        if "{port}" in pattern:
            known["port"] = str(free_ports(1)[0])
        if "{session}" in pattern:
            known["session"] = self.run(*ALL["exec --detach"]).out.strip()
        words = [word.format(**known) for word in ALL[command]]
        # a value that is exported for setup or --env is one's own doing, and still not shown
        env = {name: self.secrets[name] for name in self.names} if command == "setup" else {}
        env |= {"MINE": "shown by nobody"} if command == "exec" else {}
        return lambda: self.run(*options, *words, stdin=INPUTS.get(command), env=env)

    def run(
        self, *words: str, stdin: bytes | None = None, env: dict[str, str] | None = None
    ) -> Result:
        """Run a command, and search all that it leaves behind."""
        self.emulator.journal.clear()
        if "proxy" in words and "--native" in words:
            done = self._forward(words)
        else:
            done = self.thopters(*words, stdin=stdin, env=env, timeout=150)
        assert "Traceback" not in done.err, done
        self.check(done.out_bytes + done.err_bytes, "what it says")
        for path in self.thopters.home.rglob("*"):
            if path.is_file() and path != self.config:
                self.check(path.read_bytes(), str(path))
        for request in self.emulator.journal:
            head = request.head.replace(b"Bearer " + self.emulator.token.encode(), b"")
            self.check(head, f"the head of {request}")
            for data in (request.body, request.stdin):  # an exec's input may be the body of a POST
                if not (request.path.endswith("/exec") and b"thopters-init" in data):
                    self.check(data, f"the body or the input of {request}")
            assert len(request.target) <= 2000
        if self.told.exists():
            exported = {self.emulator.token, *(env or {}).values()}
            self.check(self.told.read_bytes(), "what a program was given", exported)
        return done

    def _forward(self, words: tuple[str, ...]) -> Result:
        """Run a proxy of our own; if it listens, get a page through it, and end it by a signal."""
        process = self.thopters.start(*words)
        assert process.stdout
        line = process.stdout.readline()
        found = re.match(rb"localhost:(\d+) -> ", line)
        if found:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("localhost", int(found[1])), 30) as client,
            ):
                client.sendall(PAGE)
                while client.recv(4096):
                    pass
            process.terminate()
        out, err = process.communicate(timeout=150)
        return Result(subprocess.CompletedProcess(words, process.returncode, line + out, err))

    def check(self, data: bytes, where: str, allowed: set[str] | None = None) -> None:
        for value in {*self.secrets.values(), self.emulator.token} - (allowed or set()):
            for form in forms(value):
                assert form not in data, f"a secret is in {where}: {form!r}"


@pytest.fixture
def watch(thopters: Thopters, emulator: Emulator) -> Iterator[Watch]:
    github = GitHub()
    thopters.env["THOPTERS_GITHUB_API"] = github.url
    emulator.add_sprite("dev", status="running").add_checkpoint("first")
    emulator.personality.restore_delay_s = 0.05
    emulator.idle_s = 1.0
    yield Watch(thopters, emulator, github)
    github.close()


MORE = {  # in the default run with --debug alone, which says the most
    "exec --detach": ["exec", "dev", "--detach", "--", "sh", "-c", "read line; exit 9"],
    "exec in many": ["exec", "d*", "--", "true"],
    "init in many": ["init", "dev", "d*"],
    "env set": ["env", "set", "MORE"],
    "env list": ["env", "list"],
    "env unset": ["env", "unset", "MINE"],
    "env push": ["env", "push", "dev"],
    "env check": ["env", "check", "dev"],
    "sessions": ["sessions", "dev"],
    "attach": ["attach", "dev", "{session}"],
    "kill": ["kill", "dev", "{session}"],
    "hold": ["hold", "dev", "--for", "1h"],
    "hold --release": ["hold", "dev", "--release"],
    "cp in": ["cp", "{file}", "dev:copied"],
    "cp out": ["cp", "dev:.bashrc", "{file}"],
    "shell --native": ["shell", "dev", "--native"],
    "proxy --native": ["proxy", "dev", "{port}:{web}", "--native"],
    "proxy -W": ["proxy", "dev", "-W", "localhost:{web}"],
}
ALL = COMMAND_LINES | MORE
PAGE = b"GET /page HTTP/1.0\r\n\r\n"
INPUTS = {
    "attach": b"a line\n",
    "env set": b"a value\n",
    "shell --native": b"exit\n",
    "proxy -W": PAGE,
}
OFFLINE = ("config", "rename", "env set", "env list", "env unset")
STATUSES = {
    "env check": 1,  # no keys were put in yet
    **dict.fromkeys(("shell", "proxy"), 1),  # the told programs fail
    "setup": 1,  # GITHUB_PAT is rejected
    "rename": 1,
    "attach": 9,
    "proxy --native": -signal.SIGTERM,
}


def see_no_secret_in(watch: Watch, command: str, *options: str) -> None:
    done = watch.ready(command, *options)()
    assert done.code == STATUSES.get(command, 0), done
    if command not in OFFLINE:
        assert len(watch.emulator.journal)


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "debug"])
@pytest.mark.parametrize("command", COMMAND_LINES)
def test_r01_no_secret_is_seen_in_any_command(watch: Watch, command: str, debug: list[str]) -> None:
    see_no_secret_in(watch, command, *debug)


@pytest.mark.parametrize("command", MORE)
def test_r01_no_secret_is_seen_in_any_other_way(watch: Watch, command: str) -> None:
    see_no_secret_in(watch, command, "--debug")


@pytest.mark.slow
@pytest.mark.parametrize("command", MORE)
def test_r01_no_secret_is_seen_in_any_other_way_without_debug(watch: Watch, command: str) -> None:
    see_no_secret_in(watch, command)


def html(status: int) -> dict[str, object]:
    return {"status": status, "body": b"<html>oops", "content_type": "text/html"}


FAULTS = {
    "401": ("status", {"status": 401}),
    "403": ("status", {"status": 403}),
    "404": ("status", {"status": 404}),
    "409": ("status", {"status": 409}),
    "418": ("status", html(418)),
    "500": ("status", {"status": 500}),
    "502": ("status", html(502)),
    "200 html": ("status", html(200)),
    "200 not json": ("status", {"status": 200, "body": b'{"a'}),
    "200 empty": ("status", {"status": 200, "body": b""}),
    "redirect": ("redirect", {"status": 307, "location": "http://127.0.0.1:9/x?y"}),
    "reset": ("reset", {}),
    "cut head": ("cut_response", {"size": 20}),
    "cut body": ("cut_response", {"size": 240}),
    "gzip": ("gzip", {}),
    "done but 500": ("done_but", {"status": 500}),
    "done but reset": ("done_but", {"status": None}),
    "no final chunk": ("no_final_chunk", {}),
    "error event": ("ndjson_error", {}),
    "no complete": ("ndjson_no_complete", {}),
    "ws drop": ("ws", {"actions": [("drop", None)]}),
    "ws close": ("ws", {"actions": [("close", 1011)]}),
    "ws rubbish": ("ws", {"actions": [("raw", b"\xff\xff\xff")]}),
    "ws odd stream": ("ws", {"actions": [("message", b"\x07x")]}),
    "request cut": ("cut_request", {"size": 700}),
}
assert len(FAULTS) == 25


def echo(watch: Watch) -> None:
    """Have every error say back what was sent, as servers do."""
    token = watch.emulator.token
    words = " ".join([*watch.secrets.values(), token, f"Bearer {token}"])
    body = json.dumps({"error": "bad_request", "message": words}).encode()
    for method in ("GET", "POST", "PUT", "DELETE", "WS"):
        watch.emulator.fault(Fault(f"{method} *", "status", status=400, body=body, times=None))


# How a server's answer may hold a secret, in ways that make it hard to find
HIDDEN: dict[str, Callable[[str], str]] = {
    "cut in two": lambda value: json.dumps({"message": "x" * 270 + " Bearer " + value}),
    "with escapes as Go has them": lambda value: (
        json.dumps({"detail": value}).replace("&", "\\u0026").replace("<", "\\u003c")
    ),
    "in an array": lambda value: json.dumps([{"x": value}]).replace("/", "\\/"),
    "among the errors": lambda value: json.dumps({"errors": [{"x": value}]}),
    "JSON in JSON": lambda value: json.dumps({"message": json.dumps({"x": value})}),
    "as it is": lambda value: value,
}


@pytest.mark.parametrize("options", [[], ["--json"], ["--debug"]], ids=" ".join)
@pytest.mark.parametrize("how", HIDDEN)
def test_r01_no_answer_hides_a_secret(watch: Watch, how: str, options: list[str]) -> None:
    parts = [os.urandom(16).hex() for _ in range(3)]
    value = f"&<{parts[0]}>\x7f\x01/{parts[1]}\n\"'{parts[2]}\n"
    write(watch.config, {"secrets": {"MINE": value}})
    body = HIDDEN[how](value).encode()
    watch.emulator.fault(Fault("GET /v1/sprites", "status", status=400, body=body))
    done = watch.thopters("list", *options)
    assert done.code == 1
    for part in parts:
        assert part[:8] not in done.out + done.err, done


def test_r01_progress_of_many_lines_hides_no_secret(watch: Watch) -> None:
    parts = [os.urandom(16).hex() for _ in range(3)]
    write(watch.config, {"secrets": {"MINE": "\n".join(parts)}})
    event = {"type": "info", "data": "first\n" + "\n".join(parts) + "\nlast"}
    lines = json.dumps(event) + "\n" + json.dumps({"type": "complete", "data": "ID: v2"}) + "\n"
    fault = {"status": 200, "body": lines.encode(), "content_type": "application/x-ndjson"}
    watch.emulator.fault(Fault("POST */checkpoint", "status", **fault))  # type: ignore[arg-type]
    done = watch.thopters("checkpoint", "dev", "-v")
    assert (done.code, done.out) == (0, "v2\n")
    assert "first\n" in done.err and "last\n" in done.err
    for part in parts:
        assert part not in done.err


def sweep(watch: Watch, fault: str, command: str, debug: list[str]) -> Result:
    """Break the first request of each kind that a command sends."""
    kind, params = FAULTS[fault]
    run = watch.ready(command, *debug)
    watch.emulator.personality.wake_503 = 0  # else that is what the first WebSocket meets
    for method in ("GET", "POST", "PUT", "DELETE", "WS"):
        watch.emulator.fault(Fault(f"{method} *", kind, **params))  # type: ignore[arg-type]
    done = run()
    assert done.code != 2, done  # wrong usage would have nothing sent that could break
    return done


# each fault with a command that it breaks, what that exits with, and the words that show it; the
# whole table is slow, as create looks for half a minute whether a POST that failed has made it
BAND = [
    ("401", "setup", 1, "sprites token (SPRITE_TOKEN): rejected"),
    ("403", "list", 4, "sprites -> 403"),
    ("403", "doctor", 1, "sprites -> 403"),
    ("500", "info", 0, "500; trying again"),
    ("404", "init", 0, "exec -> 404"),
    ("409", "kill", 1, "exec -> 409"),
    ("418", "pause", 1, "the API answered 418"),
    ("500", "resume", 0, "500; trying again"),
    ("502", "hold --release", 0, "502; trying again"),
    ("200 html", "shell", 255, "expected JSON from the API, got text/html"),
    ("200 not json", "proxy", 1, "is not JSON"),
    ("200 empty", "cp out", 1, "POST /v1/sprites/dev/exec -> 200"),
    ("redirect", "checkpoints", 1, "the API answered 307, a redirect to 127.0.0.1"),
    ("reset", "proxy --native", -signal.SIGTERM, "broke off before the answer was complete"),
    ("cut head", "attach", 255, "is not JSON"),
    ("cut head", "proxy -W", 1, "broke the WebSocket upgrade"),
    ("cut body", "url", 0, "the body is short"),
    ("gzip", "sessions", 0, "the answer is compressed"),
    ("done but 500", "restore", 1, "checkpoint -> 500"),
    ("done but reset", "destroy", 0, "Connection reset by peer"),
    ("no final chunk", "checkpoint", 0, "IncompleteRead"),
    ("error event", "checkpoint", 1, "the storage is not ready"),
    ("no complete", "checkpoint", 1, "its answer was cut short"),
    ("ws drop", "exec --detach", 0, "the connection was closed; trying again in"),
    ("ws close", "shell --native", 0, "closed with code 1011: fault; starting again"),
    ("ws rubbish", "hold", 0, "a frame breaks the protocol; trying again in"),
    ("ws odd stream", "exec", 255, "what is no output and no exit status"),
    ("request cut", "cp in", 1, "cannot tell whether all was copied"),
    ("401", "create", 4, "new -> 401"),
    ("404", "ssh", 0, "dev -> 404"),
    ("ws drop", "create", 0, "new is not ready: the connection was closed"),
    ("done but 500", "create", 0, "looking whether new exists now"),
    ("ws odd stream", "exec in many", 255, "what is no output and no exit status"),
    ("reset", "init in many", 0, "broke off before the answer was complete"),
    ("ws drop", "env push", 0, "the connection was closed; trying again in"),
    ("ws close", "env check", 1, "closed with code 1011: fault; trying again in"),
]
assert {fault for fault, *_ in BAND} == set(FAULTS)
assert {command for _, command, *_ in BAND} == set(ALL) - set(OFFLINE)  # they send nothing


@pytest.mark.parametrize(
    ("fault", "command", "code", "said"), BAND, ids=[" - ".join(row[:2]) for row in BAND]
)
def test_r01_no_secret_is_seen_when_something_fails(
    watch: Watch, fault: str, command: str, code: int, said: str
) -> None:
    done = sweep(watch, fault, command, ["--debug"])
    assert (done.code, said in done.err) == (code, True), done


@pytest.mark.slow
@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "debug"])
@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize("fault", FAULTS)
def test_r01_no_secret_is_seen_in_any_command_under_any_fault(
    watch: Watch, fault: str, command: str, debug: list[str]
) -> None:
    sweep(watch, fault, command, debug)


def see_an_echo_struck_out(watch: Watch, command: str) -> None:
    run = watch.ready(command, "--debug")
    echo(watch)
    done = run()
    if command not in OFFLINE:
        assert done.code
        assert "****" in done.err + done.out


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_r01_what_the_server_says_back_is_struck_out(watch: Watch, command: str) -> None:
    see_an_echo_struck_out(watch, command)


@pytest.mark.slow
@pytest.mark.parametrize("command", MORE)
def test_r01_what_the_server_says_back_is_struck_out_in_other_ways(
    watch: Watch, command: str
) -> None:
    see_an_echo_struck_out(watch, command)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=" ".join)
@pytest.mark.parametrize("name", ["SPRITE_TOKEN", "SPRITES_TOKEN", "GITHUB_PAT"])
def test_r01_wrong_usage_shows_no_secret_of_the_environment(
    watch: Watch, name: str, options: list[str]
) -> None:
    """As a variable that a shell put into the wrong place; nothing has looked for the token."""
    other = "another-token-0123456789"
    value = {"SPRITE_TOKEN": watch.emulator.token, "SPRITES_TOKEN": other}.get(name)
    value = value or watch.secrets[name]
    for words in (["exec", "dev", "echo", value], ["list", value], [value], ["--" + value]):
        given = options if words[0] != "exec" else []
        done = watch.thopters(*words, *given, env={name: value})
        assert (done.code, value in done.out + done.err) == (2, False), done
        assert "****" in done.out + done.err


def test_r01_a_traceback_shows_no_secret(watch: Watch) -> None:
    done = watch.thopters("list", watch.emulator.token, env={"THOPTERS_DEBUG": "1"})
    traceback, found, _ = done.err.partition("thopters: error: ")
    assert (done.code, found != "") == (2, True), done
    assert "Traceback" in traceback and "****" in traceback
    watch.check(done.out_bytes + done.err_bytes, "what it says")


def test_r01_the_name_of_a_sprite_is_none(thopters: Thopters, emulator: Emulator) -> None:
    """Though a variable for sprites has it as its value, or a part of it."""
    path = thopters.home / ".sprite-thopters" / "config.json"
    write(path, {"secrets": {"PROJECT": "issue-42", "TEAM": "issue-", "KEY": "canary-0123456789"}})
    assert thopters("create", "issue-42").out.startswith("issue-42\thttps://issue-42-")
    assert thopters("list").out.startswith("issue-42\t")
    assert json.loads(thopters("url", "issue-42", "--json").out)["name"] == "issue-42"
    body = json.dumps({"type": "error", "error": "issue-42 canary-0123456789"}).encode()
    answer = {"status": 200, "body": body, "content_type": "application/x-ndjson"}
    emulator.fault(Fault("POST */restore", "status", **answer))  # type: ignore[arg-type]
    assert thopters("checkpoint", "issue-42").code == 0
    done = thopters("restore", "issue-42", "v1", "--yes", "--no-backup")
    assert (done.code, "issue-42: issue-42 ****" in done.err) == (1, True), done


def test_r01_a_key_in_a_names_place_is_struck_out(watch: Watch) -> None:
    """What the user names is no sprite's name before the API has shown it."""
    own = "own-value-0123456789"
    write(watch.config, {"secrets": {"GITHUB_PAT": watch.secrets["GITHUB_PAT"], "MINE": own}})
    for value in (watch.secrets["GITHUB_PAT"], own):
        for words in (["url", value], ["pause", value], ["exec", value, "--", "true"]):
            done = watch.thopters(*words)
            assert done.code in (3, 255)
            assert value not in done.out + done.err and "there is no sprite ****" in done.err
    body = json.dumps({"sprites": [{"name": watch.emulator.token, "status": "cold"}]}).encode()
    watch.emulator.fault(Fault("GET /v1/sprites", "status", status=200, body=body))
    assert watch.thopters("list").out.startswith("****\t")  # not even there


def test_r02_programs_get_no_secret_that_was_not_exported(watch: Watch) -> None:
    watch.run("setup", "--from-env", env={"ANTHROPIC_API_KEY": "another-value-0123456789"})
    watch.run("shell", "dev")
    told = watch.told.read_text()
    assert "--version" in told
    assert "console" in told
    watch.check(told.encode(), "argv and environment of programs", {watch.emulator.token})
    words = "\n".join(line for line in told.splitlines() if "=" not in line)
    assert watch.emulator.token not in words


def descendants(pid: int) -> list[int]:
    """Return a process and all that it has started, as far as they are there."""
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{found[-1]}/task").iterdir():
                left += map(int, (task / "children").read_text().split())
    return found


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="wants Linux's /proc")
@pytest.mark.parametrize("command", ["setup", "create", "init", "exec"])
def test_r02_every_5_ms_no_process_of_ours_has_a_secret_to_show(watch: Watch, command: str) -> None:
    """Command lines hold none at all, the environment what the user has exported."""
    names = {"setup": watch.names, "exec": ("MINE",)}.get(command, ())
    own = {name: watch.secrets[name] for name in names}
    watch.thopters.env |= own
    exported = {watch.emulator.token, *own.values()}
    looked_at = watch.told.with_name("looked-at")  # programs that setup starts wait for that
    wait = f"until [ -e {shlex.quote(str(looked_at))} ]; do sleep 0.01; done; exit 1"
    for program in ("sprite", "git"):
        write_launcher(looked_at.with_name("programs"), program, ["sh", "-c", wait, program])
    running = watch.thopters.start(*COMMAND_LINES[command])
    seen, samples = set(), 0
    while running.poll() is None:
        for pid in descendants(running.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                seen.add(words.split(b"\0")[0])
                if b"until [" in words:
                    looked_at.touch()
                watch.check(words, "a command line")
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                watch.check(environ, "an environment", exported)
        samples += 1
        time.sleep(0.005)
    _, err = running.communicate()
    assert running.returncode == STATUSES.get(command, 0), err
    assert samples >= 5 and sys.executable.encode() in seen
    assert (b"sh" in seen) == (command == "setup")


def test_r01_fifty_long_secrets_do_not_slow_the_program_down(
    thopters: Thopters, tmp_path: Path
) -> None:
    path = thopters.home / ".sprite-thopters" / "config.json"

    def seconds(count: int) -> float:
        """Return the least of three times that a command computes with so many secrets."""
        rng = random.Random(2)
        secrets = {f"V{number}": base64.b64encode(rng.randbytes(3072)) for number in range(count)}
        write(path, {"secrets": {name: value.decode() for name, value in secrets.items()}})
        took = []
        for _ in range(3):
            before = os.times()
            done = thopters("config")
            after = os.times()
            assert done.out.count("(4096 characters)") == count, done
            took.append(after.children_user - before.children_user)
        return min(took)

    assert seconds(50) < seconds(1) + 0.5


def test_r03_a_sprite_with_fifty_long_variables_has_a_short_url(
    thopters: Thopters, emulator: Emulator, tmp_path: Path
) -> None:
    rng = random.Random(1)
    secrets = {f"V{number}": rng.randbytes(2048).hex() for number in range(50)}
    write(thopters.home / ".sprite-thopters" / "config.json", {"secrets": secrets})
    assert thopters("create", "dev").code == 0
    lines = [request.head.partition(b"\r\n")[0] for request in emulator.journal]
    assert max(map(len, lines)) <= 2000
    assert not [r for r in emulator.journal if secrets["V7"].encode() in r.head]
    done = thopters("exec", "dev", "--", "printenv", "V0", "V49")
    assert done.out.split() == [secrets["V0"], secrets["V49"]]


# core files


def unlimited_core() -> None:
    """Let the system write core files, in a child that is about to start."""
    import resource  # not there on Windows

    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def dumps_core(process: subprocess.Popen[bytes]) -> bool:
    """Wait for the end of a child, and return whether its memory was written to a file."""
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it has none left to wait for
    assert os.WIFSIGNALED(status), status
    return os.WCOREDUMP(status)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGABRT, signal.SIGSEGV])
def test_s9_no_signal_leaves_the_memory_in_a_core_file(
    thopters: Thopters, emulator: Emulator, tmp_path: Path, number: signal.Signals
) -> None:
    """The token and the keys are in it, and QUIT is what ^\\ sends."""
    control = subprocess.Popen(["sleep", "60"], preexec_fn=unlimited_core, cwd=tmp_path)
    control.send_signal(number)
    if not dumps_core(control):
        pytest.skip("the system here writes no core files at all")
    emulator.add_sprite("dev", status="running")
    local, remote = free_ports(2)
    words = ["proxy", "dev", f"{local}:{remote}", "--native"]
    process = thopters.start(*words, preexec_fn=unlimited_core)
    assert process.stdout and process.stdout.readline()
    process.send_signal(number)
    assert not dumps_core(process)
    assert not list(thopters.home.glob("*core*"))
