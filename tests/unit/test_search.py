"""Times in ids."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from streams.control.search import embedded_time


@pytest.mark.parametrize(
    ("event_id", "time"),
    [
        ("017F22E2-79B0-7CC3-98C4-DC0C0C07398F", datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)),  # RFC 9562, A.6
        ("017f22e279b07cc398c4dc0c0c07398f", datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)),
        ("01ARYZ6S41TSV4RRFFQ69G5FAV", datetime(2016, 7, 30, 22, 36, 16, 385000, tzinfo=UTC)),  # the ULID spec's time
        ("01aryz6s41tsv4rrffq69g5fav", datetime(2016, 7, 30, 22, 36, 16, 385000, tzinfo=UTC)),
        ("c232ab00-9414-11ec-b3c8-9f6bdeced846", None),  # version 1
        ("919108f7-52d1-4320-9bac-f847db4148a8", None),  # version 4
        ("7ZZZZZZZZZTSV4RRFFQ69G5FAV", None),  # behind the year 9999
        ("e17", None),
        ("", None),
    ],
)
def test_time_in_an_id(event_id: str, time: datetime | None) -> None:
    assert embedded_time(event_id) == time
