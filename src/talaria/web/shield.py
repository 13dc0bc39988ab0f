"""What stands in front of every answer: a limit to what is read, and the headers that a browser is held to."""

from fastapi import HTTPException
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from talaria.model.document import SIZE_LIMIT_BYTES

#: Of the body of a request, where nothing else is said.
BODY_LIMIT_BYTES = 64 * 1024

#: Where more is taken: ten thousand numbers of jobs, and a rulebook.
LONGER_BODIES = {
    **{f"/api/v1/jobs/{act}": 256 * 1024 for act in ("retry", "hold", "release", "cancel", "restart")},
    "/api/v1/rulebook": SIZE_LIMIT_BYTES,
}

#: On every answer; an answer's own `Cache-Control` stands.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Shield:
    """The outermost layer of the site."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its body counted, and its answer back, with our headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left = most = LONGER_BODIES.get(scope["path"], BODY_LIMIT_BYTES)

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"the body is longer than {most} bytes; send less")
            return message

        async def covered(message: Message) -> None:
            if message["type"] == "http.response.start":
                cover(MutableHeaders(scope=message))
            await send(message)

        await self._app(scope, counted, covered)


def cover(headers: MutableHeaders) -> None:
    """Add what is missing of our headers."""
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
