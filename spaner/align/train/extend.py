"""A new modality joins a trained space without changing it.

Paper: SPANER, "Extending to Audio" and Figure 9. The newcomer gets a fresh aligner, and a linear map into the
prompt's width D where its own differs. Each of its samples is paired with a random image of its class from
the run's few-shot pool; no text is used. Prompt, other aligners and projections take no gradient: their hash
is taken before and after, and both are kept in the run. Nothing here is special to sound: any modality joins
like this.

Differs from the reference in: nothing. Where the paper is silent: 30 epochs, as for the first two
modalities; and in an anchored run the newcomer starts at random and is not blended, since its embeddings
mean nothing in that space.
"""

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spaner import cache as caches
from spaner.align.methods.loop import Pairs, optimise
from spaner.align.methods.method import Extendable
from spaner.align.methods.task import Samples
from spaner.align.score.evaluate import asks_by_name, evaluate, evaluate_pair, opened_cache
from spaner.align.train.config import ExtendConfig
from spaner.align.train.rows import drawn_samples, samples_of
from spaner.align.train.run import Run
from spaner.cache.draws import first_shots
from spaner.device import device_of
from spaner.errors import CacheError, RunError
from spaner.progress import Progress


def extend(
    run: Run,
    cache: caches.Cache | str | Path,
    config: ExtendConfig | None = None,
    progress: Progress | None = None,
    *,
    replace: bool = False,
    **overrides: Any,
) -> Run:
    """Let `config.modality` join the space of `run`; the given run stays as it is.

    Args:
        run: a trained run that knows `config.anchor`.
        cache: holds `<modality>/<split>` and `<anchor>/train` of the same classes.
        replace: train the modality anew where the run has it already.
        **overrides: settings by name, instead of `config`.

    Returns:
        A new run with one more modality, whose last extension records what was done and both hashes.

    Raises:
        RunError: the run has the modality already, or is not of a kind that can be extended; or the core's
            hash changed, which is a bug.
        CacheError: a table, or the partners of a class, are missing. Mismatch: another encoder's images.
    """
    config = config or ExtendConfig(**overrides)
    with opened_cache(cache) as opened:
        _check_run(run, config, replace=replace)
        anchors = opened.table(f"{config.anchor}/train")
        table = opened.table(f"{config.modality}/{config.split}")
        run.check(anchors.manifest)
        samples = _samples(table, config)
        pool = drawn_samples(anchors, run.draw["shots"], run.draw["seed"] or 1)
        device = device_of(config.device)
        model = run.model.joined(config.modality, samples.x.shape[2], config.seed).to(device)
        before, started = frozen_sha256(model), time.perf_counter()
        pairs = _pairs(samples, pool, config, list(opened.class_names))
        history = optimise(model, pairs, config, device, progress)
        record = {
            "config": dataclasses.asdict(config),
            "draw": samples.draw.to_json(),
            "pool": pool.draw.to_json(),
            "tables": {t.name: t.manifest.sha256 for t in (table, anchors)},
            "frozen_sha256": {"before": before, "after": frozen_sha256(model)},
            "final": history[-1],
            "seconds": time.perf_counter() - started,
        }
        return _extended(run, model.cpu().eval(), config, table.manifest.encoder, record)


def extend_and_check(
    run: Run,
    cache: caches.Cache | str | Path,
    config: ExtendConfig,
    folder: str | Path,
    progress: Progress | None = None,
    *,
    replace: bool = False,
) -> dict[str, Any]:
    """Extend, prove that nothing else moved, save, and score the newcomer if the cache has a test table.

    Returns:
        `extension` (the record), `metrics` of the core, and where there is a test table `newcomer` (its own
        retrieval of names, if the run knows names) and `pairs` (retrieval between it and the others).

    Raises:
        RunError: the core's hash or one of its metrics changed; nothing is saved.
    """
    with opened_cache(cache) as opened:
        longer = extend(run, opened, config, progress, replace=replace)
        longer.metrics, longer.cache = evaluate(longer, opened, device=config.device), opened.path
        if longer.metrics != evaluate(run, opened, device=config.device):
            raise _moved(config)
        longer.save(folder)
        result: dict[str, Any] = {"extension": longer.extensions[-1], "metrics": longer.metrics}
        if opened.has(f"{config.modality}/test"):
            newcomer, anchor = f"{config.modality}/test", f"{config.anchor}/test"
            directions = [(anchor, newcomer), (newcomer, anchor)]
            if asks_by_name(longer):
                result["newcomer"] = evaluate(longer, opened, newcomer, device=config.device)
                directions.insert(0, ("text/classname", newcomer))
            result["pairs"] = [evaluate_pair(longer, opened, query, target) for query, target in directions]
        return result


def _moved(config: ExtendConfig) -> RunError:
    return RunError(
        f"{config.modality} changed the trained core; expected the same bits before and after; "
        "nothing was saved; please report this"
    )


def frozen_sha256(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters that take no gradient."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_run(run: Run, config: ExtendConfig, *, replace: bool) -> None:
    if config.anchor not in run.widths:
        raise RunError(
            f"the run has no {config.anchor} to pair {config.modality} with; "
            f"it knows {', '.join(run.widths)}; choose one with --anchor"
        )
    if config.modality == config.anchor or config.modality == "text":
        raise RunError(
            f"{config.modality} is part of the trained core and cannot join it; choose another --modality"
        )
    if config.modality in run.widths and not replace:
        raise RunError(f"the run has {config.modality} already; type --replace to train it anew")
    if not isinstance(run.model, Extendable):
        raise RunError(
            f"method {run.config.method!r} takes no further modality; train a run with method=spaner"
        )


def _samples(table: caches.Table, config: ExtendConfig) -> Samples:
    if config.select == "first" and config.shots is not None:
        rows, _ = first_shots(table.labels, config.shots)
        return samples_of(table, rows, config.shots, None)
    return drawn_samples(table, config.shots, config.draw_seed)


def _pairs(samples: Samples, pool: Samples, config: ExtendConfig, class_names: list[str]) -> Pairs:
    """Every view of every sample; its partners are all views of its class in the pool."""
    order = pool.labels.argsort(stable=True)
    views = pool.x.shape[1]
    count = torch.bincount(pool.labels, minlength=len(class_names)) * views
    alone = sorted({class_names[c] for c in samples.labels.tolist() if not count[c]})
    if alone:
        raise CacheError(
            f"class {alone[0]!r} has {config.modality} and no {config.anchor} in the run's few-shot pool "
            f"({len(alone)} such classes); expected at least one; "
            f"extract {config.anchor}/train for these classes"
        )
    return Pairs(
        modality=config.modality,
        x=samples.x.flatten(0, 1),
        labels=samples.labels.repeat_interleave(samples.x.shape[1]),
        partner=config.anchor,
        pool=pool.x[order].flatten(0, 1),
        start=count.cumsum(0) - count,
        count=count,
    )


def _extended(
    run: Run, model: Any, config: ExtendConfig, encoder: caches.EncoderSpec, record: dict[str, Any]
) -> Run:
    if record["frozen_sha256"]["before"] != record["frozen_sha256"]["after"]:
        raise _moved(config)
    kept = [e for e in run.extensions if e["config"]["modality"] != config.modality]
    return dataclasses.replace(
        run,
        model=model.requires_grad_(),
        widths=run.widths | {config.modality: encoder.dim},
        encoders=run.encoders | {config.modality: encoder},
        extensions=[*kept, record],
    )
