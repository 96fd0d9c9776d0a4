"""Answers and their failures, how often and when a request is sent again, streams of events."""

from __future__ import annotations

import datetime
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence

import pytest
from emulation.journal import Request
from emulation.wire import Wire
from support.frames import cut
from support.servers import Canned, response
from support.units import UTC, FakeClock, make_answer, make_console, make_transport

import thopters
from thopters import AMBIGUOUS, BUSY, NOT_SENT, STARTING, WAKING, Secret

# answers that are failures


@pytest.mark.parametrize("body", [b'{"errors": [[1]]}', b'{"detail": [1]}', b"[[1]]"])
def test_an_answer_that_is_too_deep_to_be_written_again_is_told(
    monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    """That it can be read and not be written is so at one depth in thousands."""

    def too_deep(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(json, "dumps", too_deep)
    assert make_answer(400, body).reason() == "the answer is nested too deeply"


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (429, "", BUSY),
        (429, "sprite_creation_rate_limited", BUSY),
        (429, "concurrent_sprite_limit_exceeded", None),
        (503, "sprite_starting", STARTING),
        (503, "", AMBIGUOUS),
        (503, "other", AMBIGUOUS),
        (503, "sprite_stopping", AMBIGUOUS),
        *((status, "sprite_starting", AMBIGUOUS) for status in (500, 504)),
        *((status, "", AMBIGUOUS) for status in (520, 524, 530, 599)),
        *((status, "", AMBIGUOUS) for status in (408, 500, 502, 504, 506, 507, 510, 512)),
        *((status, "", None) for status in (200, 201, 204, 301, 302, 307)),
        *((status, "", None) for status in (400, 401, 402, 403, 404, 407, 409, 422, 499)),
        *((status, "", None) for status in (501, 505, 511)),
        (404, "sprite_starting", None),
    ],
)
def test_what_kind_of_failure_an_answer_is(status: int, error: str, kind: str | None) -> None:
    answer = make_answer(status, json.dumps({"error": error}).encode())
    assert thopters.failure_kind(answer) == kind


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": {}}', b'{"error": ["x"]}'])
@pytest.mark.parametrize(("status", "kind"), [(429, BUSY), (503, AMBIGUOUS), (404, None)])
def test_a_failure_with_a_strange_body_goes_by_its_status(
    status: int, kind: str | None, body: bytes
) -> None:
    assert thopters.failure_kind(make_answer(status, body)) == kind


# how long is waited


HTTP_DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
LATER = "Sun, 06 Nov 1994 08:50:07 GMT"


@pytest.mark.parametrize(
    "text",
    [
        HTTP_DATE,
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37 -0000",
        "Sun, 06 Nov 1994 10:49:37 +0200",
    ],
)
def test_a_date_of_http_in_every_form(text: str) -> None:
    moment = thopters.parse_http_date(text)
    assert moment == datetime.datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " ",
        "0",
        "yesterday",
        "1994-11-06T08:49:37Z",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:60 GMT",
        "Sun, 06 Nov 1994 08:49:37 +9999",
        "Sun, 06 Nov 99999 08:49:37 GMT",
    ],
)
def test_what_is_no_date_of_http(text: str | None) -> None:
    assert thopters.parse_http_date(text) is None


@pytest.mark.parametrize(
    ("text", "date", "seconds"),
    [
        ("5", None, 5.0),
        ("0", None, 0.0),
        (" 30 ", None, 30.0),
        ("007", None, 7.0),
        ("9" * 5000, None, 999_999_999_999.0),
        (LATER, HTTP_DATE, 30.0),
        (HTTP_DATE, LATER, 0.0),
        (LATER, None, None),
        (LATER, "soon", None),
        ("soon", HTTP_DATE, None),
        (None, HTTP_DATE, None),
        ("", None, None),
        ("-5", None, 0.0),
        ("--5", None, None),
        ("1.5", None, None),
        ("1e3", None, None),
        ("٣", None, None),
        ("²", None, None),
    ],
)
def test_retry_after(text: str | None, date: str | None, seconds: float | None) -> None:
    assert thopters.parse_retry_after(text, date) == seconds


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (b'{"retry_after_seconds": 3}', 3.0),
        (b'{"retry_after_seconds": 0.5}', 0.5),
        (b'{"retry_after_seconds": 0}', 0.0),
        (b'{"retry_after_seconds": -3}', 0.0),
        (b'{"retry_after_seconds": NaN}', 0.0),
        (b'{"retry_after_seconds": true}', 7.0),
        (b'{"retry_after_seconds": "3"}', 7.0),
        (b'{"retry_after_seconds": null}', 7.0),
        (b"{}", 7.0),
        (b"[3]", 7.0),
        (b"<html>", 7.0),
    ],
)
def test_the_bodys_wish_comes_before_the_headers(body: bytes, seconds: float) -> None:
    assert make_answer(429, body, Retry_After="7").asked_wait() == seconds


