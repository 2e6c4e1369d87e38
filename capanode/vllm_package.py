"""Whether vLLM is installed here, and in a version whose interface we know. Never imports it."""

from importlib.metadata import PackageNotFoundError, version

# From the first to before the second: its signatures change with each. The same range stands in
# pyproject.toml.
VLLM_VERSIONS = ((0, 33), (0, 34))


def installed_vllm() -> str | None:
    """Its version; None without it."""
    try:
        return version("vllm")
    except PackageNotFoundError:
        return None


def is_known_vllm(installed: str | None) -> bool:
    """True for a version that our engine was written for."""
    parts = (installed or "").split(".")[:2]
    if len(parts) < 2 or not all(part.isdecimal() for part in parts):
        return False
    first, last = VLLM_VERSIONS
    return first <= tuple(map(int, parts)) < last
