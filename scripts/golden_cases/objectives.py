"""Objectives for three modalities and more: GRAM, Symile, PMRL."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spaner.align.methods import gram, pmrl, symile


def gram_volume(inputs: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Volumes, loss and gradients. The reference computes its volumes twice, by two formulas."""
    z = _modalities(inputs)
    temperature = torch.tensor(meta["temperature"], dtype=z[0].dtype, requires_grad=True)
    loss = gram.loss(z, temperature=temperature, label_smoothing=meta["label_smoothing"])
    slope, *slopes = torch.autograd.grad(loss, [temperature, *z])
    volume = gram.volumes(z[0], z[1:])
    found = {"volume": volume, "volume_general": volume, "loss": loss, "grad_temperature": slope}
    return found | {f"grad_z{m}": gradient for m, gradient in enumerate(slopes)}


def symile_products(inputs: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Loss and gradients, and the products of the first anchor, with both kinds of negatives."""
    z = _modalities(inputs)
    scale = torch.tensor(meta["scale"], dtype=z[0].dtype, requires_grad=True)
    if meta["negatives"] == "n":
        orders = inputs["permutations"]
        loss = symile.loss(z, scale=scale, permutations=orders)
        products = symile.shuffled(z[0], z[1:], orders[: len(z) - 1])[0]
    else:
        loss = symile.loss(z, scale=scale, negatives="all")
        products = symile.combined(z[0], z[1:])[0]
    slope, *slopes = torch.autograd.grad(loss, [scale, *z])
    found = {"loss": loss, "grad_scale": slope, "logits_anchor0": products}
    return found | {f"grad_z{m}": gradient for m, gradient in enumerate(slopes)}


def pmrl_directions(inputs: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Singular values, directions and both losses; also with the sign that the library's decomposition gives,
    which the reference takes as it comes."""
    z = _modalities(inputs)
    values, u = pmrl.directions(z)
    intra = pmrl.intra(values, temperature=meta["tau1"])
    slopes = torch.autograd.grad(intra, z, retain_graph=True)
    found = {
        "singular_values": values,
        "u_sign_fixed": u,
        "sign": (theirs := _library_sign(z, u)),
        "loss_intra": intra,
        "loss_inter": pmrl.inter(u * theirs[:, None], temperature=meta["tau2"]),
        "own_loss_inter_sign_fixed": pmrl.inter(u, temperature=meta["tau2"]),
    }
    return found | {f"grad_intra_z{m}": gradient for m, gradient in enumerate(slopes)}


def _library_sign(z: list[Tensor], u: Tensor) -> Tensor:
    left = torch.linalg.svd(torch.stack(z, dim=2), full_matrices=False)[0][..., 0]
    return (left * u).sum(1).sign().detach()


def _modalities(inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """z0, z1, … as leaves that take a gradient."""
    count = sum(name.removeprefix("z").isdigit() for name in inputs)
    return [inputs[f"z{m}"].clone().requires_grad_() for m in range(count)]
