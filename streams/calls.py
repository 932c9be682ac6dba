"""Calls to Kafka: with a deadline, again where a leader is moving, and with what went wrong as an error of ours."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streams.config import KafkaSettings
from streams.denied import Need, denial, is_denial
from streams.errors import BrokerError, BrokerUnavailable, ConfigError, CqrsError

__all__ = ["MISSING", "QUIET", "Calls", "broker_error", "check_client_settings"]

QUIET = 2
"""librdkafka's own log lines only where critical: what it reports reaches us as errors, and is told in context."""

MISSING = object()
"""The answer that there is no such thing."""
_KEPT = 4
_TOO_LITTLE = "Failed to create consumer"
_ASK_AGAIN_S = 0.1
_TRUSTED_S = 30.0
_CLOSE_S = 60.0
"""Longer than any call takes."""
_ASK_WHY_S = 2.0
"""Longer than a client waits between two attempts to connect."""
_SILENT = {KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN}
_MOVING = {
    KafkaError._NOENT,  # "No leaders found", as librdkafka says between two leaders
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}
_STALE = {
    KafkaError._NOENT,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.NOT_LEADER_FOR_PARTITION,
}
"""What is said to a client that knows an older leader, or knows that there is none. librdkafka does not always ask for
the new one then: that there is none, it believes until its metadata is 15 minutes old (metadata.max.age.ms)."""
_AWAY = {
    *_MOVING,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError._TIMED_OUT_QUEUE,
}


def broker_error(error: KafkaError, doing: str, settings: KafkaSettings, needs: Iterable[Need] = ()) -> CqrsError:
    """Turn Kafka's error into one of ours.

    Args:
        error: What librdkafka or the broker said.
        doing: What was tried, to follow "could not".
        settings: Where it was tried.
        needs: The ACLs that it rests on.
    """
    if is_denial(error):
        return denial(error, doing, settings, needs)
    if error.code() == KafkaError._FATAL and "group.instance.id" in error.str():  # as which librdkafka passes it on
        return BrokerError(
            "Another process has joined a group as the same member (group.instance.id), so this one could not "
            f"{doing}. Each worker needs a name of its own (--worker-name or REFOLD_WORKER_NAME)."
        )
    if error.code() in _AWAY:
        return BrokerUnavailable(
            f"No Kafka broker at {settings.bootstrap_servers} answered within {settings.request_timeout_s:g} s "
            f"({error.str()}), so refold could not {doing}. Check the address (--bootstrap-servers or "
            "REFOLD_BOOTSTRAP_SERVERS) and that the broker runs; `refold broker` starts one here."
        )
    return BrokerError(f"Kafka at {settings.bootstrap_servers} would not {doing}: {error.name()}: {error.str()}")


def _close(consumer: Consumer) -> None:
    """Close one that nobody gets any more, once whoever still asks it has been answered; that may take seconds."""
    time.sleep(_CLOSE_S)
    consumer.close()


def check_client_settings(settings: KafkaSettings) -> None:
    """Make sure that librdkafka takes the user's own settings.

    Raises:
        ConfigError: It does not; all that it would not take are named, and no value is shown.
    """
    whole = _refusal(settings.client()) if settings.kafka else None
    if whole is None:
        return
    alone = [why for key in settings.kafka if (why := _refusal({key: settings.kafka[key]}))]
    # One that is fine may be too little for a client: SASL without a password.
    wrong = [why for why in alone if not why.startswith(_TOO_LITTLE)] or [whole]
    raise ConfigError(f"Settings are wrong: REFOLD_KAFKA: {'; '.join(wrong)}. Its keys are librdkafka's.")


def _refusal(config: dict[str, Any]) -> str | None:
    try:
        Consumer({**config, "group.id": "unused", "log_level": QUIET}).close()
    except KafkaException as error:
        return str(error.args[0].str())
    except (TypeError, ValueError) as error:
        return str(error)
    return None


