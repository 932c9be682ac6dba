"""The commands on generations: switch, rollback, retire, verify, pause, resume, cancel."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, PositiveInt
from rich.console import Console

from streams.cli.beside import drive, print_end
from streams.cli.output import document, printer, shown
from streams.cli.report import print_report, report_json
from streams.cli.wiring import Flag, FoldOptions, ProjectionName
from streams.errors import ModelsDiffer

__all__ = ["cancel", "pause", "resume", "retire", "rollback", "switch", "verify"]

GenerationName = Annotated[str | None, Parameter(help="Its id, as `refold status` tells it.")]


def _console() -> Console:
    return Console(stderr=True, highlight=False, markup=False)


def switch(
    projection: ProjectionName,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    workers: PositiveInt = 1,
    json: Flag = False,
) -> None:
    """Approve a rebuild that waits for it: the new generation becomes the one that is read.

    Where nobody drives the rebuild any more, the new generation is folded to where the old one is first. The switch
    itself is one record: whoever reads, sees the old models or the new ones.

    Example: refold switch aircraft-log --topic flights

    Args:
        projection: Which one.
        options: Topic, state and codec.
        workers: How many processes fold until then.
        json: Print the registry's record as one JSON object.
    """
    wired, console = options.wire(projection, known=True, coded=False), _console()
    generations = wired.generations()
    drive(
        console,
        wired,
        generations,
        lambda reporters: generations.switch(workers=workers, reporters=reporters),
        json=json,
    )


def resume(
    projection: ProjectionName,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    workers: PositiveInt = 1,
    json: Flag = False,
) -> None:
    """Go on with a rebuild beside the live generation that was paused, or whose process is gone.

    Example: refold resume aircraft-log --topic flights

    Args:
        projection: Which one.
        options: Topic, state and codec.
        workers: How many processes replay, sharing the topic's partitions.
        json: Print the registry's record as one JSON object.
    """
    wired, console = options.wire(projection, known=True, coded=False), _console()
    generations = wired.generations()
    drive(
        console,
        wired,
        generations,
        lambda reporters: generations.resume(workers=workers, reporters=reporters),
        json=json,
    )


def pause(
    projection: ProjectionName,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    json: Flag = False,
) -> None:
    """Have a rebuild beside the live generation wait, whoever drives it; `refold resume` goes on with it.

    Example: refold pause aircraft-log

    Args:
        projection: Which one.
        options: Where it is.
        json: Print the registry's record as one JSON object.
    """
    print_end(options.wire(projection, known=True, coded=False).generations().pause(), projection, json=json)


def cancel(
    projection: ProjectionName,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    json: Flag = False,
) -> None:
    """Give a rebuild beside the live generation up: nothing is left of it, and readers see no change.

    Example: refold cancel aircraft-log

    Args:
        projection: Which one.
        options: Where it is.
        json: Print the registry's record as one JSON object.
    """
    print_end(options.wire(projection, known=True, coded=False).generations().cancel(), projection, json=json)


def rollback(
    projection: ProjectionName,
    generation: GenerationName = None,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    keep_minutes: NonNegativeFloat = 60.0,
    json: Flag = False,
) -> None:
    """Make the generation active again that was so before the last switch.

    Example: refold rollback aircraft-log

    Args:
        projection: Which one.
        generation: To which; by default the one that was replaced last.
        options: Where it is.
        keep_minutes: For how long the one is kept that is active now.
        json: Print the registry's record as one JSON object.
    """
    generations = options.wire(projection, known=True, coded=False).generations()
    print_end(generations.rollback(generation, keep=timedelta(minutes=keep_minutes)), projection, json=json)


def retire(
    projection: ProjectionName,
    generation: GenerationName = None,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    json: Flag = False,
) -> None:
    """Remove generations that are kept: their groups, their models and their snapshots.

    Example: refold retire aircraft-log

    Args:
        projection: Whose.
        generation: Which one; by default all that are kept.
        options: Where they are.
        json: Print the registry's record as one JSON object.
    """
    print_end(options.wire(projection, known=True, coded=False).generations().retire(generation), projection, json=json)


def verify(
    projection: ProjectionName,
    generation: GenerationName = None,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    json: Flag = False,
) -> None:
    """Compare a generation with the active one, as of the same positions, while both are folded.

    Exit code 0 where they are identical, and 10 where they are not.

    Example: refold verify aircraft-log --topic flights

    Args:
        projection: Which one.
        generation: Which one to compare; by default the one that is being rebuilt, or that was replaced last.
        options: Topic, state and codec.
        json: Print one JSON object.
    """
    wired = options.wire(projection, known=True)
    report = wired.generations().verify(generation)
    if json:
        print(shown(document("comparison", report_json(report))))  # noqa: T201
    else:
        print_report(printer(), report, wired.events.topic)
    if not report.summary.is_identical:
        raise ModelsDiffer(
            f"{report.after} is not identical to {report.before}, which is active.", projection=wired.name
        )
