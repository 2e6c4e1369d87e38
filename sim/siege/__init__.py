"""Attacks on a real market on this machine; `python -m sim siege` runs them all."""
