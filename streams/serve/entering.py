"""What a worker sees to before it tends a projection: that no other fleet does, and what it had left behind."""

from __future__ import annotations

from collections.abc import Sequence

from streams.control.record import Record
from streams.control.site import Site
from streams.data.subscription import leave_for
from streams.errors import GroupActive
from streams.log import get_logger
from streams.serve.wanted import is_wanted

__all__ = ["check_untended", "leave_for_the_gone"]

log = get_logger(__name__)


def check_untended(site: Site, record: Record, fleet: str) -> None:
    """Make sure that no other fleet sees to the projection: two leaders would drive its rebuilds.

    Args:
        site: The projection.
        record: What the registry says of it.
        fleet: The consumer group of the workers.

    Raises:
        GroupActive: One does; it is named.
    """
    others = site.events.cluster.members(record.fleet) if record.fleet else []
    if others:
        named = ", ".join(map(str, others))
        raise GroupActive(
            f"{site.name!r} is seen to by the workers of group {record.fleet!r}: {named}. "
            f"This one is of group {fleet!r}. Give all of them one namespace (--namespace), or this fleet a "
            "registry of its own (--registry). It waits for the others to end."
        )


def leave_for_the_gone(site: Site, record: Record, instances: Sequence[str], address: str) -> None:
    """Leave the groups of generations that this worker folded before it was started, and does not fold any more.

    It had other code then. Its agents have not left, for they were about to come back.

    Args:
        site: The projection.
        record: What the registry says of it.
        instances: By which groups know this worker's agents again; none where they do not.
        address: Where this worker's models are served.
    """
    for one in record.generations if instances else ():
        if is_wanted(record, one) and site.can_fold(one):
            continue
        groups = [(one.group, site.events_of(site.place(one)))]
        groups += [] if one.source is None else [(one.topic, site.events)]
        for group, events in groups:
            if any(member.address == address for member in site.events.cluster.members(group)):
                for instance in instances:
                    leave_for(events, group, instance, site.settings.session_timeout_s)
                log.info("group.left_for_good", generation=one.id, group=group, instances=instances)
