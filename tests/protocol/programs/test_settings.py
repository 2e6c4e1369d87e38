import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from protocol.programs.kinds import (
    ADDRESSES,
    CREDITS,
    PATH,
    SECRET,
    TEXT,
    URL,
    choice,
    count,
)
from protocol.programs.log_format import LogFormat
from protocol.programs.setting_options import show_config, takes_settings
from protocol.programs.settings import (
    InDataDir,
    SettingError,
    new_config_text,
    resolve_settings,
    setting,
    settings_of,
    settings_table,
)


@dataclass(frozen=True, slots=True)
class Shop:
    data_dir: Path = setting(Path("~/.shop"), PATH, "Where it lies.")
    doors: tuple[str, ...] = setting((), ADDRESSES, "Its doors.", example='["/ip4/1.2.3.4/tcp/1"]')
    shelves: int = setting(3, count(1, 1_000, "shelves"), "How many shelves.", flag="rows")
    price: int = setting(20_000_000, CREDITS, "What all costs.")
    style: LogFormat = setting(LogFormat.JSON, choice(LogFormat), "How it looks.")
    stock: str = setting(InDataDir(lambda d: f"{d}/stock", "stock"), TEXT, "What it has.")
    sources: Mapping[str, str] = field(default_factory=dict)


def resolve(data_dir: Path, env: Mapping[str, str] | None = None, **flags: Any) -> Shop:
    given = {"data_dir": data_dir, **flags}
    return resolve_settings(Shop, "shop", file=None, env=env or {}, flags=given)


