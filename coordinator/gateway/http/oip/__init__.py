"""The Open Inference Protocol V2 over HTTP, with its binary extension."""
