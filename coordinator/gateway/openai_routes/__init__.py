"""OpenAI's endpoints, one module per noun; what chat and completions share is in `generation`."""
