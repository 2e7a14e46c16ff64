"""The words of a cache's captions: a cache keeps rows alone, so that the list they came from is read again.

A table of captions knows the hash of its sentences, and a list that says something else is refused. Reads the
list and the table's ids; opens no image and encodes nothing.
"""

from pathlib import Path

from spaner import cache as caches
from spaner.cache.cache import Cache
from spaner.errors import DatasetError
from spaner.extract.listing import Origin, listed


class Sentences:
    """The sentences of the caption tables of caches.

    Args:
        path: of the cache that a method is fitted on.
        origin: where its list lies, as given to extract.
    """

    def __init__(self, path: Path, origin: Origin) -> None:
        self.path, self.origin = path, origin

    def __call__(self, table: str, cache: Cache | None = None) -> list[str]:
        """The sentence of every row of a table such as `caption/train`, in its order; of the cache that a
        method is fitted on unless another is given, whose list must lie in the same place.

        Raises:
            DatasetError: no list, or another. Mismatch: it says something else than was embedded.
        """
        if cache is None:
            with caches.open(self.path) as opened:
                return self(table, opened)
        manifest = cache.table(table).manifest
        try:
            said = listed(cache, manifest, self.origin).source
        except DatasetError as error:
            raise DatasetError(
                f"{cache.path} keeps no words of {table}, and their list is not at hand ({error}); expected "
                "the list that was extracted; name it with --pixels csv:FILE and --data-root"
            ) from None
        return [said.open(key) for key in said.ids]
