"""Which token reaches the API: the program as a child, against a tiny server of this file.

The store's layout is the `sprite` program's (SPEC.md, "The token"). Every run also asserts that
no part of any token that a test made is printed. PATH holds one folder of the test's own, so that
a real keyring of the machine is never asked.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from support.logins import OTHER_URL, Login, secret_service
from support.units import make_console

import thopters as program

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files and programs")


# --- the environment ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SPRITE_TOKEN", "SPRITES_TOKEN"])
def test_a_token_of_the_environment(login: Login, name: str) -> None:
    token = login.token()
    done = login.uses(token, **{name: token})
    assert "warning" not in done.err
    assert login.api.requests[0].startswith("/v1/sprites?")


@pytest.mark.parametrize("around", ["", "\n", "\r\n", " ", "\t"])
def test_what_surrounds_a_token_is_stripped_and_equal_tokens_are_equal(
    login: Login, around: str
) -> None:
    token = login.token()
    done = login.uses(token, SPRITE_TOKEN=around + token + around, SPRITES_TOKEN=token)
    assert "warning" not in done.err


def test_two_different_tokens_are_worth_a_warning(login: Login) -> None:
    first, second = login.token("one"), login.token("two")
    done = login.uses(first, SPRITE_TOKEN=first, SPRITES_TOKEN=second)
    warnings = [line for line in done.err.splitlines() if "warning" in line]
    assert warnings == [
        "thopters: warning: SPRITE_TOKEN and SPRITES_TOKEN differ; SPRITE_TOKEN is used"
    ]


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_variable_is_no_token(login: Login, empty: str) -> None:
    token = login.token()
    done = login.uses(token, SPRITE_TOKEN=empty, SPRITES_TOKEN=token)
    assert "warning" not in done.err


def test_without_any_token_the_error_names_the_places(login: Login) -> None:
    err = login.fails()
    for place in ("SPRITE_TOKEN", "SPRITES_TOKEN", "sprites.json", "the keyring", login.url):
        assert place in err
    assert "hint: set SPRITE_TOKEN, or log in" in err


def test_a_refused_token_is_named_by_its_source(login: Login) -> None:
    login.api.status, login.api.body = 401, b'{"error":"unauthorized"}'
    done = login.run(SPRITES_TOKEN=login.token())
    assert done.code == 4, done
    assert "refused the token from SPRITES_TOKEN" in done.err
    assert len(login.arrived) == 1  # and it was not tried again


# Each with the (1-based) position or the length that the error names
MALFORMED = {
    "newline": ("cAnArY-one\ncAnArY-two", "character 11 of 21"),
    "carriage return": ("cAnArY-one\rcAnArY-two", "character 11 of 21"),
    "header injection": ("cAnArY-one\r\nX-Evil: cAnArY", "character 11 of 26"),
    "space": ("cAnArY-one cAnArY-two", "character 11 of 21"),
    "tab": ("cAnArY-one\tcAnArY-two", "character 11 of 21"),
    "escape": ("\x1b[2JcAnArY-one", "character 1 of 14"),
    "delete": ("cAnArY-one\x7f", "character 11 of 11"),
    "not ASCII": ("cAnArY-onë", "character 10 of 10"),
    "fullwidth": ("cAnArY-ＯＮＥ", "character 8 of 10"),
    "one character": ("Q", "it is 1 characters long"),
    "seven characters": ("cAnArY7", "it is 7 characters long"),
    "10 kB": ("cAnArY-one" * 1024, "it is 10240 characters long"),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("source", ["SPRITE_TOKEN", "SPRITES_TOKEN"])
def test_a_malformed_token_goes_nowhere(login_here: Login, source: str, case: str) -> None:
    token, words = MALFORMED[case]
    err = login_here.fails(**{source: token})
    assert f"the token from {source} is malformed: {words}" in err
    assert "cAnArY" not in err and "Evil" not in err and "\x1b" not in err
    assert len(err.splitlines()) == 2


@posix
def test_bytes_that_are_no_text_are_no_token(login: Login) -> None:
    token = os.fsdecode(b"cAnArY-one\xff\xfe")
    err = login.fails(SPRITE_TOKEN=token)
    assert "malformed: character 11 of 12" in err
    assert "cAnArY" not in err


@pytest.mark.parametrize("case", [*MALFORMED, "NUL", "lone surrogate"])
@pytest.mark.parametrize("place", ["inline", "keyring"])
def test_a_malformed_stored_token_goes_nowhere(login_here: Login, place: str, case: str) -> None:
    more = {
        "NUL": ("cAnArY-one\0cAnArY-two", "character 11 of 21"),
        "lone surrogate": ("cAnArY-one\ud800", "character 11 of 11"),
    }
    token, words = (MALFORMED | more)[case]
    if place == "inline":
        path = login_here.store(login_here.layout({"personal": {"token": token}}))
    else:
        login_here.store(login_here.layout({"personal": {}}, disable_keyring=True))
        encoded = base64.b64encode(token.encode("utf-8", "surrogatepass")).decode()
        value = "go-keyring-base64:" + encoded
        path = login_here.keyring_file(
            "sprites-cli", f"sprites:org:{login_here.url}:personal", value
        )
    err = login_here.fails()
    assert f"the token from {path} is malformed: " in err.replace("//", "/")
    if place == "inline" or case != "lone surrogate":
        assert words in err
    assert "cAnArY" not in err and "Evil" not in err and "\x1b" not in err


def test_a_bad_token_of_the_environment_is_not_passed_over(login: Login) -> None:
    login.store(login.layout({"personal": {"token": login.token()}}))
    login.fails(SPRITE_TOKEN="bad one with spaces")


# --- the address --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://0.0.0.0:{port}",  # reaches this machine all the same, so a request would be seen
        "http://192.0.2.1:{port}",
        "http://127.0.0.1.example.com:{port}",
        "http://localhost.example.com",
        "ftp://127.0.0.1:{port}",
        "ws://127.0.0.1:{port}",
        "//127.0.0.1:{port}",
    ],
)
def test_a_token_is_never_sent_unencrypted_to_another_machine(login: Login, url: str) -> None:
    err = login.fails(2, SPRITES_API_URL=url.format(port=login.api.port), SPRITE_TOKEN="x" * 32)
    assert "SPRITES_API_URL" in err and "unencrypted" in err
    assert "hint: set it to an https address, or unset it" in err


@pytest.mark.parametrize(
    "url",
    [
        "http://cAnArY:pw@127.0.0.1:{port}",
        "http://cAnArY@127.0.0.1:{port}",
        "http://:cAnArY@127.0.0.1:{port}",
        "http://127.0.0.1:{port}?key=cAnArY",
        "http://127.0.0.1:{port}/path#cAnArY",
        "http://127.0.0.1:{port}\\@cAnArY.example.com",
        "127.0.0.1:{port}",
        "cAnArY",
        "http://",
        "http:///v1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:cAnArY",
        "http://[::1",
        "file:///etc/passwd",
        "http://127.0.0.1:{port} ",
        " http://127.0.0.1:{port}",
        "http://127.0.0.1:{port}/cAnArY\n",
        "http://127.0.0.1:{port}/a cAnArY",
        "http://127.0.0.1:{port}/é",
        "http://127.0.0.1:{port}/\udcff",
        "https://cAnArY.пример.test",
        "https://cAnArY test",
        "https://.cAnArY.test",
        "https://cAnArY..test",
        "https://" + "cAnArY" * 11 + ".test",
    ],
)
def test_what_an_address_may_not_hold(login_here: Login, url: str) -> None:
    err = login_here.fails(
        2, SPRITES_API_URL=url.format(port=login_here.api.port), SPRITE_TOKEN="x" * 32
    )
    assert "SPRITES_API_URL" in err
    assert "cAnArY" not in err


@pytest.mark.parametrize("end", ["", "/", "//", "/base", "/base/"])
def test_a_path_and_a_final_slash_of_the_address(login: Login, end: str) -> None:
    token = login.token()
    login.uses(token, SPRITES_API_URL=login.url + end, SPRITE_TOKEN=token)
    base = end.rstrip("/")
    assert login.api.requests[-1].startswith(base + "/v1/sprites?")


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1"])
def test_plain_http_is_for_this_machine(login: Login, name: str) -> None:
    token = login.token()
    url = f"http://{name}:{login.api.port}"
    login.uses(token, SPRITES_API_URL=url, SPRITE_TOKEN=token)


# --- the store: files and keys --------------------------------------------------------------


@pytest.mark.parametrize("key", ["api_token", "token"])
def test_both_names_of_an_inline_token(login: Login, key: str) -> None:
    token = login.token()
    login.store(login.layout({"personal": {key: token + "\n"}}))
    assert login.uses(token).err == "there are no sprites; make one: thopters create NAME\n"


def test_the_documented_name_comes_first(login: Login) -> None:
    token = login.token()
    login.store(login.layout({"personal": {"token": login.token(), "api_token": token}}))
    login.uses(token)


@pytest.mark.parametrize("empty", ["", " ", None, 7, ["x" * 20], {"a": "b"}])
def test_what_is_no_token_is_passed_over(login: Login, empty: object) -> None:
    token = login.token()
    login.store(login.layout({"personal": {"api_token": empty, "token": token}}))
    login.uses(token)


def test_unknown_keys_and_odd_shapes_are_tolerated(login: Login) -> None:
    token = login.token()
    document = login.layout({"personal": {"token": token, "later": [1]}}, later={"x": None})
    document["version"] = "7"
    document["urls"] |= {"https://odd.example": 3, "https://odder.example": {"orgs": [1]}}
    document["urls"][login.url]["orgs"]["odd"] = "no object"
    document |= {"users": [3, {"id": 4}], "url_aliases": [1], "current_selection": "x"}
    login.store(document)
    login.uses(token)


def user_file(user: str) -> str:
    return f"users/{user}-{hashlib.sha256(user.encode()).hexdigest()[:16]}.json"


def test_the_users_own_file_comes_before_the_main_one(login: Login) -> None:
    mine, other = login.token("mine"), login.token("main")
    login.store(login.layout({"personal": {"api_token": other}}, current_user="user-1"))
    login.store(login.layout({"personal": {"token": mine}}), user_file("user-1"))
    login.store(login.layout({"personal": {"token": other}}), user_file("user-2"))
    login.uses(mine)


def test_the_main_file_may_hold_no_urls_at_all(login: Login) -> None:
    token = login.token()
    login.store({"version": "1", "urls": {}, "current_user": "user-1"})
    login.store(login.layout({"personal": {"token": token}}), user_file("user-1"))
    login.uses(token)


def test_the_main_file_serves_where_the_users_own_lacks_the_token(login: Login) -> None:
    token = login.token()
    login.store(login.layout({"personal": {"token": token}}, current_user="user-1"))
    login.store(login.layout({"personal": {}}), user_file("user-1"))
    login.uses(token)


def test_the_users_own_file_can_be_named(login: Login) -> None:
    mine, other = login.token("mine"), login.token("sha")
    path = login.store(login.layout({"personal": {"token": mine}}), "users/named.json")
    login.store(login.layout({"personal": {"token": other}}), user_file("user-1"))
    users = [
        {"id": "user-2", "config_path": str(login.folder / user_file("user-1"))},
        {"id": "user-1", "email": "a@b.c", "config_path": str(path)},
    ]
    login.store({"urls": {}, "current_user": "user-1", "users": users})
    login.uses(mine)


@posix
@pytest.mark.parametrize("way", ["absolute", "dots", "link"])
def test_a_users_file_outside_the_store_is_ignored(login: Login, way: str) -> None:
    token, evil = login.token(), login.token("evil")
    outside = login.home / "evil.json"
    outside.write_text(json.dumps(login.layout({"personal": {"token": evil}})))
    outside.chmod(0o600)
    named = {
        "absolute": str(outside),
        "dots": f"{login.folder}/users/../../evil.json",
        "link": f"{login.folder}/link.json",
    }[way]
    users = [{"id": "user-1", "config_path": named}]
    login.store(login.layout({"personal": {"token": token}}, current_user="user-1", users=users))
    (login.folder / "link.json").symlink_to(outside)
    login.uses(token)


def test_a_users_name_can_not_lead_out_of_the_store(login: Login) -> None:
    token, evil = login.token(), login.token("evil")
    user = "../../evil"
    name = os.path.basename(user_file(user))
    (login.home / name).write_text(json.dumps(login.layout({"personal": {"token": evil}})))
    login.store(login.layout({"personal": {"token": token}}, current_user=user))
    login.uses(token)


DAMAGED = {
    "cut off": (b'{"urls": {"x": "cAnArY-cAnArY', "at line 1, column 16"),
    "second line": (b'{"token": "cAnArY-cAnArY",\n  oops}', "at line 2, column 3"),
    "bad escape": (b'{"token": "\\qcAnArY-cAnArY"}', "at line 1, column 12"),
    "control character": (b'{"token": "cAnArY\n-cAnArY"}', "at line 1, column 18"),
    "two documents": (b'{}\n{"token": "cAnArY"}', "at line 2, column 1"),
    "empty": (b"", "at line 1, column 1"),
    "not text": (b'{"token": "cAnArY\xff\xfe"}', "is not valid JSON"),
    "a list": (b'["cAnArY"]', "does not hold a JSON object"),
    "a string": (b'"cAnArY-cAnArY"', "does not hold a JSON object"),
    "too deep": (b'{"token": "cAnArY", "x": ' + b"[" * 200_000, "is not valid JSON"),
    "a long number": (b'{"token": "cAnArY", "x": ' + b"9" * 5000 + b"}", "is not valid JSON"),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("whose", ["main", "user"])
def test_a_damaged_store_is_named_and_not_shown(login_here: Login, whose: str, case: str) -> None:
    data, words = DAMAGED[case]
    path = login_here.store(data, user_file("user-1") if whose == "user" else "sprites.json")
    if whose == "user":
        login_here.store(
            login_here.layout({"personal": {"token": login_here.token()}}, current_user="user-1")
        )
    err = login_here.fails(1)
    assert str(path) in err and words in err
    assert "cAnArY" not in err
    assert len(err.splitlines()) == 1
    assert path.read_bytes() == data


def test_a_damaged_store_does_no_harm_to_a_token_of_the_environment(login: Login) -> None:
    token = login.token()
    login.store(b"{")
    login.uses(token, SPRITE_TOKEN=token)


def test_a_folder_in_place_of_the_store(login: Login) -> None:
    (login.folder / "sprites.json").mkdir(parents=True)
    assert f"cannot read {login.folder / 'sprites.json'}: " in login.fails(1)


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_store_that_others_can_use_is_warned_about(login: Login, mode: int) -> None:
    token = login.token()
    path = login.store(login.layout({"personal": {"token": token}}), mode=mode)
    err = login.uses(token).err
    assert err.count("warning") == 1
    assert f"others can read {path}; mend it with: chmod 600 {path}\n" in err
    assert path.stat().st_mode & 0o777 == mode  # read-only: it is the user's to mend


@posix
def test_each_lax_file_is_warned_about_once(login: Login) -> None:
    token = login.token()
    main = login.store(login.layout({}, current_user="user-1"), mode=0o644)
    user = login.store(login.layout({"personal": {"token": token}}), user_file("user-1"), 0o644)
    err = login.uses(token).err
    assert err.count("warning") == 2
    assert err.count(f"chmod 600 {main}\n") == err.count(f"chmod 600 {user}\n") == 1


@posix
@pytest.mark.parametrize("whose", ["main", "user"])
def test_a_store_of_another_user_is_not_trusted(login: Login, whose: str) -> None:
    """The owner has to be us or root; to make a file of somebody else takes root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    login.store(login.layout({"personal": {"token": login.token()}}, current_user="user-1"))
    user = login.store(login.layout({"personal": {"token": login.token()}}), user_file("user-1"))
    path = user if whose == "user" else login.folder / "sprites.json"
    os.chown(path, 12345, -1)
    assert f"{path} belongs to another user" in login.fails()


