"""A rebuild is one trace, whichever workers led meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from tests.integration.fleet import fleet, soon
from tests.integration.kit import Kit, produce, tally_events
from tests.integration.test_worker import FIXED

NewKit = Callable[..., Kit]


class Collector:
    """Takes traces over OTLP, as a real one does."""

    def __init__(self) -> None:
        self.told: list[ResourceSpans] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                collector.told.extend(request.resource_spans)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[Span]:
        return [span for told in self.told for scope in told.scope_spans for span in scope.spans]


@contextmanager
def collector() -> Iterator[Collector]:
    found = Collector()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        thread.join()
        found.server.server_close()


def test_a_rebuild_is_one_trace_with_its_phases_though_its_leader_was_killed(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with collector() as told, fleet(kit, variables={"OTEL_EXPORTER_OTLP_ENDPOINT": told.endpoint}) as workers:
        old = workers.start("a")
        workers.ready(old)
        new = [workers.start(name, projections=FIXED) for name in "bc"]
        workers.listening(*new)
        status, _, done = new[0].ask("POST", "/v1/projections/tally/rebuild", {"policy": "report"})
        assert status == 200, done
        soon("it to wait for a person", lambda: workers.record().generations[-1].phase == "waiting")
        leader = workers.leader()
        leader.kill()
        workers.workers.remove(leader)
        workers.leader()
        (asked, *_) = [one for one in (*new, old) if one is not leader]
        assert asked.ask("POST", "/v1/projections/tally/switch", timeout_s=40)[0] == 200
        soon("the switch", lambda: workers.record().running is None)
        rebuild = workers.record().rebuild
        assert rebuild is not None
        assert rebuild.ended_at is not None
        assert [step.what for step in rebuild.steps] == ["new", "replaying", "verifying", "waiting", "ready"]
        soon("it to be told", lambda: len(told.spans()) >= 6)

        assert asked.ask("POST", "/v1/projections/tally/rebuild", {"policy": "report"})[0] == 200
        assert asked.ask("POST", "/v1/projections/tally/cancel")[0] == 200
        soon("the other one to be told", lambda: len([span for span in told.spans() if not span.parent_span_id]) == 2)

    first, second = sorted(
        (span for span in told.spans() if not span.parent_span_id), key=lambda span: span.start_time_unix_nano
    )
    assert first.name == second.name == "rebuild tally"
    within = [span for span in told.spans() if span.trace_id == first.trace_id and span is not first]
    within.sort(key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in within] == [step.what for step in rebuild.steps]
    assert {span.parent_span_id for span in within} == {first.span_id}
    assert within[0].start_time_unix_nano == first.start_time_unix_nano
    assert within[-1].end_time_unix_nano == first.end_time_unix_nano
    for one, following in pairwise(within):
        assert one.end_time_unix_nano == following.start_time_unix_nano
    facts = {one.key: one.value for one in first.attributes}
    assert facts["refold.generation"].string_value == rebuild.generation
    assert facts["refold.outcome"].string_value == "completed"
    compared = {one.key: one.value.int_value for one in within[2].attributes}
    assert rebuild.report is not None
    assert compared["refold.changed"] == rebuild.report.changed > 0
    assert second.status.code == Status.STATUS_CODE_ERROR
    assert second.trace_id != first.trace_id
    assert {
        one.value.string_value for told_ in told.told for one in told_.resource.attributes if one.key == "service.name"
    } == {"refold"}


def test_a_collector_that_does_not_answer_holds_nobody_up(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    with fleet(kit, variables={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) as workers:
        one = workers.start("a")
        workers.ready(one)
        assert one.ask("POST", "/v1/projections/tally/rebuild", {"policy": "none"})[0] == 200
        soon("the switch", lambda: workers.record().active == "tally.v1-2")
        assert one.terminate(within_s=15) == 0, one.output()
