"""Records must survive JSON, name their differences and be the same everywhere."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spaner.cache import EncoderSpec, Manifest, default_chunk_rows, ids_sha256
from spaner.cache.layout import pack, pack_reason, unpack
from spaner.errors import CacheError

text = st.text(min_size=1).filter(lambda value: "\0" not in value and _encodable(value))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def _encodable(value: str) -> bool:
    try:
        return bool(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50
)  # source is not changed
@given(
    options=st.dictionaries(st.text(), plain, max_size=3),
    preprocessing=st.dictionaries(st.text(), plain, max_size=3),
    views=st.lists(st.text(), min_size=1, max_size=3),
    scale=st.none() | st.floats(1, 1000),
)
def test_json_round_trip_is_the_same_record(source, options, preprocessing, views, scale):
    encoder = replace(source.manifest.encoder, preprocessing=preprocessing, logit_scale=scale)
    manifest = replace(source.manifest, options=options, views=views, encoder=encoder)
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())))
    assert again == manifest
    assert again.sha256 == manifest.sha256
    assert EncoderSpec.from_json(asdict(encoder)) == encoder


@given(st.lists(text, min_size=1, max_size=7))
@settings(max_examples=50)
def test_any_ids_survive_packing(ids: list[str]):
    packed = pack(ids)
    assert packed.shape == (len(ids), max(len(name.encode("utf-8", "surrogateescape")) for name in ids))
    assert unpack(packed).tolist() == ids
    assert len(ids_sha256(ids)) == 64


def test_identity_is_pinned(source):
    # a change here makes every existing cache look different: raise the schema instead
    assert source.manifest.sha256 == "3a4c48f3a4192623a38e0c87a7ec5c4d0999c655714a46a2e6b2cd4c779d5a09"
    assert ids_sha256(["a", "ä"]) == "ca6d5b84ca1de22836981ac1b5b9a85b4be820672a76f94811246fc84ce879f1"
    assert ids_sha256(["ab", "c"]) != ids_sha256(["a", "bc"])


def test_differences_are_named_with_both_values(source):
    encoder = replace(source.manifest.encoder, weights="openai", precision="bf16", logit_scale=100.0)
    other = replace(source.manifest, seed=4, encoder=encoder)
    assert source.manifest.differences(other) == {
        "seed": (3, 4),
        "encoder.weights": ("random", "openai"),
        "encoder.precision": ("float32", "bf16"),
        "encoder.logit_scale": (None, 100.0),
    }
    assert source.manifest.encoder.same_encoder(encoder) == {}
    strange = replace(encoder, mode="batch_stats", preprocessing={"size": 13})
    assert set(source.manifest.encoder.same_encoder(strange)) == {"mode", "preprocessing"}


def test_tuples_in_settings_equal_the_lists_they_come_back_as(source):
    encoder = replace(source.manifest.encoder, preprocessing={"mean": (0.5, 0.25)})
    assert encoder == EncoderSpec.from_json(asdict(encoder))


def test_chunks_cover_the_rows(source):
    manifest = source.manifest
    spans = [manifest.rows_of(chunk) for chunk in range(manifest.chunks)]
    assert [(span.start, span.stop) for span in spans] == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]
    assert replace(manifest, chunk_rows=1024).chunk == 23


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "unknown fields colour; upgrade spaner"),
        ({"encoder": None}, "EncoderSpec must be a JSON object, found NoneType"),
        ({"rows": 0}, "has 0 rows; expected at least 1"),
        ({"rows": "9"}, "has '9' rows"),
        ({"dtype": "nloat32"}, "has dtype 'nloat32'; expected float16 or float32"),
    ],
)
def test_json_that_is_no_manifest_is_one_line(source, change: dict, words: str):
    with pytest.raises(CacheError, match=words):
        Manifest.from_json(source.manifest.to_json() | change)


def test_an_incomplete_manifest_is_one_line(source):
    with pytest.raises(CacheError, match=r"Manifest is incomplete: .*'seed'; create the table again"):
        Manifest.from_json(
            {name: value for name, value in source.manifest.to_json().items() if name != "seed"}
        )
    with pytest.raises(CacheError, match="EncoderSpec must be a JSON object, found NoneType"):
        Manifest.from_json(None)


def test_reasons_are_cut_at_a_character():
    packed = pack_reason("€" * 60)
    assert packed.shape == (160,)
    assert bytes(packed).rstrip(b"\0").decode() == "€" * 53
    assert np.array_equal(pack_reason(" \n "), pack_reason("no reason given"))


@pytest.mark.parametrize(
    ("views", "dim", "dtype", "rows"),
    [
        (2, 512, "float16", 2048),
        (1, 512, "float32", 2048),
        (1, 64, "float16", 4096),
        (180, 1024, "float32", 5),
        (1, 1 << 23, "float32", 1),
    ],
)
def test_a_chunk_is_four_mebibytes_unless_that_is_too_many_rows(views, dim, dtype, rows):
    assert default_chunk_rows(views, dim, dtype) == rows
