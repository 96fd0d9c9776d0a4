"""Escapes between two terminals: keys that mean us, reports, what a session has left behind."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from emulation import Emulator, Fault
from support.program import Thopters
from support.relay import Relay
from support.sessions import detach, remote_sessions, upgrades, window
from support.terminals import ASLEEP, BACK, LEAVE, LOST, Tty, open_shell
from support.tmux import Pane, needs_tmux
from support.waiting import until

import thopters as program

# --- keys that mean us ------------------------------------------------------------------

LEAVES = [["\x1b[92;133u"], ["\x1b[9", "2;6", "9:2u"], ["\x1b", "[92;5u"], ["\x1b[27;", "5;92~"]]


@pytest.mark.parametrize("pieces", LEAVES, ids=repr)
def test_p4_ctrl_backslash_leaves_with_every_lock_on_and_in_several_reads(
    thopters: Thopters, dev: Emulator, pieces: list[str]
) -> None:
    got = dev.sprite("dev").home / "got"
    script = "stty raw -echo; echo begun; cat > got"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script) as command:
        command.expect("begun")
        command.type("x")
        until(lambda: got.exists() and got.read_bytes() == b"x", "the key gets there")
        command.type_in_pieces(*pieces[:-1])
        command.type(pieces[-1])
        assert command.end_restored() == 0
        assert BACK.search(command.text)
    if len(pieces[0]) > 2:  # else it was a key of its own, perhaps
        assert got.read_bytes() == b"x"


def test_p4_what_is_not_ctrl_backslash_gets_there(thopters: Thopters, dev: Emulator) -> None:
    keys = "\x1b[92;133:3u\x1b[92;134u\x1b[92;129u\x1b[28u\x1b\x1b[A\\"
    got = dev.sprite("dev").home / "got"
    script = f"stty raw -echo; echo begun; head -c {len(keys)} > got"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script) as command:
        command.expect("begun")
        for key in keys:
            command.type(key)
        assert command.end_restored() == 0
    assert got.read_text() == keys


@pytest.mark.parametrize("pieces", [["\x1b[99;133u"], ["\x1b[99;1", "97:1u"]])
def test_p4_ctrl_c_ends_the_waiting_with_every_lock_on_and_in_several_reads(
    thopters: Thopters, dev: Emulator, pieces: list[str]
) -> None:
    with open_shell(thopters, columns=400) as shell:
        dev.fault(Fault("GET *", "reset", times=None))
        dev.sprite("dev").drop_connections()
        shell.expect("Ctrl-\\ leaves]")
        shell.type_in_pieces("x", *pieces[:-1])
        shell.type(pieces[-1])
        assert shell.end_restored() == -signal.SIGINT
        assert BACK.search(shell.text)


@pytest.mark.parametrize(
    ("key", "status"), [("\x1b[92;133u", 0), ("\x1b[27;5;92~", 0), ("\x1b[99;69u", -signal.SIGINT)]
)
def test_p4_a_key_that_is_no_signal_ends_the_wait_for_the_sprite(
    thopters: Thopters, dev: Emulator, key: str, status: int
) -> None:
    with open_shell(thopters, columns=400) as shell:
        dev.fault(Fault("WS */exec/*", "starting", times=None))
        dev.sprite("dev").drop_connections()
        shell.expect(LOST)
        shell.type_in_pieces("x", "y")  # what was typed before changes nothing
        shell.type(key)
        assert shell.end_restored() == status
        assert BACK.search(shell.text)


# --- what a session leaves behind -------------------------------------------------------

MODES = (
    "insert_flag keypad_cursor_flag keypad_flag wrap_flag cursor_flag origin_flag "
    "scroll_region_upper scroll_region_lower mouse_any_flag mouse_sgr_flag alternate_on"
)
# apt's bar in the last row, below a scroll region; then what editors and other programs set
LEFT_BEHIND = [
    "\\033[1;23r\\033[24;1H\\033[42;30mProgress: [ 45%%]\\033[23;1H",
    "\\033[4h\\033[?7l\\033[?25l\\033[?1h\\033=\\033[?1000;1002;1006h\\033[?2004h",
    "\\033)0\\016\\033[7;35m\\033[6 q\\033]8;;http://a\\033\\\\",
    "\\033(0\\033[?1049h\\033[5;10r\\033[4mdrawn",
    "\\033[3;9r\\033[?6h\\033[2;5Hdrawn",
    "\\033[?1049h\\033[5;10r\\033[?6;7h\\033[4mdrawn",
    "\\033[4h\\033[38;5;1",  # an escape that is cut
    "\\033]0;a title that is cut",
    "\\033[?1049h\\033[3;9r\\033[?6h\\033]0;a title that is cut",
]


@needs_tmux
@pytest.mark.parametrize("left_behind", LEFT_BEHIND)
def test_p11_ctrl_backslash_leaves_a_clean_terminal(
    thopters: Thopters, dev: Emulator, tmp_path: Path, left_behind: str
) -> None:
    (dev.sprite("dev").home / "dirty").write_text(f"printf '{left_behind}'; touch up; sleep 300")
    up = dev.sprite("dev").home / "up"
    remote = shlex.join([*thopters.argv, "exec", "dev", "--", "sh", "dirty"])
    script = f"echo first; {remote}; stty -echo; echo lqkx-{'after' * 20}; printf end; sleep 300"
    with Pane(tmp_path, ["sh", "-c", script], thopters.env) as pane:
        until(lambda: pane.lines()[:1] == ["first"], "it begins")
        clean = pane.told(MODES)
        until(up.exists, "the program runs")
        pane.type("C-\\")
        until(lambda: pane.lines()[-1:] == ["end"], "it is left")
        assert pane.told(MODES) == clean
        assert pane.told("cursor_x") == {"cursor_x": "3"}
        shown = pane.lines(with_colours=True)
    assert shown[-3:] == [f"lqkx-{'after' * 15}", "after" * 5, "end"]
    assert any(line.startswith("[the session goes on") for line in shown)  # without colours


@needs_tmux
def test_p11_the_reset_changes_nothing_on_a_clean_screen(tmp_path: Path) -> None:
    (tmp_path / "reset").write_bytes(program.END_OF_STRING + program.RESET)
    rows = "".join(f"\\033[3{row % 8}mrow {row}\\033[m\\n" for row in range(30))
    script = f"stty -echo; printf '{rows}\\033[7;5H'; read -r _; cat reset; touch done; sleep 300"
    env = {"PATH": "/usr/bin:/bin"}
    with Pane(tmp_path, ["sh", "-c", f"cd {tmp_path}; {script}"], env) as pane:
        at = "cursor_x cursor_y"
        until(lambda: pane.told(at) == {"cursor_x": "4", "cursor_y": "6"}, "all is drawn")
        before = pane.told(f"{MODES} {at}"), pane.lines(with_colours=True)
        pane.type("Enter")
        until((tmp_path / "done").exists, "it is reset")
        assert (pane.told(f"{MODES} {at}"), pane.lines(with_colours=True)) == before


# --- what a terminal reports by itself --------------------------------------------------

REPORTS = [
    *("\x1b[48;24;80;600;800t", "\x1b[?997;1n", "\x1b]11;rgb:ffff/ffff/dddd\x1b\\", "\x1b[24;80R"),
    *("\x1b[?62;22c", "\x1b[>1;10;0c", "\x1b[?2026;2$y", "\x1b[?0u", "\x1bP1+r544e=7874\x1b\\"),
    *("\x1b[13;1:3u", "\x1b[1;1:3A", "\x1b[57441;2u", "\x1b_Gi=1;OK\x1b\\", "\x1b[I\x1b[O"),
    *("\x1b[48;24;", "80;600;800t", "\x1b]10;rgb:0000/0000", "/0000\x1b", "\\", "\x1b[<35;1;1M"),
]


def test_p6_what_a_terminal_reports_does_not_wake_a_paused_sprite(
    thopters: Thopters, dev: Emulator
) -> None:
    sprite = dev.sprite("dev")
    with open_shell(thopters) as shell:
        sprite.pause()
        shell.expect(ASLEEP)
        until(shell.is_raw, "it waits for a key")
        asked = upgrades(dev)
        shell.type_in_pieces(*REPORTS)
        assert shell.is_raw()  # it still waits for a key
        shell.type(LEAVE)  # by then a wake-up would have begun
        assert shell.end_restored() == 0
    assert (sprite.status, upgrades(dev)) == ("warm", asked)


@pytest.mark.parametrize("key", ["\x1b[13u", "\x1b", "\x1b]"])
def test_p6_a_key_that_is_an_escape_wakes_it_and_gets_there(
    thopters: Thopters, dev: Emulator, key: str
) -> None:
    got = dev.sprite("dev").home / "got"
    script = f"stty raw -echo; echo begun; head -c {len(key)} > got"
    with Tty(thopters, "exec", "dev", "--no-hold", "--", "sh", "-c", script) as command:
        command.expect("begun")
        dev.sprite("dev").pause()
        command.expect(ASLEEP)
        until(command.is_raw, "it waits for a key")
        command.type(key)
        assert command.end_restored() == 0
    assert got.read_text() == key


# --- what an attach shows again ---------------------------------------------------------

ASKS = b"\x1b[6n\x1b[c\x1b]11;?\x07\x1b[?2026$p\x1bP+q544e\x1b\\\x1b[>q\x1b[?u\x05"
DOES = b"\x1b]52;c;aGVsbG8=\x07\x1b]9;done\x07\x07"


def test_p5_what_was_shown_is_shown_once_over_pauses_and_lost_connections(
    thopters: Thopters, dev: Emulator
) -> None:
    sprite = dev.sprite("dev")
    with open_shell(thopters) as shell:
        for number in range(3):
            shell.ask(f"echo shown-{number}-$((6 * 7))", f"shown-{number}-42\r\n")
            if number == 1:
                sprite.drop_connections()
                shell.expect(LOST)
            else:
                sprite.pause()
                shell.expect(ASLEEP)
                until(shell.is_raw, "it waits for a key")
                shell.type("\r")
        shell.ask("echo the-$((0 + 1))st", "the-1st")
        shell.type("exit\r")
        assert shell.end_restored() == 0
        for number in range(3):
            assert shell.text.count(f"shown-{number}-42") == 1
        assert "thopters-" not in shell.text and "\x1b[2J" not in shell.text


def test_p5_what_was_printed_meanwhile_is_shown(thopters: Thopters, dev: Emulator) -> None:
    go = dev.sprite("dev").home / "go"
    script = "echo before; until [ -e go ]; do sleep 0.05; done; echo meanwhile; touch said; cat"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script) as command:
        command.expect("before")
        dev.fault(Fault("WS */exec/*", "starting", times=3))
        dev.sprite("dev").drop_connections()
        command.expect(LOST)
        go.touch()
        command.expect("meanwhile")
        command.type("later\n")
        command.expect("later")
        command.type(LEAVE)
        assert command.end_restored() == 0
        assert command.text.count("before") == command.text.count("meanwhile") == 1


@pytest.mark.parametrize("piece", [0, 10])
def test_p5_a_replay_asks_nothing_and_what_comes_live_passes_as_it_is(
    thopters: Thopters, dev: Emulator, piece: int
) -> None:
    dev.personality.replay_message_bytes = piece
    identity = detach(thopters, "sh", "-c", "stty raw -echo; touch up; cat")
    until((dev.sprite("dev").home / "up").exists, "it runs")
    [remote] = remote_sessions(dev)
    remote._output(1, memoryview(b"old" + ASKS + DOES + b"text"))
    with Tty(thopters, "attach", "dev", identity) as command:
        command.expect("oldtext")
        remote._output(1, memoryview(b"new" + ASKS + DOES + b"end"))
        command.expect("end")
        command.type(LEAVE)
        assert command.end_restored() == 0
        assert b"new" + ASKS + DOES + b"end" in command.shown
        assert command.shown.count(b"\x1b]52") == 1


@needs_tmux
def test_p5_a_terminal_that_answers_types_nothing_into_the_shell(
    thopters: Thopters, dev: Emulator, tmp_path: Path
) -> None:
    sprite = dev.sprite("dev")
    asks = "\\033[6n\\033[c\\033]52;c;aGVsbG8=\\007"
    (sprite.home / "ask").write_text(
        f"stty raw -echo; printf '{asks}'; read -r -d c _; stty sane; echo asked"
    )
    script = shlex.join([*thopters.argv, "shell", "dev", "--native"])
    with Pane(tmp_path, ["sh", "-c", f"{script}; sleep 300"], thopters.env) as pane:
        until(lambda: "$" in "".join(pane.lines()[-1:]), "the prompt comes")
        pane.type("bash ask", "Enter")
        until(lambda: pane.lines()[-2:-1] == ["asked"], "its questions are answered")
        pane.copy("nothing")
        for _ in range(2):
            sprite.pause()
            until(lambda: "has paused" in "".join(pane.lines()[-2:]), "it has paused")
            pane.type("Enter")
            until(lambda: pane.lines()[-1].endswith("$"), "it is back")
        pane.type("echo la''st", "Enter")
        until(lambda: pane.lines()[-2:-1] == ["last"], "it runs")
        shown = pane.lines()
        assert pane.copied() == "nothing"
    assert shown.count("asked") == 1
    assert not any(line.endswith(("R", ";2c")) for line in shown), shown


def test_p5_an_attach_into_a_pipe_prints_nothing_of_ours(thopters: Thopters, dev: Emulator) -> None:
    identity = detach(thopters, "sh", "-c", "echo shown; read -r line; echo got-$line")
    with Tty(thopters, "attach", "dev", identity, stdout=subprocess.PIPE) as command:
        assert command.process.stdout
        assert command.process.stdout.readline() == b"shown\r\n"
        command.type("it\r")
        rest = command.process.stdout.read()
        assert command.end_restored() == 0
    assert rest == b"it\r\ngot-it\r\n"


# --- the window -------------------------------------------------------------------------

DRAWS_ON_CHANGE = """\
import os, pathlib, signal
def draw(*_):
    columns, rows = os.get_terminal_size()
    print(f"drawn-{rows} {columns}", flush=True)
