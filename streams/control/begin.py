"""Beginning a rebuild beside the active generation."""

from __future__ import annotations

import os
import socket
import time
from typing import Literal

from streams.control.record import Policy, Record
from streams.control.site import Site
from streams.control.wishes import begun
from streams.data.history import check_complete
from streams.errors import RebuildRunning

__all__ = ["Approve", "begin_beside", "default_policy"]

Approve = Literal["ask", "auto"]
"""Who approves a report of differences: a person; nobody need."""


def default_policy(site: Site, record: Record) -> Policy:
    """Give what a comparison must have found where nothing else is said.

    `validate` where the projection has one; `identical` where the code is that of the active generation, whose models
    must come out as they are; otherwise `report`.
    """
    if site.validates:
        return "validate"
    return "identical" if site.can_fold(record.live) else "report"


def begin_beside(
    site: Site, *, policy: Policy | None = None, approve: Approve = "ask", keep_s: float = 3600.0, why: str = ""
) -> Record:
    """Note in the registry that a generation is to be made of this code, beside the active one; `Green` makes it.

    Args:
        site: The projection.
        policy: What the comparison must have found for a switch; by default see `default_policy`.
        approve: Who approves a report.
        keep_s: For how long the active generation is kept after the switch.
        why: What the new one is for.

    Raises:
        NotReady: There is no active generation.
        RebuildRunning: A rebuild of it runs already; it is named.
        HistoryIncomplete: Events are gone that the fold needs.
        TopicNotFound, BrokerError: From Kafka.

    After any of them nothing was changed.
    """
    record = site.record()
    rebuilder = site.place(record.live).store.rebuilder()
    if rebuilder is not None:
        raise RebuildRunning(
            f"Generation {record.active}, which is active, is being rebuilt in place: {rebuilder}. Let it end or "
            "cancel it first. Nothing was changed.",
            projection=site.name,
        )
    cluster = site.events.cluster
    topic = cluster.topic(site.events.topic)
    check_complete(
        cluster,
        topic,
        cluster.watermarks(topic),
        projection=site.name,
        doing="A rebuild",
        allow_incomplete=site.allow_incomplete,
    )
    facts = site.facts()
    who = f"process {os.getpid()} on {socket.gethostname()}"
    rebuild_id = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    return site.update(
        lambda record: begun(
            record,
            rebuild_id,
            facts,
            policy=policy or default_policy(site, record),
            approve=approve,
            keep_s=keep_s,
            by=who,
            why=why or ("the same code again" if site.can_fold(record.live) else f"other code than {record.active}'s"),
        )
    )
