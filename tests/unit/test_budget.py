"""A worker's memory is shared out so that all processes that it may come to run have room in it."""

from __future__ import annotations

import pytest

from streams.config import FoldSettings
from streams.errors import ConfigError
from streams.memory import cache_share, process_share
from streams.resolving import load

GIB = 1 << 30


def test_whatever_runs_at_one_time_fits_into_the_limit() -> None:
    for limit, projections, agents in ((GIB, 1, 1), (2 * GIB, 2, 1), (4 * GIB, 2, 4), (16 * GIB, 5, 2)):
        share = cache_share(limit, projections, agents)
        assert share >= 4 << 20
        assert projections * 3 * agents * (share * 1.5 + (112 << 20)) + (192 << 20) <= 0.9 * limit + 1000


def test_too_little_for_so_many_processes_is_refused_with_what_would_do() -> None:
    with pytest.raises(ConfigError, match=r"512 MiB are too little for 9 agents .* Give (1[0-9]{3}) MiB") as refused:
        cache_share(512 << 20, 3, 1)
    named = int(str(refused.value).split("Give ")[1].split()[0])
    assert cache_share(named << 20, 3, 1) >= 4 << 20
    with pytest.raises(ConfigError):
        cache_share((named - 3) << 20, 3, 1)


def test_one_process_has_for_models_what_the_rest_leaves() -> None:
    share = process_share(512 << 20)
    assert 4 << 20 <= process_share(512 << 20, keeps_letters=True) < share
    keeping = FoldSettings(memory_limit_bytes=512 << 20, on_error="dead-letter")
    assert keeping.models_bytes < FoldSettings(memory_limit_bytes=512 << 20).models_bytes == share
    assert share * 1.5 + (184 << 20) <= 0.9 * (512 << 20) + 2
    assert load(FoldSettings, memory_limit_bytes=512 << 20).models_bytes == share
    assert load(FoldSettings, memory_limit_bytes=512 << 20, cache_bytes=5 << 20).models_bytes == 5 << 20
    assert load(FoldSettings).models_bytes == 256 << 20
    with pytest.raises(ConfigError, match=r"100 MiB are too little for a process that folds. Give (2[0-9]{2}) MiB"):
        process_share(100 << 20)


def test_processes_that_fill_topics_take_their_part() -> None:
    alone, beside = (cache_share(8 << 30, 2, 1, repartitioned=number) for number in (0, 1))
    assert beside < alone
    with pytest.raises(ConfigError, match="as many for the topics of 1"):
        cache_share(1 << 30, 2, 1, repartitioned=1)
