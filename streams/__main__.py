"""Where `refold` and `python -m streams` begin.

Importing the command's modules takes a moment. A Ctrl-C in it ends the process without a word, until the command
itself begins.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)
    from streams.cli.main import main as run

    run()


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
