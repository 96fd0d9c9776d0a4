"""R04: a malformed token ends in one line that does not show it, and nothing is sent."""

from __future__ import annotations

import itertools

from support.logins import EMPTY_LIST, Login
from support.program import Thopters
from support.runs import COMMAND_LINES, run_here
from support.servers import Canned, response

START, END = "acme/17/zebra-quartz", "vortex-jumble"  # no piece of these is in what we say
MALFORMED = {
    "a line's end": f"{START}\n{END}",
    "a header of its own": f"{START}\r\nX-Evil: {END}\r\n\r\n",
    "a space": f"{START} {END}",
    "a tab": f"{START}\t{END}",
    "an escape": f"{START}\x1b[31m{END}",
    "a delete": f"{START}\x7f{END}",
    "a NUL": f"{START}\0{END}",
    "an accent": f"{START}é{END}",
    "a space of no width": f"{START}\u200b{END}",
    "what is no text": f"{START}\udcff{END}",
    "1 character": "q",
    "7 characters": "zebra-q",
    "10 kB": START + "quartz" * 1700 + END,
}
POSITIONS = dict.fromkeys(list(MALFORMED)[:10], f"character {len(START) + 1} of ")
POSITIONS |= {"1 character": "it is 1 characters", "7 characters": "it is 7 characters"}
POSITIONS |= {"10 kB": f"it is {len(MALFORMED['10 kB'])} characters"}

# those that need a token first of all; shell and proxy look for the sprite program before, and
# doctor tells of a token among other things
NEEDY = [words for name, words in COMMAND_LINES.items()
         if name not in ("setup", "config", "doctor", "shell", "proxy", "rename")]  # fmt: skip


def check(kind: str, err: str, source: str) -> None:
    """Assert one error that names the source and the place, and shows no piece of the token."""
    lines = err.splitlines()
    assert len(lines) == 2, err
    assert source in lines[0] and "malformed" in lines[0] and POSITIONS[kind] in lines[0], err
    assert err.isascii() and err.replace("\n", "").isprintable(), err
    for text in (START, END, "quartzquartz", "X-Evil"):
        for place in range(len(text) - 4):
            assert text[place : place + 5] not in err, "a piece of the token was printed"


def test_r04_malformed_tokens_of_the_environment(login: Login) -> None:
    for kind, token in MALFORMED.items():
        if "\0" not in token:  # which no variable can hold
            check(kind, login.fails(SPRITE_TOKEN=token), "SPRITE_TOKEN")


def test_r04_malformed_tokens_of_the_store(login: Login) -> None:
    for kind, token in MALFORMED.items():
        place = login.store(login.layout({"acme": {"api_token": token, "use_keyring": False}}))
        check(kind, login.fails(SPRITE_TOKEN=" "), str(place.parent))


def test_r04_no_command_sends_a_malformed_token(thopters: Thopters) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a request came")

    with Canned(never) as api:
        environ = {"HOME": str(thopters.home), "PATH": "/usr/bin:/bin", "MINE": "set"}
        environ["SPRITES_API_URL"] = api.url
        for kind, words in itertools.product(MALFORMED, NEEDY):
            for option in ("--debug", "--json"):
                if words[0] in ("exec", "ssh") and option == "--json":  # which they do not have
                    continue
                argv = [words[0], option, *words[1:]]
                done = run_here(argv, environ | {"SPRITE_TOKEN": MALFORMED[kind]})
                assert done.code == (255 if words[0] == "exec" else 4), done
                if option == "--debug":
                    check(kind, done.err, "SPRITE_TOKEN")
                    assert done.out == ""
                else:
                    assert '"not_authenticated"' in done.out, done
                    assert START[-6:] not in done.out and END not in done.out, done
        assert api.accepted == 0


def test_r04_what_surrounds_a_good_token_is_left_out(thopters: Thopters) -> None:
    with Canned(lambda _, wire: wire.write(response(EMPTY_LIST))) as api:
        env = {"SPRITES_API_URL": api.url, "SPRITE_TOKEN": f" \t{START}/{END}\r\n"}
        assert thopters("list", env=env).code == 0
        assert [f"Bearer {START}/{END}"] == api.requests[0].headers.get_all("Authorization")
