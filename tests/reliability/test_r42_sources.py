"""R42: of all places that may hold a token, the right one is used, and only for its own API.

The stores, the keyring and the server that notes what arrives are those of support/logins.py.
"""

from __future__ import annotations

import itertools
import os

import pytest
from support.logins import OTHER_URL, Login, secret_service

SOURCES = ("env", "inline", "keyring", "file")
COMBINATIONS = list(itertools.product([False, True], repeat=len(SOURCES)))
STORES = ("sound", "lax", "foreign")


def arrange(login: Login, present: tuple[bool, ...], url: str, store: str) -> dict[str, str]:
    """Put tokens into the sources that are present; return the environment's part."""
    tokens = {
        name: login.token(name) for name, there in zip(SOURCES, present, strict=True) if there
    }
    record = {"token": tokens["inline"]} if "inline" in tokens else {}
    path = login.store(
        login.layout({"personal": record}, url), mode=0o644 if store == "lax" else 0o600
    )
    account = f"sprites:org:{url}:personal"
    if "keyring" in tokens:
        login.secret_tool("sprites-cli", account, tokens["keyring"])
    if "file" in tokens:
        login.keyring_file("sprites-cli", account, tokens["file"])
    if store == "foreign":
        os.chown(path, 12345, -1)
    return tokens


def judge(login: Login, tokens: dict[str, str], url: str, store: str) -> None:
    """Run, and assert on the token that arrived, on the error, and on the warnings."""
    env = {"SPRITE_TOKEN": tokens["env"]} if "env" in tokens else {}
    if env:  # the store is not even looked at
        assert "warning" not in login.uses(tokens["env"], **env).err
        return
    if store == "foreign":
        assert "belongs to another user" in login.fails(**env)
        return
    usable = [name for name in SOURCES if name in tokens and url == login.url]
    if usable:
        err = login.uses(tokens[usable[0]], **env).err
    else:
        err = login.fails(**env)
        assert f"no token for {login.url}" in err
    assert err.count("thopters: warning: ") == (1 if store == "lax" else 0), err
    if store == "lax":
        assert "chmod 600" in err


def cases(every: bool) -> list[tuple[tuple[bool, ...], str, str]]:
    """Return all cases, or each combination of sources with one URL and one kind of store.

    So that each kind comes with and without the environment's token, and so do sources that
    compete in a store that is ours.
    """
    if every:
        return list(itertools.product(COMBINATIONS, ("ours", "another"), STORES))
    kinds = [("ours", "sound"), ("ours", "lax"), ("ours", "foreign"), ("another", "sound")]
    turns = [inline + 3 * keyring + file for _, inline, keyring, file in COMBINATIONS]
    band = [(have, *kinds[turn % 4]) for have, turn in zip(COMBINATIONS, turns, strict=True)]
    assert len({(present[0], *kind) for present, *kind in band}) == 2 * len(kinds)
    return band


def try_case(login: Login, case: tuple[tuple[bool, ...], str, str]) -> None:
    present, whose, store = case
    if store == "foreign" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    url = login.url if whose == "ours" else OTHER_URL
    judge(login, arrange(login, present, url, store), url, store)


@secret_service
@pytest.mark.parametrize("case", cases(every=False))
def test_r42_the_right_source_and_never_another_api(
    login: Login, case: tuple[tuple[bool, ...], str, str]
) -> None:
    try_case(login, case)


@secret_service
@pytest.mark.slow
@pytest.mark.parametrize("case", cases(every=True))
def test_r42_every_source_url_and_store(
    login: Login, case: tuple[tuple[bool, ...], str, str]
) -> None:
    try_case(login, case)
