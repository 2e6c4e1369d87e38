"""What keeps a norm from dividing by zero, as configs give it."""

from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields


def read_epsilon(fields: ConfigFields, key: str, default: float) -> float:
    """Raises ModelLoadError."""
    value = fields.positive(key, default)
    if value >= 1:
        raise ModelLoadError(f"config.json: {key} is out of range")
    return value
