"""From a stranger's image file to the pixels that a classifier wants.

Formats are limited to JPEG and PNG, the size is checked before a pixel is decoded, and whatever
else is odd about a file ends as an EngineRefusal. Runs in the sandboxed worker only.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from capanode.engines.base import EngineRefusal, ModelLoadError
from protocol.errors import Code

# A 48-megapixel photograph, the most that common phones make, takes 150 MB while it is decoded.
PIXELS_MAX = 50_000_000

_FORMATS = ("JPEG", "PNG")
_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

# A JPEG is decoded at a half, a quarter or an eighth of its size if that leaves this many times the
# pixels wanted on each side: large photographs cost little more than small ones.
_DRAFT_FACTOR = 2


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
    try:
        with warnings.catch_warnings():
            # Pillow warns where it should refuse: of a bomb, of broken metadata.
            warnings.simplefilter("error")
            square = _decode_square(data, wanted)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large("the image") from error
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        KeyError,
        IndexError,
        ArithmeticError,
        Warning,
        struct.error,
        zlib.error,
    ) as error:
        raise EngineRefusal(
            "not a JPEG or PNG image, or damaged", code=Code.INVALID_IMAGE
        ) from error
    pixels = np.asarray(square, dtype=np.float32).transpose(2, 0, 1)
    return (pixels - np.float32(wanted.mean)) / np.float32(wanted.std)


def _decode_square(data: bytes, wanted: Preparation) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.width * image.height > PIXELS_MAX:
            raise _too_large(f"an image of {image.width} x {image.height} pixels")
        least = round(wanted.size / wanted.crop_fraction) * _DRAFT_FACTOR
        if image.format == "JPEG":
            # The shorter side must keep its pixels, so both are asked for at the same scale.
            shorter = min(image.width, image.height)
            scale = min(1.0, least / shorter)
            image.draft("RGB", (round(image.width * scale), round(image.height * scale)))
        upright = _to_rgb(ImageOps.exif_transpose(image))
    side = round(min(upright.size) * wanted.crop_fraction)
    left, top = (upright.width - side) / 2, (upright.height - side) / 2
    box = (left, top, left + side, top + side)
    resampling = _RESAMPLING[wanted.resample]
    return upright.resize((wanted.size, wanted.size), resampling, box=box)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits; what is transparent becomes white."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):  # 16-bit greyscale: keep the upper 8 bits.
        levels = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _too_large(what: str) -> EngineRefusal:
    return EngineRefusal(f"{what} has more than {PIXELS_MAX} pixels", code=Code.IMAGE_TOO_LARGE)
