"""The parent of the embedded broker's JVM: a script of the standard library only, run by `_process`.

It starts the command it was given, writes its process id on stdout, passes signals on, and exits with its
exit code. When its own parent goes away, by whatever cause, it ends the command and removes temporary data.

Why a process of its own: Linux can kill a child when its parent dies (PR_SET_PDEATHSIG), but by the parent it
means the *thread*, so a broker started from a worker thread would die with that thread. This script has one
thread, so the JVM can hang on it that way. It learns of its own parent's end in ways that know no threads:
stdin's end of file, another parent's id (a forked sibling may keep the pipe open), or a signal to itself.

Commands, one byte each on stdin: T terminate, K kill, S stop (pause), C continue.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

COMMANDS = {
    ord("T"): signal.SIGTERM,
    ord("K"): signal.SIGKILL,
    ord("S"): signal.SIGSTOP,
    ord("C"): signal.SIGCONT,
}
LOOK_S = 0.5  # between two looks at the parent's id
GRACE_S = 5.0  # for a broker whose data is kept, to close its files
PR_SET_PDEATHSIG = 1


def die_with_this_process() -> Callable[[], None] | None:
    """Give what a child runs before exec, for the kernel to kill it with this process; None if it cannot."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    watcher = os.getpid()

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != watcher:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child


def end(child: subprocess.Popen[bytes], *, at_once: bool) -> None:
    """End the child: at once, or after it had time to close its files."""
    if not at_once:
        child.send_signal(signal.SIGCONT)
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            print(f"no end within {GRACE_S:g} s of SIGTERM: killed", file=sys.stderr)  # noqa: T201
    child.kill()
    child.wait()


def main() -> int:
    """Run one command to its end or to the parent's."""
    order = json.loads(sys.argv[1])
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(
        order["command"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        cwd=order["directory"],
        pass_fds=[order["lock_fd"]],
        preexec_fn=die_with_this_process(),
    )
    os.close(order["lock_fd"])
    os.write(1, f"{child.pid}\n".encode())
    os.close(1)
    orphaned = False
    while child.poll() is None and not orphaned:
        readable, _, _ = select.select([0, woken], [], [], LOOK_S)
        if woken in readable:
            orphaned = any(number != signal.SIGCHLD for number in os.read(woken, 512))
        if 0 in readable:
            commands = os.read(0, 512)
            orphaned = orphaned or not commands
            for command in commands:
                child.send_signal(COMMANDS[command])
        orphaned = orphaned or os.getppid() != order["parent"]
    if orphaned:
        end(child, at_once=order["remove"] is not None)
        if order["remove"] is not None:
            shutil.rmtree(order["remove"])
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
