"""Where `refold` and `python -m streams` begin.

Importing the command's modules takes a moment. A Ctrl-C in it ends the process without a word.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    before = signal.signal(signal.SIGINT, _end)
    from streams.cli.main import main as run

    signal.signal(signal.SIGINT, before)
    run()


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
