"""A worker's memory is shared out so that all processes that it may come to run have room in it."""

from __future__ import annotations

import pytest

from streams.errors import ConfigError
from streams.serve.budget import cache_share

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
