"""What `--json` prints, as JSON Schema: one for each name that a document bears in its `schema`.

A version's fields keep their names, types and meanings; further ones may be added.
"""

from __future__ import annotations

import msgspec

from streams.cli.shapes import ANY, Schema, by, flag, known, many, maybe, number, text, thing, time, whole
from streams.control.planning import World
from streams.control.record import Record, Summary
from streams.types import RebuildProgress

__all__ = ["KINDS", "schema_of"]

_TYPES = (RebuildProgress, Record, Summary, World)

_CHANGES = many(
    {
        "type": "object",
        "properties": {"path": text("JSON Pointer (RFC 6901); empty: the whole model"), "before": ANY, "after": ANY},
        "required": ["path"],
        "description": "what was not there before, or is not after, has no such key",
    }
)
_MEMBER = thing(client_id=text(), host=text(), pid=maybe(whole("of a process of refold's")), partitions=many(whole()))
_GROUP: dict[str, Schema] = {
    "filling": maybe(
        thing(
            topic=text("the event topic"),
            group=text("the consumer group of those who write it to the generation's own topic, keyed by model"),
            lag_records=whole("offsets that have not got there; lag_records of the whole counts them too"),
            members=many(_MEMBER),
            positions=by(maybe(whole()), "by partition of the event topic, the next offset to read"),
        )
    ),
    "topic": text(),
    "group": text("the consumer group"),
    "lag_records": whole("offsets in front of the last stable end that are not folded"),
    "lag_seconds": maybe(number("how old the last folded record is, where more is to fold; null: nothing was folded")),
    "models": whole(),
    "members": many(_MEMBER),
    "gone": many(whole(), "processes that the group still counts, and that have ended"),
    "partitions": many(
        thing(
            partition=whole(),
            low=whole("the first offset that the topic still has"),
            end=whole("the last stable offset"),
            position=maybe(whole("the next offset to fold")),
            events=whole("folded or declined"),
            declined=whole(),
            deleted=whole(),
            models=whole(),
            dead_letters=whole("events that could not be folded, and those of their models behind them"),
            skipped=whole("events that were left out because they could not be folded"),
            last_event_id=maybe(text()),
            last_event_time=maybe({"type": ["string", "integer"], "description": "as the envelope has it"}),
            phase=text("opening, restoring, replaying, ready, stalled, halted, or empty where that is not known"),
            why=text("why it is restoring, stalled or halted"),
            lag=whole(),
            owner=maybe(_MEMBER),
        )
    ),
}

_PROGRESS: Schema = {
    "allOf": [known(RebuildProgress)],
    **thing(completion_percentage=maybe(number("0 to 100; 100 exactly at the end"))),
}
_REBUILD = thing(
    strategy=text(),
    starts=by(whole(), "by partition, where it began"),
    targets=by(whole(), "by partition, the end as pinned when it began"),
    before=thing(
        events=whole(), declined=whole(), deleted=whole(), left_out=whole("that waited as dead letters or were skipped")
    ),
    started_at=text(),
    ended_at=maybe(text()),
    outcome={
        "enum": ["running", "completed", "cancelled", "failed", "died"],
        "description": "died: it ended without a word",
    },
    error=maybe(text()),
    events=whole(),
    models=maybe(whole()),
    deleted=whole(),
    declined=whole(),
    dead_letters=whole("events that waited as dead letters in the end"),
    skipped=whole(),
    seconds=number("of the process that ended it, as the next one"),
    events_per_second=number(),
)
"""The rebuild that made the state."""

_LETTER = thing(
    event=text("topic[partition]@offset"),
    state={"enum": ["waiting", "skipped", "folded", "dropped"]},
    kind={"enum": ["undecodable", "failed", "unstorable", "held"], "description": "held: it waits behind another"},
    error=text("what went wrong when it was tried last"),
    projection=text(),
    generation=text(),
    topic=text("of the event"),
    partition=whole(),
    offset=whole(),
    time=text("Kafka's, of the event"),
    written_at=time("when it was kept"),
    tried=whole(),
    stream=maybe(text()),
    model=maybe(text("its id")),
    event_id=maybe(text()),
    event_type=maybe(text()),
    size_bytes=whole("of the event's value"),
)
_LETTER_RECORD: dict[str, Schema] = {
    "key": maybe(text("show: as text, or Python's bytes where it is none")),
    "value": maybe(text("show: likewise")),
    "headers": many({"type": "array", "items": maybe(text())}, "show: names and values"),
}

