"""Golden cases of methods inside both towers: MaPLe, MMA."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_cases.prompts import Inputs, followed, plan, sgd
from golden_cases.tiny_clip import image_tower_of, model_of, tower_of
from spaner.align.methods.dual import train_inside
from spaner.align.methods.maple import DeepPrompts, names_behind, start_prompts
from spaner.align.methods.mma import Adapters
from spaner.align.methods.prompting import spoken


def loaded(module: nn.Module, z: Inputs) -> nn.Module:
    """The start values of the case."""
    module.to(z["train_images"].dtype)
    module.load_state_dict({name[6:]: tensor for name, tensor in z.items() if name.startswith("param.")})
    return module


def answered(
    learned: nn.Module,
    image_rows: Callable[[Tensor], Tensor],
    class_rows: Callable[[], Tensor],
    tokens: Callable[[Tensor], Tensor],
    scale: float,
    z: Inputs,
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """Before, during and after training."""
    outputs: dict[str, Any] = {}

    def logits() -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            text, query = class_rows(), image_rows(tokens(z["query_images"]))
            return text, query, scale * F.normalize(query, dim=1) @ F.normalize(text, dim=1).T

    def now(moment: str) -> None:
        names = ("text_features", "image_features", "logits")
        outputs.update({f"{name}_{moment}": value for name, value in zip(names, logits(), strict=True)})

    now("start")
    if isinstance(learned, DeepPrompts):
        learned.rounded = True
        outputs["logits_start_prompts_rounded_to_fp16"] = logits()[2]
        learned.rounded = False
    rates, batches = plan(z, meta)
    pool = tokens(z["train_images"])
    told = {"scale": scale, "rates": rates, "batches": batches, **sgd(meta)}
    losses = train_inside(learned, image_rows, class_rows, pool, z["train_labels"], **told)
    outputs |= followed(losses, dict(learned.named_parameters()), rates)
    now("final")
    return outputs


def maple(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts in both towers."""
    hyper, model = meta["hyper"], model_of(meta, z["train_images"].dtype)
    tower, image = tower_of(model), image_tower_of(model)
    context, rest = start_prompts(tower, hyper["init"], hyper["n_ctx"], 0)
    prompts = DeepPrompts(z["param.ctx"].clone(), hyper["depth"], image.width)
    loaded(prompts, z)
    prompted: Any = tower.prompted(names_behind(rest, meta["classnames"]), hyper["n_ctx"])
    tokens = partial(image.tokens, block=0)
    image_rows = partial(prompts.image_rows, image)
    class_rows = partial(prompts.class_rows, prompted)
    scale = float(model.logit_scale.exp())
    return {"ctx_from_words": context} | answered(prompts, image_rows, class_rows, tokens, scale, z, meta)


def mma(z: Inputs, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Adapters in both towers."""
    hyper, model = meta["hyper"], model_of(meta, z["train_images"].dtype)
    tower, image = tower_of(model), image_tower_of(model)
    blocks = range(hyper["start"], hyper["end"] + 1)
    adapters = Adapters(tower.width, image.width, blocks, hyper["dim"], hyper["scale"])
    loaded(adapters, z)
    context = tower.context_of(hyper["init"])
    prompted: Any = tower.prompted(spoken(meta["classnames"]), len(context))
    begun = prompted.begun(context[None], hyper["start"] - 1)
    tokens = partial(image.tokens, block=hyper["start"] - 1)
    image_rows = partial(adapters.image_rows, image)
    class_rows = partial(adapters.class_rows, begun)
    return answered(adapters, image_rows, class_rows, tokens, float(model.logit_scale.exp()), z, meta)
