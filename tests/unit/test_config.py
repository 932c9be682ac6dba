"""Settings: from arguments, then the environment; everything wrong is said at once; secrets stay secret."""

from __future__ import annotations

import gc
import json
import re
from typing import Any

import pytest

from streams.cluster import Cluster
from streams.config import OURS, FoldSettings, KafkaSettings
from streams.data.collector import rare_collections
from streams.errors import ConfigError
from streams.resolving import load


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFOLD_BOOTSTRAP_SERVERS", "env:1")
    monkeypatch.setenv("REFOLD_KAFKA", '{"security.protocol":"SASL_SSL"}')
    assert load(KafkaSettings).bootstrap_servers == "env:1"
    settings = load(KafkaSettings, bootstrap_servers="argument:2")
    assert settings.client(**{"group.id": "g"}) == {
        "reconnect.backoff.max.ms": 1000,
        "group.id": "g",
        "security.protocol": "SASL_SSL",
        "bootstrap.servers": "argument:2",
    }


def test_everything_wrong_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFOLD_CHECKPOINT_SECONDS", "-1")
    with pytest.raises(ConfigError) as raised:
        load(FoldSettings, cache_bytes=1, checkpoint_events=0)
    for name in ("cache_bytes", "checkpoint_events", "REFOLD_CHECKPOINT_SECONDS"):
        assert name in str(raised.value)


def test_client_settings_may_hold_secrets_and_are_not_shown() -> None:
    settings = load(KafkaSettings, kafka={"sasl.password": "canary"})
    assert "canary" not in repr(settings)


def test_secret_in_a_wrong_setting_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFOLD_KAFKA", '{"sasl.password": ["canary"]}')
    with pytest.raises(ConfigError) as raised:
        load(KafkaSettings)
    assert "canary" not in str(raised.value)


def test_client_settings_that_are_not_json_are_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFOLD_KAFKA", "canary")
    with pytest.raises(ConfigError, match="REFOLD_KAFKA: it is not a JSON object") as raised:
        load(KafkaSettings)
    assert "canary" not in str(raised.value)


def test_collector_is_as_before_after_the_last_fold() -> None:
    before = gc.get_threshold()
    with rare_collections():
        with rare_collections():
            assert gc.get_threshold()[0] == 50_000
        assert gc.get_threshold()[0] == 50_000
    assert gc.get_threshold() == before


@pytest.mark.parametrize("key", sorted(OURS))
def test_settings_that_the_guarantees_rest_on_are_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("REFOLD_KAFKA", json.dumps({key: "canary", "sasl.username": "u"}))
    with pytest.raises(ConfigError, match=re.escape(key)) as raised:
        load(KafkaSettings)
    assert "canary" not in str(raised.value)


def test_all_settings_that_are_not_the_users_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFOLD_KAFKA", '{"isolation.level": "read_uncommitted", "enable.auto.commit": true}')
    with pytest.raises(ConfigError, match=r"isolation\.level.*enable\.auto\.commit"):
        load(KafkaSettings)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"no.such.key": 1, "another": 2}, "no.such.key.*another"),
        ({"fetch.min.bytes": "canary"}, "fetch.min.bytes"),
        ({"security.protocol": "canary"}, "security.protocol"),
    ],
)
def test_settings_that_librdkafka_does_not_take_are_one_clear_error(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Cluster(load(KafkaSettings, kafka=settings))


def test_client_settings_are_judged_together_and_those_that_are_wrong_are_all_named() -> None:
    """A protocol without its mechanism is too little for a client, and is not wrong."""
    login: dict[str, Any] = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "ann", "sasl.password": "canary"}
    Cluster(load(KafkaSettings, kafka={"security.protocol": "SASL_SSL", **login}))
    with pytest.raises(ConfigError) as raised:
        Cluster(
            load(
                KafkaSettings, kafka={"security.protocol": "SASL_SSL", **login, "nonsense": 1, "socket.timeout.ms": -5}
            )
        )
    assert '"nonsense"' in str(raised.value)
    assert '"socket.timeout.ms" value -5 is outside allowed range' in str(raised.value)
    assert "canary" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"sasl.username and sasl.password must be set"):
        Cluster(load(KafkaSettings, kafka={"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}))


@pytest.mark.parametrize(
    ("rate", "rates"),
    [
        ("20000", (20_000, None)),
        ("5MB", (None, 5e6)),
        ("20_000/s, 1.5 MiB/s", (20_000, 1.5 * (1 << 20))),
        (None, (None, None)),
    ],
)
def test_a_rate_is_of_events_or_of_bytes(rate: str | None, rates: tuple[float | None, float | None]) -> None:
    assert load(FoldSettings, rate=rate).rates == rates


@pytest.mark.parametrize("rate", ["fast", "0", "-5", "5 XB", "5MB,", ""])
def test_a_rate_that_is_none_is_refused(rate: str) -> None:
    with pytest.raises(ConfigError, match=r"rate: a rate is a number of events \(20000\) or of bytes \(5MB\)"):
        load(FoldSettings, rate=rate)
