"""Histories for Hypothesis (`pip install hypothesis`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from streams.testing.log import Given, event

__all__ = ["events", "histories"]

_STREAMS = ("stream-1", "stream-2", "stream-3")


def events(
    types: Mapping[str, st.SearchStrategy[Mapping[str, Any]]], streams: st.SearchStrategy[str] | None = None
) -> st.SearchStrategy[Given]:
    """Give events.

    Args:
        types: By type, the payloads that it may have, such as `st.fixed_dictionaries({"quantity": st.integers(1, 9)})`.
        streams: The streams; by default three, so that they have several events each.
    """
    streams = streams or st.sampled_from(_STREAMS)
    return st.one_of([st.builds(event, st.just(type_), streams, data) for type_, data in types.items()])


def histories(
    types: Mapping[str, st.SearchStrategy[Mapping[str, Any]]],
    streams: st.SearchStrategy[str] | None = None,
    *,
    max_size: int = 40,
) -> st.SearchStrategy[list[Given]]:
    """Give lists of events; see `events`."""
    return st.lists(events(types, streams), max_size=max_size)
