"""Offers, matching and reputation: pure decisions, without I/O."""
