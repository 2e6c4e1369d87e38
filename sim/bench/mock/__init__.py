"""A language model that costs nothing: the same answer behind our nodes and behind a plain server.

What a benchmark then measures is what stands between a client and the engine.
"""
