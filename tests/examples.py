"""The examples of docs/examples, which are programs and no package."""

import importlib.util
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
