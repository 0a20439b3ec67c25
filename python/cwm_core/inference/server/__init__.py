"""Serve a model with the OpenAI protocol on ASGI. Requires the extra `serve`; see `docs/guides/serve.md`."""

from .app import ServerLimits, create_app
from .process import listen, make_server, serve

__all__ = ["ServerLimits", "create_app", "listen", "make_server", "serve"]
