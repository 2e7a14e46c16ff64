"""`spaner models` lists what open_clip offers and what of it is here."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spaner.cli import app


def test_models_are_found_by_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = CliRunner().invoke(app, ["models", "vit-b-16", "OpenAI", "--json"])
    rows = {row["model"]: row for row in json.loads(found.stdout)}
    assert rows["ViT-B-16"] == {
        "model": "ViT-B-16",
        "tag": "openai",
        "width": 512,
        "image": 224,
        "tokenizer": "CLIP",
        "on_disk": False,
    }
    table = CliRunner().invoke(app, ["models", "siglip"])
    assert table.exit_code == 0
    assert "ViT-B-16-SigLIP" in table.stdout
    assert json.loads(CliRunner().invoke(app, ["models", "no-such-model", "--json"]).stdout) == []
