"""What is asked while a partition has no leader is asked again, for as long as a call may take."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.calls import Calls
from streams.config import KafkaSettings
from streams.errors import BrokerUnavailable

BETWEEN_LEADERS = [KafkaError._NOENT, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION]


class _Broker:
    """Answers with the errors of these codes, then with "here"."""

    def __init__(self, codes: list[int]) -> None:
        self.codes = codes

    def ask(self) -> Future[str]:
        answer: Future[str] = Future()
        if self.codes:
            answer.set_exception(KafkaException(KafkaError(self.codes.pop(0), "No leaders found")))
        else:
            answer.set_result("here")
        return answer


@pytest.mark.parametrize("code", BETWEEN_LEADERS)
def test_a_leader_is_waited_for(code: int) -> None:
    calls = Calls(KafkaSettings(bootstrap_servers="127.0.0.1:9", request_timeout_s=5.0))
    assert calls.ask("list offsets", _Broker([code, code]).ask) == "here"


@pytest.mark.parametrize("code", BETWEEN_LEADERS)
def test_who_leads_is_asked_anew_before_and_by_another_client_where_that_did_not_help(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka's admin client believes for 15 minutes what it heard while a broker came up: that nobody leads."""
    calls = Calls(KafkaSettings(bootstrap_servers="127.0.0.1:9", request_timeout_s=0.3))
    asked = []
    monkeypatch.setattr(calls, "_refresh", lambda: asked.append(calls.admin))
    before = calls.admin
    with pytest.raises(BrokerUnavailable):
        calls.ask("list offsets", _Broker([code] * 1000).ask)
    assert asked
    assert set(asked) == {before}
    assert calls.admin is not before


@pytest.mark.parametrize("code", BETWEEN_LEADERS)
def test_a_leader_that_does_not_come_is_told_as_a_broker_that_is_away(code: int) -> None:
    calls = Calls(KafkaSettings(bootstrap_servers="127.0.0.1:9", request_timeout_s=0.3))
    with pytest.raises(BrokerUnavailable, match="No leaders found"):
        calls.ask("list offsets", _Broker([code] * 1000).ask)
