"""A trained run: the model, where it came from, and its folder on disk.

    <run>/model.safetensors   weights; resolved config, encoders and class names' hash in the metadata
          config.json         every setting
          loss.csv  loss.png  history per epoch
          result.json         facts, metrics and where the cache lies, seen from this folder; schema
          "spaner-run/1"; written last: with it the run is finished

The folder appears at once: it is written beside its place and renamed. Reading is strict: another schema, a
missing tensor or a tensor too many is an error. Nothing here is pickled.
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from spaner import cache as caches
from spaner.align.methods import method as methods
from spaner.align.train.config import TrainConfig
from spaner.device import fast_products
from spaner.errors import Mismatch, RunError

SCHEMA = "spaner-run/1"


@dataclass
class Run:
    """A trained model with everything needed to use it, to refuse the wrong input, and to repeat it.

    `draw` is `data.Draw` as JSON; `tables` maps every table that was read to its identity; `history` holds
    one entry per epoch; `seconds` is the time of training alone; `metrics` is the result of `evaluate`, once
    there is one; `extensions` tells of modalities that joined afterwards (`align.extend`). `cache` is where
    the run was scored, for `spaner report`; on disk it is relative to the run folder, so both can move
    together.
    """

    config: TrainConfig
    model: Any
    dataset: str
    class_names: tuple[str, ...]
    widths: dict[str, int]
    logit_scale: float
    encoders: dict[str, caches.EncoderSpec]
    draw: dict[str, Any]
    tables: dict[str, str]
    history: list[dict[str, float]]
    seconds: float
    versions: dict[str, str]
    metrics: dict[str, Any] | None = None
    extensions: list[dict[str, Any]] = field(default_factory=list)
    cache: Path | None = None

    def embed(self, modality: str, features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N E"]:
        """Embeddings of the frozen encoder, of any length -> unit vectors of the shared space, float32.

        Raises:
            RunError: a modality the run does not know, or another width.
        """
        if modality not in self.widths:
            raise RunError(f"the run has no aligner for {modality!r}; it knows {', '.join(self.widths)}")
        if features.ndim != 2 or features.shape[1] != self.widths[modality]:
            raise RunError(
                f"{modality} embeddings have shape {features.shape}; "
                f"expected (rows, {self.widths[modality]}); "
                f"use the encoder that the run was trained on: {self.encoders[modality].name}"
            )
        device = next(self.model.parameters()).device
        with torch.inference_mode(), fast_products(device):
            copied = np.array(features, np.float32)  # caches hand out read-only maps
            x = torch.from_numpy(copied).to(device)
            return self.model.embed(modality, x).cpu().numpy()

    def check(self, manifest: caches.Manifest) -> None:
        """Mismatch, naming what differs, unless the table comes from the encoder that the run was trained
        on."""
        if manifest.modality not in self.encoders:
            raise Mismatch(
                f"{manifest.modality} was not part of the training; "
                f"the run knows {', '.join(self.encoders)}; "
                f"train a run with it, or score another table"
            )
        differing = self.encoders[manifest.modality].same_encoder(manifest.encoder)
        if differing:
            fields = "; ".join(f"{name}: run {a!r}, cache {b!r}" for name, (a, b) in differing.items())
            raise Mismatch(
                f"{manifest.modality}/{manifest.split} was made by another encoder than the run "
                f"was trained on ({fields}); "
                f"extract it with the run's encoder"
            )

    @property
    def synthetic(self) -> bool:
        """Made from random weights or made-up vectors: never comparable with published numbers."""
        return any(spec.synthetic for spec in self.encoders.values())

    def facts(self) -> dict[str, Any]:
        """Where the run came from and what it took, as JSON types."""
        return {
            "dataset": self.dataset,
            "classes": len(self.class_names),
            "widths": self.widths,
            "logit_scale": self.logit_scale,
            "seed": self.config.seed,
            "draw": self.draw,
            "tables": self.tables,
            "encoders": {modality: asdict(spec) for modality, spec in self.encoders.items()},
            "synthetic": self.synthetic,
            "final": self.history[-1],
            "seconds": self.seconds,
            "versions": self.versions,
        }

    @property
    def result(self) -> dict[str, Any]:
        """What result.json holds, besides the way to the cache."""
        return {
            "schema": SCHEMA,
            "config": self.config.to_json(),
            **self.facts(),
            "class_names": list(self.class_names),
            "metrics": self.metrics,
            "extensions": self.extensions,
        }

    @property
    def name(self) -> str:
        """The recipe, and a hash of everything that decides the weights."""
        decided = json.dumps([self.config.to_json(), self.tables, self.draw], sort_keys=True)
        return f"{Path(self.config.recipe).stem}-{hashlib.sha256(decided.encode()).hexdigest()[:8]}"

    def save(self, folder: str | Path) -> Path:
        """Write the run folder at once, replacing an older run of that name.

        Raises:
            RunError: the folder holds something that is not a run.
        """
        folder = Path(folder)
        _refuse_foreign(folder)
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file(_tensors(self.model), part / "model.safetensors", self._metadata())
        _write_json(part / "config.json", self.config.to_json())
        _write_history(part / "loss.csv", self.history)
        _draw_history(part / "loss.png", self.history, f"{self.dataset}, {self.config.recipe}")
        _write_json(part / "result.json", self.result | _way_to(self.cache, folder))
        _replace(folder, part)
        return folder

    def _metadata(self) -> dict[str, str]:
        facts = self.facts()
        plain = {
            name: json.dumps(facts[name]) for name in ("dataset", "widths", "logit_scale", "encoders", "draw")
        }
        return {"schema": SCHEMA, "config": json.dumps(self.config.to_json()), **plain} | {
            "class_names_sha256": hashlib.sha256(json.dumps(list(self.class_names)).encode()).hexdigest()
        }


def load(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: no such folder, not a run, unfinished, another schema, damaged or incomplete weights.
    """
    folder = Path(folder)
    result = _read_result(folder)
    config = TrainConfig.from_json(result["config"])
    model = methods.method(config.method).build(config, result["widths"], result["logit_scale"])
    _load_weights(model, folder / "model.safetensors")
    if result["extensions"]:
        model.newcomers = {extension["config"]["modality"] for extension in result["extensions"]}
    return Run(
        config=config,
        model=model.eval(),
        class_names=tuple(result["class_names"]),
        encoders={
            modality: caches.EncoderSpec.from_json(spec) for modality, spec in result["encoders"].items()
        },
        history=_read_history(folder / "loss.csv"),
        cache=(folder / result["cache"]).resolve() if result.get("cache") else None,
        **{
            n: result[n]
            for n in [
                "dataset",
                "widths",
                "logit_scale",
                "draw",
                "tables",
                "seconds",
                "versions",
                "metrics",
                "extensions",
            ]
        },
    )


