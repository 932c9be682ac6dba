"""What a cluster does not allow: each refusal names the very ACL that is missing, and adding it is the way on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from streams.broker import EmbeddedBroker
from streams.cluster import Cluster
from streams.config import KafkaSettings
from streams.errors import AccessDenied, BrokerUnavailable
from tests.integration.kit import TALLY, Kit, tally_events, until

CANARY = "c4nary-of-ann"
_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
_ACL = re.compile(r"--operation (\w+) (?:--(topic|group|transactional-id) (\S+?)`|--(cluster))")
_KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,
}
_OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Delete": AclOperation.DELETE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}


def client(user: str, password: str) -> dict[str, Any]:
    return {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": password,
    }


class Guarded:
    """A broker with an authorizer: the administrator may do everything, and ann nothing yet."""

    def __init__(self, broker: EmbeddedBroker, directory: Path) -> None:
        self.broker = broker
        self.bootstrap = broker.bootstrap_servers
        admin = client("root", "r")
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap, **admin})
        self.kit = Kit(
            self.bootstrap, "events", "tally-group", directory / "state", kafka_settings={"kafka": dict(admin)}
        )
        self.directory = directory

    def refold(self, *words: str, password: str = CANARY) -> subprocess.CompletedProcess[str]:
        """Run a command as ann; nothing that it says is her password."""
        done = subprocess.run(
            [sys.executable, "-m", "streams", "--log-level", "debug", *words],
            env=self.kit.environment(REFOLD_KAFKA=json.dumps(client("ann", password)), REFOLD_REQUEST_TIMEOUT_S="5"),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert password not in done.stdout + done.stderr
        return done

    def allow(self, operation: str, kind: str, name: str) -> None:
        """Add an ACL, as `kafka-acls.sh` does."""
        is_prefix = kind == "transactional-id" and name != "*"
        pattern = ResourcePatternType.PREFIXED if is_prefix else ResourcePatternType.LITERAL
        new = AclBinding(_KINDS[kind], name, pattern, "User:ann", "*", _OPERATIONS[operation], AclPermissionType.ALLOW)
        for added in self.admin.create_acls([new]).values():
            added.result(30)

    def allowed_step_by_step(self, *words: str) -> tuple[str, list[str]]:
        """Run a command until nothing is denied any more, each time allowing only what its message asks for.

        Returns:
            What it printed in the end, and what was asked for.
        """
        asked: list[str] = []
        while (done := self.refold(*words)).returncode == 5:
            found = re.findall(
                r"--operation (\w+) (?:--(topic|group|transactional-id) (\S+?)`|--(cluster))", done.stderr
            )
            assert found, done.stderr
            for operation, kind, name, cluster in found:
                self.allow(operation, kind or cluster, name.strip("'") or "kafka-cluster")
                asked.append(f"{operation} {kind or cluster} {name}".strip())
            # A broker takes a moment to heed one that it has taken.
            assert max(asked.count(one) for one in asked) < 5, asked
            assert len(set(asked)) < 20, asked
        assert done.returncode == 0, done.stderr
        return done.stdout, asked


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    settings = {
        "listener.security.protocol.map": "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.plaintext.plain.sasl.jaas.config": f'{_LOGIN} username="root" password="r" user_root="r" '
        f'user_ann="{CANARY}";',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:root;User:ANONYMOUS",
    }
    with EmbeddedBroker(settings=settings) as broker:
        found = Guarded(broker, tmp_path)
        found.kit.cluster.create_topic("events", 2)
        from confluent_kafka import Producer

        producer = Producer(found.kit.kafka.client())
        for key, value in tally_events(200):
            producer.produce("events", key=key, value=value)
        assert producer.flush(30) == 0
        yield found


def test_each_missing_acl_is_named_and_adding_it_is_the_way_on(guarded: Guarded) -> None:
    consumer = Consumer({"bootstrap.servers": guarded.bootstrap, "group.id": "billing", **client("root", "r")})
    consumer.commit(offsets=[TopicPartition("events", 0, 3)], asynchronous=False)
    consumer.close()
    text, asked = guarded.allowed_step_by_step("lag", "--group", "billing", "--topic", "events", "--json")
    part = next(one for one in orjson.loads(text)["groups"][0]["partitions"] if one["partition"] == 0)
    assert part["position"] == 3
    assert {"Describe group billing", "Describe topic events"} <= set(asked)
    scope = ("reset-offsets", "--group", "billing", "--topic", "events", "--to-earliest", "--execute")
    _, asked = guarded.allowed_step_by_step(*scope)
    assert "Read group billing" in asked
    rebuild = ("rebuild", TALLY, "--topic", "events", "--yes", "--state-dir", "state")
    _, asked = guarded.allowed_step_by_step(*rebuild)
    assert any(one.startswith("DescribeConfigs topic events") for one in asked)
    assert guarded.refold("count", TALLY, "--state-dir", "state").stdout.strip() == str(len(alive()))


def test_doctor_tells_of_what_is_not_allowed_before_it_is_needed(guarded: Guarded) -> None:
    for operation in ("Describe", "Read"):
        guarded.allow(operation, "topic", "events")
    (guarded.directory / "refold.toml").write_text(f'[projections.tally]\nclass = "{TALLY}"\ntopic = "events"\n')
    done = guarded.refold("doctor")
    assert done.returncode == 5, done.stdout
    assert "DescribeConfigs on topic 'events'" in done.stdout
    guarded.allow("DescribeConfigs", "topic", "events")
    done = guarded.refold("doctor")
    assert "tally: topic: events, 2 partitions, up to 200 events" in done.stdout
    letters = "refold.tally.dead-letters"
    guarded.kit.cluster.create_topic(letters, 2)
    guarded.allow("Describe", "topic", letters)
    until("it to be seen", lambda: letters in guarded.refold("doctor").stdout)
    done = guarded.refold("doctor")
    assert done.returncode == 1, done.stdout
    assert f"Read, Write on topic '{letters}'" in done.stdout


def test_wrong_password_is_denied_and_is_no_broker_that_is_away(guarded: Guarded) -> None:
    for words in (("lag", "--group", "billing"), ("doctor",), ("status",), ("list",)):
        done = guarded.refold(*words, password="wr0ng-canary")
        told = done.stderr + done.stdout
        assert "does not let refold in" in told, told
        assert done.returncode == (0 if words == ("list",) else 5), told


def test_brokers_that_go_away_are_away_also_for_one_who_was_refused(guarded: Guarded) -> None:
    settings = {**client("ann", "wr0ng"), "socket.connection.setup.timeout.ms": 1000}
    cluster = Cluster(KafkaSettings(bootstrap_servers=guarded.bootstrap, kafka=settings, request_timeout_s=3))
    with pytest.raises(AccessDenied):
        cluster.topics()
    guarded.broker.stop()
    with pytest.raises(BrokerUnavailable):
        cluster.topics()
    with pytest.raises(BrokerUnavailable):
        cluster.topic("events")


def test_password_is_in_no_plan_no_help_and_no_process_list(guarded: Guarded) -> None:
    until("the topic", lambda: guarded.kit.ends())
    for kind in ("topic", "group", "transactional-id"):
        for operation in ("Read", "Describe", *(() if kind == "group" else ("Write",))):
            guarded.allow(operation, kind, "*")
    guarded.allow("Create", "topic", "*")
    guarded.allow("DescribeConfigs", "topic", "*")
    plan = guarded.directory / "plan.json"
    done = guarded.refold("rebuild", TALLY, "--topic", "events", "--plan-out", str(plan), "--state-dir", "state")
    assert done.returncode == 0, done.stderr
    assert CANARY not in plan.read_text()
    assert guarded.refold("rebuild", "--help").returncode == 0
    run = subprocess.Popen(
        [sys.executable, "-m", "streams", "--log-level", "debug", "run", TALLY, "--topic", "events", "--workers", "2"],
        env=guarded.kit.environment(REFOLD_KAFKA=json.dumps(client("ann", CANARY))),
        cwd=guarded.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until("agents", lambda: len(children(run.pid)) >= 2)
        for pid in (run.pid, *children(run.pid)):
            assert CANARY not in Path(f"/proc/{pid}/cmdline").read_text()
    finally:
        run.terminate()
        said, _ = run.communicate(timeout=30)
    assert CANARY not in said
    assert "run.started" in said or "partitions.assigned" in said


def alive() -> set[str]:
    """The models that the events leave."""
    models: set[str] = set()
    for key, value in tally_events(200):
        kind = orjson.loads(value)["type"]
        if kind == "drop":
            models.discard(key)
        elif kind == "add":
            models.add(key)
    return models


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(one) for one in found.stdout.split()]
