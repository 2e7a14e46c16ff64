"""A trained run: the model, where it came from, and its folder on disk.

    <run>/model.safetensors   weights; resolved config, encoders and class names' hash in the metadata
          config.json         every setting
          loss.csv  loss.png  history per epoch
          result.json         facts, metrics and where the cache lies, seen from this folder; schema
          "spaner-run/1"; written last: with it the run is finished

The folder appears at once: it is written beside its place, under a name of its own, and renamed; of two
trainings into one place the last wins whole. The same run has the same bytes, whenever it is saved. Reading
is strict: another schema, a missing tensor or a tensor too many, or a result that belongs to other weights is
an error. Nothing here is pickled.
"""

import csv
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spaner import cache as caches
from spaner.align.methods import method as methods
from spaner.align.methods.method import Prior, Space
from spaner.align.methods.task import Facts, Query
from spaner.align.train.config import TrainConfig
from spaner.device import fast_products
from spaner.errors import Mismatch, RunError

SCHEMA = "spaner-run/1"


@dataclass
class Run:
    """A trained model with everything needed to use it, to refuse the wrong input, and to repeat it.

    `draw` is `task.Draw` as JSON; `tables` maps every table that was read to its identity; `history` holds
    one entry per epoch; `selection` is the receipt of `train.select`; `seconds` is the time of training
    alone; `metrics` is the result of `evaluate`, once there is one; `extensions` tells of modalities that
    joined afterwards (`align.extend`). `cache` is where the run was scored, for `spaner report`; on disk it
    is relative to the run folder, so both can move together.
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
    selection: dict[str, Any] = field(default_factory=dict)

    def embed(self, modality: str, features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N E"]:
        """Embeddings of the frozen encoder, of any length -> unit vectors of the shared space, float32.

        Raises:
            RunError: a modality the run does not know, or another width.
        """
        if not isinstance(self.model, Space):
            raise RunError(
                f"method {self.config.method!r} scores classes and embeds nothing; expected a method with a "
                "space; train a run with method=spaner"
            )
        if modality not in self.widths:
            raise RunError(f"the run has no aligner for {modality!r}; it knows {', '.join(self.widths)}")
        x = self._tensor(modality, features)
        with torch.inference_mode(), fast_products(x.device):
            return self.model.embed(modality, x).cpu().numpy()

    def scores(
        self, modality: str, features: Float[np.ndarray, "N D"], query: Query
    ) -> Float[np.ndarray, "N C"]:
        """A score for each class of the query, in units of a cosine, float32.

        Raises:
            RunError: another width. Mismatch: a head is asked about classes that it was not fitted on.
        """
        x = torch.nn.functional.normalize(self._tensor(modality, features), dim=1)
        with torch.inference_mode(), fast_products(x.device):
            return (self.model.scores(x, query) / self.model.logit_scale).float().cpu().numpy()

    @property
    def has_space(self) -> bool:
        """Whether the method embeds: only then are there cosines, margins and retrieval between
        modalities."""
        return isinstance(self.model, Space)

    @property
    def has_prior(self) -> bool:
        """Whether something joins the cosines of the space in a decision."""
        return isinstance(self.model, Prior) and self.model.prior_weight > 0

    def prior(
        self, modality: str, features: Float[np.ndarray, "N D"], query: Query
    ) -> Float[np.ndarray, "N C"]:
        """What the prior adds to the cosines, float32."""
        x = torch.nn.functional.normalize(self._tensor(modality, features), dim=1)
        with torch.inference_mode():
            return (self.model.prior_scores(x, query) / self.model.logit_scale).float().numpy()

    def _tensor(self, modality: str, features: Float[np.ndarray, "N D"]) -> torch.Tensor:
        if features.ndim != 2 or features.shape[1] != self.widths[modality]:
            raise RunError(
                f"{modality} embeddings have shape {features.shape}; "
                f"expected (rows, {self.widths[modality]}); "
                f"use the encoder that the run was trained on: {self.encoders[modality].name}"
            )
        return torch.from_numpy(np.array(features, np.float32))  # caches hand out read-only maps

    @property
    def facts_of_method(self) -> Facts:
        """What the method is rebuilt from."""
        joined = tuple(extension["config"]["modality"] for extension in self.extensions)
        modality = next(iter(self.widths))
        return Facts(self.class_names, modality, self.widths, self.logit_scale, joined)

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
            "final": self.history[-1] if self.history else None,
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
            "selection": self.selection,
            "metrics": self.metrics,
            "extensions": self.extensions,
        }

    @property
    def name(self) -> str:
        """The recipe or method, and a hash of everything that decides the weights."""
        decided = json.dumps([self.config.identity(), self.tables, self.draw], sort_keys=True)
        return f"{self.config.title}-{hashlib.sha256(decided.encode()).hexdigest()[:8]}"

    def save(self, folder: str | Path) -> Path:
        """Write the run folder at once, replacing an older run of that name.

        Raises:
            RunError: the folder holds something that is not a run.
        """
        folder = Path(folder)
        _refuse_foreign(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            part.chmod(0o755)  # mkdtemp's is for its owner alone
            result = self.result | _way_to(self.cache, folder)
            facts = json.dumps(_tied(result), sort_keys=True)
            save_file(self.model.state(), part / "model.safetensors", {"spaner": facts})
            _write_json(part / "config.json", self.config.to_json())
            if self.history:
                _write_history(part / "loss.csv", self.history)
                _draw_history(part / "loss.png", self.history, f"{self.dataset}, {self.config.title}")
            _write_json(part / "result.json", result)
            _replace(folder, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return folder


def load(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: no such folder, not a run, unfinished, another schema, damaged or incomplete weights.
    """
    folder = Path(folder)
    result = _read_result(folder)
    state = _read_weights(folder / "model.safetensors", result)
    run = Run(
        config=TrainConfig.from_json(result["config"]),
        model=None,
        class_names=tuple(result["class_names"]),
        encoders={
            modality: caches.EncoderSpec.from_json(spec) for modality, spec in result["encoders"].items()
        },
        history=_read_history(folder / "loss.csv") if result["final"] else [],
        cache=(folder / result["cache"]).resolve() if result.get("cache") else None,
        selection=result.get("selection", {}),
        **{name: result[name] for name in PLAIN},
    )
    try:
        run.model = methods.method(run.config.method).restore(state, run.config, run.facts_of_method)
    except RunError as error:
        raise RunError(
            f"{folder / 'model.safetensors'}: {error}; use the version of spaner that wrote it"
        ) from None
    run.model.history = run.history
    return run


