"""What a terminal sends: text and escapes, keys and reports."""

from __future__ import annotations

import itertools
import random

import pytest

import thopters

ARROWS = ["\x1b[A", "\x1bOA", "\x1b[1;5A", "\x1b[1;2:1A", "\x1b[1;1:2D"]
NAMED = ["\x1b[3~", "\x1b[3;5~", "\x1b[15~", "\x1bOP", "\x1b[1;2P", "\x1b[Z", "\x1b[H", "\x1b[F"]
ODD = ["\x1b[[A", "\x1b[[E", "\x1b[a", "\x1b[5^", "\x1b[7@", "\x1b[224z", "\x1bOa", "\x1b[E"]
KITTY = ["\x1b[97u", "\x1b[97;5u", "\x1b[97;1:1u", "\x1b[97:65;2:2;65u", "\x1b[13u", "\x1b[0;;229u"]
PLAIN = ["a", "é", "\r", "\x7f", "\x03", "\x1b", "\x1bx", "\x1b\x7f", "\x1b[", "\x1b]", "\x1bP"]
PASTED = ["\x1b[200~", "\x1b[201~", "\x1b[27;2;13~"]
KEYS = [*ARROWS, *NAMED, *ODD, *KITTY, *PLAIN, *PASTED]

MOUSE = ["\x1b[M !!", "\x1b[<35;10;5M", "\x1b[<0;10;5m", "\x1b[32;10;5M", "\x1b[I", "\x1b[O"]
ANSWERS = [
    *("\x1b[0n", "\x1b[?10n", "\x1b[24;80R", "\x1b[1;2R", "\x1b[?1;80R", "\x1b[?1;2c"),
    *("\x1b[>41;354;0c", "\x1b[?62;1;6;22c", "\x1b[?2026;2$y", "\x1b[4;2$y", "\x1b[?5u"),
    *("\x1b[>4;2m", "\x1b[8;24;80t", "\x1b[4;600;800t", "\x1b[48;24;80;600;800t", "\x1b[2;1;1x"),
    *("\x1b[?997;1n", "\x1b[?997;2n", "\x1b[?1;0;256S", "\x1b[1;2;3;4&w", "\x1b[=1;2;3v"),
]
STRINGS = [
    *("\x1b]11;rgb:ffff/ffff/dddd\x07", "\x1b]4;7;rgb:00/00/00\x1b\\", "\x1b]52;c;aGk=\x1b\\"),
    *("\x1bP1+r544e=787465726d\x1b\\", "\x1bP>|xterm(390)\x1b\\", "\x1bP0$r0m\x1b\\"),
    *("\x1bP!|00000000\x1b\\", "\x1b_Gi=31;OK\x1b\\", "\x1b]l-title\x1b\\", "\x1b]99;p=?;\x07"),
]
RELEASES = ["\x1b[97;1:3u", "\x1b[1;1:3A", "\x1b[3;5:3~", "\x1b[13;129:3u", "\x1b[97::97;1:3u"]
ALONE = ["\x1b[57441;2u", "\x1b[57442;5:1u", "\x1b[57358;65u", "\x1b[57360u", "\x1b[57453;1:2u"]
REPORTS = [*MOUSE, *ANSWERS, *STRINGS, *RELEASES, *ALONE]


def tokens(data: bytes, *cuts: int) -> list[bytes]:
    """Return what the parser makes of pieces of what a terminal sends."""
    parser = thopters.Escapes(thopters.SENT, thopters.SENT_IN_PART)
    edges = [0, *sorted(cuts), len(data)]
    found = [
        token
        for start, end in itertools.pairwise(edges)
        for token, new in parser.feed(data[start:end])
        if token == new
    ]
    return [*found, parser.give_up()] if parser.held else found


@pytest.mark.parametrize("sent", KEYS)
def test_p6_a_key_is_one(sent: str) -> None:
    assert all(thopters.is_key(token) for token in tokens(sent.encode()))


@pytest.mark.parametrize("sent", REPORTS)
def test_p6_what_a_terminal_reports_by_itself_is_not_a_key_however_it_is_cut(sent: str) -> None:
    data = sent.encode()
    for cut in range(len(data)):
        [token] = tokens(data, cut)
        assert token == data
        assert not thopters.is_key(token)


@pytest.mark.parametrize("typed", ["\x1b]ls\r", "\x1bPls\r", "\x1b_\x1b_x\r", "\x1b[3\rx"])
def test_p6_what_only_begins_like_a_report_is_typed(typed: str) -> None:
    assert any(thopters.is_key(token) for token in tokens(typed.encode()))


