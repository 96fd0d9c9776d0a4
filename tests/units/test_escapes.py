"""Escapes both ways: keys and reports, what a replay may show, and that no input takes long."""

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
                thopters.switched(token, thopters.OTHER_SCREEN, False)
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


def is_on_behind(shown: bytes, size: int, modes: set[bytes], before: bool) -> bool:
    """Return whether one of some modes is on when `shown` has come in pieces of a size."""
    parser, is_on = thopters.Escapes(thopters.MODE_SWITCH, thopters.SHOWN_IN_PART), before
    for at in range(0, len(shown), size):
        for token, _ in parser.feed(shown[at : at + size]):
            is_on = thopters.switched(token, modes, is_on)
    return is_on


@pytest.mark.parametrize(("shown", "is_on"), SWITCHES)
def test_p11_the_other_screen_is_known_however_its_switch_is_cut(
    shown: bytes, is_on: bool | None
) -> None:
    for size in range(1, len(shown)):
        for before in (False, True):
            wanted = before if is_on is None else is_on
            assert is_on_behind(shown, size, thopters.OTHER_SCREEN, before) == wanted


@pytest.mark.parametrize(
    ("shown", "is_on"),
    [
        (b"\x1b[?6h", True),
        (b"\x1b[?7;6;25h\x1b[?66l\x1b[6l", True),
        (b"\x1b[?6h\x1b[?25;6l", False),
        (b"\x1b[?6h\x1bc", False),
        (b"\x1b[6h\x1b[?16h\x1b[?60h", None),
    ],
)
def test_p11_origin_mode_is_known_however_its_switch_is_cut(
    shown: bytes, is_on: bool | None
) -> None:
    for size in range(1, len(shown)):
        for before in (False, True):
            wanted = before if is_on is None else is_on
            assert is_on_behind(shown, size, thopters.ORIGIN, before) == wanted


# what a replay may show

ASKS = [
    *("\x1b[c", "\x1b[0c", "\x1b[>c", "\x1b[=c", "\x1bZ", "\x1b[5n", "\x1b[6n", "\x1b[?6n"),
    *("\x1b[?996n", "\x1b[?25$p", "\x1b[4$p", "\x1b[?u", "\x1b[>q", "\x1b[14t", "\x1b[18t"),
    *("\x1b[?4m", "\x1b[x", "\x1b[?1;1;0S", "\x1b[1;1;1;1;1;1*y", "\x1b[1$w", "\x1b[&u"),
    *("\x1b]11;?\x07", "\x1b]4;7;?\x1b\\", "\x1b]4;1;#fff;2;?\x07", "\x1b]12;?\x1b\\"),
    *("\x1bP+q544e\x1b\\", "\x1bP$qm\x1b\\", "\x1b_Gi=31,a=q;AAAA\x1b\\", "\x05", "\xc2\x9b6n"),
]
DOES = [
    *("\x1b]52;c;aGk=\x07", "\x1b]52;c;?\x1b\\", "\x1b]5522;type=read\x1b\\", "\x07"),
    *("\x1b]9;done\x07", "\x1b]777;notify;a;b\x1b\\", "\x1b]1337;File=name=YQ==:YQ==\x07"),
    *("\x1b[8;50;132t", "\x1b[2t", "\x1b[5i", "\x1b[1q", "\x1b]99;;hello\x1b\\"),
    "\x1bPtmux;\x1b\x1b]52;c;aGk=\x07\x1b\\",
]
DRAWS = [
    *("\x1b[m", "\x1b[38;5;196m", "\x1b[4:3m", "\x1b[2J", "\x1b[K", "\x1b[?2J", "\x1b[10;20H"),
    *("\x1b[5A", "\x1b[3d", "\x1b[4G", "\x1b[2P", "\x1b[3X", "\x1b[4b", "\x1b[2;20r", "\x1b[4h"),
    *(
        "\x1b[s",
        "\x1b[u",
        "\x1b7",
        "\x1b8",
        "\x1bM",
        "\x1bD",
        "\x1bc",
        "\x1b(0",
        "\x1b(B",
        "\x1b)0",
    ),
    *(
        "\x1b#8",
        "\x1b%G",
        "\x1b=",
        "\x1b>",
        "\x1b[6 q",
        "\x1b[!p",
        "\x1b[>1u",
        "\x1b[<u",
        "\x1b[>4;2m",
    ),
    *("\x1b[?1049h", "\x1b[?25l", "\x1b[?7h", "\x0e", "\x0f", "\b", "\t", "\r\n", "\x1b[1;1;2;2$z"),
    *("\x1b]0;who asks?\x07", "\x1b]8;;http://a/?b\x1b\\", "\x1b]4;1;#fff\x07", "\x1b]104\x07"),
]


