"""The frozen towers of a cache's encoder, for methods that learn inside them: built here, handed to `align`.

`align` trains from a cache alone and never imports `extract`; a method that says `needs_tower` gets the text
tower from the command, and one that says `needs_pictures` the images as tokens too. Weights are compared by
hash before a step is taken (`align.methods.prompting`, `dual`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.errors import EncoderError

TextModel = Annotated[
    str | None, typer.Option(help="Config of the cache's encoder, where it came from a file.")
]
TextWeights = Annotated[
    str | None, typer.Option(help="Checkpoint of the cache's encoder, where it came from a file.")
]
Pixels = Annotated[
    str | None,
    typer.Option(
        help="The data set, as given to `extract --dataset`: images without a token table, captions' words."
    ),
]
DataRoot = Annotated[Path | None, typer.Option(help="Where the files of --pixels are, as given to extract.")]


@dataclass(frozen=True)
class Towers:
    """Where towers come from; it can be sent to the processes of a sweep, which build their own.

    Attributes:
        model, weights: where the encoder came from a config file or a checkpoint file.
        pixels, data_root: data set and place of the images, if not the cache's own in its usual place.
        progress: hears of rows that a changed image tower makes.
        device: where they run beside a loaded run; default where it was trained.
    """

    model: str | None = None
    weights: str | None = None
    pixels: str | None = None
    data_root: Path | None = None
    progress: Callable[[int, int, str], None] | None = None
    device: str | None = None

    def __call__(self, cache: Path, method: str, device: str = "auto") -> dict[str, Any]:
        """What `fit` takes beside the cache: `text_tower`, `pictures` and `sentences`, those that the method
        needs.

        Raises:
            EncoderError: an encoder without such a tower, or a file that must be named.
        """
        from spaner.align.methods import method as methods

        found, tools = methods.method(method), {}
        if getattr(found, "needs_tower", False):
            tools["text_tower"] = _text_tower(cache, device, self.model, self.weights)
        if getattr(found, "needs_pictures", False):
            tools["pictures"] = _pictures(self, cache, device)
        if getattr(found, "reads_words", False):
            tools["sentences"] = self.sentences(cache)
        return tools

    def sentences(self, cache: Path) -> Any:
        """The words of a cache's captions; their list is read when it is asked for."""
        from spaner.extract.listing import Origin
        from spaner.extract.sentences import Sentences

        return Sentences(cache, Origin(self.pixels, self.data_root))

    def put_beside(self, run: Any, cache: Any, table: str) -> None:
        """Give a run the towers without which it cannot score a table of an open cache; nothing where it can.

        Raises:
            EncoderError: as above.
        """
        from spaner.align.methods.method import Adapted
        from spaner.align.score import adapted, captions

        model, config = run.model, run.config
        device = self.device or config.device
        if isinstance(model, Adapted):
            if model.pictures is None and adapted.found(run, cache, table) is None:
                model.pictures = self(cache.path, config.method, device)["pictures"]
        elif isinstance(model, captions.Reader):
            if captions.reads(run) and model.sentences is None and captions.table_of(cache, table):
                tools = self(cache.path, config.method, device)
                model.tower, model.sentences = tools["text_tower"], tools["sentences"]
        elif getattr(model, "tower", self) is None:
            model.tower = self(cache.path, config.method, device)["text_tower"]


@lru_cache(maxsize=2)
def _text_tower(cache: Path, device: str, model: str | None, weights: str | None) -> Any:
    from spaner import cache as caches
    from spaner.extract.encoders import encoder

    with caches.open(cache) as opened:
        table = next((name for name in opened.tables() if name.startswith("text/")), None)
        if table is None:
            raise EncoderError(f"{cache}: no table of texts; expected text/...; type `spaner extract`")
        manifest = opened.table(table).manifest
    spec = manifest.encoder
    registered, _, architecture = spec.name.partition("/")
    if "@" in architecture and model is None:
        raise EncoderError(
            f"{cache}: the model of its texts, {architecture.partition('@')[0]}, was a config file; "
            "type `--text-model PATH/TO/CONFIG.json`"
        )
    if spec.weights.startswith("file:") and weights is None:
        raise EncoderError(
            f"{cache}: its texts were embedded with the weights {spec.weights[5:]}; "
            f"type `--text-weights PATH/{spec.weights[5:]}`"
        )
    return encoder.text_tower(
        registered,
        model=model or architecture,
        weights=weights or spec.weights,
        device=device,
        seed=manifest.seed,
    )


@lru_cache(maxsize=2)
def _pictures(towers: Towers, cache: Path, device: str) -> Any:
    from spaner.extract.listing import Origin
    from spaner.extract.pictures import pictures_of

    return pictures_of(
        cache,
        model=towers.model,
        weights=towers.weights,
        device=device,
        origin=Origin(towers.pixels, towers.data_root),
        progress=towers.progress,
    )
