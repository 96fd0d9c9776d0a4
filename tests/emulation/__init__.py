"""The Sprites platform as far as it is known, on this machine: real files, real processes.

`Emulator` is the server; `Personality` chooses an answer wherever the sources on the platform
disagree; a `Fault` breaks single requests. What the emulator can show is only as true as its
sources: nothing here was compared with the live platform. CONTRACT.md says what is known.
"""

from .faults import Fault
from .launchers import SPRITE_PROGRAM, write_launcher
from .personality import Personality
from .server import Emulator

__all__ = ["SPRITE_PROGRAM", "Emulator", "Fault", "Personality", "write_launcher"]
