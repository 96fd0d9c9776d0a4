"""`shell` and `proxy`, which become the vendor's `sprite` program, and what `setup` says of it.

That program is here a few lines of shell where its words and its environment matter, and the
stand-in where something has to come out of it.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shlex
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulation import SPRITE_PROGRAM, Emulator, write_launcher
from support.ports import free_ports
from support.program import Thopters, both
from support.runs import run_here
from support.terminals import CTRL_C, Start

each_command = pytest.mark.parametrize("command", ["shell", "proxy"])
SHELL = ["shell", "dev"]

PROMPT = ":~"  # of a shell in a sprite
ELSEWHERE = "https://sprites.example"


@pytest.fixture
def folder(thopters: Thopters, tmp_path: Path) -> Path:
    """Return a folder that is the first in PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    thopters.env["PATH"] = f"{folder}{os.pathsep}{thopters.env['PATH']}"
    return folder


def write_program(folder: Path, script: str, mode: int = 0o755) -> None:
    """Have a `sprite` that is this script of the shell."""
    (folder / "sprite").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "sprite").chmod(mode)


@pytest.fixture
def ran(folder: Path) -> Path:
    """Have a `sprite` that notes its words, one a line; return the file, which proves a run."""
    path = folder / "ran"
    write_program(folder, f'printf "%s\\n" "$@" >> {shlex.quote(str(path))}')
    return path


@pytest.fixture
def stand_in(thopters: Thopters, folder: Path) -> Path:
    """Have the stand-in as `sprite`; return its log."""
    write_launcher(folder, "sprite", SPRITE_PROGRAM)
    log = folder / "log"
    thopters.env["STAND_IN_LOG"] = str(log)
    return log