def test_p6_no_byte_is_lost_and_no_escape_is_cut_wherever_a_read_ends() -> None:
    rng = random.Random(4)
    for _ in range(300):
        sent = [rng.choice(KEYS + REPORTS).encode() for _ in range(8)]
        sent = [each for each in sent if each[:1] != b"\x1b" or len(each) > 2]
        data = b"".join(sent)
        cuts = [rng.randrange(len(data) + 1) for _ in range(rng.randrange(6))]
        found = tokens(data, *cuts)
        assert b"".join(found) == data
        assert [token for token in found if token[:1] == b"\x1b"] == [
            each for each in sent if each[:1] == b"\x1b"
        ]


def test_p4_an_escape_whose_rest_comes_late_is_known_and_no_byte_comes_twice() -> None:
    for sent in (b"\x1b[92;133u", b"\x1b[27;5;92~", b"\x1bOP", b"x\x1b[A", b"\x1b\x1b[A"):
        for cut in range(1, len(sent)):
            parser = thopters.Escapes(thopters.SENT, thopters.SENT_IN_PART)
            given = b"".join(new for _, new in parser.feed(sent[:cut])) + parser.give_up()
            assert (given, parser.held) == (sent[:cut], 0)
            found = list(parser.feed(sent[cut:]))
            assert b"".join(new for _, new in found) == sent[cut:]
            assert found[-1][0] == sent[sent.rindex(b"\x1b") :]


LOCKS = [0, 64, 128, 64 + 128]


@pytest.mark.parametrize("locks", LOCKS)
@pytest.mark.parametrize("code", [92, 99])
def test_p4_a_key_with_ctrl_is_known_whatever_lock_is_on(code: int, locks: int) -> None:
    held = 1 + 4 + locks
    forms = ["\x1b[%d;%du", "\x1b[%d;%d:1u", "\x1b[%d;%d:2u", "\x1b[%d:124;%du", "\x1b[%d::92;%du"]
    for form in [*forms, "\x1b[%d;%d;28u"]:
        assert thopters.control_key((form % (code, held)).encode()) == code
    assert thopters.control_key(b"\x1b[27;%d;%d~" % (held, code)) == code
    for other in (b"\x1b[%d;%d:3u" % (code, held), b"\x1b[%d;%du" % (code, 1 + locks)):
        assert not thopters.control_key(other)
    for more in (1, 2, 8, 16, 32):
        assert not thopters.control_key(b"\x1b[%d;%du" % (code, held + more))


def test_p4_the_key_of_another_alphabet_is_the_one_of_a_us_keyboard() -> None:
    assert thopters.control_key(b"\x1b[1089::99;5u") == ord("c")
    assert thopters.control_key(b"\x1b[42::92;5u") == ord("*")  # French: this is no backslash


NEVER_ENDING = (
    b"\x1b[",
    b"\x1b[=",
    b"\x1b[?",
    b"\x1b]",
    b"\x1bP",
    b"\x1b[27;",
    b"\x1b[>",
    b"\x1b]\x1b",
)


@pytest.mark.parametrize("byte", [b"0", b";", b":", b" ", b"["])
@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_s8_what_never_ends_takes_linear_time_and_little_room(byte: bytes, piece: int) -> None:
    patterns = [
        (thopters.SENT, thopters.SENT_IN_PART),
        (thopters.SHOWN, thopters.SHOWN_IN_PART),
        (thopters.MODE_SWITCH, thopters.SHOWN_IN_PART),
    ]
    for begin, (whole, in_part) in itertools.product(NEVER_ENDING, patterns):
        parser = thopters.Escapes(whole, in_part)
        data = begin + byte * 100_000
        found = b""
        for at in range(0, len(data), piece):
            for token, new in parser.feed(data[at : at + piece]):
                thopters.is_key(token)
                thopters.control_key(token)
                thopters.shows_other_screen(token)
                found += new
            assert parser.held <= thopters.LONGEST_ESCAPE
        assert found + parser.give_up() == data


SWITCHES = [
    (b"\x1b[?1049h", True),
    (b"\x1b[?25l\x1b[?1000;1049;2004h\x1b[2J", True),
    (b"\x1b[?47h\x1b[?1047l", False),
    (b"\x1b[?1049h\x1bc", False),
    (b"\x1b[?1049h\x1b]0;t\x1b\\\x1b[?1048l\x1b[?1049$p", True),
    (b"\x1b[?10490h\x1b[1049h\x1b[?104", None),
]


@pytest.mark.parametrize(("shown", "is_on"), SWITCHES)
def test_p11_the_other_screen_is_known_however_its_switch_is_cut(
    shown: bytes, is_on: bool | None
) -> None:
    for size in range(1, len(shown)):
        parser = thopters.Escapes(thopters.MODE_SWITCH, thopters.SHOWN_IN_PART)
        pieces = (shown[at : at + size] for at in range(0, len(shown), size))
        found = [thopters.shows_other_screen(token) for p in pieces for token, _ in parser.feed(p)]
        assert next((on for on in reversed(found) if on is not None), None) == is_on
