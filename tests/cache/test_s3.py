"""Caches in a real S3 server: what is asked of it, and what a bad network, a kill or a closed door does."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import fsspec.config
import numpy as np
import pytest
import zarr

from spaner import cache
from spaner.cache.address import place
from spaner.cache.claim import Claim
from spaner.errors import Busy, CacheError, Unsealed
from tests.cache.conftest import CLASSES, Source, toy
from tests.cache.test_copy import same
from tests.s3_server import S3Server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of one table of five chunks, alone in its folder: each request costs a test 10 ms."""
    source, path = Source(toy()), tmp_path_factory.mktemp("one") / "cache"
    with cache.create(path, "pets", CLASSES) as made, source.begin(made) as writer:
        source.write(writer)
        writer.seal({"purity": 0.0})
    return path


def every(number: int, what: str, method: str = "") -> Callable[[str, str], str | None]:
    """A fault of every so manieth request."""
    seen = 0

    def fault(found: str, _path: str) -> str | None:
        nonlocal seen
        seen += found == method or not method
        return what if seen % number == 0 and (found == method or not method) else None

    return fault


@pytest.mark.slow
def test_there_between_and_back(one: Path, tmp_path: Path, contents, s3: S3Server):
    made = one
    cache.copy(made, f"{s3.bucket}/folder/cache")
    assert s3.contents(f"{s3.bucket}/folder/cache") == contents(made)
    cache.copy(f"{s3.bucket}/folder/cache", f"{s3.bucket}/other/cache")
    cache.copy(f"{s3.bucket}/other/cache", tmp_path / "back.h5")
    with cache.open(made) as first, cache.open(tmp_path / "back.h5") as last:
        same(first, last)
        assert last.verify() == []


def test_zarr_opens_it_with_a_store_of_its_own(one: Path, s3: S3Server):
    cache.copy(one, f"{s3.bucket}/cache")
    group = zarr.open_group(f"{s3.bucket}/cache", mode="r")
    with cache.open(f"{s3.bucket}/cache") as opened:
        found = np.asarray(group["image/train/features"][:])  # pyright: ignore
        np.testing.assert_array_equal(found, opened.table("image/train").read())


def test_what_another_program_compressed_is_read_there(make, tmp_path: Path, s3: S3Server):
    made = make(tmp_path / "cache")
    with cache.open(made) as opened:
        expected = opened.table("image/train").read()
    zarr.create_array(made / "image/train", name="features", data=expected, chunks=(5, 2, 7), overwrite=True)
    fsspec.filesystem("s3", use_listings_cache=False).put(str(made), f"{s3.bucket}/cache", recursive=True)
    with cache.open(f"{s3.bucket}/cache") as opened:
        np.testing.assert_array_equal(opened.table("image/train").read(), expected)


def test_no_more_is_asked_for_than_is_needed(tmp_path: Path, encoder, s3: S3Server):
    rows, chunks = 61, 13  # the last chunk is short
    source = Source(encoder, rows)
    with cache.create(tmp_path / "cache", "pets", CLASSES) as made, source.begin(made) as writer:
        source.write(writer)
        writer.seal()
    cache.copy(tmp_path / "cache", f"{s3.bucket}/cache")
    s3.forget()
    with cache.open(f"{s3.bucket}/cache") as opened:
        table = opened.table("image/train")
        assert s3.asked("GET", "/features/") == []
        table.read(np.array([7, 9, 8]))
        assert s3.asked("GET", "/features/c.") == [f"/{s3.bucket[5:]}/cache/image/train/features/c.1.0.0"]
        s3.forget()
        np.testing.assert_array_equal(np.concatenate([block for _, block in table.stream()]), source.stored())
        fetched = s3.asked("GET", "/features/c.")
        assert len(fetched) == len(set(fetched)) == chunks - 1  # chunk 1 was near
        s3.forget()
        assert (table.labels.tolist(), table.ids.tolist()) == (source.labels.tolist(), source.ids)
        assert len(s3.asked("GET", "/c.0")) == 2
        assert s3.asked("GET", "/features/") == []
        assert s3.sent < 61 * (4 + 19) + 10_000


@pytest.mark.parametrize("what", ["503", "cut", pytest.param("silence", marks=pytest.mark.slow)])
def test_a_bad_network_is_tried_again(one: Path, s3: S3Server, what: str):
    """Overload, answers cut short and answers that never come; of the last, few: each costs its time."""
    s3.fault = every(61 if what == "silence" else 37, what, "GET" if what == "cut" else "")
    cache.copy(one, f"{s3.bucket}/cache")
    with cache.open(f"{s3.bucket}/cache") as opened, cache.open(one) as local:
        same(opened, local)
        assert opened.verify() == []


def test_what_cannot_be_written_is_no_cache_and_goes_on(one: Path, contents, s3: S3Server):
    made, target = one, f"{s3.bucket}/folder/cache"
    s3.fault = lambda method, path: "403" if method == "PUT" and "/features/c.2" in path else None
    with pytest.raises(CacheError, match=r"features/c.2.0.0: writing is refused \(.*s3:PutObject on s3://"):
        cache.copy(made, target)
    begun = [path.rpartition("/train/")[2] for path in s3.asked("PUT", "/image/train/")]
    assert begun.index("labels/c.0") < begun.index("zarr.json") < begun.index("features/c.0.0.0")
    s3.forget()
    with pytest.raises(Unsealed, match="10 of 23 rows"):
        cache.open(target)
    s3.forget()
    cache.copy(made, target)
    assert [path[-7:] for path in s3.asked("PUT", "train/features/c.")] == ["c.2.0.0", "c.3.0.0", "c.4.0.0"]
    assert s3.asked("GET", "train/features/c.") == []  # what was sent is not fetched
    assert [path for path in s3.asked("PUT") if "lock" not in path][-1].endswith("/train/zarr.json")
    assert s3.contents(target) == contents(made)
    s3.forget()
    cache.copy(made, target)
    assert s3.asked("PUT", "/c.") == []