# --- the store: URL and org -----------------------------------------------------------------


@pytest.mark.parametrize("url", [OTHER_URL, "http://127.0.0.1:1", "http://localhost:{port}"])
def test_a_token_stored_for_another_url_is_never_sent(login: Login, url: str) -> None:
    url = url.format(port=login.api.port)
    selection = {"url": url, "org": "personal"}
    document = login.layout(
        {"personal": {"token": login.token()}}, url, current_selection=selection
    )
    login.store(document)
    assert f"no token for {login.url}" in login.fails()
    login.fails(SPRITE_ORG="personal")


def test_of_two_urls_ours_counts(login: Login) -> None:
    token = login.token()
    document = login.layout({"personal": {"token": login.token("other")}}, OTHER_URL)
    document["current_selection"] = {"url": OTHER_URL, "org": "personal"}
    document["urls"] |= login.layout({"team": {"token": token}})["urls"]
    login.store(document)
    login.uses(token)


@pytest.mark.parametrize("stored, given", [("/", ""), ("", "/"), ("/", "/")])
def test_a_final_slash_makes_no_other_url(login: Login, stored: str, given: str) -> None:
    token = login.token()
    login.store(login.layout({"personal": {"token": token}}, login.url + stored))
    login.uses(token, SPRITES_API_URL=login.url + given)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_url_can_have_an_alias(login: Login, slash: str) -> None:
    token = login.token()
    document = login.layout({"one": {"token": token}, "two": {"token": login.token()}}, "local")
    document |= {
        "url_aliases": {"local": login.url + slash, "odd": 3},
        "current_selection": {"url": "local", "org": "one"},
    }
    login.store(document)
    login.uses(token)


