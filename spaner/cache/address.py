"""Places that are no folder of this machine: s3://bucket/cache, gs://, memory://, whatever fsspec knows.

An `Address` is a path by its name and objects by its contents, so that a store takes it where it takes a
folder. An object comes into being whole or not at all, and its name with it: no rename is needed, nothing has
to be waited for, and nobody sees half of one. What the network or the store refuses becomes one line.
Retries are the file system's own: s3fs repeats what failed for want of connection, time or capacity.
"""

import fnmatch
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import Any, Self

from spaner.errors import CacheError

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/")
HERE = ("file", "local")
BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs"}
REMOTE = "'spaner[remote]'"
MOST = 1 << 31
"""Bytes to ask for where nobody knows how many there are: asking for them first is a request more."""
LOGIN = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or type `aws configure`; for a "
    "public bucket set FSSPEC_S3_ANON=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or type `gcloud auth application-default login`",
}


def place(path: str | Path) -> Path:
    """The path, or the address that it spells; pathlib alone would take s3://b for a folder named "s3:"."""
    found = ADDRESS.match(str(path))
    if found is None:
        return Path(path)
    return Path("/" + str(path)[found.end() :].lstrip("/")) if found[1] in HERE else Address(path)


class Address(PosixPath):
    """A path whose bytes are objects that fsspec reaches; the methods here are those that may be used."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    @property
    def scheme(self) -> str:
        """What stands before the colon."""
        return self.parts[0].rstrip(":")

    def target(self) -> tuple[Any, str]:
        """The file system (one of each kind in a process) and the name of the object in it.

        Raises:
            CacheError: no such kind, or a package that it needs is not installed.
        """
        with _asked(self, "reading"):
            if "fsspec" not in sys.modules:
                with warnings.catch_warnings():  # options in the environment that it cannot read
                    warnings.filterwarnings("error", "Ignoring environment variable")
                    import fsspec
            import fsspec.core  # nobody without an address needs it

            return fsspec.core.url_to_fs(str(self), use_listings_cache=False)  # others write there too

    # -- reading ---------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """The object. Raises FileNotFoundError."""
        (data,) = fetch([(self, MOST)])
        if data is None:
            raise FileNotFoundError(str(self))
        return data

    def read_text(self, encoding: str | None = None, errors: str | None = None, *_: Any) -> str:
        """The object as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and time of last change, nothing else. Raises FileNotFoundError."""
        fs, key = self.target()
        with _asked(self, "reading"):
            size, changed = fs.info(key)["size"], fs.modified(key).timestamp()
        return os.stat_result((stat.S_IFREG, 0, 0, 0, 0, 0, size, changed, changed, changed))

    def is_file(self, **_: Any) -> bool:
        """Whether there is an object of this name."""
        fs, key = self.target()
        with _asked(self, "reading"):
            try:
                return fs.info(key)["type"] == "file"  # `isfile` says no when the network fails
            except FileNotFoundError as error:
                if _no_bucket(error):
                    raise
                return False

    def is_dir(self, **_: Any) -> bool:
        """Whether there are objects below this name."""
        return bool(self._listed())

    def exists(self, **_: Any) -> bool:
        """Either of them."""
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[Self]:
        """What lies directly below, by name; nothing where nothing is."""
        return iter([self / name for name in sorted(self.sizes())])

    def sizes(self) -> dict[str, int]:
        """Name -> bytes, of what lies directly below; 0 for what only has objects below it."""
        own = self.target()[1].rstrip("/")
        names = {entry["name"].rstrip("/"): entry["size"] or 0 for entry in self._listed()}
        return {name.rpartition("/")[2]: size for name, size in names.items() if name != own}

    def glob(self, pattern: str, **_: Any) -> Iterator[Self]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Names that match, level by level; a level without * is asked for, not searched."""
        first, _slash, rest = pattern.partition("/")
        if "*" not in first and not rest:
            yield from [self / first] if (self / first).is_file() else []
            return
        for entry in self.iterdir():
            if fnmatch.fnmatchcase(entry.name, first):
                yield from entry.glob(rest) if rest else [entry]

    def _listed(self) -> list[dict[str, Any]]:
        fs, key = self.target()
        with _asked(self, "listing"):
            try:
                return fs.ls(key, detail=True)
            except (FileNotFoundError, NotADirectoryError) as error:
                if _no_bucket(error):
                    raise
                return []

    # -- writing ---------------------------------------------------------------------------------

    def write_bytes(self, data: Any) -> int:
        """Put the whole object, in place of one of this name."""
        self._put(data, "overwrite")
        return len(data)

    def create(self, data: bytes) -> None:
        """Put the object if there is none of this name, which the store decides. Raises FileExistsError."""
        self._put(data, "create")

    def _put(self, data: Any, mode: str) -> None:
        fs, key = self.target()
        with _asked(self, "writing"):
            fs.pipe_file(key, bytes(data), mode=mode)

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - as pathlib has it
        """Delete the object."""
        fs, key = self.target()
        with _asked(self, "writing"):
            try:
                fs.rm_file(key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def remove(self) -> None:
        """Delete the object and all below it, if any."""
        fs, key = self.target()
        with _asked(self, "writing"):
            try:
                fs.rm(key, recursive=True)
            except FileNotFoundError as error:
                if _no_bucket(error):
                    raise

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: objects need no folder."""

    # -- name ------------------------------------------------------------------------------------

    def absolute(self) -> Self:
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> Self:  # noqa: FBT001, FBT002 - as pathlib has it
        """Itself."""
        return self


def fetch(objects: Sequence[tuple[Address, int]]) -> list[bytes | None]:
    """Several objects at once, each up to one byte more than it should have; None where there is none."""
    fs = objects[0][0].target()[0]
    keys = [address.target()[1] for address, _ in objects]
    with _asked(objects[0][0], "reading"):
        found = fs.cat_ranges(keys, [0] * len(keys), [size + 1 for _, size in objects], on_error="return")
        for data in found:
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                raise data
    return [None if isinstance(data, FileNotFoundError) else bytes(data) for data in found]


@contextmanager
def _asked(address: Address, doing: str) -> Iterator[None]:
    """Turn whatever a file system raises (they have no common base) into one line, but for what is missing.

    Raises:
        CacheError: credentials, rights, bucket, network or a package are missing.
    """
    try:
        yield
    except (CacheError, FileExistsError):
        raise
    except FileNotFoundError as error:
        if doing == "writing" or _no_bucket(error):
            raise CacheError(_refusal(address, error, doing)) from error
        raise
    except Exception as error:
        raise CacheError(_refusal(address, error, doing)) from error


def _no_bucket(error: Exception) -> bool:
    return "bucket" in str(error).lower() and "not exist" in str(error)


def _refusal(address: Address, error: Exception, doing: str) -> str:
    scheme, kinds = address.scheme, {kind.__name__ for kind in type(error).__mro__}
    why = (str(error).splitlines() or [""])[0] or type(error).__name__
    bucket = "/".join(str(address).split("/")[:3])
    if "ImportError" in kinds:
        package = PACKAGES.get(scheme, REMOTE)
        return f"{address} needs a package that is not installed ({why}); type `pip install {package}`"
    if "UserWarning" in kinds:
        return f"{why}; expected options as JSON, such as FSSPEC_S3='{{\"anon\": true}}'; mend or unset it"
    if "ValueError" in kinds and "rotocol" in why:
        return f"{address}: {why}; expected s3:, gs:, memory: or another that fsspec knows; check the address"
    if any(word in kind for word in ("Credential", "Token", "Profile") for kind in kinds):
        return f"no credentials for {address} ({why}); {LOGIN.get(scheme, 'log in to the store')}"
    if "FileNotFoundError" in kinds:
        make = f", or make it: `aws s3 mb {bucket}`" if scheme == "s3" else ", or make it"
        return f"{bucket} does not exist, expected a bucket for {address}; check the address{make}"
    if "PermissionError" in kinds:
        right = {"listing": "s3:ListBucket", "reading": "s3:GetObject", "writing": "s3:PutObject"}[doing]
        return (
            f"{address}: {doing} is refused ({why}); give these credentials the right to ({right} on "
            f"{bucket}), or use others (AWS_PROFILE)"
        )
    return (
        f"{address}: {doing} failed after all retries ({type(error).__name__}: {why}); check network and "
        "address (AWS_ENDPOINT_URL for a server of your own), then run the same command again"
    )
