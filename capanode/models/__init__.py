"""Where a node's models come from and where they lie: sources, conversion, store, catalog.

`library` is what commands call. Nothing that the node itself imports here imports torch or parses a
model: `convert` and the `convert_*` modules run in a limited process of their own.
"""
