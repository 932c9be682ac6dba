"""What Kafka does not allow: which ACL is missing, and how an administrator adds it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Literal, NamedTuple

from confluent_kafka import KafkaError

from streams.config import KafkaSettings
from streams.errors import AccessDenied

__all__ = ["Need", "denial", "is_denial"]

Kind = Literal["topic", "group", "cluster", "transactional-id"]

_REFUSED: dict[int, Kind] = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactional-id",
}
_UNKNOWN = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
    KafkaError._SSL,
}


class Need(NamedTuple):
    """An ACL that a call rests on, in Kafka's words."""

    operation: str
    """Such as Read, Describe or DescribeConfigs."""
    kind: Kind
    name: str = ""
    """The resource's; "" for the cluster."""

    def __str__(self) -> str:
        """Write it, for a message."""
        return f"{self.operation} on {self.kind.replace('-', ' ')}{f' {self.name!r}' if self.name else ''}"

    def option(self) -> str:
        """Write it as options of `kafka-acls.sh`."""
        where = f"--{self.kind} {shlex.quote(self.name)}" if self.name else "--cluster"
        return f"--operation {self.operation} {where}"


def is_denial(error: KafkaError) -> bool:
    """Say whether Kafka knows who asks and does not allow it, or does not know who asks."""
    return error.code() in _REFUSED or error.code() in _UNKNOWN


def denial(error: KafkaError, doing: str, settings: KafkaSettings, needs: Iterable[Need] = ()) -> AccessDenied:
    """Say what is missing.

    Args:
        error: What the broker said.
        doing: What was tried, to follow "could not".
        settings: Where it was tried, and as whom.
        needs: The ACLs that this rests on.
    """
    where = settings.bootstrap_servers
    kind = _REFUSED.get(error.code())
    if kind is None:
        return AccessDenied(
            f"Kafka at {where} does not let refold in ({error.str()}), so it could not {doing}. Check user, password, "
            "mechanism and certificates (security.protocol, sasl.*, ssl.* in REFOLD_KAFKA, or [kafka] of refold.toml)."
        )
    missing = [need for need in needs if need.kind == kind]
    who = str(settings.kafka.get("sasl.username", "NAME"))
    if not missing:
        return AccessDenied(f"Kafka at {where} does not allow refold to {doing}: {error.name()}: {error.str()}")
    commands = "; ".join(
        f"`kafka-acls.sh --bootstrap-server {where} --add --allow-principal {shlex.quote(f'User:{who}')} "
        f"{need.option()}`"
        for need in missing
    )
    return AccessDenied(
        f"Kafka at {where} does not allow refold to {doing}. What is missing: {', '.join(map(str, missing))}. An "
        f"administrator adds it by {commands}."
    )
