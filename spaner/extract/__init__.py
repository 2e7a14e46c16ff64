"""Stage 1: files in, sealed cache out.

    from spaner.extract import extract
    summary = extract(dataset="folder:photos", cache="cache/photos")

The names below are imported when first used, so ``ExtractConfig`` (and with it ``--help``) needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spaner.extract.config import ExtractConfig as ExtractConfig
    from spaner.extract.dataset import Dataset as Dataset
    from spaner.extract.dataset import Split as Split
    from spaner.extract.dataset import read as read
    from spaner.extract.encoder import Encoder as Encoder
    from spaner.extract.encoder import load as load
    from spaner.extract.mend import repair as repair
    from spaner.extract.run import extract as encode
    from spaner.extract.run import extract as extract
    from spaner.extract.summary import Summary as Summary

_PUBLIC = {
    "Dataset": "spaner.extract.dataset:Dataset",
    "Encoder": "spaner.extract.encoder:Encoder",
    "ExtractConfig": "spaner.extract.config:ExtractConfig",
    "Split": "spaner.extract.dataset:Split",
    "Summary": "spaner.extract.summary:Summary",
    "encode": "spaner.extract.run:extract",  # spaner.encode: the name spaner.extract is this package
    "extract": "spaner.extract.run:extract",
    "load": "spaner.extract.encoder:load",
    "read": "spaner.extract.dataset:read",
    "repair": "spaner.extract.mend:repair",
}

__all__ = [
    "Dataset",
    "Encoder",
    "ExtractConfig",
    "Split",
    "Summary",
    "encode",
    "extract",
    "load",
    "read",
    "repair",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'spaner.extract' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
