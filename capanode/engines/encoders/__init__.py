"""Encoders: texts in, a state of each token out. `load` finds the one that a model's files name."""