def test_an_alias_of_another_url_is_another_url(login: Login) -> None:
    document = login.layout({"one": {"token": login.token()}}, "local")
    login.store(document | {"url_aliases": {"local": OTHER_URL}})
    login.fails()


def test_the_selected_org(login: Login) -> None:
    tokens = {name: login.token(name) for name in ("one", "two", "three")}
    orgs = {name: {"token": token} for name, token in tokens.items()}
    selection = {"url": login.url, "org": "two", "sprite": "dev"}
    login.store(login.layout(orgs, current_selection=selection))
    login.uses(tokens["two"])
    login.uses(tokens["three"], SPRITE_ORG="three")
    login.uses(tokens["two"], SPRITE_ORG="")
    assert "no token for" in login.fails(SPRITE_ORG="four")


def test_the_users_own_selection_comes_first(login: Login) -> None:
    tokens = {name: login.token(name) for name in ("one", "two")}
    orgs = {name: {"token": token} for name, token in tokens.items()}
    more: dict[str, Any] = {"current_selection": {"url": login.url, "org": "one"}}
    login.store(login.layout(orgs, current_user="user-1", **more))
    more = {"current_selection": {"url": login.url, "org": "two"}}
    login.store(login.layout({}, **more), user_file("user-1"))
    login.uses(tokens["two"])


