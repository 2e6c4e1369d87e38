"""Random sources for tests that do not care what is drawn, only that it is always the same."""

import random


def seeded(seed: int) -> random.Random:
    return random.Random(seed)
