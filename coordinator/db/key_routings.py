"""What API keys say of routing where a request does not: `provider` objects, as JSON text."""

from collections.abc import Iterator

from sqlalchemy import Connection, insert, select

from coordinator.db.digests import row_digest
from coordinator.db.schema import key_routings


def store_key_routing(conn: Connection, key_id: str, provider: str) -> None:
    """Once, with the key that it is for."""
    digest = row_digest("key_routings", key_id, provider)
    conn.execute(insert(key_routings).values(api_key_id=key_id, provider=provider, digest=digest))


def find_key_routing(conn: Connection, key_id: str) -> str | None:
    query = select(key_routings.c.provider).where(key_routings.c.api_key_id == key_id)
    found: str | None = conn.scalar(query)
    return found


def damaged_key_routings(conn: Connection) -> Iterator[str]:
    """Keys whose routing is not what was stored."""
    columns = key_routings.c
    query = select(columns.digest, columns.api_key_id, columns.provider)
    for digest, *values in conn.execute(query):
        if digest != row_digest("key_routings", *values):
            yield values[0]