def test_several_orgs_and_no_selection_is_for_the_user_to_settle(login: Login) -> None:
    orgs = {name: {"token": login.token()} for name in ("zeta", "alpha", "mid\x1b[2J")}
    selection = {"url": OTHER_URL, "org": "zeta"}  # elsewhere, so it settles nothing here
    login.store(login.layout(orgs, current_selection=selection))
    err = login.fails()
    assert "several orgs and none is selected: alpha, mid\\x1b[2J, zeta" in err
    assert "hint: choose one: SPRITE_ORG=NAME thopters ..." in err
    assert "\x1b" not in err


@pytest.mark.parametrize("org", ["gone", 3, None, [], {}])
def test_a_selection_of_what_is_not_stored_sends_nothing_else(login: Login, org: object) -> None:
    orgs = {name: {"token": login.token()} for name in ("one", "two")}
    login.store(login.layout(orgs, current_selection={"url": login.url, "org": org}))
    login.fails()


# --- the keyring ----------------------------------------------------------------------------


def usual(login: Login, org: str = "personal") -> str:
    return f"sprites:org:{login.url}:{org}"


@posix
@pytest.mark.parametrize("root", [".sprites", ".sprite"])
@pytest.mark.parametrize(
    "service", ["sprites-cli:user-1", "sprites-cli:manual-tokens", "sprites-cli"]
)
def test_the_files_that_stand_in_for_a_keyring(login: Login, service: str, root: str) -> None:
    token = login.token()
    login.store(login.layout({"personal": {"user_id": "user-1"}}))
    path = login.keyring_file(service, usual(login), token + "\n", root)
    # the slashes of the URL make a folder
    expected = f"{root}/keyring/{service.replace(':', '-')}/sprites-org-http-/127.0.0.1-"
    assert str(path.relative_to(login.home)).startswith(expected)
    login.uses(token)


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o620])
def test_a_keyring_file_that_others_can_use_is_warned_about(login: Login, mode: int) -> None:
    token = login.token()
    login.store(login.layout({"personal": {}}))
    path = login.keyring_file("sprites-cli", usual(login), token)
    assert "warning" not in login.uses(token).err
    path.chmod(mode)
    err = login.uses(token).err
    assert err.count("warning") == 1
    shown = f"{login.folder}/keyring/sprites-cli/{usual(login).replace(':', '-')}"
    assert f"others can read {shown}; mend it with: chmod 600 {shown}\n" in err
    assert path.stat().st_mode & 0o777 == mode


