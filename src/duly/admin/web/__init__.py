"""The REST service on an App's batch runs, as an ASGI application; needs the extra ``web``."""

from duly.admin.web.service import make_service
from duly.admin.web.tokens import Tokens, read_tokens

__all__ = ["Tokens", "make_service", "read_tokens"]
