"""Terminals of our own: `shell` and `exec -t` between two pseudo-terminals, ours and the remote.

Keys are typed, windows resized and connections dropped as they are in life. The remote commands
are real processes, so what they see of their terminal is asked of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emulation import SPRITE_PROGRAM, Emulator, Fault, write_launcher
from support.program import MODULE, Thopters, both
from support.sessions import lasting_id, remote_sessions, upgrades, window
from support.terminals import (
    ASLEEP,
    BACK,
    CTRL_C,
    CTRL_D,
    ENDED,
    LEAVE,
    LOST,
    PROMPT,
    TAKE_TERMINAL,
    Tty,
    open_shell,
)
from support.waiting import LIMIT_S, until

import thopters as program

# --- a shell ----------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_shell_has_our_window_and_terminal_and_its_status_is_ours(
    thopters: Thopters, dev: Emulator, columns: int
) -> None:
    variables = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
    thopters.env |= variables
    with open_shell(thopters, columns=columns) as shell:
        shell.ask("echo size-$(stty size)", f"size-24 {columns}\r\n")
        shell.ask("shopt -q login_shell && echo is''-login", "is-login")
        shell.ask("echo $TERM:$COLORTERM:$LANG", ":".join(variables.values()))
        shell.ask("tty > /dev/null && echo on''-one", "on-one")
        shell.type("exit 7\r")
        assert shell.end_restored() == 7
        assert "thopters" not in shell.text  # nothing of the handshake is seen
    assert not [r for r in dev.journal if r.values("env") or r.values("dir")]
    assert dev.sprite("dev").sessions and all(s.ended.wait(LIMIT_S) for s in remote_sessions(dev))


@both
def test_the_way_in_and_out_by_keys(thopters: Thopters, dev: Emulator) -> None:
    with open_shell(thopters) as shell:
        shell.ask("stty -a | head -1", "rows 24; columns 80")
        shell.type(CTRL_D)
        assert shell.end_restored() == 0


def test_a_new_window_size_reaches_the_remote_side(thopters: Thopters, dev: Emulator) -> None:
    # it looks by itself: bash may miss a key, or a signal, while it is at work on another signal
    script = (
        "while ! read -t 0.1 -r line; do "
        '[ "$(stty size)" = "$last" ] || { last=$(stty size); echo "now-$last"; }; done; exit 7'
    )
    with Tty(thopters, "exec", "dev", "--", "bash", "-c", script) as command:
        command.expect("now-24 80")
        for columns, rows in ((100, 30), (40, 10)):
            command.resize(columns, rows)
            command.expect(f"now-{rows} {columns}")
        for columns in range(60, 160):  # as a window that is dragged
            command.resize(columns, 50)
        command.expect("now-50 159")
        assert window(remote_sessions(dev)[0]) == (159, 50)
        command.type("\r")
        assert command.end_restored() == 7


def test_the_window_counts_not_what_the_environment_says_of_it(
    thopters: Thopters, dev: Emulator
) -> None:
    """COLUMNS in the environment is as old as the program; the window may have changed since."""
    words = ("env", "COLUMNS=132", "LINES=50", *thopters.argv)
    thopters.argv = [shutil.which(words[0]) or words[0], *words[1:]]
    with open_shell(thopters, columns=90) as shell:
        shell.ask("echo size-$(stty size)", "size-24 90\r\n")
        shell.resize(70, 20)
        until(lambda: window(remote_sessions(dev)[0]) == (70, 20), "the new size arrives")


def test_the_shell_sees_the_users_keys(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    value = 'it\'s "one" $HOME `true` \\'
    folder = thopters.home / ".sprite-thopters"
    folder.mkdir(mode=0o700)
    config = {"version": 1, "secrets": {"DEMO_KEY": value}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "config.json").chmod(0o600)
    assert thopters("init", "dev").code == 0
    digest = hashlib.sha256(value.encode()).hexdigest()
    with open_shell(thopters) as shell:
        shell.ask('printf %s "$DEMO_KEY" | sha256sum', digest)
        shell.ask("bash -c 'printf %s \"$DEMO_KEY\" | sha256sum'", digest)


def test_a_sleeping_sprite_is_woken_for_a_shell(thopters: Thopters, emulator: Emulator) -> None:
    emulator.personality.wake_503 = 3
    emulator.add_sprite("dev")
    with open_shell(thopters) as shell:
        shell.type("exit\r")
        assert shell.end_restored() == 0


def test_what_is_typed_before_the_shell_is_there_is_not_lost(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.personality.wake_503 = 10
    emulator.add_sprite("dev")
    with Tty(thopters, "shell", "dev", "--native") as shell:
        until(lambda: upgrades(emulator) >= 2, "the sprite is being woken")
        shell.type("exit 9\r")
        assert shell.end_restored() == 9


def test_a_window_that_is_resized_while_the_sprite_wakes(
    thopters: Thopters, emulator: Emulator
) -> None:
    emulator.personality.wake_503 = 5
    emulator.add_sprite("dev")
    with Tty(thopters, "shell", "dev", "--native") as shell:
        until(lambda: upgrades(emulator) >= 2, "the sprite is being woken")
        shell.resize(133, 40)
        until(lambda: window_of_newest(emulator) == (133, 40), "the size arrives")
        shell.expect(PROMPT)
        shell.ask("echo size-$(stty size)", "size-40 133\r\n")


def window_of_newest(dev: Emulator) -> tuple[int, int] | None:
    sessions = remote_sessions(dev)
    return window(sessions[-1]) if sessions else None


@pytest.mark.parametrize("key", [CTRL_C, LEAVE])
@pytest.mark.parametrize("wait", ["for the sprite", "for the answer"])
def test_a_start_that_takes_long_can_be_given_up(
    thopters: Thopters, emulator: Emulator, key: str, wait: str
) -> None:
    """Nothing has been sent yet that would run, so there is no session to come back to."""
    if wait == "for the sprite":
        emulator.personality.wake_503 = 10**6
    else:
        emulator.personality.attach_delay_s = 60.0
        emulator.personality.wake_503 = 0
    emulator.add_sprite("dev")
    with Tty(thopters, "shell", "dev", "--native", columns=400) as shell:
        until(lambda: upgrades(emulator) >= 1, "it has been asked for")
        until(shell.is_quiet, "it waits")
        if wait == "for the answer":
            until(lambda: remote_sessions(emulator), "it has been started")
            until(lambda: not shell.settings()[1] & termios.OPOST, "it is connected")
        shell.type("typed" + key)
        status = shell.end_restored()
        left = key == LEAVE and wait == "for the answer"
        assert -status == (0 if left else signal.SIGINT if key == CTRL_C else signal.SIGQUIT)
        assert "typed" not in shell.text
        assert not BACK.search(shell.text)


# --- a command --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 42, 130, 255])
def test_the_exit_status_on_a_terminal_is_exact(
    thopters: Thopters, dev: Emulator, code: int
) -> None:
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", f"test -t 0 && exit {code}") as command:
        assert command.end_restored() == code
        assert command.shown == b""


@pytest.mark.parametrize("name", ["TERM", "KILL", "HUP", "INT", "SEGV"])
def test_a_signal_that_ends_the_command_is_its_status(
    thopters: Thopters, dev: Emulator, name: str
) -> None:
    words = ("sh", "-c", f"echo $$; kill -{name} $$; sleep 60")
    with Tty(thopters, "exec", "dev", "--", *words) as command:
        assert command.end_restored() == 128 + signal.Signals[f"SIG{name}"]
        assert re.fullmatch(r"\d+\r\n", command.text)


def test_what_cannot_run_is_127_and_126(thopters: Thopters, dev: Emulator) -> None:
    for word, status in (("no-such-command", 127), ("/etc/passwd", 126)):
        with Tty(thopters, "exec", "dev", "--", word) as command:
            assert command.end_restored() == status


def test_ctrl_c_is_the_commands(thopters: Thopters, dev: Emulator) -> None:
    # not a shell between two commands, which may miss it, and not an echo: either terminal has one
    with Tty(thopters, "exec", "dev", "--", "sed", "-u", "s/begun/it runs/") as command:
        command.type("begun\n")
        command.expect("it runs")
        command.type(CTRL_C)
        assert command.end_restored() == 130
    caught = "trap 'echo caught; exit 42' INT; echo begun; while :; do sleep 0.05; done"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", caught) as command:
        command.expect("begun")
        command.type(CTRL_C)
        command.expect("caught")
        assert command.end_restored() == 42
    with open_shell(thopters) as shell:
        looped = "trap 'exit 130' INT; echo be\\gun; while :; do sleep 0.05; done"
        shell.type(f'sh -c "{looped}"\r')
        shell.expect("\nbegun")
        shell.type(CTRL_C)
        shell.expect(PROMPT)
        shell.ask("echo was-$?", "was-130")


def test_the_command_and_its_values_are_in_no_request(thopters: Thopters, dev: Emulator) -> None:
    thopters.env |= {"TERM": "xterm-marker", "COLORTERM": "marker-colour", "OURS": "marker-ours"}
    script = 'stty -echo; echo "$1:$A:$OURS:$TERM:$COLORTERM"; read -r line; echo "[$line]"'
    words = ("--env", "A=marker-a", "--env", "OURS", "--dir", "/tmp")
    command = ("sh", "-c", script, "sh", "marker-word")
    with Tty(thopters, "exec", "dev", *words, "--", *command) as typed:
        typed.expect("marker-word:marker-a:marker-ours:xterm-256color:marker-colour")
        typed.type("marker-key\r")
        typed.expect("[marker-key]")
        assert typed.end_restored() == 0
    heads = b"".join(request.head for request in dev.journal)
    assert b"marker" not in heads
    assert not [request for request in dev.journal if request.values("env")]
    [(_, argv, _)] = dev.journal.executed
    assert "marker" not in " ".join(argv)


def test_nothing_that_is_printed_at_once_is_lost(thopters: Thopters, dev: Emulator) -> None:
    dev.personality.attach_delay_s = 0.3
    with Tty(thopters, "exec", "dev", "--", "seq", "100000") as command:
        assert command.end_restored() == 0
        whole = "".join(f"{number}\r\n" for number in range(1, 100_001)).encode()
        assert len(command.shown) == len(whole)
        assert command.shown == whole


def test_long_words_arrive_on_a_terminal(thopters: Thopters, dev: Emulator) -> None:
    words = [random.Random(1).randbytes(100_000).hex()[:120_000], "", "-n", "a\nb\r\x1c\x04'\"$"]
    expected = hashlib.sha256("".join(f"{word}\0" for word in words).encode()).hexdigest()
    script = "printf '%s\\0' \"$@\" | sha256sum"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script, "sh", *words) as command:
        assert command.end_restored() == 0
        assert expected in command.text


def test_every_byte_passes_both_ways(thopters: Thopters, dev: Emulator) -> None:
    out = "".join(f"\\{number:03o}" for number in range(256))
    script = f"stty raw -echo; printf '{out}'; printf ready; head -c 255 | sha256sum"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script) as command:
        command.expect("ready")
        assert command.shown == bytes(range(256)) + b"ready"
        keys = bytes(range(256)).replace(LEAVE.encode(), b"")
        os.write(command._master, keys)
        command.expect(hashlib.sha256(keys).hexdigest())
        assert command.end_restored() == 0


@pytest.mark.parametrize(
    ("program", "words", "shown", "quit"),
    [
        ("vim", ["-u", "NONE", "-N", "-n", "-R"], "needle-in-the-file", ":q!\r"),
        ("less", [], "needle-in-the-file", "q"),
    ],
)
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_program_that_takes_the_whole_screen(
    thopters: Thopters,
    dev: Emulator,
    program: str,
    words: list[str],
    shown: str,
    quit: str,
    columns: int,
) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not there")
    thopters.env["TERM"] = "xterm"
    (dev.sprite("dev").home / "file").write_text("needle-in-the-file\n" * 100)
    with Tty(thopters, "exec", "dev", "--", program, *words, "file", columns=columns) as screen:
        screen.expect("\x1b[?1049h")
        screen.expect(shown)
        if program == "vim":  # less may miss a key while it takes note of a new size
            screen.resize(columns, 12)
            until(lambda: window(remote_sessions(dev)[0]) == (columns, 12), "the size arrives")
        screen.type(quit)
        screen.expect("\x1b[?1049l")
        assert screen.end_restored() == 0


# --- who gets a terminal ----------------------------------------------------------------

WHICH = "for fd in 0 1 2; do [ -t $fd ] && printf y || printf n; done"


@pytest.mark.parametrize(
    ("options", "piped", "seen"),
    [
        ([], [], "yyy"),
        ([], ["stderr"], "nnn"),
        ([], ["stdin"], "nnn"),
        ([], ["stdout"], "nnn"),
        (["-i"], ["stdin"], "nnn"),
        (["-i"], [], "yyy"),
        (["-T"], [], "nnn"),
        (["-T"], ["stdin", "stdout"], "nnn"),
        (["-t"], [], "yyy"),
        (["-t"], ["stdin"], "yyy"),
        (["-t"], ["stdout"], "yyy"),
    ],
)
def test_a_command_gets_a_terminal_where_all_streams_are_one_or_it_is_asked_for(
    thopters: Thopters, dev: Emulator, options: list[str], piped: list[str], seen: str
) -> None:
    streams: dict[str, int] = {name: subprocess.PIPE for name in piped if name != "stdin"}
    if "stdin" in piped:
        streams["stdin"] = subprocess.DEVNULL
    words = ("exec", "dev", *options, "--", "sh", "-c", WHICH)
    with Tty(thopters, *words, **streams) as command:
        stdout = command.process.stdout
        told = stdout.read().decode() if stdout else ""
        assert command.end_restored() == 0
        assert (told or command.text) == seen


def test_t_without_a_terminal_anywhere(thopters: Thopters, dev: Emulator) -> None:
    done = thopters("exec", "dev", "-t", "--", "sh", "-c", WHICH + "; stty size; exit 5")
    assert (done.code, done.out, done.err) == (5, "yyy24 80\r\n", "")
    done = thopters("exec", "dev", "--", "sh", "-c", WHICH)
    assert (done.code, done.out, done.err) == (0, "nnn", "")


def test_t_and_no_t_exclude_each_other(thopters: Thopters, dev: Emulator) -> None:
    assert thopters("exec", "dev", "-t", "-T", "--", "true").code == 2
    assert thopters("exec", "dev", "--detach", "-T", "--", "true").code == 2
    assert thopters("exec", "dev", "--detach", "-i", "--", "true").code == 2
    assert not len(dev.journal)


@pytest.mark.parametrize("given", [b"one\ntwo\n", b"", b"one\ntwo"])
def test_the_end_of_a_piped_input_is_a_ctrl_d(
    thopters: Thopters, dev: Emulator, given: bytes
) -> None:
    words = ("sh", "-c", "stty -echo; echo ready; cat; echo end; exit 3")
    done = thopters("exec", "dev", "-t", "--", *words, stdin=given, timeout=15)
    shown = given.replace(b"\n", b"\r\n")
    assert done.code == 3, done
    assert b"ready\r\n" in done.out_bytes
    assert done.out_bytes.endswith(shown + b"end\r\n")


def test_a_shell_takes_a_piped_script(thopters: Thopters, dev: Emulator) -> None:
    given = b"echo $((6 * 7))-is-it\nexit 4\n"
    done = thopters("shell", "dev", "--native", stdin=given, timeout=15)
    assert done.code == 4
    assert "42-is-it" in done.out


def test_a_terminal_needs_a_websocket(thopters: Thopters, dev: Emulator) -> None:
    dev.fault(Fault("WS *", "status", status=405, body=b"no", content_type="text/plain"))
    with Tty(thopters, "exec", "dev", "--", "true", columns=400) as command:
        assert command.end_restored() == 255
        assert "thopters: error: " in command.text
        assert "WebSocket" in command.text
    assert not dev.journal.executed


def test_an_unknown_sprite_is_255(thopters: Thopters, dev: Emulator) -> None:
    for words in (["shell", "de", "--native"], ["exec", "de", "-t", "--", "true"]):
        with Tty(thopters, *words, columns=400) as command:
            assert command.end_restored() == 255
            assert "there is no sprite de" in command.text


# --- leaving and coming back ------------------------------------------------------------


def leave(shell: Tty) -> str:
    """Leave by Ctrl-\\ and return the session's id, as the line tells it that leads back."""
    shell.type(LEAVE)
    assert shell.end_restored() == 0
    found = BACK.search(shell.text)
    assert found, shell.text
    assert shell.text.count("\n[") == 1
    return found[1]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_shell_that_was_left_is_found_again_as_it_was(
    thopters: Thopters, dev: Emulator, columns: int
) -> None:
    with open_shell(thopters) as shell:
        shell.ask("kept=value-$((40 + 2)); echo shown''-before", "shown-before")
        identity = leave(shell)
    [remote] = remote_sessions(dev)
    assert identity == lasting_id(remote)
    assert not remote.ended.is_set()
    with Tty(thopters, "attach", "dev", identity, columns=columns) as back:
        back.expect("shown-before")  # what it has shown comes first
        back.type("\r")
        back.ask("echo $kept; stty size", f"value-42\r\n24 {columns}\r\n")
        back.type("exit 6\r")
        assert back.end_restored() == 6
    assert len(remote_sessions(dev)) == 1
    shown = back.output.rpartition(b"\x1b[H\x1b[2J")[2]
    assert b"thopters" not in shown  # the handshake was wiped off the screen


