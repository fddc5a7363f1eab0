"""What is asked: seeded requests and the times at which they arrive.

No tokenizer here: lengths are in words, and how many tokens they are is what the server's usage says. Only the prompts
over documents are made of tokens, by the tokenizer that they are given.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from labkit.errors import UsageError
from labkit.workloads.arrivals import constant_arrivals_s, poisson_arrivals_s
from labkit.workloads.documents import (
    Document,
    check_pages,
    check_retrieval,
    load_documents,
    pages_with_questions,
    retrieval,
)
from labkit.workloads.files import from_file, to_file
from labkit.workloads.made import chat, interference, shared_prefix
from labkit.workloads.request import Request, Workload

__all__ = [
    "WORKLOADS",
    "Document",
    "Request",
    "Workload",
    "build",
    "chat",
    "check_pages",
    "check_retrieval",
    "constant_arrivals_s",
    "from_file",
    "interference",
    "load_documents",
    "pages_with_questions",
    "poisson_arrivals_s",
    "retrieval",
    "shared_prefix",
    "to_file",
]


def _file(n: int, *, path: str | Path, seed: int = 0, max_tokens: int = 64) -> Workload:
    """`from_file` as the registry calls it. A file's requests are what they are: the seed decides arrival times
    only."""
    workload = from_file(path, n=n, max_tokens=max_tokens)
    return replace(workload, parameters={**workload.parameters, "seed": seed})


WORKLOADS: dict[str, Callable[..., Workload]] = {
    "chat": chat,
    "shared_prefix": shared_prefix,
    "interference": interference,
    "file": _file,
}


def build(name: str, *, n: int, seed: int = 0, **options: Any) -> Workload:
    """The workload called `name` in WORKLOADS (hyphens allowed). UsageError on an unknown name or option or a bad
    value."""
    builder = WORKLOADS.get(name.replace("-", "_"))
    if builder is None:
        raise UsageError(f"there is no workload {name!r}", remedy=f"choose one of {', '.join(WORKLOADS)}")
    _check_options(name, options, inspect.signature(builder))
    return builder(n, seed=seed, **options)


def _check_options(name: str, options: dict[str, Any], signature: inspect.Signature) -> None:
    known = {key: parameter for key, parameter in signature.parameters.items() if key not in ("n", "seed")}
    for option in options:
        if option not in known:
            raise UsageError(f"workload {name!r} has no option {option!r}", remedy=f"choose among {', '.join(known)}")
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise UsageError(f"workload {name!r} needs the option {option!r}", remedy=f"pass {option}=...")
