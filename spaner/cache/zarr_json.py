"""The metadata files of a Zarr cache: each has the only bytes that its content may have.

So a flipped bit in one can be told from the value that it makes, and whoever knows the layout of a table can
write every file of it anew.
"""

import json
from typing import Any

from spaner.cache.layout import ArraySpec


def group_json(attributes: dict[str, Any]) -> bytes:
    """The only bytes that a group's zarr.json may have."""
    return _render({"attributes": attributes, "node_type": "group", "zarr_format": 3})


def array_json(spec: ArraySpec) -> bytes:
    """The only bytes that an array's zarr.json may have."""
    order = [{"configuration": {"endian": "little"}, "name": "bytes"}]
    names = {"dimension_names": list(spec.axes)} if spec.axes else {}
    return _render(
        names
        | {
            "attributes": {},
            "chunk_grid": {"configuration": {"chunk_shape": list(spec.chunk_shape)}, "name": "regular"},
            "chunk_key_encoding": {"configuration": {"separator": "."}, "name": "default"},
            "codecs": order if spec.stored.itemsize > 1 else [{"name": "bytes"}],
            "data_type": spec.dtype,
            "fill_value": 0.0 if spec.dtype.startswith("float") else 0,
            "node_type": "array",
            "shape": list(spec.shape),
            "zarr_format": 3,
        }
    )


def _render(metadata: dict[str, Any]) -> bytes:
    text = json.dumps(metadata, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "surrogatepass")  # as json.loads reads it


def plain_spec(metadata: dict[str, Any]) -> ArraySpec | None:
    """The layout of an array that is stored as `array_json` says; None for any other valid Zarr."""
    try:
        shape = tuple(int(size) for size in metadata["shape"])
        chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        axes = tuple(metadata.get("dimension_names", ()))
        spec = ArraySpec(shape, str(metadata["data_type"]), int(chunk), axes)
        return spec if json.loads(array_json(spec)) == metadata and min(shape) > 0 < spec.chunk else None
    except (KeyError, TypeError, ValueError, IndexError):
        return None
