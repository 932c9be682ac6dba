"""A client that asks a fleet all the time, and the check that each answer was true."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from confluent_kafka import Message

from projections.contract import CqrsProjection
from tests.integration.fleet import Fleet
from tests.support import as_json, folded


class Answer(NamedTuple):
    generation: str
    partition: int
    position: int
    id: str
    model: Any
    asked: str
    """Whom, by log file."""
    time: float


class Asking:
    """Asks any of the workers for any of the ids, from a thread; use it in `with`."""

    def __init__(self, fleet: Fleet, ids: list[str], every_s: float = 0.02) -> None:
        self._fleet = fleet
        self._ids = ids
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._random = random.Random(11)
        self.answers: list[Answer] = []
        self.others: Counter[Any] = Counter()
        """What came in place of a model: a problem's type, or that nobody answered."""
        self.wrong: list[Any] = []

    def _run(self) -> None:
        name = self._fleet.projection_object.name
        while not self._stopped.wait(self._every_s):
            up = [one for one in self._fleet.workers if one.process.poll() is None]
            worker, model_id = self._random.choice(up), self._random.choice(self._ids)
            try:
                status, found = worker.get(f"/v1/projections/{name}/models/{model_id}", timeout_s=5)
            except (OSError, http.client.HTTPException) as error:
                self.others[type(error).__name__] += 1
                continue
            if status == 200:
                generation, partition, position = (found[key] for key in ("generation", "partition", "position"))
                by, at = worker.log.name, time.time()
                self.answers.append(Answer(generation, partition, position, found["id"], found["model"], by, at))
            elif status in (404, 503):
                self.others[found["type"]] += 1
            else:
                self.wrong.append(found)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def check(self, log: Mapping[int, list[Message]], code: Mapping[str, CqrsProjection[Any]]) -> None:
        """Fold the log up to where each answer was, by the code of its generation, and compare.

        Args:
            log: By partition.
            code: By generation's id.
        """
        assert not self.wrong, self.wrong[:3]
        asked: dict[tuple[str, int, int], list[Answer]] = defaultdict(list)
        for one in self.answers:
            asked[one[:3]].append(one)
        untrue = []
        for (generation, partition, position), answers in asked.items():
            wanted = {one.id for one in answers}
            before = [
                record
                for record in log[partition]
                if record.offset() < position and (record.key() or b"").decode() in wanted
            ]
            models = as_json(folded(before, code[generation]), code[generation])
            untrue += [one for one in answers if models.get(one.id) != one.model]
        assert not untrue, (len(untrue), len(self.answers), untrue[:3])