def test_a_date_to_wait_for_is_read_beside_the_servers_clock() -> None:
    assert make_answer(429, Retry_After=LATER, Date=HTTP_DATE).asked_wait() == 30.0
    assert make_answer(429, Retry_After=LATER).asked_wait() is None


@pytest.mark.parametrize(
    ("kind", "asked", "jitter", "waits"),
    [
        (NOT_SENT, None, 0.0, [0.25, 0.5, 1.0, None]),
        (AMBIGUOUS, None, 0.5, [0.375, 0.75, 1.5, None]),
        (NOT_SENT, 9.0, 0.0, [0.25, 0.5, 1.0, None]),
        (BUSY, None, 0.0, [60.0, 60.0, 60.0, None]),
        (BUSY, 0.0, 0.9, [0.0, 0.0, 0.0, None]),
        (BUSY, 60.0, 0.0, [60.0, 60.0, 60.0, None]),
        (BUSY, 60.1, 0.0, [None]),
        (STARTING, None, 0.0, [1.0] * 120 + [None]),
        (STARTING, 50.0, 0.0, [50.0, 50.0, None]),
        (STARTING, 1000.0, 0.0, [60.0, 60.0, None]),
        (STARTING, float("inf"), 0.0, [60.0, 60.0, None]),
        (STARTING, 0.0, 0.0, [0.1] * 100),
        (WAKING, None, 1.0, [0.5, 1.0, 2.0, *[4.0] * 6, None]),
        (WAKING, 60.0, 0.0, [0.25, 0.5, 1.0, *[2.0] * 14, None]),
    ],
)
def test_how_long_each_kind_of_failure_waits(
    kind: str, asked: float | None, jitter: float, waits: list[float | None]
) -> None:
    policy = thopters.RetryPolicy(repeatable=True)
    assert [policy.wait(kind, asked, jitter) for _ in waits] == waits


def test_what_may_have_been_done_is_not_repeated_unless_that_is_harmless() -> None:
    policy = thopters.RetryPolicy(repeatable=False)
    assert policy.wait(AMBIGUOUS, None, 0.0) is None
    assert [policy.wait(kind, 2.0, 0.0) for kind in (NOT_SENT, BUSY, STARTING)] == [0.25, 2.0, 2.0]


def test_the_limit_of_starting_is_the_callers_and_counts_every_wait() -> None:
    policy = thopters.RetryPolicy(repeatable=True, starting_limit_s=10.0)
    assert policy.wait(BUSY, 6.0, 0.0) == 6.0
    assert policy.wait(STARTING, 4.0, 0.0) == 4.0
    assert policy.wait(STARTING, None, 0.0) is None


def test_what_was_waited_for_otherwise_is_not_the_waking() -> None:
    policy = thopters.RetryPolicy(repeatable=True, wakes=True)
    assert policy.wait(BUSY, 60.0, 0.0) == policy.wait(STARTING, 60.0, 0.0) == 60.0
    assert [policy.wait(WAKING, None, 1.0) for _ in range(3)] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(("took_s", "limit_s", "tries"), [(60, 120, 4), (5, 120, 5), (0, 3, 4)])
def test_the_time_that_the_tries_take_is_a_part_of_the_waking(
    took_s: float, limit_s: float, tries: int
) -> None:
    policy = thopters.RetryPolicy(repeatable=True, starting_limit_s=limit_s, wakes=True)
    waits = [policy.wait(WAKING, None, 0.0, took_s) for _ in range(tries)]
    assert None not in waits[:-1] and waits[-1] is None


def test_a_gateway_error_is_a_waking_sprite_only_where_the_request_wakes_one() -> None:
    errors = {status: make_answer(status) for status in (500, 502, 503, 504, 520)}
    for wakes, kind in ((True, WAKING), (False, AMBIGUOUS)):
        policy = thopters.RetryPolicy(repeatable=True, wakes=wakes)
        kinds = {status: policy.kind(answer) for status, answer in errors.items()}
        assert kinds == {500: AMBIGUOUS, 520: AMBIGUOUS, 502: kind, 503: kind, 504: kind}
        starting = make_answer(503, b'{"error": "sprite_starting"}')
        assert (policy.kind(starting), policy.kind(make_answer(404))) == (STARTING, None)


