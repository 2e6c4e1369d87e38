"""One confined process per model: `main` runs in it, `supervisor` keeps it running from the node,
`frames` is what they say to each other.
"""
