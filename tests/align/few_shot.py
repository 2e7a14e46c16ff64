"""A small few-shot task made up from a seed, and flat settings: what the tests of heads fit."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from spaner.align.methods.loop import Loop
from spaner.align.methods.task import Draw, Query, Samples, Task, Texts

CLASSES, SHOTS, VIEWS, WIDTH, TEMPLATES = 7, 5, 3, 23, 4


def vectors(generator, *shape):
    return torch.randn(*shape, generator=generator)


def unit(raw):
    """Unit vectors and the lengths that they had."""
    return F.normalize(raw, dim=-1), raw.norm(dim=-1)


def samples(labels, *, seed=1, views=VIEWS, width=WIDTH, noise=1.8):
    """Rows around class centres, of lengths from 5 to 15; images and texts of a class share its centre."""
    generator = torch.Generator().manual_seed(seed)
    raw = centres(width)[labels][:, None] + noise * vectors(generator, len(labels), 1, width)
    raw = raw + 0.3 * vectors(generator, len(labels), views, width)
    lengths = 5 + 10 * torch.rand(len(labels), views, generator=generator)
    x, _ = unit(raw)
    return Samples(x, labels, Draw(None, None, len(labels), 0, ""), lengths)


def centres(width, classes=CLASSES):
    return vectors(torch.Generator().manual_seed(99), classes, width)


def texts(count, *, seed, width=WIDTH, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    raw = centres(width, classes)[:, None] + 0.7 * vectors(generator, classes, 1, width)
    raw = raw + 0.4 * vectors(generator, classes, count, width)
    return Texts(*unit(raw))


def task(*, shots=SHOTS, views=VIEWS, validation=True, labels=None, text_width=WIDTH, **changes: Any) -> Task:
    """Classes interleaved, so that nothing may rely on their order."""
    labels = torch.arange(CLASSES).repeat(shots) if labels is None else labels
    drawn = samples(labels, views=views)
    sets = {
        "mined": texts(TEMPLATES, seed=3, width=text_width),
        "vanilla": texts(1, seed=4, width=text_width),
    }
    sets["classname"] = texts(1, seed=5, width=text_width)
    held = samples(torch.arange(CLASSES).repeat(4), seed=2, views=views) if validation else None
    return dataclasses.replace(
        Task(
            dataset="made up",
            class_names=tuple(f"class {i}" for i in range(CLASSES)),
            modality="image",
            x=drawn.x,
            labels=labels,
            text=sets["mined"].x,
            templates="mined",
            logit_scale=20.0,
            draw=drawn.draw,
            encoders={},
            tables={},
            norms=drawn.norms,
            texts=sets,
            queries={"text": "vanilla", "semantic": "classname"},
            validation=held,
        ),
        **changes,
    )


def settings(method, **changes: Any) -> SimpleNamespace:
    """The flat record that `fit` is given: the method's fields, the loop's, and what all share."""
    flat = dataclasses.asdict(Loop(**(method.training or {})))
    flat |= dataclasses.asdict(method.Settings()) | {"seed": 1, "precision": "float32"}
    assert changes.keys() <= flat.keys(), changes
    return SimpleNamespace(**flat | changes)


def accuracy(fitted, query: Query, rows: int = 60) -> float:
    """On rows of their own."""
    test = samples(torch.arange(CLASSES).repeat(rows), seed=11, views=1)
    with torch.no_grad():
        return float((fitted.scores(test.x[:, 0], query).argmax(1) == test.labels).float().mean())
