"""Real photographs are recognised; files that are odd, huge or hostile are refused by name."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from capanode.engines.base import Completed, EngineRefusal, ModelLoadError, Started
from capanode.engines.efficientnet import EfficientNetConfig, EfficientNetLite
from capanode.engines.image import ImageClassifier
from capanode.engines.picture import PIXELS_MAX, Preparation, prepare
from capanode.engines.weights import Weights
from protocol.codec import decode
from protocol.errors import Code
from protocol.payload import ClassificationOutput, EmbeddingInput, ImageInput
from protocol.pricing import Units
from tests.capanode.engines.tiny_models import run

WANTED = Preparation(size=32, crop_fraction=1.0, mean=127.0, std=128.0, resample="bicubic")
EFFICIENTNET: dict[str, Any] = {
    "architectures": ["EfficientNetLite"],
    "batch_norm_eps": 0.001,
    "blocks": [[1, 3, 1, 1, 8, 6], [2, 5, 2, 6, 6, 10]],
    "crop_fraction": 1.0,
    "head_channels": 16,
    "hidden_act": "relu6",
    "image_mean": 127.0,
    "image_size": 32,
    "image_std": 128.0,
    "num_classes": 4,
    "resample": "bicubic",
    "stem_channels": 8,
}
LABELS = ["ant", "bee", "cat", "dog"]
CPU = torch.device("cpu")


def spell(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it has this many pixels and compresses to next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def efficientnet_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights: dict[str, torch.Tensor] = {}

    def convolution(name: str, norm: str, out: int, inside: int, kernel: int) -> None:
        shape = (out, inside, kernel, kernel)
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator).mul_(0.5)
        for part in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{norm}.{part}"] = torch.rand(out, generator=generator).add_(0.5)

    convolution("conv_stem", "bn0", 8, 3, 3)
    convolution("blocks.0.depthwise_conv", "blocks.0.bn1", 8, 1, 3)
    convolution("blocks.0.project_conv", "blocks.0.bn2", 6, 8, 1)
    for block, inside in ((1, 6), (2, 10)):
        name = f"blocks.{block}"
        convolution(f"{name}.expand_conv", f"{name}.bn0", 6 * inside, inside, 1)
        convolution(f"{name}.depthwise_conv", f"{name}.bn1", 6 * inside, 1, 5)
        convolution(f"{name}.project_conv", f"{name}.bn2", 10, 6 * inside, 1)
    convolution("conv_head", "bn1", 16, 10, 1)
    weights["fc.weight"] = torch.randn((4, 16), generator=generator)
    weights["fc.bias"] = torch.randn(4, generator=generator)
    return weights


def write_efficientnet(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**EFFICIENTNET, **changes}))
    (folder / "labels.json").write_text(json.dumps(LABELS))
    save_file(efficientnet_weights(), folder / "model.safetensors")
    return folder


def load(folder: Path, *, slots: int = 4) -> ImageClassifier:
    return ImageClassifier.load(folder, slots=slots, threads=1)


# --- the network


def reference_logits(x: torch.Tensor) -> torch.Tensor:
    """The network spelled out, with batch normalisation as its own step."""
    weights = efficientnet_weights()

    def step(
        x: torch.Tensor, name: str, norm: str, *, stride: int = 1, groups: int = 1
    ) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        before, after = total // 2, total - total // 2
        x = functional.conv2d(
            functional.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups
        )
        mean, variance, scale, shift = (
            weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, scale, shift, eps=0.001)

    x = functional.relu6(step(x, "conv_stem", "bn0", stride=2))
    x = functional.relu6(step(x, "blocks.0.depthwise_conv", "blocks.0.bn1", groups=8))
    x = step(x, "blocks.0.project_conv", "blocks.0.bn2")
    for block, stride in ((1, 2), (2, 1)):
        name = f"blocks.{block}"
        y = functional.relu6(step(x, f"{name}.expand_conv", f"{name}.bn0"))
        wide = y.shape[1]
        y = functional.relu6(
            step(y, f"{name}.depthwise_conv", f"{name}.bn1", stride=stride, groups=wide)
        )
        y = step(y, f"{name}.project_conv", f"{name}.bn2")
        x = x + y if stride == 1 else y
    x = functional.relu6(step(x, "conv_head", "bn1")).mean((2, 3))
    return functional.linear(x, weights["fc.weight"], weights["fc.bias"])


@torch.inference_mode()
def test_folded_normalisation_and_padding_change_nothing(tmp_path: Path) -> None:
    config = EfficientNetConfig.parse(EFFICIENTNET)
    model = EfficientNetLite(config, Weights(write_efficientnet(tmp_path)), device=CPU)
    images = torch.randn((3, 3, 32, 32), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        model.classify(images), reference_logits(images), atol=1e-4, rtol=1e-4
    )


# --- the engine


def test_images_of_several_jobs_are_classified_together(tmp_path: Path) -> None:
    engine = load(write_efficientnet(tmp_path), slots=2)
    for number in range(3):
        image = spell(Image.new("RGB", (40, 30), (80 * number, 9, 9)))
        engine.submit(str(number), ImageInput(image, top_k=number + 1))
    first = engine.step()
    assert {event.job_id for event in first} == {"0", "1"}
    last = run(engine)
    assert last.of("2")[0] == Started("2", Units(images=1))
    output = decode(ClassificationOutput, last.produced("2")[0].data)
    assert len(output.labels) == 3
    scores = [label.score for label in output.labels]
    assert scores == sorted(scores, reverse=True)
    assert last.finished("2") == Completed("2", "complete", Units(images=1))
    assert engine.step() == []


def test_more_labels_than_there_are_classes_are_all(tmp_path: Path) -> None:
    engine = load(write_efficientnet(tmp_path))
    engine.submit("job", ImageInput(spell(Image.new("RGB", (9, 9))), top_k=100))
    output = decode(ClassificationOutput, run(engine).produced("job")[0].data)
    assert {label.label for label in output.labels} == set(LABELS)
    assert sum(label.score for label in output.labels) == pytest.approx(1)


def test_a_cancelled_job_is_gone(tmp_path: Path) -> None:
    engine = load(write_efficientnet(tmp_path))
    engine.submit("job", ImageInput(spell(Image.new("RGB", (9, 9)))))
    engine.cancel("job")
    engine.cancel("job")
    assert engine.is_idle


def test_an_input_of_another_task_is_refused(tmp_path: Path) -> None:
    engine = load(write_efficientnet(tmp_path))
    with pytest.raises(EngineRefusal) as caught:
        engine.submit("job", EmbeddingInput(("x",)))
    assert caught.value.code == Code.INVALID_INPUT


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["ResNet"]},
        {"hidden_act": "swish"},
        {"blocks": []},
        {"blocks": [[1, 2, 3]]},
        {"blocks": [[10_000, 3, 1, 1, 8, 6]]},
        {"num_classes": 5},
        {"resample": "magic"},
        {"crop_fraction": 3.0},
        {"image_std": 0},
    ],
)
def test_a_model_that_is_not_run_exactly_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ModelLoadError):
        load(write_efficientnet(tmp_path, **changes))


# --- strangers' files


def refusal_code(data: bytes) -> Code:
    with pytest.raises(EngineRefusal) as caught:
        prepare(data, WANTED)
    return caught.value.code


@pytest.mark.parametrize(
    ("width", "height"), [(13_000, 13_000), (40_000, 40_000), (1, PIXELS_MAX + 1)]
)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    data = bomb(width, height)
    assert len(data) < 2_000
    assert refusal_code(data) == Code.IMAGE_TOO_LARGE


def test_other_formats_are_refused() -> None:
    picture = Image.new("RGB", (20, 20), "red")
    files = [
        b"\x00",
        b"not an image at all",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        spell(picture, "GIF"),
        spell(picture, "TIFF"),
        spell(picture, "BMP"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ]
    assert {refusal_code(data) for data in files} == {Code.INVALID_IMAGE}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_file_is_refused_wherever_it_is_cut(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = spell(Image.fromarray(noise), kind)
    for end in range(1, len(data) - 200, len(data) // 40):
        assert refusal_code(data[:end]) == Code.INVALID_IMAGE


def test_flipped_bytes_never_escape_as_another_error() -> None:
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP"):
        data = spell(Image.fromarray(noise), kind)
        for _ in range(150):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                damaged[place] = rng.integers(0, 256)
            with suppress(EngineRefusal):
                assert prepare(bytes(damaged), WANTED).shape == (3, 32, 32)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def tiff(entries: int, *found: tuple[int, int, int, bytes]) -> bytes:
    """An Exif directory that says it has so many entries."""
    packed = b"".join(struct.pack("<HHI", *tag) + value for *tag, value in found)
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", entries) + packed


ORIENTATION = (0x0112, 3, 1, struct.pack("<HH", 1, 0))
BROKEN_EXIF = {
    "more entries than there are": tiff(5, ORIENTATION),
    "two values for one": tiff(1, (0x0112, 3, 2, struct.pack("<HH", 1, 6))),
    "beyond the end": tiff(1, (0x010F, 2, 60_000, struct.pack("<I", 1 << 20))),
    "no directory": b"II*\x00",
    "junk": b"\xff" * 40,
}
BIG = zlib.compress(bytes(2 * 1024 * 1024))
METADATA = {
    "iCCP": b"profile\x00\x00" + BIG,
    "zTXt": b"Comment\x00\x00" + zlib.compress(bytes(80_000_000)),
    "iTXt": b"workflow\x00\x01\x00\x00\x00" + BIG,
    "tEXt": b"broken \xff",
    "acTL": struct.pack(">II", 0, 0),
    "pHYs": b"short",
    "gAMA": b"",
}
PHOTO = np.random.default_rng(7).integers(0, 255, (48, 48, 3), dtype=np.uint8)


def with_png_chunk(data: bytes, kind: str, body: bytes) -> bytes:
    return data[:33] + png_chunk(kind.encode(), body) + data[33:]


@pytest.mark.parametrize("what", BROKEN_EXIF)
def test_broken_exif_does_not_spoil_a_picture(what: str) -> None:
    photo = Image.fromarray(PHOTO)
    jpeg, png, webp = (spell(photo, kind) for kind in ("JPEG", "PNG", "WEBP"))
    exif = BROKEN_EXIF[what]
    broken = jpeg[:2] + jpeg_segment(0xE1, b"Exif\x00\x00" + exif) + jpeg[2:]
    np.testing.assert_array_equal(prepare(broken, WANTED), prepare(jpeg, WANTED))
    broken = with_png_chunk(png, "eXIf", exif)
    np.testing.assert_array_equal(prepare(broken, WANTED), prepare(png, WANTED))
    broken = spell(photo, "WEBP", exif=b"Exif\x00\x00" + exif)
    np.testing.assert_array_equal(prepare(broken, WANTED), prepare(webp, WANTED))


@pytest.mark.parametrize("kind", METADATA)
def test_a_pngs_metadata_is_not_read(kind: str) -> None:
    png = spell(Image.fromarray(PHOTO))
    found = prepare(with_png_chunk(png, kind, METADATA[kind]), WANTED)
    np.testing.assert_array_equal(found, prepare(png, WANTED))


def test_a_jpegs_metadata_is_not_read() -> None:
    jpeg = spell(Image.fromarray(PHOTO), "JPEG")
    pictures = jpeg_segment(0xE2, b"MPF\x00II*\x00\x08\x00\x00\x00\x09\x00" + bytes(9))
    profile = jpeg_segment(0xE2, b"ICC_PROFILE\x00\x05\x02" + bytes(99))
    for extra in (pictures, profile, jpeg_segment(0xFE, b"\xff\xfe"), jpeg_segment(0xED, b"8BIM")):
        found = prepare(jpeg[:2] + extra + jpeg[2:], WANTED)
        np.testing.assert_array_equal(found, prepare(jpeg, WANTED))


def test_the_first_picture_of_several_is_classified() -> None:
    photo, other = Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)
    for kind, single in (("MPO", "JPEG"), ("PNG", "PNG"), ("WEBP", "WEBP")):
        options = {"lossless": True} if kind == "WEBP" else {}
        several = spell(photo, kind, save_all=True, append_images=[other], **options)
        alone = spell(photo, single, **options)
        np.testing.assert_allclose(prepare(several, WANTED), prepare(alone, WANTED), atol=0.02)


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 80}, {"exif": b"Exif\x00\x00"}]
)
def test_a_webp_is_taken(options: dict[str, Any]) -> None:
    webp = spell(Image.new("RGB", (60, 40), "white"), "WEBP", **options)
    np.testing.assert_allclose(prepare(webp, WANTED), 1, atol=0.05)


def test_a_webp_with_too_many_pixels_is_refused_before_room_is_made_for_them() -> None:
    small = bytearray(spell(Image.new("RGBA", (9, 9)), "WEBP", exif=b"Exif\x00\x00II*\x00"))
    assert small[12:16] == b"VP8X"
    small[24:30] = (16_000).to_bytes(3, "little") * 2
    assert refusal_code(bytes(small)) == Code.IMAGE_TOO_LARGE


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pixels_ends_as_three_channels(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    data = spell(Image.new("RGB", (50, 40), "white").convert("L" if mode == "I;16" else mode), kind)
    if mode == "I;16":
        data = spell(Image.fromarray(np.full((40, 50), 65_535, np.uint16)), kind)
    pixels = prepare(data, WANTED)
    assert pixels.shape == (3, 32, 32)
    np.testing.assert_allclose(pixels, 1, atol=0.05)


def test_what_is_transparent_is_white() -> None:
    clear = spell(Image.new("RGBA", (20, 20), (0, 0, 0, 0)))
    np.testing.assert_allclose(prepare(clear, WANTED), 1)
    palette = Image.new("P", (20, 20))
    palette.putpalette([0, 0, 0] * 256)
    np.testing.assert_allclose(prepare(spell(palette, transparency=b"\x00" * 256), WANTED), 1)


def test_a_photograph_taken_upright_is_turned() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:32] = 255  # White above.
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: the left side of what is stored is up.
    pixels = prepare(spell(Image.fromarray(stripes), "JPEG", exif=exif.tobytes()), WANTED)
    assert pixels[:, :, 20:].mean() > 0.9
    assert pixels[:, :, :12].mean() < -0.9


def test_the_centre_is_kept_and_not_squeezed() -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255
    # At the edges the filter sees a little of what was cut off.
    np.testing.assert_allclose(prepare(spell(Image.fromarray(wide)), WANTED), 1, atol=0.1)


def test_a_large_photograph_gives_nearly_the_pixels_of_a_small_one() -> None:
    small = np.random.default_rng(3).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    large = Image.fromarray(small).resize((3072, 2048), Image.Resampling.BICUBIC)
    from_large = prepare(spell(large, "JPEG", quality=95), WANTED)
    from_small = prepare(spell(Image.fromarray(small)), WANTED)
    assert np.abs(from_large - from_small).mean() < 0.05


# --- the real model


@pytest.mark.slow
@pytest.mark.models
def test_grace_hopper_wears_a_military_uniform(demo_models: Callable[[str], Path]) -> None:
    import matplotlib  # noqa: PLC0415  # Only for the photograph in it.

    photograph = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    engine = load(demo_models("efficientnet-lite0"))
    engine.submit("job", ImageInput(photograph.read_bytes(), top_k=3))
    output = decode(ClassificationOutput, run(engine).produced("job")[0].data)
    assert output.labels[0].label == "military uniform"
    assert output.labels[0].score > 0.3