def test_what_was_typed_before_ctrl_backslash_still_arrives(
    thopters: Thopters, dev: Emulator
) -> None:
    marker = dev.sprite("dev").home / "marker"
    with open_shell(thopters) as shell:
        shell.type("touch marker\r" + LEAVE)
        assert shell.end_restored() == 0
    until(marker.exists, "the command runs")


CHANGED = "\\033[?1049h\\033[?25l\\033[?1000;1006h\\033[?2004h\\033[?7l\\033[?12h\\033[?12l"
RESET = program.RESET.decode()


@pytest.mark.parametrize("end", ["left", "lost", "signal"])
def test_the_screen_is_put_back_where_the_program_could_not(
    thopters: Thopters, dev: Emulator, end: str
) -> None:
    script = f"printf '{CHANGED}'; echo begun; sleep 300"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script, columns=400) as command:
        command.expect("begun\r\n")
        if end == "left":
            command.type(LEAVE)
        elif end == "lost":
            drop(dev)
        else:
            command.process.send_signal(signal.SIGTERM)
        assert command.end_restored() == {"left": 0, "lost": 255, "signal": -signal.SIGTERM}[end]
        said = command.text.index("the session goes on" if end != "lost" else "thopters: error")
        assert 0 < command.text.find(f"\x1b[?1049l{RESET}") < said
        assert command.text.count("\x1b[?1049l") == 1


