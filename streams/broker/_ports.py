"""Ports on 127.0.0.1 that are free and likely to stay so."""

from __future__ import annotations

import errno
import random
import socket
import time

from streams.errors import EmbeddedBrokerError

__all__ = ["HOST", "free_ports", "is_free", "wait_free"]

HOST = "127.0.0.1"

_LOWEST, _HIGHEST = 20_000, 32_000
"""Below the range that Linux (32768 to 60999) and macOS (49152 to 65535) give to outgoing connections.

Within it, a client that keeps trying to reach a broker that is down is sooner or later given the broker's own
port, connects to itself, and the broker cannot come back.
"""


def is_free(port: int) -> bool:
    """Say whether a listener could be opened on the port now. It can be taken the next moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            if error.errno == errno.EACCES:
                raise EmbeddedBrokerError(
                    f"Port {port} on {HOST} may not be opened by this user ({error.strerror}). "
                    "Give a --port from 1024 up."
                ) from error
            raise
    return True


def free_ports(count: int) -> list[int]:
    """Choose free ports at random, so that processes choosing at the same time seldom meet.

    Raises:
        EmbeddedBrokerError: Nothing was free in 1,000 tries.
    """
    ports: list[int] = []
    for _ in range(1_000):
        port = random.randrange(_LOWEST, _HIGHEST)
        if port not in ports and is_free(port):
            ports.append(port)
            if len(ports) == count:
                return ports
    raise EmbeddedBrokerError(
        f"No {count} free ports on {HOST} between {_LOWEST} and {_HIGHEST}. Give one that is free: --port."
    )


def wait_free(port: int, *, timeout_s: float) -> bool:
    """Wait until the port is free, for at most `timeout_s`; say whether it is."""
    deadline = time.monotonic() + timeout_s
    while not is_free(port):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True
