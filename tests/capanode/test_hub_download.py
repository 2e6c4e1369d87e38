"""Downloads from a hub over several connections, and what can go wrong with each of them."""

import errno
import hashlib
import os
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
    StoreFullError,
)
from capanode.models.hub_connection import HubOptions
from capanode.models.piece_file import PieceFile
from capanode.models.progress import Progress, ProgressCallback, ignore_progress
from capanode.models.sources_hub import HubClient
from tests.capanode.model_makers import FakeHub
from tests.clocks import HandClock

WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}


def download(
    hub: FakeHub,
    folder: Path,
    clock: HandClock,
    *,
    progress: ProgressCallback = ignore_progress,
    **options: Any,
) -> None:
    settings = {"connections": 3, "piece_bytes": 1_000, **options}
    for name in ("target", "partial"):
        (folder / name).mkdir(exist_ok=True)
    with HubClient(
        HubOptions(endpoint="https://hub.example", **settings),
        transport=httpx.MockTransport(hub),
        sleep=clock.sleep,
        clock=clock,
    ) as client:
        listing = client.list_files("owner/tiny", "main")
        client.download(listing, folder / "target", folder / "partial", progress=progress)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ranges(hub: FakeHub) -> list[str]:
    return [told for request in hub.requests if (told := request.headers.get("range"))]


def test_a_large_file_comes_in_pieces_each_asked_for_once(tmp_path: Path) -> None:
    hub = FakeHub(FILES)
    seen: list[Progress] = []
    download(hub, tmp_path, HandClock(), progress=seen.append)
    assert content(tmp_path / "target") == FILES
    assert content(tmp_path / "partial") == {}
    pieces = [f"bytes={start}-{start + 999}" for start in range(0, 10_000, 1_000)]
    # Each is asked of the hub, and then of the host that it redirects to.
    assert sorted(ranges(hub)) == sorted([*pieces, "bytes=10000-"] * 2)
    assert (seen[-1].done, seen[-1].total) == (10_242, 10_242)


@given(cuts=st.lists(st.integers(0, 1_000), max_size=12), honours_ranges=st.booleans())
def test_cut_at_any_bytes_the_files_arrive_whole(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], honours_ranges: bool
) -> None:
    """Of a hub that sends no ranges, each cut costs all that came before: some are survived."""
    hub, folder = FakeHub(FILES), tmp_path_factory.mktemp("hub")
    hub.honours_ranges = honours_ranges
    hub.cuts = [cut or 1 for cut in cuts] if honours_ranges else cuts[:3]
    download(hub, folder, HandClock())
    assert content(folder / "target") == FILES


def test_a_hub_that_ignores_ranges_is_asked_over_one_connection(tmp_path: Path) -> None:
    hub = FakeHub(FILES)
    hub.honours_ranges = False
    hub.cuts = [2, 5_000]
    download(hub, tmp_path, HandClock())
    assert content(tmp_path / "target") == FILES
    weights = [r for r in hub.requests if r.url.path.endswith(".safetensors")]
    assert len(weights) == 4, "a broken try and a whole one, each redirected"


@pytest.mark.parametrize("honours_ranges", [True, False])
def test_a_file_longer_than_listed_is_refused(tmp_path: Path, honours_ranges: bool) -> None:
    hub = FakeHub(FILES)
    hub.honours_ranges = honours_ranges
    hub.files["model.safetensors"] = WEIGHTS + b"!"
    with pytest.raises(DigestMismatchError, match="longer"):
        download(hub, tmp_path, HandClock())
    assert content(tmp_path / "target") == {}


def test_one_wrong_byte_in_one_piece_is_found_and_the_file_fetched_anew(tmp_path: Path) -> None:
    hub = FakeHub(FILES)
    damaged = bytearray(WEIGHTS)
    damaged[7_777] ^= 1
    hub.files["model.safetensors"] = bytes(damaged)
    with pytest.raises(DigestMismatchError, match=r"model\.safetensors of owner/tiny"):
        download(hub, tmp_path, HandClock())
    hub.files["model.safetensors"] = WEIGHTS
    download(hub, tmp_path, HandClock())
    assert content(tmp_path / "target") == FILES


