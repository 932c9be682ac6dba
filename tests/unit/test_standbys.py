"""Who stands by for which partition: each worker finds it out by itself, and all come to the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from streams.serve.standbys import chosen

WORKERS = some.sets(some.sampled_from([f"worker-{number}:8080" for number in range(8)]), min_size=1)


@given(WORKERS, some.integers(0, 4), some.data())
def test_each_partition_has_as_many_as_there_can_be_and_its_owner_is_none_of_them(
    workers: set[str], standbys: int, data: some.DataObject
) -> None:
    owners = {number: data.draw(some.sampled_from(sorted(workers))) for number in range(12)}
    found = {worker: chosen(worker, owners, workers, 12, standbys) for worker in workers}
    for number, owner in owners.items():
        stand_by = [worker for worker in workers if number in found[worker]]
        assert len(stand_by) == min(standbys, len(workers) - 1)
        assert owner not in stand_by


@given(WORKERS, some.data())
def test_where_one_goes_only_what_it_had_is_moved(workers: set[str], data: some.DataObject) -> None:
    gone = data.draw(some.sampled_from(sorted(workers)))
    rest = workers - {gone}
    owners = {number: data.draw(some.sampled_from(sorted(rest))) for number in range(12)} if rest else {}
    for worker in rest:
        before, after = (chosen(worker, owners, some_, 12, 1) for some_ in (workers, rest))
        assert before <= after
        assert after - before <= chosen(gone, owners, workers, 12, 1)
