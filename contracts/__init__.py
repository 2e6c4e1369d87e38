"""On-chain settlement: the contract's source and artifacts, and a small client for it."""