signal.signal(signal.SIGWINCH, draw)
pathlib.Path("up").touch()
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (100, 30), (80, 1)])
def test_p12_an_attach_has_the_program_draw_in_a_window_of_any_size(
    thopters: Thopters, dev: Emulator, columns: int, rows: int
) -> None:
    identity = detach(thopters, "python3", "-c", DRAWS_ON_CHANGE)
    until((dev.sprite("dev").home / "up").exists, "it runs")
    with Tty(thopters, "attach", "dev", identity, columns=columns, rows=rows) as command:
        command.expect(f"drawn-{rows} {columns}\r\n")
        dev.sprite("dev").drop_connections()
        command.expect(LOST)
        command.expect(f"drawn-{rows} {columns}\r\n")
        command.type(LEAVE)
        assert command.end_restored() == 0
    assert window(remote_sessions(dev)[0]) == (columns, rows)


def test_p12_who_types_at_once_has_the_right_size(thopters: Thopters, dev: Emulator) -> None:
    identity = detach(thopters, "sh", "-c", "stty -echo; touch up; read -r line; stty size")
    until((dev.sprite("dev").home / "up").exists, "it runs")
    with Tty(thopters, "attach", "dev", identity) as command:
        command.type("\r")
        assert command.end_restored() == 0
        assert command.text.endswith("24 80\r\n")


