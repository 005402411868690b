"""Stands in for curl where there is none: the few options that the documentation uses.

It is run as a program, on its own, by the shell that runs the examples.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import urllib.parse


def main() -> int:
    reader = argparse.ArgumentParser(allow_abbrev=False)
    reader.add_argument("-s", "--silent", action="store_true")
    reader.add_argument("-S", "--show-error", action="store_true")
    reader.add_argument("-f", "--fail", action="store_true")
    reader.add_argument("-i", "--include", action="store_true")
    reader.add_argument("-N", "--no-buffer", action="store_true")
    reader.add_argument("-X", "--request")
    reader.add_argument("-H", "--header", action="append", default=[])
    reader.add_argument("-d", "--data")
    reader.add_argument("-m", "--max-time", type=float, default=60.0)
    reader.add_argument("url")
    asked = reader.parse_args()
    url = urllib.parse.urlsplit(asked.url if "://" in asked.url else f"http://{asked.url}")
    headers = {"User-Agent": "curl", "Accept": "*/*"}
    if asked.data is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    for header in asked.header:
        name, _, value = header.partition(":")
        headers[name.strip().title()] = value.strip()
    method = asked.request or ("GET" if asked.data is None else "POST")
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    # As curl does: `localhost` is this machine by definition (RFC 6761), resolver or not.
    place = url.netloc.replace("localhost", "127.0.0.1", 1)
    headers.setdefault("Host", url.netloc)
    connection = http.client.HTTPConnection(place, timeout=asked.max_time)
    try:
        connection.request(method, path, asked.data and asked.data.encode(), headers)
        answer = connection.getresponse()
        if asked.fail and answer.status >= 400:
            return 22
        if asked.include:
            print(f"HTTP/1.1 {answer.status} {answer.reason}")
            for name, value in answer.getheaders():
                print(f"{name.lower()}: {value}")
            print(flush=True)
        while piece := answer.read1(65536):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    except TimeoutError:
        return 28
    except OSError as error:
        print(f"curl: (7) {error}", file=sys.stderr)
        return 7
    return 0


if __name__ == "__main__":
    sys.exit(main())
