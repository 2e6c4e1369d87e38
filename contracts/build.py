"""Compile the contracts into `contracts/artifacts`: `python -m contracts.build` (dev extra)."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "contracts" / "artifacts"
NAMES = ("Settlement", "TestToken")


def build(
    name: str, *, root: Path = ROOT, folder: str = "contracts", warnings: str = "error"
) -> str:
    """The artifact's text. The same source gives the same bytes on every machine.

    Imports are looked up under `root` alone. A warning of the compiler is an error, or "none".
    """
    # The compiler is not installed where the client runs.
    from vyper import __version__  # noqa: PLC0415
    from vyper.cli.vyper_compile import compile_files  # noqa: PLC0415

    source = root / folder / f"{name}.vy"
    formats = ["abi", "bytecode", "bytecode_runtime"]
    compiled = compile_files(
        [source],
        formats,
        paths=[str(root)],
        include_sys_path=False,
        warnings_control=warnings,
    )
    outputs = next(iter(compiled.values()))
    content = {
        "name": name,
        "compiler": f"vyper {__version__}, cancun, optimize gas",
        "runtime_bytes": (len(outputs["bytecode_runtime"]) - 2) // 2,
        "bytecode": outputs["bytecode"],
        "abi": outputs["abi"],
    }
    return json.dumps(content, indent=1) + "\n"


def main() -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    for name in NAMES:
        path = ARTIFACTS / f"{name}.json"
        path.write_text(build(name))
        sys.stdout.write(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
