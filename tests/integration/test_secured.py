"""A fleet over a cluster that asks for TLS, and for a password or a certificate: every client of ours gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme
from confluent_kafka import Producer
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from streams.broker import EmbeddedBroker
from tests.integration.fleet import fleet, soon
from tests.integration.kit import Kit, tally_events

PASSWORD = "s3cret-of-ann"


def pkcs8(certificate: trustme.LeafCert) -> str:
    """A certificate's key as the JVM reads it."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def tls_of(authority: trustme.CA) -> dict[str, str]:
    """A broker's listener with TLS, under the name that the embedded one's has."""
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    return {
        "inter.broker.listener.name": "PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": certificate.cert_chain_pems[0].bytes().decode(),
        "ssl.keystore.key": pkcs8(certificate),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": authority.cert_pem.bytes().decode(),
    }


@pytest.fixture(params=["password", "certificate"])
def secured(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[EmbeddedBroker, Mapping[str, Any]]]:
    """A broker, and the client settings that it lets in."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    settings: dict[str, Any] = tls_of(authority)
    client: dict[str, Any] = {"ssl.ca.location": str(tmp_path / "authority.pem")}
    if request.param == "password":
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        settings |= {
            "listener.security.protocol.map": "PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.plaintext.plain.sasl.jaas.config": f'{login} username="broker" password="b" '
            f'user_broker="b" user_ann="{PASSWORD}";',
        }
        client |= {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "ann",
            "sasl.password": PASSWORD,
        }
    else:
        settings |= {
            "listener.security.protocol.map": "PLAINTEXT:SSL,CONTROLLER:PLAINTEXT",
            "ssl.client.auth": "required",
        }
        ours = authority.issue_cert("ann.test", common_name="ann")
        ours.cert_chain_pems[0].write_to_path(tmp_path / "ann.pem")
        ours.private_key_pem.write_to_path(tmp_path / "ann.key")
        client |= {
            "security.protocol": "SSL",
            "ssl.certificate.location": str(tmp_path / "ann.pem"),
            "ssl.key.location": str(tmp_path / "ann.key"),
        }
    with EmbeddedBroker(settings=settings) as broker:
        yield broker, client


def test_a_fleet_elects_folds_rebuilds_and_answers(
    secured: tuple[EmbeddedBroker, Mapping[str, Any]], tmp_path: Path
) -> None:
    broker, client = secured
    kit = Kit(broker.bootstrap_servers, "events", "tally", tmp_path / "state", kafka_settings={"kafka": dict(client)})
    kit.cluster.create_topic("events", 2)
    producer = Producer(kit.kafka.client())
    for key, value in tally_events(500):
        producer.produce("events", key=key, value=value)
    assert producer.flush(30) == 0
    with fleet(kit, variables={"REFOLD_KAFKA": json.dumps(client)}) as workers:
        started = [workers.start(name) for name in "ab"]
        workers.ready(*started)
        assert started[0].ask("POST", "/v1/projections/tally/rebuild", {}, timeout_s=40)[0] == 200
        soon("the switch, once both were compared", lambda: workers.record().active == "tally.v1-2")
        soon("both to answer alike", lambda: workers.models(started[0]) == workers.models(started[1]))
        assert workers.models(started[0])
        for one in started:
            assert one.terminate() == 0, one.output()
            assert PASSWORD not in one.output()
            for line in one.output().splitlines():
                assert orjson.loads(line)["level"] != "error", line


def test_what_the_cluster_refuses_is_said(secured: tuple[EmbeddedBroker, Mapping[str, Any]], tmp_path: Path) -> None:
    broker, _ = secured
    kit = Kit(broker.bootstrap_servers, "events", "tally", tmp_path / "state")
    with fleet(kit) as workers:
        one = workers.start("a", REFOLD_REQUEST_TIMEOUT_S="2")
        soon("it to say so", lambda: "worker.not_joined" in one.output() and "projection.not_tended" in one.output())
        assert one.get("/healthz")[0] == 200
        assert one.get("/readyz")[0] == 503
        assert one.terminate() == 0
