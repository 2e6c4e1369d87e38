"""The client library: buy inference from a market, in process or over the network."""
