"""Clips per second of the ESResNeXt encoder beside a plain loop over the same network, from one run.

    OMP_NUM_THREADS=2 python benchmarks/audio.py [--clips 16] [--folder DIR]

The plain loop does what the published scripts do: one file after another, the kernel made at every call,
frames padded to 2,048 taps, real and imaginary part multiplied apart, contiguous weights, batch norm by
itself. Both read the same files (made-up noise unless --folder is given) and use the same random weights; the
rows' difference is printed. On a shared machine the clock measures the neighbours: processor time is
steadier, most of all with OMP_NUM_THREADS=1, where no thread waits for another.
"""

import argparse
import copy
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn import functional

from spaner.extract.datasets.audio import RATE, Recording, waveform
from spaner.extract.datasets.tree import SOUNDS
from spaner.extract.encoders import esresnext as audio_encoder
from spaner.extract.encoders import fbsp
from spaner.extract.encoders.esresnext import AudioEncoder
from spaner.extract.encoders.esresnext_network import ESResNeXtFBSP

ESC50 = 2_000
CORES = 2


def made_up(folder: Path, clips: int) -> list[Path]:
    """Five seconds of noise each, as 16-bit WAV."""
    paths = [folder / f"{i}.wav" for i in range(clips)]
    for i, path in enumerate(paths):
        soundfile.write(path, np.random.default_rng(i).uniform(-0.3, 0.3, 5 * RATE), RATE)
    return paths


def plain_image(model: ESResNeXtFBSP, signal: Tensor) -> Tensor:
    """The front end as it is written in the papers' code: everything anew, all taps."""
    kernel = model.fbsp.kernel()
    windowed = fbsp.frames(fbsp.from_int16(signal)) * model.window
    padded = functional.pad(windowed, (fbsp.PAD, fbsp.PAD))
    re, im = padded @ kernel[..., 0].T, padded @ kernel[..., 1].T
    return fbsp.decibel_bands(re.T.contiguous(), im.T.contiguous())[None]


def plain_trunk(model: ESResNeXtFBSP, image: Tensor) -> Tensor:
    """The trunk layer by layer, in torch's default memory format."""
    x = functional.relu(model.bn1(model.conv1(image)))
    x = functional.max_pool2d(x, 3, stride=2, padding=1)
    for layer, gate in zip(model.stages(), model.gates(), strict=False):
        y = layer(x)
        x = y * gate(x, y.shape[-2:])
    return (x.mean((-2, -1), keepdim=True) * model.att5(x, (1, 1))).flatten(1)


def plain_loop(model: ESResNeXtFBSP, paths: list[Path]) -> Tensor:
    """One file after another, all by itself."""
    rows = []
    for path in paths:
        signal = waveform(Recording(path), 5.0)[0] * 32_768
        rows.append(plain_trunk(model, plain_image(model, signal)))
    return torch.cat(rows)


def ours(encoder: AudioEncoder, paths: list[Path], batch: int) -> Tensor:
    """Batches of `batch`, decoded ahead in a thread."""
    rows = []
    with ThreadPoolExecutor(1) as pool:
        clips = pool.map(lambda path: encoder.prepare(Recording(path), 0, "", 0), paths)
        while part := list(islice(clips, batch)):
            rows.append(encoder.encode(torch.stack(part)))
    return torch.cat(rows)


def timed(work: Callable[[], Tensor], clips: int) -> tuple[float, float, Tensor]:
    """Wall and processor seconds per clip, each the better of two runs, and the rows."""
    wall, processor, rows = [], [], torch.empty(0)
    for _ in range(2):
        began = time.perf_counter(), time.process_time()
        rows = work()
        wall.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
    return min(wall) / clips, min(processor) / clips, rows


def report(name: str, wall: float, processor: float, plain: float, error: float) -> None:
    print(
        f"{name:22} {1 / wall:6.2f} clips/s {ESC50 * wall / 60:6.1f} min | {processor:6.3f} s "
        f"{plain / processor:5.2f} x {ESC50 * processor / CORES / 60:6.1f} min | {error:.0e}"
    )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="real sounds instead of noise")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    encoder = audio_encoder.load("audio", weights="random", device="cpu")
    plain: ESResNeXtFBSP = copy.deepcopy(encoder.model)
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with TemporaryDirectory() as folder:
        paths = made_up(Path(folder), options.clips)
        if options.folder:
            found = [path for path in sorted(options.folder.rglob("*")) if path.suffix.lower() in SOUNDS]
            paths = found[: options.clips]
        print(f"{len(paths)} clips of 5 s, {torch.get_num_threads()} threads")
        print(f"by the clock, for {ESC50:,} clips | processor, ratio, on {CORES} free cores | rows differ")
        wall, base, want = timed(lambda: plain_loop(plain, paths), len(paths))
        report("plain loop", wall, base, base, 0.0)
        for batch in options.batches:
            wall, taken, rows = timed(lambda batch=batch: ours(encoder, paths, batch), len(paths))
            report(
                f"spaner, batches of {batch}", wall, taken, base, float((rows - want).norm() / want.norm())
            )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
