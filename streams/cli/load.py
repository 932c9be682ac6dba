"""`refold load`: a file of events into a topic."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from streams.cli.output import document, shown
from streams.cli.signals import interrupted_by_signals
from streams.cli.wiring import ClientOptions, Flag
from streams.columns import Columns
from streams.errors import ConfigError
from streams.lines import EventLines, Fields
from streams.loader import Loader

__all__ = ["load"]

_PROGRESS_SECONDS = 2.0


def load(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)] = "-",
    /,
    *,
    topic: Annotated[str, Parameter(env_var="REFOLD_TOPIC")],
    client: ClientOptions = ClientOptions(),  # noqa: B008 - frozen
    format: Literal["ndjson", "csv"] | None = None,  # noqa: A002 - it names the flag
    key: str | None = None,
    id: str | None = None,  # noqa: A002 - it names the flag
    type: str | None = None,  # noqa: A002 - it names the flag
    type_value: str | None = None,
    time: str | None = None,
    data: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    delimiter: str | None = None,
    decimal: str | None = None,
    columns: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    create: Flag = False,
    partitions: PositiveInt | None = None,
    from_line: PositiveInt = 1,
    json: Flag = False,
) -> None:
    """Write the events of a file to a topic, each once, the events of a stream in order.

    Each record becomes {"id", "type", "time", "data", "metadata"}, and its stream Kafka's key. NDJSON that
    has these fields already, and "stream", passes as it is. Fields may be dotted paths (order.id).

    Streams are given to partitions as Java's producers do (murmur2). At the first bad record the load ends:
    all before it is delivered and nothing after it is sent; --from-line goes on. The sum is printed on
    standard output, progress on standard error.

    Example: refold load orders.csv --topic orders --create --partitions 4 --key order_id --type-value Ordered

    Args:
        file: The file, or - for standard input.
        topic: The topic to write to.
        client: Where Kafka is.
        format: By default csv for a file that is called so, and else ndjson.
        key: The field with the stream; by default "stream".
        id: The field with the event's id; by default "id", where there is one.
        type: The field with the event's type; by default "type".
        type_value: One type for all events, in place of a field.
        time: The field with the time, ISO 8601 or milliseconds; by default "time", where there is one.
        data: The fields that make up the data; "payload.*" for the members of payload; "rest" for all
            that are not used otherwise. By default the field "data" of NDJSON, and the rest of CSV.
        delimiter: CSV: what stands between two columns; by default a comma.
        decimal: CSV: what stands in front of a number's fraction; by default a point.
        columns: CSV: NAME=TYPE of the columns that are no text: int, number, bool, json. An empty one is null.
        create: Create the topic if it does not exist.
        partitions: Create the topic if it does not exist, with so many partitions.
        from_line: Pass over the records that begin before this line.
        json: Print the sum as one JSON object: topic, records, bytes, seconds.
    """
    fields = Fields(key=key, id=id, type=type, type_value=type_value, time=time, data=data)
    settings = client.kafka()
    style = format or ("csv" if file.lower().endswith(".csv") else "ndjson")
    typed = Columns(delimiter=delimiter or ",", decimal=decimal or ".", types=columns)
    if style != "csv" and (delimiter or decimal or columns):
        raise ConfigError(
            "--delimiter, --decimal and --columns say how CSV is read: give --format csv, or leave them out."
        )
    source = "stdin" if file == "-" else file
    try:
        opened = nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"Cannot read {file!r}: {error.strerror}. Name a file, or - for standard input.") from error
    with opened as raw:
        loader = Loader(settings, topic)
        if create or partitions is not None:
            loader.create_topic(partitions)
        lines = EventLines(raw, fields, source=source, style=style, columns=typed, from_line=from_line)
        with interrupted_by_signals(exit_code=130):
            loaded = loader.load(lines, source=source, line=lambda: lines.line, progress=_progress(), warn=_warn)
    if json:
        print(shown(document("load", asdict(loaded))))  # noqa: T201
    else:
        print(  # noqa: T201
            f"{loaded.records:,} records ({loaded.bytes:,} bytes) are in topic {topic} after {loaded.seconds:.1f} s."
        )


def _warn(text: str) -> None:
    print(f"refold: {text}", file=sys.stderr)  # noqa: T201


def _progress() -> Callable[[int], None]:
    """Give a reporter that writes a line to standard error every two seconds."""
    started = last = time.monotonic()

    def report(records: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_SECONDS:
            last = now
            rate = records / (now - started)
            print(f"refold: {records:,} records, {rate:,.0f} a second", file=sys.stderr)  # noqa: T201

    return report
