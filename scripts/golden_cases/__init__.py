"""Golden cases: which product code answers for which family, and how an answer is compared.

A family is a function `(inputs, meta) -> outputs`: `inputs` are the arrays named `in_*` as tensors (floats
in the precision under test), `meta` the case's hyper-parameters; the outputs carry the names of `out_*`.
Every output of a case must be answered. Floats are compared by max|a - b| / max|b|, whole numbers exactly.

Needs numpy, torch and the product; knows no folder.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FAMILIES: dict[str, str] = {
    # meta["method"] -> module of this package : function
    "CLIP-Adapter": "trained:clip_adapter",
    "cocoop": "prompts:cocoop",
    "coop": "prompts:coop",
    "GDA": "closed_forms:gda",
    "GRAM": "objectives:gram_volume",
    "LP++": "trained:lp_plus_plus",
    "maple": "towers:maple",
    "mma": "towers:mma",
    "PMRL": "objectives:pmrl_directions",
    "ProKeR": "closed_forms:proker",
    "ProLIP-RLA": "trained:rla",
    "Symile": "objectives:symile_products",
    "TaskRes": "trained:task_res",
    "Tip-Adapter": "closed_forms:tip_adapter",
    "Tip-Adapter-F": "trained:tip_adapter_f",
    "ZS-LP/CLAP": "trained:clap",
    "cross-modal linear probe": "trained:cross_modal",
}
GIVEN = ("tokenized_prompts", "name_lens")
"""Outputs of the reference that are facts about its inputs."""

Family = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Result:
    """One case in one precision; `worst` is the output whose difference is the largest share of its limit."""

    case: str
    precision: str
    worst: str
    difference: float
    allowed: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed

    def __str__(self) -> str:
        numbers = f"{self.difference:9.1e} of {self.allowed:7.1e}"
        verdict = "ok" if self.passed else "FAILED"
        return f"{self.case:32} {self.precision:8} {self.worst:24} {numbers}  {verdict}  {self.note}".rstrip()


def run(file: Path) -> Iterator[Result]:
    """The verdicts of one file, float64 and float32."""
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "meta"}
        meta = json.loads(str(archive["meta"]))
    family = FAMILIES.get(meta.get("method", ""))
    if family is None:
        known = ", ".join(FAMILIES)
        yield Result(file.stem, "-", "-", np.inf, 0, f"unknown family {meta.get('method')!r}; known: {known}")
        return
    module, _, name = family.partition(":")
    answer: Family = getattr(import_module(f"golden_cases.{module}"), name)
    for precision in (torch.float64, torch.float32):
        yield _judged(file.stem, precision, answer, arrays, meta)


def _judged(
    case: str,
    precision: torch.dtype,
    answer: Family,
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
) -> Result:
    exact = precision is torch.float64
    label = "float64" if exact else "float32"
    found = answer(_inputs(arrays, precision), meta)
    wanted = {name[4:]: array for name, array in arrays.items() if name.startswith("out_")}
    doubles = {name[6:]: array for name, array in arrays.items() if name.startswith("out64_")}
    if exact:  # large outputs are kept in float32 alone
        wanted |= doubles
    if missing := sorted(set(wanted) - set(found) - set(GIVEN)):
        return Result(case, label, missing[0], np.inf, 0, f"not answered: {', '.join(missing)}")
    ties = () if exact else tuple(meta.get("tie_sensitive") or ())
    rows = [
        (name, difference(found[name], array), _limit(name, array, meta, exact=exact and name in doubles))
        for name, array in wanted.items()
        if name not in GIVEN and name not in ties
    ]
    name, off, limit = max(rows, key=lambda row: row[1] / row[2])
    return Result(case, label, name, off, limit, f"ties not judged: {', '.join(ties)}" if ties else "")


def _inputs(arrays: Mapping[str, np.ndarray], precision: torch.dtype) -> dict[str, Tensor]:
    tensors = {n[3:]: torch.from_numpy(np.asarray(a)) for n, a in arrays.items() if n.startswith("in_")}
    return {n: t.to(precision) if t.is_floating_point() else t for n, t in tensors.items()}


def _limit(name: str, array: np.ndarray, meta: Mapping[str, Any], *, exact: bool) -> float:
    if not np.issubdtype(array.dtype, np.floating):
        return 1e-12
    return float(meta["tol_f64"] if exact else meta["tol_f32"].get(name, 1e-5))


def difference(found: Any, wanted: np.ndarray) -> float:
    """max|a - b| / max|b|; infinite where shapes differ, or one side alone is not a number."""
    ours = np.asarray(found.detach() if isinstance(found, Tensor) else found, dtype=np.float64)
    truth = np.asarray(wanted, dtype=np.float64)
    if ours.shape != truth.shape:
        return np.inf
    if not truth.size:
        return 0.0
    lost = np.isnan(truth)
    if not np.array_equal(lost, np.isnan(ours)):
        return np.inf
    off, largest = np.abs(ours - truth)[~lost].max(initial=0), np.abs(truth)[~lost].max(initial=0)
    return float(off / largest if largest else off)
