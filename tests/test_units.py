"""The small pure parts of the program, where a child process could try too few cases.

Quoting is judged by real shells, frames by an encoder that shares nothing with the program's.
"""

from __future__ import annotations

import base64
import datetime
import io
import itertools
import json
import pickle
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

import thopters

SHELLS = [shell for shell in ("bash", "dash", "zsh") if shutil.which(shell)]
UTC = datetime.timezone.utc


# quoting


def words(seed: int, count: int) -> list[bytes]:
    """Return arguments of every byte but NUL, and the ones that shells stumble over."""
    generator = random.Random(seed)
    hard = [b"", b"-n", b"~", b"*", b"'", b"''", b"\\", b"\n", b"\n\n", b"$(id)", b"`id`", b"!x"]
    hard += [b"a\\\n", b"\x80\xff", b"=", b"#", b"a=b c", b" ", b"\r", b"\x1b[0m", b"\\'", b"{a,b}"]
    kinds = [bytes(range(1, 256)), b"'\\\"$`!\n ", b"ab' "]
    return hard + [
        bytes(generator.choices(generator.choice(kinds), k=generator.randrange(40)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_quoted_argument_arrives_as_it_was(shell: str) -> None:
    given = [*words(1, 5000), b"x' " * 40_000]
    script = b"".join(b"printf '%s\\0' " + thopters.quote_argument(word) + b"\n" for word in given)
    done = subprocess.run([shell], input=script, capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == given
    assert done.stderr == b""


def test_the_exec_script_hands_on_what_it_was_given(tmp_path: Path) -> None:
    given = words(2, 200)
    odd = b"1\n' 2"
    place = tmp_path / "a folder\n'"
    place.mkdir()
    words_script = thopters.exec_script([b"printf", b"%s\\0", *given])
    place_script = thopters.exec_script(
        [b"sh", b"-c", b'printf "%s|%s|%s" "$A" "$B" "$PWD"'],
        env=[("A", b"first"), ("A", odd), ("B", b"\xff")],
        directory=bytes(place),
    )
    expected_place = b"|".join([odd, b"\xff", bytes(place)])
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for script, expected in (
        (words_script, b"\0".join(given) + b"\0"),
        (place_script, expected_place),
    ):
        done = subprocess.run(["bash", "-c", script], capture_output=True, env=env, check=True)
        first, _, rest = done.stdout.partition(b"\n")
        assert first.startswith(b"thopters-exec ")
        assert rest == expected


# secrets

CANARY = "p@ss/w0rd+'\"\\ %é"


def test_a_secret_does_not_show_itself() -> None:
    secret = thopters.Secret(CANARY)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", "%s" % secret]  # noqa: UP031
    shown += [str([secret]), str({"a": secret}), format(secret, ""), str(vars(type(secret)))]
    assert not [text for text in shown if CANARY in text]
    assert secret.reveal() == CANARY
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)


def forms_of(value: str) -> Iterator[str]:
    data = value.encode()
    yield from (value, quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1])
    yield from (data.hex(), data.hex().upper(), "'" + value.replace("'", "'\"'\"'") + "'")


@pytest.mark.parametrize("value", [CANARY, "sk-ant-0123456789", "ünïcödé-key-日本"])
def test_a_secret_is_redacted_in_each_form(value: str) -> None:
    redact = thopters.Redactor()
    redact.add(thopters.Secret(value))
    redact.add(thopters.Secret("another-secret"))
    for form in forms_of(value):
        assert redact(f"before {form} after").replace("'", "") == "before **** after"
    for before in range(6):
        encoded = base64.b64encode(b"u" * before + value.encode() + b":tail").decode()
        hidden = redact(encoded)
        core = base64.b64encode(value.encode()).decode().rstrip("=")[:-1]
        assert "****" in hidden
        assert core not in hidden
    assert redact("nothing of it") == "nothing of it"


def test_a_short_secret_does_not_wreck_every_text() -> None:
    redact = thopters.Redactor()
    for value in ("", "a", "abcde"):
        redact.add(thopters.Secret(value))
    assert redact("a perfectly good abcde") == "a perfectly good abcde"


# frames


def frame(opcode: int, payload: bytes, *, final: bool = True, bits: int = 0) -> bytes:
    """Encode a server's frame, from RFC 6455's picture alone."""
    first = (0x80 if final else 0) | bits | opcode
    if len(payload) <= 125:
        return struct.pack(">BB", first, len(payload)) + payload
    if len(payload) <= 0xFFFF:
        return struct.pack(">BBH", first, 126, len(payload)) + payload
    return struct.pack(">BBQ", first, 127, len(payload)) + payload


def parse(data: bytes, sizes: Iterator[int], early: int = 0) -> list[tuple[int, bytes]]:
    """Feed the parser with pieces of the given sizes; return the messages."""
    parser = thopters.FrameParser(data[:early])
    stream = io.BytesIO(data[early:])
    found = [(opcode, bytes(payload)) for opcode, payload in parser.messages()]
    while True:
        space = parser.space()
        assert len(space) > 0
        piece = stream.read(min(next(sizes), len(space)))
        if not piece:
            return found
        space[: len(piece)] = piece
        parser.received(len(piece))
        found += [(opcode, bytes(payload)) for opcode, payload in parser.messages()]


def pieces(generator: random.Random, most: int) -> Iterator[int]:
    while True:
        yield generator.randint(1, most)


@pytest.mark.parametrize("seed", range(40))
def test_frames_are_read_whatever_the_pieces(seed: int) -> None:
    generator = random.Random(seed)
    expected: list[tuple[int, bytes]] = []
    data = b""
    for _ in range(30):
        size = generator.choice([0, 1, 2, 125, 126, 127, 300, 65535, 65536, 70000])
        payload, opcode = generator.randbytes(size), generator.choice([1, 2])
        cuts = sorted(generator.randint(0, size) for _ in range(generator.choice([0, 0, 1, 3])))
        edges = [0, *cuts, size]
        for number, (begin, end) in enumerate(itertools.pairwise(edges)):
            last = number == len(cuts)
            data += frame(opcode if number == 0 else 0, payload[begin:end], final=last)
            if not last and generator.random() < 0.5:
                data += frame(9, b"ping")
                expected.append((9, b"ping"))
        expected.append((opcode, payload))
    most = generator.choice([7, 1000, 300_000])
    early = generator.randint(0, 2000)
    assert parse(data, pieces(generator, most), early) == expected


BAD_FRAMES = {
    "masked": b"\x82\x81\0\0\0\0x",
    "reserved bits": frame(2, b"x", bits=0x40),
    "unknown opcode": frame(3, b""),
    "unknown control": frame(11, b""),
    "long control": b"\x89\x7e\0\x7e" + bytes(126),
    "broken control": frame(9, b"x", final=False),
    "continuation of nothing": frame(0, b"x"),
    "message inside a message": frame(2, b"a", final=False) + frame(2, b"b"),
    "huge": b"\x82\x7f\x80\0\0\0\0\0\0\0",
    "over the limit": b"\x82\x7f" + struct.pack(">Q", thopters.MAX_MESSAGE_BYTES + 1),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
@pytest.mark.parametrize("most", [1, 1000])
def test_a_frame_that_breaks_the_protocol_is_refused(name: str, most: int) -> None:
    with pytest.raises(thopters.WebSocketLost):
        parse(BAD_FRAMES[name], pieces(random.Random(0), most))


def test_fragments_that_never_end_are_refused() -> None:
    part = frame(0, bytes(1 << 20), final=False)
    data = frame(2, b"", final=False) + part * (thopters.MAX_MESSAGE_BYTES // (1 << 20) + 1)
    with pytest.raises(thopters.WebSocketLost):
        parse(data, pieces(random.Random(0), 1 << 20))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 65535, 65536, 100_001])
def test_a_clients_frame_is_masked_as_the_standard_says(size: int) -> None:
    payload, key = random.Random(size).randbytes(size), b"\x01\x80\xff\x00"
    encoded = thopters.encode_frame(2, payload, key)
    plain = frame(2, payload)
    head = plain[: len(plain) - size]
    masked = bytes((head[0], head[1] | 0x80)) + head[2:] + key
    masked += bytes(byte ^ key[place % 4] for place, byte in enumerate(payload))
    assert encoded == masked


# retries


def answer(status: int, body: Any = b"", **headers: str) -> thopters.Answer:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return thopters.Answer(status, message, data)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        *((status, "", None) for status in (200, 201, 204, 301, 400, 401, 403, 404, 409, 422, 501)),
        *((status, "", thopters.AMBIGUOUS) for status in (408, 500, 502, 503, 504)),
        (503, "sprite_starting", thopters.STARTING),
        (500, "sprite_starting", thopters.AMBIGUOUS),
        (429, "", thopters.BUSY),
        (429, "sprite_creation_rate_limited", thopters.BUSY),
        (429, "concurrent_sprite_limit_exceeded", None),
    ],
)
def test_the_kind_of_a_failure(status: int, code: str, kind: str | None) -> None:
    assert thopters.failure_kind(answer(status, {"error": code})) == kind


