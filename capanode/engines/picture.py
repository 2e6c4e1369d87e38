"""From a stranger's image file to the pixels that a classifier wants.

Formats are limited to JPEG, PNG and WebP, what decoding will cost is bounded before a pixel is
decoded (a file that is refused is read for free), and whatever else is odd about a file ends as an
EngineRefusal. Runs in the sandboxed worker only.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from capanode.engines.base import EngineRefusal, ModelLoadError
from capanode.engines.picture_structure import PictureFile, read_structure
from protocol.errors import Code

# A 48-megapixel photograph, the most that common phones make. As a JPEG it is decoded at a fraction
# of its size and stays far below 8 bytes a pixel.
PIXELS_MAX = 50_000_000

# A PNG or WebP is decoded whole, and one with an alpha channel exists five times over while it is
# laid on white: this many pixels of 24 bytes are 400 MB, a quarter of what a worker has beside its
# model.
PNG_PIXELS_MAX = 4_096 * 4_096

# Every scan of a progressive JPEG goes through all pixels, at about 5 ns each: a second in all.
_SCANNED_PIXELS_MAX = 4 * PIXELS_MAX

_FORMATS = ("JPEG", "PNG", "WEBP")
_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

# How a camera that was turned says so (EXIF, tag 0x0112), and what turns the image back.
_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A JPEG is decoded at a half, a quarter or an eighth of its size if that leaves this many times the
# pixels wanted on each side: large photographs cost little more than small ones.
_DRAFT_FACTOR = 2


# What Pillow raises of a file that is wrong.
_DAMAGE = (
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a model wants its images: square, `size` pixels wide, (value - mean) / std."""

    size: int
    crop_fraction: float
    mean: float
    std: float
    resample: str

    def __post_init__(self) -> None:
        if self.resample not in _RESAMPLING:
            raise ModelLoadError(f"resampling {self.resample[:32]!r} is not run here")
        if not 0 < self.crop_fraction <= 1:
            raise ModelLoadError("the crop fraction lies between 0 and 1")


def prepare(data: bytes, wanted: Preparation) -> npt.NDArray[np.float32]:
    """The centre of the image as [3, size, size]. Raises EngineRefusal: INVALID_IMAGE or
    IMAGE_TOO_LARGE."""
    file = read_structure(data)
    if file.size is not None and file.size[0] * file.size[1] > PNG_PIXELS_MAX:
        raise _too_large(PNG_PIXELS_MAX)
    try:
        with warnings.catch_warnings():
            # Most of what Pillow warns of is metadata. Of a bomb it should not only warn.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            square = _decode_square(file, wanted)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large(PIXELS_MAX) from None
    except (UnidentifiedImageError, *_DAMAGE):
        raise EngineRefusal(
            "not a JPEG, PNG or WebP image, or damaged", code=Code.INVALID_IMAGE
        ) from None
    pixels = np.asarray(square, dtype=np.float32).transpose(2, 0, 1)
    return (pixels - np.float32(wanted.mean)) / np.float32(wanted.std)


def _decode_square(file: PictureFile, wanted: Preparation) -> Image.Image:
    with Image.open(io.BytesIO(file.data), formats=_FORMATS) as image:
        _check_cost(image, file.scans)
        least = round(wanted.size / wanted.crop_fraction) * _DRAFT_FACTOR
        if image.format == "JPEG":
            # The shorter side must keep its pixels, so both are asked for at the same scale.
            shorter = min(image.width, image.height)
            scale = min(1.0, least / shorter)
            image.draft("RGB", (round(image.width * scale), round(image.height * scale)))
        whole = _to_rgb(image)
        turn = _turn_of(image)
    side = round(min(whole.size) * wanted.crop_fraction)
    left, top = (whole.width - side) / 2, (whole.height - side) / 2
    box = (left, top, left + side, top + side)
    square = whole.resize((wanted.size, wanted.size), _RESAMPLING[wanted.resample], box=box)
    # Turned last: the centre is the same, and a copy of all pixels is saved.
    return square if turn is None else square.transpose(turn)


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """None for a picture that lies right, or whose Exif cannot be read: that is no damage."""
    try:
        return _TRANSPOSITIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:
        return None


def _check_cost(image: Image.Image, scans: int) -> None:
    """Refuse what would take too long or too much memory to decode. Raises EngineRefusal."""
    pixels = image.width * image.height
    limit = PIXELS_MAX if image.format == "JPEG" else PNG_PIXELS_MAX
    if pixels > limit:
        raise _too_large(limit)
    if pixels * scans > _SCANNED_PIXELS_MAX:
        raise EngineRefusal(
            "an image of {pixels} pixels in {scans} scans: save it with fewer",
            code=Code.IMAGE_TOO_LARGE,
            pixels=pixels,
            scans=scans,
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits; what is transparent becomes white."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):  # 16-bit greyscale: keep the upper 8 bits.
        levels = np.asarray(image) >> 8
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _too_large(limit: int) -> EngineRefusal:
    return EngineRefusal(
        "the image has more than {limit} pixels", code=Code.IMAGE_TOO_LARGE, limit=limit
    )
