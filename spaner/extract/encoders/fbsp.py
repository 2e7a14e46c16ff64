"""The audio front end: frames of a waveform against a bank of complex frequency B-spline wavelets (fbsp).

Three numbers per bin (order m, bandwidth fb, centre frequency fc) define a complex kernel; the spectrum is
its plain product with windowed frames, and its power in dB is the image that the ESResNeXt trunk looks at.
After Teolis, "Computational Signal Processing with Wavelets" (1998), and Guzhov et al., "ESResNe(X)t-fbsp"
(2021).

Float32 is part of the definition: fc * t reaches 3217 rad, where rounding alone is 1e-4 rad, so that another
order of operations, a float64 kernel or bfloat16 gives other features. Nothing here follows autocast or
`module.half()`.

Signals go through one by one: digital silence turns into rounding noise that the logarithm shows in full, and
only products of one fixed shape give a clip the same noise whoever its neighbours in the batch are.

Does not do: mel filters, normalisation, dB references, resampling. Training helpers of the reference
(gradient scaling, the kernel-norm loss) are left out; gradients are those of autograd.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

N_FFT = 2048
BINS = N_FFT // 2 + 1
HOP = 561
WINDOW = 1654
PAD = (N_FFT - WINDOW) // 2  # zeros on each side of a windowed frame
BANDS, BAND_ROWS = 3, 341  # image channels, and bins per channel; the top two bins are dropped
FLOOR = 1e-18  # power of an exact zero: -180 dB
TINY = 1e-8
BLACKMAN_HARRIS = (0.35875, -0.48829, 0.14128, -0.01168)


def blackman_harris(length: int = WINDOW) -> Float[Tensor, " taps"]:
    """Periodic four-term Blackman–Harris window, computed in float64 and stored as float32."""
    phase = 2 * math.pi / length * torch.arange(length, dtype=torch.float64)
    return sum(a * torch.cos(i * phase) for i, a in enumerate(BLACKMAN_HARRIS)).float()  # type: ignore[union-attr]


def frame_count(samples: int) -> int:
    """Frames of WINDOW samples, HOP apart, that cover `samples`; at least one."""
    return 1 if samples <= WINDOW else 1 + math.ceil((samples - WINDOW) / HOP)


def from_int16(waveform: Tensor) -> Tensor:
    """16-bit range to [-1, 1] in float32: -32768 -> -1, 32767 -> 1, and 0 -> 2**-16.

    The order of operations is the contract: on waveforms in [-1, 1] it acts as a quantiser.
    """
    return (waveform.float() + 32768.0) * 2.0 / 65535.0 - 1.0


def frames(signal: Float[Tensor, " samples"]) -> Float[Tensor, "T 1654"]:
    """Overlapping frames of one signal (a strided view), zeros shared between both ends."""
    total = (frame_count(len(signal)) - 1) * HOP + WINDOW
    missing = total - len(signal)
    return nn.functional.pad(signal, (missing // 2, missing - missing // 2)).unfold(0, WINDOW, HOP)


def fbsp_kernel(
    m: Float[Tensor, " bins"], fb: Float[Tensor, " bins"], fc: Float[Tensor, " bins"], taps: int = N_FFT
) -> Float[Tensor, "bins taps 2"]:
    """sqrt(fb) * sinc(fb t / m)**m * exp(-i fc t) / sqrt(taps), t in [-pi, pi]; (real, imaginary) last.

    The power is complex: where sinc is negative the phase turns by m * pi.
    """
    t = math.pi * torch.linspace(-1.0, 1.0, taps, dtype=torch.float32, device=m.device) + TINY
    m, fb, fc = (p[:, None] for p in (m, fb, fc))
    a = fb * t / (m + TINY)
    sinc = torch.where(a == 0, torch.ones_like(a), torch.sin(a) / a)
    modulus = torch.pow(sinc.square().sqrt().square(), m / 2)
    angle = torch.where(sinc < 0, m * math.pi, torch.zeros_like(a))
    re, im = modulus * torch.cos(angle), modulus * torch.sin(angle)
    cos, sin = torch.cos(fc * t), -torch.sin(fc * t)
    scale = torch.sqrt(fb)
    product = torch.stack((re * cos - im * sin, re * sin + im * cos), dim=-1)
    return scale[..., None] * product / math.sqrt(taps)


class Fbsp(nn.Module):
    """The transform: parameters m, fb, fc (one value per bin) and the always empty `bias` of published files.

    The kernel with the window folded in is kept between calls and made again when a parameter, the window or
    the device differs from those it was made of. With gradients it is made anew, as part of the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(BINS))
        self.fb = nn.Parameter(torch.ones(BINS))
        self.fc = nn.Parameter(torch.arange(BINS, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(0))
        self._made_of: list[Tensor] = []
        self._kept: Tensor | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fbsp":  # noqa: FBT001, FBT002
        """Moves between devices, but never to another precision."""
        self._made_of, self._kept = [], None

        def same_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(same_dtype, recurse)

    def kernel(self) -> Float[Tensor, "1025 2048 2"]:
        """The kernel of the present parameters, without window."""
        return fbsp_kernel(self.m, self.fb, self.fc)

    def taps(self, window: Float[Tensor, " taps"]) -> Float[Tensor, "2050 taps"]:
        """Real rows, then imaginary rows, window folded in; only the taps that a frame can reach."""
        sources = [self.m, self.fb, self.fc, window]
        if torch.is_grad_enabled() and any(s.requires_grad for s in sources):
            return self._fold(window)
        if self._kept is None or not all(
            old.device == new.device and torch.equal(old, new)
            for old, new in zip(self._made_of, sources, strict=True)
        ):
            with (
                torch.inference_mode(mode=False),
                torch.no_grad(),
            ):  # a later call may want gradients of its input
                self._made_of = [s.detach().clone() for s in sources]
                self._kept = self._fold(window)
        return self._kept

    def _fold(self, window: Tensor) -> Tensor:
        kernel = self.kernel()[:, PAD : PAD + WINDOW] * window[:, None]
        return torch.cat(kernel.unbind(-1))

    def forward(
        self, signal: Float[Tensor, " samples"], window: Float[Tensor, " taps"]
    ) -> tuple[Float[Tensor, "1025 T"], Float[Tensor, "1025 T"]]:
        """Real and imaginary spectrum of one signal in [-1, 1]; float32 whatever autocast says."""
        with torch.autocast(signal.device.type, enabled=False):
            spectrum = self.taps(window) @ frames(signal).T
        return spectrum[:BINS], spectrum[BINS:]


def decibel_bands(re: Float[Tensor, "bins T"], im: Float[Tensor, "bins T"]) -> Float[Tensor, "3 341 T"]:
    """10 log10 of the power, cut into three bands of 341 bins; what is not > 0 (also NaN) becomes -180 dB."""
    used = BANDS * BAND_ROWS
    power = re[:used].square() + im[:used].square()
    return 10.0 * torch.where(power > 0, power, FLOOR).log10().unflatten(0, (BANDS, BAND_ROWS))
