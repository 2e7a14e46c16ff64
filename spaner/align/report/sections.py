"""What a report says, part by part: the head, then accuracy, cosines, space, retrieval, confusion, shift,
ablations, training and origins.

Takes measured runs, tables and exhibits, gives HTML made by `page`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from spaner.align.report import published
from spaner.align.report.checks import Check
from spaner.align.report.exhibits import Exhibit
from spaner.align.report.measured import KINDS, Entry, confused_pairs
from spaner.align.report.origin import benches, heading, sweep_command, train_command, why_apart
from spaner.align.report.page import Section, figure, table
from spaner.align.report.space_tables import WAYS
from spaner.align.report.sweep import Sweep
from spaner.align.report.table import ReportTable, bounds, text
from spaner.align.report.tables import accuracy_numbers
from spaner.align.score.intervals import Number
from spaner.align.train.run import Run

LISTED = 24
"""Rows of a table of pairs up to which it is shown as it is."""

TITLES = {
    "accuracy": ("Accuracy", "Class retrieval beside the paper's Table 1."),
    "cosine": ("Alignment", "How close rows come to their class: the paper's Table 2 and Figure 4."),
    "calibration": ("Calibration", "Does a run know how sure it is?"),
    "modality_gap": ("Space", "Do the modalities share one space? The paper's Figure 2, with numbers."),
    "retrieval": ("Retrieval", "Every modality asks every other: the paper's Table 3."),
    "captions": ("Captions", "Does an image find its sentence, and is a sentence told from its negation?"),
    "differences": ("Between runs", "The same rows, run against run."),
    "shift": ("Domain shift", "Trained in one world, tested in others: the paper's Table 4."),
}


def head(entries: Sequence[Entry], apart: Sequence[str]) -> str:
    """What was tested, one tile per run, and what must not be compared."""
    lines = []
    for bench, _ in benches(entries):
        chance = f" · chance {text(Number(1 / len(bench.class_names)), 'percent')} %"
        lines.append(heading(bench) + (chance if len(set(bench.class_names)) > 1 else ""))
    said = "".join(f'<p class="lede faint">{escape(line)}</p>' for line in lines)
    tiles = "".join(_tile(entry) for entry in entries)
    paper = published.benchmark("imagenet")
    why = list(dict.fromkeys(filter(None, (why_apart(entry, paper) for entry in entries))))
    notes = []
    if why:
        notes.append(
            "Not comparable with the paper's ImageNet numbers, because of " + "; or ".join(why) + "."
        )
    if apart:
        notes.append("Shown side by side and never averaged: " + "; ".join(apart) + ".")
    if any(entry.run.synthetic for entry in entries):
        notes.append(
            "Some embeddings are synthetic: they say whether the code works, not how good a method is."
        )
    return f'{said}<ul class="tiles">{tiles}</ul>' + "".join(
        f'<p class="note">{escape(n)}</p>' for n in notes
    )


def _tile(entry: Entry) -> str:
    name = f'<a href="#{entry.anchor}">{escape(entry.name)}</a>'
    if not entry.aligned.matches:
        ways = [way["recall@1"] for way in entry.aligned.directions]
        mean = text(Number(sum(ways) / len(ways)), "percent") if ways else "–"
        by = "class" if len(set(entry.bench.class_names)) > 1 else "id"
        about = f"{len(ways)} ordered pairs: mean recall@1 by {by}, %; no text was trained"
        said = entry.aligned.beside.get("captions")
        if not ways and said:
            mean = " / ".join(text(Number(said[way]["recall@1"]), "percent") for way in WAYS)
            about = f"recall@1, %: {' / '.join(WAYS.values())}"
        return f'<li><span class="of">{name}</span><b>{mean}</b><span class="of">{about}</span></li>'
    accuracy = [text(accuracy_numbers(entry.aligned.scores)[kind], "percent") for kind in KINDS]
    gains = []
    for kind, gain in (entry.gains or {}).items():
        low, high = gain.low or 0.0, gain.high or 0.0
        tone = "up" if low > 0 else "down" if high < 0 else "faint"
        sure = escape(f"95 %: {bounds(gain, 'points')}")
        gains.append(f'{kind} <span class="{tone}" title="{sure}">{text(gain, "points")}</span>')
    versus = f"<span>vs frozen: {', '.join(gains)} points</span>" if gains else ""
    return (
        f'<li><span class="of">{name}</span>'
        f'<b>{accuracy[0]} <span class="faint">/</span> {accuracy[1]}</b>'
        f'<span class="of">text / semantic, % right</span><span class="of">{versus}</span></li>'
    )


def sections(
    entries: Sequence[Entry],
    tables: Sequence[ReportTable],
    sweeps: Sequence[Sweep],
    checks: Sequence[Check],
    apart: Sequence[str],
    shown: Sequence[Exhibit],
    beside: str = "",
) -> Iterator[Section]:
    """All parts of the page; `beside` is the folder of the figures' files, seen from the page, if there is
    one."""
    by_key = {content.key: content for content in tables}
    drawn: dict[str, str] = {}
    for each in shown:
        drawn[each.part] = drawn.get(each.part, "") + figure(each.drawings, each.caption, beside)
    for key, (title, about) in TITLES.items():
        if key in by_key:
            body = f"<p>{escape(about)}</p>{drawn.get(key, '')}{_tables(key, by_key)}"
            yield Section(key.replace("_", "-"), title, body)
        confused = [entry for entry in entries if entry.aligned.matches]
        if key == "retrieval" and confused:
            yield Section("confusion", "Confusion", _confusion(confused, drawn))
    if sweeps:
        yield Section("ablations", "Ablations", "".join(_sweep(s, by_key[s.anchor], drawn) for s in sweeps))
    for check in checks:
        body = f"<p>{escape(check.about)}</p>{drawn.get(check.anchor, '')}"
        yield Section(check.anchor, check.title, body + "".join(map(table, check.tables)))
    if "training" in drawn:
        yield Section("training", "Training", drawn["training"])
    yield Section("origins", "Origins", _origins(entries, sweeps, apart))


def _tables(key: str, by_key: Mapping[str, ReportTable]) -> str:
    """A part's tables; the list of all ordered pairs is folded away where a matrix shows them."""
    matrices = [content for name, content in by_key.items() if name.startswith("pairs-")]
    if key == "modality_gap":
        more = [by_key[name] for name in ("coherence", "agreement") if name in by_key]
        shown = [table(content) for content in more if len(content.rows) <= LISTED]
        folded = [by_key[key], *(content for content in more if len(content.rows) > LISTED)]
        return "".join(shown) + "".join(map(_long, folded))
    if key == "retrieval" and matrices:
        more = [by_key["together"]] if "together" in by_key else []
        return "".join(table(content) for content in [*matrices, *more]) + _long(by_key[key])
    return table(by_key[key])