def test_a_screen_that_ended_well_or_is_none_is_left_alone(
    thopters: Thopters, dev: Emulator
) -> None:
    with Tty(thopters, "exec", "dev", "--", "printf", CHANGED) as command:
        assert command.end_restored() == 0
        assert command.text.endswith("\x1b[?12l")
    words = ("sh", "-c", f"printf '{CHANGED}'; echo begun; sleep 300")
    with Tty(thopters, "exec", "dev", "-t", "--", *words, stdout=subprocess.PIPE) as command:
        assert command.process.stdout
        assert command.process.stdout.readline().endswith(b"begun\r\n")
        command.type(LEAVE)
        assert command.end_restored() == 0
        assert command.process.stdout.read() == b""
        assert "\x1b" not in command.text


@pytest.mark.parametrize("shown", ["\\033[?25l\\033[?25h", CHANGED, "\\033[?1049h\\033[?47l", "x"])
def test_the_screen_is_put_back_in_one_way_whatever_was_shown(
    thopters: Thopters, dev: Emulator, shown: str
) -> None:
    script = f"printf '{shown}'; echo begun; sleep 300"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script) as command:
        command.expect("begun\r\n")
        leave(command)
        before, _, after = command.text.partition(RESET)
        assert before.endswith("\x1b[?1049l") == (shown == CHANGED)
        assert "\x1b" not in after


def test_a_terminal_that_shows_escapes_as_text_gets_none(thopters: Thopters, dev: Emulator) -> None:
    thopters.env["TERM"] = "dumb"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", "echo begun; sleep 300") as command:
        command.expect("begun\r\n")
        leave(command)
        assert "\x1b" not in command.text


@pytest.mark.parametrize("end", ["left", "lost"])
@pytest.mark.parametrize(("program", "words"), [("vim", ["-u", "NONE", "-n"]), ("less", [])])
def test_a_program_that_takes_the_whole_screen_is_left_or_lost(
    thopters: Thopters, dev: Emulator, program: str, words: list[str], end: str
) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not there")
    thopters.env["TERM"] = "xterm"
    (dev.sprite("dev").home / "file").write_text("needle-in-the-file\n" * 100)
    with Tty(thopters, "exec", "dev", "--", program, *words, "file", columns=400) as screen:
        screen.expect("\x1b[?1049h")
        screen.expect("needle-in-the-file")
        drop(dev) if end == "lost" else screen.type(LEAVE)
        screen.expect("\x1b[?1049l")
        assert screen.end_restored() == (255 if end == "lost" else 0)
        switched = re.findall(r"\x1b\[\?([\d;]+)([hl])", screen.text)
        last = {mode: switch for modes, switch in switched for mode in modes.split(";")}
        assert last == {mode: "h" if mode in ("7", "25") else "l" for mode in last}
        assert "1049" in last


