"""The store between the two stages: verified tables of embeddings. Needs numpy, zarr and h5py; no torch.

with cache.create("cache/mine", "pets", ["cat", "dog"]) as c:
    c.add("image", "train", features, labels, encoder="my-encoder")
table = cache.open("cache/mine").table("image/train")
table.read(table.draw(shots=16, seed=1))        # (32, 1, D), as it was added
"""

from spaner.cache.cache import Cache, create, open
from spaner.cache.copying import copy
from spaner.cache.draws import VAL_SHOTS, few_shot, few_shot_splits, read_draw
from spaner.cache.export import export
from spaner.cache.layout import drawn_sha256, ids_sha256
from spaner.cache.manifest import EncoderSpec, Manifest, default_chunk_rows
from spaner.cache.merging import merge
from spaner.cache.table import Table
from spaner.cache.verification import Problem
from spaner.cache.writer import Writer

__all__ = [
    "VAL_SHOTS",
    "Cache",
    "EncoderSpec",
    "Manifest",
    "Problem",
    "Table",
    "Writer",
    "copy",
    "create",
    "default_chunk_rows",
    "drawn_sha256",
    "export",
    "few_shot",
    "few_shot_splits",
    "ids_sha256",
    "merge",
    "open",
    "read_draw",
]
