"""What is said: progress, questions, and secrets, which are struck out of everything."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import itertools
import json
import os
import pickle
import pprint
import random
import re
import shlex
import sys
import traceback
from collections.abc import Callable

import pytest
from support.units import CANARY, Terminal, make_console

import thopters

# what is shown meanwhile


def test_a_line_of_progress_fits_into_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer one would leave a line behind each time that it is drawn."""
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((10, 24)))
    assert thopters.cut_to_window("x" * 30) == "x" * 9
    assert thopters.cut_to_window("x" * 9) == "x" * 9
    assert thopters.cut_to_window("日本" * 9) == "日本日本"
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((0, 0)))
    assert thopters.cut_to_window("x" * 30) == "x" * 30


# secrets


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        format,
        ascii,
        pprint.pformat,
        lambda secret: f"{secret} {secret!r} {secret!s} {secret:>40} {secret:d}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031 (one of the ways)
        lambda secret: "{} {!r} {:<30}".format(secret, secret, secret),  # noqa: UP032 (another)
        lambda secret: str([secret, {"token": secret}]),
        lambda secret: repr(thopters.Credential(secret, "a test")),
        lambda secret: "".join(traceback.format_exception(ValueError(secret))),
    ],
)
def test_a_secret_does_not_show_itself(show: Callable[[thopters.Secret], str]) -> None:
    secret = thopters.Secret(CANARY)
    text = show(secret)
    assert text
    assert CANARY not in text and "c4n" not in text
    assert secret.reveal() == CANARY


def test_a_secret_does_not_show_in_the_locals_of_a_traceback() -> None:
    def fail(secret: thopters.Secret) -> None:
        raise ValueError("no")

    try:
        fail(thopters.Secret(CANARY))
    except ValueError as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
    text = "".join(told.format())
    assert "secret = Secret(****)" in text
    assert "c4n" not in text


@pytest.mark.parametrize(
    "leak",
    [
        *(lambda secret, n=n: pickle.dumps(secret, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)),
        lambda secret: pickle.dumps(thopters.Credential(secret, "a test")),
        copy.copy,
        copy.deepcopy,
        json.dumps,
        vars,
        "".join,
        lambda secret: "" + secret,
        bytes,
        list,
        len,
    ],
)
def test_a_secret_can_not_be_taken_for_its_value(leak: Callable[[thopters.Secret], object]) -> None:
    with pytest.raises(TypeError):
        leak(thopters.Secret(CANARY))


def test_secrets_are_not_compared_by_value() -> None:
    others: list[object] = [CANARY, thopters.Secret(CANARY)]
    assert thopters.Secret(CANARY) not in others


# secrets in what is said


def random_tokens() -> list[str]:
    """Return tokens of every character that one may hold, and the usual kind."""
    rng = random.Random(1)
    every = [chr(code) for code in range(0x21, 0x7F)]
    made = ["".join(rng.choices(every, k=rng.randrange(8, 60))) for _ in range(60)]
    known = [
        "acme/1/tok/0123456789abcdef",
        "".join(every),
        "'\"\\'\"\\'\"\\",
        "two words é+",
        'a"quoted" é',
    ]
    return [CANARY, *known, *made]


