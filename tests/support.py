"""What several tests share: records made by hand, a projection that notices every mistake, a log's fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from projections.contract import CqrsProjection, Event
from streams.data.codec import Record
from streams.data.json_codec import JsonCodec
from streams.data.serde import serde_for


@dataclass(frozen=True, slots=True)
class MadeRecord:
    """A record with what a test wants in it."""

    value_: bytes | None
    key_: bytes | None = b"s"
    offset_: int = 0
    partition_: int = 0
    topic_: str = "t"
    headers_: tuple[tuple[str, bytes | None], ...] = ()

    def __len__(self) -> int:
        return len(self.value_ or b"")

    def topic(self) -> str:
        return self.topic_

    def partition(self) -> int:
        return self.partition_

    def offset(self) -> int:
        return self.offset_

    def key(self) -> bytes | None:
        return self.key_

    def value(self) -> bytes | None:
        return self.value_

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return list(self.headers_) or None

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_000


class Tally(CqrsProjection[dict[str, Any]]):
    """Per stream: how many events, their sum, and a digest that depends on their order and on each one once.

    `drop` deletes the model, `ignore` is declined, `fail` raises after it has half changed the model, and
    `unstorable` puts something into the model that has no JSON form.
    """

    name = "tally"

    def extract_model_id(self, event: Event) -> str | None:
        return None if event.type == "ignore" else event.stream

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        if event.type == "drop":
            return None
        if model is None:
            model = {"count": 0, "sum": 0, "digest": 7}
        amount = (event.data or {}).get("n", 1)
        model["count"] += 1
        if event.type == "fail":
            raise ValueError(f"cannot fold {event.id}")
        model["sum"] += amount
        model["digest"] = (model["digest"] * 31 + event.offset + amount) % 1_000_003
        if event.type == "unstorable":
            model["bad"] = object()
        return model


def as_json(models: dict[str, Any], projection: CqrsProjection[Any]) -> dict[str, Any]:
    """Models as an interface gives them."""
    encode = serde_for(projection.model_type()).encode
    return {model_id: orjson.loads(encode(model)) for model_id, model in models.items()}


def envelope(number: int, kind: str = "add", **data: Any) -> bytes:
    """One event in the default JSON envelope."""
    return orjson.dumps({"id": f"e{number}", "type": kind, "data": {"n": number % 7, **data}})


def folded(
    records: Sequence[Record], projection: CqrsProjection[Any] | None = None, codec: Any = None
) -> dict[str, Any]:
    """What the models must be: the fold of these records, by the plainest code that can do it."""
    projection = projection or Tally()
    models: dict[str, Any] = {}
    for event in (codec or JsonCodec()).decode(records) if records else ():
        assert isinstance(event, Event)
        model_id = projection.extract_model_id(event)
        if model_id is not None:
            models[model_id] = projection.apply_to_model(models.get(model_id), event)
    return {model_id: model for model_id, model in models.items() if model is not None}
