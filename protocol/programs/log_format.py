"""What a program's settings say of its log; `protocol.programs.log` sets it up."""

from enum import StrEnum

LEVELS = ("debug", "info", "warning", "error")


class LogFormat(StrEnum):
    """For people at a terminal, or for programs that collect logs."""

    CONSOLE = "console"
    JSON = "json"
