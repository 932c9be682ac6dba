"""Writing commands to their topic."""

from __future__ import annotations

import threading

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streams.calls import QUIET, broker_error
from streams.config import KafkaSettings
from streams.denied import Need
from streams.errors import BrokerUnavailable

__all__ = ["Producing"]


class Producing:
    """Sends records to one topic, and waits for Kafka to have them. Any thread may.

    Args:
        kafka: The cluster.
        topic: The topic.
    """

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self._kafka = kafka
        self._topic = topic
        self._doing = f"write to topic {topic!r}"
        self._needs = (Need("Write", "topic", topic),)
        self._guard = threading.Lock()
        self._producer: Producer | None = None

    def send(self, key: bytes, value: bytes) -> None:
        """Send one record.

        Raises:
            BrokerUnavailable, BrokerError: It is not known whether Kafka has it.
        """
        answers: list[KafkaError | None] = []

        def told(error: KafkaError | None, _message: Message) -> None:
            answers.append(error)

        with self._guard:
            if self._producer is None:
                self._producer = Producer(
                    self._kafka.client(
                        **{
                            "enable.idempotence": True,
                            "delivery.timeout.ms": int(self._kafka.request_timeout_s * 1000),
                            "linger.ms": 0,
                            "log_level": QUIET,
                        }
                    )
                )
            try:
                self._producer.produce(self._topic, key=key, value=value, on_delivery=told)
                self._producer.flush(self._kafka.request_timeout_s)
            except KafkaException as error:
                raise broker_error(error.args[0], self._doing, self._kafka, self._needs) from error
        if not answers:
            raise BrokerUnavailable(f"Topic {self._topic!r} did not take a command in time. Try again.")
        if answers[0] is not None:
            raise broker_error(answers[0], self._doing, self._kafka, self._needs)