def waits(policy: thopters.RetryPolicy, *args: Any) -> list[float]:
    found: list[float] = []
    while (wait := policy.wait(*args)) is not None:
        found.append(wait)
        assert len(found) < 10_000
    return found


@pytest.mark.parametrize("repeatable", [True, False])
def test_how_often_and_when_a_request_is_sent_again(repeatable: bool) -> None:
    def policy() -> thopters.RetryPolicy:
        return thopters.RetryPolicy(repeatable=repeatable, starting_limit_s=10)

    assert waits(policy(), thopters.NOT_SENT, None, 0.0) == [0.25, 0.5, 1.0]
    assert waits(policy(), thopters.NOT_SENT, None, 1.0) == [0.5, 1.0, 2.0]
    again = waits(policy(), thopters.AMBIGUOUS, None, 1.0)
    assert again == ([0.5, 1.0, 2.0] if repeatable else [])
    assert waits(policy(), thopters.BUSY, 5.0, 0.5) == [5.0] * 3
    assert waits(policy(), thopters.BUSY, None, 0.5) == [60.0] * 3
    assert waits(policy(), thopters.BUSY, 61.0, 0.5) == []
    assert waits(policy(), thopters.STARTING, None, 0.5) == [1.0] * 10
    assert waits(policy(), thopters.STARTING, 4.0, 0.5) == [4.0, 4.0]
    assert len(waits(policy(), thopters.STARTING, 0.0, 0.5)) in (99, 100)  # never without a pause
    mixed = policy()
    kinds = [thopters.NOT_SENT, thopters.AMBIGUOUS] * 2
    given = [mixed.wait(kind, None, 1.0) for kind in kinds]
    assert given == ([0.5, 1.0, 2.0, None] if repeatable else [0.5, None, 1.0, None])


