"""OpenAI's API: its error shape and streams in `dialect` and `sse`, its routes in `routes`, and one
module per endpoint."""
