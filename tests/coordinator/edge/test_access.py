"""Who may use a gateway beside its users, and how its keys are kept."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.buyer_config import BuyerConfig
from coordinator.edge.access import check_access
from coordinator.edge.errors import KeysError
from coordinator.edge.keys import GatewayKeys

ENTROPY = random.Random(5).randbytes


def config(folder: Path, *, no_keys: bool, http: str = "127.0.0.1:8080") -> BuyerConfig:
    path = folder / "client.toml"
    path.write_text(f"no_keys = {'true' if no_keys else 'false'}\n")
    from protocol.programs.setting_options import load_config  # noqa: PLC0415

    return load_config(BuyerConfig, "edge_test", path, data_dir=str(folder), http=http)


@pytest.mark.parametrize("http", ["0.0.0.0:8080", "[::]:8080", "192.168.0.4:80", "fd:3", "box:80"])
def test_without_keys_it_is_not_opened_to_others(tmp_path: Path, http: str) -> None:
    keys = GatewayKeys(tmp_path / "keys.sqlite")
    with pytest.raises(KeysError, match="everyone who reaches"):
        check_access(config(tmp_path, no_keys=True, http=http), keys)
    with pytest.raises(KeysError, match="no API key yet"):
        check_access(config(tmp_path, no_keys=False, http=http), keys)
    keys.create("ada", now_ms=1, entropy=ENTROPY)
    check_access(config(tmp_path, no_keys=False, http=http), keys)


@pytest.mark.parametrize("http", ["127.0.0.1:0", "localhost:8080", "[::1]:8080"])
def test_without_keys_it_serves_its_own_machine_only_if_that_was_said(
    tmp_path: Path, http: str
) -> None:
    keys = GatewayKeys(tmp_path / "keys.sqlite")
    check_access(config(tmp_path, no_keys=True, http=http), keys)
    with pytest.raises(KeysError, match="--no-keys"):
        check_access(config(tmp_path, no_keys=False, http=http), keys)


def test_a_key_is_kept_as_a_hash_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "keys.sqlite"
    keys = GatewayKeys(path)
    secret, key = keys.create("ada", now_ms=1, entropy=ENTROPY, budget_nano=5)
    assert path.stat().st_mode & 0o077 == 0
    assert keys.authenticate(secret) == key
    assert keys.authenticate(secret + "x") is None
    assert secret.encode() not in path.read_bytes()
    with closing(sqlite3.connect(path)) as conn:
        assert secret not in str(conn.execute("SELECT * FROM gateway_keys").fetchall())


def test_a_revoked_key_opens_nothing_and_is_still_listed(tmp_path: Path) -> None:
    keys = GatewayKeys(tmp_path / "keys.sqlite")
    secret, key = keys.create("ada", now_ms=1, entropy=ENTROPY)
    keys.spend(key.id, 7)
    assert keys.revoke(key.id, now_ms=2)
    assert not keys.revoke(key.id, now_ms=3)
    assert keys.authenticate(secret) is None
    (kept,) = GatewayKeys(tmp_path / "keys.sqlite").all_keys()
    assert (kept.spent_nano, kept.revoked_at_ms) == (7, 2)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    path.chmod(0o600)
    with pytest.raises(KeysError, match="cannot use the API keys"):
        GatewayKeys(path)
