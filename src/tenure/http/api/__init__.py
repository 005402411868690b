"""The HTTP API: decode, one call on the application, encode. Nothing here decides about a job.

`routes.py` lists every call. `call.py` finds the call of a request, reads it and has it answered.
`jobs.py`, `leases.py`, `operations.py` and `events.py` hold the endpoints, `openapi.py` describes
them. Errors are raised and become problems.
"""
