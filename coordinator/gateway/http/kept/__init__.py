"""Replies that clients may come back for: by an idempotency key, by sending a request again, or by
the id of their generation."""
