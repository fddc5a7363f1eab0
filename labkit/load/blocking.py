"""Blocking calls of coroutines, also from inside a notebook's running event loop."""

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
    except ImportError:  # slower, equally exact
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Wrap `function` as a blocking call that runs its coroutine on a new event loop in another thread.

    Ctrl-C cancels the coroutine, waits for it to end, and is raised again."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        loop = _new_loop()
        task = loop.create_task(function(*args, **kwargs))
        done = Event()
        thread = Thread(target=_drive, args=(loop, task, done), name="labkit-load", daemon=True)
        thread.start()
        try:
            done.wait()  # not join(): Python 3.11 considers a thread finished if its join was interrupted
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the loop may just have closed: nothing to cancel
                loop.call_soon_threadsafe(task.cancel)
            done.wait()
            raise
        finally:
            thread.join()
        return task.result()

    return call


def _drive(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], done: Event) -> None:
    try:
        with contextlib.suppress(BaseException):  # the task keeps it for the caller
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
        done.set()
