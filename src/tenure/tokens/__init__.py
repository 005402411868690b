"""Tokens of the HTTP API: their scopes, and how they are made and revoked."""