@pytest.mark.parametrize("shown", ASKS + DOES)
def test_p5_a_replay_asks_the_terminal_nothing_and_does_nothing_beside_it(shown: str) -> None:
    drawn = thopters.what_draws(f"before{shown}after".encode("latin-1"), 0)
    assert drawn.replace(b"\x1b\\", b"") in (b"beforeafter", b"before6nafter")


@pytest.mark.parametrize("shown", DRAWS)
def test_p5_a_replay_draws_as_the_program_did(shown: str) -> None:
    data = f"before{shown}é\u201c\u2500after".encode()
    assert thopters.what_draws(data, 0) == data


def test_p5_modes_are_set_once_to_what_they_were_in_the_end() -> None:
    """To switch on reports of sizes, say, has the terminal send one at once."""
    shown = b"\x1b[?2048h\x1b[?1000;1006ha\x1b[?2004h\x1b[?25lb\x1b[?2048l\x1b[?1000l\x1b[?2004l"
    modes = b"\x1b[?1006h\x1b[?2048l\x1b[?1000l\x1b[?2004l"
    assert thopters.what_draws(shown, 0) == b"a\x1b[?25lb" + modes


def test_p5_an_escape_at_the_end_is_left_to_what_follows() -> None:
    for cut in (b"\x1b", b"\x1b[3", b"\x1b]0;ti", b"\x1b]0;title\x1b"):
        assert thopters.what_draws(b"text" + cut, 0) == b"text" + cut


def shown_again(*replays: bytes) -> bytes:
    """Return what is shown of the last of these replays, each of another attach."""
    decoder = thopters.TerminalDecoder(attached=True)
    shown = []
    for replay in replays:
        decoder = thopters.TerminalDecoder(attached=True, seen=decoder.seen)
        assert not list(decoder.message(thopters.OP_BINARY, replay))
        shown = list(decoder.end_replay())
    [output] = shown
    assert isinstance(output, thopters.Output)
    return bytes(output.data)


@pytest.mark.parametrize("seed", range(20))
def test_p5_what_is_new_in_a_replay_is_found_wherever_either_is_cut(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(thopters, "SEEN_BYTES", 100)
    whole = "".join(rng.choice("abc") for _ in range(400)).encode()
    for _ in range(50):
        shown = rng.randrange(40, 401)
        begin, start = rng.randrange(shown - 39), rng.randrange(shown - 39)
        end = rng.randrange(shown, 401)
        assert shown_again(whole[begin:shown], whole[start:end]) == whole[shown:end]


BEGUN = b"stray\r\nthopters-ready\nthopters-exec 4711\r\n\x1b[H\x1b[2J"


def test_p5_what_is_ours_in_a_replay_is_not_shown() -> None:
    assert shown_again(BEGUN + b"$ ") == b"$ "
    assert shown_again(BEGUN + b"$ ", BEGUN + b"$ ls\r\n") == b"ls\r\n"
    assert shown_again(BEGUN + b"$ ", BEGUN + b"$ $ ", BEGUN + b"$ $ $ ") == b"$ "
    # an escape that was cut is shown whole, for our words have come in between
    assert shown_again(BEGUN + b"\x1b[3", BEGUN + b"\x1b[3") == b"\x1b[3"
    assert shown_again(BEGUN + b"x\x1b[3", BEGUN + b"x\x1b[31mred") == b"\x1b[31mred"


def test_p5_a_screen_that_the_platform_draws_anew_is_shown_whole() -> None:
    first, second = b"\x1b[H\x1b[2Jone\r\n$ \x1b[H", b"\x1b[H\x1b[2Jone\r\n$ two\r\n$ "
    assert shown_again(BEGUN + first, second) == shown_again(first, second) == second


@pytest.mark.parametrize(
    "cut", ["8;5;196mred\r\n", "[1mbold\r\n", "c;aGVsbG8=\x07\r\n", "\x9f\xbf\r\n", "5;1H\x1b[mx\n"]
)
def test_p12_a_replay_that_begins_inside_an_escape_shows_nothing_of_that(cut: str) -> None:
    rest = b"whole lines\r\n" * 400
    shown = shown_again(cut.encode("latin-1") + rest)
    assert shown.removeprefix(b"\x1b[mx\n") == rest
    assert shown_again(b"all of a short one\r\n$ ") == b"all of a short one\r\n$ "


@pytest.mark.parametrize("data", [b"\x1b[m", b"thopters-exec 1", b"\x1b]", b"a", b"\xc2", b"\x1b["])
def test_s8_a_long_replay_takes_no_long_time(data: bytes) -> None:
    many = (data * thopters.MOST_REPLAYED)[: thopters.MOST_REPLAYED]
    for seen in (b"", many[: thopters.SEEN_BYTES], many[: thopters.SEEN_BYTES - 1] + b"b"):
        shown_again(seen, many)