class _Admins:
    """The admin client, and a new one where it no longer answers.

    After a broker's restart, librdkafka's DescribeConsumerGroups times out for ever on a client that had asked before
    (2.16); a new client is answered at once.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._refusal: KafkaError | None = None
        # The futures of a client that is gone never complete, and other threads may wait for some.
        self._kept: deque[AdminClient] = deque([self._new()], maxlen=_KEPT)

    @property
    def newest(self) -> AdminClient:
        """The one to ask."""
        return self._kept[-1]

    def renew(self) -> None:
        """Ask a new one from now on."""
        self._kept.append(self._new())

    def refusal(self) -> KafkaError | None:
        """Say why no broker has let us in, where that is why none answered; None where it is not.

        librdkafka tells it beside the calls, which only time out. Only what is told now counts: one who was refused
        once may have been let in since, and the brokers be away.
        """
        if str(self._settings.kafka.get("security.protocol", "plaintext")).lower() == "plaintext":
            return None  # everybody is let in
        asked = self.newest
        asked.poll(0)
        self._refusal = None
        with contextlib.suppress(KafkaException):
            asked.list_topics(timeout=_ASK_WHY_S)
            return None
        asked.poll(0)
        return self._refusal

    def _note(self, error: KafkaError) -> None:
        if is_denial(error):
            self._refusal = error

    def _new(self) -> AdminClient:
        return AdminClient(self._settings.client(log_level=QUIET, error_cb=self._note))


class Calls:
    """A cluster's clients, and how they are asked. Every call blocks for at most `timeout_s`.

    Args:
        settings: Where the cluster is.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self.timeout_s = settings.request_timeout_s
        self._admins = _Admins(settings)
        self._outsiders: dict[str, tuple[Consumer, float]] = {}
        """By group, and since when."""
        self._guard = threading.Lock()

    def within(self, timeout_s: float) -> Calls:
        """Give the same clients, whose calls take at most so many seconds."""
        hurried = copy.copy(self)
        hurried.timeout_s = min(timeout_s, self.timeout_s)
        return hurried

    @property
    def admin(self) -> AdminClient:
        """The client to ask."""
        return self._admins.newest

    def outside(
        self,
        group: str,
        doing: str,
        call: Callable[[Consumer], Any],
        instead: Mapping[int, Any] | None = None,
        *,
        needs: Iterable[Need] = (),
    ) -> Any:
        """Call a consumer that knows the group and is no member of it.

        It is kept, for it knows the group's broker; but not where that has not answered: another one looks for it anew.
        """
        with self._guard:
            if group not in self._outsiders:
                made = Consumer(
                    self.settings.client(log_level=QUIET, **{"group.id": group, "enable.auto.commit": False})
                )
                self._outsiders[group] = made, time.monotonic()
            consumer = self._outsiders[group][0]

        def called() -> Any:
            try:
                return call(consumer)
            except KafkaException as failure:
                if failure.args[0].code() == KafkaError._TIMED_OUT:
                    self._give_up(group, consumer)
                    # That it may not ask who coordinates the group, librdkafka tells beside the call, which waits on.
                    told = consumer.poll(0)
                    if told is not None and told.error() is not None and is_denial(told.error()):
                        raise KafkaException(told.error()) from failure
                raise

        return self.again(doing, called, instead, needs=needs)

    def _give_up(self, group: str, consumer: Consumer) -> None:
        """Ask another one from now on; while brokers are away, that is no better than this one for a while."""
        with self._guard:
            kept, since_s = self._outsiders.get(group, (None, 0.0))
            if kept is consumer and time.monotonic() - since_s > _TRUSTED_S:
                del self._outsiders[group]
                threading.Thread(target=_close, args=[consumer], name="refold-closing", daemon=True).start()

    def ask(
        self,
        doing: str,
        ask: Callable[[], Future[Any]],
        instead: Mapping[int, Any] | None = None,
        *,
        needs: Iterable[Need] = (),
    ) -> Any:
        """Ask the admin interface; see `again`."""
        return self.again(doing, lambda: ask().result(self.timeout_s + 1), instead, needs=needs)

    def again(
        self,
        doing: str,
        call: Callable[[], Any],
        instead: Mapping[int, Any] | None = None,
        *,
        needs: Iterable[Need] = (),
    ) -> Any:
        """Call until there is an answer, at most for `request_timeout_s`: a leader may be moving meanwhile.

        Args:
            doing: What for, to follow "could not".
            call: Calls once.
            instead: Error codes that are an answer, and what they answer.
            needs: The ACLs that it rests on, for the message where one is missing.
        """
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                return call()
            except TimeoutError:
                self._check_let_in(doing)
                self._admins.renew()
                raise BrokerUnavailable(
                    f"Kafka at {self.settings.bootstrap_servers} gave no answer within {self.timeout_s:g} s, so "
                    f"refold could not {doing}."
                ) from None
            except KafkaException as failure:
                error: KafkaError = failure.args[0]
                if instead is not None and error.code() in instead:
                    return instead[error.code()]
                if error.code() in _SILENT:
                    self._check_let_in(doing)
                is_over = error.code() not in _MOVING or time.monotonic() > deadline
                if error.code() == KafkaError._TIMED_OUT or (is_over and error.code() in _STALE):
                    self._admins.renew()
                if is_over:
                    raise broker_error(error, doing, self.settings, needs) from failure
                if error.code() in _STALE:
                    self._refresh()
                time.sleep(_ASK_AGAIN_S)

    def _check_let_in(self, doing: str) -> None:
        """Make sure that what is silent is not a broker that does not let us in.

        Raises:
            AccessDenied: It is.
        """
        refusal = self._admins.refusal()
        if refusal is not None:
            raise denial(refusal, doing, self.settings)

    def _refresh(self) -> None:
        with contextlib.suppress(KafkaException):  # the next try says more
            self.admin.list_topics(timeout=min(1.0, self.timeout_s))
