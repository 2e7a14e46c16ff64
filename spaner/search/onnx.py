"""A run as ONNX, for programs without torch: the map of one modality, alone or behind its frozen encoder.

Every file is run with onnxruntime on real rows and compared with torch before it takes its place. A graph of
the map alone takes what the frozen encoder gives, (N, D) float32, and returns unit vectors (N, E). A graph
with the encoder takes what the encoder's own preparation gives (pixels, tokens). Needs the extra
`spaner[onnx]`.
"""

import copy
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from spaner import cache as caches
from spaner.align.methods.attention import AttentionAligner
from spaner.align.train.run import Run
from spaner.cache import files as disk
from spaner.errors import EncoderError, RunError
from spaner.extract import pipeline
from spaner.extract.datasets import images
from spaner.extract.datasets.dataset import Split
from spaner.search.encoding import Files, check_modality, own_encoder

TOLERANCE = 1e-3
"""Largest difference of a coordinate of a unit vector between onnxruntime and torch."""

ROWS = 64
OPSET = 20


@dataclass(frozen=True)
class Exported:
    """A graph that was checked: on how many rows, and how far it is from torch at most."""

    file: Path
    modality: str
    rows: int
    difference: float


class _PlainAttention(nn.Module):
    """`AttentionAligner` as its equations are printed, for x alone: training's own way walks the batch in
    blocks, which a graph for any number of rows cannot."""

    def __init__(self, aligner: AttentionAligner) -> None:
        super().__init__()
        self.aligner = aligner

    def forward(self, x: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """f (eq. 2); z is not needed here, x stands in its place."""
        own, attn = self.aligner, self.aligner.attn
        q, k, v = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=1)
        _, k_s, v_s = F.linear(prompt, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=1)
        q, k, v, k_s, v_s = (each.unflatten(1, (own.heads, -1)) for each in (q, k, v, k_s, v_s))
        scores = torch.einsum("bhd,phd->bhp", q, k_s)
        if own.attend == "all":
            scores = torch.cat([(q * k).sum(2, keepdim=True), scores], dim=2)
        weights = (scores * q.shape[2] ** -0.5).softmax(2)
        seen = torch.einsum("bhp,phd->bhd", weights[:, :, weights.shape[2] - len(prompt) :], v_s)
        if own.attend == "all":
            seen = seen + weights[:, :, :1] * v
        attended = attn.out_proj(seen.flatten(1))
        return own.proj(attended + x if own.project == "residual" else x), x


class _Map(nn.Module):
    """The run's map of one modality: (N, D) -> (N, E)."""

    def __init__(self, model: Any, modality: str) -> None:
        super().__init__()
        self.model, self.modality = copy.deepcopy(model).cpu(), modality
        aligners = getattr(self.model, "aligners", {})
        if modality in aligners and isinstance(aligners[modality], AttentionAligner):
            aligners[modality] = _PlainAttention(aligners[modality])

    def forward(self, x: Tensor) -> Tensor:
        return self.model.embed(self.modality, x)


class _Whole(nn.Module):
    """The frozen encoder's tower and the map behind it."""

    def __init__(self, tower: nn.Module, model: Any, modality: str) -> None:
        super().__init__()
        self.tower, self.map = tower, _Map(model, modality)

    def forward(self, prepared: Tensor) -> Tensor:
        return self.map(self.tower(prepared).float())


def export_map(run: Run, modality: str, table: caches.Table, file: Path) -> Exported:
    """The map alone, checked on rows of a cached table.

    Raises:
        RunError: a modality that the run does not know, a graph that differs, or no extra. Mismatch: a table
        of another encoder.
    """
    check_modality(run, modality)
    run.check(table.manifest)
    rows = np.flatnonzero(table.ok)[:ROWS]
    x = table.read(rows)[:, 0].astype(np.float32)
    return _export(_Map(run.model, modality), torch.from_numpy(x), run.embed(modality, x), modality, file)


def export_whole(run: Run, modality: str, split: Split, file: Path, files: Files | None = None) -> Exported:
    """Encoder and map, checked on samples.

    Raises:
        EncoderError: an encoder that has no single network, or that ONNX cannot say. Else as `export_map`.
    """
    check_modality(run, modality)
    encoder: Any = own_encoder(run, modality, files, precision="float32")
    tower = getattr(encoder, "tower", None)
    if not isinstance(tower, nn.Module):
        raise EncoderError(
            f"{encoder.spec.name}: its {modality} encoder is no single network; "
            "expected one such as open_clip's image tower; export the map alone and encode with spaner"
        )
    load = pipeline.opened(split, encoder, 1, 0)
    with images.quiet():
        views = [load(row) for row in range(min(8, len(split)))]
    prepared = [view for view in views if isinstance(view, Tensor)]
    if not prepared:
        raise RunError(f"no {modality} could be read: {views[0]}; expected some to check the graph on")
    x = torch.cat(prepared)
    wanted = run.embed(modality, encoder.encode(x).numpy())
    return _export(_Whole(tower.cpu(), run.model, modality), x, wanted, modality, file)


def check_installed() -> None:
    """Raise RunError, with the line that installs them, where onnx and its runtime are absent."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise RunError(
            f'--onnx: {missing[0]} is not installed; expected the extra; type `pip install "spaner[onnx]"`'
        )


def _export(module: nn.Module, x: Tensor, wanted: np.ndarray, modality: str, file: Path) -> Exported:
    """Write the graph of a module and compare what it makes of `x` with what the run itself says."""
    check_installed()
    with disk.writing(file, RunError, "--out"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with disk.replacing(file) as part:
            _write(module.eval(), x, part)
            found = run_graph(part, x.numpy())
            difference = float(np.abs(found - wanted).max())
            if not difference <= TOLERANCE:
                raise RunError(
                    f"{file}: the graph differs from torch by {difference:.2g} on {len(x)} rows; expected up "
                    f"to {TOLERANCE:g}; nothing was kept; please report this"
                )
    return Exported(file, modality, len(x), difference)


def _write(module: nn.Module, x: Tensor, file: Path) -> None:
    batch = torch.export.Dim("rows", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own future
        try:
            program = torch.onnx.export(
                module,
                (x[:2].clone() if len(x) > 1 else torch.cat([x, x]),),
                input_names=["x"],
                output_names=["z"],
                dynamic_shapes=({0: batch},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever an operator that ONNX lacks leads it to
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise EncoderError(
                f"{file.name[1:-5]}: this network cannot be said in ONNX ({line[:160]}); "
                "expected operators that it has; export the map alone"
            ) from None
        assert program is not None
        program.save(str(file))


def run_graph(file: Path, x: np.ndarray) -> Float[np.ndarray, "N E"]:
    """What onnxruntime makes of the rows."""
    runtime = import_module("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["z"], {"x": x})[0]
