"""The common room of our programs, which is no part of the wire: settings, logs, key files, output,
locks, runners, and how a program starts, ends and shuts down in order.

The pure modules of `protocol` and `protocol.net` never import this package.
"""
