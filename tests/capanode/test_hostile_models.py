"""Files of models that were made to harm: refused when they are pulled, and no trace of them stays.

Each goes the whole way, through the converter's own process. What its parsers refuse in detail is
in test_convert.
"""

from pathlib import Path

import pytest

from capanode.models.catalog import Catalog
from capanode.models.errors import ConversionError
from capanode.models.layout_texts import check_texts
from capanode.models.library import pull
from capanode.models.store import ModelStore
from tests.capanode.model_makers import add_model, layout_files, raw_safetensors, write_files

WEIGHT = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HOSTILE: dict[str, tuple[dict[str, bytes], str]] = {
    "header bomb": ({"model.safetensors": (2**60).to_bytes(8, "little") + b"{}"}, "16 MiB"),
    "overlap": (
        {"model.safetensors": raw_safetensors({"a": WEIGHT, "b": WEIGHT}, b"1234")},
        "overlaps",
    ),
    "deep header": ({"model.safetensors": raw_safetensors(b"[" * 100_000)}, "malformed"),
    "deep config": ({"config.json": b'{"a":' + b"[" * 200_000}, "not JSON"),
    "code": ({"tokenizer_config.json": b'{"auto_map": {}}'}, "run code"),
    "deep tokenizer": ({"tokenizer.json": b"[" * 300_000}, "tokenizer.json is not JSON"),
    "binary tokenizer": ({"tokenizer.json": bytes(range(256))}, "tokenizer.json is not JSON"),
    "binary template": ({"chat_template.jinja": b"\xff\xfe"}, "not text"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_and_leaves_no_trace(tmp_path: Path, case: str) -> None:
    changed, words = HOSTILE[case]
    write_files(tmp_path / "hostile", {**layout_files(), **changed})
    store = ModelStore(tmp_path / "store")
    with pytest.raises(ConversionError, match=words):
        pull(store, Catalog(()), f"file:{tmp_path / 'hostile'}")
    assert store.digests() == []
    assert store.names() == {}
    assert list((store.root / "scratch").iterdir()) == []


def test_texts_are_bounded(tmp_path: Path) -> None:
    for name, size in (("tokenizer.json", 65 * 1024 * 1024), ("chat_template.jinja", 1024**2 + 1)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        with pytest.raises(ValueError, match="too large"):
            check_texts([tmp_path / name])
    (tmp_path / "labels.json").write_text('"a text"')
    with pytest.raises(ValueError, match="neither"):
        check_texts([tmp_path / "labels.json"])


def test_a_store_of_an_earlier_version_serves_under_this_one(tmp_path: Path) -> None:
    """It has no marks of use, and half-finished downloads without a journal."""
    store = ModelStore(tmp_path)
    digest = add_model(store).digest
    (tmp_path / "use" / digest).unlink()
    (tmp_path / "use").rmdir()
    (tmp_path / "partial" / "old").mkdir()
    (tmp_path / "partial" / "old" / ("0" * 64)).write_bytes(b"half")
    again = ModelStore(tmp_path)
    assert again.find("tiny").digest == digest
    assert again.use.last_used_s(digest) is None
    with again.use.hold([digest]):
        assert again.use.is_held(digest)
    again.collect_garbage()
    assert list((tmp_path / "partial").iterdir()) == []
    again.verify(digest)
