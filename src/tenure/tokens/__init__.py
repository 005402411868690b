"""Tokens of the HTTP API: what they look like, and what their scopes allow."""
