"""Models of another machine, asked for piece by piece, are compared as if they were here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import pytest

from streams.control.compare import Comparison
from streams.control.runs import Models, Run, runs_of
from streams.serve import cut_service, fleet_side
from streams.serve.cut_service import Answer, Question
from streams.serve.fleet_side import _RemoteModels


class Listed:
    """Models in a list."""

    def __init__(self, models: dict[bytes, bytes]) -> None:
        self._models = sorted(models.items())

    def runs(
        self,
        firsts: list[bytes] | None,
        check_cancelled: Callable[[], None],
        first: bytes = b"",
        end: bytes | None = None,
    ) -> Iterable[Run]:
        return runs_of(self.within(first, end), firsts, check_cancelled, first)

    def within(self, first: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return (one for one in self._models if one[0] >= first and (end is None or one[0] < end))


class Cut:
    """Another machine's cut, without the network."""

    def __init__(self, models: Models) -> None:
        self._opened = cut_service._Opened(cast(Any, None), cast(Any, None), "g")
        self._opened._models[0] = models
        self.answers: list[Answer] = []

    def ask(self, _partition: int, question: Question) -> Answer:
        self.answers.append(self._opened.answer(question))
        return self.answers[-1]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_make_the_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    at_once = chance.choice([1, 2, 3, 1000])
    monkeypatch.setattr("streams.control.runs._RUN", chance.choice([1, 2, 7, 50]))
    monkeypatch.setattr(cut_service, "RUNS_AT_ONCE", at_once)
    monkeypatch.setattr(fleet_side, "RUNS_AT_ONCE", at_once)
    monkeypatch.setattr(cut_service, "_ANSWER_BYTES", chance.choice([1, 40, 1 << 20]))
    ids = [b"%03d" % number for number in chance.sample(range(300), chance.randrange(120))]
    old = {one: b'{"n": %d}' % chance.randrange(100) for one in ids}
    new = {one: value if chance.random() > 0.05 else b'{"n": 1000}' for one, value in old.items()}
    for one in chance.sample(ids, len(ids) // 20):
        del new[one]
    new |= {b"9%03d" % number: b'{"n": 1}' for number in range(chance.randrange(5))}

    whole, pieces = (Comparison(shown=1000) for _ in range(2))
    whole.add(0, Listed(old), Listed(new))
    before, after = (Cut(Listed(models)) for models in (old, new))
    pieces.add(0, _RemoteModels(cast(Any, before), 0), _RemoteModels(cast(Any, after), 0))
    assert pieces.differences == whole.differences
    assert (pieces.models_before, pieces.models_after) == (len(old), len(new))
    for answer in before.answers + after.answers:
        assert len(answer.runs) <= at_once