@posix
@pytest.mark.skipif(
    os.name == "posix" and os.geteuid() != 0, reason="only root can give a file away"
)
def test_a_keyring_file_of_another_user_is_not_trusted(login: Login) -> None:
    login.store(login.layout({"personal": {}}))
    os.chown(login.keyring_file("sprites-cli", usual(login), login.token()), 12345, -1)
    assert "belongs to another user, so it is not trusted" in login.fails()


@posix
@pytest.mark.parametrize(
    "account",
    ["sprites:org:{url}:personal", "sprites:org:personal", "{host}:personal",
     "https-{host}:personal", "sprites:org:local:personal", "quite:another"],
)  # fmt: skip
def test_the_account_names_of_the_years(login: Login, account: str) -> None:
    token = login.token()
    host = login.url.partition("//")[2]
    document = login.layout({"personal": {"keyring_key": "quite:another"}})
    login.store(document | {"url_aliases": {"local": login.url}})
    login.keyring_file("sprites-cli", account.format(url=login.url, host=host), token)
    login.uses(token)


def two_urls(login: Login, keys: list[str]) -> None:
    """Store an org of one name at two URLs, the keyring's account of each named by `keys`."""
    default, ours = ({"acme": {"keyring_key": key}} for key in keys)
    document = login.layout(default, OTHER_URL)
    document["urls"] |= login.layout(ours)["urls"]
    login.store(document)


@posix
@pytest.mark.parametrize("named", [False, True], ids=["usual", "named by both"])
def test_an_account_without_a_url_is_not_for_every_url(login: Login, named: bool) -> None:
    account, own = "sprites:org:acme", login.token("ours")
    two_urls(login, [account] * 2 if named else [f"sprites:org:{OTHER_URL}:acme", "another"])
    path = login.keyring_file("sprites-cli", account, login.token("production"))
    login.fails()
    told = login.thopters("config", "--json", env={"SPRITES_API_URL": ""})
    assert json.loads(told.out)["token"] == {"source": str(path), "org": "acme"}
    login.keyring_file("sprites-cli", usual(login, "acme"), own)
    login.uses(own)


@secret_service
def test_the_keyring_is_not_asked_for_another_urls_account(login: Login) -> None:
    two_urls(login, [f"sprites:org:{url}:acme" for url in (OTHER_URL, login.url)])
    login.secret_tool("sprites-cli", "sprites:org:acme", login.token("production"))
    login.fails()
    accounts = {account for _, account in login.asked()}
    assert usual(login, "acme") in accounts and "sprites:org:acme" not in accounts


@posix
def test_the_newer_tree_and_the_users_own_service_come_first(login: Login) -> None:
    tokens = [login.token(f"t{number}") for number in range(4)]
    login.store(login.layout({"personal": {}}, current_user="user-1"))
    places = [
        ("sprites-cli:user-1", ".sprites"),
        ("sprites-cli:manual-tokens", ".sprites"),
        ("sprites-cli", ".sprites"),
        ("sprites-cli:user-1", ".sprite"),
    ]
    files = [
        login.keyring_file(service, usual(login), token, root)
        for token, (service, root) in zip(tokens, places, strict=True)
    ]
    for token, path in zip(tokens, files, strict=True):
        login.uses(token)
        path.unlink()
    login.fails()


@posix
@pytest.mark.parametrize("way", ["dots", "absolute", "link", "service"])
def test_an_account_can_not_lead_out_of_the_keyring(login: Login, way: str) -> None:
    """The file is there, and readable under the name that the store gives."""
    evil = login.token("evil")
    outside = login.home / "outside"
    outside.write_text(evil)
    folder = login.folder / "keyring" / "sprites-cli"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    key = {
        "dots": "../../../outside",
        "absolute": str(outside),
        "link": "link",
        "service": "sprites-cli/../../../outside",
    }[way]
    record = {"keyring_key": key}
    if way == "service":
        (login.folder / "keyring" / "sprites-cli").mkdir(exist_ok=True)
        outside.unlink()
        place = Path(f"{outside}/{usual(login).replace(':', '-')}")
        place.parent.mkdir(parents=True)
        place.write_text(evil)
        assert Path(f"{login.folder}/keyring/{key}/{usual(login).replace(':', '-')}").is_file()
    else:
        assert Path(os.path.join(folder, key)).read_text() == evil
    login.store(login.layout({"personal": record}))
    assert "no token for" in login.fails()


