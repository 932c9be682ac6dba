"""Who may ask a worker what: tokens, certificates, and ports of their own."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.integration.fleet import fleet, soon
from tests.integration.kit import Kit, produce, tally_events

NewKit = Callable[..., Kit]


def test_commands_and_reading_need_their_tokens_which_may_change_meanwhile(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    admins, readers = tmp_path / "admins", tmp_path / "readers"
    admins.write_text("# who may\nann s3cret\n")
    readers.write_text("r3ader\n")
    with fleet(kit) as workers:
        one = workers.start("a", "--admin-tokens", str(admins), "--read-tokens", str(readers))
        workers.ready(one)

        def get(token: str | None) -> int:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return one.ask("GET", "/v1/projections/tally/models/stream-1", headers=headers)[0]

        def post(token: str | None) -> int:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return one.ask("POST", "/v1/projections/tally/pause", headers=headers)[0]

        assert (get(None), get("wrong"), get("r3ader")) == (401, 403, 200)
        assert (post(None), post("r3ader"), post("s3cret")) == (401, 403, 409)  # none to pause
        assert (
            one.ask("POST", "/v1/projections/tally/pause", {"x": "y" * 70_000}, {"Authorization": "Bearer s3cret"})[0]
            == 413
        )
        admins.write_text("bob n3w\n")
        assert (post("s3cret"), post("n3w")) == (403, 409)
        assert '"by": "ann"' in one.output()
        assert "s3cret" not in one.output()
        open_to_all = workers.start("b", "--http-host", "0.0.0.0")
        soon("it to listen", lambda: "worker.listens" in open_to_all.output())
        status, _, problem = open_to_all.ask("POST", "/v1/projections/tally/rebuild")
        assert (status, problem["type"]) == (403, "urn:refold:forbidden")


def test_two_projections_are_not_given_one_group(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    with fleet(kit) as workers:
        one = workers.start("a", projections="tests.support:Tally,order-summary")
        assert one.process.wait(30) == 2
        assert "tally and order-summary are given one group" in one.output()


def context_of(authority: trustme.CA, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


def write(certificate: trustme.LeafCert, path: Path) -> None:
    certificate.cert_chain_pems[0].write_to_path(path)
    certificate.private_key_pem.write_to_path(path.with_suffix(".key"))


def shown(port: int) -> bytes:
    """The certificate that a port shows."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw) as secured:
        found = secured.getpeercert(binary_form=True)
        assert found is not None
        return found


def test_certificates_let_readers_and_admins_in_and_workers_to_each_other(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    authority, another = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    write(authority.issue_cert("127.0.0.1"), tmp_path / "worker.pem")
    ann, rob = (
        context_of(authority, authority.issue_cert(f"{name}.test", common_name=name)) for name in ("ann", "rob")
    )
    nobody, eve = context_of(authority), context_of(authority, another.issue_cert("ann.test", common_name="ann"))
    options = ["--tls-certificate", str(tmp_path / "worker.pem"), "--tls-key", str(tmp_path / "worker.key")]
    options += ["--tls-authority", str(tmp_path / "authority.pem"), "--read-certificates", "true"]
    options += ["--admin-names", "ann, other", "--admin-port", "0"]
    with fleet(kit, context=rob) as workers:
        started = [workers.start(name, *options) for name in "ab"]
        workers.ready(*started)
        soon("both to fold", lambda: len(set(workers.owners("tally.v1").values())) == 2)
        workers.ready(*started)
        one, other = started
        assert workers.models(one) == workers.models(other) == workers.expected(), "each asks the other for its share"
        for model_id in ("stream-1", "stream-2", "stream-3", "stream-5"):
            assert one.get(f"/v1/projections/tally/models/{model_id}")[0] == 200
        path = "/v1/projections/tally/models/stream-1"
        assert one.ask("GET", path, context=nobody)[0] == 401
        assert one.ask("GET", "/healthz", context=nobody)[0] == 200, "probes show nothing"
        with pytest.raises((ssl.SSLError, http.client.RemoteDisconnected, ConnectionError)):  # however TLS 1.3 ends it
            one.ask("GET", path, context=eve)

        rebuild = "/v1/projections/tally/rebuild"
        (line,) = [line for line in one.output().splitlines() if "worker.takes_commands" in line]
        port = int(line.rpartition('"port": ')[2].split(",")[0].rstrip("}"))
        assert one.ask("POST", rebuild, {}, context=ann)[0] == 404, "not at the port where models are read"
        assert one.ask("POST", rebuild, {}, port=port, context=nobody)[0] == 401
        status, _, problem = one.ask("POST", rebuild, {}, port=port, context=rob)
        assert (status, problem["type"]) == (403, "urn:refold:forbidden")
        assert one.ask("GET", path, port=port, context=rob)[0] == 404
        assert one.ask("POST", rebuild, {}, port=port, context=ann)[0] == 200
        assert '"by": "ann"' in one.output()
        soon("the switch, once both workers' models were compared", lambda: workers.record().active == "tally.v1-2")
        rebuilt = workers.record().rebuild
        assert rebuilt is not None
        assert rebuilt.report is not None
        assert rebuilt.report.is_identical

        before = shown(one.port)
        assert shown(port) == before
        write(authority.issue_cert("127.0.0.1"), tmp_path / "worker.pem")
        soon("the new one to be shown", lambda: shown(one.port) != before, deadline_s=5)
        soon("workers to talk on", lambda: workers.models(one) == workers.models(other))
        assert [worker.terminate() for worker in started] == [0, 0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--tls-certificate", "missing.pem"], "TLS needs a certificate and its key"),
        (["--tls-certificate", "missing.pem", "--tls-key", "missing.key"], "cannot be read"),
        (["--admin-names", "ann"], "name the authority that signs them"),
    ],
)
def test_certificates_that_cannot_be_used_are_told_before_anything_begins(
    new_kit: NewKit, options: list[str], why: str
) -> None:
    kit = new_kit(partitions=1)
    with fleet(kit) as workers:
        one = workers.start("a", *options)
        assert one.process.wait(30) == 2
        assert why in one.output()
