"""Where an open_clip model's configuration and weights come from, and the hash that identifies them.

Understands what open_clip does: built-in names with pretrained tags, `hf-hub:ORG/NAME`, `local-dir:PATH`;
and a config JSON file, a checkpoint file, or both at once. `TAG=FILE` reads the weights of a tag from a
file, with the activation and preprocessing that belong to the tag. Random weights must be asked for by name.
What is inside a weights file is the matter of `checkpoint`.
"""

import hashlib
import json
import socket
import urllib.request
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import open_clip
import torch
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from torch import nn

from spaner.cache.manifest import digest
from spaner.errors import EncoderError
from spaner.extract.encoders.checkpoint import check_file, from_openai

HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
OWN_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
DEFAULT_TAG = "openai"  # of `ExtractConfig.pretrained`; a model that brings weights takes it for "its own"
PREPROCESS = ("mean", "std", "interpolation", "resize_mode")
QUICK = "-quickgelu"


@dataclass(frozen=True)
class Source:
    """A model resolved, nothing built yet.

    Attributes:
        name: for `EncoderSpec.name`; ends in "-quickgelu" where that activation is used, since it changes
            rows.
        label: for `EncoderSpec.weights`: the tag, "random", "file:NAME", "hf-hub" or "local-dir".
        config: `{"model_cfg": …, "preprocess_cfg": …}`, the layout of an `open_clip_config.json`.
        tokenizer: what `open_clip.get_tokenizer` takes; None: read `config`.
        checkpoint: file with the weights; None: random ones.
        note: what to tell the user of a choice that the file does not decide; "" where it does.
    """

    name: str
    label: str
    config: dict[str, Any]
    tokenizer: str | None
    checkpoint: Path | None
    note: str = ""


def resolve(model: str, pretrained: str) -> Source:
    """Find the configuration of `model` and the file of `pretrained`, downloading it if it is not there.

    Raises:
        EncoderError: unknown model or tag, missing file, or weights that are neither here nor reachable.
    """
    if model.startswith("hf-hub:"):
        return _from_hub(model, pretrained)
    if model.startswith("local-dir:"):
        return _from_folder(model, pretrained)
    if model.endswith(".json") or Path(model).is_file():
        return _from_json(Path(model), pretrained)
    return _built_in(model.replace("/", "-"), pretrained)


def _built_in(model: str, pretrained: str) -> Source:
    config = open_clip.get_model_config(model)
    if config is None and model.endswith(QUICK):
        config = (open_clip.get_model_config(model.removesuffix(QUICK)) or {}) | {"quick_gelu": True}
    if not config or "embed_dim" not in config:
        near = get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.5)
        raise EncoderError(
            f"--model {model}: unknown to open_clip {open_clip.__version__}; nearest: "
            f"{', '.join(near) or 'none'}; expected one of open_clip.list_models(), hf-hub:ORG/NAME, "
            f"local-dir:PATH or a config JSON file"
        )
    tag, _, file = pretrained.partition("=")
    about = about_tag = open_clip.get_pretrained_cfg(model, tag)
    if about:
        checkpoint = _existing(file) if file else _fetch(model, tag, about)
        quick = bool(about.get("quick_gelu")) or bool(config.get("quick_gelu"))
        label = tag
    else:
        checkpoint, label = _file_or_random(pretrained, model)
        about, quick = _shared_preprocess(model), bool(config.get("quick_gelu"))
        quick = quick or (checkpoint is not None and from_openai(checkpoint))
    config |= {"quick_gelu": True} if quick else {}
    name = model.removesuffix(QUICK) + (QUICK if quick else "")
    preprocess = {key: about[key] for key in PREPROCESS if key in about}
    whole = {"model_cfg": config, "preprocess_cfg": preprocess}
    note = "" if about_tag or quick else _undecided(model, checkpoint)
    return Source(f"open_clip/{name}", label, whole, model, checkpoint, note)