@secret_service
def test_the_keyring_is_asked_for_service_and_username(login: Login) -> None:
    token = login.token()
    login.store(login.layout({"personal": {"user_id": "user-7"}}, current_user="user-1"))
    login.secret_tool("sprites-cli:user-1", usual(login), token)
    login.uses(token)
    asked = login.asked()
    assert asked[0] == ("sprites-cli:user-7", usual(login))
    assert asked[-1] == ("sprites-cli:user-1", usual(login))
    assert len(asked) == len(set(asked))


@secret_service
def test_every_pair_is_tried_and_none_twice(login: Login) -> None:
    login.store(login.layout({"personal": {"user_id": "user-1"}}, current_user="user-1"))
    login.secret_tool("no such service", "", "")
    assert "and the keyring" in login.fails()
    services = ["sprites-cli:user-1", "sprites-cli:manual-tokens", "sprites-cli"]
    host = login.url.partition("//")[2]
    names = [usual(login), "sprites:org:personal", f"{host}:personal", f"https-{host}:personal"]
    assert login.asked() == list(itertools.product(services, names))


@secret_service
def test_a_keyring_key_that_is_a_service(login: Login) -> None:
    token = login.token()
    login.store(login.layout({"personal": {"keyring_key": "sprites-cli:user-9"}}))
    login.secret_tool("sprites-cli:user-9", usual(login), token)
    login.uses(token)
    assert login.asked() == [("sprites-cli:user-9", usual(login))]


@secret_service
def test_the_encodings_of_the_keyring_library(login: Login) -> None:
    login.store(login.layout({"personal": {}}))
    for encode in (
        lambda token: "go-keyring-base64:" + base64.b64encode(token.encode()).decode(),
        lambda token: "go-keyring-encoded:" + token.encode().hex(),
        lambda token: token,
    ):
        token = login.token()
        login.secret_tool("sprites-cli", usual(login), encode(token))
        login.uses(token)


@secret_service
@pytest.mark.parametrize("prefix", ["go-keyring-base64:", "go-keyring-encoded:"])
def test_a_damaged_encoding_is_no_token(login: Login, prefix: str) -> None:
    login.store(login.layout({"personal": {}}))
    login.secret_tool("sprites-cli", usual(login), prefix + "cAnArY!cAnArY")
    err = login.fails()
    assert "the token from the keyring (service sprites-cli) is malformed" in err
    assert "cAnArY" not in err


@secret_service
@pytest.mark.parametrize(
    "text",
    ["echo cAnArY-cAnArY; exit 1\n", "exit 0\n", "echo; echo\n", "kill -9 $$\n"],
    ids=["failed", "silent", "blank", "killed"],
)
def test_a_keyring_without_an_answer_is_passed_over(login: Login, text: str) -> None:
    token = login.token()
    login.store(login.layout({"personal": {}}))
    login.program(text)
    login.keyring_file("sprites-cli", usual(login), token)
    assert "cAnArY" not in login.uses(token).err


@secret_service
def test_a_program_that_can_not_be_started_is_passed_over(login: Login) -> None:
    token = login.token()
    login.store(login.layout({"personal": {}}))
    login.program("")
    (login.programs / "secret-tool").write_bytes(b"\x7fELF no program")
    login.keyring_file("sprites-cli", usual(login), token)
    login.uses(token)


@secret_service
def test_a_keyring_that_hangs_is_left_after_5_seconds(login: Login) -> None:
    token = login.token()
    login.store(login.layout({"personal": {}}))
    login.program(f"echo $$ >> {shlex.quote(str(login.log))}\nexec /bin/sleep 600\n")
    login.keyring_file("sprites-cli", usual(login), token)
    started = time.monotonic()
    err = login.uses(token).err
    assert time.monotonic() - started < 30
    assert err.count("the keyring did not answer within 5 s") == 1
    for process in login.log.read_text().split():  # and it is not left behind
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


@secret_service
@pytest.mark.parametrize("where", ["main", "user"])
def test_a_keyring_that_is_switched_off_is_not_asked(login: Login, where: str) -> None:
    token = login.token()
    off = {"disable_keyring": True}
    main = login.layout({"personal": {}}, current_user="user-1")
    user = login.layout({"personal": {}})
    login.store(main | (off if where == "main" else {}))
    login.store(user | (off if where == "user" else {}), user_file("user-1"))
    login.secret_tool("sprites-cli", usual(login), login.token("keyring"))
    login.keyring_file("sprites-cli", usual(login), token)
    login.uses(token)
    assert login.asked() == []


@secret_service
@pytest.mark.parametrize("path", ["", ".", "bin", ":", "./bin:../home/bin", "{home}/none::bin"])
def test_a_relative_entry_of_path_is_never_searched(login: Login, path: str) -> None:
    login.store(login.layout({"personal": {}}))
    for folder in (login.home, login.home / "bin"):  # the first is where the program runs
        login.program(f"echo >> {shlex.quote(str(login.log))}\necho {'x' * 32}\n", folder)
    login.fails(PATH=path.format(home=login.home))
    assert not login.log.exists()
    login.run(PATH=str(login.home / "bin"))  # but here it is found
    assert login.log.exists()


