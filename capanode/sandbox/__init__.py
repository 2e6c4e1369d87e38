"""Confinement of the worker: what it may see (`view`), call (`seccomp`), use (`limits`) and be
(`privileges`), how it is started (`bwrap`, `landlock`, `launch`, `spawn`), and the proof that it
holds (`probe`, `selftest`).

`launch` runs as root before the drop, and `selftest` inside: both, and all that they import, keep
to the standard library.
"""
