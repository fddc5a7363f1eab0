"""Asks: an asyncio client for OpenAI completions and chat, closed and open loop, for all servers alike."""

from labkit.load.blocking import run_blocking
from labkit.load.results import LoadResult, Outcome, RequestRecord
from labkit.load.runner import Progress, run
from labkit.load.wire import Api

__all__ = ["Api", "LoadResult", "Outcome", "Progress", "RequestRecord", "run", "run_blocking"]
