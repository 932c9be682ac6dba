"""SIGTERM and SIGINT: the first one drains, within a deadline; a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from streams.errors import CqrsError
from streams.log import get_logger

__all__ = ["DRAIN_S", "Stop", "drained_by_signals", "interrupted_by_signals"]

log = get_logger(__name__)

DRAIN_S = 10.0
"""How long what is at hand may take to end, whatever brokers and disks do."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def drained_by_signals(stop: Callable[[], None], *, exit_code: int, within_s: float | None = None) -> Iterator[None]:
    """Call `stop` at the first SIGTERM or SIGINT, from a thread of its own.

    The handlers do nothing: the interpreter writes the signal's number to a socket, and the thread reads it there. So
    nothing is logged, locked or raised inside a handler, and a main thread that waits in C delays nothing.

    Args:
        stop: Asks for the end; it must not wait for it.
        exit_code: What the process ends with where the block has not ended in time after the signal.
        within_s: How long that is; by default `DRAIN_S`.
    """
    with _watched(_nothing, stop, exit_code, DRAIN_S if within_s is None else within_s):
        yield


@contextmanager
def interrupted_by_signals(*, exit_code: int) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread at the first SIGTERM or SIGINT; the block cleans up and ends.

    Inside the block other handlers may be set, to let a signal wait or be noted: the deadline and the second signal
    hold all the same.

    Code in C may put an error of its own in the place of the KeyboardInterrupt that came up in it (AdminClient does:
    "expected configuration property name as type unicode string"). So any error that is not ours counts as the
    interruption, once there was one.

    Args:
        exit_code: What the process ends with where the block has not ended by `DRAIN_S` after the signal.
    """
    is_interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        raise KeyboardInterrupt

    with _watched(interrupt, None, exit_code, DRAIN_S):
        try:
            yield
        except CqrsError:
            raise
        except Exception as error:
            if is_interrupted:
                raise KeyboardInterrupt from error
            raise


@contextmanager
def _watched(
    handler: Callable[[int, FrameType | None], Any], stop: Callable[[], None] | None, exit_code: int, within_s: float
) -> Iterator[None]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    for number in _SIGNALS:
        signal.signal(number, handler)
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_wait, args=(ours, stop, exit_code, within_s), name="refold-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # The command is at its end. A signal that comes now must not turn its exit code into another.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(wakeup)
        theirs.close()
        thread.join()
        ours.close()


class Stop:
    """A stop that may be asked for before there is anything to stop."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._asked = False
        self._target: Callable[[], None] | None = None

    @property
    def is_asked(self) -> bool:
        """Whether it was asked for."""
        return self._asked

    def ask(self) -> None:
        """Stop what there is, now or as soon as it is there."""
        with self._guard:
            self._asked = True
            if self._target is not None:
                self._target()

    def to(self, target: Callable[[], None]) -> None:
        """Say how to stop what is there from now on."""
        with self._guard:
            self._target = target
            if self._asked:
                target()


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass


def _wait(ours: socket.socket, stop: Callable[[], None] | None, exit_code: int, within_s: float) -> None:
    """Read signal numbers until the other end is closed."""
    stopping = False
    while True:
        try:
            numbers = ours.recv(16)
        except TimeoutError:
            print(f"refold: not drained within {within_s:g} s; what was committed is kept.", file=sys.stderr)  # noqa: T201
            os._exit(exit_code)
        if not numbers:
            return
        caught = [number for number in numbers if number in _SIGNALS]
        if len(caught) > 1 or (stopping and caught):
            os._exit(128 + caught[-1])
        if caught:
            stopping = True
            ours.settimeout(within_s)
            if stop is not None:
                log.info("run.stopping", signal=signal.Signals(caught[0]).name)
                stop()
