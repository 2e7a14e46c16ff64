"""A run on digits that knows pictures, words and sounds, and a folder of digits as files; made once."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

import spaner
from spaner.align.train.config import ExtendConfig
from spaner.align.train.extend import extend
from spaner.align.train.run import Run
from spaner.extract.datasets.dataset import read

PICTURES, SOUNDS = 37, 23


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the embedded data set."""
    path = tmp_path_factory.mktemp("digits") / "digits"
    for modality in ("image", "audio"):
        spaner.encode(dataset="digits", modality=modality, cache=path)
    return path


@pytest.fixture(scope="session")
def run_folder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three modalities, on disk."""
    run = spaner.fit(digits, shots=16, batch_size=32, epochs=3)
    longer = extend(run, digits, ExtendConfig(modality="audio", epochs=2))
    longer.cache = digits
    longer.metrics = spaner.evaluate(longer, digits)
    return longer.save(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def run(run_folder: Path) -> Run:
    return spaner.load(run_folder)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test scans and key tones as PNG and WAV in class folders; the stem names the row of the cache."""
    root, data = tmp_path_factory.mktemp("files") / "files", read("digits")
    for modality, count in (("image", PICTURES), ("audio", SOUNDS)):
        split = data.splits[modality]["test"]
        for row in np.linspace(0, len(split) - 1, count).astype(int):
            key, label = split.ids[int(row)], data.class_names[split.labels[row]]
            (root / label).mkdir(parents=True, exist_ok=True)
            file = root / label / key.replace("/", "-")
            payload = split.open(key)
            if modality == "image":
                payload.save(file.with_suffix(".png"))
            else:
                soundfile.write(file.with_suffix(".wav"), payload[0].T, payload[1], subtype="FLOAT")
    return root