def test_one_declaration_serves_file_environment_and_flags(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text('shelves = 4\nprice = 0.5\nstyle = "console"\n')
    shop = resolve(tmp_path, {"SHOP_SHELVES": "5", "SHOP_PRICE": "0.25"}, shelves="6")
    assert (shop.shelves, shop.price, shop.style) == (6, 250_000_000, LogFormat.CONSOLE)
    assert shop.sources["shelves"] == "flag --rows"
    assert shop.sources["price"] == "environment SHOP_PRICE"
    assert shop.sources["style"] == f"file {tmp_path}/shop.toml"
    assert shop.stock == f"{tmp_path}/stock"
    assert shop.sources["stock"] == "default"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"shelves": "0"}, "shelves = '0' (from flag --rows): expected a whole number from 1"),
        ({"style": "loud"}, "one of console, json"),
        ({"price": "-1"}, "an amount of credits"),
        ({"doors": ["tcp/1"]}, "multiaddresses"),
    ],
)
def test_a_wrong_value_names_the_setting_its_source_and_what_is_allowed(
    tmp_path: Path, flags: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(SettingError) as caught:
        resolve(tmp_path, **flags)
    assert complaint in str(caught.value)


def test_an_example_is_the_default_where_none_is_given() -> None:
    examples = {one.name: one.example for one in settings_of(Shop)}
    assert examples == {
        "data_dir": '"~/.shop"',
        "doors": '["/ip4/1.2.3.4/tcp/1"]',
        "shelves": "3",
        "price": '"0.02"',
        "style": '"json"',
        "stock": "",
    }


def test_a_new_file_has_all_that_one_line_can_say_and_sets_what_was_chosen() -> None:
    text = new_config_text(Shop, {"shelves": "9"}, closing=["# the end"])
    assert tomllib.loads(text) == {"shelves": 9}
    assert "# doors = " in text
    assert "data_dir" not in text
    assert text.endswith("# the end\n")


def test_the_table_says_flag_values_default_and_meaning() -> None:
    rows = settings_table(Shop).splitlines()
    assert "| `shelves` | `--rows` | 1 to 1,000 shelves | 3 | How many shelves. |" in rows
    assert "| `stock` | `--stock` | text | stock in the data directory | What it has. |" in rows


def shop_command() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @takes_settings(Shop, "shop")
    def sell(config: Shop, loud: Annotated[bool, typer.Option(help="Loudly.")] = False) -> None:
        typer.echo(f"{config.doors} {config.shelves} {loud}")
        show_config(config, "shop", as_json=loud)

    return app


def test_a_command_gets_an_option_for_each_setting(tmp_path: Path) -> None:
    words = ["--data-dir", str(tmp_path), "--rows=7", "--doors=/a", "--doors=/b", "--loud"]
    done = CliRunner().invoke(shop_command(), words, catch_exceptions=False)
    assert done.stdout.startswith("('/a', '/b') 7 True\n")
    assert '"shelves": {"value": "7", "source": "flag --rows"}' in done.stdout


def test_a_command_reads_its_variables_and_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_SHELVES", "11")
    path = tmp_path / "elsewhere.toml"
    path.write_text('doors = ["/c"]')
    words = ["--data-dir", str(tmp_path), "--config", str(path)]
    done = CliRunner().invoke(shop_command(), words, catch_exceptions=False)
    assert done.stdout.startswith("('/c',) 11 False\n")
    assert "SHOP_SHELVES" in done.stdout


def test_the_help_of_a_command_says_what_each_setting_means() -> None:
    told = CliRunner().invoke(shop_command(), ["--help"], env={"COLUMNS": "200"}).stdout
    assert "How many shelves. Default: 3." in told
    assert "Loudly." in told


# Secrets


@dataclass(frozen=True, slots=True)
class Vault:
    data_dir: Path = setting(Path("~/.vault"), PATH, "Where it lies.")
    token: str = setting("", SECRET, "Opens it.", also="OTHER_TOKEN")
    server: str = setting("https://a.example", URL, "Who has it.")
    sources: Mapping[str, str] = field(default_factory=dict)


def open_vault(data_dir: Path, **env: str) -> Vault:
    return resolve_settings(Vault, "vault", file=None, env=env, flags={"data_dir": data_dir})


def test_a_secret_has_no_flag_and_is_shown_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vault = open_vault(tmp_path, VAULT_TOKEN="hf_secret\n")
    assert vault.token == "hf_secret"
    show_config(vault, "vault", as_json=False)
    show_config(vault, "vault", as_json=True)
    assert "hf_secret" not in repr(vault) + capsys.readouterr().out
    assert next(one.flag for one in settings_of(Vault) if one.name == "token") == ""


def test_a_secret_that_is_wrong_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="expected one word") as caught:
        open_vault(tmp_path, VAULT_TOKEN="hf secret")
    assert "secret'" not in str(caught.value)


def test_a_file_with_a_secret_must_be_private(tmp_path: Path) -> None:
    file = tmp_path / "vault.toml"
    file.write_text('token = "hf_secret"\n')
    file.chmod(0o640)
    with pytest.raises(SettingError, match="chmod 600"):
        open_vault(tmp_path)
    file.chmod(0o600)
    assert open_vault(tmp_path).token == "hf_secret"


def test_another_programs_variable_is_read_where_ours_is_not_set(tmp_path: Path) -> None:
    vault = open_vault(tmp_path, OTHER_TOKEN="theirs")
    assert (vault.token, vault.sources["token"]) == ("theirs", "environment OTHER_TOKEN")
    assert open_vault(tmp_path, OTHER_TOKEN="theirs", VAULT_TOKEN="ours").token == "ours"


@pytest.mark.parametrize(
    "url", ["hub.example", "ftp://a", "https://me:pass@a", "https://a/?key=1", "https://a:b", ""]
)
def test_a_server_is_a_plain_url(tmp_path: Path, url: str) -> None:
    (tmp_path / "vault.toml").write_text(f'server = "{url}"\n')
    with pytest.raises(SettingError, match="the URL of a server"):
        open_vault(tmp_path)
    assert open_vault(tmp_path / "none", VAULT_SERVER="https://a/b/").server == "https://a/b"