@pytest.mark.parametrize(("columns", "rows"), [(0, 0), (80, 0), (0, 24)])
def test_p13_a_window_without_a_size_changes_none_and_a_new_one_has_80_by_24(
    thopters: Thopters, dev: Emulator, columns: int, rows: int
) -> None:
    script = "stty size; read -r line; stty size"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script, columns=132, rows=43) as command:
        command.expect("43 132\r\n")
        command.type(LEAVE)
        assert command.end_restored() == 0
    with Tty(thopters, "attach", "dev", columns=columns, rows=rows) as command:
        command.expect("43 132\r\n")
        command.resize(columns, rows)
        command.type("\r")
        command.expect("43 132\r\n")
        assert command.end_restored() == 0
    with Tty(thopters, "exec", "dev", "--", "stty", "size", columns=columns, rows=rows) as command:
        assert command.end_restored() == 0
        assert command.text == "24 80\r\n"


# --- what the remote terminal takes over ------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "keys", "got"),
    [
        ("iutf8", "a\u00e9\x7fb\r", "61 62"),
        ("-iutf8", "a\u00e9\x7fb\r", "61 c3 62"),
        ("iutf8 erase ^H", "a\u4e16\u00e9\b\bb\x7f\r", "61 62 7f"),
        ("iutf8 erase % werase undef kill ^X", "xy\x18a%b\x17c\r", "62 17 63"),
    ],
)
def test_p2_the_keys_of_our_terminal_edit_a_line_there(
    thopters: Thopters, dev: Emulator, settings: str, keys: str, got: str
) -> None:
    set_up = ["sh", "-c", f'stty {settings}; exec "$@"', "sh", *thopters.argv]
    thopters.argv = ["/bin/sh", *set_up[1:]]
    script = 'echo its-turn; read -r line; printf %s "$line" | od -An -v -tx1'
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script) as command:
        command.expect("its-turn\r\n")
        command.type(keys)
        command.expect(f" {got}\r\n")


