"""Pictures: every kind of file gives the right pixels or the right reason."""

import os
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spaner.extract.datasets import images
from spaner.extract.datasets.images import BadImage, decode, image_split, quiet, random_crop
from tests.extract.conftest import picture


def saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Path:
    path = tmp_path / name
    image.save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def reason(path: Path) -> str:
    with quiet(), pytest.raises(BadImage) as caught:
        decode(path)
    return str(caught.value)


def test_rgb_comes_back_bit_for_bit(tmp_path: Path) -> None:
    image = picture(1)
    assert decode(saved(tmp_path, image, "a.png")).tobytes() == image.tobytes()


def test_cmyk_is_converted(tmp_path: Path) -> None:
    red = Image.new("CMYK", (7, 5), (0, 255, 255, 0))
    pixels = np.asarray(decode(saved(tmp_path, red, "a.jpg", quality=95)))
    assert pixels.shape == (5, 7, 3)
    assert pixels[..., 0].min() > 240
    assert pixels[..., 1:].max() < 20


def test_palette_with_transparency_shows_its_colours_and_does_not_warn(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    path = saved(tmp_path, image, "a.png", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(path).getpixel((0, 0)) == (10, 200, 30)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65_535]], dtype=np.uint16)
    path = saved(tmp_path, Image.fromarray(values), "a.png")
    assert np.asarray(decode(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert decode(path).getpixel((0, 0)) == (255, 0, 0)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(saved(tmp_path, picture(2, (40, 24)), "a.jpg", exif=exif))
    assert turned.size == (24, 40)


def test_a_broken_exif_block_does_not_lose_the_picture(tmp_path: Path) -> None:
    path = saved(tmp_path, picture(3, (40, 24)), "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    with quiet():
        assert decode(path).size == (40, 24)


def test_a_truncated_file_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path, picture(4, (160, 120)), "a.jpg")
    path.write_bytes(path.read_bytes()[:-900])
    assert reason(path) == "truncated image"


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert reason(tmp_path / "a.jpg") == "empty file"


def test_a_text_file_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    assert reason(tmp_path / "a.jpg").startswith("not an image (JPEG, PNG")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    assert reason(tmp_path / "a.jpg") == "file not found"


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    assert reason(tmp_path) == "a folder, not a file"


def test_floating_point_pixels_have_no_range(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.ones((2, 3), np.float32)), "a.tiff")
    assert reason(path) == "floating-point pixels have no defined range"


@pytest.mark.parametrize("side", [14_000, 40_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    path = saved(tmp_path, Image.new("L", (1, 1)), "a.bmp")
    data = bytearray(path.read_bytes())
    data[18:26] = struct.pack("<ii", side, side)
    path.write_bytes(data)
    assert "more than 178,956,970 pixels" in reason(path)


def test_a_random_crop_is_pinned_to_id_view_and_seed() -> None:
    assert random_crop("train/fox/1.jpg", 1, 0, (75, 0)) == (14, 0, True)
    assert random_crop("train/fox/1.jpg", 1, 1, (75, 0)) == (75, 0, True)
    assert random_crop("train/fox/1.jpg", 2, 0, (75, 31)) == (0, 27, False)


@given(st.text(), st.integers(1, 9), st.integers(0, 99), st.integers(0, 500), st.integers(0, 500))
def test_a_random_crop_stays_inside(key: str, view: int, seed: int, right: int, down: int) -> None:
    left, top, _ = random_crop(key, view, seed, (right, down))
    assert 0 <= left <= right
    assert 0 <= top <= down


def test_random_crops_reach_every_place_and_mirror_half() -> None:
    crops = [random_crop(f"{i}", 1, 0, (4, 2)) for i in range(600)]
    assert {(left, top) for left, top, _ in crops} == {(i, j) for i in range(5) for j in range(3)}
    assert 240 < sum(mirrored for _, _, mirrored in crops) < 360


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (3, 601)])
def test_a_sliver_is_refused_before_anybody_resizes_it(tmp_path: Path, size: tuple[int, int]) -> None:
    assert "one side is more than 200 times the other" in reason(
        saved(tmp_path, Image.new("L", size), "a.png")
    )


def test_16_bit_grey_takes_little_more_than_its_pixels(tmp_path: Path) -> None:
    values = np.arange(1200 * 1000, dtype=np.uint16).reshape(1200, 1000)
    path = saved(tmp_path, Image.fromarray(values), "a.png")
    tracemalloc.start()
    try:
        found = np.asarray(decode(path))[..., 0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(found, (values.astype(int) + 128) // 257)
    assert peak < 24 * values.size  # bands of a million values at 8 bytes, twice, beside the picture


@pytest.mark.parametrize(("mode", "side"), [("I;16", 8_400), ("RGBA", 10_100), ("L", 12_800)])
def test_what_a_picture_would_take_is_known_from_its_header(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str, side: int
) -> None:
    path = saved(tmp_path, Image.new(mode, (1, 1)), "a.png")
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("allocated"))
    assert f"{side} x {side} pixels of mode {mode} take" in reason(path)


def test_other_formats_are_not_opened_whatever_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "EPS"  # Pillow itself would start Ghostscript now
    assert reason(tmp_path / "a.jpg").startswith("not an image (JPEG")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    assert reason(tmp_path / "a.jpg") == "a pipe, socket or device, not a file"


def test_a_link_to_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("nowhere")
    assert reason(tmp_path / "a.jpg") == "a link to nothing"


def test_a_split_knows_size_and_age_of_its_files(tmp_path: Path) -> None:
    path = saved(tmp_path, picture(1), "a.png")
    split = image_split(tmp_path, ["a.png", "gone.png"], np.array([0, 0]))
    assert split.stat("a.png") == (path.stat().st_size, path.stat().st_mtime_ns)
    assert split.take(np.array([1])).stat("gone.png") is None


def test_what_a_decoder_keeps_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WebP, progressive JPEG and JPEG 2000 in one tile take several times the picture while they are read."""
    monkeypatch.setattr(images, "BUDGET", 100_000)
    kept: dict[str, dict[str, Any]] = {"a.jpg": {}, "a.tif": {}, "a.png": {}}
    kept |= {"tiled.jp2": {"tile_size": (20, 20)}}
    for name, how in (kept | {"a.webp": {}, "b.jpg": {"progressive": True}, "whole.jp2": {}}).items():
        Image.new("RGB", (100, 100)).save(tmp_path / name, **how)
        if name in kept:
            assert images.decode(tmp_path / name).size == (100, 100)
        else:
            with pytest.raises(images.BadImage, match=r"100 x 100 pixels of mode RGB take .* over 100,000"):
                images.decode(tmp_path / name)
