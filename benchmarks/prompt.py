"""One step of learning a prompt: the text tower cut, shared and packed, against the loop one would write.

    OMP_NUM_THREADS=2 python benchmarks/prompt.py            a tower of 4 layers, 60 names
    OMP_NUM_THREADS=2 python benchmarks/prompt.py --full     ViT-B/16's tower, 1,000 names (minutes, 4 GB)

Forward and backward to M = 4 context vectors in front of every name, frozen random weights, float32. The
plain loop runs every name at all 77 positions; "cut" runs the same code up to the longest name's end token.
Both go block by block of 50 names, as memory asks. Times are of processor work, the fastest of `--repeat`;
the largest difference of the gradients stands beside them. `--full` takes 1,000 made-up names whose token
counts are about those of ImageNet's (4.2 tokens behind the prefix on average).
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from spaner.extract.encoders import clip
from spaner.extract.encoders.text_tower import Padded, PromptTower

SMALL = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4}
FULL = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
BLOCK = 50


def tower_of(text: dict, device: str = "cpu") -> PromptTower:
    """A text tower with random weights."""
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    config = {"embed_dim": text["width"], "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "benchmark.json")
        path.write_text(json.dumps(config))
        return clip.text_tower(model=str(path), weights="random", device=device)


def names_of(count: int) -> list[str]:
    """Names of one to eleven tokens, as ImageNet's: half of them of one or two."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.26, 0.38, 0.21, 0.09, 0.03, 0.01, 0.008, 0.005, 0.004, 0.002, 0.001])
    lengths = torch.multinomial(shares, count, replacement=True, generator=generator) + 1
    return [" ".join("cat" for _ in range(int(length))) for length in lengths]


class Cut(Padded):
    """The plain loop's sequences up to the last end token of the block, by the encoder's own cut."""

    def __init__(self, tower: PromptTower, texts: list, length: int) -> None:
        super().__init__(tower, texts, length, "end")
        last = max(1 + length + len(name) + len(tail) for name, tail in texts)
        self.ids = self.ids[:, :last]

    def __call__(self, context: Tensor, *, per_class: bool = False) -> Tensor:
        whole = self.tower.encode
        self.tower.encode = lambda ids: clip.encode_short(self.tower.model, ids)
        try:
            return super().__call__(context, per_class=per_class)
        finally:
            self.tower.encode = whole


def step(parts: list, context: Tensor) -> Tensor:
    """The gradient of the context, block by block."""
    context.grad = None
    for part in parts:
        part(context[None]).square().sum().backward()
    assert context.grad is not None
    return context.grad.clone()


def fastest(run: Callable[[], Tensor], repeat: int) -> tuple[float, Tensor]:
    """Seconds of processor time of the fastest run, and what it gave."""
    times = []
    result = torch.empty(0)
    for _ in range(repeat):
        start = time.process_time()
        result = run()
        times.append(time.process_time() - start)
    return min(times), result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    count, tower = (1000, tower_of(FULL)) if options.full else (60, tower_of(SMALL))
    names = names_of(count)
    texts = [tower.pieces(name, 4) for name in names]
    blocks = [texts[i : i + BLOCK] for i in range(0, count, BLOCK)]
    context = torch.nn.Parameter(tower.context_of("a photo of a"))
    ways = {
        "packed": [tower.prompted(names, 4)],
        "packed, blocks of 1,000 rows, recomputed": [
            tower.prompted(names, 4, block_rows=1000, recompute=True)
        ],
        "cut behind the end token": [Cut(tower, block, 4) for block in blocks],
        "77 positions": [Padded(tower, block, 4, "end") for block in blocks],
    }
    own = sum(len(name) + len(tail) for name, tail in texts) / count
    print(f"{count} names, {own:.1f} tokens each behind the prefix, {torch.get_num_threads()} threads")
    first = None
    for label, parts in ways.items():
        seconds, gradient = fastest(lambda parts=parts: step(parts, context), options.repeat)
        first = first or (seconds, gradient)
        off = float((gradient - first[1]).abs().max() / first[1].abs().max())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ratio = seconds / first[0]
        print(f"{label:42} {seconds:8.2f} s  {ratio:5.1f} x  gradient off by {off:.0e}  peak {peak:,.0f} MB")


if __name__ == "__main__":
    main()
