import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capanode.cli import app
from capanode.config import NodeConfig
from capanode.doctor import Diagnosis
from capanode.errors import NodeError
from capanode.hardware import MachineCheck
from capanode.models.errors import UnknownModelError
from capanode.ports import PortError, check_port
from capanode.serve import serve
from protocol.programs.keyfile import load_key_file
from protocol.programs.locks import AlreadyRunningError, hold_lock
from tests.capanode.model_makers import layout_files, write_files
from tests.protocol.makers import COORDINATOR

COORDINATOR_ADDRESS = f"/ip4/127.0.0.1/tcp/4100/p2p/{COORDINATOR.peer_id}"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CAPANODE_"):
            monkeypatch.delenv(name)


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """As a program of its own: for what `main` does with errors."""
    return subprocess.run(
        [sys.executable, "-m", "capanode", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **env},
        cwd=Path(__file__).parents[2],
    )


def test_init_makes_a_private_key_and_a_configuration(tmp_path: Path) -> None:
    data_dir = tmp_path / "node"
    code, out, err = invoke(
        "init", "--data-dir", str(data_dir), "--coordinator", COORDINATOR_ADDRESS, "--region", "eu"
    )
    assert code == 0
    key = load_key_file(data_dir / "node.key")
    assert out.strip() == key.peer_id
    assert "back it up" in err
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((data_dir / "node.key").stat().st_mode) == 0o600
    config = NodeConfig.resolve(flags={"data_dir": data_dir})
    assert [one.peer for one in config.coordinators] == [COORDINATOR.peer_id]
    assert config.sources["region"].startswith("file")


def test_init_again_changes_nothing_and_says_so(tmp_path: Path) -> None:
    invoke("init", "--data-dir", str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = invoke("init", "--data-dir", str(tmp_path), "--region", "us")
    assert code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "edit it" in err


def test_init_for_programs_is_one_json_object(tmp_path: Path) -> None:
    code, out, err = invoke("init", "--data-dir", str(tmp_path), "--json")
    made = json.loads(out)
    assert (code, err) == (0, "")
    assert made["peer_id"] == load_key_file(tmp_path / "node.key").peer_id
    assert made["key_created"]
    assert made["config_created"]


def test_config_show_names_every_value_and_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPANODE_QUEUE_MAX", "3")
    code, out, _ = invoke("config", "show", "--data-dir", str(tmp_path), "--json")
    settings = json.loads(out)
    assert code == 0
    assert settings["queue_max"] == {"value": "3", "source": "environment CAPANODE_QUEUE_MAX"}
    assert settings["price_cpu_core_hour"] == {"value": "0.02", "source": "default"}
    _, table, _ = invoke("config", "show", "--data-dir", str(tmp_path))
    assert "CAPANODE_PER_CLIENT_MAX" in table


def test_models_list_shows_the_catalogue_of_an_empty_store(tmp_path: Path) -> None:
    code, out, _ = invoke("models", "list", "--data-dir", str(tmp_path), "--json")
    assert code == 0
    states = {model["name"]: model["state"] for model in json.loads(out)}
    assert states["smollm2-135m-instruct"] == "available"
    _, table, _ = invoke("models", "list", "--data-dir", str(tmp_path))
    assert "smollm2-135m-instruct" in table


def test_a_model_of_ones_own_is_pulled_listed_and_removed(tmp_path: Path) -> None:
    write_files(tmp_path / "mine", layout_files())
    place = ("--data-dir", str(tmp_path / "home"))
    code, out, _ = invoke("models", "pull", f"file:{tmp_path / 'mine'}", *place, "--json")
    assert code == 0
    pulled = json.loads(out)
    assert pulled["name"] == "mine"
    _, out, _ = invoke("models", "list", *place, "--json")
    (listed,) = (model for model in json.loads(out) if model["name"] == "mine")
    assert (listed["state"], listed["digest"]) == ("ready", pulled["digest"])
    code, out, _ = invoke("models", "prune", *place, "--json")
    assert (code, json.loads(out)) == (0, {"freed_bytes": 0}), "what has a name stays"
    code, _, told = invoke("models", "rm", "mine", *place)
    assert code == 0
    assert told.startswith("removed mine, ")
    _, out, _ = invoke("models", "list", *place, "--json")
    assert "mine" not in {model["name"] for model in json.loads(out)}
    with pytest.raises(UnknownModelError, match="mine"):
        invoke("models", "rm", "mine", *place)


def test_doctor_tells_what_to_do_and_fails_while_the_node_could_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = MachineCheck("models", False, "no model", "pull one")
    no_gpu = MachineCheck("gpu", False, "none", "nothing to do")
    for findings, expected in (((broken, no_gpu), 1), ((no_gpu,), 0)):
        monkeypatch.setattr("capanode.doctor.examine", lambda _, found=findings: Diagnosis(found))
        code, out, _ = invoke("doctor", "--data-dir", str(tmp_path))
        assert code == expected
        assert "nothing to do" in out
        code, out, _ = invoke("doctor", "--data-dir", str(tmp_path), "--json")
        assert code == expected
        assert json.loads(out)["can_serve"] == (expected == 0)


@pytest.mark.parametrize(
    ("arguments", "env", "code", "sentence"),
    [
        (("start",), {}, 1, "create one with `init`"),
        (("status",), {}, 1, "start it with `capanode start`"),
        (("models", "rm", "nothing"), {}, 1, "no model 'nothing'"),
        (("config", "show"), {"CAPANODE_DRAIN_S": "soon"}, 2, "environment CAPANODE_DRAIN_S"),
        (("start", "--model", "a,slots=none"), {}, 2, "flag --model"),
        (("start", "--nonsense"), {}, 2, "No such option"),
    ],
)
def test_errors_are_sentences_and_exit_codes(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], code: int, sentence: str
) -> None:
    done = run(*arguments, CAPANODE_DATA_DIR=str(tmp_path / "node"), **env)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_model_store_that_cannot_be_is_told_with_its_own_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = ("--model-store", str(tmp_path / "file" / "models"))
    done = run("models", "list", "--data-dir", str(tmp_path), *store)
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr
    assert "--model-store" in done.stderr
    assert "--data-dir" not in done.stderr


