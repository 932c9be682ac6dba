"""Types that msgspec is to know before threads use them."""

from __future__ import annotations

import threading

import msgspec

__all__ = ["LOOKING", "prepared"]

LOOKING = threading.Lock()
"""Held while msgspec looks at a type for the first time: where two threads do so at once, it ends the process (0.22:
SIGSEGV). Types of ours are looked at when they are imported, and the user's under this lock.
"""


def prepared(*kinds: type) -> None:
    """Have msgspec look at types, and at those in them, now. To be called below their definitions."""
    with LOOKING:
        for kind in kinds:
            msgspec.json.Decoder(kind)