KINDS: dict[str, Schema] = {
    "lag/1": thing(
        at=time("when it was looked"),
        groups=many(
            thing(
                group=text(),
                projection=maybe(text("null: the group is of none that the registry knows")),
                generation=maybe(text()),
                phase=maybe(text("what the registry says that the generation is at")),
                state=text("Kafka's word: Stable, Empty, Dead, PreparingRebalance, CompletingRebalance"),
                assignor=text(),
                lag_records=whole("offsets up to the high watermark that were not read"),
                behind_seconds=maybe(number("for how long the first record that was not read has been waiting")),
                records_read_per_second=maybe(number("between looks; null: there was only one")),
                records_written_per_second=maybe(number("likewise")),
                eta_seconds=maybe(number("until nothing is left, at these rates; null: never, or not known")),
                members=many(
                    thing(
                        client_id=text(),
                        instance_id=maybe(text("group.instance.id of a static member")),
                        host=text(),
                        partitions=many(thing(topic=text(), partition=whole())),
                    )
                ),
                partitions=many(
                    thing(
                        topic=text(),
                        partition=whole(),
                        start=whole("the first offset that the topic still has"),
                        position=maybe(whole("the committed offset: the next one to read")),
                        end=whole("the high watermark: the next offset that will be written"),
                        stable_end=whole("the last stable offset: where an open transaction holds readers back"),
                        lag_records=maybe(whole("end less position; null without a position")),
                        lost_records=whole("deleted before they were read"),
                        behind_seconds=maybe(number()),
                        retention_left_seconds=maybe(
                            number("for how long the first record that was not read is kept for certain")
                        ),
                        retention_margin_records=maybe(whole("position less start")),
                        member=maybe(text("the client id of whom the group has given it to")),
                    )
                ),
            )
        ),
    ),
    "dead-letter/1": {**_LETTER, "properties": {**_LETTER["properties"], **_LETTER_RECORD}},
    "models/1": thing(
        models=many(thing(id=text(), model=ANY)),
        cursor=maybe(text("what --after is to be for the next page; null: there is none")),
    ),
    "dead-letters-answer/1": thing(
        verb={"enum": ["retry", "drop"]},
        asked=whole("how many were asked for"),
        folded=whole("in their models now"),
        failed=whole("tried again in vain"),
        dropped=whole("never to be folded"),
        waiting=whole("of the generation, by now"),
        silent=many(whole(), "partitions that nobody has answered for in time"),
    ),
    "status/1": thing(
        projection=text(),
        **_GROUP,
        rebuild=maybe(_REBUILD),
        progress=maybe(_PROGRESS),
        registry=maybe(known(Record)),
    ),
    "statuses/1": thing(
        projections=many(
            thing(
                projection=text(),
                active=text("the active generation"),
                topic=text(),
                group=text(),
                lag_records=whole(),
                lag_seconds=maybe(number()),
                models=whole(),
                members=whole(),
                halted=maybe(text("why nobody folds it")),
                generations=by(text(), "each one's phase"),
                rebuild=maybe(
                    thing(generation=text(), is_paused=flag(), why=maybe(text()), percent=maybe(number("0 to 100")))
                ),
                matter=maybe(text("what is under way or the matter, in words")),
            )
        )
    ),
    "describe/1": {
        **thing(
            projection=text(),
            version=whole(),
            directory=text("where the state is, on this machine"),
            rebuild_doc=maybe(
                thing(
                    idempotent=flag(),
                    depends_on=many(text()),
                    typical_seconds_per_million_events=maybe(number("as its author measured it")),
                    memory_bytes=maybe(whole("of one process meanwhile")),
                    dependencies=maybe(text()),
                    notes=maybe(text()),
                )
            ),
            event_types=maybe(many(text(), "the types of events that the projection states; null: none")),
            state=maybe(
                thing(
                    build=whole(),
                    made=text("when it was begun"),
                    code_changed=maybe(flag("null: the code is not on this machine")),
                    fingerprint=text("of the code that the models are the fold of"),
                    codec=text(),
                    topic=text(),
                    topic_id=text(),
                    partitions=whole(),
                    incomplete=flag("it was begun without the whole history"),
                    size_bytes=whole(),
                    models=whole(),
                    folding=many(
                        thing(purpose=text(), pid=whole(), host=text(), since=text(), group=text()), "who has it open"
                    ),
                )
            ),
            rebuild=maybe(_REBUILD),
        ),
        "anyOf": [thing(**_GROUP), thing(error=text("why the group is not known"))],
    },
    "generation/1": thing(
        generation=text(),
        called=maybe(text("its name in refold.toml")),
        directory=maybe(text()),
        build=maybe(whole()),
        models=maybe(whole()),
        topic=maybe(text()),
        own_topic=maybe(text("what is folded, where that is a topic of its own, keyed by model")),
        group=maybe(text()),
        members=maybe(whole()),
        lag=maybe(whole()),
        phase=maybe(text()),
        kept_in=maybe(text("files, which are in the directory, or postgres")),
        error=maybe(text()),
    ),
    "record/1": known(Record),
    "plan/1": thing(
        made_at=time(),
        expires_at=time("until when it may be applied"),
        request=by(ANY, "what was asked for"),
        options=by(ANY, "flags that say where things are; no client setting is among them"),
        worlds=many(known(World), "each projection, as it was found"),
    ),
    "rebuild/1": _PROGRESS,
    "rebuilds/1": thing(
        projections=by(
            thing(
                state=text("completed, failed or skipped"),
                error=maybe(text()),
                progress=_PROGRESS,
                registry=maybe(known(Record)),
            )
        )
    ),
    "comparison/1": {
        "allOf": [known(Summary)],
        **thing(
            before=text("the active generation"),
            after=text("the other one"),
            positions=by(whole(), "by partition, of which position both were"),
            identical=flag(),
            differences=many(
                thing(
                    id=text("the model's"),
                    partition=whole(),
                    kind={"enum": ["changed", "added", "removed"]},
                    expected=maybe(flag("what the projection's validate says; null: it was not asked")),
                    changes=_CHANGES,
                )
            ),
        ),
    },
    "reset-offsets/1": thing(
        executed=flag("whether they were set"),
        offsets=many(
            thing(
                group=text(),
                topic=text(),
                partition=whole(),
                before=maybe(whole("null: there was none")),
                offset=whole("the new one"),
                start=whole("the first that the topic has"),
                end=whole("its high watermark"),
                means=maybe(text("for a projection's models; null for a group that is none of refold's")),
            )
        ),
    ),
    "doctor/1": thing(
        state={"enum": ["ok", "warning", "failure"], "description": "the worst"},
        findings=many(
            thing(
                what=text("what was looked at"),
                state={"enum": ["ok", "warning", "failure"]},
                told=text("how it is"),
                advice=maybe(text("the way out")),
            )
        ),
    ),
    "count/1": thing(projection=text(), models=whole()),
    "snapshot/1": thing(
        id=text(),
        taken_at=time(),
        projection=text(),
        version=whole(),
        fingerprint=text(),
        topic=text(),
        positions=by(whole(), "by partition, the next offset to fold"),
        events=whole(),
        models=whole(),
        size_bytes=whole(),
    ),
    "stored-snapshot/1": thing(
        generation=text(),
        partition=whole(),
        position=whole("the next offset to fold"),
        events=whole(),
        models=whole(),
        size_bytes=whole("of all its files, also of those that others have too"),
        taken_at=time(),
        by=text("the host that sent it"),
        files=whole(),
    ),
    "explain/1": thing(
        id=text("the model's"),
        events=many(
            thing(
                partition=whole(),
                offset=whole(),
                id=text("the event's"),
                type=text(),
                time=maybe({"type": ["string", "integer"]}),
                is_folded=flag("false: the stored model has not come so far"),
                changes=_CHANGES,
            )
        ),
        model=ANY,
    ),
    "preview/1": thing(
        streams=many(text(), "those that were folded"),
        events=whole(),
        models=whole("how many were compared"),
        differences=many(thing(id=text("the model's"), partition=whole(), changes=_CHANGES)),
    ),
    "load/1": thing(topic=text(), records=whole(), bytes=whole(), seconds=number()),
    "broker/1": thing(
        bootstrap_servers=text(),
        pid=whole("the broker's process"),
        data_dir=maybe(text("null: it is gone with the broker")),
        kafka_version=text(),
    ),
    "demo/1": thing(
        events=whole(),
        models=whole(),
        partitions=whole(),
        live_events_per_second=whole(),
        rebuild_events_per_second=whole(),
        identical=flag("live and rebuilt, byte for byte"),
        rebuild_seconds=number(),
    ),
}
"""By name and version."""


def schema_of(kind: str) -> Schema:
    """Give the whole JSON Schema (2020-12) of a document.

    Args:
        kind: Its name and version, as `lag/1`.
    """
    _, shared = msgspec.json.schema_components(_TYPES, ref_template="#/$defs/{name}")
    shared["Record"]["properties"].pop("schema")  # of the registry's own form
    body = dict(KINDS[kind])
    whole_of = body.pop("$ref", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"refold.{kind}",
        **body,
        "properties": {"schema": {"const": f"refold.{kind}"}, **body.get("properties", {})},
        "required": ["schema", *body.get("required", [])],
        **({} if whole_of is None else {"allOf": [{"$ref": whole_of}]}),
        "$defs": shared,
    }
