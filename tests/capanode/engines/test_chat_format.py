"""A model's chat format is read off its template, and the offer says it."""

from pathlib import Path

import pytest

from capanode.engines.chat_format import ModelChat, read_model_chat
from protocol.features import Feature
from tests.capanode.engines.tiny_models import load, write_llama

HERMES = "{% if tools %}{{ tools | tojson }} within <tool_call></tool_call>{% endif %}"


@pytest.mark.parametrize(
    ("template", "name", "knows_tools", "reasons"),
    [
        ("{{ messages[0].content }}", "hermes", False, False),
        (HERMES, "hermes", True, False),
        (HERMES + "{{ content.split('</think>')[-1] }}", "hermes", True, True),
        (HERMES + "<function=name>", "hermes", False, False),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS] [", "mistral", True, False),
        ("{% if tools %}{% endif %}[TOOL_CALLS]name[ARGS]", "hermes", False, False),
        (
            'with tools: {"name": function name, "parameters": dictionary of arguments}',
            "llama3_json",
            True,
            False,
        ),
    ],
)
def test_a_template_shows_its_format(
    template: str, name: str, knows_tools: bool, reasons: bool
) -> None:
    assert read_model_chat(template) == ModelChat(name, knows_tools, reasons)


def test_the_engine_says_what_its_model_can_do(tmp_path: Path) -> None:
    info = load(write_llama(tmp_path, chat_template=HERMES + "</think>")).info
    assert {Feature.CHAT, Feature.REASONING} <= set(info.features)
    assert info.chat_format == "hermes"


def test_a_model_without_a_template_does_not_chat(tmp_path: Path) -> None:
    info = load(write_llama(tmp_path, chat_template=None)).info
    assert Feature.CHAT not in info.features
    assert not info.chat_format
