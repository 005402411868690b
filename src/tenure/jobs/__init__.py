"""What a job is made of: values, payloads, results, ids, durations, handlers, filters. Pure."""
