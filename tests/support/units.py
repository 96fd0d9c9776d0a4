"""What a unit is given in place of the real thing: time, chance, a console, answers."""

from __future__ import annotations

import datetime
import io
from email.message import Message

import thopters

UTC = datetime.timezone.utc
NOW = datetime.datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)

# What a token may hold, with a quote, a backslash and a slash for the encodings to change
CANARY = 'acme/1/c4n"ary\\+=$&'


class FakeClock(thopters.Clock):
    """A clock that moves only when somebody sleeps, and a constant for chance."""

    def __init__(self, jitter: float = 0.0) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self._jitter = jitter

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def utc(self) -> datetime.datetime:
        return NOW

    def jitter(self) -> float:
        return self._jitter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_console() -> thopters.Console:
    return thopters.Console(io.StringIO(), io.StringIO(), {})


def make_answer(status: int, body: bytes = b"{}", **headers: str) -> thopters.Answer:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return thopters.Answer(status, message, body)


def make_transport(clock: thopters.Clock, base: str = "https://api.example") -> thopters.Transport:
    credential = thopters.Credential(thopters.Secret(CANARY), "a test")
    return thopters.Transport(base, credential, console=make_console(), clock=clock, environ={})
