import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock

import httpx
import numpy as np
import pytest
from rich.console import Console

from capanode.models.__main__ import main
from capanode.models.catalog import Catalog, CatalogEntry, load_catalog
from capanode.models.errors import (
    ConversionError,
    DigestMismatchError,
    DownloadError,
    SourceError,
    StoreFullError,
    UnknownModelError,
)
from capanode.models.hub_connection import HubOptions
from capanode.models.library import PullOptions, ensure, list_models, pull, remove
from capanode.models.peer_market import PeerOptions
from capanode.models.progress import Progress, ProgressCallback
from capanode.models.progress_bar import ConsoleProgress
from capanode.models.sources_hub import HubClient
from capanode.models.sources_pypi import Member, Wheel
from capanode.models.store import ModelStore
from protocol.ids import Digest, sha256_digest
from protocol.manifest import ModelManifest
from protocol.messages import Task
from protocol.net.dial_policy import PUBLIC_ONLY
from tests.capanode.model_makers import (
    FakeHub,
    add_model,
    layout_files,
    manifest_of,
    safetensors_bytes,
    write_files,
)

FILES = layout_files()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


class FakeIndex:
    """In place of pip: hands out the files of a wheel, and counts how often it was asked."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.asked = 0
        self._lock = Lock()

    def fetch(
        self, wheel: Wheel, target: Path, scratch: Path, *, progress: ProgressCallback
    ) -> None:
        with self._lock:
            self.asked += 1
        assert list(scratch.iterdir()) == []
        progress(Progress(f"download {wheel.requirement}", 0, wheel.bytes))
        write_files(target, self.files)


@pytest.fixture
def index() -> FakeIndex:
    return FakeIndex()


@pytest.fixture
def options(index: FakeIndex) -> PullOptions:
    return PullOptions(fetch=index.fetch)


def entry_of(files: dict[str, bytes], name: str = "tiny") -> CatalogEntry:
    members = tuple(Member(path, path, len(content)) for path, content in files.items())
    wheel = Wheel(f"{name}==1.0", Digest("0" * 64), 1_000, members)
    return CatalogEntry(manifest_of(files, name), "layout", (wheel,))


CATALOG = Catalog((entry_of(FILES),))


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)


# The catalog that ships


def test_the_catalog_pins_three_demo_models() -> None:
    catalog = load_catalog()
    assert {entry.manifest.name: entry.manifest.task for entry in catalog.entries} == {
        "smollm2-135m-instruct": Task.CAUSAL_LM,
        "all-minilm-l6-v2": Task.EMBEDDING,
        "efficientnet-lite0": Task.IMAGE_CLASSIFICATION,
    }
    for entry in catalog.entries:
        assert entry.manifest.licence == "Apache-2.0"
        assert "model.safetensors" in {file.path for file in entry.manifest.files}
        assert entry.work_bytes > entry.bytes > 18e6


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("gpt-9", "smollm2-135m-instruct, all-minilm"),
        ("qwen3-8", "qwen3-8b"),
        ("llama3.1-8b", "llama-3.1-8b"),
    ],
)
def test_an_unknown_name_is_answered_with_those_alike(name: str, alike: str) -> None:
    with pytest.raises(UnknownModelError, match=f"do you mean {alike}"):
        load_catalog().find(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"models": [{}]}',
        '{"models": [{"manifest": {"files": [{"path": "../x", "sha256": "", "bytes": 1}]}}]}',
    ],
)
def test_a_broken_catalog_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "catalog.json").write_text(text)
    with pytest.raises(SourceError, match="catalog"):
        load_catalog(tmp_path / "catalog.json")


# From the catalog


def test_a_model_is_fetched_converted_and_checked_once(
    store: ModelStore, index: FakeIndex, options: PullOptions
) -> None:
    model = ensure(store, CATALOG, "tiny", options=options)
    assert store.names() == {"tiny": CATALOG.entries[0].digest}
    store.verify(model.digest)
    assert ensure(store, CATALOG, "tiny", options=options) == model
    assert index.asked == 1
    assert list((store.root / "scratch").iterdir()) == []


def test_many_who_want_a_model_at_once_fetch_it_once(
    store: ModelStore, index: FakeIndex, options: PullOptions
) -> None:
    def one(number: int) -> Path:
        return ensure(ModelStore(store.root), CATALOG, "tiny", options=options).path

    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(one, range(6)))) == 1
    assert index.asked == 1


def test_what_is_not_as_pinned_does_not_enter_the_store(
    store: ModelStore, index: FakeIndex, options: PullOptions
) -> None:
    index.files["model.safetensors"] = safetensors_bytes({"a": np.zeros((2, 3), np.float32)})
    with pytest.raises(DigestMismatchError, match=r"model\.safetensors.*constraints\.txt"):
        ensure(store, CATALOG, "tiny", options=options)
    assert store.digests() == []
    assert store.names() == {}
    index.files = dict(FILES)
    ensure(store, CATALOG, "tiny", options=options)


def test_pulling_again_checks_every_byte_and_repairs(
    store: ModelStore, index: FakeIndex, options: PullOptions
) -> None:
    model = pull(store, CATALOG, "tiny", options=options)
    pull(store, CATALOG, "tiny", options=options)
    assert index.asked == 1
    damage(model.path / "model.safetensors")
    pull(store, CATALOG, "tiny", options=options)
    assert index.asked == 2
    store.verify(model.digest)


def test_a_model_can_be_called_otherwise(store: ModelStore, options: PullOptions) -> None:
    model = pull(store, CATALOG, "tiny", name="mine", options=options)
    assert store.names() == {"mine": model.digest}
    assert ensure(store, CATALOG, "tiny", options=options) == model
    assert store.names() == {"mine": model.digest, "tiny": model.digest}


def test_every_long_step_shows_how_far_it_is(store: ModelStore, options: PullOptions) -> None:
    seen: list[Progress] = []
    ensure(store, CATALOG, "tiny", progress=seen.append, options=options)
    steps = list(dict.fromkeys(progress.step.split()[0] for progress in seen))
    assert steps == ["download", "convert", "verify"]
    assert all(p.total is None or 0 <= p.done <= p.total for p in seen)


@pytest.mark.parametrize("step", ["download", "convert", "verify"])
def test_whoever_watches_may_stop_it(store: ModelStore, options: PullOptions, step: str) -> None:
    def stop(progress: Progress) -> None:
        if progress.step.startswith(step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(store, CATALOG, "tiny", progress=stop, options=options)
    assert list((store.root / "scratch").iterdir()) == []
    ensure(store, CATALOG, "tiny", options=options)


def test_a_disk_that_is_too_small_is_said_before_the_download(
    store: ModelStore,
    index: FakeIndex,
    options: PullOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(store.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    with pytest.raises(StoreFullError, match="tiny needs 268 MB"):
        ensure(store, CATALOG, "tiny", options=options)
    assert index.asked == 0


def test_a_catalog_model_that_the_index_does_not_deliver_comes_from_peers(
    store: ModelStore,
) -> None:
    asked: list[Digest] = []

    def fail(*arguments: object, **settings: object) -> None:
        raise DownloadError("no index")

    def ask_peers(
        peers: PeerOptions,
        digest: Digest,
        folders: tuple[Path, Path],
        *,
        on_manifest: Callable[[ModelManifest], None],
        progress: ProgressCallback,
    ) -> ModelManifest:
        asked.append(digest)
        on_manifest(CATALOG.entries[0].manifest)
        write_files(folders[1], FILES)
        return CATALOG.entries[0].manifest

    with pytest.raises(DownloadError, match="no index"):
        ensure(store, CATALOG, "tiny", options=PullOptions(fetch=fail))
    peers = PeerOptions((), ("/ip4/127.0.0.1/tcp/1",), PUBLIC_ONLY)
    options = PullOptions(fetch=fail, peers=peers, ask_peers=ask_peers)
    model = ensure(store, CATALOG, "tiny", options=options)
    assert asked == [model.digest] == [CATALOG.entries[0].digest]
    store.verify(model.digest)


def test_a_model_is_taken_over_without_a_second_copy_on_the_disk(store: ModelStore) -> None:
    model = pull(store, CATALOG, "hf:owner/tiny", options=hub_options(FakeHub(FILES)))
    for file in model.manifest.files:
        # In the model's folder and among the blobs, and in no download folder.
        assert (model.path / file.path).stat().st_nlink == 2
    assert list((store.root / "scratch").iterdir()) == []


# From a source


def hub_options(hub: FakeHub) -> PullOptions:
    def connect(options: object) -> HubClient:
        return HubClient(
            HubOptions(connections=1),
            transport=httpx.MockTransport(hub),
            sleep=lambda seconds: None,
        )

    return PullOptions(connect=connect)


def test_a_hub_model_is_pinned_to_its_commit(store: ModelStore) -> None:
    hub = FakeHub({**FILES, "README.md": b"# Tiny"})
    model = pull(store, CATALOG, "hf:owner/tiny@main", options=hub_options(hub))
    manifest = model.manifest
    assert manifest.source == f"hf:owner/tiny@{hub.commit}"
    assert (manifest.licence, manifest.task, manifest.dtype) == ("mit", Task.CAUSAL_LM, "fp32")
    assert {file.path: file.sha256 for file in manifest.files} == {
        path: sha256_digest(content) for path, content in FILES.items()
    }
    assert store.names() == {"owner/tiny": model.digest}
    store.verify(model.digest)


def test_a_hub_model_that_carries_code_is_refused(store: ModelStore) -> None:
    hub = FakeHub(layout_files(auto_map={"AutoModel": "evil.Model"}))
    with pytest.raises(ConversionError, match="auto_map"):
        pull(store, CATALOG, "hf:owner/tiny", options=hub_options(hub))
    assert store.digests() == []


def test_a_hub_download_that_stops_goes_on_in_the_next_pull(store: ModelStore) -> None:
    hub = FakeHub(FILES)
    hub.cuts = [1_000, 20, *[0] * 10]
    with pytest.raises(DownloadError):
        pull(store, CATALOG, "hf:owner/tiny", options=hub_options(hub))
    hub.cuts = []
    before = len(hub.requests)
    pull(store, CATALOG, "hf:owner/tiny", options=hub_options(hub))
    asked = {r.url.path.rsplit("/", 1)[1]: r.headers.get("range") for r in hub.requests[before:]}
    assert "config.json" not in asked
    assert asked["model.safetensors"] == "bytes=20-"
    assert list((store.root / "partial").iterdir()) == []


def test_a_local_folder_becomes_a_model(store: ModelStore, tmp_path: Path) -> None:
    write_files(tmp_path / "mine", FILES)
    model = pull(store, CATALOG, f"file:{tmp_path / 'mine'}")
    damage(tmp_path / "mine" / "config.json")
    store.verify(model.digest)
    assert store.find("mine").manifest.source == "file:mine"


def test_a_folder_whose_name_names_no_model_is_refused_before_any_work(
    store: ModelStore, tmp_path: Path
) -> None:
    write_files(tmp_path / "my model", FILES)
    source = f"file:{tmp_path / 'my model'}"
    with pytest.raises(UnknownModelError, match="give another name"):
        pull(store, CATALOG, source)
    assert store.digests() == []
    assert pull(store, CATALOG, source, name="mine").manifest.name == "mine"


def test_the_same_files_give_the_same_model_wherever_they_lie(
    store: ModelStore, tmp_path: Path
) -> None:
    for parent in ("a", "b"):
        write_files(tmp_path / parent / "mine", FILES)
        pull(store, CATALOG, f"file:{tmp_path / parent / 'mine'}")
    assert len(store.digests()) == 1


# Listing and removing


def test_models_are_listed_with_their_state(store: ModelStore, options: PullOptions) -> None:
    other = replace(CATALOG.entries[0], manifest=manifest_of(FILES, "other"))
    catalog = Catalog((*CATALOG.entries, other))
    ready = ensure(store, catalog, "tiny", options=options)
    broken = add_model(store, {"config.json": b"{}"}, "broken")
    (broken.path / "config.json").unlink()
    listed = {summary.name: summary for summary in list_models(store, catalog)}
    assert {name: summary.state for name, summary in listed.items()} == {
        "tiny": "ready",
        "broken": "damaged",
        "other": "available",
    }
    assert listed["tiny"].path == ready.path
    assert listed["tiny"].bytes == sum(map(len, FILES.values())) == listed["other"].bytes
    assert [summary.name for summary in list_models(store)] == ["broken", "tiny"]


def test_a_removed_model_can_be_pulled_again(
    store: ModelStore, index: FakeIndex, options: PullOptions
) -> None:
    ensure(store, CATALOG, "tiny", options=options)
    assert remove(store, "tiny") == sum(map(len, FILES.values()))
    assert list_models(store) == []
    ensure(store, CATALOG, "tiny", options=options)
    assert index.asked == 2


# The command


def test_the_command_prints_where_models_are_and_says_what_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path / "store")
    model = add_model(store, FILES)
    monkeypatch.setattr("capanode.models.__main__.load_catalog", lambda: CATALOG)
    assert main(["pull", "tiny", "--store", str(store.root)]) == 0
    assert capsys.readouterr().out == f"tiny {model.digest[:12]} {model.path}\n"
    assert main(["pull", "no-such", "--store", str(store.root)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: no model 'no-such' in the catalog")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_steps_are_shown_on_terminals_and_in_logs(is_terminal: bool) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=is_terminal, width=100)
    with ConsoleProgress(console) as progress:
        for done in range(0, 101, 50):
            progress(Progress("download tiny[1]", done, 100))
        progress(Progress("convert", 0, None))
    lines = [line for line in shown.getvalue().splitlines() if "download tiny[1]" in line]
    assert "100/100 bytes" in lines[-1] if is_terminal else lines == ["  download tiny[1]"]


def test_the_node_itself_never_loads_a_parser() -> None:
    heavy = ["torch", "numpy", "gguf", "tokenizers", "safetensors", "transformers"]
    program = (
        "import sys, capanode.models.library, capanode.hardware; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert ran.stdout == "[]\n"
