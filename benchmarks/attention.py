"""Forward and backward of one aligner: shared-prompt attention against concatenated tokens.

    OMP_NUM_THREADS=2 python benchmarks/attention.py
    OMP_NUM_THREADS=1 python benchmarks/attention.py --clock cpu      where other programs run

The other side is `nn.MultiheadAttention`. Both get the same weights and inputs and are timed in turns, so
that other load on the machine meets both. Times are those of the fastest round. Random inputs: nothing here
depends on their values.
"""

import argparse
import resource
import time
from contextlib import nullcontext

import torch
from concatenated import ConcatenatedAligner

from spaner.align.methods.attention import AttentionAligner
from spaner.device import fast_products, keep_freed_memory

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = time.perf_counter


def step(aligner: torch.nn.Module, x: torch.Tensor, prompt: torch.Tensor) -> float:
    """Milliseconds of one forward and backward pass to every parameter and the prompt, as in training."""
    started = clock()
    f, z = aligner(x, prompt)
    torch.autograd.grad(f.square().sum() + z.square().sum(), [prompt, *aligner.parameters()])
    return (clock() - started) * 1e3


def measure(
    batch: int, dim: int, lengths: list[int], rounds: int
) -> dict[int, tuple[list[float], list[float]]]:
    """Times of both sides per prompt length, taken in turns."""
    shared, plain = AttentionAligner(dim, dim), ConcatenatedAligner(dim, dim)
    plain.load_state_dict(shared.state_dict())
    x = torch.nn.functional.normalize(torch.randn(batch, dim), dim=1)
    prompts = {length: (torch.randn(length, dim) * 0.02).requires_grad_() for length in lengths}
    times: dict[int, tuple[list[float], list[float]]] = {length: ([], []) for length in lengths}
    for number in range(rounds + 1):
        for length, prompt in prompts.items():
            for side, aligner in enumerate((shared, plain)):
                with nullcontext() if side else fast_products(x.device):
                    milliseconds = step(aligner, x, prompt)
                if number:  # the first round warms up
                    times[length][side].append(milliseconds)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    global clock
    clock = CLOCKS[options.clock]
    torch.manual_seed(0)
    keep_freed_memory(torch.device("cpu"))
    times = measure(options.batch, options.dim, options.lengths, options.rounds)
    first = options.lengths[0]
    print(f"B = {options.batch}, D = {options.dim}, float32, {torch.get_num_threads()} threads")
    print(f"  P  concatenated ms  shared ms  ratio  shared / P={first}")
    for length, (shared, plain) in times.items():
        a, b = min(shared), min(plain)
        print(f"{length:>3} {b:>16.1f} {a:>10.1f} {b / a:>6.1f} {a / min(times[first][0]):>13.2f}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
