"""What a first and a second signal do to a command, in processes of their own."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_WAIT_S = 20.0


@contextmanager
def running(script: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script up to its line "ready"; kill it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


_DRAINS_FOREVER = """
    import time
    from streams.cli import signals
    signals.DRAIN_S = {drain_s}
    with signals.drained_by_signals(lambda: print("stopping", flush=True), exit_code=0):
        print("ready", flush=True)
        while True:
            time.sleep(60)
"""
_CLEANS_UP_FOREVER = """
    import time
    from streams.cli import signals
    signals.DRAIN_S = {drain_s}
    with signals.interrupted_by_signals(exit_code=130):
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("stopping", flush=True)
            while True:
                try:
                    time.sleep(60)
                except KeyboardInterrupt:
                    pass
"""


@pytest.mark.parametrize("script", [_DRAINS_FOREVER, _CLEANS_UP_FOREVER])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(script: str, second: signal.Signals) -> None:
    with running(script.format(drain_s=60)) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(second)
        assert process.wait(_WAIT_S) == 128 + second


@pytest.mark.parametrize(("script", "code"), [(_DRAINS_FOREVER, 0), (_CLEANS_UP_FOREVER, 130)])
def test_what_does_not_drain_in_time_is_ended_and_said(script: str, code: int) -> None:
    with running(script.format(drain_s=0.5)) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(_WAIT_S) == code
        assert process.stderr is not None
        assert process.stderr.read() == "refold: not drained within 0.5 s; what was committed is kept.\n"


def test_an_error_that_stands_in_for_the_interruption_counts_as_one() -> None:
    # What C does when a KeyboardInterrupt comes up in a call that it makes: its own error hides it.
    script = """
        import time
        from streams.cli.signals import interrupted_by_signals
        try:
            with interrupted_by_signals(exit_code=130):
                try:
                    print("ready", flush=True)
                    time.sleep(60)
                except KeyboardInterrupt:
                    raise TypeError("expected configuration property name as type unicode string") from None
        except KeyboardInterrupt as error:
            print(type(error.__cause__).__name__, flush=True)
    """
    with running(script) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(_WAIT_S) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "TypeError\n"


@pytest.mark.parametrize(
    ("raised", "kind"), [("TypeError('ours to mend')", "TypeError"), ("CqrsError('told')", "CqrsError")]
)
def test_errors_without_an_interruption_and_errors_of_ours_stay_as_they_are(raised: str, kind: str) -> None:
    script = f"""
        import os, signal, time
        from streams.cli.signals import interrupted_by_signals
        from streams.errors import CqrsError
        print("ready", flush=True)
        try:
            with interrupted_by_signals(exit_code=130):
                if {kind == "CqrsError"}:
                    try:
                        os.kill(os.getpid(), signal.SIGINT)
                        time.sleep(60)
                    except KeyboardInterrupt:
                        pass
                raise {raised}
        except {kind}:
            print("as it was", flush=True)
    """
    with running(script) as process:
        assert process.wait(_WAIT_S) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "as it was\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_after_the_end_does_not_change_the_exit_code(number: signal.Signals) -> None:
    script = """
        import sys, time
        from streams.cli.signals import drained_by_signals
        with drained_by_signals(lambda: None, exit_code=0):
            pass
        print("ready", flush=True)
        time.sleep(1)
        sys.exit(3)
    """
    with running(script) as process:
        process.send_signal(number)
        assert process.wait(_WAIT_S) == 3
