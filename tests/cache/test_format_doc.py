"""docs/format.md is enough to read a cache: its reader is run, and its statements about bytes are checked."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np

DOC = Path(__file__).parents[2] / "docs" / "format.md"


def test_the_reader_in_the_document_reads_a_cache(make, tmp_path: Path, source):
    (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(code, str(DOC), "exec"), names)
    features, labels, ids, ok = names["read"](make(tmp_path / "cache") / "image/train")
    np.testing.assert_array_equal(features, source.stored())
    assert labels.tolist() == source.labels.tolist()
    assert ids == source.ids
    assert np.flatnonzero(~ok).tolist() == [7]


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_hashes_are_what_the_document_says(make, tmp_path: Path, source):
    made = make(tmp_path / "cache")
    table = made / "image/train"
    root = json.loads((made / "zarr.json").read_bytes())["attributes"]
    digest = root.pop("digest")
    assert hashlib.sha256(canonical(root)).hexdigest() == digest
    del root["tables"]["text/vanilla"]

    attributes = json.loads((table / "zarr.json").read_bytes())["attributes"]
    assert root.pop("tables") == {
        "image/train": hashlib.sha256(canonical(attributes["manifest"])).hexdigest()
    }
    copy = json.loads((made / "image" / "zarr.json").read_bytes())["attributes"]
    assert copy == root | {"digest": hashlib.sha256(canonical(root)).hexdigest()}
    seal = attributes["seal"]
    sealed = {name: value for name, value in seal.items() if name != "digest"}
    assert hashlib.sha256(canonical(attributes | {"seal": sealed})).hexdigest() == seal["digest"]
    listing = b"".join((table / name).read_bytes() for name in ("labels/c.0", "ids/c.0.0"))
    assert hashlib.sha256(listing).hexdigest() == seal["listing"]
    assert (
        hashlib.sha256((table / "draws/2-shot-seed-1/c.0").read_bytes()).hexdigest()
        == seal["draws"]["2-shot-seed-1"]
    )
    checksums = [(table / f"checksum/c.{chunk}.0").read_bytes() for chunk in range(5)]
    assert hashlib.sha256(b"".join(checksums) + b"\1" * 5).hexdigest() == seal["chunks"]
    chunk = [
        source.stored()[5:10].tobytes(),
        b"\1\1\2\1\1",
        bytes(320) + b"image file is truncated".ljust(480, b"\0"),
        bytes(5 * 24),
    ]
    assert hashlib.sha256(b"\1" * 7 + b"\2" + b"\1" * 15).hexdigest() == seal["status"]
    assert hashlib.sha256(b"".join(chunk)).digest() == checksums[1]
    ids = "".join(name + "\0" for name in source.ids).encode()
    assert attributes["manifest"]["rows_sha256"] == hashlib.sha256(ids).hexdigest()


def test_the_first_512_bytes_are_what_the_document_says(make, tmp_path: Path):
    data = make(tmp_path / "cache.h5").read_bytes()
    text = f"spaner-cache/2\nbytes {len(data)}\nsha256 {hashlib.sha256(data[512:]).hexdigest()}\n"
    assert data[:512] == text.encode().ljust(512, b"\0")
    assert data[512:520] == b"\x89HDF\r\n\x1a\n"


def test_the_document_names_every_field(source):
    text = DOC.read_text(encoding="utf-8")
    manifest = source.manifest.to_json()
    for name in (
        *manifest,
        *manifest["encoder"],
        "listing",
        "draws",
        "chunks",
        "digest",
        "measured",
        "class_names",
    ):
        assert f"`{name}`" in text, name
