"""Coroutines as calls that return when they are done, also inside a notebook's running loop."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import wraps
from threading import Event, Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # slower, and just as exact
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """`function` as a call that returns when its coroutine is done, which runs in a thread with an event loop of its
    own: so it works inside a running loop too. Ctrl-C cancels the coroutine, waits for its clean end, and goes on as
    usual."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        loop = _new_loop()
        task = loop.create_task(function(*args, **kwargs))
        done = Event()
        thread = Thread(target=_drive, args=(loop, task, done), name="labkit-load", daemon=True)
        thread.start()
        try:
            done.wait()  # not join(): Python 3.11 takes a thread whose join was interrupted for a finished one
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the loop may just have closed: then there is nothing to cancel
                loop.call_soon_threadsafe(task.cancel)
            done.wait()
            raise
        finally:
            thread.join()
        return task.result()

    return call


def _drive(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], done: Event) -> None:
    try:
        with contextlib.suppress(BaseException):  # it stays in the task, for the caller
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
        done.set()
