"""The coordinator's state: one schema, one query module per noun, and the only SQLAlchemy here."""
