"""Quoting, cleaned text, times, ages, names and ids: text in, value out."""

from __future__ import annotations

import datetime
import random
import shutil
import subprocess
import time
import unicodedata
from pathlib import Path

import pytest
from support.units import NOW, UTC
from support.words import TWISTED, nasty_words

import thopters

# quoting, against real shells


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("shell", ["bash", "dash", "zsh"])
def test_a_shell_reads_a_quoted_argument_as_what_it_was(
    tmp_path: Path, shell: str, locale: str
) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    words = nasty_words(seed=1, count=20_000)
    script = tmp_path / "script"
    with script.open("wb") as file:
        for start in range(0, len(words), 40):
            quoted = map(thopters.quote_argument, words[start : start + 40])
            file.write(b"printf '%s\\0' " + b" ".join(quoted) + b"\n")
    done = subprocess.run(
        [program, str(script)],
        env={"PATH": "/nonexistent", "LC_ALL": locale},
        capture_output=True,
        timeout=60,
    )
    came = done.stdout.split(b"\0")[:-1]
    wrong = [(word, got) for word, got in zip(words, came, strict=False) if word != got]
    assert (wrong[:3], len(came), done.returncode) == ([], len(words), 0)


# text that comes from elsewhere


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain text\\n ~", "plain text\\n ~"),
        ("é 日本 \N{GRINNING FACE} e\u0301 \xa0", "é 日本 \N{GRINNING FACE} e\u0301 \xa0"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("a\nb\r\tc\0\x7f\b", "a\\nb\\r\\tc\\x00\\x7f\\x08"),
        ("é\x9b31m", "é\\x9b31m"),
        ("a\u202eb\u2066c\u200ed", "a\\u202eb\\u2066c\\u200ed"),
        ("a\u200bb\u200dc\ufeff\xad", "a\\u200bb\\u200dc\\ufeff\\xad"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("\ue000\U000f0000", "\\ue000\\U000f0000"),
        ("\ud800\udcff", "\\ud800\\udcff"),
        ("\u0378\ufdd0", "\\u0378\\ufdd0"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_remote_text_is_made_harmless(text: str, shown: str) -> None:
    assert thopters.clean(text) == shown


def test_clean_text_is_printable_whatever_came() -> None:
    rng = random.Random(1)
    for _ in range(500):
        top = rng.choice((0x80, 0x100, 0x3000, 0x110000))
        text = "".join(chr(rng.randrange(top)) for _ in range(40))
        shown = thopters.clean(text)
        bad = [char for char in shown if unicodedata.category(char)[0] == "C"]
        assert not bad and len(shown.splitlines()) <= 1
        assert thopters.clean(shown) == shown
        shown.encode()


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("plain", 5),
        ("é", 1),
        ("e\u0301x\u20dd", 2),
        ("日本", 4),
        ("Ａｂ", 4),
        ("ｱ", 1),
        ("\N{GRINNING FACE}", 2),
        ("한", 2),
        ("─", 1),
    ],
)
def test_how_wide_a_text_is_on_a_terminal(text: str, width: int) -> None:
    assert thopters.display_width(text) == width


# times and ages


def utc(*parts: int) -> datetime.datetime:
    return datetime.datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T12:00:00Z", NOW),
        ("2026-03-01T14:30:00+02:30", NOW),
        ("2026-03-01T07:00:00-05:00", NOW),
        ("2026-03-01T12:00:00", NOW),
        ("2026-03-01 12:00:00Z", NOW),
        ("2026-03-01T12:00:00.5Z", utc(2026, 3, 1, 12, 0, 0, 500000)),
        ("2026-03-01T12:00:00.123456789Z", utc(2026, 3, 1, 12, 0, 0, 123456)),
        ("0001-01-01T00:00:00Z", utc(1, 1, 1)),
        ("9999-12-31T23:59:59Z", utc(9999, 12, 31, 23, 59, 59)),
        ("2024-02-29T00:00:00Z", utc(2024, 2, 29)),
        ("2026-02-29T00:00:00Z", None),
        ("2016-12-31T23:59:60Z", None),
        ("2026-13-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+01:00", None),
        ("9999-12-31T23:59:59-01:00", None),
        ("yesterday", None),
        ("", None),
        ("\ud800", None),
        (b"2026-03-01T12:00:00Z", None),
        (1772366400, None),
        (True, None),
        (None, None),
        ([], None),
    ],
)
def test_stamps_of_the_api(text: object, moment: datetime.datetime | None) -> None:
    parsed = thopters.parse_time(text)
    assert parsed == moment
    assert parsed is None or parsed.utcoffset() == datetime.timedelta(0)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the system has no tzset")
def test_a_stamp_without_a_zone_is_utc_wherever_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-9")
    time.tzset()
    try:
        assert thopters.parse_time("2026-03-01T12:00:00") == NOW
        assert thopters.parse_http_date("Sun Nov  6 08:49:37 1994") == utc(1994, 11, 6, 8, 49, 37)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("moment", "never", "shown"),
    [
        (utc(1, 1, 1), True, "never"),
        (utc(1, 12, 31, 23, 59, 59), True, "never"),
        (utc(1970, 1, 1), False, "1970-01-01T00:00:00Z"),
        (utc(2026, 3, 1, 12, 0, 9, 999999), False, "2026-03-01T12:00:09Z"),
    ],
)
def test_a_time_as_it_is_shown(moment: datetime.datetime, never: bool, shown: str) -> None:
    assert thopters.is_never(moment) is never
    assert not thopters.is_never(utc(2, 1, 1))
    assert thopters.format_time(moment) == shown


MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "age"),
    [
        (-120.9, "just now"),
        (-1, "just now"),
        (0, "just now"),
        (9.9, "just now"),
        (10, "10 seconds ago"),
        (59.9, "59 seconds ago"),
        (MINUTE, "1 minute ago"),
        (2 * MINUTE - 1, "1 minute ago"),
        (2 * MINUTE, "2 minutes ago"),
        (HOUR - 1, "59 minutes ago"),
        (HOUR, "1 hour ago"),
        (DAY - 1, "23 hours ago"),
        (DAY, "1 day ago"),
        (30 * DAY - 1, "29 days ago"),
        (30 * DAY, "1 month ago"),
        (365 * DAY - 1, "12 months ago"),
        (365 * DAY, "1 year ago"),
        (1000 * DAY, "2 years ago"),
        (-121, "2026-03-01T12:02:01Z"),
        (-400 * DAY, "2027-04-05T12:00:00Z"),
    ],
)
def test_ages(seconds: float, age: str) -> None:
    assert thopters.format_age(NOW - datetime.timedelta(seconds=seconds), NOW) == age


def test_no_time_and_never_have_no_age() -> None:
    assert thopters.format_time(None) == thopters.format_age(None, NOW) == "-"
    assert thopters.format_age(utc(1, 1, 1), NOW) == "never"


@pytest.mark.parametrize(
    ("zone", "seconds", "shown"),
    [
        ("UTC", 7200, "until 02:00 (2h)"),
        ("UTC", 86400, "until 2027-01-16 00:00 (24h)"),
        ("UTC", -90, "until 2027-01-14 23:58 (0s)"),
        ("Asia/Tokyo", 5445.2, "until 10:30 (1h30m45s)"),
        ("Europe/Berlin", 90 * 86400, "until 2027-04-15 02:00 (2160h)"),
        ("UTC", 1e12, "until nobody knows when"),
        ("UTC", float("inf"), "until nobody knows when"),
    ],
)
def test_the_end_of_a_time(
    monkeypatch: pytest.MonkeyPatch, zone: str, seconds: float, shown: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert thopters.format_until(seconds, datetime.datetime(2027, 1, 15, tzinfo=UTC)) == shown
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("stamp", "identity"),
    [
        ("2027-01-15T08:00:00Z", "7.tro8w0"),
        ("2027-01-15T08:00:00.9Z", "7.tro8w0"),
        ("1969-12-31T23:59:59Z", "7.0"),
        ("0001-01-01T00:00:00Z", "7.0"),
        ("soon", "7.0"),
    ],
)
def test_the_lasting_id_of_a_session(stamp: str, identity: str) -> None:
    assert thopters.Session({"id": 7, "created": stamp}).lasting_id == identity


@pytest.mark.parametrize("created", [None, "1", -5, float("nan"), float("inf"), 1e300])
def test_a_time_of_creation_that_is_none_is_not_known(created: object) -> None:
    assert thopters.Identity("7", created).created_at == 0


# names and ids


@pytest.mark.parametrize(
    "name", ["a", "dev", "Dev_1.2", "0", "a" * 128, "x~y", "a@b+c:d=e,f", "...", "a-", "_"]
)
def test_names_that_a_sprite_can_have(name: str) -> None:
    assert thopters.valid_name(name) == name


@pytest.mark.parametrize("name", [*TWISTED, "a" * 129], ids=ascii)
def test_names_that_could_bend_a_path_are_refused(name: str) -> None:
    with pytest.raises(thopters.UsageError):
        thopters.valid_name(name)


@pytest.mark.parametrize("name", ["a", "0", "dev", "a-b", "a--b", "1-2", "ab", "a" * 63])
def test_names_for_a_new_sprite(name: str) -> None:
    assert thopters.valid_new_name(name) == name


@pytest.mark.parametrize(
    "name", [*TWISTED, "a-", "-", "A", "aB", "a_b", "a.b", "a" * 64, "a@b"], ids=ascii
)
def test_what_is_no_dns_label_is_no_name_for_a_new_sprite(name: str) -> None:
    with pytest.raises(thopters.UsageError):
        thopters.valid_new_name(name)


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("3", "v3"),
        ("v3", "v3"),
        ("checkpoints/v3", "v3"),
        ("checkpoints/12", "v12"),
        ("auto-2026.01_02", "auto-2026.01_02"),
        ("3a", "3a"),
        ("V3", "V3"),
        ("a" * 64, "a" * 64),
        ("current", "current"),
    ],
)
def test_a_checkpoints_id_in_its_one_form(text: str, identity: str) -> None:
    assert thopters.valid_checkpoint(text) == identity


@pytest.mark.parametrize(
    "text",
    [
        *TWISTED,
        "_a",
        ".a",
        "a@b",
        "a" * 65,
        "checkpoints/",
        "checkpoints/../v1",
        "checkpoints/checkpoints/v1",
        "v1/restore",
        "Current",
        "active",
        "checkpoints/Current",
        "checkpoints/active",
    ],
    ids=ascii,
)
def test_what_is_no_checkpoint_to_restore(text: str) -> None:
    with pytest.raises(thopters.UsageError):
        thopters.valid_checkpoint(text)
