"""What the gateway asks of its market, where both share the coordinator's process and books. Its
counterpart beside users is `edge`."""
