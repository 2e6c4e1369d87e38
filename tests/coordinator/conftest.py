"""New databases of these tests are copies."""

from tests.databases import new_databases_are_copies

__all__ = ["new_databases_are_copies"]
