"""The account's sprites: their fields, statuses, checkpoints and sessions."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .exec import Session
from .machine import Machine
from .personality import Personality
from .tasks import TaskServer
from .wire import Wire


class Clock:
    """Real time and what tests add to it."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self.changed: list[Any] = []  # called after each jump

    def now(self) -> float:
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Jump; every status change that falls due has happened on return."""
        self._ahead += seconds
        for call in self.changed:
            call()


class Checkpoint:
    def __init__(self, identity: str, made: float, comment: str, auto: bool) -> None:
        self.id = identity
        self.made = made
        self.comment = comment
        self.auto = auto
        self.health = ""  # or "mount_failed"


class Sprite:
    """A sprite: what the API tells of it, and the machine behind it."""

    def __init__(
        self, name: str, org: str, base: Path, clock: Clock, personality: Personality
    ) -> None:
        self.name = name
        self.org = org
        self.clock = clock
        self.personality = personality
        self.id = f"sprite-{uuid.uuid4()}"
        self.url = f"https://{name}-{uuid.uuid4().hex[:4]}.sprites.app"
        self.url_settings: dict[str, Any] = {"auth": "sprite"}
        self.labels: list[str] = []
        self.storage = ""  # "sbd" once an upgrade has moved the disk
        self.status = "cold"
        self.created_at = self.updated_at = clock.now()
        self.last_running_at: float | None = None
        self.last_warming_at: float | None = None
        self.hidden_gets = personality.late_get
        self._base = base
        self._machine: Machine | None = None
        self._machine_lock = threading.Lock()
        self.sessions: dict[str, Session] = {}
        self.checkpoints: list[Checkpoint] = []
        self.wires: set[Wire] = set()
        self.tasks: dict[str, dict[str, float]] = {}
        self.open_proxies = 0
        self.removed = False
        self.inner: TaskServer | None = None  # from the first wake on
        self.is_new = False  # made by a request, and not entered since: it serves at once
        self._next_checkpoint = 1
        self._starting = 0
        self._active_at = clock.now()
        self._status_since = clock.now()
        self._shown_before = "cold"
        self.lock = threading.RLock()

    @property
    def machine(self) -> Machine:
        """Return what runs it. Its folders are made now: many sprites are only told about."""
        with self._machine_lock:
            self._machine = self._machine or Machine(self._base)
            return self._machine

    @property
    def home(self) -> Path:
        return self.machine.home

    def touch(self) -> None:
        self._active_at = self.clock.now()

    def shown_status(self) -> str:
        """Return the status as the API tells it, which may lag behind."""
        if self.personality.unknown_status:
            return self.personality.unknown_status
        fresh = self.clock.now() - self._status_since >= self.personality.status_lag_s
        return self.status if fresh else self._shown_before

    def _become(self, status: str) -> None:
        self._shown_before, self.status = self.status, status
        self._status_since = self.clock.now()

    def enter(self) -> bool:
        """Note a request that goes into the sprite; False while it is still starting."""
        with self.lock:
            self.touch()
            if self.status == "running":
                self.inner = self.inner or TaskServer(self)
                return True
            if self._starting < self.personality.wake_503 and not self.is_new:
                self._starting += 1
                return False
            self._starting, self.is_new = 0, False
            self.inner = self.inner or TaskServer(self)
            self.machine.thaw()
            self.last_running_at = self.clock.now()
            self._become("running")
            return True

    def pause(self, *, cold: bool = False) -> None:
        """Go to sleep now: connections drop; processes freeze, or end if cold."""
        with self.lock:
            self.last_warming_at = self.clock.now()
            self._become("cold" if cold else "warm")
            self.drop_connections()
            if cold:
                self.machine.end_all()
            else:
                self.machine.freeze()

    def drop_connections(self) -> None:
        """Cut them, when what has come by now is taken: so a test knows what is lost."""
        end = time.monotonic() + 0.5
        for wire in list(self.wires):
            while not wire.has_taken_all() and time.monotonic() < end:
                time.sleep(0.001)
            wire.close()

    def apply_idle(self, idle_s: float, cold_s: float) -> None:
        """Fall asleep if nothing has happened for long enough."""
        with self.lock:
            if self.status == "running" and self._is_held():
                self.touch()
        quiet = self.clock.now() - self._active_at
        if self.status == "running" and quiet >= idle_s:
            self.pause()
        if self.status == "warm" and quiet >= idle_s + cold_s:
            self.pause(cold=True)

    def _is_held(self) -> bool:
        attached = self.personality.idle_from == "detached" and any(
            session.clients and not session.ended.is_set()
            for session in list(self.sessions.values())
        )
        return bool(attached or self.live_tasks() or self.open_proxies)

    @contextlib.contextmanager
    def proxied(self) -> Iterator[None]:
        """Count an open connection to a port, which holds the sprite awake."""
        with self.lock:
            self.open_proxies += 1
        try:
            yield
        finally:
            with self.lock:
                self.open_proxies -= 1
                self.touch()

    def live_tasks(self) -> dict[str, dict[str, float]]:
        """Forget the tasks that have expired; return the others, which hold the sprite awake."""
        now = self.clock.now()
        for name in [name for name, task in self.tasks.items() if task["expires_at"] <= now]:
            del self.tasks[name]
        return self.tasks

    def add_checkpoint(self, comment: str, *, auto: bool = False) -> Checkpoint:
        with self.lock:
            if auto:
                identity = f"auto-{uuid.uuid4().hex[:8]}"
            else:
                identity = f"v{self._next_checkpoint}"
                self._next_checkpoint += 1
            self.machine.save(identity)
            made = Checkpoint(identity, self.clock.now(), comment, auto)
            self.checkpoints.append(made)
            return made

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put the disk back: sessions and sockets end, the environment starts anew."""
        with self.lock:
            if self.removed:
                return
            self.restart(checkpoint.id)

    def restart(self, saved: str = "") -> None:
        """End all that runs in the sprite, load a disk if asked to; the next request starts it."""
        with self.lock:
            self.drop_connections()
            self.machine.end_all()
            if saved:
                self.machine.load(saved)
            self.sessions.clear()
            self._become("cold")

    def move_storage(self, storage: str) -> None:
        """Put the disk elsewhere: checkpoints of the old one are gone for good."""
        with self.lock:
            self.storage = storage
            self.checkpoints.clear()

    def checkpoint_json(self, checkpoint: Checkpoint) -> dict[str, Any]:
        item = {"id": checkpoint.id, "create_time": self.stamp(checkpoint.made)}
        if checkpoint.comment:
            item["comment"] = checkpoint.comment
        if checkpoint.health:
            item["health"] = checkpoint.health
        return {**item, **({"is_auto": True} if checkpoint.auto else {})}

    def remove(self) -> None:
        with self.lock:
            self.removed = True
            if self.inner:
                self.inner.close()
            self.drop_connections()
            if self._machine:
                self._machine.remove()

    def stamp(self, moment: float | None) -> str | None:
        if moment is None:
            return None
        when = datetime.datetime.fromtimestamp(moment, datetime.UTC)
        if self.personality.stamps == "offset":
            zone = datetime.timezone(datetime.timedelta(hours=2))
            return when.astimezone(zone).isoformat(timespec="seconds")
        text = when.strftime("%Y-%m-%dT%H:%M:%S")
        return text + (".123456789Z" if self.personality.stamps == "nanoseconds" else "Z")

    def _shown_settings(self) -> dict[str, Any] | None:
        if self.personality.null_url_settings:
            return None
        access = self.url_settings.get("private_access", "admins")
        word = {} if access == "admins" else {"private_access": self.personality.members_word}
        return self.url_settings | word

    def to_json(self) -> dict[str, Any]:
        item: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            self.personality.org_key: self.org,
            "url": self.url,
            "url_settings": self._shown_settings(),
            "status": self.shown_status(),
            **({"labels": self.labels} if self.labels else {}),
            "created_at": self.stamp(self.created_at),
            "updated_at": self.stamp(self.updated_at),
            "last_running_at": self.stamp(self.last_running_at),
            "last_warming_at": self.stamp(self.last_warming_at),
        }
        return item | ({"shape": {"new": [1]}} if self.personality.unknown_fields else {})


class Account:
    """All sprites of one org, under one folder."""

    def __init__(self, org: str, base: Path, clock: Clock, personality: Personality) -> None:
        self.org = org
        self.base = base
        self.clock = clock
        self.personality = personality
        self.sprites: dict[str, Sprite] = {}
        self.creates = 0
        self.lock = threading.RLock()

    def add(self, name: str) -> Sprite:
        with self.lock:
            base = self.base / f"{name}-{uuid.uuid4().hex[:8]}"
            sprite = Sprite(name, self.org, base, self.clock, self.personality)
            self.sprites[name] = sprite
            return sprite

    def remove(self, name: str) -> None:
        with self.lock:
            sprite = self.sprites.pop(name)
        sprite.remove()

    def close(self) -> None:
        for sprite in list(self.sprites.values()):
            with contextlib.suppress(OSError):
                sprite.remove()
        shutil.rmtree(self.base, ignore_errors=True)
