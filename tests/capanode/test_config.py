import tomllib
from pathlib import Path

import pytest

from capanode.config import NodeConfig, new_node_config_text
from capanode.settings import EngineWish, ModelSettings
from protocol.messages import DataCollection
from protocol.pricing import PriceSheet
from protocol.programs.settings import Setting, SettingError, settings_of
from tests.protocol.makers import COORDINATOR

COORDINATOR_ADDRESS = f"/ip4/127.0.0.1/tcp/4100/p2p/{COORDINATOR.peer_id}"


def write(folder: Path, text: str) -> Path:
    path = folder / "capanode.toml"
    path.write_text(text)
    return path


def test_defaults_need_nothing(tmp_path: Path) -> None:
    config = NodeConfig.resolve(flags={"data_dir": tmp_path})
    assert config.listen == ("/ip4/0.0.0.0/tcp/4101",)
    assert config.model_store == tmp_path / "models"
    assert config.status_socket == tmp_path / "status.sock"
    assert config.data_collection is DataCollection.DENY
    assert config.sources["listen"] == "default"


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    write(tmp_path, 'region = "file"\nqueue_max = 1\nper_client_max = 2\n')
    config = NodeConfig.resolve(
        env={"CAPANODE_QUEUE_MAX": "3", "CAPANODE_REGION": "environment", "PATH": "/bin"},
        flags={"data_dir": tmp_path, "region": "flag", "drain_s": None},
    )
    assert (config.region, config.queue_max, config.per_client_max) == ("flag", 3, 2)
    assert config.sources["region"] == "flag --region"
    assert config.sources["queue_max"] == "environment CAPANODE_QUEUE_MAX"
    assert config.sources["per_client_max"] == f"file {tmp_path / 'capanode.toml'}"
    assert config.sources["drain_s"] == "default"


def test_models_and_their_prices_are_read_from_tables(tmp_path: Path) -> None:
    write(
        tmp_path,
        '[models."smollm2"]\nslots = 4\nthreads = 2\ninput_per_mtok = 0.02\n'
        'output_per_mtok = "0.06"\n[models.minilm]\n',
    )
    config = NodeConfig.resolve(flags={"data_dir": tmp_path})
    price = PriceSheet(input_nano_per_mtok=20_000_000, output_nano_per_mtok=60_000_000)
    assert config.models == (ModelSettings("smollm2", 4, 2, price), ModelSettings("minilm"))


@pytest.mark.parametrize(
    ("written", "wish"), [('"vllm"', EngineWish.VLLM), ('"own"', EngineWish.OWN)]
)
def test_a_models_engine_is_one_of_two_words(
    tmp_path: Path, written: str, wish: EngineWish
) -> None:
    write(tmp_path, f"[models.m]\nengine = {written}\n")
    (model,) = NodeConfig.resolve(flags={"data_dir": tmp_path}).models
    assert model.engine is wish
    flags = {"data_dir": tmp_path, "models": [f"m,engine={wish}"]}
    assert NodeConfig.resolve(flags=flags).models == (model,)


@pytest.mark.parametrize("written", ['"ours"', "[1]", "true", '""'])
def test_another_word_for_an_engine_is_refused(tmp_path: Path, written: str) -> None:
    write(tmp_path, f"[models.m]\nengine = {written}\n")
    with pytest.raises(SettingError, match="own or vllm"):
        NodeConfig.resolve(flags={"data_dir": tmp_path})


def test_models_are_read_from_one_variable_and_from_flags(tmp_path: Path) -> None:
    from_env = NodeConfig.resolve(
        env={"CAPANODE_MODELS": "smollm2,slots=4,request=0.1; minilm"},
        flags={"data_dir": tmp_path},
    )
    from_flags = NodeConfig.resolve(
        flags={"data_dir": tmp_path, "models": ["smollm2,slots=4,request=0.1", "minilm"]}
    )
    expected = ModelSettings("smollm2", slots=4, price=PriceSheet(request_nano=100_000_000))
    assert from_env.models == from_flags.models == (expected, ModelSettings("minilm"))


