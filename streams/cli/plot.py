"""Lag over time, drawn in a terminal."""

from __future__ import annotations

from collections import deque

__all__ = ["History"]

_KEPT = 3600
_MIN_COLUMNS, _MIN_LINES = 30, 8
_FILE_COLUMNS, _MAX_LINES = 100, 20


class History:
    """Figures of several groups over time, as far as they were looked at; the last hour of looks each second."""

    def __init__(self) -> None:
        self._points: dict[str, deque[tuple[float, int]]] = {}

    def note(self, name: str, at_s: float, value: int) -> None:
        """Take in a figure, and when it was so, in seconds since 1970."""
        self._points.setdefault(name, deque(maxlen=_KEPT)).append((at_s, value))

    def drawn(self, columns: int, lines: int) -> str:
        """Draw all of them into so many columns and lines; the newest figures are at the right."""
        import plotext

        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plot_size(max(_MIN_COLUMNS, min(columns, _FILE_COLUMNS)), max(_MIN_LINES, min(lines, _MAX_LINES)))
        newest_s = max((points[-1][0] for points in self._points.values()), default=0.0)
        highest = 1
        for name, points in self._points.items():
            highest = max(highest, *(value for _, value in points))
            plotext.plot(
                [at_s - newest_s for at_s, _ in points],
                [value for _, value in points],
                marker="braille",
                label=name if len(self._points) > 1 else None,
            )
        ticks = [0, highest // 2, highest] if highest > 1 else [0, 1]
        plotext.ylim(0, highest)
        plotext.yticks(ticks, [f"{tick:,}" for tick in ticks])
        plotext.title("lag, in records")
        plotext.xlabel("seconds ago")
        return str(plotext.build())
