"""What encoders read of a config.json, each within bounds."""

from collections.abc import Mapping
from typing import Any

from capanode.engines.base import ModelLoadError

_SIZE_MAX = 1 << 24


def read_size(plain: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A count of something. Raises ModelLoadError."""
    value = plain.get(key, default)
    if type(value) is not int or not 0 < value <= _SIZE_MAX:
        raise ModelLoadError(f"config.json: {key} is missing or out of range")
    return value


def read_epsilon(plain: Mapping[str, Any], key: str, default: float) -> float:
    """What keeps a norm from dividing by zero. Raises ModelLoadError."""
    value = plain.get(key, default)
    if type(value) is not float or not 0 < value < 1:
        raise ModelLoadError(f"config.json: {key} is out of range")
    return value


def read_base(plain: Mapping[str, Any], key: str, default: float) -> float:
    """The base of rotary positions. Raises ModelLoadError."""
    value = plain.get(key, default)
    if type(value) not in (int, float) or not 1 < value < 1e12:
        raise ModelLoadError(f"config.json: {key} is out of range")
    return float(value)


def check_choice(plain: Mapping[str, Any], key: str, taken: object) -> None:
    """Raises ModelLoadError if the config asks for another choice than the one that is run."""
    if plain.get(key, taken) != taken:
        raise ModelLoadError(f"config.json: only {key} = {taken!r} is run here")


def read_flag(plain: Mapping[str, Any], key: str) -> bool:
    """False if it is not there. Raises ModelLoadError."""
    value = plain.get(key, False)
    if type(value) is not bool:
        raise ModelLoadError(f"config.json: {key} is neither true nor false")
    return value