def test_a_coordinator_is_listed_with_its_peer_id(tmp_path: Path) -> None:
    config = NodeConfig.resolve(flags={"data_dir": tmp_path, "coordinators": [COORDINATOR_ADDRESS]})
    assert [one.peer for one in config.coordinators] == [COORDINATOR.peer_id]
    assert str(config.coordinators[0]) == COORDINATOR_ADDRESS


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("queue_max = true", "queue_max = 'True'"),
        ("queue_max = -1", "from 0 to"),
        ('listen = "tcp/1"', "multiaddresses such as"),
        ("listen = 5", "a list of texts"),
        ('coordinators = ["/ip4/1.2.3.4/tcp/1"]', "/p2p/"),
        ('coordinators = ["/ip4/1.2.3.4/tcp/1/p2p/QmNot"]', "/p2p/"),
        ('data_collection = "maybe"', "one of allow, deny"),
        ('log_level = "loud"', "one of debug"),
        ("[models.a]\nslots = 0", "from 1 to"),
        ("[models.a]\ncolour = 1", "'colour'"),
        ('[models.a]\nimage = "cheap"', "an amount of credits"),
        ("[models.a]\nimage = 1e-3", "an amount of credits"),
        ("[models.a]\nimage = 5000", "price is out of range"),
        ("models = 3", "a list of texts"),
        ('price_gpu_gib_hour = "-1"', "an amount of credits"),
        ("quee_max = 1", "do you mean queue_max?"),
        ("zzz = 1", "there are data_dir, listen,"),
        ("# queue_max = 1\nregion = 'eu'\nqueue_max = -1", ", line 3)"),
        ("[models.'b-1']\nslots = 2\n[models.a]\nthreads = 1\nslots = 0", ", line 5)"),
        ("[models.a]\nslots = 0", "models.a.slots = '0'"),
        ("\nzzz = 1", ", line 2 sets zzz"),
        ("listen = [", "not valid TOML"),
        ('data_dir = "/elsewhere"', "--data-dir"),
    ],
)
def test_a_wrong_file_names_the_setting_and_the_file(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingError) as caught:
        NodeConfig.resolve(flags={"data_dir": tmp_path})
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="environment CAPANODE_DRAIN_S"):
        NodeConfig.resolve(env={"CAPANODE_DRAIN_S": "soon"}, flags={"data_dir": tmp_path})
    with pytest.raises(SettingError, match="do you mean CAPANODE_REGION"):
        NodeConfig.resolve(env={"CAPANODE_REGOIN": "eu"}, flags={"data_dir": tmp_path})


def test_an_explicit_file_must_exist_and_is_read_instead(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="there is no configuration file"):
        NodeConfig.resolve(file=tmp_path / "nothing.toml")
    write(tmp_path, 'region = "implicit"')
    explicit = tmp_path / "other.toml"
    explicit.write_text("queue_max = 3")
    config = NodeConfig.resolve(file=explicit, flags={"data_dir": tmp_path})
    assert (config.region, config.queue_max) == ("", 3)


def test_a_new_file_is_valid_and_changes_only_what_was_chosen(tmp_path: Path) -> None:
    text = new_node_config_text({"region": '"eu"'})
    assert tomllib.loads(text) == {"region": "eu"}
    write(tmp_path, text)
    config = NodeConfig.resolve(flags={"data_dir": tmp_path})
    assert config.region == "eu"
    assert config.queue_max == NodeConfig.resolve(flags={"data_dir": tmp_path / "no"}).queue_max


@pytest.mark.parametrize(
    "setting", [s for s in settings_of(NodeConfig) if s.example], ids=lambda s: s.name
)
def test_the_example_of_each_setting_is_accepted(setting: Setting) -> None:
    literal = setting.example.replace("12D3KooW…", COORDINATOR.peer_id).replace("hf_…", "hf_x")
    setting.kind.read(tomllib.loads(f"x = {literal}", parse_float=str)["x"])


def test_the_default_folder_lies_in_the_operators_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".capanode").mkdir()
    write(tmp_path / ".capanode", 'region = "home"')
    config = NodeConfig.resolve()
    assert config.data_dir == tmp_path / ".capanode"
    assert config.region == "home"
