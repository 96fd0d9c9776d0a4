"""What the tests of several modules share: each module here has one theme, and says it above.

Fixtures stand in conftest.py. The failures of assertions here are explained as those of tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{path.stem}" for path in Path(__file__).parent.glob("[a-z]*.py"))
)
