"""Published ESResNeXt-fbsp checkpoints, read strictly and without ever running code from the file.

Fits: ESRNXFBSP.pt and ESResNeXtFBSP_AudioSet.pt (527 classes), fine-tuned files with any other head, and
whole AudioCLIP files (AudioCLIP-Partial-Training.pt, AudioCLIP-Full-Training.pt), whose audio tower carries
the prefix `audio.` beside CLIP's own weights; `.pt` or `.safetensors`, with or without the empty `fbsp.bias`.
Does not do: downloads, partial loading, files that hold anything but tensors.
"""

import pickle
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spaner.errors import EncoderError
from spaner.extract.encoders.checkpoint import plain_name
from spaner.extract.encoders.esresnext_network import ESResNeXtFBSP
from spaner.extract.encoders.fbsp import blackman_harris

PUBLISHED = (
    "ESRNXFBSP.pt, ESResNeXtFBSP_AudioSet.pt, AudioCLIP-Partial-Training.pt or AudioCLIP-Full-Training.pt"
)
PREFIX = "audio."
NAMED = 3  # how many keys a message names before it counts the rest


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a `.pt` or `.safetensors` file, on the CPU.

    Raises:
        EncoderError: the file is missing, damaged, holds something else than tensors, or holds pickled code.
    """
    if not path.is_file():
        raise EncoderError(
            f"no weights at {path}; expected a published audio checkpoint ({PUBLISHED}) or the same tensors "
            "as .safetensors; download one and pass --pretrained FILE (or --pretrained random for a trial)"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickle protocols; what follows says it better
            if path.suffix == ".safetensors":
                state = load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"{path.name} is not a plain file of tensors: it holds pickled code or is damaged; nothing of it "
            f"was executed; expected only tensors; pass --pretrained FILE with {PUBLISHED}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise EncoderError(
            f"{path.name} cannot be read: {_first_line(error)}; expected a whole .pt or .safetensors file; "
            "download it again and pass --pretrained FILE"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise EncoderError(
            f"{path.name} holds {type(state).__name__} with more than tensors; expected a plain state dict; "
            "save model.state_dict() and pass that file with --pretrained FILE"
        )
    return state


def audio_entries(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The audio tower's entries under their own names; what else an AudioCLIP file holds is left out."""
    state = {plain_name(name): tensor for name, tensor in state.items()}
    prefixed = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    entries = prefixed or dict(state)
    entries.setdefault("fbsp.bias", torch.empty(0))
    return entries


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _some(keys: list[str]) -> str:
    rest = len(keys) - NAMED
    return ", ".join(keys[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _misfits(have: dict[str, Tensor], want: dict[str, Tensor]) -> list[str]:
    missing = [k for k in want if k not in have]
    unexpected = [k for k in have if k not in want]
    shapes = [
        f"{k} {tuple(have[k].shape)} instead of {tuple(want[k].shape)}"
        for k in want
        if k in have and have[k].shape != want[k].shape
    ]
    parts = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    return [f"{what} {_some(keys)}" for what, keys in parts.items() if keys]


def load_esresnext(path: Path) -> ESResNeXtFBSP:
    """The network with the weights of `path`, in evaluation mode; the size of its head is the file's.

    Raises:
        EncoderError: see `read_tensors`; or entries are missing, unexpected, of another shape, not finite, or
            the stored window is not the periodic Blackman-Harris window that the transform is defined with.
    """
    entries = audio_entries(read_tensors(path))
    head = entries.get("fc.weight")
    model = ESResNeXtFBSP(len(head) if head is not None and head.ndim == 2 else 1024)
    want = model.state_dict()
    problems = _misfits(entries, want)
    if problems:
        raise EncoderError(
            f"{path.name} does not fit ESResNeXt-fbsp: {'; '.join(problems)}; expected the "
            f"{len(want)} entries of {PUBLISHED}; pass one of these with --pretrained FILE"
        )
    _check_values(path, entries)
    entries["window"] = blackman_harris()  # what a file in half precision has rounded
    model.load_state_dict(entries)
    return model.eval()


def _check_values(path: Path, entries: dict[str, Tensor]) -> None:
    bad = [k for k, v in entries.items() if not torch.isfinite(v).all()]
    if bad:
        raise EncoderError(
            f"{path.name} holds NaN or infinite values in {_some(bad)}; expected finite weights; "
            "download it again and pass --pretrained FILE"
        )
    window = entries["window"]
    off = (window.float() - blackman_harris()).abs().max().item()
    if off > max(1e-6, torch.finfo(window.dtype).eps if window.dtype.itemsize < 4 else 0.0):
        raise EncoderError(
            f"{path.name} was trained with another window: it differs by {off:.1e} from the periodic "
            f"Blackman-Harris window of 1654 samples; expected that of {PUBLISHED}; "
            "pass one with --pretrained FILE"
        )