DATE = "Tue, 24 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    ("header", "date", "seconds"),
    [
        ("0", None, 0.0),
        (" 5 ", None, 5.0),
        ("1000000000", None, 1e9),
        ("9" * 400, None, 999999999999.0),
        ("Tue, 24 Nov 2026 10:00:07 GMT", DATE, 7.0),
        ("Tue, 24 Nov 2026 09:00:00 GMT", DATE, 0.0),
        ("Tue, 24 Nov 2026 10:00:07 GMT", None, None),
        *((text, DATE, None) for text in ("", "-1", "1.5", "soon", "٣", "1e3", "0x10")),
        (None, DATE, None),
    ],
)
def test_a_wish_to_wait(header: str | None, date: str | None, seconds: float | None) -> None:
    assert thopters.parse_retry_after(header, date) == seconds


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"retry_after_seconds": 2}, 2.0),
        ({"retry_after_seconds": 0.5}, 0.5),
        ({"retry_after_seconds": -3}, 0.0),
        ({"retry_after_seconds": True}, 9.0),
        ({"retry_after_seconds": "2"}, 9.0),
        ([], 9.0),
        (b"<html>", 9.0),
        (b"[" * 200_000, 9.0),
    ],
)
def test_the_bodys_wish_comes_before_the_headers(body: Any, seconds: float) -> None:
    assert answer(429, body, Retry_After="9").asked_wait() == seconds


# proxies


