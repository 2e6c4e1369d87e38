"""Stock clients of other people against our door, each in an environment of its own."""
