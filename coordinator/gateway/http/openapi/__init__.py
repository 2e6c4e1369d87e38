"""The description of the whole API (OpenAPI 3.1), made from the route tables by asking the readers
what they read and the writers what they write. `python -m coordinator.gateway.http.openapi` makes
docs/api.md from it.
"""
