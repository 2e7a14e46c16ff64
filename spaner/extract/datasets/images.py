"""Pictures: files to 8-bit RGB, and the place of a random crop. Needs Pillow and NumPy, no torch.

Decoding follows what CLIP's own pipeline does with a healthy file (`convert("RGB")`, transparency dropped,
first frame of an animation) and adds what that leaves out: EXIF rotation, 16-bit grey scaled to 8 bits
instead of clipped, a reason in plain words for every file that cannot be used.

Read are the formats of `FORMATS` and no others, whatever a file is called: Pillow would start Ghostscript
for PostScript. What a picture takes in memory is computed from its header before a pixel is allocated.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from spaner.extract.datasets.dataset import BUDGET, SampleFolder, Split, file_split, why_no_file

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
LARGEST_PIXELS = (
    178_956_970  # Pillow's own limit against decompression bombs: a quarter of 2 GiB at 3 bytes a pixel
)
LONGEST_RATIO = 200
"""Longer side over shorter at most: encoders resize the shorter one to some hundred pixels."""
PIXEL_BYTES = {"RGB": 4, "L": 5, "1": 5}
OTHER_BYTES, DEEP_BYTES = 8, 12
"""What a pixel takes while it is decoded, as stored and as RGB, by Pillow's mode; deep: more than 8 bits."""
DECODER_BYTES = {"WEBP": 19, "TIFF": 9, "PROGRESSIVE": 11}
"""What it takes where the decoder keeps more of it than the picture (measured)."""
TILE_BAND_BYTES = 6
"""What JPEG 2000's decoder takes for every pixel of a tile and band; a file may be one tile."""


class BadImage(ValueError):
    """A file that gives no picture; the message is the failed row's reason."""


def image_split(root: Path, ids: Sequence[str], labels: np.ndarray) -> Split:
    """A split of image files: ids are paths relative to `root`, decoded when opened."""
    split = file_split(ids, labels, lambda key: root / key, decode)
    return replace(split, files=SampleFolder(root, "image"))


def decode(path: Path) -> Image.Image:
    """The file's picture as 8-bit RGB, turned upright. Run it inside `quiet()`: Pillow warns about odd
    files.

    Raises:
        BadImage: missing, empty, truncated, no picture, too large, or pixels without a defined range.
    """
    missing = why_no_file(path)
    if missing:
        raise BadImage(missing)
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image)
            image.load()
            return _rgb(_upright(image))
    except BadImage:
        raise
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise BadImage("empty file" if empty else f"not an image ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {LARGEST_PIXELS:,} pixels") from None
    except Exception as error:  # OSError, SyntaxError, struct.error …: whatever a broken file provokes
        raise BadImage(_reason(error)) from error


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > LARGEST_PIXELS:
        raise BadImage(f"{width} x {height} is more than {LARGEST_PIXELS:,} pixels")
    if max(width, height) > LONGEST_RATIO * min(width, height):
        raise BadImage(f"{width} x {height}: one side is more than {LONGEST_RATIO} times the other")
    deep = image.mode.startswith(("I", "F"))
    each = DEEP_BYTES if deep else PIXEL_BYTES.get(image.mode, OTHER_BYTES)
    kind = "PROGRESSIVE" if image.info.get("progressive") else image.format or ""
    needed = width * height * max(each, DECODER_BYTES.get(kind, 0))
    if kind == "JPEG2000":
        needed += _tile_pixels(image) * len(image.getbands()) * TILE_BAND_BYTES
    if needed > BUDGET:
        raise BadImage(
            f"{width} x {height} pixels of mode {image.mode} take {needed:,} bytes, over {BUDGET:,}"
        )


def _tile_pixels(image: Image.Image) -> int:
    """Pixels of a JPEG 2000 file's tiles, from the SIZ segment that begins its codestream."""
    with Path(image.filename).open("rb") as file:  # pyright: ignore[reportAttributeAccessIssue]
        head = file.read(1 << 20)
    at = head.find(b"\xff\x4f\xff\x51") + 8  # start of codestream, SIZ, its length and capabilities
    width, height = (int.from_bytes(head[at + n : at + n + 4], "big") for n in (16, 20))
    known = at >= 8 and width and height
    return min(width, image.width) * min(height, image.height) if known else image.width * image.height


def _reason(error: Exception) -> str:
    text = str(error)
    if "truncated" in text or "Truncated" in text or isinstance(error, EOFError):
        return "truncated image"
    line = text.splitlines()[0] if text else type(error).__name__
    return f"cannot be decoded: {line}"


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a broken EXIF block means the stored orientation."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # the parser raises whatever the damage leads it to
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _grey_from_16_bit(image)
    if image.mode == "F":
        raise BadImage("floating-point pixels have no defined range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_from_16_bit(image: Image.Image) -> Image.Image:
    """65,535 becomes 255; Pillow's own conversion would clip everything above 255 to white.

    A band of rows at a time, so that the sums in 64 bits never stand in memory for a whole picture.
    """
    pixels = np.asarray(image)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65_535):
        raise BadImage("32-bit pixels have no defined range")
    grey = np.empty(pixels.shape, np.uint8)
    rows = max(1, (1 << 20) // max(1, image.width))
    for top in range(0, len(pixels), rows):
        grey[top : top + rows] = (pixels[top : top + rows].astype(np.int64) + 128) // 257
    return Image.fromarray(grey)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings about odd files for the whole process while inside.

    One switch around a run rather than one per file, because Python's warning filters are not per thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def random_crop(key: str, view: int, seed: int, spare: tuple[int, int]) -> tuple[int, int, bool]:
    """Where a random view lies: (left, top, mirrored), a pure function of sample id, view and seed.

    Args:
        spare: pixels by which the resized image exceeds the crop: (width, height).
    """
    digest = hashlib.sha256(f"{seed}|{view}|{key}".encode()).digest()
    left, top = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8))
    return left % (spare[0] + 1), top % (spare[1] + 1), bool(digest[16] & 1)


def resized_crop(
    key: str, view: int, seed: int, size: tuple[int, int], scale: tuple[float, float]
) -> tuple[int, int, int, int, bool]:
    """Where a random-resized-crop view lies: (left, top, width, height, mirrored), pure in its arguments.

    Its share of the area is uniform in `scale`, its aspect log-uniform from 3/4 to 4/3. Where ten draws
    do not fit into a long picture, the middle of it is taken.

    Args:
        size: the picture's (width, height).
    """
    width, height = size
    mirrored = False
    for trial in range(10):
        digest = hashlib.sha256(f"{seed}|{view}|{key}|{trial}".encode()).digest()
        share, shape, x, y = (int.from_bytes(digest[i : i + 6], "little") / 2**48 for i in (0, 6, 12, 18))
        mirrored = bool(digest[24] & 1)
        area = width * height * (scale[0] + share * (scale[1] - scale[0]))
        aspect = 0.75 * (16 / 9) ** shape
        w, h = max(1, round((area * aspect) ** 0.5)), max(1, round((area / aspect) ** 0.5))
        if w <= width and h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h, mirrored
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h, mirrored
