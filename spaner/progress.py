"""What a caller is told while long work runs: one type for extraction, training, sweeps and tables.

Needs the standard library only. It draws nothing: `spaner.cli.console` does, and a library caller may pass
any function of this shape.
"""

from typing import Protocol


class Progress(Protocol):
    """Told after each piece of work: how many of how many are done, and of what (a table, a run, a cell)."""

    def __call__(self, done: int, total: int, what: str, /) -> None: ...


def no_progress(done: int, total: int, what: str) -> None:
    """Nobody watches."""
