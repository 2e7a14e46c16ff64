"""Fixtures that several rooms share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder with real photographs, sounds and split files; tests that want it skip where it is absent."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    root = Path(os.environ.get("SPANER_SAMPLE_DATA", default))
    if not (root / "photos").is_dir():
        pytest.skip("sample data not found; set SPANER_SAMPLE_DATA to its folder")
    return root