def test_p2_a_shell_takes_over_the_keys_of_our_terminal(thopters: Thopters, dev: Emulator) -> None:
    thopters.argv = ["/bin/sh", "-c", 'stty erase ^H; exec "$@"', "sh", *thopters.argv]
    with open_shell(thopters) as shell:
        shell.ask("stty -a | tr ';' '\\n' | grep -x ' erase = ^H'", "erase = ^H\r\n")


@pytest.mark.parametrize(
    ("ours", "there"),
    [
        ("xterm-nobody", "xterm-256color"),
        ("it's $(none)", "xterm-256color"),
        ("xterm", "xterm"),
        ("vt100", "vt100"),
        ("", "dumb"),
    ],
)
def test_p3_a_terminal_that_the_sprite_does_not_know_is_replaced(
    thopters: Thopters, dev: Emulator, ours: str, there: str
) -> None:
    thopters.env |= {"TERM": ours, "COLORTERM": "truecolor"}
    script = "echo [${TERM-dumb}:$COLORTERM]; tput clear > /dev/null; echo clear-$?"
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", script) as command:
        command.expect(f"[{there}:truecolor]")
    given = ("--env", "TERM=xterm-somebody", "--env", "LANG=yy_YY")
    with Tty(thopters, "exec", "dev", *given, "--", "sh", "-c", "echo $TERM:$LANG") as command:
        command.expect("xterm-somebody:yy_YY")  # a wish is a wish


