"""A run as ONNX says what torch says, and a graph that does not is not kept."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import spaner
from spaner.align.train.run import Run
from spaner.errors import RunError
from spaner.search import onnx as graphs
from tests.conftest import Outcome

Cli = Callable[..., Outcome]
pytestmark = pytest.mark.skipif(
    any(not graphs.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="no spaner[onnx]",
)


def test_the_map_of_a_modality(cli: Cli, run: Run, run_folder: Path, digits: Path, tmp_path: Path) -> None:
    words = ["--onnx", "--modality", "audio", "--cache", digits, "--out", tmp_path]
    done = cli("export", run_folder, *words)
    assert done.status == 0, done.err
    x = spaner.open(digits).table("audio/test").read()[:, 0].astype(np.float32)
    for rows in (x[:1], x[3:290]):  # any number of rows, also those that the export did not see
        np.testing.assert_allclose(
            graphs.run_graph(tmp_path / "audio.onnx", rows), run.embed("audio", rows), atol=1e-4
        )


@pytest.mark.slow
def test_encoder_and_map_together(cli: Cli, run: Run, run_folder: Path, files: Path, tmp_path: Path) -> None:
    pictures = files / "two"
    words = ["--onnx", "--modality", "image", "--out", tmp_path, "--encoder", pictures]
    done = cli("export", run_folder, *words)
    assert done.status == 0, done.err
    found = run.embed_files(next(pictures.glob("*.png")))
    from PIL import Image

    pixels = np.asarray(Image.open(next(pictures.glob("*.png"))).convert("L"), np.float32)[None, None] / 255
    np.testing.assert_allclose(graphs.run_graph(tmp_path / "image-encoder.onnx", pixels), found.z, atol=1e-3)


def test_a_graph_that_differs_is_not_kept(
    run: Run, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(file: Path, x: np.ndarray) -> np.ndarray:
        return np.zeros((len(x), 64), np.float32)

    monkeypatch.setattr(graphs, "run_graph", other)
    table = spaner.open(digits).table("text/vanilla")
    with pytest.raises(RunError, match="differs from torch by"):
        graphs.export_map(run, "text", table, tmp_path / "text.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(run: Run, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*file/text.onnx: File exists; .* another --out"):
        graphs.export_map(run, "text", spaner.open(digits).table("text/vanilla"), tmp_path / "file/text.onnx")


def test_mistakes(cli: Cli, run_folder: Path, digits: Path, tmp_path: Path) -> None:
    assert "expected --onnx" in cli("export", run_folder).err
    said = cli("export", run_folder, "--onnx", "--modality", "smell", "--cache", digits).err
    assert "has no smell" in said
