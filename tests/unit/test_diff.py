"""What differs between two JSON values, told so that the one can be made from the other."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streams.diff import ABSENT, Change, changes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "a/b", "~"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "a/b", "~x", ""]), inner),
    max_leaves=8,
)


def applied(before: Any, found: list[Change]) -> Any:
    """Do what the changes say."""
    whole = {"": copy.deepcopy(before)}
    for change in found:
        parts = [part.replace("~1", "/").replace("~0", "~") for part in change.path.split("/")]
        place: Any = whole
        for part in parts[:-1]:
            place = place[int(part) if isinstance(place, list) else part]
        last: Any = parts[-1]
        if isinstance(place, list):
            index = int(last)
            if change.after is ABSENT:
                place[index] = ABSENT
            elif index == len(place):
                place.append(change.after)
            else:
                place[index] = change.after
        elif change.after is ABSENT:
            del place[last]
        else:
            place[last] = change.after
    return without_absent(whole[""])


def without_absent(value: Any) -> Any:
    if isinstance(value, list):
        return [without_absent(item) for item in value if item is not ABSENT]
    if isinstance(value, dict):
        return {key: without_absent(item) for key, item in value.items()}
    return value


@given(JSON, JSON)
def test_changes_make_the_one_of_the_other(before: Any, after: Any) -> None:
    found = changes(before, after)
    made = applied(before, found)
    assert repr(sorted_keys(made)) == repr(sorted_keys(after))  # True is not 1
    assert bool(found) == (repr(sorted_keys(before)) != repr(sorted_keys(after)))


def sorted_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


def test_what_is_new_and_what_is_gone_is_told() -> None:
    assert changes(ABSENT, {"a": 1}) == [Change("", after={"a": 1})]
    assert changes({"a": 1}, ABSENT) == [Change("", before={"a": 1})]
    assert changes({"a": [1], "b": 2}, {"a": [1, 3]}) == [Change("/a/1", after=3), Change("/b", before=2)]
    assert changes({"a/b": {"~": 1}}, {"a/b": {"~": 2}}) == [Change("/a~1b/~0", 1, 2)]