def test_a_command_can_be_left_too_and_goes_on(thopters: Thopters, dev: Emulator) -> None:
    script = "echo begun; read -r line; echo got-$line; exit 8"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script) as command:
        command.expect("begun")
        identity = leave(command)
    with Tty(thopters, "attach", "dev") as back:  # the newest
        back.expect("begun")
        back.type("it\r")
        back.expect("got-it")
        assert back.end_restored() == 8
    assert identity == lasting_id(remote_sessions(dev)[0])


def test_two_terminals_of_one_sprite_do_not_meet(thopters: Thopters, dev: Emulator) -> None:
    with open_shell(thopters) as first, open_shell(thopters, columns=120) as second:
        first.ask("here=first; echo $here", "first\r\n")
        second.ask("echo here-$here; stty size", "here-\r\n24 120\r\n")
        assert leave(first) != leave(second)


# --- when there is a terminal -----------------------------------------------------------

OF_STDIN = ("sh", "-c", "test -t 0 && echo a terminal || echo no terminal; echo err >&2")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_p1_a_stream_that_goes_elsewhere_gets_what_is_its(
    thopters: Thopters, dev: Emulator, stream: str
) -> None:
    path = thopters.home / "stream"
    with path.open("wb") as file:
        places: dict[str, Any] = {stream: file}
        it = Tty(thopters, "exec", "dev", "--", *OF_STDIN, **places)
    with it:
        assert it.end_restored() == 0
    shown, elsewhere = it.text.replace("\r\n", "\n"), path.read_text()
    out, err = (shown, elsewhere) if stream == "stderr" else (elsewhere, shown)
    assert (out, err) == ("no terminal\n", "err\n")


def in_shell(thopters: Thopters, line: str) -> Tty:
    """Run a line in a shell with jobs, in which "$@" is the program."""
    bash = [shutil.which("bash") or "", "--norc", "-ic", line, "bash"]
    thopters.argv = [*bash, *thopters.argv]
    return Tty(thopters)


def test_p1_in_the_background_a_command_has_no_terminal_and_is_not_stopped(
    thopters: Thopters, dev: Emulator
) -> None:
    line = f'"$@" exec dev -- {shlex.join(OF_STDIN)} & wait $!; echo it ended with $?'
    with in_shell(thopters, line) as shell:
        shell.expect("no terminal")
        shell.expect("it ended with 0")
        assert shell.end() == 0


def test_p1_what_ends_in_the_background_leaves_the_terminal_to_the_shell(
    thopters: Thopters, dev: Emulator
) -> None:
    """It was begun in the foreground, stopped, and goes on behind."""
    line = '"$@" exec dev -- sh -c "echo begun; until [ -e go ]; do sleep 0.1; done"; bg; stty -a; '
    with in_shell(thopters, line + "wait; echo over") as shell:
        shell.expect("begun")
        until(shell.is_raw, "it is in the foreground")
        [ours] = [pid for pid in children_of(shell.process.pid) if pid != shell.process.pid]
        os.kill(ours, signal.SIGSTOP)
        shell.expect("icanon")
        (dev.sprite("dev").home / "go").touch()
        shell.expect("over")
        assert shell.end() == 0


def children_of(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in words]


# --- every ending -----------------------------------------------------------------------


def drop(dev: Emulator) -> None:
    """Cut the connection, and have the API know nothing of the session any more."""
    gone: dict[str, Any] = {
        "status": 404,
        "body": b"session not found: 1",
        "content_type": "text/plain",
    }
    dev.fault(Fault("WS */exec/*", "status", **gone))
    dev.fault(Fault("GET */exec", "status", status=200, body=b"[]", times=2))  # before and behind
    dev.sprite("dev").drop_connections()


def destroy(dev: Emulator) -> None:
    dev.account.remove("dev")


def kill_remote(dev: Emulator) -> None:
    os.killpg(remote_sessions(dev)[0].id, signal.SIGKILL)


def spoil(dev: Emulator) -> None:
    """Have the server break the protocol on every socket."""
    actions = [("raw", b"\xff\xff\xff\xff")]
    dev.fault(Fault("WS *", "ws", actions=actions, times=None))
    dev.sprite("dev").drop_connections()


def refuse(dev: Emulator) -> None:
    """Cut the connection and fail every attempt to come back, though the session goes on."""
    dev.fault(Fault("WS *", "status", status=500, body=b"no", times=None))
    dev.sprite("dev").drop_connections()


ACTIONS: list[tuple[str, Callable[[Emulator], None], int, bool]] = [
    ("dropped for good", drop, 255, False),
    ("destroyed", destroy, 255, False),
    ("spoilt", spoil, 255, True),
    ("refused", refuse, 255, True),
    ("killed", kill_remote, 137, False),
]


@pytest.mark.parametrize(
    ("what", "act", "status", "goes_on"), ACTIONS, ids=[item[0] for item in ACTIONS]
)
def test_the_terminal_is_put_back_whatever_the_server_does(
    thopters: Thopters,
    dev: Emulator,
    what: str,
    act: Callable[[Emulator], None],
    status: int,
    goes_on: bool,
) -> None:
    words = ("sh", "-c", "echo begun; sleep 600")
    with Tty(thopters, "exec", "dev", "--", *words, columns=400) as command:
        command.expect("begun")
        assert command.is_raw()
        act(dev)
        assert command.end_restored() == status
        assert ("thopters: error: " in command.text) == (what != "killed")
        assert bool(BACK.search(command.text)) == goes_on


SIGNALS = [
    [signal.SIGTERM],
    [signal.SIGHUP],
    [signal.SIGINT],
    [signal.SIGTERM, signal.SIGHUP],
    [signal.SIGHUP, signal.SIGTERM, signal.SIGINT],
    [signal.SIGQUIT],
]


def test_after_a_stop_the_terminal_is_taken_again(thopters: Thopters, dev: Emulator) -> None:
    """The shell has put its own settings there meanwhile, and the window may have changed."""
    with open_shell(thopters) as shell:
        until(shell.is_raw, "it is raw")
        shell.process.send_signal(signal.SIGSTOP)
        termios.tcsetattr(shell._slave, termios.TCSANOW, shell.settings_before)
        assert not shell.is_raw()
        shell.process.send_signal(signal.SIGCONT)
        until(shell.is_raw, "it is raw again")
        shell.ask("echo $((40 + 2))", "42")
        shell.type("exit\r")
        assert shell.end_restored() == 0


