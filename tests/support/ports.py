"""Ports of this machine that a test can have."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import socket
from collections.abc import Iterator


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has, the first of each with a free one behind it.

    They are below those that systems give to who connects, for that would come in between.
    """
    chance = random.SystemRandom()
    found: list[int] = []
    while len(found) < count:
        port = chance.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for listener in itertools.chain(listeners(port), listeners(port + 1)):
                stack.enter_context(listener)
            if not {port, port + 1} & {taken + near for taken in found for near in (0, 1)}:
                found.append(port)
    return found


def listeners(port: int) -> Iterator[socket.socket]:
    """Yield a listener on each loopback address there is; OSError where the port is taken."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            yield socket.create_server((address, port), family=family)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
