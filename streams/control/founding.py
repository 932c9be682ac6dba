"""Founding a projection's first generation where several machines are to fold it."""

from __future__ import annotations

import secrets

from streams.control.changing import named
from streams.control.place import note
from streams.control.record import Record, facts_of
from streams.control.repartitioning import make_topic
from streams.control.site import Site
from streams.control.transitions import founded
from streams.data.checkpoint import KafkaCheckpointStore, belongs
from streams.data.history import check_complete
from streams.errors import CodeChanged, ForeignOffset, at

__all__ = ["found_first"]


def found_first(site: Site) -> Record:
    """Give a projection's record; where it has none, found its first generation.

    Where there is state of it on this machine, or a group that says of what state its offsets are, it is that one: the
    registry is their mirror. Of several that do so at once, the first one's counts.

    Raises:
        ForeignOffset: The group is another projection's, or somebody set an offset in it that no models are of.
        CodeChanged: The group's offsets are of other code, of which there is no state here.
        HistoryIncomplete: Events are gone that the fold needs.
        TopicNotFound, BrokerError: From Kafka.
    """
    record = site.registry.get(site.name)
    if record is not None:
        return record
    if site.is_repartitioned:
        return _found_repartitioned(site)
    place = site.active(None)
    noted = note(site.registry, None, place, site.name, place.group)
    if noted is not None:
        return noted
    facts = site.facts()
    cluster = site.events.cluster
    topic = cluster.topic(site.events.topic)
    marks = cluster.watermarks(topic)
    state, epoch = secrets.token_hex(6), 1
    for number, (position, stamp) in KafkaCheckpointStore(place.group, site.events).stamped(topic).items():
        if stamp is None:
            if position > marks[number].low:
                raise ForeignOffset(
                    f"Somebody set group {place.group!r} to {at(topic.name, number, position)} (the commit has no "
                    "stamp of refold's), and no models of it are known. Set the group to the log's start "
                    "(kafka-consumer-groups.sh --reset-offsets --to-earliest), or name another group. Nothing was "
                    "changed.",
                    projection=site.name,
                    topic=topic.name,
                    partition=number,
                    offset=position,
                )
        elif not belongs(stamp.generation, site.name):
            raise ForeignOffset(
                f"Group {place.group!r} holds the positions of {stamp.generation!r}, and this is {site.name!r}: two "
                "projections cannot share a group. Name another group (--group).",
                projection=site.name,
            )
        elif stamp.fingerprint not in ("", facts["fingerprint"]):
            raise CodeChanged(
                f"Group {place.group!r} holds the positions of other code of {site.name!r} (fingerprint "
                f"{stamp.fingerprint}, now {facts['fingerprint']}), and the registry does not know it. Start a worker "
                "with that code once, or where its state is; or name another group (--group).",
                projection=site.name,
                topic=topic.name,
            )
        elif stamp.build >= epoch:
            state, epoch = stamp.directory, stamp.build
    check_complete(cluster, topic, marks, projection=site.name, doing="A fold", allow_incomplete=site.allow_incomplete)
    facts |= {"state": state, "epoch": epoch}
    return site.registry.update(
        site.name, lambda found: founded(found, site.name, place.group, place.store.directory.name, facts)
    )


def _found_repartitioned(site: Site) -> Record:
    """Found the first generation of a projection whose generations have topics of their own.

    1. Where there is state of it on this machine, it is that one.
    2. Otherwise make a topic, by a name that nobody else chooses, and note it. Whoever was not the first to do so
       removes his.

    A crash in between leaves a topic that is empty, and that nobody fills.
    """
    place, cluster = site.active(None), site.events.cluster
    directory = place.store.directory.name
    facts = site.facts()
    build = place.store.current()
    # Step 1
    if build is not None:
        facts = facts_of(build) | {"source": facts["source"]}
        return site.registry.update(site.name, lambda found: founded(found, site.name, place.group, directory, facts))
    # Step 2
    topic = cluster.topic(site.events.topic)
    check_complete(
        cluster,
        topic,
        cluster.watermarks(topic),
        projection=site.name,
        doing="A fold",
        allow_incomplete=site.allow_incomplete,
    )
    own = make_topic(cluster, named(facts, place.group)["topic"], topic)
    facts |= {"topic": own.name, "topic_id": own.id, "partitions": own.partitions}
    facts |= {"state": secrets.token_hex(6), "epoch": 1}
    record = site.registry.update(site.name, lambda found: founded(found, site.name, place.group, directory, facts))
    if all(one.topic != own.name for one in record.generations):
        cluster.delete_topic(own.name)
    return record
