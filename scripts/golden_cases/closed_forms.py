"""Golden cases of the heads in closed form: Tip-Adapter, GDA, ProKeR."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spaner.align.methods import descent
from spaner.align.methods import gda as gaussian
from spaner.align.methods import proker as kernels
from spaner.align.methods import tip_adapter as tip
from spaner.align.methods.support import class_means, one_hot

Inputs = Mapping[str, Tensor]


def percent(scores: Tensor, labels: Tensor) -> float:
    """Accuracy as the references print it."""
    return 100 * descent.accuracy(scores, labels)


def first_best(values: Iterable[tuple[Any, float]], start: Any) -> Any:
    """The key of the first of the largest values; `start` if none is above zero."""
    best, chosen = 0.0, start
    for key, value in values:
        if value > best:
            best, chosen = value, key
    return chosen


def unit_texts(raw: Tensor) -> Tensor:
    """n(mean over templates of unit vectors)."""
    return F.normalize(F.normalize(raw, dim=-1).mean(1), dim=1)


def tip_adapter(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Keys, scores at the given numbers, and the search."""
    hyper, labels = meta["hyper"], z["train_labels"]
    keys, text = tip.keys_of(z["train_views_raw"].transpose(0, 1)), unit_texts(z["text_raw"])
    x, val = F.normalize(z["query_raw"], dim=1), F.normalize(z["val_raw"], dim=1)
    classes = int(labels.max()) + 1
    zero_shot = 100 * x @ text.T
    scores = zero_shot + hyper["alpha"] * tip.cache_scores(x, keys, labels, classes, hyper["beta"])
    betas = tip.search_values(hyper["scale"][0], hyper["step"][0])
    alphas = tip.search_values(hyper["scale"][1], hyper["step"][1])
    cached = (tip.cache_scores(val, keys, labels, classes, beta) for beta in betas)
    found = [
        [percent(100 * val @ text.T + alpha * near, z["val_labels"]) for alpha in alphas] for near in cached
    ]
    pairs = [(b, a) for b in betas for a in alphas]
    beta, alpha = first_best(zip(pairs, [v for row in found for v in row], strict=True), (0.0, 0.0))
    outputs = {"keys": keys, "values": one_hot(labels, classes, keys.dtype), "text": text}
    outputs |= {"zeroshot_logits": zero_shot, "tip_logits": scores, "search_acc": found}
    return outputs | {"best_beta": beta, "best_alpha": alpha}


def gda(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Covariance, head, and alpha chosen on the validation rows."""
    rows = F.normalize(z["train_views_raw"].flatten(0, 1), dim=1)
    labels = z["train_labels"].repeat(len(z["train_views_raw"]))
    means = class_means(rows, labels, len(z["text"]))
    shrunk = gaussian.shrunk_covariance(rows, labels, means)
    weight, bias = gaussian.gaussian_head(means, shrunk)

    def scores(x: Tensor, alpha: float) -> Tensor:
        x = F.normalize(x, dim=1)
        return 100 * x @ z["text"].T + alpha * (x @ weight.T + bias)

    found = [percent(scores(z["val_raw"], alpha), z["val_labels"]) for alpha in meta["alphas"]]
    best = first_best(zip(meta["alphas"], found, strict=True), 0.1)
    query = scores(z["query_raw"], best)
    outputs = {"shrunk_cov": shrunk, "W": weight.T, "b": bias, "val_logits_alpha1": scores(z["val_raw"], 1)}
    outputs |= {"val_acc_per_alpha": found, "best_alpha": best, "query_logits_best": query}
    return outputs | {"query_acc": percent(query, z["query_labels"])}


def proker(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The given pair, and the search over both grids."""
    hyper, text = meta["hyper"], z["text"]
    rows, x, val = (F.normalize(z[name], dim=1) for name in ("train_raw", "query_raw", "val_raw"))
    problem = kernels.KernelProblem(rows, z["train_labels"], text)

    def answer(x: Tensor, beta: float, solved: Tensor) -> Tensor:
        return x @ text.T + problem.against(x, beta) @ solved

    betas, lams = (_published_linspace(*hyper[name], rows.dtype) for name in ("bgrid", "lgrid"))
    found = [
        [percent(answer(val, beta, a), z["val_labels"]) for a in problem.solve(beta, lams)] for beta in betas
    ]
    pairs = [(b, lam) for b in betas for lam in lams]
    beta, lam = first_best(zip(pairs, [v for row in found for v in row], strict=True), (0.0, 0.0))
    solved = next(problem.solve(hyper["beta"], (hyper["lam"],)))
    chosen = next(problem.solve(beta, (lam,)))
    outputs = {"A": solved, "query_logits": answer(x, hyper["beta"], solved), "search_acc": found}
    outputs |= {"best_beta": beta, "best_lambda": lam, "A_search": chosen}
    return outputs | {"query_logits_search": answer(x, beta, chosen)}


def _published_linspace(first: float, last: float, count: int, precision: torch.dtype) -> tuple[float, ...]:
    return tuple(torch.linspace(first, last, int(count), dtype=precision).tolist())
