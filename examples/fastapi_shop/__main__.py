"""The shop in one process: `python -m examples.fastapi_shop [port]`."""

from __future__ import annotations

import sys

import uvicorn

from examples.fastapi_shop.web import PASSWORD, web

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    print(f"The password of the dashboard is {PASSWORD}", flush=True)
    uvicorn.run(web, port=port)
