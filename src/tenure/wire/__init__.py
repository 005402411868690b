"""The JSON that server, client, command line and webhooks share."""
