"""The making of a new generation by agents of this process: what is folded and filled for it, and how far that is."""

from __future__ import annotations

from streams.control.caught_up import CaughtUp
from streams.control.folding import Folding
from streams.control.record import Generation
from streams.control.repartitioning import Filling, staged
from streams.control.replay import Replay
from streams.control.showing import Finishing
from streams.control.site import Site
from streams.data.build import Build
from streams.data.job import Hold
from streams.data.runner import MakeRunner
from streams.errors import ProjectionError
from streams.types import RebuildProgress

__all__ = ["Making"]


class Making:
    """Has a generation's own topic filled, where it has one, and its events folded, each from where it is.

    All of it is to be called from one thread.

    Args:
        site: The projection.
        green: The generation, as it is now; see `know`.
        make_runner: Where its agents run.
    """

    def __init__(self, site: Site, green: Generation, make_runner: MakeRunner) -> None:
        self._site = site
        self._green = green
        self._make_runner = make_runner
        self._folding = Folding(site.ground(site.place(green)), make_runner)
        self._behind: CaughtUp | None = None
        self._is_folded = False
        self._filling: Filling | None = None
        self._finishing = Finishing()

    def know(self, green: Generation) -> None:
        """Take in what the registry says of the generation now."""
        self._green = green

    def hold(self, wish: Hold | None) -> None:
        """Have the filling be held for a moment, or go on."""
        self._folding.hold(wish)

    @property
    def build(self) -> Build:
        """What is folded into; after `fold`."""
        return self._folding.job.build

    @property
    def pids(self) -> set[int]:
        """The processes of the agents."""
        return self._folding.pids

    # What is done

    def fill(self) -> None:
        """Have the generation's own topic filled."""
        if self._filling is None:
            self._folding = Folding(self._site.ground(self._site.place(self._green)), self._make_runner)
            self._folding.fill()
            self._filling = Filling(self._site.events.cluster, self._green)

    def fold(self) -> bool:
        """Have the generation folded; say whether that has only now begun."""
        if self._is_folded:
            return False
        self._folding.start()
        self._behind = CaughtUp(self._folding.job, self.build, self._green.targets)
        self._is_folded = True
        return True

    def wait(self, timeout_s: float) -> None:
        """Look after the agents for so long.

        Raises:
            Whatever has ended them.
        """
        if self._folding.wait(timeout_s):
            self.rest()

    def rest(self) -> None:
        """Have the agents end; `fill` and `fold` go on.

        Raises:
            Whatever had ended them before.
        """
        self._is_folded, self._filling = False, None
        self._folding.close()

    # How far it is

    def filled(self) -> Replay:
        """Look at how far the generation's own topic is filled.

        Raises:
            OffsetsPending: Nobody is told just now.
            TransactionHangs, BrokerError: See `Filling.look`.
        """
        if self._filling is None:
            self._filling = Filling(self._site.events.cluster, self._green)
        return self._filling.look()

    def folded(self) -> RebuildProgress:
        """Look at how far the fold is; after `fold`.

        Raises:
            RebuildError: Somebody folds the group into another directory.
        """
        return self._staged(self._fold.observe(self._folding.status))

    def ended(self) -> RebuildProgress:
        """Close the books of the replay."""
        return self._staged(self._fold.ended(self._folding.status))

    def is_caught_up(self) -> bool:
        """Say whether the generation keeps up with the event topic, as of the last look at the fold.

        Raises:
            See `filled`.
        """
        if self._green.source is not None and not self.filled().is_caught_up():
            return False
        return self._fold.is_caught_up()

    def is_finished(self) -> bool:
        """Say whether what is folded is ready to be read; begin to make it so where it is not."""
        return self._finishing.is_done(self.build)

    def check_filling(self, filling: Replay) -> None:
        """Raise what has halted the filling in a partition.

        Raises:
            EventError, ProjectionError: The agents' own.
        """
        self._raise(filling.halted(), "The new generation's events are read no further")

    def check_fold(self) -> None:
        """Raise what has halted the fold in a partition, once the others are as far as they were to be.

        Raises:
            EventError, ProjectionError: The agents' own.
        """
        self._raise(self._fold.halted(), "The new generation is folded no further")

    def _raise(self, why: str, what: str) -> None:
        if why:
            self.rest()  # raises it, where it is an agent's of ours
            raise ProjectionError(f"{what}: {why}", projection=self._site.name)

    @property
    def _fold(self) -> CaughtUp:
        assert self._behind is not None, "`fold` comes first"
        return self._behind

    def _staged(self, progress: RebuildProgress) -> RebuildProgress:
        return progress if self._green.source is None else staged(progress, 2)
