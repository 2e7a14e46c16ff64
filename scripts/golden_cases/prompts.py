"""Golden cases of prompt learners on a frozen text tower: CoOp, CoCoOp."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golden_cases.tiny_clip import model_of, tower_of
from spaner.align.methods.cocoop import ConditionalContext, conditional_scores, train_conditional
from spaner.align.methods.coop import start_context, train_context
from spaner.align.methods.descent import dassl_cosine
from spaner.align.methods.prompting import class_vectors, spoken

Inputs = Mapping[str, Tensor]


def plan(z: Inputs, meta: Mapping[str, Any]) -> tuple[list[float], list[Tensor]]:
    """The recorded batches, and Dassl's rate of each."""
    epochs, count, _ = z["batch_rows"].shape
    optim = meta["optim"]
    warm = {"warmup": optim["WARMUP_EPOCH"], "warmup_lr": optim["WARMUP_CONS_LR"]}
    rates = dassl_cosine(optim["LR"], optim["MAX_EPOCH"], count, **warm)
    batches = [rows[rows >= 0] for rows in z["batch_rows"].flatten(0, 1)]
    return rates[: epochs * count], batches


def followed(
    losses: Iterable[Tensor], parameters: Mapping[str, Tensor], rates: list[float]
) -> dict[str, Any]:
    """Drive the training; the first gradients, all losses, the parameters at the end."""
    outputs: dict[str, Any] = {}
    found = []
    for value in losses:
        if not found:
            outputs |= {f"grad.{n}": p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        found.append(float(value))
    outputs |= {f"final.{name}": tensor.detach() for name, tensor in parameters.items()}
    return outputs | {"first_loss": found[0], "losses": found, "lr": rates}


def images(model: Any, z: Inputs) -> dict[str, Tensor]:
    """The image tower's rows as they are."""
    with torch.no_grad():
        query, train = model.encode_image(z["query_images"]), model.encode_image(z["train_images"])
    return {"image_features_start": query, "train_image_features": train}


def features(model: Any, pictures: Tensor) -> Tensor:
    """The image tower's unit rows."""
    with torch.no_grad():
        return F.normalize(model.encode_image(pictures), dim=1)


def coop(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Before, during and after training."""
    hyper = meta["hyper"]
    model = model_of(meta, z["train_images"].dtype)
    tower, names = tower_of(model), spoken(meta["classnames"])
    scale = float(model.logit_scale.exp())
    classes = len(names) if hyper["csc"] else None
    outputs: dict[str, Any] = {}
    if hyper["init"]:
        context = start_context(tower, words=hyper["init"], length=hyper["n_ctx"], classes=classes, seed=0)
        outputs["ctx_from_words"] = context.clone()
    else:
        context = z["param.ctx"].clone()
    context.requires_grad_()
    prompted = tower.prompted(names, context.shape[-2], hyper["pos"])
    x, query = features(model, z["train_images"]), features(model, z["query_images"])
    rates, batches = plan(z, meta)

    def now(moment: str) -> None:
        with torch.no_grad():
            own = context.ndim == 3
            raw = prompted(context if own else context[None], per_class=own)[0]
            logits = scale * query @ class_vectors(prompted, context).T
        outputs.update({f"text_features_{moment}": raw, f"logits_{moment}": logits})

    now("start")
    losses = train_context(
        prompted, context, x, z["train_labels"], scale=scale, rates=rates, batches=batches, **sgd(meta)
    )
    outputs |= followed(losses, {"ctx": context}, rates)
    now("final")
    return outputs | images(model, z)


def sgd(meta: Mapping[str, Any]) -> dict[str, float]:
    return {"weight_decay": meta["optim"]["WEIGHT_DECAY"], "momentum": meta["optim"]["MOMENTUM"]}


def cocoop(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Before, during and after training."""
    model = model_of(meta, z["train_images"].dtype)
    tower, names, scale = tower_of(model), spoken(meta["classnames"]), float(model.logit_scale.exp())
    context = ConditionalContext(z["param.ctx"].clone(), meta["clip"]["embed_dim"]).to(z["param.ctx"].dtype)
    context.load_state_dict({name[6:]: tensor for name, tensor in z.items() if name.startswith("param.")})
    prompted = tower.prompted(names, len(context.ctx))
    x, query = features(model, z["train_images"]), features(model, z["query_images"])
    rates, batches = plan(z, meta)
    outputs: dict[str, Any] = {}
    with torch.no_grad():
        outputs["bias_start"] = context.meta_net(query)
        outputs["text_features_of_query0_start"] = prompted(context(query[:1]))[0]
        outputs["logits_start"] = conditional_scores(prompted, context, query, scale)
    losses = train_conditional(
        prompted, context, x, z["train_labels"], scale=scale, rates=rates, batches=batches, **sgd(meta)
    )
    outputs |= followed(losses, dict(context.named_parameters()), rates)
    with torch.no_grad():
        outputs["logits_final"] = conditional_scores(prompted, context, query, scale)
    return outputs | images(model, z)