@pytest.mark.parametrize(
    ("ours", "there"), [("xx_XX.UTF-8", "C.utf8"), ("POSIX", "POSIX"), ("it's", "C.utf8")]
)
def test_p3_a_locale_that_the_sprite_does_not_know_is_left_out(
    thopters: Thopters, dev: Emulator, ours: str, there: str
) -> None:
    keys = dev.sprite("dev").home / ".thopters" / "env"
    keys.parent.mkdir()
    keys.write_text("export LANG=C.utf8\n")
    thopters.env["LANG"] = ours
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", "echo [$LANG]") as command:
        command.expect(f"[{there}]")
        assert command.end_restored() == 0
        assert "setlocale" not in command.text
    detach(thopters, "sh", "-c", "echo $LANG > lang; sleep 300")
    until(lambda: (dev.sprite("dev").home / "lang").read_text() == f"{there}\n", "it runs")


def test_p3_what_the_sprite_does_not_know_ends_nothing_under_set_e(
    thopters: Thopters, dev: Emulator
) -> None:
    keys = dev.sprite("dev").home / ".thopters" / "env"
    keys.parent.mkdir()
    keys.write_text("set -e\nstty() { return 1; }\n")
    thopters.env |= {"TERM": "xterm-nobody", "LANG": "xx_XX.UTF-8"}
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", "echo [$TERM]; exit 7") as command:
        command.expect("[xterm-256color]")
        assert command.end_restored() == 7