@secret_service
def test_what_can_not_be_executed_is_not_the_program(login: Login) -> None:
    token = login.token()
    login.store(login.layout({"personal": {}}))
    first, second = login.home / "first", login.home / "second"
    first.mkdir()
    (first / "secret-tool").mkdir()
    second.mkdir()
    (second / "secret-tool").write_text("#!/bin/sh\necho wrong-wrong\n")
    login.secret_tool("sprites-cli", usual(login), token)
    login.uses(token, PATH=f"{first}:{second}:{login.programs}")


# --- the order of all sources (R42) -----------------------------------------------------------


@secret_service
@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=4)))
@pytest.mark.parametrize("stored_url", ["ours", "another"])
def test_the_order_of_the_sources(
    login_here: Login, present: tuple[bool, ...], stored_url: str
) -> None:
    sources = ("env", "inline", "keyring", "file")
    tokens = {name: login_here.token(name) for name in sources}
    has = dict(zip(sources, present, strict=True))
    record = {"token": tokens["inline"]} if has["inline"] else {}
    url = login_here.url if stored_url == "ours" else OTHER_URL
    login_here.store(login_here.layout({"personal": record}, url))
    account = f"sprites:org:{url}:personal"
    if has["keyring"]:
        login_here.secret_tool("sprites-cli", account, tokens["keyring"])
    if has["file"]:
        login_here.keyring_file("sprites-cli", account, tokens["file"])
    env = {"SPRITE_TOKEN": tokens["env"]} if has["env"] else {}
    usable = [name for name in sources if has[name] and (stored_url == "ours" or name == "env")]
    if usable:
        assert "warning" not in login_here.uses(tokens[usable[0]], **env).err
    else:
        login_here.fails(**env)


# --- no home ----------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("home", [None, "", "relative", "."])
def test_without_a_home_a_token_is_enough(login: Login, home: str | None) -> None:
    """And a relative HOME is none: a login of the current folder is not ours to read."""
    token = login.token()
    login.store(login.layout({"personal": {"token": login.token("stored")}}))
    (login.home / "relative").mkdir()
    (login.home / "relative" / ".sprites").symlink_to(login.folder)
    del login.env["HOME"]
    env = {} if home is None else {"HOME": home}
    login.uses(token, SPRITE_TOKEN=token, **env)
    err = login.fails(**env)
    assert "no token for" in err and "hint: set SPRITE_TOKEN" in err
    assert sorted(os.listdir(login.home)) == [".sprites", "relative"]


# --- nothing else happens -----------------------------------------------------------------------


@secret_service
@pytest.mark.parametrize("options", [["-v"], ["--debug"], ["--json"], ["--debug", "--json"]])
@pytest.mark.parametrize("status", [200, 401, 403, 400])
def test_no_option_and_no_answer_shows_the_token(
    login: Login, options: list[str], status: int
) -> None:
    """A server that sends the token back, as it is and encoded, does not get it shown."""
    token = login.token()
    login.store(login.layout({"personal": {}}))
    login.secret_tool("sprites-cli", usual(login), token)
    login.api.status = status
    if status != 200:
        words = [token, base64.b64encode(token.encode()).decode(), token.encode().hex()]
        login.canaries += words
        login.api.body = json.dumps({"error": "bad", "message": " ".join(words)}).encode()
    done = login.run(*options)
    assert login.arrived == ["Bearer " + token]
    assert done.code == {200: 0, 401: 4}.get(status, done.code)
    assert (status == 200) == (done.code == 0)
    assert token not in login.log.read_text()


@posix
def test_the_store_is_only_read(login: Login) -> None:
    token = login.token()
    login.store(login.layout({"personal": {}}, current_user="user-1"))
    login.store(login.layout({"personal": {}}), user_file("user-1"))
    login.keyring_file("sprites-cli", usual(login), token)

    def snapshot() -> dict[str, tuple[int, int, bytes]]:
        return {
            str(path): (path.stat().st_mode, path.stat().st_mtime_ns,
                        path.read_bytes() if path.is_file() else b"")
            for path in sorted(login.home.rglob("*")) if ".cache" not in path.parts
        }  # fmt: skip

    before = snapshot()
    login.uses(token)
    assert snapshot() == before


# --- a login that is replaced while we work -------------------------------------------------------


@posix
@pytest.mark.parametrize("place", ["main file", "user's own file", "keyring file"])
def test_n10_a_token_that_was_replaced_meanwhile_is_taken_up(login: Login, place: str) -> None:
    old, new = login.token("old"), login.token("new")

    def put(token: str) -> None:
        record = {} if place == "keyring file" else {"token": token}
        user = {"current_user": "user-1"} if place == "user's own file" else {}
        login.store(login.layout({"personal": record}, **user))
        if place == "user's own file":
            login.store(login.layout({"personal": record}), user_file("user-1"))
        if place == "keyring file":
            login.keyring_file("sprites-cli", usual(login), token).chmod(0o644)

    put(old)
    login.api.wanted = "Bearer " + new
    login.api.when_refused = lambda: put(new)  # type: ignore[method-assign]
    done = login.run("-v")
    assert done.code == 0, done
    assert login.arrived == ["Bearer " + old, "Bearer " + new]
    assert "the token was refused; " in done.err
    assert done.err.count("others can read") == (place == "keyring file")  # said once


