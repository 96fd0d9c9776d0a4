"""What the API answers, as values: lists in pages, the account, a checkpoint's id."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from support.units import FakeClock, make_answer, make_transport

import thopters


class Pages(thopters.Transport):
    """Answers every request with the next of the pages it is given."""

    def __init__(self, pages: Iterable[object]) -> None:
        real = make_transport(FakeClock())
        super().__init__(
            "https://api.example",
            real.credential,
            console=real.console,
            clock=real.clock,
            environ={},
        )
        self.pages = iter(pages)
        self.queries: list[dict[str, str]] = []

    def fetch(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        document: object = None,
        limit_s: float = 0.0,
        wakes: bool = False,
    ) -> thopters.Answer:
        assert (method, path, document) == ("GET", "/v1/sprites", None)
        self.queries.append(dict(query))
        return make_answer(200, json.dumps(next(self.pages)).encode())


def page(token: object, name: str = "a") -> dict[str, object]:
    return {"sprites": [{"name": name}], "has_more": True, "next_continuation_token": token}


def test_a_list_goes_on_with_the_token_of_the_page_before() -> None:
    pages = Pages([page("1", "a"), page("2", "c"), {"sprites": [{"name": "b"}]}])
    assert list(thopters.SpritesApi(pages).list_sprites("x").sprites) == ["a", "c", "b"]
    query = {"prefix": "x", "max_results": "500"}
    tokens = [{"continuation_token": token} for token in "12"]
    assert pages.queries == [query, query | tokens[0], query | tokens[1]]


@pytest.mark.parametrize(
    ("pages", "requests"),
    [
        ((page(str(number)) for number in itertools.count()), thopters.MAX_PAGES),
        (itertools.repeat(page("same")), 2),
        (map(page, itertools.cycle("123")), 4),
        (itertools.repeat(page("")), 1),
        (itertools.repeat(page(None)), 1),
        (itertools.repeat(page(5)), 1),
    ],
    ids=["new tokens", "one token", "three tokens", "no token", "null", "number"],
)
def test_a_list_that_does_not_end_is_given_up(pages: Iterable[object], requests: int) -> None:
    transport = Pages(pages)
    with pytest.raises(thopters.ThoptersError, match="does not end"):
        thopters.SpritesApi(transport).list_sprites("")
    assert len(transport.queries) == requests


@pytest.mark.parametrize("has_more", [False, None, "true", 1])
def test_only_a_true_has_more_goes_on(has_more: object) -> None:
    transport = Pages([page("1") | {"has_more": has_more}])
    assert list(thopters.SpritesApi(transport).list_sprites("").sprites) == ["a"]


@pytest.mark.parametrize(
    "document", [None, [], "x", 5, {}, {"sprites": {}}, {"sprites": "a"}, {"sprites": False}]
)
def test_a_list_without_a_list_is_no_empty_one(document: object) -> None:
    with pytest.raises(thopters.NoAnswerError):
        thopters.SpritesApi(Pages([document])).list_sprites("")


@pytest.mark.parametrize("document", [{"sprites": None}, {"sprites": []}])
def test_a_list_may_be_empty(document: object) -> None:
    assert thopters.SpritesApi(Pages([document])).list_sprites("").sprites == {}


@pytest.mark.parametrize(
    ("pages", "limits"),
    [
        ([{}], {}),
        ([{"running": 1, "running_limit": 3}], {"running": 3}),
        ([{"org": {"warm": 2, "warm_limit": None}}], {"warm": None}),
        ([{"cold_limit": 4, "org": {"cold_limit": 5}}], {"cold": 5}),
        ([{"cold": 0, "cold_limit": "many"}], {"cold": None}),
        ([{"cold": 1}, {"cold": 2, "cold_limit": 9}], {"cold": 9}),
        ([{"cold_limit": 7}, {}], {"cold": 7}),
        ([{"running_limit": True, "warm_limit": "2", "cold_limit": 1.0, "org": []}], {}),
    ],
)
def test_the_plans_limits(pages: list[dict[str, object]], limits: dict[str, int | None]) -> None:
    listing = thopters.Listing()
    for document in pages:
        listing.add({"sprites": None, **document})
    assert listing.limits == limits


@pytest.mark.parametrize("item", [None, 5, "a", [], {}, {"name": ""}, {"name": 5}], ids=repr)
def test_what_is_no_sprite_is_not_left_out_of_a_list(item: object) -> None:
    with pytest.raises(thopters.NoAnswerError, match="list of sprites holds"):
        thopters.SpritesApi(Pages([{"sprites": [{"name": "a"}, item]}])).list_sprites("")


@pytest.mark.parametrize(
    ("texts", "identity"),
    [
        (["  ID: v3"], "v3"),
        (["ID:v3\n"], "v3"),
        (["Checkpoint v3 created"], "v3"),
        (["Checkpoint v3 created successfully"], "v3"),
        (["Creating checkpoint...", "  ID: v12", "  Path: checkpoints/v12"], "v12"),
        (["Checkpoint v3 created", "ID: v4"], "v4"),
        (["ID: ../../etc", "ID: v5"], "v5"),
        (["ID: ../v1", "Checkpoint v3 created"], "v3"),
        (["ID: auto-2026.01_02"], "auto-2026.01_02"),
        (["ID: " + "v" * 64], "v" * 64),
        (["ID: " + "v" * 65], ""),
        (["ID: \x1b[1mv3"], ""),
        (["ID: -rf"], ""),
        (["UUID: v3"], ""),
        (["ID:"], ""),
        (["Checkpoint created"], ""),
        (["v3"], ""),
        ([""], ""),
        ([], ""),
    ],
)
def test_a_checkpoints_id_in_the_platforms_words(texts: list[str], identity: str) -> None:
    assert thopters.checkpoint_id(texts) == identity


UUID = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (UUID, True),
        ("sprite-" + UUID, True),  # the platform writes it both ways
        ("", True),  # it is not told
        ("sprite-" + UUID[:-1] + "0", False),
        ("sprite-1", False),
    ],
)
def test_s19_a_sprite_is_the_same_by_its_id_alone(other: str, is_same: bool) -> None:
    nobody: Any = None
    sprite = thopters.Sprite("dev", nobody, nobody, nobody)
    info = thopters.SpriteInfo({"name": "dev", "id": other})
    with contextlib.nullcontext() if is_same else pytest.raises(thopters.ThoptersError):
        sprite._compare(info, UUID)