def calls(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def log_in(
    thopters: Thopters,
    logins: dict[str, dict[str, str]],
    selected: tuple[str, str] | None,
    **others: object,
) -> Path:
    """Store logins (URL -> org -> token) as the `sprite` program does; return the file."""
    urls = {
        url: {"url": url, "orgs": {org: {"name": org, "api_token": orgs[org]} for org in orgs}}
        for url, orgs in logins.items()
    }
    document: dict[str, object] = {"version": "1", "urls": urls, **others}
    if selected:
        document["current_selection"] = {"url": selected[0], "org": selected[1]}
    path = thopters.home / ".sprites" / "sprites.json"
    path.parent.mkdir(mode=0o700)
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path


def words_of(command: str) -> list[str]:
    """Return a command line that is good, for a port that is free on this machine."""
    return SHELL if command == "shell" else ["proxy", "dev", str(free_ports(1)[0])]


# where the program is found


def ours(thopters: Thopters, command: str, *more: str) -> str:
    """Run a command that has to be done without the program, and return what it says."""
    if command == "shell":
        done = thopters("shell", "dev", "-v", *more, stdin=b"exit 7\n")
        assert done.code == 7, done
        return done.err
    (port,) = free_ports(1)
    process = thopters.start("proxy", "dev", str(port), "-v", *more)
    assert process.stdout and process.stderr
    assert process.stdout.readline() == f"localhost:{port} -> dev:{port}\n".encode()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    return err.decode()


@each_command
def test_without_the_program_ours_does_it(
    thopters: Thopters, emulator: Emulator, command: str
) -> None:
    emulator.add_sprite("dev")
    ours(thopters, command)


@each_command
@pytest.mark.parametrize("way", ["option", "variable"])
def test_ours_can_be_chosen(
    thopters: Thopters, emulator: Emulator, ran: Path, command: str, way: str
) -> None:
    emulator.add_sprite("dev", status="running")
    if way == "variable":
        thopters.env["THOPTERS_NATIVE"] = "1"
    ours(thopters, command, *(["--native"] if way == "option" else []))
    assert not ran.exists()


@pytest.mark.parametrize(
    "path", [None, "", ".", ":", "programs", "./programs", "../home", "{file}", "/dev/null"]
)
def test_the_program_is_not_taken_from_where_we_happen_to_be(
    thopters: Thopters, emulator: Emulator, path: str | None
) -> None:
    for folder in (thopters.home, thopters.home / "programs"):
        folder.mkdir(exist_ok=True)
        write_program(folder, "touch ran")
    del thopters.env["PATH"]
    if path is not None:
        thopters.env["PATH"] = path.format(file=thopters.home / "sprite")
    emulator.add_sprite("dev", status="running")
    ours(thopters, "shell")
    assert not (thopters.home / "ran").exists()


def test_what_cannot_be_run_is_passed_over(
    thopters: Thopters, emulator: Emulator, ran: Path, tmp_path: Path
) -> None:
    emulator.add_sprite("dev", status="running")
    data, named = tmp_path / "data", tmp_path / "named"
    data.mkdir()
    write_program(data, "exit 1", mode=0o644)
    (named / "sprite").mkdir(parents=True)
    thopters.env["PATH"] = f":{data}:{named}:.:{ran.parent}:/usr/bin:/bin"
    assert thopters(*SHELL).code == 0
    assert ran.read_text().split() == ["-s", "dev", "console"]


@pytest.mark.parametrize(("command", "code"), [("shell", 255), ("proxy", 1)])
def test_a_program_that_cannot_start_is_a_failure_of_ours(
    thopters: Thopters, emulator: Emulator, folder: Path, command: str, code: int
) -> None:
    emulator.add_sprite("dev", status="running")
    (folder / "sprite").write_text("#!/no/such/interpreter\n")
    (folder / "sprite").chmod(0o755)
    done = thopters(*words_of(command))
    assert (done.code, done.out) == (code, "")
    assert f"thopters: error: cannot run {folder}/sprite: No such file" in done.err


# we become it


@pytest.mark.parametrize("command", ["shell", "console"])
def test_shell_calls_it_with_the_sprites_name(
    thopters: Thopters, emulator: Emulator, ran: Path, command: str
) -> None:
    emulator.add_sprite("dev", status="running")
    done = thopters(command, "dev")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert ran.read_text().splitlines() == ["-s", "dev", "console"]


def test_proxy_passes_the_ports_on(thopters: Thopters, emulator: Emulator, ran: Path) -> None:
    emulator.add_sprite("dev", status="running")
    a, b, c = free_ports(3)
    for ports in ([f"{a}"], [f"{a}:3000"], [f"{a}", f"{b}:80", f"{c}:65535"]):
        done = thopters("proxy", "dev", *ports)
        assert (done.code, done.out, done.err) == (0, "", "")
        assert ran.read_text().splitlines() == ["-s", "dev", "proxy", *ports]
        ran.unlink()


@each_command
def test_its_exit_status_is_ours(
    thopters: Thopters, emulator: Emulator, folder: Path, command: str
) -> None:
    emulator.add_sprite("dev", status="running")
    for code in (0, 1, 2, 42, 126, 127, 128, 130, 255):
        write_program(folder, f"exit {code}")
        done = thopters(*words_of(command))
        assert (done.code, done.out, done.err) == (code, "", "")


@each_command
def test_its_death_is_ours(
    thopters: Thopters, emulator: Emulator, folder: Path, command: str
) -> None:
    emulator.add_sprite("dev", status="running")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        write_program(folder, f"kill -{number} $$; exit 3")
        done = thopters(*words_of(command))
        assert (done.code, done.out, done.err) == (-number, "", "")


@both
def test_signals_reach_it(thopters: Thopters, emulator: Emulator, folder: Path) -> None:
    emulator.add_sprite("dev", status="running")
    script = "trap 'echo caught; exit 9' {}; echo up $$; while :; do sleep 0.05; done"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        write_program(folder, script.format(number.name[3:]))
        process = thopters.start(*SHELL)
        assert process.stdout
        assert process.stdout.readline() == b"up %d\n" % process.pid
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (9, b"caught\n", b"")


def test_a_closed_pipe_ends_it(thopters: Thopters, emulator: Emulator, folder: Path) -> None:
    """Python ignores SIGPIPE, and what is ignored would stay so in the program."""
    emulator.add_sprite("dev", status="running")
    write_program(folder, "kill -PIPE $$; exit 3")
    assert thopters(*SHELL).code == -signal.SIGPIPE


@both
def test_no_timer_of_ours_goes_on_in_it(
    thopters: Thopters, emulator: Emulator, folder: Path
) -> None:
    emulator.add_sprite("dev", status="running")
    asks = "import signal; print(signal.getitimer(signal.ITIMER_REAL))"
    write_program(folder, "exec " + shlex.join([sys.executable, "-c", asks]))
    assert thopters(*SHELL).out == "(0.0, 0.0)\n"


def test_its_streams_are_ours(thopters: Thopters, emulator: Emulator, folder: Path) -> None:
    emulator.add_sprite("dev", status="running")
    write_program(folder, "cat; echo oops >&2")
    data = bytes(range(256)) * 1000
    done = thopters(*SHELL, stdin=data)
    assert (done.code, done.err) == (0, "oops\n")
    assert done.out_bytes == data


def test_its_environment_is_ours_but_for_what_leads_it_astray(
    thopters: Thopters, emulator: Emulator, folder: Path
) -> None:
    emulator.add_sprite("dev", status="running")
    write_program(folder, "exec env -0")
    astray = {
        "SHELL": "/usr/bin/fish",
        "ZSH_VERSION": "5.9",
        "ZSH_NAME": "zsh",
        "FISH_VERSION": "4.0",
        "BASH_VERSION": "5.2",
        "SPRITE_URL": "https://other-1234.sprites.app",
    }
    done = thopters(*SHELL, env=astray | {"TERM": "xterm", "OWN": "a\nb"})
    found = dict(item.partition("=")[::2] for item in done.out.rstrip("\0").split("\0"))
    assert found["SHELL"] == "/bin/bash"
    assert not found.keys() & (astray.keys() - {"SHELL"})
    kept = {**thopters.env, "SHELL": "/bin/bash", "TERM": "xterm", "OWN": "a\nb"}
    assert {name: found.get(name) for name in kept} == kept


def test_a_sleeping_sprite_is_awake_before_the_console_opens(
    thopters: Thopters, emulator: Emulator, stand_in: Path
) -> None:
    emulator.personality.wake_503 = 3
    sprite = emulator.add_sprite("dev")
    done = thopters(*SHELL, stdin=b"exit\n")
    assert done.code == 0, done
    assert sprite.status == "running"
    consoles = [r for r in emulator.journal.requests("WS") if r.values("tty")]
    assert [request.status for request in consoles] == [101]  # it was never told to wait
    assert len(calls(stand_in)) == 1


def test_a_sprite_that_is_awake_runs_nothing_but_the_console(
    thopters: Thopters, emulator: Emulator, stand_in: Path
) -> None:
    emulator.add_sprite("dev", status="running")
    assert thopters(*SHELL, stdin=b"exit\n").code == 0
    assert [argv for _, argv, _ in emulator.journal.executed] == [["bash", "--login"]]


# which sprite it reaches


def test_with_nothing_stored_it_uses_our_token(
    thopters: Thopters, emulator: Emulator, stand_in: Path
) -> None:
    emulator.add_sprite("dev", status="running")
    assert thopters(*SHELL, stdin=b"exit\n").code == 0
    [call] = calls(stand_in)
    assert call["argv"] == ["-s", "dev", "console"]
    assert call["env"] == {"SHELL": "/bin/bash", "SPRITE_TOKEN": emulator.token}


@pytest.mark.parametrize("source", ["store", "environment"])
def test_the_selected_org_is_named(
    thopters: Thopters, emulator: Emulator, stand_in: Path, source: str
) -> None:
    emulator.add_sprite("dev", status="running")
    orgs = {"acme": emulator.token, "other": "a-token-of-another-org"}
    path = log_in(thopters, {emulator.url: orgs}, (emulator.url, "acme"))
    if source == "store":
        del thopters.env["SPRITE_TOKEN"]
    before = path.read_bytes()
    done = thopters(*SHELL, stdin=b"echo $((6*7)); exit\n")
    assert done.code == 0, done
    assert "42" in done.out
    assert [call["argv"] for call in calls(stand_in)] == [["-s", "dev", "-o", "acme", "console"]]
    assert path.read_bytes() == before


def test_an_org_of_the_environment_is_left_to_it(
    thopters: Thopters, emulator: Emulator, stand_in: Path
) -> None:
    """`-o` would rewrite the stored selection, which names another org here."""
    emulator.add_sprite("dev", status="running")
    orgs = {"acme": emulator.token, "other": "a-token-of-another-org"}
    path = log_in(thopters, {emulator.url: orgs}, (emulator.url, "other"))
    del thopters.env["SPRITE_TOKEN"]
    before = path.read_bytes()
    done = thopters(*SHELL, stdin=b"exit\n", env={"SPRITE_ORG": "acme"})
    assert done.code == 0, done
    [call] = calls(stand_in)
    assert call["argv"] == ["-s", "dev", "console"]
    assert call["env"]["SPRITE_ORG"] == "acme"
    assert path.read_bytes() == before


def test_a_url_may_be_selected_by_its_alias(
    thopters: Thopters, emulator: Emulator, ran: Path
) -> None:
    emulator.add_sprite("dev", status="running")
    aliases = {"local": emulator.url + "/"}
    log_in(thopters, {"local": {"acme": emulator.token}}, ("local", "acme"), url_aliases=aliases)
    assert thopters(*SHELL).code == 0
    assert ran.read_text().split() == ["-s", "dev", "-o", "acme", "console"]


@pytest.mark.parametrize("key", ["organization", "org_slug", "nothing"])
def test_the_owner_may_be_told_in_any_way_if_the_token_is_the_programs(
    thopters: Thopters, emulator: Emulator, ran: Path, key: str
) -> None:
    emulator.personality.org_key = key
    emulator.add_sprite("dev", status="running")
    log_in(thopters, {emulator.url: {"acme": emulator.token}}, (emulator.url, "acme"))
    del thopters.env["SPRITE_TOKEN"]
    assert thopters(*SHELL).code == 0
    assert ran.read_text().split() == ["-s", "dev", "-o", "acme", "console"]


def another_org_selected(thopters: Thopters, emulator: Emulator) -> str:
    orgs = {"acme": emulator.token, "other": "a-token-of-another-org"}
    log_in(thopters, {emulator.url: orgs}, (emulator.url, "other"))
    return "dev belongs to the org acme, but the sprite program has other selected"


def another_org_in_the_environment(thopters: Thopters, emulator: Emulator) -> str:
    orgs = {"acme": emulator.token, "other": "a-token-of-another-org"}
    log_in(thopters, {emulator.url: orgs}, (emulator.url, "acme"))
    thopters.env["SPRITE_ORG"] = "other"
    return "dev belongs to the org acme, but the sprite program has other selected"


def org_that_is_not_stored(thopters: Thopters, emulator: Emulator) -> str:
    log_in(thopters, {emulator.url: {"acme": emulator.token}}, (emulator.url, "gone"))
    return f"the sprite program is not logged in to {emulator.url}"


def logged_in_elsewhere_alone(thopters: Thopters, emulator: Emulator) -> str:
    log_in(thopters, {ELSEWHERE: {"acme": "a-token-of-that-place"}}, (ELSEWHERE, "acme"))
    return f"the sprite program is not logged in to {emulator.url}"


def elsewhere_selected(thopters: Thopters, emulator: Emulator) -> str:
    logins = {emulator.url: {"acme": emulator.token}, ELSEWHERE: {"acme": "a-token-of-that-place"}}
    log_in(thopters, logins, (ELSEWHERE, "acme"))
    return f"the sprite program is not logged in to {emulator.url}"


def nothing_selected(thopters: Thopters, emulator: Emulator) -> str:
    log_in(thopters, {emulator.url: {"acme": emulator.token}}, None)
    return f"the sprite program is not logged in to {emulator.url}"


def token_that_it_does_not_take(thopters: Thopters, emulator: Emulator) -> str:
    thopters.env["SPRITES_TOKEN"] = thopters.env.pop("SPRITE_TOKEN")
    return f"the sprite program is not logged in to {emulator.url}"


def owner_unknown(thopters: Thopters, emulator: Emulator) -> str:
    emulator.personality.org_key = "nothing"
    log_in(thopters, {emulator.url: {"acme": "some-other-token"}}, (emulator.url, "acme"))
    return "cannot tell whether the org that the sprite program has selected (acme) is the one"


@each_command
@pytest.mark.parametrize(
    "prepare",
    [
        another_org_selected,
        another_org_in_the_environment,
        org_that_is_not_stored,
        logged_in_elsewhere_alone,
        elsewhere_selected,
        nothing_selected,
        token_that_it_does_not_take,
        owner_unknown,
    ],
)
def test_what_might_reach_another_sprite_is_done_by_ours(
    thopters: Thopters, emulator: Emulator, ran: Path, prepare: Any, command: str
) -> None:
    emulator.add_sprite("dev", status="running")
    reason = prepare(thopters, emulator)
    said = ours(thopters, command)
    assert reason in said
    assert "token-of" not in said
    assert not ran.exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["shell", "deb"], 255),
        (["proxy", "deb", "8080"], 3),
        (["shell"], 2),
        (["shell", "../x"], 2),
        (["shell", "dev", "ls"], 2),
        (["proxy", "dev"], 2),
    ],
)
def test_what_is_no_sprite_or_wrong_usage(
    thopters: Thopters, emulator: Emulator, ran: Path, words: list[str], code: int
) -> None:
    emulator.add_sprite("dev", status="running")
    done = thopters(*words)
    assert (done.code, done.out) == (code, "")
    if code == 2:
        assert not len(emulator.journal)
    else:
        assert "there is no sprite deb\nhint: did you mean dev?\n" in done.err
    assert not ran.exists()


