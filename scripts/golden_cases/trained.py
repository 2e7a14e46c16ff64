"""Golden cases of the heads that are trained: the recorded batches and start values, replayed."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golden_cases.closed_forms import Inputs, first_best, percent, unit_texts
from spaner.align.methods import clap as claps
from spaner.align.methods import clip_adapter as clips
from spaner.align.methods import cross_modal as probes
from spaner.align.methods import descent
from spaner.align.methods import lp_plus_plus as lp
from spaner.align.methods import rla as maps
from spaner.align.methods import task_res as residuals
from spaner.align.methods import tip_adapter as tip
from spaner.align.methods.support import one_hot


def recorded(z: Inputs) -> list[Tensor]:
    """Batches as rows of a pool of views: row v * N + i is view v of sample i."""
    samples = len(z["train_labels"])
    return [
        int(view) * samples + rows[rows >= 0]
        for view, epoch in zip(z["epoch_view"], z["batch_rows"], strict=True)
        for rows in epoch
        if bool((rows >= 0).any())
    ]


def dassl(optim: Mapping[str, Any], per_epoch: int) -> list[float]:
    """The rate of every step, from a case's optimiser settings."""
    warmup, warmup_lr = max(0, optim.get("WARMUP_EPOCH", 0)), optim.get("WARMUP_CONS_LR", 1e-5)
    return descent.dassl_cosine(
        optim["LR"], optim["MAX_EPOCH"], per_epoch, warmup=warmup, warmup_lr=warmup_lr
    )


def first_gradient(outputs: dict[str, Any], names: Mapping[str, Tensor]) -> None:
    """Keep the gradients of the step just taken under their names."""
    outputs |= {name: tensor.grad.clone() for name, tensor in names.items() if tensor.grad is not None}


