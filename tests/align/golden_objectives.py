"""What the objectives give on the inputs of a golden file: `check(case, meta, dtype)` -> its outputs by name.

Goldens are published code, run once on small inputs; `in_*` are those inputs, and the names returned here are
those of `out_*` (float32) and `out64_*` (float64).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spaner.align.methods import gram, pmrl, symile


def check(
    case: Mapping[str, np.ndarray], meta: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, np.ndarray]:
    """The outputs of one case as arrays."""
    z = [
        torch.tensor(case[f"in_z{m}"], dtype=dtype, requires_grad=True)
        for m in range(sum(name.startswith("in_z") for name in case))
    ]
    outputs = {"GRAM": _gram, "Symile": _symile, "PMRL": _pmrl}[meta["method"]](z, case, meta)
    return {name: value.detach().numpy() for name, value in outputs.items()}


def _gram(z: list[Tensor], case: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    temperature = torch.tensor(meta["temperature"], dtype=z[0].dtype, requires_grad=True)
    loss = gram.loss(z, temperature=temperature, label_smoothing=meta["label_smoothing"])
    slopes = torch.autograd.grad(loss, [temperature, *z])
    volume = gram.volumes(z[0], z[1:])
    named = {"volume": volume, "volume_general": volume, "loss": loss, "grad_temperature": slopes[0]}
    return named | {f"grad_z{m}": slope for m, slope in enumerate(slopes[1:])}


def _symile(z: list[Tensor], case: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    scale = torch.tensor(meta["scale"], dtype=z[0].dtype, requires_grad=True)
    few = meta["negatives"] == "n"
    orders = torch.tensor(case["in_permutations"]) if few else None
    loss = symile.loss(z, scale=scale, negatives="n" if few else "all", permutations=orders)
    slopes = torch.autograd.grad(loss, [scale, *z])
    named = {"loss": loss, "grad_scale": slopes[0]}
    if orders is not None:
        named["logits_anchor0"] = symile.shuffled(z[0], z[1:], orders[: len(z) - 1])[0]
    else:  # the reference has the same columns in another order
        ours = symile.combined(z[0], z[1:])[0].sort(1).values
        places = torch.tensor(case["out64_logits_anchor0"].argsort(1))
        named["logits_anchor0"] = torch.zeros_like(ours).scatter(1, places, ours)
    return named | {f"grad_z{m}": slope for m, slope in enumerate(slopes[1:])}


def _pmrl(z: list[Tensor], case: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    values, u = pmrl.directions(z)
    intra = pmrl.intra(values, temperature=meta["tau1"])
    slopes = torch.autograd.grad(intra, z, retain_graph=True)
    sign = torch.tensor(
        case["out64_sign"], dtype=u.dtype
    )  # the reference's u is ours times its library's sign
    named = {
        "singular_values": values,
        "u_sign_fixed": u,
        "loss_intra": intra,
        "loss_inter": pmrl.inter(u * sign[:, None], temperature=meta["tau2"]),
        "own_loss_inter_sign_fixed": pmrl.inter(u, temperature=meta["tau2"]),
    }
    return named | {f"grad_intra_z{m}": slope for m, slope in enumerate(slopes)}
