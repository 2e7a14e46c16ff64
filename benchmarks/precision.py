"""What bfloat16 does to the final metrics: the same training in float32 and bfloat16, side by side.

    python benchmarks/precision.py                    reduced scale, some minutes
    python benchmarks/precision.py --classes 1000 --dim 512 --epochs 30

Both sides start from the same weights and see the same batches; only the arithmetic differs. Data are the
synthetic cache's, so the level of the numbers says nothing; their differences are compared with those between
seeds.
"""

import argparse
import resource
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthetic import make

import spaner
from spaner.align.score.evaluate import evaluate
from spaner.align.train.sweep import scores

SHOWN = {"text": 100, "semantic": 100, "gap": 100, "text_cosine": 1, "semantic_cosine": 1, "margin": 1}
PRECISIONS = ("float32", "bfloat16")


def measured(cache: Path, precision: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Headline numbers of one run (accuracies as fractions), its last loss, and seconds of training."""
    run = spaner.fit(cache, precision=precision, seed=seed, **settings)
    result = scores({"metrics": evaluate(run, cache)})
    return {**result, "loss": run.history[-1]["loss"], "seconds": run.seconds}


def line(name: str, rows: Sequence[dict[str, float]]) -> str:
    """Mean and standard deviation over seeds of every number, as a row of a Markdown table."""
    cells = []
    for key, scale in {**SHOWN, "loss": 1, "seconds": 1}.items():
        values = [scale * row[key] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        digits = 2 if scale == 100 else 4 if key != "seconds" else 1
        cells.append(f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    defaults = {"classes": 200, "shots": 16, "dim": 256, "test_rows": 10_000, "epochs": 15, "batch_size": 256}
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = vars(parser.parse_args())
    settings = {name: options[name] for name in ("epochs", "batch_size")}
    rows: dict[str, list[dict[str, float]]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        make(cache, **{name: options[name] for name in ("classes", "shots", "dim", "test_rows")})
        for seed in options["seeds"]:
            for precision in PRECISIONS:
                rows[precision].append(measured(cache, precision, seed, settings))
    print(", ".join(f"{name} {value}" for name, value in options.items()))
    names = [name.replace("_", " ") + (" %" if scale == 100 else "") for name, scale in SHOWN.items()]
    print("| | " + " | ".join([*names, "last loss", "seconds"]) + " |")
    print("|---" * (len(SHOWN) + 3) + "|")
    for precision in PRECISIONS:
        print(line(precision, rows[precision]))
    pairs = zip(*rows.values(), strict=True)
    print(line("difference, same seed", [{key: b[key] - a[key] for key in a} for a, b in pairs]))
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
