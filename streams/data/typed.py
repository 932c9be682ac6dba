"""Events whose data is of the types that a projection states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from operator import attrgetter
from typing import Any

import msgspec
import orjson
import pydantic

from projections.contract import CqrsProjection, Event
from projections.events import EventTypes, UnknownEvent
from streams.data.codec import EventCodec, Outcome, Record, Undecodable
from streams.data.json_codec import JsonCodec
from streams.data.routed import Routed
from streams.errors import ConfigError
from streams.prepared import LOOKING

__all__ = ["typed"]

_UNKNOWN = UnknownEvent()
_ADVICE = (
    "The projection's types are to fit all that the topic has: correct them, or the producer, or say what becomes of "
    "such events (--on-error)"
)


def typed(codec: EventCodec, projection: CqrsProjection[Any]) -> EventCodec:
    """Give what reads records as events of the types that a projection states; the codec itself where it states none.

    Raises:
        ConfigError: One of the types cannot be read from JSON.
    """
    kinds = projection.event_types()
    return codec if kinds is None else _typed(codec, kinds)


def _typed(codec: EventCodec, kinds: EventTypes) -> EventCodec:
    if isinstance(codec, Routed):
        return Routed(_typed(codec.codec, kinds), codec.topic)
    whole = _Typed(codec, kinds)
    envelope = _envelope(codec) if type(codec) is JsonCodec else None
    return whole if envelope is None else _TypedJson(codec, envelope, kinds, whole)  # type: ignore[arg-type]


class _Typed:
    """Reads records by a codec, and then their data as what the projection states.

    Args:
        codec: Gives the events.
        kinds: The types.
    """

    def __init__(self, codec: EventCodec, kinds: EventTypes) -> None:
        self._codec = codec
        self._kinds = kinds
        self._read = {name: _converter(kind) for name, kind in kinds.by_name.items()}

    def decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
        """See EventCodec."""
        outcomes = self._codec.decode(records)
        if len(outcomes) != len(records):
            return outcomes  # it is told by whoever has asked
        return [
            self._outcome(one, record) if type(one) is Event else one
            for one, record in zip(outcomes, records, strict=True)
        ]

    def _outcome(self, event: Event, record: Record) -> Outcome:
        name: Any = event.type  # whatever the envelope has
        read = self._read.get(name) if isinstance(name, str) else None
        data: Any = _UNKNOWN
        if read is not None:
            try:
                data = read(event.data)
            except Exception as error:  # noqa: BLE001  (whatever it is, the data does not fit)
                kind = self._kinds.by_name[name].__qualname__
                return Undecodable.of(record, f"as {name!r} it does not fit {kind}: {_line(error)}", _ADVICE)
        elif self._kinds.refuses_unknown:
            known = ", ".join(sorted(self._kinds.by_name))
            return Undecodable.of(record, f"its type {name!r} is none that the projection states ({known})", _ADVICE)
        return Event(
            event.id,
            name,
            event.stream,
            event.recorded_at,
            data,
            event.metadata,
            event.topic,
            event.partition,
            event.offset,
            event.record,
        )


class _Readers(dict[str, Callable[[Any], Any]]):
    """By event type, what reads its data from JSON."""

    def __init__(self, kinds: EventTypes) -> None:
        super().__init__((name, _reader(kind)) for name, kind in kinds.by_name.items())
        self._refuses = kinds.refuses_unknown

    def __missing__(self, name: str) -> Callable[[Any], Any]:
        if self._refuses:
            raise KeyError(name)
        return _nothing


class _TypedJson:
    """The same for plain JSON, where the data is never a dict.

    The envelope is read with the data left as JSON, and that at once as what it is. Whatever does not go that way, for
    want of an id, say, or because it does not fit, goes the other one, by itself.

    Args:
        codec: How the envelope is.
        envelope: See `_envelope`.
        kinds: The types.
        whole: The other way.
    """

    def __init__(self, codec: JsonCodec, envelope: type[msgspec.Struct], kinds: EventTypes, whole: _Typed) -> None:
        self._is_whole = codec.data is None
        self._streams_are_keys = codec.streams_are_keys
        self._open = msgspec.json.Decoder(envelope).decode
        self._fields = attrgetter(*envelope.__struct_fields__)
        self._readers = _Readers(kinds)
        self._whole = whole

    def decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
        """See EventCodec."""
        try:
            return self._decode(records)
        except Exception:  # noqa: BLE001  (whatever it is, it is found at its own record)
            if len(records) == 1:
                return self._whole.decode(records)
        return [self.decode([record])[0] for record in records]

    def _decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
        kind, readers = type(records[0]), self._readers
        values = list(map(kind.value, records))
        envelopes = map(self._open, values)  # type: ignore[arg-type]
        names, ids, times, metadata, *rest = zip(*map(self._fields, envelopes), strict=True)
        raws: Sequence[Any] = values if self._is_whole else rest[0]
        if self._streams_are_keys:
            streams: Sequence[Any] = list(map(bytes.decode, map(kind.key, records)))  # type: ignore[arg-type]
        else:
            streams = rest[-1]
        if None in ids or None in times or set(map(type, streams)) != {str}:
            raise ValueError("not as nearly all are")
        is_of_one = names.count(names[0]) == len(names)
        return list(
            map(
                Event,
                ids,
                names,
                streams,
                times,
                map(readers[names[0]], raws) if is_of_one else _read(readers, names, raws),
                metadata,
                repeat(records[0].topic()),
                repeat(records[0].partition()),
                map(kind.offset, records),
                records,
            )
        )


def _envelope(codec: JsonCodec) -> type[msgspec.Struct] | None:
    """Give what an envelope is, but for the data; None where two of its fields are one."""
    fields: list[Any] = [("type", str), ("id", Any, None), ("time", Any, None), ("metadata", Any, None)]
    names = {"type": codec.type, "id": codec.id, "time": codec.time, "metadata": codec.metadata}
    if codec.data is not None:
        fields.append(("data", msgspec.Raw, msgspec.Raw()))
        names["data"] = codec.data
    if codec.stream is not None:
        fields.append(("stream", Any, None))
        names["stream"] = codec.stream
    if len(set(names.values())) < len(names):
        return None
    return msgspec.defstruct("Envelope", fields, rename=names, gc=False)


def _read(readers: _Readers, names: Sequence[str], raws: Sequence[Any]) -> list[Any]:
    return [readers[name](raw) for name, raw in zip(names, raws, strict=True)]


def _nothing(_raw: object) -> UnknownEvent:
    return _UNKNOWN


def _reader(kind: type) -> Callable[[Any], Any]:
    """Give what reads one of a type from JSON.

    Raises:
        ConfigError: It cannot be read.
    """
    if issubclass(kind, pydantic.BaseModel):
        return lambda raw: kind.model_validate_json(bytes(raw))
    try:
        with LOOKING:
            return msgspec.json.Decoder(kind).decode
    except TypeError as error:
        raise ConfigError(f"Events of type {kind.__qualname__} cannot be read from JSON: {error}.") from error


def _converter(kind: type) -> Callable[[Any], Any]:
    """Give what makes one of a type from decoded JSON; one that is there already stays, and no data is an empty object.

    Raises:
        ConfigError: It cannot be read.
    """
    read = _reader(kind)
    if issubclass(kind, pydantic.BaseModel):
        return lambda data: data if isinstance(data, kind) else read(orjson.dumps({} if data is None else data))
    convert = partial(msgspec.convert, type=kind, str_keys=True)
    return lambda data: data if isinstance(data, kind) else convert({} if data is None else data)


def _line(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{first['msg']} - at `{where}`" if where else str(first["msg"])
    return " ".join(str(error).split())
