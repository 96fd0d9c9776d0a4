"""Escapes between two terminals: keys that mean us, reports, what a session has left behind."""

from __future__ import annotations

import signal

import pytest
from emulation import Emulator, Fault
from support.program import Thopters
from support.sessions import upgrades
from support.terminals import ASLEEP, BACK, LEAVE, Tty, open_shell
from support.waiting import until

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
        shell.type_in_pieces(*pieces[:-1])
        shell.type(pieces[-1])
        assert shell.end_restored() == -signal.SIGINT
        assert BACK.search(shell.text)


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
