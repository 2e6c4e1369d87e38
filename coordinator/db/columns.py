"""Kinds of columns that several tables of the coordinator have, each with its own check."""

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Integer, LargeBinary, Text

from protocol.money import AMOUNT_NANO_MAX

# 64 bits on every database; SQLite's INTEGER already has them.
Int64 = BigInteger().with_variant(Integer(), "sqlite")


def one_of(column: str, values: Iterable[StrEnum], *, name: str) -> CheckConstraint:
    listed = ", ".join(f"'{value.value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=name)


def amount(name: str, *, nullable: bool = False, default: int | None = None) -> Column[int]:
    """Nano-credits or a count: 0..2^62. A `default` is for rows that were there before it."""
    return Column(
        name,
        Int64,
        CheckConstraint(f"{name} BETWEEN 0 AND {AMOUNT_NANO_MAX}", name=f"{name}_in_range"),
        nullable=nullable,
        server_default=None if default is None else str(default),
    )


def stamp(name: str, *, nullable: bool = False) -> Column[int]:
    """A time; the name says the unit."""
    return Column(name, Int64, nullable=nullable)


def ulid(name: str, *args: ForeignKey, primary_key: bool = False) -> Column[str]:
    check = CheckConstraint(f"length({name}) = 26", name=f"{name}_is_ulid")
    return Column(name, Text, *args, check, primary_key=primary_key, nullable=False)


def flag(name: str) -> Column[int]:
    """Yes or no: SQLite's STRICT tables have no booleans."""
    return Column(
        name, Integer, CheckConstraint(f"{name} IN (0, 1)", name=f"{name}_is_flag"), nullable=False
    )


def sha256(name: str, *, nullable: bool = False) -> Column[bytes]:
    check = CheckConstraint(f"length({name}) = 32", name=f"{name}_is_sha256")
    return Column(name, LargeBinary, check, nullable=nullable)
