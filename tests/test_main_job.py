"""The main job on an ImageNet-shaped tree: the README's three commands, random weights asked for by name."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spaner
from tests.conftest import Outcome

WNIDS = {"n01514668": "rooster", "n02787622": "banjo", "n03063599": "coffee mug"}
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


#: What trains where images, encoders and the libraries that read them are absent; Pillow only draws.
WITHOUT_SOURCES = """
import sys
sys.modules.update(dict.fromkeys(["open_clip", "torchvision", "torchaudio", "soundfile", "PIL"]))
import spaner
run = spaner.fit("cache/imagenet16", heads=4, epochs=1)
assert 0 <= spaner.evaluate(run, "cache/imagenet16")["text"]["accuracy"] <= 1
print("trained without Pillow", flush=True)
del sys.modules["PIL"]
from spaner.cli import main
for words in ("train --epochs 2", "sweep --prompt-lengths 1,2 --epochs 1 --workers 1"):
    sys.argv[1:] = words.split()
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`data/imagenet` with three synsets of 19 training and 5 validation images, in an empty folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 19), ("val", 5)):
        for wnid in WNIDS:
            folder = tmp_path / "data" / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{wnid}_{i}.JPEG")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGENET_ROOT", raising=False)
    return tmp_path


def test_three_commands_from_images_to_a_sweep(tree: Path, cli: Callable[..., Outcome]) -> None:
    done = cli("extract", "--modality", "image", "--model", "tiny.json", "--pretrained", "random")
    assert done.status == 0, done.err
    cache = spaner.open("cache/imagenet16")
    assert cache.tables() == ["image/test", "image/train", "text/classname", "text/mined", "text/vanilla"]
    train = cache.table("image/train")
    assert (train.rows, train.manifest.complete) == (3 * 16, False)
    assert list(train.manifest.draws) == ["16-shot-seed-1"]
    assert train.manifest.encoder.synthetic

    shutil.rmtree(tree / "data")
    (tree / "tiny.json").unlink()
    ran = subprocess.run([sys.executable, "-c", WITHOUT_SOURCES], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("trained without Pillow\n")
    assert "Traceback" not in ran.stderr
    (result,) = (json.loads(file.read_text()) for file in Path("runs").glob("*/result.json"))
    assert result["synthetic"]
    assert result["draw"]["shots"] == 16
    assert len(list(Path("sweeps/imagenet16/cells").iterdir())) == 2


def test_without_weights_one_line_says_what_to_type(tree: Path, cli: Callable[..., Outcome]) -> None:
    """No network, no local file: the tag's weights cannot be had here."""
    done = cli(
        "extract", "--modality", "image", "--model", "tiny.json", "--pretrained", "weights.safetensors"
    )
    assert done.status == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "weights.safetensors" in line
    assert "--pretrained" in line


def test_a_draw_that_is_not_stored_is_named(tree: Path, cli: Callable[..., Outcome]) -> None:
    words = ["extract", "--modality", "image", "--model", "tiny.json", "--pretrained", "random"]
    cli(*words, "--shots", "1,2", "--draw-seeds", "1,2", "--cache", "cache/few")
    done = cli("train", "--cache", "cache/few", "--shots", "4")
    assert done.status == 1
    assert "4-shot" in done.err
    assert "1-shot-seed-1" in done.err
    for shots, seed in ((1, 1), (2, 2)):
        words = [
            "train",
            "--cache",
            "cache/few",
            "--shots",
            shots,
            "--draw-seed",
            seed,
            "--epochs",
            1,
            "--json",
        ]
        assert json.loads(cli(*words).out)["draw"]["rows"] == 3 * shots