# As where output is stopped, on systems whose terminals wait for it, and a signal ends that wait
NOTHING_GETS_OUT = """\
import errno, sys, termios
sys.path.insert(0, sys.argv.pop(1))
import thopters
change = termios.tcsetattr
def tcsetattr(fd, when, settings):
    if when != termios.TCSANOW:
        raise termios.error(errno.EINTR, "Interrupted system call")
    change(fd, when, settings)
termios.tcsetattr = tcsetattr
thopters.leave(thopters.main())
"""


def test_a_terminal_whose_output_is_stopped_is_put_back(thopters: Thopters, dev: Emulator) -> None:
    thopters.argv = [sys.executable, "-c", NOTHING_GETS_OUT, str(MODULE.parent)]
    with open_shell(thopters) as shell:
        until(shell.is_raw, "it is raw")
        shell.type("exit\r")
        assert shell.end_restored() == 0


def test_what_a_file_has_typed_is_not_lost_in_silence(thopters: Thopters, dev: Emulator) -> None:
    (thopters.home / "file").write_bytes(b"x" * 1000)
    script = "stty raw -echo; echo begun; touch up; sleep 60"
    with open(thopters.home / "file", "rb") as file:
        process = thopters.start("exec", "dev", "-t", "--", "sh", "-c", script, stdin=file)
        until(lambda: os.lseek(file.fileno(), 0, os.SEEK_CUR) == 1000, "all is read")
    until(lambda: (dev.sprite("dev").home / "up").exists(), "it runs")
    [wire] = dev.sprite("dev").wires
    wire.sock.shutdown(socket.SHUT_RDWR)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, b"attaching again" in err) == (255, False), err
    assert b"exit status is unknown" in err


@pytest.mark.parametrize("signals", SIGNALS, ids=lambda given: "+".join(s.name for s in given))
def test_the_terminal_is_put_back_whatever_signal_comes(
    thopters: Thopters, dev: Emulator, signals: list[signal.Signals]
) -> None:
    """Service managers send two at once, and none of them may leave a raw terminal."""
    with open_shell(thopters) as shell:
        until(shell.is_raw, "it is raw")
        for number in signals:
            shell.process.send_signal(number)
        assert -shell.end_restored() in signals
        assert BACK.search(shell.text)
    assert not remote_sessions(dev)[0].ended.is_set()


def test_signals_at_any_moment_leave_no_raw_terminal(thopters: Thopters, dev: Emulator) -> None:
    """From before the first request to after the last; chance has to hit a moment that is bad."""
    rng = random.Random(2)
    for _ in range(12):
        with Tty(thopters, "exec", "dev", "--", "sh", "-c", "echo begun; sleep 5") as command:
            if rng.random() < 0.5:
                command.expect("begun")
                command.process.send_signal(signal.SIGTERM)
                command.process.send_signal(signal.SIGHUP)
            else:
                time.sleep(rng.random() * 0.3)
                command.process.send_signal(signal.SIGTERM)
            assert command.end_restored() < 0, command.text


def close_a_window(thopters: Thopters, *leader: str) -> subprocess.Popen[bytes]:
    """Run a shell on a terminal, below a leader of its session, and take the terminal away."""
    master, slave = pty.openpty()
    trampoline = [sys.executable, "-I", "-S", "-c", TAKE_TERMINAL, os.ttyname(slave)]
    process = subprocess.Popen(
        [*trampoline, *leader, *thopters.argv, "shell", "dev", "--native"],
        stdin=slave, stdout=slave, stderr=subprocess.PIPE, env=thopters.env,
        start_new_session=True,
    )  # fmt: skip
    thopters.started.append(process)
    os.close(slave)
    shown = b""
    while PROMPT.encode() not in shown:
        shown += os.read(master, 65536)
    os.close(master)
    return process


def test_a_terminal_that_is_taken_away_ends_us(thopters: Thopters, dev: Emulator) -> None:
    """A closed window: the terminal is gone, and a HUP comes."""
    process = close_a_window(thopters)
    assert process.wait(LIMIT_S) == -signal.SIGHUP
    assert process.stderr
    assert b"Traceback" not in process.stderr.read()
    assert not remote_sessions(dev)[0].ended.is_set()


# the shell of a window, which keeps its HUP to itself for as long as its program runs
SLOW_LEADER = """\
import os, signal, subprocess, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
program = subprocess.Popen(sys.argv[1:], process_group=0, restore_signals=True,
                           preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
os.tcsetpgrp(0, program.pid)
sys.exit(128 - program.wait())
"""


def test_a_window_that_closes_is_no_end_of_the_input(thopters: Thopters, dev: Emulator) -> None:
    """To read from it is the first that tells of it, where the shell passes its HUP on late."""
    process = close_a_window(thopters, sys.executable, "-c", SLOW_LEADER)
    assert process.wait(LIMIT_S) == 128 + signal.SIGHUP
    assert process.stderr
    said = process.stderr.read()
    assert BACK.search(said.decode()) and b"Traceback" not in said
    [session] = remote_sessions(dev)
    assert not session.ended.wait(1)


def test_the_terminal_is_put_back_when_nobody_reads_our_output(
    thopters: Thopters, dev: Emulator
) -> None:
    words = ("sh", "-c", "echo begun; while :; do echo more; sleep 0.05; done")
    with Tty(thopters, "exec", "dev", "-t", "--", *words, stdout=subprocess.PIPE) as command:
        assert command.process.stdout
        assert command.process.stdout.readline() == b"begun\r\n"
        assert command.is_raw()
        command.process.stdout.close()
        assert command.end_restored() == -signal.SIGPIPE


def test_the_terminal_is_put_back_after_a_bug_of_ours(thopters: Thopters, dev: Emulator) -> None:
    broken = (
        f"import sys; sys.path.insert(0, {str(MODULE.parent)!r}); import thopters"
        "\ndef fail(*args): raise RuntimeError('oops')"
        "\nthopters.TerminalSession.resize = fail; thopters.leave(thopters.main())"
    )
    thopters.argv = [sys.executable, "-c", broken]
    with open_shell(thopters, columns=200) as shell:
        shell.resize(90, 30)
        assert shell.end_restored() == 255
        assert "internal error: RuntimeError: oops" in shell.text


# --- a connection that is lost ----------------------------------------------------------


@pytest.mark.parametrize("says_cold", [False, True])
def test_a_dropped_connection_is_taken_up_again_by_itself(
    thopters: Thopters, dev: Emulator, says_cold: bool
) -> None:
    """N6: also where a GET calls the sprite cold, which the list does not."""
    dev.personality.get_says_cold = says_cold
    with open_shell(thopters) as shell:
        shell.ask("kept=$((6 * 7))", "")
        for number in range(3):
            dev.sprite("dev").drop_connections()
            shell.expect(LOST)
            until(shell.is_raw, "it is attached again")
            shell.type("\r")
            shell.ask(f"echo {number}-$kept", f"{number}-42\r\n")
        shell.type("exit 3\r")
        assert shell.end_restored() == 3
        assert shell.text.count("\n[") == 3
    assert len(remote_sessions(dev)) == 1


