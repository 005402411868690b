"""The HTTP side of the server: who may call, limits of requests, the API."""
