"""Commands whose cache is in S3: each works there as in a folder, or refuses in one clear line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import spaner.cache
from spaner.cache.address import place
from tests.conftest import Outcome, made_up_spec, make_toy_cache
from tests.s3_server import S3Server, serving

Command = Callable[..., Outcome]

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def sounding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy cache with a third modality."""
    path = tmp_path_factory.mktemp("sounding") / "toy"
    make_toy_cache(path, classes=3)
    rng = np.random.default_rng(1)
    with spaner.cache.create(path, "toy", [f"class {i}" for i in range(3)]) as made:
        for split in ("train", "test"):
            labels = np.repeat(np.arange(3, dtype=np.int32), 5)
            rows = rng.normal(size=(len(labels), 1, 24)).astype(np.float32)
            made.add("audio", split, rows, labels, encoder=made_up_spec("audio", 24))
    return path


@pytest.fixture(scope="module")
def server(sounding: Path) -> "object":
    """A server that holds the cache, for all commands below."""
    with serving() as found:
        found.make_bucket("commands")
        spaner.cache.copy(sounding, f"{found.bucket}/caches/toy")
        yield found


@pytest.fixture
def cache(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its address; nothing may come into being here but what is asked for."""
    monkeypatch.chdir(tmp_path)
    server.forget()
    return f"{server.bucket}/caches/toy"


@pytest.fixture(scope="module")
def run(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained from there."""
    from spaner.align.train.config import TrainConfig
    from spaner.align.train.fit import train

    knobs = {"shots": 2, "epochs": 1, "heads": 4, "batch_size": 16, "device": "cpu"}
    folder = tmp_path_factory.mktemp("runs") / "toy"
    train(place(f"{server.bucket}/caches/toy"), TrainConfig.from_recipe("paper", **knobs), out=folder)
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param("cache repair CACHE", "CACHE: 0 chunks extracted again", marks=SLOW),
        ("cache export CACHE exported", "exported: exported from CACHE"),
        ("embed --run RUN --cache CACHE/image/test", "embedded: embedded/toy"),
        pytest.param("index --run RUN --cache CACHE", "index: index/toy, 60 rows of 24", marks=SLOW),
        ("eval --run RUN --cache CACHE", "39 test rows"),
        pytest.param("transfer RUN --to CACHE --no-base-to-new", "rows: transfer/transfer.json", marks=SLOW),
        ("extend --run RUN --modality audio --cache CACHE --epochs 1 --out more", "run: more"),
        ("report RUN", "report: report.html"),
        (
            "doctor --caches FOLDER",
            "FOLDER: readable yes, writable yes, conditional yes (put only",
        ),
    ],
    ids=lambda words: " ".join(words.split()[:2]).replace("RUN", "").strip(),
)
def test_a_command_works_there(
    words: str, said: str, cache: str, run: Path, cli: Command, tmp_path: Path
) -> None:
    names = {"CACHE": cache, "RUN": str(run), "FOLDER": cache.removesuffix("/toy")}
    for name, what in names.items():
        words, said = words.replace(name, what), said.replace(name, what)
    told = cli(*words.split())
    assert told.status == 0, told.err
    assert said in told.out
    if words.startswith("report"):  # and tells one address from another of the same name
        assert f"--cache {cache} " in (tmp_path / "report.html").read_text()
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]


def test_doctor_says_what_an_address_lets_us_do(server: S3Server, cache: str, cli: Command) -> None:
    folder = cache.removesuffix("/toy")
    server.fault = lambda method, path: "403" if method == "PUT" else None
    told = cli("doctor", "--caches", folder).out
    assert f"{folder}: readable yes, writable NO, conditional not tried" in told
    assert "writing is refused" in told
    server.fault = lambda method, path: "403"
    told = cli("doctor", "--caches", folder).out
    assert f"{folder}: readable NO, writable NO, conditional not tried" in told
    assert "listing is refused" in told
    assert "Traceback" not in told
    server.fault = lambda method, path: "unconditional" if method == "PUT" else None
    told = cli("doctor", "--caches", folder).out
    assert f"{folder}: readable yes, writable yes, conditional NO" in told
    assert "claims keep no two writers apart; see to it that each part runs once" in told
    server.forget()
    assert not [name for name in server.contents(cache) if "doctor" in name]


def test_a_damaged_chunk_is_mended_at_an_address(cli: Command, tmp_path: Path) -> None:
    import fsspec

    there, fs = "memory://mended/digits", fsspec.filesystem("memory")
    assert cli("extract", "--dataset", "digits", "--modality", "text", "--cache", there).status == 0
    before = {name: fs.cat_file(name) for name in fs.find("/mended")}
    chunk = "/mended/digits/text/mined/features/c.0.0.0"
    fs.pipe_file(chunk, before[chunk][:-1] + b"!")
    assert "1 damaged parts" in cli("cache", "verify", there).err
    assert cli("cache", "repair", there).out == f"{there}: 1 chunks extracted again\n"
    assert {name: fs.cat_file(name) for name in fs.find("/mended")} == before
    fs.rm("/mended", recursive=True)


@pytest.mark.parametrize(
    "words",
    [
        "cache export CACHE THERE",
        "train --cache CACHE --shots 2 --epochs 1 --heads 4 --device cpu --out THERE",
        "sweep --cache CACHE --method gda --shots 2 --out THERE",
        "compare --cache CACHE --methods zero_shot --shots 1 --seeds 1 --out THERE",
        "transfer RUN --to CACHE --no-base-to-new --out THERE",
        "extend --run RUN --modality audio --cache CACHE --epochs 1 --out THERE",
        "report RUN --out THERE",
        "index --run RUN --cache CACHE --out THERE",
    ],
    ids=lambda words: " ".join(words.split()[:2]),
)
def test_what_is_no_cache_is_written_here_alone(
    words: str, server: S3Server, cache: str, run: Path, cli: Command, tmp_path: Path
) -> None:
    there = f"{server.bucket}/out"
    told = cli(*words.replace("CACHE", cache).replace("RUN", str(run)).replace("THERE", there).split())
    assert told.status == 1, told.out
    said = f"error: {there} is an address, where only caches lie; expected a folder of this machine"
    assert told.err.startswith(said)
    assert not list(tmp_path.iterdir())