def tip_adapter_f(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Keys after every epoch, judged on the query rows as the reference does."""
    hyper, labels = meta["hyper"], z["train_labels"]
    views = z["train_views_raw"]
    keys, text = tip.keys_of(views.transpose(0, 1)), unit_texts(z["text_raw"])
    batches, classes = recorded(z), int(labels.max()) + 1
    per_epoch = len(batches) // hyper["epochs"]
    rates = descent.cosine(hyper["lr"], len(batches))
    numbers = {"scale": 100.0, "alpha": hyper["alpha"], "beta": hyper["beta"]}
    pool = F.normalize(views.flatten(0, 1), dim=1)
    trained, steps = tip.train_keys(
        keys,
        labels,
        text,
        pool,
        **numbers,
        rates=rates,
        batches=batches,
        weight_decay=hyper["weight_decay"],
        eps=hyper["eps"],
    )
    x, losses, found = F.normalize(z["query_raw"], dim=1), [], []
    states: list[Tensor] = []
    scores = x
    for step, loss in enumerate(steps, 1):
        losses.append(float(loss))
        if step % per_epoch == 0:
            states.append(trained.detach().clone())
            near = tip.cache_scores(x, states[-1], labels, classes, hyper["beta"])
            scores = 100 * x @ text.T + hyper["alpha"] * near
            found.append(percent(scores, z["query_labels"]))
    best = first_best(enumerate(found), 0)
    outputs = {"keys0": keys, "values": one_hot(labels, classes, keys.dtype), "text": text, "losses": losses}
    outputs |= {"keys_final": states[-1], "keys_best_epoch": states[best]}
    return outputs | {"query_logits_last": scores, "query_acc_epochs": found}


def clip_adapter(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Raw features go in, as in the reference."""
    text, scale = F.normalize(z["text_raw"].mean(1), dim=1), float(z["logit_scale_log"].exp())
    down, up = z["W1"].clone().requires_grad_(), z["W2"].clone().requires_grad_()

    def logits() -> Tensor:
        with torch.no_grad():
            return scale * F.normalize(clips.adapted(z["query_raw"], down, up, meta["ratio"]), dim=1) @ text.T

    batches, optim = recorded(z), meta["optim"]
    rates = dassl(optim, len(batches) // optim["MAX_EPOCH"])
    outputs: dict[str, Any] = {"query_logits_start": logits(), "lr": rates, "losses": []}
    steps = clips.train_adapter(
        down,
        up,
        text,
        z["train_views_raw"].flatten(0, 1),
        z["train_labels"],
        scale=scale,
        ratio=meta["ratio"],
        rates=rates,
        batches=batches,
        weight_decay=optim["WEIGHT_DECAY"],
        momentum=optim["MOMENTUM"],
    )
    for loss in steps:
        if not outputs["losses"]:
            first_gradient(outputs, {"grad_W1_first": down, "grad_W2_first": up})
        outputs["losses"].append(float(loss))
    return outputs | {"W1_final": down, "W2_final": up, "query_logits_final": logits()}


def task_res(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """From zero residuals, or those of the case."""
    base, scale, optim = z["text_raw"].mean(1), float(z["logit_scale_log"].exp()), meta["optim"]
    residual = z.get("r0", torch.zeros_like(base)).clone().requires_grad_()

    def logits() -> Tensor:
        return residuals.logits(z["query_raw"], base, residual, meta["alpha"], scale).detach()

    batches = recorded(z)
    rates = dassl(optim, len(batches) // optim["MAX_EPOCH"])
    outputs: dict[str, Any] = {"base_text": base, "query_logits_start": logits(), "lr": rates, "losses": []}
    steps = residuals.train_residual(
        residual,
        base,
        z["train_views_raw"].flatten(0, 1),
        z["train_labels"],
        scale=scale,
        alpha=meta["alpha"],
        rates=rates,
        batches=batches,
        weight_decay=optim["WEIGHT_DECAY"],
        betas=(optim["ADAM_BETA1"], optim["ADAM_BETA2"]),
        eps=optim["ADAM_EPS"],
    )
    for loss in steps:
        if not outputs["losses"]:
            first_gradient(outputs, {"grad_r_first": residual})
        outputs["losses"].append(float(loss))
    return outputs | {"r_final": residual, "query_logits_final": logits()}


def cross_modal(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Both halves of every batch as recorded; the best state on the validation rows."""
    hyper, scale = meta["hyper"], float(torch.tensor(meta["hyper"]["logit"], dtype=z["text_raw"].dtype).exp())
    images, (classes, templates) = z["train_raw"], z["text_raw"].shape[:2]
    origin = probes.zero_shot(z["text_raw"])
    head = probes.ProbeHead(origin.clone(), *(z[name].clone() for name in ("A1", "A2") if name in z))
    texts = torch.arange(classes).repeat_interleave(templates)
    pool, labels = torch.cat([images, z["text_raw"].flatten(0, 1)]), torch.cat([z["train_labels"], texts])
    rates = descent.warmed_cosine(
        hyper["lr"],
        hyper["iters"],
        warmup=hyper["warm"],
        warmup_lr=hyper["wlr"],
        total=hyper["sched_iters"],
    )
    batches = torch.cat([z["image_rows"], len(images) + z["text_rows"]], 1)
    losses = probes.train_head(
        head,
        pool,
        labels,
        scale=scale,
        rates=rates,
        batches=batches,
        weight_decay=hyper["wd"],
        betas=tuple(hyper["betas"]),
        eps=hyper["eps"],
    )

    def judge(head: probes.ProbeHead) -> float:
        return descent.accuracy(head.logits(z["val_raw"], scale), z["val_labels"])

    outputs: dict[str, Any] = {"W0": origin, "zero_shot": origin, "lr": rates, "losses": [], "val_acc": []}
    kept = head
    for loss, said, best_head in probes.keep_best(losses, head, hyper["freq"], judge):
        kept = best_head
        if not outputs["losses"]:
            first_gradient(outputs, {"grad_W_first": head.weight})
        outputs["losses"].append(float(loss))
        outputs["val_acc"] += [] if said is None else [said]
        if len(outputs["losses"]) in (1, 5):
            outputs[f"W_after{len(outputs['losses'])}"] = head.weight.detach().clone()
    mixed = probes.ProbeHead(0.5 * kept.weight + 0.5 * origin, kept.down, kept.up)
    best = first_best(enumerate(outputs["val_acc"]), 0) * hyper["freq"]
    outputs |= {
        "W_last": head.weight,
        "W_best": kept.weight,
        "W_wiseft": mixed.weight,
        "best_iteration": best,
    }
    outputs |= {
        f"query_logits_{n}": h.logits(z["query_raw"], scale) for n, h in (("best", kept), ("wiseft", mixed))
    }
    return outputs | ({} if head.down is None else {"A1_last": head.down, "A2_last": head.up})


def lp_plus_plus(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """All iterations, judged on the validation rows after each."""
    text = z["text"]
    x, val, query = (F.normalize(z[name], dim=1) for name in ("train_raw", "val_raw", "query_raw"))
    rows = lp.Rows(x, z["train_labels"], x @ text.T)
    rate, text_rate = lp.step_sizes(rows)
    head = lp.start(rows, z["b0"], meta["alpha_init_factor"])
    settings = lp.Settings(
        iterations=meta["iters"],
        text_start=float(meta["alpha_init_factor"]),
        text_every=meta["alpha_every"],
        momentum=meta["momentum"],
        clear=meta["alpha_grad_zeroed"],
    )
    outputs: dict[str, Any] = {"W0": head.weight.clone(), "a0": head.text.clone(), "lr_w": rate}
    outputs |= {"lr_alpha": text_rate, "losses": [], "val_acc": [], "a_every10": [head.text.clone()]}
    kept = head
    for step, (loss, moved) in enumerate(lp.train(head, rows, rate, text_rate, settings), 1):
        outputs["losses"].append(loss)
        outputs["val_acc"].append(percent(moved.logits(val, val @ text.T), z["val_labels"]))
        if outputs["val_acc"][-1] >= max(outputs["val_acc"]):
            kept, outputs["best_iteration"] = moved.copy(), step - 1
        if step in (1, 10):
            outputs |= {f"W_after{step}": moved.weight.clone(), f"b_after{step}": moved.bias.clone()}
        if step % meta["alpha_every"] == 0:
            outputs["a_every10"].append(moved.text.clone())
    logits = head.logits(query, query @ text.T)
    at_best = kept.logits(query, query @ text.T)
    outputs |= {"W": head.weight, "b": head.bias, "a": head.text, "query_logits": logits}
    outputs["a_every10"] = torch.stack(outputs["a_every10"])
    return outputs | {"query_acc_at_best": percent(at_best, z["query_labels"])}


def clap(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """ZS-LP and every constraint of CLAP."""
    views, optim, scale = z["train_views_raw"], meta["optim"], float(z["logit_scale_log"].exp())
    pool, labels = views.flatten(0, 1), z["train_labels"].repeat(len(views))
    base, constraint = z["text_raw"].mean(1), meta["constraint"].removeprefix("l2-")
    strength = None if constraint == "none" else claps.multipliers(pool, labels, base, scale, constraint)
    weight = base.clone().requires_grad_()
    held = claps.Constraint(weight, base, strength, adapts=constraint == "adaptative")
    orders = iter(z["epoch_pool_order"])
    batches = claps.batches(views.shape[1], len(pool), meta["batch"], orders)
    count = descent.per_epoch(views.shape[1], meta["batch"], drop_last=True)
    rates = dassl(optim, count)
    outputs: dict[str, Any] = {"base_text": base, "pool_labels": labels, "pool_row0": pool[:1], "lr": rates}
    outputs |= {"zero_shot_pool_logits_first8": claps.cosines(pool[:8], base, scale), "losses": []}
    outputs |= {"batches_per_epoch": count, "lambda0": strength}
    steps = claps.train_prototypes(
        held,
        pool,
        labels,
        scale=scale,
        rates=rates,
        batches=batches,
        per_epoch=count,
        momentum=optim["MOMENTUM"],
        weight_decay=optim["WEIGHT_DECAY"],
    )
    strengths: list[Tensor] = []
    for step, loss in enumerate(steps, 1):
        if step == 1:
            first_gradient(outputs, {"grad_first": weight})
            outputs["W_after1"] = weight.detach().clone()
        outputs["losses"].append(float(loss))
        if step % count == 0 and held.strength is not None:
            strengths.append(held.strength)
    outputs |= {"W": weight, "query_logits": claps.cosines(z["query_raw"], weight, scale)}
    outputs |= {"final_penalty": held.penalty()}
    return outputs | ({"lambda_per_epoch": torch.stack(strengths)} if strengths else {})


def rla(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The raw features behind the projection go in, as in the reference."""
    hyper, views = meta["hyper"], z["train_views_before"] @ z["vit_proj"]
    matrix = torch.eye(views.shape[2], dtype=views.dtype).requires_grad_()
    lam = _penalty(hyper)
    rates = descent.cosine(hyper["lr"], hyper["epochs"])
    outputs: dict[str, Any] = {"losses_ce": [], "losses_mse_sum": []}
    adam = {"betas": tuple(meta["adam"]["betas"]), "eps": meta["adam"]["eps"]}
    steps = maps.train_map(
        matrix, views, z["train_labels"], z["text"], scale=100.0, lam=lam, rates=rates, **adam
    )
    for step, (entropy, away) in enumerate(steps, 1):
        outputs["losses_ce"].append(float(entropy))
        outputs["losses_mse_sum"].append(float(away))
        if step in (1, 10):
            outputs[f"A_after{step}"] = matrix.detach().clone()
    x = z["query_before"] @ z["vit_proj"]
    logits = 100 * F.normalize(x @ matrix.T, dim=1).detach() @ z["text"].T
    last = outputs["losses_ce"][-1] + lam * outputs["losses_mse_sum"][-1]
    outputs |= {"A": matrix, "last_loss": last, "query_logits": logits}
    outputs |= {"train_post": views[hyper["epochs"] % len(views)]}
    return outputs | {"query_acc": percent(logits, z["query_labels"])}


def _penalty(hyper: Mapping[str, Any]) -> float:
    shots = hyper["shots"]
    return {"1/N": 1 / shots, "1/N2": 1 / shots**2}.get(hyper["lam"], hyper["lam"])