def _undecided(model: str, checkpoint: Path | None) -> str:
    """What to say of a plain file for a model whose tags have weights of either activation."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if checkpoint is None or not any(
        (open_clip.get_pretrained_cfg(model, tag) or {}).get("quick_gelu") for tag in tags
    ):
        return ""
    return (
        f"{checkpoint.name}: nothing in it says whether it was trained with GELU or, as OpenAI's, with "
        f"QuickGELU; GELU is taken; if it comes from OpenAI's, type `--model {model}{QUICK}`"
    )


def _shared_preprocess(model: str) -> dict[str, Any]:
    """Preprocessing that all tags of the model agree on, for weights whose tag is not known."""
    tags = [
        open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)
    ]
    shared = [{key: about.get(key) for key in PREPROCESS} for about in tags]
    return shared[0] if shared and all(other == shared[0] for other in shared) else {}


def _from_json(path: Path, pretrained: str) -> Source:
    if not path.is_file():
        raise EncoderError(f"--model {path}: no such file; expected an open_clip config JSON; check the path")
    config = _config(path, f"--model {path}")
    checkpoint, label = _file_or_random(pretrained, str(path))
    return Source(_own_name(path.stem, config), label, config, None, checkpoint)


def _config(path: Path, asked: str) -> dict[str, Any]:
    """An open_clip configuration, with or without the layer that holds preprocessing."""
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        config = config if "model_cfg" in config else {"model_cfg": config, "preprocess_cfg": {}}
        lacking = {"embed_dim", "vision_cfg", "text_cfg"} - set(config["model_cfg"])
    except (ValueError, TypeError, RecursionError) as error:
        raise EncoderError(
            f"{asked}: {path.name} is not JSON ({error}); expected an open_clip model config; correct it or "
            "fetch it again"
        ) from error
    if lacking:
        raise EncoderError(
            f"{asked}: {', '.join(sorted(lacking))} missing in {path.name}; expected an open_clip model "
            "config with embed_dim, vision_cfg and text_cfg; start from "
            "`open_clip.get_model_config('ViT-B-16')`"
        )
    return config


def _own_name(stem: str, config: dict[str, Any]) -> str:
    """A user's configuration can change without its file name: eight digits of its hash tell."""
    return f"open_clip/{stem}@{digest(config)[:8]}"


def _from_folder(model: str, pretrained: str) -> Source:
    folder = Path(model.removeprefix("local-dir:"))
    file = folder / "open_clip_config.json"
    if not file.is_file():
        raise EncoderError(
            f"--model {model}: no {file}; expected a folder with open_clip_config.json and weights"
        )
    config = _config(file, f"--model {model}")
    checkpoint, label = _beside(model, pretrained, "local-dir", lambda: _in_folder(folder, model))
    return Source(_own_name(folder.resolve().name, config), label, config, model, checkpoint)


def _beside(model: str, pretrained: str, label: str, own: Callable[[], Path]) -> tuple[Path | None, str]:
    """Weights for a model that brings some: `own` unless a file or "random" was asked for.

    Raises:
        EncoderError: a name that is none of these; `DEFAULT_TAG` stands for nothing asked.
    """
    if pretrained == "random":
        return None, "random"
    if Path(pretrained).expanduser().exists():
        return _existing(pretrained), f"file:{Path(pretrained).name}"
    if pretrained in (DEFAULT_TAG, label):
        return own(), label
    raise EncoderError(
        f"--pretrained {pretrained}: no such file, and {model} has no tags; expected a checkpoint file or "
        "random; leave it out for the weights that come with the model"
    )


def _in_folder(folder: Path, model: str) -> Path:
    """The weights of a folder: open_clip's own name for them, else the only ones there."""
    named = [folder / name for name in OWN_FILES if (folder / name).is_file()]
    found = [
        path for ending in ("safetensors", "bin", "pth", "pt") for path in sorted(folder.glob(f"*.{ending}"))
    ]
    if not found:
        raise EncoderError(
            f"--model {model}: no weights in {folder}; expected *.safetensors, *.bin, *.pth or *.pt"
        )
    if not named and len(found) > 1:
        raise EncoderError(
            f"--model {model}: {len(found)} files of weights ({', '.join(path.name for path in found[:4])}); "
            f"expected one, or one named {OWN_FILES[0]}; type `--pretrained {found[0]}`"
        )
    return named[0] if named else found[0]