def _long(content: ReportTable) -> str:
    """A table; folded away where its rows are too many to be read."""
    if len(content.rows) <= LISTED:
        return table(content)
    summary = f"{escape(content.title)}: {len(content.rows)} rows"
    return f'<details class="fold"><summary>{summary}</summary>{table(content)}</details>'


def _confusion(entries: Sequence[Entry], drawn: Mapping[str, str]) -> str:
    parts = ["<p>Who is taken for whom among the 20 most confused classes: the paper's Figure 8.</p>"]
    for entry in entries:
        parts.append(f"<h3>{escape(entry.name)}</h3>{drawn[entry.anchor]}")
        pairs = "".join(
            f"<dt>{escape(KINDS[kind])}</dt><dd>{_pairs(found)}</dd>"
            for kind, found in confused_pairs(entry.aligned, entry.bench.class_names).items()
        )
        parts.append(f"<details><summary>Most confused pairs by name</summary><dl>{pairs}</dl></details>")
    return "".join(parts)


def _pairs(found: Sequence[dict]) -> str:
    items = [
        f"{escape(p['a'])} ↔ {escape(p['b'])} <span class='faint'>({p['a_as_b']} + {p['b_as_a']})</span>"
        for p in found
    ]
    return "<br>".join(items) or "none"


def _sweep(found: Sweep, content: ReportTable, drawn: Mapping[str, str]) -> str:
    title = f'<h3 id="{found.anchor}">{escape(found.name)}</h3>'
    return title + drawn.get(found.anchor, "") + table(content)


def _origins(entries: Sequence[Entry], sweeps: Sequence[Sweep], apart: Sequence[str]) -> str:
    parts = ["<p>Where every number comes from, and what to type to see it again.</p>"]
    if apart:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in apart)
        parts.append(f'<p>Never averaged, because of:</p><ul class="plain">{reasons}</ul>')
    parts += [_card(entry) for entry in entries]
    for found in sweeps:
        tested = found.finished[0]["metrics"]["tested"]
        facts = {
            "cells": f"{len(found.finished)} finished, {found.failed} failed",
            "tested on": f"{tested['dataset']} {tested['table']}, {tested['manifest_sha256']}",
            "encoder": tested["encoder"],
            "command": sweep_command(found.finished),
        }
        parts.append(_details(f"origin-{found.anchor}", f"Sweep {found.name}", facts))
    return "".join(parts)


def _card(entry: Entry) -> str:
    run, bench = entry.run, entry.bench
    config = run.config
    facts = {
        "command": train_command(entry),
        "recipe": _recipe(run),
        "seed": str(config.seed),
        "training draw": _draw(run.draw),
        **{f"trained on {name}": digest for name, digest in run.tables.items()},
        **{
            f"asked by {name}" if name != bench.table else f"tested on {name}": d
            for name, d in bench.tables.items()
        },
        **{
            f"encoder, {modality}": f"{s.name} {s.weights}, {s.dim} wide, {s.precision}, weights "
            f"{s.weights_sha256}"
            for modality, s in run.encoders.items()
        },
        **{f"joined: {e['config']['modality']}": _draw(e["draw"]) for e in run.extensions},
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }
    return _details(entry.anchor, entry.name, facts)


def _recipe(run: Run) -> str:
    """How it was fitted, in a line; a closed form has neither aligner nor epochs."""
    config = run.config.to_json()
    parts = [run.config.title, config.get("aligner"), f"{len(run.history)} epochs" if run.history else None]
    return ", ".join([*filter(None, parts), f"{run.seconds:.0f} s"])


def _draw(draw: dict) -> str:
    kind = "all rows" if draw["shots"] is None else f"{draw['shots']} shots, draw seed {draw['seed']}"
    return f"{kind}, {draw['rows']:,} rows, ids {draw['sha256']}"


def _details(anchor: str, title: str, facts: dict[str, str]) -> str:
    lines = "".join(
        f"<dt>{escape(name)}</dt><dd>{'<code>' + escape(value) + '</code>'}</dd>"
        for name, value in facts.items()
    )
    return f'<details id="{anchor}" open><summary>{escape(title)}</summary><dl>{lines}</dl></details>'
