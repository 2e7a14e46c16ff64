"""ESResNeXt-fbsp: waveform in, 2048 features or class scores out (Guzhov et al. 2021; AudioCLIP, 2022).

A learnable time-frequency transform (`fbsp.py`) makes a three-band image of each audio channel, a ResNeXt-50
32x4d looks at it, and five gates multiply what each stage and the final pooling see. Channels are summed.
Sizes for 5 s of mono at 44.1 kHz: image (3, 341, 392), stages 86 x 98, 43 x 49, 22 x 25, 11 x 13.

Needs: 44.1 kHz waveforms in **16-bit range** (about -32768 .. 32767); [-1, 1] is 90 dB too quiet.
Submodules are named as in the published state dicts, read by `esresnext_weights.py`.
Does not do: decoding, resampling, L2 normalisation, the reference's gradient hooks and kernel-norm loss.
Differs from the reference in: the kernel is kept between calls with the window folded into it and its zero
taps dropped, and the trunk runs channels-last; features move by about 2e-5 relative.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spaner.extract.encoders.fbsp import Fbsp, blackman_harris, decibel_bands, from_int16

FEATURES = 2048
STAGES = ((3, 128), (4, 256), (6, 512), (3, 1024))  # blocks, inner width; the output is twice as wide
GATES = (
    (64, 256, (3, 1)),
    (256, 512, (1, 5)),
    (512, 1024, (3, 1)),
    (1024, 2048, (1, 5)),
    (2048, 2048, (3, 5)),
)


class Convolution(nn.Conv2d):
    """A convolution that starts Kaiming-normal over its outputs, as ResNets do; a bias as torch does."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            bound = math.prod(self.weight.shape[1:]) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 (with the stride), 1x1, each with batch norm; plus the shortcut."""

    def __init__(self, width_in: int, inner: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.conv1 = Convolution(width_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = Convolution(inner, inner, 3, stride, padding=1, groups=32, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = Convolution(inner, 2 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * inner)
        self.downsample: nn.Sequential | None = None
        if project:
            shortcut = Convolution(width_in, 2 * inner, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(2 * inner))

    def forward(self, x: Float[Tensor, "B W H T"]) -> Float[Tensor, "B W2 H2 T2"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        return functional.relu(self.bn3(self.conv3(y)) + shortcut, inplace=True)


class Gate(nn.Module):
    """Sigmoid gate from a stage's input, max-pooled to the size of the stage's output."""

    def __init__(self, width_in: int, width_out: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv_depth = Convolution(width_in, width_in, kernel, padding=padding, groups=width_in)
        self.conv_point = Convolution(width_in, width_out, 1)
        self.bn = nn.BatchNorm2d(width_out)

    def forward(self, x: Float[Tensor, "B W H T"], size: tuple[int, int]) -> Float[Tensor, "B W2 H2 T2"]:
        pooled = x if x.shape[-2:] == size else functional.adaptive_max_pool2d(x, size)
        return torch.sigmoid(self.bn(self.conv_point(self.conv_depth(pooled))))


def _stage(blocks: int, inner: int, width_in: int, stride: int) -> nn.Sequential:
    first = Bottleneck(width_in, inner, stride, project=True)
    return nn.Sequential(first, *(Bottleneck(2 * inner, inner, 1, project=False) for _ in range(1, blocks)))


class ESResNeXtFBSP(nn.Module):
    """The network. In training mode every BatchNorm uses the statistics of the batch: a row then depends on
    its neighbours, and one clip alone is refused by the last gate, which sees a single value per clip.

    Args:
        num_classes: rows of `fc`; 1024 in AudioCLIP, 527 for AudioSet, 50 for ESC-50.
    """

    window: Tensor

    def __init__(self, num_classes: int = 1024) -> None:
        super().__init__()
        self.register_buffer("window", blackman_harris())
        self.conv1 = Convolution(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = (64, *(2 * inner for _, inner in STAGES))
        stages = [
            _stage(*stage, width, stride=min(i + 1, 2))
            for i, (stage, width) in enumerate(zip(STAGES, widths, strict=False))
        ]
        gates = [Gate(*gate) for gate in GATES]
        self.layer1, self.att1 = stages[0], gates[0]
        self.layer2, self.att2 = stages[1], gates[1]
        self.layer3, self.att3 = stages[2], gates[2]
        self.layer4, self.att4 = stages[3], gates[3]
        self.att5 = gates[4]
        self.fc = nn.Linear(FEATURES, num_classes)
        self.fbsp = Fbsp()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ESResNeXtFBSP":  # noqa: FBT001, FBT002
        """Moves and casts the trunk; the window follows to the device but keeps float32."""
        window = self.window
        super()._apply(fn, recurse)
        if self.window.dtype != window.dtype:
            self.window = window.to(self.window.device)
        return self

    def stages(self) -> tuple[nn.Sequential, ...]:
        """The four stages of bottleneck blocks, in order."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def gates(self) -> tuple[Gate, ...]:
        """The five gates: one per stage, and one for the pooled features."""
        return self.att1, self.att2, self.att3, self.att4, self.att5

    def image(self, waveform: Float[Tensor, "B C L"]) -> Float[Tensor, "B C 3 341 T"]:
        """Log-power image in dB of each audio channel, always float32."""
        signals = from_int16(waveform).flatten(0, 1)
        images = torch.stack([decibel_bands(*self.fbsp(signal, self.window)) for signal in signals])
        return images.unflatten(0, waveform.shape[:2])

    def trunk(self, image: Float[Tensor, "B 3 341 T"]) -> Float[Tensor, "B 2048"]:
        """Features of one audio channel: gated stages, the mean over frequency and time, the fifth gate."""
        x = image.to(self.conv1.weight.dtype, memory_format=torch.channels_last)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for layer, gate in zip(self.stages(), self.gates(), strict=False):
            y = layer(x)
            x = y * gate(x, y.shape[-2:])
        return (x.mean((-2, -1), keepdim=True) * self.att5(x, (1, 1))).flatten(1)

    def features(self, waveform: Float[Tensor, "B C L"] | Float[Tensor, "B L"]) -> Float[Tensor, "B 2048"]:
        """The vector before `fc`: the sum over audio channels of what the trunk makes of each.

        Args:
            waveform: 44.1 kHz samples in 16-bit range, any dtype, at least one sample; (B, L) is mono.
        """
        if waveform.ndim == 2:
            waveform = waveform[:, None]
        image = self.image(waveform)
        return torch.stack([self.trunk(channel) for channel in image.unbind(1)]).sum(0)

    def forward(self, waveform: Float[Tensor, "B C L"] | Float[Tensor, "B L"]) -> Float[Tensor, "B classes"]:
        """Output of the head, not normalised; AudioCLIP's embedding is this, divided by its L2 norm."""
        return self.fc(self.features(waveform))
