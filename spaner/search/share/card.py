"""The model card of a run, written from its result: nothing in it is typed by hand.

Intervals are Wilson's over the test rows (95 %): they say what other rows might have given, not what another
seed would have.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from spaner import __version__

Z95 = 1.959964
"""Standard normal deviate of a 95 % interval."""


def card(result: Mapping[str, Any], name: str) -> str:
    """Markdown with the hub's header; `result` is what result.json holds, `name` the repository."""
    metrics = result["metrics"]
    parts = [
        _header(result),
        f"# {_plain(name.rpartition('/')[2])}\n\n{_summary(result)}",
        "## Use\n\n```console\n"
        f"$ spaner pull {name}\n$ spaner index --run hf:{name} photos/\n```\n\n"
        "The folder holds safetensors and JSON, nothing that is executed. The frozen encoders are not in it: "
        "`spaner` loads them and compares their hashes.",
        "## Data\n\n" + "\n".join(_data(result)),
        "## Encoders\n\n" + _encoders(result),
        "## Results\n\n" + (_results(metrics) if metrics else "The run was not scored."),
        "## How settings were chosen\n\n" + _chosen(result),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(result)),
        "## Classes\n\n" + ", ".join(_plain(each) for each in result["class_names"]),
    ]
    return "\n\n".join(parts) + "\n"


def wilson(share: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share that was counted over some rows (Wilson 1927); (0.2, 10) gives 0.057,
    0.51."""
    z2 = Z95**2 / rows
    middle = (share + z2 / 2) / (1 + z2)
    half = Z95 * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _header(result: Mapping[str, Any]) -> str:
    tags = ["spaner", "few-shot", "multimodal-alignment", *result["widths"]]
    lines = ["---", "library_name: spaner", "tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    return "\n".join([*lines, "datasets:", f"- {json.dumps(result['dataset'])}", "---"])


def _summary(result: Mapping[str, Any]) -> str:
    modalities = ", ".join(result["widths"])
    made_up = (
        " **Its encoders have random weights: its numbers mean nothing.**" if result["synthetic"] else ""
    )
    config = result["config"]
    how = f"recipe {config['recipe']}" if config["method"] == "spaner" else f"method {config['method']}"
    return (
        f"A {how} run over frozen encoders ({modalities}), "
        f"trained by spaner {result['versions']['spaner']} and described by spaner {__version__}.{made_up}"
    )


def _data(result: Mapping[str, Any]) -> Iterator[str]:
    draw = result["draw"]
    shots = (
        "all rows" if draw["shots"] is None else f"{draw['shots']} shots a class (draw seed {draw['seed']})"
    )
    classes = f"{len(result['class_names']):,} classes"
    yield f"- {_plain(result['dataset'])}, {classes}, {shots}, {draw['rows']:,} rows"
    yield f"- seed {result['seed']}; SHA-256 of the drawn ids `{draw['sha256'][:16]}`"
    for extension in result["extensions"]:
        config, drawn = extension["config"], extension["draw"]
        yield f"- {config['modality']} joined later with {drawn['rows']:,} rows, seed {config['seed']}"


def _encoders(result: Mapping[str, Any]) -> str:
    rows = ["| modality | encoder | weights | SHA-256 | width |", "|---|---|---|---|---|"]
    for modality, spec in result["encoders"].items():
        weights = _plain(spec["weights"])
        digest = spec["weights_sha256"][:16]
        rows.append(f"| {modality} | {_plain(spec['name'])} | {weights} | `{digest}` | {spec['dim']} |")
    return "\n".join(rows)


def _results(metrics: Mapping[str, Any]) -> str:
    tested, rows = metrics["tested"], metrics["rows"]
    lines = [
        f"{rows:,} rows of {_plain(tested['table'])} of {_plain(tested['dataset'])}, "
        f"chance {100 * metrics['chance']:.1f} %.",
        "",
    ]
    if metrics["text"] is None:
        lines.append("No text was trained: no class can be asked by name.")
        return "\n".join(lines) + _between(metrics)
    lines += ["| | accuracy, 95 % interval | positive cosine | margin | ECE |", "|---|---|---|---|---|"]
    frozen = metrics.get("zero_shot") or {}
    named = {
        "text": metrics["text"],
        "semantic": metrics["semantic"],
        "frozen encoder, text": frozen.get("text"),
        "frozen encoder, semantic": frozen.get("semantic"),
    }
    lines += [_row(name, scores, rows) for name, scores in named.items() if scores]
    gap = metrics["gap"]
    return "\n".join([*lines, "", f"Gap (text − semantic): {'–' if gap is None else f'{100 * gap:.1f}'}"])


def _between(metrics: Mapping[str, Any]) -> str:
    trained = (metrics.get("modalities") or {}).get("trained")
    if trained is None:
        return ""
    found, chance = (f"{100 * trained[name]:.1f}" for name in ("recall@1", "chance"))
    return f" Mean recall@1 between its modalities: {found} % (chance {chance} %)."


def _row(name: str, scores: Mapping[str, Any], rows: int) -> str:
    low, high = wilson(scores["accuracy"], rows)
    numbers = [
        "–" if scores.get(key) is None else f"{scores[key]:.3f}"
        for key in ("positive_cosine", "margin", "ece")
    ]
    accuracy = f"{100 * scores['accuracy']:.1f} ({100 * low:.1f} – {100 * high:.1f})"
    return f"| {name} | {accuracy} | {' | '.join(numbers)} |"


def _chosen(result: Mapping[str, Any]) -> str:
    receipt = result.get("selection") or {}
    by = receipt.get("by", "none")
    said = {
        "none": "No setting was chosen by looking at data: the recipe's values were used as they are.",
        "val": "On the few-shot validation rows, never on test rows.",
        "published": "The method's published values.",
    }.get(by, f"By {_plain(str(by))}.")
    choice = receipt.get("choice")
    chosen = f" Chosen: `{_plain(json.dumps(choice))}`." if choice else ""
    temperature = result.get("temperature")
    fitted = (
        ""
        if temperature is None
        else f" Probabilities: temperature {temperature:.3g}, fitted on validation rows."
    )
    return said + chosen + fitted


def _limits(result: Mapping[str, Any]) -> Iterator[str]:
    yield "Numbers are of one training; another seed or draw gives others."
    yield "It was tested on the rows named above; other data, above all of other kinds, may score lower."
    yield "It inherits what its frozen encoders learned, their biases included."
    if result.get("metrics") and not (result["metrics"].get("zero_shot")):
        yield "The frozen encoders share no space of their own: no zero-shot number stands beside it."
    for extension in result["extensions"]:
        modality = extension["config"]["modality"]
        yield f"{modality} was aligned with images alone; it has seen no text."


def _plain(text: str) -> str:
    """A stranger's word in Markdown: no control characters, no markup, one line."""
    kept = "".join(c if c.isprintable() else " " for c in str(text))
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in kept)
