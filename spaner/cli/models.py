"""`spaner models`: what open_clip offers, before anything is downloaded."""

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.cli import console


def models(
    words: Annotated[list[str] | None, typer.Argument(help="Show only names that hold all of these.")] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List open_clip's models and pretrained tags: width, image size, tokenizer, weights on disk.

    Examples: `spaner models siglip 384` · `spaner models openai --json`
    """
    rows = _found([word.lower() for word in words or []])
    if json:
        console.dump(rows)
        return
    columns = ["model", "tag", "width", "image", "tokenizer", "on disk"]
    console.table(columns, [[_cell(row[name]) for name in row] for row in rows])
    console.next_step("spaner extract --model NAME --pretrained TAG")


def _found(words: list[str]) -> list[dict[str, Any]]:
    import open_clip

    pairs = [
        pair for pair in open_clip.list_pretrained() if all(word in " ".join(pair).lower() for word in words)
    ]
    return [_row(model, tag) for model, tag in pairs]


def _row(model: str, tag: str) -> dict[str, Any]:
    import open_clip

    config: dict[str, Any] = open_clip.get_model_config(model) or {}
    text = config.get("text_cfg", {})
    return {
        "model": model,
        "tag": tag,
        "width": config.get("embed_dim"),
        "image": config.get("vision_cfg", {}).get("image_size"),
        "tokenizer": text.get("hf_tokenizer_name") or "CLIP",
        "on_disk": _on_disk(open_clip.get_pretrained_cfg(model, tag)),
    }


def _on_disk(about: dict[str, Any]) -> bool:
    """Whether the tag's weights lie in the hub's cache or in CLIP's."""
    import huggingface_hub

    from spaner.extract.encoders.clip_weights import HUB_FILES

    repository, _, name = about.get("hf_hub", "").rpartition("/")
    names = (name,) if name else HUB_FILES
    if repository and any(
        isinstance(huggingface_hub.try_to_load_from_cache(repository, each), str) for each in names
    ):
        return True
    file = about.get("url", "").rpartition("/")[2]
    return bool(file) and (Path("~/.cache/clip").expanduser() / file).is_file()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "–"
    return value if isinstance(value, str) else "–" if value is None else json_text.dumps(value)
