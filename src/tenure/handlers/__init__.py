"""What an application declares: handlers, their arguments and results, and the context of a run."""
