"""Log formats and OpenTelemetry spans."""
