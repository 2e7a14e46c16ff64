"""Stage 1: files in, sealed cache out.

    from spaner.extract import encode
    summary = encode(dataset="folder:photos", cache="cache/photos")

The names below are imported when first used, so `ExtractConfig` (and with it `--help`) needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spaner.extract.config import ExtractConfig as ExtractConfig
    from spaner.extract.datasets.dataset import Dataset as Dataset
    from spaner.extract.datasets.dataset import Split as Split
    from spaner.extract.datasets.dataset import read as read
    from spaner.extract.encoders.encoder import Encoder as Encoder
    from spaner.extract.encoders.encoder import load as load
    from spaner.extract.extract import extract as encode
    from spaner.extract.summary import Summary as Summary

_PUBLIC = {
    "Dataset": "spaner.extract.datasets.dataset:Dataset",
    "Encoder": "spaner.extract.encoders.encoder:Encoder",
    "ExtractConfig": "spaner.extract.config:ExtractConfig",
    "Split": "spaner.extract.datasets.dataset:Split",
    "Summary": "spaner.extract.summary:Summary",
    "encode": "spaner.extract.extract:extract",  # spaner.encode: the name spaner.extract is this package
    "load": "spaner.extract.encoders.encoder:load",
    "read": "spaner.extract.datasets.dataset:read",
}

__all__ = [
    "Dataset",
    "Encoder",
    "ExtractConfig",
    "Split",
    "Summary",
    "encode",
    "load",
    "read",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'spaner.extract' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
