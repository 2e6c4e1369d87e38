"""Parties behind routers of several kinds, on real sockets in network namespaces of Linux."""
