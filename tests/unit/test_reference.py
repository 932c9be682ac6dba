"""docs/cli.md is what the program says, and the program says all that it is to say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from streams.cli.main import COMMANDS, app, exit_codes, tell_all
from streams.cli.reference import EXIT_CODES, reference
from streams.cli.schemas import KINDS, schema_of

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run `python -m streams.cli.reference > docs/cli.md`"


def test_every_exit_code_is_told_and_none_that_there_is_not() -> None:
    assert set(EXIT_CODES) == {0} | {code for _, code in exit_codes()}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_an_example_which_is_one_of_it(command: str) -> None:
    tell_all(command)
    function = app[command].default_command
    assert function is not None
    examples = re.findall(r"Example: (.+)", function.__doc__ or "")
    assert examples
    assert all(f"refold {command}" in one for one in examples)
    assert f"### refold {command}\n" in PAGE.read_text()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_schema_is_one(kind: str) -> None:
    Draft202012Validator.check_schema(schema_of(kind))
    assert re.fullmatch(r"[a-z-]+/[1-9]", kind)
