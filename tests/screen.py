"""A command on a terminal of a given width, and what a person sees on it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyte

DEADLINE_S = 60.0
_LINES = 40


class Screen:
    """A running command and its terminal."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int, columns: int) -> None:
        self.process = process
        self.columns = columns
        self._descriptor = descriptor
        self._screen = pyte.Screen(columns, _LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._guard = threading.Lock()
        self.seen: list[str] = []
        """Every different state of the screen, in order."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            with self._guard:
                self._stream.feed(data)
                text = self._text()
                if not self.seen or self.seen[-1] != text:
                    self.seen.append(text)

    def _text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def text(self) -> str:
        """What is on the screen now."""
        with self._guard:
            return self._text()

    def flowing(self) -> str:
        """The same as one line, wherever the terminal has broken it."""
        with self._guard:
            return "".join(self._screen.display)

    def wait_for(self, *texts: str) -> str:
        """Wait until all of these are on the screen at once; give it."""
        return self.until(", ".join(texts), lambda: all(text in self.text() for text in texts))

    def until(self, what: str, look: Callable[[], bool]) -> str:
        """Wait until something is so; give the screen."""
        deadline = time.monotonic() + DEADLINE_S
        while not look():
            ended = self.process.poll()
            assert time.monotonic() < deadline, f"not on the screen: {what}\n" + "\n-----\n".join(self.seen)
            if ended is not None:
                self._reader.join(DEADLINE_S)
                assert look(), f"ended with {ended} and not on the screen: {what}\n{self.text()}"
                break
            time.sleep(0.02)
        return self.text()

    def type(self, text: str) -> None:
        """Type on its keyboard."""
        os.write(self._descriptor, text.encode())

    def end(self, number: signal.Signals | None = None) -> int:
        """Wait for the command's end, after a signal where one is given; give its exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code


def _take_terminal(descriptor: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
    heed_ctrl_c()


def heed_ctrl_c() -> None:
    """Be interrupted by Ctrl-C, as a terminal's command is: a shell's background job, and what it starts, is not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def on_screen(
    command: Sequence[str], *, columns: int = 80, environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator[Screen]:
    """Run a command on a terminal; kill it at the end if it still runs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
    env = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    try:
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env | {"TERM": "xterm-256color"},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=partial(_take_terminal, theirs),
        )
    finally:
        os.close(theirs)
    screen = Screen(process, ours, columns)
    try:
        yield screen
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        screen._reader.join(DEADLINE_S)
        os.close(ours)