def test_a_hub_that_trickles_is_given_up_on(tmp_path: Path) -> None:
    hub, clock = FakeHub(FILES), HandClock()
    hub.on_chunk = lambda: clock.pass_s(40)
    with pytest.raises(DownloadError, match=r"_TooSlow.*goes on where it stopped"):
        download(hub, tmp_path, clock, stall_timeout_s=60.0, piece_bytes=20_000)


def test_a_download_has_a_deadline_while_it_runs(tmp_path: Path) -> None:
    hub, clock = FakeHub(FILES), HandClock()
    hub.on_chunk = lambda: clock.pass_s(1)
    with pytest.raises(DownloadError, match="took too long"):
        download(hub, tmp_path, clock, timeout_s=5.0)


def test_a_disk_that_fills_up_keeps_what_has_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, write, room = FakeHub(FILES), os.pwrite, 4_000

    def write_within_room(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal room
        if len(data) > room:
            raise OSError(errno.ENOSPC, "no space left")
        room -= len(data)
        return write(descriptor, data, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", write_within_room)
        with pytest.raises(StoreFullError, match="free some space"):
            download(hub, tmp_path, HandClock(), connections=1)
    before = len(ranges(hub))
    download(hub, tmp_path, HandClock(), connections=1)
    assert content(tmp_path / "target") == FILES
    assert "bytes=0-999" not in ranges(hub)[before:]


def test_a_pull_that_is_interrupted_goes_on_in_the_next(tmp_path: Path) -> None:
    hub = FakeHub(FILES)

    def interrupt(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(hub, tmp_path, HandClock(), progress=interrupt)
    assert content(tmp_path / "target") == {}
    download(hub, tmp_path, HandClock())
    assert content(tmp_path / "target") == FILES


# Who may read what


@pytest.mark.parametrize(
    ("status", "header", "token", "advice"),
    [
        (401, {}, None, r"accept the model's licence.*https://hub\.example/owner/tiny.*HF_TOKEN"),
        (401, {"x-error-code": "GatedRepo"}, None, r"settings/tokens.*hub_token"),
        (403, {"x-error-code": "GatedRepo"}, "hf_secret", r"gated.*licence at .*owner/tiny"),
        (403, {}, "hf_secret", r"token may read it"),
    ],
)
def test_a_gated_model_says_where_to_accept_its_licence_and_where_the_token_goes(
    tmp_path: Path, status: int, header: dict[str, str], token: str | None, advice: str
) -> None:
    hub = FakeHub(FILES)
    hub.answers = [httpx.Response(status, headers=header)]
    with pytest.raises(AccessDeniedError, match=advice) as caught:
        download(hub, tmp_path, HandClock(), token=token)
    assert "hf_secret" not in str(caught.value)


def test_a_token_is_not_sent_unencrypted() -> None:
    with pytest.raises(AccessDeniedError, match="unencrypted"):
        HubClient(HubOptions(endpoint="http://hub.example", token="hf_secret"))
    HubClient(HubOptions(endpoint="http://127.0.0.1:1", token="hf_secret")).close()


# A file in pieces


@given(
    data=st.binary(max_size=80),
    piece_bytes=st.integers(8, 64),
    order=st.randoms(use_true_random=False),
    step=st.integers(1, 50),
)
def test_pieces_written_in_any_order_over_several_lives_give_the_files_digest(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, piece_bytes: int, order: Any, step: int
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "file"
    file = PieceFile(path, len(data), piece_bytes=piece_bytes)
    while missing := file.missing():
        piece = order.choice(missing)
        start = piece.start + file.have(piece)
        file.write(piece, data[start : min(start + step, piece.end)])
        if order.random() < 0.05:
            file.close()
            file = PieceFile(path, len(data), piece_bytes=piece_bytes)
        if order.random() < 0.02:
            file.forget_piece(piece)
    assert file.hexdigest() == hashlib.sha256(data).hexdigest()
    file.move(path.with_name("whole"))
    assert path.with_name("whole").read_bytes() == data
    assert not path.exists()
