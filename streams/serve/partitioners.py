"""Where producers are likely to have put a stream. Only a guess of where to look first: which they use is not known."""

from __future__ import annotations

import zlib

__all__ = ["likely", "murmur2"]


def likely(model_id: str, partitions: int) -> list[int]:
    """Give the partitions that Kafka's two usual producers would choose for a stream of this name (murmur2, CRC32)."""
    key = model_id.encode()
    return list(dict.fromkeys([(murmur2(key) & 0x7FFFFFFF) % partitions, zlib.crc32(key) % partitions]))


def murmur2(data: bytes) -> int:
    """Hash as Kafka's Java client does (org.apache.kafka.common.utils.Utils.murmur2)."""
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    value = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        part = int.from_bytes(data[start : start + 4], "little") * factor & mask
        part = (part ^ part >> 24) * factor & mask
        value = (value * factor & mask) ^ part
    rest = data[whole:]
    if rest:
        value = (value ^ int.from_bytes(rest, "little")) * factor & mask
    value = (value ^ value >> 13) * factor & mask
    return value ^ value >> 15