@pytest.mark.parametrize("seed", range(20))
def test_no_mixture_of_failures_waits_for_ever(seed: int) -> None:
    rng = random.Random(seed)
    policy = thopters.RetryPolicy(repeatable=rng.random() < 0.8)
    waits: dict[str, list[float]] = {kind: [] for kind in (NOT_SENT, BUSY, STARTING, AMBIGUOUS)}
    for _ in range(1500):
        kind = rng.choice(list(waits))
        asked = rng.choice((None, 0.0, rng.random(), 100 * rng.random(), float("inf")))
        wait = policy.wait(kind, asked, rng.random())
        if wait is not None:
            waits[kind].append(wait)
    quick = waits[NOT_SENT] + waits[AMBIGUOUS]
    assert len(quick) <= 3 and all(0.25 <= wait <= 2.0 for wait in quick)
    assert len(waits[BUSY]) <= 3 and all(0.0 <= wait <= 60.0 for wait in waits[BUSY])
    assert sum(waits[STARTING]) <= 120.0 and all(0.1 <= wait <= 60 for wait in waits[STARTING])
    assert policy.repeatable or not waits[AMBIGUOUS]


# how often a request is sent


not_sent = thopters.NotSentError("no way")
no_answer = thopters.NoAnswerError("broke off")
Outcome = thopters.Answer | thopters.ThoptersError | str


def retry(
    outcomes: Sequence[Outcome], *, repeatable: bool = True, jitter: float = 0.0
) -> tuple[thopters.Answer | thopters.ThoptersError | str, list[float], int]:
    """Return how a request with these outcomes ends, what was slept, and the tries it took."""
    clock, left = FakeClock(jitter), list(outcomes)

    def attempt() -> thopters.Answer | str:
        outcome = left.pop(0)
        if isinstance(outcome, thopters.ThoptersError):
            raise outcome
        return outcome

    policy = thopters.RetryPolicy(repeatable=repeatable)
    end: Outcome
    try:
        end = make_transport(clock).retry(policy, attempt)
    except thopters.ThoptersError as error:
        end = error
    return end, clock.slept, len(outcomes) - len(left)


@pytest.mark.parametrize(
    ("outcomes", "repeatable", "slept"),
    [
        (["open"], False, []),
        ([not_sent, "open"], False, [0.25]),
        ([not_sent, not_sent, not_sent, "open"], False, [0.25, 0.5, 1.0]),
        ([not_sent, no_answer, make_answer(500), "open"], True, [0.25, 0.5, 1.0]),
        ([not_sent] * 4, True, [0.25, 0.5, 1.0]),
        ([thopters.NotSentError("untrusted", final=True)], True, []),
        ([no_answer], False, []),
        ([no_answer] * 4, True, [0.25, 0.5, 1.0]),
        ([make_answer(500)], False, []),
        ([make_answer(429, Retry_After="7"), make_answer(200)], False, [7.0]),
        ([make_answer(429, Retry_After="61")], True, []),
        ([make_answer(429)] * 4, False, [60.0] * 3),
        ([make_answer(429, b'{"error": "concurrent_sprite_limit_exceeded"}')], True, []),
        ([make_answer(503, b'{"error": "sprite_starting"}'), "open"], False, [1.0]),
        ([make_answer(301)], True, []),
    ],
)
def test_a_request_is_sent_again_where_that_is_safe(
    outcomes: list[Outcome], repeatable: bool, slept: list[float]
) -> None:
    assert retry(outcomes, repeatable=repeatable) == (outcomes[-1], slept, len(outcomes))


def test_who_watches_is_told_that_the_api_asks_to_wait_while_it_does() -> None:
    clock = FakeClock()
    transport = make_transport(clock)
    console, told = transport.console, []
    console.activity = console.working("listing sprites")

    def attempt() -> thopters.Answer | str:
        assert console.activity
        told.append(console.activity.text)
        return outcomes.pop(0)

    def sleep(seconds: float) -> None:
        assert console.activity
        told.append(f"{console.activity.text}: {seconds:.1f}")

    clock.sleep = sleep  # type: ignore[method-assign]
    starting = make_answer(503, b'{"error": "sprite_starting"}')
    outcomes: list[thopters.Answer | str] = [starting, make_answer(429, Retry_After="7")]
    outcomes += [make_answer(500), "open"]
    transport.retry(thopters.RetryPolicy(repeatable=True), attempt)
    usual = "listing sprites"
    assert told == [
        *(usual, f"{usual}: 1.0", usual, "the API asks to wait 7 s: 7.0"),
        *(usual, f"{usual}: 0.2", usual),
    ]