def _way_to(cache: Path | None, folder: Path) -> dict[str, str]:
    """The cache as seen from the run folder: never an absolute path."""
    return {} if cache is None else {"cache": os.path.relpath(cache.resolve(), folder.resolve())}


def _read_result(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise RunError(f"no run folder at {folder}; make one with `spaner train`")
    if not (folder / "result.json").exists():
        known = (folder / "model.safetensors").exists()
        state = "is an unfinished run" if known else "is not a run folder"
        raise RunError(f"{folder} {state}: it has no result.json; run `spaner train` again")
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        schema = result.get("schema")
    except (ValueError, AttributeError):
        raise RunError(f"{folder}/result.json is not a result in JSON; run `spaner train` again") from None
    if schema != SCHEMA:
        raise RunError(
            f"{folder} has schema {schema!r}; expected {SCHEMA!r}; use the version of spaner that wrote it"
        )
    return result


def _load_weights(model: nn.Module, file: Path) -> None:
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file} cannot be read: {error}; run `spaner train` again") from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if odd := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise RunError(
            f"{file}: tensor {odd[0]!r} has shape {found.get(odd[0], 'missing')}; expected "
            f"{expected.get(odd[0], 'no such tensor')} ({len(odd)} such tensors); "
            f"use the version of spaner that wrote it"
        )
    model.load_state_dict(tensors)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / "result.json").exists())
    ):
        raise RunError(f"{folder} exists and is not a run folder; choose another place with --out")


def _replace(folder: Path, part: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_history(file: Path, history: list[dict[str, float]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def _read_history(file: Path) -> list[dict[str, float]]:
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    except (OSError, TypeError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}; run `spaner train` again") from None


def _draw_history(file: Path, history: list[dict[str, float]], title: str) -> None:
    """The losses over the epochs, as a picture."""
    from matplotlib.figure import Figure  # slow to import; pyplot would bring global state and windows
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    epochs = [entry["epoch"] for entry in history]
    labels = {"loss": "loss L", "align": "alignment, f", "ca": "cross-attention, z"}
    for name, label in labels.items():
        if name in history[0]:
            axes.plot(
                epochs,
                [entry[name] for entry in history],
                label=label,
                marker="." if len(epochs) < 3 else None,
            )
    axes.set(xlabel="epoch", ylabel="cross entropy (nats)", title=title, ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file)
