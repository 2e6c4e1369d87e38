"""Settings that a running node takes over, and how they get into its file."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from capanode.cli import app
from capanode.config import NodeConfig, reread_config
from capanode.errors import NotRunningError
from capanode.live_settings import compare
from protocol.programs.settings import SettingError


def read(folder: Path, text: str, **flags: Any) -> NodeConfig:
    (folder / "capanode.toml").write_text(text)
    return NodeConfig.resolve(env={"CAPANODE_REGION": "eu"}, flags={"data_dir": folder, **flags})


def test_prices_change_at_once_and_sockets_at_a_restart(tmp_path: Path) -> None:
    old = read(tmp_path, "queue_max = 3")
    new = read(tmp_path, 'queue_max = 4\nprice_cpu_core_hour = "0.5"\nworker_nice = 2')
    changes = compare(old, new)
    assert changes.applied == ("price_cpu_core_hour", "queue_max")
    assert changes.at_restart == ("worker_nice",)
    assert compare(new, new) == type(changes)((), ())


def test_a_models_price_changes_at_once_and_its_slots_at_a_restart(tmp_path: Path) -> None:
    old = read(tmp_path, "[models.a]\nslots = 2")
    dearer = read(tmp_path, "[models.a]\nslots = 2\nrequest = '0.1'")
    wider = read(tmp_path, "[models.a]\nslots = 3")
    assert compare(old, dearer).applied == ("models",)
    assert compare(old, wider).at_restart == ("models",)


def test_flags_and_the_environment_win_over_a_file_that_is_read_again(tmp_path: Path) -> None:
    config = read(tmp_path, "drain_s = 5", queue_max="7")
    (tmp_path / "capanode.toml").write_text("drain_s = 6\nqueue_max = 1\nregion = 'us'")
    again = reread_config(config)
    assert (again.drain_s, again.queue_max, again.region) == (6, 7, "eu")
    assert again.sources["queue_max"] == config.sources["queue_max"]
    (tmp_path / "capanode.toml").write_text("drain_s = 'soon'")
    with pytest.raises(SettingError, match="drain_s"):
        reread_config(config)


def invoke(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["config", *arguments, "--data-dir", str(folder)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_config_set_writes_the_file_that_init_made(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["init", "--data-dir", str(tmp_path), "--region", "eu"])
    for words in (("queue_max", "5"), ("region", "us"), ("models.a.b.output_per_mtok", "0.06")):
        assert invoke(tmp_path, "set", *words)[0] == 0
    config = NodeConfig.resolve(flags={"data_dir": tmp_path})
    assert (config.queue_max, config.region) == (5, "us")
    assert [model.name for model in config.models] == ["a.b"]
    assert "# Jobs per model that may wait" in (tmp_path / "capanode.toml").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["capanode.toml", "node.key"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("queue_max", "many"), "a whole number"),
        (("queue_max", "1", "2"), "one value"),
        (("quee_max", "1"), "do you mean queue_max"),
        (("models.a", "1"), "models.NAME.KEY"),
        (("models.a.colour", "1"), "for a model only"),
        (("data_dir", "/x"), "one line"),
    ],
)
def test_a_wrong_setting_is_refused_and_the_file_stays(
    tmp_path: Path, words: tuple[str, ...], complaint: str
) -> None:
    path = tmp_path / "capanode.toml"
    path.write_text("queue_max = 3\n")
    with pytest.raises(SettingError, match=complaint):
        invoke(tmp_path, "set", *words)
    assert path.read_text() == "queue_max = 3\n"
    assert [path] == list(tmp_path.iterdir())


def test_config_set_tells_what_the_running_node_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"applied": ["queue_max"], "at_restart": ["region"]}
    monkeypatch.setattr("capanode.cli.config.ask_node", lambda *_: answer)
    _, _, told = invoke(tmp_path, "set", "queue_max", "5")
    assert "in force now: queue_max" in told
    assert "after a restart of the node: region" in told
    _, out, _ = invoke(tmp_path, "reload", "--json")
    assert json.loads(out) == {"file": str(tmp_path / "capanode.toml"), "node": answer}


def test_a_setting_that_a_variable_hides_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPANODE_QUEUE_MAX", "9")
    assert "still wins" in invoke(tmp_path, "set", "queue_max", "5")[2]
    with pytest.raises(NotRunningError):
        invoke(tmp_path, "reload")
