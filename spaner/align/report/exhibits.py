"""Which figures a report has: each is drawn once; the page and the files show the same drawing.

An exhibit belongs to a part of the page: "accuracy", "cosine", "modality_gap", "training", or the anchor of a
run (its confusions), of a sweep or of a check. A new figure is a function that returns a `Drawing` and a line
here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spaner.align.report import charts, check_charts, maps
from spaner.align.report.checks import Check
from spaner.align.report.drawing import Drawing, write
from spaner.align.report.measured import KINDS, Bench, Entry
from spaner.align.report.origin import FROZEN, benches, spaces
from spaner.align.report.sweep import Sweep
from spaner.align.score.confusion import confusion_matrix
from spaner.align.score.intervals import Number

CHECKS = {
    "scale": (
        check_charts.scale_drawing,
        "Mean ± standard deviation over seeds. Emergent pairs were never compared by a loss.",
    ),
    "prompt": (
        check_charts.prompt_drawing,
        "The reference minus the variant on the same rows, with 95 % intervals; faint where 0 lies inside.",
    ),
    "transfer": (
        check_charts.transfer_drawing,
        "Gains over the same test rows, with 95 % intervals; faint where 0 lies inside.",
    ),
}
"""What a check draws, and the line under it."""


@dataclass(frozen=True)
class Exhibit:
    """Drawings shown together, what they show, and the part of the page they belong to."""

    part: str
    drawings: Sequence[Drawing]
    caption: str


def exhibits(
    entries: Sequence[Entry], sweeps: Sequence[Sweep], checks: Sequence[Check] = ()
) -> list[Exhibit]:
    """Every figure of the report, part by part."""
    found = [
        *(made for number, bench in enumerate(benches(entries), 1) for made in _of_bench(number, *bench)),
        *(_confusion(entry) for entry in entries if entry.aligned.matches),
        *(made for sweep in sweeps for made in _of_sweep(sweep)),
        *(_of_check(check) for check in checks),
        Exhibit("training", _losses(entries), "Losses, mean of each epoch."),
    ]
    return [each for each in found if each.drawings]


def files(shown: Sequence[Exhibit], folder: Path) -> list[Path]:
    """Every drawing in every format; what each shows is in its name."""
    return [file for each in shown for drawing in each.drawings for file in write(drawing, folder)]


def _of_bench(number: int, bench: Bench, members: Sequence[Entry]) -> Iterator[Exhibit]:
    yield Exhibit(
        "accuracy",
        _accuracy(f"accuracy-{number}", bench, members),
        "Share of test rows whose own class is nearest; bars are 95 % intervals.",
    )
    yield Exhibit(
        "cosine",
        _cosines(f"cosine-{number}", bench, members),
        "Share of test rows below each cosine to the own class; the large mark is the mean.",
    )
    yield Exhibit(
        "modality_gap",
        list(_planes(number, bench, members)),
        "t-SNE over cosine distance: shape is the modality, colour the class. "
        "Point at a mark, or walk with the arrow keys. Distances between clusters mean nothing; "
        "whether the shapes mix does.",
    )


def _accuracy(name: str, bench: Bench, members: Sequence[Entry]) -> list[Drawing]:
    every = spaces(bench, members).items()
    found = {
        kind: {
            space: number
            for space, s in every
            if s.scores[kind] and (number := Number.of(s.scores[kind]["accuracy"]))
        }
        for kind in KINDS
    }
    return [charts.accuracy_drawing(name, found)] if any(found.values()) else []


def _cosines(name: str, bench: Bench, members: Sequence[Entry]) -> list[Drawing]:
    every = spaces(bench, members).items()
    shown = {n: s for n, s in every if s.matches and s.matches["text"].has_cosines}
    cosines = {kind: {n: s.matches[kind].positive for n, s in shown.items()} for kind in KINDS}
    return [charts.cosine_drawing(name, cosines, bench.dataset)] if shown else []


def _planes(number: int, bench: Bench, members: Sequence[Entry]) -> Iterator[Drawing]:
    if bench.frozen is not None and bench.frozen.plane is not None:
        yield maps.plane_drawing(f"space-frozen-{number}", FROZEN, bench.frozen.plane, bench.class_names)
    for entry in members:
        if entry.aligned.plane is not None:
            yield maps.plane_drawing(
                f"space-{entry.anchor}", entry.name, entry.aligned.plane, bench.class_names
            )


def _confusion(entry: Entry) -> Exhibit:
    names = entry.bench.class_names
    matrices = {kind: confusion_matrix(match, names) for kind, match in entry.aligned.matches.items()}
    return Exhibit(
        entry.anchor,
        [maps.confusion_drawing(f"confusion-{entry.anchor}", matrices, names, entry.name)],
        "Rows: the true class; columns: what it was taken for. Only errors are coloured.",
    )


def _of_sweep(sweep: Sweep) -> Iterator[Exhibit]:
    if "prompt_length" in sweep.varied:
        drawing = charts.length_drawing(f"length-{sweep.anchor}", sweep.finished)
        caption = "Accuracy over prompt length and fusion (Figure 6): mean ± standard deviation over seeds."
        yield Exhibit(sweep.anchor, [drawing], caption)
    if {"templates", "out_dim"} & set(sweep.varied):
        drawing = charts.choice_drawing(f"choice-{sweep.anchor}", sweep.finished)
        caption = "Accuracy by template set and width of the shared space (Figure 7), ± standard deviation."
        yield Exhibit(sweep.anchor, [drawing], caption)


def _of_check(check: Check) -> Exhibit:
    draw, caption = CHECKS[check.told["check"]]
    drawing = draw(f"{check.told['check']}-{check.anchor}", check.told)
    return Exhibit(check.anchor, [drawing] if drawing.panels else [], caption)


def _losses(entries: Sequence[Entry]) -> list[Drawing]:
    trained = [entry for entry in entries if entry.run.history]
    return [charts.loss_drawing(f"loss-{e.anchor}", e.name, e.run.history) for e in trained]
