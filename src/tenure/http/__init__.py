"""The HTTP side of the server: who may call, limits of requests, the API.

`routes.py` lists every call. `call.py` finds the call of a request, reads it and has it answered.
The files of the nouns hold the endpoints: each decodes, makes one call on the application, encodes.
Nothing here decides about a job. `openapi.py` describes the calls. Errors are raised and become
problems.
"""
