"""Types of ours are known to msgspec before any thread uses them."""

from __future__ import annotations

import subprocess
import sys

_RACE = """
import datetime, sys, threading, msgspec
from streams.control.record import Generation, Record

sys.setswitchinterval(1e-6)
now = datetime.datetime.now(datetime.timezone.utc)
facts = dict.fromkeys(("fingerprint", "codec", "topic", "topic_id", "group", "directory"), "x")
one = Generation(id="x.v1", number=1, version=1, partitions=1, phase="active", made_at=now, changed_at=now, **facts)
record = Record(projection="x", group="x", generations=(one,), active="x.v1", wanted="x.v1")
raw = msgspec.json.encode(record)
barrier = threading.Barrier(8)

def look():
    barrier.wait()
    for _ in range(20):
        assert msgspec.convert(msgspec.json.decode(raw), Record, str_keys=True) == record

threads = [threading.Thread(target=look) for _ in range(8)]
[one.start() for one in threads]
[one.join() for one in threads]
"""


def test_threads_that_read_a_record_at_once_for_the_first_time_do_not_end_the_process() -> None:
    for _ in range(10):
        done = subprocess.run([sys.executable, "-c", _RACE], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, (done.returncode, done.stderr)
