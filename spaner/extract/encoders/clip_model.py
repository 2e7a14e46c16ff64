"""An open_clip model and its tokenizer, built from a resolved source: strictly, offline where files are here.

Weights must fit the configuration entry by entry: positions of another resolution or context length are
refused, not interpolated, since they give other rows under the same name. Finds no files (`clip_weights`)
and encodes nothing (`clip`).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import load_checkpoint
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn

from spaner.errors import EncoderError
from spaner.extract.encoders.checkpoint import OPENAI_KEYS, conversion, first_line, read_state
from spaner.extract.encoders.clip_weights import Source

POSITIONS = {
    "visual.positional_embedding": "image_size in vision_cfg",
    "positional_embedding": "context_length in text_cfg",
    "text.positional_embedding": "context_length in text_cfg",
}

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx")


def build(source: Source, seed: int = 0) -> nn.Module:
    """The model in float32 on the CPU, in evaluation mode, with the source's weights (strictly) or seeded
    random ones.

    Raises:
        EncoderError: the configuration cannot be built, a part of it is not here and the hub out of reach, or
            the checkpoint does not fit.
    """
    text = source.config["model_cfg"]["text_cfg"]
    if isinstance(text, dict) and text.get("hf_model_name"):
        _check_transformers(source, "text tower")
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), silent_log():
        torch.manual_seed(seed)
        Path(folder, "open_clip_config.json").write_text(json.dumps(source.config))
        try:
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
        except Exception as error:  # a configuration can be wrong in any way
            raise _not_built(source, error) from error
    if source.checkpoint is not None:
        _load(model, source, source.checkpoint)
    return model.eval().requires_grad_(requires_grad=False)


def _check_transformers(source: Source, what: str) -> None:
    if find_spec("transformers") is None:
        raise EncoderError(
            f"{source.name}: its {what} is one of transformers, which is not installed; expected it beside "
            'open_clip; type `pip install "transformers>=5"`'
        )


def _not_built(source: Source, error: Exception) -> EncoderError:
    """The hub is at fault where the text tower's own configuration lies there, else the config."""
    tower = source.config["model_cfg"]["text_cfg"]
    name = tower.get("hf_model_name") if isinstance(tower, dict) else None
    if name and not Path(name).is_dir() and isinstance(error, OSError):
        return EncoderError(
            f"{source.name}: its text tower is described by config.json of {name} on the hub, which is "
            f"neither here nor in reach; where there is a network, type `hf download {name} config.json "
            f"--local-dir FOLDER`, bring FOLDER here, and give a copy of the model's config with "
            f'"hf_model_name": "FOLDER" as `--model CONFIG.json`'
        )
    return EncoderError(f"{source.name}: cannot be built: {first_line(error)}; correct its config")


def _load(model: Any, source: Source, file: Path) -> None:
    if file.suffix in (".npz", ".npy"):  # big_vision's layout, which open_clip knows how to read
        fill: Callable[[], object] = lambda: load_checkpoint(model, str(file))  # noqa: E731
    else:
        state = _fitting(model, read_state(file))
        _check_positions(model, state, source, file)
        fill = lambda: model.load_state_dict(state, strict=True)  # noqa: E731
    try:
        fill()
    except Exception as error:  # archive and shape errors alike
        raise EncoderError(
            f"{file}: does not load as {source.name}: {first_line(error)}; expected its state dict; check "
            f"--model, or {conversion(file)}"
        ) from error


def _fitting(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries under open_clip's names, scalars in the model's shape."""
    state = dict(convert_state_dict(model, state))
    for name in (*OPENAI_KEYS, "text.transformer.embeddings.position_ids"):
        if name not in model.state_dict():
            state.pop(name, None)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if own is not None and name in state and state[name].numel() == own.numel():
            state[name] = state[name].reshape(own.shape)
    if getattr(model, "logit_bias", None) is not None and "logit_scale" in state:
        # CLIP's weights in a model with SigLIP's bias: no row depends on it
        state.setdefault("logit_bias", torch.zeros_like(model.logit_bias))
    return state


def _check_positions(model: Any, state: dict[str, Tensor], source: Source, file: Path) -> None:
    own = model.state_dict()
    for name, setting in POSITIONS.items():
        if name in state and name in own and state[name].shape[:1] != own[name].shape[:1]:
            raise EncoderError(
                f"{file}: {name} holds {len(state[name])} positions, {source.name} has {len(own[name])}; "
                f"expected weights of this resolution and context length (they are not interpolated); give "
                f"the model of these weights, or a config with their {setting}"
            )


@contextmanager
def silent_log() -> Iterator[None]:
    """open_clip warns on the root logger that a model without weights is random, which is asked for here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def tokenizer_of(source: Source, folder: Path | None = None) -> Callable[..., Tensor]:
    """The model's tokenizer: CLIP's own ships with open_clip, others lie on the hub or in `folder`.

    Raises:
        EncoderError: neither here nor in reach, or a folder without one.
    """
    text = source.config["model_cfg"]["text_cfg"]
    length, options = text.get("context_length", 77), text.get("tokenizer_kwargs", {})
    named = text.get("hf_tokenizer_name")
    if named or folder is not None:
        _check_transformers(source, "tokenizer")
    try:
        with silent_log():
            if folder is not None:
                how = {"tokenizer_mode": text.get("tokenizer_mode"), **options}
                return open_clip.tokenizer.HFTokenizer(str(folder.expanduser()), length, **how)
            if source.tokenizer is not None:
                return open_clip.get_tokenizer(source.tokenizer)
            if named:
                return open_clip.tokenizer.HFTokenizer(named, length, **options)
            return open_clip.SimpleTokenizer(context_length=length, **options) if options else _clips(length)
    except Exception as error:  # a tokenizer from the hub can fail in any way
        place = f"in {folder}" if folder else f"{named or source.tokenizer} on the hub"
        raise EncoderError(
            f"tokenizer of {source.name} cannot be loaded: {place}: {first_line(error)}; where there is a "
            f"network, type `hf download {named or 'ORG/NAME'} --include '*token*' '*.model' 'config.json' "
            "--local-dir FOLDER`, bring FOLDER here and type `--tokenizer FOLDER`"
        ) from error


@lru_cache(maxsize=4)
def _clips(length: int) -> open_clip.SimpleTokenizer:
    """CLIP's own: its 48,894 merges take a tenth of a second to read, and each text encoder asks for them."""
    return open_clip.SimpleTokenizer(context_length=length)


def tokenizer_sha256(folder: Path) -> str:
    """SHA-256 over the names and bytes of a tokenizer folder's files, weights aside: other files are another
    tokenizer, whose rows must not mix with these."""
    state = hashlib.sha256()
    for file in sorted(folder.expanduser().iterdir()):
        if file.is_file() and file.name[0] != "." and file.suffix not in WEIGHTS:
            state.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()
