"""What a value may be: names, numbers, times, ids, JSON. Pure."""