def percent(token: str) -> str:
    plain = set(b"-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in token.encode())


ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "url": percent,
    "url, as git has it": lambda token: re.sub("%..", lambda code: code[0].lower(), percent(token)),
    "url of a form": lambda token: percent(token).replace("%20", "+"),
    "json": lambda token: json.dumps(token)[1:-1],
    "json, not in ASCII": lambda token: json.dumps(token, ensure_ascii=False)[1:-1],
    "shell": shlex.quote,
    "shell, ours": lambda token: thopters.quote_argument(token.encode()).decode(),
    "hex": lambda token: token.encode().hex(),
    "HEX": lambda token: token.encode().hex().upper(),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_a_secret_is_struck_out_in_its_usual_encodings(encode: Callable[[str], str]) -> None:
    for token in random_tokens():
        redact = thopters.Redactor()
        redact.add(thopters.Secret(token))
        form = encode(token)
        left = redact(form).replace("'****'", "****")  # a shell's quotes around it may stay
        assert left == "****"
        text = f"é <{form}>\n{form}, and {form}"
        assert redact(text).replace("'****'", "****") == "é <****>\n****, and ****"


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_secret_is_struck_out_of_base64_whatever_surrounds_it(
    encode: Callable[[bytes], bytes],
) -> None:
    rng = random.Random(1)
    for token in random_tokens():
        redact = thopters.Redactor()
        redact.add(thopters.Secret(token))
        for before, after in itertools.product(range(6), range(4)):
            data = rng.randbytes(before) + token.encode() + rng.randbytes(after)
            text = encode(data).decode()
            # the characters all of whose six bits are the token's
            start, end = -(-8 * before // 6), 8 * (before + len(token.encode())) // 6
            assert redact(text) == text[:start] + "****" + text[end:]


def test_every_known_secret_is_struck_out_the_longest_first() -> None:
    redact = thopters.Redactor()
    for token in ("tok-123456", "another-one", "tok-123456-and-more"):
        redact.add(thopters.Secret(token))
        assert redact(token) == "****"
    text = "tok-123456, tok-123456-and-more, another-one, tok-12345"
    assert redact(text) == "****, ****, ****, tok-12345"


@pytest.mark.parametrize("value", ["", "a", ".", "to", " ", "took "])
def test_a_short_secret_does_not_wreck_the_text(value: str) -> None:
    redact = thopters.Redactor()
    redact.add(thopters.Secret(value))
    text = "a tornado took 2 tokens to a 616263 .... YWJj"
    assert redact(text) == text
    redact.add(thopters.Secret("tokens"))  # six characters are few, but enough
    assert redact(text) == text.replace("tokens", "****")


@pytest.mark.parametrize("seed", range(10))
def test_many_secrets_are_struck_out_as_by_one_pattern_of_all_forms(seed: int) -> None:
    rng = random.Random(seed)
    values = ["".join(rng.choices("ab+/=é", k=rng.randrange(6, 40))) for _ in range(20)]
    values += [value[rng.randrange(3) :] + "ab" for value in values]
    redact = thopters.Redactor()
    for value in values:
        redact.add(thopters.Secret(value))
    forms = [form for value in values for form in thopters.secret_forms(value)]
    pattern = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    for _ in range(50):
        text = "".join(rng.choice([*rng.sample(forms, 3), "ab", "é", " "]) for _ in range(8))
        assert redact(text) == re.sub(pattern, "****", text)


def test_a_secret_that_is_added_twice_stays_one() -> None:
    redact = thopters.Redactor()  # as by a configuration that is saved, and read again
    for _ in range(2):
        redact.add(thopters.Secret("tok-123456"))
    assert redact("tok-123456") == "****"


def test_a_secret_that_yields_is_shown_where_a_sprites_name_has_it() -> None:
    redact = thopters.Redactor()
    redact.add(thopters.Secret("tok-dev-1"))
    for value in ("dev-box", "production", "dev-box"):
        redact.add(thopters.Secret(value), yields=True)
    text = "my-dev-box in production: tok-dev-1"
    assert redact(text) == "my-**** in ****: ****"
    for name in ("my-dev-box", "tok-dev-1", "my-dev-box", "the-production"):
        redact.spare(name)
    assert redact(text) == "my-dev-box in production: ****"


def test_a_line_of_a_secret_is_struck_out_from_eight_characters_on() -> None:
    redact = thopters.Redactor()
    redact.add(thopters.Secret("-----BEGIN\nnine-long\neight-ch\nseven-c\n"))
    text = "-----BEGIN nine-long eight-ch seven-c"
    assert redact(text) == "**** **** **** seven-c"


def test_a_secret_is_no_pattern() -> None:
    redact = thopters.Redactor()
    redact.add(thopters.Secret("a.*b|c$^["))
    assert redact("axxb c a.*b|c$^[") == "axxb c ****"


@pytest.mark.parametrize(
    "say",
    [
        lambda console: console.answer(CANARY),
        lambda console: console.answer_json({"a": [CANARY]}),
        lambda console: console.answer_json({"a": json.dumps({"b": CANARY})}),
        lambda console: console.note(CANARY),
        lambda console: console.warn(CANARY),
        lambda console: console.remedy(CANARY),
        lambda console: console.detail(CANARY),
        lambda console: console.trace(CANARY),
        lambda console: console.error(thopters.ThoptersError(CANARY, hint=CANARY)),
        lambda console: console.table(("A", "B"), [(CANARY, "b")]),
    ],
)
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("as_json", [False, True])
def test_whatever_the_program_says_holds_no_secret(
    say: Callable[[thopters.Console], None], stream: type[io.StringIO], as_json: bool
) -> None:
    console = thopters.Console(stream(), stream(), {})
    console.debug, console.json = True, as_json
    console.redact.add(thopters.Secret(CANARY))
    say(console)
    assert isinstance(console.out, io.StringIO) and isinstance(console.err, io.StringIO)
    text = console.out.getvalue() + console.err.getvalue()
    assert "****" in text
    assert "c4n" not in text


# questions


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_hidden_answer_is_refused_where_the_terminal_cuts_it(
    monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    longest = {"linux": 4094, "darwin": 1022}[platform]
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(thopters, "EchoStaysOff", lambda *_: contextlib.nullcontext())
    for size in (longest, longest + 1):
        monkeypatch.setattr("getpass.getpass", lambda *_, size=size, **__: "x" * size)
        if size == longest:
            assert make_console().ask_secretly("key") == "x" * longest
        else:
            with pytest.raises(thopters.UsageError, match="too long for a line"):
                make_console().ask_secretly("key")
