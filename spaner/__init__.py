"""Align frozen encoders of different modalities through one shared prompt, from embeddings computed once.

    import spaner

    spaner.encode(dataset="digits", cache="cache/digits")       # stage 1: the frozen encoders, once
    run = spaner.fit("cache/digits", prompt_length=2)           # stage 2: prompt + aligners + projections
    print(spaner.evaluate(run, "cache/digits"))

The names below are the public interface; they are imported when first used, so `import spaner` is quick and
reading a cache needs neither torch nor an encoder.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spaner.align.report.listing import frame as frame
    from spaner.align.score.evaluate import evaluate as evaluate
    from spaner.align.train.fit import fit as fit
    from spaner.align.train.run import load as load
    from spaner.align.train.sweep import sweep as sweep
    from spaner.cache import create as create
    from spaner.cache import few_shot as few_shot
    from spaner.cache import open as open
    from spaner.extract import encode as encode

__version__ = "0.1.0"

_PUBLIC = {
    "create": "spaner.cache",
    "encode": "spaner.extract",
    "evaluate": "spaner.align.score.evaluate",
    "few_shot": "spaner.cache",
    "fit": "spaner.align.train.fit",
    "frame": "spaner.align.report.listing",
    "load": "spaner.align.train.run",
    "open": "spaner.cache",
    "sweep": "spaner.align.train.sweep",
}

__all__ = [
    "__version__",
    "create",
    "encode",
    "evaluate",
    "few_shot",
    "fit",
    "frame",
    "load",
    "open",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'spaner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