@pytest.mark.parametrize(("command", "code"), [("shell", 255), ("proxy", 4)])
def test_a_refused_token_starts_nothing(
    thopters: Thopters, emulator: Emulator, ran: Path, command: str, code: int
) -> None:
    thopters.env["SPRITE_TOKEN"] = "acme/1/tok/not-the-right-one"
    done = thopters(*words_of(command))
    assert done.code == code
    assert "refused the token from SPRITE_TOKEN" in done.err
    assert not ran.exists()


# a shell, from end to end


def test_a_shell_takes_a_script_on_its_input(
    thopters: Thopters, emulator: Emulator, stand_in: Path
) -> None:
    emulator.add_sprite("dev")
    done = thopters(*SHELL, stdin=b"echo hello; exit\n")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^hello\r$", done.out, re.M)


def test_a_shell_on_a_terminal(
    thopters: Thopters, emulator: Emulator, stand_in: Path, start: Start
) -> None:
    emulator.add_sprite("dev")
    session = start(*SHELL, columns=97)
    session.expect(PROMPT)
    session.type("stty size\n")
    session.expect("24 97\r\n")
    session.expect(PROMPT)
    session.type("echo rea''dy; cat\n")
    session.expect("ready\r\n")
    session.type("ping\n")
    session.expect("ping\r\nping\r\n")
    session.type(CTRL_C)  # a key like any other: it is for the command there
    session.expect(PROMPT)  # what is typed between two programs may be lost
    session.type("echo status $?\n")
    session.expect("status 130\r\n")
    session.expect(PROMPT)
    session.type("exit\n")
    assert session.end() == 0
    assert session.settings_after == session.settings_before