# --- what is under way ------------------------------------------------------------------


@pytest.mark.parametrize("is_paused", [False, True], ids=["awake", "paused"])
@pytest.mark.parametrize(("keys", "words"), [("x", "1 byte "), ("echo l\u00f6st\r", "11 bytes ")])
def test_p8_what_is_typed_into_a_dead_connection_is_told(
    thopters: Thopters, dev: Emulator, is_paused: bool, keys: str, words: str
) -> None:
    with Relay(int(dev.url.rpartition(":")[2])) as relay:
        thopters.env["SPRITES_API_URL"] = relay.url
        with open_shell(thopters, columns=400) as shell:
            shell.ask("echo arrived", "\narrived")
            [way] = [each for each in relay.connections if b"Upgrade" in each.sent]
            answer = b"\x8a\x08" + len("echo arrived\r").to_bytes(8, "big")
            until(lambda: answer in way.came and shell.is_blocked(), "that is known")
            way.was_cut.set()  # it swallows all from now on
            shell.type(keys)
            until(lambda: shell.waiting == 0 and shell.is_blocked(), "it is sent")
            if is_paused:
                dev.sprite("dev").pause()
            way.end()
            shell.expect(f"; the last {words}typed may not have arrived; ")
            shell.expect("wakes it, Ctrl-\\ leaves]" if is_paused else LOST)


def test_p8_what_has_arrived_is_not_doubted(thopters: Thopters, dev: Emulator) -> None:
    with open_shell(thopters, columns=400) as shell:
        for number in range(3):
            shell.ask(f"echo arrived-{number}", f"\narrived-{number}")
        until(shell.is_blocked, "it waits")
        dev.sprite("dev").drop_connections()
        shell.expect(LOST)
        assert "arrived; " not in shell.text


def test_p10_little_output_is_under_way_when_a_key_is_pressed(
    thopters: Thopters, dev: Emulator
) -> None:
    """What waits here has to be shown before what ^C does is seen."""
    with Relay(int(dev.url.rpartition(":")[2])) as relay:
        thopters.env["SPRITES_API_URL"] = relay.url
        with Tty(thopters, "exec", "dev", "--", "sh", "-c", "yes $(seq 1000)") as command:
            command.expect("999")
            [way] = [each for each in relay.connections if b"Upgrade" in each.sent]
            way.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            until(lambda: len(command.output) > 4_000_000, "it flows")
            sizes = [0]

            def is_stuck() -> bool:
                sizes.append(len(way.came))
                return len(sizes) > 50 and len(set(sizes[-50:])) == 1

            with command._changed:  # our terminal is not read any more
                until(is_stuck, "the server has to wait")
                under_way = len(way.came) - len(command.output)
            assert under_way < 800_000


# --- what never ends --------------------------------------------------------------------


@pytest.mark.parametrize("begin", [b"\x1b[=", b"\x1b]0;"])
def test_s8_an_escape_that_never_ends_keeps_no_key_from_being_read(
    thopters: Thopters, dev: Emulator, begin: bytes
) -> None:
    message = begin + b"1" * 500_000
    with Tty(thopters, "exec", "dev", "--", "sh", "-c", "stty raw; echo begun; cat") as command:
        command.expect("begun")
        [remote] = remote_sessions(dev)
        remote._output(1, memoryview(message))  # in one message
        until(lambda: len(command.output) > len(message), "it has come")
        command.type("x" + LEAVE)
        assert command.end_restored() == 0
        assert message in command.shown
