"""Leases that a buyer takes before it has jobs, so that matching and money are off their way."""