# ports


@contextlib.contextmanager
def website(text: bytes) -> Iterator[int]:
    """Serve a page on a port, which is yielded."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def get(port: int) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        body: bytes = answer.read()
        return body


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ports_are_forwarded_until_a_signal(
    thopters: Thopters, emulator: Emulator, stand_in: Path, number: signal.Signals
) -> None:
    sprite = emulator.add_sprite("dev")
    with website(b"one") as first, website(b"two") as second:
        local = free_ports(2)
        process = thopters.start("proxy", "dev", f"{local[0]}:{first}", f"{local[1]}:{second}")
        assert process.stdout
        for here, there in zip(local, (first, second), strict=True):
            line = process.stdout.readline().decode()
            assert line == f"Forwarding localhost:{here} -> {there}\n"
        assert [get(port) for port in (*local, *local)] == [b"one", b"two"] * 2
        assert sprite.status == "running"
        process.send_signal(number)
        assert process.wait(30) == -number
    for port in local:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 30)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 (to be in the way)
def test_a_local_port_in_use_is_named(
    thopters: Thopters, emulator: Emulator, ran: Path, address: str
) -> None:
    emulator.add_sprite("dev", status="running")
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        for ports in ([f"{port}"], [f"{port}:80"], [f"{free_ports(1)[0]}:80", f"{port}:81"]):
            done = thopters("proxy", "dev", *ports)
            assert (done.code, done.out) == (1, "")
            assert f"cannot listen on local port {port}: Address already in use" in done.err
            remote = (f"{port}:{ports[-1]}").split(":")[-1]
            assert re.search(rf"hint: port \d+ is free: use \d+:{remote}\n", done.err)
        assert not ran.exists()
        assert not len(emulator.journal)
    assert thopters("proxy", "dev", str(port)).code == 0  # now that it is free
    assert ran.exists()


BAD_PORTS = [
    "0", "65536", "99999999999999999999", "a", "", " 80", "80\n", "1:2:3", ":1", "1:", "80:0",
    "65536:80", "80:65536", "-1", "+80", "8_0", "8e1", "80/tcp", "localhost:80", "٨٠", "80:８０",
]  # fmt: skip


def test_what_is_no_port_is_refused(thopters: Thopters, emulator: Emulator, ran: Path) -> None:
    emulator.add_sprite("dev", status="running")
    for text in BAD_PORTS:
        done = run_here(["proxy", "dev", "3000", text], thopters.env)
        assert (done.code, done.out) == (2, ""), text
        assert repr(text) in done.err or text.startswith("-")
    assert not ran.exists()
    assert not len(emulator.journal)


@pytest.mark.parametrize("ports", [["80", "80"], ["80", "81", "80:90"], ["0080", "80:81"]])
def test_a_local_port_named_twice_is_refused(
    thopters: Thopters, emulator: Emulator, ran: Path, ports: list[str]
) -> None:
    emulator.add_sprite("dev", status="running")
    done = thopters("proxy", "dev", *ports)
    assert (done.code, done.out) == (2, "")
    assert "local port 80 is named twice" in done.err
    assert not ran.exists()
    assert not len(emulator.journal)


# what setup says of it

KEY = {"OPENAI_API_KEY": "sk-canary-bbbbbbbbbbbbbbbbbbbb"}


def told_by_setup(thopters: Thopters) -> str:
    """Run a setup that succeeds, and return its words about the program."""
    done = thopters("setup", "--from-env", env=KEY)
    assert done.code == 0, done
    [line] = re.findall(r"^sprite program: (.*)$", done.err, re.M)
    return str(line)


def test_setup_says_that_there_is_none(thopters: Thopters, emulator: Emulator) -> None:
    assert told_by_setup(thopters) == "not found; see https://sprites.dev"


def test_setup_says_its_version_and_its_login(
    thopters: Thopters, emulator: Emulator, stand_in: Path
) -> None:
    about = f"{stand_in.parent}/sprite (sprite version v0.0.1-rc46), "
    assert told_by_setup(thopters) == about + "not logged in, so it uses SPRITE_TOKEN"
    thopters.env["SPRITES_TOKEN"] = thopters.env.pop("SPRITE_TOKEN")
    assert told_by_setup(thopters) == about + "not logged in; run: sprite login"
    log_in(thopters, {emulator.url: {"acme": emulator.token}}, (emulator.url, "acme"))
    assert told_by_setup(thopters) == about + "logged in, org acme"
    assert [call["argv"] for call in calls(stand_in)] == [["--version"]] * 3


@pytest.mark.parametrize("script", ["exit 3", ":", "kill -9 $$", "printf '\\n \\n'"])
def test_setup_with_a_program_that_tells_no_version(
    thopters: Thopters, emulator: Emulator, folder: Path, script: str
) -> None:
    write_program(folder, script)
    assert f"{folder}/sprite (it does not tell its version), " in told_by_setup(thopters)


def test_setup_shows_a_version_as_escapes_and_no_novel(
    thopters: Thopters, emulator: Emulator, folder: Path
) -> None:
    write_program(folder, "printf '\\033[31mred\\n and '; yes novel | head -n 1000")
    told = told_by_setup(thopters)
    assert r"/sprite (\x1b[31mred and novel novel " in told
    assert len(told) < 200 + len(str(folder))


def test_setup_leaves_a_program_that_hangs(
    thopters: Thopters, emulator: Emulator, folder: Path
) -> None:
    write_program(folder, f"echo $$ > {shlex.quote(str(folder / 'pid'))}; exec sleep 1000")
    assert f"{folder}/sprite (it does not tell its version), " in told_by_setup(thopters)
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