def test_a_server_that_drops_every_connection_is_not_asked_without_end(
    thopters: Thopters, dev: Emulator
) -> None:
    with open_shell(thopters) as shell:
        dev.journal.clear()
        dev.fault(Fault("WS */exec/*", "ws", actions=[("drop", None)], times=None))
        dev.sprite("dev").drop_connections()
        with contextlib.suppress(subprocess.TimeoutExpired):
            shell.process.wait(3)
        assert upgrades(dev) < 20  # in three seconds


def test_a_network_that_comes_back_after_some_time(thopters: Thopters, dev: Emulator) -> None:
    with open_shell(thopters) as shell:
        shell.ask("kept=$((6 * 7))", "")
        dev.fault(Fault("WS */exec/*", "reset", times=3))
        dev.sprite("dev").drop_connections()
        shell.expect(LOST)
        until(shell.is_raw, "it is attached again")
        shell.type("\r")
        shell.ask("echo still-$kept", "still-42\r\n")


def test_a_network_that_stays_away_leaves_the_way_back(thopters: Thopters, dev: Emulator) -> None:
    """The session goes on without us, so its id must not be lost with the connection."""
    with open_shell(thopters, columns=400) as shell:
        dev.fault(Fault("WS */exec/*", "reset", times=None))
        dev.sprite("dev").drop_connections()
        assert shell.end_restored() == 255
        assert f"thopters attach dev {remote_sessions(dev)[0].id}" in shell.text


AWAY = "; trying on, Ctrl-\\ leaves]"


@pytest.mark.parametrize("paused", [False, True], ids=["awake", "paused"])
@pytest.mark.parametrize(
    ("fault", "params"), [("reset", {}), ("status", {"status": 502})], ids=["reset", "502"]
)
def test_an_api_that_is_out_of_reach_is_waited_for(
    thopters: Thopters, dev: Emulator, fault: str, params: dict[str, Any], paused: bool
) -> None:
    """For longer than a request is tried; and a sprite that has paused meanwhile is not woken."""
    sprite = dev.sprite("dev")
    with open_shell(thopters) as shell:
        shell.ask("kept=$((6 * 7))", "")
        dev.fault(Fault("GET /v1/sprites/dev", fault, times=4, **params))
        if paused:
            sprite.pause()
        else:
            sprite.drop_connections()
        shell.expect(AWAY)
        shell.expect(ASLEEP if paused else LOST)
        if paused:
            assert sprite.status == "warm"
        else:
            until(shell.is_raw, "it is attached again")
        shell.type("\r")
        shell.ask("echo still-$kept", "still-42\r\n")


@pytest.mark.parametrize("leave", ["\x1b[92;5u", "\x1b[92;5:1u", "\x1b[27;5;92~"])
def test_ctrl_backslash_is_known_however_a_terminal_sends_it(
    thopters: Thopters, dev: Emulator, leave: str
) -> None:
    """As in the kitty protocol, or with modifyOtherKeys, which a remote program can switch on."""
    with open_shell(thopters) as shell:
        shell.ask("printf '\\033[>1u\\033[>4;2m'", "")
        shell.type("x" + leave)
        assert shell.end_restored() == 0
        assert BACK.search(shell.text)
        assert shell.shown.rindex(b"\x1b[<99u") > shell.shown.index(b"\x1b[>1u")
        assert shell.shown.rindex(b"\x1b[>4m") > shell.shown.index(b"\x1b[>4;2m")


@pytest.mark.parametrize(
    ("key", "status"), [("\x1b[92;5u", 0), ("\x1b[99;5u", -signal.SIGINT), ("\x03", -signal.SIGINT)]
)
def test_who_waits_for_the_api_can_leave(
    thopters: Thopters, dev: Emulator, key: str, status: int
) -> None:
    """Where no signal comes of a key, too, as in the kitty protocol."""
    with open_shell(thopters, columns=400) as shell:
        dev.fault(Fault("GET *", "reset", times=None))
        dev.sprite("dev").drop_connections()
        shell.expect(AWAY)
        shell.type(key)
        assert shell.end_restored() == status
        assert BACK.search(shell.text)


def test_keys_that_are_typed_meanwhile_get_there(thopters: Thopters, dev: Emulator) -> None:
    with open_shell(thopters, columns=400) as shell:
        shell.ask("kept=$((6 * 7))", "")
        dev.fault(Fault("GET /v1/sprites/dev", "reset", times=4))
        dev.sprite("dev").drop_connections()
        shell.expect(AWAY)
        shell.type("\x1b[Iecho still-$kept\r")
        shell.expect("still-42\r\n")


def test_a_report_of_the_terminals_is_no_key(thopters: Thopters, dev: Emulator) -> None:
    """Of its focus, or its mouse, where a remote program has asked for them."""
    sprite = dev.sprite("dev")
    with open_shell(thopters) as shell:
        shell.ask("kept=$((6 * 7))", "")
        sprite.pause()
        shell.expect(ASLEEP)
        asked = upgrades(dev)
        for report in ("\x1b[I", "\x1b[<35;10;5M\x1b[<0;10;5m", "\x1b[M !!", "\x1b[O"):
            shell.type(report)
            until(lambda: shell.waiting == 0, "it is read")
        assert (sprite.status, upgrades(dev)) == ("warm", asked)
        shell.type("\r")
        shell.ask("echo still-$kept", "still-42\r\n")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_paused_sprite_sleeps_until_a_key_and_the_shell_is_the_same(
    thopters: Thopters, dev: Emulator, columns: int
) -> None:
    sprite = dev.sprite("dev")
    with open_shell(thopters) as shell:
        shell.ask("kept=$((6 * 7)); cd /tmp", "")
        asked = upgrades(dev)
        sprite.pause()
        shell.expect(ASLEEP)
        assert "[" + ASLEEP in shell.text.splitlines()[-2:] or shell.text.endswith(f"{ASLEEP}\r\n")
        until(shell.is_raw, "it waits for a key")
        shell.resize(columns, 33)
        assert (sprite.status, upgrades(dev)) == ("warm", asked)  # nothing wakes it by itself
        shell.type("e")
        shell.type("cho $kept-$PWD-$(stty size)\r")
        shell.expect(f"42-/tmp-33 {columns}\r\n")
        assert sprite.status == "running"
        shell.type("exit 5\r")
        assert shell.end_restored() == 5
        assert shell.text.count("\n[") == 1  # one quiet line
    assert len(remote_sessions(dev)) == 1


def test_keys_typed_while_the_sprite_wakes_are_all_there(thopters: Thopters, dev: Emulator) -> None:
    dev.personality.wake_503 = 15
    sprite = dev.sprite("dev")
    with open_shell(thopters) as shell:
        for number in range(3):
            asked = upgrades(dev)
            sprite.pause()
            shell.expect(ASLEEP)
            until(shell.is_raw, "it waits for a key")
            for key in f"echo all-{number}-$((6 * 7))-of-it\r":
                shell.type(key)
                until(lambda asked=asked: upgrades(dev) > asked, "it wakes")  # type: ignore[misc]
                time.sleep(0.01)  # as fingers do
            shell.expect(f"all-{number}-42-of-it\r\n")
            shell.expect(PROMPT)
        shell.type("exit\r")
        assert shell.end_restored() == 0


