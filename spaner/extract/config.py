"""What an extraction can be told: one frozen dataclass, one field per command-line option.

Needs no torch, so that `spaner extract --help` answers at once. It checks nothing: values are checked where
they are used.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


def _help(text: str) -> dict[str, str]:
    """A field's help line, as its metadata."""
    return {"help": text}


@dataclass(frozen=True)
class ExtractConfig:
    """Settings of stage 1; every field is the option of the same name."""

    dataset: str = field(
        default="imagenet",
        metadata=_help("digits, imagenet, folder:PATH, csv:PATH, coop:NAME, esc50, imagenet-esc-27 …"),
    )
    data_root: Path | None = field(
        default=None,
        metadata=_help("where the data set's files are (imagenet: else $IMAGENET_ROOT, else data/imagenet)"),
    )
    modality: str | None = field(
        default=None,
        metadata=_help("only this modality; image brings the class-name text along (default: all)"),
    )
    cache: Path | None = field(
        default=None,
        metadata=_help("where to write; a name ending in .h5 is HDF5, else Zarr (default: cache/DATASET)"),
    )
    splits: tuple[str, ...] | None = field(default=None, metadata=_help("only these splits (default: all)"))
    shots: tuple[int, ...] | Literal["all"] | None = field(
        default=None,
        metadata=_help("store only rows that these few-shot draws need (imagenet: 16; others: all)"),
    )
    draw_seeds: tuple[int, ...] = field(default=(1,), metadata=_help("seeds of the few-shot draws"))
    draws_from: tuple[Path, ...] | None = field(
        default=None,
        metadata=_help("published index files shot_K-seed_S.json, or folders of them, to use as draws"),
    )
    holdout: float = field(
        default=0.2, metadata=_help("share of each class set apart as test where a folder has no splits")
    )
    modality_column: str | None = field(
        default=None, metadata=_help("csv: column that names each line's modality; one id is one sample")
    )
    caption_column: tuple[str, ...] | None = field(
        default=None,
        metadata=_help("csv: column, or columns, of sentences about the image; several lines may be of one"),
    )
    negated_column: tuple[str, ...] | None = field(
        default=None,
        metadata=_help("csv: column of the captions' negated forms, one for each --caption-column"),
    )
    encoder: str | None = field(
        default=None, metadata=_help("open_clip or another registered encoder (default: the data set's own)")
    )
    model: str = field(
        default="ViT-B-16",
        metadata=_help("open_clip model name, hf-hub:ORG/NAME, local-dir:PATH or a config JSON file"),
    )
    pretrained: str = field(
        default="openai", metadata=_help("open_clip tag, a checkpoint file, or random (by name only)")
    )
    tokenizer: Path | None = field(
        default=None,
        metadata=_help("folder with the text model's tokenizer, where the hub is out of reach"),
    )
    audio_feature: Literal["pooled", "head"] | None = field(
        default=None, metadata=_help("esresnext: pooled (2048) or head (default: pooled; lin2023: head)")
    )
    audio_seconds: float = field(
        default=5.0, metadata=_help("length that clips are cut or zero-padded to, at the end")
    )
    audio_range: Literal["int16", "unit"] | None = field(
        default=None, metadata=_help("esresnext: amplitude it is fed (default: int16; lin2023: unit)")
    )
    audio_mode: Literal["eval", "lin2023"] = field(
        default="eval",
        metadata=_help("esresnext: eval, or lin2023: statistics of ten clips in listing order (impure)"),
    )
    templates: tuple[str, ...] = field(
        default=("mined", "vanilla", "classname"),
        metadata=_help("mined, vanilla, classname, ensemble, hand_crafted or a text file"),
    )
    views: int = field(default=2, metadata=_help("views of each image: the centre crop, then random crops"))
    crop_scale: tuple[float, ...] | None = field(
        default=None,
        metadata=_help("0.5,1: random views are resized crops of that share of the area (open_clip)"),
    )
    feature: Literal["projected", "pre-projection"] = field(
        default="projected",
        metadata=_help("image rows behind or before the tower's projection (open_clip's transformers)"),
    )
    tokens: int | None = field(
        default=None,
        metadata=_help("store image tokens after this block instead (MaPLe reads 0, MMA 4; open_clip)"),
    )
    seed: int = field(default=0, metadata=_help("seed of the random crops and of the holdout"))
    precision: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata=_help("arithmetic of the encoder; auto takes what the processor has in hardware"),
    )
    device: str = field(default="auto", metadata=_help("auto, cpu, cuda, cuda:1 or mps"))
    dtype: Literal["float16", "float32"] = field(default="float16", metadata=_help("type of the stored rows"))
    batch_size: int = field(default=64, metadata=_help("views per encoder call"))
    chunk_rows: int | None = field(
        default=None,
        metadata=_help("rows per stored chunk, of which a killed run loses at most one (default: 4 MiB)"),
    )
    workers: int | None = field(default=None, metadata=_help("decoding threads (default: by processor)"))
    processes: int | None = field(
        default=None, metadata=_help("fill the cache with this many processes on this machine")
    )
    devices: tuple[str, ...] | None = field(
        default=None, metadata=_help("cuda:0,cuda:1: a process for each, or --processes shared out over them")
    )
    part: str | None = field(
        default=None,
        metadata=_help("3/64: this process fills part 3 of 64; whoever finds all parts done seals"),
    )
    on: str | None = field(
        default=None,
        metadata=_help("ray[:HOST:PORT]: actors on a Ray cluster (--processes of them) fill it in parts"),
    )
    max_failed: float = field(default=0.01, metadata=_help("largest tolerated share of unreadable files"))
    allow_impure: bool = field(
        default=False, metadata=_help("keep rows that depend on their batch (marked in the table)")
    )
    allow_outside: bool = field(
        default=False, metadata=_help("let a list name files that lie outside its data root")
    )
    check: Literal["stat", "content", "off"] = field(
        default="stat",
        metadata=_help("tell files that changed by size and time, by their content too, or not at all"),
    )
    overwrite: bool = field(default=False, metadata=_help("replace tables made with other settings"))
    dry_run: bool = field(default=False, metadata=_help("print rows, bytes and destination, and stop"))