def _from_hub(model: str, pretrained: str) -> Source:
    """`hf-hub:ORG/NAME`, or `hf-hub:ORG/NAME@REVISION`."""
    repository, _, revision = model.removeprefix("hf-hub:").partition("@")
    try:
        huggingface_hub.utils.validate_repo_id(repository)
    except huggingface_hub.errors.HFValidationError:
        raise EncoderError(
            f"--model {model}: no name of a hub repository; expected hf-hub:ORG/NAME or "
            "hf-hub:ORG/NAME@REVISION; check the name"
        ) from None
    config = _hub_file(repository, ("open_clip_config.json",), model, revision=revision)
    checkpoint, label = _beside(
        model, pretrained, "hf-hub", lambda: _hub_file(repository, HUB_FILES, model, revision=revision)
    )
    tokenizer = None if revision else model  # open_clip would look for the newest one
    return Source(f"open_clip/{model}", label, _config(config, f"--model {model}"), tokenizer, checkpoint)


def _file_or_random(pretrained: str, model: str) -> tuple[Path | None, str]:
    """Checkpoint and label of weights that are no tag of `model`."""
    if pretrained == "random":
        return None, "random"
    file = Path(pretrained).expanduser()
    if file.exists():
        check_file(file)
        return file, f"file:{file.name}"
    tags = open_clip.list_pretrained_tags_by_model(model)
    near = get_close_matches(pretrained, tags, n=3, cutoff=0.5) or tags[:5]
    raise EncoderError(
        f"--pretrained {pretrained}: neither a tag of {model} nor a file; tags: {', '.join(near) or 'none'}; "
        "type one of them, a checkpoint file, or random"
    )


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    check_file(path)
    return path


def _fetch(model: str, tag: str, about: dict[str, Any]) -> Path:
    """The tag's weights: from the local cache, else downloaded."""
    repository, _, name = about.get("hf_hub", "").rpartition("/")
    if repository:
        return _hub_file(repository, (name,) if name else HUB_FILES, f"{model} {tag}", tag)
    url = about.get("url", "")
    cached = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    if not cached.is_file() and not _reachable(url):
        raise EncoderError(_absent(f"{model} {tag}", str(cached), url, tag))
    try:
        return Path(download_pretrained(deepcopy(about)))
    except Exception as error:  # whatever the network does
        raise EncoderError(_absent(f"{model} {tag}", str(cached), f"{url} ({error})", tag)) from error


def _hub_file(repository: str, names: tuple[str, ...], asked: str, tag: str = "", revision: str = "") -> Path:
    """One of the files of a hub repository: from the local cache, else downloaded.

    The hub's client retries for a minute without a network, so reachability is asked first.
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    cache, url = huggingface_hub.constants.HF_HUB_CACHE, f"{huggingface_hub.constants.ENDPOINT}/{repository}"
    if huggingface_hub.constants.HF_HUB_OFFLINE or not _reachable(url):
        raise EncoderError(_absent(asked, cache, f"{url} (not reachable)", tag, names[0]))
    try:
        return Path(download_pretrained_from_hf(repository, filename=names[-1], revision=revision or None))
    except Exception as error:
        raise EncoderError(_absent(asked, cache, f"{url} ({type(error).__name__})", tag, names[0])) from error


def _absent(asked: str, cache: str, url: str, tag: str, name: str = "the file") -> str:
    use = f"`--pretrained {tag}=FILE`" if tag else "`--model local-dir:FOLDER`"
    return (
        f"weights of {asked} not found; looked in {cache} and at {url}; download {name} from there on "
        f"another machine and type {use} (or `--pretrained random` for a trial without meaning)"
    )


def _reachable(url: str) -> bool:
    """Whether the host answers; with a proxy configured only the request itself can tell."""
    if urllib.request.getproxies():
        return True
    try:
        with socket.create_connection((urlsplit(url).hostname or "", 443), timeout=5):
            return True
    except OSError:
        return False


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over the sorted state dict (name, dtype, shape, bytes): the same for any file format."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def dimension(model: str, feature: str = "", *, tokens: bool = False) -> int:
    """Width D of a model's rows, from its configuration alone."""
    config = resolve(model, "random").config["model_cfg"]
    if tokens:
        return _token_numbers(config["vision_cfg"])
    return int(config["vision_cfg"]["width"] if feature == "pre-projection" else config["embed_dim"])


def _token_numbers(vision: dict[str, Any]) -> int:
    """Numbers of a picture's tokens: the class token and the patches, each as wide as the image tower."""
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return ((height // patch) * (width // patch) + 1) * int(vision.get("width", 768))
