import pickle
import stat
from pathlib import Path
from random import Random

import pytest

from protocol.errors import Code, RemoteProtocolError
from protocol.keys import SigningKey, verify
from protocol.programs.keyfile import (
    KeyFileError,
    create_key_file,
    load_key_file,
    load_or_create_key_file,
)


def test_a_signature_verifies_for_its_key_and_data_only() -> None:
    key, other = SigningKey(bytes(32)), SigningKey(b"\x01" * 32)
    signature = key.sign(b"data")
    verify(key.peer_id, b"data", signature)
    for peer_id, data in ((other.peer_id, b"data"), (key.peer_id, b"date")):
        with pytest.raises(RemoteProtocolError) as caught:
            verify(peer_id, data, signature)
        assert caught.value.code is Code.BAD_SIGNATURE


@pytest.mark.parametrize("cut", [0, 63, 65, 128])
def test_bytes_that_move_from_the_signature_to_the_data_are_no_signature(cut: int) -> None:
    key = SigningKey(bytes(32))
    joined = key.sign(b"data") + b"data" * 20
    with pytest.raises(RemoteProtocolError) as caught:
        verify(key.peer_id, joined[cut:], joined[:cut])
    assert caught.value.code is Code.BAD_SIGNATURE


def test_a_key_shows_nothing_of_its_seed() -> None:
    key = SigningKey.generate(Random(1).randbytes)
    assert key.seed().hex() not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_seed_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SigningKey(b"short")


def test_a_key_file_is_private_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "node.key"
    key = create_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key_file(path).peer_id == key.peer_id
    assert load_or_create_key_file(path).peer_id == key.peer_id


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    create_key_file(path)
    with pytest.raises(KeyFileError, match="exists already"):
        create_key_file(path)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    create_key_file(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_key_file(path)


def test_a_missing_or_foreign_key_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    with pytest.raises(KeyFileError, match="no key at"):
        load_key_file(path)
    path.touch(mode=0o600)
    path.write_text("not a key")
    with pytest.raises(KeyFileError, match="not a PEM"):
        load_key_file(path)
