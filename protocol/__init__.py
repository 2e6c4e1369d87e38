"""What both sides of the market must agree on: pure modules, plus `net`, the transport."""
