"""The emulator, proved by the platform's official Python SDK (`sprites-py` on PyPI).

Nothing of ours is in between: what the SDK makes of the emulator's answers is asserted, so that
the emulator can't agree with our own reading of the wire alone.
"""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from emulation import Emulator, Fault

sprites = pytest.importorskip("sprites")


@pytest.fixture
def platform() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator
        assert emulator.journal.oddities == []


@pytest.fixture
def client(platform: Emulator) -> Iterator[Any]:
    with sprites.SpritesClient(platform.token, base_url=platform.url) as client:
        yield client


@pytest.fixture
def sprite(client: Any) -> Any:
    """Return a new sprite of the SDK, which answers at once."""
    return client.create_sprite("dev")


def wake(sprite: Any) -> None:
    """Ask until the sprite has started, as the platform's 503 tells its clients to."""
    end = time.monotonic() + 20
    while True:
        try:
            sprite.list_sessions()
            return
        except sprites.SpriteError as error:
            assert "sprite_starting" in str(error)
            assert time.monotonic() < end, "the sprite does not start"


def run(sprite: Any, *argv: str, **options: Any) -> tuple[int, bytes, bytes]:
    done = sprite.run(*argv, capture_output=True, timeout=20, **options)
    return done.returncode, done.stdout, done.stderr


def test_a_sprite_is_created_and_destroyed(client: Any, platform: Emulator) -> None:
    made = client.create_sprite("dev")
    assert made.name == "dev"
    found = client.get_sprite("dev")
    assert (found.name, found.status) == ("dev", "cold")
    assert found.url == platform.sprite("dev").url
    with pytest.raises(sprites.SpriteError, match="already exists"):
        client.create_sprite("dev")
    found.destroy()
    with pytest.raises(sprites.NotFoundError):
        client.get_sprite("dev")


def test_a_wrong_token_is_refused(platform: Emulator) -> None:
    stranger = sprites.SpritesClient("wrong", base_url=platform.url)
    with stranger, pytest.raises(sprites.AuthenticationError):
        stranger.list_all_sprites()


@pytest.mark.parametrize("items", ["full", "minimal"])
@pytest.mark.parametrize(("page_size", "requests"), [(500, 2), (50, 3)])  # it asks for 100 each
def test_a_list_of_some_pages_is_read_whole(
    client: Any, platform: Emulator, items: str, page_size: int, requests: int
) -> None:
    platform.personality.list_items = items
    platform.personality.page_size = page_size
    names = [f"many-{number:03}" for number in range(123)]
    for name in [*names, "other"]:
        platform.add_sprite(name)
    assert [sprite.name for sprite in client.list_all_sprites(prefix="many-")] == names
    assert len(platform.journal.requests("GET", "/v1/sprites")) == requests


def test_a_page_of_500_and_what_it_counts(client: Any, platform: Emulator) -> None:
    for number in range(501):
        platform.add_sprite(f"many-{number:03}")
    page = client.list_sprites(sprites.ListOptions(max_results=500, bulk_load=True))
    assert (len(page.sprites), page.has_more) == (500, True)
    assert page.sprites[0].organization == "acme"
    assert page.cold >= 500
    rest = sprites.ListOptions(continuation_token=page.next_continuation_token)
    assert [item.name for item in client.list_sprites(rest).sprites] == ["many-500"]


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_statuses_come_through(sprite: Any, status: int) -> None:
    assert run(sprite, "sh", "-c", f"echo out; echo err >&2; exit {status}") == (
        status,
        b"out\n",
        b"err\n",
    )


def test_an_ending_by_a_signal_has_a_status(sprite: Any) -> None:
    assert run(sprite, "sh", "-c", "kill -KILL $$")[0] == 137


def test_the_environment_and_the_directory_arrive(sprite: Any) -> None:
    script = 'echo "$A"; basename "$PWD"'
    run(sprite, "mkdir", "work")
    place = run(sprite, "sh", "-c", "cd work && pwd")[1].decode().strip()
    assert run(sprite, "/bin/sh", "-c", script, env={"A": "a b"}, cwd=place)[1] == b"a b\nwork\n"


