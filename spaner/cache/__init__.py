"""The store between the two stages: verified tables of embeddings. Needs numpy, zarr and h5py; no torch."""
