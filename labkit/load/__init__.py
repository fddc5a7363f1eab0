"""An asyncio load client for OpenAI completions and chat: closed and open loops, the same for every server."""

from labkit.load.address import Api
from labkit.load.client import run, run_blocking
from labkit.load.results import LoadResult, Outcome, RequestRecord

__all__ = ["Api", "LoadResult", "Outcome", "RequestRecord", "run", "run_blocking"]
