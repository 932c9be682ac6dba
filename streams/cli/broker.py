"""`refold broker`: the embedded Kafka in the foreground."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from streams.broker import KAFKA_VERSION, EmbeddedBroker
from streams.cli.output import document, shown
from streams.cli.signals import interrupted_by_signals
from streams.cli.wiring import Flag, warn_of_unknown_variables

__all__ = ["broker"]

_LOOK_S = 0.5  # between two looks whether the broker lives


def broker(
    *,
    port: Annotated[int | None, Parameter(env_var="REFOLD_BROKER_PORT")] = None,
    data_dir: Annotated[Path | None, Parameter(env_var="REFOLD_BROKER_DATA_DIR")] = None,
    json: Flag = False,
) -> None:
    """Run a real single-node Kafka on this machine, for trying things out, until Ctrl-C.

    Prints its address on standard output when it is ready.

    Example: refold broker --port 9092

    Args:
        port: Where clients reach it, on 127.0.0.1. Not given: a free port.
        data_dir: Where topics are kept until the next start. Not given: they are gone when it stops.
        json: Print one JSON object: bootstrap_servers, pid, data_dir (null if temporary), kafka_version.
    """
    warn_of_unknown_variables()
    with (
        contextlib.suppress(KeyboardInterrupt),
        interrupted_by_signals(exit_code=0),
        EmbeddedBroker(data_dir, port) as running,
    ):
        facts = {
            "bootstrap_servers": running.bootstrap_servers,
            "pid": running.pid,
            "data_dir": None if data_dir is None else str(running.data_dir),
            "kafka_version": KAFKA_VERSION,
        }
        sys.stdout.write(f"{shown(document('broker', facts)) if json else running.bootstrap_servers}\n")
        sys.stdout.flush()
        while True:
            running.check()
            time.sleep(_LOOK_S)
