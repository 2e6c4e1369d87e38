"""Inputs that strangers choose: each is refused with a code before its size has cost anything, the
worker lives, and nothing of an input is repeated in a message or a log.

Work is counted (characters tokenized, pixels decoded, template output), not timed.
"""

import ast
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

import capanode.engines
from capanode.engines import embedding, prompt
from capanode.engines.base import Engine, Failed
from capanode.engines.embedding import TextEmbedder
from capanode.engines.image import ImageClassifier
from capanode.engines.picture import PIXELS_MAX, PNG_PIXELS_MAX
from capanode.engines.picture_structure import SEGMENTS_MAX
from capanode.engines.tokenizer import CHUNK_CHARS, BoundedTokenizer, load_tokenizer
from capanode.worker.commands import Shutdown, Start
from protocol.codec import encode
from protocol.errors import Code
from protocol.generation import ChatMessage, GenerationInput
from protocol.limits import MIB, PAYLOAD_BYTES_MAX
from protocol.payload import EmbeddingInput, ImageInput, JobInput
from tests.capanode.engines import test_embedding, test_image, tiny_models
from tests.capanode.worker_thread import WorkerThread

SECRET = "my secret diagnosis"
# A small PNG or text must not make a worker do more than this for nothing.
CHARS_READ_MAX = 4 * CHUNK_CHARS


class Work:
    """What engines did before they refused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chars = 0
        self.pixels = 0
        load_pixels = ImageFile.ImageFile.load

        def load_counted(image: ImageFile.ImageFile) -> Any:
            self.pixels += image.width * image.height
            return load_pixels(image)

        monkeypatch.setattr(ImageFile.ImageFile, "load", load_counted)
        for module in (embedding, prompt):
            monkeypatch.setattr(module, "load_tokenizer", self.load_tokenizer)

    def load_tokenizer(self, model_dir: Path) -> Any:
        tokenizer, work = load_tokenizer(model_dir), self

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(tokenizer, name)

            def encode(self, sequence: str, *, add_special_tokens: bool) -> Any:
                work.chars += len(sequence)
                return tokenizer.encode(sequence, add_special_tokens=add_special_tokens)

            def encode_batch(self, texts: list[str], /, *, add_special_tokens: bool) -> Any:
                work.chars += sum(map(len, texts))
                return tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)

        return Counting()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def chat_engine(folder: Path, template: str = tiny_models.CHAT_TEMPLATE) -> Engine:
    return tiny_models.load(tiny_models.write_llama(folder, chat_template=template))


def embedder(folder: Path) -> Engine:
    return TextEmbedder.load(test_embedding.write_bert(folder), slots=2, threads=1)


def classifier(folder: Path) -> Engine:
    return ImageClassifier.load(test_image.write_efficientnet(folder), slots=2, threads=1)


def say(content: str) -> GenerationInput:
    return GenerationInput(max_tokens=1, messages=(ChatMessage("user", content),))


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(width: int, height: int, *, rows: int = 0, extra: bytes = b"") -> bytes:
    """An RGBA image of which only `rows` rows are there."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    body = zlib.compress(bytes(rows * (1 + 4 * width)), 9)
    end = chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + extra + end


