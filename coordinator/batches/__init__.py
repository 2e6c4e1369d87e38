"""Files of HTTP users and batches of requests: kept sealed on disk, run where seats are idle."""