def test_an_idle_shell_lets_the_sprite_pause_and_can_be_left_then(
    thopters: Thopters, dev: Emulator
) -> None:
    sprite = dev.sprite("dev")
    with open_shell(thopters) as shell:
        dev.idle_s = 1.0
        shell.expect(ASLEEP)
        assert sprite.status == "warm"
        until(shell.is_raw, "it waits for a key")
        identity = leave_asleep(shell)
    assert sprite.status == "warm"
    dev.idle_s = 30.0
    with Tty(thopters, "attach", "dev", identity) as back:
        back.type("\r")
        back.expect(PROMPT)
        back.type("exit 4\r")
        assert back.end_restored() == 4


def test_an_idle_shell_falls_asleep_once_though_the_status_lags_behind(
    thopters: Thopters, dev: Emulator
) -> None:
    dev.personality.status_lag_s = 1.5
    with open_shell(thopters) as shell:
        asked = upgrades(dev)
        dev.idle_s = 1.5
        shell.expect(ASLEEP)
        assert LOST not in shell.text
        assert (dev.sprite("dev").status, upgrades(dev)) == ("warm", asked)
        dev.idle_s = 30.0
        until(shell.is_raw, "it waits for a key")
        shell.type("echo back-$((6 * 7))\r")
        shell.expect("back-42\r\n")
    assert len(remote_sessions(dev)) == 1


def test_a_key_attaches_at_once_where_a_quiet_connection_was_lost(
    thopters: Thopters, dev: Emulator
) -> None:
    with open_shell(thopters) as shell:
        [remote] = remote_sessions(dev)
        until(
            lambda: time.time() - remote.last_output > program.IDLE_BEFORE_PAUSE_S + 0.3,
            "it is quiet",
        )
        dev.journal.clear()
        dev.sprite("dev").drop_connections()
        until(lambda: len(dev.journal.requests("GET")) >= 3, "the status is looked at")
        assert not upgrades(dev)
        pressed = time.monotonic()
        shell.type("echo back-$((6 * 7))\r")
        shell.expect("back-42\r\n")
        assert time.monotonic() - pressed < program.STATUS_LAG_S / 2
        assert ASLEEP not in shell.text


def leave_asleep(shell: Tty) -> str:
    shell.type(LEAVE)
    assert shell.end_restored() == 0
    found = BACK.search(shell.text)
    assert found, shell.text
    return found[1]


def test_a_signal_while_the_sprite_sleeps_restores_the_terminal(
    thopters: Thopters, dev: Emulator
) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        with open_shell(thopters) as shell:
            dev.sprite("dev").pause()
            shell.expect(ASLEEP)
            until(shell.is_raw, "the terminal is raw")
            until(shell.is_blocked, "it has noted that, and waits")
            shell.process.send_signal(number)
            assert shell.end_restored() == -number
            assert BACK.search(shell.text)
        dev.sprite("dev").enter()
        dev.sprite("dev").enter()


def test_ctrl_c_while_the_sprite_wakes_ends_us(thopters: Thopters, dev: Emulator) -> None:
    with open_shell(thopters) as shell:
        dev.personality.wake_503 = 10**6
        dev.sprite("dev").pause()
        shell.expect(ASLEEP)
        until(shell.is_raw, "it waits for a key")
        shell.type("x")
        until(lambda: len(dev.journal.requests("GET", "/v1/sprites/dev/exec")) > 1, "it wakes")
        shell.type(CTRL_C)
        assert shell.end_restored() == -signal.SIGINT
        assert BACK.search(shell.text)


@pytest.mark.parametrize("asleep", [False, True])
def test_what_is_typed_while_it_is_attached_again_is_not_shown_and_not_lost(
    thopters: Thopters, dev: Emulator, asleep: bool
) -> None:
    keys = "echo typed-$((6 * 7))\r"
    with open_shell(thopters) as shell:
        starting = Fault("WS */exec/*", "starting", times=None)
        dev.fault(starting)
        asked = upgrades(dev)
        if asleep:
            dev.sprite("dev").pause()
            shell.expect(ASLEEP)
            until(shell.is_raw, "it waits for a key")
            shell.type(keys[0])
            keys = keys[1:]
        else:
            dev.sprite("dev").drop_connections()
            shell.expect(LOST)
        until(lambda: upgrades(dev) > asked, "it is being attached")
        until(shell.is_quiet, "it is quiet")
        shell.type(keys)
        until(lambda: upgrades(dev) > asked + 2, "it is being attached")
        assert "typed" not in shell.text and "cho" not in shell.text
        starting.times = 0
        shell.expect("typed-42\r\n")
        shell.expect(PROMPT)
        shell.type("exit 3\r")
        assert shell.end_restored() == 3


@pytest.mark.parametrize("asleep", [False, True])
def test_ctrl_backslash_leaves_while_it_is_attached_again(
    thopters: Thopters, dev: Emulator, asleep: bool
) -> None:
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", "echo begun; sleep 300") as command:
        command.expect("begun")
        dev.fault(Fault("WS */exec/*", "starting", times=None))
        asked = upgrades(dev)
        if asleep:
            dev.sprite("dev").pause()
            command.expect(ASLEEP)
            until(command.is_raw, "it waits for a key")
            command.type("x")
        else:
            dev.sprite("dev").drop_connections()
        until(lambda: upgrades(dev) > asked, "it is being attached")
        until(command.is_quiet, "it is quiet")
        command.type("y" + LEAVE)
        assert command.end_restored() == 0
        assert BACK.search(command.text)
        assert "xy" not in command.text
    assert not remote_sessions(dev)[0].ended.is_set()


def test_a_window_that_is_resized_while_a_key_is_waited_for(
    thopters: Thopters, dev: Emulator
) -> None:
    with open_shell(thopters) as shell:
        dev.sprite("dev").pause()
        shell.expect(ASLEEP)
        until(shell.is_raw, "it waits for a key")
        shell.resize(120, 35)
        shell.resize(121, 36)
        shell.type("\r")
        until(lambda: window_of_newest(dev) == (121, 36), "the size arrives")
        shell.expect(PROMPT)
        shell.ask("echo size-$(stty size)", "size-36 121\r\n")


def test_a_cold_wake_that_ended_the_shell_is_said_and_a_new_one_is_a_key_away(
    thopters: Thopters, dev: Emulator
) -> None:
    sprite = dev.sprite("dev")
    with open_shell(thopters) as shell:
        shell.ask("kept=value; touch file", "")
        sprite.pause(cold=True)
        shell.expect(ASLEEP)
        until(shell.is_raw, "it waits for a key")
        assert sprite.status == "cold"
        shell.type("x")
        shell.expect(ENDED)
        until(shell.is_raw, "it waits for a key")
        assert len(remote_sessions(dev)) == 1
        shell.resize(90, 20)
        shell.type("y")
        shell.expect(PROMPT)
        shell.ask("echo :$kept:$(stty size):$(ls)", "::20 90:file\r\n")
        shell.type("exit 2\r")
        assert shell.end_restored() == 2
        assert shell.text.count("\n[") == 2
    assert len(remote_sessions(dev)) == 2


