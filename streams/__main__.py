"""Where `refold` and `python -m streams` begin.

Importing the command's modules takes a moment. A Ctrl-C in it ends the process without a word, until the command
itself begins.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` itself takes a moment to import
import os

_INTERRUPTED = 130


def _end(_number: int, _frame: object) -> None:
    os._exit(_INTERRUPTED)


if _signal.getsignal(_signal.SIGINT) is not _signal.SIG_IGN:
    _signal.signal(_signal.SIGINT, _end)


def main() -> None:
    """Run the command line."""
    from streams.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
