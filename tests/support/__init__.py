"""What the tests of several modules share: each module here has one theme, and says it above.

Fixtures stand in conftest.py. The failures of assertions here are explained as those of tests.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

with contextlib.suppress(ImportError):  # the benches use some of it without pytest
    import pytest

    pytest.register_assert_rewrite(
        *(f"{__name__}.{path.stem}" for path in Path(__file__).parent.glob("[a-z]*.py"))
    )