def test_a_cold_wake_and_no_new_shell(thopters: Thopters, dev: Emulator) -> None:
    with open_shell(thopters) as shell:
        dev.sprite("dev").pause(cold=True)
        shell.expect(ASLEEP)
        until(shell.is_raw, "it waits for a key")
        shell.type("x")
        shell.expect(ENDED)
        until(shell.is_raw, "it waits for a key")
        shell.type(LEAVE)
        shell.end_restored()
        assert not BACK.search(shell.text)  # there is no way back to it
    assert len(remote_sessions(dev)) == 1


def test_a_destroyed_sprite_ends_a_shell(thopters: Thopters, dev: Emulator) -> None:
    with open_shell(thopters, columns=200) as shell:
        destroy(dev)
        shell.expect(ENDED)
        until(shell.is_raw, "it waits for a key")
        shell.type("x")
        assert shell.end_restored() == 255
        assert "there is no sprite dev" in shell.text


def test_a_command_outlives_a_warm_pause(thopters: Thopters, dev: Emulator) -> None:
    script = "echo begun; read -r line; echo got-$line; exit 8"
    with Tty(thopters, "exec", "dev", "--no-hold", "--", "sh", "-c", script) as command:
        command.expect("begun")
        dev.sprite("dev").pause()
        command.expect(ASLEEP)
        until(command.is_raw, "it waits for a key")
        command.type("it\r")
        command.expect("got-it")
        assert command.end_restored() == 8


def test_a_command_that_a_cold_pause_ended_has_no_status(thopters: Thopters, dev: Emulator) -> None:
    words = ("exec", "dev", "--no-hold", "--", "sh", "-c", "echo begun; sleep 600")
    with Tty(thopters, *words, columns=400) as command:
        command.expect("begun")
        dev.sprite("dev").pause(cold=True)
        command.expect(ASLEEP)
        until(command.is_raw, "it waits for a key")
        command.type("x")
        assert command.end_restored() == 255
        assert "exit status is unknown" in command.text
    assert len(remote_sessions(dev)) == 1


def test_where_nobody_types_a_pause_is_no_success(thopters: Thopters, dev: Emulator) -> None:
    """Without a terminal on stdin no key can come, and no status means no success."""
    words = ("exec", "dev", "-t", "--no-hold", "--", "sh", "-c", "echo begun; sleep 600")
    with Tty(thopters, *words, columns=400, stdin=subprocess.PIPE) as command:
        command.expect("begun")
        dev.sprite("dev").pause()
        assert command.end() == 255


# --- what the platform may tell or not --------------------------------------------------


@pytest.mark.parametrize("info", ["first", "late", "absent"])
@pytest.mark.parametrize("kind", ["int", "str"])
def test_a_shell_in_every_dialect(thopters: Thopters, dev: Emulator, info: str, kind: str) -> None:
    dev.personality.session_info = info
    dev.personality.session_info_id_type = kind
    with open_shell(thopters) as shell:
        shell.ask("echo seen-$((6 * 7))", "seen-42\r\n")
        shell.type("exit 3\r")
        assert shell.end_restored() == 3
    with open_shell(thopters) as shell:
        shell.type(LEAVE)
        assert shell.end_restored() == 0
        found = BACK.search(shell.text)
        assert (found[1] if found else "") in (lasting_id(remote_sessions(dev)[-1]), "")
        assert found or info == "absent"


def test_an_id_that_was_never_told_does_not_end_a_shell(thopters: Thopters, dev: Emulator) -> None:
    """The list of sessions tells it just as well; at least nothing false may be said."""
    dev.personality.session_info = "absent"
    with open_shell(thopters) as shell:
        shell.ask("kept=$((6 * 7))", "")
        dev.sprite("dev").drop_connections()
        shell.expect("never told its id, so there is no way back; a key starts a new shell")
        assert not remote_sessions(dev)[0].ended.is_set()
        assert ENDED not in shell.text


def test_a_status_that_nobody_knows_is_not_taken_for_sleep(
    thopters: Thopters, dev: Emulator
) -> None:
    dev.personality.unknown_status = "resting"
    with open_shell(thopters) as shell:
        shell.ask("kept=$((6 * 7))", "")
        dev.sprite("dev").drop_connections()
        shell.expect(LOST)
        until(shell.is_raw, "it is attached again")
        shell.type("\r")
        shell.ask("echo still-$kept", "still-42\r\n")


# --- the sprite program -----------------------------------------------------------------


@pytest.fixture
def calls(thopters: Thopters, tmp_path: Path) -> Callable[[], list[list[str]]]:
    """Put a `sprite` program on PATH; return a function that tells how it was called."""
    folder, log = tmp_path / "programs", tmp_path / "calls"
    write_launcher(folder, "sprite", SPRITE_PROGRAM)
    thopters.env |= {"PATH": f"{folder}:{thopters.env['PATH']}", "STAND_IN_LOG": str(log)}

    def calls() -> list[list[str]]:
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line)["argv"] for line in lines]

    return calls


def store_login(thopters: Thopters, dev: Emulator, selected: str) -> None:
    login = thopters.home / ".sprites" / "sprites.json"
    login.parent.mkdir(mode=0o700)
    orgs = {name: {"name": name, "api_token": dev.token} for name in ("acme", "other")}
    document = {
        "version": "1",
        "current_selection": {"url": dev.url, "org": selected},
        "urls": {dev.url: {"url": dev.url, "orgs": orgs}},
    }
    login.write_text(json.dumps(document))
    login.chmod(0o600)


@pytest.mark.parametrize(
    ("login", "words"), [(None, ["-s", "dev"]), ("acme", ["-s", "dev", "-o", "acme"])]
)
def test_a_shell_is_the_sprite_programs_where_it_reaches_the_same_sprite(
    thopters: Thopters,
    dev: Emulator,
    calls: Callable[[], list[list[str]]],
    login: str | None,
    words: list[str],
) -> None:
    if login:
        store_login(thopters, dev, login)
    with Tty(thopters, "shell", "dev") as shell:
        shell.expect(PROMPT)
        shell.ask("echo seen-$((6 * 7))", "seen-42\r\n")
        shell.type("exit 7\r")
        assert shell.end_restored() == 0  # that program's own
    assert calls() == [[*words, "console"]]


@pytest.mark.parametrize("way", ["--native", "--hold", "variable", "another org", "absent"])
def test_a_shell_is_ours_where_that_program_is_not_wanted_or_not_right(
    thopters: Thopters, dev: Emulator, request: pytest.FixtureRequest, way: str
) -> None:
    calls = request.getfixturevalue("calls") if way != "absent" else list
    if way == "variable":
        thopters.env["THOPTERS_NATIVE"] = "1"
    if way == "another org":
        store_login(thopters, dev, "other")
    options = [way] if way.startswith("--") else ["-v"]
    with Tty(thopters, "shell", "dev", *options, columns=400) as shell:
        shell.expect(PROMPT)
        shell.type("exit 7\r")
        assert shell.end_restored() == 7
        assert ("other" in shell.text) == (way == "another org")
    assert not [call for call in calls() if "console" in call]