def test_the_parent_imports_neither_torch_nor_the_network_for_its_commands() -> None:
    script = (
        "import sys, capanode.cli, capanode.serve; "
        "print([m for m in ('torch', 'libp2p', 'numpy', 'PIL', 'transformers') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"


async def test_two_nodes_do_not_share_a_data_directory(tmp_path: Path) -> None:
    invoke("init", "--data-dir", str(tmp_path))
    config = NodeConfig.resolve(flags={"data_dir": tmp_path, "listen": ["/ip4/127.0.0.1/tcp/0"]})

    with (
        hold_lock(config.lock_path, refusal="taken"),
        pytest.raises(AlreadyRunningError, match="another node runs"),
    ):
        await serve(config, software="test", on_milestone=print)


async def test_a_port_that_is_taken_is_told_before_models_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(place: str) -> None:
        raise PortError(f"{place}: Address already in use", "choose another port with --listen")

    invoke("init", "--data-dir", str(tmp_path))
    monkeypatch.setattr("capanode.serve.check_port", taken)
    config = NodeConfig.resolve(flags={"data_dir": tmp_path})
    with pytest.raises(NodeError, match="choose another port"):
        await serve(config, software="test", on_milestone=print)


@pytest.mark.parametrize(
    "place", ["/ip4/1.2.3/tcp/1", "/ip4/127.0.0.1/udp/1", "nonsense", "/ip4/192.0.2.1/tcp/4101"]
)
def test_an_address_that_is_none_of_ours_is_refused_with_advice(place: str) -> None:
    with pytest.raises(PortError) as caught:
        check_port(place)
    assert caught.value.advice
