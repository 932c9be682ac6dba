"""`docs/cli.md`, written from the program: `python -m streams.cli.reference > docs/cli.md`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from streams.cli.main import COMMANDS, app, exit_codes, tell_all
from streams.cli.schemas import KINDS, schema_of

__all__ = ["EXIT_CODES", "reference"]

EXIT_CODES = {
    0: "done; what was to be ended was ended cleanly",
    1: "any other error: a bad event, a projection that failed, changed code, state that is not this projection's",
    2: "an argument or a setting is wrong, or what was asked for was not agreed to",
    3: "somebody is in the group, or a rebuild runs: the message names who; or a generation is not ready for it",
    4: "history is incomplete: retention, compaction or a deletion has taken events",
    5: "denied: an ACL, a password or a certificate is missing; the message names which",
    6: "no such projection, topic, group, generation, state or model; near names are told",
    7: "no broker answers",
    8: "a plan is of a world that is no more, or too old",
    9: "of several projections or offsets, some were done and others not; or events are left as dead letters",
    10: "something waits for a person: models differ",
    130: "interrupted; a second signal ends any command at once, with 128 and its number",
}
"""What a script can tell apart."""

_HEAD = """\
# The command line

Written from the program by `python -m streams.cli.reference`; the tests see that it is up to date.

Results are on standard output, and everything else on standard error. Every command but `run`, `worker` and `dump`
takes `--json`. Flags win over the environment, and that over `refold.toml`, where a setting is called as its flag, with
`_`: [settings.md](settings.md).

`refold install-completion` sets up completion for bash, zsh, fish and PowerShell.
"""


def reference() -> str:
    """Give the whole page."""
    return "\n".join([_HEAD, *_codes(), *_commands(), *_documents()]).rstrip() + "\n"


def _codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "| code | meaning | errors |"
    yield "|---|---|---|"
    kinds: dict[int, list[str]] = {}
    for kind, code in exit_codes():
        kinds.setdefault(code, []).append(f"`{kind.__name__}`")
    for code, told in EXIT_CODES.items():
        yield f"| {code} | {told} | {', '.join(kinds.get(code, []))} |"
    yield ""


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    for name in COMMANDS:
        yield f"- [`refold {name}`](#refold-{name}): {COMMANDS[name]}"
    yield ""
    tell_all(*COMMANDS)
    told = app.generate_docs(output_format="markdown", include_hidden=False)
    start = told.index("\n## refold demo") if "\n## refold demo" in told else told.index("\n## `")
    told = re.sub(r"(?m)^(refold [a-z-]+) -m \S+ ", r"\1 ", told[start:])  # how this process was begun
    yield re.sub(r"(?m)^(#+) ", r"#\1 ", told).strip()
    yield ""


def _documents() -> Iterator[str]:
    yield "## What --json prints\n"
    yield 'Each document says what it is: `"schema": "refold.lag/1"`. A version\'s fields keep their names, types and'
    yield "meanings; further ones may be added. `refold schema lag/1` prints the whole JSON Schema of one. Models are"
    yield "printed as they are.\n"
    for kind in KINDS:
        yield f"### {kind}\n"
        yield "| field | type | |"
        yield "|---|---|---|"
        found = schema_of(kind)
        for path, one in _fields(found, found["$defs"], ""):
            yield f"| `{path}` | {_type(one)} | {one.get('description', '')} |"
        yield ""


def _fields(part: dict[str, Any], shared: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for whole in part.get("allOf", ()):
        if "$ref" in whole:
            name = whole["$ref"].rpartition("/")[2]
            yield from _fields(shared[name], shared, path)
    for branch in part.get("anyOf", ()):
        yield from _fields(branch, shared, path)
    for name, one in part.get("properties", {}).items():
        if name == "schema":
            continue
        where = f"{path}.{name}" if path else name
        yield where, one
        inner = one
        if "items" in one:
            inner, where = one["items"], f"{where}[]"
        elif isinstance(one.get("additionalProperties"), dict):
            inner, where = one["additionalProperties"], f"{where}.*"
        if "$ref" not in inner:
            yield from _fields(inner, shared, where)


def _type(one: dict[str, Any]) -> str:
    if "$ref" in one:
        return str(one["$ref"]).rpartition("/")[2]
    if "anyOf" in one:
        return " or ".join(map(_type, one["anyOf"]))
    if "enum" in one:
        return ", ".join(map(str, one["enum"]))
    kind = one.get("type", "any")
    if kind == "array":
        return f"list of {_type(one['items'])}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


if __name__ == "__main__":
    sys.stdout.write(reference())
