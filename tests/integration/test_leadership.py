"""Who leads: one of the workers, which hears commands; one that hears nothing any more joins again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from streams.config import KafkaSettings
from streams.serve.leadership import Leadership, commands_topic
from streams.serve.producing import Producing
from tests.conftest import GroupFactory

Look = Callable[[], bool]


async def until(what: str, look: Look, deadline_s: float = 30.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not look():
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        await asyncio.sleep(0.05)


async def test_a_leader_hears_itself_and_one_that_does_not_joins_again(
    bootstrap_servers: str, group: GroupFactory
) -> None:
    kafka, namespace = KafkaSettings(bootstrap_servers=bootstrap_servers), group("fleet")
    producing = Producing(kafka, commands_topic(namespace))
    heard: list[bytes] = []

    async def hear(command: bytes) -> None:
        heard.append(command)

    one = Leadership(kafka, namespace, "one", hear)
    one.address = "127.0.0.1:1"
    try:
        await one.join()
        await until("it to lead", lambda: one.is_leading)
        assert await asyncio.to_thread(one.confirm)
        assert await one.hears(lambda token: producing.send(b"ping", token))
        await asyncio.to_thread(producing.send, b"x", b"a command")
        await until("a command to be heard", lambda: heard == [b"a command"])
        assert one.addresses() == {"127.0.0.1:1"}
        # What its client reads no more, it does not hear, and is a member for all that.
        app = one._app
        assert app is not None
        app.consumer.pause_partitions(app.consumer.assignment())
        app.flow_control.suspend()
        assert not await one.hears(lambda token: producing.send(b"ping", token), within_s=2)
        assert await asyncio.to_thread(one.confirm)
        await one.leave()
        assert not await asyncio.to_thread(one.confirm)
        await one.join()
        await until("it to lead again", lambda: one.is_leading)
        assert await one.hears(lambda token: producing.send(b"ping", token))
    finally:
        await one.leave()


async def test_two_share_nothing_and_the_other_leads_once_the_first_has_left(
    bootstrap_servers: str, group: GroupFactory
) -> None:
    kafka, namespace = KafkaSettings(bootstrap_servers=bootstrap_servers), group("fleet")

    async def hear(_command: bytes) -> None:
        pass

    both = [Leadership(kafka, namespace, name, hear) for name in ("one", "other")]
    try:
        for number, each in enumerate(both):
            each.address = f"127.0.0.1:{number}"
            await each.join()
        await until("one of them to lead", lambda: sum(each.is_leading for each in both) == 1)
        (first,) = [each for each in both if each.is_leading]
        (second,) = [each for each in both if not each.is_leading]
        assert (first.confirm(), second.confirm()) == (True, False)
        await first.leave()
        await until("the other to lead", lambda: second.is_leading)
        assert second.confirm()
    finally:
        for each in both:
            await each.leave()
