"""Which version of us this is."""

from importlib.metadata import PackageNotFoundError, version

PACKAGE = "capacloud"


def program_version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "unknown"