@pytest.mark.parametrize(
    ("rules", "host", "port", "match"),
    [
        ("", "api.sprites.dev", 443, False),
        ("*", "api.sprites.dev", 443, True),
        ("sprites.dev", "api.sprites.dev", 443, True),
        (".sprites.dev", "api.sprites.dev", 443, True),
        ("*.sprites.dev", "api.sprites.dev", 443, True),
        ("api.sprites.dev", "api.sprites.dev", 443, True),
        ("API.Sprites.DEV", "api.sprites.dev", 443, True),
        ("rites.dev", "api.sprites.dev", 443, False),
        ("sprites.dev.evil", "api.sprites.dev", 443, False),
        ("other, sprites.dev ,x", "api.sprites.dev", 443, True),
        ("api.sprites.dev:443", "api.sprites.dev", 443, True),
        ("api.sprites.dev:444", "api.sprites.dev", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("fd00::/8", "fd12::1", 443, True),
        (",,", "api.sprites.dev", 443, False),
    ],
)
def test_who_needs_no_proxy(rules: str, host: str, port: int, match: bool) -> None:
    assert thopters.no_proxy_matches(host, port, rules) is match


# texts and times


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("naïve 日本", "naïve 日本"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\rb\nc\td", "a\\rb\\nc\\td"),
        ("\x9b31m \x7f \x00", "\\x9b31m \\x7f \\x00"),
        ("\u202eevil", "\\u202eevil"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\u2028\ue000\ufdd0\U000e0001", "\\u2028\\ue000\\ufdd0\\U000e0001"),
        ("\ud800", "\\ud800"),
    ],
)
def test_remote_text_is_made_harmless(text: str, shown: str) -> None:
    assert thopters.clean(text) == shown


NOW = datetime.datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "stamp", "age"),
    [
        ("2026-11-24T11:59:55Z", "2026-11-24T11:59:55Z", "just now"),
        ("2026-11-24T11:59:30Z", "2026-11-24T11:59:30Z", "30 seconds ago"),
        ("2026-11-24T11:58:59Z", "2026-11-24T11:58:59Z", "1 minute ago"),
        ("2026-11-24T09:00:00Z", "2026-11-24T09:00:00Z", "3 hours ago"),
        ("2026-11-24T13:00:00+02:00", "2026-11-24T11:00:00Z", "1 hour ago"),
        ("2026-11-22T12:00:00.123456789Z", "2026-11-22T12:00:00Z", "1 day ago"),
        ("2026-10-01T12:00:00", "2026-10-01T12:00:00Z", "1 month ago"),
        ("2024-11-20T12:00:00Z", "2024-11-20T12:00:00Z", "2 years ago"),
        ("2026-11-24T12:01:30Z", "2026-11-24T12:01:30Z", "just now"),
        ("2026-11-24T12:03:00Z", "2026-11-24T12:03:00Z", "2026-11-24T12:03:00Z"),
        ("0001-01-01T00:00:00Z", "never", "never"),
        ("2026-11-24T12:00:60Z", "-", "-"),
        ("", "-", "-"),
        (None, "-", "-"),
        (1700000000, "-", "-"),
        ("yesterday", "-", "-"),
        ("0001-01-01T00:00:00+14:00", "-", "-"),
    ],
)
def test_times_of_every_kind(text: object, stamp: str, age: str) -> None:
    moment = thopters.parse_time(text)
    assert thopters.format_time(moment) == stamp
    assert thopters.format_age(moment, NOW) == age


# names


@pytest.mark.parametrize("name", ["a", "a1", "1a", "a-b", "a" * 63])
def test_good_new_names(name: str) -> None:
    assert thopters.valid_new_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-",
        "-a",
        "a-",
        "A",
        "a_b",
        "a.b",
        "a/b",
        "../x",
        "a b",
        "a\n",
        "é",
        "a" * 64,
        "a\0",
        "%41",
    ],
)
def test_bad_new_names(name: str) -> None:
    with pytest.raises(thopters.UsageError):
        thopters.valid_new_name(name)


@pytest.mark.parametrize(
    ("text", "identity"),
    [("v3", "v3"), ("3", "v3"), ("checkpoints/v3", "v3"), ("auto-1f", "auto-1f")],
)
def test_a_checkpoints_id(text: str, identity: str) -> None:
    assert thopters.valid_checkpoint(text) == identity


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a/b", "checkpoints/", "Current", "active", "-v", "v 1", "v\n", "é"]
)
def test_no_checkpoints_id(text: str) -> None:
    with pytest.raises(thopters.UsageError):
        thopters.valid_checkpoint(text)
