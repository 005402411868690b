"""Webhooks: who is notified of which transitions, and the signed request that does it."""
