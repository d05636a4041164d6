"""A web service on ``AsyncClient``: many requests at once, few messages to the peers.

    pip install fastapi uvicorn
    dstash dev up && python examples/service.py --port 8000
    curl -X PUT localhost:8000/users/ada -H 'Content-Type: application/json' -d '{"born": 1815}'

One client serves all requests. Calls made in one iteration of the event loop are sent as one
request per peer, so there is no need to collect keys by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from dstash import AsyncClient, DStashError
from dstash.errors import LimitError, TimedOut

INDEX: Final = "users"
_MISSING: Final = object()  # None is a valid value


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the client when the service starts, close it when it ends."""
    async with AsyncClient(timeout=5) as client:
        app.state.client = client
        yield


app = FastAPI(title="users", lifespan=lifespan)


def client_of(request: Request) -> AsyncClient:
    """Return the one client."""
    client: AsyncClient = request.app.state.client
    return client


@app.exception_handler(DStashError)
async def tell(request: Request, error: DStashError) -> JSONResponse:
    """Return the error as a response; the status tells a bad request from a temporary error."""
    if isinstance(error, LimitError):
        return JSONResponse({"detail": str(error)}, 422)
    status = 504 if isinstance(error, TimedOut) else 503
    headers = {"Retry-After": "1"} if error.retryable else {}
    return JSONResponse({"detail": str(error)}, status, headers)


@app.put("/users/{name}", status_code=204)
async def put_user(request: Request, name: str, user: dict[str, Any]) -> None:
    """Store a user; on success, a majority of its replicas has stored it."""
    await client_of(request).put(INDEX, name, user)


@app.get("/users/{name}")
async def get_user(request: Request, name: str) -> Any:
    """Return a user."""
    found = await client_of(request).lookup(INDEX, name, _MISSING)
    if found is _MISSING:
        raise HTTPException(404, f"no user {name!r}")
    return found


@app.delete("/users/{name}", status_code=204)
async def delete_user(request: Request, name: str) -> None:
    """Delete a user, if it exists."""
    await client_of(request).delete(INDEX, name)


@app.post("/users/lookup")
async def look_up(request: Request, names: list[str]) -> dict[str, Any]:
    """Return the users that exist."""
    found: dict[Any, Any] = await client_of(request).batch_lookup(INDEX, names)
    return found


@app.get("/healthz")
async def healthz(request: Request) -> dict[str, Any]:
    """Report whether the cluster is reachable."""
    status = await client_of(request).status(timeout=2)
    return {"peers": sum(member["answers"] for member in status["members"])}


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Users, over HTTP.")
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, port=parser.parse_args().port, log_level="warning")


if __name__ == "__main__":
    main()
