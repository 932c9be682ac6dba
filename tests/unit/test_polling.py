"""A consumer that hangs as it is closed, with Python's lock held, does not keep the process of an agent for ever."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import ctypes, sys
from streams.data import polling
polling._HANGS_S = 0.5
if sys.argv[1] == "agent":
    polling.end_where_closing_hangs()
class Consumer:
    def close(self):
        if sys.argv[2] == "hangs":
            ctypes.PyDLL(None).sleep(30)  # as librdkafka's calls in callbacks: the lock is not let go
one = object.__new__(polling.Polling)
one.consumer = Consumer()
print(one.close(0.2), flush=True)
import time; time.sleep(1.0)
"""


@pytest.mark.parametrize(("how", "code", "said"), [("hangs", -signal.SIGALRM, ""), ("closes", 0, "True\n")])
def test_an_agents_process_ends_where_closing_hangs(how: str, code: int, said: str) -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", SCRIPT, "agent", how], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, said), done.stderr
    assert time.monotonic() - began < 20
