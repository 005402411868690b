"""Workers: claim jobs, run their handlers, report the outcomes."""