def test_chance_only_shortens_a_wait() -> None:
    assert retry([not_sent] * 4, jitter=1.0)[1] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("earlier", "uncertain"),
    [
        ([], False),
        ([not_sent], False),
        ([make_answer(429, Retry_After="1")], False),
        ([make_answer(503, b'{"error": "sprite_starting"}')], False),
        ([make_answer(502)], True),
        ([no_answer], True),
        ([no_answer, not_sent], True),
    ],
)
def test_an_answer_tells_whether_an_earlier_try_may_have_done_it(
    earlier: list[Outcome], uncertain: bool
) -> None:
    end, _, _ = retry([*earlier, make_answer(404)])
    assert isinstance(end, thopters.Answer)
    assert end.uncertain is uncertain


# streams of events


@pytest.mark.parametrize("seed", range(10))
def test_lines_are_the_same_wherever_the_body_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    body = bytes(rng.choices(b"ab\xc3\xa9 {}\r\n\n\n\0\x0b\x85", k=400))
    lines = [line.strip() for line in body.split(b"\n") if line.strip()]
    assert len(lines) > 10
    assert list(thopters.split_lines([body])) == lines
    assert list(thopters.split_lines(cut(body, range(1, len(body))))) == lines
    for count in (1, 2, 10, 100):
        pieces = cut(body, rng.choices(range(len(body) + 1), k=count))
        assert list(thopters.split_lines(pieces)) == lines


def test_a_line_comes_as_soon_as_it_is_whole() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"one\ntw"
        raise AssertionError("more was read than needed")

    assert next(thopters.split_lines(pieces())) == b"one"


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n \n\n", b" "])
def test_blank_lines_are_none(body: bytes) -> None:
    assert list(thopters.split_lines([body])) == []


def test_a_line_without_an_end_is_given_up() -> None:
    pieces = itertools.repeat(b"x" * 65536)
    with pytest.raises(thopters.NoAnswerError, match="longer than 1 MiB"):
        list(thopters.split_lines(pieces))
    longest = b"x" * thopters.MAX_LINE_BYTES
    assert list(thopters.split_lines([longest, b"\n", b"y"])) == [longest, b"y"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b"true",
        b"<html>",
        b"{'a': 1}",
        b'{"a": 1} {"b": 2}',
        b'{"a": "\xff"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda line: repr(line[:20]),
)
def test_a_line_that_is_no_event_is_an_error(line: bytes) -> None:
    with pytest.raises(thopters.NoAnswerError, match="can't be understood"):
        thopters.parse_event(line)


def test_an_event_is_a_json_object() -> None:
    assert thopters.parse_event(b'{"type": "info", "data": "\\u00e9"}') == {
        "type": "info",
        "data": "é",
    }


def test_a_line_of_single_bytes_takes_no_longer_than_it_is() -> None:
    def seconds(count: int) -> float:
        started = time.process_time()
        assert list(thopters.split_lines(itertools.repeat(b"x", count))) == [b"x" * count]
        return time.process_time() - started

    # eight times as many; if each copied the whole line, it would be sixty times as long
    assert min(seconds(400_000) for _ in range(3)) < 24 * min(seconds(50_000) for _ in range(3))


# what strange servers send


@pytest.mark.parametrize("day", ["99999999999999999999", "06"])
def test_a_date_beyond_every_calendar_is_none(day: str) -> None:
    assert thopters.parse_http_date(f"Sun, {day} Nov 99999999999999999999 08:49:37 GMT") is None


def test_a_wish_beyond_every_number_is_only_a_long_one() -> None:
    body = b'{"retry_after_seconds": 1' + b"0" * 400 + b"}"
    assert make_answer(429, body).asked_wait() == 1e12


def test_n10_a_change_that_was_refused_is_sent_whole_with_the_other_token() -> None:
    """A refusal says that nothing was done, so that to send it again does nothing twice."""
    tokens = [Secret("tok-first-0123"), Secret("tok-other-0123")]
    body = json.dumps({"name": "x" * 100_000}).encode()

    def answer(request: Request, wire: Wire) -> None:
        refused = len(server.requests) == 1
        wire.write(response(b"{}", 401 if refused else 201))

    with Canned(answer) as server:
        transport = thopters.Transport(
            server.url,
            thopters.Credential(tokens[0], "a test"),
            console=make_console(),
            clock=thopters.Clock(),
            environ={},
            look_again=lambda: thopters.Credential(tokens[1], "the test again"),
        )
        answered = transport.fetch("POST", "/v1/sprites", document={"name": "x" * 100_000})
    assert answered.status == 201
    assert server.methods() == ["POST", "POST"]
    assert [request.body for request in server.requests] == [body, body]
    bearers = [request.headers["Authorization"] for request in server.requests]
    assert bearers == ["Bearer tok-first-0123", "Bearer tok-other-0123"]
    assert transport.credential.source == "the test again"
