"""OpenAI's Responses API, without the part that keeps state: `/v1/responses`."""
