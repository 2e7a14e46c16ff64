"""A run by what a user types: a folder, or hf:ORG/NAME on the hub."""

from pathlib import Path

from spaner.align.train.run import Run, load

HUB = "hf:"


def open_run(run: str | Path) -> Run:
    """The run in a folder, or pulled from the hub into its cache.

    Raises:
        RunError: no run there, or one that is damaged.
    """
    return load(run_folder(run))


def run_folder(run: str | Path) -> Path:
    """The folder of a run."""
    return Path(run)
