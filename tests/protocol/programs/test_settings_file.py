"""One setting is changed in a file that a person wrote; all else stays as it is."""

import tomllib

import pytest

from protocol.programs.settings import SettingError
from protocol.programs.settings_file import set_in_text

WRITTEN = """# What stands behind a # is the default or an example.

# Where clients reach this node.
listen = [
    "/ip4/0.0.0.0/tcp/1",  # the first
    "/ip4/0.0.0.0/tcp/2",
]

# Jobs that may wait.
# queue_max = 16
region = "eu" # here

[models."b.1"]
slots = 2 # as many as fit
[models.a]
threads = 1
"""


@pytest.mark.parametrize(
    ("keys", "literal", "line"),
    [
        (("region",), '"us"', 'region = "us"'),
        (("queue_max",), "3", "queue_max = 3"),
        (("listen",), '["/a"]', 'listen = ["/a"]'),
        (("announce",), '["/b"]', 'announce = ["/b"]'),
        (("models", "b.1", "slots"), '"4"', 'slots = "4"'),
        (("models", "a", "slots"), "4", "slots = 4"),
        (("models", "new/one", "request"), '"0.1"', '[models."new/one"]\nrequest = "0.1"'),
    ],
)
def test_the_value_is_set_and_comments_stay(keys: tuple[str, ...], literal: str, line: str) -> None:
    edited = set_in_text(WRITTEN, keys, literal)
    assert line in edited
    expected = tomllib.loads(WRITTEN)
    inner = expected
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    inner[keys[-1]] = tomllib.loads(f"x = {literal}")["x"]
    assert tomllib.loads(edited) == expected
    for comment in ("# Where clients reach", "# Jobs that may wait.", "# What stands behind"):
        assert comment in edited
    assert set_in_text(edited, keys, literal) == edited, "doing it again changes nothing"


def test_an_empty_file_gets_its_first_setting() -> None:
    assert tomllib.loads(set_in_text("", ("region",), '"eu"')) == {"region": "eu"}


def test_what_cannot_be_edited_safely_is_left_to_its_owner() -> None:
    with pytest.raises(SettingError, match="by hand"):
        set_in_text("models = { a = { slots = 1 } }\n", ("models", "a", "slots"), "2")
