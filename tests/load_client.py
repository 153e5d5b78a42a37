"""A load generator: N keep-alive clients on raw sockets, in a process of its own.

python tests/load_client.py URL CLIENTS SECONDS [--pause S] [--expression]

A client sends a problem, waits for the answer, checks that it is the answer to *its* problem, waits
`--pause` seconds (0: at once; the mean of an exponential distribution) and sends the next. Latency
is from the first byte sent to the last received. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from urllib.parse import urlsplit


def random_problem(rng: random.Random, expression: bool) -> tuple[dict, str, int]:
    """A problem as the API takes it, its text and its right answer, worked out here."""
    digits = [rng.randrange(10) for _ in range(5)]
    a, b, c, d, e = digits
    text = f"{a}*{b}+{c}-{d}*{e}"
    posed = {"expression": text} if expression else {"digits": digits}
    return posed, text, a * b + c - d * e


async def client(
    address: tuple[str, int], seed: int, end: float, pause: float, expression: bool, out: list
) -> None:
    rng = random.Random(seed)
    reader, writer = await asyncio.open_connection(*address)
    if pause:
        await asyncio.sleep(rng.random() * pause)
    while time.perf_counter() < end:
        posed, text, target = random_problem(rng, expression)
        body = json.dumps(posed).encode()
        head = (
            f"POST /api/play HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        started = time.perf_counter()
        writer.write(head.encode() + body)
        headers = await reader.readuntil(b"\r\n\r\n")
        length = int(headers.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        answer = await reader.readexactly(length)
        seconds = time.perf_counter() - started
        status = int(headers.split(b" ", 2)[1])
        # A cheap look for what belongs to this client's problem and to no other.
        own = status == 200 and f'"problem":"{text}","target":{target},'.encode() in answer
        out.append((seconds, status, own, b'"solved":true' in answer))
        if pause:
            await asyncio.sleep(rng.expovariate(1 / pause))
    writer.close()


async def load(url: str, clients: int, seconds: float, pause: float, expression: bool) -> dict:
    parts = urlsplit(url)
    out: list[tuple[float, int, bool, bool]] = []
    started = time.perf_counter()
    address, end = (str(parts.hostname), int(parts.port or 80)), started + seconds
    await asyncio.gather(
        *(client(address, seed, end, pause, expression, out) for seed in range(clients))
    )
    latencies = sorted(row[0] * 1000 for row in out)
    quantile = lambda q: round(latencies[min(int(q * len(latencies)), len(latencies) - 1)], 2)  # noqa: E731
    return {
        "clients": clients,
        "requests": len(out),
        "requests_per_s": round(len(out) / (time.perf_counter() - started), 1),
        "p50_ms": quantile(0.5),
        "p99_ms": quantile(0.99),
        "max_ms": round(latencies[-1], 2),
        "not_200": sum(row[1] != 200 for row in out),
        "not_own": sum(not row[2] for row in out),
        "solved": sum(row[3] for row in out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("clients", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--expression", action="store_true")
    given = parser.parse_args()
    print(json.dumps(asyncio.run(load(**vars(given)))))


if __name__ == "__main__":
    sys.exit(main())