@pytest.mark.parametrize("size", [0, 1, 4096, 300_000])
def test_input_goes_in_and_comes_back(sprite: Any, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    output = io.BytesIO()
    command = sprite.command("cat", stdin=io.BytesIO(data), stdout=output, timeout=20)
    command.run()
    assert output.getvalue() == data
    assert command.exit_code == 0


def test_a_terminal_has_the_size_that_was_asked_for(sprite: Any) -> None:
    status, output, _ = run(sprite, "stty", "size", tty=True, tty_rows=33, tty_cols=101)
    assert (status, output) == (0, b"33 101\r\n")


def test_a_checkpoint_is_taken_listed_and_restored(sprite: Any, platform: Emulator) -> None:
    run(sprite, "sh", "-c", "echo precious > notes")
    taken = list(sprite.create_checkpoint("known good"))
    assert taken[-1].type == "complete"
    assert "  ID: v1" in [message.data for message in taken]
    listed = {item.id: item for item in sprite.list_checkpoints()}
    assert listed["v1"].comment == "known good"
    assert sprite.get_checkpoint("v1").id == "v1"
    run(sprite, "rm", "notes")
    restored = list(sprite.restore_checkpoint("v1"))
    assert restored[-1].type == "complete"
    end = time.monotonic() + 20
    while platform.sprite("dev").status != "cold":  # it is asynchronous
        assert time.monotonic() < end
        time.sleep(0.01)
    wake(sprite)
    assert run(sprite, "cat", "notes") == (0, b"precious\n", b"")


def test_a_failing_checkpoint_says_so_in_its_stream(sprite: Any, platform: Emulator) -> None:
    platform.fault(Fault("POST /v1/sprites/dev/checkpoint", "ndjson_error"))
    taken = list(sprite.create_checkpoint())
    assert taken[-1].type == "error"
    assert taken[-1].error


def test_the_url_is_opened_and_closed(client: Any, sprite: Any) -> None:
    for auth in ("public", "sprite"):
        sprite.update_url_settings(sprites.URLSettings(auth=auth))
        assert client.get_sprite("dev").url_settings.auth == auth


def test_labels_and_who_may_open_the_url(client: Any, sprite: Any) -> None:
    sprite.update(
        url_settings=sprites.URLSettings(auth="sprite", private_access="org_users"), labels=["ci"]
    )
    found = client.get_sprite("dev")
    assert (found.url_settings.private_access, found.labels) == ("organization", ["ci"])


@pytest.mark.parametrize("upgrade", ["runtime", "none", "storage"])
def test_an_upgrade_is_done_or_refused(sprite: Any, platform: Emulator, upgrade: str) -> None:
    platform.personality.upgrade = upgrade
    list(sprite.create_checkpoint())
    if upgrade == "runtime":
        sprite.upgrade()
        assert platform.sprite("dev").status == "cold"
    else:
        with pytest.raises(sprites.SpriteError):
            sprite.upgrade()
        assert platform.sprite("dev").status == "running"
    assert [item.id for item in platform.sprite("dev").checkpoints] == ["v1"]


def test_a_terminal_is_found_again_by_its_id(sprite: Any, platform: Emulator) -> None:
    script = "echo first; read x; echo got $x; exit 3"
    first = threading.Thread(target=lambda: run(sprite, "sh", "-c", script, tty=True))
    first.start()
    end = time.monotonic() + 20
    while not (sessions := sprite.list_sessions()):
        assert time.monotonic() < end
        time.sleep(0.01)
    output = io.BytesIO()
    command = sprite.attach_session(str(sessions[0].id), timeout=20)
    command.stdin, command.stdout = io.BytesIO(b"words\r"), output
    with pytest.raises(sprites.ExecError):
        command.run()
    assert command.exit_code == 3
    assert b"got words" in output.getvalue()
    first.join(20)


def test_the_asynchronous_client_lives_here_too(platform: Emulator) -> None:
    async def live() -> tuple[int, bytes]:
        client = sprites.AsyncSpritesClient(platform.token, base_url=platform.url)
        async with client:
            sprite = await client.create_sprite("dev")
            done = await sprite.run("sh", "-c", "echo out; exit 7", capture_output=True)
            await client.delete_sprite("dev")
            return done.returncode, done.stdout

    assert asyncio.run(live()) == (7, b"out\n")
    assert not platform.sprites


def test_a_session_is_seen_and_killed(sprite: Any, platform: Emulator) -> None:
    ends: list[int] = []

    def follow() -> None:
        ends.append(run(sprite, "sh", "-c", "echo ready; exec sleep 1000")[0])

    follower = threading.Thread(target=follow)
    follower.start()
    end = time.monotonic() + 20
    while not (sessions := sprite.list_sessions()):
        assert time.monotonic() < end
        time.sleep(0.01)
    [session] = sessions
    assert (session.is_active, session.tty) == (True, False)
    from sprites.session import kill_session

    events = [message.type for message in kill_session(sprite, str(session.id), "SIGTERM", 5)]
    assert (events[0], events[-1]) == ("signal", "complete")
    follower.join(20)
    assert ends == [143]
    assert sprite.list_sessions() == []


def test_a_socket_that_is_dropped_is_no_success(sprite: Any, platform: Emulator) -> None:
    platform.fault(Fault("WS /v1/sprites/dev/exec", "ws", actions=[("drop", None)]))
    with pytest.raises(sprites.NetworkError):
        sprite.run("true", timeout=20)