@pytest.mark.parametrize(
    "store", ["the same", "gone", "broken", "not a token", "two orgs", "another org"]
)
def test_n10_a_refusal_stands_where_no_other_token_is_found(login: Login, store: str) -> None:
    old, new = login.token("old"), login.token("new")
    login.store(login.layout({"personal": {"token": old}}))
    login.api.wanted = "Bearer " + new

    def change() -> None:
        if store == "gone":
            (login.folder / "sprites.json").unlink()
        elif store == "broken":
            login.store(b'{"urls": ')
        elif store == "not a token":
            login.store(login.layout({"personal": {"token": "a b c d e f"}}))
        elif store == "two orgs":
            login.store(login.layout({"a": {"token": new}, "b": {"token": new}}))
        elif store == "another org":  # where the same names are other sprites
            login.store(login.layout({"work": {"token": new}}))

    login.api.when_refused = change  # type: ignore[method-assign]
    done = login.run()
    assert done.code == 4, done
    assert login.arrived == ["Bearer " + old]
    where = login.folder / "sprites.json"
    assert f"cannot list sprites: the API refused the token from {where}" in done.err


@pytest.mark.parametrize("again", [True, False])
def test_n10_a_second_refusal_is_final_and_named_by_its_source(login: Login, again: bool) -> None:
    tokens = [login.token(label) for label in ("one", "two", "three")]
    login.store(login.layout({"personal": {"token": tokens[0]}}))
    login.api.wanted = "Bearer nobody's"
    waiting = iter(tokens[1:])

    def change() -> None:
        login.store(login.layout({"personal": {"token": next(waiting)}}))

    login.api.when_refused = change  # type: ignore[method-assign]
    env = {} if again else {"SPRITE_TOKEN": tokens[0]}  # which can't change while we run
    done = login.run(**env)
    assert done.code == 4, done
    assert login.arrived == [f"Bearer {token}" for token in tokens[: 2 if again else 1]]


# --- where a token of the environment goes ------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (None, None),
        ("https://api.sprites.dev/", None),
        ("http://127.0.0.1:9", None),
        ("https://localhost:9/x", None),
        ("https://api.sprites.dev.example", "api.sprites.dev.example"),
        ("https://staging.example:8443/api", "staging.example"),
        ("https://api.sprites.dev:8443", "api.sprites.dev"),
    ],
)
@pytest.mark.parametrize("source", ["SPRITE_TOKEN", "SPRITES_TOKEN", "store"])
def test_s14_an_address_that_gets_the_environments_token_is_said(
    tmp_path: Path, url: str | None, host: str | None, source: str
) -> None:
    """A stored one belongs to its address, so that nothing is to be said."""
    environ = {"HOME": str(tmp_path)} | ({} if url is None else {"SPRITES_API_URL": url})
    if source == "store":
        base = (url or OTHER_URL).rstrip("/")
        orgs = {"acme": {"name": "acme", "token": "tok-0123456789"}}
        (tmp_path / ".sprites").mkdir()
        path = tmp_path / ".sprites" / "sprites.json"
        path.write_text(json.dumps({"urls": {base: {"url": base, "orgs": orgs}}}))
        path.chmod(0o600)
    else:
        environ[source] = "tok-0123456789"
    console = make_console()
    app = program.App(console, environ, program.Clock())
    assert app.api is app.api
    said = console.err.getvalue()  # type: ignore[attr-defined]
    expected = f"{source} goes to {host}, which SPRITES_API_URL names\n"
    assert said == ("" if host is None or source == "store" else expected)


# --- what a store may hold to do harm -------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    "more",
    [
        {"current_user": "user\0-1"},
        {"current_user": "user-\ud800"},
        {"current_user": "u", "users": [{"id": "u", "config_path": "/\0"}]},
    ],
    ids=["NUL in user", "surrogate in user", "NUL in path"],
)
def test_an_odd_user_does_not_crash(login: Login, more: dict[str, Any]) -> None:
    token = login.token()
    login.store(login.layout({"personal": {"token": token}}, **more))
    login.run()
    assert login.arrived in ([], ["Bearer " + token])


@secret_service
@pytest.mark.parametrize("key", ["a\0b", "a\ud800b"], ids=["NUL", "surrogate"])
def test_an_odd_account_does_not_crash(login: Login, key: str) -> None:
    login.store(login.layout({"personal": {"keyring_key": key}}))
    login.secret_tool("no such service", "", "")
    login.fails()


@posix
def test_a_keyring_file_that_can_not_be_read(login: Login) -> None:
    login.store(login.layout({"personal": {}}))
    file = login.keyring_file("sprites-cli", usual(login), login.token())
    file.chmod(0)
    done = login.thopters("list", **login.thopters.as_somebody())
    assert done.code == 4
    assert "thopters: warning: cannot read " in done.err
    assert f"/{file.name}: Permission denied\n" in done.err
    assert not login.api.tokens


@posix
def test_an_empty_keyring_file_is_passed_over(login: Login) -> None:
    token = login.token()
    login.store(login.layout({"personal": {}}))
    login.keyring_file("sprites-cli:manual-tokens", usual(login), "\n")
    login.keyring_file("sprites-cli", usual(login), token)
    login.uses(token)
