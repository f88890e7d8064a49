"""A server over the continuous engine: OpenAI's HTTP API for a MODEL, with many clients in one batch."""
