"""The way of an event from its record into its model takes no more instructions than it did."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import instructions
from tests.tools import tool

BUDGET = 1.03

pytestmark = pytest.mark.slow


def test_an_event_takes_no_more_instructions_than_it_did() -> None:
    recorded = json.loads(instructions.RECORDED.read_text()).get(instructions.version())
    if recorded is None:
        pytest.skip(
            f"nothing is recorded for {instructions.version()}: python -m tests.benchmarks.instructions --record"
        )
    report = instructions.measure(tool("valgrind"))
    too_many = {
        kind: f"{found} times those of a plain fold, and {recorded[kind]} are recorded"
        for kind, found in report["to_plain"].items()
        if found > BUDGET * recorded[kind]
    }
    assert not too_many, (
        f"{too_many}. Where that is worth it: python -m tests.benchmarks.instructions --record. Counted: {report}"
    )