#: What result.json holds as the run does.
PLAIN = (
    "dataset",
    "widths",
    "logit_scale",
    "draw",
    "tables",
    "seconds",
    "versions",
    "metrics",
    "extensions",
)

#: What the weights say of themselves, so that a result of other weights is noticed.
TIED = (
    "class_names",
    "config",
    "dataset",
    "widths",
    "logit_scale",
    "encoders",
    "draw",
    "tables",
    "extensions",
    "seconds",
)


def _tied(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, **{name: result[name] for name in TIED}}


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


def _read_weights(file: Path, result: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a run, if they are those that the result speaks of."""
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
            facts = (stored.metadata() or {}).get("spaner")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file} cannot be read: {error}; run `spaner train` again") from None
    # runs of the first version spread their facts over several entries and had no such tie
    if facts is not None and json.loads(facts) != json.loads(json.dumps(_tied(result))):
        raise RunError(
            f"{file} and result.json beside it belong to different trainings; expected one; "
            "run `spaner train` again"
        )
    return tensors


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / "result.json").exists())
    ):
        raise RunError(f"{folder} exists and is not a run folder; choose another place with --out")


def _replace(folder: Path, part: Path) -> None:
    """Put `part` in the folder's place. Where another process does the same, each moves aside what it
    finds."""
    while True:
        aside = part.with_suffix(".old")
        with suppress(FileNotFoundError):
            folder.replace(aside)
        try:
            part.replace(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue  # another training put its run there in between
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return


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
