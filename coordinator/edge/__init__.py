"""The gateway beside its users: the HTTP door over coordinators elsewhere, with a key of its own.

Payloads go from here to nodes and nowhere else. No books and no matching are in this room.
"""
