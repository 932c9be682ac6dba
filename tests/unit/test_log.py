"""What is logged, ours and that of libraries: one line each, in one form, and no secret in it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import logging, sys
from streams.log import configure, get_logger
configure(style=sys.argv[1], modules={"library.loud": "debug"})
get_logger("streams.x").info("ours.happened", answer=42)
logging.getLogger("library").warning("theirs %s", "happened")
logging.getLogger("library").info("not told")
logging.getLogger("library.loud").debug("told")
def fails(password):
    raise ValueError("it failed")
try:
    fails("s3cret")
except ValueError:
    logging.getLogger("asyncio").exception("Task exception was never retrieved")
    get_logger("streams.x").exception("ours.failed")
"""


def said(style: str) -> str:
    done = subprocess.run([sys.executable, "-c", SCRIPT, style], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


def test_each_line_is_one_json_object_whosever_it_is() -> None:
    lines = [json.loads(line) for line in said("json").splitlines()]
    assert [(one["event"], one["level"], one.get("logger")) for one in lines] == [
        ("ours.happened", "info", None),
        ("theirs happened", "warning", "library"),
        ("told", "debug", "library.loud"),
        ("Task exception was never retrieved", "error", "asyncio"),
        ("ours.failed", "error", None),
    ]
    assert all(one["exception"][0]["exc_value"] == "it failed" for one in lines[3:])


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_has_no_local_variables(style: str) -> None:
    text = said(style)
    assert "s3cret" not in text.replace('fails("s3cret")', "")
    assert "it failed" in text


TASKS = """
import asyncio, gc, threading
from aiokafka.consumer.group_coordinator import GroupCoordinator
from streams.log import configure
from streams.serve.tasks import tell_of_failed_tasks
configure(style="json")
async def fails():
    raise ValueError("it failed")
async def main():
    tell_of_failed_tasks(asyncio.get_running_loop())
    # As a library's: nobody has asked what became of it.
    tasks = [asyncio.create_task(GroupCoordinator._coordination_routine(None)), asyncio.create_task(fails())]
    await asyncio.wait(tasks)
    del tasks
    threads = [
        threading.Thread(target=lambda: GroupCoordinator._push_error_to_user(None, ValueError()), name="theirs"),
        threading.Thread(target=lambda: {}["nothing"], name="ours"),
    ]
    for thread in threads:
        thread.start()
        thread.join()
    gc.collect()
asyncio.run(main())
"""


def test_a_task_or_thread_that_failed_unheeded_is_told_and_a_librarys_is_no_error() -> None:
    done = subprocess.run([sys.executable, "-c", TASKS], capture_output=True, text=True, check=True)
    lines = list(map(json.loads, done.stderr.splitlines()))
    told = {one["task"]: one for one in lines if "task" in one}
    assert {task: one["level"] for task, one in told.items()} == {
        "GroupCoordinator._coordination_routine": "warning",
        "fails": "error",
    }
    assert told["fails"]["why"] == "ValueError: it failed"
    assert {one["thread"]: one["level"] for one in lines if "thread" in one} == {"theirs": "warning", "ours": "error"}


PIECES = """
import io, json, logging, sys
from streams.log import configure, get_logger
pieces = []
class Pieces(io.StringIO):
    def write(self, text):
        pieces.append(text)
        return len(text)
sys.stderr = Pieces()
configure(style="json")
get_logger("streams.x").warning("ours")
logging.getLogger("library").warning("theirs")
print(json.dumps(pieces))
"""


def test_a_line_is_written_in_one_piece() -> None:
    """Libraries write theirs from other threads, and two may not come out as one."""
    pieces = json.loads(
        subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True).stdout
    )
    assert [json.loads(one)["event"] for one in pieces] == ["ours", "theirs"]
    assert all(one.endswith("\n") for one in pieces)
