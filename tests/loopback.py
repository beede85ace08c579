"""Web applications on loopback, for servers of tests."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Loopback:
    """An application on a port of its own, in a thread of its own; stopped and started again."""

    def __init__(self, routes: web.RouteTableDef) -> None:
        self._routes = routes
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """What is given as `--base-url`."""
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Listen; on the same port as before after a stop."""
        self._wait(self._start())

    def stop(self) -> None:
        """Cut every connection and listen no more."""
        self._wait(self._stop())

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.add_routes(self._routes)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        if self._runner is not None:
            for connection in self._runner.server.connections if self._runner.server else ():
                connection.force_close()
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()
            self._runner = None
