#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""thopters: long-lived, pausable development machines on Fly Sprites.

One command for a sprite's whole life: setup, create, list, pause, resume, shell, exec, ssh, proxy,
url, checkpoint, restore, destroy, with the user's keys put safely into each, and many sprites at
once.

Files
  ~/.sprite-thopters/config.json    settings; THOPTERS_CONFIG names another file
  ~/.cache/thopters/                what Tab goes by; can be deleted at any time
  ~/.sprite-thopters/config.json.record    which sprites have which keys, beside that file
  ~/.sprites/                       the `sprite` program's login, only ever read
  .sprite                           its choice of a sprite for a directory, likewise
  ~/.ssh/thopters/                  hosts of ssh, which one line of ~/.ssh/config includes
Environment
  SPRITE_TOKEN, SPRITES_TOKEN       the API token; comes before a stored login
  SPRITES_API_URL                   another API; https, or http on this machine
  SPRITE_ORG                        which stored login to use
  THOPTERS_GITHUB_API               where setup checks GITHUB_PAT, such as GitHub Enterprise
  THOPTERS_NATIVE                   do not use the sprite program for shell and proxy
  HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE, THOPTERS_CA_BUNDLE, NO_COLOR, THOPTERS_DEBUG
Exit status
  0 done, 1 failed, 2 wrong usage or no consent, 3 no such sprite or checkpoint or session,
  4 not authenticated, 5 exists already, 6 limit reached, 7 timed out,
  127 on Windows: shell needs the sprite program;
  129, 130, 131, 141, 143 ended by a signal; `exec` passes on the remote command's own status,
  and is 255 with a message where that status is not known

Start-up matters, for this is typed all day. At the top stand the modules that every run needs
anyway; each other one is imported inside the function that needs it (re alone would make --help a
fifth slower). Importing this module does nothing but define names.

The file is read from top to bottom in rooms, each with a banner (grep -n '^# ---' thopters.py); a
room uses only rooms above it. A call takes one way: command line -> command -> sprite's handle ->
api, or a session in the sprite -> console. Where to find what, and what R01 to R48 in the names of
tests are, says README.md under Contribute.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import sys
import time

if sys.version_info < (3, 11):  # noqa: UP036 (3.9 and 3.10 get this far)
    sys.stderr.write(
        "thopters: error: Python 3.11 or newer is needed; this is Python "
        + sys.version.split()[0]
        + "\nhint: run it with a newer one, such as python3.12 thopters.py\n"
    )
    sys.exit(2)

TYPE_CHECKING = False  # importing typing costs 3 ms; the checkers know this name
if TYPE_CHECKING:
    import argparse
    import datetime
    import http.client
    import socket
    import ssl
    import tarfile
    import threading
    import urllib.parse
    import urllib.request
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from email.message import Message
    from types import FrameType
    from typing import Any, BinaryIO, NoReturn, TextIO, TypeGuard, TypeVar

    T = TypeVar("T")
    N = TypeVar("N", "Target", "Pause")
    Sink = Callable[[bytes | memoryview], None]
    Seen = list[tuple[str, str]]  # names or ids, each with some words about it


__version__ = "0.1.0"
DEFAULT_API_URL = "https://api.sprites.dev"
DEFAULT_GITHUB_API = "https://api.github.com"
INSTALL_PAGE = "https://sprites.dev"
USER_AGENT = "thopters/" + __version__

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_NOT_AUTHENTICATED = 4
EXIT_EXISTS = 5
EXIT_LIMIT = 6
EXIT_TIMED_OUT = 7
EXIT_NO_PROGRAM = 127
EXIT_STATUS_UNKNOWN = 255

MAX_JSON_BYTES = 16 << 20
MAX_ERROR_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 16 << 20


# --- errors -----------------------------------------------------------------------------

# Each kind of error is an exit status and a stable name for --json. An error has one text, and what
# is decided on is its type and its attributes, never the text.


class ThoptersError(Exception):
    """What failed and why, with the next step as `hint`; ends the command with `exit_code`."""

    exit_code = EXIT_FAILED
    code = "failed"  # the stable name in --json
    keeps_status = False  # whether it ends with `exit_code` also where 255 is for failures of ours
    names_sprite = True  # whether the text says which sprite it is about, if it is about one

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.is_refusal = False  # whether the API said no, so that nothing was done
        self.is_early = False  # whether the sprite's own server said that it is not up yet

    @property
    def message(self) -> str:
        """Return the one text that an error has, which is str(error) too."""
        return str(self)

    def put_before(self, words: str) -> None:
        """Begin the text with other words, which name the sprite."""
        self.args = (words + str(self),)
        self.names_sprite = True

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UsageError(ThoptersError):
    exit_code = EXIT_USAGE
    code = "usage"
    keeps_status = True


class DeclinedError(UsageError):
    """The user answered no, which is said without the word error."""


class NoHomeError(UsageError):
    """Nobody knows where the user's home directory is."""


class NotOursError(ThoptersError):
    """A file can't be read by this user, or is another one's and not used."""


class NotFoundError(ThoptersError):
    exit_code = EXIT_NOT_FOUND
    code = "not_found"


class NoWorkError(NotFoundError):
    """No job or session has such an id, or it does not run any more."""

    keeps_status = True


class AuthError(ThoptersError):
    exit_code = EXIT_NOT_AUTHENTICATED
    code = "not_authenticated"


class NoTokenError(AuthError):
    """No place that is looked at holds a token."""


class MalformedTokenError(AuthError):
    """What should be a token can be none, so it was not sent."""


class ExistsError(ThoptersError):
    exit_code = EXIT_EXISTS
    code = "exists"


class LimitError(ThoptersError):
    exit_code = EXIT_LIMIT
    code = "limit"


class TimedOutError(ThoptersError):
    exit_code = EXIT_TIMED_OUT
    code = "timed_out"


class TimeUpError(TimedOutError):
    """The time is up that the user gave for the end of a command."""

    keeps_status = True


class OutputError(ThoptersError):
    """Our own output can't be written; so this is said on stderr, with --json too."""


class InputError(ThoptersError):
    """Our own stdin can't be read."""


class NoMatchError(NotFoundError):
    """No sprite's name matches a pattern."""

    keeps_status = True


class AllAsleepError(LimitError):
    """Every sprite that matches a pattern sleeps, and was left asleep."""

    code = "asleep"
    keeps_status = True


class NotReadyError(TimedOutError):
    """A sprite does not do what is waited for; `answers` tells whether it ran the command."""

    def __init__(self, message: str, *, answers: bool) -> None:
        super().__init__(message)
        self.answers = answers


class NoProgramError(ThoptersError):
    """The `sprite` program is needed and not there."""

    exit_code = EXIT_NO_PROGRAM
    code = "no_program"
    keeps_status = True


class NotSentError(ThoptersError):
    """The request never reached the API; `final` where trying again can't help."""

    code = "unreachable"
    names_sprite = False

    def __init__(self, message: str, *, hint: str | None = None, final: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.final = final


class NoAnswerError(ThoptersError):
    """The request was sent and may have been carried out; no whole answer came back."""

    code = "no_answer"


class BrokenAnswerError(NoAnswerError):
    """The same, as it is seen below the API's endpoints, where nothing is known of sprites."""

    names_sprite = False


class StatusUnknownError(ThoptersError):
    """A remote command's exit status could not be learned."""

    exit_code = EXIT_STATUS_UNKNOWN
    code = "status_unknown"


class After:
    """Says of what fails in it that it came after something which was, or may have been, done.

    The error stays of its kind, but that something was sent. Without words nothing was done.
    """

    def __init__(self, done: str, hint: str | None = None) -> None:
        self.done = done
        self.hint = hint

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self.done or not isinstance(error, ThoptersError):
            return
        error.put_before(f"{self.done}, but ")
        error.hint = self.hint or error.hint
        if isinstance(error, NotSentError):
            raise NoAnswerError(error.message, hint=error.hint) from None


class Interrupted(BaseException):
    """A signal asks us to stop. Not an Exception, so that nothing swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


# --- words ------------------------------------------------------------------------------

# Text in, value out: quoting, cleaning, times, durations, names and ports as the user gives them.
# Nothing here reads a file, asks a clock or prints.


def to_bytes(text: str) -> bytes:
    """Return a text as UTF-8; JSON and the command line can hold what is none."""
    try:
        return text.encode("utf-8", "surrogateescape")  # the command line's bytes
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def from_bytes(data: bytes) -> str:
    """Return bytes that are UTF-8 as a rule as the text that gives them back, in every locale."""
    return data.decode("utf-8", "surrogateescape")


def quote_argument(value: bytes) -> bytes:
    """Quote any bytes but NUL as one word for a POSIX shell.

    Always, unlike shlex.quote: to zsh a bare `=ls` is the path of ls.
    """
    return b"'" + value.replace(b"'", b"'\"'\"'") + b"'"


def clean(text: str) -> str:
    """Make remote text harmless: control, format and private characters become escapes."""
    if text.isascii() and text.isprintable():
        return text
    import unicodedata

    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in hidden else char
        for char in text
    )


def display_width(text: str) -> int:
    if text.isascii():
        return len(text)
    import unicodedata

    marks = {"Mn", "Me"}
    return sum(
        2 if unicodedata.east_asian_width(char) in "WF" else unicodedata.category(char) not in marks
        for char in text
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, in which the cells of a column begin at the same place."""
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell + " " * (width - display_width(cell))
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def folded(text: str, columns: int) -> str:
    """Return a text whose lines fit into so many columns: a line goes on below its last column."""
    import re

    lines = []
    for line in text.splitlines():
        if len(line) > columns:
            import textwrap

            start = re.match(r" *(?:\S+(?: \S+)*  +)?", line)
            indent = min(start.end() if start else 0, columns // 3)
            lines += textwrap.wrap(
                line, columns, subsequent_indent=" " * indent, break_long_words=False,
                break_on_hyphens=False,
            )  # fmt: skip
        else:
            lines.append(line)
    return "\n".join(lines)


def parse_time(text: object) -> datetime.datetime | None:
    """Return an RFC 3339 stamp as UTC; None for what is none (empty, a number, second 60)."""
    import datetime

    try:
        moment = datetime.datetime.fromisoformat(text)  # type: ignore[arg-type]
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.timezone.utc)
        return moment.astimezone(datetime.timezone.utc)
    except (TypeError, ValueError, OverflowError):
        return None


def is_never(moment: datetime.datetime) -> bool:
    return moment.year <= 1  # Go's zero time stands for "never"


def format_time(moment: datetime.datetime | None) -> str:
    """Return ISO-8601 UTC to the second, "never", or "-" where there is no time."""
    if moment is None:
        return "-"
    return "never" if is_never(moment) else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


AGE_UNITS = ((31536000, "year"), (2592000, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


def format_age(moment: datetime.datetime | None, now: datetime.datetime) -> str:
    """Return an age such as "2 minutes ago"; a time well ahead of `now` is shown as it is."""
    if moment is None or is_never(moment):
        return format_time(moment)
    seconds = int((now - moment).total_seconds())
    if seconds < -120:
        return format_time(moment)
    for size, unit in AGE_UNITS:
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now" if seconds < 10 else f"{seconds} seconds ago"


HOLD_LEAST_S = 10  # a shorter one could end before it is seen


def duration(text: str) -> int:
    """Return the seconds of a TIME: 90, 45s, 30m, 2h or 1h30m."""
    import re

    found = re.fullmatch(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s?)?", text)
    if not found or not text:
        raise UsageError(f"{text[:64]!r} is not a time", hint="use 90, 45s, 30m, 2h or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def hold_time(text: str) -> int:
    """Return the seconds of a hold, likewise."""
    seconds = duration(text)
    if seconds < HOLD_LEAST_S:
        raise UsageError(f"a hold can't be shorter than {HOLD_LEAST_S} s")
    return seconds


def format_duration(seconds: float) -> str:
    """Return seconds as a TIME, such as 1h30m."""
    left, parts = max(0, round(seconds)), []
    for size, unit in ((3600, "h"), (60, "m"), (1, "s")):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def format_until(seconds: float, now: datetime.datetime) -> str:
    """Return when a time from now on ends, by the local clock: "until 18:42 (2h)".

    Of one that no calendar holds nobody knows the end.
    """
    import datetime

    try:
        end = (now + datetime.timedelta(seconds=seconds)).astimezone()
    except OverflowError:
        return "until nobody knows when"
    day = "" if end.date() == now.astimezone().date() else f"{end:%Y-%m-%d} "
    return f"until {day}{end:%H:%M} ({format_duration(seconds)})"


def shell_syntax(value: str, *, strictly: bool = True) -> str:
    """Return what a shell would have replaced in a value that has come without one, "" for nothing.

    So it is where an env file is read word for word, as docker does. Not `strictly`, only what
    surrounds all of it counts: in a value of any kind the rest may be meant.
    """
    import re

    if re.fullmatch(r"""(?s)(["']).*\1""", value):
        return "has quotes around it"
    reference = r"\$\{[^{}]*\}|\$\([^()]*\)"
    if re.fullmatch(reference, value) or (strictly and re.search(r"\$[{(]|\A\$\w+\Z", value)):
        return "holds a reference to a variable or command that nothing has replaced"
    return ""


def is_variable(name: str) -> bool:
    import re

    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name))


def is_host(host: str) -> bool:
    """Return whether a host's name can be asked for: printable ASCII, as IDNA wants its labels."""
    labels = host.removesuffix(".").split(".")
    printable = all("!" <= char <= "~" for char in host)
    return printable and all(0 < len(label) < 64 for label in labels)


def is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


HERE = "."  # in the place of a name: the sprite of this directory
NAME_LENGTH = 63
URL_NAME_LENGTH = 48  # a longer name and its suffix no longer fit into a DNS label


def valid_name(text: str) -> str:
    """Check the name of a sprite that should exist; anything a URL path could twist is refused."""
    import re

    bad = text in (".", "..") or len(text) > 128 or not re.fullmatch(r"[A-Za-z0-9._~@+:=,-]+", text)
    if bad or text.startswith("-"):
        raise UsageError(f"{text[:64]!r} is not a sprite's name", hint="see: thopters list")
    return text


def valid_new_name(text: str) -> str:
    """Check the name of a sprite to be made: a DNS label, as the platform wants it."""
    import re

    if not re.fullmatch(rf"[a-z0-9]([a-z0-9-]{{0,{NAME_LENGTH - 2}}}[a-z0-9])?", text):
        raise UsageError(
            f"{text[:64]!r} can't be a sprite's name",
            hint=f"use 1 to {NAME_LENGTH} of a-z, 0-9 and -, with a letter or digit at both ends",
        )
    return text


def is_pattern(text: str) -> bool:
    """Return whether a text stands for all sprites' names that match it: one with `*` or `?`."""
    return "*" in text or "?" in text


def valid_pattern(text: str) -> str:
    """Check what stands for sprites' names: a name, or a pattern with `*` and `?` in it."""
    import re

    if len(text) > 128 or not re.fullmatch(r"[A-Za-z0-9._~@+:=,*?-]+", text):
        raise UsageError(
            f"{text[:64]!r} is not a pattern of sprites' names",
            hint="use a name in which * stands for any text and ? for one character",
        )
    return text


def matches(name: str, pattern: str) -> bool:
    """Return whether a name fits a pattern: `*` is any text, `?` one character."""
    import fnmatch

    return pattern == "*" or fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def valid_checkpoint(text: str) -> str:
    """Return a checkpoint's id in the platform's form: 3, v3 and checkpoints/v3 are the same."""
    import re

    text = text.removeprefix("checkpoints/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise UsageError(
            f"{text[:64]!r} is not a checkpoint's id", hint="see: thopters checkpoints NAME"
        )
    if text in ("Current", "active"):
        raise UsageError(f"{text} stands for the present state, there is nothing to restore")
    return "v" + text if text.isdigit() else text


JOB_ID = r"[0-9a-f]{10}"


def valid_work(text: str) -> str:
    """Check what stands for a job or a session: an id, or a label.

    A bare number is refused. It is the platform's own, which may mean another session by now.
    """
    import re

    hint = "see: thopters sessions NAME"
    if text.isdigit() and not re.fullmatch(JOB_ID, text):
        raise UsageError(f"{text[:64]} is a number that the platform uses again", hint=hint)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text):
        raise UsageError(f"{text[:64]!r} is not an id or a label", hint=hint)
    return text


def line_count(text: str) -> int:
    """Return how many lines are meant, such as 20."""
    if not text.isdigit() or len(text) > 9:
        raise UsageError(f"{text[:64]!r} is not a number of lines")
    return int(text)


def is_label(text: str) -> bool:
    """Return whether a text can be a label: short, and neither a number nor a job's id."""
    import re

    form = re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text)
    return bool(form) and not text.isdigit() and not re.fullmatch(JOB_ID, text)


def valid_label(text: str) -> str:
    if not is_label(text):
        raise UsageError(
            f"{text[:64]!r} can't be a label",
            hint="use a-z, 0-9 and -, not a number and not 10 hexadecimal digits, as ids are",
        )
    return text


def valid_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, [HOST]:PORT or :PORT."""
    import re

    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):([0-9]{1,5})", text)
    if not found or not 1 <= int(found[2]) <= 65535:
        raise UsageError(f"{text[:64]!r} is not HOST:PORT")
    return found[1].strip("[]") or "localhost", int(found[2])


def valid_ports(text: str) -> tuple[int, int]:
    """Return the local and the remote port of 8080 or 3001:3000."""
    import re

    if re.fullmatch(r"[0-9]{1,5}(:[0-9]{1,5})?", text):
        local, _, remote = text.partition(":")
        ports = int(local), int(remote or local)
        if all(1 <= port <= 65535 for port in ports):
            return ports
    raise UsageError(
        f"{text[:64]!r} is no port", hint="use PORT or LOCAL:REMOTE, each from 1 to 65535"
    )


SIGNALS = ("TERM", "INT", "HUP", "KILL", "QUIT", "USR1", "USR2")  # that kill can send


def valid_signal(text: str) -> str:
    name = text.upper().removeprefix("SIG")
    if name not in SIGNALS:
        raise UsageError(f"{text[:64]!r} is no signal", hint=f"use one of {', '.join(SIGNALS)}")
    return name


# --- system -----------------------------------------------------------------------------

# What the operating system gives: the clock and polling by it, threads, waiting for descriptors,
# private files, local programs, the standard streams. On Windows some of it is not there.


class Clock:
    """Time and chance, in one place, so that tests can bring their own."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def polling(
        self, limit_s: float | None, every_s: float = 0.0, *, longest_s: float | None = None
    ) -> Iterator[float]:
        """Yield the seconds that are left, for a look at each; after the limit once more, with 0.

        Between two looks `every_s` seconds pass, twice as many each time up to `longest_s` if that
        is given; with 0 the one who looks does the waiting. None means without a limit.
        """
        end = float("inf") if limit_s is None else self.monotonic() + limit_s
        while True:
            left_s = max(0.0, end - self.monotonic())
            yield left_s
            if not left_s:
                return
            if every_s:
                left_s = end - self.monotonic()
                if left_s <= 0:  # the look itself took that long
                    return
                self.sleep(min(every_s, left_s))
            every_s = min(2 * every_s, longest_s) if longest_s else every_s

    def utc(self) -> datetime.datetime:
        import datetime

        return datetime.datetime.now(datetime.timezone.utc)

    def jitter(self) -> float:
        import random

        return random.random()  # noqa: S311 (spreads retries, guards nothing)


def in_background(work: Callable[..., object], *arguments: object) -> threading.Thread:
    """Run something in a thread that keeps nothing from ending; ThoptersError if there is none."""
    import threading

    thread = threading.Thread(target=work, args=arguments, daemon=True)
    start_thread(thread)
    return thread


def start_thread(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError:
        error = ThoptersError(
            "no thread can be started: the system allows no more of them",
            hint="see its limits: ulimit -a",
        )
        error.names_sprite = False
        raise error from None


def wait_for(
    readers: Sequence[Any], writers: Sequence[Any], timeout_s: float | None
) -> tuple[list[Any], list[Any]]:
    """Return which can be read and which written, at most after a time; ValueError if closed."""
    import select

    try:
        readable, writable, failed = select.select(readers, writers, writers, timeout_s)
        # Windows tells a connection that could not be made there alone
        return readable, [*writable, *(each for each in failed if each not in writable)]
    except ValueError:  # a descriptor above 1023, or a closed one
        if not hasattr(select, "poll"):
            raise
    poll = select.poll()
    wanted = {reader.fileno(): select.POLLIN for reader in readers}
    for writer in writers:
        wanted[writer.fileno()] = wanted.get(writer.fileno(), 0) | select.POLLOUT
    for fd, events in wanted.items():
        poll.register(fd, events)
    found = dict(poll.poll(None if timeout_s is None else timeout_s * 1000))
    # an error or a hang-up is for both to find out
    return (
        [reader for reader in readers if found.get(reader.fileno(), 0) & ~select.POLLOUT],
        [writer for writer in writers if found.get(writer.fileno(), 0) & ~select.POLLIN],
    )


def is_in_background() -> bool:
    """Return whether our terminal, if stdin is that, is somebody else's at the moment."""
    try:
        return os.tcgetpgrp(0) != os.getpgrp()
    except OSError:
        return False


def home_directory(environ: Mapping[str, str]) -> str:
    """Return the user's home; NoHomeError where HOME is not an absolute path."""
    home = environ.get("USERPROFILE" if os.name == "nt" else "HOME", "")
    if not os.path.isabs(home):
        raise NoHomeError(
            "cannot tell where your home directory is: HOME is "
            + ("not an absolute path" if home else "not set"),
            hint="set HOME, or name the files with THOPTERS_CONFIG and the token with SPRITE_TOKEN",
        )
    return home


def user_name(uid: int) -> str:
    """Return the name of a user, or the number where it has none; POSIX alone."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def account_home() -> str:
    """Return the home of our account, whatever HOME says, "/" where there is none; POSIX alone."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/"


def nearest_there(path: str) -> str:
    """Return a path, or the nearest folder above it that is there and can be looked at."""
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def is_placeless(path: str) -> bool:
    """Return whether a path leads to what can't be replaced: a pipe, a device, a deleted file.

    The shell gives /dev/fd/63 for such, which is a link to no path.
    """
    try:
        status = os.stat(path)
    except OSError:
        return False
    return not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)) or not status.st_nlink


def sync_folder(folder: str) -> None:
    """Force what a folder lists to the disk, where the folder and its file system allow that."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        sync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def sync(fd: int) -> None:
    """Force a file to the disk; on macOS fsync alone leaves it in the disk's own memory."""
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # a file system that does not know it
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


# What a file system says that has no modes, or no locks
NOT_HERE = (errno.EPERM, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def open_private(path: str, flags: int) -> int:
    """Open a file that its owner alone can use; OSError where a link stands in its place.

    Where the file system keeps no modes, it has those of the file system.
    """
    fd = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(fd, 0o600)  # a umask may have taken even that
    except OSError as error:
        if error.errno not in NOT_HERE:
            os.close(fd)
            raise
    return fd


def open_unfollowed(path: str, flags: int) -> int:
    """Open what may be anything: OSError where a link stands, and no pipe is waited for."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def others_can_write(status: os.stat_result) -> bool:
    """Return whether somebody but us and root can write something, by its mode and owner."""
    if os.name != "posix":
        return False
    return status.st_uid not in (os.geteuid(), 0) or bool(status.st_mode & 0o022)


def cache_folder(environ: Mapping[str, str]) -> str | None:
    """Return where things may be kept that can be lost; None without a home of the user's own.

    The archive keeps its compiled code there, too.
    """
    base = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME", ""), ".cache")
    try:
        is_ours = os.name == "posix" and os.stat(os.path.dirname(base)).st_uid == os.geteuid()
    except OSError:
        return None
    return os.path.join(base, "thopters") if is_ours and os.path.isabs(base) else None


def replace_file(path: str, data: bytes, *, mode: int = 0o600, suffix: str = ".new") -> None:
    """Write a file beside its place, force it to the disk, and put it there whole; OSError."""
    temporary = path + suffix  # one name, so that a kill leaves one file at most
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        with open(temporary, "xb", opener=open_private) as file:
            file.write(data)
            file.flush()
            if mode != 0o600:
                os.chmod(temporary, mode)
            sync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":
        sync_folder(os.path.dirname(path))


def try_lock(fd: int) -> bool:
    """Take an open file's lock unless somebody else has it; OSError where there are no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def find_program(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the absolute path of a program; relative entries of PATH are not searched."""
    folders = environ.get("PATH", "").split(os.pathsep)
    for folder in [""] if os.path.isabs(name) else filter(os.path.isabs, folders):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


LOCAL_PROGRAM_LIMIT_S = 5.0


def run_for_output(argv: list[str], limit_s: float) -> str | None:
    """Run a local program and return its stdout, "" if it failed, None if it took too long."""
    status, out, _ = run_program(argv, limit_s)
    return None if status is None else "" if status else out


def run_program(
    argv: list[str], limit_s: float, environ: Mapping[str, str] | None = None
) -> tuple[int | None, str, str]:
    """Run a local program without input; return its status, stdout and stderr.

    The status is None if it took too long, and 127 if it can't be run.
    """
    import subprocess

    try:
        done = subprocess.run(  # noqa: S603 (the one place that starts a program)
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=max(limit_s, 0.01),
            env=environ,
        )
    except subprocess.TimeoutExpired:
        return None, "", ""
    except OSError as error:
        return 127, "", error.strerror or ""
    return (
        done.returncode,
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
    )


class WritingOutput:
    """Makes a failure to write our output an OutputError; a closed pipe stays one."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left would only fail again
            raise OutputError(f"cannot write the output: {error.strerror}") from None


def widen_pipe(fd: int) -> None:
    """Let more wait in a pipe than 64 KiB, where the system can: a fast stream waits less often."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # it is none, or the user's pipes are too many
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)


def write_all(fd: int, data: bytes | memoryview) -> None:
    import select

    view = memoryview(data)
    with WritingOutput():
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:  # whoever shares it with us wants it so
                select.select([], [fd], [])


def write_stdout(data: bytes | memoryview) -> None:
    write_all(1, data)


def write_stderr(data: bytes | memoryview) -> None:
    write_all(2, data)


def read_stdin(most: int) -> bytes:
    """Return what comes on stdin up to its end, or the first `most` bytes; InputError."""
    data, stdin = bytearray(), LocalInput()
    while len(data) < most and (part := stdin.read()):
        data += part
    return bytes(data[:most])


class SocketInput:
    """Input that comes over a local socket, as something that select can wait for.

    `is_always_read` if it is for a program of ours, which never leaves it unread for long.
    """

    is_always_read = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> bytes:
        """Return what there is, b"" at the end; OSError if the other side is gone."""
        return self._sock.recv(1 << 16)

    def stop(self) -> None:
        """End a read that waits in another thread: to close the socket would not."""
        import socket

        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)


class LocalInput(SocketInput):
    """Our own stdin, likewise."""

    def __init__(self) -> None:
        if os.name == "nt":  # select takes only sockets there, so a thread feeds one
            import socket

            ours, feed = socket.socketpair()
            super().__init__(ours)
            in_background(self._pump, feed)

    def _pump(self, feed: socket.socket) -> None:
        with feed:
            while data := os.read(0, 1 << 16):
                feed.sendall(data)

    def fileno(self) -> int:
        return super().fileno() if os.name == "nt" else 0

    def read(self) -> bytes:
        try:
            return super().read() if os.name == "nt" else os.read(0, 1 << 16)
        except BlockingIOError:  # whoever shares it with us wants it so
            wait_for([self], [], None)
            return self.read()
        except OSError as error:
            raise InputError(f"cannot read stdin: {error.strerror}") from None

    def stop(self) -> None:
        """Leave it to the end of the program."""


def binary_streams() -> None:
    """Keep Windows from translating line ends."""
    if os.name == "nt":
        import msvcrt

        for fd in (0, 1, 2):
            msvcrt.setmode(fd, os.O_BINARY)  # type: ignore[attr-defined]


def leave_no_core() -> None:
    """Keep the system from writing our memory into a file, secrets and all, as QUIT has it do."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def replace_closed_streams() -> None:
    """Have three standard streams, though whoever started us has closed one.

    What is opened next would take its place, and be read and written as if it were the user's.
    So stdin cannot be read, stdout cannot be written, and nobody sees what goes to stderr.
    """
    modes = {"stdin": os.O_WRONLY, "stdout": os.O_RDONLY, "stderr": os.O_WRONLY}
    for fd, (name, flags) in enumerate(modes.items()):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest number that is free
        if getattr(sys, name) is None:
            stream = open(fd, "r" if fd == 0 else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def waiting_stream(stream: TextIO) -> TextIO:
    """Return a stream to the same place that waits where it would block.

    Whoever shares the place with us may want it so, as Node does. It is not for every stream: in
    code that is not C, a signal can come between writing something and knowing that it is written.
    """
    import io

    class Buffer(io.BufferedIOBase):
        fileno, isatty = stream.fileno, stream.isatty

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            rest = memoryview(data)
            while rest:
                try:
                    count = stream.buffer.write(rest) or 0  # None if there is no room at all
                except BlockingIOError as full:
                    count = full.characters_written
                rest = rest[count:]
                if rest:
                    wait_for([], [self], None)
            return len(data)

        def flush(self) -> None:
            while True:
                try:
                    return stream.buffer.flush()
                except BlockingIOError:
                    wait_for([], [self], None)

    if os.name != "posix" or os.get_blocking(stream.fileno()):
        return stream
    by_line = bool(stream.line_buffering)
    return io.TextIOWrapper(
        Buffer(),
        stream.encoding,
        line_buffering=by_line,  # type: ignore[type-var]
    )


# --- signals ----------------------------------------------------------------------------

# All that handles signals, side by side: the tick that interrupts waits, handlers for a time, the
# relay to a remote command, what may not be interrupted, and how the program itself is ended.


def interrupt_waits(every_s: float) -> None:
    """Interrupt what waits every so many seconds, 0 for no more."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda signum, frame: None)
        signal.setitimer(signal.ITIMER_REAL, every_s, every_s)


def stop_signals() -> list[int]:
    """Return the signals that ask a program to stop, where the system has them."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def heeded_stop_signals() -> list[int]:
    """Return those that are not ignored: under nohup, say, one is, and stays so."""
    return [number for number in stop_signals() if signal.getsignal(number) != signal.SIG_IGN]


class BlockedSignals:
    """While it is entered, what asks us to stop waits in the system."""

    def __enter__(self) -> None:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals())
        except BaseException:  # one that came just before
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())


class Handlers:
    """While it is entered, signals have other handlers; those of before come back behind it."""

    def __init__(self, handlers: Mapping[int, Callable[[int, FrameType | None], object]]) -> None:
        self._handlers = handlers
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number, handler in self._handlers.items():
            self._before[number] = signal.signal(number, handler)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


SAME_SIGNAL_S = 0.02  # nobody presses ^C as fast


class SignalRelay:
    """While a command runs, passes our first signal to stop on to it; a later one ends us.

    `target` returns the remote process group, None as long as there is nothing to signal.
    """

    def __init__(self, target: Callable[[], int | None], send: Callable[[int, int], None]) -> None:
        self.target = target
        self.send = send
        self.received: int | None = None
        self._came_at = 0.0  # in seconds of the monotonic clock
        self._raised: Interrupted | None = None
        self._handlers = Handlers(dict.fromkeys(heeded_stop_signals(), self._receive))

    def __enter__(self) -> SignalRelay:
        self._handlers.__enter__()
        return self

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        is_soon = time.monotonic() - self._came_at < SAME_SIGNAL_S
        if signum == self.received and (is_soon or signum == getattr(signal, "SIGHUP", 0)):
            return  # a window that closes sends two, and so does `timeout`
        group = self.target()
        if self.received is not None or group is None:
            self._interrupt(signum)
        else:
            self.received, self._came_at = signum, time.monotonic()
            try:
                in_background(self.send, group, signum)
            except ThoptersError:
                self._interrupt(signum)

    def _interrupt(self, signum: int) -> NoReturn:
        self._raised = Interrupted(signum)
        raise self._raised from None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._handlers.__exit__()
        raise_hidden(self._raised, error)


def raise_hidden(raised: Interrupted | None, error: BaseException | None) -> None:
    """Raise the Interrupted that an error hides: one in the release of a lock is a RuntimeError."""
    if raised and isinstance(error, Exception) and not isinstance(error, ThoptersError):
        raise raised from None


class SignalsWait:
    """Has a signal that asks us to stop wait until what is done here is done whole."""

    def __init__(self) -> None:
        self._came: list[int] = []
        handlers = dict.fromkeys(heeded_stop_signals(), lambda n, _: self._came.append(n))
        self._handlers = Handlers(handlers)

    def __enter__(self) -> None:
        self._handlers.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._handlers.__exit__()
        for number in self._came[:1]:
            signal.raise_signal(number)


class StopSignals:
    """Turns what asks us to stop into Interrupted; a signal that is ignored (nohup) stays so.

    What comes within a second of the first is taken for the same wish, so that what has to be
    cleaned up and said gets its time. Python drops an exception where it has nowhere to go, as in
    a finaliser; then the signal is sent once more, and what ends before it came ends as by it.
    One that comes just before a call that waits is noticed when that is interrupted, by a tick.
    """

    TICK_S = 1.0

    def __init__(self) -> None:
        self.dropped: int | None = None
        self.raised: Interrupted | None = None  # the newest
        self._came_at: float | None = None  # in seconds of the monotonic clock

    def catch(self) -> None:
        sys.unraisablehook = self._send_again
        for number in heeded_stop_signals():
            signal.signal(number, self._interrupt)
        interrupt_waits(self.TICK_S)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._came_at is None or time.monotonic() - self._came_at >= 1.0:
            self._came_at, self.dropped = time.monotonic(), None
            self.raised = Interrupted(signum)
            raise self.raised

    def _send_again(self, dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, Interrupted):
            sys.__unraisablehook__(dropped)
            return
        import threading

        self.dropped = dropped.exc_value.signum
        threading.Timer(0.05, os.kill, (os.getpid(), self.dropped)).start()
        self._came_at = None

    def let_go(self) -> None:
        """Let them end us again: all is done, and nothing is left to be said."""
        interrupt_waits(0)
        for number in heeded_stop_signals():
            signal.signal(number, signal.SIG_DFL)


def die_of(signum: int) -> int:
    """End as the signal ends a program, so that shells and loops see it and stop."""
    if os.name == "posix":
        signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signum])
        os.kill(os.getpid(), signum)
    return 128 + signum


# --- console ----------------------------------------------------------------------------

# The one way to the user: answers on stdout, everything else on stderr, questions. Here secrets are
# struck out, and remote text is made harmless.


YES = ("y", "yes")
SCHEMA_VERSION = 1  # of all documents that --json prints


class Secret:
    """A value that can't be printed, formatted, compared or pickled by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself; a test counts the places that ask for it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(****)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "****"

    @property
    def length(self) -> int:
        return len(self._value)

    def digest(self, *context: str) -> str:
        """Return what tells this value, in a context, from others, and tells nothing else of it."""
        import hashlib

        text = "\0".join((*context, self._value))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def is_same_as(self, other: Secret) -> bool:
        return self._value == other._value

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")


def secret_forms(value: str) -> set[str]:
    """Return the ways in which a text can hold `value`: as it is and encoded."""
    import base64
    import json
    import re
    import urllib.parse

    data = value.encode("utf-8", "surrogateescape")
    urls = [urllib.parse.quote(data, safe=""), urllib.parse.quote_plus(data)]
    urls += [re.sub("%..", lambda code: code[0].lower(), url) for url in urls]  # as git has it
    jsons = [json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)]
    in_quotes = quote_argument(data)[1:-1].decode("utf-8", "surrogateescape")
    forms = {value, *urls, *jsons, in_quotes, data.hex(), data.hex().upper()}
    for offset in range(3):  # base64 of a text that holds it, whatever comes before and after
        encoded = base64.b64encode(bytes(offset) + data).decode()
        inner = encoded[(0, 2, 3)[offset] : 8 * (offset + len(data)) // 6]
        forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    lines = [line for line in value.splitlines() if 8 <= len(line) < len(value)]  # shown apart
    return {form for form in forms if len(form) >= 6}.union(*map(secret_forms, lines))


class Redactor:
    """Replaces every known secret, in every form that we know of, by ****."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._yielding: set[str] = set()
        self._names: set[str] = set()

    def add(self, secret: Secret, *, yields: bool = False) -> None:
        """Strike a secret out from now on; one that `yields` not where it is in a sprite's name."""
        forms = secret_forms(secret.reveal())
        if yields:
            self._yielding = self._yielding | forms  # a thread may be reading the old
        else:
            self._forms = self._forms | forms

    def spare(self, name: str) -> None:
        """Take note of a sprite's name, once the API has shown that it is one."""
        self._names = self._names | {name}

    def __call__(self, text: str) -> str:
        # a pattern of all forms of many long secrets would take a second to compile
        found = [form for form in self._forms if form in text]
        for form in self._yielding:
            if form in text and not any(form in name for name in self._names):
                found.append(form)
        if not found:
            return text
        import re

        found.sort(key=len, reverse=True)
        return re.sub("|".join(map(re.escape, found)), "****", text)

    def without_cut(self, text: str) -> str:
        """Return a text that was cut at its end without a secret that the cut is in."""
        shown = len(text)
        for form in self._forms | self._yielding:
            sizes = range(min(len(form) - 1, len(text)), 0, -1)
            begun = next((size for size in sizes if text.endswith(form[:size])), 0)
            shown = min(shown, len(text) - begun)
        return text[:shown]


class EchoStaysOff:
    """While a secret is typed: after a stop (Ctrl-Z) the shell has made the terminal show keys."""

    def __init__(self, console: Console, question: str) -> None:
        self._console = console
        self._question = question

        continued = getattr(signal, "SIGCONT", None)
        self._handlers = Handlers({continued: self._hide} if continued else {})

    def __enter__(self) -> None:
        self._handlers.__enter__()

    def _hide(self, signum: int, frame: FrameType | None) -> None:
        import termios

        with contextlib.suppress(OSError, termios.error), open("/dev/tty", "rb", 0) as terminal:
            mode = termios.tcgetattr(terminal)
            mode[3] &= ~termios.ECHO
            termios.tcsetattr(terminal, termios.TCSANOW, mode)
            # not by the stream, in whose own write this may have come
            os.write(2, to_bytes(self._console.safe(self._question) + " "))

    def __exit__(self, *exc: object) -> None:
        self._handlers.__exit__()


class Console:
    """What the program says: the answer on stdout, everything else on stderr."""

    def __init__(self, out: TextIO, err: TextIO, environ: Mapping[str, str]) -> None:
        self.out = out
        self.err = err
        self.redact = Redactor()
        self.verbose = False
        self.debug = False
        self.json = False
        self.activity: Activity | None = None
        self.out_is_terminal = out.isatty()
        self.err_is_terminal = err.isatty()
        self.is_dumb = environ.get("TERM") == "dumb"  # a terminal that shows escapes as text
        self._plain = bool(environ.get("NO_COLOR")) or self.is_dumb
        self._warned: set[str] = set()

    def paint(self, text: str, code: str, *, on_terminal: bool) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if on_terminal and not self._plain else text

    def answer(self, line: str) -> None:
        with WritingOutput():
            self.out.write(self.redact(line) + "\n")

    def answer_json(self, data: dict[str, Any]) -> None:
        """Answer with a document; its `schema_version` grows if a key changes its meaning."""
        import json

        document = {"schema_version": SCHEMA_VERSION, **data}
        self.answer(json.dumps(self._redact_all(document), indent=2))

    def result(self, data: dict[str, Any], text: str = "", *, hint: str = "") -> None:
        """Answer with the data of a result if --json wants that, else with its text and a hint."""
        if self.json:
            self.answer_json(data)
            return
        if text:
            self.answer(text)
        if hint:
            self.hint(hint)

    def say_done(self, line: str) -> None:
        """Answer with one of several results as it comes; with --json they come in the end."""
        if not self.json:
            self.answer(line)

    def _redact_all(self, data: object) -> object:
        """Redact each text of a document: one that is JSON itself is escaped twice in the whole."""
        if isinstance(data, dict):
            return {key: self._redact_all(value) for key, value in data.items()}
        if isinstance(data, (list, tuple)):
            return [self._redact_all(value) for value in data]
        return self.redact(data) if isinstance(data, str) else data

    def flush(self) -> None:
        """Write what is left of the answers: one that nobody got is none."""
        with WritingOutput():
            self.out.flush()

    def safe(self, text: str) -> str:
        """Make a text fit for people: no secret in it, and then nothing that a terminal obeys."""
        return clean(self.redact(text))

    def note(self, line: str) -> None:
        """Say something on stderr; `line` is made safe here, for much of it is remote text."""
        self._say(self.safe(line))

    def _say(self, line: str) -> None:
        if self.activity:
            self.activity.hide()
        self.tell(line + "\n")

    def tell(self, text: str) -> None:
        """Write to stderr as it is."""
        try:
            self.err.write(text)
            self.err.flush()
        except BrokenPipeError:
            raise
        except OSError:
            pass  # a full disk, say: what is done, and its status, is as it is

    def quote(self, text: str) -> None:
        """Show what a sprite or the platform says, each line marked: it may look like ours."""
        redacted = self.redact(text)  # as a whole, for a secret may be of many lines
        for line in filter(None, map(str.strip, redacted.splitlines())):
            self.note("> " + line)

    def label(self, kind: str, colour: str, text: str) -> None:
        self._say(self.paint(kind + ":", colour, on_terminal=self.err_is_terminal) + " " + text)

    def warn(self, text: str) -> None:
        self.label("thopters: warning", "33", self.safe(text))

    def warn_once(self, text: str) -> None:
        """Warn of what may be found again and again in a run."""
        if text not in self._warned:
            self._warned.add(text)
            self.warn(text)

    def hint(self, text: str) -> None:
        """Say what could come next, on a terminal alone: a script has no use for it."""
        if self.err_is_terminal:
            self.remedy(text)

    def remedy(self, text: str) -> None:
        """Say what to do about an error, everywhere: who reads a log later wants it as well."""
        self.label("hint", "36", self.safe(text))

    def detail(self, text: str) -> None:
        """Say what was tried; only with -v or --debug."""
        if self.verbose or self.debug:
            self.note("thopters: " + text)

    def trace(self, text: str) -> None:
        """Say what was sent; only with --debug."""
        if self.debug:
            self.note("debug: " + text)

    def error(self, error: ThoptersError) -> None:
        if self.json and not isinstance(error, OutputError):
            self.answer_json({"error": error.to_json()})
            return
        if isinstance(error, DeclinedError):
            self.note(error.message)
        else:
            self.label("thopters: error", "31", self.safe(error.message))
        if error.hint:
            self.remedy(error.hint)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], *, cut: int = -1) -> None:
        """Print rows: aligned under a header on a terminal, tab-separated and bare elsewhere.

        The column `cut` gives way on a terminal, so that a row fits into its window; the last one
        if no other is better. Elsewhere nothing is cut.
        """
        cells = [[self.safe(cell) for cell in row] for row in rows]
        if not self.out_is_terminal:
            for row in cells:
                self.answer("\t".join(row))
            return
        cells = [[self._shown(cell) for cell in row] for row in cells]
        widths = [max(map(display_width, column)) for column in zip(header, *cells, strict=True)]
        room = window_columns(1) - sum(widths) - 2 * (len(widths) - 1) + widths[cut]
        widths[cut] = min(widths[cut], max(room, display_width(header[cut])))
        for row in cells:
            row[cut] = self._shorten(row[cut], widths[cut])
        for line in aligned([header, [self._rule() * width for width in widths], *cells]):
            self.answer(line)

    def _shorten(self, text: str, width: int) -> str:
        """Return a text that is cut to so many columns, with a mark where it is cut."""
        if display_width(text) <= width:
            return text
        mark = self._rule("…", ".")
        while text and display_width(text + mark) > width:
            text = text[:-1]
        return text + mark

    def _shown(self, text: str) -> str:
        """Return a text as it is shown: what the output's encoding lacks is escaped, and wider."""
        encoding = self.out.encoding
        return text.encode(encoding, "backslashreplace").decode(encoding) if encoding else text

    def _rule(self, char: str = "─", plain: str = "-") -> str:
        """Return a character, or a plain one where the output's encoding lacks it."""
        try:
            char.encode(self.out.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return plain
        return char

    def can_ask(self) -> bool:
        return sys.stdin is not None and sys.stdin.isatty() and self.err_is_terminal

    def ask(self, question: str) -> str:
        """Prompt on stderr, read one line of stdin; "" if it ends before the line does."""
        self.tell(self.safe(question) + " ")
        if os.name == "posix":
            wait_for([sys.stdin], [], None)  # it may be shared with somebody who has it not block
        if sys.stdin.errors == "strict":  # as in most locales, and a wrong key is no crash
            sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        line = sys.stdin.readline()
        if not line.endswith("\n"):
            self.tell("\n")
            return ""
        return line.rstrip("\n")

    def ask_secretly(self, question: str) -> str:
        """Prompt on stderr, and read a line from the terminal without showing it."""
        import getpass
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would show what is typed
            try:
                with EchoStaysOff(self, question):
                    typed = getpass.getpass(self.safe(question) + " ", stream=self.err)
            except EOFError:
                self.tell("\n")
                return ""
            except UnicodeDecodeError:
                self.tell("\n")
                raise UsageError(
                    "what was typed is no text in this terminal's encoding",
                    hint="thopters setup --from-env takes any bytes",
                ) from None
            except getpass.GetPassWarning:
                raise UsageError(
                    "this terminal would show what you type", hint="use: thopters setup --from-env"
                ) from None
        longest = 1023 if sys.platform == "darwin" else 4095
        if len(to_bytes(typed)) >= longest:  # the rest of a longer line is dropped by the terminal
            raise UsageError(
                "what was typed is too long for a line of a terminal",
                hint="thopters setup --from-env takes any length",
            )
        return typed

    def working(self, text: str) -> Activity:
        """Return a context in which `text` is shown once a terminal has been silent a while."""
        return Activity(self, text)


def window_columns(fd: int) -> int:
    """Return how many columns the terminal of a stream has; many where it does not tell."""
    try:
        return os.get_terminal_size(fd).columns or 10_000
    except OSError:
        return 10_000


class NamedConsole(Console):
    """The console for one of several sprites at once: each line begins with the sprite's name."""

    def __init__(self, whole: Console, name: str) -> None:
        self.__dict__.update(whole.__dict__)
        self.activity = None  # there is one line for all, which is the whole one's
        self._whole = whole
        self._name = name

    def answer(self, line: str) -> None:
        self._whole.answer(f"{self._name}: {line}")
        self._whole.flush()

    def _say(self, line: str) -> None:
        self._whole._say(f"{self._name}: {line}")

    def warn_once(self, text: str) -> None:
        self._whole.warn_once(text)

    def working(self, text: str) -> Activity:
        return self._whole.working(text)


def cut_to_window(line: str) -> str:
    """Return as much of a line as a terminal shows on one of its own, for it to be wiped again."""
    columns = window_columns(2)
    while display_width(line) >= columns:
        line = line[:-1]
    return line


class Activity:
    """A line on a terminal's stderr with the seconds that pass, gone when the work is done."""

    SHOW_AFTER_S = 0.7
    EVERY_S = 0.5

    def __init__(self, console: Console, text: str) -> None:
        self.console = console
        self.text = text
        self._shown = False

    def __enter__(self) -> Activity:
        import threading

        self._started = time.monotonic()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        if self.console.err_is_terminal and not self.console.json and not self.console.activity:
            self.console.activity = self
            with contextlib.suppress(ThoptersError):
                in_background(self._run)
        return self

    def _run(self) -> None:
        wait = self.SHOW_AFTER_S
        while not self._stop.wait(wait):
            with self._lock:
                if self._stop.is_set():
                    return
                seconds = time.monotonic() - self._started
                line = cut_to_window(self.console.safe(f"{self.text} ({seconds:.0f} s)"))
                self.console.tell(f"\r{line}\x1b[K")
                self._shown = True
            wait = self.EVERY_S

    def hide(self) -> None:
        """Wipe the line, so that something else can be printed."""
        with self._lock:
            if self._shown:
                self.console.tell("\r\x1b[K")
                self._shown = False

    def stop(self) -> None:
        self._stop.set()
        self.hide()
        if self.console.activity is self:
            self.console.activity = None

    def __exit__(self, *exc: object) -> None:
        self.stop()


# --- config -----------------------------------------------------------------------------

# The configuration file: the user's keys and settings, read with care and replaced whole.


class DuplicateError(Exception):
    """A JSON object has a name twice; one of the values would be lost."""


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DuplicateError
    return found


def read_json_file(
    path: str,
    check: Callable[[os.stat_result], None],
    opener: Callable[[str, int], int] | None = None,
) -> dict[str, Any] | None:
    """Return the object in a JSON file, None where there is no file; ThoptersError if neither.

    `check` sees whose the open file is and who may use it, and may refuse it. Nothing of the
    content gets into a message: such files hold secrets.
    """
    import json

    try:
        with open(path, "rb", opener=opener) as file:
            check(os.fstat(file.fileno()))
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ThoptersError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB")
        document = json.loads(data, object_pairs_hook=refuse_duplicates)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise NotOursError(f"cannot read {path}: {error.strerror}") from None
    except OSError as error:
        raise ThoptersError(f"cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ThoptersError(f"{path} is not valid JSON: {error.msg} at {where}") from None
    except (ValueError, RecursionError):
        raise ThoptersError(f"{path} is not valid JSON") from None
    except DuplicateError:
        raise ThoptersError(f"{path} has one name twice in an object") from None
    if not isinstance(document, dict):
        raise ThoptersError(f"{path} does not hold a JSON object")
    return document


USUAL_SECRETS = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GITHUB_PAT")
# What bash does not let change or gives values of its own, and what steers a shell, the loader
# or an interpreter
SHELL_VARIABLES = (
    "BASHOPTS", "BASHPID", "BASH_ALIASES", "BASH_ARGC", "BASH_ARGV", "BASH_ARGV0", "BASH_CMDS",
    "BASH_COMMAND", "BASH_LINENO", "BASH_SOURCE", "BASH_SUBSHELL", "BASH_VERSINFO", "DIRSTACK",
    "EPOCHREALTIME", "EPOCHSECONDS", "EUID", "FUNCNAME", "GROUPS", "HISTCMD", "LINENO", "OPTIND",
    "PIPESTATUS", "PPID", "RANDOM", "SECONDS", "SHELLOPTS", "SHLVL", "SRANDOM", "UID", "_",
    "_thopters",
)  # fmt: skip
STEERING_VARIABLES = (
    "BASH", "BASH_ENV", "BASH_EXECUTION_STRING", "BASH_VERSION", "COMP_WORDBREAKS", "ENV",
    "EXECIGNORE", "FUNCNEST", "GIT_CONFIG", "GIT_CONFIG_COUNT", "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_SYSTEM", "GIT_SSH_COMMAND", "HOME",
    "IFS", "LD_AUDIT", "LD_DEBUG", "LD_LIBRARY_PATH", "LD_PRELOAD", "NODE_OPTIONS", "OLDPWD",
    "OPTERR", "PATH", "PROMPT_COMMAND", "PS1", "PS2", "PS4", "PWD", "PYTHONSTARTUP",
)  # fmt: skip
# To zsh these are its own: it would stop reading the environment file there
ZSH_VARIABLES = (
    "ARGC", "aliases", "argv", "cdpath", "commands", "fignore", "fpath", "functions", "mailpath",
    "manpath", "module_path", "options", "parameters", "path", "pipestatus", "psvar", "signals",
    "status", "zsh_eval_context", "GID", "TTYIDLE", "USERNAME", "ZSH_SUBSHELL",
)  # fmt: skip
KEPT_VARIABLES = (*SHELL_VARIABLES, *STEERING_VARIABLES, *ZSH_VARIABLES)


def value_flaw(key: str, value: str) -> str:
    """Return why a value can't be carried into a sprite, "" where it can.

    No variable holds a NUL; git's protocol for credentials and its configuration have lines.
    """
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "holds what is no text"
    if "\0" in value:
        return "holds a NUL, which no variable can"
    if is_agent_login(value):
        return "is a login that renews itself: a copy of it ends the one here; use an API key"
    if key in ("GITHUB_PAT", "user", "email") and ("\n" in value or "\r" in value):
        return "holds a line's end, which it can't have"
    return ""


def is_agent_login(value: str) -> bool:
    """Return whether a text is the login that Claude Code or Codex stores, with its refresh token.

    Such a token is good for one use: whoever uses a copy first logs the other one out.
    """
    import re

    stored = r'"claudeAiOauth"\s*:|"tokens"\s*:\s*\{[^{}]*"refresh_token"\s*:'
    return value.startswith("sk-ant-ort") or bool(re.search(stored, value))


LOCK_LIMIT_S = 10.0


def lock_file(lock_path: str, path: str, console: Console) -> BinaryIO:
    """Return a file that holds the lock for changing `path`; should we die, the system frees it."""
    lock = open(lock_path, "ab", opener=open_private)  # noqa: SIM115 (returned)
    try:
        for _ in Clock().polling(LOCK_LIMIT_S, 0.05):
            if try_lock(lock.fileno()):
                return lock
        raise ThoptersError(
            f"another thopters has been changing {path} for {LOCK_LIMIT_S:.0f} s",
            hint="try again when it is done",
        )
    except OSError as error:
        if error.errno not in NOT_HERE:
            lock.close()
            raise
        console.warn_once(
            f"the file system of {path} has no locks ({error.strerror}): "
            "store from one place at a time"
        )
        return lock
    except BaseException:
        lock.close()
        raise


def make_folder(folder: str) -> None:
    """Make a folder, and what is missing above it, for the user alone."""
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another first save has made it
            os.mkdir(folder, 0o700)


def default_folder(environ: Mapping[str, str]) -> str:
    return os.path.join(home_directory(environ), ".sprite-thopters")


def config_path(environ: Mapping[str, str]) -> str:
    """Return the absolute path of the configuration; UsageError where none is given."""
    named = environ.get("THOPTERS_CONFIG")
    if not named:
        return os.path.join(default_folder(environ), "config.json")
    if flaw := shell_syntax(named):
        raise UsageError(f"THOPTERS_CONFIG {flaw}")
    if named.startswith(("~/", "~" + os.sep)):  # no shell has replaced it
        named = home_directory(environ) + named[1:]
    if not os.path.isabs(named):
        raise UsageError(
            f"THOPTERS_CONFIG is not an absolute path: {named}",
            hint="begin it with / or ~/: keys do not belong into whatever folder you are in",
        )
    return named


class Config:
    """The configuration file: `secrets`, `only_for`, `git`, `defaults`, `directories`, `trusted`,
    `version`.

    `only_for` holds, for some of the secrets, the pattern of the sprites' names that may get it.

    What others put into it is kept. The file and its folder are for the user alone, from their
    first byte on. Modes are changed in our own folder alone, once the file is known to be a
    configuration; elsewhere, and where they can't be changed, others' access is warned of. Other
    programs may replace the file at any time, and so it is never changed in place; our own take
    turns by a lock file beside it, which stays.
    """

    VERSION = 1

    def __init__(self, environ: Mapping[str, str], console: Console, *, mends: bool = True) -> None:
        self.console = console
        self.mends = mends  # else what others can use is only kept in `lax`
        self.lax: list[str] = []
        self.path = config_path(environ)
        # a symbolic link, as dotfiles have it, stays one
        self.real_path = self.path if is_placeless(self.path) else os.path.realpath(self.path)
        self.folder = os.path.dirname(self.real_path)
        self.is_named = bool(environ.get("THOPTERS_CONFIG"))
        self._own_folder = ""
        with contextlib.suppress(NoHomeError):
            folder, name = os.path.split(default_folder(environ))
            self._own_folder = os.path.join(os.path.realpath(folder), name)
        self.document: dict[str, Any] = {}
        self.exists = False
        self.load()

    # reading

    def load(self) -> None:
        """Read the file; ThoptersError if it is unreadable, no configuration, or not ours."""
        self._status: os.stat_result | None = None
        try:
            document = read_json_file(self.real_path, self._check)
        except NotOursError as error:
            error.hint = self._way_back()
            raise
        self.exists = document is not None
        self.document = document or {}
        self._validate()
        for name, secret in self.secrets.items():
            self.console.redact.add(secret, yields=name not in USUAL_SECRETS)
        self._guard()

    def _validate(self) -> None:
        """Raise ThoptersError for what no command could use."""
        for name in ("secrets", "only_for", "git", "defaults", "directories", "trusted"):
            section = self.document.get(name, {})
            if not isinstance(section, dict):
                raise ThoptersError(f"{self.path}: {name!r} should be an object")
            for key, value in section.items():
                if name in ("git", "defaults") and key not in ("user", "email", "prefix"):
                    continue
                flaw = "" if isinstance(value, str) else "should be a text"
                flaw = flaw or value_flaw(key, value)
                if flaw:
                    raise ThoptersError(f"{self.path}: {name}.{key} {flaw}")
        for name in self.secrets:
            if not is_variable(name):
                raise ThoptersError(f"{self.path}: {name[:64]!r} is not a variable's name")
            if name in KEPT_VARIABLES:
                raise ThoptersError(f"{self.path}: {name} steers the shell, so it is no secret")

    def _check(self, status: os.stat_result) -> None:
        """Refuse another user's file, but not root's: root can change ours as well."""
        if os.name != "posix" or not stat.S_ISREG(status.st_mode):
            return  # a pipe of the shell's, say, is read as it is
        if status.st_uid not in (os.geteuid(), 0):
            raise NotOursError(f"{self.path} belongs to another user, so it is not used")
        self._status = status

    def _way_back(self) -> str | None:
        """Return what to do about a file of ours that another user has, None for any other."""
        if self.is_named or os.name != "posix":
            return None
        place, us = nearest_there(self.real_path), os.geteuid()
        owner = os.stat(place).st_uid
        if owner == us:
            return None
        if us == 0:
            return f"{place} belongs to {user_name(owner)}: run this as that user, without sudo"
        back = f"sudo chown -R {user_name(us)} {place}"
        return f"{place} belongs to {user_name(owner)}; take it back with: {back}"

    def _guard(self) -> None:
        """Take away what others may do with our own folder and file; warn of what they still may.

        A folder of another name may be meant for others, but not for them to write in.
        """
        if self._status is None:
            return
        with contextlib.suppress(OSError):  # the folder is gone
            folder = os.stat(self.folder)
            is_shared = folder.st_mode & stat.S_ISVTX  # as /tmp, where each keeps to their own
            lax = 0o077 if self.folder == self._own_folder else 0o022
            if is_shared or self._narrow(self.folder, folder, lax):
                self._narrow(self.real_path, self._status, 0o077)

    def _narrow(self, path: str, status: os.stat_result, lax: int) -> bool:
        """Take away the `lax` bits of a mode, or say who may; False if the system does not."""
        right = stat.S_IMODE(status.st_mode) & ~lax
        if not status.st_mode & lax or status.st_uid != os.geteuid():
            return True
        how, is_ours = f"mend it with: chmod {right:o} {path}", self.folder == self._own_folder
        if not self.mends:
            self.lax.append(f"others can use {path}; {how}")
            return True
        if is_ours:
            try:
                os.chmod(path, right)
                how = "its file system keeps no modes"
                if not os.stat(path).st_mode & lax:
                    self.console.warn(f"others could use {path}; its mode is {right:o} now")
                    return True
            except OSError as error:
                how = f"its mode can't be changed: {error.strerror}"
        self.console.warn_once(f"others can use {path}; {how}")
        return not is_ours

    def _text(self, section: str, key: str) -> str:
        return str(self.document.get(section, {}).get(key, ""))

    @property
    def secrets(self) -> dict[str, Secret]:
        """Return the variables for sprites; one that is empty is not set."""
        values = self.document.get("secrets", {})
        return {name: Secret(value) for name, value in values.items() if value}

    def pattern_of(self, key: str) -> str:
        """Return the pattern of the sprites' names that may get a secret; `*` is all of them."""
        return self._text("only_for", key) or "*"

    def secrets_for(self, sprite_name: str) -> dict[str, Secret]:
        """Return the variables that the sprite of this name may get."""
        return {
            key: secret
            for key, secret in self.secrets.items()
            if matches(sprite_name, self.pattern_of(key))
        }

    def doubts(self, keys: Container[str]) -> list[str]:
        """Return a sentence for each of the variables that holds what is hardly its value."""
        values = self.document.get("secrets", {}).items()
        flaws = {
            name: shell_syntax(value, strictly=name in USUAL_SECRETS)
            for name, value in values
            if name in keys
        }
        return [f"{name} {flaw}" for name, flaw in flaws.items() if flaw]

    @property
    def git_user(self) -> str:
        return self._text("git", "user")

    @property
    def git_email(self) -> str:
        return self._text("git", "email")

    @property
    def prefix(self) -> str:
        return self._text("defaults", "prefix")

    @property
    def directories(self) -> dict[str, str]:
        """Return the sprite of each directory for which `use` has stored one."""
        return dict(self.document.get("directories", {}))

    @property
    def trusted(self) -> dict[str, str]:
        """Return which ORG/NAME the user has agreed to take from which `.sprite` file."""
        return dict(self.document.get("trusted", {}))

    # writing

    def check_place(self) -> None:
        """Raise ThoptersError where nothing can be saved, or should not be."""
        if is_placeless(self.real_path):
            raise ThoptersError(f"{self.path} is not a file, so nothing can be saved in it")
        if self.is_named or os.name != "posix" or os.geteuid() != 0:
            return
        place = nearest_there(self.folder)
        owner = os.stat(place).st_uid
        if owner != 0:  # as with sudo, which may keep HOME
            raise UsageError(
                f"{place} belongs to {user_name(owner)}, whom root's files in it would lock out",
                hint="run this without sudo; or set HOME to root's own, or name a file by "
                "THOPTERS_CONFIG",
            )

    def store(self, section: str, key: str, value: str | None) -> None:
        """Store one text in a section, None to take it out of there."""

        def change(document: dict[str, Any]) -> None:
            if value is not None:
                document.setdefault(section, {})[key] = value
            elif section in document:
                document[section].pop(key, None)

        self.update(change)

    def update(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Have `change` work on the newest document, and save that.

        Whoever is killed, whatever fails: the file holds the old or the new text, whole.
        """
        try:
            self.check_place()
            with self.locked():
                self.load()
                version = self.document.get("version", self.VERSION)
                if type(version) is not int:
                    raise ThoptersError(f"{self.path}: 'version' should be a whole number")
                if version > self.VERSION:
                    raise ThoptersError(
                        f"{self.path} was written by a newer thopters; it was left as it is",
                        hint="update this thopters",
                    )
                change(self.document)
                self._validate()
                self.document["version"] = self.VERSION
                replace_file(self.real_path, self._encode())
                self.load()
        except OSError as error:
            hint = self._way_back() if isinstance(error, PermissionError) else None
            raise ThoptersError(f"cannot write {self.path}: {error.strerror}", hint=hint) from None

    def locked(self) -> BinaryIO:
        """Return a file that holds the lock, whose folder is made where it is missing; OSError."""
        make_folder(self.folder)
        return lock_file(self.real_path + ".lock", self.path, self.console)

    def _encode(self) -> bytes:
        """Return the text of the file; ThoptersError for one that could not be read again."""
        import json

        try:
            data = json.dumps(self.document, indent=2, allow_nan=False).encode() + b"\n"
            flaw = "too large" if len(data) > MAX_JSON_BYTES else ""
        except RecursionError:
            flaw = "nested too deeply"
        except ValueError:  # such as 1e400
            flaw = "no number in JSON"
        if flaw:
            raise ThoptersError(
                f"{self.path} was left as it is: what it holds is {flaw} to be saved",
                hint="take out of it what is not for thopters",
            )
        return data


# --- token ------------------------------------------------------------------------------

# The API token as a value, and the API's address. Where a token is found stands in the room of the
# sprite program, whose login is one of the places.


TOKEN_VARIABLES = ("SPRITE_TOKEN", "SPRITES_TOKEN")  # the first that is set is used


class Credential:
    """A token, the words that say where it came from, and its org where that is known."""

    __slots__ = ("org", "source", "token")

    def __init__(self, token: Secret, source: str, org: str | None = None) -> None:
        self.token = token
        self.source = source
        self.org = org


def api_base(
    environ: Mapping[str, str], variable: str = "SPRITES_API_URL", default: str = DEFAULT_API_URL
) -> str:
    """Return an API's base URL without a final slash: https, or plain http to this machine."""
    import urllib.parse

    url = environ.get(variable) or default
    hint = "set it to an https address, or unset it"
    if flaw := shell_syntax(url):
        raise UsageError(f"{variable} is not a URL: it {flaw}", hint=hint)
    bad = [place for place, char in enumerate(url, 1) if not "!" <= char <= "~"]
    if bad:
        what = f"character {bad[0]} of {len(url)} can't be part of one"
        raise UsageError(f"{variable} is not a URL: {what}", hint=hint)
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError(f"{variable} is not a URL", hint=hint) from None
    if host and not is_host(host):
        what = "a part of its host's name is empty or above 63 characters"
        raise UsageError(f"{variable} is not a URL: {what}", hint=hint)
    if parts.username or parts.password or parts.query or parts.fragment or not host:
        raise UsageError(f"{variable} may hold a host, a port and a path only", hint=hint)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise UsageError(
            f"{variable} ({parts.scheme}://{host}) would send your token unencrypted",
            hint=hint,
        )
    return url.rstrip("/")


def is_usual_place(base: str) -> bool:
    """Return whether a URL of the API is the usual one, or on this machine."""
    import urllib.parse

    return base == DEFAULT_API_URL or is_loopback(urllib.parse.urlsplit(base).hostname or "")


def check_token(text: str, source: str) -> Secret:
    """Return the token if it is one; else an error that names a position, never the text.

    It comes before any library sees the token: http.client puts a bad header into its message.
    """
    token = text.strip()
    hint = "put a fresh token there, or run: sprite login"
    if flaw := shell_syntax(token):
        hint = "write the token there in full and without quotes: no shell reads it"
        raise MalformedTokenError(f"the token from {source} is malformed: it {flaw}", hint=hint)
    bad = [place for place, char in enumerate(token, 1) if not "!" <= char <= "~"]
    if bad:
        what = f"character {bad[0]} of {len(token)} can't be part of a token"
        raise MalformedTokenError(f"the token from {source} is malformed: {what}", hint=hint)
    if not 8 <= len(token) <= 4096:
        what = f"it is {len(token)} characters long"
        raise MalformedTokenError(f"the token from {source} is malformed: {what}", hint=hint)
    return Secret(token)


# --- connections ------------------------------------------------------------------------

# Connections to a server, up to TLS: deadlines, proxies, certificates, names, TCP. `Connector.open`
# is the one place that opens one; what fails here was never sent.

CONNECT_TIMEOUT_S = 10.0  # of one address, and of the look-up of a name
CONNECT_LIMIT_S = 30.0  # in all, until a connection stands: look-up, TCP, proxy, TLS
NEXT_ADDRESS_S = 0.25  # until the next address is tried beside the others (RFC 8305, 8)
SILENCE_TIMEOUT_S = 30.0  # of a server that should be answering


class Deadline:
    """A limit on everything that is done over a connection that stands.

    A socket's own timeout starts anew with each byte, so a server that drips could hold us for
    ever. When the time is up, a timer shuts the connection down: every wait on it ends at once.
    To connect has a limit of its own (`connect_s`), and what that takes is not counted here.
    """

    def __init__(
        self,
        limit_s: float,
        clock: Clock,
        *,
        silence_s: float | None = SILENCE_TIMEOUT_S,
        connect_s: float | None = None,
    ) -> None:
        self.limit_s = limit_s
        self.silence_s = silence_s  # of the peer, once it is connected
        self.connect_s = CONNECT_LIMIT_S if connect_s is None else connect_s
        self.passed = False
        self._clock = clock
        self._end = clock.monotonic() + limit_s
        self._sock: socket.socket | None = None
        self._timer: threading.Timer | None = None

    def remaining(self) -> float:
        """Return the seconds that are left, at least a hundredth."""
        return max(0.01, self._end - self._clock.monotonic())

    def is_over(self) -> bool:
        return self._clock.monotonic() >= self._end

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let no time pass for what is done meanwhile, which is to connect."""
        self.release()  # an earlier try's connection
        began = self._clock.monotonic()
        try:
            yield
        finally:
            self._end += self._clock.monotonic() - began

    def watch(self, sock: socket.socket) -> None:
        """Shut `sock` down when the time is up; a duplicate outlives its wrapping in TLS."""
        import socket

        self.release()  # the connection before
        self._sock = socket.fromfd(sock.fileno(), sock.family, sock.type)
        self._start_timer()
        sock.settimeout(self.silence_s and min(self.silence_s, self.limit_s))

    def renew(self, limit_s: float) -> None:
        """Have another limit from now on, for what comes next on the same connection."""
        self.limit_s = limit_s
        self._end = self._clock.monotonic() + limit_s
        if self._sock:
            with contextlib.suppress(ThoptersError):  # then the old limit stays
                self._start_timer()

    def _start_timer(self) -> None:
        import threading

        timer = threading.Timer(self.remaining(), self._expire)
        timer.daemon = True
        start_thread(timer)
        if self._timer:
            self._timer.cancel()
        self._timer = timer

    def _expire(self) -> None:
        import socket

        self.passed = True
        if self._sock:
            with contextlib.suppress(OSError):  # closed already
                self._sock.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._sock:
            self._sock.close()
        self._timer = self._sock = None

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class Proxy:
    """An HTTP proxy for CONNECT; its credentials go into one header and nowhere else."""

    def __init__(self, url: str) -> None:
        import urllib.parse

        try:
            parts = urllib.parse.urlsplit(url if "//" in url else "//" + url, scheme="http")
            self.host, self.port = parts.hostname or "", parts.port or 80
            if not self.host or not is_host(self.host):
                raise ValueError("not a host")
        except ValueError:  # its words may hold a piece of the password
            raise NotSentError(
                "the proxy settings do not hold a URL",
                hint="set HTTPS_PROXY to http://HOST:PORT; encode special characters of a password",
                final=True,
            ) from None
        if parts.scheme != "http":
            raise NotSentError(
                f"the proxy settings name a proxy of a kind that is not supported ({parts.scheme})",
                hint="set HTTPS_PROXY to an http:// proxy",
                final=True,
            )
        self.headers: dict[str, str] = {}
        self.secrets: list[Secret] = []  # the password, as it is written and as it is meant
        if parts.username is not None:
            import base64

            texts = (parts.username, parts.password or "")
            user, password = (urllib.parse.unquote_to_bytes(to_bytes(text)) for text in texts)
            pair = base64.b64encode(user + b":" + password).decode()
            self.headers["Proxy-Authorization"] = "Basic " + pair
            meant = password.decode("utf-8", "surrogateescape")
            self.secrets = [Secret(texts[1]), Secret(meant)]


def find_proxy(host: str, port: int) -> Proxy | None:
    """Return the proxy for an https address: HTTPS_PROXY or ALL_PROXY, unless NO_PROXY has it."""
    import urllib.request

    proxies = urllib.request.getproxies()
    url, exceptions = proxies.get("https") or proxies.get("all"), proxies.get("no", "")
    if not url or is_loopback(host):
        return None
    check_proxy_setting(exceptions)
    if no_proxy_matches(host, port, exceptions) or urllib.request.proxy_bypass(host):
        return None
    check_proxy_setting(url)
    return Proxy(url)


def check_proxy_setting(value: str) -> None:
    """Raise NotSentError for one that no shell has read; it may hold a password."""
    if flaw := shell_syntax(value):
        names = [name for name in os.environ if name.lower().endswith("_proxy")]
        name = next((name for name in names if os.environ[name] == value), "the proxy's setting")
        raise NotSentError(
            f"{name} {flaw}",
            hint=f"write the value of {name} in full and without quotes: no shell reads it there",
            final=True,
        )


def no_proxy_matches(host: str, port: int, rules: str) -> bool:
    """Return whether NO_PROXY names a host: `*`, a name or domain (.x, *.x, x), x:port, a CIDR."""
    import ipaddress

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for rule in rules.lower().replace(",", " ").split():
        rule = rule.removesuffix(f":{port}") if "]:" in rule else rule
        domain = rule.removesuffix(f":{port}").removeprefix("*").lstrip(".")
        if rule == "*" or domain == host or (domain and host.endswith("." + domain)):
            return True
        try:
            if address and address in ipaddress.ip_network(rule.strip("[]"), strict=False):
                return True
        except ValueError:
            continue
    return False


# These add authorities to the system's. SSL_CERT_FILE and SSL_CERT_DIR, which OpenSSL reads itself
# and passes over where they are of no use, take the place of the system's.
ADDED_CERTIFICATES = ("THOPTERS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def tls_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Return a verifying context: the system's authorities and those that the user names."""
    import ssl

    try:
        context = ssl.create_default_context()  # honours SSL_CERT_FILE and SSL_CERT_DIR
    except OSError as error:
        raise NotSentError(
            f"cannot write the file that SSLKEYLOGFILE names: {error.strerror}",
            hint="unset SSLKEYLOGFILE: who reads that file can read what is sent",
            final=True,
        ) from None
    if sys.platform == "darwin" and not context.cert_store_stats()["x509_ca"]:
        # python.org's Python comes without authorities
        with contextlib.suppress(OSError):
            context.load_verify_locations("/etc/ssl/cert.pem")
    named = {name: path for name in ADDED_CERTIFICATES if (path := environ.get(name))}
    for name, path in named.items():
        load = load_folder if os.path.isdir(path) else load_file
        flaw, remedy = load(context, path)
        if flaw:
            message = f"cannot use the certificates of {name}: {path}: {flaw}"
            raise NotSentError(message, hint=remedy or f"mend {name}, or unset it", final=True)
    if named or environ.get("SSL_CERT_FILE"):
        # Python 3.13 refuses the roots of many companies, which lack a key identifier
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def load_file(context: ssl.SSLContext, path: str) -> tuple[str, str]:
    """Have a context trust a file's certificates; return why it can't, and a remedy if known."""
    import ssl

    if os.path.isdir(path):
        return "it is a folder", ""
    try:
        context.load_verify_locations(path)
        return "", ""
    except ssl.SSLError:
        flaw = "no certificate in PEM form can be read from it"
    except OSError as error:
        return error.strerror or str(error), ""
    if is_placeless(path):  # a pipe has been read to its end
        return flaw, ""
    with open(path, "rb") as file:
        start = file.read(5)
    if start[:2] == b"\x30\x82" and start[4:] == b"\x30":  # a sequence that begins with another
        remedy = "write it in PEM form: openssl x509 -inform der -in FILE -out FILE.pem"
        return "it is in DER form, not in PEM form", remedy
    return flaw if start else "it is empty", ""


def load_folder(context: ssl.SSLContext, path: str) -> tuple[str, str]:
    """Have a context trust a folder's certificates, likewise; OpenSSL finds them by a hash."""
    import re

    try:
        names = os.listdir(path)
    except OSError as error:
        return error.strerror or str(error), ""
    if not any(re.fullmatch(r"[0-9a-f]{8}\.[0-9]+", name) for name in names):
        flaw = "it is empty" if not names else "no file in it has a hash for its name"
        return flaw, "make names from the hashes: openssl rehash FOLDER" if names else ""
    context.load_verify_locations(None, path)
    return "", ""


def passed_over(environ: Mapping[str, str]) -> str:
    """Return which of OpenSSL's own variables it passes over, and why; "" for none."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, load in (("SSL_CERT_FILE", load_file), ("SSL_CERT_DIR", load_folder)):
        named = environ.get(name)
        if named is None:
            continue
        places = named.split(os.pathsep) if name == "SSL_CERT_DIR" else [named]
        flaws = [load(context, place)[0] for place in places]
        if all(flaws):
            where = f"{name} names {named}" if named else f"{name} is empty"
            return f"{where}, which is of no use" + (f": {flaws[0]}" if named else "")
    return ""


def trust_hint(error: ssl.SSLCertVerificationError, environ: Mapping[str, str], now: str) -> str:
    """Return what to do about a certificate that is not trusted; `now` is this machine's time."""
    if error.verify_code in (9, 10):  # not yet valid, expired
        return (
            f"this machine's clock says {now}: if that is wrong, set it; if not, "
            "the certificate has to be renewed there"
        )
    if error.verify_code in (62, 64):  # the certificate of another name, or of another address
        return "check the address, and whether a login page of the network answers in its place"
    if flaw := passed_over(environ):
        return f"{flaw}; name another, or unset it"
    return "if your network inspects TLS, name its certificate with THOPTERS_CA_BUNDLE"


def resolve(host: str, port: int, deadline: Deadline) -> list[tuple[Any, ...]]:
    """Return getaddrinfo's answer, its families by turns (RFC 8305, 4).

    In a thread, for a name server may never answer.
    """
    import queue
    import socket

    answers: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()
    # as bytes a name goes to the system as it is; as text it has Python import its IDNA tables
    name = host.encode()

    def look_up() -> None:
        try:
            answers.put(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
        except OSError as error:
            answers.put(error)

    in_background(look_up)
    try:
        found = answers.get(timeout=min(CONNECT_TIMEOUT_S, deadline.remaining()))
    except queue.Empty:
        raise TimeoutError("the name look-up timed out") from None
    if isinstance(found, OSError):
        raise found
    families = [address[0] for address in found]
    turns = [families[:place].count(family) for place, family in enumerate(families)]
    return [found[place] for place in sorted(range(len(found)), key=turns.__getitem__)]


def set_socket_options(sock: socket.socket) -> None:
    """Send small frames at once, and let the system notice a peer that is gone."""
    import socket

    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE"
    for name, value in ((idle, 15), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# Addresses are raced (RFC 8305): the next one is tried beside the others when a quarter of a second
# has brought no connection, so that an address which swallows all costs no more than that.
def connect_tcp(
    addresses: Sequence[tuple[Any, ...]], deadline: Deadline
) -> tuple[socket.socket, tuple[Any, ...]]:
    """Return a connected socket, and which of getaddrinfo's addresses it is; OSError for none."""
    import socket

    failure: OSError = OSError("no address")
    waiting = list(addresses)
    pending: dict[socket.socket, tuple[Any, ...]] = {}
    limit_s = min(CONNECT_TIMEOUT_S, deadline.remaining())
    try:
        for left_s in Clock().polling(limit_s + NEXT_ADDRESS_S * (len(waiting) - 1)):
            if waiting:
                address = waiting.pop(0)
                try:
                    pending[begin_connect(socket.socket(*address[:3]), address[4])] = address
                except OSError as error:  # a family that the system lacks, too
                    failure = error
            if not pending and not waiting:
                raise failure
            if not pending:  # Windows can't wait for nothing
                continue
            wait_s = min(left_s, NEXT_ADDRESS_S) if waiting else left_s
            sock: socket.socket
            for sock in wait_for([], list(pending), wait_s)[1]:
                status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                address = pending.pop(sock)
                if not status:
                    set_socket_options(sock)
                    sock.setblocking(True)
                    return sock, address
                sock.close()
                failure = OSError(status, os.strerror(status))
        raise TimeoutError("it timed out")
    finally:
        for sock in pending:
            sock.close()


def begin_connect(sock: socket.socket, address: Any) -> socket.socket:
    """Begin to connect; how it ends shows when the socket can be written."""
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        pass
    except OSError:
        sock.close()
        raise
    return sock


def is_quiet(sock: socket.socket, for_s: float) -> bool:
    """Return whether an idle connection stays open for a time, and its peer says nothing unasked.

    TLS has words of its own that are nothing of the kind.
    """
    import ssl

    sock.setblocking(False)
    for left_s in Clock().polling(for_s):
        wait_for([sock], [], left_s)
        try:
            sock.recv(1)
            return False
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            return False
    return True


def peek(sock: socket.socket, file: Any) -> bytes:
    """Return what has come behind what was read, b"" for nothing; OSError. It ends all waiting."""
    import ssl

    sock.setblocking(False)
    try:
        return bytes(file.peek())
    except ssl.SSLWantReadError:
        return b""


class ProxyRefused(OSError):
    """The proxy's answer to CONNECT is no success: to try again would change nothing."""


def response_classes() -> tuple[type[http.client.HTTPResponse], type[http.client.HTTPResponse]]:
    """Return what reads a proxy's answer to CONNECT, and what reads an answer of the API.

    http.client's own goes on behind 100 alone; of the API every 1xx is read past but 101, which
    ends an upgrade. A deadline ends a run of them that has no end.
    """
    import http.client

    class TunnelResponse(http.client.HTTPResponse):
        def _read_status(self) -> tuple[str, int, str]:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status != 200:
                raise ProxyRefused(f"Tunnel connection failed: {status} {reason.strip()}")
            return version, status, reason

    class Response(http.client.HTTPResponse):
        connection: http.client.HTTPConnection | None = None  # which ends with it, unless kept
        target = ""  # of the request

        sock: socket.socket | None = None  # None, too, where the server does not keep it
        is_followed = False  # by what nobody has asked for
        was_upgrade = False  # the request asked for one, and few servers go on after a refusal

        def _close_conn(self) -> None:  # also called at the end of a body
            if self.sock and self.fp:
                with contextlib.suppress(OSError):
                    self.is_followed = bool(peek(self.sock, self.fp))
            super()._close_conn()  # type: ignore[misc]

        def close(self) -> None:
            super().close()
            if self.connection:
                self.connection.close()

        def _read_status(self) -> tuple[str, int, str]:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            return version, 100 if 102 <= status <= 199 else status, reason

    return TunnelResponse, Response


class Connector:
    """The one way out to a server: TCP, the proxy if there is one, TLS.

    A name is looked up once in a run; the address that worked is the first to be tried again. One
    that takes connections and no more, as where large packets are lost, has not worked.
    """

    def __init__(
        self,
        base: urllib.parse.SplitResult,
        *,
        console: Console,
        clock: Clock,
        environ: Mapping[str, str],
    ) -> None:
        self.base = base
        self.console = console
        self.clock = clock
        self.environ = environ
        self._context: ssl.SSLContext | None = None
        self._addresses: dict[tuple[str, int], list[tuple[Any, ...]]] = {}

    def open(self, limit_s: float) -> http.client.HTTPConnection:
        """Return a new connection; NotSentError if there is none within `limit_s`."""
        import http.client
        import ssl

        host, secure = self.base.hostname or "", self.base.scheme == "https"
        port = self.base.port or (443 if secure else 80)
        proxy = find_proxy(host, port) if secure else None
        to = (proxy.host, proxy.port) if proxy else (host, port)
        for secret in proxy.secrets if proxy else ():
            self.console.redact.add(secret)
        if secure:
            self._context = self._context or tls_context(self.environ)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                *to, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(*to)
        if proxy:
            connection.set_tunnel(host, port, headers=proxy.headers)
        connection.response_class, response_class = response_classes()
        with Deadline(limit_s, self.clock) as deadline:
            # http.client's own hook; its default has a timeout per read and none in all
            connection._create_connection = (  # type: ignore[attr-defined]
                lambda address, *_: self._connect(address[0], address[1], deadline)
            )
            try:
                connection.connect()
                # what is closed already is wrapped without a handshake, and sends as it is
                if isinstance(connection.sock, ssl.SSLSocket) and not connection.sock.version():
                    raise ConnectionAbortedError(0, "the connection was closed")
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._leave_first(to)
                raise self._not_sent(error, host, proxy, deadline) from None
        connection.response_class = response_class
        return connection

    def _connect(self, host: str, port: int, deadline: Deadline) -> socket.socket:
        known = self._addresses.pop((host, port), None)
        addresses = known or resolve(host, port, deadline)
        sock, found = connect_tcp(addresses, deadline)
        deadline.watch(sock)
        self._addresses[host, port] = sorted(addresses, key=lambda address: address != found)
        return sock

    def _leave_first(self, to: tuple[str, int]) -> None:
        """Try the other addresses the next time; look the name up again where there is none."""
        if others := self._addresses.pop(to, [])[1:]:
            self._addresses[to] = others

    def _not_sent(
        self, error: Exception, host: str, proxy: Proxy | None, deadline: Deadline
    ) -> NotSentError:
        import socket
        import ssl

        via = f" through the proxy {proxy.host}:{proxy.port}" if proxy else ""
        if isinstance(error, ssl.SSLCertVerificationError):
            return NotSentError(
                f"the certificate of {host} is not trusted: {error.verify_message}",
                hint=trust_hint(error, self.environ, format_time(self.clock.utc())),
                final=True,
            )
        hint = "check the network, and HTTPS_PROXY if you need one"
        if isinstance(error, socket.gaierror):
            name = proxy.host if proxy else host
            return NotSentError(f"cannot find the host {name}", hint=hint)
        timed_out = deadline.passed or isinstance(error, TimeoutError)
        words = getattr(error, "strerror", None) or str(error)  # a proxy's own, perhaps
        why = "it timed out" if timed_out else self.console.redact(words)[:300]
        is_final = isinstance(error, ProxyRefused)
        return NotSentError(f"cannot reach {host}{via}: {why}", hint=hint, final=is_final)


# --- http -------------------------------------------------------------------------------

# Requests and answers, on top of a connection: what is sent again and when (RetryPolicy), bodies
# that are whole or an error, event streams. It knows tokens and no sprites.

REQUEST_LIMIT_S = 60.0
SLOWEST_UPLOAD = 20_000  # bytes per second
NO_LIMIT_S = 45 * 86400.0  # more than a timer can wait on Windows is an error
STREAM_LIMIT_S = 600.0  # checkpoint and restore
LAST_WORDS_S = 5.0  # for what may follow the event that says all is done
WAKE_LIMIT_S = 120.0  # a cold sprite's first command
GLANCE_LIMIT_S = 3.0  # for a look that only words a message


class Answer:
    """A whole HTTP answer; `uncertain` if an earlier try may have been carried out as well."""

    __slots__ = ("_redact", "body", "headers", "status", "target", "uncertain")

    def __init__(
        self,
        status: int,
        headers: Message,
        body: bytes,
        redact: Callable[[str], str] = str,
        target: str = "",
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.target = target  # of the request
        self.uncertain = False
        self._redact = redact

    def _document(self) -> Any:
        import json

        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def details(self) -> dict[str, Any]:
        """Return the JSON object of an error body, {} if it is none."""
        document = self._document()
        return document if isinstance(document, dict) else {}

    def reason(self) -> str:
        """Return the server's own words for an error: JSON, plain text or HTML, at most 300.

        No secret is in them: it could not be found any more once it is cut, or with another one's
        escapes; so other JSON is written anew.
        """
        import json

        document = self._document()
        details = document if isinstance(document, dict) else {}
        texts = [details.get("message"), details.get("error")]
        words = [text for text in texts if isinstance(text, str) and text]
        errors = details.get("errors")
        try:
            if words:
                text = words[0]
            elif isinstance(errors, list):
                text = "; ".join(e if isinstance(e, str) else json.dumps(e) for e in errors)
            elif document is None:
                text = self.body.decode("utf-8", "replace").strip()
            else:
                text = json.dumps(document)
        except RecursionError:  # what can just be read may be too deep to be written
            text = "the answer is nested too deeply"
        if text.startswith("<"):
            text = "the answer is a web page"
        return self._redact(text)[:300] or "no reason given"

    def error_code(self) -> str:
        code = self.details().get("error")
        return code if isinstance(code, str) else ""

    def asked_wait(self) -> float | None:
        """Return the seconds the server asks us to wait: the body's word, then Retry-After."""
        seconds = self.details().get("retry_after_seconds")
        if isinstance(seconds, (int, float)) and not isinstance(seconds, bool):
            return float(min(max(0, seconds), 1e12))  # an int may be too large for a float
        return parse_retry_after(self.headers.get("Retry-After"), self.headers.get("Date"))


def parse_http_date(text: str | None) -> datetime.datetime | None:
    import datetime
    import email.utils

    try:
        moment = email.utils.parsedate_to_datetime(text or "")
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)


def parse_retry_after(text: str | None, date: str | None) -> float | None:
    """Return the seconds of a Retry-After header (seconds, or a date beside the Date header)."""
    text = (text or "").strip()
    digits = text.removeprefix("-")  # a time that has passed, as servers count it
    if digits.isascii() and digits.isdigit():
        return max(0.0, float(text[:12]))
    until, now = parse_http_date(text), parse_http_date(date)
    return max(0.0, (until - now).total_seconds()) if until and now else None


# What may have happened to a request that did not succeed
NOT_SENT = "not sent"  # it never left
BUSY = "busy"  # 429: refused before anything was done
STARTING = "starting"  # 503 sprite_starting: refused, the sprite is waking up
WAKING = "waking"  # 502, 503, 504 to what goes into a sprite: it may be waking up
AMBIGUOUS = "ambiguous"  # sent, and perhaps carried out


def failure_kind(answer: Answer) -> str | None:
    """Return which failure an answer is, None if it is final: a success, or a definite no."""
    if answer.status == 429:
        return None if answer.error_code() == "concurrent_sprite_limit_exceeded" else BUSY
    if answer.status == 503 and answer.error_code() == "sprite_starting":
        return STARTING
    # of the 5xx, these are definite: not implemented, no such HTTP, a login page of the network's
    is_vague = answer.status >= 500 and answer.status not in (501, 505, 511)
    return AMBIGUOUS if is_vague or answer.status == 408 else None


class RetryPolicy:
    """Decides, for one request, whether and when it is sent again.

    A request that was not sent or was refused may always be sent again; one that may have been
    carried out only if doing it twice is the same as doing it once (`repeatable`).
    """

    TRIES = 4
    BUSY_WAITS = 3
    LONGEST_WAIT_S = 60.0
    BACKOFF_S = 0.25
    LONGEST_BACKOFF_S = 4.0
    WAKING_LIMIT_S = 30.0  # after that it is no waking, but something that is broken

    def __init__(
        self,
        *,
        repeatable: bool,
        starting_limit_s: float = WAKE_LIMIT_S,
        wakes: bool = False,
        changes: bool = False,
        limit_s: float = float("inf"),
    ) -> None:
        self.repeatable = repeatable
        self.limit_s = limit_s  # of all waits together
        self.changes = changes
        self.starting_limit_s = starting_limit_s
        self.wakes = wakes
        self.failures = 0  # not sent, and ambiguous
        self.refusals = 0  # for being busy
        self.gateway_errors = 0  # while it may be waking
        self.waking_s = 0.0  # that these took, and the waits behind them
        self.uncertain = False  # whether a try may have been carried out all the same
        self.waited_s = 0.0

    def kind(self, answer: Answer) -> str | None:
        """Return the kind of failure that an answer is to this request, None if it is final."""
        kind = failure_kind(answer)
        is_gateway_error = kind == AMBIGUOUS and answer.status in (502, 503, 504)
        return WAKING if self.wakes and is_gateway_error else kind

    def wait(
        self, kind: str, asked_s: float | None, jitter: float, took_s: float = 0.0
    ) -> float | None:
        """Return the seconds until the next try, None to give up.

        `jitter` is in [0, 1), `took_s` what the failed try took.
        """
        self.uncertain = self.uncertain or kind == AMBIGUOUS
        if kind == AMBIGUOUS and not self.repeatable:
            return None
        if kind == BUSY:
            self.refusals += 1
            wait = self.LONGEST_WAIT_S if asked_s is None else asked_s
            give_up = self.refusals > self.BUSY_WAITS or wait > self.LONGEST_WAIT_S
        elif kind == STARTING:
            wait = min(max(0.1, 1.0 if asked_s is None else asked_s), self.LONGEST_WAIT_S)
            give_up = self.waited_s + wait > self.starting_limit_s
        elif kind == WAKING:
            self.gateway_errors += 1
            wait = min(self.BACKOFF_S * 2**self.gateway_errors, self.LONGEST_BACKOFF_S)
            wait *= 0.5 + jitter / 2
            self.waking_s += took_s + wait
            limit_s = min(self.starting_limit_s, self.WAKING_LIMIT_S)
            give_up = self.waking_s > limit_s and self.gateway_errors >= self.TRIES
        else:
            self.failures += 1
            wait = self.BACKOFF_S * 2**self.failures * (0.5 + jitter / 2)
            give_up = self.failures >= self.TRIES
        self.waited_s += wait
        return None if give_up or self.waited_s > self.limit_s else wait


KEPT_LIMIT_S = 50.0  # servers and networks forget idle connections, few within a minute
CLOSE_SEEN_S = 0.05  # until a close that was sent behind an answer is here as well
# application/x-ndjson is named for event streams alone: a list would become an endless one by it
JSON_HEADERS = {"Accept": "application/json"}
JSON_BODY = {"Content-Type": "application/json"}
EVENT_HEADERS = {"Accept": "application/x-ndjson, application/json"} | JSON_BODY
EXEC_HEADERS = {"Accept": "*/*", "Content-Type": "application/octet-stream"}


def ask_over(connection: http.client.HTTPConnection, request: Any) -> Any:
    """Send a request over a connection and return the head of the answer.

    An answer may come, and the connection end, while the body is still being sent (RFC 9112, 9.3).
    A peer that takes nothing of it for long may have answered too. Such a connection is not kept:
    the next request would be the rest of this body.
    """
    import http.client

    response: Any
    answer_s = connection.sock.gettimeout()
    connection.sock.settimeout(answer_s or SILENCE_TIMEOUT_S)
    headers, body = request.unredirected_hdrs, request.data
    if body is not None:
        headers, body = headers | {"Content-Length": str(len(body))}, blocks(body)
    try:
        connection.request(request.method, request.selector, body, headers)
    except OSError as failure:
        try:
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):
            raise failure from None
    else:
        connection.sock.settimeout(answer_s)
        response = connection.getresponse()
        response.sock = connection.sock
    response.connection = connection
    response.target = request.selector
    response.was_upgrade = "Upgrade" in request.unredirected_hdrs
    return response


def blocks(body: bytes) -> Iterator[bytes]:
    """Yield a body in parts, since a timeout is one for all that is sent at once."""
    for start in range(0, len(body), 1 << 16):
        yield body[start : start + (1 << 16)]


class Transport:
    """The one way out to the API: every connection, header and answer passes through here."""

    def __init__(
        self,
        base: str,
        credential: Credential,
        *,
        console: Console,
        clock: Clock,
        environ: Mapping[str, str],
        look_again: Callable[[], Credential] | None = None,
    ) -> None:
        import urllib.parse

        self.base = urllib.parse.urlsplit(base)
        self.credential = credential
        self.look_again = look_again  # for a token, where there may be a newer one
        self.console = console
        self.clock = clock
        self.environ = environ
        self.connector = Connector(self.base, console=console, clock=clock, environ=environ)
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []  # since when, and which
        self._is_closed = False
        self._keeps = False  # whether the server has answered on a connection that was kept
        self._breaks = False  # whether one has ended under a request
        self._opener: urllib.request.OpenerDirector | None = None
        self.server_date: datetime.datetime | None = None  # of the newest answer

    def target(self, path: str, query: Sequence[tuple[str, str]] = ()) -> str:
        """Return the request target: the base's path, `path`, and the query, encoded."""
        import urllib.parse

        words = urllib.parse.urlencode([(key, to_bytes(value)) for key, value in query])
        return self.base.path + path + ("?" + words if words else "")

    def headers(self) -> dict[str, str]:
        """Return the headers of every request; they go to the API's own origin alone."""
        token = self.credential.token.reveal()
        return {"Authorization": "Bearer " + token, "User-Agent": USER_AGENT}

    def _build_opener(self) -> urllib.request.OpenerDirector:
        """Return urllib's machinery with our connections and without redirects or proxies.

        Its own do_open says `Connection: close`, so the handler is ours.
        """
        import urllib.request

        class Handler(urllib.request.BaseHandler):
            def http_open(_self, request: Any) -> http.client.HTTPResponse:
                return self._exchange(request)

            https_open = http_open

        opener = urllib.request.OpenerDirector()
        opener.add_handler(Handler())
        return opener

    # The one place that sends. A connection is kept when an answer has been read to its end, and
    # taken for the next request, or for a WebSocket, which does not give it back. Before that it is
    # looked at: it may have been closed, or hold an answer that nobody asked for. The server may
    # still close it in that very moment. Then a GET is sent once more at once, on another one; a
    # change is never sent twice because of it, but decided on by what may have happened to it. So
    # that this is rare, a change waits a moment for a close that is right behind an answer, until
    # the server has shown that it keeps connections; where it has broken one, changes get new ones.
    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        deadline: Deadline,
        body: bytes | None = None,
    ) -> http.client.HTTPResponse:
        """Send one request and return the head of its answer; NotSentError or BrokenAnswerError.

        A redirect is not followed. Whoever closes the answer before its end closes the connection.
        A token that is refused may have been replaced since we looked for it.
        """
        used = self.credential
        response = self._send(method, target, headers, deadline, body)
        if response.status == 401 and self._is_replaced(used):
            response.close()
            response = self._send(method, target, headers, deadline, body)
        return response

    def _is_replaced(self, used: Credential) -> bool:
        """Return whether there is another token by now than the one that was refused."""
        if self.look_again and self.credential is used:
            with contextlib.suppress(ThoptersError):  # then the refusal stands
                found = self.look_again()
                # in another org the same names are other sprites
                if found.org == used.org and not found.token.is_same_as(used.token):
                    self.credential = found
                    self.console.detail(f"the token was refused; {found.source} has another one")
        return self.credential is not used

    def _send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        deadline: Deadline,
        body: bytes | None,
    ) -> http.client.HTTPResponse:
        import urllib.request

        url = f"{self.base.scheme}://{self.base.netloc}{target}"
        request = urllib.request.Request(url, data=body, method=method)  # noqa: S310 (api_base)
        request.unredirected_hdrs = self.headers() | dict(headers)
        request.deadline = deadline  # type: ignore[attr-defined]
        self._opener = self._opener or self._build_opener()
        started = self.clock.monotonic()
        response: http.client.HTTPResponse = self._opener.open(request)
        self._trace(request, started, response)
        return response

    def _exchange(self, request: Any) -> http.client.HTTPResponse:
        import http.client

        deadline: Deadline = request.deadline
        while True:
            kept = self._take_idle(changes=request.method != "GET")
            with deadline.paused():
                connection = kept or self.connector.open(deadline.connect_s)
            may_be_stale = kept and request.method == "GET"
            try:
                deadline.watch(connection.sock)
                response: http.client.HTTPResponse = ask_over(connection, request)
            except BaseException as error:
                connection.close()
                if not isinstance(error, (OSError, http.client.HTTPException, ValueError)):
                    raise
                is_closed = isinstance(error, OSError) and not isinstance(error, TimeoutError)
                self._breaks = self._breaks or kept is not None
                if may_be_stale and is_closed and not deadline.passed:
                    continue
                raise self.no_answer(error, deadline) from None
            if kept and response.status == 408:  # it was on its way before the request
                self._breaks = True
                if may_be_stale:
                    response.close()
                    continue
            self._keeps = self._keeps or kept is not None
            return response

    def _take_idle(self, *, changes: bool) -> http.client.HTTPConnection | None:
        """Return a kept connection that still stands, for a request that `changes` something."""
        quiet_s = CLOSE_SEEN_S if changes and not self._keeps else 0.0
        while not (changes and self._breaks) and (idle := self._pop_idle()):
            since, connection = idle
            idle_s = self.clock.monotonic() - since
            if idle_s < KEPT_LIMIT_S and is_quiet(connection.sock, max(0.0, quiet_s - idle_s)):
                return connection
            connection.close()
        return None

    def _pop_idle(self) -> tuple[float, http.client.HTTPConnection] | None:
        try:
            return self._idle.pop()
        except IndexError:  # another thread may have been faster
            return None

    def _keep(self, response: Any) -> None:
        """Keep the connection of an answer that was read to its end, if the server does."""
        connection, response.connection = response.connection, None
        response.close()
        if response.sock and not response.is_followed and not response.was_upgrade:
            self._idle.append((self.clock.monotonic(), connection))
        else:
            connection.close()
        if self._is_closed:  # meanwhile, by another thread
            self.close()

    def close(self) -> None:
        self._is_closed = True
        while idle := self._pop_idle():
            idle[1].close()

    def no_answer(self, error: BaseException | None, deadline: Deadline) -> BrokenAnswerError:
        host = self.base.hostname
        if deadline.passed:
            return BrokenAnswerError(
                f"{host} did not answer in full within {deadline.limit_s:.0f} s"
            )
        self.console.detail(f"{type(error).__name__}: {error}" if error else "the body is short")
        if isinstance(error, TimeoutError):
            return BrokenAnswerError(f"{host} stopped answering")
        return BrokenAnswerError(
            f"the connection to {host} broke off before the answer was complete"
        )

    def pieces(
        self, response: http.client.HTTPResponse, deadline: Deadline, cap: int
    ) -> Iterator[bytes]:
        """Yield a body as it comes; NoAnswerError if it is cut short or longer than `cap` bytes.

        http.client takes a short body for a whole one, so what is missing is looked for here.
        """
        import http.client

        total = 0
        try:
            while piece := response.read1(65536):
                total += len(piece)
                if total > cap:
                    raise BrokenAnswerError(f"the answer is longer than {cap >> 20} MiB")
                yield piece
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self.no_answer(error, deadline) from None
        if response.length or deadline.passed:
            raise self.no_answer(None, deadline)
        self._keep(response)

    def read_answer(self, response: Any, deadline: Deadline) -> Answer:
        cap = MAX_JSON_BYTES if response.status < 300 else MAX_ERROR_BYTES
        with response:
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise BrokenAnswerError("the answer is compressed, which was not asked for")
            body = b"".join(self.pieces(response, deadline, cap))
        headers, redact = response.headers, self.console.redact
        return Answer(response.status, headers, body, redact, response.target)

    def _trace(self, request: Any, started: float, response: http.client.HTTPResponse) -> None:
        """Keep the server's clock, and with --debug say what was asked and answered."""
        headers = response.headers
        self.server_date = parse_http_date(headers.get("Date")) or self.server_date
        seconds = self.clock.monotonic() - started
        identity = headers.get("fly-request-id") or headers.get("x-request-id") or "-"
        size = headers.get("Content-Length") or "-"
        method = "WS" if "Upgrade" in request.unredirected_hdrs else request.method
        path = request.selector.partition("?")[0]
        self.console.trace(
            f"{method} {path} -> {response.status} in {seconds:.3f} s, id {identity}, bytes {size}"
        )

    def fetch_once(
        self,
        method: str,
        target: str,
        body: bytes | None,
        limit_s: float,
        *,
        connect_s: float | None = None,
    ) -> Answer:
        headers = JSON_HEADERS if body is None else JSON_HEADERS | JSON_BODY
        with Deadline(limit_s, self.clock, connect_s=connect_s) as deadline:
            return self.read_answer(self.send(method, target, headers, deadline, body), deadline)

    def fetch(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        document: object = None,
        limit_s: float = REQUEST_LIMIT_S,
        wakes: bool = False,
    ) -> Answer:
        """Send a request, again where that is safe, and return the final answer, whatever it is.

        `wakes` says that it goes into a sprite, and wakes it.

        Raises NotSentError and, where it may have been carried out unseen, NoAnswerError.
        """
        target = self.target(path, query)
        body = None if document is None else encode_json(document)
        policy = RetryPolicy(
            repeatable=method in ("GET", "PUT", "DELETE"), wakes=wakes, changes=method != "GET"
        )
        return self.retry(policy, lambda: self.fetch_once(method, target, body, limit_s))

    def glance(self, path: str, query: Sequence[tuple[str, str]] = ()) -> Answer | None:
        """GET once, for what only words a message: None where no answer comes within seconds.

        Who reads that message has waited for it already.
        """
        try:
            target = self.target(path, query)
            return self.fetch_once("GET", target, None, GLANCE_LIMIT_S, connect_s=GLANCE_LIMIT_S)
        except (NotSentError, NoAnswerError) as error:
            self.console.detail(error.message)
            return None

    def retry(self, policy: RetryPolicy, attempt: Callable[[], Answer | T]) -> Answer | T:
        """Call `attempt` until it opens something, its answer is final, or `policy` gives up."""
        while True:
            answer, error, asked = None, None, None
            began = self.clock.monotonic()
            try:
                result = attempt()
                if not isinstance(result, Answer):
                    return result
                answer, kind, asked = result, policy.kind(result), result.asked_wait()
                why = f"{answer.status} {answer.error_code()}".strip()
            except (NotSentError, NoAnswerError) as caught:
                error, why = caught, caught.message
                kind = AMBIGUOUS if isinstance(caught, NoAnswerError) else NOT_SENT
                if getattr(caught, "final", False):
                    raise self._after_earlier(caught, policy) from None
            took_s = self.clock.monotonic() - began
            uncertain = policy.uncertain  # by a try before this one
            wait = policy.wait(kind, asked, self.clock.jitter(), took_s) if kind else None
            if wait is None and error:
                raise self._after_earlier(error, policy)
            if wait is None and answer:
                answer.uncertain = uncertain
                return answer
            self.console.detail(f"{why}; trying again in {wait:.1f} s")
            activity = self.console.activity
            usual = activity.text if activity else ""
            if activity and kind == BUSY:
                activity.text = f"the API asks to wait {wait:.0f} s"
            self.clock.sleep(wait or 0.0)
            if activity:
                activity.text = usual

    def _after_earlier(
        self, error: NotSentError | NoAnswerError, policy: RetryPolicy
    ) -> ThoptersError:
        """Return the error of a last try; that of a change tells of the tries before."""
        if policy.changes and policy.uncertain and isinstance(error, NotSentError):
            return BrokenAnswerError(
                f"{error.message}; an earlier try may have been carried out", hint=error.hint
            )
        return error

    def stream(
        self,
        path: str,
        document: object,
        query: Sequence[tuple[str, str]] = (),
        limit_s: float = STREAM_LIMIT_S,
    ) -> Iterator[dict[str, Any]]:
        """POST once and yield the objects of its NDJSON answer; RefusedError for another answer.

        The end of the stream proves nothing: the caller looks for the terminal event.
        """
        target, body = self.target(path, query), encode_json(document)
        with Deadline(limit_s, self.clock) as deadline:
            response = self.retry(
                RetryPolicy(repeatable=False, limit_s=limit_s),
                lambda: self.stream_head(target, EVENT_HEADERS, body, deadline),
            )
            if isinstance(response, Answer):
                raise RefusedError(response)
            with response:
                check_json(response.headers)
                pieces = self.pieces(response, deadline, MAX_JSON_BYTES)
                for line in split_lines(pieces):
                    event = parse_event(line)
                    is_end = event.get("type") == "complete"
                    if is_end and deadline.remaining() > LAST_WORDS_S:
                        deadline.renew(LAST_WORDS_S)  # a server may hold the connection
                    yield event

    def stream_head(
        self, target: str, headers: Mapping[str, str], body: bytes, deadline: Deadline
    ) -> Answer | http.client.HTTPResponse:
        """POST once, and return an answer that is a success with its body still to be read."""
        if deadline.is_over():  # before the first byte was sent
            host = self.base.hostname
            raise NotSentError(f"cannot reach {host}: it timed out", final=True)
        response = self.send("POST", target, headers, deadline, body)
        return response if response.status == 200 else self.read_answer(response, deadline)


NOT_THE_API = "a login page or a filter of the network may have answered in its place"


class RefusedError(ThoptersError):
    """A final answer that is no success; the API room turns it into words."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"the API answered {answer.status}: {answer.reason()}")
        self.answer = answer


def encode_json(document: object) -> bytes:
    import json

    return json.dumps(document).encode()


def json_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object that a text is, {} for everything else."""
    import json

    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    return document if isinstance(document, dict) else {}


def check_json(headers: Message) -> None:
    """Raise NoAnswerError for what is not JSON: a login page, or a filter's words."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/x-ndjson", ""):
        raise BrokenAnswerError(
            f"expected JSON from the API, got {kind}",
            hint=NOT_THE_API,
        )


def decode_json(answer: Answer) -> object:
    """Return the document of an answer that has to be JSON; NoAnswerError if it is none."""
    import json

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    check_json(answer.headers)
    try:
        return json.loads(answer.body, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise BrokenAnswerError(f"the API's answer is not JSON: {answer.reason()}") from None


def split_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a body that comes in pieces, the last one also without a newline."""
    rest = bytearray()  # of the line that is under way; a piece may be a single byte
    for piece in pieces:
        *ends, begun = piece.split(b"\n")
        for end in ends:
            rest += end
            if line := bytes(rest).strip():
                yield line
            rest.clear()
        rest += begun
        if len(rest) > MAX_LINE_BYTES:
            raise BrokenAnswerError(
                f"a line of the answer is longer than {MAX_LINE_BYTES >> 20} MiB"
            )
    if line := bytes(rest).strip():
        yield line


def parse_event(line: bytes) -> dict[str, Any]:
    import json

    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise BrokenAnswerError("the API sent a line of progress that can't be understood")
    return event


# --- websocket --------------------------------------------------------------------------

# RFC 6455, a client's side, as far as it is needed: a parser without a socket, and the connection
# with its liveness.

PING_INTERVAL_S = 15.0
DEAD_AFTER_S = 45.0
STUCK_AFTER_S = 900.0  # of silence, where a slow reader may be what keeps the server from answering
OP_CONTINUATION, OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG = 0, 1, 2, 8, 9, 10


class WebSocketLost(Exception):
    """The connection ended, or the peer broke the protocol.

    `is_end`: whether the peer meant it, by a close frame or by an end between two messages.
    `is_said`: whether it was a close frame.
    `is_late`: whether our own side had ended before, and all of it was taken: perhaps nobody waits
    any more.
    """

    is_end = is_said = is_late = False


def mask(payload: bytes, key: bytes) -> bytes:
    """XOR a payload with the repeated 4-byte key (RFC 6455, 5.3), as one long number."""
    size = len(payload)
    repeated = (key * (size // 4 + 1))[:size]
    number = int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")
    return number.to_bytes(size, "little")


def encode_frame(opcode: int, payload: bytes, key: bytes) -> bytes:
    """Return one final, masked client frame."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big")
    return head + key + mask(payload, key)


class FrameParser:
    """Turns received bytes into messages: RFC 6455, a client's side, no extensions.

    Bytes are received into `space()`; what `messages()` yields is valid until it goes on.
    """

    ROOM = 1 << 20

    def __init__(self, early: bytes) -> None:
        self._buffer = bytearray(self.ROOM)
        self._buffer[: len(early)] = early
        self._start, self._end = 0, len(early)
        self._opcode = 0  # of the message that is under way
        self._message = bytearray()  # its fragments so far

    def space(self) -> memoryview:
        """Return room for more bytes; say how many came with `received()`."""
        if self._start == self._end:
            self._start = self._end = 0
        if len(self._buffer) - self._end < self.ROOM // 4:
            rest = self._buffer[self._start : self._end]
            if len(self._buffer) - len(rest) < self.ROOM // 2:
                self._buffer = bytearray(2 * len(self._buffer))
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return memoryview(self._buffer)[self._end :]

    def received(self, count: int) -> None:
        self._end += count

    def is_amid(self) -> bool:
        """Return whether a message has begun and not ended; all that is whole has been taken."""
        return self._start != self._end or bool(self._opcode)

    def messages(self) -> Iterator[tuple[int, bytes | memoryview]]:
        """Yield (opcode, payload) for each whole message and control frame that is there."""
        while frame := self._frame():
            opcode, final, payload = frame
            if opcode >= OP_CLOSE:
                if not final or len(payload) > 125:
                    raise WebSocketLost("a control frame is broken up or too long")
                yield opcode, bytes(payload)
            elif final and opcode and not self._opcode:
                yield opcode, payload
            else:
                yield from self._fragment(opcode, final, payload)

    def _fragment(
        self, opcode: int, final: bool, payload: memoryview
    ) -> Iterator[tuple[int, bytes]]:
        if bool(opcode) == bool(self._opcode):
            raise WebSocketLost("fragments of messages are mixed up")
        self._opcode = self._opcode or opcode
        self._message += payload
        if len(self._message) > MAX_MESSAGE_BYTES:
            raise WebSocketLost("a message is too long")
        if final:
            yield self._opcode, bytes(self._message)
            self._opcode = 0
            self._message.clear()

    def _frame(self) -> tuple[int, bool, memoryview] | None:
        """Take the next whole frame out of the buffer."""
        view = memoryview(self._buffer)[self._start : self._end]
        if len(view) < 2:
            return None
        first, second = view[0], view[1]
        if first & 0x70 or second & 0x80 or (first & 0x0F) not in (0, 1, 2, 8, 9, 10):
            raise WebSocketLost("a frame breaks the protocol")
        head, size = 2, second
        if second >= 126:
            head = 4 if second == 126 else 10
            if len(view) < head:
                return None
            size = int.from_bytes(view[2:head], "big")
        if size > MAX_MESSAGE_BYTES:
            raise WebSocketLost("a message is too long")
        if len(view) < head + size:
            return None
        self._start += head + size
        return first & 0x0F, bool(first & 0x80), view[head : head + size]


# Liveness. A peer that is gone without a word is known by its silence alone, so we ping, and the
# answers prove that it is there. But a server passes our input on in the order in which it came:
# while a program does not read, the server can be stuck with that, and answers no ping. So each
# ping carries the number of bytes of input sent before it, and its answer says that the server has
# got rid of those. As long as more than a program's side takes unread is on its way, silence is no
# sign of death, and the limit is a long one; but not for what a program of ours reads, as with cp,
# which never leaves it for long. Two other times are no silence: that in which a slow reader of
# ours kept us busy, and that in which we were stopped ourselves. Bytes that had to wait and then
# were taken are as good as something heard.
class WebSocket:
    """A client's side of an open WebSocket; never blocks but in `wait`.

    One thread receives. Any thread may send: the lock keeps OpenSSL to one call at a time.
    """

    MOST_UNSENT = 1 << 20  # with more than that no ping is answered at once
    UNREAD_ROOM = 4095  # bytes that a terminal, or a pipe, takes though its program does not read

    def __init__(self, connection: http.client.HTTPConnection, early: bytes, clock: Clock) -> None:
        import threading

        self.sock: socket.socket = connection.sock
        self._heard_at = clock.monotonic()
        self._asked_at = self._heard_at
        self._input = 0  # bytes sent that a program may leave unread
        self._pinged = 0  # of these, before the newest ping
        self._pong = b""  # what the last one brought back
        self._ping: bytes | None = None  # the newest that is not answered
        self._clock = clock
        self._connection = connection
        self._parser = FrameParser(early)
        self._unparsed = bool(early)
        self._outgoing = bytearray()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.sock.setblocking(False)

    def send(self, opcode: int, payload: bytes, *, input_bytes: int = 0) -> None:
        """Send a frame; `input_bytes` of it are for a program that may not read them for long."""
        with self._lock:
            self._add(opcode, payload, input_bytes)
            self._flush()

    def _add(self, opcode: int, payload: bytes, input_bytes: int = 0) -> None:
        self._outgoing += encode_frame(opcode, payload, os.urandom(4))
        self._input += input_bytes

    def ping(self) -> None:
        """Ask the server whether it is there, and has got rid of the input so far."""
        with self._lock:
            self._add_ping()
            self._flush()

    def _add_ping(self) -> None:
        self._pinged = self._input
        self._add(OP_PING, self._input.to_bytes(8, "big"))

    def type(self, keys: bytes) -> None:
        """Send what was typed, and ask at once whether it has arrived."""
        with self._lock:
            self._add(OP_BINARY, keys, len(keys))
            self._confirm()
            self._flush()

    def confirm_input(self) -> None:
        """Ask for input that was sent while an answer was under way."""
        if self._pinged < self._input:
            with self._lock:
                self._confirm()
                self._flush()

    def _confirm(self) -> None:
        if self._pinged <= self._input - self.unread():  # the newest ping is answered
            self._add_ping()

    def is_answered(self) -> bool:
        """Return whether the server has answered a ping."""
        return bool(self._pong)

    def unread(self) -> int:
        """Return how many bytes of input the server is not known to have got rid of."""
        return self._input - int.from_bytes(self._pong, "big")

    def is_behind(self) -> bool:
        """Return whether so much input is on its way that the server may be stuck with it."""
        return self.unread() > self.UNREAD_ROOM

    def unsent(self) -> int:
        """Return how many bytes the connection has not taken yet."""
        return len(self._outgoing)

    def drain(self, timeout_s: float) -> bool:
        """Wait until more can be sent, and send it; False once the connection is closed."""
        if self._closed.is_set():
            return False
        if wait_for([], [self.sock], timeout_s)[1]:
            self._flush_more()
        return True

    def _flush_more(self) -> None:
        """Send what had to wait; that it is taken shows that somebody is there."""
        with self._lock:
            before = len(self._outgoing)
            self._flush()
            if len(self._outgoing) < before:
                self._heard_at = self._clock.monotonic()

    def _flush(self) -> None:
        import ssl

        try:
            while self._outgoing:
                with memoryview(self._outgoing) as view:
                    count = self.sock.send(view[: 1 << 18])
                del self._outgoing[:count]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._outgoing.clear()  # what has arrived can still be read, and ends with the reason

    def messages(self) -> Iterator[tuple[int, bytes | memoryview]]:
        """Yield the (opcode, payload) of the text and binary messages of one receive.

        Raises WebSocketLost at the end of the connection, also where silence shows it. Pings are
        answered here.
        """
        self._answer_ping()
        if not self._unparsed and not self._receive():
            self._check_liveness()
            return
        self._unparsed = False
        for opcode, payload in self._parser.messages():
            if opcode == OP_PING:
                self._ping = bytes(payload)
                self._answer_ping()
            elif opcode == OP_CLOSE:
                raise end_of(bytes(payload))
            elif opcode == OP_PONG:
                self._pong = bytes(payload)
            else:
                yield opcode, payload
                self._heard_at = self._clock.monotonic()  # our reader's time is no silence

    def _answer_ping(self) -> None:
        """Send the pong that is due, unless much waits already: it may stand for those before."""
        if self._ping is not None and self.unsent() < self.MOST_UNSENT:
            self.send(OP_PONG, self._ping)
            self._ping = None

    def one_message(self) -> list[tuple[int, bytes]]:
        """Return the next message if one is there, and leave what follows for `messages()`."""
        for opcode, payload in self.messages():
            self._unparsed = True
            return [(opcode, bytes(payload))]
        return []

    def _receive(self) -> bool:
        import ssl

        with self._lock:
            try:
                count = self.sock.recv_into(self._parser.space())
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except OSError as error:
                raise WebSocketLost(error.strerror or "the connection broke") from None
        if not count and self._parser.is_amid():
            raise WebSocketLost("the connection ended in the middle of a message")
        if not count:
            raise end_of(None)
        self._parser.received(count)
        self._heard_at = self._clock.monotonic()
        return True

    def _check_liveness(self) -> None:
        limit_s = STUCK_AFTER_S if self.is_behind() else DEAD_AFTER_S
        if self.silence() > limit_s:
            raise WebSocketLost(f"nothing was heard for {limit_s:.0f} s")

    def silence(self) -> float:
        """Return for how long nothing came; a time in which we were stopped does not count."""
        now = self._clock.monotonic()
        self._heard_at = min(now, self._heard_at + max(0.0, now - self._asked_at - 2.0))
        self._asked_at = now
        return now - self._heard_at

    def wait(self, timeout_s: float, others: Sequence[Any] = ()) -> list[Any]:
        """Wait for the connection or one of `others`; return which of these can be read."""
        with self._lock:
            pending = getattr(self.sock, "pending", int)()  # decrypted already: unseen by select
        if self._unparsed or pending:
            timeout_s = 0
        writers = [self.sock] if self._outgoing else []
        readable, writable = wait_for([self.sock, *others], writers, timeout_s)
        if writable:
            self._flush_more()
        return [other for other in others if other in readable]

    def receive_in_small_parts(self, size: int) -> None:
        """Let no more than about `size` bytes wait here: what a user does about them comes late."""
        import socket

        with contextlib.suppress(OSError):  # the connection has broken, as the next read tells
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def keep_alive(self) -> None:
        """Ping from a thread, also while the caller is busy writing to a slow reader."""

        def ping() -> None:
            while not self._closed.wait(PING_INTERVAL_S):
                self.ping()

        with contextlib.suppress(ThoptersError):  # the system's own probes have to do
            in_background(ping)

    def close(self) -> None:
        """Say goodbye if that can be done at once, and leave: nobody waits for an answer."""
        self._closed.set()
        self.send(OP_CLOSE, (1000).to_bytes(2, "big"))
        self._connection.close()


def end_of(frame: bytes | None) -> WebSocketLost:
    """Return what a close frame means, or with None the end of the stream between two messages."""
    payload = frame or b""
    if len(payload) < 2:
        lost = WebSocketLost("the connection was closed")
    else:
        code, text = int.from_bytes(payload[:2], "big"), payload[2:].decode("utf-8", "replace")
        lost = WebSocketLost(f"closed with code {code}" + (f": {text}" if text else ""))
    lost.is_end = len(payload) < 2 or payload[:2] in (b"\x03\xe8", b"\x03\xe9")  # 1000, 1001
    lost.is_said = lost.is_end and frame is not None
    return lost


class UpgradeBrokenError(BrokenAnswerError):
    """What answers a WebSocket upgrade is no WebSocket server, whatever it says."""

    final = True  # asking again would change nothing

    def __init__(self, how: str) -> None:
        super().__init__(
            f"something between here and the API {how} the WebSocket upgrade",
            hint="exec -T, init, create and cp do without; for the rest use another network",
        )


def open_websocket(transport: Transport, target: str, limit_s: float) -> WebSocket | Answer:
    """Upgrade a connection; the answer instead where the API refuses.

    Raises NotSentError and BrokenAnswerError as a request does.
    """
    import base64
    import hashlib

    key = base64.b64encode(os.urandom(16)).decode()
    proof = hashlib.sha1(  # noqa: S324 (RFC 6455 names it; it protects nothing)
        (key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()
    ).digest()
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }
    with Deadline(limit_s, transport.clock) as deadline:
        response: Any = transport.send("GET", target, upgrade, deadline)
        if response.status != 101:
            return transport.read_answer(response, deadline)
        connection, response.connection = response.connection, None  # it is the WebSocket's now
        accept = response.headers.get("Sec-WebSocket-Accept", "").strip()
        if accept != base64.b64encode(proof).decode() or connection.sock is None:
            connection.close()
            raise UpgradeBrokenError("broke")
        try:
            early = peek(connection.sock, response.fp)  # frames, in the same packet as the head
        except OSError as error:
            connection.close()
            raise transport.no_answer(error, deadline) from None
    return WebSocket(connection, early, transport.clock)


# --- api --------------------------------------------------------------------------------

# The platform's endpoints and what they answer, as values; the handle of one sprite. What a status
# becomes (401, 404, 429 and the others) is decided in SpritesApi._refusal, for every endpoint.

CREATE_LIMIT_S = 180.0
RECHECK_AFTER_S = 0.3  # until a sprite that was not found is looked for once more
MAX_PAGES = 1000
PAGE_SIZE = 500  # the documented maximum


def text_field(item: dict[str, Any], *keys: str) -> str:
    """Return the first of `keys` that holds text, "" if none does: every field is optional."""
    return next((item[key] for key in keys if isinstance(item.get(key), str)), "")


def known_fields(item: SpriteInfo | Checkpoint) -> dict[str, Any]:
    """Return the fields of an object, None for a text that is empty."""
    values = {key: getattr(item, key) for key in item.__slots__}
    return {key: None if value == "" else value for key, value in values.items()}


def list_field(document: object, key: str) -> list[Any] | None:
    """Return the list that an object has under `key`, None if it has none.

    An empty list may be null, as Go writes it; a key that is missing says nothing.
    """
    if not isinstance(document, dict) or key not in document:
        return None
    items = [] if document[key] is None else document[key]
    return items if isinstance(items, list) else None


def host_of(url: str) -> str:
    """Return the host of a URL that may be none at all, then ""."""
    import urllib.parse

    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""


COUNTED = ("running", "warm", "cold")  # the documented states
# The first two are documented; the others were seen, or are what clients look for
ASLEEP = ("warm", "cold", "suspended", "sleeping", "paused", "stopped")


def state_of(status: str, console: Console | None = None) -> str:
    """Return a status in the user's words; with -v, by a console's, the platform's own behind."""
    state = "hibernating" if status in ASLEEP else status or "unknown"
    is_renamed = state != status and status and console and console.verbose
    return f"{state} ({status})" if is_renamed else state


class SpriteInfo:
    """What the API says of a sprite; "" where it says nothing."""

    __slots__ = (
        "auth",
        "created_at",
        "id",
        "name",
        "organization",
        "private_access",
        "status",
        "updated_at",
        "url",
    )

    def __init__(self, item: dict[str, Any]) -> None:
        self.name = text_field(item, "name")
        self.id = text_field(item, "id")
        self.organization = text_field(item, "organization", "org_slug")
        self.status = text_field(item, "status")
        self.url = text_field(item, "url")
        settings = item.get("url_settings")
        settings = settings if isinstance(settings, dict) else {}
        self.auth = text_field(settings, "auth")
        self.private_access = text_field(settings, "private_access")
        self.created_at = text_field(item, "created_at")
        self.updated_at = text_field(item, "updated_at")

    def state(self) -> str:
        """Return the status in the user's words; one that we do not know as it is."""
        return state_of(self.status)

    def is_asleep(self) -> bool:
        return self.status in ASLEEP

    def to_json(self) -> dict[str, Any]:
        return {**known_fields(self), "state": self.state()}


class Checkpoint:
    """A checkpoint; `create_time` is an RFC 3339 stamp, `health` a word such as mount_failed."""

    __slots__ = ("comment", "create_time", "health", "id", "is_auto")

    def __init__(self, item: dict[str, Any]) -> None:
        self.id = text_field(item, "id")
        self.create_time = text_field(item, "create_time")
        self.comment = text_field(item, "comment")
        self.health = text_field(item, "health")
        self.is_auto = item.get("is_auto") is True or self.id.startswith("auto-")

    def to_json(self) -> dict[str, Any]:
        return known_fields(self)


def order_of(identity: str) -> tuple[int, str]:
    """Return what sorts ids as they were given, v9 before v10."""
    import re

    found = re.search(r"[0-9]{1,18}\Z", identity)
    return int(found[0]) if found else -1, identity


def same_moment(first: float, second: float) -> bool:
    """Return whether two times of creation, in seconds, are one; 0 is not known and may be."""
    return not first or not second or abs(first - second) < 2  # one may lack a part of a second


class Session:
    """A command that runs in a sprite, and perhaps outlives its client; times are RFC 3339.

    The platform's number `id` means another session after a cold boot, so `lasting_id` has the time
    of creation as well, in base 36.
    """

    __slots__ = ("command", "created", "id", "is_terminal", "last_activity")

    def __init__(self, item: dict[str, Any]) -> None:
        identity = item.get("id")  # a number on live servers, a text in the documentation
        self.id = str(identity) if isinstance(identity, (int, str)) else ""
        self.command = text_field(item, "command")
        self.created = text_field(item, "created")
        self.last_activity = text_field(item, "last_activity")
        self.is_terminal = item.get("tty") is True

    @property
    def created_at(self) -> float:
        """Return when it was created, in seconds of the epoch; 0 if that is not told."""
        moment = parse_time(self.created)
        return max(0, moment.timestamp()) if moment else 0

    @property
    def lasting_id(self) -> str:
        return lasting_id(self.id, self.created_at)


def lasting_id(number: str, created_at: float) -> str:
    import string

    rest, digits = int(created_at), ""
    while rest:
        rest, digit = divmod(rest, 36)
        digits = (string.digits + string.ascii_lowercase)[digit] + digits
    return f"{number}.{digits or '0'}"


def read_items(
    kind: Callable[[dict[str, Any]], T], items: object, what: str, key: str = "id"
) -> list[T]:
    """Return what a list of the API holds; NoAnswerError if it is none, or an item lacks `key`.

    Nothing is left out: what is not in a list is taken for gone.
    """
    if not isinstance(items, list):
        raise NoAnswerError(f"the API's list of {what} has no list in it")
    found = [kind(item if isinstance(item, dict) else {}) for item in items]
    if not all(getattr(item, key) for item in found):
        raise NoAnswerError(f"the API's list of {what} holds something without {key}")
    return found


class Listing:
    """All sprites, by name, and the plan's limits, None for no limit, of the states that are told.

    The API's own counts are those of one page, so nobody counts by them.
    """

    __slots__ = ("limits", "sprites")

    def __init__(self) -> None:
        self.sprites: dict[str, SpriteInfo] = {}
        self.limits: dict[str, int | None] = {}

    def add(self, page: dict[str, Any]) -> None:
        for item in read_items(SpriteInfo, list_field(page, "sprites"), "sprites", "name"):
            self.sprites[item.name] = item
        org = page.get("org")
        numbers = {**page, **org} if isinstance(org, dict) else page
        for state in COUNTED:
            limit = numbers.get(state + "_limit")
            if type(numbers.get(state)) is int or type(limit) is int:
                self.limits[state] = limit if type(limit) is int else None


# Plain texts of a VM's own server; "" stands for any. But for the first, which lists have too, they
# count on paths into its sprite alone. The contract: tests/emulation/CONTRACT.md, Errors
VM_WORDS = {
    401: ("Missing or invalid authentication",),
    403: (),
    404: ("session not found", "404 page not found"),
    502: ("Proxy error",),
    503: ("Storage not ready", "Process not ready", "Policy not ready"),
}


def is_own_word(answer: Answer) -> bool:
    """Return whether a refusal is the API's own: JSON with an `error`, or a text of the VM's.

    A filter, a proxy or a login page between here and the API answers with the same statuses, and
    they say nothing of a token or a sprite.
    """
    details = answer.details()
    if answer.error_code() or isinstance(details.get("errors"), list):
        return True
    inside = answer.target.partition("?")[0].partition("/v1/sprites/")[2]
    is_text = answer.headers.get("Content-Type", "").lower().startswith("text/plain")
    if not is_text or ("/" not in inside and answer.status != 401):
        return False
    words = answer.body.decode("utf-8", "replace").strip()
    return bool(words) and words.startswith(VM_WORDS.get(answer.status, ("",)))


def is_not_up(answer: Answer) -> bool:
    """Return whether a VM's own server says that it has begun nothing, as it is not up yet."""
    return answer.status == 503 and is_own_word(answer)


def outcome_unknown(doing: str, error: NoAnswerError) -> NoAnswerError:
    """Return the error of a change of which no answer came."""
    return NoAnswerError(f"cannot tell whether the API could {doing}: {error.message}",
                         hint=error.hint)  # fmt: skip


def limit_facts(answer: Answer) -> str:
    """Return what a refusal tells of its limit, in brackets; "" for nothing."""
    numbers = {
        key: value for key, value in answer.details().items() if type(value) is int and value >= 0
    }
    told = [f"the limit is {numbers['limit']}"] if "limit" in numbers else []
    if told and "window_seconds" in numbers:
        told = [f"{told[0]} in {format_duration(numbers['window_seconds'])}"]
    if "current_count" in numbers:
        told.append(f"{numbers['current_count']} now")
    return f" ({', '.join(told)})" if told else ""


class SpritesApi:
    """The platform's endpoints, one short method each."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.clock = transport.clock
        self.console = transport.console
        self.websockets_refused = False  # by something between here and the API

    def now(self) -> datetime.datetime:
        """Return the server's time, so that ages are right under a wrong local clock."""
        return self.transport.server_date or self.clock.utc()

    def sprite(self, name: str) -> Sprite:
        return Sprite(name, self.console, self.clock, lambda: self)

    def refuse(
        self, answer: Answer, doing: str, name: str = "", *, changes: bool = False
    ) -> NoReturn:
        """Raise the error that an answer stands for: what failed, why, and the next step.

        Of a request that `changes` something, an answer that is no definite no says nothing, and
        one that is tells nothing of an earlier try.
        """
        tried = f"an earlier try to {doing} may have been carried out"
        with After(tried if changes and answer.uncertain else ""):
            error = self._refusal(answer, doing, name, changes=changes)
            is_no = answer.status < 500 and failure_kind(answer) != AMBIGUOUS
            is_waking = failure_kind(answer) == STARTING or is_not_up(answer)
            is_known = not isinstance(error, NoAnswerError)
            error.is_refusal = is_known and (is_waking or (is_no and answer.status >= 400))
            error.is_early = answer.status in (502, 503) and is_own_word(answer)
            raise error

    def _refusal(self, answer: Answer, doing: str, name: str, *, changes: bool) -> ThoptersError:
        status, reason = answer.status, answer.reason()
        if 400 <= status < 500 and status not in (408, 429) and not is_own_word(answer):
            cannot = f"cannot tell whether the API could {doing}" if changes else f"cannot {doing}"
            return BrokenAnswerError(
                f"{cannot}: something between here and the API answered {status}: {reason}",
                hint=NOT_THE_API,
            )
        is_vague = failure_kind(answer) == AMBIGUOUS and not is_not_up(answer)
        if changes and (is_vague or 200 <= status < 300):
            return NoAnswerError(
                f"cannot tell whether the API could {doing}: it answered {status}: {reason}"
            )
        if status == 401:
            return AuthError(
                f"cannot {doing}: the API refused the token from "
                f"{self.transport.credential.source}",
                hint="log in again with: sprite login; or put a valid token into SPRITE_TOKEN",
            )
        if status == 403:
            return AuthError(
                f"cannot {doing}: the token is not allowed to: {reason}",
                hint="a token may be limited to a name prefix or a label; use another",
            )
        if status == 404 and name:
            listed, _ = self.glance_at_list(name)
            listed = listed if name in listed else self.glance_at_list("")[0]
            return self.unknown_sprite(name, list(listed))
        if status in (404, 410):
            return NotFoundError(f"cannot {doing}: {reason}")
        if status in (402, 429):
            asked_s = answer.asked_wait()
            wait = "wait" if asked_s is None else f"wait {format_duration(asked_s)}"
            hint = f"{wait}, or let another sprite sleep: thopters list"
            upgrade = answer.details().get("upgrade_url")
            return LimitError(
                f"cannot {doing}: {reason}{limit_facts(answer)}",
                hint=f"{hint}; a larger plan: {upgrade}" if upgrade else hint,
            )
        if 300 <= status < 400:
            where = host_of(answer.headers.get("Location", ""))
            return ThoptersError(
                f"cannot {doing}: the API answered {status}, a redirect to "
                f"{where or 'nowhere'}, which is never followed",
                hint="check SPRITES_API_URL and the network's proxy",
            )
        return ThoptersError(f"cannot {doing}: the API answered {status}: {reason}")

    def listed_names(self, prefix: str = "") -> list[str]:
        """Return the names of all sprites, none where they can't be listed."""
        try:
            return list(self.list_sprites(prefix).sprites)
        except ThoptersError:
            return []

    def glance_at_list(self, prefix: str) -> tuple[dict[str, SpriteInfo], bool]:
        """Return a list's first page by name, for a message, and whether that is all of it."""
        query = [("prefix", prefix), ("max_results", str(PAGE_SIZE))]
        answer = self.transport.glance("/v1/sprites", [pair for pair in query if pair[1]])
        page = answer.details() if answer and answer.status == 200 else {}
        items = list_field(page, "sprites")
        if items is None:
            return {}, False
        found = [SpriteInfo(item) for item in items if isinstance(item, dict)]
        self.console.redact.spare("\n".join(info.name for info in found))
        return {info.name: info for info in found}, page.get("has_more") is not True

    def unknown_sprite(self, name: str, names: list[str]) -> NotFoundError:
        """Return the error for a name that does not exist, with the nearest of those that do."""
        import difflib

        if name in names:
            return NotFoundError(
                f"the API does not find {name} now, though it lists it", hint="try again"
            )
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see what there is: thopters list"
        return NotFoundError(f"there is no sprite {name}", hint=hint)

    def fetch_json(self, answer: Answer, doing: str, name: str = "") -> Any:
        if not 200 <= answer.status < 300:
            self.refuse(answer, doing, name)
        return decode_json(answer)

    def list_sprites(self, prefix: str) -> Listing:
        """Return every sprite whose name starts with `prefix`, over all pages."""
        listing, token, seen = Listing(), "", set[str]()
        for _ in range(MAX_PAGES):
            query = [("prefix", prefix), ("max_results", str(PAGE_SIZE))]
            query = [pair for pair in [*query, ("continuation_token", token)] if pair[1]]
            answer = self.transport.fetch("GET", "/v1/sprites", query=query)
            page = self.fetch_json(answer, "list sprites")
            listing.add(page if isinstance(page, dict) else {})
            if page.get("has_more") is not True:
                self.console.redact.spare("\n".join(listing.sprites))
                return listing
            token = text_field(page, "next_continuation_token")
            if not token or token in seen:
                break
            seen.add(token)
        raise ThoptersError("the API's list of sprites does not end; an incomplete one is no use")

    def create_sprite(self, name: str) -> Answer:
        """POST once per call; only what was surely not carried out is sent again by itself."""
        return self.transport.fetch(
            "POST", "/v1/sprites", document={"name": name}, limit_s=CREATE_LIMIT_S
        )


def is_another(one: str, other: str) -> bool:
    """Return whether two ids are of two sprites, as far as both are told.

    The platform writes one as a UUID, or with `sprite-` before it.
    """
    return bool(one and other) and one[-36:] != other[-36:]


class Sprite:
    """The handle of one sprite: its name, the endpoints for it, and what its users work with.

    Whatever is done to a sprite takes this as its first argument. To get one costs nothing: no
    request is made, and the token is not looked for before the first.
    """

    __slots__ = ("_connect", "clock", "console", "name")

    def __init__(
        self, name: str, console: Console, clock: Clock, connect: Callable[[], SpritesApi]
    ) -> None:
        self.name = name
        self.console = console
        self.clock = clock
        self._connect = connect

    @property
    def api(self) -> SpritesApi:
        return self._connect()

    def path(self, *rest: str) -> str:
        """Return the path of an endpoint below the sprite's own."""
        import urllib.parse

        parts = ["", "v1", "sprites", self.name, *rest]
        return "/".join(urllib.parse.quote(to_bytes(part), safe="") for part in parts)

    def find(self) -> SpriteInfo | None:
        """Return a sprite, None if there is none. Neither wakes it nor counts as activity."""
        answer = self.api.transport.fetch("GET", self.path())
        if answer.status == 404 and is_own_word(answer):
            return None
        item = self.api.fetch_json(answer, f"look at {self.name}")
        info = SpriteInfo(item if isinstance(item, dict) else {})
        if info.name != self.name:
            raise NoAnswerError(f"the API's answer about {self.name} is about something else")
        self.console.redact.spare(self.name)
        return info

    def require(self) -> SpriteInfo:
        """Return a sprite; asked for again if it is listed, as a GET misses one now and then."""
        info, names = self.find(), list[str]()
        if info is None:
            names = self.api.listed_names()
        if self.name in names:
            self.clock.sleep(RECHECK_AFTER_S)
            info = self.find()
        if info is None:
            raise self.api.unknown_sprite(self.name, names)
        return info

    def look(self) -> SpriteInfo:
        """Return a sprite as `require` does, for what goes by whether it sleeps."""
        return self.settled(self.require())

    def settled(self, info: SpriteInfo) -> SpriteInfo:
        """Return what the list says of a sprite that a GET calls asleep, if it is awake there.

        A GET can say `cold` of one that runs, so both have to say it; CONTRACT.md, Conflicts.
        """
        if not info.is_asleep():
            return info
        try:
            listed = self.api.list_sprites(self.name).sprites.get(self.name)
        except AuthError:  # a token may be for one sprite alone
            return info
        return info if listed is None or listed.is_asleep() else listed

    def is_listed(self) -> bool:
        """Return whether the list has it; False where it can't be had."""
        return self.name in self.api.listed_names(self.name)

    def is_known_asleep(self) -> bool:
        """Return whether the API says that it sleeps; False where it does not answer."""
        try:
            return self.look().is_asleep()
        except ThoptersError:
            return False

    def glance(self) -> tuple[int, SpriteInfo]:
        """Return a GET's status and what it says, for a message; 0 where no answer comes soon."""
        answer = self.api.transport.glance(self.path())
        info = SpriteInfo(answer.details() if answer and answer.status == 200 else {})
        if info.name == self.name:
            self.console.redact.spare(self.name)
        return answer.status if answer else 0, info

    def glance_at_state(self) -> str:
        """Return a sprite's state in the user's words, for a message.

        "gone" if there is none, which a list confirms, since a GET misses one now and then, as it
        does that it sleeps; "" where the API does not tell within seconds.
        """
        status, info = self.glance()
        if status == 404 or info.is_asleep():
            listed, is_all = self.api.glance_at_list(self.name)
            if status == 404:
                return "gone" if is_all and self.name not in listed else ""
            info = listed.get(self.name, info)
        return info.state() if info.name == self.name else ""

    def set_url_auth(self, auth: str) -> SpriteInfo:
        """Set who may open the URL ("public" or "sprite"), and return what a GET then says.

        No source says whether that keeps a `private_access` ("admins", "org_users").
        """
        settings = {"url_settings": {"auth": auth}}
        doing = f"change the URL of {self.name}"
        answer = self._change("PUT", self.path(), doing, document=settings)
        if not 200 <= answer.status < 300:
            self.api.refuse(answer, doing, self.name, changes=True)
        with After(f"the API accepted the change of the URL of {self.name}"):
            info = self.require()
        if info.auth != auth:
            seen = f"the URL of {self.name} is still {info.auth}"
            unseen = f"it does not tell who may open the URL of {self.name}"
            raise ThoptersError(f"the API accepted the change, but {seen if info.auth else unseen}")
        return info

    def _change(self, method: str, path: str, doing: str, *, document: object = None) -> Answer:
        """Send what changes something; where no answer comes, the error says of what."""
        try:
            return self.api.transport.fetch(method, path, document=document)
        except NoAnswerError as error:
            raise outcome_unknown(doing, error) from None

    def delete(self, identity: str) -> None:
        """Delete the sprite with this id, "" for any; gone already counts after a try of ours.

        A name is no identity: somebody may have made it anew, before the first try or between two.
        """
        doing, tries = f"destroy {self.name}", 0

        def attempt() -> Answer:
            nonlocal tries
            tries += 1
            if tries > 1:  # the one before may have been carried out
                look = self.api.transport.fetch_once("GET", target, None, REQUEST_LIMIT_S)
                if look.status != 200:
                    return look
                self._compare(SpriteInfo(look.details()), identity)
            return self.api.transport.fetch_once("DELETE", target, None, REQUEST_LIMIT_S)

        target = self.api.transport.target(self.path())
        try:
            answer = self.api.transport.retry(RetryPolicy(repeatable=True, changes=True), attempt)
        except NoAnswerError as error:
            raise outcome_unknown(doing, error) from None
        is_missing = answer.status == 404 and is_own_word(answer)
        gone = answer.status in (200, 202, 204) or (is_missing and answer.uncertain)
        if not gone:
            self.api.refuse(answer, doing, self.name, changes=True)

    def require_same(self, identity: str) -> None:
        """Raise ThoptersError where another sprite than the one with this id has the name."""
        info = self.find()
        if info:
            self._compare(info, identity)

    def _compare(self, info: SpriteInfo, identity: str) -> None:
        """Raise ThoptersError where a sprite has another id than this."""
        if is_another(info.id, identity):
            raise ThoptersError(
                f"{self.name} was made anew meanwhile: the new sprite was left alone",
                hint=f"look at it: thopters list --prefix {self.name}",
            )

    def list_checkpoints(self, *, include_auto: bool) -> list[Checkpoint]:
        """Return the checkpoints, newest first, without the row that stands for the present."""
        query = [("includeAuto", "true")] if include_auto else []
        answer = self.api.transport.fetch("GET", self.path("checkpoints"), query=query)
        items = self.api.fetch_json(answer, f"list the checkpoints of {self.name}", self.name)
        what = f"checkpoints of {self.name}"
        found = read_items(Checkpoint, [] if items is None else items, what)
        found = [item for item in found if item.id not in ("Current", "active")]
        never = parse_time("0001-01-01T00:00:00Z")
        found.sort(
            key=lambda item: (parse_time(item.create_time) or never, order_of(item.id)),
            reverse=True,
        )
        return [item for item in found if include_auto or not item.is_auto]

    def create_checkpoint(self, comment: str, limit_s: float) -> Iterator[str]:
        """Make a checkpoint, yielding the platform's words, the final ones last."""
        document = {"comment": comment} if comment else {}
        doing = f"checkpoint {self.name}"
        path = self.path("checkpoint")
        return self._stream_progress(path, document, doing, missing=self.name, limit_s=limit_s)

    def restore_checkpoint(self, identity: str, limit_s: float) -> Iterator[str]:
        """Restore a checkpoint, yielding the platform's words. It goes on behind the last one."""
        path = self.path("checkpoints", identity, "restore")
        doing = f"restore {identity} of {self.name}"
        return self._stream_progress(path, {}, doing, limit_s=limit_s)

    def list_sessions(self) -> list[Session]:
        """Return the sessions of a sprite. Wakes it, and counts as activity."""
        answer = self.api.transport.fetch("GET", self.path("exec"), wakes=True)
        items = self.api.fetch_json(answer, f"list the sessions of {self.name}", self.name)
        if isinstance(items, dict):  # live; the documentation shows the bare list
            items = list_field(items, "sessions")
        elif items is None:
            items = []
        return read_items(Session, items, f"sessions of {self.name}")

    def kill_session(self, session: Session, signal_name: str) -> None:
        """End a session, by SIGKILL after 10 s; one that is gone already counts."""
        query = [("signal", signal_name), ("timeout", "10s")]
        path = self.path("exec", session.id, "kill")
        try:
            doing = f"end session {session.lasting_id} of {self.name}"
            for _ in self._stream_progress(path, {}, doing, query=query):
                pass
        except NotFoundError:
            pass

    def _stream_progress(
        self,
        path: str,
        document: object,
        doing: str,
        *,
        missing: str = "",
        query: Sequence[tuple[str, str]] = (),
        limit_s: float = STREAM_LIMIT_S,
    ) -> Iterator[str]:
        """Yield the texts of a stream of events; an error unless `complete` comes.

        `missing` is the sprite that a 404 means, "" where it may mean something in the sprite.

        A failure arrives as an event inside an HTTP 200, so nothing else proves a success. It may
        also come behind `complete`; how the stream then ends does not matter.
        """
        done = False
        try:
            for event in self.api.transport.stream(path, document, query, limit_s):
                kind, text = event.get("type"), text_field(event, "data", "message")
                if kind == "error" or event.get("error"):
                    why = text_field(event, "error", "data", "message") or "no reason given"
                    raise ThoptersError(f"cannot {doing}: {why}")
                yield text
                done = done or kind == "complete"
        except RefusedError as error:
            self.api.refuse(error.answer, doing, missing, changes=True)
        except NoAnswerError as error:
            if not done:
                raise outcome_unknown(doing, error) from None
        if not done:
            raise NoAnswerError(
                f"cannot tell whether the API could {doing}: its answer was cut short"
            )


# --- memory -----------------------------------------------------------------------------

# What commands have seen, for the completion of the next command line: the names of the sprites,
# and the checkpoints and sessions of each. It is a cache. Nothing else goes by it, and where it
# can't be kept, a command does without.

NAMES_LAST_S = 60.0
MAX_SEEN_BYTES = 4 << 20
MAX_SEEN_SPRITES = 100  # of which more than the name is kept
MAX_SEEN_ITEMS = 200
MAX_SEEN_WORDS = 60


class Memory:
    """The file with what was seen at one API, in one org and by one token.

    Its `sprites` are names with states, seen at `time`; `inside` has lists by sprite and kind.
    """

    def __init__(self, environ: Mapping[str, str], credential: Credential) -> None:
        key = credential.token.digest(api_base(environ), credential.org or "")
        folder = cache_folder(environ)
        self._path = os.path.join(folder, f"seen-{key}.json") if folder else None
        self._document = self._read() or {}

    def _read(self) -> dict[str, Any] | None:
        if self._path is None:
            return None
        with contextlib.suppress(ThoptersError, OSError):
            self._check(os.lstat(os.path.dirname(self._path)))
            return read_json_file(self._path, self._check, open_unfollowed)
        return None

    def _check(self, status: os.stat_result) -> None:
        """Refuse what others can have put there; sizes have a limit since a Tab is short."""
        is_good = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        if not is_good or others_can_write(status) or status.st_size > MAX_SEEN_BYTES:
            raise ThoptersError("what was seen is not kept as it should be")

    def sprites(self, now: float) -> Seen | None:
        """Return the names of all sprites with their states; None where they are not fresh."""
        seen_at = self._document.get("time")
        if not isinstance(seen_at, (int, float)) or not 0 <= now - seen_at < NAMES_LAST_S:
            return None
        return pairs_in(self._document.get("sprites"))

    def inside(self, name: str, kind: str) -> Seen:
        """Return what was seen of a kind in a sprite, the newest first."""
        kinds = self._inside().get(name)
        return pairs_in(kinds.get(kind) if isinstance(kinds, dict) else None)

    def _inside(self) -> dict[str, Any]:
        found = self._document.get("inside")
        return found if isinstance(found, dict) else {}

    def keep_sprites(self, found: Seen, now: float) -> None:
        names = {name for name, _ in found}
        inside = {name: kinds for name, kinds in self._inside().items() if name in names}
        self._write({"sprites": found, "time": now, "inside": inside})

    def keep_inside(self, name: str, kind: str, found: Seen, *, whole: bool) -> None:
        inside = self._inside()
        kinds = inside.pop(name, {})
        if not whole:
            known = {identity for identity, _ in found}
            found = [*found, *(pair for pair in self.inside(name, kind) if pair[0] not in known)]
        kinds = {**(kinds if isinstance(kinds, dict) else {}), kind: found[:MAX_SEEN_ITEMS]}
        newest = [(name, kinds), *inside.items()][:MAX_SEEN_SPRITES]
        self._write({**self._document, "inside": dict(newest)})

    def forget(self, name: str) -> None:
        """Forget what was seen in a sprite that was made or destroyed, and all the names."""
        inside = {other: kinds for other, kinds in self._inside().items() if other != name}
        self._write({"inside": inside})

    def _write(self, document: dict[str, Any]) -> None:
        """Put a file in the place of the old one, for the user alone, unless that fails."""
        self._document = document
        if self._path is None:
            return
        import json

        with contextlib.suppress(OSError, ThoptersError):
            folder = os.path.dirname(self._path)
            for place in (os.path.dirname(folder), folder):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(place, 0o700)
            self._check(os.lstat(folder))
            temporary = self._path + ".new"  # one name, so that a kill leaves one file at most
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            with open(temporary, "xb", opener=open_private) as file:
                file.write(json.dumps(document).encode())
            os.replace(temporary, self._path)


def pairs_in(items: object) -> Seen:
    """Return the pairs of texts in a list that has come out of a file."""
    found = items if isinstance(items, list) else []
    pairs = [item for item in found if isinstance(item, (list, tuple)) and len(item) == 2]
    return [(one, two) for one, two in pairs if isinstance(one, str) and isinstance(two, str)]


def memory_of(api: SpritesApi) -> Memory:
    return Memory(api.transport.environ, api.transport.credential)


def remember_sprites(api: SpritesApi, found: Iterable[SpriteInfo]) -> None:
    """Keep the names of all sprites, which an API's list without a prefix has shown."""
    memory_of(api).keep_sprites([(info.name, info.state()) for info in found], time.time())


def remember(sprite: Sprite, kind: str, found: Seen, *, whole: bool = True) -> None:
    """Keep what a command has seen in a sprite: each id with some words about it.

    `kind` is what an argument of the command line `offers`. What is not the `whole` list is put
    before what is known of that kind.
    """
    safe = sprite.console.safe
    kept = [(identity, safe(words)[:MAX_SEEN_WORDS]) for identity, words in found]
    memory_of(sprite.api).keep_inside(sprite.name, kind, kept, whole=whole)


def forget(sprite: Sprite) -> None:
    """Forget what was seen of a sprite that has just been made or destroyed."""
    memory_of(sprite.api).forget(sprite.name)


# --- sprite program ---------------------------------------------------------------------

# The official `sprite` program: its login, which is only ever read and where the token comes from
# if the environment has none; whether it would act on the same sprite; and becoming it, for `shell`
# and `proxy`.

KEYRING_LIMIT_S = 5.0


class SpriteStore:
    """The login that the `sprite` program keeps under ~/.sprites and in the keyring; read-only.

    Layout: the program's public source and several readers of it; see SPEC.md, "The token".
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        base: str,
        console: Console,
        keyring_limit_s: float = KEYRING_LIMIT_S,
    ) -> None:
        self.environ = environ
        self.base = base
        self.console = console
        self.keyring_limit_s = keyring_limit_s
        home = home_directory(environ)
        self.folder = os.path.join(home, ".sprites")
        self.keyring_folders = (
            os.path.join(self.folder, "keyring"),
            os.path.join(home, ".sprite", "keyring"),
        )
        self.path = os.path.join(self.folder, "sprites.json")
        self.main = self._load(self.path) or {}
        self.user = self._load_user()

    def describe(self) -> str:
        keyring = "" if self.main.get("disable_keyring") is True else " and the keyring"
        return self.path + keyring

    def find(self) -> Credential | None:
        """Return the stored token of the selected org at our API URL."""
        org, records = self._select_org()
        if org is None:
            return None
        for path, record in records:
            for key in ("api_token", "token"):  # the documentation's name, then the program's
                if isinstance(record.get(key), str) and record[key].strip():
                    return Credential(check_token(record[key], path), path, org)
        entries = self._keyring_entries(org, [record for _, record in records])
        for source, value in self._keyring_values(entries):
            return Credential(check_token(decode_keyring(value), source), source, org)
        return None

    def _load(self, path: str) -> dict[str, Any] | None:
        return read_json_file(path, lambda status: self._check(path, status))

    def _check(self, path: str, status: os.stat_result) -> None:
        """Refuse another user's file; warn of one that others can use."""
        if os.name != "posix":
            return
        if status.st_uid not in (os.geteuid(), 0):
            raise AuthError(f"{path} belongs to another user, so it is not trusted")
        if status.st_mode & 0o077:
            self.console.warn_once(f"others can read {path}; mend it with: chmod 600 {path}")

    def _load_user(self) -> tuple[str, dict[str, Any]] | None:
        """Return the path and content of the current user's own file, whose URLs come first."""
        current = self.main.get("current_user")
        if not is_name(current):
            return None
        import hashlib

        digest = hashlib.sha256(current.encode()).hexdigest()[:16]
        path = os.path.join(self.folder, "users", f"{current}-{digest}.json")
        for user in dicts(self.main.get("users")):
            named = user.get("config_path")
            if user.get("id") == current and is_name(named) and is_inside(named, self.folder):
                path = named
        document = self._load(path) if is_inside(path, self.folder) else None
        return (path, document) if document else None

    def _files(self) -> list[tuple[str, dict[str, Any]]]:
        return [*([self.user] if self.user else []), (self.path, self.main)]

    def _aliases(self) -> dict[str, str]:
        """Return alias -> URL."""
        merged: dict[str, str] = {}
        for _, document in reversed(self._files()):
            aliases = document.get("url_aliases")
            if isinstance(aliases, dict):
                merged.update({k: v for k, v in aliases.items() if isinstance(v, str)})
        return merged

    def _is_our_url(self, url: object) -> bool:
        return isinstance(url, str) and self._aliases().get(url, url).rstrip("/") == self.base

    def _urls(self, document: dict[str, Any]) -> dict[str, Any]:
        urls = document.get("urls")
        return urls if isinstance(urls, dict) else {}

    def _is_only_url(self) -> bool:
        """Return whether the store knows no API URL but ours."""
        return all(self._is_our_url(url) for _, file in self._files() for url in self._urls(file))

    def _orgs(self, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the orgs that a file stores for our API URL and for no other."""
        found: dict[str, dict[str, Any]] = {}
        for url, entry in self._urls(document).items():
            orgs = entry.get("orgs") if isinstance(entry, dict) else None
            if self._is_our_url(url) and isinstance(orgs, dict):
                found.update({name: org for name, org in orgs.items() if isinstance(org, dict)})
        return found

    def _select_org(self) -> tuple[str | None, list[tuple[str, dict[str, Any]]]]:
        """Return the selected org and its records, each with its file; None where none is stored.

        SPRITE_ORG, else the program's selection if it is at our URL, else the only org there is.
        """
        stored = [(path, self._orgs(document)) for path, document in self._files()]
        names = sorted({name for _, orgs in stored for name in orgs})
        chosen: object = self.environ.get("SPRITE_ORG")
        for _, document in self._files():
            selection = document.get("current_selection")
            if (
                not chosen
                and isinstance(selection, dict)
                and self._is_our_url(selection.get("url"))
            ):
                chosen = selection.get("org")
        if not chosen and len(names) > 1:
            raise AuthError(
                f"{self.path} holds several orgs and none is selected: {', '.join(names)}",
                hint="choose one: SPRITE_ORG=NAME thopters ...",
            )
        org = chosen or (names[0] if names else None)
        if not isinstance(org, str) or org not in names:
            return None, []
        return org, [(path, orgs[org]) for path, orgs in stored if org in orgs]

    def program_org(self) -> str | None:
        """Return the org at our API URL that the `sprite` program itself would act on, if any.

        It goes by SPRITE_ORG, then by its selection, which holds a URL of its own.
        """
        selection: object = None
        for _, document in reversed(self._files()):
            selection = document.get("current_selection", selection)
        if not isinstance(selection, dict) or not self._is_our_url(selection.get("url")):
            return None
        org = self.environ.get("SPRITE_ORG") or selection.get("org")
        known = {name for _, document in self._files() for name in self._orgs(document)}
        return org if isinstance(org, str) and org in known else None

    def options_for(self, name: str, owner: str, token: Credential) -> list[str]:
        """Return the options that have the `sprite` program act on just this sprite of `owner`.

        It goes by a login and a selection of its own, so it might reach a sprite of the same name
        in another org: then ThoptersError. `-o` is left out where it would change that selection.
        """
        if self.is_empty() and self.environ.get("SPRITE_TOKEN"):
            return ["-s", name]  # the same token leads to the same org
        selected = self.program_org()
        if selected is None:
            raise ThoptersError(
                f"the sprite program is not logged in to {self.base}, so it does not reach {name}",
                hint="run: sprite login; or set SPRITE_TOKEN and nothing else",
            )
        if not owner and token.org != selected:
            raise ThoptersError(
                "cannot tell whether the org that the sprite program has selected "
                f"({selected}) is the one of {name}",
                hint="log in with that program, and unset SPRITE_TOKEN and SPRITES_TOKEN",
            )
        if owner and owner != selected:
            raise ThoptersError(
                f"{name} belongs to the org {owner}, but the sprite program has {selected} "
                "selected",
                hint=f"select the other one in it: sprite -o {owner} list",
            )
        return ["-s", name] if self.environ.get("SPRITE_ORG") else ["-s", name, "-o", selected]

    def is_empty(self) -> bool:
        """Return whether no login is stored, an old one neither: then it takes SPRITE_TOKEN."""
        old = os.path.exists(os.path.join(self.folder, "config.json"))
        return not old and not any(document.get("urls") for _, document in self._files())

    def _keyring_entries(self, org: str, records: list[dict[str, Any]]) -> list[tuple[str, str]]:
        """Return the (service, account) pairs to look under, most likely first."""
        import urllib.parse

        usual = f"sprites:org:{self.base}:{org}"
        accounts = [key for record in records if is_name(key := record.get("keyring_key"))]
        services = [key for key in accounts if key.startswith("sprites-cli")]
        accounts = [key for key in accounts if key not in services] + [usual]
        for alias, url in self._aliases().items():
            if url.rstrip("/") == self.base:
                accounts.append(f"sprites:org:{alias}:{org}")
        host = urllib.parse.urlsplit(self.base).netloc
        accounts += [f"sprites:org:{org}", f"{host}:{org}", f"https-{host}:{org}"]
        if self.base != DEFAULT_API_URL and not self._is_only_url():
            # it tells no URL, so it may be the token of an org of this name elsewhere
            accounts = [account for account in accounts if account != f"sprites:org:{org}"]
        users = [record.get("user_id") for record in records] + [self.main.get("current_user")]
        services += [f"sprites-cli:{user}" for user in users if is_name(user)]
        services += ["sprites-cli:manual-tokens", "sprites-cli"]
        pairs = [(service, account) for service in services for account in accounts]
        return [pair for pair in dict.fromkeys(pairs) if is_name(pair[1])]

    def _keyring_values(self, entries: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Yield (source, value): the system's keyring, then the files that stand in for one."""
        if not any(document.get("disable_keyring") is True for _, document in self._files()):
            yield from self._system_keyring(entries)
        for folder in self.keyring_folders:
            for service, account in entries:
                path = os.path.join(folder, service.replace(":", "-"), account.replace(":", "-"))
                if is_inside(path, folder) and os.path.isfile(path):
                    value = self._read(path)
                    if value.strip():
                        yield path, value

    def _read(self, path: str) -> str:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                self._check(path, os.fstat(file.fileno()))
                return file.read(MAX_LINE_BYTES)
        except OSError as error:
            self.console.warn_once(f"cannot read {path}: {error.strerror}")
            return ""

    def _system_keyring(self, entries: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        if sys.platform == "darwin":
            program = find_program("/usr/bin/security", self.environ)
        else:
            program = find_program("secret-tool", self.environ) if os.name == "posix" else None
        if not program:
            return
        for left_s, (service, account) in zip(
            Clock().polling(self.keyring_limit_s), entries, strict=False
        ):
            if sys.platform == "darwin":
                words = ["find-generic-password", "-w", "-s", service, "-a", account]
            else:
                words = ["lookup", "service", service, "username", account]
            value = run_for_output([program, *words], left_s)
            if value is None:
                self.console.warn_once(
                    f"the keyring did not answer within {self.keyring_limit_s:.0f} s"
                )
                return
            if value.strip():
                yield f"the keyring (service {service})", value


def dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def is_name(value: object) -> TypeGuard[str]:
    """Return whether a value of the store can be part of a path or name a keyring's entry."""
    return isinstance(value, str) and bool(value) and value.isprintable()


def is_inside(path: str, folder: str) -> bool:
    """Return whether `path`, links followed, lies under `folder`."""
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


def decode_keyring(value: str) -> str:
    """Undo the two encodings in which the program's keyring library stores what is not plain."""
    import base64
    import binascii

    value = value.strip()
    try:
        if value.startswith("go-keyring-base64:"):
            return base64.b64decode(value.partition(":")[2], validate=True).decode(
                "utf-8", "replace"
            )
        if value.startswith("go-keyring-encoded:"):
            return bytes.fromhex(value.partition(":")[2]).decode("utf-8", "replace")
    except (ValueError, binascii.Error):
        return ""
    return value


def find_credential(
    environ: Mapping[str, str],
    base: str,
    console: Console,
    keyring_limit_s: float = KEYRING_LIMIT_S,
) -> Credential:
    """Return the first token there is: the environment's, then the `sprite` program's login."""
    values = {name: environ.get(name, "") for name in TOKEN_VARIABLES}
    given = [name for name, value in values.items() if value.strip()]
    if len({values[name].strip() for name in given}) == 2:
        console.warn_once("SPRITE_TOKEN and SPRITES_TOKEN differ; SPRITE_TOKEN is used")
    if given:
        return Credential(check_token(values[given[0]], given[0]), given[0])
    tried = "SPRITE_TOKEN, SPRITES_TOKEN"
    try:
        store = SpriteStore(environ, base, console, keyring_limit_s)
    except NoHomeError:  # so there is no store in it
        store = None
    if store:
        credential = store.find()
        if credential:
            return credential
        tried += f", {store.describe()}"
    raise NoTokenError(
        f"no token for {base}: looked at {tried}",
        hint="set SPRITE_TOKEN, or log in with the sprite program: sprite login",
    )


def find_sprite_program(environ: Mapping[str, str]) -> str | None:
    return find_program("sprite.exe" if os.name == "nt" else "sprite", environ)


def become_program(argv: list[str], environ: Mapping[str, str]) -> int:
    """Run the `sprite` program in our place, so that its signals and its exit status are ours."""
    # it starts the kind of shell that is the local one, and SPRITE_URL leads past -s and -o
    dropped = ("SPRITE_URL", "BASH_VERSION", "FISH_VERSION", "ZSH_NAME", "ZSH_VERSION")
    env = {key: value for key, value in environ.items() if key not in dropped}
    env["SHELL"] = "/bin/bash"
    return become(argv, env)


def become(argv: list[str], env: Mapping[str, str]) -> int:
    """Run a program in our place, so that its signals and its exit status are ours."""
    sys.stdout.flush()
    try:
        if os.name == "posix":
            interrupt_waits(0)  # it would go on, and end that program
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec keeps that
            os.execve(argv[0], argv, env)  # noqa: S606 (an absolute path, and words of our own)
        import subprocess

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return subprocess.call(argv, env=env)  # noqa: S603 (the same)
    except OSError as error:
        raise ThoptersError(f"cannot run {argv[0]}: {error.strerror}") from None


def sprite_program_for(sprite: Sprite, info: SpriteInfo) -> list[str] | None:
    """Return how to call the `sprite` program for a sprite; None where ours is to be used.

    That is: wished by THOPTERS_NATIVE, no program, or one that would not reach this sprite.
    """
    transport = sprite.api.transport
    path = find_sprite_program(transport.environ)
    if transport.environ.get("THOPTERS_NATIVE") or path is None:
        return None
    base = f"{transport.base.scheme}://{transport.base.netloc}{transport.base.path}"
    try:
        store = SpriteStore(transport.environ, base, sprite.console)
        return [path, *store.options_for(sprite.name, info.organization, transport.credential)]
    except ThoptersError as error:
        sprite.console.detail(f"{error.message}; it is not used")
        return None


# --- choice -----------------------------------------------------------------------------

# Which sprite is meant where no name is typed: the sprite of this directory, for which `.` stands,
# and a numbered list to choose from.

# How a directory gets its sprite. `thopters use` stores it in the configuration, by the directory's
# path. The official program writes a file `.sprite` into the directory, which is read here and
# never written. Either counts for the directories below, and the nearest one counts. But such a
# file can come with somebody else's repository, so:
#
#   - it has to be a file of the user's own that nobody else can write, and no link
#   - the search ends at the home, and before a directory that others can write in
#   - it names an org, which has to be the one of our token
#   - a command that changes something asks before it takes a sprite from it for the first time
#
# A file that does not count is ignored with a warning.
SPRITE_FILE = ".sprite"
MAX_SPRITE_FILE_BYTES = 1 << 16


class Chosen:
    """The sprite of a directory: `file` is the `.sprite` file that names it, "" for `use`."""

    __slots__ = ("directory", "file", "name", "organization")

    def __init__(self, name: str, directory: str, file: str = "", organization: str = "") -> None:
        self.name = name
        self.directory = directory
        self.file = file
        self.organization = organization

    def source(self) -> str:
        return f"{self.file} names it" if self.file else f"it is the sprite of {self.directory}"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "directory": self.directory, "file": self.file or None}


def current_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise UsageError(
            f"cannot tell which directory this is: {error.strerror}", hint="change to another one"
        ) from None


def is_open_folder(folder: str) -> bool:
    """Return whether others can write in a folder, or nobody can tell."""
    try:
        return others_can_write(os.stat(folder))
    except OSError:
        return True


def find_chosen(
    config: Config | None, environ: Mapping[str, str], console: Console
) -> Chosen | None:
    """Return the sprite of the current directory, None where it has none."""
    stored = config.directories if config else {}
    home, reads_files = "", True
    with contextlib.suppress(NoHomeError):
        home = os.path.realpath(home_directory(environ))
    folder, above = current_directory(), ""
    while folder != above:
        if folder in stored:
            return Chosen(stored[folder], folder)
        found = chosen_by_file(folder, console) if reads_files else None
        if found:
            return found
        reads_files = reads_files and folder != home and not is_open_folder(folder)
        folder, above = os.path.dirname(folder), folder
    return None


def chosen_by_file(folder: str, console: Console) -> Chosen | None:
    """Return what the `.sprite` file of a folder names; None without one that counts."""
    path = os.path.join(folder, SPRITE_FILE)
    if not os.path.lexists(path):
        return None
    try:
        if is_open_folder(folder):
            raise NotOursError(f"{path} lies where others can write")
        if os.path.isdir(path) and not os.path.islink(path):
            check_sprite_file(path, os.lstat(path), stat.S_IFDIR)
            path = os.path.join(path, "selected")
        document = read_sprite_file(path)
    except (ThoptersError, OSError) as error:
        console.warn_once(f"{error}, so it is ignored")
        return None
    if document is None:
        return None
    name, organization = document.get("sprite"), document.get("organization")
    try:
        if not is_name(organization) or not is_name(name):
            raise UsageError("")
        return Chosen(valid_name(name), folder, path, organization)
    except UsageError:
        console.warn_once(f"{path} does not name an organization and a sprite, so it is ignored")
        return None


def read_sprite_file(path: str) -> dict[str, Any] | None:
    """Return the object in a `.sprite` file, None without one; ThoptersError for any other file."""

    def opened(path: str, flags: int) -> int:
        check_sprite_file(path, os.lstat(path), stat.S_IFREG)  # to open a device may do something
        return open_unfollowed(path, flags)

    return read_json_file(
        path, lambda status: check_sprite_file(path, status, stat.S_IFREG), opened
    )


def check_sprite_file(path: str, status: os.stat_result, kind: int) -> None:
    """Raise NotOursError unless it is of a kind, small, and nobody else's."""
    flaw = ""
    if stat.S_IFMT(status.st_mode) != kind:
        flaw = "is a link" if stat.S_ISLNK(status.st_mode) else "is not a file"
    elif os.name == "posix" and status.st_uid != os.geteuid():
        flaw = "belongs to another user"
    elif others_can_write(status):
        flaw = "can be written by others"
    elif kind == stat.S_IFREG and status.st_size > MAX_SPRITE_FILE_BYTES:
        flaw = f"is larger than {MAX_SPRITE_FILE_BYTES >> 10} KiB"
    if flaw:
        raise NotOursError(f"{path} {flaw}")


def check_organization(chosen: Chosen, sprite: Sprite) -> None:
    """Raise UsageError unless a `.sprite` file names the org that our token is for."""
    ours = sprite.api.transport.credential.org or sprite.require().organization
    if ours == chosen.organization:
        return
    known = f"the token is for {ours}" if ours else "it is not known which one the token is for"
    raise UsageError(
        f"{chosen.file} names a sprite of the org {chosen.organization}, and {known}",
        hint="choose another login by SPRITE_ORG, or a sprite: thopters use NAME",
    )


def require_consent(chosen: Chosen, config: Config | None, console: Console) -> None:
    """Ask whether a sprite may be taken from a `.sprite` file, once; UsageError for a no."""
    wanted = f"{chosen.organization}/{chosen.name}"
    if config and config.trusted.get(chosen.file) == wanted:
        return
    if not console.can_ask():
        import shlex

        folder = shlex.quote(chosen.directory)
        raise UsageError(
            f"{chosen.file} names the sprite {wanted}, and you have not agreed to use it yet",
            hint=f"agree to it: cd {folder} && thopters use {shlex.quote(chosen.name)}",
        )
    question = f"{chosen.file} names the sprite {wanted}. Use it? [y/N]"
    if console.ask(question).strip().lower() not in YES:
        raise DeclinedError(f"{chosen.name} is not used: nothing was done")
    if config:
        config.store("trusted", chosen.file, wanted)


# the numbered list

CHOICES = 20  # at most; any other name can be typed


def choose_sprites(api: SpritesApi, prefix: str, *, several: bool) -> list[str]:
    """Show the sprites on a terminal, the newest first, and return the names that are chosen."""
    console = api.console
    with console.working("listing sprites"):
        found = list(api.list_sprites(prefix).sprites.values())
    if not prefix:
        remember_sprites(api, found)
    if not found:
        raise NotFoundError("there are no sprites to choose from", hint="thopters create NAME")
    never = parse_time("0001-01-01T00:00:00Z")
    found.sort(key=lambda info: (parse_time(info.updated_at) or never, info.name), reverse=True)
    rows = [
        (
            f"{number:>2}",
            info.name,
            info.state(),
            format_age(parse_time(info.updated_at), api.now()),
        )
        for number, info in enumerate(found[:CHOICES], 1)
    ]
    for line in aligned([[console.safe(cell) for cell in row] for row in rows]):
        console.note(line)
    if len(found) > CHOICES:
        console.note(f"and {len(found) - CHOICES} more; type the name of one of them")
    asked = "Which sprites? Numbers or names:" if several else "Which sprite? A number or a name:"
    words = console.ask(asked).replace(",", " ").split()
    if not words or (len(words) > 1 and not several):
        raise DeclinedError("no sprite was chosen: nothing was done")
    return [chosen_by_word(word, [info.name for info in found]) for word in words]


def chosen_by_word(word: str, names: list[str]) -> str:
    """Return the name or id that a number of the list stands for, or the word itself."""
    if not (word.isascii() and word.isdigit()):
        return word
    number = int(word[:9])
    if 1 <= number <= min(CHOICES, len(names)):
        return names[number - 1]
    if word not in names:
        raise UsageError(f"{word[:9]} is not in the list: nothing was done")
    return word


# --- remote commands --------------------------------------------------------------------

# How a command runs in a sprite (SPEC.md, "The exec protocol"). The platform starts a process
# before our stream is attached, replays only the last of what it printed by then, ignores a wrong
# directory, and writes URLs into logs. So the URL holds one short constant, the bootstrap, which
# reads a script from stdin up to a NUL and evaluates it. The script prints one line with its
# process group, and then runs the user's command with its words, variables and directory.
#
#   RemoteCommand   what is to run, as data; writes the script
#   ExecDecoder     messages in, events out: Started, Output, Identity, Ended, Exit; no socket, no
#                   clock
#   ExecSession     the one loop: look, hand output on, send input, wait
#     StreamSession   over a WebSocket: input and output as numbered streams
#     TerminalSession on a remote terminal (see that room)
#     PostSession     over POST, where something in between refuses WebSockets
#   run_script      a short script of ours, with its status and output
#
# An exit status is told only when the server or the script told it. A connection that ends sooner
# is ExecLost, an unknown outcome; nothing is ever run twice.

STREAM_STDIN, STREAM_STDOUT, STREAM_STDERR, STREAM_EXIT, STREAM_EOF = 0, 1, 2, 3, 4
PROBE_LIMIT_S = 3.0  # a fresh sprite's exec can hang instead of failing: ask again
SIGNAL_TRIES = 3
URGENT_LIMIT_S = 5.0  # to send a signal while the user waits for us to end
SESSION_LAG_S = 3.0  # of the list of sessions behind a session's end
HOLD_FIRST_S = 1  # a command that ends sooner holds nothing
HOLD_EVERY_S = 60
HOLD_AGAIN_S = 10  # where it could not be refreshed
HOLD_EXPIRY_S = 300
HOLD_MAX_S = 8 * 3600
# The shell's own read takes not one byte more than the NUL, and a script cut short never runs
BOOTSTRAP = 'LC_ALL=C IFS= read -r -d "" _thopters || exit 255; eval "$_thopters"'
# The first line on stdout is ours: it proves that the script runs, and holds the group to signal
PREAMBLE = b"thopters-exec "
# With a random word and the status: what the wrapper of a user's command prints on both streams
# when the command ends. By its first byte, which text does not hold, a part of it is known
END_MARK = b"\x1dthopters-end "
PART_LIMIT_S = 0.05  # for the rest of what looks like the mark's beginning, and may be output
# A helper that the command does not wait for, as in `exec > >(tee log)`, may still write the last
# of its output. So its streams get a moment to close: so much silence, and so much time in all
CLOSE_QUIET_S, CLOSE_LIMIT_S = 0.3, 2.0
MOST_BEFORE = 1 << 14  # bytes that may stand before it, and are searched each time something comes
PID_DIGITS = 10  # at most: int() itself refuses thousands
WIPE = b"\x1b[H\x1b[2J"  # on a terminal: takes it off the screen that an attach shows again
# The traps keep the wrapper alive, so that a signal to the group reaches us as 128+n; the shell's
# own words about it ("Killed") go to /dev/null, and the command's stderr is the real one
HEAD = b"""\
unset _thopters
printf 'thopters-exec %%s\\n%(wipe)s' "$$"
[ -n "${HOME-}" ] || export HOME=~
exec 3>&2 2>/dev/null
%(keys)s%(hold)s%(setup)s%(exports)s%(chdir)strap : INT TERM HUP QUIT USR1 USR2
"""
PLAIN = (
    HEAD
    + b"""\
(exec 2>&3 3>&- 9>&-; exec -- %(argv)s)
exit "$?"
"""
)
# A command of the user's without a terminal ends when its own process ends, with its status, though
# its children may go on and hold the streams open: the wrapper marks the end on both. It has a
# process group of its own (`set -m`), since the platform kills the wrapper's once we have left. The
# loop below kills it if the wrapper is killed before the end, and is told of it before anything of
# it runs. Signals to the wrapper are passed on. A sprite's variables can set modes: with `set -e`
# there would be no mark, and in POSIX mode a status can be asked for only once
APART = b"""\
unset _thopters
[ -n "${HOME-}" ] || export HOME=~
exec 3>&2 2>/dev/null
%(watch)strap '' PIPE
set -m
(
echo "$BASHPID" >&9
printf 'thopters-exec %%s\n%(wipe)s' "$BASHPID" >&5
exec 5>&- 9>&-
trap - PIPE
%(keys)s%(exports)s%(chdir)sexec 2>&3 3>&-
exec -- %(argv)s
) <&0 &
set +em +o posix
for _thopters in INT TERM HUP QUIT USR1 USR2; do
  trap "kill -s $_thopters -- -$!" "$_thopters"
done
while kill -0 "$!"; do wait "$!"; done
wait "$!"
set -- "$?"
echo 0 >&9
exec 9>&-
printf '%(mark)s%%s\n' "$1"
printf '%(mark)s%%s\n' "$1" >&3
exit "$1"
"""
KEYS = b"if [ -r ~/.thopters/env ]; then . ~/.thopters/env; fi\n"
# A shell on a terminal becomes the process itself: it has jobs, and signals, of its own
SHELL = HEAD + b"exec 2>&3 3>&-; exec -- %(argv)s\n"
# A command that is quiet for half a minute has its sprite paused, and its connection dropped. So
# a task of the platform is refreshed beside it, by a loop that ends when the wrapper has ended,
# however that came: the wrapper alone holds the other end of the loop's input. In a session of
# its own it also outlives a KILL of the group, and deletes the task.
HOLD = b"""\
exec 9> >(
  trap '' INT TERM HUP QUIT
  exec $(command -v setsid) "$BASH" -pc %(loop)s thopters-hold $$ > /dev/null 3>&- 5>&-
)
"""
# Sets the task that $task names to expire in $expiry seconds
PUT_TASK = b"""\
put() {
  curl -fsS -m 10 -X PUT --unix-socket /.sprite/api.sock -d "{\\"expire\\":$expiry}" \\
    -H 'Content-Type: application/json' "http://sprite$task" ||
    sprite-env curl -X PUT "$task" -d "{\\"expire\\":$expiry}"
}
"""
# By no clock that is set: one of a sprite may be wrong until it has been awake for a while
UPTIME = b"uptime() { read -r now _ < /proc/uptime; now=${now/.*/}; }\n"
# An empty line says that somebody is attached, and refreshes the task. Another one tells the group
# that is to be killed if the wrapper ends without a word: 0 when the command has ended. Without the
# task API the first tries all fail, and the loop gives up; a later failure does not end it
HOLD_LOOP = (
    UPTIME
    + PUT_TASK
    + b"""\
task=/v1/tasks/thopters-$1 expiry=%(expiry)d wait=%(first)s held= tries=3 group=%(group)s
let_go() {
  [ ! "$held" ] || curl -fsS -m 10 -X DELETE --unix-socket /.sprite/api.sock "http://sprite$task" ||
    sprite-env curl -X DELETE "$task"
  held= wait=
}
uptime
end=$((now + %(max)d))
[ "$now" -lt "$end" ] || wait=
while [ "$wait$group" ]; do
  read -r ${wait:+-t "$wait"} line
  case $? in
    0) [ ! "$line" ] || { group=$line; continue; } ;;
    1) break ;;
  esac
  if [ ! "$wait" ]; then
    continue
  elif uptime && [ "$now" -ge "$end" ]; then
    let_go
  elif put; then
    held=1 wait=%(every)s
  elif [ "$held" ] || [ $((tries -= 1)) -gt 0 ]; then
    wait=%(again)s
  else
    wait=
  fi
done
let_go
[ "${group:-0}" = 0 ] || kill -s KILL -- "-$group"
"""
)
# Over POST the streams are told apart by single bytes below 4 among the data, so the data is sent
# as hex digits, from a mark on; perl sends them as they come, od, which is always there, in blocks.
# Both run without the user's variables, and a dot says that nothing is missing
HEX_MARK, HEX_END = b"thopters-hex\n", b"."
IN_HEX = b"""\
hex() (
  trap '' INT TERM HUP QUIT
  if perl=$(command -pv perl); then
    (exec -c "$perl" -e '$| = 1; while ($n = sysread STDIN, $b, 65536) { print unpack "H*", $b }
      exit !defined $n')
  else
    (exec -c "$(command -pv od)" -An -v -tx1)
  fi && echo .
)
echo thopters-hex >&3
both() {
  trap : INT TERM HUP USR1 USR2 QUIT
  (%(run)s) 2>&1 >&4 4>&- | hex >&3
  exit "${PIPESTATUS[0]}"
}
both 4>&1 | hex
exit "${PIPESTATUS[0]}"
"""
RUN = b"exec 3>&- 9>&-; exec -- %(argv)s"
PLAIN_IN_HEX = HEAD + b"echo thopters-hex\n" + IN_HEX.replace(b"%(run)s", RUN)
APART_IN_HEX = b"exec 3>&2 2>/dev/null 5>&1\n" + IN_HEX.replace(b"%(run)s", APART)
APART = b"exec 5>&1\n" + APART
CHDIR = b"""\
if ! _thopters=$(CDPATH= cd -- %(dir)s 2>&1); then
  printf 'thopters: error: cannot enter --dir:%%s\\n' "${_thopters##*cd:}" >&3
  exit 255
fi
unset _thopters
CDPATH= cd -- %(dir)s
"""


class RemoteCommand:
    """A command to run in a sprite, as data; a session writes the script for its own form.

    `argv` is run exactly, in `directory` (b"" for the home), with the variables `env`. It may keep
    the sprite awake for `hold_max_s` seconds, 0 for not at all; unless `hold_alone`, that has to be
    refreshed by a HoldRefresher. What we run for ourselves goes without the user's variables
    (`with_keys`), which could change what it does. A shell has jobs, and signals, of its own.
    `mark` begins the line that tells, in the output of a user's command, how the command ended.
    `setup` is a script that runs before its variables are set; ^C ends it.
    """

    __slots__ = (
        *("argv", "directory", "env", "hold_alone", "hold_max_s", "is_shell", "mark", "setup"),
        "with_keys",
    )

    def __init__(
        self,
        argv: Sequence[bytes],
        *,
        env: Sequence[tuple[str, bytes]] = (),
        directory: bytes = b"",
        hold_max_s: int = 0,
        hold_alone: bool = True,
        is_shell: bool = False,
        setup: bytes = b"",
        with_keys: bool = True,
    ) -> None:
        self.argv = argv
        self.env = env
        self.directory = directory
        self.hold_max_s = hold_max_s
        self.hold_alone = hold_alone
        self.is_shell = is_shell
        self.mark = END_MARK + os.urandom(12).hex().encode() + b" "
        self.setup = setup
        self.with_keys = with_keys

    def stream_script(self, *, in_hex: bool = False) -> bytes:
        """Return the script that runs it without a terminal, for POST `in_hex`."""
        if self.with_keys:
            return self.script(APART_IN_HEX if in_hex else APART, wipe=HEX_MARK if in_hex else b"")
        return self.script(PLAIN_IN_HEX if in_hex else PLAIN)

    def terminal_script(self) -> bytes:
        """Return the script that runs it on a terminal."""
        return self.script(SHELL if self.is_shell else PLAIN, wipe=WIPE)

    def script(self, form: bytes, *, wipe: bytes = b"", **more: bytes | int) -> bytes:
        """Return the script that runs it in such a form, in a bash that evaluates the script.

        `more` are the parts that this form has besides the usual ones.
        """
        exports = b"".join(
            b"export " + name.encode() + b"=" + quote_argument(value) + b"\n"
            for name, value in self.env
        )
        place = b"./-" if self.directory == b"-" else self.directory  # `cd -` is something else
        parts: dict[bytes, bytes | int] = {
            b"argv": b" ".join(map(quote_argument, self.argv)),
            b"chdir": CHDIR % {b"dir": quote_argument(place)} if self.directory else b"",
            b"exports": exports,
            b"hold": hold_loop(self.hold_max_s, alone=self.hold_alone) if self.hold_max_s else b"",
            b"keys": KEYS if self.with_keys else b"",
            b"mark": self.mark,
            b"setup": self.setup,
            b"watch": hold_loop(self.hold_max_s, alone=True, group=b"0"),
            b"wipe": wipe,
        }
        return form % (parts | {name.encode(): value for name, value in more.items()})

    def reading(self, path: bytes) -> RemoteCommand:
        """Return the same command, with a file of its directory as its input, gone at once."""
        import copy

        same = copy.copy(self)
        same.argv = [b"bash", b"-c", READ_FILE, b"thopters", path, *self.argv]
        return same


READ_FILE = b'exec < "$1" && rm -f -- "$1" && shift && exec "$@"'


def hold_loop(max_s: int, *, alone: bool, group: bytes = b"") -> bytes:
    every_s = HOLD_EVERY_S if alone else max_s
    waits = {b"first": HOLD_FIRST_S, b"every": every_s, b"again": HOLD_AGAIN_S}
    times = {key: str(value).encode() for key, value in waits.items()}
    loop = HOLD_LOOP % (times | {b"expiry": HOLD_EXPIRY_S, b"max": max_s, b"group": group})
    return HOLD % {b"loop": quote_argument(loop)}


class ExecLost(Exception):
    """No exit status will come; unless `started`, it is not known whether the command has run.

    `is_cut`: the connection ended. `is_sent`: the command was sent, else surely nothing has run.
    `was_idle` tells of a session on a terminal that nothing had happened in it for a while.
    """

    is_cut = was_idle = False
    is_sent = True

    def __init__(self, why: str, *, started: bool) -> None:
        super().__init__(why)
        self.started = started


class Garbled(Exception):
    """The server sent what is no part of a command's output or status."""


class Kept(bytearray):
    """What a command has printed, as far as it is kept: a sprite can print without end."""

    LIMIT = 1 << 20  # more than any script of ours prints

    def take(self, data: bytes | memoryview) -> None:
        """Keep all; Garbled beyond the limit."""
        if len(self) + len(data) > self.LIMIT:
            raise Garbled("more was printed than the script for it prints")
        self += data

    def take_first(self, data: bytes | memoryview) -> None:
        """Keep the beginning."""
        self += data[: self.LIMIT - len(self)]

    def take_last(self, data: bytes | memoryview) -> None:
        """Keep the end."""
        self += data[-self.LIMIT :]
        del self[: -self.LIMIT]


# What a decoder makes of a server's messages


class Started:
    """The script runs, as the leader of the process group `group`."""

    __slots__ = ("group",)

    def __init__(self, group: int) -> None:
        self.group = group


class Output:
    """The command has written `data` to `stream`; valid until the next event."""

    __slots__ = ("data", "stream")

    def __init__(self, stream: int, data: bytes | memoryview) -> None:
        self.stream = stream
        self.data = data


class Identity:
    """The platform tells the session's id, and when it was created, in seconds; 0 if not that."""

    __slots__ = ("created_at", "text")

    def __init__(self, text: str, created_at: object) -> None:
        self.text = text
        self.created_at = 0.0
        if isinstance(created_at, (int, float)) and 0 <= created_at < 1e12:
            self.created_at = created_at


class Ended:
    """The command has ended with `status`, though what it has started may still write."""

    __slots__ = ("status",)

    def __init__(self, status: int) -> None:
        self.status = status


class Exit:
    """The command has ended with `status`, and all of its output has come before."""

    __slots__ = ("status",)

    def __init__(self, status: int) -> None:
        self.status = status


class Ready:
    """A terminal's remote side waits for the script."""

    __slots__ = ()


if TYPE_CHECKING:
    Event = Started | Output | Identity | Ended | Exit | Ready


class ExecDecoder:
    """Turns what a server sends of a command without a terminal into events.

    Binary messages are a stream's number and bytes, JSON texts may come between; both may be cut
    anywhere. It knows no socket, no clock and no sink. Garbled where they can't be a command's.
    """

    def __init__(self) -> None:
        self.started = False
        self.mark = b""  # what tells the end of a command whose streams may stay open
        self._held = b""  # what came before the script's first line was whole
        self._parts = dict[int, bytes]()  # by stream, what may be the beginning of the mark
        self._ends = 0  # marks that have come

    def message(self, opcode: int, payload: bytes | memoryview) -> Iterator[Event]:
        return self._without_marks(self._read(opcode, payload))

    def has_part(self) -> bool:
        """Tell whether output is held back that may be the beginning of the mark."""
        return bool(self._parts)

    def let_go(self) -> Iterator[Output]:
        """Yield it, since its rest has not come."""
        while self._parts:
            yield Output(*self._parts.popitem())

    def _without_marks(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Output) and self.mark:
                yield from self._look_for_mark(event.stream, event.data)
                continue
            if isinstance(event, Exit):
                yield from self.let_go()
            yield event

    def _look_for_mark(self, stream: int, data: bytes | memoryview) -> Iterator[Event]:
        """Yield the output without the marks, and the end at the second one.

        One comes on each stream, or both on one where something has joined them.
        """
        rest = self._parts.pop(stream, b"") + data
        if self.mark[:1] not in rest:  # quickly, for there may be gigabytes
            yield Output(stream, rest)
            return
        while rest:
            before, mark, rest = rest.partition(self.mark)
            status, newline, rest = rest.partition(b"\n")
            if len(status) > 3 or not (status or b"0").isdigit():
                raise Garbled("the command's end came without its status")
            part = b"" if newline else mark + status
            if not mark:
                start = before.rfind(self.mark[:1], max(0, len(before) - len(self.mark)))
                if start >= 0 and self.mark.startswith(before[start:]):
                    before, part = before[:start], before[start:]
            if before:
                yield Output(stream, before)
            if part:
                self._parts[stream] = part
            elif mark:
                self._ends += 1
                if self._ends == 2:
                    yield Ended(int(status or b"255"))

    def _read(self, opcode: int, payload: bytes | memoryview) -> Iterator[Event]:
        if opcode == OP_TEXT:
            yield from self._text(bytes(payload))
        elif payload:
            yield from self._frame(payload[0], payload[1:])

    def _text(self, payload: bytes) -> Iterator[Event]:
        message = json_object(payload)
        if message.get("type") == "session_info" and message.get("session_id"):
            yield Identity(str(message["session_id"]), message.get("created"))
        status = exit_status_of_text(payload)
        if status is not None:
            yield from self._end(status)

    def _frame(self, stream: int, data: bytes | memoryview) -> Iterator[Event]:
        if stream == STREAM_STDOUT and not self.started:
            yield from self._begin(data)
        elif stream in (STREAM_STDOUT, STREAM_STDERR):
            yield Output(stream, data)
        elif stream == STREAM_EXIT and len(data) in (1, 4):
            yield from self._end(min(int.from_bytes(data, "big"), 255))
        else:
            raise Garbled("the server sent what is no output and no exit status")

    def _begin(self, data: bytes | memoryview) -> Iterator[Event]:
        """Look for the script's first line; what stands before it is shown as well."""
        self._held += data
        before, found, rest = self._held.partition(PREAMBLE)
        number, newline, rest = rest.partition(b"\n")
        if found and newline and number.isdigit() and len(number) <= PID_DIGITS:
            self.started, self._held = True, b""
            yield Started(int(number))
            if before + rest:
                yield Output(STREAM_STDOUT, before + rest)
        elif len(self._held) > MOST_BEFORE:
            raise Garbled("the server answered with something else than the command")

    def _end(self, status: int) -> Iterator[Event]:
        """Let go of what was held back; a success of what has not begun is none."""
        if self._held:
            yield Output(STREAM_STDOUT, self._held)
        if status == 0 and not self.started:
            raise Garbled("it ended well before it began")
        yield Exit(status)


class HexDecoder:
    """Undoes IN_HEX for one stream: bytes as they are up to the mark, then hex digits."""

    def __init__(self) -> None:
        self._held = b""
        self._marked = self._ended = False

    def take(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Yield what more of the stream is known by these bytes."""
        self._held += data
        if not self._marked:
            before, mark, self._held = self._held.partition(HEX_MARK)
            if not mark:  # it may have come in part
                self._held = before[-len(HEX_MARK) + 1 :]
                before = before[: len(before) - len(self._held)]
            self._marked = bool(mark)
            yield before
        if self._marked:
            digits, end, rest = self._held.translate(None, b" \n").partition(HEX_END)
            even = len(digits) & ~1
            self._held = digits[even:]
            try:
                yield bytes.fromhex(digits[:even].decode("ascii"))
            except ValueError:
                raise Garbled("the server sent what the command has not written") from None
            if rest or (self._ended and digits + end):
                raise Garbled("the server sent more than the command has written")
            self._ended = self._ended or bool(end)

    def end(self) -> bytes:
        """Return what was held back; Garbled where a part is missing."""
        if self._marked and (self._held or not self._ended):
            raise Garbled("a part of the command's output is missing")
        return self._held


class PostDecoder(ExecDecoder):
    """The same for the body of an answer to POST: frames without a length, cut and joined anywhere.

    A frame is a byte 1, 2 or 3 and what belongs to that stream. The output comes as hex digits, so
    that no byte of it can be taken for a frame's first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stream = 0  # whose bytes are coming
        self._hex = {STREAM_STDOUT: HexDecoder(), STREAM_STDERR: HexDecoder()}

    def piece(self, piece: bytes) -> Iterator[Event]:
        return self._without_marks(self._read_piece(piece))

    def _read_piece(self, piece: bytes) -> Iterator[Event]:
        for stream, data in self._frames(piece):
            for event in self._frame(stream, data):
                if isinstance(event, Output):
                    for decoded in self._hex[event.stream].take(event.data):
                        yield Output(event.stream, decoded)
                    continue
                if isinstance(event, Exit):
                    for number, stream_end in self._hex.items():
                        yield Output(number, stream_end.end())
                yield event

    def _frames(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the (stream, bytes) of one piece; its last frame may go on in the next."""
        import re

        heads, start = re.compile(rb"[\1-\3]"), 0
        while start < len(piece):
            if self._stream == STREAM_EXIT and start == len(piece) - 1:
                yield STREAM_EXIT, piece[start:]
                return
            head = heads.search(piece, start)
            data = piece[start : head.start() if head else len(piece)]
            if self._stream == STREAM_EXIT or (data and not self._stream):
                raise Garbled("the server answered with something else than the command")
            if data:
                yield self._stream, data
            if not head:
                return
            self._stream, start = head[0][0], head.end()


def exit_status_of_text(payload: bytes) -> int | None:
    """Return the status in a JSON exit message; None for every other message."""
    message = json_object(payload)
    if message.get("type") != "exit":
        return None
    code = message.get("exit_code", message.get("code"))
    if type(code) is not int:
        raise Garbled("the server's exit message holds no status")
    return code if 0 <= code <= 255 else 255


STILL_RUNNING = -1


class ExecSession:
    """One command, followed to its exit status; the forms below say how script and input go in.

    Whatever carries the bytes, the loop is the same: look at what has come, hand output to `sinks`
    (by stream number), send what input there is, wait a little.
    """

    def __init__(self, clock: Clock, sinks: Mapping[int, Sink], decoder: ExecDecoder) -> None:
        self.clock = clock
        self.decoder = decoder
        self.group: int | None = None  # the remote process group, once the script runs
        self.identity = ""  # the platform's, as soon as it tells
        self.created_at: float = 0  # likewise, in seconds of the epoch
        self._sinks = sinks
        self._status: int | None = None  # the command has ended with it, its streams may be open
        self._ended_at = 0.0
        self._came_at = 0.0  # the newest output

    def run(
        self,
        command: RemoteCommand,
        stdin: SocketInput | None = None,
        *,
        data: bytes = b"",
        limit_s: float | None = None,
    ) -> int:
        """Run a command and return its exit status; ExecLost where none comes within `limit_s`.

        Its input is `data`, then what `stdin` has to its end; None ends it at once.
        """
        self.begin(command, stdin, data, limit_s)
        return self.await_exit(limit_s)

    def await_exit(
        self,
        limit_s: float | None = None,
        until: Callable[[], bool] = lambda: False,
        every_s: float = 1.0,
        late: str = "it took longer than",
    ) -> int:
        """Pass output and input on to the exit status; STILL_RUNNING once `until` is true.

        ExecLost after `limit_s` seconds, with the words `late`.
        """
        for left_s in self.clock.polling(limit_s):
            status = self.look()
            if status is not None:
                return status
            if until():
                return STILL_RUNNING
            self.exchange(min(every_s, left_s))
        raise self.lost(f"{late} {limit_s:.0f} s")

    def look(self) -> int | None:
        """Take what has come, and return the exit status when it is there."""
        try:
            for event in self.events():
                if isinstance(event, Output):
                    self._sinks[event.stream](event.data)
                elif isinstance(event, Exit):
                    return event.status
                else:
                    self.notice(event)
        except (WebSocketLost, Garbled) as error:
            if self._status is not None:
                return self._status
            lost = self.lost(str(error))
            lost.is_cut = isinstance(error, WebSocketLost)
            raise lost from None
        return None

    def notice(self, event: Event) -> None:
        """Take note of what is not output and not the end."""
        if isinstance(event, Started):
            self.group = event.group
        elif isinstance(event, Identity):
            self.identity, self.created_at = event.text, event.created_at
        elif isinstance(event, Ended):
            self._status, self._ended_at = event.status, self.clock.monotonic()

    def closing_s(self) -> float:
        """Return for how long the streams of a command that has ended are still waited for."""
        end = min(self._came_at + CLOSE_QUIET_S, self._ended_at + CLOSE_LIMIT_S)
        return end - self.clock.monotonic()

    def lost(self, why: str) -> ExecLost:
        return ExecLost(why, started=self.decoder.started)

    def await_group(self, limit_s: float) -> int | None:
        """Return the remote process group, as soon as it is known; None if it does not come."""
        if self.group is None:  # else our own reader, who may have stopped, would be waited for
            with contextlib.suppress(ExecLost, OSError):
                self.await_exit(limit_s, lambda: self.group is not None, 0.1)
        return self.group

    # what a form of it does

    def begin(
        self, command: RemoteCommand, stdin: SocketInput | None, data: bytes, limit_s: float | None
    ) -> None:
        raise NotImplementedError

    def events(self) -> Iterator[Event]:
        """Yield what has come; never waits over a WebSocket."""
        raise NotImplementedError

    def exchange(self, timeout_s: float) -> None:
        """Wait for the server or for input, and forward the input."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class StreamSession(ExecSession):
    """A command without a terminal, over a WebSocket."""

    PING_EVERY_BYTES = 1 << 18

    def __init__(self, websocket: WebSocket, clock: Clock, sinks: Mapping[int, Sink]) -> None:
        super().__init__(clock, sinks, ExecDecoder())
        self.websocket = websocket
        self._stdin: SocketInput | None = None  # until it has ended
        self._since_ping = 0  # bytes of input

    def begin(
        self,
        command: RemoteCommand,
        stdin: SocketInput | None = None,
        data: bytes = b"",
        limit_s: float | None = None,
    ) -> None:
        self._stdin = stdin
        self.decoder.mark = command.mark if command.with_keys else b""
        script = command.stream_script() + b"\0" + data
        self.websocket.send(OP_BINARY, bytes((STREAM_STDIN,)) + script)
        if stdin is None:
            self.websocket.send(OP_BINARY, bytes((STREAM_EOF,)))
        self.websocket.keep_alive()

    def events(self) -> Iterator[Event]:
        has_come = False
        for opcode, payload in self.websocket.messages():
            yield from self.decoder.message(opcode, payload)
            has_come = True
        if has_come:
            self._came_at = self.clock.monotonic()
        elif self.clock.monotonic() - self._came_at > PART_LIMIT_S:
            yield from self.decoder.let_go()
        if self._status is not None and self.closing_s() <= 0:
            yield from self.decoder.let_go()
            yield Exit(self._status)

    def exchange(self, timeout_s: float) -> None:
        if self.decoder.has_part() or self._status is not None:
            timeout_s = min(timeout_s, PART_LIMIT_S)
        stdin = self._stdin
        has_room = stdin is not None and self.websocket.unsent() < 1 << 18
        if not self.websocket.wait(timeout_s, [stdin] if has_room else []) or stdin is None:
            return
        data = stdin.read()
        number = STREAM_STDIN if data else STREAM_EOF
        unread = 0 if stdin.is_always_read else len(data)
        self.websocket.send(OP_BINARY, bytes((number,)) + data, input_bytes=unread)
        self._since_ping += len(data)
        if stdin.is_always_read and self._since_ping >= self.PING_EVERY_BYTES:
            # on a slow way the next ping by time would wait behind megabytes
            self._since_ping = 0
            self.websocket.ping()
        if not data:
            self._stdin = None

    def await_group(self, limit_s: float) -> int | None:
        self._stdin = None
        return super().await_group(limit_s)

    def close(self) -> None:
        self.websocket.close()


POST_LIMIT = 10 << 20  # bytes of a body; the contract's
PIECE_BYTES = 8 << 20
# By place, so that a piece may be sent twice; nobody else reads it
PIECE_SCRIPT = b"""\
umask 077
dd of="$1" oflag=seek_bytes seek="$2" iflag=fullblock conv=notrunc bs=1M status=none
"""


class PostSession(ExecSession):
    """A command over POST, where something in between refuses WebSockets.

    All of its input is in the request, and each look waits for the next piece of the answer. There
    are no pings; the system's own probes find out that a peer is gone. What is too large for one
    request, and for a program of ours, goes ahead in pieces, into a file that is then its input.
    """

    def __init__(self, sprite: Sprite, sinks: Mapping[int, Sink], starting_limit_s: float) -> None:
        self._body = PostDecoder()
        super().__init__(sprite.clock, sinks, self._body)
        self.sprite = sprite
        self.starting_limit_s = starting_limit_s
        self._pieces: Iterator[bytes] = iter(())
        self._opened = contextlib.ExitStack()
        self._limit: Callable[[float], None] = lambda seconds: None  # for the rest of the answer

    def begin(
        self, command: RemoteCommand, stdin: SocketInput | None, data: bytes, limit_s: float | None
    ) -> None:
        self.decoder.mark = command.mark
        body = self._request_body(command, stdin, data)
        transport, target = self.sprite.api.transport, exec_target(self.sprite)
        policy = RetryPolicy(repeatable=False, starting_limit_s=self.starting_limit_s)
        head_limit_s = REQUEST_LIMIT_S + len(body) / SLOWEST_UPLOAD
        deadline = Deadline(limit_s or head_limit_s, self.clock, silence_s=limit_s)
        self._opened.enter_context(deadline)

        def send() -> Answer | http.client.HTTPResponse:
            if limit_s is None:
                deadline.renew(head_limit_s)
            return transport.stream_head(target, EXEC_HEADERS, body, deadline)

        try:
            response = transport.retry(policy, send)
        except NoAnswerError as error:
            lost = self.lost(str(error))
            lost.is_cut = True
            raise lost from None
        if isinstance(response, Answer):
            if failure_kind(response) == AMBIGUOUS:
                raise self.lost(f"the API answered {response.status}: {response.reason()}")
            refuse_exec(self.sprite, response, self.starting_limit_s)
        if limit_s is None:
            deadline.renew(NO_LIMIT_S)
        self._opened.enter_context(response)
        self._limit = deadline.renew
        self._pieces = transport.pieces(response, deadline, sys.maxsize)

    def _request_body(
        self, command: RemoteCommand, stdin: SocketInput | None, data: bytes
    ) -> bytes:
        head = command.stream_script(in_hex=True) + b"\0" + data
        in_pieces = stdin is not None and stdin.is_always_read
        pieces = read_pieces(stdin, PIECE_BYTES if in_pieces else POST_LIMIT - len(head))
        first, second = next(pieces, b""), next(pieces, b"")
        if not second:
            return head + first
        if not in_pieces:
            raise InputError(
                "this network refuses WebSockets, and without them a command takes at most "
                f"{POST_LIMIT >> 20} MiB of input; it was not run",
                hint=f"copy the input first: thopters cp FILE {self.sprite.name}:FILE; "
                "then let the command read it there",
            )
        path = send_ahead(self.sprite, [first, second], pieces)
        return command.reading(path).stream_script(in_hex=True) + b"\0"

    def events(self) -> Iterator[Event]:
        if self._status is not None:
            self._limit(max(0.0, self.closing_s()))
        try:
            piece = next(self._pieces, b"")
        except NoAnswerError as lost:
            raise Garbled(str(lost)) from None
        if not piece:
            raise Garbled("the answer ended before the exit status")
        yield from self._body.piece(piece)
        self._came_at = self.clock.monotonic()

    def exchange(self, timeout_s: float) -> None:
        """Nothing is left to be sent, and the next look waits."""

    def await_group(self, limit_s: float) -> int | None:
        return self.group

    def close(self) -> None:
        self._opened.close()


def read_pieces(stdin: SocketInput | None, size: int) -> Iterator[bytes]:
    """Yield our stdin in pieces of `size` bytes, the last one with what is left; None is empty."""
    rest = bytearray()
    while stdin and (part := stdin.read()):
        rest += part
        while len(rest) >= size:
            yield bytes(rest[:size])
            del rest[:size]
    if rest:
        yield bytes(rest)


def send_ahead(sprite: Sprite, *sources: Iterable[bytes]) -> bytes:
    """Write pieces into a new file in a sprite's home, and return its name; ThoptersError."""
    path, place = b".thopters-" + os.urandom(16).hex().encode(), 0
    try:
        for source in sources:
            for piece in source:
                send_piece(sprite, path, place, piece)
                place += len(piece)
    except BaseException as error:
        with contextlib.suppress(ThoptersError):  # only a moment: the user may want us to end
            in_background(remove_sent, sprite, path).join(URGENT_LIMIT_S)
        if isinstance(error, ExecLost):
            raise NoAnswerError(f"cannot send it to {sprite.name}: {error}") from None
        raise
    return path


def remove_sent(sprite: Sprite, path: bytes) -> None:
    with contextlib.suppress(ThoptersError, ExecLost):
        run_script(sprite, b'rm -f -- "$1"', path, limit_s=PROBE_LIMIT_S)


def send_piece(sprite: Sprite, path: bytes, place: int, piece: bytes) -> None:
    words = (path, str(place).encode())
    limit_s = REQUEST_LIMIT_S + len(piece) / SLOWEST_UPLOAD
    status, _, err = retry_cut(
        sprite,
        lambda: run_script(sprite, PIECE_SCRIPT, *words, data=piece, limit_s=limit_s),
        twice_is_once=True,
    )
    if status:
        why = err.decode("utf-8", "replace").strip()
        raise ThoptersError(f"cannot write to the disk of {sprite.name}: {why}")


def exec_target(sprite: Sprite, *, outlives_us: bool = False) -> str:
    words = ("bash", "-c", BOOTSTRAP)
    query = [*(("cmd", word) for word in words), ("path", "bash"), ("stdin", "true")]
    if outlives_us:
        query.append(("max_run_after_disconnect", "0"))  # no limit; else it is ten seconds
    return sprite.api.transport.target(sprite.path("exec"), query)


def open_exec(
    sprite: Sprite, sinks: Mapping[int, Sink], limit_s: float = WAKE_LIMIT_S
) -> ExecSession:
    """Open the way for a command, waking the sprite; errors if it can't be had in `limit_s`.

    Nothing runs before the script is sent, so every failure up to here may be tried again.
    """
    api = sprite.api
    if not api.websockets_refused:
        try:
            websocket = open_sprite_socket(sprite, exec_target(sprite), limit_s)
            return StreamSession(websocket, sprite.clock, sinks)
        except UpgradeBrokenError as error:
            sprite.console.detail(f"{error.message}; commands are sent by POST instead")
            api.websockets_refused = True
    return PostSession(sprite, sinks, limit_s)


def open_outliving(sprite: Sprite) -> StreamSession:
    """Open the way for a command of ours that goes on without us, and shows nothing.

    It has no terminal, so that `attach` does not take it for one of the user's.
    """
    target = exec_target(sprite, outlives_us=True)
    websocket = open_sprite_socket(sprite, target, WAKE_LIMIT_S)
    nowhere: dict[int, Sink] = dict.fromkeys((STREAM_STDOUT, STREAM_STDERR), lambda _: None)
    return StreamSession(websocket, sprite.clock, nowhere)


def open_sprite_socket(sprite: Sprite, target: str, limit_s: float) -> WebSocket:
    """Open a WebSocket into a sprite, waking it; UpgradeBrokenError where something in between
    refuses WebSockets."""
    try:
        return upgrade_once(sprite, target, limit_s)
    except NotFoundError:
        if not sprite.is_listed():
            raise
    sprite.clock.sleep(RECHECK_AFTER_S)  # the API misses one now and then
    return upgrade_once(sprite, target, limit_s)


def upgrade_once(sprite: Sprite, target: str, limit_s: float) -> WebSocket:
    """Do the same, and take a 404 at its word: NotFoundError."""
    policy = RetryPolicy(repeatable=True, starting_limit_s=limit_s, wakes=True)
    result = sprite.api.transport.retry(
        policy, lambda: open_websocket(sprite.api.transport, target, min(limit_s, REQUEST_LIMIT_S))
    )
    if not isinstance(result, Answer):
        sprite.console.redact.spare(sprite.name)
        return result
    if is_refused_upgrade(result):
        raise UpgradeBrokenError(f"answered {result.status} to")
    refuse_exec(sprite, result, limit_s)


def is_refused_upgrade(answer: Answer) -> bool:
    """Return whether something in between, and not the API, answers an upgrade.

    It may also have passed it on as a plain GET, which lists sessions. The API's own words are
    JSON with an `error`, but for those of its WebSocket library about a lost header.
    """
    if answer.status == 200:
        return True
    return answer.status in (400, 403, 405, 426, 501) and not answer.error_code()


def refuse_exec(sprite: Sprite, answer: Answer, limit_s: float) -> NoReturn:
    if failure_kind(answer) == STARTING:
        raise TimedOutError(
            f"{sprite.name} is still starting after {limit_s:.0f} s", hint="try again"
        )
    sprite.api.refuse(answer, f"run a command in {sprite.name}", sprite.name)


def retry_cut(sprite: Sprite, attempt: Callable[[], T], *, twice_is_once: bool) -> T:
    """Call `attempt` again where the connection was cut before its command was sent.

    If `twice_is_once`, also where it may have been sent, and has not answered.
    """
    policy = RetryPolicy(repeatable=True)
    while True:
        try:
            return attempt()
        except ExecLost as lost:
            wait = policy.wait(AMBIGUOUS, None, sprite.clock.jitter())
            is_safe = not lost.is_sent or (twice_is_once and not lost.started)
            if wait is None or not lost.is_cut or not is_safe:
                raise
            sprite.console.detail(f"{lost}; trying again in {wait:.1f} s")
            sprite.clock.sleep(wait)


def run_script(
    sprite: Sprite,
    script: bytes,
    *words: bytes,
    data: bytes = b"",
    statuses: Container[int] = (0, 1),
    limit_s: float = SILENCE_TIMEOUT_S,
    open_limit_s: float = WAKE_LIMIT_S,
    is_held: bool = False,
) -> tuple[int, bytes, bytes]:
    """Run a short script of ours with arguments; return its exit status, stdout and stderr.

    `data` is its input, `statuses` are those that it ends with by itself. The sprite `is_held`
    during one that may be quiet for long. ExecLost where there is no status or another, as of a
    shell that was killed, or where too much is printed; and the errors of open_exec.
    """
    out, err = Kept(), Kept()
    argv = [b"bash", b"-c", script, b"thopters", *words]
    command = RemoteCommand(argv, hold_max_s=round(limit_s) if is_held else 0, with_keys=False)
    sinks: dict[int, Sink] = {STREAM_STDOUT: out.take, STREAM_STDERR: err.take_first}
    session = open_exec(sprite, sinks, open_limit_s)
    try:
        status = session.run(command, data=data, limit_s=limit_s)
    finally:
        session.close()
    if status not in statuses:
        raise ExecLost(f"the command for it ended with {status}", started=True)
    return status, bytes(out), bytes(err)


def require_output(sprite: Sprite, script: bytes) -> bytes:
    """Run a short script of ours and return its stdout; an error unless it exits 0."""
    with sprite.console.working(f"waiting for {sprite.name}"):
        try:
            status, out, _ = run_script(sprite, script, limit_s=REQUEST_LIMIT_S)
        except ExecLost as lost:
            raise ThoptersError(f"cannot run a command in {sprite.name}: {lost}") from None
    if status:
        raise ThoptersError(f"cannot write to the disk of {sprite.name}")
    return out


NOT_YET = 9  # the exit status of a script that has looked, and seen that it is not so


def wait_until_ready(
    sprite: Sprite, limit_s: float, script: bytes = b":", data: bytes = b""
) -> bytes:
    """Ask with a short script until it exits 0, and return its stdout.

    NotReadyError after `limit_s`.
    """
    answers, why = False, ""
    for _ in sprite.clock.polling(limit_s, 0.2):
        try:
            status, out, _ = run_script(
                sprite,
                script,
                data=data,
                statuses=(0, NOT_YET),
                limit_s=PROBE_LIMIT_S,
                open_limit_s=PROBE_LIMIT_S,
            )
            if status == 0:
                return out
            answers, why = True, "it is not yet so"
        except AuthError:
            raise
        except (ThoptersError, ExecLost) as error:
            answers, why = False, str(error)
        sprite.console.detail(f"{sprite.name} is not ready: {why}")
    raise NotReadyError(
        f"{sprite.name} runs no command yet after {limit_s:.0f} s: {why}", answers=answers
    )


# To a whole process group in a sprite: the platform's own call may reach its leader alone, which is
# our wrapper. Unless the group is known to be one, its id has to be a session's. A shell with jobs
# is in a group of its own, the terminal's, so that gets the signal too. What a command has left
# behind is found by the session, when its leader has gone, where there are pgrep and pkill.
# 0 it is gone, 3 there is no such group, 4 it is still there after `looks` tenths of a second
SIGNAL_SCRIPT = b"""\
id=$1 name=$2 is_known=$3 looks=$4 front=-1
send() {
  [ "$front" -le 1 ] || [ "$front" = "$id" ] || kill -s "$1" -- "-$front"
  kill -s "$1" -- "-$id" || pkill "-$1" -s "$id"
}
leads() {
  read -r stat < "/proc/$id/stat" && set -- ${stat##*)} && [ "$4" = "$id" ] && front=$6
}
leads || [ "$is_known" ] || pgrep -s "$id" > /dev/null || exit 3
send "$name" || { [ "$is_known" ] && pkill "-$name" -P "$id"; } || exit 3
for ((; looks > 0; looks--)); do send 0 || exit 0; sleep 0.1; done
exit 4
"""
GROUP_GONE, NO_SUCH_GROUP, GROUP_STAYS = 0, 3, 4


def signal_group(
    sprite: Sprite, group: str, name: str, *, is_known: bool = False, is_urgent: bool = False
) -> int:
    """Send a signal such as "TERM" to a process group in a sprite; return what came of it.

    GROUP_GONE, NO_SUCH_GROUP, or GROUP_STAYS after 5 s; if it `is_urgent`, at once. ExecLost where
    that is not known.
    """
    known, looks = b"known" if is_known else b"", b"0" if is_urgent else b"50"
    limits_s = (URGENT_LIMIT_S, PROBE_LIMIT_S) if is_urgent else (SILENCE_TIMEOUT_S, WAKE_LIMIT_S)
    status, _, _ = run_script(
        sprite,
        SIGNAL_SCRIPT,
        *(to_bytes(group), name.encode(), known, looks),
        statuses=(GROUP_GONE, NO_SUCH_GROUP, GROUP_STAYS),
        limit_s=limits_s[0],
        open_limit_s=limits_s[1],
    )
    return status


def pass_signal_on(sprite: Sprite, group: int, signum: int) -> None:
    """Send a signal of ours to a command that runs, and say at once where it does not arrive.

    Only a moment is waited, for the user wants us to end.
    """
    name, told = signal.Signals(signum).name[3:], list[str]()

    def tell(why: str) -> None:
        if not told:
            told.append(why)
            sprite.console.warn(
                f"{name} is not known to have reached the command in {sprite.name}: {why}"
            )
            sprite.console.remedy(
                f"the command may go on there; look at it: thopters sessions {sprite.name}"
            )

    def send() -> None:
        for _ in range(SIGNAL_TRIES):
            try:
                signal_group(sprite, str(group), name, is_known=True, is_urgent=True)
                return
            except (ThoptersError, ExecLost) as error:
                why = str(error)
                if isinstance(error, ExecLost) and error.started:
                    break  # twice is not the same as once
        tell(why)

    with contextlib.suppress(ThoptersError):
        sender = in_background(send)
        sender.join(PROBE_LIMIT_S)
        if sender.is_alive():
            tell(f"there was no answer within {PROBE_LIMIT_S:.0f} s")


def find_session(sprite: Sprite, identity: str, created_at: float) -> Session | None:
    """Return the session with this number that was created then, in seconds; None if it is gone.

    After a cold boot a number can be another's. With its sprite a session is gone, too.
    """
    with contextlib.suppress(NotFoundError):
        for session in sprite.list_sessions():
            if session.id == identity and same_moment(session.created_at, created_at):
                return session
    return None


def is_used_again(sprite: Sprite, identity: str, created_at: float) -> bool:
    """Return whether a session's number is another one's by now, by the time of creation."""
    with contextlib.suppress(NotFoundError):
        for session in sprite.list_sessions():
            if session.id == identity:
                return not same_moment(session.created_at, created_at)
    return False


def end_session(sprite: Sprite, session: Session, signal_name: str = "") -> bool:
    """Signal a session, and return whether it is gone; without a name, see to that it is."""
    wanted = signal_name or ("HUP" if session.is_terminal else "TERM")  # a shell survives TERM
    try:
        status = signal_group(sprite, session.id, wanted)
        if status == GROUP_STAYS and not signal_name:
            wanted = "KILL"
            status = signal_group(sprite, session.id, wanted, is_known=True)
    except ExecLost as lost:
        if signal_name:
            raise NoAnswerError(
                f"cannot tell whether session {session.lasting_id} of {sprite.name} "
                f"got {wanted}: {lost}"
            ) from None
        status = NO_SUCH_GROUP
    if status == NO_SUCH_GROUP and signal_name not in ("", "KILL"):
        # the platform's own call is no way: it KILLs after a time
        if not find_session(sprite, session.id, session.created_at):
            return True
        raise ThoptersError(
            f"session {session.lasting_id} of {sprite.name} can't be sent {signal_name} alone: "
            "its processes were not found",
            hint=f"end it: thopters kill {sprite.name} {session.lasting_id}",
        )
    if status == NO_SUCH_GROUP or (status == GROUP_STAYS and not signal_name):
        sprite.kill_session(session, "SIG" + wanted)
    limit_s = 0.0 if status == GROUP_STAYS and signal_name else SESSION_LAG_S
    with After(f"session {session.lasting_id} of {sprite.name} got {wanted}"):
        for _ in sprite.clock.polling(limit_s, 0.2):
            if not find_session(sprite, session.id, session.created_at):
                return True
    return False


def run_attached(
    sprite: Sprite, session: ExecSession, command: RemoteCommand, stdin: SocketInput | None
) -> int:
    """Run the command to its end, passing signals on, and return its status."""
    try:
        with SignalRelay(
            lambda: session.group, lambda group, signum: pass_signal_on(sprite, group, signum)
        ) as relay:
            status = session.run(command, stdin)
    except ExecLost as lost:
        raise status_unknown(sprite, lost) from None
    except BaseException as error:  # a second signal, or nobody reads our output any more
        broken = isinstance(error, (BrokenPipeError, OutputError))
        if session.group and (broken or isinstance(error, Interrupted)):
            pass_signal_on(sprite, session.group, signal.SIGTERM if broken else signal.SIGKILL)
        raise
    finally:
        session.close()
    if relay.received and status == 128 + relay.received:
        raise Interrupted(relay.received)
    return status


def status_unknown(sprite: Sprite, lost: ExecLost) -> ThoptersError:
    """Say what is known of a command whose exit status never came."""
    if not lost.is_sent:
        return ThoptersError(
            f"the connection to {sprite.name} was lost before the command was sent ({lost}): "
            "it has not run",
            hint="try again",
        )
    state = sprite.glance_at_state()
    why, hint = str(lost), f"see what it has done: thopters exec {sprite.name} -- ps aux"
    if state == "gone":
        why, hint = f"there is no sprite {sprite.name} any more", "see what there is: thopters list"
    if not lost.started:
        return StatusUnknownError(
            f"the connection to {sprite.name} was lost before the command answered ({why}): "
            "it is not known whether it has run; it was not run again",
            hint=hint,
        )
    if state == "hibernating":
        why = "the sprite has paused, as it does when a command is quiet for long"
        hint = "it may go on when the sprite wakes; " + hint
    return StatusUnknownError(
        f"the command's exit status is unknown: the connection to {sprite.name} ended ({why}); "
        "it was not run again",
        hint=hint,
    )


# --- holds ------------------------------------------------------------------------------

# What keeps a sprite awake: a hold is a task of the platform that has not expired. A command of
# ours holds its sprite by a loop beside it (HOLD_LOOP, above), which refreshes such a task while
# the command runs; on a terminal only while somebody is attached (HoldRefresher). `hold --for`
# keeps a command running for that time, and `hold --release` ends it.

# The API for tasks is inside the sprite alone, on a socket; on some images only behind a program.
# That takes an answer of an error for a success, so a list has to show what came of it.
TASKS_SCRIPT = b"""\
ask() {
  curl -fsS --path-as-is --max-time 5 -X "$1" --unix-socket /.sprite/api.sock "http://sprite$2" ||
    sprite-env curl -X "$1" "$2"
}
[ ! "$1" ] || ask DELETE "/v1/tasks/$1" > /dev/null
ask GET /v1/tasks || exit 1
"""


class Hold:
    """A task that keeps a sprite awake; `expires_at` is an RFC 3339 stamp."""

    __slots__ = ("expires_at", "name")

    def __init__(self, item: dict[str, Any]) -> None:
        self.name = text_field(item, "name")
        self.expires_at = text_field(item, "expires_at")

    def describe(self, now: datetime.datetime) -> str:
        """Return for people until when it holds."""
        expires, left_s = parse_time(self.expires_at), float("inf")
        if expires and not is_never(expires):
            left_s = (expires - now).total_seconds()
        return format_until(left_s, now)


def list_holds(sprite: Sprite, *, release: str = "") -> list[Hold]:
    """Return the holds of a sprite, after `release` has been deleted.

    ThoptersError where the task API can't be reached or refuses.
    """
    import urllib.parse

    path = urllib.parse.quote(to_bytes(release), safe="").encode()
    why = "the image lacks the task API"
    try:
        status, out, err = retry_cut(
            sprite, lambda: run_script(sprite, TASKS_SCRIPT, path), twice_is_once=True
        )
        why = " ".join(err.decode("utf-8", "replace").splitlines()[:1]) or why
    except ExecLost as lost:
        status, out, why = None, b"", str(lost)
    if status != 0:
        raise ThoptersError(f"cannot ask about holds in {sprite.name}: {why}")
    items = list_field(json_object(out), "tasks")
    return read_items(Hold, items, f"holds in {sprite.name}", "name")


def release_hold(sprite: Sprite, hold: str) -> None:
    """Delete a hold; one that has expired meanwhile is as good."""
    if hold in [item.name for item in list_holds(sprite, release=hold)]:
        raise ThoptersError(f"hold {hold} of {sprite.name} can't be ended: it is still there")


# To the loop beside a command of ours: somebody is there. 3 where no such loop reads it
HERE_SCRIPT = b"""\
grep -q _thopters "/proc/$1/cmdline" && [ -p "/proc/$1/fd/9" ] || exit 3
timeout 5 bash -c 'trap "" PIPE; echo > "$1"' bash "/proc/$1/fd/9"
case $? in 0) ;; 1|126|127) exit 3;; *) exit 255;; esac
"""


class HoldRefresher:
    """While we are attached to a session, refreshes its hold from a thread.

    The platform lets one on a terminal live on when we vanish, and one of ssh as long as it does
    not notice, and nothing tells them. So the hold of a command that has not asked for its own is
    to expire then. `tell` hears why it can't be refreshed, once until it can again. A session that
    has `just_begun` has its first hold.
    """

    def __init__(
        self,
        sprite: Sprite,
        session: ExecSession,
        tell: Callable[[str], None],
        *,
        just_begun: bool = False,
    ) -> None:
        self.sprite = sprite
        self.session = session
        self._tell = tell
        self._has_first = just_begun or not session.identity

    def __enter__(self) -> None:
        import threading

        self._left = threading.Event()
        with contextlib.suppress(ThoptersError):
            in_background(self._refresh)

    def _refresh(self) -> None:
        wait_s: float = HOLD_EVERY_S if self._has_first else 0
        is_told = False
        while not self._left.wait(wait_s):
            wait_s = HOLD_EVERY_S
            try:
                if not self._say_here():
                    return
                is_told = False
            except (ThoptersError, ExecLost) as error:
                wait_s = HOLD_AGAIN_S
                if not is_told and not self._left.is_set():
                    self._tell(str(error))
                is_told = True

    def _say_here(self) -> bool:
        """Return False where nothing holds. A sprite that sleeps is not woken by this."""
        info = self.sprite.find()
        if info is None or self.sprite.settled(info).is_asleep():
            return True
        number, created_at = self.session.identity, self.session.created_at
        if number and is_used_again(self.sprite, number, created_at):
            return False
        if self._left.is_set():  # meanwhile: nobody is here any more
            return True
        identity = to_bytes(str(self.session.group or self.session.identity))
        status, _, _ = run_script(
            self.sprite, HERE_SCRIPT, identity, statuses=(0, 3), open_limit_s=PROBE_LIMIT_S
        )
        return status == 0

    def __exit__(self, *exc: object) -> None:
        self._left.set()


# Keeps a command, and so its hold, until the time is up or another hold or a release comes
KEEP_SCRIPT = (
    UPTIME
    + b"""\
file=~/.thopters/hold mine="$1 thopters-$PPID"
mkdir -p ~/.thopters && echo "$mine" > "$file" || exit
uptime
end=$((now + $2))
while uptime && [ "$now" -lt "$end" ] && [ "$(cat "$file" 2> /dev/null)" = "$mine" ]; do
  sleep 1
done
"""
)


# What has expired, or died, leaves its file; the id of its process may be another's by now. It is
# looked for first: without its file it may end before that
RELEASE_SCRIPT = b"""\
read -r token task < ~/.thopters/hold || exit 0
! grep -qsaF -f <(echo "$token") /proc/[0-9]*/cmdline || echo "$task"
rm -f ~/.thopters/hold || exit 1
"""


HOLD_SEEN_LIMIT_S = 10.0
HOLD_GONE_LIMIT_S = 15.0


def hold_by_hand(sprite: Sprite, seconds: int) -> None:
    """Keep a sprite awake without us, by a command that holds it; return when the hold is seen."""
    with sprite.console.working(f"asking for a hold in {sprite.name}"):
        list_holds(sprite)  # an error on an image without them
    with sprite.console.working(f"holding {sprite.name}"):
        try:
            ended = retry_cut(
                sprite,
                lambda: start_keeper(sprite, seconds),
                twice_is_once=True,  # a second one takes the place of one that began unseen
            )
        except BaseException as error:
            sprite.console.note(
                f"{sprite.name} may be held all the same: thopters hold {sprite.name} --release"
            )
            if isinstance(error, ExecLost):
                raise NoAnswerError(f"cannot tell whether {sprite.name} is held: {error}") from None
            raise
        if ended != STILL_RUNNING:
            raise ThoptersError(f"cannot hold {sprite.name}: the command for it has ended")


def start_keeper(sprite: Sprite, seconds: int) -> int:
    """Start what holds a sprite; STILL_RUNNING once its hold is seen, else its status; ExecLost."""
    words = [os.urandom(8).hex().encode(), str(seconds).encode()]
    argv = [b"bash", b"-c", KEEP_SCRIPT, b"thopters-hold", *words]
    session = open_outliving(sprite)
    try:
        session.begin(RemoteCommand(argv, hold_max_s=seconds, with_keys=False))
        ended = session.await_exit(SILENCE_TIMEOUT_S, lambda: session.group is not None)
        if ended == STILL_RUNNING:
            with After(f"a hold of {sprite.name} was asked for"):
                ended = wait_for_hold(sprite, session)
        return ended
    finally:
        session.close()


def wait_for_hold(sprite: Sprite, session: ExecSession) -> int:
    """Return STILL_RUNNING once the hold is there, the status of what has ended; TimedOutError."""
    task = f"thopters-{session.group}"
    for _ in sprite.clock.polling(HOLD_SEEN_LIMIT_S, 0.3):
        if task in [hold.name for hold in list_holds(sprite)]:
            return STILL_RUNNING
        ended = session.look()
        if ended is not None:
            return ended
    raise TimedOutError("it does not appear")


def release_by_hand(sprite: Sprite) -> bool:
    """End the hold that was asked for by hand, and see it gone; return whether there was one."""
    list_holds(sprite)  # an error on an image without them
    held = require_output(sprite, RELEASE_SCRIPT).decode("ascii", "replace").strip()
    told_to_end = After(f"the hold {held} of {sprite.name} was told to end")
    with sprite.console.working(f"letting {sprite.name} sleep"), told_to_end:
        for _ in sprite.clock.polling(HOLD_GONE_LIMIT_S, 0.5):
            if not held or held not in [hold.name for hold in list_holds(sprite)]:
                return bool(held)
        raise TimedOutError("it is still there")


# --- escapes ----------------------------------------------------------------------------

# What terminals and programs tell each other between the text: escapes, which begin with ESC. One
# parser cuts either way's bytes into text and whole escapes. What a terminal sends is a key that
# somebody pressed, or a report that it sends by itself. Which reports there are nobody can list, so
# the keys are: what has the form of a key is one, and every other escape is a report.

LONGEST_ESCAPE = 4096  # bytes of one that has not ended; beyond that it is taken for text
# What a terminal sends: the mouse in its oldest form; keys and reports as control sequences; keys
# as ESC O; strings, which end with BEL or ESC \; a key with Alt
SENT = (
    rb"\x1b(?:\[M[\x20-\xff]{3}|\[\[[@-~]|\[(?![M[])[0-?]*[ -/]*[@-~]|O[ -~]"
    rb"|[P\]X^_][ -~]*(?:\x07|\x1b\\)|[^\x1b[OP\]X^_])"
)
SENT_IN_PART = rb"\x1b(?:\[(?:M[\x20-\xff]{0,2}|\[|[0-?]*[ -/]*)|O|[P\]X^_][ -~]*\x1b?)?\Z"
# A key as a control sequence: its number, what happened to it (1 or nothing: pressed, 2: repeated,
# 3: released), and the last letter
KEY = (
    rb"\x1b\[(?:\[[A-E]|[a-d]|([0-9]*)(?::[0-9:]*)?"
    rb"(?:;[0-9]*(?::([0-9]*)(?::[0-9:]*)?)?(?:;[0-9:;]*)?)?([A-HPQSZu~^@z]))"
)
# One that is pressed together with others, as the kitty protocol and modifyOtherKeys send it
PRESSED = (
    rb"\x1b\[(?:([0-9]{1,9})(?::[0-9]*)?(?::([0-9]{1,9}))?;([0-9]{1,9})(?::[12])?(?:;[0-9:;]*)?u"
    rb"|27;([0-9]{1,9});([0-9]{1,9})~)"
)
# What a program sends: control sequences; strings, which end with ESC \, or BEL for the first kind;
# ESC and one or more characters
SHOWN = (
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x18\x1a\x1b]*(?:\x07|\x1b\\)"
    rb"|[PX^_k][^\x18\x1a\x1b]*\x1b\\|[ -/]+[0-~]|[^\x00-\x1f -/[\]PX^_k\x7f-\xff])"
)
SHOWN_IN_PART = (
    rb"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x18\x1a\x1b]*\x1b?|[PX^_k][^\x18\x1a\x1b]*\x1b?|[ -/]*)?\Z"
)
MODE_SWITCH = rb"\x1b(?:\[\?[0-9;]*[hl]|c)"  # of those; the second one puts all back
OTHER_SCREEN = {b"47", b"1047", b"1049"}  # modes in which a program has a screen of its own
ORIGIN = {b"6"}  # the mode in which rows count from the scroll region's first
# Leaves it; the cursor has to move for that, and no other escape brings it back where it was
LEAVE_ORIGIN = b"\x1b[?6l\x1b[r\x1b[999;1H"
OWN_KEYS = b"\x1b[=0u\x1b[<99u"  # ends the kitty protocol; each of the two screens has it apart
END_OF_STRING = b"\x1b\\"  # of an escape that was cut, such as a title; else it does nothing
# Whatever a program has left behind, in one order that changes nothing on a clean screen: with the
# cursor put back where it was, the ways of sending keys, margins and the scroll region; insert
# mode, and that a line feed is a new line too; the modes of the cursor, mouse, focus, pastes, sizes
# and colours; the keypad, the cursor's shape, links, character sets, and colours
RESET = (
    b"\x1b7" + OWN_KEYS + b"\x1b[>4m\x1b[?69l\x1b[r\x1b8\x1b[4;20l"
    b"\x1b[?1;5;9;1000;1002;1003;1004;1005l\x1b[?1006;1015;1016;2004;2026;2031;2048l"
    b"\x1b[?7;25h\x1b>\x1b[0 q\x1b]8;;\x1b\\\x1b(B\x1b)B\x0f\x1b[m"
)
# What draws, or sets something for what is drawn: cursor, text, colours, margins; ways of sending
# keys; titles, links and colours of the palette, unless these are asked for
DRAWS = (
    rb"(?s)\x1b(?:\[(?:[0-9:;]*[@-HIJKLMPSTXZ^`abdefghjklmrsu]|\?[0-9;]*[JK]|>[0-9:;]*[mnu]"
    rb"|[<=][0-9;]*u|[0-9;]* [@Aq]|!p|[0-9;]*\$[rtvxz{]|[0-9;]*'[}~]|[0-9;]*\"q)"
    rb"|\](?:[0128]|133)(?:;.*)?(?:\x07|\x1b\\)"
    rb"|\](?:[45]|1[0-9]|10[45]|11[0-9])(?:;[^?]*)?(?:\x07|\x1b\\)"
    rb"|[78=>DEHMNOcno|}~\\]|[(-/].|#[3-68]|%[@G])"
)
# Between escapes: the question who is there, the bell, escapes of a second kind, broken ones
DRAWS_NOTHING = rb"[\x05\x07]|\xc2[\x80-\x9f]|\x1b(?:\[[0-?]*[ -/]*|[P\]X^_k][^\x00-\x1f]*|[ -/]*)?"
DRAWING_MODES = OTHER_SCREEN | {b"3", b"5", b"6", b"7", b"25", b"45", b"69", b"1048"}
CONTROL, LOCKS = 4, 64 | 128  # bits of what is held down with a key; Caps Lock and Num Lock
LEAVE, INTERRUPT = ord("\\"), ord("c")


class Escapes:
    """Cuts bytes into text and whole escapes, over the borders of reads.

    `whole` is the pattern of an escape, `in_part` of one that the bytes end in. It takes linear
    time, and keeps LONGEST_ESCAPE bytes at most.
    """

    def __init__(self, whole: bytes, in_part: bytes) -> None:
        import re

        self._whole = re.compile(whole)
        self._in_part = re.compile(in_part)
        self._begun = b""  # an escape whose end has not come yet
        self._given = 0  # bytes of it that were given up

    @property
    def held(self) -> int:
        """Return how many bytes wait for the rest of their escape."""
        return len(self._begun) - self._given

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[bytes, bytes]]:
        """Yield each text and each escape, and what is new of it.

        An escape without an end is held. One that was given up is still known when its end comes;
        only the end is new then.
        """
        text, given = self._begun + data, self._given
        self._begun, self._given = b"", 0
        start = 0
        for found in self._whole.finditer(text):
            for token in (text[start : found.start()], found[0]):
                if token:
                    yield token, token[given:]
                    given = 0
            start = found.end()
        rest = text[start:]
        begun = self._in_part.search(rest)
        if begun and len(begun[0]) <= LONGEST_ESCAPE:
            rest = rest[: begun.start()]
            self._begun, self._given = begun[0], 0 if rest else given
        if rest:
            yield rest, rest[given:]

    def give_up(self) -> bytes:
        """Return what is held, as its end does not come."""
        new = self._begun[self._given :]
        self._given = len(self._begun)
        return new


def is_key(token: bytes) -> bool:
    """Return whether somebody pressed a key, by what the terminal sent: text, or one escape.

    To press Shift or a lock alone is not a key, nor is it one to let go of a key.
    """
    import re

    if not re.fullmatch(SENT, token) or token[1:2] not in b"[P]X^_":
        return True  # text; Alt and a key; ESC O
    key = re.fullmatch(KEY, token)
    if not key or key[2] == b"3":
        return False
    return not (key[3] == b"u" and is_modifier(int(key[1][:9] or 0)))


def is_modifier(code: int) -> bool:
    """Return whether a key of the kitty protocol does nothing alone: Shift, Ctrl, a lock."""
    return 57358 <= code <= 57360 or 57441 <= code <= 57454


def control_key(token: bytes) -> int:
    """Return the character of a key that is pressed together with Ctrl alone, 0 for all else.

    Locks do not count. Where the layout has other letters, the key is the one of a US keyboard.
    """
    import re

    key = re.fullmatch(PRESSED, token)
    if not key:
        return 0
    code, on_us_keyboard, held = int(key[1] or key[5]), key[2], int(key[3] or key[4]) - 1
    if held & ~LOCKS != CONTROL:
        return 0
    return int(on_us_keyboard) if code > 127 and on_us_keyboard else code


def cut_at_leave(token: bytes, new: bytes) -> tuple[bytes, bool]:
    """Return what is new before Ctrl-\\, and whether that was pressed."""
    if control_key(token) == LEAVE:
        return b"", True
    before, pressed, _ = new.partition(b"\x1c")
    return before, bool(pressed)


def switched(token: bytes, modes: Container[bytes], before: bool) -> bool:
    """Return whether one of some modes is on behind an escape, as it was `before` or changed."""
    if token == b"\x1bc":
        return False
    is_switch = token[:3] == b"\x1b[?" and token[-1:] in b"hl"
    if is_switch and any(mode in modes for mode in token[3:-1].split(b";")):
        return token[-1:] == b"h"
    return before


class Drawing:
    """Keeps of a program's output what draws, and sets modes, over the borders of reads.

    What asks the terminal something, rings, or writes to its clipboard is left out, and so is all
    that is not known. A mode that draws nothing is set once, in the end, to what it was then: to
    switch one on can be a question as well.
    """

    def __init__(self) -> None:
        import re

        self._parser = Escapes(SHOWN, SHOWN_IN_PART)
        self._whole = re.compile(SHOWN)
        self._modes: dict[bytes, bytes] = {}
        self._begun = b""  # what may be the first byte of an escape of the second kind

    def feed(self, data: bytes | memoryview, start: int = 0) -> bytes:
        """Return what draws from `start` on."""
        text, drawn, end = self._begun + data, list[bytes](), 0
        self._begun = text[-1:] if text[-1:] == b"\xc2" else b""
        for token, _ in self._parser.feed(text.removesuffix(self._begun)):
            begin, end = end, end + len(token)
            if end > start:
                drawn.append(self._what_draws(token, max(0, start - begin)))
        return b"".join(drawn)

    def _what_draws(self, token: bytes, start: int) -> bytes:
        import re

        if not self._whole.fullmatch(token):
            return re.sub(DRAWS_NOTHING, b"", token[start:])
        if token[:3] != b"\x1b[?" or token[-1:] not in b"hl":
            return token if re.fullmatch(DRAWS, token) else b""
        drawn = b""
        for number in token[3:-1].split(b";"):
            switch = b"\x1b[?" + number + token[-1:]
            if number in DRAWING_MODES:
                drawn += switch
            elif number.isdigit():
                self._modes.pop(number, None)
                self._modes[number] = switch
        return drawn

    def end(self) -> bytes:
        """Return the modes, and what may go on as an escape."""
        return b"".join([self._begun, *self._modes.values(), self._parser.give_up()])


def what_draws(data: bytes, start: int) -> bytes:
    """Return what draws, and sets modes, of a program's output from `start` on."""
    drawing = Drawing()
    return drawing.feed(data, start) + drawing.end()


def text_of(data: bytes) -> str:
    """Return the text among what a program has shown."""
    import re

    whole = re.compile(SHOWN)
    tokens = [token for token, _ in Escapes(SHOWN, SHOWN_IN_PART).feed(data)]
    texts = [re.sub(DRAWS_NOTHING, b"", token) for token in tokens if not whole.fullmatch(token)]
    return b"".join(texts).decode("utf-8", "replace")


def overlap(first: bytes, second: bytes) -> int:
    """Return how many bytes at the end of `first` are the beginning of `second`, in linear time.

    By Knuth, Morris and Pratt: `ends` are, for each beginning, the most bytes at its end with
    which it begins too.
    """
    second = second[: len(first)]
    ends, same = [0], 0
    for byte in second[1:]:
        while same and byte != second[same]:
            same = ends[same - 1]
        same += byte == second[same]
        ends.append(same)
    same = 0
    for byte in first if second else b"":
        while same and (same == len(second) or byte != second[same]):
            same = ends[same - 1]
        same += byte == second[same]
    return same


# --- terminal ---------------------------------------------------------------------------

# Our own terminal, a remote one, and the stay with a session on it: what keys mean (Ctrl-\ leaves),
# how screens are put back, when a lost connection is attached again (Stay).

START_WATCH_S = 0.5  # a detached command that ends so soon has failed to start, or was short
IDENTITY_LIMIT_S = 5.0  # for the platform to tell a session's id, once the command runs
IDLE_BEFORE_PAUSE_S = 1.0  # quiet for so long, a session may have been lost to a pause
QUICK_LOSS_S = 5.0  # after it was attached, a loss is a sign of something worse
MOST_LOSSES = 5
STATUS_LAG_S = 5.0  # of a sprite's status behind its falling asleep
AWAY_LIMIT_S = 600.0  # for the API to be reached again
# With a terminal stdin is a tty, so the script comes as base64, which no tty changes. The remote
# side says when it is ready, for what is sent sooner would be echoed; if nothing comes it leaves.
TTY_BOOTSTRAP = (
    'set -- "$(stty -g)"; stty raw -echo; echo thopters-ready; '
    'LC_ALL=C IFS= read -r -t 60 -d "" _thopters || exit 255; stty "$1"; set --; '
    'eval "$(printf %s "$_thopters" | base64 -d)"'
)
TTY_READY = b"thopters-ready"
# What shows that the script begins, and that all before it is ours
TTY_BEGUN = PREAMBLE + b"([0-9]{1,%d})\r?\n" % PID_DIGITS + WIPE.replace(b"[", b"\\[")
SEEN_BYTES = 1 << 16  # of what a session has shown, to find the place in what it shows again
SURE_BYTES = 32  # fewer may be the same by chance
MOST_REPLAYED = 1 << 18
CUT_REPLAY_BYTES = 4096  # from there on the platform may have dropped the beginning
REPLAY_LIMIT_S = 2.0  # after that all is new
DEFAULT_SIZE = (80, 24)
# For the rest of an escape: after ESC and a letter, which may be two keys, and after more
SHORT_REST_S, REST_S = 0.03, 1.0


class Detached(Exception):
    """The user has left a session, which goes on."""


def set_terminal(settings: list[Any]) -> None:
    """Change our terminal, after what was written is out; one that is taken away stays as it is.

    That wait fails when a signal comes, the tick too, and output may be stopped for ever.
    """
    import termios

    # the other way would drop what is typed already
    for when in (termios.TCSADRAIN, termios.TCSADRAIN, termios.TCSANOW):
        with contextlib.suppress(termios.error):
            return termios.tcsetattr(0, when, settings)


class LocalTerminal:
    """Our own terminal: while it is entered nothing that is typed is shown, and nothing lost.

    It is put back whatever happens. Without a terminal on stdin it is a source of input like any
    other, whose end is typed as Ctrl-D if `types_end`.
    """

    def __init__(self, *, types_end: bool = True) -> None:
        if os.name != "posix":
            raise NoProgramError(
                "this system has no terminals of the kind that is needed",
                hint=f"get the sprite program from {INSTALL_PAGE}",
            )
        self.is_terminal = sys.stdin is not None and sys.stdin.isatty()
        self.keyboard = LocalInput()
        self.types_end = types_end
        self._shows = os.isatty(1)
        self._shown = Escapes(MODE_SWITCH, SHOWN_IN_PART)  # by remote programs
        self._on_other_screen = self._in_origin_mode = self._is_used = False
        self.pending = b""  # keys that were read for a remote program, which has not got them yet
        self._sent = Escapes(SENT, SENT_IN_PART)  # by our terminal
        self._read_at = 0.0  # on the monotonic clock
        self._is_asked = False  # for keys, at the moment
        self._mode: tuple[bool, bool] | None = None
        self._handlers = Handlers({signal.SIGWINCH: self._resized, signal.SIGCONT: self._continued})
        if self.is_terminal:
            import termios

            self._settings = termios.tcgetattr(0)

    def __enter__(self) -> LocalTerminal:
        self._changes, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._handlers.__enter__()
        self.without_echo()
        return self

    def without_echo(self) -> None:
        """Leave lines of ours as they are; ^C ends us, and Ctrl-\\ is a signal too."""
        self._change(signals=True, lines=True)

    def raw(self, *, signals: bool = False) -> None:
        """Show a remote program's bytes as they are; every key is for it, unless for `signals`."""
        self._change(signals=signals, lines=False)

    def _change(self, *, signals: bool, lines: bool) -> None:
        if not self.is_terminal or self._mode == (signals, lines):
            return
        import termios

        self._mode = signals, lines  # first, for _continued may come in between
        if is_in_background():  # to change it would stop us; `fg` comes by _continued
            return
        mode = [*self._settings]
        mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.IGNCR | termios.INLCR)
        mode[0] &= ~(termios.ISTRIP | termios.IXON)
        mode[1] &= -1 if lines else ~termios.OPOST
        mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
        mode[3] &= -1 if signals else ~termios.ISIG
        mode[6] = [*mode[6]]
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        set_terminal(mode)

    def show(self, data: bytes | memoryview) -> None:
        """Pass on what a remote program has written."""
        if self._shows:
            self._is_used = True
            for token, _ in self._shown.feed(data):
                self._on_other_screen = switched(token, OTHER_SCREEN, self._on_other_screen)
                self._in_origin_mode = switched(token, ORIGIN, self._in_origin_mode)
        write_all(1, data)

    def forget_keys(self) -> None:
        """Drop what was typed for a remote program: a local shell would run it."""
        import termios

        self.pending = b""
        if self.is_terminal:
            with contextlib.suppress(termios.error):
                termios.tcflush(0, termios.TCIFLUSH)

    def end_escape(self) -> None:
        """End an escape that the remote program has not ended: it would hide what we say."""
        if self._shown.held:
            self._shown = Escapes(MODE_SWITCH, SHOWN_IN_PART)
            with contextlib.suppress(OutputError):  # taken away
                write_all(1, b"\x1b\\")

    def reset_screen(self) -> None:
        """Put our screen back, as the remote program could not; always in the same way."""
        back = OWN_KEYS + b"\x1b[?1049l" if self._on_other_screen else b""
        back += LEAVE_ORIGIN if self._in_origin_mode else b""
        if self._is_used:
            with contextlib.suppress(OutputError):  # taken away
                write_all(1, END_OF_STRING + back + RESET)
        self._on_other_screen = self._in_origin_mode = self._is_used = False

    def _resized(self, signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"x")

    def _continued(self, signum: int, frame: FrameType | None) -> None:
        """Take the terminal again after a stop: the shell has put its own settings there."""
        if self._mode is not None:
            (signals, lines), self._mode = self._mode, None
            self._change(signals=signals, lines=lines)
        self._resized(signum, frame)

    def fileno(self) -> int:
        """Return what can be read once the size has changed."""
        return self._changes

    def size(self) -> tuple[int, int] | None:
        """Return columns and rows: the window's, whatever variables say; None if nothing knows."""
        for fd in (1, 0, 2):
            with contextlib.suppress(OSError):
                columns, rows = os.get_terminal_size(fd)
                if columns and rows:
                    return columns, rows
        return None

    def new_size(self) -> tuple[int, int] | None:
        os.read(self._changes, 1 << 12)
        return self.size()

    def has_keys(self, timeout_s: float) -> bool:
        """Return whether a key is pressed in that time, or was before; they are kept to be read.

        What the terminal reports by itself is dropped. Detached, or Interrupted, by a key that
        asks for that and, as the remote program has set the terminal, is not a signal.
        """
        end = time.monotonic() + timeout_s
        sources = [self.keyboard] if self.is_terminal else []  # a file's end is no key
        self._is_asked, came = True, False
        try:
            while not came and (left_s := end - time.monotonic()) > 0:
                wait_for(sources, [], min(left_s, self.rest_due_s(REST_S, NO_LIMIT_S)))
                came = self._take_keys()
        finally:
            self._is_asked = False
        return bool(self.pending)

    def _take_keys(self) -> bool:
        """Keep the keys that are pressed now; return whether there is one."""
        before = len(self.pending)
        for token, new in self._tokens(REST_S, NO_LIMIT_S):  # part of a report is not a key
            _, leaves = cut_at_leave(token, new)
            if leaves:
                raise Detached
            if control_key(token) == INTERRUPT and self._mode and self._mode[0]:
                raise Interrupted(signal.SIGINT)
            if is_key(token):
                self.pending += new
        return len(self.pending) > before

    def watching_keys(self) -> Handlers:
        """Return a context for waits that look at no key: the tick looks for one that leaves.

        Where a remote program has set our terminal so, ^C and Ctrl-\\ are no signals.
        """

        def look(signum: int, frame: FrameType | None) -> None:
            if self._is_asked:  # it is looked already
                return
            try:
                self._take_keys()
            except Detached:
                raise Interrupted(signal.SIGQUIT) from None

        return Handlers({signal.SIGALRM: look})

    def rest_due_s(self, short_s: float = SHORT_REST_S, long_s: float = REST_S) -> float:
        """Return for how long to wait for the rest of an escape that may be two keys, or not."""
        if not self._sent.held:
            return NO_LIMIT_S
        patience_s = short_s if self._sent.held <= 2 else long_s
        return max(0.0, self._read_at + patience_s - time.monotonic())

    def _tokens(
        self, short_s: float = SHORT_REST_S, long_s: float = REST_S
    ) -> list[tuple[bytes, bytes]]:
        """Return what is typed now: texts and escapes, and one whose rest does not come."""
        if not self.is_terminal:
            return []
        if wait_for([self.keyboard], [], 0)[0]:
            self._read_at = time.monotonic()
            return list(self._sent.feed(self._read()))
        if self.rest_due_s(short_s, long_s):
            return []
        given_up = self._sent.give_up()
        return [(given_up, given_up)]

    def read_keys(self) -> tuple[bytes, bool]:
        """Return what was typed up to Ctrl-\\, and whether that was pressed.

        A terminal that is taken away hangs us up. Only from a file, nothing means its end.
        """
        keys, self.pending = self.pending, b""
        if keys:
            return keys, False
        if not self.is_terminal:
            return self._read(), False
        for token, new in self._tokens():
            before, leaves = cut_at_leave(token, new)
            keys += before
            if leaves:
                return keys, True
        return keys, False

    def _read(self) -> bytes:
        try:
            keys = self.keyboard.read()
        except InputError:
            if not self.is_terminal:
                raise
            keys = b""
        if self.is_terminal and not keys:  # in raw mode nothing else ends it
            raise Interrupted(signal.SIGHUP)
        return keys

    def wait_for_key(self) -> None:
        """Wait for a key, which is kept to be read; Detached if the user wants to leave."""
        self.raw()
        while not self.has_keys(1.0):  # a signal just before a read without end would be missed
            pass
        self.without_echo()

    def is_leave(self, error: BaseException) -> bool:
        """Return whether the user wants to leave: Ctrl-\\, also where it is a signal."""
        typed = self._mode is not None and self._mode[0]
        if isinstance(error, Interrupted):
            return typed and error.signum == signal.SIGQUIT
        return isinstance(error, Detached)

    def put_back(self) -> None:
        """Put the settings back, also where a signal came between two of our own lines."""
        if self.is_terminal:
            with BlockedSignals():
                self._mode = None
                if not is_in_background():
                    set_terminal(self._settings)

    def __exit__(self, *exc: object) -> None:
        self.put_back()
        self._handlers.__exit__()
        os.close(self._changes)
        os.close(self._wake)


def known_of_replay(data: bytes, seen: bytes) -> int:
    """Return how many bytes of a replay are known; `seen` is the last of what was shown before.

    The platform may have dropped its beginning, or even draw the screen anew: then none are.
    """
    known = overlap(seen, data[:SEEN_BYTES])
    if known >= min(len(seen), SURE_BYTES):
        return known
    found = data.find(seen) if len(seen) >= SURE_BYTES else -1
    return found + len(seen) if found >= 0 else 0


def first_line_or_escape(data: bytes) -> int:
    """Return where, in what may begin in the middle of an escape, something begins for sure."""
    import re

    sound = re.search(rb"\n|(?=\x1b)", data)
    return sound.end() if sound else 0


class TerminalDecoder(ExecDecoder):
    """The same for a command on a terminal: binary messages are bytes as they are shown.

    A new session first asks for its script, and what it prints before that begins is not shown.
    One that we are `attached` to runs already. It first sends a replay of what it has shown, which
    is gathered until `end_replay`, for only what is new in it is shown: `seen` is the last of what
    an earlier decoder of the session has let through.
    """

    def __init__(self, *, attached: bool, seen: bytes | bytearray = b"") -> None:
        super().__init__()
        self.started = attached
        self.seen = bytearray(seen)
        self.preface = b""  # what a new session has said before the command
        self._replay: bytearray | None = bytearray() if attached else None
        self._is_ready = False

    def message(self, opcode: int, payload: bytes | memoryview) -> Iterator[Event]:
        if opcode == OP_TEXT:
            yield from self._text(bytes(payload))
        elif not self.started:
            yield from self._begin(payload)
        elif self._replay is not None:
            self._replay += payload
            del self._replay[:-MOST_REPLAYED]
        else:
            self._see(payload)
            yield Output(STREAM_STDOUT, payload)

    def _see(self, data: bytes | memoryview) -> None:
        self.seen += data[-SEEN_BYTES:]
        del self.seen[:-SEEN_BYTES]

    def has_replay(self) -> bool:
        """Return whether something of a replay has come, and it has not ended."""
        return bool(self._replay)

    def is_replaying(self) -> bool:
        return self._replay is not None

    def end_replay(self) -> Iterator[Event]:
        """Let what is new in the replay through; what comes from now on is live."""
        import re

        if self._replay is None:
            return
        data, self._replay = bytes(self._replay), None
        begun = re.search(TTY_BEGUN, data)
        data = data[begun.end() :] if begun else data
        start = known_of_replay(data, bytes(self.seen))
        self._see(data[start:])
        if not begun and not start and len(data) >= CUT_REPLAY_BYTES:
            start = first_line_or_escape(data)
        yield Output(STREAM_STDOUT, what_draws(data, start))

    def _end(self, status: int) -> Iterator[Event]:
        yield from self.end_replay()
        self.preface = self.preface or self._held
        yield from super()._end(status)

    def _begin(self, data: bytes | memoryview) -> Iterator[Event]:
        import re

        self._held += data
        if not self._is_ready and TTY_READY in self._held:
            self._is_ready = True
            yield Ready()
        begun = re.search(TTY_BEGUN, self._held)
        if begun and self._is_ready:
            self.started, rest = True, self._held[begun.end() :]
            self.preface, self._held = self._held[: begun.start()], b""
            self._see(rest)
            yield Started(int(begun[1]))
            yield Output(STREAM_STDOUT, rest)
        elif len(self._held) > MOST_BEFORE:
            raise Garbled("the server answered with something else than the command")


class TerminalSession(ExecSession):
    """A command on a remote terminal: what is typed goes in as it is, sizes as JSON texts."""

    MOST_WAITING = 1 << 16  # bytes of output: ^C takes as long as it takes to show them
    REDRAW_S = 0.25  # for a program to draw, before it is told the right size
    DRAWN_S = 0.05  # the same, once it has begun to
    MOST_ENDS = 10  # times that the end of an input is typed, a second further apart each time

    decoder: TerminalDecoder

    def __init__(
        self, websocket: WebSocket, clock: Clock, out: Sink, decoder: TerminalDecoder
    ) -> None:
        super().__init__(clock, {STREAM_STDOUT: out}, decoder)
        self.websocket = websocket
        websocket.receive_in_small_parts(self.MOST_WAITING)
        self.has_begun = decoder.started  # whether the script is sent, so that the command may run
        self.typed = 0  # bytes
        self._script = b""
        self._terminal: LocalTerminal | None = None  # whose keys go in
        self._has_input = True
        self._ends = 0
        self._ended_at = 0.0
        self._right_size_at = 0.0  # on the monotonic clock, while a wrong one is told
        self._opened_at = self._active_at = clock.monotonic()

    def prepare(self, command: RemoteCommand) -> None:
        """Keep the script until the remote side asks for it."""
        self._script = command.terminal_script()
        self.websocket.keep_alive()

    def watch_start(self) -> int:
        """Return when the command has run for a moment; its status if it has ended in that."""
        status = self.await_exit(
            REQUEST_LIMIT_S, lambda: self.decoder.started, 0.1, "it did not begin within"
        )
        end = self.clock.monotonic() + START_WATCH_S
        if status != STILL_RUNNING:
            return status
        return self.await_exit(None, lambda: self.clock.monotonic() >= end, 0.1)

    def await_identity(self) -> int:
        """Wait some seconds for the session's id, which may never be told; return as above."""
        end = self.clock.monotonic() + IDENTITY_LIMIT_S
        return self.await_exit(
            None, lambda: bool(self.identity) or self.clock.monotonic() >= end, 0.1
        )

    def pass_through(self, terminal: LocalTerminal) -> int:
        """Pass bytes both ways until the exit status comes; Detached, ExecLost."""
        self._terminal = terminal
        self._ends = 0 if terminal.types_end else self.MOST_ENDS
        terminal.raw(signals=not self.decoder.started)
        return self.await_exit()

    def events(self) -> Iterator[Event]:
        try:
            for opcode, payload in self.websocket.messages():
                yield from self._end_replay()
                if opcode == OP_BINARY:
                    self._active_at = self.clock.monotonic()
                    if self._right_size_at and not self.decoder.is_replaying():
                        soon = self._active_at + self.DRAWN_S
                        self._right_size_at = min(soon, self._right_size_at)
                yield from self.decoder.message(opcode, payload)
        except WebSocketLost:
            yield from self.decoder.end_replay()
            raise
        yield from self._end_replay()

    def _end_replay(self) -> Iterator[Event]:
        """End it at the answer to the ping of the attach, but the first output belongs to it."""
        is_late = self.clock.monotonic() - self._opened_at > REPLAY_LIMIT_S
        if self.decoder.has_replay() and (is_late or self.websocket.is_answered()):
            yield from self.decoder.end_replay()

    def notice(self, event: Event) -> None:
        import base64

        super().notice(event)
        if isinstance(event, Ready):
            self.has_begun = True
            self.websocket.send(OP_BINARY, base64.b64encode(self._script) + b"\0")
        elif isinstance(event, Started) and self._terminal:
            self._terminal.raw()  # who sees a prompt may press ^C at once

    def exchange(self, timeout_s: float) -> None:
        terminal, runs = self._terminal, self.decoder.started
        if terminal is None:
            self.websocket.wait(timeout_s)
            return
        self._type_end()
        redraws_s = self._redraws_s(terminal)
        self.websocket.confirm_input()
        takes_keys = runs and not redraws_s  # who types a command is to have the right size
        if takes_keys and terminal.pending:
            self._type(terminal)
        sources: list[Any] = [terminal]
        if takes_keys and self._has_input and self.websocket.unsent() < 1 << 18:
            sources.append(terminal.keyboard)
        wait_s = min(timeout_s, redraws_s or timeout_s, terminal.rest_due_s())
        ready = self.websocket.wait(wait_s, sources)
        if terminal in ready:
            self.resize(terminal.new_size())
        if terminal.keyboard in ready or not terminal.rest_due_s():
            self._type(terminal)

    def _type(self, terminal: LocalTerminal) -> None:
        """Send what was typed, up to the key by which the user leaves."""
        keys, leaves = terminal.read_keys()
        if keys:
            self._active_at = self.clock.monotonic()
            self.typed += len(keys)
            self.websocket.type(keys)
        elif not terminal.is_terminal:
            self._has_input, self._ended_at = False, self.clock.monotonic()
        if leaves:
            raise Detached

    def _type_end(self) -> None:
        """Type Ctrl-D for the end of an input that is no terminal.

        Again and again: a shell that has just begun makes nothing of one from before its prompt.
        """
        if self._has_input or self._ends >= self.MOST_ENDS:
            return
        if self.clock.monotonic() - self._ended_at >= self._ends:
            self._ends += 1
            self.websocket.send(OP_BINARY, b"\x04")

    def resize(self, size: tuple[int, int] | None) -> None:
        """Tell the size of our window, if it has one."""
        if size:
            message = {"type": "resize", "cols": size[0], "rows": size[1]}
            self.websocket.send(OP_TEXT, encode_json(message))

    def redraw(self, size: tuple[int, int] | None) -> None:
        """Have the program draw again: it does so when its window changes.

        So it is told a row less than `size` has, and when it has drawn, or soon, the right size.
        """
        if size:
            self.resize((size[0], size[1] - 1 or 2))
            self._right_size_at = self.clock.monotonic() + self.REDRAW_S

    def _redraws_s(self, terminal: LocalTerminal) -> float:
        """Return for how long yet the program is told a wrong size; after that, tell the right."""
        if not self._right_size_at:
            return 0
        left_s = self._right_size_at - self.clock.monotonic()
        if left_s <= 0:
            self._right_size_at = 0
            self.resize(terminal.size())
        return max(0, left_s)

    def lasting_id(self) -> str:
        """Return what stands for the session for good, "" where the platform tells no id."""
        return lasting_id(self.identity, self.created_at) if self.identity else ""

    def lost(self, why: str) -> ExecLost:
        lost = super().lost(why)
        lost.was_idle = self.clock.monotonic() - self._active_at > IDLE_BEFORE_PAUSE_S
        lost.is_sent = self.has_begun
        return lost

    def close(self) -> None:
        self.websocket.close()


def open_terminal(
    sprite: Sprite, out: Sink, command: RemoteCommand, size: tuple[int, int] | None = None
) -> TerminalSession:
    """Start a command on a terminal of `size` (columns, rows), waking the sprite."""
    columns, rows = size or DEFAULT_SIZE
    words = ("bash", "-c", TTY_BOOTSTRAP)
    query = [*(("cmd", word) for word in words), ("path", "bash"), ("tty", "true")]
    query += [("stdin", "true"), ("cols", str(columns)), ("rows", str(rows))]
    target = sprite.api.transport.target(sprite.path("exec"), query)
    websocket = open_sprite_socket(sprite, target, WAKE_LIMIT_S)
    session = TerminalSession(websocket, sprite.clock, out, TerminalDecoder(attached=False))
    session.prepare(command)
    return session


def attach_terminal(
    sprite: Sprite, out: Sink, identity: str, created_at: float, seen: bytes | bytearray = b""
) -> TerminalSession | None:
    """Attach to a session, waking the sprite; None if there is no such session any more.

    After a cold boot its number can be another's, so it has to be the one that was `created_at`
    then, in seconds. `seen` is the last of what it has shown already.
    """
    if is_used_again(sprite, identity, created_at):
        return None
    websocket = open_session_socket(sprite, identity)
    if websocket is None:
        return None
    decoder = TerminalDecoder(attached=True, seen=seen)
    session = TerminalSession(websocket, sprite.clock, out, decoder)
    session.identity, session.created_at = identity, created_at
    websocket.ping()  # its answer comes behind what the session has shown before
    websocket.keep_alive()
    return session


def open_session_socket(sprite: Sprite, identity: str) -> WebSocket | None:
    """Open a WebSocket to a session that runs; None if there is none any more.

    A 404 alone does not prove that: the API gives one now and then for what is there, its list lags
    behind what has ended, and sprites of before rc30 know a session by the query.
    """
    import itertools

    target = sprite.api.transport.target
    by_path = target(sprite.path("exec", identity))
    by_query = target(sprite.path("exec"), [("id", identity), ("tty", "true"), ("stdin", "true")])

    def attempt(form: str) -> WebSocket | None:
        try:
            return upgrade_once(sprite, form, WAKE_LIMIT_S)
        except UpgradeBrokenError:
            if form == by_path:
                raise
            return None
        except NotFoundError:
            return None

    websocket = attempt(by_path)
    if websocket or not find_session(sprite, identity, 0):
        return websocket
    for _ in itertools.islice(sprite.clock.polling(SESSION_LAG_S, RECHECK_AFTER_S), 1, None):
        websocket = attempt(by_path)
        if websocket or not find_session(sprite, identity, 0):
            return websocket
    websocket = attempt(by_query)
    if websocket or not find_session(sprite, identity, 0):
        return websocket
    raise ThoptersError(f"session {identity} of {sprite.name} is listed, but can't be attached to")


# What a sprite does not know is replaced, or left out: programs would fail, or show no more than
# ASCII. tput says by 3 that it does not know a terminal, and bash, in words, a locale. The keys'
# file may say `set -e`
TERM_SETUP = b"""\
tput -T %(value)s longname > /dev/null || [ $? != 3 ] &&
  export TERM=%(value)s || export TERM=xterm-256color
"""
LANG_SETUP = b"""\
[ "$( (LC_ALL=%(value)s) 2>&1 )" ] || export LANG=%(value)s
"""
COLOUR_SETUP = b"export COLORTERM=%(value)s\n"
# By stty's names: the keys that a terminal obeys
CONTROL_KEYS = {
    **{"intr": "VINTR", "quit": "VQUIT", "erase": "VERASE", "kill": "VKILL", "eof": "VEOF"},
    **{"start": "VSTART", "stop": "VSTOP", "susp": "VSUSP", "rprnt": "VREPRINT"},
    **{"werase": "VWERASE", "lnext": "VLNEXT"},
}
IUTF8 = 0x4000  # of the input's flags, on Linux and macOS: erase takes a whole character


def terminal_setup(environ: Mapping[str, str]) -> bytes:
    """Return a script that makes a remote terminal like ours.

    It sets what tells programs about our terminal, and the keys that ours obeys, if stdin is one.
    """
    setups = {"TERM": TERM_SETUP, "COLORTERM": COLOUR_SETUP, "LANG": LANG_SETUP}
    parts = [
        script % {b"value": quote_argument(os.fsencode(environ[name]))}
        for name, script in setups.items()
        if environ.get(name)
    ]
    if os.name == "posix" and sys.stdin is not None and sys.stdin.isatty():
        words = map(quote_argument, stty_words())
        parts.append(b"stty " + b" ".join(words) + b" || :\n")
    return b"".join(parts)


def stty_words() -> list[bytes]:
    """Return our terminal's keys, and whether it knows UTF-8, as words for stty."""
    import termios

    settings = termios.tcgetattr(0)
    words = [b"iutf8" if settings[0] & IUTF8 else b"-iutf8"]
    for name, index in CONTROL_KEYS.items():
        [code] = settings[6][getattr(termios, index)]
        if code < 128:
            words += [name.encode(), stty_key(code)]
    return words


def stty_key(code: int) -> bytes:
    """Return a character as stty takes it; 0 is none."""
    if code == 0:
        return b"undef"
    return bytes([code]) if 32 <= code < 127 else b"^" + bytes([code ^ 64])


def run_on_terminal(sprite: Sprite, command: RemoteCommand, *, refreshes_hold: bool = False) -> int:
    """Run a command or a shell on our terminal to its end, over pauses of the sprite."""
    terminal = LocalTerminal()

    def start() -> TerminalSession:
        with sprite.console.working(f"waiting for {sprite.name}"):
            return open_terminal(sprite, terminal.show, command, terminal.size())

    shell = command if command.is_shell else None
    return Stay(sprite, terminal, shell=shell, refreshes_hold=refreshes_hold).run(start)


# A session on a terminal outlives its connection, so a connection that is lost is no end: we
# reconnect, and attach to the session again. What happens when a connection is lost:
#
#   nothing was sent yet, so nothing runs                                         -> start again
#   the status will never come (no id was told; input from a file was under way)  -> 255
#   the sprite has paused          -> say so; the next key wakes it and goes into the session
#   it is awake, or soon will be   -> attach again at once; after six quick losses -> 255
#   the session is gone meanwhile  -> 255, but a shell of ours offers a new one
#   the API can't be reached       -> ask again for ten minutes; a key can leave
#
# A sprite that sleeps is not woken before the user types: nobody pays for an idle prompt. Ctrl-\
# leaves at every moment, as a key or as a signal, and the way back is said. The terminal is put
# back whatever happens.
class Stay:
    """Stays with one session on our terminal until it ends or the user leaves.

    `shell` is what starts a new one where the session is gone; `refreshes_hold` if the session's
    hold is to expire when we are gone; `way_back` is its id for `attach`, if it has another.
    """

    def __init__(
        self,
        sprite: Sprite,
        terminal: LocalTerminal,
        *,
        shell: RemoteCommand | None = None,
        refreshes_hold: bool = False,
        way_back: str = "",
    ) -> None:
        self.sprite = sprite
        self.terminal = terminal
        self.shell = shell
        self.way_back = way_back
        self.refreshes_hold = refreshes_hold

    def run(self, start: Callable[[], TerminalSession]) -> int:
        """Open a session by `start`, stay with it, and return its exit status; 0 if we left."""
        self._start = start
        try:
            with self.terminal:
                self.session = start()
                return self._follow()
        except BaseException:
            self.terminal.forget_keys()
            raise
        finally:
            self.terminal.put_back()

    def _follow(self) -> int:
        clock, losses = self.sprite.clock, 0  # in a row, each soon after it was attached
        try:
            while True:
                began = clock.monotonic()
                try:
                    with self._refreshed_hold():
                        return self.session.pass_through(self.terminal)
                except ExecLost as lost:
                    self.terminal.without_echo()
                    self.session.close()
                    losses = losses + 1 if clock.monotonic() - began < QUICK_LOSS_S else 0
                    if losses > MOST_LOSSES:
                        raise status_unknown(self.sprite, lost) from None
                    clock.sleep(losses and 0.1 * 2**losses)
                    with self.terminal.watching_keys():
                        self.session = self._reconnect(lost)
        except BaseException as left:
            wanted = self.terminal.is_leave(left)
            self._say_way_back()
            if not wanted:
                raise
            return EXIT_OK
        finally:
            self.session.close()

    def _refreshed_hold(self) -> contextlib.AbstractContextManager[object]:
        if self.refreshes_hold:
            return HoldRefresher(self.sprite, self.session, self._tell_of_hold)
        return contextlib.nullcontext()

    def _tell_of_hold(self, why: str) -> None:
        """Say that the hold can't be refreshed, over a terminal that is raw."""
        name, minutes = self.sprite.name, HOLD_EXPIRY_S // 60
        follows = f"{name} may sleep in {minutes:.0f} minutes, when all is quiet"
        text = f"[the hold of {name} can't be refreshed ({why}), so {follows}; still trying]"
        self.sprite.console.tell(f"\r\n{self.sprite.console.safe(text)}\r\n")

    def _say_way_back(self) -> None:
        self.terminal.put_back()
        self._reset_screen()
        if self.session.identity and self.session.has_begun:
            name = self.sprite.name
            sleeps = f", and {name} may sleep when all is quiet" if self.refreshes_hold else ""
            back = f"thopters attach {name} {self.way_back or self.session.lasting_id()}"
            self._say(f"the session goes on{sleeps}; back to it: {back}")

    def _reset_screen(self) -> None:
        if not self.sprite.console.is_dumb:
            self.terminal.reset_screen()

    def _say(self, text: str) -> None:
        """Say something between what a remote program has shown, on a line of its own."""
        self.terminal.end_escape()
        self.sprite.console.note("")
        self.sprite.console.note(f"[{text}]")

    def _reconnect(self, lost: ExecLost) -> TerminalSession:
        """Attach to the session again, or start another shell; Detached where the user leaves."""
        session = self.session
        if lost.is_cut and not lost.is_sent:
            self.sprite.console.detail(f"{lost}; starting again")
            return self._start()
        has_way_back = bool(session.identity) and session.decoder.started
        if self.shell is None and not has_way_back:
            raise status_unknown(self.sprite, lost)
        if session.typed and not self.terminal.is_terminal:
            # what was on its way is gone, and can't be typed again
            raise status_unknown(self.sprite, lost)
        unsure = self._unconfirmed()
        if not self._has_paused(lost):
            self._say(f"the connection was lost ({lost}){unsure}; attaching again")
        elif not self.terminal.is_terminal:
            raise status_unknown(self.sprite, lost)
        else:
            self._say(
                f"{self.sprite.name} has paused{unsure}; the next key wakes it, Ctrl-\\ leaves"
            )
            self.terminal.wait_for_key()
        found = None
        if has_way_back:
            found = attach_terminal(
                self.sprite,
                self.terminal.show,
                session.identity,
                session.created_at,
                session.decoder.seen,
            )
        if found is None:
            return self._start_anew(lost)
        found.redraw(self.terminal.size())
        return found

    def _unconfirmed(self) -> str:
        """Return words for what was typed and is not known to have arrived."""
        count = max(0, self.session.websocket.unread())
        plural = "s" if count > 1 else ""
        return f"; the last {count} byte{plural} typed may not have arrived" if count else ""

    def _start_anew(self, lost: ExecLost) -> TerminalSession:
        """Offer a new shell in place of a session that is gone."""
        gone = "has ended"
        if not self.session.identity:
            gone = "never told its id, so there is no way back"
        self.session.identity = ""
        if self.shell is None or not self.terminal.is_terminal:
            raise status_unknown(self.sprite, lost)
        self._reset_screen()
        self._say(f"the session {gone}; a key starts a new shell, Ctrl-\\ leaves")
        terminal = self.terminal
        terminal.pending = b""  # typed for the old one
        terminal.wait_for_key()
        terminal.pending = b""  # typed for us
        return open_terminal(self.sprite, terminal.show, self.shell, terminal.size())

    def _has_paused(self, lost: ExecLost) -> bool:
        """Return whether the sprite sleeps; after a quiet time its status gets time to say so.

        To attach would wake it, only to be lost again. A key means that the user wants it awake.
        """
        info = self._look_until_reachable()
        for left_s in self.sprite.clock.polling(STATUS_LAG_S if lost.was_idle else 0):
            if info is None or info.is_asleep():
                return info is not None
            if not left_s or self.terminal.has_keys(0.5):
                break
            info = self._look_until_reachable()
        return False

    def _look_until_reachable(self) -> SpriteInfo | None:
        """Return what the API says of the sprite; None where there is none for us.

        An API that is out of reach gets its time: so a network that changes ends no session, and
        wakes no sprite that has paused meanwhile.
        """
        said = False
        for left_s in self.sprite.clock.polling(AWAY_LIMIT_S):
            try:
                return self.sprite.look()
            except (AuthError, NotFoundError):
                return None
            except ThoptersError as error:
                if not left_s:
                    break
                if not said:
                    way = ", Ctrl-\\ leaves" if self.terminal.is_terminal else ""
                    self._say(f"{error.message}; trying on{way}")
                said = True
            self.terminal.has_keys(1.0)
        return None


# --- jobs -------------------------------------------------------------------------------

# Detached commands with a record in their sprite, and what else runs there: what is looked at by
# `sessions`, `logs`, `wait`, `attach`, `kill` and `pause`.
#
# A job's record is the folder ~/.thopters/jobs/ID. A link =LABEL beside it leads there.
#
#   about      a line of JSON: "argv", "label", "hold_s", "keeps_output"
#   process    "STARTED OUTER ITS-START BOOT INNER ITS-START": when, and by which two shells
#   directory  where the command was started
#   status     "-", and in the end "STATUS TIME"
#   output     what the command's terminal got
#   index      "TIME BYTES", a line for each second in which the output grew
#   rest       "whole"; "cut" at the limit; "full" as the disk was; "broken" with the recorder
#   waited     is there once somebody has waited for the job
#
# Two shells make a job. The outer one is the session that the platform knows. It makes the record
# and starts `script`, which is there for one thing: a second terminal. What comes out of that goes
# to the platform's terminal and into the record. The inner shell is on the second terminal. It runs
# the command as `exec -t` does and writes down how it ended, so that stands though the recorder is
# killed; if the inner shell is killed with all of its session, the outer one does it. Small files
# are written over bytes that they have already: a disk that fills up later loses output alone.
#
# A job runs as long as one of its shells, which are known by number, start and boot. If it does not
# run and has no status, it is lost: its machine was stopped under it.

MOST_OUTPUT = 100_000_000  # bytes that are kept of one job's output
MOST_OUTPUT_OF_ALL = 200_000_000
MOST_JOBS = 50
OLDEST_JOB_S = 30 * 86400
ENDED_HOLD_S = 60  # while somebody waits: longer than LOOK_EVERY_S, so that the end is seen
MOST_ABOUT = 8192  # bytes of JSON that a record spends on the command's words
MOST_WORDS, MOST_WORD = 32, 512  # of the command of a session, as it is looked at
UNRECORDED, TAKEN = b"thopters-unrecorded", b"thopters-taken"
# Makes the record, and says what came of that; `job` is its folder then, or empty
BEGIN_JOB = b"""\
jobs=~/.thopters/jobs id=%(id)s label=%(label)s mask=$(umask) job=
umask 077
field() { printf '%%-63s\\n' "$1" 1<> "$job/$2"; }
record() {
  local stat boot
  mkdir -p "$jobs" && mkdir "$jobs/$id" && job=$jobs/$id || return
  read -r stat < "/proc/$$/stat" && read -r boot < /proc/sys/kernel/random/boot_id || return
  set -- ${stat##*) }
  printf '%%-127s\\n' "${EPOCHREALTIME/[!0-9]/.} $$ ${20} $boot 0 0" > "$job/process" &&
    field - status && field whole rest && printf '%%s\\n' %(about)s > "$job/about" &&
    : > "$job/output" && : > "$job/directory"
}
name() {
  [ "$label" ] || return 0
  ln -s "$id" "$jobs/=$label" || { [ ! -d "$jobs/=$label" ] && ln -sfn "$id" "$jobs/=$label"; }
  [ "$jobs/=$label" -ef "$job" ] || { [ ! -d "$jobs/=$label" ] || taken=1; return 1; }
}
taken=
if ! record || ! name; then
  rm -rf "$jobs/$id"
  job=
  [ ! "$taken" ] || { echo %(taken)s; exit 255; }
  echo %(unrecorded)s
fi
"""
# What looks at records begins with this. `show` prints the fields of one, with a NUL behind each
READ_JOBS = b"""\
jobs=~/.thopters/jobs
is_alive() {  # the process with this number, if it began then
  local stat
  read -r stat < "/proc/$1/stat" || return
  set -- "$2" ${stat##*) }
  [ "${21}" = "$1" ] && [ "$2" != Z ]
}
is_running() {
  local outer outer_start boot inner inner_start now
  read -r _ outer outer_start boot inner inner_start < "$jobs/$1/process" || return
  read -r now < /proc/sys/kernel/random/boot_id
  [ "$boot" = "$now" ] && { is_alive "$inner" "$inner_start" || is_alive "$outer" "$outer_start"; }
}
show() {
  local state=lost started outer inner status ended rest directory about dir=$jobs/$1
  ! is_running "$1" || state=running
  read -r started outer _ _ inner _ < "$dir/process"
  read -r status ended < "$dir/status"
  [ "${status:--}" = - ] || state=ended
  read -r rest < "$dir/rest"
  IFS= read -r -d '' directory < "$dir/directory"
  IFS= read -r about < "$dir/about"
  printf '%s\\0' "$1" "$state" "${status:--}" "$ended" "$started" "$outer" "$inner" "$rest" \\
    "$directory" "$about"
}
forget() {
  local link
  rm -rf -- "$jobs/$1"
  for link in "$jobs"/=*; do [ -d "$link" ] || rm -f -- "$link"; done
}
"""
# Forgets what is too much: beyond so many records, bytes and days; a job that runs stays
TIDY_JOBS = b"""\
tidy() {
  local dir size started count=0 total=0
  local -A sizes
  cd "$jobs" || return
  while read -r size dir; do sizes[$dir]=$size; done < <(du -s --apparent-size -B1 -- [0-9a-f]*/)
  for dir in [0-9a-f]*/; do read -r started _ < "$dir/process" && echo "$started $dir"; done |
    LC_ALL=C sort -rn | while read -r started dir; do
      count=$((count + 1)) total=$((total + ${sizes[$dir]:-0}))
      is_running "${dir%%/}" || { [ "$count" -le %(most_jobs)d ] &&
        [ "$total" -le %(most_of_all)d ] &&
        [ $((EPOCHSECONDS - ${started%%.*})) -le %(oldest)d ]; } || forget "${dir%%/}"
    done
}
"""
# The inner shell, with the record's folder, the umask and "=SHELL" as its arguments. In its EXIT
# trap it writes the status down, so also where the directory can't be entered
INNER = b"""\
unset _thopters _thopters_job _thopters_mask _thopters_shell
exec 3>&2 2>/dev/null
umask "$2"
if [ "$3" ]; then export SHELL="${3#=}"; else unset SHELL; fi
_thopters_begin() {
  local started outer outer_start boot stat file=$1/process
  read -r started outer outer_start boot _ < "$file" && read -r stat < "/proc/$$/stat" || return
  set -- ${stat##*) }
  printf '%%-127s\\n' "$started $outer $outer_start $boot $$ ${20}" 1<> "$file"
}
if [ "$1" ]; then
  _thopters_begin "$1"
  trap 'set -- "$?" "$1"; printf "%%-63s\\n" "$1 $EPOCHSECONDS" 1<> "$2/status"; exit "$1"' EXIT
fi
unset -f _thopters_begin
%(keys)s%(setup)s%(exports)s%(chdir)sset +em +o posix
[ ! "$1" ] || printf %%s "$PWD" > "$1/directory"
trap : INT TERM HUP QUIT USR1 USR2
(exec 2>&3 3>&-; exec -- %(argv)s)
exit "$?"
"""
# `script` runs the shell that SHELL names, so SHELL is a plain one, and the user's is an argument.
# The inner shell's text comes as an open file, since no argument is long enough for every command
START_INNER = (
    b'exec bash -pc \'IFS= read -r -d "" -u 4 _thopters; exec 4<&-; eval "$_thopters"\' thopters'
    b' "$_thopters_job" "$_thopters_mask" "$_thopters_shell"'
)
# Takes what the terminal shows. Beyond the limit, or on a full disk, it only keeps reading. The
# loop beside it ends with it, and learns from the file's descriptor how far the output is
KEEP_OUTPUT = b"""\
keep() {
  local rest=whole place=0 now name unbuffered
  trap '' INT TERM HUP QUIT USR1 USR2
  exec 6> "$job/output" 7> >(
    while read -r -t 1; [ $? -gt 128 ]; do
      while read -r name now; do [ "$name" != pos: ] || break; done < /proc/self/fdinfo/6
      [ "$now" = "$place" ] || echo "$EPOCHSECONDS $now" >> "$job/index"
      place=$now
    done
  )
  unbuffered=$(command -v stdbuf)
  ${unbuffered:+stdbuf -o0} head -c %(most_output)d >&6 7>&-
  case $? in 0) ;; 1) rest=full ;; *) rest=broken ;; esac
  if [ "$rest" = whole ] && [ "$(head -c 1 7>&- | wc -c)" != 0 ]; then
    rest=cut
    printf '\\r\\n[thopters: only the first %(most_output)d bytes are kept]\\r\\n' >&6
  fi
  [ "$rest" = whole ] || field "$rest" rest
  exec cat > /dev/null 7>&-
}
"""
JOB = (
    b"""\
unset _thopters
[ -n "${HOME-}" ] || export HOME=~
exec 3>&2 2>/dev/null
"""
    + BEGIN_JOB
    + READ_JOBS.replace(b"%", b"%%")
    + TIDY_JOBS
    + KEEP_OUTPUT
    + PUT_TASK.replace(b"%", b"%%")
    + b"""\
printf 'thopters-exec %%s\\n%(wipe)s' "$$"
tidy < /dev/null > /dev/null 3>&- &
%(hold)strap : INT TERM HUP QUIT USR1 USR2
inner=%(inner)s told=
export _thopters_job=$job _thopters_mask=$mask _thopters_shell=${SHELL+=$SHELL}
SHLVL=$((SHLVL - 1))
exec 4< <(exec 9>&-; printf %%s "$inner")  # script waits for a child that it has not started
if [ "$job" ] && [ %(keeps)d = 1 ] && command -v script > /dev/null; then
  SHELL=/bin/sh script -qefc %(start_inner)s /dev/null 3>&- 9>&- |
    (trap '' INT TERM HUP QUIT USR1 USR2; exec tee -p /dev/tty 3>&- 4<&- 9>&-) |
    keep 3>&- 4<&- 9>&-
  status=${PIPESTATUS[0]}
else
  sh -c %(start_inner)s 2>&3 3>&- 9>&-
  status=$?
fi
exec 4<&-
if [ "$job" ]; then
  read -r told _ < "$job/status"
  read -r _ _ _ _ inner _ < "$job/process"
  if [ "${told:--}" != - ]; then
    status=$told
  else
    for pid in $(pgrep -s "$inner"); do
      read -r stat < "/proc/$pid/stat" && set -- ${stat##*) } && [ "$1" != Z ] && told=
    done
    if [ "$told" ]; then field "$status $EPOCHSECONDS" status; else field broken rest; fi
  fi
fi
[ ! -e "$job/waited" ] || task=/v1/tasks/thopters-ended-$$ expiry=%(ended_hold)d put > /dev/null
exit "$status"
"""
)
LOOK_AT_JOBS = (
    READ_JOBS
    + b"""\
for dir in "$jobs"/[0-9a-f]*/; do dir=${dir%/}; [ ! -d "$dir" ] || show "${dir##*/}"; done
printf '\\0'
"""
)
# Behind the records, for each session that is an argument: its number, its directory, its words and
# those of the first process below it that is not the loop of a hold. A count comes before words
LOOK_AROUND = (
    LOOK_AT_JOBS
    + b"""\
words() {
  local list=() word
  [ ! "$1" ] || mapfile -t -d '' -n %(most_words)d list < "/proc/$1/cmdline"
  printf '%%s\\0' "${#list[@]}"
  for word in "${list[@]}"; do printf '%%s\\0' "${word:0:%(most_word)d}"; done
}
below() {  # sets `child`, to the one below it where it is an inner shell of ours
  local children pid list
  child=
  read -r children < "/proc/$1/task/$1/children"
  for pid in $children; do
    mapfile -t -d '' -n 4 list < "/proc/$pid/cmdline"
    case ${list[1]}${list[3]} in
      -pcthopters-hold) ;;
      -pcthopters) below "$pid"; break ;;
      *) child=$pid; break ;;
    esac
  done
}
for id; do
  below "$id"
  printf '%%s\\0' "$id" "$(cd -P "/proc/${child:-$id}/cwd" && pwd)"
  words "$id"
  words "$child"
done
"""
    % {b"most_words": MOST_WORDS, b"most_word": MOST_WORD}
)


class JobCommand(RemoteCommand):
    """A command that goes on without us, with a record; the record holds `about` of it."""

    __slots__ = ("about", "id")

    def __init__(self, argv: Sequence[bytes], about: dict[str, Any], **options: Any) -> None:
        super().__init__(argv, **options)
        self.id = os.urandom(5).hex()
        self.about = about

    def terminal_script(self) -> bytes:
        return self.script(
            JOB,
            wipe=WIPE,
            inner=quote_argument(self.script(INNER)),
            start_inner=quote_argument(START_INNER),
            id=self.id.encode(),
            label=str(self.about["label"] or "").encode(),
            about=quote_argument(encode_json(self.about)),
            keeps=int(self.about["keeps_output"]),
            unrecorded=UNRECORDED,
            taken=TAKEN,
            most_output=MOST_OUTPUT,
            most_jobs=MOST_JOBS,
            most_of_all=MOST_OUTPUT_OF_ALL,
            oldest=OLDEST_JOB_S,
            ended_hold=ENDED_HOLD_S,
        )


class Work:
    """What runs in a sprite, or ran there.

    `kind` is "command", "shell", "hold" or "other" (started by others); `argv` is as it was given,
    for another's what the platform tells. `state` is "running", "ended" (with `status`) or "lost".
    Times are seconds of the epoch, 0 if not known. `session` is the platform's, None if it has
    ended.
    """

    __slots__ = (
        *("argv", "directory", "ended_at", "id", "kind", "label", "session", "started_at"),
        *("state", "status"),
    )

    session: Session | None

    def __init__(self, session: Session) -> None:
        self.session = session
        self.id = session.lasting_id
        self.kind = "other"
        self.argv = [session.command]
        self.directory = self.label = ""
        self.started_at, self.ended_at = session.created_at, 0.0
        self.state = "running"
        self.status: int | None = None

    def see(self, directory: bytes, leader: list[bytes], child: list[bytes]) -> None:
        """Take what the session runs, as it is seen inside: its first process and the one below."""
        self.directory = from_bytes(directory)
        is_by_us = len(leader) > 2 and b"_thopters" in leader[2]
        if is_by_us and child[3:4] == [b"thopters-hold"]:
            self.kind, self.argv = "hold", []
        elif is_by_us and child[3:4] and child[3].startswith(b"thopters"):
            self.argv = ["(thopters)"]  # a script of ours, as of a log that is followed
        elif is_by_us:
            self.kind, self.argv = "command", [from_bytes(word) for word in child]
        elif starts_shell(leader):
            self.kind, self.argv = "shell", [from_bytes(word) for word in leader]

    def hide_cut(self, redact: Redactor) -> None:
        """Take a secret out that the cut of a long word has left a part of."""
        is_cut = [len(to_bytes(word)) >= MOST_WORD for word in self.argv]
        pairs = zip(self.argv, is_cut, strict=True)
        self.argv = [redact.without_cut(word) if cut else word for word, cut in pairs]

    def is_running(self) -> bool:
        return self.state == "running"

    def outcome(self) -> str:
        """Return its state for people, with the status of what has ended."""
        return f"ended {self.status}" if self.state == "ended" else self.state

    def describe_end(self) -> str:
        """Return for people how it has ended."""
        if self.status is None:
            return "was lost: its machine was stopped under it, so nobody knows its status"
        return f"has ended with status {self.status}"

    def words(self) -> str:
        """Return its command for people."""
        import shlex

        names = {"shell": "shell", "hold": "(hold)", "other": " ".join(self.argv)}
        return names.get(self.kind) or shlex.join(self.argv) or "?"

    def about(self) -> str:
        """Return its command and its directory for people."""
        return f"{self.words()} in {self.directory}" if self.directory else self.words()

    def last_activity(self) -> str:
        return self.session.last_activity if self.session else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "session": self.session.id if self.session else None,
            "kind": self.kind,
            "argv": self.argv,
            "directory": self.directory or None,
            "label": self.label or None,
            "terminal": self.session.is_terminal if self.session else None,
            "state": self.state,
            "status": self.status,
            "started_at": epoch_stamp(self.started_at) or None,
            "ended_at": epoch_stamp(self.ended_at) or None,
            "last_activity": self.last_activity() or None,
        }


class Job(Work):
    """A detached command by its record; its times are those of the sprite's clock.

    `outer` is the number of its session, `group` what signals go to, both "0" if not known. `rest`
    says which part of its output is kept.
    """

    __slots__ = ("group", "hold_s", "keeps_output", "outer", "rest")

    def __init__(self, fields: Iterator[bytes]) -> None:
        texts = [from_bytes(next(fields)) for _ in range(8)]
        self.id, self.state, status, ended, started, self.outer, self.group, self.rest = texts
        self.session = None
        self.kind = "command"
        self.status = int(status) if status in map(str, range(256)) else None
        if self.state == "ended" and self.status is None:
            self.state = "lost"  # somebody has changed the record
        self.ended_at, self.started_at = read_number(ended), read_number(started)
        self.directory = from_bytes(next(fields))
        about = json_object(next(fields))
        self.argv = [word for word in list_field(about, "argv") or [] if isinstance(word, str)]
        label = text_field(about, "label")
        self.label = label if is_label(label) else ""
        self.keeps_output = about.get("keeps_output") is True
        self.hold_s = about["hold_s"] if type(about.get("hold_s")) is int else 0

    def is_same(self, session: Session) -> bool:
        """Return whether a session with its number is its own.

        The list may lag behind its end, and long after that the number can be another's.
        """
        return self.is_running() or abs(session.created_at - self.started_at) < 60


def read_number(text: str) -> float:
    """Return a time as a record has it, in seconds; 0 for what is none."""
    import re

    return float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text) else 0


SHELLS = ("bash", "sh", "zsh", "fish", "dash", "ksh")


def starts_shell(argv: Sequence[bytes]) -> bool:
    """Return whether words start a shell that reads commands from its terminal."""
    name = from_bytes(argv[0]).rpartition("/")[2].removeprefix("-") if argv else ""
    return name in SHELLS and all(word.startswith(b"-") for word in argv[1:]) and b"-c" not in argv


def epoch_stamp(seconds: float) -> str:
    """Return seconds of the epoch as an RFC 3339 stamp, "" for 0."""
    import datetime

    if not seconds:
        return ""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return format_time(datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc))
    return ""


def look_at_jobs(sprite: Sprite) -> list[Job]:
    """Return the jobs of a sprite, newest first. Wakes it, and counts as activity."""
    return look_inside(sprite, read_jobs, LOOK_AT_JOBS)


def look_around(sprite: Sprite, *, needs_all: bool = True) -> list[Work]:
    """Return what runs in a sprite, and the jobs that have ended, newest first; likewise.

    Unless it `needs_all`, a sprite that runs no command is no error: then the platform's list is
    all that is known, which a warning says.
    """
    sessions = {to_bytes(session.id): session for session in sprite.list_sessions()}
    numbers = [number for number in sessions if number.isdigit()]  # others are no processes
    try:
        found = look_inside(
            sprite, lambda fields: read_work(fields, sessions), LOOK_AROUND, *numbers
        )
    except ThoptersError as error:
        if needs_all:
            raise
        sprite.console.warn(f"{error}; what runs there is known by the platform's list alone")
        found = [Work(session) for session in sessions.values()]
    for work in found:
        if not isinstance(work, Job):
            work.hide_cut(sprite.console.redact)
    return sorted(found, key=lambda work: work.started_at, reverse=True)


GARBLED = "what came back is garbled"


def look_inside(
    sprite: Sprite, read: Callable[[Iterator[bytes]], T], script: bytes, *words: bytes
) -> T:
    """Run a script that looks, and return what `read` makes of its fields; ThoptersError."""
    try:
        _, out, _ = retry_cut(
            sprite,
            lambda: run_script(sprite, script, *words, limit_s=REQUEST_LIMIT_S),
            twice_is_once=True,
        )
        return read(iter(out.split(b"\0")[:-1]))
    except ExecLost as lost:
        raise ThoptersError(f"cannot look into {sprite.name}: {lost}") from None
    except (StopIteration, ValueError, KeyError):
        raise ThoptersError(f"cannot look into {sprite.name}: {GARBLED}") from None


def read_jobs(fields: Iterator[bytes]) -> list[Job]:
    """Return the jobs of a look, newest first; the field behind the last one is empty.

    A sprite can have made up the name of a folder; what is not an id is left out.
    """
    import itertools
    import re

    jobs = []
    while identity := next(fields):
        job = Job(itertools.chain([identity], fields))
        if re.fullmatch(JOB_ID, job.id):
            jobs.append(job)
    return sorted(jobs, key=lambda job: (job.started_at, job.id), reverse=True)


def read_work(fields: Iterator[bytes], sessions: dict[bytes, Session]) -> list[Work]:
    """Return the jobs and the other sessions of a look, which tells of each in `sessions`."""
    jobs = read_jobs(fields)
    found = {number: Work(session) for number, session in sessions.items()}
    for identity in fields:
        directory = next(fields)
        leader = [next(fields) for _ in range(int(next(fields)))]
        child = [next(fields) for _ in range(int(next(fields)))]
        found[identity].see(directory, leader, child)
    for job in jobs:
        outer = to_bytes(job.outer)
        session = sessions.get(outer)
        if session and job.is_same(session):
            found.pop(outer, None)
            job.session = session if job.is_running() else None
    return [*jobs, *found.values()]


def pick_job(sprite: Sprite, jobs: list[Job], wanted: str | None) -> Job:
    """Return the job with an id or a label, the newest without either; NoWorkError."""
    if wanted is None and jobs:
        return jobs[0]
    for job in jobs:
        if wanted in (job.id, job.label):
            return job
    if wanted is None:
        raise NoWorkError(f"no detached command is known in {sprite.name}")
    raise NoWorkError(
        f"no detached command {wanted} is known in {sprite.name}; "
        f"see which are: thopters sessions {sprite.name} --all"
    )


def pick_work(sprite: Sprite, found: list[Work], wanted: str) -> Work:
    """Return what runs with an id or a label; NoWorkError where nothing does, or not any more."""
    for work in found:
        if wanted in (work.id, work.label):
            if not work.is_running():
                raise not_running(sprite, work)
            return work
    raise NoWorkError(
        f"nothing with the id {wanted} runs in {sprite.name}: it has ended, or the sprite has "
        f"started anew; see what runs: thopters sessions {sprite.name}"
    )


def not_running(sprite: Sprite, work: Work) -> NoWorkError:
    return NoWorkError(
        f"{work.id} of {sprite.name} {work.describe_end()}",
        hint=f"see what it printed: thopters logs {sprite.name} {work.id}",
    )


# start


def start_detached(sprite: Sprite, command: JobCommand) -> tuple[int, str, bytes]:
    """Start a job, and see it run.

    Returns its status, STILL_RUNNING as a rule, the id that stands for it, and what it has shown.
    ExistsError where another job has its label. One without a record has its session's id, or "".
    """
    with sprite.console.working(f"starting it in {sprite.name}"):
        try:
            status, session, shown = retry_cut(
                sprite, lambda: see_started(sprite, command), twice_is_once=False
            )
        except ExecLost as lost:
            raise status_unknown(sprite, lost) from None
    told = session.decoder.preface
    if TAKEN in told:
        label = command.about["label"]
        raise ExistsError(
            f"there is a detached command {label} in {sprite.name} already",
            hint=f"use another label, or forget it: thopters kill {sprite.name} {label} --forget",
        )
    if UNRECORDED not in told:
        return status, command.id, shown
    sprite.console.warn(
        f"nothing is recorded of it: {sprite.name} has no room or no right to write ~/.thopters"
    )
    return status, session.lasting_id(), shown


def see_started(sprite: Sprite, command: JobCommand) -> tuple[int, TerminalSession, bytes]:
    shown = Kept()
    session = open_terminal(sprite, shown.take_last, command)
    try:
        status = session.watch_start()
        if status == STILL_RUNNING and UNRECORDED in session.decoder.preface:
            status = session.await_identity()
        return status, session, bytes(shown)
    except BaseException as error:
        if session.has_begun and not isinstance(error, ExecLost):
            look = f"thopters sessions {sprite.name} --all"
            sprite.console.note(
                f"it may go on in {sprite.name} as {command.id}; look at it: {look}"
            )
        raise
    finally:
        session.close()


def describe_command(console: Console, argv: Sequence[bytes]) -> list[str]:
    """Return a command's words as a record keeps them: without our secrets, and not endless."""
    words, room = list[str](), MOST_ABOUT
    for word in argv:
        text = console.redact(from_bytes(word))
        size = len(encode_json(text))
        if size > room:
            return [*words, text[: room // 6] + "…"]  # a character takes 6 bytes at most
        words.append(text)
        room -= size
    return words


# end

FORGET_SCRIPT = (
    READ_JOBS
    + b"""\
[ -d "$jobs/$1" ] || exit 3
! is_running "$1" || exit 4
forget "$1"
"""
)


def forget_job(sprite: Sprite, identity: str) -> None:
    """Remove the record of a job that does not run; ThoptersError."""
    try:
        status, _, _ = run_script(sprite, FORGET_SCRIPT, identity.encode(), statuses=(0, 3, 4))
    except ExecLost as lost:
        raise NoAnswerError(
            f"cannot tell whether the record of {identity} was removed: {lost}"
        ) from None
    if status == NO_RECORD:
        raise NoWorkError(f"there is no record of {identity} in {sprite.name}")
    if status:
        raise ThoptersError(
            f"{identity} of {sprite.name} runs, so its record stays",
            hint=f"end it first: thopters kill {sprite.name} {identity}",
        )


def end_work(sprite: Sprite, work: Work, signal_name: str = "") -> bool:
    """Signal what runs, and return whether it has ended; without a name, see to that it does."""
    if isinstance(work, Job):
        return end_job(sprite, work, signal_name)
    return end_session(sprite, work.session, signal_name) if work.session else True


def end_job(sprite: Sprite, job: Job, signal_name: str) -> bool:
    wanted = signal_name or "HUP"  # a shell survives TERM
    try:
        status = signal_group(sprite, job.group, wanted)
        if status == GROUP_STAYS and not signal_name:
            wanted = "KILL"
            status = signal_group(sprite, job.group, wanted)
    except ExecLost as lost:
        raise NoAnswerError(
            f"cannot tell whether {job.id} of {sprite.name} got {wanted}: {lost}"
        ) from None
    limit_s = 0.0 if status == GROUP_STAYS else SESSION_LAG_S
    with After(f"{job.id} of {sprite.name} got {wanted}"):
        for _ in sprite.clock.polling(limit_s, 0.2):
            if not pick_job(sprite, look_at_jobs(sprite), job.id).is_running():
                return True
    return False


# wait and logs look at a sprite from outside while it sleeps: neither wakes it

LOOK_EVERY_S = 40.0  # longer than the idle window: who looks so seldom keeps nothing awake
LOOK_LIMIT_S = 2
OUTSIDE_EVERY_S = 2.0


class Outside:
    """Looks at a sprite's status alone, which neither wakes it nor counts as activity.

    `says` is said once, when it is seen asleep. The first time that it is, `may_look` ends the
    waiting, for one look inside.
    """

    def __init__(
        self, sprite: Sprite, says: str, left_s: Callable[[], float], *, may_look: bool = False
    ) -> None:
        self.sprite = sprite
        self._says = says
        self._may_look = may_look
        self._left_s = left_s  # until the time is up

    def await_running(self, for_s: float = 0.0) -> bool:
        """Wait until it is time to look: the sprite has run for so long; False without time left.

        An API that is out of reach gets its time; NotFoundError if there is no such sprite.
        """
        clock = self.sprite.clock
        since, seen = clock.monotonic(), clock.monotonic()
        while self._left_s() > 0:
            try:
                is_asleep = self.sprite.look().is_asleep()
                seen = clock.monotonic()
            except (AuthError, NotFoundError):
                raise
            except ThoptersError as error:
                if clock.monotonic() - seen > AWAY_LIMIT_S:
                    raise
                self.sprite.console.detail(f"{error}; still trying")
                is_asleep = False
            if is_asleep:
                if self._may_look:
                    self._may_look = False
                    return True
                self._say()
                since = clock.monotonic() + OUTSIDE_EVERY_S
            left_s = since + for_s - clock.monotonic()
            if left_s <= 0 and seen >= since:
                return True
            clock.sleep(max(0.0, min(OUTSIDE_EVERY_S, self._left_s(), max(left_s, 0.1))))
        return False

    def _say(self) -> None:
        if self._says:
            self.sprite.console.note(self._says)
            self._says = ""


NO_RECORD = 3  # the exit status of a script where there is none
# Waits for the end of a job: for long while it holds its sprite, which it does for $2 seconds from
# its start; else for a moment, and a file tells its end that somebody waits
WAIT_SCRIPT = (
    READ_JOBS
    + b"""\
hold=$2 moment=$3 most=$4
read -r started outer _ < "$jobs/$1/process" || exit 3
stay=$((${started%.*} + hold - EPOCHSECONDS))
[ "$hold" != 0 ] && [ "$stay" -gt 0 ] || { stay=$moment; : > "$jobs/$1/waited"; }
[ "$stay" -le "$most" ] || stay=$most
! is_running "$1" || timeout "$stay" tail -s 0.1 --pid="$outer" -f /dev/null
show "$1"
printf '\\0'
"""
)


# How to learn the end without keeping the sprite awake. A look inside counts as activity. So:
#
#   the job holds its sprite        -> stay inside until it ends: it is awake anyway
#   it does not                     -> look for a moment, then stay outside for longer than an idle
#                                      window; a sprite that runs then runs without us: look again
#   the sprite sleeps               -> ask for its status alone, until it runs again
#   it sleeps, though the job held  -> look once: the job has most likely ended after the connection
#   it                                 to it was lost, and nothing else would wake the sprite
#
# A job that is waited for keeps its sprite awake for ENDED_HOLD_S behind its end, else it could end
# and its sprite sleep between two looks.
def wait_for_job(sprite: Sprite, wanted: str | None, limit_s: float | None, *, wakes: bool) -> Job:
    """Wait for a job's end and return it, still running when the time is up.

    TimeUpError where not even one look was possible; NoWorkError if there is no such job.
    """
    clock = sprite.clock
    end = clock.monotonic() + (NO_LIMIT_S if limit_s is None else limit_s)

    def left_s() -> float:
        return end - clock.monotonic()

    name = sprite.name
    says = f"{name} sleeps, and the command is not finished; it goes on when {name} wakes"
    if not wakes:
        says = f"{sprite.name} sleeps, so nobody knows; it is looked at when it wakes"
        if not Outside(sprite, says, left_s).await_running():
            raise TimeUpError(f"the time is up; {sprite.name} sleeps, so nothing is known")
    job = pick_job(sprite, look_at_jobs(sprite), wanted)
    outside = Outside(sprite, says, left_s, may_look=wakes and job.hold_s > 0)
    while job.is_running() and left_s() > 0:
        job = follow_job(sprite, job, left_s())
        if job.is_running() and not outside.await_running(LOOK_EVERY_S):
            break
    return job


def follow_job(sprite: Sprite, job: Job, left_s: float) -> Job:
    """Stay inside with a job, as long as that keeps nothing awake, and return how it is then."""
    most_s = int(min(max(left_s, 1.0), max(job.hold_s, LOOK_LIMIT_S)))
    numbers = (b"%d" % number for number in (job.hold_s, LOOK_LIMIT_S, most_s))
    try:
        status, out, _ = run_script(
            sprite,
            WAIT_SCRIPT,
            *(job.id.encode(), *numbers),
            statuses=(0, NO_RECORD),
            limit_s=most_s + REQUEST_LIMIT_S,
        )
    except ExecLost as lost:  # it may have paused
        sprite.console.detail(str(lost))
        return job
    fields = out.split(b"\0")[:-1]
    if status == NO_RECORD or len(fields) < 2:
        raise NoWorkError(f"the record of {job.id} in {sprite.name} is gone")
    return read_jobs(iter(fields))[0]


# Tells the place from which it reads a job's output, and reads. That is a place from before ($2),
# the last $3 lines, or what came in the last $4 seconds. With $5 it goes on to the job's end. Then
# stderr tells what is kept
LOG_SCRIPT = (
    READ_JOBS
    + b"""\
dir=$jobs/$1 place=$2
[ -r "$dir/output" ] || exit 3
if [ ! "$place" ]; then
  place=0 size=$(wc -c < "$dir/output")
  if [ "$4" ]; then
    since=$((EPOCHSECONDS - $4))
    while read -r time bytes && [ "$time" -le "$since" ]; do place=$bytes; done < "$dir/index"
  fi
  if [ "$3" ]; then
    first=$((size - $(head -c "$size" "$dir/output" | tail -n "$3" | wc -c)))
    [ "$place" -gt "$first" ] || place=$first
  fi
fi
echo "$place"
read -r _ outer _ < "$dir/process"
if [ "$5" ] && is_running "$1"; then
  tail -c "+$((place + 1))" -s 0.2 --pid="$outer" -f "$dir/output"
else
  tail -c "+$((place + 1))" "$dir/output"
fi
read -r rest < "$dir/rest" && echo "$rest" >&2
"""
)


MISSING_OUTPUT = {
    "cut": f"only the first {MOST_OUTPUT} bytes are kept",
    "full": "the sprite's disk was full",
    "broken": "what records it was ended",
}


class LogScreen:
    """Shows a log on our terminal: what draws, and no question, clipboard write or lasting mode."""

    def __init__(self) -> None:
        self._drawing = Drawing()
        self._terminal = LocalTerminal() if os.name == "posix" else None

    def show(self, data: bytes | memoryview) -> None:
        drawn = self._drawing.feed(data)
        if self._terminal:
            self._terminal.show(drawn)
        else:
            write_stdout(drawn)

    def leave(self) -> None:
        """Put the screen back."""
        if self._terminal:
            self._terminal.reset_screen()


class Log:
    """Reads what a job's terminal got, from a place that is known over lost connections.

    `sink` gets each byte once. `tail` lines and `since_s` say where to begin, None for the first
    byte; with `follows` it is read to the job's end.
    """

    def __init__(
        self,
        sprite: Sprite,
        job: Job,
        sink: Sink,
        *,
        tail: int | None,
        since_s: int | None,
        follows: bool,
    ) -> None:
        self.sprite = sprite
        self.job = job
        self.follows = follows
        self._sink = sink
        self._tail = b"" if tail is None else b"%d" % tail
        self._since = b"" if since_s is None else b"%d" % since_s
        self._place = -1  # from where to read on, in bytes of the output; -1 before the beginning
        self._head: bytes | None = None  # an answer's first line, until it is whole
        self._came_at = 0.0

    def read(self) -> str:
        """Read it, and return which part of the output is kept, as Job.rest; ThoptersError."""
        outside = Outside(
            self.sprite,
            f"[{self.sprite.name} has paused; the log goes on when it wakes]",
            lambda: NO_LIMIT_S,
            may_look=self.job.is_running() and self.job.hold_s > 0,  # then it has likely ended
        )
        clock, losses = self.sprite.clock, 0
        while True:
            began = clock.monotonic()
            try:
                return self._read_on()
            except (ExecLost, NotSentError, NoAnswerError) as error:
                losses = losses + 1 if clock.monotonic() - began < QUICK_LOSS_S else 0
                is_cut = not isinstance(error, ExecLost) or error.is_cut
                if not self.follows or not is_cut or losses > MOST_LOSSES:
                    raise self._lost(error) from None
                self.sprite.console.detail(f"{error}; reading on")
            is_idle = clock.monotonic() - self._came_at > IDLE_BEFORE_PAUSE_S
            outside.await_running(STATUS_LAG_S if is_idle else 0.1)

    def _lost(self, error: Exception) -> ThoptersError:
        name = self.sprite.name
        return NoAnswerError(f"the log of {self.job.id} in {name} broke off: {error}")

    def _read_on(self) -> str:
        place = b"" if self._place < 0 else b"%d" % self._place
        follows = b"follow" if self.follows else b""
        words = (self.job.id.encode(), place, self._tail, self._since, follows)
        command = RemoteCommand([b"bash", b"-c", LOG_SCRIPT, b"thopters", *words], with_keys=False)
        self._head, err = b"", Kept()
        sinks: dict[int, Sink] = {STREAM_STDOUT: self._take, STREAM_STDERR: err.take_first}
        session = open_exec(self.sprite, sinks)
        try:
            status = session.run(command)
        finally:
            session.close()
        if status == NO_RECORD:
            raise NoWorkError(f"the output of {self.job.id} in {self.sprite.name} is gone")
        if status:
            raise ExecLost(f"the command for it ended with {status}", started=True)
        return err.decode("utf-8", "replace").strip()

    def _take(self, data: bytes | memoryview) -> None:
        self._came_at = self.sprite.clock.monotonic()
        if self._head is not None:
            head, newline, rest = (self._head + data).partition(b"\n")
            if len(head) > 15 or (newline and not head.isdigit()):
                raise ThoptersError(f"cannot look into {self.sprite.name}: {GARBLED}")
            self._head = None if newline else head
            if not newline:
                return
            self._place, data = int(head), rest
        self._sink(data)
        self._place += len(data)


# --- ports ------------------------------------------------------------------------------

# Ports of a sprite: forwarded to local ones, or joined to stdin and stdout.

OPEN_PORTS = "every user of this machine and any page in your browser can reach these ports"
LINGER_S = 10.0  # of silence, for an answer after the local side has sent all


def open_port(sprite: Sprite, host: str, port: int) -> WebSocket:
    """Connect to a port in a sprite, waking it; ThoptersError where nobody listens there."""
    target = sprite.api.transport.target(sprite.path("proxy"))
    websocket = open_sprite_socket(sprite, target, WAKE_LIMIT_S)
    websocket.send(OP_TEXT, encode_json({"host": host, "port": port}))
    why = "no answer came"
    try:
        for left_s in sprite.clock.polling(CONNECT_TIMEOUT_S):
            for opcode, payload in websocket.one_message():
                if opcode == OP_TEXT and b'"connected"' in bytes(payload):
                    return websocket
                raise WebSocketLost("the answer is not understood")
            websocket.wait(min(1.0, left_s))
    except WebSocketLost as lost:
        why = str(lost)
    websocket.close()
    where = f"port {port} of {host or 'localhost'} in {sprite.name}"
    raise ThoptersError(f"cannot reach {where}: {why}")


def bridge(websocket: WebSocket, clock: Clock, source: SocketInput, sink: Sink) -> None:
    """Pass bytes both ways until the remote side has closed; WebSocketLost at its end.

    A thread sends, so that neither direction waits for the other; a slow reader on either side
    holds up its own alone. The wire has no half of a close: when `source` has ended we wait for
    what is still to come, but not for ever. OSError if the local side is gone.
    """
    sender = Sender(websocket, source)
    in_background(sender.run)
    try:
        receive(websocket, clock, sender, sink)
    finally:
        source.stop()


def receive(websocket: WebSocket, clock: Clock, sender: Sender, sink: Sink) -> NoReturn:
    """Pass what the server sends on to `sink`, and watch that all are still there."""
    pinged_at, ended_at = clock.monotonic(), None
    while True:
        for opcode, payload in websocket.messages():
            if opcode == OP_BINARY:
                sink(payload)
        websocket.wait(min(1.0, PING_INTERVAL_S))
        if sender.error:
            raise sender.error
        now, is_waiting = clock.monotonic(), sender.ended and websocket.unread() <= 0
        ended_at = ended_at or (now if is_waiting else None)
        if ended_at and min(websocket.silence(), now - ended_at) > LINGER_S:
            lost = WebSocketLost("nothing came any more")
            lost.is_late = True
            raise lost
        if not is_waiting and now - pinged_at > PING_INTERVAL_S:
            pinged_at = now
            websocket.ping()


class Sender:
    """Sends what a local side has to its end; nothing is read before the server took the last.

    So nothing stays behind while this waits to read and the other thread for its slow reader.
    """

    def __init__(self, websocket: WebSocket, source: SocketInput) -> None:
        self.websocket = websocket
        self.source = source
        self.ended = False
        self.error: OSError | InputError | None = None

    def run(self) -> None:
        try:
            while data := self.source.read():
                self.websocket.send(OP_BINARY, data, input_bytes=len(data))
                while self.websocket.unsent() and self.websocket.drain(1.0):
                    pass
        except (OSError, InputError) as error:
            self.error = error
        except ValueError:  # it was closed meanwhile
            pass
        self.websocket.ping()
        self.ended = True


class Forwarder:
    """Listens on local ports, and joins each connection to a port of a sprite."""

    def __init__(self, sprite: Sprite) -> None:
        self.sprite = sprite
        self._listeners: dict[socket.socket, int] = {}  # and the remote port of each

    def listen(self, local: int, remote: int, taken: Sequence[int]) -> None:
        """Listen on both loopback addresses; ThoptersError where the port is not free.

        `taken` are ports that are not to be offered in its place.
        """
        try:
            for listener in loopback_listeners(local):
                self._listeners[listener] = remote
        except OSError as error:
            raise port_in_use(local, remote, error, taken) from None

    def serve(self) -> NoReturn:
        """Accept connections until a signal ends the program."""
        is_told = False
        while True:
            for listener in wait_for(list(self._listeners), [], None)[0]:
                try:
                    client, _ = listener.accept()
                    try:
                        in_background(self._forward, client, self._listeners[listener])
                    except ThoptersError:
                        close_by_reset(client)
                        raise
                    is_told = False
                except ConnectionError:  # it was gone again
                    pass
                except (OSError, ThoptersError) as error:  # too many
                    say = self.sprite.console.detail if is_told else self.sprite.console.warn
                    say(f"a connection could not be taken: {getattr(error, 'strerror', error)}")
                    is_told = True
                    self.sprite.clock.sleep(0.1)

    def _forward(self, client: socket.socket, remote: int) -> None:
        import socket

        with client:
            try:
                websocket = open_port(self.sprite, "localhost", remote)
            except ThoptersError as error:
                self.sprite.console.warn(error.message)
                return
            try:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                bridge(websocket, self.sprite.clock, SocketInput(client), client.sendall)
            except WebSocketLost as lost:
                if lost.is_end:
                    self.sprite.console.detail(f"a connection to port {remote} has ended: {lost}")
                else:
                    say = self.sprite.console.detail if lost.is_late else self.sprite.console.warn
                    say(f"a connection to port {remote} was lost: {lost}")
                    close_by_reset(client)
            except ThoptersError as error:
                self.sprite.console.warn(error.message)
                close_by_reset(client)
            except OSError:  # the local side is gone
                pass
            finally:
                websocket.close()
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


def close_by_reset(sock: socket.socket) -> None:
    """Have the close of a socket be a reset: what has come is not all."""
    import socket
    import struct

    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


def loopback_listeners(port: int) -> Iterator[socket.socket]:
    """Yield listeners on both loopback addresses; OSError where the port is not free."""
    import socket

    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            if sys.platform != "linux" and os.name == "posix":
                see_unshared(family, port)
            yield socket.create_server((address, port), family=family, backlog=128)
        except OSError as error:
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:
                raise  # else it is a machine without IPv6


def see_unshared(family: int, port: int) -> None:
    """Raise OSError where somebody listens on all addresses: BSD has us take their place."""
    import socket

    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(("", port))


def port_in_use(local: int, remote: int, error: OSError, taken: Sequence[int]) -> ThoptersError:
    others = (port for port in range(local + 1, 65536) if port not in taken)
    free = next((port for port in others if is_port_free(port)), None)
    return ThoptersError(
        f"cannot listen on local port {local}: {error.strerror}",
        hint=f"port {free} is free: use {free}:{remote}" if free else "use LOCAL:REMOTE",
    )


def is_port_free(port: int) -> bool:
    try:
        for listener in loopback_listeners(port):
            listener.close()
    except OSError:
        return False
    return True


def forward_stdio(sprite: Sprite, host: str, port: int) -> int:
    """Be the connection itself, for a program such as ssh that starts us for that."""
    sys.stdout.flush()
    binary_streams()
    websocket = open_port(sprite, host, port)
    try:
        bridge(websocket, sprite.clock, LocalInput(), write_stdout)
    except WebSocketLost as lost:
        if lost.is_late:
            raise NoAnswerError(
                f"nothing came from {host}:{port} in {sprite.name} for {LINGER_S:.0f} s after "
                "the end of the input, and the connection was not closed there",
                hint="what was sent was taken; whether all of the answer came is not known",
            ) from None
        # a pause may look like an end that nobody announced, and it is cheap to know
        if not lost.is_end or (not lost.is_said and sprite.is_known_asleep()):
            raise NoAnswerError(f"the connection to {sprite.name} was lost: {lost}") from None
        sprite.console.detail(f"the connection has ended: {lost}")
    except Interrupted as interrupted:
        if interrupted.signum != getattr(signal, "SIGHUP", 0):
            raise  # a HUP is how ssh says that it is done with us
    finally:
        websocket.close()
    return EXIT_OK


# --- files ------------------------------------------------------------------------------

# Copying files into a sprite and out of it. Cleanup is a part of each step: whatever ends a copy,
# what is half done is taken away, here and there.

# How a copy goes. Either way a tar stream goes over one exec, and what arrives is unpacked below a
# folder `t` beside its place. Once all of it has come and every entry fits what is there, the files
# are put in place one by one, by a rename; a new folder by `cp -l`, which links what is in it, for
# one that may not be written in can't be renamed. In a sprite a link that DST itself is stays one,
# as with cp; here none is written through. A signal ends what is under way, and nothing of what
# puts or takes away.
EXPAND = rb"""
expand() { case $1 in '~'|'~/'*) path=~; path=$path${1#'~'};; *) path=$1;; esac; }
"""
PREPARE = (
    EXPAND
    + rb"""
tidy_up() {
  stopped=
  trap stopped=1 INT TERM HUP
  trap 'trap "" INT TERM HUP; take_away' EXIT
  # where we are killed, one in a session of its own reads the end of what we alone hold open
  exec 8> >(
    trap '' INT TERM HUP
    exec $(command -v setsid) "$BASH" -pc '
      unset TMOUT
      read -r
      find "$1" -type d -exec chmod u+rwx {} +
      rm -rf -- "$1"' thopters-tidy "$new" > /dev/null 2>&1
  )
}
cannot_write() { echo "cannot write to ${place%/}/: ${1##*: }" >&2; exit 1; }
expand "$1"
case $path in -*) dst=./$path;; *) dst=$path;; esac
case $kind in folder|contents) [ -d "$dst" ] || dst=${dst%"${dst##*[!/]}"};; esac
[ ! -L "$dst" ] || { dst=$(readlink -vm -- "$dst" && echo .) && dst=${dst%??}; } || exit 1
place=$dst name=
if [ ! -d "$dst" ]; then
  case $dst in */*) place=${dst%/*}/ name=${dst##*/};; *) place=. name=$dst;; esac
fi
"""
)
# What an upload is: `many` sources, one `file`, one `folder`, or the `contents` of a folder
UPLOAD_SCRIPT = (
    b"kind=$2"
    + PREPARE
    + rb"""
case $kind$name in many?*) echo "$dst is not a directory" >&2; exit 1;; esac
[ -n "$name" ] || [ -d "$dst" ] || { echo "$dst is not a directory" >&2; exit 1; }
new=${place%/}/.thopters-cp.$3
merged=() locked=() modes=()
take_away() {
  for number in "${!locked[@]}"; do chmod "${modes[number]}" -- "${locked[number]}"; done
  find "$new" -type d -exec chmod u+rwx {} +
  rm -rf -- "$new"
}
tidy_up
why=$(mkdir -m 700 -- "$new" 2>&1) || cannot_write "$why"
tar -x -p --no-same-owner --xattrs --xattrs-include='user.*' --warning=no-unknown-keyword \
  -f - -C "$new" || exit 1
rmdir -- "$new/.thopters-end" 2> /dev/null || { echo 'not all has arrived' >&2; exit 1; }
torn=$new/.thopters-torn
[ ! -e "$torn" ] || (cd -- "$new" && xargs -0 rm -f -- < .thopters-torn) || exit 1
[ -e "$new/t" ] || exit 0
shopt -s dotglob nullglob
is_folder() { [ -d "$1" ] && [ ! -L "$1" ]; }
fits() {
  local entry mode
  if ! is_folder "$1"; then
    [ -L "$2" ] || [ ! -e "$2" ] || [ -f "$2" ] ||
      { echo "cannot replace $2 by a file" >&2; exit 1; }
  elif is_folder "$2"; then
    # its own mode is not put
    { [ -r "$1" ] && [ -w "$1" ] && [ -x "$1" ]; } || chmod u+rwx -- "$1" || exit 1
    merged+=("$2")
    [ -w "$2" ] || { mode=$(stat -c %a -- "$2") && locked+=("$2") modes+=("$mode"); } || exit 1
    for entry in "$1"/*; do fits "$entry" "$2/${entry##*/}"; done
  elif [ -L "$2" ] || [ -e "$2" ]; then
    echo "cannot replace $2 by a directory" >&2
    exit 1
  fi
}
put() {
  local entry files=() folders=()
  if ! is_folder "$1"; then mv -fT -- "$1" "$2" || exit 4; return; fi
  if ! is_folder "$2"; then cp -a -l -T -- "$1" "$2" || exit 4; return; fi
  for entry in "$1"/*; do
    if ! is_folder "$entry"; then
      files+=("$entry")
    elif ! is_folder "$2/${entry##*/}"; then
      folders+=("$entry")
    else
      put "$entry" "$2/${entry##*/}"
    fi
  done
  [ "${#files[@]}" = 0 ] || printf '%s\0' "${files[@]}" | xargs -0 mv -f -t "$2" -- || exit 4
  [ "${#folders[@]}" = 0 ] ||
    printf '%s\0' "${folders[@]}" | xargs -0 cp -a -l -t "$2" -- || exit 4
}
if [ "$kind" = contents ]; then tops=("$new/t"); else tops=("$new/t"/*); fi
targets=()
for top in "${tops[@]}"; do
  if [ "$kind" = contents ]; then to=$dst; else to=${place%/}/${name:-${top##*/}}; fi
  targets+=("$to")
  fits "$top" "$to"
done
disk=$(stat -c %d -- "$new")
[ "${#merged[@]}" = 0 ] ||
  ! printf '%s\0' "${merged[@]}" | xargs -0 stat -c %d -- | grep -qvx "$disk" ||
  { echo "a part of $dst is on another disk; copy to that part by itself" >&2; exit 1; }
[ "${#locked[@]}" = 0 ] || chmod u+w -- "${locked[@]}" || exit 1
trap '' INT TERM HUP
[ ! "$stopped" ] || exit 1
for number in "${!tops[@]}"; do put "${tops[number]}" "${targets[number]}"; done
"""
)
UPLOAD_END = ".thopters-end"
UPLOAD_TORN = ".thopters-torn"  # lists what is not to be put, since not all of it could be read
# The end of the input is ours to say: what a lost connection leaves is no file. The names of what
# is to be taken away again are ours too, so that no signal comes between their making and the trap
FILE_SCRIPT = (
    b"kind=file"
    + PREPARE
    + rb"""
[ ! -e "$dst" ] || [ -f "$dst" ] || { echo "cannot replace $dst by a file" >&2; exit 1; }
new=${place%/}/.thopters-cp.$3
take_away() { rm -f -- "$new"; }
tidy_up
why=$( (umask 077 && : > "$new") 2>&1) || cannot_write "$why"
cat > "$new" || exit 1
[ "$(tail -c 32 -- "$new" | tr -d '\0')" = "$2" ] || { echo 'not all has arrived' >&2; exit 1; }
truncate -s -32 -- "$new" || exit 1
if [ -e "$dst" ]; then chmod --reference="$dst" -- "$new"; else chmod =rw -- "$new"; fi
[ ! "$stopped" ] || exit 1
mv -fT -- "$new" "$dst"
"""
)
SHOW_SCRIPT = EXPAND + b'expand "$1"; case $path in -) path=./-;; esac; exec cat -- "$path"'
# Each name comes behind the number of its source, the first is 1, so that it is known whose it is,
# though a link's target has a name of its own. The number's bits, the lowest one first, are `./`
# for 0 and `.//` for 1, which change nothing in a path. Where every link is followed, find names
# the entries, for tar would go round in circles. Nothing else writes to stderr while tar does:
# their lines would get into each other
DOWNLOAD_SCRIPT = (
    EXPAND
    + rb"""
links=$1 measures=$2 number=0 words=() found=()
shift 2
lacks() { printf 'thopters: %d %s\n' "$number" "$1" >&2; }
take() {
  local bits=$number mark=
  for ((; bits; bits /= 2)); do mark+=./; ((bits % 2 == 0)) || mark+=/; done
  words+=(-C "$1")
  if [ "$links" != all ] || [ ! -d "$1$2" ]; then words+=("$mark$2"); return; fi
  mapfile -d '' names < <(cd -- "$1" && LC_ALL=C find -L "$mark$2" -print0)
  exec {list}< <(printf '%s\0' "${names[@]}")
  words+=(-T "/dev/fd/$list")
}
for given; do
  number=$((number + 1))
  expand "$given"
  case $path in /*) ;; *) path=$PWD/$path;; esac
  bare=${path%"${path##*[!/]}"}
  if [ -L "$bare" ] && [ "$bare" = "$path" ] && [ "$links" = none ]; then
    take "${bare%/*}/" "${bare##*/}"
    continue
  elif [ ! -e "${bare:-/}" ]; then
    why='there is no such file'
    [ ! -L "$bare" ] || why='it is a link that leads nowhere'
    lacks "$why"
    continue
  elif [ -f "$bare" ] && [ ! -s "$bare" ] && head -c 1 -- "$bare" 2> /dev/null | grep -q ^; then
    lacks 'it tells no size; copy it to -'
    continue
  fi
  found+=("${bare:-/}")
  case $bare in ''|*/.|*/..) take "$bare/" .; continue;; esac
  [ ! -L "$bare" ] || { bare=$(readlink -e -- "$bare" && echo .); bare=${bare%??}; }
  if [ "${bare:-/}" = / ]; then lacks 'it leads to /'; else take "${bare%/*}/" "${bare##*/}"; fi
done
[ "${#words[@]}" != 0 ] || exit 5
follow=(-H)
[ "$links" != all ] ||
  follow=(-L) words=(-h --hard-dereference --no-recursion --null "${words[@]}")
if [ "$measures" ]; then
  size=$(timeout 2 find "${follow[@]}" "${found[@]}" -type f -printf '%s\n' 2> /dev/null |
    awk '{ sum += $1 } END { printf "%.0f", sum }'; exit "$((PIPESTATUS[0] == 124))") &&
    printf 'thopters: size %s\n' "$size" >&2
fi
LC_ALL=C tar -c -S --xattrs --xattrs-include='user.*' --quoting-style=escape --no-unquote \
  --format=posix -f - "${words[@]}"
status=$?
case $status in 1) exit 5;; 2) exit 6;; esac
exit "$status"
"""
)
CHANGED, INCOMPLETE = 5, 6  # what DOWNLOAD_SCRIPT says of files that changed or weren't read
ALL_IN_IT = ("", ".", "..")  # the last part of a path that stands for what is in a directory
NOT_PUT = "nothing was put in place"
SHORTER = "it became shorter while it was read"
NO_FILE = "it is not a file, directory or link"
ATTRIBUTE = "SCHILY.xattr."  # what the name of an extended attribute has before it in a tar header
GROUP_LIMIT_S = 2.0  # for a copy that is ended to tell its process group


class CopyStyle:
    """What the options of cp say of links and modes.

    `links` that are followed: "named", those that are sources themselves, "all", or "none". What
    comes down keeps its mode whole if it `keeps_modes`, else the umask takes its part.
    """

    def __init__(self, habits: Sequence[str] = ()) -> None:
        said = [{"a": "none", "P": "none", "L": "all"}.get(habit) for habit in habits]
        self.links = next(filter(None, reversed(said)), "named")
        self.keeps_modes = "a" in habits or "p" in habits

    def follows(self, source: str) -> bool:
        """Return whether a source is followed if it is a link; a slash at its end does so."""
        return self.links != "none" or last_part(source) in ALL_IN_IT or source.endswith("/")


class Copy:
    """A copy under way: how much has been copied, what was left out, and what ended it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bytes = 0
        self.total = 0  # of all there is to copy, once that is known
        self.entries = 0
        self.left_out: dict[str, str] = {}  # with the reasons
        self.changed: list[str] = []  # while they were read
        self.keeps_modes = True  # the disk here does
        self.is_whole = False
        self.error: Exception | None = None
        self._started = time.monotonic()

    @property
    def shows_progress(self) -> bool:
        return self.console.activity is not None

    def count(self, size: int) -> None:
        self.bytes += size
        if self.console.activity:
            rate = self.bytes / max(time.monotonic() - self._started, 0.1)
            self.console.activity.text = f"copied {self._share()}, {rate / 1e6:.1f} MB/s"

    def _share(self) -> str:
        if not self.total:
            return f"{self.bytes / 1e6:.1f} MB"
        percent = min(100 * self.bytes // self.total, 100)
        return f"{self.bytes / 1e6:.1f} of {self.total / 1e6:.1f} MB, {percent} %"

    def leave_out(self, name: str, why: str | OSError) -> None:
        if isinstance(why, OSError):
            why = why.strerror or str(why)
        self.left_out.setdefault(name, why)

    def run(self, work: Callable[[BinaryIO], None], feed: socket.socket, mode: str) -> None:
        """Do one side's work in a thread; what ends it is raised again by who waits for us."""
        try:
            with feed, feed.makefile(mode) as stream:  # type: ignore[call-overload]
                work(stream)
            self.is_whole = True
        except Exception as error:
            self.error = error


def below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class Tree:
    """A local folder and all below it, where each step goes by a descriptor and through no link.

    So nobody else who may write there can lead a step elsewhere meanwhile. Names are relative and
    have slashes; "" is the folder itself. Only to read what the user wants read, a tree `follows`
    links. Windows lacks the calls for this, and there names become paths.

    A path of the user's leads to it through links, but for one at its end with no slash behind it.
    """

    BY_DESCRIPTOR = hasattr(os, "O_DIRECTORY") and os.open in os.supports_dir_fd

    def __init__(self, path: str, *, follows: bool = False, within: Tree | None = None) -> None:
        """Open a folder: by a path, or by a name `within` another tree; OSError if it is none."""
        self.path = path
        self.follows = follows
        self._no_follow = 0 if follows else getattr(os, "O_NOFOLLOW", 0)
        self._folder, self._fd = "", -1  # the one that was opened last, unless it is the top
        self._top = -1
        if within:
            self.path = os.path.join(within.path, path)
            part, at = within.at(path)
            self._top = self._enter(part, **at)
        elif self.BY_DESCRIPTOR:
            self._top = self._enter(path)
        else:
            os.listdir(path)

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exc: object) -> None:
        self._forget()
        if self._top >= 0:
            os.close(self._top)
        self._top = -1

    def _forget(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._folder, self._fd = "", -1

    def _enter(self, part: str, dir_fd: int | None = None) -> int:
        if not self.BY_DESCRIPTOR:
            return -1
        flags = os.O_DIRECTORY | self._no_follow | getattr(os, "O_PATH", 0)
        return os.open(part, flags, dir_fd=dir_fd)

    def _open_folder(self, folder: str) -> int:
        """Return the descriptor of a folder; it is good until the next call."""
        if not folder:
            return self._top
        rest = folder
        if self._folder and f"{folder}/".startswith(f"{self._folder}/"):
            rest = folder[len(self._folder) + 1 :]
        else:
            self._forget()
        for part in filter(None, rest.split("/")):
            inner = self._enter(part, self._fd if self._fd >= 0 else self._top)
            name = below(self._folder, part)
            self._forget()
            self._folder, self._fd = name, inner
        return self._fd

    def at(self, name: str) -> tuple[str, dict[str, Any]]:
        """Return the last part of a name, and where that is, as functions of os take it.

        It is good until the next name in another folder.
        """
        if not self.BY_DESCRIPTOR:
            return os.path.join(self.path, *name.split("/")), {}
        folder, _, part = name.rpartition("/")
        return part or ".", {"dir_fd": self._open_folder(folder)}

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[int | str]:
        """Give a folder for a while, as functions of os take it in the place of a path."""
        part, at = self.at(name)
        if not self.BY_DESCRIPTOR:
            yield part
            return
        fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | self._no_follow, **at)
        try:
            yield fd
        finally:
            os.close(fd)

    def names(self, name: str) -> list[str]:
        with self.folder(name) as folder:
            return sorted(os.listdir(folder))

    def open(self, name: str, flags: int) -> int:
        part, at = self.at(name)
        flags |= self._no_follow | getattr(os, "O_BINARY", 0)
        return os.open(part, flags, 0o600, **at)

    def stat(self, name: str) -> os.stat_result:
        part, at = self.at(name)
        return os.stat(part, follow_symlinks=self.follows, **at)

    def unlock(self, name: str) -> None:
        """Give a folder that is ours alone the mode that lets us work in it, if that can be."""
        mode = stat.S_IMODE(self.stat(name).st_mode)
        wanted = mode & stat.S_ISGID | 0o700
        if mode != wanted:
            part, at = self.at(name)
            with contextlib.suppress(OSError):
                os.chmod(part, wanted, **at)

    def link(self, first: str, name: str) -> None:
        """Give a file one more name; a copy of it where the disk has no such links."""
        import shutil

        with self.folder(os.path.dirname(first)) as folder:
            part, at = self.at(name)
            base = os.path.basename(first)
            try:
                if self.BY_DESCRIPTOR:
                    os.link(base, part, src_dir_fd=int(folder), dst_dir_fd=at["dir_fd"])
                else:
                    os.link(os.path.join(str(folder), base), part)
                return
            except OSError as error:
                if error.errno not in (*NOT_ABLE, errno.EMLINK):
                    raise
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(self.open(first, 0), "rb") as old, open(self.open(name, flags), "wb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            was = os.fstat(old.fileno())
            with contextlib.suppress(OSError):
                os.chmod(new.fileno(), stat.S_IMODE(was.st_mode))
                os.utime(new.fileno(), ns=(was.st_atime_ns, was.st_mtime_ns))


class Entry:
    """Something local that is copied: `place` in a tree, `name` in the copy, `shown` to the user.

    `attributes` are those of a folder.
    """

    __slots__ = ("attributes", "name", "place", "shown", "status", "tree")

    def __init__(self, tree: Tree, place: str, name: str, shown: str) -> None:
        self.tree = tree
        self.place = place
        self.name = name
        self.shown = shown
        self.status = tree.stat(place)
        self.attributes: dict[str, str] = {}

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def identity(self) -> tuple[int, int]:
        return self.status.st_dev, self.status.st_ino

    def is_within(self, folders: tuple[Any, ...]) -> bool:
        """Return whether it is one of the folders of a chain: (identity, the rest of the chain)."""
        while folders:
            identity, folders = folders
            if identity == self.identity:
                return True
        return False

    def read_folder(self) -> list[str]:
        with self.tree.folder(self.place) as folder:
            self.attributes = read_attributes(folder)
            return sorted(os.listdir(folder))

    def inner(self, name: str) -> tuple[str, str, str]:
        """Return place, name and words for something in this folder."""
        words = f"{self.shown.rstrip('/')}/{name}"
        return below(self.place, name), below(self.name, name), words


def walk_source(
    path: str, name: str, style: CopyStyle, leave_out: Callable[[str, str | OSError], None]
) -> Iterator[Entry]:
    """Yield a file, or a folder with all in it; what can't be read is left out.

    A tree may be deep, and where links are followed one may lead back to where it is.
    """
    try:
        is_folder = stat.S_ISDIR((os.stat if style.follows(path) else os.lstat)(path).st_mode)
        folder, first = (path, "") if is_folder else (os.path.dirname(path), last_part(path))
        follows = style.links == "all" or (not is_folder and style.follows(path))
        tree = Tree(f"{folder or '.'}/", follows=follows)
    except OSError as error:
        leads_nowhere = isinstance(error, FileNotFoundError) and os.path.islink(path)
        leave_out(path, "it is a link that leads nowhere" if leads_nowhere else error)
        return
    waiting: list[tuple[str, str, str, tuple[Any, ...]]] = [(first, name, path, ())]
    with tree:
        while waiting:
            *place, above = waiting.pop()
            try:
                entry = Entry(tree, *place)
                names = entry.read_folder() if entry.is_folder else []
            except OSError as error:
                leave_out(place[2], error)
                continue
            if follows and names and entry.is_within(above):
                leave_out(entry.shown, "it leads back to a folder that it is in")
                continue
            yield entry
            chain = (entry.identity, above) if follows else ()
            waiting += [(*entry.inner(inner), chain) for inner in reversed(names)]


def read_attributes(file: int | str) -> dict[str, str]:
    """Return the user's extended attributes of a file or folder, as a tar header has them.

    GNU tar can't give them to what its owner may not write.
    """
    found: dict[str, str] = {}
    if sys.platform == "linux" and os.stat(file).st_mode & 0o200:
        with contextlib.suppress(OSError):
            for name in os.listxattr(file):
                if name.startswith("user."):
                    key = name.replace("%", "%25").replace("=", "%3D")
                    found[ATTRIBUTE + key] = os.fsdecode(os.getxattr(file, name))
    return found


def data_segments(fd: int, status: os.stat_result) -> list[tuple[int, int]]:
    """Return (start, length) of each part of a file that is not a hole."""
    size, end = status.st_size, 0
    if not hasattr(os, "SEEK_DATA") or status.st_blocks * 512 >= size:
        return [(0, size)]
    found = []
    try:
        while end < size:
            start = os.lseek(fd, end, os.SEEK_DATA)
            if start >= size:  # it has grown meanwhile
                break
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
            found.append((start, end - start))
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that a hole is all that is left
            return [(0, size)]
    return found


def sparse_map(segments: Sequence[tuple[int, int]], size: int) -> bytes:
    """Return what stands before a sparse file's data in a tar stream, "" where it has no holes.

    This is GNU tar's format 1.0.
    """
    if list(segments) == [(0, size)]:
        return b""
    pairs = [*segments, (size, 0)]
    numbers = [len(pairs), *(number for pair in pairs for number in pair)]
    text = b"".join(b"%d\n" % number for number in numbers)
    return text.ljust(-(-len(text) // 512) * 512, b"\0")


class Content:
    """A local file's bytes as they go into a tar stream; zeros stand for what can't be read.

    `lack` then tells why.
    """

    def __init__(self, copy: Copy, fd: int, status: os.stat_result) -> None:
        self._copy = copy
        self.fd = fd
        self._segments = data_segments(fd, status)
        self.map = sparse_map(self._segments, status.st_size)
        self.size = len(self.map) + sum(length for _, length in self._segments)
        self.lack = ""
        self._ready = bytearray(self.map)
        self._pieces = self._read_segments()
        copy.count(status.st_size + len(self.map) - self.size)  # the holes

    def read(self, size: int) -> bytes:
        while len(self._ready) < size:
            self._ready += next(self._pieces)
        data = bytes(self._ready[:size])
        del self._ready[:size]
        return data

    def _read_segments(self) -> Iterator[bytes]:
        for start, length in self._segments:
            end = start + length
            while start < end:
                piece = self._read_piece(start, min(end - start, 1 << 18))
                self._copy.count(len(piece))
                start += len(piece)
                yield piece

    def _read_piece(self, start: int, size: int) -> bytes:
        if self.lack:
            return bytes(size)
        try:
            os.lseek(self.fd, start, os.SEEK_SET)
            piece = os.read(self.fd, size)
            self.lack = "" if piece else SHORTER
        except OSError as error:
            piece, self.lack = b"", error.strerror or str(error)
        return piece or bytes(size)


class Packer:
    """Makes a tar stream for UPLOAD_SCRIPT of files, each with its name there.

    Without the end mark at its end nothing of it is put.
    """

    def __init__(self, copy: Copy, sources: Sequence[tuple[str, str]], style: CopyStyle) -> None:
        self._copy = copy
        self._sources = sources
        self._style = style
        self._linked: dict[tuple[int, int], str] = {}  # the names of files that have several
        self._torn: list[str] = []

    def measure(self) -> None:
        """Find out how much there is to copy."""
        total = 0
        for path, name in self._sources:
            for entry in walk_source(path, name, self._style, lambda name, why: None):
                total += entry.status.st_size if stat.S_ISREG(entry.status.st_mode) else 0
        self._copy.total = total

    def pack(self, stream: BinaryIO) -> None:
        import io
        import tarfile

        with tarfile.open(
            mode="w|", fileobj=stream, format=tarfile.PAX_FORMAT, bufsize=1 << 18,
            errors="surrogateescape",
        ) as archive:  # fmt: skip
            for path, name in self._sources:
                for entry in walk_source(path, name, self._style, self._copy.leave_out):
                    self._add(archive, entry)
            if self._torn:
                names = b"".join(os.fsencode(name) + b"\0" for name in self._torn)
                torn = tarfile.TarInfo(UPLOAD_TORN)
                torn.size = len(names)
                archive.addfile(torn, io.BytesIO(names))
            end = tarfile.TarInfo(UPLOAD_END)
            end.type, end.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(end)

    def _add(self, archive: tarfile.TarFile, entry: Entry) -> None:
        with contextlib.ExitStack() as opened:
            try:
                member, content = self._describe(entry, opened)
            except OSError as error:
                self._copy.leave_out(entry.shown, error)
                return
            archive.addfile(member, content)  # type: ignore[arg-type]
            self._copy.entries += 1
            if content:
                self._look_again(entry, content)

    def _describe(
        self, entry: Entry, opened: contextlib.ExitStack
    ) -> tuple[tarfile.TarInfo, Content | None]:
        """Return an entry's header, and a file's content; OSError for what is not copied."""
        member = header_of(entry.name, entry.status)
        if entry.is_folder:
            member.pax_headers = entry.attributes
            return member, None
        part, at = entry.tree.at(entry.place)
        if member.issym():
            member.linkname = os.readlink(part, **at)
            return member, None
        if member.isfifo():
            raise OSError(errno.EINVAL, NO_FILE)
        fd = entry.tree.open(entry.place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        opened.callback(os.close, fd)
        entry.status = os.fstat(fd)
        return self._describe_file(entry, fd)

    def _describe_file(self, entry: Entry, fd: int) -> tuple[tarfile.TarInfo, Content | None]:
        import tarfile

        member = header_of(entry.name, entry.status)
        if not member.isreg():
            raise OSError(errno.EINVAL, NO_FILE)
        first = self._linked.get(entry.identity)
        if first is not None:
            member.type, member.linkname = tarfile.LNKTYPE, first
            return member, None
        if not entry.status.st_size and os.read(fd, 1):
            raise OSError(errno.EINVAL, "it tells no size, as a file in /proc")
        content = Content(self._copy, fd, entry.status)
        member.size, member.pax_headers = content.size, read_attributes(fd)
        if content.map:
            folder, base = os.path.split(member.name)
            words = {"major": "1", "minor": "0", "name": member.name}
            words["realsize"] = str(entry.status.st_size)
            member.pax_headers |= {f"GNU.sparse.{key}": word for key, word in words.items()}
            member.name = f"{folder}/GNUSparseFile.0/{base}"
        return member, content

    def _look_again(self, entry: Entry, content: Content) -> None:
        """Take note of what a file that has been read has become meanwhile."""
        was, now = entry.status, os.fstat(content.fd)
        if content.lack or now.st_size < was.st_size:
            self._copy.leave_out(entry.shown, content.lack or SHORTER)
            self._torn.append(archive_name(entry.name))
            return
        if was.st_nlink > 1 and self._style.links != "all":
            self._linked[entry.identity] = archive_name(entry.name)
        if (was.st_size, was.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
            self._copy.changed.append(entry.shown)


def archive_name(name: str) -> str:
    return below("t", name) if name else "t"


def header_of(name: str, status: os.stat_result) -> tarfile.TarInfo:
    """Return the tar header of something local; the type of a special file is a FIFO's."""
    import tarfile

    header = tarfile.TarInfo(archive_name(name))
    header.mode, header.mtime = stat.S_IMODE(status.st_mode), status.st_mtime
    kinds = {
        stat.S_IFDIR: tarfile.DIRTYPE,
        stat.S_IFLNK: tarfile.SYMTYPE,
        stat.S_IFREG: tarfile.REGTYPE,
    }
    header.type = kinds.get(stat.S_IFMT(status.st_mode), tarfile.FIFOTYPE)
    return header


def sparse_segments(member: tarfile.TarInfo) -> list[tuple[int, int]] | None:
    """Return (start, length) of each part of a sparse file that is not a hole; None for others."""
    found: Any = member.sparse
    return found  # type: ignore[no-any-return]


class Bounded:
    """A stream that may give `left` bytes more, None for any number; Garbled after that."""

    def __init__(self, stream: BinaryIO, left: int) -> None:
        self._stream = stream
        self.left: int | None = left

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise Garbled("the sprite sent too much about one file")
        return data


class Unpacker:
    """Unpacks a tar stream of anybody's below `t` in a folder of ours, and nothing outside of it.

    Each name has to be that of a source, or lie below it. Links are made last, and they stand for
    themselves: nothing goes through one. (tarfile's own filter is not in every Python 3.11, and in
    some it can be got round.)
    """

    MAX_ABOUT_ONE = 16 << 20  # bytes of headers: long names, attributes, a map of holes

    def __init__(
        self, copy: Copy, folder: Tree, sources: Sequence[str], style: CopyStyle, umask: int
    ) -> None:
        self._copy = copy
        self._tree = folder
        self._sources = sources
        self._style = style
        self._hides = 0 if style.keeps_modes else umask
        # a folder that belongs to a group gives its own on; that did not come out of the sprite
        self._gives_group = folder.stat("").st_mode & stat.S_ISGID
        self._files: set[str] = set()
        self._made = {"t"}
        self._links: dict[str, tuple[str, float]] = {}
        self._folders: dict[str, tarfile.TarInfo] = {}
        self._theirs: dict[int, str] = {}  # the names that the sources have there
        self._twins: dict[str, str] = {}  # hard links, each with the name that came first

    @property
    def is_contents(self) -> bool:
        """Return whether it is what is in a folder, and not the folder."""
        return last_part(self._sources[0]) in ALL_IN_IT

    def has_come(self, source: str) -> bool:
        if self.is_contents:
            return "t" in self._folders
        path = below("t", last_part(source))
        return path in self._made or path in self._files or path in self._links

    def _source_of(self, path: str) -> str:
        """Return the source that a path of ours belongs to, as the user has named it."""
        if self.is_contents:
            return self._sources[0]
        name = path.split("/")[1]
        return next(source for source in self._sources if last_part(source) == name)

    def shown(self, path: str) -> str:
        """Return the user's words for a path of ours."""
        inner = path.split("/")[1 if self.is_contents else 2 :]
        source = self._source_of(path)
        return "/".join([source.rstrip("/"), *inner]) if inner else source

    def path_of(self, name: str) -> str:
        """Return where a name of the sprite's lies; Garbled where that is nowhere we asked for."""
        import re

        marks = re.match(r"(?:\.//?)*", name)
        bits = re.findall(r"\.(//?)", marks[0] if marks else "")
        number = sum(1 << place for place, bit in enumerate(bits) if bit == "//") - 1
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise Garbled(f"the sprite sent what was not asked for: {name}")
        if self.is_contents:
            return "/".join(["t", *parts])
        known = 0 <= number < len(self._sources) and bool(parts)
        if not known or self._theirs.setdefault(number, parts[0]) != parts[0]:
            raise Garbled(f"the sprite sent what was not asked for: {name}")
        return "/".join(["t", last_part(self._sources[number]), *parts[1:]])

    # what comes, as it comes

    def unpack(self, stream: BinaryIO) -> None:
        import tarfile

        if not stream.peek(1):  # type: ignore[attr-defined]
            return
        bounded: Any = Bounded(stream, self.MAX_ABOUT_ONE)
        archive: Any
        try:
            with tarfile.open(
                mode="r|", fileobj=bounded, bufsize=1 << 18, errors="surrogateescape"
            ) as archive:
                while member := archive.next():
                    bounded.left = None
                    archive.members, archive.pax_headers = [], {}  # it would keep them all
                    self._take_next(archive, member)
                    bounded.left = self.MAX_ABOUT_ONE
        except (tarfile.TarError, ValueError) as error:
            raise EOFError(f"the sprite sent a broken archive: {error}") from None
        bounded.left = None
        while stream.read(1 << 18):
            pass  # what tar sends behind the end

    def _take_next(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        holes = sparse_segments(member)
        if holes is not None:
            # tarfile takes the last one said of two names and sizes that a sparse file has
            member.name = member.pax_headers.get("GNU.sparse.name", member.name)
            member.size = int(member.pax_headers.get("GNU.sparse.realsize", member.size))
            data = sum(length for _, length in holes)
            archive.offset = member.offset_data + -(-data // 512) * 512
        self._take(archive, member)
        source: Any = archive.fileobj
        source.seek(archive.offset)

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self.path_of(member.name)
        if not all(map(fits_system, path.split("/"))):
            self._copy.leave_out(self.shown(path), "this system has no such names")
            return
        try:
            self._make(archive, member, path)
        except FileExistsError:
            raise self._clash(path) from None
        except OSError as error:
            bad_name = error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
            if not bad_name or path in self._files:
                raise OSError(error.errno, error.strerror, self.shown(path)) from None
            self._copy.leave_out(self.shown(path), error)

    def _clash(self, path: str) -> Garbled:
        """Return the error for a name that is there already.

        Most disks of macOS and Windows take names that differ in case or normal form for one.
        """
        if path in self._made or path in self._files:
            return Garbled(f"the sprite sent {self.shown(path)} twice")
        return Garbled(f"this disk takes {self.shown(path)} for another name of the sprite's")

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        first = self.path_of(member.linkname) if member.islnk() else ""
        is_source = path.count("/") == 1 and not self.is_contents
        if member.issym() and is_source and self._style.follows(self._source_of(path)):
            raise Garbled(f"the sprite sent a link in the place of {self.shown(path)}")
        if member.issym() or first in self._links:
            self._links[path] = self._links.get(first) or (member.linkname, member.mtime)
        elif member.isdir():
            self._make_folder(path)
            self._folders[path] = member
        elif member.isreg():
            self._make_folder(os.path.dirname(path))
            self._write(archive, member, path)
        elif first in self._files:
            self._make_folder(os.path.dirname(path))
            self._tree.link(first, path)
            self._files.add(path)
            self._twins[path] = first
        else:
            self._copy.leave_out(self.shown(path), NO_FILE)
            return
        self._copy.entries += 1

    def _make_folder(self, path: str) -> None:
        missing = [path]
        while missing[-1] and missing[-1] not in self._made:
            missing.append(os.path.dirname(missing[-1]))
        for folder in reversed(missing[:-1]):
            part, at = self._tree.at(folder)
            os.mkdir(part, 0o700, **at)
            self._made.add(folder)

    def _write(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        source: Any = archive.fileobj
        source.seek(member.offset_data)
        fd = self._tree.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._files.add(path)
        with open(fd, "wb") as file:
            holes = sparse_segments(member)
            segments = [(0, member.size)] if holes is None else holes
            self._copy.count(member.size - sum(length for _, length in segments))
            for start, length in segments:
                file.seek(start)
                self._pass_on(source, file, length)
            file.truncate(member.size)
            if Tree.BY_DESCRIPTOR:
                self._finish(fd, member)
        if not Tree.BY_DESCRIPTOR:
            self._finish(self._tree.at(path)[0], member)

    def _pass_on(self, source: BinaryIO, file: BinaryIO, length: int) -> None:
        while length > 0:
            data = source.read(min(length, 1 << 18))
            if not data:
                raise EOFError("the stream ended too early")
            file.write(data)
            self._copy.count(len(data))
            length -= len(data)

    def _finish(self, where: int | str, member: tarfile.TarInfo) -> None:
        """Give a file or folder what its header tells, as far as the disk takes it."""
        for key, text in member.pax_headers.items():
            if key.startswith(ATTRIBUTE + "user.") and sys.platform == "linux":
                name = key[len(ATTRIBUTE) :].replace("%3D", "=").replace("%25", "%")
                with contextlib.suppress(OSError):
                    os.setxattr(where, name, os.fsencode(text))
        mode = member.mode & 0o777 & ~self._hides
        mode |= self._gives_group if member.isdir() else 0
        try:
            os.chmod(where, mode)
        except OSError as error:
            if error.errno not in NOT_ABLE:
                raise
            self._copy.keeps_modes = False
        with contextlib.suppress(OSError):
            os.utime(where, (member.mtime, member.mtime))

    # when all has come

    def discard(self, path: str, why: str) -> None:
        """Leave out a file of which the sprite says that not all of it could be read."""
        first = self._twins.get(path, path)
        twins = [name for name, other in self._twins.items() if other == first]
        for name in {path, first, *twins}:
            self._copy.leave_out(self.shown(name), why)
            if name in self._files:
                part, at = self._tree.at(name)
                os.unlink(part, **at)
                self._files.remove(name)

    def finish(self) -> None:
        """Make the links, and give the folders their modes."""
        for path, (text, mtime) in self._links.items():
            self._make_link(path, text, mtime)
        for path, member in sorted(self._folders.items(), reverse=True):
            with self._tree.folder(path) as folder:
                self._finish(folder, member)

    def _make_link(self, path: str, text: str, mtime: float) -> None:
        folder = os.path.dirname(path)
        while folder:
            if folder in self._links:
                words = f"the sprite sent something through a link: {self.shown(path)}"
                raise Garbled(words)
            folder = os.path.dirname(folder)
        self._make_folder(os.path.dirname(path))
        part, at = self._tree.at(path)
        try:
            os.symlink(text, part, **at)
        except FileExistsError:
            raise self._clash(path) from None
        except OSError as error:
            self._copy.leave_out(self.shown(path), error)
            return
        if os.utime in os.supports_follow_symlinks:
            with contextlib.suppress(OSError):
                os.utime(part, (mtime, mtime), follow_symlinks=False, **at)


# What a disk says that lacks a thing
NOT_ABLE = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
NOT_IN_WINDOWS = (
    r'[<>:"|?*\\\0-\x1f]|[. ]$|'
    r"^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\xb9\xb2\xb3]) *(\.|$)"
)


def fits_system(name: str) -> bool:
    """Return whether this system takes a name of a sprite's for no more than a name."""
    if os.name != "nt":
        return True
    import re

    return not re.search(NOT_IN_WINDOWS, name, re.I)


# how it gets there and back


def run_copy(
    sprite: Sprite,
    argv: list[bytes],
    source: SocketInput | None,
    sink: Sink,
    copy: Copy | None = None,
) -> tuple[int, Kept]:
    """Run one side of a copy in a sprite; ThoptersError unless it ends well.

    Returns the status, 0 or one of those that DOWNLOAD_SCRIPT tells more by, and what came of
    stderr; the size of all there is to copy goes to `copy`.
    """
    import re

    errors = Kept()

    def note(data: bytes | memoryview) -> None:
        errors.take_first(data)
        size = re.search(rb"(?m)^thopters: size (\d{1,18})\n", errors[-len(data) - 64 :])
        if copy and size:
            copy.total = int(size[1])

    session = open_exec(sprite, {STREAM_STDOUT: sink, STREAM_STDERR: note})
    if source:
        source.is_always_read = True
    try:
        command = RemoteCommand(argv, hold_max_s=HOLD_MAX_S, with_keys=False)
        status = session.run(command, source)
    except ExecLost as lost:
        raise NoAnswerError(f"cannot tell whether all was copied: {lost}") from None
    except BaseException as error:
        if source and isinstance(error, Interrupted):  # all may just have been sent
            sprite.console.note(f"it is not known whether {sprite.name} has any of it")
        if group := session.await_group(GROUP_LIMIT_S):  # it has something to take away
            pass_signal_on(sprite, group, signal.SIGTERM)
        raise
    finally:
        session.close()
    if status not in (0, CHANGED, INCOMPLETE):
        words = lines_of(errors)
        why = without_our_names(words[0][:1000]) if words else ""
        why = why or f"the command in {sprite.name} ended with {status}"
        hint = NOT_PUT if status <= 2 or not source else "some of it may be in place"
        raise ThoptersError(f"cannot copy: {why}", hint=hint)
    return status, errors


def lines_of(said: bytes | bytearray) -> list[str]:
    return said.decode("utf-8", "replace").strip().splitlines()


def without_our_names(line: str) -> str:
    """Return what a program in a sprite says without the names of our temporary folders."""
    import re

    ours = r"\.thopters-cp\.[0-9a-f]{32}(/t(?=/|\W|$))?/?"
    line = re.sub(rf"(?<=['\"‘])[^'\"‘]*{ours}|[^\s:'\"‘]*{ours}", "", line)
    return re.sub(r"^(\S*/)?tar: t/", "tar: ", line)


def upload(
    sprite: Sprite, sources: Sequence[tuple[str, str]], target: bytes, style: CopyStyle
) -> Copy:
    """Copy local files and folders, each with its name there, into a sprite.

    One without a name is a folder whose content is copied.
    """
    import socket

    copy = Copy(sprite.console)
    packer = Packer(copy, sources, style)
    ours, theirs = socket.socketpair()
    argv = [b"bash", b"-c", UPLOAD_SCRIPT, b"thopters-cp", target, kind_of(sources), random_word()]
    if copy.shows_progress:
        in_background(packer.measure)
    thread = in_background(copy.run, packer.pack, theirs, "wb")
    try:
        with ours:
            run_copy(sprite, argv, SocketInput(ours), lambda data: None)
    except (OSError, ThoptersError) as error:
        thread.join()
        raise local_error(copy, error) from None
    finally:
        thread.join()
    return copy


def kind_of(sources: Sequence[tuple[str, str]]) -> bytes:
    """Return what UPLOAD_SCRIPT has to expect."""
    path, name = sources[0]
    if len(sources) > 1:
        return b"many"
    if not name:
        return b"contents"
    return b"folder" if os.path.isdir(path) else b"file"


def download(
    sprite: Sprite, sources: Sequence[str], folder: Tree, style: CopyStyle, umask: int
) -> Copy:
    """Copy files and folders of a sprite into `t` in a local folder, which is ours alone."""
    import socket

    copy = Copy(sprite.console)
    unpacker = Unpacker(copy, folder, sources, style, umask)
    ours, theirs = socket.socketpair()
    measures = b"1" if copy.shows_progress else b""
    words = [style.links.encode(), measures, *map(os.fsencode, sources)]
    argv = [b"bash", b"-c", DOWNLOAD_SCRIPT, b"thopters-cp", *words]
    thread = in_background(copy.run, unpacker.unpack, theirs, "rb")
    try:
        with ours:
            status, said = run_copy(sprite, argv, None, ours.sendall, copy)
    except (OSError, ThoptersError) as error:
        thread.join()
        raise local_error(copy, error) from None
    finally:
        thread.join()
    if not copy.is_whole:
        raise local_error(copy, copy.error or EOFError("the stream ended too early"))
    try:
        TarWords(copy, unpacker, sources).read(said, status)
        unpacker.finish()
    except (OSError, Garbled) as error:
        raise local_error(copy, error) from None
    return copy


REASONS = {  # by the beginning of what is said
    "File system": "it leads back to a folder that it is in",
    "File shrank": SHORTER,
    "File remove": "it has vanished",
    "socket igno": NO_FILE,
    "door ignore": NO_FILE,
    "Unknown fil": NO_FILE,
}


class TarWords:
    """What DOWNLOAD_SCRIPT and the programs that it runs say on stderr of single files."""

    DONE = "Exiting with failure status due to previous errors"
    FATAL = "Error is not recoverable: exiting now"

    def __init__(self, copy: Copy, unpacker: Unpacker, sources: Sequence[str]) -> None:
        self._copy = copy
        self._unpacker = unpacker
        self._sources = sources

    def read(self, said: Kept, status: int) -> None:
        """Take note of what was left out or has changed; Garbled where something else went wrong.

        A source that has not come is left out, whatever is said of it.
        """
        if len(said) >= said.LIMIT:
            raise Garbled("too many files can't be read in the sprite to name them all")
        copy = self._copy
        known = len(copy.left_out) + len(copy.changed)
        strange = [line for line in lines_of(said) if not self._understands(line)]
        is_explained = len(copy.left_out) + len(copy.changed) > known
        is_fatal = any(line.endswith(f"tar: {self.FATAL}") for line in strange)
        if is_fatal or (status == INCOMPLETE and not is_explained):
            raise Garbled(strange[0] if strange else "tar has failed in the sprite")
        if status == CHANGED and not is_explained:
            copy.changed.append("some of it")
        for source in self._sources:
            if not self._unpacker.has_come(source):
                copy.leave_out(source, "the sprite sent nothing")

    def _understands(self, line: str) -> bool:
        import re

        line = re.sub(r"^\S*/(?=(find|tar): )", "", line)
        if match := re.fullmatch(r"thopters: (\d{1,9}) (.+)", line):
            for source in self._sources[int(match[1]) - 1 :][:1]:
                self._copy.leave_out(source, match[2])
        elif match := re.fullmatch(r"find: (File system loop detected); '(.+)' is.*", line):
            return self._takes_note(match[2], match[1])
        elif match := re.fullmatch(r"find: '(.+)': (.+)", line):
            return self._takes_note(match[1], match[2])
        elif match := re.fullmatch(r"tar: ((?:\\.|[^\\:])+): (.+)", line):
            return match[2].startswith("Warning: ") or self._takes_note(match[1], match[2])
        return line.startswith("thopters: ") or line.endswith(f"tar: {self.DONE}")

    def _takes_note(self, name: str, what: str) -> bool:
        """Take note of what is said about a name; False where it is not one that was asked for."""
        try:
            path = self._unpacker.path_of(unescape(name))
        except Garbled:
            return False
        shown = self._unpacker.shown(path)
        if what == "file changed as we read it":
            self._copy.changed.append(shown)
        elif what.startswith(("File shrank by", "Read error")):
            self._unpacker.discard(path, REASONS.get(what[:11], what.rpartition(": ")[2]))
        else:
            self._copy.leave_out(shown, REASONS.get(what[:11], what.rpartition(": ")[2]))
        return True


def unescape(text: str) -> str:
    """Return the name that a program shows with escapes, as GNU's do."""
    import re

    letters = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))

    def decode(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code, 8)) if code[1:] else letters.get(code, code)

    plain = re.sub(r"(?s)\\([0-3][0-7]{2}|.)", decode, text)
    return os.fsdecode(plain.encode("latin-1", "replace"))


def random_word() -> bytes:
    return os.urandom(16).hex().encode()


def local_error(copy: Copy, error: Exception) -> ThoptersError:
    """Return the error that a copy ends with: ours, if that is what ended the other side.

    A stream that breaks off is what the other side's end does to ours.
    """
    is_effect = isinstance(copy.error, (ConnectionError, EOFError))
    is_theirs = is_effect and not isinstance(error, ConnectionError)
    cause = error if is_theirs or not copy.error else copy.error
    if isinstance(cause, ThoptersError):
        return cause
    what, why = "", str(cause)
    if isinstance(cause, OSError) and cause.strerror:
        what, why = f" {cause.filename}" if cause.filename else "", cause.strerror
    return ThoptersError(f"cannot copy{what}: {why}", hint=NOT_PUT)


# what has come gets its place


class Placing:
    """Puts what has come in one tree into another, as cp does: folders that are there are merged.

    `prefix` is what the user's words for a place there begin with.
    """

    def __init__(self, source: Tree, target: Tree, prefix: str) -> None:
        self._source = source
        self._target = target
        self._prefix = prefix
        self._moves: list[tuple[str, str]] = []

    def plan(self, source: str, target: str) -> None:
        """Take note of what is to be moved, and where to; ThoptersError where something clashes."""
        pairs = [(source, target)]
        while pairs:
            source, target = pairs.pop()
            is_folder = stat.S_ISDIR(self._source.stat(source).st_mode)
            status = self._look(target)
            there = stat.S_IFMT(status.st_mode) if status else None
            if status and is_folder and there == stat.S_IFDIR:
                if status.st_dev != self._source.stat("").st_dev:
                    words = f"{self._shown(target)} is on another disk; copy to it by itself"
                    raise ThoptersError(words, hint=NOT_PUT)
                self._source.unlock(source)  # its own mode is not put
                names = self._source.names(source)
                pairs += [(below(source, name), below(target, name)) for name in names]
            elif there == stat.S_IFDIR:
                raise self._clash(f"the folder {self._shown(target)}", "file")
            elif there not in (None, stat.S_IFREG, stat.S_IFLNK) or (is_folder and there):
                raise self._clash(self._shown(target), "folder" if is_folder else "file")
            else:
                self._moves.append((source, target))

    def _look(self, target: str) -> os.stat_result | None:
        try:
            return self._target.stat(target)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure(target, error, NOT_PUT) from None

    def _shown(self, target: str) -> str:
        return os.path.join(self._prefix, target)

    def _clash(self, what: str, kind: str) -> ThoptersError:
        return ThoptersError(f"cannot replace {what} by a {kind}", hint=NOT_PUT)

    def _failure(self, target: str, error: OSError, hint: str) -> ThoptersError:
        text = f"cannot put {self._shown(target)} in place: {error.strerror}"
        return ThoptersError(text, hint=hint)

    def put(self) -> None:
        for count, (source, target) in enumerate(self._moves):
            try:
                self.move(source, target)
            except OSError as error:
                hint = "some of it is in place" if count else NOT_PUT
                raise self._failure(target, error, hint) from None

    def move(self, source: str, target: str) -> None:
        """Rename, also where the owner may not write in one of the folders."""
        parent = os.path.dirname(target)
        mode, around = self._source.stat(source).st_mode, self._target.stat(parent).st_mode
        with contextlib.ExitStack() as after:
            if stat.S_ISDIR(mode) and not mode & 0o200 and Tree.BY_DESCRIPTOR:  # its `..` changes
                self._source.unlock(source)
                self._open(after, self._source, source, mode)
            if not around & 0o200:
                with contextlib.suppress(PermissionError):
                    self._open(after, self._target, parent, around)
            (old, old_at), (new, new_at) = self._source.at(source), self._target.at(target)
            fds = {"src_dir_fd": old_at.get("dir_fd"), "dst_dir_fd": new_at.get("dir_fd")}
            os.replace(old, new, **fds)

    def _open(self, after: contextlib.ExitStack, tree: Tree, name: str, mode: int) -> None:
        """Have its owner write in a folder for the time."""
        folder = after.enter_context(tree.folder(name))
        os.chmod(folder, stat.S_IMODE(mode) | 0o200)
        after.callback(os.chmod, folder, stat.S_IMODE(mode))


class Workshop:
    """A folder of ours beside the place of what comes, gone in the end with all that is in it."""

    def __init__(self, place: Tree) -> None:
        self._place = place
        self._name = f".thopters-cp.{random_word().decode()}"
        self._tree: Tree | None = None
        self.umask = 0o077

    def __enter__(self) -> Workshop:
        return self

    def open(self) -> Tree:
        """Make the folder, and `t` in it."""
        part, at = self._place.at(self._name)
        self.umask = os.umask(0o077)
        try:
            os.mkdir(part, 0o700, **at)
            return self._open()
        except OSError as error:
            place = self._place.path.rstrip("/") or "/"
            raise ThoptersError(f"cannot write to {place}: {error.strerror}") from None
        finally:
            os.umask(self.umask)

    def _open(self) -> Tree:
        """Open the folder; OSError where somebody has put another one in its place."""
        tree = Tree(self._name, within=self._place)
        if not tree.names(""):
            self._tree = tree
            tree.unlock("")
            part, at = tree.at("t")
            os.mkdir(part, 0o700, **at)
            if tree.stat("").st_uid == tree.stat("t").st_uid:
                return tree
        raise OSError(errno.EBUSY, "somebody else has put a folder in the place of ours")

    def __exit__(self, *exc: object) -> None:
        if self._tree:
            with self._tree:
                self._remove_all(self._tree)
        part, at = self._place.at(self._name)
        with contextlib.suppress(OSError):
            os.rmdir(part, **at)

    def _remove_all(self, tree: Tree) -> None:
        try:
            remove_all(tree)
        except Interrupted:
            remove_all(tree)  # by the same wish we are not interrupted twice
            raise


def remove_all(tree: Tree) -> None:
    """Remove what is in a folder of ours, also where its owner may not write."""
    folders = [""]
    for folder in folders:
        with contextlib.suppress(OSError):
            tree.unlock(folder)
            for entry in tree.names(folder):
                name = below(folder, entry)
                part, at = tree.at(name)
                if stat.S_ISDIR(tree.stat(name).st_mode):
                    folders.append(name)
                else:
                    os.unlink(part, **at)
    for folder in reversed(folders[1:]):
        part, at = tree.at(folder)
        with contextlib.suppress(OSError):
            os.rmdir(part, **at)


# what the user asks for


def split_path(text: str) -> tuple[str | None, str]:
    """Return the sprite and the path of NAME:PATH or .:PATH; None for a local path, as ./a:b.

    The home's own name becomes one for what is in it.
    """
    name, colon, path = text.partition(":")
    is_drive = os.name == "nt" and len(name) == 1 and name.isalpha()
    if not colon or not name or "/" in name or is_drive:
        return None, text
    user = path.partition("/")[0]
    if user.startswith("~") and user != "~":
        hint = f"a file of that name is {name}:./{path}"
        raise UsageError(f"cp knows your own home in {name} alone, and not {user}", hint=hint)
    if name != HERE:
        name = valid_pattern(name) if is_pattern(name) else valid_name(name)
    return name, "~/." if path.rstrip("/") == "~" else path


def copy_in(sprite: Sprite, sources: list[str], target: str, style: CopyStyle) -> int:
    if "-" in sources:
        if len(sources) > 1:
            raise UsageError("- stands for one file, and can't be copied with others")
        return copy_stdin(sprite, os.fsencode(target))
    if not any(map(os.path.lexists, sources)):
        raise ThoptersError(f"there is no {sources[0]}")
    named = [(path, last_part(path)) for path in sources]
    check_names([last for _, last in named])
    if named[0][1] in ALL_IN_IT:
        named = [(named[0][0], "")]
    with sprite.console.working(f"copying to {sprite.name}"):
        copy = upload(sprite, named, os.fsencode(target), style)
    if not copy.entries:
        raise nothing_copied(sprite, copy)
    return report_copy(sprite, copy)


class EndedInput(LocalInput):
    """Our stdin, and behind its end a word: to be cut off does not look like that."""

    def __init__(self, word: bytes) -> None:
        super().__init__()
        self._words = [word]

    def read(self) -> bytes:
        return super().read() or (self._words.pop() if self._words else b"")


def copy_stdin(sprite: Sprite, target: bytes) -> int:
    word = random_word()
    argv = [b"bash", b"-c", FILE_SCRIPT, b"thopters-cp", target, word, random_word()]
    with sprite.console.working(f"copying to {sprite.name}"):
        run_copy(sprite, argv, EndedInput(word), lambda data: None)
    return EXIT_OK


def copy_to_stdout(sprite: Sprite, source: str) -> int:
    sys.stdout.flush()
    binary_streams()
    argv = [b"bash", b"-c", SHOW_SCRIPT, b"thopters-cp", os.fsencode(source)]
    run_copy(sprite, argv, None, write_stdout)
    return EXIT_OK


def copy_out(sprite: Sprite, sources: list[str], target: str, style: CopyStyle) -> int:
    if target == "-":
        if len(sources) > 1:
            raise UsageError("- stands for one file")
        return copy_to_stdout(sprite, sources[0])
    names = [last_part(path) for path in sources]
    check_names(names)
    into = check_target(target, len(sources))
    prefix = target if into else os.path.dirname(target.rstrip("/"))
    try:
        place = Tree(target if into else f"{prefix or '.'}/")
    except OSError as error:
        raise ThoptersError(f"cannot write to {prefix or '.'}: {error.strerror}") from None
    with place, Workshop(place) as workshop:
        folder = workshop.open()
        with sprite.console.working(f"copying from {sprite.name}"):
            copy = download(sprite, sources, folder, style, workshop.umask)
        if not copy.entries:
            raise nothing_copied(sprite, copy)
        placing = Placing(folder, place, prefix)
        new = "" if into else last_part(target)
        if last_part(sources[0]) in ALL_IN_IT:
            placing.plan("t", new)
        else:
            for entry in folder.names("t"):
                check_folder(folder, below("t", entry), new and target)
                placing.plan(below("t", entry), new or entry)
        with SignalsWait():
            placing.put()
    return report_copy(sprite, copy)


def check_target(target: str, count: int) -> bool:
    """Return whether it is a folder to copy into; ThoptersError where it can't be the target.

    Nothing is written through a link, which a sprite may have sent in a copy before.
    """
    if os.path.isdir(target):
        if os.path.islink(target):
            hint = f"to copy into that directory: {target}/"
            raise ThoptersError(f"{target} is a link to a directory", hint=hint)
        return True
    is_new_folder = target.endswith("/") and not os.path.lexists(target.rstrip("/"))
    if count > 1 or not target or (target.endswith("/") and not is_new_folder):
        raise ThoptersError(f"{target or repr(target)} is not a directory")
    return False


def check_folder(tree: Tree, name: str, target: str) -> None:
    """Raise ThoptersError where something else than a folder should become a folder."""
    if target.endswith("/") and not stat.S_ISDIR(tree.stat(name).st_mode):
        raise ThoptersError(f"{target} is not a directory", hint=NOT_PUT)


def last_part(path: str) -> str:
    return os.path.basename(path.rstrip("/"))


def check_names(names: list[str]) -> None:
    """Raise UsageError where two sources would be one file."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two of the files would be {twice!r}")
    if len(names) > 1 and set(names) & set(ALL_IN_IT):
        raise UsageError("what is in a directory can't be copied with others")


def nothing_copied(sprite: Sprite, copy: Copy) -> ThoptersError:
    """Say what was left out, and return the error for a copy that has copied nothing."""
    name = next(iter(copy.left_out))
    why = copy.left_out.pop(name)
    report_copy(sprite, copy)
    return ThoptersError(f"cannot copy {name}: {why}", hint=NOT_PUT)


def report_copy(sprite: Sprite, copy: Copy) -> int:
    """Say what was left out, which makes it a failure, as with cp, and what may be torn."""
    for name in copy.changed:
        sprite.console.warn(f"{name} changed while it was read")
    for name, why in copy.left_out.items():
        sprite.console.warn(f"left out: {name}: {why}")
    if not copy.keeps_modes:
        sprite.console.warn("the disk here does not keep modes")
    return EXIT_FAILED if copy.left_out else EXIT_OK


# --- record -----------------------------------------------------------------------------

# Which sprites the configuration's keys are in, kept in a file beside it. Who gets keys is decided
# by this file and by what the user names, never by what a sprite says. A sprite stands in it by its
# id, so one that was made anew under the same name is another one.
#
# The record holds no value and no digest of one. What tells whether a value in a sprite is ours
# lies in the sprite itself, and comes back with its disk: a mark of each value that was put in, a
# digest under a key that stays here (Seal). So a sprite can't make such a mark for another value,
# and nobody learns anything of a value from one.
#
# Each push has a number. A sprite whose newest push (`wanted`) is not the one that it has
# (`generation`) is pending: it slept, or the program was killed before the push was over. So the
# number is written before a push, and once more behind it.


KEY_BYTES = 32  # of the key that the digests of all sprites are made under


class Seal:
    """Keyed digests of the values in one sprite."""

    def __init__(self, key: bytes, identity: str) -> None:
        self._key = key
        self._identity = identity[-36:].encode()

    def _keyed(self, *parts: bytes) -> str:
        import hmac

        return hmac.digest(self._key, b"\0".join((self._identity, *parts)), "sha256").hex()

    @property
    def salt(self) -> bytes:
        """Return what stands before a value in its digest there; another one for each sprite."""
        return self._keyed(b"salt").encode()

    def digest(self, name: str, value: bytes) -> str:
        """Return the digest that the sprite tells of a variable with this value."""
        import hashlib

        return hashlib.sha256(self.salt + name.encode() + b"=" + value).hexdigest()

    def mark(self, name: str, digest: str) -> str:
        """Return the mark of a value with this digest that was put in from here."""
        return self._keyed(b"mark", name.encode(), digest.encode())


def whole_number(value: object) -> int:
    """Return a number as it is; TypeError for everything else."""
    if type(value) is not int:
        raise TypeError
    return value


class Holder:
    """A sprite that keys were put into, as the record has it.

    `keys` are their names; `since` is when the first push began, an RFC 3339 stamp.
    """

    __slots__ = ("generation", "id", "keys", "name", "organization", "since", "wanted")

    def __init__(self, identity: str, item: dict[str, Any]) -> None:
        self.id = identity
        self.name = str(item["name"])
        self.organization = str(item["organization"])
        self.keys = sorted(map(str, item["keys"]))
        self.since = str(item["since"])
        self.generation = whole_number(item["generation"])
        self.wanted = whole_number(item["wanted"])

    @property
    def is_pending(self) -> bool:
        return self.generation < self.wanted


class Record:
    """The file beside the configuration that names the sprites with its keys.

    Without a place for it, as where the configuration comes by a pipe, nothing is recorded.
    """

    VERSION = 1

    def __init__(self, config: Config | None) -> None:
        import threading

        self.config = config
        self._turn = threading.Lock()  # a file system may have no locks
        has_place = config is not None and not is_placeless(config.real_path)
        self.path = f"{config.real_path}.record" if config and has_place else ""
        self._document: dict[str, Any] = {
            "key": os.urandom(KEY_BYTES).hex(),
            "generation": 0,
            "sprites": {},
        }
        self._is_read = False

    def holders(self) -> list[Holder]:
        """Return the sprites with keys by name; ThoptersError where the file is not a record."""
        self._read()
        found = [Holder(*pair) for pair in self._document["sprites"].items()]
        return sorted(found, key=lambda holder: holder.name)

    def holder(self, info: SpriteInfo) -> Holder | None:
        """Return what is known of the very sprite that the API tells of."""
        wanted = info.id[-36:]
        return next((item for item in self.holders() if wanted and item.id == wanted), None)

    def seal(self, info: SpriteInfo) -> Seal:
        self._read()
        return Seal(bytes.fromhex(self._document["key"]), info.id)

    def begin(
        self, pushes: Sequence[tuple[SpriteInfo, Iterable[str]]], now: datetime.datetime
    ) -> int:
        """Note that keys are about to go into sprites, or will; return the number of that push.

        `now` is by the server's clock, as the times of checkpoints are.
        """
        number = 0

        def change(document: dict[str, Any]) -> None:
            nonlocal number
            document["generation"] = number = document["generation"] + 1
            for info, keys in pushes:
                made = {"since": format_time(now), "generation": 0, "keys": []}
                item = document["sprites"].setdefault(info.id[-36:], made)
                item |= {"name": info.name, "organization": info.organization, "wanted": number}
                item["keys"] = sorted({*item["keys"], *keys})

        pushes = [push for push in pushes if push[0].id]
        if pushes:
            self._update(change)
        return number

    def finish(self, info: SpriteInfo, keys: Iterable[str], generation: int) -> None:
        """Note that the keys of a push are in a sprite, and no others of ours; 0 is no push."""

        def change(document: dict[str, Any]) -> None:
            item = document["sprites"].get(info.id[-36:])
            if item:  # else it was destroyed meanwhile
                item["keys"] = sorted(keys)
                item["generation"] = max(item["generation"], generation)

        if generation:
            self._update(change)

    def forget(self, *identities: str) -> None:
        """Take out sprites that are no more."""
        gone = {identity[-36:] for identity in identities}
        if gone & {holder.id for holder in self.holders()}:
            self._update(lambda document: [document["sprites"].pop(one, None) for one in gone])

    def forget_before(self, info: SpriteInfo) -> None:
        """Take out those that had the name of a sprite before it was made."""
        self.forget(
            *(
                holder.id
                for holder in self.holders()
                if (holder.name, holder.organization) == (info.name, info.organization)
                and holder.id != info.id[-36:]
            )
        )

    def _read(self) -> None:
        if self._is_read:
            return
        document = read_json_file(self.path, self._check) if self.path else None
        if document is not None:
            self._check_document(document)
            self._document = document
        self._is_read = True

    def _check_document(self, document: dict[str, Any]) -> None:
        try:
            if document["version"] > self.VERSION:
                raise ThoptersError(
                    f"{self.path} was written by a newer thopters", hint="update this thopters"
                )
            if len(bytes.fromhex(document["key"])) < KEY_BYTES:
                raise ValueError
            whole_number(document["generation"])
            for pair in document["sprites"].items():
                Holder(*pair)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ThoptersError(
                f"{self.path} is not a record of thopters",
                hint="move it away: then no sprite gets keys unless you name it",
            ) from None

    def _check(self, status: os.stat_result) -> None:
        if os.name == "posix" and status.st_uid not in (os.geteuid(), 0):
            raise NotOursError(f"{self.path} belongs to another user, so it is not used")

    def _update(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the newest record, and save it; where that can't be, a warning says so."""
        import json

        if not self.path or self.config is None:
            return
        try:
            with self._turn, self.config.locked():
                self._is_read = False
                self._read()
                change(self._document)
                self._document["version"] = self.VERSION
                replace_file(self.path, json.dumps(self._document, indent=2).encode() + b"\n")
        except OSError as error:
            self.config.console.warn_once(
                f"cannot write {self.path} ({error.strerror}): it is not recorded which sprites "
                "have keys, so later ones reach only those that you name"
            )


# --- keys -------------------------------------------------------------------------------

# Putting the user's keys and git identity into a sprite.

INIT_LIMIT_S = 120.0
MOST_VALUE_BYTES = 128 << 10  # of a key: no program's environment takes a longer one
# What runs in a sprite to put the keys in. It is constant: everything of the user's comes on its
# stdin, each part with a NUL behind it, so that no value is ever program text or on a command
# line, and a request cut short changes nothing. It is careful with start-up files: one block of
# ours at their top, once, and a file is replaced whole or not at all. It prints `warn TEXT` and
# `fail TEXT` lines, and the last line only when all that it promises has been seen to be so.
INIT_SCRIPT = rb"""
umask 077
export LC_ALL=C GIT_TERMINAL_PROMPT=0 GIT_ASKPASS=true
for part in keep values names digest user email salt marks stay end; do
  export -n "$part"
  IFS= read -r -d '' "$part" || { echo 'the keys did not arrive whole' >&2; exit 1; }
done
see_all=$1 see_each=$2 failed=
cd ~ || exit
warn() { printf 'warn %s\n' "$*"; }
fail() { printf 'fail %s\n' "$*"; failed=1; }
limit=(timeout -k 1 5)
command -v timeout > /dev/null || limit=()
mkdir -p .thopters && chmod 700 .thopters || exit 1
if command -v flock > /dev/null; then
  exec 7> .thopters/lock
  flock -w 20 7 || { echo 'another init is at work in this sprite' >&2; exit 1; }
fi

# the environment file; an older PAT of ours is taken back while we still know it
env=$PWD/.thopters/env
pat_of() { (unset GITHUB_PAT; . "$1" && printf %s "$GITHUB_PAT") 2> /dev/null; }
env_pat=$(pat_of "$env")
credential() {
  {
    printf 'protocol=https\nhost=github.com\n'
    [ -z "$repository" ] || printf 'path=%s\n' "$repository"
    [ -z "$2" ] || printf 'username=%s\n' "$2"
    [ -z "$3" ] || printf 'password=%s\n' "$3"
    echo
  } | "${limit[@]}" git $1 2> /dev/null 7>&-
}
ours=x-access-token repository=
stored() {
  local said
  said=$(credential "${2:-credential fill}" "$1")
  [ -z "$1" ] || [[ $'\n'$said$'\n' == *$'\n'"username=$1"$'\n'* ]] || return
  printf '%s\n' "$said" | sed -n 's/^password=//p'
}
stored_for_repository() { local repository=thopters/any.git; stored ''; }  # as git asks
rewritten() {  # the ways in which git puts another address in the place of github.com's
  local key from
  while IFS= read -r -d '' key; do
    from=${key#*$'\n'} key=${key%%$'\n'*}
    [[ https://github.com/ == "$from"* || $from == https://github.com/* ]] && echo "${key##*.}"
  done < <(git config -z --get-regexp '^url\..*\.(push)?insteadof$') | sort -u
}
in_store() { stored "$ours" 'credential-store get'; }
digest_of() { printf '%s=%s' "$salt" "$1" | sha256sum; }
is_of_before() {
  [ -n "$1" ] && [ "$1" != "$pat" ] || return
  [ "$1" = "$env_pat" ] || [ "$(digest_of "$1")" = "$(cat .thopters/pat 2> /dev/null)" ]
}
has_git() { command -v git > /dev/null; }
names_in() { sed -n 's/^export \([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' "$1" 2> /dev/null; }
names_before=$(names_in "$env")
kept() {  # what was changed here and is to stay
  local name
  for name in $stay; do
    (set -- "$name" "'" "'\"'\"'"; . "$env"; printf "export %s='%s'\n" "$1" "${!1//$2/$3}")
  done 2> /dev/null
}
mark() {  # while both files change there are marks for the values of before and of now
  printf '%s\n' "$@" > .thopters/marks.new && mv -fT .thopters/marks.new .thopters/marks
}
new=$env.new
if [ -z "$keep" ] || [ ! -e "$env" ]; then
  why=$({ printf %s "$values" > "$new" && kept >> "$new" && bash -n "$new"; } 2>&1) ||
    { rm -f "$new"; fail "~/.thopters/env can't be written: ${why##*: }"; exit 1; }
  (. "$new"; exec env) > /dev/null 2>&1 ||
    { rm -f "$new"; fail "the values are too large for a program's environment"; exit 1; }
  pat=$(pat_of "$new")
  if has_git; then
    for old_pat in "$(stored "$ours")" "$(in_store)"; do
      is_of_before "$old_pat" || continue
      credential 'credential reject' "$ours" "$old_pat"
      credential 'credential-store erase' "$ours" "$old_pat"
    done
  fi
  mark "$marks" "$(cat .thopters/marks 2> /dev/null)" && mv -fT "$new" "$env" ||
    { rm -f "$new"; exit 1; }
  mark "$marks" || exit 1
fi
pat=$(pat_of "$env")

# the shells' start-up files
block='# >>> thopters >>>
if [ -r ~/.thopters/env ]; then . ~/.thopters/env; fi
# <<< thopters <<<'
marks='>>> thopters >>>|<<< thopters <<<'
is_hooked() {
  local text
  text=$(tr -d '\0' < "$1"; echo .)
  [ "$(grep -acE "$marks" < "$1")" = 2 ] && [[ $'\n'$text == *$'\n'"$block"$'\n'* ]]
}
hook() {
  local real
  real=$(readlink -f -- "$1") || { fail "~/$1 links to nowhere"; return; }
  if [ -e "$real" ]; then
    [ -f "$real" ] && [ -r "$real" ] && [ -w "$real" ] || { fail "~/$1 can't be changed"; return; }
    is_hooked "$real" && return
    ! grep -aqE "$marks" < "$real" ||
      { fail "~/$1 holds thopters lines in disorder and was left as it is: remove them"; return; }
  fi
  prepend "$real" || fail "~/$1 can't be changed"
}
prepend() {
  local new=$1.thopters-new  # one at most is left behind, however often we are killed
  command -v flock > /dev/null || new+=.$$  # then two of us may be here
  rm -f -- "$new" && (umask 077 && : > "$new") || return
  { [ ! -e "$1" ] || cp -p -- "$1" "$new"; } &&
    { printf '%s\n' "$block" && { [ ! -e "$1" ] || cat -- "$1"; }; } > "$new" &&
    mv -fT -- "$new" "$1" && return
  rm -f -- "$new"
  return 1
}
files=(.bashrc .profile)
for file in .bash_profile .bash_login; do [ ! -e "$file" ] || files+=("$file"); done
command -v zsh > /dev/null && files+=(.zshenv)
for file in "${files[@]}"; do hook "$file" 2> /dev/null; done

# git
identity() {
  local why
  [ -z "$2" ] || [ "$(git config --global "$1")" = "$2" ] ||
    why=$(git config --global --replace-all "$1" "$2" 2>&1) ||
    { fail "git can't set $1: $why"; return; }
  [ -z "$2" ] || [ "$(. "$env"; git config "$1")" = "$2" ] || warn "git has another $1"
}
helper=credential.https://github.com.helper
if ! has_git; then
  warn 'git is not installed, so nothing of it was set'
else
  identity user.name "$user"
  identity user.email "$email"
  if [ -n "$pat" ]; then
    git config --global --get-all "$helper" | grep -qxF store ||
      git config --global --add "$helper" store
    theirs=$(in_store)
    [ -z "$theirs" ] || [ "$theirs" = "$pat" ] || is_of_before "$theirs" ||
      warn "GITHUB_PAT took the place of another credential of $ours in git's store"
    credential 'credential approve' "$ours" "$pat"
    if [ "$(stored '')" != "$pat" ]; then
      warn 'git uses other credentials for github.com than GITHUB_PAT'
    elif [ "$(stored_for_repository)" != "$pat" ]; then
      warn 'git does not use GITHUB_PAT: credential.useHttpPath makes it ask for each repository'
    fi
    for way in $(rewritten); do
      warn "git does not use GITHUB_PAT where url.*.$way gives github.com another address"
    done
  fi
  left=$(in_store) still=
  ! is_of_before "$left" && ! is_of_before "$(stored "$ours")" || still=1
  if [ -n "$keep" ]; then
    :
  elif [ -n "$still" ]; then
    fail 'an older GITHUB_PAT is still in the credentials of git, and could not be taken out'
  else
    [ -z "$left" ] || [ -n "$pat" ] ||
      warn "git's store has a credential of $ours that is not from here; it was left"
    if [ -n "$pat" ]; then digest_of "$pat" > .thopters/pat; else rm -f .thopters/pat; fi
  fi
fi

# what a fresh shell sees of the variables; its answer goes to a file, for what it leaves running
# would hold a pipe open
look() {
  env -i HOME="$PWD" PATH="$PATH" SHELL=/bin/bash TERM=dumb \
    "${limit[@]}" "$@" 8> .thopters/look 9<<< "$salt"$'\n'"$names" < /dev/null > /dev/null 2>&1 7>&-
}
differing() {
  look "$@" "$see_each"
  sort .thopters/look > .thopters/seen
  look bash -c "$load$see_each"
  grep -vxFf .thopters/seen .thopters/look | while read -r name _; do printf ' %s' "$name"; done
}
check() {
  local way=$1 seen
  shift
  look "$@" "$see_all"
  [ $? != 124 ] || warn "the start-up files of $way take longer than 5 s"
  read -r seen _ < .thopters/look
  if [ -z "$seen" ]; then
    warn "it could not be seen which variables $way has: it ended early, or hangs"
  elif [ "$seen" != "$digest" ]; then
    warn "$way has other values of its own for:$(differing "$@")"
  fi
}
load='if [ -r ~/.thopters/env ]; then . ~/.thopters/env; fi; '
if [ -n "$names" ]; then
  look bash -c "$load$see_all"
  read -r seen _ < .thopters/look
  [ "$seen" = "$digest" ] || fail 'commands do not see the variables as they were sent'
  check 'bash -lc' bash -lc
  check 'bash -ic' bash -ic
  ! command -v zsh > /dev/null || check 'zsh -c' zsh -c
  rm -f .thopters/look .thopters/seen
fi

# a tmux server keeps the variables with which it was started, and gives them to what it starts
value_of() { (unset "$1"; . "$env"; eval "printf %s \"\${$1-}\"") 2> /dev/null; }
in_tmux() { "${limit[@]}" tmux -u -S "$1" show-environment -g ${2+"$2"} 2> /dev/null 7>&-; }
stale_in() {
  local held name
  held=$'\n'$(in_tmux "$1") || return
  for name in $(printf '%s\n' $names_before $(names_in "$env") | sort -u); do
    [[ $held == *$'\n'"$name="* ]] || continue
    [ "$(in_tmux "$1" "$name")" = "$name=$(value_of "$name")" ] || printf ' %s' "$name"
  done
}
tell_stale() {
  local socket stale
  command -v tmux > /dev/null || return
  for socket in "${TMUX_TMPDIR:-/tmp}/tmux-$UID"/*; do
    [ -S "$socket" ] && stale=$(stale_in "$socket") && [ -n "$stale" ] || continue
    warn "a running tmux server has other values for:$stale (take one out: tmux setenv -gu NAME)"
  done
}
tell_stale
[ -z "$failed" ] || exit 3
echo thopters-init-ok
"""
INIT_PROOF = "thopters-init-ok"
INIT_LACKS = 3  # its exit status where the keys are in place, and something else is not
# In the shell that is looked at: what stands before the values in their digest, and names, come on
# descriptor 9, digests go to 8, as in
#   while IFS= read -r _thopters; do eval "printf '%s\0' \"\${$_thopters-}\""; done <&9 | sha256sum
SEE = rb"""eval "printf '%s\\0' \"\${$_thopters-}\"" """
NO_TRACE = b"{ set +x; } 2>/dev/null; "  # a start-up file may have all commands logged, values too
SALT = b'IFS= read -r _thopters; set -- "$_thopters"; '
NEXT = b"while IFS= read -r _thopters; do "
SEE_ALL = NO_TRACE + (
    b"{ " + SALT + b'printf %s "$1"; ' + NEXT + SEE + b"; done; } <&9 | sha256sum >&8"
)
SEE_EACH = NO_TRACE + (
    b"{ "
    + SALT
    + NEXT
    + b'{ printf \'%s \' "$_thopters"; { printf %s "$1"; '
    + SEE
    + b"; } | sha256sum; } >&8; done; } <&9"
)
# What a sprite has in its environment file: the marks in it, and the digest of each variable. The
# file may hold anything by now, so each variable is looked at in a shell of its own
LOOK_SCRIPT = rb"""
export LC_ALL=C
IFS= read -r -d '' salt || exit 1
cd ~ || exit 1
env=$PWD/.thopters/env
if [ -r "$env" ]; then
  sed -n 's/^[0-9a-f]\{64\}$/mark &/p' .thopters/marks 2> /dev/null
  for name in $(sed -n 's/^export \([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' "$env" | sort -u); do
    digest=$(
      set -o pipefail
      (
        set -- "$salt" "$name"
        unset -v "$2"
        . "$env" > /dev/null 2>&1
        [ "${!2+set}" ] && printf '%s%s=%s' "$1" "$2" "${!2}"
      ) | sha256sum
    ) && printf 'key %s %s\n' "$name" "${digest%% *}"
  done
fi
echo thopters-look-ok
"""
LOOK_PROOF = "thopters-look-ok"
CURRENT, OLD, MISSING = "current", "old", "missing"
CHANGED_THERE, NOT_CONFIGURED = "changed there", "not in the configuration"


def secret_values(config: Config | None, name: str) -> dict[str, bytes]:
    """Return the variables that the sprite of this name is to have."""
    secrets = config.secrets_for(name) if config else {}
    return {
        key: secret.reveal().encode("utf-8", "surrogateescape") for key, secret in secrets.items()
    }


class Keys:
    """The keys that sprites may get, and the record of which have some."""

    def __init__(self, config: Config | None) -> None:
        self.config = config
        self.record = Record(config)

    @property
    def is_configured(self) -> bool:
        """Return whether there is a configuration; without one the keys in sprites are kept."""
        return self.config is not None and self.config.exists

    def values_for(self, name: str) -> dict[str, bytes]:
        """Return the variables that the sprite of this name is to have."""
        return secret_values(self.config, name)

    def may_go_unasked(self, info: SpriteInfo) -> bool:
        """Return whether this very sprite has got keys from here before."""
        return self.record.holder(info) is not None


def env_lines(values: Mapping[str, bytes]) -> bytes:
    """Return what ~/.thopters/env holds in a sprite that has these variables."""
    return b"".join(
        b"export %s=%s\n" % (name.encode(), quote_argument(value)) for name, value in values.items()
    )


def init_data(config: Config | None, name: str, seal: Seal, stay: Sequence[str] = ()) -> bytes:
    """Return the script's input for the sprite of a name, by whose `seal` the values are marked.

    Without a configuration file the keys there are kept. So are the variables in `stay`.
    """
    import hashlib

    values = secret_values(config, name)
    sent = {key: value for key, value in values.items() if key not in stay}
    all_values = b"".join(value + b"\0" for value in sent.values())
    marks = [seal.mark(key, seal.digest(key, value)) for key, value in sent.items()]
    parts = [
        b"" if config and config.exists else b"keep",
        env_lines(sent),
        "\n".join(sent).encode(),
        hashlib.sha256(seal.salt + all_values).hexdigest().encode(),
        to_bytes(config.git_user) if config else b"",
        to_bytes(config.git_email) if config else b"",
        seal.salt,
        "\n".join(marks).encode(),
        "\n".join(stay).encode(),
        b"end",
    ]
    return b"".join(part + b"\0" for part in parts)


class InitFailedError(ThoptersError):
    """The sprite says that not all is as it should be; `has_keys` where the keys are in it."""

    has_keys = False


def run_init(sprite: Sprite, data: bytes) -> list[str]:
    """Put the keys into a sprite and return what is to be warned of.

    Raises NoAnswerError where the outcome is unknown, InitFailedError where it is not as it should.
    Doing it again is harmless.
    """
    how = f"when that is mended, put them in: thopters init {sprite.name}"
    try:
        status, out, err = retry_cut(
            sprite,
            lambda: run_script(
                sprite,
                INIT_SCRIPT,
                SEE_ALL,
                SEE_EACH,
                data=data,
                statuses=range(256),  # it has its own proof
                limit_s=INIT_LIMIT_S,
            ),
            twice_is_once=True,
        )
    except ExecLost as lost:
        raise NoAnswerError(
            f"cannot tell whether the keys are in {sprite.name}: {lost}",
            hint=f"put them in again: thopters init {sprite.name}",
        ) from None
    lines = out.decode("utf-8", "replace").splitlines()
    if status or lines[-1:] != [INIT_PROOF]:
        failures = [line[5:] for line in lines if line.startswith("fail ")]
        words = err.decode("utf-8", "replace").strip().splitlines()
        why = "; ".join(failures or words[-1:]) or f"the script ended with {status}"
        error = InitFailedError(f"cannot put all keys into {sprite.name}: {why}", hint=how)
        error.has_keys = status == INIT_LACKS
        raise error
    return [line[5:] for line in lines if line.startswith("warn ")]


def look_at_keys(sprite: Sprite, seal: Seal, values: Mapping[str, bytes]) -> dict[str, str]:
    """Return the state of each variable in a sprite beside the values that it should have.

    To look wakes the sprite. NoAnswerError where it does not tell.
    """
    try:
        _, out, _ = retry_cut(
            sprite,
            lambda: run_script(sprite, LOOK_SCRIPT, data=seal.salt + b"\0"),
            twice_is_once=True,
        )
    except ExecLost as lost:
        raise NoAnswerError(f"cannot tell which keys {sprite.name} has: {lost}") from None
    states = key_states(out, seal, values)
    if states is None:
        raise NoAnswerError(f"{sprite.name} does not tell which keys it has")
    return states


def key_states(out: bytes, seal: Seal, values: Mapping[str, bytes]) -> dict[str, str] | None:
    """Return the states by what LOOK_SCRIPT has printed, None where that is not whole.

    CURRENT, OLD (put in from here, and replaced here since), MISSING, CHANGED_THERE (not put in
    from here), NOT_CONFIGURED.
    """
    lines = out.decode("utf-8", "replace").splitlines()
    if lines[-1:] != [LOOK_PROOF]:
        return None
    words = [line.split() for line in lines[:-1]]
    there = {word[1]: word[2] for word in words if word[:1] == ["key"] and len(word) == 3}
    there = {name: digest for name, digest in there.items() if is_variable(name)}
    marks = {word[1] for word in words if word[:1] == ["mark"] and len(word) == 2}
    states = {}
    for name in sorted({*values, *there}):
        if name not in values:
            states[name] = NOT_CONFIGURED
        elif name not in there:
            states[name] = MISSING
        elif there[name] == seal.digest(name, values[name]):
            states[name] = CURRENT
        else:
            is_ours = seal.mark(name, there[name]) in marks
            states[name] = OLD if is_ours else CHANGED_THERE
    return states


def put_keys_in(
    sprite: Sprite, info: SpriteInfo, keys: Keys, *, force: bool = False, looked: bytes = b""
) -> tuple[dict[str, Any], list[str]]:
    """Put the keys into the sprite that the API tells of, and record it; warn of what is missing.

    Returns what was done, and the variables that were left, as they were changed there since the
    last push. Those are replaced if `force`, or if nothing was put into this sprite before.
    `looked` is what LOOK_SCRIPT has just said, where it was asked anyway.
    """
    record, config, values = keys.record, keys.config, keys.values_for(sprite.name)
    doubts = doubts_about(config, values)
    for text in doubts:
        sprite.console.warn_once(text)
    stay: list[str] = []
    with sprite.console.working(f"putting the keys into {sprite.name}"):
        if keys.is_configured and not force and keys.may_go_unasked(info):
            seal = record.seal(info)
            states = key_states(looked, seal, values) or look_at_keys(sprite, seal, values)
            stay = [name for name, state in states.items() if state == CHANGED_THERE]
        number = 0
        if keys.is_configured:
            number = record.begin([(info, values)], sprite.api.now())
        try:
            seal = record.seal(info)
            reported = run_init(sprite, init_data(config, sprite.name, seal, stay))
        except InitFailedError as error:
            if error.has_keys:
                record.finish(info, values, number)
            raise
        record.finish(info, values, number)
        record.forget_before(info)
    said = [
        f"{name} was changed in {sprite.name} and was left; --force replaces it" for name in stay
    ]
    for text in said:
        sprite.console.warn(text)
    for text in reported:
        sprite.console.warn(f"{sprite.name} says: {text}")
    git = None
    if config and (config.git_user or config.git_email):
        git = {"user": config.git_user or None, "email": config.git_email or None}
    report = {
        "name": sprite.name,
        "variables": sorted(set(values) - set(stay)),
        "git": git,
        "warnings": doubts + said + reported,
    }
    return report, stay


def bring_pending_keys(sprite: Sprite, keys: Keys) -> None:
    """Put the keys in that a push has left for later, or say why not.

    For what goes into a sprite anyway. Without a pending push nothing is asked of the API.
    """
    try:
        if not any(item.name == sprite.name and item.is_pending for item in keys.record.holders()):
            return
        info = sprite.require()
        holder = keys.record.holder(info)
        if holder is None:  # it was made again
            keys.record.forget_before(info)
        if not keys.is_configured or holder is None or not holder.is_pending:
            return
        report, _ = put_keys_in(sprite, info, keys)
        sprite.console.note(f"{sprite.name} got its new keys: {describe_keys(keys, report)}")
    except ThoptersError as error:
        sprite.console.warn(f"the new keys are not in {sprite.name}: {error.message}")


def doubts_about(config: Config | None, names: Container[str]) -> list[str]:
    """Return a warning for each thing that a sprite will lack, or get as it is hardly meant.

    `names` are those of its variables. OPENAI_API_KEY is optional.
    """
    if config is None or not config.exists:
        return ["there is no configuration, so the sprite gets no keys; make one: thopters setup"]
    missing = [f"{doubt}; if that is wrong: thopters setup" for doubt in config.doubts(names)]
    if "ANTHROPIC_API_KEY" not in names:
        missing.append("ANTHROPIC_API_KEY is not configured: Claude Code will ask for a login")
    if "GITHUB_PAT" not in names:
        missing.append("GITHUB_PAT is not configured: git reaches no private repository")
    if not config.git_user or not config.git_email:
        missing.append(
            "git's user and email are not configured: without its own, git will not commit"
        )
    return missing


def key_facts(keys: Keys) -> dict[str, Any]:
    """Return what is known here of each key, its value aside; None for the length of one that left
    the configuration."""
    config, holders = keys.config, keys.record.holders()
    secrets = config.secrets if config else {}
    facts = {}
    for name in sorted({*secrets, *(key for holder in holders for key in holder.keys)}):
        sprites = [
            {"name": holder.name, "id": holder.id, "pending": holder.is_pending}
            for holder in holders
            if name in holder.keys
        ]
        secret = secrets.get(name)
        pattern = config.pattern_of(name) if config and secret else None
        length = secret.length if secret else None
        facts[name] = {"length": length, "for": pattern, "sprites": sprites}
    return facts


def valid_key(words: Sequence[str]) -> str:
    """Return the one name of a key; what else may be in the words is not repeated: it is secret."""
    name = words[0]
    if len(words) > 1 or not is_variable(name):
        raise UsageError(
            "env set takes a variable's name alone: letters, digits and _",
            hint="the value is asked for, or comes on stdin; never on the command line",
        )
    if name in KEPT_VARIABLES:
        raise UsageError(f"{name} steers the shell, so it can't be a key")
    return name


def asked_key(console: Console, name: str) -> str:
    """Return the value for a key: typed unseen on a terminal, else all of stdin but the last
    line's end."""
    if console.can_ask():
        value = console.ask_secretly(f"{name}:")
    else:
        data = read_stdin(MOST_VALUE_BYTES + 1)
        if len(data) > MOST_VALUE_BYTES:
            raise UsageError(f"the value is longer than {MOST_VALUE_BYTES >> 10} KiB")
        value = data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    value = value.strip() if name in USUAL_SECRETS else value
    if not value:
        hint = f"type it, or give it on stdin; to remove the key: thopters env unset {name}"
        raise UsageError(f"there is no value for {name}", hint=hint)
    console.redact.add(Secret(value))
    check_value(console, name, name, value, is_own=name not in USUAL_SECRETS)
    return value


def check_value(
    console: Console, words: str, key: str, value: str, *, is_own: bool = False
) -> None:
    """Refuse what can't be meant, by UsageError; a secret of the user's own may hold anything."""
    flaw = value_flaw(key, value)
    syntax = shell_syntax(value, strictly=not is_own)
    if flaw:
        raise UsageError(f"{words} {flaw}")
    if syntax and not is_own:
        raise UsageError(f"{words} {syntax}", hint="write it in full and without quotes")
    if syntax:
        console.warn(f"{words} {syntax}; it is stored so")


def store_key(document: dict[str, Any], name: str, value: str, pattern: str | None) -> None:
    """Put a key into a configuration; without a pattern the one that it has stays."""
    document.setdefault("secrets", {})[name] = value
    if pattern == "*":
        document.get("only_for", {}).pop(name, None)
    elif pattern is not None:
        document.setdefault("only_for", {})[name] = pattern


def remove_keys(document: dict[str, Any], names: Sequence[str]) -> None:
    for name in names:
        document.get("secrets", {}).pop(name, None)
        document.get("only_for", {}).pop(name, None)


def check_known_keys(names: Sequence[str], keys: Keys) -> None:
    """Raise ThoptersError for a key that is neither stored here nor in a sprite."""
    known = key_facts(keys)
    for name in names:
        if name not in known:
            shown = name if is_variable(name) else "what was given"  # it may be a value
            raise ThoptersError(f"{shown} is not a stored key", hint="see: thopters env list")


def describe_keys(keys: Keys, report: dict[str, Any]) -> str:
    if not keys.is_configured:
        return "there is no configuration, so what is in it stays"
    git, variables = report["git"], ", ".join(report["variables"])
    who = f"git as {git['user'] or '-'} <{git['email'] or '-'}>" if git else "no git identity"
    return f"{variables or 'no variables'}; {who}"


# --- life -------------------------------------------------------------------------------

# The operations behind the commands: create, pause, resume, checkpoint, restore, destroy. They take
# a sprite's handle and return what came of it; the commands show that.


class IfInterrupted:
    """Says something where what is done in it is ended by other than an error of ours.

    What is known at the end alone is a function that returns it, "" for nothing.
    """

    def __init__(self, console: Console, note: str | Callable[[], str]) -> None:
        self.console = console
        self.note = note

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error and not isinstance(error, ThoptersError):
            note = self.note if isinstance(self.note, str) else self.note()
            if note:
                self.console.note(note)


def no_consent(doing: str) -> UsageError:
    return UsageError(
        f"will not {doing} without --yes, as there is no terminal to ask on",
        hint="say --yes if that is meant",
    )


# create

READY_LIMIT_S = 60.0
READ_BACK_LIMIT_S = 30.0
LAST_LOOK_LIMIT_S = 5.0  # at what exists, when create is interrupted
OLD_AFTER_S = 10.0  # how much earlier than our question a sprite was made that is not ours


# create's decision. The API can answer 500, or nothing at all, and have made the sprite all the
# same; and a GET misses one now and then. So:
#
#   the GET before finds it                  -> it exists: nothing is sent
#   a definite yes                           -> it is ours
#   a definite no, or "exists"               -> the error; ours if a POST before may have made it
#   anything else                            -> look for it for 30 s
#     it appears, and was made since we asked  -> it is ours
#     it stays absent                          -> POST a second time, once, and look again
#
# Whatever ends the wait, a sprite that was made is kept, and it is said how to go on.
def create(sprite: Sprite, limit_s: float) -> tuple[SpriteInfo, bool]:
    """Return a sprite that runs commands, and whether we made it; one that exists is left alone.

    A new one has `limit_s` to run its first command.
    """
    with sprite.console.working(f"creating {sprite.name}"):
        existing = sprite.find()
        info, made = (existing, False) if existing else create_or_find(sprite)
        if made:
            wait_for_first_command(sprite, limit_s)
    return info, made


def create_or_find(sprite: Sprite) -> tuple[SpriteInfo, bool]:
    """Make a sprite that was absent; return it once the API has it, and whether we made it."""
    look = f"look again: thopters list --prefix {sprite.name}"
    since = sprite.api.transport.server_date  # of the answer that it was absent
    try:
        found, why = post_and_look(sprite, since, is_second=False)
        if found is None:
            with After(f"{sprite.name} may have been created ({why})", look):
                found, why = post_and_look(sprite, since, is_second=True)
    except ThoptersError:
        raise
    except BaseException:
        say_what_exists(sprite)
        raise
    if found is None:
        raise NoAnswerError(
            f"cannot create {sprite.name}: {why}", hint=f"it did not appear; {look}"
        )
    return found


def post_and_look(
    sprite: Sprite, since: datetime.datetime | None, *, is_second: bool
) -> tuple[tuple[SpriteInfo, bool] | None, str]:
    """Ask once for a sprite; None, and why, where none came of it that can be seen."""
    try:
        answer = sprite.api.create_sprite(sprite.name)
        if failure_kind(answer) != AMBIGUOUS:
            info, made = created_sprite(sprite, answer, is_second=is_second)
            return (info, made and (not is_second or is_new(info, since))), ""
        why = f"the API answered {answer.status}: {answer.reason()}"
    except NoAnswerError as error:
        why = error.message
    sprite.console.detail(f"{why}; looking whether {sprite.name} exists now")
    found = read_back(sprite, READ_BACK_LIMIT_S)
    return (found, is_new(found, since)) if found else None, why


def is_new(info: SpriteInfo, since: datetime.datetime | None) -> bool:
    """Return whether a sprite was made after we began, by the server's clock, as far as it tells.

    A GET misses one now and then: not to be found at first proves nothing.
    """
    made = parse_time(info.created_at)
    return not made or not since or (since - made).total_seconds() < OLD_AFTER_S


def created_sprite(sprite: Sprite, answer: Answer, *, is_second: bool) -> tuple[SpriteInfo, bool]:
    """Return the sprite that a definite answer speaks of and whether we made it, or raise."""
    if 200 <= answer.status < 300:
        item = decode_json(answer)
        info = SpriteInfo(item if isinstance(item, dict) else {})
        told = info.name == sprite.name and info.url
        info = info if told else expect_sprite(sprite)
        sprite.console.redact.spare(sprite.name)
        return info, True
    words = ("exist", "taken", "already")  # 409 in practice; the documentation says 400
    says_so = answer.status in (400, 422) and any(w in answer.reason().lower() for w in words)
    if (answer.status == 409 or says_so) and is_own_word(answer):
        existing = read_back(sprite, READ_BACK_LIMIT_S)  # a GET may lag behind
        if existing:
            return existing, is_second  # absent before our first POST, so that one made it
        if not is_second:
            raise ExistsError(
                f"the API says that the name {sprite.name} is taken, but does not find the sprite: "
                f"{answer.reason()}",
                hint="one that is being destroyed keeps its name for a while: try again",
            )
    sprite.api.refuse(answer, f"create {sprite.name}")


def expect_sprite(sprite: Sprite) -> SpriteInfo:
    """Return a sprite that the API says it has made; a GET can miss it for a moment."""
    info = read_back(sprite, READ_BACK_LIMIT_S)
    if info is None:
        raise NoAnswerError(
            f"the API says that it created {sprite.name}, but does not find it",
            hint=f"look again: thopters list --prefix {sprite.name}",
        )
    return info


def read_back(sprite: Sprite, limit_s: float) -> SpriteInfo | None:
    """Look for a sprite until it is there or the time is up."""
    for _ in sprite.clock.polling(limit_s, 0.2, longest_s=5.0):
        with contextlib.suppress(ThoptersError):
            if info := sprite.find():
                return info
    return None


def say_what_exists(sprite: Sprite) -> None:
    """Tell, after an interrupted create, what the API has; its absence now proves nothing."""
    for _ in sprite.clock.polling(LAST_LOOK_LIMIT_S, 0.2, longest_s=5.0):
        if sprite.glance()[1].name:
            sprite.console.note(
                f"{sprite.name} was created; remove it with: thopters destroy {sprite.name}"
            )
            return
    sprite.console.note(
        f"{sprite.name} is not there, but may still be on its way; see: thopters list"
    )


def wait_for_first_command(sprite: Sprite, limit_s: float) -> None:
    """Wait until a new sprite runs commands; whatever ends the wait, the sprite is kept."""
    name = sprite.name
    keep = f"thopters exec {name} -- COMMAND; or remove it: thopters destroy {name}"
    note = f"{name} was created; it is not known to be ready. Go on with: {keep}"
    with (
        IfInterrupted(sprite.console, note),
        After(f"{name} was created", f"it may only need time: {keep}"),
    ):
        wait_until_ready(sprite, limit_s)


def put_keys_into_new(
    sprite: Sprite, info: SpriteInfo, keys: Keys, *, made: bool
) -> dict[str, Any]:
    """Put the keys in; whatever ends it, the sprite is kept, and it is said how to go on.

    One that was made has taken its time to be ready, so what has the name now is looked at again.
    """
    name, was = sprite.name, "was created" if made else "exists"
    keep = f"thopters init {name}; or remove it: thopters destroy {name}"
    note = f"{name} {was}, but not all keys may be in it. Go on with: {keep}"
    with IfInterrupted(sprite.console, note), After(f"{name} {was}", f"put them in: {keep}"):
        if made:
            sprite.require_same(info.id)
        return put_keys_in(sprite, info, keys)[0]


# pause and resume

PAUSE_LIMIT_S = 120.0
PAUSE_LOOK_EVERY_S = 1.0


class Keeper:
    """What may keep a sprite awake: a session or a hold, and the words that describe it."""

    __slots__ = ("about", "id", "kind", "work")

    def __init__(self, kind: str, identity: str, about: str, work: Work | None = None) -> None:
        self.kind = kind
        self.id = identity
        self.about = about
        self.work = work

    def __str__(self) -> str:
        return f"{self.kind} {self.id} ({self.about})"


class Pause:
    """A sprite on its way to sleep: its status before, and what was ended for that."""

    __slots__ = ("ended", "name", "sprite", "was")

    def __init__(self, sprite: Sprite, was: str) -> None:
        self.sprite = sprite
        self.name = sprite.name
        self.was = was
        self.ended: list[str] = []

    def after(self) -> After:
        return After(f"{', '.join(self.ended)} of {self.name} ended" if self.ended else "")


# The platform has no call for sleep: a sprite falls asleep when nothing keeps it awake. So we look
# at it once, since each look inside is activity itself; say what may keep it awake; end that with
# the user's consent; and then only ask for its status, which neither wakes it nor counts.
def begin_pause(sprite: Sprite, *, force: bool) -> Pause:
    """Look once at what keeps a sprite awake, and end it with the user's consent.

    One that sleeps is left alone: a look inside would wake it.
    """
    pause = Pause(sprite, sprite.look().status)
    if pause.was != "running":
        return pause
    with sprite.console.working(f"looking at what keeps {sprite.name} awake"):
        keepers, unseen = find_keepers(sprite)
    sprite.console.detail(unseen or "its holds were seen")
    for keeper in keepers:
        sprite.console.note(f"{sprite.name} may be kept awake by {keeper}")
    if not keepers or not may_end(sprite, len(keepers), force=force):
        return pause
    if sprite.look().is_asleep():
        return pause  # it has fallen asleep while the question stood there
    with sprite.console.working(f"ending what keeps {sprite.name} awake"):
        for keeper in keepers:
            with pause.after():
                end_keeper(sprite, keeper)
            pause.ended.append(f"{keeper.kind} {keeper.id}")
    return pause


def preview_pause(sprite: Sprite) -> tuple[SpriteInfo, list[Keeper]]:
    """Return a sprite, and what a pause would end."""
    info = sprite.look()
    if info.status != "running":
        return info, []
    keepers, unseen = find_keepers(sprite)
    sprite.console.detail(unseen or "its holds were seen")
    return info, keepers


def find_keepers(sprite: Sprite) -> tuple[list[Keeper], str]:
    """Return the sessions and holds of a sprite that is awake, and why no hold could be seen.

    To look is activity itself.
    """
    found, now = [], sprite.api.now()
    for work in look_around(sprite, needs_all=False):
        if work.is_running():
            active = format_age(parse_time(work.last_activity()), now)
            about = f"{work.about()}, last active {active}"
            found.append(Keeper("session", work.id, about, work))
    try:
        for hold in list_holds(sprite):
            found.append(Keeper("hold", hold.name, hold.describe(now)))
    except ThoptersError as error:
        return found, error.message
    return found, ""


def may_end(sprite: Sprite, count: int, *, force: bool) -> bool:
    """Return whether the user consents to end what runs in a sprite."""
    if force:
        return True
    if not sprite.console.can_ask():
        sprite.console.hint("--force ends what keeps it awake")
        return False
    what = "it" if count == 1 else f"all {count}"
    with IfInterrupted(sprite.console, f"nothing in {sprite.name} was ended"):
        answer = sprite.console.ask(f"End {what}, so that {sprite.name} can sleep? [y/N]")
    if answer.strip().lower() in YES:
        return True
    raise DeclinedError(f"{sprite.name} was left as it is")


def end_keeper(sprite: Sprite, keeper: Keeper) -> None:
    if keeper.work is None:
        release_hold(sprite, keeper.id)
    elif not end_work(sprite, keeper.work):
        raise ThoptersError(f"session {keeper.id} of {sprite.name} can't be ended: it still runs")


def wait_until_asleep(pause: Pause, left_s: float, limit_s: float) -> SpriteInfo:
    """Wait until a sprite sleeps, by looks that neither wake it nor count as activity.

    TimedOutError after `left_s` of the `limit_s` in all, with what still keeps it awake.
    """
    sprite = pause.sprite
    with sprite.console.working(f"waiting for {sprite.name} to fall asleep"):
        for _ in sprite.clock.polling(max(0.0, left_s), PAUSE_LOOK_EVERY_S):
            info = sprite.look()
            if info.is_asleep():
                return info
        raise still_awake(sprite, info, limit_s)


def describe_pause(pause: Pause, info: SpriteInfo, seconds: float, *, waited: bool) -> str:
    """Say how a pause came out. After a look inside, a status of sleep that was not waited for
    may be an old one."""
    console = pause.sprite.console
    woken = pause.was == "running" and not waited
    if woken or not info.is_asleep():
        state = state_of(pause.was if woken else info.status, console)
        return f"is {state}; it falls asleep by itself when all is quiet"
    state = state_of(info.status, console)
    return f"is {state} already" if pause.was in ASLEEP else f"is {state} after {seconds:.1f} s"


def still_awake(sprite: Sprite, info: SpriteInfo, limit_s: float) -> TimedOutError:
    """Return the error for a sprite that does not fall asleep, with what still keeps it awake."""
    keepers: list[Keeper] = []
    unseen = "it was not looked into"
    if info.status == "running":
        keepers, unseen = find_keepers(sprite)
    reasons = [f"it may be kept awake by {keeper}" for keeper in keepers]
    reasons += [unseen] if unseen else []
    why = "; ".join(reasons) or "no session and no hold was found"
    hint = f"end these: thopters pause {sprite.name} --force"
    return TimedOutError(
        f"{sprite.name} is still {info.state()} after {limit_s:.0f} s: {why}",
        hint=hint if keepers else "open connections, through its URL too, keep it awake",
    )


def resume(sprite: Sprite, limit_s: float) -> tuple[str, float]:
    """Wake a sprite by a command that does nothing: the platform has no call for it.

    Returns its status before, and the seconds that it took.
    """
    before = sprite.require().status
    started = sprite.clock.monotonic()
    wake(sprite, limit_s)
    return before, sprite.clock.monotonic() - started


def wake(sprite: Sprite, limit_s: float) -> None:
    with sprite.console.working(f"waking {sprite.name}"):
        wait_until_ready(sprite, limit_s)


# checkpoint and restore


class TimeIsUp:
    """Makes of an answer that did not come within the user's limit an error of time, unless that
    limit is None."""

    def __init__(self, clock: Clock, limit_s: float | None) -> None:
        self.clock = clock
        self.limit_s = limit_s
        self.end = clock.monotonic() + (float("inf") if limit_s is None else limit_s)

    def left_s(self, usual_s: float) -> float:
        """Return how many seconds are left, at most the usual ones."""
        return max(0.0, min(usual_s, self.end - self.clock.monotonic()))

    def __enter__(self) -> TimeIsUp:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (NoAnswerError, NotSentError)) and not self.left_s(1.0):
            raise TimedOutError(error.message, hint=error.hint) from None


def take_checkpoint(
    sprite: Sprite, comment: str, known: Sequence[str] = (), time_limit: TimeIsUp | None = None
) -> str:
    """Make a checkpoint and return its id, which the platform tells in prose only.

    `known` are the ids from before, where they have been looked at anyway.
    """
    started, name = sprite.clock.monotonic(), sprite.name
    limit, doing = time_limit or TimeIsUp(sprite.clock, None), f"checkpointing {name}"
    note = f"a checkpoint of {name} may have been made; look: thopters checkpoints {name}"

    def ask() -> list[str]:
        words = sprite.create_checkpoint(comment, limit.left_s(STREAM_LIMIT_S))
        return show_progress(sprite, doing, words)

    with IfInterrupted(sprite.console, note), limit:
        try:
            texts = ask()
        except ThoptersError as error:
            if not error.is_early:
                raise
            sprite.console.detail(error.message)
            tried = f"a first try to checkpoint {name} may have been carried out"
            with After("" if error.is_refusal else tried):
                wake(sprite, limit.left_s(WAKE_LIMIT_S))
                refused = error.is_refusal
                made = [] if refused else young_checkpoints(sprite, comment, known, started)
            if made:  # by that try, all the same
                return made[0]
            texts = ask()
        return checkpoint_id(texts) or new_checkpoint(sprite, comment, known, started)


def show_progress(sprite: Sprite, doing: str, words: Iterator[str]) -> list[str]:
    """Return the platform's progress; with -v it is shown on stderr as it comes."""
    texts = []
    with sprite.console.working(doing):
        for text in words:
            texts.append(text)
            if sprite.console.verbose:
                sprite.console.quote(text)
    return texts


def checkpoint_id(texts: list[str]) -> str:
    """Return the id in the platform's words: "  ID: v3", or "Checkpoint v3 created" at the end.

    Only where such a line begins with them, and the last one: a comment may be among the words.
    """
    import re

    lines = [line.strip() for text in texts for line in text.splitlines()]
    for pattern in (r"ID:\s*(\S+)", r"Checkpoint\s+(\S+)\s+created\b.*"):
        for line in reversed(lines):
            found = re.fullmatch(pattern, line)
            if found and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", found[1]):
                return found[1]
    return ""


def new_checkpoint(sprite: Sprite, comment: str, known: Sequence[str], started: float) -> str:
    """Return the one checkpoint that can have been made since `started`."""
    with After(f"the checkpoint of {sprite.name} was made"):
        new = young_checkpoints(sprite, comment, known, started)
    if len(new) != 1:
        raise NoAnswerError(
            f"the checkpoint of {sprite.name} was made, but its id was not told",
            hint=f"see: thopters checkpoints {sprite.name}",
        )
    return new[0]


def young_checkpoints(
    sprite: Sprite, comment: str, known: Sequence[str], started: float
) -> list[str]:
    """Return the ids of what can have been made since `started`, newest first.

    A list may lag behind, and comments repeat, so the age counts, by the server's clock alone. To
    look at the ids beforehand would cost every checkpoint a request, and hardly one needs it.
    """
    found = sprite.list_checkpoints(include_auto=False)
    oldest = sprite.clock.monotonic() - started + 1.0  # both stamps may lack a part of a second
    new = []
    for item in found:
        made = parse_time(item.create_time)
        is_young = made and (sprite.api.now() - made).total_seconds() <= oldest
        if is_young and item.comment == comment and item.id not in known:
            new.append(item.id)
    return new


def warn_of_health(sprite: Sprite, checkpoint: Checkpoint) -> None:
    if checkpoint.health:
        sprite.console.warn(f"the platform says of checkpoint {checkpoint.id}: {checkpoint.health}")


class RestorePlan:
    """What a restore to a checkpoint means: `newer` counts the checkpoints made after it, `works`
    is what runs and would end, None where that was not looked at. NotFoundError for an unknown id.
    """

    def __init__(self, sprite: Sprite, identity: str, *, has_backup: bool) -> None:
        self.sprite = sprite
        self.id = identity
        self.has_backup = has_backup
        found = sprite.list_checkpoints(include_auto=True)
        self.known = [item.id for item in found]
        if identity not in self.known:
            some = ", ".join(self.known[:5]) or "none at all"
            raise NotFoundError(
                f"{sprite.name} has no checkpoint {identity}",
                hint=f"it has {some}: thopters checkpoints {sprite.name}",
            )
        self.newer = self.known.index(identity)  # they come newest first
        self.checkpoint = found[self.newer]
        warn_of_health(sprite, self.checkpoint)
        self.shown = sprite.require()
        self.works: list[Work] | None = None

    def look_inside(self) -> None:
        """See what runs, unless the sprite sleeps or does not answer."""
        try:
            if self.sprite.settled(self.shown).status == "running":
                self.works = [work for work in look_around(self.sprite) if work.is_running()]
        except ThoptersError as error:
            self.sprite.console.detail(error.message)

    def describe(self) -> str:
        """Return the checkpoint's age and comment, and how many are newer."""
        item = self.checkpoint
        age = format_age(parse_time(item.create_time), self.sprite.api.now())
        told = f"{self.id} was made {age}" + (f": {item.comment}" if item.comment else "")
        are = {0: "none is newer", 1: "1 checkpoint is newer"}
        return f"{told} ({are.get(self.newer, f'{self.newer} checkpoints are newer')})"

    def endings(self) -> list[str]:
        """Return what would end, in words."""
        return [f"session {work.id} ({work.about()})" for work in self.works or ()]

    def confirm(self) -> None:
        """Ask; DeclinedError for a no, ThoptersError where another sprite has the name by then."""
        sprite, console = self.sprite, self.sprite.console
        with IfInterrupted(console, f"{sprite.name} was not restored"):
            with console.working(f"looking into {sprite.name}"):
                self.look_inside()
            console.note(self.describe())
            for ending in self.endings():
                console.note(f"this ends in {sprite.name}: {ending}")
            lost = "a checkpoint is taken first" if self.has_backup else "the present state is lost"
            question = f"Put the disk of {sprite.name} back to {self.id}? Its programs end; {lost}."
            if console.ask(f"{question} [y/N]").strip().lower() not in YES:
                raise DeclinedError(f"{sprite.name} was left as it is")
        sprite.require_same(self.shown.id)

    def to_json(self) -> dict[str, Any]:
        works = None if self.works is None else [work.to_json() for work in self.works]
        facts = {"name": self.sprite.name, "checkpoint": self.checkpoint.to_json()}
        return {**facts, "newer": self.newer, "backup": self.has_backup, "sessions": works}


# A restore is asynchronous: after its stream has ended, the old environment may still answer. So a
# file with a random name is put on the disk before; the restore is done when a command runs and
# does not see that file. It is never sent twice. Whatever goes wrong, it is said what is known of
# the disk, and the file is taken away again.
MARKER_SCRIPT = b"[ ! -e ~/%s ] || exit %d"
RESTORE_BEGINS_S = 0.25  # a look sooner would see the old disk, and cost a connection
OLD_BACKUP_S = 10.0  # that a restore had to wait, so that its backup lacks what came since


def restore_disk(plan: RestorePlan, saved: str | None, keys: Keys, limit: TimeIsUp) -> bytes:
    """Put the disk of the sprite that was shown back to a checkpoint, and see it happen.

    `saved` is a checkpoint of the present. Returns what LOOK_SCRIPT then says of the keys, b""
    where none may go there. ThoptersError also where another sprite has the name by now: its
    checkpoints may have the same ids.
    """
    sprite, shown, identity = plan.sprite, plan.shown, plan.id
    marker = f".thopters-restore-{os.urandom(8).hex()}".encode()
    undo = f"; the state before is checkpoint {saved}" if saved else ""
    backup = f"; checkpoint {saved} holds the present state" if saved else ""
    note = not_restored = f"{sprite.name} was not restored{backup}"
    try:
        require_output(sprite, b": > ~/" + marker)
        sprite.require_same(shown.id)
        note = f"{sprite.name} may or may not be at {identity} now{undo}"
        words = sprite.restore_checkpoint(identity, limit.left_s(STREAM_LIMIT_S))
        words = when_it_begins(sprite, saved, words)
        try:
            with limit:
                show_progress(sprite, f"restoring {sprite.name}", words)
        except ThoptersError as error:
            note = not_restored if error.is_refusal else note
            raise
        with sprite.console.working(f"waiting for {sprite.name}"):
            sprite.clock.sleep(RESTORE_BEGINS_S)
            script, salt = MARKER_SCRIPT % (marker, NOT_YET), b""
            if keys.is_configured and keys.may_go_unasked(shown):  # the same connection does it
                script += b"\n(" + LOOK_SCRIPT + b") || :"
                salt = keys.record.seal(shown).salt + b"\0"
            return wait_until_ready(sprite, limit.left_s(WAKE_LIMIT_S), script, salt)
    except BaseException as error:
        if isinstance(error, NotReadyError) and error.answers:
            note = f"{sprite.name} still shows the disk from before{undo}"
        sprite.console.note(note)  # before another signal can come
        remove_marker(sprite, marker)
        raise


def when_it_begins(sprite: Sprite, saved: str | None, words: Iterator[str]) -> Iterator[str]:
    """Pass the words of a restore on, and warn where it began long after its backup."""
    asked = sprite.clock.monotonic()
    for count, text in enumerate(words):
        waited_s = sprite.clock.monotonic() - asked
        if saved and count == 0 and waited_s > OLD_BACKUP_S:
            sprite.console.warn(
                f"the restore had to wait for {waited_s:.0f} s: "
                f"what changed in {sprite.name} in that time is not in checkpoint {saved}"
            )
        yield text


def remove_marker(sprite: Sprite, marker: bytes) -> None:
    script = b"rm -f ~/" + marker
    try:
        run_script(sprite, script, limit_s=PROBE_LIMIT_S, open_limit_s=PROBE_LIMIT_S)
    except (ThoptersError, ExecLost):
        sprite.console.detail(f"an empty file ~/{marker.decode()} may be left in {sprite.name}")


def renew_keys(
    sprite: Sprite, shown: SpriteInfo, identity: str, keys: Keys, looked: bytes
) -> dict[str, Any] | None:
    """Put today's keys into a restored sprite, which has those of the checkpoint's day, or none.

    None, and nothing done, where none were put into this sprite from here. `looked` is what
    restore_disk has seen. ThoptersError where another sprite has the name by now.
    """
    name = sprite.name
    note = f"{name} was restored to {identity}, but may hold its old keys"
    with IfInterrupted(sprite.console, note):
        if not keys.is_configured or not keys.may_go_unasked(shown):
            if require_output(sprite, b"[ ! -s ~/.thopters/env ] || echo keys"):
                sprite.console.warn(why_not_renewed(name, identity, keys))
            return None
        sprite.require_same(shown.id)
        report, _ = put_keys_in(sprite, shown, keys, looked=looked)
    sprite.console.note(f"today's keys were put into {name} again")
    return report


def why_not_renewed(name: str, identity: str, keys: Keys) -> str:
    if not keys.is_configured:
        none = "there is no configuration to renew them"
        return f"the keys in {name} are those of {identity}: {none}"
    return (
        f"the keys in {name} are not those of your configuration, as far as its record tells: "
        f"none were put in; if it is to have yours: thopters init {name}"
    )


# destroy

DESTROY_LIMIT_S = 10.0  # for a sprite to be gone


def describe_sprite(info: SpriteInfo, console: Console) -> str:
    return f"{info.name} ({', '.join(filter(None, (state_of(info.status, console), info.url)))})"


def confirm_destroy(info: SpriteInfo, console: Console) -> None:
    shown = describe_sprite(info, console)
    console.note(f"{shown} goes with all its files and checkpoints, for good.")
    with IfInterrupted(console, "nothing was destroyed"):
        typed = console.ask(f"Type {info.name} to destroy it:")
    if typed != info.name:
        raise DeclinedError("that is not the name: nothing was destroyed")


def destroy(sprite: Sprite, shown: SpriteInfo, *, was_asked: bool) -> None:
    """Delete the sprite that was shown, by its id, and see it gone.

    `was_asked`: a question stood there meanwhile, so what has the name now is looked at again.
    """
    name, console = sprite.name, sprite.console
    note = f"{name} may or may not be destroyed; look: thopters list --prefix {name}"
    with console.working(f"destroying {name}"), IfInterrupted(console, note):
        if was_asked:
            sprite.require_same(shown.id)
        sprite.delete(shown.id)
        with After(f"the API said that it deletes {sprite.name}"):
            for _ in sprite.clock.polling(DESTROY_LIMIT_S, 0.3):
                info = sprite.find()
                if info is None or (shown.id and info.id != shown.id):
                    return
            raise TimedOutError(f"it is still there after {DESTROY_LIMIT_S:.0f} s")


# --- ssh --------------------------------------------------------------------------------

# OpenSSH's own server in a sprite, one process for each connection (`sshd -i`), which a command of
# ours starts and joins to ssh's ProxyCommand. So nothing listens anywhere, and all that speaks ssh
# speaks to a sprite, by a Host block here.
#
#   SshHost     what a block says of one sprite: as data, as text, and read back from its text
#   SshFiles    the blocks, the known host keys, and one Include line in the user's configuration
#   set_up_ssh  both sides: the server's files in the sprite, then the files here
#   serve_ssh   the ProxyCommand: one connection, and for how long it keeps its sprite awake
#
# Who may come in is decided by the API: a connection is a command in the sprite, so it needs the
# token, and the id of the sprite is compared before. By the same way the host key gets here, so it
# is never taken from an ssh connection that nobody has checked.

SSH_SUFFIX = ".sprite"
SSH_IDLE_S = 900
SSH_BUSY_BYTES = 4096  # more in a minute is work; an editor's pings are less
SSH_MINUTE_S = 60.0
SSH_MAX_S = HOLD_MAX_S
SSH_SETUP_LIMIT_S = 60.0
SSH_FETCH_LIMIT_S = 600.0
SSH_TRY_LIMIT_S = 40.0  # for a connection to a sprite that is awake
SSH_HEAD = rb"""
export LC_ALL=C
cd ~ || exit
ssh=$PWD/.thopters/ssh root=$PWD/.thopters/ssh/root
find_program() {
  local place
  for place in "$(type -P "$1")" "/usr/sbin/$1" "$root/usr/sbin/$1" "$root/usr/bin/$1"; do
    [ -f "$place" ] && [ -x "$place" ] && echo "$place" && return
  done
}
find_server() {
  sshd=$(find_program sshd) && [ "$sshd" ] || return
  [[ $sshd == "$root"/* ]] || return 0
  # what was unpacked looks for its parts in other places
  local session=$root/usr/lib/openssh/sshd-session auth=$root/usr/lib/openssh/sshd-auth
  local IFS=: folders=("$root"/usr/lib/*-linux-* "$root"/lib/*-linux-*)
  export LD_LIBRARY_PATH="${folders[*]}"
  [ ! -e "$session" ] || options+=(-o "SshdSessionPath=$session")
  [ ! -e "$auth" ] || options+=(-o "SshdAuthPath=$auth")
}
options=()
"""
# The server for one connection. NOT_YET where something is missing, or not what is expected: the
# host key, the user's key, the version of the configuration
SSH_START_SCRIPT = (
    SSH_HEAD
    + b"""
host_key=$1 key=$2 version=$3
{ read -r kind text _ < "$ssh/host_key.pub" && read -r _ found < "$ssh/config"; } 2> /dev/null
[ "$kind $text" = "$host_key" ] && [ "$found" = "$version" ] || exit %d
grep -qsF -- "$key " "$ssh/authorized_keys" && find_server || exit %d
for name in PATH LANG; do
  [ ! "${!name}" ] || [[ ${!name} == *[\\"\\\\]* ]] || set_env+=" $name=\\"${!name}\\""
done
exec "$sshd" -i -e -f "$ssh/config" -o "SetEnv$set_env" "${options[@]}"
"""
    % (NOT_YET, NOT_YET)
)
# What a server of ours does, and nothing of /etc/ssh. A word behind the # is its version. The keys'
# modes are not asked: who could write them could also start a server of their own
SSHD_CONFIG = """\
HostKey "$ssh/host_key"
AuthorizedKeysFile "$ssh/authorized_keys"
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PidFile none
ModuliFile /dev/null
Subsystem sftp internal-sftp
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
AllowAgentForwarding yes
X11Forwarding yes
PermitTunnel no
PermitUserRC no
PrintMotd no
PrintLastLog no
UseDNS no
AcceptEnv GIT_PROTOCOL
ClientAliveInterval 0
TCPKeepAlive no
MaxSessions 1000
LogLevel ERROR
"""
# Prints `changed` for each thing that it has made or changed, then the user, and last the host key
SSH_SETUP_SCRIPT = (
    SSH_HEAD
    + b"""
umask 077
key=$1 tag=$2 version=$3
fail() { echo "$*" >&2; exit 1; }
mkdir -p .thopters/ssh && chmod 700 .thopters .thopters/ssh || exit
exec 7>> .thopters/ssh/lock
! type -P flock > /dev/null || flock -w 20 7 || fail 'another set-up of ssh is at work in it'
find_server && keygen=$(find_program ssh-keygen) && [ "$keygen" ] || exit %d
user=$(id -un 2> /dev/null) || fail 'its user has no name, and an ssh server wants one'
cd .thopters/ssh || exit
put() { [ "$(cat "$1" 2> /dev/null; echo .)" = "$2"$'\\n.' ] ||
  { printf '%%s\\n' "$2" > "$1.new" && mv -f "$1.new" "$1" && echo changed; }; }
if ! host_key=$("$keygen" -y -P '' -f host_key 2> /dev/null); then
  rm -f host_key.new host_key.new.pub
  "$keygen" -q -t ed25519 -N '' -C '' -f host_key.new && mv -f host_key.new host_key || exit
  rm -f host_key.new.pub
  host_key=$("$keygen" -y -P '' -f host_key) || exit
  echo changed
fi
read -r kind text _ <<< "$host_key"
others=$(grep -sv -e " $tag\\$" authorized_keys | grep -vF -e "$key ")
put host_key.pub "$kind $text" &&
  put authorized_keys "${others:+$others$'\\n'}$key $tag" &&
  put config "# $version
%s" || exit
why=$("$sshd" -t -f config "${options[@]}" 2>&1) || fail "its ssh server refuses: ${why##*$'\\n'}"
echo "user $user"
echo "$kind $text"
"""
    % (NOT_YET, SSHD_CONFIG.rstrip().replace('"', '\\"').encode())
)
# The packages that are missing, fetched as any user can, with lists of our own, and not installed:
# so no script of theirs runs, and nothing is started. First what is to be fetched, then the rest
SSH_FETCH_HEAD = (
    SSH_HEAD
    + b"""
umask 077
work=$PWD/.thopters/ssh/fetching
apt() {
  apt-get -y -o Dir::State="$work/state" -o Dir::State::status=/var/lib/dpkg/status \\
    -o Dir::Cache="$work/cache" -o Dir::Log="$work" -o Debug::NoLocking=1 \\
    -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 \\
    --no-install-recommends "$@" < /dev/null
}
"""
)
SSH_PLAN_SCRIPT = (
    SSH_FETCH_HEAD
    + b"""
for program in apt-get dpkg; do
  [ -x "$(type -P "$program")" ] ||
    { echo "there is no $program to fetch it with" >&2; exit 1; }
done
rm -rf "$work" && mkdir -p "$work"/{state/lists,cache/archives}/partial || exit 1
apt update 2>&1 | tee "$work/log" >&2
if ! why=$(apt --print-uris install openssh-server 2>&1 > "$work/uris"); then
  failed=$(grep -m 1 '^[WE]: Failed to fetch' "$work/log")
  echo "${why##*$'\\n'}${failed:+; $failed}" >&2
  exit 1
fi
while read -r _ file size _; do
  [ ! "$size" ] || echo "$file $size"
done < <(grep "^'" "$work/uris")
"""
)
SSH_FETCH_SCRIPT = (
    SSH_FETCH_HEAD
    + b"""
apt --download-only install openssh-server >&2 || exit 1
rm -rf "$root.new" && mkdir "$root.new" || exit 1
for package in "$work"/cache/archives/*.deb; do
  dpkg -x "$package" "$root.new" || exit 1
done
rm -rf "$root" "$work" && mv "$root.new" "$root" || exit 1
find_server || { echo 'the packages that came hold no sshd' >&2; exit 1; }
"""
)
# Where something listens in a sprite, as the kernel has it
SSH_LISTENERS_SCRIPT = b"grep -hs ' 0A ' /proc/net/tcp /proc/net/tcp6 || :"
# The key of a --remove, and with the last key all of it
SSH_REMOVE_SCRIPT = b"""\
cd ~/.thopters/ssh 2> /dev/null || exit 0
umask 077
others=$(grep -sv -e " $1\\$" authorized_keys | grep -vF -e "${2:-none} ")
if [ "$others" ]; then
  printf '%s\\n' "$others" > authorized_keys.new && mv -f authorized_keys.new authorized_keys
else
  cd .. && rm -rf ssh
fi
"""


def sshd_version() -> bytes:
    """Return a word that changes with the server's configuration."""
    import hashlib

    return hashlib.sha256(SSHD_CONFIG.encode()).hexdigest()[:12].encode()


# the block


def valid_host(name: str) -> None:
    """Check that a sprite's name can be a host of ssh, which makes all letters small."""
    import re

    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise UsageError(f"{name} can't be a host of ssh, which takes a-z, 0-9, '.', '_' and '-'")


def ssh_quote(path: str) -> str:
    """Return a path as ssh's configuration takes it; UsageError where it can't."""
    if not path.isprintable() or any(bad in path for bad in ('"', "\\", "${", "*", "?", "[")):
        raise UsageError(f"ssh's configuration can't hold the path {path!r}")
    path = path.replace("%", "%%")
    return f'"{path}"' if not path.isascii() or set(" #'") & set(path) else path


def ssh_unquote(text: str) -> str:
    return text.strip('"').replace("%%", "%")


def own_program() -> list[str]:
    """Return the words that call this program from anywhere."""
    program = os.path.abspath(sys.argv[0])
    is_printable = (sys.executable + program).isprintable()
    if not sys.executable or not os.path.isfile(program) or not is_printable:
        raise ThoptersError("cannot tell where this program lies, so ssh could not call it")
    return [sys.executable, program]


class SshHost:
    """What a Host block says of a sprite; `limits` are serve_ssh's options, in words."""

    __slots__ = ("api", "identity", "key", "limits", "name", "org", "program", "user")

    def __init__(self, name: str, *, user: str, key: str, api: str, identity: str, org: str,
                 limits: Sequence[str] = (), program: Sequence[str] = ()) -> None:  # fmt: skip
        self.name = name
        self.user = user
        self.key = key
        self.api = api
        self.identity = identity
        self.org = org
        self.limits = list(limits)
        self.program = list(program) or own_program()

    @property
    def host(self) -> str:
        return self.name + SSH_SUFFIX

    @property
    def alias(self) -> str:
        """Return the name of the host key, which another sprite of the name does not have."""
        return f"{self.host}-{self.identity[-36:]}" if self.identity else self.host

    def stdio(self, more: Sequence[str] = ()) -> list[str]:
        """Return the words of the ProxyCommand."""
        place = {"--api": self.api, "--org": self.org, "--id": self.identity}
        known = [word for pair in place.items() if pair[1] for word in pair]
        return [*self.program, "ssh", "--stdio", self.name, *known, *self.limits, *more]

    def proxy_command(self, more: Sequence[str] = ()) -> str:
        words = (quote_argument(os.fsencode(word)) for word in self.stdio(more))
        return os.fsdecode(b" ".join(words)).replace("%", "%%")

    def block(self, known_hosts: str) -> str:
        rows = {
            "HostName": self.host,
            "User": self.user,
            "IdentityFile": ssh_quote(self.key),
            "IdentitiesOnly": "yes",
            "HostKeyAlias": self.alias,
            "UserKnownHostsFile": ssh_quote(known_hosts),
            "StrictHostKeyChecking": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ConnectTimeout": "120",
            "ServerAliveInterval": "0",
            "ProxyCommand": self.proxy_command(),
        }
        lines = [f"Host {self.host}", *(f"  {key} {value}" for key, value in rows.items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_block(cls, name: str, text: str) -> SshHost | None:
        """Return what a block of ours says, None for one that is not understood."""
        import shlex

        rows = dict(line.strip().split(" ", 1) for line in text.splitlines() if " " in line.strip())
        try:
            words = shlex.split(rows["ProxyCommand"].replace("%%", "%"))
            begin = words.index("--stdio")
            given = words[begin + 2 :]
            place = {"--api": "", "--org": "", "--id": ""}
            while given and given[0] in place:
                place[given[0]], given = given[1], given[2:]
            return cls(
                name,
                user=rows["User"],
                key=ssh_unquote(rows["IdentityFile"]),
                api=place["--api"],
                identity=place["--id"],
                org=place["--org"],
                limits=given,
                program=words[: begin - 1],
            )
        except (KeyError, IndexError, ValueError):
            return None

    def public_key(self) -> str:
        """Return the kind and the text of the public key; ThoptersError where it can't be had."""
        import re

        path = self.key if self.key.endswith(".pub") else self.key + ".pub"
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                words = file.read(1 << 14).split()[:2]
        except OSError as error:
            raise ThoptersError(
                f"cannot read the public key {path}: {error.strerror}",
                hint=f"make it: ssh-keygen -y -f {self.key} > {path}",
            ) from None
        if not re.fullmatch(r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+", " ".join(words)):
            raise ThoptersError(f"{path} does not hold a public key of ssh")
        return " ".join(words)


# the files here


class SshFiles:
    """~/.ssh/thopters with the blocks and the host keys, and the Include line in ~/.ssh/config.

    Our own key lies beside the configuration. OpenSSH goes by the account's home, whatever HOME
    says; `config_option` leads it to ours.
    """

    HEAD = (
        "# By thopters ssh --setup, which replaces what it holds. --remove takes a block away.\n\n"
    )

    def __init__(self, environ: Mapping[str, str], console: Console) -> None:
        home = home_directory(environ)
        self.console = console
        self.folder = os.path.join(home, ".ssh", "thopters")
        self.path = os.path.join(self.folder, "config")
        self.known_hosts = os.path.join(self.folder, "known_hosts")
        self.user_path = os.path.join(home, ".ssh", "config")
        beside = os.path.dirname(os.path.realpath(config_path(environ)))
        self.own_key = os.path.join(beside, "thopters_ed25519")
        self.include = f"Include {ssh_quote(self.path)}"
        is_usual = os.path.realpath(account_home()) == os.path.realpath(home)
        self.config_option = [] if is_usual else ["-F", self.user_path]

    def _read(self, path: str) -> str:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                return file.read()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise ThoptersError(f"cannot read {path}: {error.strerror}") from None

    def blocks(self) -> dict[str, str]:
        """Return the text of each block by the name of its sprite."""
        import re

        parts = re.split(r"(?m)^(?=Host )", self._read(self.path))[1:]
        return {part.split()[1].removesuffix(SSH_SUFFIX): part.strip() + "\n" for part in parts}

    def find(self, name: str) -> SshHost | None:
        text = self.blocks().get(name)
        return SshHost.from_block(name, text) if text else None

    def host_keys(self) -> dict[str, str]:
        """Return the host keys by their aliases."""
        lines = self._read(self.known_hosts).splitlines()
        return dict(line.split(" ", 1) for line in lines if " " in line)

    def put(self, host: SshHost, host_key: str = "") -> bool:
        """Write a sprite's block, and its host key if it is given; return whether it changed."""

        def change(texts: dict[str, str], keys: dict[str, str]) -> None:
            texts[host.name] = host.block(self.known_hosts)
            if host_key:
                drop_host_keys(keys, host.name, but=host.alias)
                keys[host.alias] = host_key

        return self._update(change)

    def remove(self, name: str) -> bool:
        """Take a sprite's block away, with the last one all of ours; False if there was none."""
        if name not in self.blocks():
            return False

        def change(texts: dict[str, str], keys: dict[str, str]) -> None:
            texts.pop(name, None)
            drop_host_keys(keys, name)

        self._update(change)
        if not self.blocks():
            self.remove_include()
            keys = [self.own_key + end for end in ("", ".pub", ".lock")]
            for path in (self.path, self.known_hosts, self.path + ".lock", *keys):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            with contextlib.suppress(OSError):  # something of the user's is in it
                os.rmdir(self.folder)
        return True

    def _update(self, change: Callable[[dict[str, str], dict[str, str]], None]) -> bool:
        try:
            check_owner(self.folder)
            make_folder(self.folder)
            with lock_file(self.path + ".lock", self.path, self.console):
                texts, keys = self.blocks(), self.host_keys()
                change(texts, keys)
                text = self.HEAD + "\n".join(texts.values())
                lines = "".join(f"{alias} {key}\n" for alias, key in keys.items())
                # the host keys come first: with a block and without its key, ssh would refuse
                written = [self._write(self.known_hosts, lines), self._write(self.path, text)]
                return any(written)
        except OSError as error:
            raise ThoptersError(f"cannot write in {self.folder}: {error.strerror}") from None

    def _write(self, path: str, text: str) -> bool:
        if self._read(path) == text:
            return False
        replace_file(path, text.encode("utf-8", "surrogateescape"))
        return True

    # the user's own configuration, of which we change one line

    def has_include(self) -> bool:
        return self.include in self._read(self.user_path).splitlines()

    def add_include(self) -> None:
        self._change_user_file(lambda text: f"{self.include}\n{text}")

    def remove_include(self) -> None:
        if self.has_include():
            self._change_user_file(lambda text: without_line(text, self.include))

    def _change_user_file(self, change: Callable[[str], str]) -> None:
        """Replace the user's file whole, with its mode; a link to it stays one."""
        real = os.path.realpath(self.user_path)
        try:
            check_owner(os.path.dirname(real))
            make_folder(os.path.dirname(real))
            text = change(self._read(real))
            exists = os.path.exists(real)
            if exists and not text and real == self.user_path:
                os.unlink(real)
                return
            mode = stat.S_IMODE(os.stat(real).st_mode) if exists else 0o600
            data = text.encode("utf-8", "surrogateescape")
            replace_file(real, data, mode=mode, suffix=".thopters-new")
        except OSError as error:
            raise ThoptersError(f"cannot change {self.user_path}: {error.strerror}") from None


def check_owner(folder: str) -> None:
    """Raise UsageError where files of ours would be among another user's, as under sudo."""
    place = nearest_there(folder)
    owner = os.stat(place).st_uid
    if owner != os.geteuid():
        raise UsageError(
            f"{place} belongs to {user_name(owner)}, so nothing is written in it",
            hint="run this as that user, or set HOME to your own",
        )


def without_line(text: str, line: str) -> str:
    return "".join(part for part in text.splitlines(keepends=True) if part.rstrip("\r\n") != line)


def drop_host_keys(keys: dict[str, str], name: str, *, but: str = "") -> None:
    """Forget the host keys of all sprites that had this name."""
    host = name + SSH_SUFFIX
    for alias in [alias for alias in keys if host in (alias, alias[:-37]) and alias != but]:
        del keys[alias]


# setting up


def local_program(name: str, environ: Mapping[str, str]) -> str:
    path = find_program(name, environ)
    if path is None:
        raise ThoptersError(f"{name} is not installed here", hint="install OpenSSH's client")
    return path


def make_own_key(files: SshFiles, environ: Mapping[str, str]) -> str:
    """Return the path of our own key; the key is made where there is none."""
    path, folder = files.own_key, os.path.dirname(files.own_key)
    keygen = local_program("ssh-keygen", environ)
    status: int | None = 0
    err = ""
    try:
        check_owner(folder)
        make_folder(folder)
        with lock_file(path + ".lock", path, files.console):
            if not os.path.exists(path):
                words = ["-q", "-t", "ed25519", "-N", "", "-C", "thopters", "-f", path]
                status, _, err = run_program([keygen, *words], LOCAL_PROGRAM_LIMIT_S)
            elif not os.path.exists(path + ".pub"):  # it was ended between the two
                words = ["-y", "-P", "", "-f", path]
                status, out, err = run_program([keygen, *words], LOCAL_PROGRAM_LIMIT_S)
                replace_file(path + ".pub", out.encode())
    except OSError as error:
        raise ThoptersError(f"cannot write {path}: {error.strerror}") from None
    if status != 0:
        raise ThoptersError(f"cannot make the key {path}: {err.strip() or 'ssh-keygen hangs'}")
    return path


def key_tag() -> bytes:
    """Return what marks a key in a sprite as one of this user's on this machine."""
    import hashlib
    import socket

    who = f"{user_name(os.getuid())}@{socket.gethostname()}"
    return b"thopters-" + hashlib.sha256(to_bytes(who)).hexdigest()[:12].encode()


class SshThere:
    """What a set-up found or made in a sprite: its user, its host key, and whether it changed."""

    __slots__ = ("changed", "host_key", "user")

    def __init__(self, out: bytes) -> None:
        import re

        lines = out.decode("ascii", "replace").splitlines()
        self.changed = "changed" in lines
        self.user = next((line[5:] for line in lines if line.startswith("user ")), "")
        self.host_key = lines[-1] if lines else ""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", self.user):
            raise NoAnswerError("the sprite's answer names no user")
        if not re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/=]{40,200}", self.host_key):
            raise NoAnswerError("the sprite's answer holds no host key")


def run_ssh_script(
    sprite: Sprite,
    doing: str,
    script: bytes,
    *words: bytes,
    limit_s: float = SSH_SETUP_LIMIT_S,
) -> bytes | None:
    """Run a script for ssh in a sprite and return its stdout; None for NOT_YET, else an error."""
    try:
        status, out, err = retry_cut(
            sprite,
            lambda: run_script(
                sprite,
                script,
                *words,
                statuses=(0, 1, NOT_YET),
                limit_s=limit_s,
                is_held=limit_s > SSH_SETUP_LIMIT_S,
            ),
            twice_is_once=True,
        )
    except ExecLost as lost:
        raise NoAnswerError(
            f"cannot tell whether {sprite.name} could {doing}: {lost}", hint="try again"
        ) from None
    if status == NOT_YET:
        return None
    if status:
        said = err.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise ThoptersError(f"{sprite.name} cannot {doing}: {''.join(said) or 'no reason given'}")
    return out


def set_up_there(sprite: Sprite, key: str) -> SshThere:
    """Put the server's files into a sprite; what is there and right stays as it is."""
    doing, words = "be set up for ssh", (to_bytes(key), key_tag(), sshd_version())
    out = run_ssh_script(sprite, doing, SSH_SETUP_SCRIPT, *words)
    if out is None:
        fetch_server(sprite)
        out = run_ssh_script(sprite, doing, SSH_SETUP_SCRIPT, *words)
    if out is None:
        raise ThoptersError(f"{sprite.name} cannot {doing}: it has no ssh-keygen")
    return SshThere(out)


def listeners_in(sprite: Sprite) -> set[str]:
    """Return where something listens in a sprite, as the kernel writes addresses."""
    import re

    out = run_ssh_script(sprite, "list its sockets", SSH_LISTENERS_SCRIPT) or b""
    rows = re.findall(rb"(?m)^ *\d+: ([0-9A-F]+:[0-9A-F]{4}) \S+ 0A ", out)
    return {address.decode() for address in rows}


def fetch_server(sprite: Sprite) -> None:
    """Fetch OpenSSH's server for a sprite that has none, and see that nothing listens by it."""
    console, started = sprite.console, sprite.clock.monotonic()
    doing = "fetch OpenSSH's server"
    hint = f"install openssh-server there yourself: thopters shell {sprite.name}"
    before = listeners_in(sprite)
    try:
        with console.working(f"looking for packages in {sprite.name}"):
            plan = run_ssh_script(sprite, doing, SSH_PLAN_SCRIPT, limit_s=SSH_FETCH_LIMIT_S) or b""
        files = [line.split() for line in plan.decode("ascii", "replace").splitlines()]
        size = sum(int(line[1]) for line in files if line[1:] and line[1].isdigit())
        names = ", ".join(line[0].split("_")[0] for line in files if line)
        if not names:
            raise ThoptersError(f"{sprite.name} has OpenSSH's packages, but no sshd or ssh-keygen")
        console.note(f"{sprite.name} fetches {names} ({size / 1e6:.1f} MB)")
        with console.working(f"fetching {names} in {sprite.name}"):
            run_ssh_script(sprite, doing, SSH_FETCH_SCRIPT, limit_s=SSH_FETCH_LIMIT_S)
    except ThoptersError as error:
        error.hint = error.hint or hint
        raise
    seconds = sprite.clock.monotonic() - started
    console.note(f"fetched into ~/.thopters/ssh in {seconds:.1f} s; nothing was installed")
    new = {int(address.rpartition(":")[2], 16) for address in listeners_in(sprite) - before}
    if new:
        ports = ", ".join(map(str, sorted(new)))
        console.warn(
            f"something has begun to listen in {sprite.name} meanwhile, at port {ports}: "
            "not the ssh server, which was unpacked and not started"
        )


def new_ssh_host(sprite: Sprite, files: SshFiles) -> SshHost:
    """Return what a block will say of a sprite, with our own key and the platform's usual user."""
    info, transport = sprite.require(), sprite.api.transport
    return SshHost(
        sprite.name,
        user="sprite",
        key=files.own_key,
        api=transport.base.geturl(),
        identity=plain_word(info.id),
        org=plain_word(info.organization or transport.credential.org or ""),
    )


def plain_word(text: str) -> str:
    """Return what the API says if a line of a file can hold it, else ""."""
    import re

    return text if re.fullmatch(r"[A-Za-z0-9._@+-]{1,128}", text) else ""


def set_up_ssh(
    sprite: Sprite, files: SshFiles, *, key: str = "", limits: Sequence[str] | None = None
) -> bool:
    """Make a sprite a host of ssh, on both sides; return whether anything has changed.

    Without `key` and `limits` those of its block stay; without a block the key is our own.
    """
    host, old = new_ssh_host(sprite, files), files.find(sprite.name)
    host.key = key or (old.key if old else files.own_key)
    host.limits = list(limits or (old.limits if old and limits is None else ()))
    if host.key == files.own_key:
        make_own_key(files, sprite.api.transport.environ)
    with sprite.console.working(f"setting up ssh in {sprite.name}"):
        there = set_up_there(sprite, host.public_key())
        sprite.require_same(host.identity)
    host.user = there.user
    changed = files.put(host, there.host_key)
    if host.key == files.own_key and not os.path.exists(host.key):
        # a --remove of the last host took it away meanwhile; from now on this is a host
        return set_up_ssh(sprite, files, key=key, limits=limits) or True
    return changed or there.changed


def renew_ssh(sprite: Sprite, files: SshFiles) -> None:
    """Put today's key into a sprite that is a host of ssh; not into another one of its name."""
    host = files.find(sprite.name)
    if host and not is_another(sprite.require().id, host.identity):
        set_up_ssh(sprite, files)


def remove_from_there(sprite: Sprite, host: SshHost) -> bool:
    """Take our key out of a sprite, with the last key all of ssh's; False where it is gone."""
    info = sprite.find()
    if info is None or is_another(info.id, host.identity):
        return False
    key = ""
    with contextlib.suppress(ThoptersError):  # the key itself may be gone, and its mark is known
        key = host.public_key()
    run_ssh_script(sprite, "remove its ssh keys", SSH_REMOVE_SCRIPT, key_tag(), to_bytes(key))
    return True


# What a program has that is started by a desktop, and not from a shell
SESSION_VARIABLES = (
    *("HOME", "USER", "LOGNAME", "TMPDIR", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"),
)
# What a connection may need and only a shell have: a token, a way, trust
CONNECTION_VARIABLES = (
    TOKEN_VARIABLES,
    ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"),
    ("SSL_CERT_FILE", "SSL_CERT_DIR", "THOPTERS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)


def try_connection(host: SshHost, environ: Mapping[str, str]) -> str:
    """Start a ProxyCommand, and return "" if an ssh server answers, else the last words of it."""
    status, out, err = run_program(host.stdio(), SSH_TRY_LIMIT_S, environ)
    if out.startswith("SSH-"):
        return ""
    why = "it takes too long" if status is None else "it says nothing"
    return (err.strip().splitlines() or [why])[-1].removeprefix("thopters: error: ")


def needed_variables(sprite: Sprite, host: SshHost) -> list[str]:
    """See that a connection works; return the variables that it does not work without.

    A desktop starts programs without what only a shell has set. ThoptersError where it does not
    work with all of them either.
    """
    environ = sprite.api.transport.environ
    bare = {name: environ[name] for name in SESSION_VARIABLES if name in environ}
    bare["PATH"] = os.defpath
    groups = [[name for name in names if environ.get(name)] for names in CONNECTION_VARIABLES]
    groups = list(filter(None, groups))
    given = {name: environ[name] for names in groups for name in names}
    with sprite.console.working(f"trying a connection to {sprite.name}"):
        if not try_connection(host, bare):
            return []
        if why := try_connection(host, bare | given):
            raise ThoptersError(f"{sprite.name} is set up for ssh, but does not answer: {why}")
        needed = list[str]()
        for names in groups if len(groups) > 1 else ():
            others = {name: value for name, value in given.items() if name not in names}
            needed += names if try_connection(host, bare | others) else []
    return needed or list(given)


# one connection


def format_span(seconds: float) -> str:
    """Return a time in the largest unit that leaves no rest, such as "15 minutes"."""
    for size, unit in ((3600, "hour"), (60, "minute"), (1, "second")):
        count, rest = divmod(round(seconds), size)
        if count and not rest:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{seconds:.1f} seconds"


class SshWatch:
    """Counts what goes through a connection, and tells when its sprite is to be let go.

    There is work while more than SSH_BUSY_BYTES go through in a minute. `idle_s` seconds after the
    last of it the connection is over, None for never, and after SSH_MAX_S in any case.
    """

    def __init__(self, clock: Clock, idle_s: float | None) -> None:
        self._clock = clock
        self._idle_s = idle_s
        self._began = self._worked_at = clock.monotonic()
        self._recent: list[list[float]] = []  # of the last minute: when, and how many bytes

    def note(self, count: int) -> None:
        now = self._clock.monotonic()
        if self._recent and now - self._recent[-1][0] < SSH_MINUTE_S / 60:
            self._recent[-1][1] += count
        else:
            self._recent = [part for part in self._recent if now - part[0] < SSH_MINUTE_S]
            self._recent.append([now, count])
        if sum(part[1] for part in self._recent) > SSH_BUSY_BYTES:
            self._worked_at = now

    def verdict(self) -> str:
        """Return why the connection is over, "" as long as it is not."""
        now = self._clock.monotonic()
        if now - self._began >= SSH_MAX_S:
            return f"it was open for {format_span(SSH_MAX_S)}"
        if self._idle_s is not None and now - self._worked_at >= self._idle_s:
            return f"less than 4 KB a minute went through it for {format_span(self._idle_s)}"
        return ""


class SshInput(LocalInput):
    """What ssh sends; kept until the server has answered, in case that has to be started again."""

    is_always_read = True

    def __init__(self, watch: SshWatch) -> None:
        super().__init__()
        for fd in (0, 1):
            widen_pipe(fd)
        self.kept = bytearray()
        self.is_kept = True
        self._watch = watch

    def read(self) -> bytes:
        data = super().read()
        self._watch.note(len(data))
        if self.is_kept:
            self.kept += data
        return data


class SshConnection:
    """A server in a sprite for one connection, joined to our stdin and stdout."""

    ANSWER_LIMIT_S = 60.0

    def __init__(self, sprite: Sprite, files: SshFiles, host: SshHost, watch: SshWatch) -> None:
        self.sprite = sprite
        self.files = files
        self.host = host
        self.watch = watch
        self._input = SshInput(watch)
        self._session: StreamSession | None = None
        self._before = b""  # what came on stdout and is no server's
        self._answered = False
        self._said = Kept()  # on stderr

    def run(self) -> int:
        """Serve it to its end; ThoptersError where it can't be, is lost, or is let go."""
        try:
            with self.sprite.console.working(f"waiting for {self.sprite.name}"):
                session = self._open()
                status = self._start(session)
                if status == NOT_YET:
                    self._set_up_again()
                    session = self._open()
                    status = self._start(session)
            if status != STILL_RUNNING:
                said = bytes(self._said).decode("utf-8", "replace").strip().splitlines()[-1:]
                why = "".join(said) or f"it ended with status {status}"
                raise ThoptersError(f"the ssh server of {self.sprite.name} does not start: {why}")
            return self._follow(session)
        except ExecLost as lost:
            raise self._lost(lost) from None
        except Interrupted as interrupted:
            if interrupted.signum != getattr(signal, "SIGHUP", 0):
                raise  # a HUP is how ssh says that it is done with us
            return EXIT_OK
        finally:
            self._close()

    def _open(self) -> StreamSession:
        self._close()
        websocket = open_sprite_socket(self.sprite, exec_target(self.sprite), WAKE_LIMIT_S)
        sinks: dict[int, Sink] = {STREAM_STDOUT: self._show, STREAM_STDERR: self._hear}
        self._session = StreamSession(websocket, self.sprite.clock, sinks)
        return self._session

    def _start(self, session: StreamSession) -> int:
        """Start a server, and return STILL_RUNNING once it answers, else its exit status."""
        words = [
            to_bytes(self.files.host_keys().get(self.host.alias, "")),
            to_bytes(self.host.public_key()),
            sshd_version(),
        ]
        argv = [b"bash", b"-c", SSH_START_SCRIPT, b"thopters-ssh", *words]
        command = RemoteCommand(
            argv, hold_max_s=round(SSH_MAX_S), hold_alone=False, with_keys=False
        )
        session.begin(command, self._input, bytes(self._input.kept))
        return session.await_exit(self.ANSWER_LIMIT_S, lambda: self._answered)

    def _show(self, data: bytes | memoryview) -> None:
        """Pass on what the server sends, from its first word on."""
        if not self._answered:
            self._before += data
            start = self._before.find(b"SSH-")
            if start < 0:
                return
            data = self._before[start:]
            self._answered, self._input.is_kept = True, False
        self.watch.note(len(data))
        write_stdout(data)

    def _hear(self, data: bytes | memoryview) -> None:
        self._said.take_last(data)
        for line in bytes(data).decode("utf-8", "replace").splitlines():
            self.sprite.console.detail(f"{self.sprite.name} says: {line}")

    def _set_up_again(self) -> None:
        """Put in what the sprite lacks, as after a restore of an older checkpoint."""
        set_up_ssh(self.sprite, self.files)
        self.host = self.files.find(self.sprite.name) or self.host
        self.sprite.console.note(
            f"thopters: {self.sprite.name} lacked its ssh server's files, as after a restore; "
            "they were put in again"
        )

    def _follow(self, session: StreamSession) -> int:
        """Pass all on to the end; ^C at the terminal that we share with ssh is for ssh."""
        shared = (signal.SIGINT, getattr(signal, "SIGQUIT", signal.SIGINT))
        ignored = {} if sys.stdin.isatty() else dict.fromkeys(shared, lambda *_: None)
        here = HoldRefresher(self.sprite, session, self.sprite.console.detail, just_begun=True)
        with Handlers(ignored), here:
            status = session.await_exit(None, lambda: bool(self.watch.verdict()))
        if status != STILL_RUNNING:
            return EXIT_OK
        name = self.sprite.name
        raise ThoptersError(
            f"the connection to {name} was closed, so that {name} can sleep: "
            f"{self.watch.verdict()}",
            hint="--idle TIME and --hold keep it for longer",
        )

    def _lost(self, lost: ExecLost) -> ThoptersError:
        name, state = self.sprite.name, self.sprite.glance_at_state()
        why = {"hibernating": f"{name} has paused", "gone": f"there is no sprite {name} any more"}
        return NoAnswerError(f"the connection to {name} was lost: {why.get(state, str(lost))}")

    def _close(self) -> None:
        """Tell the server that no more comes, so that it ends at once, and leave."""
        if self._session:
            self._session.websocket.send(OP_BINARY, bytes((STREAM_EOF,)))
            self._session.close()


def serve_ssh(sprite: Sprite, files: SshFiles, identity: str, idle_s: float | None) -> int:
    """Be the connection itself, for an ssh that starts us for that: its ProxyCommand."""
    sys.stdout.flush()
    binary_streams()
    again = f"set it up: thopters ssh --setup {sprite.name}"
    host = files.find(sprite.name)
    if host is None:
        raise ThoptersError(f"{sprite.name} is not set up for ssh here", hint=again)
    if is_another(sprite.require().id, identity or host.identity):
        raise ThoptersError(
            f"{sprite.name} was destroyed and made again since it was set up for ssh: this one has "
            "another id, so the old host key is not accepted",
            hint=again,
        )
    if idle_s is None:
        list_holds(sprite)  # an image without them is an error where one is asked for
    return SshConnection(sprite, files, host, SshWatch(sprite.clock, idle_s)).run()


# --- command line -----------------------------------------------------------------------

# A command is one declaration: its name (of two words perhaps, as in `env set`), a line of summary,
# its arguments as data, examples. The parser, the help, "did you mean" and the checks of the tests
# are made from these alone, so that to add a command is to add one block to the next room.


class Argument:
    """One argument of a command, in the words of argparse's add_argument.

    The action "boolean" makes --X and --no-X of --X. `offers` is what a value of it can be, for the
    completion: a kind that is known there (OFFERS), or the words themselves.
    """

    __slots__ = ("names", "offers", "options")

    def __init__(self, *names: str, offers: str | tuple[str, ...] = (), **options: Any) -> None:
        self.names = names
        self.offers = offers or tuple(options.get("choices", ()))
        self.options = options

    @property
    def is_option(self) -> bool:
        return self.names[0].startswith("-")

    @property
    def takes_value(self) -> bool:
        return self.options.get("action") in (None, "append")

    @property
    def is_repeated(self) -> bool:
        """Return whether it can be given more than once."""
        action = str(self.options.get("action", ""))
        return self.options.get("nargs") in ("*", "+") or action.startswith("append")

    def each(self) -> Iterator[Argument]:
        yield self

    def spellings(self) -> tuple[str, ...]:
        """Return the words that give an option."""
        if self.options.get("action") == "boolean":
            return (*self.names, *(name.replace("--", "--no-", 1) for name in self.names))
        return self.names

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        import argparse

        options = dict(self.options)
        if options.get("action") == "boolean":
            options["action"] = argparse.BooleanOptionalAction
        parser.add_argument(*self.names, **options)


class OneOf:
    """Options of which one at most may be given; just one if `required`."""

    __slots__ = ("arguments", "required")

    def __init__(self, *arguments: Argument, required: bool = False) -> None:
        self.arguments = arguments
        self.required = required

    def each(self) -> Iterator[Argument]:
        yield from self.arguments

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group(required=self.required)
        for argument in self.arguments:
            argument.add_to(group)


class App:
    """What a command works with; the API is made, and the token looked for, when first needed."""

    def __init__(
        self, console: Console, environ: Mapping[str, str], clock: Clock, command: str = ""
    ) -> None:
        self.console = console
        self.environ = environ
        self.clock = clock
        self.command = command
        self.keyring_limit_s = KEYRING_LIMIT_S
        self.mends = True  # whether the modes of the configuration may be changed
        self._api: SpritesApi | None = None
        self._config: Config | None = None
        self._keys: Keys | None = None

    @property
    def config(self) -> Config:
        if self._config is None:
            self._config = Config(self.environ, self.console, mends=self.mends)
        return self._config

    def config_if_any(self) -> Config | None:
        """Return the configuration, None where there can be none: without a home directory."""
        try:
            return self.config
        except NoHomeError:
            if self.environ.get("THOPTERS_CONFIG"):
                raise
            return None

    @property
    def keys(self) -> Keys:
        """Return the configuration's keys and their record; an unreadable one is an error now."""
        if self._keys is None:
            self._keys = Keys(self.config_if_any())
        return self._keys

    def bring_keys(self, sprite: Sprite) -> None:
        """Put pending keys into a sprite that is about to be used."""
        with contextlib.suppress(ThoptersError):  # no configuration is needed to use a sprite
            bring_pending_keys(sprite, self.keys)

    def default_prefix(self) -> str:
        """Return the prefix for `list`, which can do without a file that is not readable."""
        try:
            config = self.config_if_any()
        except NotOursError as error:
            self.console.warn(f"{error}; all sprites are listed")
            if error.hint:
                self.console.remedy(error.hint)
            return ""
        return config.prefix if config else ""

    def sprite(
        self, name: str | None, *, changes: bool = True, only_by_name: bool = False
    ) -> Sprite:
        """Return the handle of a sprite by the name that the user gave, or chooses now.

        `.` is the sprite of this directory, unless it has to be meant by name. What `changes`
        something says so, and takes none from a `.sprite` file without consent.
        """
        if name is None:
            (name,) = self.choose_names(several=False)
        if name == HERE and only_by_name:
            raise UsageError(
                f"thopters {self.command} takes no {HERE}: type the name of the sprite",
                hint="see which one it is: thopters use",
            )
        if name == HERE:
            name = self._take_chosen(changes=changes)
        return self._handle(valid_name(name))

    def _handle(self, name: str) -> Sprite:
        return Sprite(name, self.console, self.clock, lambda: self.api)

    def chosen(self) -> Chosen | None:
        """Return the sprite of this directory, None where it has none."""
        return find_chosen(self.config_if_any(), self.environ, self.console)

    def memory(self) -> Memory:
        """Return what earlier commands have seen with the same token."""
        return Memory(self.environ, self._find_credential(api_base(self.environ)))

    def _take_chosen(self, *, changes: bool) -> str:
        """Return the name of this directory's sprite; UsageError where it has none, or may not."""
        chosen = self.chosen()
        if chosen is None:
            raise UsageError("this directory has no sprite", hint="choose one: thopters use NAME")
        if chosen.file:
            check_organization(chosen, self._handle(chosen.name))
        if chosen.file and changes:
            require_consent(chosen, self.config_if_any(), self.console)
        tell = self.console.note if changes else self.console.detail
        tell(f"using {chosen.name}: {chosen.source()}")
        return chosen.name

    def choose_names(self, *, several: bool) -> list[str]:
        """Have the user choose from a list where a name is missing; UsageError without one."""
        if not self.console.can_ask():
            raise UsageError(
                "the following arguments are required: NAME",
                hint=f"see: thopters {self.command} --help",
            )
        return choose_sprites(self.api, self.default_prefix(), several=several)

    def connect(self) -> SpritesApi:
        """Return the API; what is wrong with the token or the URL is said now, and once."""
        with contextlib.suppress(ThoptersError):
            self.keys  # noqa: B018 (several threads may ask for them)
        return self.api

    def close(self) -> None:
        if self._api:
            self._api.transport.close()

    @property
    def api(self) -> SpritesApi:
        if self._api is None:
            base = api_base(self.environ)
            credential = self._find_credential(base)
            with contextlib.suppress(ThoptersError):  # servers may say back what sprites hold
                self.config_if_any()
            self.console.detail(f"{base} with the token from {credential.source}")
            if credential.source in TOKEN_VARIABLES and not is_usual_place(base):
                # one that is stored belongs to an address
                self.console.note(
                    f"{credential.source} goes to {host_of(base)}, which SPRITES_API_URL names"
                )
            transport = Transport(
                base,
                credential,
                console=self.console,
                clock=self.clock,
                environ=self.environ,
                look_again=lambda: self._find_credential(base),
            )
            self._api = SpritesApi(transport)
        return self._api

    def _find_credential(self, base: str) -> Credential:
        credential = find_credential(self.environ, base, self.console, self.keyring_limit_s)
        self.console.redact.add(credential.token)
        return credential


class Command:
    """Decorate a function to make it a command of the program.

    `arguments` are shown in the help in this order; `examples` are true ones, a test runs them;
    `group` is the heading in the overview, "" for a command that is not listed there;
    `own_failure` is the exit status of every failure of ours but wrong usage; with
    `takes_command`, what follows `--` becomes `args.command`; with `all_own`, what follows the
    first name is another program's and becomes `args.rest`, unless one of these options comes
    before it. The function returns the exit status.
    """

    run: Callable[[App, argparse.Namespace], int]

    def __init__(
        self,
        name: str,
        summary: str,
        *arguments: Argument | OneOf,
        examples: Sequence[str],
        group: str = "other commands",
        aliases: tuple[str, ...] = (),
        own_failure: int | None = None,
        takes_command: bool = False,
        all_own: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.summary = summary
        self.arguments = arguments
        self.examples = examples
        self.group = group
        self.aliases = aliases
        self.own_failure = own_failure
        self.takes_command = takes_command
        self.all_own = all_own

    def count_own(self, words: Sequence[str]) -> int:
        """Return how many of the words are not another program's."""
        flat = list[Argument]()
        for one in self.arguments:
            flat += one.arguments if isinstance(one, OneOf) else [one]
        valued = {name for each in flat if "action" not in each.options for name in each.names}
        place = 0
        while self.all_own and place < len(words):
            if words[place] in self.all_own:
                break
            if not words[place].startswith("-"):
                return place + 1
            place += 2 if words[place] in valued else 1
        return len(words)

    def __call__(
        self, function: Callable[[App, argparse.Namespace], int]
    ) -> Callable[[App, argparse.Namespace], int]:
        self.run = function
        COMMANDS.append(self)
        return function

    def options(self) -> list[str]:
        """Return every spelling of each option that the command takes."""
        own = [argument for item in self.arguments for argument in item.each()]
        spellings = (word for each in own if each.is_option for word in each.spellings())
        return [*spellings, *GLOBAL_OPTIONS, *HELP]


COMMANDS: list[Command] = []  # in the order of the help
GLOBAL_OPTIONS = ("-v", "--verbose", "--debug")
HELP = ("-h", "--help")

# What somebody who knows other programs may type, by what is meant by it
MEANT = {
    "destroy": "delete remove del",
    "resume": "start up",
    "pause": "stop suspend sleep down",
    "exec": "run execute",
    "shell": "sh bash connect enter",
    "create": "new make launch",
    "list": "status show",
    "info": "inspect describe",
    "doctor": "check diagnose",
    "sessions": "ps jobs top",
    "logs": "log tail output",
    "wait": "await",
    "attach": "join reattach",
    "hold": "keep keepalive",
    "checkpoint": "snapshot save",
    "checkpoints": "snapshots",
    "restore": "rollback revert undo",
    "cp": "copy scp rsync upload download push pull",
    "proxy": "forward port tunnel",
    "rename": "mv move",
    "url": "open share publish",
    "use": "select switch",
    "setup": "login auth configure",
    "help": "man",
    "--version": "version",
}
OPTIONS_MEANT = {
    "--yes": "-y --force",
    "--force": "-f --yes",
    "--dir": "-C -w --workdir --cwd",
    "--env": "-e",
    "--detach": "-d --background",
    "--tail": "-n --lines",
    "--comment": "-m --message",
    "--json": "-o --output --format",
    "--signal": "-s",
    "--prefix": "-p --filter",
    "--if-missing": "--exist-ok",
    "--version": "-V",
}
SPELLING = 0.75  # how like two words have to be: one letter more, less or changed in four


def nearest(word: str, known: Iterable[str], meant: Mapping[str, str]) -> str:
    """Return which known word was meant by another one, by its meaning or by its spelling.

    "" where nothing is near: a guess that is wrong costs more than none.
    """
    known = list(known)
    for name, words in meant.items():
        if word in words.split() and name in known:
            return name
    import difflib

    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=SPELLING)), "")


def command_row(command: Command) -> str:
    return f"  {', '.join((command.name, *command.aliases)):<14}  {command.summary}"


# Pages of the help that explain no command
ENVIRONMENT = """\
The platform and its token:
  SPRITE_TOKEN, SPRITES_TOKEN  the token; the first that is set is used
  SPRITES_API_URL              the API's address (default: https://api.sprites.dev)
  SPRITE_ORG                   the org whose stored login is used

thopters itself:
  THOPTERS_CONFIG      the file of the configuration, as an absolute path or ~/PATH
  THOPTERS_NATIVE      if set, the sprite program is not used for shell and proxy
  THOPTERS_DEBUG       if set, an error shows its traceback, without secrets
  THOPTERS_GITHUB_API  where setup tries a GITHUB_PAT

Taken by setup --from-env, beside the names of your keys:
  GIT_AUTHOR_NAME, GIT_AUTHOR_EMAIL  the git identity
  THOPTERS_PREFIX                    the prefix for list

The network:
  HTTPS_PROXY, ALL_PROXY      the proxy, as http://HOST:PORT
  NO_PROXY                    the hosts that are reached without it
  THOPTERS_CA_BUNDLE          certificates to trust besides those of the system
  REQUESTS_CA_BUNDLE,
  CURL_CA_BUNDLE              the same, as other programs name them
  SSL_CERT_FILE               takes the place of the system's file of certificates
  SSL_CERT_DIR                takes the place of the system's folder of certificates
  SSLKEYLOGFILE               where the keys of TLS are written, to look into the traffic

The terminal and this machine:
  NO_COLOR                    if set, nothing is coloured
  TERM, COLORTERM, LANG       go to the sprite with a terminal, if it knows them
  HOME (Windows: USERPROFILE) where the configuration and the login are
  PATH                        where the sprite program and git are looked for
  XDG_CACHE_HOME              where what Tab goes by is kept
  PYTHONDONTWRITEBYTECODE     if set, no compiled code is kept"""

EXIT_CODES = """\
  0    done
  1    failed, or no whole answer came, so the outcome may be unknown
  2    wrong usage, or nobody consented
  3    no such sprite, checkpoint or session
  4    not authenticated: no token, or the API refused it
  5    a sprite of that name exists already
  6    a limit of the plan or of the rate is reached
  7    timed out
  127  Windows only: the sprite program is needed for a shell
  255  exec, shell, attach, wait and ssh failed themselves, with a message

exec, shell, attach, wait and ssh end with the command's own status. Wrong usage (2), a session \
that does not exist (3), the time of wait (7) and 127 stay as they are. With a pattern the worst \
status counts: 3 if nothing matches, 6 if all that match are asleep.

A signal ends the program as that signal does: a shell shows 129 for HUP, 130 for INT (Ctrl-C), \
131 for QUIT, 141 for a closed pipe and 143 for TERM."""

TOPICS = {"environment": ENVIRONMENT, "exit-codes": EXIT_CODES}


def help_columns() -> int:
    """Return how wide help is: as the window is, and never above 80."""
    return max(20, min(window_columns(1), 80))


def help_on(words: list[str]) -> str:
    """Return the help of a command or a topic, or a line for each command that begins with a word.

    Without a word it is the overview.
    """
    if len(words) == 1 and words[0] in TOPICS:
        return folded(TOPICS[words[0]], help_columns())
    if not words:
        return overview()
    family = [command for command in COMMANDS if command.name.split()[:-1] == words]
    if family:
        return "\n".join(["commands:", *map(command_row, family)])
    command, count = find_command(words)
    if len(words) > count:
        raise UsageError(f"help explains one command, and {words[count][:64]!r} is left over")
    return help_of(build_parser(command))


def overview() -> str:
    """Return the text of `thopters --help`; made without argparse, so it costs nothing."""
    groups: dict[str, list[str]] = {}
    for command in COMMANDS:
        groups.setdefault(command.group, []).append(command_row(command))
    groups.pop("", None)
    rows = "\n\n".join("\n".join([f"{name}:", *lines]) for name, lines in groups.items())
    return folded(
        f"""\
usage: thopters [-v] [--debug] COMMAND ...

Long-lived, pausable development machines on Fly Sprites, from one file.

{rows}

options, before or after the command:
  -v, --verbose   say what was tried
  --debug         one line per request: never a body, a header or a secret
  -h, --help      this text; after a command, the command's
  --version       in place of a command: the version of this program

more help:
  thopters help COMMAND      a command's options, and examples
  thopters help environment  the variables that count
  thopters help exit-codes   what each exit status means

examples:
  thopters create dev
  thopters exec dev -- git clone https://github.com/user/repo
  thopters help exec""",
        help_columns(),
    )


def find_command(words: list[str]) -> tuple[Command, int]:
    """Return the command that a command line begins with, and how many words name it."""
    by_name = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}
    for count in (2, 1):
        if (name := " ".join(words[:count])) in by_name and len(words) >= count:
            return by_name[name], count
    word = words[0]
    followed = [name.split()[1] for name in by_name if name.startswith(word + " ")]
    if followed and words[1:2] in (["-h"], ["--help"]):
        raise HelpWanted(help_on([word]))
    if followed:
        raise UsageError(
            f"{word} needs a second word: {', '.join(followed)}", hint=f"see: thopters help {word}"
        )
    known = [*by_name, *(name.split()[0] for name in by_name), "--version"]
    near = nearest(word, known, MEANT)
    hint = f"did you mean {near}?" if near else "see: thopters --help"
    raise UsageError(f"there is no command {word[:64]!r}", hint=hint)


class HelpWanted(Exception):
    """The user wants the help of a command, which the text is."""


def help_of(parser: argparse.ArgumentParser) -> str:
    return folded(parser.format_help().rstrip("\n"), help_columns())


def build_parser(command: Command) -> argparse.ArgumentParser:
    import argparse

    class Parser(argparse.ArgumentParser):
        color: bool

        def print_help(self, file: object = None) -> NoReturn:
            raise HelpWanted(help_of(self))  # its own way hides that it could not be written

        def error(self, message: str) -> NoReturn:
            raise UsageError(message, hint=f"see: thopters {command.name} --help")

    parser = Parser(
        prog=f"thopters {command.name}",
        description=command.summary,
        epilog="examples:\n" + "".join(f"  {line}\n" for line in command.examples),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=28, width=help_columns()
        ),
        allow_abbrev=False,
    )
    parser.color = False  # since Python 3.14, where it would not ask us whether it may
    for argument in command.arguments:
        argument.add_to(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="say what was tried")
    parser.add_argument("--debug", action="store_true", help="one line per request")
    return parser


def refuse_unknown(command: Command, unknown: list[str]) -> None:
    """Raise UsageError for words that a command does not know, with the option that was meant."""
    if not unknown:
        return
    hint = f"see: thopters {command.name} --help"
    word = unknown[0].partition("=")[0]
    if word.startswith("-") and (near := nearest(word, command.options(), OPTIONS_MEANT)):
        hint = f"did you mean {near}?"
    raise UsageError(f"unrecognized arguments: {' '.join(unknown)}", hint=hint)


def parse_known(command: Command, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments, which may stand in any order, and the words that are left over."""
    parser = build_parser(command)
    # the way of argparse's by which an option may stand anywhere makes nothing of `--`
    has_mark = "--" in words
    parse_words = parser.parse_known_args if has_mark else parser.parse_known_intermixed_args
    try:
        return parse_words(words)
    except UsageError:  # what is missing may be there, in an option that is misspelt
        known = command.options()
        refuse_unknown(
            command,
            [
                word
                for word in words[: words.index("--") if has_mark else None]
                if word.startswith("--") and word.partition("=")[0] not in known
            ],
        )
        raise


def own_words(argv: list[str]) -> list[str]:
    """Return the words of a command line that are no command for a sprite."""
    for place, word in enumerate(argv):
        command = next((command for command in COMMANDS if command.name == word), None)
        if command and command.all_own:
            return argv[: place + 1 + command.count_own(argv[place + 1 :])]
        if word not in GLOBAL_OPTIONS:
            break
    return argv[: argv.index("--")] if "--" in argv else argv


def parse(argv: list[str]) -> tuple[Command, argparse.Namespace]:
    """Return the command and its arguments; what follows `--` is never looked at."""
    before = 0
    while before < len(argv) and argv[before] in GLOBAL_OPTIONS:
        before += 1
    if before == len(argv):
        raise UsageError("a command is missing", hint="see: thopters --help")
    if argv[before].startswith("-"):
        near = nearest(argv[before], [*GLOBAL_OPTIONS, *HELP, "--version"], OPTIONS_MEANT)
        hint = f"did you mean {near}?" if near else "see: thopters --help"
        raise UsageError(f"there is no option {argv[before][:64]!r}", hint=hint)
    command, count = find_command(argv[before:])
    words = argv[:before] + argv[before + count :]
    if command.all_own:
        count = command.count_own(words)
        words, rest = words[:count], words[count:]
        args = build_parser(command).parse_intermixed_args(words)
        args.rest = rest
        return command, args
    if command.takes_command and "--" in words:
        # argparse's own treatment of `--` differs between versions of Python
        split = words.index("--")
        words, rest = words[:split], words[split + 1 :]
        args, unknown = build_parser(command).parse_known_args(words)
        refuse_unknown(command, unknown)
        if args.command:
            raise UsageError(
                "the command comes after --", hint=f"thopters {command.name} NAME -- COMMAND"
            )
        args.command = rest
        return command, args
    if not command.takes_command:
        args, unknown = parse_known(command, words)
        refuse_unknown(command, unknown)
        return command, args
    args, unknown = build_parser(command).parse_known_args(words)
    stray = args.command or [word for word in unknown[:1] if not word.startswith("-")]
    if stray:
        import shlex
        from collections import Counter

        own = words[-1:]  # the shortest end that has all of them, options too
        while len(own) < len(words) and Counter([*args.command, *unknown]) - Counter(own):
            own = words[-len(own) - 1 :]
        if own == words:  # argparse has split one of them
            own = words[words.index(args.name) + 1 :]
        fixed = f"thopters {command.name} {args.name} -- {shlex.join(own)}"
        raise UsageError("put -- before the command", hint=fixed)
    refuse_unknown(command, unknown)
    return command, args


# --- completion -------------------------------------------------------------------------

# What Tab offers. `completion SHELL` prints a script, and on each Tab the script runs
# `thopters --complete SHELL ...` with what is typed. That prints a line for each word that may
# stand there, perhaps with a tab and a description, and FILES where names of local files may. It
# goes by the same declarations as the parser.
#
# A Tab must not hurt. Names come from what commands have seen, else from the API, within a limit;
# a sprite is never looked into, since that could wake it. Nothing that fails is said. What comes
# from elsewhere is offered only where a shell makes nothing of it: letters, digits, `.`, `_`, `-`.
COMPLETE = "--complete"
FILES = ":files"
TAB_LIMIT_S = 0.3

BASH_SCRIPT = r"""
_thopters() {
    local word text files=
    COMPREPLY=()
    while IFS=$'\t' read -r word text; do
        case $word in
            '') ;;
            :files) files=1 ;;
            *) COMPREPLY+=("$word") ;;
        esac
    done <<< "$(
        command thopters --complete bash "${COMP_LINE:0:COMP_POINT}" "${COMP_WORDBREAKS-}" \
            2> /dev/null < /dev/null
    )"
    if [[ -n $files && ${#COMPREPLY[@]} -eq 0 ]]; then
        compopt -o default 2> /dev/null
    elif [[ -n $files ]]; then
        while IFS= read -r word; do
            [[ -n $word ]] || continue
            if [[ -d $word ]]; then text=/; else text=; fi
            printf -v word %q "$word"
            COMPREPLY+=("$word$text")
        done <<< "$(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")"
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:/] ]]; then
        compopt -o nospace 2> /dev/null
    fi
}
complete -F _thopters thopters
"""
ZSH_SCRIPT = r"""
#compdef thopters
_thopters() {
    local word text files= found=1
    local -a plain plain_texts open open_texts
    while IFS=$'\t' read -r word text; do
        case $word in
            (:files) files=1 ;;
            (*:) open+=("$word") open_texts+=("$word${text:+  -- $text}") ;;
            (*) plain+=("$word") plain_texts+=("$word${text:+  -- $text}") ;;
        esac
    done < <(
        command thopters --complete zsh "${(@Q)words[2,CURRENT]:0:$((CURRENT - 2))}" \
            "${(Q)PREFIX}" 2> /dev/null < /dev/null
    )
    if (( $#plain )); then compadd -l -d plain_texts -a plain && found=0; fi
    if (( $#open )); then compadd -S '' -l -d open_texts -a open && found=0; fi
    if [[ -n $files ]]; then _files && found=0; fi
    return found
}
if [[ ${funcstack[1]-} == _thopters ]]; then
    _thopters "$@"
else
    (( ${+functions[compdef]} )) || { autoload -Uz compinit && compinit -i }
    compdef _thopters thopters
fi
"""
FISH_SCRIPT = r"""
function __thopters_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l line
    for line in (command thopters --complete fish $words[2..-1] "$current" 2> /dev/null < /dev/null)
        if test "$line" = :files
            complete -C "'' $current"
        else
            printf '%s\n' "$line"
        end
    end
end
complete -c thopters -f -a '(__thopters_complete)'
"""
# Where the scripts are to be called from
SCRIPT_LINES = {
    "bash": '~/.bashrc: eval "$(thopters completion bash)"',
    "zsh": '~/.zshrc: eval "$(thopters completion zsh)"',
    "fish": "~/.config/fish/config.fish: thopters completion fish | source",
}
SCRIPTS = {"bash": BASH_SCRIPT, "zsh": ZSH_SCRIPT, "fish": FISH_SCRIPT}


class Silence(Console):
    """A console that says nothing: what a Tab finds wrong is for the next command to say."""

    def tell(self, text: str) -> None:
        pass


def answer_tab(shell: str, words: list[str], console: Console, environ: Mapping[str, str]) -> None:
    """Print what may stand in the place of the last word: a line each, with a description perhaps.

    bash gives the line up to the cursor, and the characters at which it breaks words; the others
    give the words themselves, and choose by what is typed of the last one.
    """
    quiet, kept, is_bash = Silence(console.out, console.err, environ), 0, shell == "bash"
    if is_bash:
        line, breaks = words
        words, is_file = without_redirections(split_line(line)[1:])
        if is_file:
            quiet.answer(FILES)
            return
        kept = max(map(words[-1].rfind, breaks), default=-1) + 1  # what readline leaves in place
    app = App(quiet, environ, Clock())
    app.keyring_limit_s = TAB_LIMIT_S / 2  # so that its program does not outlive us
    with contextlib.closing(app):
        found = Tab(app, words).offers()
        for word, text in found:
            if word == FILES or not is_bash:
                quiet.answer(f"{word}\t{quiet.safe(text)}" if text else word)
            elif word.startswith(words[-1]):
                quiet.answer(word[kept:])


def split_line(line: str) -> list[str]:
    """Return the words of a line up to the cursor: the last one may be empty, or cut."""
    words, word, quote, is_escaped = list[str](), None, "", False
    for char in line:
        if is_escaped:
            word, is_escaped = (word or "") + char, False
        elif char == "\\" and quote != "'":
            is_escaped = True
        elif quote and char == quote:
            quote = ""
        elif not quote and char in "'\"":
            word, quote = word or "", char
        elif quote or char not in " \t\n":
            word = (word or "") + char
        elif word is not None:
            words.append(word)
            word = None
    return [*words, word or ""]


def without_redirections(words: list[str]) -> tuple[list[str], bool]:
    """Return the words without redirections, and whether the last one is a file of such."""
    left, names_file = list[str](), False
    for word in words:
        sign = word.lstrip("0123456789&")
        is_left = not names_file and not sign.startswith(("<", ">"))
        if is_left:
            left.append(word)
        names_file = not names_file and sign in ("<", ">", ">>", ">|", "<>")
    return left, not is_left


class Tab:
    """One press of Tab: the words before the cursor, and `current`, which is to be completed."""

    def __init__(self, app: App, words: list[str]) -> None:
        *before, self.current = words
        while before and before[0] in GLOBAL_OPTIONS:
            del before[0]
        self.app = app
        self.before = before

    def offers(self) -> Seen:
        """Return the words that may stand there, each with a description or "", in their order."""
        if not self.before and self.current.startswith("-"):
            return [*USUAL_OPTIONS, ("--version", "tell the version of the program")]
        if not self.before:
            return command_words([])
        try:
            command, count = find_command(self.before)
        except (UsageError, HelpWanted):
            return command_words(self.before)
        return self._offers_of(command, self.before[count:])

    def _offers_of(self, command: Command, words: list[str]) -> Seen:
        own = [argument for item in command.arguments for argument in item.each()]
        options = {word: each for each in own if each.is_option for word in each.spellings()}
        given, values, waiting = set[str](), list[str](), None
        for word in words:
            if word == "--" and command.takes_command:
                return []  # the words of a command in the sprite
            name, equals, _ = word.partition("=")
            if waiting:
                waiting = None
            elif word.startswith("-") and word != "-":
                given.add(name)
                waiting = options.get(name) if not equals else None
                waiting = waiting if waiting and waiting.takes_value else None
            else:
                values.append(word)
        if waiting:
            return self._values_of(waiting, values)
        name, equals, _ = self.current.partition("=")
        if equals and name in options:
            found = self._values_of(options[name], values)
            return [(f"{name}={word}", text) for word, text in found]
        if self.current.startswith("-"):
            return options_left(command, given)
        places = [each for each in own if not each.is_option]
        for number, argument in enumerate(places):
            if number == len(values) or argument.is_repeated:
                return self._values_of(argument, values)
        return []

    def _values_of(self, argument: Argument, values: list[str]) -> Seen:
        if isinstance(argument.offers, tuple):
            return [(word, "") for word in argument.offers]
        return OFFERS[argument.offers](self, values)

    def names(self, values: list[str]) -> Seen:
        """Return the names of the sprites that are not there yet, with their states."""
        return [pair for pair in self._within_limit(self._look) if pair[0] not in values]

    def sprites(self, values: list[str]) -> Seen:
        """Return the same, and `.` if this directory has a sprite."""
        chosen = self._chosen()
        here = [(HERE, f"{chosen.name}, the sprite of this directory")] if chosen else []
        return [*(pair for pair in here if HERE not in values), *self.names(values)]

    def paths(self, values: list[str]) -> Seen:
        """Return local files and each `NAME:`; nothing is known of what is behind it."""
        name, colon, _ = self.current.partition(":")
        if colon and "/" not in name:
            return []
        found = [(FILES, "")]
        if "/" not in name and not name.startswith("~"):
            found += [(f"{word}:", text) for word, text in self.sprites([])]
        return found

    def inside(self, kind: str, values: list[str]) -> Seen:
        """Return what was seen of a kind in the sprite that the first value names."""
        name = next(iter(values), "")
        if name == HERE:
            chosen = self._chosen()
            name = chosen.name if chosen else ""
        return self._within_limit(lambda: self.app.memory().inside(name, kind))

    def _chosen(self) -> Chosen | None:
        try:
            return self.app.chosen()
        except ThoptersError:
            return None

    def _look(self) -> Seen:
        names = self.app.memory().sprites(time.time())
        if names is None:
            listed = self.app.api.list_sprites("").sprites.values()
            remember_sprites(self.app.api, listed)
            names = [(info.name, info.state()) for info in listed]
        return sorted(names)

    def _within_limit(self, work: Callable[[], Seen]) -> Seen:
        """Return what comes of some work within the limit, as far as it is harmless."""
        found: Seen = []

        def try_it() -> None:
            with contextlib.suppress(Exception):
                found.extend(work())

        in_background(try_it).join(TAB_LIMIT_S)
        redact = self.app.console.redact
        return [(word, text) for word, text in found if is_plain(word) and redact(word) == word]


def is_plain(word: str) -> bool:
    """Return whether no shell makes anything of a word, and no program takes it for an option."""
    others = word.replace(".", "").replace("_", "").replace("-", "")
    return word.isascii() and word[:1].isalnum() and others.isalnum()


def command_words(words: list[str]) -> Seen:
    """Return the words that can come next in the name of a command, with what it does."""
    found: dict[str, str] = {}
    for command in COMMANDS:
        for name in (command.name, *command.aliases):
            first, second = name.split()[: len(words)], name.split()[len(words) :]
            if first == words and second:
                found.setdefault(second[0], command.summary if len(second) == 1 else "")
    return list(found.items())


def topic_words(values: list[str]) -> Seen:
    return [] if values else [(word, "a page of the help") for word in TOPICS]


USUAL_OPTIONS = [
    ("-v", "say what was tried"),
    ("--verbose", "say what was tried"),
    ("--debug", "one line per request"),
    ("-h", "explain it"),
    ("--help", "explain it"),
]


def options_left(command: Command, given: set[str]) -> Seen:
    """Return the options that a command can still take, with their help."""
    found = []
    for item in command.arguments:
        for argument in item.each():
            rivals = [argument] if isinstance(item, Argument) else item.arguments
            taken = {word for each in rivals for word in each.spellings()} & given
            if argument.is_option and (argument.is_repeated or not taken):
                text = str(argument.options.get("help", ""))
                spellings = argument.spellings()
                found += [(word, text if word in argument.names else "") for word in spellings]
    return [*found, *(pair for pair in USUAL_OPTIONS if pair[0] not in given)]


# What a kind of values is completed with; `offers` of an argument names the kind
OFFERS: dict[str, Callable[[Tab, list[str]], Seen]] = {
    "sprite": Tab.sprites,
    "name": Tab.names,
    "path": Tab.paths,
    "checkpoint": lambda tab, values: tab.inside("checkpoint", values),
    "session": lambda tab, values: tab.inside("session", values),
    "topic": lambda tab, values: [*command_words(values), *topic_words(values)],
}


# --- many -------------------------------------------------------------------------------

# Several sprites in one command: which ones the user's words stand for, which of them are left
# asleep, several at a time, and what is said of all of them.
#
#   choose          names and patterns -> sprites; a pattern stands for those that `list` shows
#   leave_asleep    what goes into sprites takes those that are awake, unless --wake
#   for_every       does it, `jobs` at a time, in threads; by names, and where the user is asked,
#                   one after the other in the main thread, which alone may handle signals
#   report          the summary, and the worst exit status
#
# AwakeSlots keeps the number of sprites that are awake within the plan's limit.

JOBS_AT_ONCE, MOST_AT_ONCE = 8, 64
SLOT_LIMIT_S = 120.0  # without one more sprite that falls asleep
SLOT_LOOK_EVERY_S = 1.0
LONGEST_LINE = 1 << 20  # bytes of output without a line's end that are kept for one


def job_count(text: str) -> int:
    """Return the number of -j."""
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= MOST_AT_ONCE:
        raise UsageError(f"-j takes a number from 1 to {MOST_AT_ONCE}")
    return int(text)


class Target:
    """A sprite that a command is for; `info` is None where it was named and not listed."""

    __slots__ = ("info", "is_named", "sprite")

    def __init__(self, sprite: Sprite, info: SpriteInfo | None, *, is_named: bool) -> None:
        self.sprite = sprite
        self.info = info
        self.is_named = is_named

    @property
    def name(self) -> str:
        return self.sprite.name

    def look(self) -> SpriteInfo:
        """Return what the list says of it, else what a GET does; with its id."""
        return self.info if self.info and self.info.id else self.sprite.require()


class AwakeSlots:
    """Lets sprites be woken only as far as the plan allows them to be awake together."""

    def __init__(self, api: SpritesApi, listing: Listing, *, waits: bool) -> None:
        import threading

        self._api = api
        self._limit = listing.limits.get("running")
        self._awake = awake_names(listing)
        self._woken: dict[str, float] = {}  # by us, with the time at which we were done
        self._busy = set[str]()
        self._waits = waits
        self._looked_at = self._freed_at = api.clock.monotonic()
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def slot(self, name: str) -> Iterator[None]:
        """Let a sprite be awake meanwhile, once it may be; LimitError where that does not come."""
        self._enter(name)
        try:
            yield
        finally:
            self._leave(name)

    def _enter(self, name: str) -> None:
        began = self._api.clock.monotonic()
        while self._limit is not None and not self._take(name, self._limit):
            since = self._api.clock.monotonic() - max(began, self._freed_at)
            if not self._waits or since > SLOT_LIMIT_S:
                raise LimitError(
                    f"{name} was left asleep: the plan allows {self._limit} sprites awake at once",
                    hint="let another one sleep: thopters pause NAME",
                )
            self._api.console.warn_once(
                f"the plan allows {self._limit} sprites awake at once: "
                "the others wait until one falls asleep"
            )
            self._api.clock.sleep(SLOT_LOOK_EVERY_S)
            self._look()

    def _take(self, name: str, limit: int) -> bool:
        with self._turn:
            awake = self._awake | self._busy | set(self._woken)
            if name not in awake and len(awake) >= limit:
                return False
            self._busy.add(name)
            return True

    def _leave(self, name: str) -> None:
        with self._turn:
            self._busy.discard(name)
            self._woken[name] = self._api.clock.monotonic()

    def _look(self) -> None:
        """Ask which ones are awake, once a second for all who wait."""
        now = self._api.clock.monotonic()
        with self._turn:
            if now - self._looked_at < SLOT_LOOK_EVERY_S / 2:
                return
            self._looked_at = now
        listed = awake_names(self._api.list_sprites(""))
        with self._turn:
            before = len(self._awake | set(self._woken))
            # what was done since may not be in that list yet
            self._woken = {name: at for name, at in self._woken.items() if at >= now}
            self._awake = listed
            if len(listed | set(self._woken)) < before:
                self._freed_at = self._api.clock.monotonic()


def awake_names(listing: Listing) -> set[str]:
    return {name for name, info in listing.sprites.items() if not info.is_asleep()}


class Lines:
    """Passes on a stream of a sprite's by whole lines, each with the name before it."""

    def __init__(self, console: Console, name: str, write: Sink, turn: threading.Lock) -> None:
        self._console = console
        self._prefix = f"{name}: ".encode()
        self._write = write
        self._turn = turn
        self._rest = bytearray()

    def take(self, data: bytes | memoryview) -> None:
        piece, before = bytes(data), len(self._rest)
        self._rest += piece
        end = piece.rfind(b"\n") + 1
        if end or len(self._rest) > LONGEST_LINE:
            self._pass_on(before + end if end else len(self._rest))

    def end(self) -> None:
        """Pass on what is left, as a line."""
        if self._rest:
            self._pass_on(len(self._rest))

    def _pass_on(self, size: int) -> None:
        lines = bytes(self._rest[:size]).removesuffix(b"\n").split(b"\n")
        del self._rest[:size]
        with self._turn:
            if self._console.activity:
                self._console.activity.hide()
            self._write(b"".join(self._prefix + line + b"\n" for line in lines))


def matching(listing: Listing, pattern: str, prefix: str) -> list[str]:
    """Return the names of those that `list` shows and that match; NoMatchError for none."""
    shown = [name for name in sorted(listing.sprites) if name.startswith(prefix)]
    found = [name for name in shown if matches(name, pattern)]
    if not found:
        among = f" among those that start with {prefix}" if prefix else ""
        raise NoMatchError(
            f"no sprite's name matches {pattern!r}{among}", hint="see: thopters list"
        )
    return found


def with_status(api: SpritesApi, info: SpriteInfo) -> SpriteInfo:
    """Ask for the rest where a list holds names only, as the documentation shows it."""
    return info if info.status else api.sprite(info.name).find() or info


class Progress:
    """The same action for several items, and how far it is."""

    WAITING, BEGUN, DONE, FAILED = range(4)

    def __init__(self, many: Many, items: Sequence[N], action: Callable[[N], Any]) -> None:
        import threading

        self._many = many
        self._items: Sequence[Any] = items
        self._action: Callable[[Any], Any] = action
        self._states = [self.WAITING] * len(items)
        self._results: list[Any] = [None] * len(items)
        self._turn = threading.Lock()
        self._next = 0
        self._is_over = threading.Event()
        self._error: BaseException | None = None  # one that ends all
        self._activity: Activity | None = None

    def results(self) -> list[Any]:
        pairs = zip(self._results, self._states, strict=True)
        return [result for result, state in pairs if state == self.DONE]

    def in_this_thread(self) -> None:
        while (place := self._take()) is not None:
            self._do(place)

    def in_threads(self, jobs: int) -> None:
        with self._many.console.working(f"working on {len(self._items)} sprites") as self._activity:
            started = 0
            while started < jobs:
                try:
                    in_background(self._run)
                except ThoptersError:
                    if not started:
                        raise
                    break  # fewer do it as well
                started += 1
            self._is_over.wait()
        if self._error:
            raise self._error

    def _run(self) -> None:
        try:
            self.in_this_thread()
        except BaseException as error:
            self._end(error)

    def _take(self) -> int | None:
        """Return the place of the next item, None where there is none, or all is to end."""
        with self._turn:
            if self._error or self._next == len(self._items):
                return None
            self._next += 1
            self._states[self._next - 1] = self.BEGUN
            return self._next - 1

    def _do(self, place: int) -> None:
        result, is_done = self._many.attempt(self._items[place], self._action)
        with self._turn:
            self._results[place] = result
            self._states[place] = self.DONE if is_done else self.FAILED
            if self._activity:
                count = sum(state > self.BEGUN for state in self._states)
                self._activity.text = f"{count} of {len(self._states)} sprites are done"
            if not {self.WAITING, self.BEGUN} & set(self._states):
                self._is_over.set()

    def _end(self, error: BaseException) -> None:
        with self._turn:
            self._error = self._error or error
            self._is_over.set()

    def wait(self, limit_s: float) -> None:
        """Begin no more, and wait for what is under way in other threads."""
        with self._turn:
            self._next = len(self._items)
            if self.BEGUN not in self._states:
                return
        for _ in self._many.app.clock.polling(limit_s, 0.05):
            if self.BEGUN not in self._states:
                return

    def _told(self, name: str, state: int) -> int:
        """Return the state as it is told: what ended otherwise than well was not done."""
        return self.FAILED if name in self._many.statuses and state == self.DONE else state

    def tell(self) -> None:
        """Say what was done when all ends early."""
        words = {
            self.DONE: "done",
            self.FAILED: "failed",
            self.BEGUN: "begun, and it is not known whether it was done",
            self.WAITING: "not begun",
        }
        for state, text in words.items():
            pairs = zip(self._items, self._states, strict=True)
            names = [item.name for item, its in pairs if self._told(item.name, its) == state]
            if names and len(self._items) > 1:
                self._many.console.note(f"{text}: {', '.join(names)}")


class Many:
    """Does something for several sprites; where one fails, the others still get their turn.

    What fails is told at once, with --json by `report`; so is what was done, under the name `done`.
    `jobs` is the number of -j, None for the usual one: several at a time by a pattern, and one
    after the other by names. `own_failure` is the status of each failure of ours, as with exec.
    """

    def __init__(
        self,
        app: App,
        done: str,
        *,
        jobs: int | None = None,
        wakes: bool = False,
        waits: bool = True,
        is_dry: bool = False,
        own_failure: int | None = None,
    ) -> None:
        self.app = app
        self.console = app.console
        self.done = done
        self.wakes = wakes
        self.by_pattern = False  # whether there is a pattern among the words
        self.failed: list[tuple[str, ThoptersError]] = []
        self.statuses: dict[str, int] = {}  # those of what ended otherwise than well
        self.asleep: list[str] = []
        self._jobs = jobs
        self._waits = waits
        self._is_dry = is_dry  # then nothing is woken, so nothing waits for that
        self._own_failure = own_failure
        self._slots: AwakeSlots | None = None
        self._has_done = False

    # which ones

    def choose(
        self, words: Sequence[str], *, only_by_name: bool = False, takes_all: bool = False
    ) -> list[Target]:
        """Return the sprites that names and patterns stand for, each once.

        The user chooses where there are no words. With `takes_all` no prefix counts.
        Every word is checked before any request. NoMatchError for a pattern that stands for none.
        """
        words = words or self.app.choose_names(several=True)
        for word in words:
            if word != HERE:
                valid_pattern(word) if is_pattern(word) else valid_name(word)
        if HERE in words:
            here = self.app.sprite(HERE, only_by_name=only_by_name).name
            words = [here if word == HERE else word for word in words]
        words = list(dict.fromkeys(words))
        self.by_pattern = any(map(is_pattern, words))
        api = self.app.connect()
        if not self.by_pattern:
            return [Target(self.app.sprite(word), None, is_named=True) for word in words]
        prefix = "" if takes_all else self.app.default_prefix()
        with self.console.working("listing sprites"):
            listing = api.list_sprites("" if self.wakes else prefix)  # all of them can be awake
        if self.wakes and not self._is_dry:
            self._slots = AwakeSlots(api, listing, waits=self._waits)
        chosen: dict[str, Target] = {}
        for word in words:
            found = matching(listing, word, prefix) if is_pattern(word) else [word]
            for name in found:
                if name not in chosen or not is_pattern(word):
                    chosen[name] = self._chosen(name, listing, is_named=not is_pattern(word))
        return list(chosen.values())

    def _chosen(self, name: str, listing: Listing, *, is_named: bool) -> Target:
        sprite = self.app.sprite(name)
        sprite.console = NamedConsole(self.console, name)
        info = listing.sprites.get(name)
        return Target(sprite, info and with_status(sprite.api, info), is_named=is_named)

    def would_sleep(self, item: Target) -> bool:
        """Return whether a sprite is left asleep by what goes into sprites."""
        is_asleep = item.info is not None and item.info.is_asleep()
        return is_asleep and not item.is_named and not self.wakes

    def leave_asleep(self, chosen: list[Target]) -> list[Target]:
        """Return those to go into, the ones that are awake first; AllAsleepError where none is."""
        self.asleep = [item.name for item in chosen if self.would_sleep(item)]
        taken = [item for item in chosen if not self.would_sleep(item)]
        if not taken:
            count = "the sprite that matches sleeps, and was not woken"
            if len(chosen) > 1:
                count = f"all {len(chosen)} sprites that match are asleep, and none was woken"
            raise AllAsleepError(count, hint="wake them with: --wake")
        return sorted(taken, key=lambda item: item.info is not None and item.info.is_asleep())

    # doing it

    def for_every(
        self,
        items: Sequence[N],
        action: Callable[[N], T],
        *,
        in_turn: bool = False,
        stop: Callable[[int], None] = lambda signum: None,
    ) -> list[T]:
        """Do something for each item, which has a sprite; return what came of it, in their order.

        `in_turn`: one after the other, as where the user is asked. When a signal ends it, `stop`
        gets the signal, to pass on to what runs, and it is said what was done.
        """
        jobs = min(self._jobs or (JOBS_AT_ONCE if self.by_pattern else 1), len(items))
        work = Progress(self, items, action)
        try:
            if in_turn or jobs < 1 or (jobs == 1 and not self.by_pattern):
                work.in_this_thread()
            else:  # a signal comes to the main thread, which then can pass it on
                work.in_threads(jobs)
        except Interrupted as interrupted:
            try:
                stop(interrupted.signum)
                work.wait(PROBE_LIMIT_S)
            finally:
                work.tell()
            raise
        except BaseException:
            stop(signal.SIGTERM)
            raise
        return work.results()

    def attempt(self, item: N, action: Callable[[N], T]) -> tuple[T | None, bool]:
        """Do it for one; return what came of it, and whether it was done."""
        name = item.name
        try:
            with self._slots.slot(name) if self._slots else contextlib.nullcontext():
                result = action(item)
            self._has_done = True
            return result, True
        except OutputError:
            raise
        except ThoptersError as error:
            is_first = not self.by_pattern and not self.failed and not self._has_done
            if is_first and isinstance(error, (AuthError, NotSentError)):
                raise  # it would be the same for every one
            if not error.names_sprite and not self.by_pattern:
                error.put_before(f"{name}: ")
            self.failed.append((name, error))
            if not self.console.json:
                item.sprite.console.error(error)
            return None, False

    # what came of it

    def say(self, sprite: Sprite, text: str, plain: str = "") -> None:
        """Say what was done for one, as it comes; `plain` is the line where there is no pattern."""
        sprite.console.say_done(text if self.by_pattern else plain or f"{sprite.name} {text}")

    def report(self, results: Sequence[Any]) -> int:
        """Sum up, and return the worst exit status; with --json say what was done and failed."""
        errors = [{"name": name, **error.to_json()} for name, error in self.failed]
        more = {"asleep": self.asleep} if self.by_pattern else {}
        self.console.result({self.done: list(results), "errors": errors, **more})
        return self.summarize(len(results))

    def summarize(self, done: int) -> int:
        """Say once what became of all that a pattern stands for; return the worst exit status."""
        failed = [name for name, _ in self.failed]
        failed += [f"{name} ({status})" for name, status in self.statuses.items()]
        if self.by_pattern and not self.console.json:
            parts = [f"{done - len(self.statuses)} done"]
            parts += [f"{len(failed)} failed: {', '.join(sorted(failed))}"] if failed else []
            asleep = ", ".join(self.asleep)
            parts += [f"{len(self.asleep)} left asleep: {asleep} (--wake takes them too)"] * bool(
                self.asleep
            )
            self.console.note("; ".join(parts))
        codes = [self._own_failure or error.exit_code for _, error in self.failed]
        return max([EXIT_OK, *codes, *self.statuses.values()])


def run_in_many(
    many: Many, chosen: list[Target], command: RemoteCommand, *, needs_holds: bool
) -> int:
    """Run a command in several sprites, and return the worst status.

    Its output comes by whole lines, with the sprite's name before each.
    """
    import threading

    turn, live = threading.Lock(), dict[str, tuple[Sprite, ExecSession]]()

    def run(item: Target) -> None:
        sprite = item.sprite
        many.app.bring_keys(sprite)
        if needs_holds:
            list_holds(sprite)
        out = Lines(many.console, sprite.name, write_stdout, turn)
        err = Lines(many.console, sprite.name, write_stderr, turn)
        session = open_exec(sprite, {STREAM_STDOUT: out.take, STREAM_STDERR: err.take})
        live[sprite.name] = sprite, session
        try:
            status = session.run(command)
        except ExecLost as lost:
            raise status_unknown(sprite, lost) from None
        except (BrokenPipeError, OutputError):  # nobody reads what it prints
            if session.group:
                pass_signal_on(sprite, session.group, signal.SIGTERM)
            raise
        finally:
            del live[sprite.name]
            session.close()
            out.end()
            err.end()
        if status:
            many.statuses[sprite.name] = status

    def stop(signum: int) -> None:
        senders = []
        for sprite, session in list(live.values()):
            if session.group:
                with contextlib.suppress(ThoptersError):
                    senders.append(in_background(pass_signal_on, sprite, session.group, signum))
        for sender in senders:  # each of them waits for a moment
            sender.join()

    many.console.flush()
    return many.summarize(len(many.for_every(chosen, run, stop=stop)))


def ask_how_many(many: Many, found: Sequence[SpriteInfo]) -> None:
    """Show what a pattern destroys, and ask for their number; UsageError for another one."""
    for info in found:
        many.console.note(describe_sprite(info, many.console))
    many.console.note("They go with all their files and checkpoints, for good.")
    if many.console.ask(f"Type the number of sprites, {len(found)}, to destroy them:") != str(
        len(found)
    ):
        raise DeclinedError("that is not the number: nothing was destroyed")


def check_count(words: Sequence[str], count: int, given: int | None, *, is_asked: bool) -> None:
    """Raise UsageError where so many sprites are not what --count says, or has to say."""
    is_bare = any(not word.strip("*?") for word in words)
    if given is not None and given != count:
        raise UsageError(f"{count} sprites match, and not {given}: nothing was destroyed")
    if given is None and is_bare and not is_asked:
        raise UsageError(
            f"that stands for all sprites, which are {count}: nothing was destroyed",
            hint="with --yes, say how many you mean: --count N",
        )


# Keys for several sprites


def ssh_files_if_any(app: App) -> SshFiles | None:
    """Return the files of ssh, None where there are none: on Windows, or without a fitting home."""
    with contextlib.suppress(UsageError):
        return SshFiles(app.environ, app.console) if os.name == "posix" else None
    return None


def push_keys(many: Many, words: Sequence[str], *, force: bool) -> int:
    """Put the keys into sprites, and leave a push for those that sleep; return the worst status.

    By a pattern, and without words, only those get some that have got keys from here before.
    """
    keys = many.app.keys
    chosen = known_holders(many, words, keys)
    sleepers = [item.look() for item in chosen if many.would_sleep(item)]
    if keys.is_configured:
        pushes = [(info, keys.values_for(info.name)) for info in sleepers]
        keys.record.begin(pushes, many.app.api.now())
    if sleepers:
        names = ", ".join(info.name for info in sleepers)
        many.console.note(f"the keys go in when these are next used: {names}")

    def put_in(item: Target) -> dict[str, Any]:
        info = item.look()
        if not item.is_named:  # it was listed a while ago
            item.sprite.require_same(info.id)
        report, left = put_keys_in(item.sprite, info, keys, force=force)
        if files := ssh_files_if_any(many.app):
            with After(f"the keys are in {item.name}"):
                renew_ssh(item.sprite, files)
        what = describe_keys(keys, report)
        many.say(item.sprite, what, f"{item.name}: {what}")
        if left:
            many.statuses[item.name] = EXIT_FAILED
        return report

    return many.report(many.for_every(many.leave_asleep(chosen), put_in))


def show_push(many: Many, words: Sequence[str]) -> int:
    """Say which sprites a push would put which keys into; no sprite is looked into."""
    keys = many.app.keys
    chosen = known_holders(many, words, keys)
    sleepers = [item.name for item in chosen if many.would_sleep(item)]
    if sleepers:
        many.console.note(f"the keys would go in when these are next used: {', '.join(sleepers)}")

    def preview(item: Target) -> dict[str, Any]:
        names = sorted(keys.values_for(item.look().name))
        told = "would keep what is in it, as there is no configuration"
        if keys.is_configured:
            told = f"would get {', '.join(names) or 'no variables'}"
        many.say(item.sprite, told)
        return {"name": item.name, "variables": names}

    return many.report(many.for_every(many.leave_asleep(chosen), preview))


def held_checkpoints(app: App, holders: Sequence[Holder]) -> dict[str, list[str] | None]:
    """Return, by sprite, the ids of the checkpoints that were made since keys went in.

    None where that is not known: nothing is woken for it, and the keys are removed all the same.
    """
    found: dict[str, list[str] | None] = {holder.name: None for holder in holders}
    try:
        listing = app.connect().list_sprites("")
    except ThoptersError as error:
        app.console.warn(f"cannot look at the sprites: {error.message}")
        return found
    for holder in holders:
        info = listing.sprites.get(holder.name)
        if info is None or info.id[-36:] != holder.id or info.status != "running":
            continue
        try:
            saved = app.sprite(holder.name).list_checkpoints(include_auto=True)
        except ThoptersError as error:
            app.console.warn(error.message)
            continue
        since = parse_time(holder.since)
        made = [(item.id, parse_time(item.create_time)) for item in saved]
        found[holder.name] = [
            identity for identity, moment in made if not moment or not since or moment >= since
        ]
    return found


def tell_what_stays(console: Console, found: Mapping[str, list[str] | None]) -> None:
    """Say where removed keys still are."""
    if found:
        console.note(f"the next push takes it out of: {', '.join(found)} (thopters env push)")
        console.note("checkpoints that may still hold it:")
    for name, ids in found.items():
        told = "unknown, as it was not looked at" if ids is None else ", ".join(ids) or "none"
        console.note(f"  {name}: {told}")
    console.note("to make a key worthless, revoke it where it was issued")


def check_keys(many: Many, words: Sequence[str]) -> int:
    """Say what sprites have beside what they should have; EXIT_FAILED where that differs."""
    keys = many.app.keys
    chosen = known_holders(many, words, keys)

    def check(item: Target) -> dict[str, Any]:
        seal = keys.record.seal(item.look())
        states = look_at_keys(item.sprite, seal, keys.values_for(item.name))
        for name, state in states.items() or [("no keys", "")]:
            line = f"{name}: {state}" if state else name
            many.say(item.sprite, line, f"{item.name}: {line}")
        if set(states.values()) - {CURRENT}:
            many.statuses[item.name] = EXIT_FAILED
        return {"name": item.name, "keys": states}

    status = many.report(many.for_every(many.leave_asleep(chosen), check))
    if many.statuses and not many.console.json:
        many.console.hint("put today's keys in with: thopters env push")
    return status


def known_holders(many: Many, words: Sequence[str], keys: Keys) -> list[Target]:
    """Return those that are named, and those of a pattern's that keys were put into from here.

    The others are named on stderr; without words, which mean all that have keys, only those that
    were made again. NoMatchError where none is left.
    """
    chosen = many.choose(words or ["*"], takes_all=not words)
    before = {holder.name for holder in keys.record.holders()}
    known = [item for item in chosen if item.is_named or keys.may_go_unasked(item.look())]
    others = [item.name for item in chosen if item not in known]
    made_again = [name for name in others if name in before]
    if made_again:
        many.console.note(
            f"left out, as they were made again since keys went in: {', '.join(made_again)}"
        )
    never = [name for name in others if name not in before]
    if words and never:
        many.console.note(f"left out, as they have no keys from here: {', '.join(never)}")
    if not known:
        raise NoMatchError(
            f"no sprite{' that matches' if words else ''} has keys from here",
            hint="name the sprites that are to have them: thopters env push NAME",
        )
    return known


# --- reports ----------------------------------------------------------------------------

# What list --watch, info and doctor find out, and what setup says of tokens and programs. Nothing
# is changed by it. A sprite that sleeps is not woken: what would wake it is not asked.

# the list, watched

WATCH_EVERY_S = 2.0
GONE = "gone"  # of a sprite that was destroyed


def watch_sprites(api: SpritesApi, prefix: str) -> Iterator[tuple[SpriteInfo, str]]:
    """Yield each sprite with its state, then each whose state changes, by polling, without an end.

    The state of one that was destroyed is GONE. Where a later list fails, that is said once until
    one comes again; only a token that is refused is an error then.
    """
    seen, is_lost = dict[str, SpriteInfo](), False
    for look, _ in enumerate(api.clock.polling(None, WATCH_EVERY_S)):
        try:
            listed = api.list_sprites(prefix).sprites.values()
            found = {info.name: with_status(api, info) for info in listed}
            found |= {name: info for name in seen if name not in found
                      if (info := api.sprite(name).find())}  # fmt: skip
        except ThoptersError as error:
            if not look or isinstance(error, AuthError):
                raise
            if not is_lost:
                api.console.warn(f"{error}; the watch goes on")
            is_lost = True
            continue
        is_lost = False
        for name in sorted({*seen, *found}):
            yield from changes_of(seen.get(name), found.get(name), api.console)
        seen = found


def changes_of(
    before: SpriteInfo | None, now: SpriteInfo | None, console: Console
) -> Iterator[tuple[SpriteInfo, str]]:
    """Yield what is new about a sprite; with -v also that one that sleeps has gone from memory."""
    if before and (now is None or (before.id and now.id and before.id != now.id)):
        yield before, GONE
        before = None
    state = state_of(now.status, console) if now else GONE
    if now and (before is None or state_of(before.status, console) != state):
        yield now, state


# one sprite


class Facts:
    """What is known of a sprite; None for a list that was not asked for, or could not be had."""

    __slots__ = ("checkpoints", "holds", "info", "works")

    def __init__(self, info: SpriteInfo) -> None:
        self.info = info
        self.works: list[Work] | None = None
        self.holds: list[Hold] | None = None
        self.checkpoints: list[Checkpoint] | None = None

    def to_json(self) -> dict[str, Any]:
        lists = {"sessions": self.works, "checkpoints": self.checkpoints}
        found = {k: None if v is None else [item.to_json() for item in v] for k, v in lists.items()}
        holds = self.holds
        told = None if holds is None else [{"name": h.name, "expires_at": h.expires_at or None}
                                           for h in holds]  # fmt: skip
        return {**self.info.to_json(), **found, "holds": told}


def facts_of(sprite: Sprite) -> Facts:
    """Return what is known of a sprite, looking inside only if it runs.

    To list checkpoints starts a cold sprite, and leaves a warm one asleep.
    """
    facts = Facts(sprite.look())
    status = facts.info.status
    if status == "running":
        facts.works = unless_it_fails(sprite, lambda: look_around(sprite))
        facts.holds = unless_it_fails(sprite, lambda: list_holds(sprite))
    if status == "warm" or not facts.info.is_asleep():
        facts.checkpoints = unless_it_fails(
            sprite, lambda: sprite.list_checkpoints(include_auto=False)
        )
    if facts.works is not None:
        remember(sprite, "session", [(work.label or work.id, work.words()) for work in facts.works])
        facts.works = [work for work in facts.works if work.is_running()]
    if facts.checkpoints is not None:
        found = [(item.id, item.comment) for item in facts.checkpoints]
        remember(sprite, "checkpoint", found)
    return facts


def unless_it_fails(sprite: Sprite, ask: Callable[[], T]) -> T | None:
    """Return what a sprite tells, None with a warning where that fails: the rest is still told."""
    try:
        return ask()
    except AuthError:
        raise
    except ThoptersError as error:
        sprite.console.warn(str(error))
        return None


# tokens and the `sprite` program


def describe_sprite_program(app: App) -> tuple[str, str]:
    """Return the path of the `sprite` program, "" without one, and words about it and its login."""
    path = find_sprite_program(app.environ)
    if path is None:
        return "", f"not found; see {INSTALL_PAGE}"
    version = run_for_output([path, "--version"], LOCAL_PROGRAM_LIMIT_S)
    told = " ".join((version or "").split())[:60] or "it does not tell its version"
    try:
        store = SpriteStore(app.environ, api_base(app.environ), app.console)
        org = store.program_org()
        login = f"logged in, org {org}" if org else "not logged in; run: sprite login"
        if store.is_empty() and app.environ.get("SPRITE_TOKEN"):
            login = "not logged in, so it uses SPRITE_TOKEN"
    except ThoptersError as error:
        login = error.message
    return path, f"{path} ({told}), {login}"


class Verdict:
    """What a server says of a token: `said` is VALID, REJECTED, UNCHECKED or UNREACHABLE."""

    VALID, REJECTED = "valid", "rejected"
    UNCHECKED, UNREACHABLE = "could not be checked", "unreachable"

    def __init__(self, said: str, why: str = "", document: object = None) -> None:
        self.said = said
        self.why = why
        self.document = document  # of a yes

    def __str__(self) -> str:
        return f"{self.said}: {self.why}" if self.why else self.said


def try_token(
    ask: Callable[[], Answer],
    is_right: Callable[[object], bool],
    is_no: Callable[[Answer], bool],
) -> Verdict:
    """Return whether a server takes a token, as far as it tells.

    A yes is the document that was asked for; a login page of the network may have any status.
    """
    try:
        answer = ask()
    except (NotSentError, NoAnswerError) as error:
        return Verdict(Verdict.UNREACHABLE, error.message)
    with contextlib.suppress(NoAnswerError):
        document = decode_json(answer)
        if 200 <= answer.status < 300 and is_right(document):
            return Verdict(Verdict.VALID, document=document)
    said = Verdict.REJECTED if is_no(answer) else Verdict.UNCHECKED
    return Verdict(said, f"the server answered {answer.status}: {answer.reason()}")


def try_sprites_token(transport: Transport, limit_s: float = REQUEST_LIMIT_S) -> Verdict:
    """Ask for a list of one sprite, at most so long each time."""
    query = [("max_results", "1")]
    return try_token(
        lambda: transport.fetch("GET", "/v1/sprites", query=query, limit_s=limit_s),
        lambda page: list_field(page, "sprites") is not None,
        lambda answer: answer.status in (401, 403) and is_own_word(answer),
    )


def check_sprites_token(app: App) -> bool:
    """Say whether the API takes the token, as far as it tells; False if it rejects it."""
    try:
        transport = app.api.transport
    except MalformedTokenError as error:
        app.console.note(f"sprites token: rejected: {error.message}")
        return False
    except AuthError as error:
        app.console.note(f"sprites token: {error.message}; {error.hint}")
        return True
    verdict = try_sprites_token(transport)
    app.console.note(f"sprites token ({transport.credential.source}): {verdict}")
    return verdict.said != Verdict.REJECTED


def check_github_token(app: App) -> bool:
    """Ask GitHub who the stored PAT belongs to; nothing to ask is no failure."""
    secret = app.config.secrets.get("GITHUB_PAT")
    if secret is None:
        return True
    base = api_base(app.environ, "THOPTERS_GITHUB_API", DEFAULT_GITHUB_API)
    try:
        credential = Credential(check_token(secret.reveal(), "GITHUB_PAT"), "GITHUB_PAT")
    except AuthError as error:
        app.console.note(f"GITHUB_PAT: rejected: {error.message}")
        return False
    transport = Transport(
        base, credential, console=app.console, clock=app.clock, environ=app.environ
    )
    with contextlib.closing(transport):
        verdict = try_token(
            lambda: transport.fetch("GET", "/user"),
            lambda user: isinstance(user, dict) and text_field(user, "login") != "",
            # 403 is for a limit of the rate, or for a token that is no user's
            lambda answer: answer.status == 401 and bool(answer.details()),
        )
    app.console.note(f"GITHUB_PAT: {verdict}")
    return verdict.said != Verdict.REJECTED


# doctor

DOCTOR_LIMIT_S = 10.0  # for each try of the API
CLOCK_LIMIT_S = 60.0  # between this clock and the server's
WANTED_MODULES = ("argparse", "http.client", "json", "select", "ssl", "tarfile", "urllib.request")


class Check:
    """One thing that doctor has looked at: its `state` is OK, WARNING or FAILURE."""

    OK, WARNING, FAILURE = "ok", "warning", "failure"

    __slots__ = ("hint", "message", "name", "state")

    def __init__(self, name: str, state: str, message: str, hint: str | None = None) -> None:
        self.name = name
        self.state = state
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "state": self.state, "message": self.message, "hint": self.hint}


# Each method returns its state, what it has found, and what to do. What is merely absent is a
# warning; an error of ours is a failure. The token is looked at before the API, as its check is the
# first request, and what comes of that is told in the lines behind it.
class Doctor:
    """Looks at all that the program needs, and changes nothing."""

    def __init__(self, app: App) -> None:
        app.mends = False
        self.app = app
        self.verdict: Verdict | None = None

    def checks(self) -> Iterator[Check]:
        looks = {
            "python": self.python,
            "certificates": self.certificates,
            "proxy": self.proxy,
            "token": self.token,
            "api": self.api,
            "clock": self.server_clock,
            "plan": self.plan,
            "sprite program": self.program,
            "configuration": self.configuration,
        }
        for name, look in looks.items():
            try:
                yield Check(name, *look())
            except (NoTokenError, NoHomeError) as error:
                yield Check(name, Check.WARNING, error.message, error.hint)
            except ThoptersError as error:
                yield Check(name, Check.FAILURE, error.message, error.hint)
            except ImportError as error:
                yield Check(name, Check.FAILURE, f"this Python lacks {error.name}")

    def python(self) -> tuple[str, ...]:
        import importlib

        for module in WANTED_MODULES:
            importlib.import_module(module)
        return Check.OK, f"{sys.version.split()[0]} on {sys.platform}, {sys.executable}"

    def certificates(self) -> tuple[str, ...]:
        environ = self.app.environ
        tls_context(environ)
        if flaw := passed_over(environ):
            return Check.WARNING, flaw, "name another, or unset it"
        names = ("SSL_CERT_FILE", "SSL_CERT_DIR", *ADDED_CERTIFICATES)
        named = [f"{name}={environ[name]}" for name in names if environ.get(name)]
        return Check.OK, ", ".join(named) or "those of the system"

    def proxy(self) -> tuple[str, ...]:
        import urllib.parse

        base = urllib.parse.urlsplit(api_base(self.app.environ))
        secure = base.scheme == "https"
        proxy = find_proxy(base.hostname or "", base.port or 443) if secure else None
        return Check.OK, f"http://{proxy.host}:{proxy.port}" if proxy else "none"

    def token(self) -> tuple[str, ...]:
        transport = self.app.api.transport
        self.verdict = verdict = try_sprites_token(transport, DOCTOR_LIMIT_S)
        org = transport.credential.org or org_of(verdict.document)
        found = f"from {transport.credential.source}, {f'org {org}, ' if org else ''}{verdict}"
        if verdict.said == Verdict.VALID:
            return Check.OK, found
        if verdict.said == Verdict.REJECTED:
            hint = "log in again with: sprite login; or put a valid token into SPRITE_TOKEN"
            return Check.FAILURE, found, hint
        return Check.WARNING, found, "see what the api line says"

    def api(self) -> tuple[str, ...]:
        import urllib.parse

        app, base, verdict = self.app, api_base(self.app.environ), self.verdict
        if verdict is None:  # no request is sent without a token
            parts = urllib.parse.urlsplit(base)
            connector = Connector(parts, console=app.console, clock=app.clock, environ=app.environ)
            started = app.clock.monotonic()
            connector.open(GLANCE_LIMIT_S).close()
            seconds = app.clock.monotonic() - started
            return Check.OK, f"{base} can be reached in {seconds:.3f} s; no request was sent"
        if verdict.said in (Verdict.UNREACHABLE, Verdict.UNCHECKED):
            hint = "check the network, HTTPS_PROXY and SPRITES_API_URL"
            return Check.FAILURE, f"{base}: {verdict.why}", hint
        started = app.clock.monotonic()
        app.api.transport.glance("/v1/sprites", [("max_results", "1")])
        return Check.OK, f"{base} answers in {app.clock.monotonic() - started:.3f} s"

    def server_clock(self) -> tuple[str, ...]:
        date = self.app.api.transport.server_date if self.verdict else None
        if date is None:
            return Check.WARNING, "not compared, as no answer tells the time of the API's clock"
        ahead_s = (self.app.clock.utc() - date).total_seconds()
        if abs(ahead_s) < CLOCK_LIMIT_S:
            return Check.OK, "within a minute of the API's"
        minutes = round(abs(ahead_s) / 60)  # the API's stamp lacks a part of a second
        how = f"{format_duration(60 * minutes)} {'ahead of' if ahead_s > 0 else 'behind'} the API's"
        return Check.WARNING, how, "set this machine's clock; certificates are judged by it"

    def plan(self) -> tuple[str, ...]:
        if self.verdict is None or self.verdict.said != Verdict.VALID:
            return Check.WARNING, "not known, as the API gives no list"
        listing = self.app.api.list_sprites("")
        sprites = [with_status(self.app.api, info) for info in listing.sprites.values()]
        count = sum(info.status == "running" for info in sprites)
        limit = listing.limits.get("running")
        if limit is None:
            return Check.OK, f"{count} running; the API tells no limit"
        if count >= limit:
            hint = "let one sleep before you wake another: thopters pause NAME"
            return Check.WARNING, f"{count} running, and the plan allows {limit}", hint
        return Check.OK, f"{count} running, and the plan allows {limit}"

    def program(self) -> tuple[str, ...]:
        path, words = describe_sprite_program(self.app)
        return (Check.OK if path else Check.WARNING), words

    def configuration(self) -> tuple[str, ...]:
        config = self.app.config
        if not config.exists:
            return Check.WARNING, f"{config.path} is not there", "store your keys: thopters setup"
        if config.lax:
            return Check.WARNING, "; ".join(config.lax)
        return Check.OK, f"{config.path}, for you alone"


def org_of(page: object) -> str:
    """Return the org that a page of the API's list names, "" for none."""
    page = page if isinstance(page, dict) else {}
    org = page.get("org")
    return text_field(org if isinstance(org, dict) else page, "name")


# --- commands ---------------------------------------------------------------------------

# One block for each command, in the order of the help: its declaration, a short body, and what it
# alone needs. A body checks what the user gave, calls an operation, and shows what came of it.


# The headings of the overview
THIS_MACHINE = "keys and this machine"
SPRITES = "sprites"
INSIDE = "commands and files in a sprite"
CHECKPOINTS = "checkpoints"

NAME = Argument(
    "name",
    metavar="NAME",
    nargs="?",
    offers="sprite",
    help="the sprite; . is the one of this directory",
)
NAMES = Argument(
    "names",
    metavar="NAME",
    nargs="*",
    offers="sprite",
    help="the sprites; . is the one of this directory, 'x-*' in quotes all that match",
)
NAME_OR_PATTERN = Argument(
    "name",
    metavar="NAME",
    nargs="?",
    offers="sprite",
    help="the sprite; . is the one of this directory, 'x-*' in quotes all that match",
)
JOBS = Argument(
    "-j",
    dest="jobs",
    metavar="N",
    type=job_count,
    help=f"work on at most N sprites at a time (with a pattern: {JOBS_AT_ONCE})",
)
SOME_NAMES = Argument(
    "names",
    metavar="NAME",
    nargs="*",
    offers="sprite",
    help="the sprites (default: all that have your keys)",
)
FORCE_KEYS = Argument(
    "--force", action="store_true", help="also replace keys that were changed in the sprite"
)
WAKE = Argument("--wake", action="store_true", help="with a pattern: wake sprites, too")
JSON = Argument("--json", action="store_true", help="print JSON, an error too")
NATIVE = Argument(
    "--native", action="store_true", help="do not use the sprite program where it is there"
)
HOLD_MAX = Argument(
    "--hold-max", metavar="TIME", type=hold_time, help="stop holding after TIME (default 8h)"
)
DETACHED = Argument(
    "job",
    metavar="ID",
    nargs="?",
    offers="session",
    help="an id or a label; without it the newest",
)


def timeout_option(text: str) -> Argument:
    return Argument("--timeout", metavar="TIME", type=duration, help=text)


def dry_run_option(what: str) -> Argument:
    return Argument("--dry-run", action="store_true", help=f"show what {what}, and do nothing")


def hold_option(text: str) -> Argument:
    return Argument("--hold", action="boolean", default=None, help=text)


def yes_option(what: str) -> Argument:
    return Argument("--yes", action="store_true", help=f"{what} without asking")


# What else setup asks for: words, section, key, and the variable of --from-env
USUAL_SETTINGS = (
    ("git user", "git", "user", "GIT_AUTHOR_NAME"),
    ("git email", "git", "email", "GIT_AUTHOR_EMAIL"),
    ("list prefix", "defaults", "prefix", "THOPTERS_PREFIX"),
)
GIT_DEFAULTS = {"user": "ThopterBot", "email": "thopterbot@telepath.computer"}


@Command(
    "setup",
    "store your keys and git identity, and check them",
    Argument("--from-env", action="store_true", help="take the values from environment variables"),
    group=THIS_MACHINE,
    examples=("thopters setup", "thopters setup --from-env"),
)
def cmd_setup(app: App, args: argparse.Namespace) -> int:
    console = app.console
    if not args.from_env and not console.can_ask():
        raise UsageError(
            "setup asks questions, and there is no terminal to ask on",
            hint="thopters setup --from-env takes them from the environment: "
            + variables_of_setup(app.config),
        )
    config = app.config
    config.check_place()
    console.note(f"sprite program: {describe_sprite_program(app)[1]}")
    is_accepted = [check_sprites_token(app)]
    answers = values_from_environment(app) if args.from_env else asked_values(app)
    config.update(answers.merge_into)
    console.answer(f"saved {config.path}")
    is_accepted.append(check_github_token(app))
    return EXIT_OK if all(is_accepted) else EXIT_FAILED


class SetupAnswers:
    """What setup stores: `secrets` ("" takes one away) and `settings` by (section, key).

    `offered` is what was offered and taken for settings that were not there. What is only kept is
    not written again: it may have changed meanwhile.
    """

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}
        self.settings: dict[tuple[str, str], str] = {}
        self.offered: dict[tuple[str, str], str] = {}

    def merge_into(self, document: dict[str, Any]) -> None:
        stored = document.setdefault("secrets", {})
        for name, value in self.secrets.items():
            if value:
                stored[name] = value
            else:
                stored.pop(name, None)
        for (section, key), value in self.settings.items():
            document.setdefault(section, {})[key] = value
        for (section, key), value in self.offered.items():
            document.setdefault(section, {}).setdefault(key, value)


def variables_of_setup(config: Config) -> str:
    usual = (*USUAL_SECRETS, *config.secrets, *(row[3] for row in USUAL_SETTINGS))
    return ", ".join(dict.fromkeys(usual))


def values_from_environment(app: App) -> SetupAnswers:
    """Return the secrets and settings that variables of their names hold."""
    answers = SetupAnswers()
    usual = {name: app.environ.get(name, "").strip() for name in USUAL_SECRETS}
    own = {name: app.environ.get(name, "") for name in app.config.secrets}
    answers.secrets = {name: value for name, value in {**own, **usual}.items() if value}
    for _, section, key, variable in USUAL_SETTINGS:
        if value := app.environ.get(variable, "").strip():
            answers.settings[section, key] = value
    if not answers.secrets and not answers.settings:
        raise UsageError(
            "--from-env: none of the variables is set", hint=variables_of_setup(app.config)
        )
    for name, value in answers.secrets.items():
        check_value(app.console, name, name, value, is_own=name not in USUAL_SECRETS)
    for (section, key), value in answers.settings.items():
        check_value(app.console, f"{section} {key}", key, value)
    return answers


def asked_values(app: App) -> SetupAnswers:
    """Ask for each value: Enter keeps what is stored or stores what is offered, `-` removes it."""
    console, config, answers = app.console, app.config, SetupAnswers()
    console.note("Enter keeps what is stored, - removes it.")
    for name in dict.fromkeys([*USUAL_SECRETS, *config.secrets]):
        secret = config.secrets.get(name)
        shown = f"**** ({secret.length} characters)" if secret else "not set"
        typed = console.ask_secretly(f"{name} [{shown}]:")
        bare, is_own = typed.strip(), name not in USUAL_SECRETS
        if bare:
            value = typed if is_own else bare
            check_value(console, name, name, value, is_own=is_own)
            answers.secrets[name] = "" if bare == "-" else value
    for words, section, key, _ in USUAL_SETTINGS:
        value = offered_setting(app, section, key)
        is_stored = key in config.document.get(section, {})
        offer = "" if is_stored or not value else "not stored, Enter stores "
        typed = console.ask(f"{words} [{offer}{value or 'none'}]:").strip()
        check_value(console, words, key, typed)
        if typed:
            answers.settings[section, key] = "" if typed == "-" else typed
        elif not is_stored:
            answers.offered[section, key] = value
    return answers


def offered_setting(app: App, section: str, key: str) -> str:
    """Return the configured value, else the local git identity, else the usual one."""
    stored = app.config.document.get(section, {})
    if key in stored or section != "git":
        return str(stored.get(key, ""))
    git = find_program("git", app.environ)
    name = {"user": "user.name", "email": "user.email"}[key]
    found = (
        run_for_output([git, "config", "--global", name], LOCAL_PROGRAM_LIMIT_S) if git else ""
    ) or ""
    return (
        GIT_DEFAULTS[key] if value_flaw(key, found.strip()) else found.strip() or GIT_DEFAULTS[key]
    )


@Command(
    "config",
    "show what is configured, and where the token comes from",
    Argument("--path", action="store_true", help="print where the file is, no more"),
    JSON,
    group=THIS_MACHINE,
    examples=("thopters config", "thopters config --path", "thopters config --json"),
)
def cmd_config(app: App, args: argparse.Namespace) -> int:
    console = app.console
    if args.path:
        path = config_path(app.environ)
        if args.json:
            console.answer_json({"path": path})
        else:
            write_stdout(os.fsencode(path) + b"\n")  # to the byte, in every locale
        return EXIT_OK
    config = app.config
    lengths = {name: secret.length for name, secret in sorted(config.secrets.items())}
    source, org = token_source(app)
    if args.json:
        console.answer_json(
            config_facts(config, lengths) | {"token": {"source": source, "org": org}}
        )
        return EXIT_OK
    rows = [("file", config.path if config.exists else f"{config.path} (not there yet)")]
    rows += [(name, f"**** ({length} characters)") for name, length in lengths.items()]
    rows += [("git user", config.git_user or "-"), ("git email", config.git_email or "-")]
    rows += [("list prefix", config.prefix or "-"), ("token", source or "none")]
    rows += [(f"sprite of {folder}", name) for folder, name in config.directories.items()]
    console.table(("Setting", "Value"), rows)
    return EXIT_OK


@Command(
    "doctor",
    "check what thopters needs, and say what to do",
    JSON,
    group=THIS_MACHINE,
    examples=("thopters doctor", "thopters doctor --json"),
)
def cmd_doctor(app: App, args: argparse.Namespace) -> int:
    console, checks = app.console, list[Check]()
    with console.working("checking"):
        for check in Doctor(app).checks():
            checks.append(check)
            cells = (check.state, check.name, check.message, check.hint or "-")
            line = f"{check.state:<7}  {check.name}: {check.message}"
            if check.hint:
                line += f"; {check.hint}"
            if not console.out_is_terminal:
                line = "\t".join(map(console.safe, cells))
            console.say_done(console.safe(line) if console.out_is_terminal else line)
    console.result({"checks": [check.to_json() for check in checks]})
    is_broken = any(check.state == Check.FAILURE for check in checks)
    return EXIT_FAILED if is_broken else EXIT_OK


def config_facts(config: Config, lengths: dict[str, int]) -> dict[str, Any]:
    return {
        "path": config.path,
        "exists": config.exists,
        "secrets": {name: {"length": length} for name, length in lengths.items()},
        "git": {"user": config.git_user or None, "email": config.git_email or None},
        "defaults": {"prefix": config.prefix or None},
        "directories": config.directories,
    }


def token_source(app: App) -> tuple[str | None, str | None]:
    """Return where the token comes from and its org, None for each that is not known."""
    try:
        found = find_credential(app.environ, api_base(app.environ), app.console)
    except AuthError as error:
        app.console.note(error.message)
        return None, None
    return found.source, found.org


@Command(
    "create",
    "make a sprite, wait until it is ready, and put your keys in",
    Argument("name", metavar="NAME", help="a-z, 0-9 and -, at most 63"),
    Argument("--no-init", action="store_true", help="put no keys into it"),
    Argument("--if-missing", action="store_true", help="exit 0 if it exists already"),
    timeout_option(f"wait at most TIME for it (default {format_duration(READY_LIMIT_S)})"),
    JSON,
    group=SPRITES,
    examples=(
        "thopters create dev",
        "thopters create issue-42 --if-missing",
        "thopters create scratch --no-init --json",
    ),
)
def cmd_create(app: App, args: argparse.Namespace) -> int:
    sprite, started = app.sprite(valid_new_name(args.name)), app.clock.monotonic()
    keys = None if args.no_init else app.keys  # what is wrong with it comes first
    if len(sprite.name) > URL_NAME_LENGTH:
        app.console.warn(f"above {URL_NAME_LENGTH} characters the sprite's URL may not resolve")
    info, made = create(sprite, READY_LIMIT_S if args.timeout is None else args.timeout)
    if made:
        forget(sprite)
    if not made and not args.if_missing:
        raise ExistsError(
            f"there is a sprite {sprite.name} already",
            hint=f"use it: thopters exec {sprite.name} -- COMMAND; or create it with --if-missing",
        )
    report = put_keys_into_new(sprite, info, keys, made=made) if keys else None
    seconds = app.clock.monotonic() - started
    fields = {"created": made, "init": report, "seconds": round(seconds, 3)}
    name, url = clean(info.name), clean(info.url)
    text = f"{name}\t{url}\t{seconds:.1f}"
    if app.console.out_is_terminal:
        text = f"{'created' if made else 'exists'} {name}  {url}  {seconds:.1f} s"
    if keys and keys.is_configured and report and not args.json:
        app.console.note(f"keys in {sprite.name}: {describe_keys(keys, report)}")
    app.console.result({**info.to_json(), **fields}, text, hint=f"thopters shell {info.name}")
    return EXIT_OK


@Command(
    "init",
    "put the configured keys and git identity into sprites again",
    NAMES,
    FORCE_KEYS,
    WAKE,
    JOBS,
    JSON,
    group=THIS_MACHINE,
    examples=("thopters init dev", "thopters init dev issue-42", "thopters init 'issue-*'"),
)
def cmd_init(app: App, args: argparse.Namespace) -> int:
    many = Many(app, "initialized", jobs=args.jobs, wakes=args.wake)
    return push_keys(many, args.names or app.choose_names(several=True), force=args.force)


@Command(
    "env list",
    "show your keys, masked, and the sprites that have them",
    JSON,
    group=THIS_MACHINE,
    examples=("thopters env list", "thopters env list --json"),
)
def cmd_env_list(app: App, args: argparse.Namespace) -> int:
    facts = key_facts(app.keys)
    if args.json:
        app.console.answer_json({"keys": facts})
        return EXIT_OK
    rows = []
    for name, fact in facts.items():
        length = fact["length"]
        value = "not stored" if length is None else f"**** ({length} characters)"
        there = [f"{s['name']} (pending)" if s["pending"] else s["name"] for s in fact["sprites"]]
        rows.append((name, value, fact["for"] or "-", ", ".join(there) or "-"))
    if rows:
        app.console.table(("Key", "Value", "For", "In sprites"), rows)
    else:
        app.console.note("no keys are stored; store one: thopters env set NAME")
    return EXIT_OK


@Command(
    "env set",
    "store a key; the value is asked for, or comes on stdin",
    # more than one is an error of ours: argparse would repeat it, and it may be a value
    Argument("words", metavar="NAME", nargs="+", help="the variable alone, without its value"),
    Argument(
        "--for",
        dest="pattern",
        metavar="PATTERN",
        help="only sprites whose name matches ever get it ('*' for all)",
    ),
    group=THIS_MACHINE,
    examples=(
        "thopters env set MY_KEY < my-key.txt",
        "thopters env set DEPLOY_KEY --for 'deploy-*' < deploy-key.txt",
    ),
)
def cmd_env_set(app: App, args: argparse.Namespace) -> int:
    name, config = valid_key(args.words), app.config
    pattern = None if args.pattern is None else valid_pattern(args.pattern)
    config.check_place()
    value = asked_key(app.console, name)
    config.update(lambda document: store_key(document, name, value, pattern))
    app.console.answer(f"stored {name}")
    app.console.hint("put it into the sprites that have your keys: thopters env push")
    return EXIT_OK


@Command(
    "env unset",
    "remove keys here, and say which sprites still have them",
    Argument("keys", metavar="NAME", nargs="+", help="the variables"),
    JSON,
    group=THIS_MACHINE,
    examples=("thopters env unset MY_KEY",),
)
def cmd_env_unset(app: App, args: argparse.Namespace) -> int:
    names, keys = list(dict.fromkeys(args.keys)), app.keys
    check_known_keys(names, keys)
    if set(names) & set(app.config.secrets):
        app.config.update(lambda document: remove_keys(document, names))
    app.console.say_done(f"removed {', '.join(names)}")
    holders = [item for item in keys.record.holders() if set(item.keys) & set(names)]
    found = held_checkpoints(app, holders) if holders else {}
    if not args.json:
        tell_what_stays(app.console, found)
    sprites = [{"name": name, "checkpoints": ids} for name, ids in found.items()]
    app.console.result({"removed": names, "sprites": sprites})
    return EXIT_OK


@Command(
    "env push",
    "put today's keys into the sprites that have yours, or that you name",
    SOME_NAMES,
    FORCE_KEYS,
    WAKE,
    JOBS,
    dry_run_option("would be put in where"),
    JSON,
    group=THIS_MACHINE,
    examples=("thopters env push", "thopters env push dev", "thopters env push 'issue-*' --wake"),
)
def cmd_env_push(app: App, args: argparse.Namespace) -> int:
    if args.dry_run:
        many = Many(app, "would_push", jobs=args.jobs, wakes=args.wake, is_dry=True)
        return show_push(many, args.names)
    many = Many(app, "pushed", jobs=args.jobs, wakes=args.wake)
    return push_keys(many, args.names, force=args.force)


@Command(
    "env check",
    "compare the keys in sprites with those that are stored here",
    SOME_NAMES,
    WAKE,
    JOBS,
    JSON,
    group=THIS_MACHINE,
    examples=("thopters env check", "thopters env check dev --json"),
)
def cmd_env_check(app: App, args: argparse.Namespace) -> int:
    many = Many(app, "checked", jobs=args.jobs, wakes=args.wake)
    return check_keys(many, args.names)


@Command(
    "list",
    "show the sprites, without waking any",
    Argument("patterns", metavar="PATTERN", nargs="*", help="only names that match, as 'x-*'"),
    Argument("--prefix", metavar="P", help="only names that start with P (default: the config's)"),
    OneOf(
        Argument("-q", "--quiet", action="store_true", help="print the names alone"),
        Argument("--watch", action="store_true", help="go on with each change, until Ctrl-C"),
        JSON,
    ),
    group=SPRITES,
    examples=(
        "thopters list",
        "thopters ls --prefix issue-",
        "thopters list --watch",
        "thopters list --json",
    ),
    aliases=("ls",),
)
def cmd_list(app: App, args: argparse.Namespace) -> int:
    console, patterns = app.console, only_patterns(args.patterns)
    prefix = app.default_prefix() if args.prefix is None else args.prefix
    hidden_by = prefix if args.prefix is None else ""
    if args.watch:
        return show_changes(app, patterns, prefix, hidden_by)
    with console.working("listing sprites"):
        listing = app.api.list_sprites(prefix)
        names = names_to_show(listing, patterns, prefix)
        found = [with_status(app.api, listing.sprites[name]) for name in names]
    if not prefix:
        remember_sprites(app.api, listing.sprites.values())
    if args.json:
        counts = {state: sum(info.status == state for info in found) for state in listing.limits}
        numbers = {k: {"count": n, "limit": listing.limits[k]} for k, n in counts.items()}
        console.answer_json({"sprites": [info.to_json() for info in found], "counts": numbers})
    elif args.quiet:
        for info in found:
            console.answer(console.safe(info.name))
    else:
        show_sprites(app, found, prefix)
        say_counts(console, found, listing.limits)
    say_hidden(console, hidden_by)
    return EXIT_OK


def only_patterns(words: Sequence[str]) -> list[str]:
    """Check the words of list: a name alone is more likely meant for another command."""
    names = [word for word in words if not is_pattern(word)]
    if names:
        raise UsageError(
            f"unrecognized arguments: {' '.join(names)}", hint="see: thopters list --help"
        )
    return [valid_pattern(word) for word in words]


def names_to_show(listing: Listing, patterns: Sequence[str], prefix: str) -> list[str]:
    """Return the names to be shown, of all without patterns; NoMatchError for one for none."""
    found = {name for pattern in patterns for name in matching(listing, pattern, prefix)}
    shown = [name for name in sorted(listing.sprites) if name.startswith(prefix)]
    return [name for name in shown if name in found or not patterns]


def show_sprites(app: App, found: list[SpriteInfo], prefix: str) -> None:
    if found:
        rows = [
            (info.name, state_of(info.status, app.console), show_api_time(app.api, info.updated_at))
            for info in found
        ]
        app.console.table(("Name", "Status", "Updated"), rows)
    else:
        named = f" whose names start with {prefix}" if prefix else ""
        app.console.note(f"there are no sprites{named}; make one: thopters create NAME")


def show_changes(app: App, patterns: Sequence[str], prefix: str, hidden_by: str) -> int:
    """Print a line for each sprite and for each change, until a signal ends it."""
    console = app.console
    say_hidden(console, hidden_by)
    for info, state in watch_sprites(app.api, prefix):
        if not info.name.startswith(prefix):
            continue
        if patterns and not any(matches(info.name, pattern) for pattern in patterns):
            continue
        now = app.api.now()
        time_of_day = f"{now.astimezone():%H:%M:%S}"
        cells = (time_of_day if console.out_is_terminal else format_time(now), info.name, state)
        between = "  " if console.out_is_terminal else "\t"
        console.answer(between.join(console.safe(cell) for cell in cells))
        console.flush()
    return EXIT_OK


def say_counts(console: Console, found: list[SpriteInfo], limits: dict[str, int | None]) -> None:
    """Say how many run and how many hibernate, and the plan's limits, if the API tells them."""
    if not limits:
        return

    def count(state: str) -> str:
        limit = limits.get(state)
        told = "" if limit is None else f" (plan allows {limit})"
        return f"{sum(info.status == state for info in found)} {state}{told}"

    asleep = f"{sum(info.is_asleep() for info in found)} hibernating"
    if console.verbose:
        asleep += ": " + ", ".join(count(state) for state in limits if state != "running")
    console.note(f"{count('running')}, {asleep}")


def say_hidden(console: Console, prefix: str) -> None:
    """Say that the configured prefix hides the other sprites."""
    if prefix and not console.json:
        console.note(
            f"only names that start with {prefix} are listed; all: thopters list --prefix ''"
        )


def show_api_time(api: SpritesApi, stamp: str) -> str:
    """Return a stamp of the API's as it is shown: an age on a terminal, a time elsewhere."""
    moment = parse_time(stamp)
    return format_age(moment, api.now()) if api.console.out_is_terminal else format_time(moment)


@Command(
    "info",
    "show what is known of a sprite, without waking it",
    NAME,
    JSON,
    group=SPRITES,
    examples=("thopters info dev", "thopters info dev --json"),
)
def cmd_info(app: App, args: argparse.Namespace) -> int:
    sprite = app.sprite(args.name, changes=False)
    with app.console.working(f"looking at {sprite.name}"):
        facts = facts_of(sprite)
    if args.json:
        app.console.answer_json(facts.to_json())
    else:
        app.console.table(("Fact", "Value"), fact_rows(sprite, facts))
    return EXIT_OK


WHO_OPENS = {"public": "anybody", "sprite": "members of the org", "admins": "admins of the org"}
SHOWN_CHECKPOINTS = 5  # the newest


def fact_rows(sprite: Sprite, facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield a name and a value for each fact about a sprite."""
    info, now = facts.info, sprite.api.now()
    who = "admins" if info.private_access == "admins" and info.auth == "sprite" else info.auth
    yield "state", state_of(info.status, sprite.console)
    yield "url", info.url or "-"
    yield "open to", WHO_OPENS.get(who, who) or "-"
    yield "created", show_time(sprite, info.created_at)
    yield "updated", show_time(sprite, info.updated_at)
    yield "org", info.organization or "-"
    yield "id", info.id or "-"
    for work in facts.works or ():
        label = f" {work.label}" if work.label else ""
        yield "session", f"{work.id}{label}: {work.about()}"
    for hold in facts.holds or ():
        yield "hold", f"{hold.name}: {hold.describe(now)}"
    checkpoints = facts.checkpoints or []
    for item in checkpoints[:SHOWN_CHECKPOINTS]:
        comment = f", {item.comment}" if item.comment else ""
        yield "checkpoint", f"{item.id}: {show_time(sprite, item.create_time)}{comment}"
    if len(checkpoints) > SHOWN_CHECKPOINTS:
        more = len(checkpoints) - SHOWN_CHECKPOINTS
        yield "checkpoint", f"{more} older: thopters checkpoints {sprite.name}"


@Command(
    "use",
    "choose the sprite of this directory, for which . stands",
    Argument(
        "name", metavar="NAME", nargs="?", offers="name", help="without it: show which one it is"
    ),
    Argument("--unset", action="store_true", help="forget what was chosen for this directory"),
    JSON,
    group=SPRITES,
    examples=("thopters use dev", "thopters exec . -- uname -a", "thopters use --unset"),
)
def cmd_use(app: App, args: argparse.Namespace) -> int:
    if args.unset and args.name is not None:
        raise UsageError("--unset takes no name")
    if args.unset:
        return forget_chosen(app)
    if args.name is not None:
        return store_chosen(app, app.sprite(args.name, changes=False))
    chosen = app.chosen()
    if chosen is None:
        raise NotFoundError("this directory has no sprite", hint="choose one: thopters use NAME")
    app.console.result(chosen.to_json(), clean(chosen.name))
    if not args.json:
        app.console.note(chosen.source())
    return EXIT_OK


def store_chosen(app: App, sprite: Sprite) -> int:
    """Store the sprite of this directory, once the API has shown it."""
    folder = current_directory()
    with app.console.working(f"looking at {sprite.name}"):
        sprite.require()
    app.config.store("directories", folder, sprite.name)
    text = f"{sprite.name} is the sprite of {app.console.safe(folder)} now"
    app.console.result(Chosen(sprite.name, folder).to_json(), text)
    return EXIT_OK


def forget_chosen(app: App) -> int:
    """Forget what `use` has stored for this directory, and say what counts for it now."""
    folder, console = current_directory(), app.console
    was = app.config.directories.get(folder)
    if was is not None:
        app.config.store("directories", folder, None)
    chosen = app.chosen()
    now = chosen.to_json() if chosen else {"name": None, "directory": None, "file": None}
    done = f"{was} is no longer the sprite of" if was is not None else "no sprite was chosen for"
    console.result(now, f"{done} {console.safe(folder)}")
    if chosen and not console.json:
        console.note(f"{chosen.name} counts: {chosen.source()}")
    return EXIT_OK


@Command(
    "pause",
    "have sprites go to sleep, and see that they do",
    NAMES,
    Argument("--force", action="store_true", help="end the sessions and holds that keep it awake"),
    Argument("--no-wait", action="store_true", help="do not wait until it sleeps"),
    JOBS,
    timeout_option(f"wait at most TIME (default {format_duration(PAUSE_LIMIT_S)})"),
    dry_run_option("would be ended"),
    JSON,
    group=SPRITES,
    examples=(
        "thopters pause dev",
        "thopters pause dev issue-42 --force",
        "thopters pause dev --no-wait",
    ),
)
def cmd_pause(app: App, args: argparse.Namespace) -> int:
    many, clock = Many(app, "would_pause" if args.dry_run else "paused", jobs=args.jobs), app.clock
    if args.dry_run:
        return show_pause(many, args.names)
    limit_s = PAUSE_LIMIT_S if args.timeout is None else args.timeout
    pauses = begin_pauses(many, args)
    started = clock.monotonic()

    def wait(pause: Pause) -> dict[str, Any]:
        left_s = limit_s - (clock.monotonic() - started)
        with pause.after():
            if args.no_wait:
                info = pause.sprite.require()
            else:
                info = wait_until_asleep(pause, left_s, limit_s)
        seconds = round(clock.monotonic() - started, 1)
        how = describe_pause(pause, info, seconds, waited=not args.no_wait)
        many.say(pause.sprite, app.console.safe(how))
        facts = {"was": pause.was or None, "status": info.status or None, "ended": pause.ended}
        return {"name": pause.name, **facts, "seconds": seconds}

    return many.report(many.for_every(pauses, wait))


def begin_pauses(many: Many, args: argparse.Namespace) -> list[Pause]:
    """Look at all sprites first, so that they fall asleep together."""
    return many.for_every(
        many.choose(args.names),
        lambda item: begin_pause(item.sprite, force=args.force),
        in_turn=many.console.can_ask() and not args.force,
    )


def show_pause(many: Many, names: Sequence[str]) -> int:
    """Say for each sprite what a pause would end."""

    def preview(item: Target) -> dict[str, Any]:
        console, name = item.sprite.console, item.name
        with console.working(f"looking into {name}"):
            info, keepers = preview_pause(item.sprite)
        for keeper in keepers:
            line = console.safe(f"would end in {name}: {keeper}")
            many.say(item.sprite, line, line)
        if not keepers:
            state = console.safe(state_of(info.status, console))
            many.say(item.sprite, f"is {state}; nothing would be ended")
        ends = [f"{keeper.kind} {keeper.id}" for keeper in keepers]
        return {"name": name, "status": info.status or None, "would_end": ends}

    return many.report(many.for_every(many.choose(names), preview))


@Command(
    "resume",
    "wake sprites, and tell how long it took",
    NAMES,
    JOBS,
    timeout_option(f"wait at most TIME for each (default {format_duration(WAKE_LIMIT_S)})"),
    JSON,
    group=SPRITES,
    examples=("thopters resume dev", "thopters wake dev issue-42"),
    aliases=("wake",),
)
def cmd_resume(app: App, args: argparse.Namespace) -> int:
    many = Many(app, "resumed", jobs=args.jobs, wakes=True, waits=False)

    def wake_up(item: Target) -> dict[str, Any]:
        limit_s = WAKE_LIMIT_S if args.timeout is None else args.timeout
        was, seconds = resume(item.sprite, limit_s)
        app.bring_keys(item.sprite)
        state = state_of(was, app.console)
        how = "was running already, and answered" if was == "running" else f"was {state}, woke"
        many.say(item.sprite, f"{clean(how)} in {seconds:.2f} s")
        return {"name": item.name, "was": was or None, "seconds": round(seconds, 2)}

    return many.report(many.for_every(many.choose(args.names), wake_up))


@Command(
    "exec",
    "run a command in a sprite; its exit status is ours",
    NAME_OR_PATTERN,
    Argument("-i", "--interactive", action="store_true", help="forward our stdin"),
    OneOf(
        Argument("-t", "--tty", action="store_true", default=None, help="give it a terminal"),
        Argument(
            "-T",
            "--no-tty",
            dest="tty",
            action="store_false",
            help="give it none, on a terminal too",
        ),
    ),
    Argument("--dir", metavar="D", help="run it in this directory of the sprite"),
    Argument(
        "--env",
        metavar="K=V",
        action="append",
        default=[],
        help="set a variable; K alone takes our own value",
    ),
    Argument(
        "-d", "--detach", action="store_true", help="start it on a terminal, print its id, leave"
    ),
    Argument(
        "--name", dest="label", metavar="LABEL", help="with -d: a name that stands for its id"
    ),
    Argument("--no-record", action="store_true", help="with -d: keep no output"),
    hold_option("keep the sprite awake until it ends (default: while we are attached)"),
    HOLD_MAX,
    WAKE,
    JOBS,
    Argument("command", metavar="CMD", nargs="*", offers=("--",), help="the command, after --"),
    group=INSIDE,
    examples=(
        "thopters exec dev -- uname -a",
        "thopters exec 'issue-*' -- df -h .",
        "thopters exec dev --dir src --env CI=1 -- make test",
        "thopters exec dev -i -- tar xz < files.tar.gz",
        "thopters exec dev -d --hold --name tests -- make test",
    ),
    own_failure=EXIT_STATUS_UNKNOWN,
    takes_command=True,
)
def cmd_exec(app: App, args: argparse.Namespace) -> int:
    if not args.command:
        hint = f"thopters exec {args.name or 'NAME'} -- uname -a"
        raise UsageError("there is no command to run", hint=hint)
    check_detached(args)
    if args.name and is_pattern(args.name):
        return exec_in_many(app, args)
    sprite = app.sprite(args.name)
    on_terminal = wants_terminal(app, args)
    command = command_of(app, args, on_terminal=on_terminal)
    app.bring_keys(sprite)
    if args.hold:
        list_holds(sprite)  # an image without them is an error where one is asked for
    if isinstance(command, JobCommand):
        return show_detached(command, sprite, *start_detached(sprite, command))
    sys.stdout.flush()
    if on_terminal:
        return run_on_terminal(sprite, command, refreshes_hold=args.hold is None)
    binary_streams()
    sinks = {STREAM_STDOUT: write_stdout, STREAM_STDERR: write_stderr}
    with app.console.working(f"waiting for {sprite.name}"):
        session = open_exec(sprite, sinks)
    return run_attached(sprite, session, command, LocalInput() if args.interactive else None)


def check_detached(args: argparse.Namespace) -> None:
    if args.detach and (args.interactive or args.tty is False):
        raise UsageError("--detach gives the command a terminal and no input of ours")
    if not args.detach and (args.label is not None or args.no_record):
        option = "--name" if args.label is not None else "--no-record"
        raise UsageError(f"{option} is for a command that is detached", hint="add -d")
    if args.label is not None:
        valid_label(args.label)


def exec_in_many(app: App, args: argparse.Namespace) -> int:
    if args.interactive or args.tty or args.detach:
        raise UsageError(
            "-i, -t and --detach are for one sprite, and not for a pattern",
            hint="several sprites can't share a terminal or an input",
        )
    command = command_of(app, args, on_terminal=False)
    many = Many(app, "ran", jobs=args.jobs, wakes=args.wake, own_failure=EXIT_STATUS_UNKNOWN)
    chosen = many.leave_asleep(many.choose([args.name]))
    binary_streams()
    return run_in_many(many, chosen, command, needs_holds=bool(args.hold))


def command_of(app: App, args: argparse.Namespace, *, on_terminal: bool) -> RemoteCommand:
    """Return the command that the arguments of exec describe."""
    hold_max_s = longest_hold(args, by_default=not args.detach)
    argv = [os.fsencode(word) for word in args.command]
    options: dict[str, Any] = {
        "env": [parse_variable(text, app.environ) for text in args.env],
        "directory": os.fsencode(args.dir or ""),
        "hold_max_s": hold_max_s,
        "hold_alone": bool(args.hold) or not on_terminal,
        "setup": terminal_setup(app.environ) if on_terminal else b"",
    }
    if not args.detach:
        return RemoteCommand(argv, **options)
    app.connect()  # the secrets that a record is not to hold are known behind this
    about = {
        "argv": describe_command(app.console, argv),
        "label": args.label,
        "hold_s": hold_max_s,
        "keeps_output": not args.no_record,
    }
    return JobCommand(argv, about, **options)


def longest_hold(args: argparse.Namespace, *, by_default: bool) -> int:
    """Return how many seconds a command may keep its sprite awake, 0 for not at all."""
    if args.hold or (args.hold is None and by_default):
        return args.hold_max or HOLD_MAX_S
    if args.hold_max:
        raise UsageError("--hold-max does nothing without --hold")
    return 0


def wants_terminal(app: App, args: argparse.Namespace) -> bool:
    """Return whether a command gets a terminal: asked for, or all of our streams are one.

    In the background our keys are for somebody else.
    """
    if args.detach or args.tty is not None:
        return bool(args.detach or args.tty)
    shows = app.console.out_is_terminal and app.console.err_is_terminal
    reads = os.name == "posix" and sys.stdin is not None and sys.stdin.isatty()
    return shows and reads and not is_in_background()


def parse_variable(text: str, environ: Mapping[str, str]) -> tuple[str, bytes]:
    """Return the name and value of an --env option."""
    name, given, value = text.partition("=")
    if not is_variable(name):
        raise UsageError("--env wants NAME=VALUE, or NAME to pass on your own value")
    if name in SHELL_VARIABLES:
        raise UsageError(f"--env can't set {name}: the shell keeps it for itself")
    if not given and name not in environ:
        raise UsageError(
            f"--env {name}: there is no such variable here", hint=f"--env {name}=VALUE"
        )
    return name, os.fsencode(value if given else environ[name])


def show_detached(
    command: JobCommand, sprite: Sprite, status: int, identity: str, shown: bytes
) -> int:
    """Say how a detached command has started; the answer is its id."""
    console, name = sprite.console, sprite.name
    if status not in (EXIT_OK, STILL_RUNNING):
        console.quote(text_of(shown))
        console.note(f"it ended at once, with status {status}")
        with contextlib.suppress(ThoptersError):  # nobody is told the id
            forget_job(sprite, identity)
        return status
    if not identity:
        raise ThoptersError(
            f"it was started in {name}, but the platform does not tell its session's id",
            hint=f"look for it: thopters sessions {name}",
        )
    console.answer(clean(identity))
    label, words = command.about["label"], " ".join(command.about["argv"])
    remember(sprite, "session", [(label or identity, words)], whole=False)
    if status == EXIT_OK:
        console.note("it has ended already, with status 0")
    else:
        console.hint(
            f"follow it: thopters logs {name} {identity} -f; "
            f"wait for its end: thopters wait {name} {identity}"
        )
    return EXIT_OK


@Command(
    "shell",
    "open a shell in a sprite",
    NAME,
    NATIVE,
    hold_option("keep the sprite awake while it is open"),
    HOLD_MAX,
    group=INSIDE,
    examples=("thopters shell dev", "thopters console dev --native"),
    aliases=("console",),
    own_failure=EXIT_STATUS_UNKNOWN,
)
def cmd_shell(app: App, args: argparse.Namespace) -> int:
    sprite = app.sprite(args.name)
    shell = RemoteCommand(
        [b"bash", b"-l"],
        hold_max_s=longest_hold(args, by_default=False),
        is_shell=True,
        setup=terminal_setup(app.environ),
    )
    info = sprite.require()
    app.bring_keys(sprite)
    program = None if args.native or args.hold else sprite_program_for(sprite, info)
    if program is None:
        return run_on_terminal(sprite, shell)
    if info.status != "running":  # the program gives up on a sprite that wakes slowly
        wake(sprite, WAKE_LIMIT_S)
    return become_program([*program, "console"], app.environ)


@Command(
    "ssh",
    "run ssh to a sprite, and make sprites hosts for all that speaks ssh",
    OneOf(
        Argument("--setup", dest="mode", action="store_const", const="setup",
                 help="make sprites hosts of ssh: NAME.sprite"),
        Argument("--config", dest="mode", action="store_const", const="config",
                 help="print their Host blocks and change nothing"),
        Argument("--remove", dest="mode", action="store_const", const="remove",
                 help="take the blocks and the keys away"),
        Argument("--stdio", dest="mode", action="store_const", const="stdio",
                 help="be the connection itself: what a block calls"),
    ),
    yes_option("set up"),
    Argument("--key", metavar="FILE", help="let this key of yours in, and not one of thopters"),
    OneOf(
        Argument("--idle", metavar="TIME", type=duration,
                 help="close a connection that is idle for so long (default 15m)"),
        Argument("--hold", action="store_true",
                 help="keep the sprite awake while a connection is open, at most 8h"),
    ),
    Argument("--api", metavar="URL", help="with --stdio: where the sprite is"),
    Argument("--org", metavar="ORG", help="with --stdio: whose login to use"),
    Argument("--id", metavar="ID", help="with --stdio: the sprite's id"),
    Argument(
        "names",
        metavar="NAME",
        nargs="+",
        offers="sprite",
        help="the sprite; some options take several",
    ),
    Argument("rest", metavar="WORD", nargs="*", default=[], help="ssh's options, and a command"),
    group=INSIDE,
    examples=(
        "thopters ssh --setup dev",
        "thopters ssh dev",
        "thopters ssh dev -L 8080:localhost:80 -N",
        "thopters ssh dev 'cd src && make'",
    ),
    all_own=("--setup", "--config", "--remove", "--stdio"),
)  # fmt: skip
def cmd_ssh(app: App, args: argparse.Namespace) -> int:
    check_ssh_options(args)
    if os.name != "posix":
        raise ThoptersError("ssh is for Linux and macOS", hint="on Windows use it in WSL")
    ways = {"setup": ssh_setup, "config": ssh_config, "remove": ssh_remove}
    if args.mode in ways:
        return ways[args.mode](app, SshFiles(app.environ, app.console), args)
    try:
        if args.mode == "stdio":
            return ssh_stdio(app, args)
        return ssh_run(app, SshFiles(app.environ, app.console), args)
    except ThoptersError as error:  # as every failure of ssh's own
        if not isinstance(error, UsageError):
            error.exit_code = EXIT_STATUS_UNKNOWN
        if error.hint and args.mode == "stdio":  # it gets one line among those of ssh
            error.args, error.hint = (f"{error}; {error.hint}",), None
        raise


def check_ssh_options(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do nothing where they stand, and for ours behind NAME."""
    mode, wrong = args.mode, ""
    if mode != "stdio" and (args.api or args.org or args.id):
        wrong = "--api, --org and --id are for --stdio"
    elif args.key and mode in ("config", "remove", "stdio"):
        wrong = "--key is for --setup"
    elif args.yes and mode in ("config", "stdio"):
        wrong = f"--{mode} asks nothing, so --yes does nothing"
    elif (args.idle or args.hold) and mode in ("config", "remove"):
        wrong = "--idle and --hold are for --setup and for a connection"
    elif mode == "stdio" and len(args.names) > 1:
        wrong = "--stdio takes one name"
    elif mode is None and args.rest[:1] and args.rest[0].startswith("--") and len(args.rest[0]) > 2:
        wrong = f"what follows NAME is for ssh, which has no option {args.rest[0][:64]}"
    if wrong:
        hint = f"thopters ssh {args.rest[0][:64]} {args.names[0]}" if not mode and args.rest else ""
        raise UsageError(wrong, hint=hint or "see: thopters help ssh")


def ssh_limits(args: argparse.Namespace) -> list[str] | None:
    """Return the options of a ProxyCommand that the user has given, None for those of before."""
    if args.hold:
        return ["--hold"]
    return ["--idle", str(args.idle)] if args.idle else None


def forget_ssh_host(app: App, name: str) -> None:
    """Take a sprite that is gone out of the user's ssh configuration."""
    try:
        files = ssh_files_if_any(app)
        if files and files.remove(name):
            app.console.detail(f"{name} was taken out of {files.path}")
    except ThoptersError as error:
        app.console.warn(f"{name} is still in your ssh configuration: {error}")


def ssh_sprites(app: App, args: argparse.Namespace) -> list[Target]:
    """Return the sprites that are named; UsageError where one can't be a host of ssh."""
    sprites = [app.sprite(name) for name in dict.fromkeys(args.names)]
    for sprite in sprites:
        valid_host(sprite.name)
    return [Target(sprite, None, is_named=True) for sprite in sprites]


def ssh_setup(app: App, files: SshFiles, args: argparse.Namespace) -> int:
    sprites = ssh_sprites(app, args)
    local_program("ssh", app.environ)
    names = ", ".join(sprite.name for sprite in sprites)
    consent_to_include(files, args, f"set up {names} for ssh")
    many = Many(app, "set_up")

    def set_up(item: Target) -> str:
        make_ssh_host(app, files, item.sprite, args)
        return item.name

    return many.report(many.for_every(sprites, set_up))


def consent_to_include(
    files: SshFiles, args: argparse.Namespace, doing: str, question: str = ""
) -> None:
    """Show the one line that the user's file gets, and ask; UsageError for a no, or for nobody.

    With a `question` it is asked for where the line is there, too.
    """
    console = files.console
    if files.has_include() and not question:
        return
    if not args.yes and not console.can_ask():
        raise no_consent(doing)
    if not files.has_include():
        console.note(f"{files.user_path} gets one line at its top: {files.include}")
    words = question or "Write it? [y/N]"
    if not args.yes and console.ask(words).strip().lower() not in YES:
        raise DeclinedError("nothing was changed")


def make_ssh_host(app: App, files: SshFiles, sprite: Sprite, args: argparse.Namespace) -> SshHost:
    """Set a sprite up for ssh, try it, and say what came of it."""
    console = app.console
    key = os.path.abspath(os.path.expanduser(args.key)) if args.key else ""
    changed = set_up_ssh(sprite, files, key=key, limits=ssh_limits(args))
    if not files.has_include():
        files.add_include()
        changed = True
    host = files.find(sprite.name)
    if host is None:
        raise ThoptersError(f"{files.path} was changed meanwhile", hint="try again")
    needed = needed_variables(sprite, host)
    how = "is set up for ssh" if changed else "is set up for ssh already"
    console.say_done(f"{sprite.name} {how}: ssh {host.host}")
    if files.config_option:
        console.note(
            f"HOME is not your account's home, where a plain ssh looks, so it does not see "
            f"{host.host}: use thopters ssh {sprite.name}, or ssh -F {files.user_path} {host.host}"
        )
    if needed:
        names = ", ".join(needed)
        console.warn(
            f"programs that your desktop starts do not have your shell's variables, and a "
            f"connection to {host.host} needs {names}"
        )
        stored = "log in with: sprite login; " if set(needed) & set(TOKEN_VARIABLES) else ""
        console.remedy(f"{stored}or set {names} where your desktop reads variables")
    return host


def ssh_config(app: App, files: SshFiles, args: argparse.Namespace) -> int:
    for item in ssh_sprites(app, args):
        text = files.blocks().get(item.name)
        app.console.answer(text or new_ssh_host(item.sprite, files).block(files.known_hosts))
        if text is None:
            app.console.hint(f"it works after: thopters ssh --setup {item.name}")
    return EXIT_OK


def ssh_remove(app: App, files: SshFiles, args: argparse.Namespace) -> int:
    many = Many(app, "removed")

    def take_away(item: Target) -> str:
        sprite = item.sprite
        host = files.find(sprite.name)
        if not files.remove(sprite.name):
            app.console.say_done(f"{sprite.name} was not set up for ssh here")
            return sprite.name
        with After(f"{sprite.name} was taken out of your ssh configuration"):
            is_there = host is not None and remove_from_there(sprite, host)
        where = "here and in the sprite" if is_there else "here"
        app.console.say_done(f"{sprite.name} is not a host of ssh any more: removed {where}")
        return sprite.name

    return many.report(many.for_every(ssh_sprites(app, args), take_away))


def ssh_stdio(app: App, args: argparse.Namespace) -> int:
    given = {"SPRITES_API_URL": args.api, "SPRITE_ORG": args.org}
    app.environ = {**app.environ, **{name: value for name, value in given.items() if value}}
    app.environ = {"HOME": account_home(), **app.environ}
    files = SshFiles(app.environ, app.console)
    idle_s = None if args.hold else args.idle or SSH_IDLE_S
    return serve_ssh(app.sprite(args.names[0]), files, args.id or "", idle_s)


def ssh_run(app: App, files: SshFiles, args: argparse.Namespace) -> int:
    """Become the system's ssh, when the sprite is set up for it."""
    [item] = ssh_sprites(app, args)
    sprite = item.sprite
    app.bring_keys(sprite)
    ssh, host = local_program("ssh", app.environ), files.find(sprite.name)
    if host is None or not files.has_include():
        question = f"{sprite.name} is not set up for ssh. Set it up? [y/N]"
        consent_to_include(files, args, f"set up {sprite.name} for ssh", question)
        host = make_ssh_host(app, files, sprite, args)
    elif not all(map(os.path.exists, host.program)):
        app.console.note(
            f"the block of {host.host} called {host.program[-1]}, which is not there any more; "
            "it calls this program now"
        )
        host.program = own_program()
        files.put(host)
    limits, more = ssh_limits(args), ["-v"] if app.console.verbose else []
    options = []
    if limits or more:
        host.limits = limits or host.limits
        options = ["-o", "ProxyCommand=" + host.proxy_command(more)]
    return become([ssh, *files.config_option, *options, host.host, *args.rest], app.environ)


@Command(
    "proxy",
    "forward local ports to a sprite",
    NAME,
    Argument("ports", metavar="PORT", nargs="*", help="PORT, or LOCAL:REMOTE"),
    Argument(
        "-W", dest="stdio", metavar="HOST:PORT", help="join stdin and stdout to it, as ssh wants it"
    ),
    NATIVE,
    group=INSIDE,
    examples=(
        "thopters proxy dev 8080",
        "thopters proxy dev 3001:3000",
        "thopters proxy dev 3000 8080 --native",
    ),
)
def cmd_proxy(app: App, args: argparse.Namespace) -> int:
    if args.stdio is not None:
        if args.ports:
            raise UsageError("-W takes the place of ports")
        address = valid_address(args.stdio)
        sprite = app.sprite(args.name)
        app.bring_keys(sprite)
        return forward_stdio(sprite, *address)
    pairs = different_ports(args.ports, args.name or "NAME")
    sprite = app.sprite(args.name)
    app.connect()
    forwarder = Forwarder(sprite)
    try:
        for pair in pairs:  # also where the program takes over: it only says that it can't
            forwarder.listen(*pair, [local for local, _ in pairs])
        info = sprite.require()
        app.bring_keys(sprite)
        program = None if args.native else sprite_program_for(sprite, info)
        if program is None:
            say_ports(sprite, pairs)
            forwarder.serve()
    finally:
        forwarder.close()
    return become_program([*program, "proxy", *args.ports], app.environ)


def say_ports(sprite: Sprite, pairs: Sequence[tuple[int, int]]) -> None:
    sprite.console.note(OPEN_PORTS)
    for here, there in pairs:
        sprite.console.answer(f"localhost:{here} -> {sprite.name}:{there}")
    sprite.console.flush()


def different_ports(texts: Sequence[str], name: str) -> list[tuple[int, int]]:
    """Return the local and remote port of each text; UsageError for none, or one twice."""
    if not texts:
        raise UsageError("which ports?", hint=f"thopters proxy {name} 8080")
    pairs = [valid_ports(text) for text in texts]
    local = [port for port, _ in pairs]
    twice = next((port for port in local if local.count(port) > 1), None)
    if twice:
        raise UsageError(f"local port {twice} is named twice")
    return pairs


def cp_habit(option: str, text: str) -> Argument:
    """Return an option of cp's; those that are given make `args.habits`, in their order."""
    letter = option.lstrip("-")
    return Argument(
        option, dest="habits", action="append_const", const=letter, default=[], help=text
    )


@Command(
    "cp",
    "copy files and directories into a sprite, or out of it",
    Argument("-r", "-R", action="store_true", help="changes nothing: directories need no option"),
    cp_habit("-a", "keep links as links, and modes as with -p"),
    cp_habit("-p", "keep modes whole: your umask takes nothing from what comes down"),
    cp_habit("-P", "keep links as links, also those that you name"),
    cp_habit("-L", "follow all links; the last of -a, -P and -L counts"),
    Argument(
        "paths",
        metavar="SRC",
        nargs="+",
        offers="path",
        help="PATH, or NAME:PATH or .:PATH in a sprite",
    ),
    Argument(
        "target",
        metavar="DST",
        offers="path",
        help="likewise; one side is a sprite's, or a pattern's",
    ),
    WAKE,
    JOBS,
    group=INSIDE,
    examples=(
        "thopters cp notes.txt src dev:work",
        "thopters cp dev:work/lines.txt .",
        "thopters cp dev:work/lines.txt - | wc -l",
        "thopters cp notes.txt 'issue-*:'",
    ),
)
def cmd_cp(app: App, args: argparse.Namespace) -> int:
    style = CopyStyle(args.habits)
    sources = [split_path(text) for text in args.paths]
    name, target = split_path(args.target)
    if name:
        if any(place for place, _ in sources):
            hint = "copy to a local file in between; a local name with a colon is ./a:b"
            raise UsageError("both sides are in sprites", hint=hint)
        paths = [path for _, path in sources]
        if is_pattern(name):
            return copy_into_many(app, args, name, paths, target or ".", style)
        sprite = app.sprite(name)
        app.bring_keys(sprite)
        return copy_in(sprite, paths, target or ".", style)
    names = {place for place, _ in sources}
    if len(names) != 1 or None in names:
        raise UsageError(
            "one side has to be in a sprite", hint="thopters cp PATH NAME:PATH, or the other way"
        )
    sprite, paths = app.sprite(str(names.pop())), [path or "." for _, path in sources]
    app.bring_keys(sprite)
    return copy_out(sprite, paths, target, style)


def copy_into_many(
    app: App,
    args: argparse.Namespace,
    pattern: str,
    paths: list[str],
    target: str,
    style: CopyStyle,
) -> int:
    if "-" in paths:
        raise UsageError("stdin can't be copied into several sprites: put it into a file first")
    many = Many(app, "copied", jobs=args.jobs, wakes=args.wake)

    def copy(item: Target) -> None:
        app.bring_keys(item.sprite)
        if status := copy_in(item.sprite, paths, target, style):
            many.statuses[item.name] = status

    chosen = many.leave_asleep(many.choose([pattern]))
    return many.summarize(len(many.for_every(chosen, copy)))


@Command(
    "sessions",
    "list the commands that run in a sprite, waking it",
    NAME,
    Argument("--all", action="store_true", help="detached commands that have ended, too"),
    JSON,
    group=INSIDE,
    examples=("thopters sessions dev", "thopters sessions dev --all --json"),
)
def cmd_sessions(app: App, args: argparse.Namespace) -> int:
    sprite, console = app.sprite(args.name, changes=False), app.console
    with console.working(f"listing the sessions of {sprite.name}"):
        around = look_around(sprite, needs_all=args.all)
    remember(sprite, "session", [(work.label or work.id, work.words()) for work in around])
    found = [work for work in around if args.all or work.is_running()]
    if args.json:
        items = [work.to_json() for work in found]
        console.answer_json({"name": sprite.name, "sessions": items})
    elif found:
        header = ("ID", "Command", "Directory", "Started", "Active", "State")
        console.table(header, [work_row(sprite, work) for work in found], cut=1)
    else:
        how = "is known" if args.all else "runs"
        console.note(f"no command {how} in {sprite.name}")
    return EXIT_OK


def work_row(sprite: Sprite, work: Work) -> tuple[str, ...]:
    label = f" {work.label}" if work.label and sprite.console.out_is_terminal else ""
    stamps = epoch_stamp(work.started_at), work.last_activity() or epoch_stamp(work.ended_at)
    times = [show_time(sprite, stamp) for stamp in stamps]
    return work.id + label, work.words(), work.directory or "-", *times, work.outcome()


def show_time(sprite: Sprite, stamp: str) -> str:
    """Return a stamp of the API's as it is shown: an age on a terminal, a time elsewhere."""
    return show_api_time(sprite.api, stamp)


@Command(
    "logs",
    "print what a detached command's terminal got",
    NAME,
    DETACHED,
    Argument(
        "-f", "--follow", action="store_true", help="go on to its end; Ctrl-C leaves it alone"
    ),
    Argument("--tail", metavar="N", type=line_count, help="begin with the last N lines"),
    Argument(
        "--since", metavar="TIME", type=duration, help="begin with what came in the last TIME"
    ),
    group=INSIDE,
    examples=(
        "thopters logs dev",
        "thopters logs dev -f --tail 20",
        "thopters logs dev --since 1h",
    ),
)
def cmd_logs(app: App, args: argparse.Namespace) -> int:
    sprite = app.sprite(args.name, changes=False)
    wanted = None if args.job is None else valid_work(args.job)
    with app.console.working(f"looking into {sprite.name}"):
        job = pick_job(sprite, look_at_jobs(sprite), wanted)
    if not job.keeps_output:
        raise NoWorkError(f"{job.id} of {sprite.name} was started with --no-record")
    sys.stdout.flush()
    binary_streams()
    screen = LogScreen() if app.console.out_is_terminal else None
    log = Log(
        sprite,
        job,
        screen.show if screen else write_stdout,
        tail=args.tail,
        since_s=args.since,
        follows=args.follow,
    )
    try:
        rest = log.read()
    finally:
        if screen:
            screen.leave()
    if rest in MISSING_OUTPUT:
        app.console.warn(f"this is not all that {job.id} printed: {MISSING_OUTPUT[rest]}")
    return EXIT_OK


@Command(
    "wait",
    "wait for a detached command's end, and exit with its status",
    NAME,
    DETACHED,
    Argument("--timeout", metavar="TIME", type=duration, help="wait at most TIME"),
    Argument("--no-wake", action="store_true", help="do not wake the sprite to look"),
    JSON,
    group=INSIDE,
    examples=("thopters wait dev", "thopters wait dev tests --timeout 2h"),
    own_failure=EXIT_STATUS_UNKNOWN,
)
def cmd_wait(app: App, args: argparse.Namespace) -> int:
    sprite, console = app.sprite(args.name, changes=False), app.console
    wanted = None if args.job is None else valid_work(args.job)
    with console.working(f"waiting for a command in {sprite.name}"):
        job = wait_for_job(sprite, wanted, args.timeout, wakes=not args.no_wake)
    facts = {"id": job.id, "state": job.state, "status": job.status}
    if console.err_is_terminal and not job.is_running():
        console.tell("\a")
    if args.json:
        console.answer_json({**facts, "timed_out": job.is_running()})
    if job.is_running():
        console.note(f"the time is up: {job.id} of {sprite.name} ran when it was last looked at")
        return EXIT_TIMED_OUT
    console.note(f"{job.id} of {sprite.name} {job.describe_end()}")
    return EXIT_STATUS_UNKNOWN if job.status is None else job.status


@Command(
    "attach",
    "come back to a command that runs on a terminal; Ctrl-\\ leaves",
    NAME,
    Argument(
        "work",
        metavar="ID",
        nargs="?",
        offers="session",
        help="an id or a label; not needed if one runs",
    ),
    group=INSIDE,
    examples=("thopters attach dev", "thopters attach dev tests"),
    own_failure=EXIT_STATUS_UNKNOWN,
)
def cmd_attach(app: App, args: argparse.Namespace) -> int:
    sprite = app.sprite(args.name)
    wanted = None if args.work is None else valid_work(args.work)
    app.bring_keys(sprite)
    with app.console.working(f"looking into {sprite.name}"):
        found = look_around(sprite)
    work = choose_work(sprite, found) if wanted is None else pick_work(sprite, found, wanted)
    remote = session_of_work(sprite, work)
    terminal = LocalTerminal(types_end=False)

    def attach() -> TerminalSession:
        with app.console.working(f"attaching to {work.id} of {sprite.name}"):
            session = attach_terminal(sprite, terminal.show, remote.id, remote.created_at)
        if session is None:
            raise NoWorkError(f"{work.id} of {sprite.name} has ended meanwhile")
        session.redraw(terminal.size())
        return session

    return Stay(sprite, terminal, refreshes_hold=True, way_back=work.id).run(attach)


def session_of_work(sprite: Sprite, work: Work) -> Session:
    """Return the session on a terminal that something runs in; ThoptersError."""
    if work.session is None:
        raise ThoptersError(
            f"the platform lists no session for {work.id} of {sprite.name}", hint="try again"
        )
    if not work.session.is_terminal:
        raise ThoptersError(
            f"{work.id} of {sprite.name} has no terminal to attach to",
            hint=f"end it: thopters kill {sprite.name} {work.id}",
        )
    return work.session


def choose_work(sprite: Sprite, found: list[Work]) -> Work:
    """Return the one that runs on a terminal, and say which; of several the user chooses."""
    console, name = sprite.console, sprite.name
    able = [work for work in found if work.session and work.session.is_terminal]
    if not able:
        raise NoWorkError(
            f"no command runs on a terminal in {name}", hint=f"start one: thopters shell {name}"
        )
    if len(able) == 1:
        console.note(f"attaching to {able[0].id}: {able[0].about()}")
        return able[0]
    rows = [(f"{number:>2}", work.id, work.about()) for number, work in enumerate(able, 1)]
    for line in aligned([[console.safe(cell) for cell in row] for row in rows]):
        console.note(line)
    if not console.can_ask():
        raise UsageError(
            f"{len(able)} commands run on terminals in {name}",
            hint=f"say which: thopters attach {name} {able[0].id}",
        )
    word = console.ask("Which command? A number or an id:").strip()
    if not word:
        raise DeclinedError("no command was chosen: nothing was attached to")
    return pick_work(sprite, able, chosen_by_word(word, [work.id for work in able]))


@Command(
    "kill",
    "end a command that runs in a sprite, and see it gone",
    Argument(
        "name", metavar="NAME", offers="sprite", help="the sprite; . is the one of this directory"
    ),
    Argument(
        "work",
        metavar="ID",
        offers="session",
        help="an id or a label, as thopters sessions shows it",
    ),
    Argument(
        "--signal", metavar="S", offers=SIGNALS, help="TERM, INT, HUP, KILL, QUIT, USR1 or USR2"
    ),
    Argument("--forget", action="store_true", help="remove the record of one that has ended"),
    group=INSIDE,
    examples=("thopters kill dev tests", "thopters kill dev tests --signal INT"),
)
def cmd_kill(app: App, args: argparse.Namespace) -> int:
    sprite, wanted = app.sprite(args.name), valid_work(args.work)
    if args.forget:
        if args.signal is not None:
            raise UsageError("--forget sends no signal")
        forget_job(sprite, pick_job(sprite, look_at_jobs(sprite), wanted).id)
        app.console.answer(f"the record of {wanted} is gone")
        return EXIT_OK
    signal_name = valid_signal(args.signal) if args.signal is not None else ""
    with app.console.working(f"ending {wanted} of {sprite.name}"):
        work = pick_work(sprite, look_around(sprite), wanted)
        gone = end_work(sprite, work, signal_name)
    if gone:
        app.console.answer(f"{wanted} has ended")
    elif signal_name:
        app.console.answer(f"{wanted} got {signal_name} and runs on")
    else:
        raise ThoptersError(f"{wanted} of {sprite.name} can't be ended: it still runs")
    return EXIT_OK


@Command(
    "hold",
    "keep a sprite awake for a time, or let it sleep again",
    NAME,
    OneOf(
        Argument("--for", dest="time", metavar="TIME", type=hold_time, help="as 2h or 1h30m"),
        Argument("--release", action="store_true", help="let it sleep again"),
        required=True,
    ),
    group=INSIDE,
    examples=("thopters hold dev --for 2h", "thopters hold dev --release"),
)
def cmd_hold(app: App, args: argparse.Namespace) -> int:
    sprite = app.sprite(args.name)
    if args.release:
        was_held = release_by_hand(sprite)
        how = "may sleep again" if was_held else "was not held by hand"
        app.console.answer(f"{sprite.name} {how}")
        return EXIT_OK
    hold_by_hand(sprite, args.time)
    app.console.answer(f"{sprite.name} stays awake {format_until(args.time, app.clock.utc())}")
    app.console.hint(f"let it sleep sooner: thopters hold {sprite.name} --release")
    return EXIT_OK


@Command(
    "checkpoint",
    "save the disk, to go back to",
    NAME_OR_PATTERN,
    Argument("--comment", metavar="C", default="", help="say what it holds"),
    WAKE,
    JOBS,
    timeout_option(f"wait at most TIME (default {format_duration(STREAM_LIMIT_S)})"),
    JSON,
    group=CHECKPOINTS,
    examples=(
        'thopters checkpoint dev --comment "before the refactoring"',
        "id=$(thopters checkpoint dev)",
    ),
)
def cmd_checkpoint(app: App, args: argparse.Namespace) -> int:
    if args.name and is_pattern(args.name):
        return checkpoint_many(app, args)
    sprite, started = app.sprite(args.name), app.clock.monotonic()
    limit = TimeIsUp(app.clock, args.timeout)
    identity = take_checkpoint(sprite, args.comment, time_limit=limit)
    remember(sprite, "checkpoint", [(identity, args.comment)], whole=False)
    seconds = app.clock.monotonic() - started
    fields = {"name": sprite.name, "id": identity, "comment": args.comment}
    text = clean(identity)
    if app.console.out_is_terminal:
        text = f"checkpoint {text} of {sprite.name} was made in {seconds:.1f} s"
    app.console.result(
        {**fields, "seconds": round(seconds, 3)},
        text,
        hint=f"go back to it: thopters restore {sprite.name} {identity}",
    )
    return EXIT_OK


def checkpoint_many(app: App, args: argparse.Namespace) -> int:
    many = Many(app, "checkpointed", jobs=args.jobs, wakes=args.wake)

    def save(item: Target) -> dict[str, Any]:
        started = app.clock.monotonic()
        limit = TimeIsUp(app.clock, args.timeout)
        identity = take_checkpoint(item.sprite, args.comment, time_limit=limit)
        many.say(item.sprite, clean(identity))
        seconds = round(app.clock.monotonic() - started, 3)
        fields = {"name": item.name, "id": identity, "comment": args.comment}
        return {**fields, "seconds": seconds}

    chosen = many.leave_asleep(many.choose([args.name]))
    return many.report(many.for_every(chosen, save))


@Command(
    "checkpoints",
    "list the checkpoints of a sprite, newest first",
    NAME,
    Argument("--all", action="store_true", help="show automatic ones too"),
    JSON,
    group=CHECKPOINTS,
    examples=("thopters checkpoints dev", "thopters checkpoints dev --all --json"),
)
def cmd_checkpoints(app: App, args: argparse.Namespace) -> int:
    sprite = app.sprite(args.name, changes=False)
    with app.console.working(f"listing the checkpoints of {sprite.name}"):
        found = sprite.list_checkpoints(include_auto=args.all)
    show_checkpoints(sprite, found)
    return EXIT_OK


def show_checkpoints(sprite: Sprite, found: list[Checkpoint]) -> None:
    console = sprite.console
    remember(sprite, "checkpoint", [(item.id, item.comment) for item in found])
    if console.json:
        items = [item.to_json() for item in found]
        console.answer_json({"name": sprite.name, "checkpoints": items})
        return
    if not found:
        console.note(
            f"{sprite.name} has no checkpoints; make one: thopters checkpoint {sprite.name}"
        )
        return
    rows = [(item.id, show_time(sprite, item.create_time), item.comment) for item in found]
    console.table(("ID", "Made", "Comment"), rows)
    for item in found:
        warn_of_health(sprite, item)


@Command(
    "restore",
    "put the disk back to a checkpoint, saving the present first",
    NAME,
    Argument(
        "checkpoint", metavar="ID", nargs="?", offers="checkpoint", help="without it: list them"
    ),
    yes_option("restore"),
    Argument("--no-backup", action="store_true", help="take no checkpoint of the present first"),
    timeout_option("wait at most TIME, the checkpoint of the present included"),
    dry_run_option("it would do"),
    JSON,
    group=CHECKPOINTS,
    examples=(
        "thopters restore dev",
        "thopters restore dev v3",
        "thopters restore dev v3 --yes --no-backup",
    ),
)
def cmd_restore(app: App, args: argparse.Namespace) -> int:
    if args.checkpoint is None:
        return offer_checkpoints(app.sprite(args.name, changes=False))
    sprite, identity = app.sprite(args.name), valid_checkpoint(args.checkpoint)
    asks = not args.yes and not args.dry_run
    if asks and not app.console.can_ask():
        raise no_consent(f"restore {identity} of {sprite.name}")
    keys = app.keys  # what is wrong with it comes first
    plan = RestorePlan(sprite, identity, has_backup=not args.no_backup)
    if args.dry_run:
        return show_restore(plan)
    if asks:
        plan.confirm()
    return carry_out(plan, keys, TimeIsUp(app.clock, args.timeout))


def show_restore(plan: RestorePlan) -> int:
    """Say what a restore would do."""
    console, name = plan.sprite.console, plan.sprite.name
    plan.look_inside()
    console.say_done(console.safe(f"would restore {name}: {plan.describe()}"))
    for ending in plan.endings():
        console.say_done(console.safe(f"would end in {name}: {ending}"))
    backup = "a checkpoint of the present" if plan.has_backup else "no checkpoint of the present"
    console.say_done(f"would take {backup} first")
    console.result({"would_restore": plan.to_json()})
    return EXIT_OK


def carry_out(plan: RestorePlan, keys: Keys, limit: TimeIsUp) -> int:
    """Restore, and show what came of it."""
    sprite, identity, console = plan.sprite, plan.id, plan.sprite.console
    saved, done = None, f"{sprite.name} was restored to {identity}"
    started = sprite.clock.monotonic()
    if plan.has_backup:
        with IfInterrupted(console, f"{sprite.name} was not restored"):
            comment = f"before restore of {identity}"
            saved = take_checkpoint(sprite, comment, plan.known, limit)
        done += f" (checkpoint {saved} holds the state before)"
    with After(f"checkpoint {saved} of the present was made" if saved else ""):
        looked = restore_disk(plan, saved, keys, limit)
    seconds = sprite.clock.monotonic() - started
    console.say_done(f"restored {sprite.name} to {identity} in {seconds:.1f} s")
    if saved and not console.json:
        say = console.hint if console.err_is_terminal else console.note  # a script needs it too
        say(f"undo it: thopters restore {sprite.name} {saved}")
    with After(done):
        report = renew_keys(sprite, plan.shown, identity, keys, looked)
    fields = {"name": sprite.name, "restored": identity, "backup": saved, "init": report}
    console.result({**fields, "seconds": round(seconds, 3)})
    return EXIT_OK


def offer_checkpoints(sprite: Sprite) -> int:
    found = sprite.list_checkpoints(include_auto=True)
    show_checkpoints(sprite, found)
    if found:
        sprite.console.hint(f"choose one: thopters restore {sprite.name} {found[0].id}")
    return EXIT_OK


@Command(
    "url",
    "print the sprite's URL, or say who may open it",
    NAME,
    OneOf(
        Argument("--public", action="store_true", help="let anybody open it"),
        Argument("--private", action="store_true", help="let only the org open it (default)"),
    ),
    JSON,
    group=SPRITES,
    examples=("thopters url dev", "thopters url dev --public", "thopters url dev --private"),
)
def cmd_url(app: App, args: argparse.Namespace) -> int:
    wanted = "public" if args.public else "sprite" if args.private else ""
    sprite = app.sprite(args.name, changes=bool(wanted), only_by_name=args.public)
    name, console = sprite.name, app.console
    with console.working(f"looking at {name}"):
        info = sprite.require()
        if wanted and info.auth != wanted:
            info = sprite.set_url_auth(wanted)
    if not info.url:
        raise ThoptersError(f"the API tells no URL for {name}")
    known = {"auth": info.auth or None, "private_access": info.private_access or None}
    console.result({"name": name, "url": info.url, **known}, clean(info.url))
    if args.public and not args.json:
        console.note(
            f"anybody can now open what {name} serves; close it: thopters url {name} --private"
        )
    elif args.private and not args.json:
        who = "admins" if info.private_access == "admins" else "members"
        console.note(f"only {who} of the org can open it now; a browser asks them to log in")
    return EXIT_OK


@Command(
    "rename",
    "say why a sprite keeps its name",
    Argument("old", metavar="OLD", offers="sprite", help="the sprite"),
    Argument("new", metavar="NEW", help="the name it should have"),
    group="",
    examples=("thopters rename dev dev-2", "thopters help rename"),
)
def cmd_rename(app: App, args: argparse.Namespace) -> int:
    old, new = app.sprite(args.old, changes=False).name, valid_new_name(args.new)
    raise ThoptersError(
        f"{old} keeps its name: the platform has no way to rename a sprite",
        hint=f"make a new one (thopters create {new}), carry your files over, then: "
        f"thopters destroy {old}",
    )


@Command(
    "destroy",
    "delete sprites with everything in them",
    Argument("names", metavar="NAME", nargs="*", offers="name", help="the sprites"),
    yes_option("destroy"),
    Argument(
        "--count", metavar="N", type=int, help="only if exactly N match; '*' with --yes needs it"
    ),
    JOBS,
    dry_run_option("would be destroyed"),
    JSON,
    group=SPRITES,
    examples=("thopters destroy dev", "thopters rm issue-42 issue-55 --yes"),
    aliases=("rm",),
)
def cmd_destroy(app: App, args: argparse.Namespace) -> int:
    if args.yes and not args.names:  # a number that is mistyped would be all it takes
        raise UsageError("--yes wants the names of the sprites")
    names, asks = args.names or app.choose_names(several=True), not args.yes and not args.dry_run
    if asks and not app.console.can_ask():
        raise no_consent("destroy " + ", ".join(names))
    many = Many(app, "would_destroy" if args.dry_run else "destroyed", jobs=args.jobs)
    chosen = many.choose(names, only_by_name=True)
    found = many.for_every(chosen, lambda item: (item, item.look()))
    check_count(names, len(found), args.count, is_asked=not args.yes)
    if args.dry_run:
        return show_destroy(many, found)
    if many.by_pattern and asks:
        ask_how_many(many, [info for _, info in found])
    elif asks:
        for _, info in found:
            confirm_destroy(info, app.console)
    return many.report(destroy_all(many, found, was_asked=many.by_pattern or asks))


def show_destroy(many: Many, found: list[tuple[Target, SpriteInfo]]) -> int:
    """Say what would be destroyed."""
    for item, info in found:
        shown = many.console.safe(describe_sprite(info, many.console))
        many.say(item.sprite, f"would destroy {shown}", f"would destroy {shown}")
    return many.report([info.name for _, info in found])


def destroy_all(
    many: Many, found: list[tuple[Target, SpriteInfo]], *, was_asked: bool
) -> list[str]:
    """Destroy the sprites that were shown, and return the names of those that are gone."""
    shown = {item.name: info for item, info in found}

    def delete(item: Target) -> str:
        destroy(item.sprite, shown[item.name], was_asked=was_asked)
        forget_destroyed(many.app, item.sprite, shown[item.name])
        many.say(item.sprite, "destroyed", f"destroyed {item.name}")
        return item.name

    return many.for_every([item for item, _ in found], delete)


def forget_destroyed(app: App, sprite: Sprite, info: SpriteInfo) -> None:
    """Take a sprite that is gone out of all that is kept here; it is gone, whatever fails."""
    with contextlib.suppress(ThoptersError):
        app.keys.record.forget(info.id)
    forget(sprite)
    forget_ssh_host(app, sprite.name)


@Command(
    "completion",
    "print the script that has a shell complete with Tab",
    Argument("shell", metavar="SHELL", choices=tuple(SCRIPTS), help="bash, zsh or fish"),
    group=THIS_MACHINE,
    examples=('eval "$(thopters completion bash)"', "thopters completion zsh"),
)
def cmd_completion(app: App, args: argparse.Namespace) -> int:
    app.console.answer(SCRIPTS[args.shell].strip())
    if app.console.out_is_terminal:
        app.console.hint(f"put this line into {SCRIPT_LINES[args.shell]}")
    return EXIT_OK


@Command(
    "help",
    "explain a command, the environment or the exit codes",
    Argument(
        "topic",
        metavar="COMMAND",
        nargs="*",
        offers="topic",
        help="a command, environment or exit-codes",
    ),
    group=THIS_MACHINE,
    examples=("thopters help", "thopters help exec", "thopters help environment"),
)
def cmd_help(app: App, args: argparse.Namespace) -> int:
    app.console.answer(help_on(args.topic))
    return EXIT_OK


# --- main -------------------------------------------------------------------------------

# From the process to a command and back: one line for each way to end.


def run(
    argv: list[str],
    console: Console,
    environ: Mapping[str, str],
    signals: StopSignals | None = None,
) -> int:
    """Carry out one command line and return the exit status, also on a Python that lacks a part."""
    try:
        return run_command(argv, console, environ, signals)
    except ImportError as error:
        return fail_incomplete(error, console)


def run_command(
    argv: list[str], console: Console, environ: Mapping[str, str], signals: StopSignals | None
) -> int:
    if argv[:1] == [COMPLETE]:
        with contextlib.suppress(Exception):
            answer_tab(argv[1], argv[2:], console, environ)
        console.flush()
        return EXIT_OK
    first = next((word for word in argv if word not in GLOBAL_OPTIONS), "")
    if not argv or first in ("-h", "--help"):
        console.answer(overview())
        return EXIT_OK
    if first == "--version":
        python = sys.version.split()[0]
        console.answer(f"thopters {__version__} (Python {python}, {sys.platform})")
        return EXIT_OK
    console.json = "--json" in own_words(argv)  # also for an error in the words that follow
    command: Command | None = None
    try:
        command, args = parse(argv)
        console.verbose, console.debug = args.verbose, args.debug
        with contextlib.closing(App(console, environ, Clock(), command.name)) as app:
            status = command.run(app, args)
            console.flush()
            return status
    except ThoptersError as error:
        return fail(error, command, console, environ)
    except HelpWanted as wanted:
        console.answer(str(wanted))
        return EXIT_OK
    except (Interrupted, BrokenPipeError, ImportError):
        raise
    except Exception as error:
        raise_hidden(signals.raised if signals else None, error)
        failure = ThoptersError(
            f"internal error: {type(error).__name__}: {error}",
            hint="this is a bug; THOPTERS_DEBUG=1 shows where",
        )
        return fail(failure, command, console, environ)


def fail(
    error: ThoptersError, command: Command | None, console: Console, environ: Mapping[str, str]
) -> int:
    """Say what ended a command, and return its exit status."""
    # an error repeats the user's words, and may come before anything has looked for the token
    for name in (*TOKEN_VARIABLES, *USUAL_SECRETS):
        console.redact.add(Secret(environ.get(name, "").strip()))
    if environ.get("THOPTERS_DEBUG"):
        show_traceback(console)
    console.error(error)
    if command and command.own_failure and not error.keeps_status:
        return command.own_failure
    return error.exit_code


def fail_incomplete(error: ImportError, console: Console) -> int:
    """Say which module of the standard library is missing, by means of none of them."""
    why = "" if isinstance(error, ModuleNotFoundError) else f": {error}"
    failure = UsageError(
        f"this Python {sys.version.split()[0]} is not complete: it lacks {error.name}{why}",
        hint="install all of it (python3 beside python3-minimal, say), or run another Python",
    )
    try:
        console.error(failure)
    except ImportError:  # of what makes JSON
        console.json = False
        console.error(failure)
    return failure.exit_code


def show_traceback(console: Console) -> None:
    """Print what went wrong, redacted; for THOPTERS_DEBUG."""
    import traceback

    for line in console.redact(traceback.format_exc()).splitlines():
        console.note(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    import gc

    gc.set_threshold(100_000)  # imports make much that lives and little garbage

    leave_no_core()
    replace_closed_streams()
    sys.stdout, sys.stderr = waiting_stream(sys.stdout), waiting_stream(sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    console = Console(sys.stdout, sys.stderr, os.environ)
    signals = StopSignals()
    try:
        signals.catch()
        status = run(list(sys.argv[1:] if argv is None else argv), console, os.environ, signals)
        console.flush()
        signals.let_go()
        if signals.dropped is not None:
            raise Interrupted(signals.dropped)
        return status
    except Interrupted as interrupted:
        signals.let_go()
        with contextlib.suppress(OSError, OutputError):
            console.flush()  # what was done before is no less true
        with contextlib.suppress(BrokenPipeError):
            console.note("thopters: interrupted")
        return die_of(interrupted.signum)
    except BrokenPipeError:
        with contextlib.suppress(OSError, OutputError):
            console.flush()  # it may be stderr that nobody reads
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more
        return die_of(getattr(signal, "SIGPIPE", 13))
    except OutputError as error:
        signals.let_go()
        with contextlib.suppress(BrokenPipeError):
            console.error(error)
        return EXIT_FAILED


def leave(status: int) -> NoReturn:
    """End the process at once: to take every module apart first, as Python does, takes 8 ms."""
    if sys.flags.dev_mode:
        sys.exit(status)  # which warns of what was left open
    os._exit(status)  # main has written everything


if __name__ == "__main__":
    leave(main())
