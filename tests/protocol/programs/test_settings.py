import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from protocol.programs.kinds import ADDRESSES, CREDITS, PATH, TEXT, choice, count
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
