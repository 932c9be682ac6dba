"""One pass over what all projections rest on: the cluster, the registry, the disk. Everything here only looks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from streams.cluster import Cluster
from streams.control.findings import Finding, allowed, failure, ok, tried, warning
from streams.control.record import Record
from streams.control.registry import Registry

__all__ = ["check_cluster", "check_disk", "check_registry"]

_TIGHT = 1.2
_REGISTRY_NEEDS = ("READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS")


def check_cluster(cluster: Cluster) -> Iterator[Finding]:
    """Look whether brokers answer; where they do not, nothing else can be asked of them."""
    where = cluster.settings.bootstrap_servers

    def look() -> Iterator[Finding]:
        began_s = time.perf_counter()
        found = cluster.describe_cluster()
        took_ms = (time.perf_counter() - began_s) * 1000
        count = f"{found.brokers} broker{'' if found.brokers == 1 else 's'}"
        yield ok("kafka", f"{count} of cluster {found.id} answer at {where}, in {took_ms:.0f} ms")

    yield from tried("kafka", look)


def check_registry(cluster: Cluster, registry: Registry, topic: str, records: dict[str, Record]) -> Iterator[Finding]:
    """Look at the registry; what is in it is put into `records`."""

    def look() -> Iterator[Finding]:
        counts = cluster.topics()
        if topic not in counts:
            yield warning(
                "registry",
                f"there is no topic {topic!r}",
                "The first `refold run` or worker makes it; if there were some, --registry names another one.",
            )
            return
        policy = cluster.topic_config(topic).get("cleanup.policy", "")
        if policy != "compact" or counts[topic] != 1:
            yield failure(
                "registry",
                f"topic {topic!r} has cleanup.policy={policy} and {counts[topic]} partitions",
                f"It needs compact and one: `kafka-configs.sh --alter --topic {topic} --add-config "
                "cleanup.policy=compact`, or --registry names another one.",
            )
        records.update(registry.all())
        yield ok("registry", f"topic {topic!r} knows {len(records)} projections")
        yield from allowed("registry", cluster.topic_operations(topic), _REGISTRY_NEEDS, f"topic {topic!r}")

    yield from tried("registry", look)


def check_disk(state_dir: Path, records: Mapping[str, Record]) -> Iterator[Finding]:
    """Look whether there is room for the models that a rebuild makes beside those that there are."""
    if not state_dir.exists():
        yield ok("disk", f"no state on this machine ({state_dir.absolute()})")
        return
    free = shutil.disk_usage(state_dir).free
    largest, whose = 0, ""
    known = set()
    for record in records.values():
        for one in record.generations:
            known.add(one.directory)
            size = sum(path.stat().st_size for path in (state_dir / one.directory).rglob("*") if path.is_file())
            if size > largest:
                largest, whose = size, one.id
    told = f"{free:,} bytes are free for {state_dir.absolute()}"
    if largest * _TIGHT > free:
        yield warning("disk", f"{told}, and {whose} takes {largest:,}", "A rebuild needs as much again: add some.")
    else:
        yield ok("disk", f"{told}; the largest generation takes {largest:,}")
    strange = sorted(path.name for path in state_dir.iterdir() if path.is_dir() and path.name not in known)
    strange = [name for name in strange if (state_dir / name / "current.json").exists()]
    if strange and records:
        yield warning(
            "disk",
            f"{', '.join(strange)} in {state_dir.absolute()} is of no generation that the registry knows",
            "It may be of another registry (--registry); if not, it can be removed.",
        )
