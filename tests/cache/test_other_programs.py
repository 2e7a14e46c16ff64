"""xarray opens a cache, knowing nothing of spaner; zarr-python and h5py do in the store contract."""

from pathlib import Path

import numpy as np
import pytest

TABLE = "image/train"
AXES = {"row": 23, "view": 2, "feature": 7, "id_byte": 20, "reason_byte": 160, "chunk": 5}


def test_xarray_opens_a_table_with_names_of_axes(make, tmp_path: Path, source):
    xarray = pytest.importorskip("xarray")
    made = make(tmp_path / "cache")
    with xarray.open_zarr(made, group=TABLE, consolidated=False) as data:
        assert AXES.items() <= dict(data.sizes).items()
        np.testing.assert_array_equal(data["features"].values, source.stored())
        kept = data["features"].isel(row=data["status"].values == 1, view=0)
        assert kept.dims == ("row", "feature")
        assert kept.shape == (22, 7)
        assert data.attrs["manifest"]["views"] == ["centre", "random crop"]
    with xarray.open_zarr(made, group=f"{TABLE}/draws", consolidated=False) as draws:
        assert draws["2-shot-seed-1"].values.tolist() == source.draws["2-shot-seed-1"].tolist()


def test_xarray_opens_the_whole_tree(make, tmp_path: Path):
    xarray = pytest.importorskip("xarray")
    tree = xarray.open_datatree(make(tmp_path / "cache"), engine="zarr", consolidated=False)
    assert {"image/train", "text/vanilla"} <= {node.path.strip("/") for node in tree.subtree}
    tree.close()
