"""Rebuilds as OpenTelemetry traces: each is one, with its phases as spans in it.

The packages are those of the extra `otel`. Where to, is said by OpenTelemetry's own variables, of which
`OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) turns it on:
https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from streams.control.record import Rebuild
from streams.log import get_logger

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Tracing"]

log = get_logger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SERVICE = "refold"


class Tracing:
    """Tells rebuilds that have ended. Where no endpoint is named, it tells nobody.

    A rebuild may outlive the worker that led it when it began, so nothing is kept of it here: by its record, whoever
    leads at its end tells all of it.
    """

    def __init__(self) -> None:
        self._provider = _provider() if any(os.environ.get(name) for name in _ENDPOINTS) else None

    def ended(self, projection: str, rebuild: Rebuild) -> None:
        """Tell a rebuild that has ended. It does not wait for whoever is told.

        Args:
            projection: The projection's name.
            rebuild: The rebuild, as the registry has it.
        """
        if self._provider is None or rebuild.ended_at is None:
            return
        from opentelemetry.context import Context
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        tracer = self._provider.get_tracer("refold")
        facts: dict[str, Any] = {
            "refold.projection": projection,
            "refold.rebuild": rebuild.id,
            "refold.generation": rebuild.generation,
            "refold.replaces": rebuild.replaces,
            "refold.policy": rebuild.policy,
            "refold.in_place": rebuild.is_in_place,
            "refold.outcome": rebuild.outcome,
            "refold.by": rebuild.by,
        }
        root = tracer.start_span(
            f"rebuild {projection}", context=Context(), attributes=facts, start_time=_ns(rebuild.began_at)
        )
        for step, end in zip(rebuild.steps, [*(one.at for one in rebuild.steps[1:]), rebuild.ended_at], strict=True):
            span = tracer.start_span(
                step.what,
                context=set_span_in_context(root),
                attributes=_compared(rebuild) if step.what == "verifying" else {},
                start_time=_ns(step.at),
            )
            span.end(_ns(end))
        if rebuild.outcome == "cancelled":
            root.set_status(Status(StatusCode.ERROR, rebuild.why))
        root.end(_ns(rebuild.ended_at))

    def close(self) -> None:
        """Have what is told arrive, for some seconds at most."""
        if self._provider is not None:
            self._provider.shutdown()


def _provider() -> TracerProvider | None:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("traces.not_told", why=f"{error}: the extra is missing (pip install 'refold[otel]')")
        return None
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # by no variable either
        resource = resource.merge(Resource({SERVICE_NAME: _SERVICE}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _compared(rebuild: Rebuild) -> dict[str, Any]:
    found = rebuild.report
    if found is None:
        return {}
    return {
        "refold.models_before": found.models_before,
        "refold.models_after": found.models_after,
        "refold.changed": found.changed,
        "refold.added": found.added,
        "refold.removed": found.removed,
    }


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
