"""The life of a lease: grant, bound, end, restore."""
