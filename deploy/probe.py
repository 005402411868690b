"""Ends with status 0 if a path of this container answers 200: `probe.py 8080 /ready`.

For health checks that cannot send a token, which `/ready` of a server needs. Slim images have no
curl.
"""

from __future__ import annotations

import http.client
import os
import sys

port, path = sys.argv[1:]
token = os.environ.get("TENURE_TOKEN", "").partition(",")[0].strip()
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=4)
connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
answer = connection.getresponse()
print(answer.status, answer.read(1000).decode())
sys.exit(answer.status != 200)