def jpeg(pixels: int = 16) -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (pixels, pixels, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def jpeg_of_many_scans() -> bytes:
    """The size of a large photograph, and a thousand scans."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 7_000, 7_000)
    scan = data[data.index(b"\xff\xda") : -2]
    return bytes(data[:-2] + scan * 1_000 + data[-2:])


Make = Callable[[Path], Engine]
HOSTILE: dict[str, tuple[Make, Callable[[], JobInput], Code]] = {
    "8 MB of marks in 250 texts": (
        embedder,
        lambda: EmbeddingInput(("! " * 16_384,) * 250),
        Code.PROMPT_TOO_LONG,
    ),
    "one long text": (embedder, lambda: EmbeddingInput(("a " * MIB,)), Code.PROMPT_TOO_LONG),
    "texts that are all a little too long": (
        embedder,
        lambda: EmbeddingInput(("a " * 60,) * 256),
        Code.PROMPT_TOO_LONG,
    ),
    "words without end": (
        embedder,
        lambda: EmbeddingInput(("a" * 5_000,) * 256),
        Code.PROMPT_TOO_LONG,
    ),
    "a prompt of 8 MB": (
        chat_engine,
        lambda: GenerationInput(max_tokens=1, prompt="x" * (PAYLOAD_BYTES_MAX - 100)),
        Code.PROMPT_TOO_LONG,
    ),
    "a prompt just short of the longest": (
        chat_engine,
        lambda: GenerationInput(max_tokens=1, prompt="x" * 3_500),
        Code.PROMPT_TOO_LONG,
    ),
    "a message of 8 MB": (chat_engine, lambda: say("x" * 8_000_000), Code.PROMPT_TOO_LONG),
    "as many token ids as there may be": (
        chat_engine,
        lambda: GenerationInput(max_tokens=1, prompt_tokens=(1,) * 1_048_576),
        Code.PROMPT_TOO_LONG,
    ),
    "a PNG bomb": (classifier, lambda: ImageInput(png(7_000, 7_100)), Code.IMAGE_TOO_LARGE),
    "a PNG of one row too many": (
        classifier,
        lambda: ImageInput(png(4_096, PNG_PIXELS_MAX // 4_096 + 1)),
        Code.IMAGE_TOO_LARGE,
    ),
    "a second header that is larger": (
        classifier,
        lambda: ImageInput(png(8, 8, extra=png(9_000, 9_000)[8:33])),
        Code.IMAGE_TOO_LARGE,
    ),
    "a PNG of chunks that say nothing": (
        classifier,
        lambda: ImageInput(png(8, 8, extra=chunk(b"tEXt", b"") * 600_000)),
        Code.IMAGE_TOO_LARGE,
    ),
    "a JPEG of segments that say nothing": (
        classifier,
        lambda: ImageInput(b"\xff\xd8" + b"\xff\xe5\x00\x02" * 2_000_000),
        Code.IMAGE_TOO_LARGE,
    ),
    "a JPEG of junk": (
        classifier,
        lambda: ImageInput(b"\xff\xd8" + bytes(8_000_000)),
        Code.INVALID_IMAGE,
    ),
    "a JPEG of fill bytes": (
        classifier,
        lambda: ImageInput(b"\xff\xd8" + b"\xff" * 8_000_000),
        Code.INVALID_IMAGE,
    ),
    "a JPEG of a thousand scans": (
        classifier,
        lambda: ImageInput(jpeg_of_many_scans()),
        Code.IMAGE_TOO_LARGE,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_input_is_refused_before_it_costs(tmp_path: Path, work: Work, name: str) -> None:
    make, make_input, code = HOSTILE[name]
    worker = WorkerThread(make(tmp_path))
    try:
        worker.start()
        worker.tell(Start("job", encode(make_input())))
        (failed,) = worker.hear(1)
        assert isinstance(failed, Failed)
        assert failed.code == code
        assert work.chars <= CHARS_READ_MAX
        assert work.pixels == 0
        worker.tell(Shutdown())
        worker.join()
        assert worker.failure is None
    finally:
        worker.close()


def test_a_damaged_image_costs_no_more_than_the_largest_that_is_taken(
    tmp_path: Path, work: Work
) -> None:
    engine = classifier(tmp_path)
    damaged = bytearray(png(2_000, 2_000, rows=2_000))
    damaged[-200] ^= 0xFF
    worker = WorkerThread(engine)
    try:
        worker.start()
        worker.tell(Start("job", encode(ImageInput(bytes(damaged)))))
        (failed,) = worker.hear(1)
        assert isinstance(failed, Failed)
        assert failed.code == Code.INVALID_IMAGE
        assert work.pixels <= PNG_PIXELS_MAX <= PIXELS_MAX
    finally:
        worker.close()


def test_a_template_that_multiplies_its_input_is_stopped(tmp_path: Path, work: Work) -> None:
    engine = chat_engine(
        tmp_path, "{% for i in range(99999) %}{{ messages[0]['content'] }}{% endfor %}"
    )
    worker = WorkerThread(engine)
    try:
        worker.start()
        worker.tell(Start("job", encode(say("x" * 3_000))))
        (failed,) = worker.hear(1)
        assert failed.code == Code.PROMPT_TOO_LONG
        assert work.chars == 0
    finally:
        worker.close()


def test_a_text_is_read_no_further_than_it_takes_to_refuse_it(tmp_path: Path, work: Work) -> None:
    tiny_models.write_tokenizer(tmp_path)
    counting = work.load_tokenizer(tmp_path)
    tokenizer = BoundedTokenizer(counting, tokens_max=1_000, token_chars_max=1_000)
    assert len(tokenizer.encode("x" * 1_000, adds_special=False)) == 1_000
    work.chars = 0
    with pytest.raises(Exception, match="tokens or more"):
        tokenizer.encode("x" * 1_000_000, adds_special=False)
    assert work.chars == CHUNK_CHARS


def test_a_text_of_exactly_what_fits_is_taken_however_long_its_tokens_are(tmp_path: Path) -> None:
    folder = test_embedding.write_bert(tmp_path) and tmp_path
    tokenizer = BoundedTokenizer(load_tokenizer(folder), tokens_max=5, token_chars_max=100_000)
    words = " ".join(["a" * 30_000] * 3)  # Three tokens, cut in many places.
    assert len(tokenizer.encode(words, adds_special=True)) == 5


# --- nothing of an input is repeated

LEAKY_TEMPLATES = {
    "raises it": "{{ raise_exception('Unexpected: ' + messages[0]['content']) }}",
    "looks it up": "{% set m = {'a': 1} %}{{ m[messages[0]['content']].x }}",
    "counts with it": "{{ 1 + messages[0]['content'] }}",
    "calls it": "{{ messages[0]['content'](1) }}",
    "divides by nothing": "{{ messages[0]['content'] | length / 0 }}",
    "formats it": "{{ '%d' % messages[0]['content'] }}",
    "recurses": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(messages[0]['content']) }}",
}
QUOTED: dict[str, tuple[Make, Callable[[], bytes]]] = {
    **{
        f"a template that {name}": (
            lambda folder, template=template: chat_engine(folder, template),  # type: ignore[misc]
            lambda: encode(say(SECRET)),
        )
        for name, template in LEAKY_TEMPLATES.items()
    },
    "a prompt that is too long": (
        chat_engine,
        lambda: encode(GenerationInput(max_tokens=1, prompt=SECRET * 500)),
    ),
    "a text that is too long": (embedder, lambda: encode(EmbeddingInput((f"{SECRET} " * 100,)))),
    "a file that is no image": (classifier, lambda: encode(ImageInput(SECRET.encode()))),
    "a damaged PNG": (
        classifier,
        lambda: encode(ImageInput(png(9, 9, extra=chunk(b"zTXt", SECRET.encode())))),
    ),
    "an input of another task": (embedder, lambda: encode(say(SECRET))),
    "no input at all": (chat_engine, lambda: SECRET.encode()),
    "a role of a wrong type": (
        chat_engine,
        lambda: encode(say(SECRET)).replace(b"max_tokens", b"max_tokenz"),
    ),
}


@pytest.mark.parametrize("name", QUOTED)
def test_a_refusal_repeats_nothing_of_its_input(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, make_payload = QUOTED[name]
    worker = WorkerThread(make(tmp_path))
    try:
        worker.start()
        worker.tell(Start("job", make_payload(), "01JOB"))
        (failed,) = worker.hear(1)
        assert isinstance(failed, Failed)
        told = failed.message + capsys.readouterr().err
        assert failed.message
        for word in SECRET.split():
            assert word not in told.lower()
    finally:
        worker.close()


def test_every_refusal_of_an_engine_is_a_sentence_of_ours() -> None:
    """An f-string could quote an input; numbers are filled in by EngineRefusal itself."""
    found = 0
    for path in Path(capanode.engines.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "EngineRefusal":
                found += 1
                assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"
    assert found > 10


def test_segments_of_an_ordinary_file_are_far_below_the_bound() -> None:
    assert PAYLOAD_BYTES_MAX // SEGMENTS_MAX < 4_096
