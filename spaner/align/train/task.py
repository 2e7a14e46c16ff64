"""What training may see: sealed tables in, one `Task` of tensors out.

Reads `<modality>/train` (few-shot draw, all views), validation rows (see `rows.validation_samples`) and the
text tables, and no other table: a method that is given a Task cannot reach a test row. Rows whose extraction
failed are dropped. Embeddings are normalised to unit length here, once; their lengths are kept.
"""

from collections.abc import Mapping

import torch

from spaner import cache as caches
from spaner.align.methods.task import Captions, Task, Texts
from spaner.align.score.tables import class_texts, query_sets, tested_table
from spaner.align.train.config import TrainConfig
from spaner.align.train.joint import captions_of, companions, modalities_of, reads_text
from spaner.align.train.rows import drawn_samples, good_rows, validation_samples
from spaner.errors import CacheError, Mismatch, RecipeError


def task(cache: caches.Cache, config: TrainConfig) -> Task:
    """The training rows of the first modality, the texts of a template set, and further modalities, ready to
    train on.

    Raises:
        CacheError: a table, a draw or a class's text is missing. Unsealed: a table is not finished.
        Corrupt: an embedding is not finite. Mismatch: rows and texts come from different encoder weights.
        RecipeError: logit_scale=auto and the encoder has none of its own.
    """
    names = modalities_of(config)
    modality = names[0]
    samples = cache.table(f"{modality}/train")
    texts = _texts(cache, samples, config) if reads_text(config) else []
    sets = _template_sets(cache, config.templates) if texts else {}
    drawn = drawn_samples(samples, config.shots, config.draw_seed)
    further = list(companions(cache, config, names))
    captions, said = _captions(cache, samples, config)
    read = [samples, *texts, *(table for _, _, table in further)]
    encoders = {table.manifest.modality: table.manifest.encoder for table in read}
    return Task(
        dataset=cache.dataset,
        class_names=tuple(cache.class_names),
        modality=modality,
        x=drawn.x,
        norms=drawn.norms,
        labels=drawn.labels,
        text=sets[config.templates].x if sets else torch.empty(0, 0, 0),
        texts=sets,
        queries=query_sets(cache) if sets else {},
        validation=validation_samples(
            cache, modality, drawn, tested_table(cache, None, modality), config.held
        ),
        templates=config.templates,
        logit_scale=scale_of(config, encoders),
        draw=drawn.draw,
        encoders=encoders,
        tables={table.name: table.manifest.sha256 for table in [*read, *said]},
        companions={name: rows for name, rows, _ in further},
        captions=captions,
        table_rows=torch.from_numpy(good_rows(samples, config.shots, config.draw_seed)),
    )


def _texts(cache: caches.Cache, samples: caches.Table, config: TrainConfig) -> list[caches.Table]:
    """The table of the trained templates, of the samples' own encoder."""
    texts = cache.table(f"text/{config.templates}")
    _check_same_weights(samples.manifest, texts.manifest)
    return [texts]


def _captions(
    cache: caches.Cache, samples: caches.Table, config: TrainConfig
) -> tuple[Captions | None, list[caches.Table]]:
    """Captions where they are asked for, of the samples' own encoder, and their tables."""
    captions, tables = captions_of(cache, config, samples)
    for table in tables:
        _check_same_weights(samples.manifest, table.manifest)
    return captions, tables


def _template_sets(cache: caches.Cache, trained: str) -> dict[str, Texts]:
    """Every template set that has a text for each class; the one that is trained on must."""
    found = {}
    for name in (n.removeprefix("text/") for n in cache.tables() if n.startswith("text/")):
        try:
            found[name] = class_texts(cache.table(f"text/{name}"), list(cache.class_names))
        except CacheError:
            if name == trained:
                raise
    return found


def _check_same_weights(samples: caches.Manifest, texts: caches.Manifest) -> None:
    a, b = samples.encoder, texts.encoder
    for name in ("name", "weights_sha256"):
        found, other = getattr(a, name), getattr(b, name)
        if found != other:
            raise Mismatch(
                f"{samples.modality} and text were embedded by different encoders: "
                f"{name} is {found!r} and {other!r}; "
                f"expected one encoder; extract both modalities with the same --model and --pretrained"
            )


def scale_of(config: TrainConfig, encoders: Mapping[str, caches.EncoderSpec]) -> float:
    """The logit scale of a configuration; "auto" is that of the encoders.

    Raises:
        RecipeError: auto, and the encoders have none.
    """
    if config.logit_scale != "auto":
        return config.logit_scale
    scale = next((spec.logit_scale for spec in encoders.values() if spec.logit_scale), None)
    if scale is None:
        raise RecipeError(
            f"logit_scale is auto, and the encoder {next(iter(encoders.values())).name!r} of the cache has "
            "no scale of its own; pass a number, for example --logit-scale 100"
        )
    return float(scale)
