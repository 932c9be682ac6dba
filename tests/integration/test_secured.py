"""A fleet over a cluster that asks for TLS, and for a password or a certificate: every client of ours gives them."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs

import orjson
import pytest
import trustme
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
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


_SECURITY = "org.apache.kafka.common.security"
_BROKERS_TOKEN = 'required unsecuredLoginStringClaim_sub="broker";'
SASL = {
    "listener.security.protocol.map": "PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512,OAUTHBEARER",
    "sasl.mechanism.inter.broker.protocol": "PLAIN",
    "listener.name.plaintext.plain.sasl.jaas.config": f"{_SECURITY}.plain.PlainLoginModule required "
    f'username="broker" password="b" user_broker="b" user_ann="{PASSWORD}";',
    "listener.name.plaintext.scram-sha-512.sasl.jaas.config": f"{_SECURITY}.scram.ScramLoginModule required;",
    # It takes tokens without a signature: what is tested is that they are shown.
    "listener.name.plaintext.oauthbearer.sasl.jaas.config": f"{_SECURITY}.oauthbearer.OAuthBearerLoginModule "
    f"{_BROKERS_TOKEN}",
}
MECHANISMS: dict[str, dict[str, Any]] = {
    "password": {"sasl.mechanism": "PLAIN", "sasl.username": "ann", "sasl.password": PASSWORD},
    "scram": {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "eve", "sasl.password": PASSWORD},
    "token": {
        "sasl.mechanism": "OAUTHBEARER",
        "enable.sasl.oauthbearer.unsecure.jwt": "true",
        "sasl.oauthbearer.config": "principal=ann",
    },
    "provider": {
        "sasl.mechanism": "OAUTHBEARER",
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.client.id": "ann",
        "sasl.oauthbearer.client.secret": PASSWORD,
        "sasl.oauthbearer.scope": "kafka",
    },
}


class Provider(BaseHTTPRequestHandler):
    """An OpenID provider's token endpoint, as far as its clients can see."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        login = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        is_known = login == f"ann:{PASSWORD}" and form["grant_type"] == ["client_credentials"]
        self.asked.append(f"{form.get('scope')} {is_known}")
        self.send_response(200 if is_known else 401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        now_s = int(time.time())
        claims = {"sub": "ann", "iat": now_s, "exp": now_s + 300, "scope": "kafka"}
        parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in ({"alg": "none"}, claims)]
        token = b".".join([*parts, b""]).decode()
        self.wfile.write(json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": 300}).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def provider() -> Iterator[str]:
    """Run one; give its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/token"
        server.shutdown()


def add_scram_user(broker: EmbeddedBroker, client: Mapping[str, Any]) -> None:
    """Have the broker know eve, by a user that it knows already."""
    known = {**client, **MECHANISMS["password"], "bootstrap.servers": broker.bootstrap_servers}
    new = UserScramCredentialUpsertion(
        "eve", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), PASSWORD.encode()
    )
    admin = AdminClient(known)  # must outlive its futures
    for added in admin.alter_user_scram_credentials([new]).values():
        added.result(30)


@pytest.fixture(params=[*MECHANISMS, "certificate"])
def secured(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[EmbeddedBroker, Mapping[str, Any]]]:
    """A broker, and the client settings that it lets in."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    settings: dict[str, Any] = tls_of(authority)
    client: dict[str, Any] = {"ssl.ca.location": str(tmp_path / "authority.pem")}
    if request.param in MECHANISMS:
        settings |= SASL
        client |= {"security.protocol": "SASL_SSL", **MECHANISMS[request.param]}
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
    with EmbeddedBroker(settings=settings) as broker, provider() as url:
        if request.param == "scram":
            add_scram_user(broker, client)
        if request.param == "provider":
            client["sasl.oauthbearer.token.endpoint.url"] = url
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
            for pid in (one.process.pid, *one.agents()):
                assert PASSWORD not in Path(f"/proc/{pid}/cmdline").read_text()
            for path in ("/status", "/metrics", "/readyz"):
                assert PASSWORD not in str(one.get(path)[1])
            assert one.terminate() == 0, one.output()
            assert PASSWORD not in one.output()
            for line in one.output().splitlines():
                if line.startswith("{"):  # librdkafka has lines of its own, and other libraries have a "logger"
                    assert orjson.loads(line)["level"] != "error" or "logger" in orjson.loads(line), line


@pytest.mark.parametrize("secured", ["password", "certificate"], indirect=True)
def test_what_the_cluster_refuses_is_said(secured: tuple[EmbeddedBroker, Mapping[str, Any]], tmp_path: Path) -> None:
    broker, _ = secured
    kit = Kit(broker.bootstrap_servers, "events", "tally", tmp_path / "state")
    with fleet(kit) as workers:
        one = workers.start("a", REFOLD_REQUEST_TIMEOUT_S="2")
        soon("it to say so", lambda: "worker.not_joined" in one.output() and "projection.not_tended" in one.output())
        assert one.get("/healthz")[0] == 200
        assert one.get("/readyz")[0] == 503
        assert one.terminate() == 0