KILLED = "import sys; from spaner import cache; cache.copy(sys.argv[1], sys.argv[2])"


def kill_at(s3: S3Server, made: Path, target: str, number: int) -> bool:
    """Copy in another process that is killed when it sends its so manieth object; False if it had ended."""
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(made), target], cwd=ROOT)

    def kill(method: str, _path: str) -> None:
        if method == "PUT" and len(s3.asked("PUT")) >= number:
            child.kill()

    s3.fault = kill
    return child.wait(60) != 0


def refuse_half(target: str) -> None:
    """Whatever is there is no finished cache."""
    with pytest.raises(CacheError):
        cache.open(target)


def killed(s3: S3Server, made: Path, expected: dict[str, bytes], numbers: list[int]) -> None:
    for number in numbers:
        target = f"{s3.bucket}/killed-{number}/cache"
        s3.forget()
        assert kill_at(s3, made, target, number)
        s3.forget()
        refuse_half(target)
        cache.copy(made, target)
        assert s3.contents(target) == expected, f"killed at object {number}"


def test_a_killed_copy_looks_unfinished_and_goes_on(one: Path, contents, s3: S3Server):
    killed(s3, one, contents(one), [24])


@pytest.mark.slow
def test_a_copy_may_be_killed_at_any_object(one: Path, contents, s3: S3Server):
    cache.copy(one, f"{s3.bucket}/whole/cache")
    killed(s3, one, contents(one), list(range(1, len(s3.asked("PUT")), 2)))


def test_one_writer_at_a_time_and_a_silent_one_is_replaced(source: Source, s3: S3Server):
    target = f"{s3.bucket}/cache"
    with cache.create(target, "pets", CLASSES) as made, source.begin(made):
        assert ".cache.image=train.lock" in s3.contents(target)
    file = place(f"{s3.bucket}/.cache.part.lock")
    first = Claim(file, "a part", silence=0.5, where="a host that is gone")
    with pytest.raises(Busy, match="a part is being written by process"):
        Claim(file, "a part", silence=0.5, where="another")
    first._done.set()  # no more beats
    first._thread.join()
    s3.forget()
    assert not any(first.lost for _ in range(100))
    assert len(s3.asked("GET")) < 10  # not a request for each question
    second = Claim(file, "a part", silence=0.5, where="another")
    assert first.lost
    assert not second.lost
    second.release()
    assert [name for name in s3.contents(target) if "lock" in name] == []


@pytest.mark.slow
def test_workers_share_a_table_there(source: Source, s3: S3Server):
    target = f"{s3.bucket}/cache"
    with cache.create(target, "pets", CLASSES) as made:
        source.begin(made).close()
    for worker in range(2):
        with (
            cache.create(target, "pets", CLASSES) as made,
            made.join("image/train", worker=(worker, 2)) as writer,
        ):
            assert writer.pending == list(range(worker, 5, 2))
            source.write(writer)
            assert writer.seal() is (worker == 1)
    with cache.open(target) as opened:
        np.testing.assert_array_equal(opened.table("image/train").read(), source.stored())


def test_what_keeps_us_out_is_said_in_one_line(s3: S3Server, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        CacheError, match=r"^s3://nobody-has-it does not exist, .*make it: `aws s3 mb s3://nob"
    ):
        cache.open("s3://nobody-has-it/cache")
    with pytest.raises(CacheError, match=r"^s3://nobody-has-it does not exist"):
        cache.create("s3://nobody-has-it/cache", "pets", CLASSES)
    s3.fault = lambda method, path: "403"
    line = rf"^{s3.bucket}/cache: listing is refused \(.*\); give .* \(s3:ListBucket on {s3.bucket}\), or use"
    with pytest.raises(CacheError, match=line):
        cache.open(f"{s3.bucket}/cache")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 3}})  # another client
    line = re.escape("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or type `aws config")
    with pytest.raises(CacheError, match=rf"^no credentials for {s3.bucket}/cache \(.*\); {line}"):
        cache.open(f"{s3.bucket}/cache")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "AWS_PROFILE",
            "nobody",
            r"no credentials for .* \(The config profile \(nobody\) could not",
        ),
        (
            "FSSPEC_S3",
            "{anon",
            r"Ignoring environment variable FSSPEC_S3 .*; expected options as JSON,",
        ),
    ],
)
def test_an_environment_that_cannot_be_is_one_line(name: str, value: str, said: str) -> None:
    words = [sys.executable, "-m", "spaner", "cache", "info", "s3://bucket/cache"]
    kept = {key: told for key, told in os.environ.items() if not key.startswith(("AWS_", "FSSPEC_"))}
    done = subprocess.run(words, env=kept | {name: value}, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert re.match(rf"error: {said}", done.stderr)


def test_commands_take_an_address(cli, one: Path, s3: S3Server):
    target = f"{s3.bucket}/cache"
    assert cli("cache", "copy", str(one), target).out == f"{target}: a copy of {one}\n"
    assert cli("cache", "verify", target).out == f"{target}: 1 tables, every byte as it was sealed\n"
    refused = cli("cache", "info", "s3://nobody-has-it/cache")
    assert (refused.status, refused.err.count("\n")) == (1, 1)
