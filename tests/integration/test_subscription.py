"""Members that leave their group: it hears of each at once, in whatever state it is; else it waits for sessions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from streams.data.subscription import Subscription
from tests.integration.kit import Kit, until

NewKit = Callable[..., Kit]
MEMBERS = 4
ROUNDS = 4


class _Idle:
    """Takes what it is given, and reads nothing of it."""

    def __init__(self) -> None:
        self.held: set[int] = set()

    def assigned(self, partitions: Sequence[int]) -> None:
        """See Listener."""
        self.held |= set(partitions)

    def revoked(self, partitions: Sequence[int]) -> None:
        """See Listener."""
        self.held -= set(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """See Listener."""
        self.held -= set(partitions)


def _come_and_go(kit: Kit, group: str, number: int, stays_s: float, instance: str) -> float:
    """Be a member for so long; give what leaving took, in seconds."""
    member = Subscription(
        kit.events, group, _Idle(), client_id=f"member-{number}", session_timeout_s=45.0, instance=instance
    )
    end = time.monotonic() + stays_s
    while time.monotonic() < end:
        member.poll(0.02)
    began = time.monotonic()
    member.close()
    return time.monotonic() - began


def test_a_hand_over_does_not_wait_out_the_second_between_two_joins(new_kit: NewKit) -> None:
    """librdkafka joins once a second, and whoever comes joins twice: 1.1 s by that alone, each time."""
    kit = new_kit(partitions=4)
    took = []
    for number in range(ROUNDS):
        listeners = [_Idle(), _Idle()]
        members: list[Subscription] = []
        for one, listener in enumerate(listeners):
            began = time.monotonic()
            members.append(
                Subscription(
                    kit.events, f"{kit.group}-{number}", listener, client_id=f"member-{one}", session_timeout_s=45.0
                )
            )
            while [len(held.held) for held in listeners[: one + 1]] != [4 // (one + 1)] * (one + 1):
                assert time.monotonic() < began + 30
                for member in members:
                    member.poll(0.02)
        took.append(time.monotonic() - began)
        for member in members:
            member.close()
    assert min(took) < 1, took


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize(
    ("at_least_s", "spread_s"),
    [
        pytest.param(2.5, 0.2, id="at once, all of them in it"),
        pytest.param(0.05, 1.0, id="while they join, and others leave"),
    ],
)
def test_members_that_leave_are_gone(new_kit: NewKit, at_least_s: float, spread_s: float, *, is_static: bool) -> None:
    kit = new_kit(partitions=4)
    rng = random.Random(7)
    for number in range(ROUNDS):
        group = f"{kit.group}-{number}"
        with ThreadPoolExecutor(MEMBERS) as threads:
            members = [
                threads.submit(
                    _come_and_go,
                    kit,
                    group,
                    one,
                    at_least_s + spread_s * rng.random(),
                    f"{group}-{one}" if is_static else "",
                )
                for one in range(MEMBERS)
            ]
            took = [member.result() for member in members]
        until(f"{group} to be empty", lambda group=group: not kit.cluster.describe(group).members, 2.0)  # type: ignore[misc]
        assert max(took) < 3, took
