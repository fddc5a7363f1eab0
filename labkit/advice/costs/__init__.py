"""What serving costs, and from which volume hosting is cheaper than an API: pure functions over data/prices.

    from labkit.advice import costs
    answer = costs.calculate(costs.settings_from({"requests_per_s": 5, "instance": "g6.xlarge"}))

The command line (`labkit cost`) and the widget (`labkit.advice.costs.form`) are skins over these two calls.
"""

from labkit.advice.costs.calculate import CostResult, calculate, sensitivity
from labkit.advice.costs.prices import (
    cents,
    dated_models,
    figures,
    instances,
    known_models,
    price_of_request,
    show_number,
    show_usd,
)
from labkit.advice.costs.settings import CostSettings, article, default, settings_from
from labkit.advice.costs.throughput import Throughput, article_throughput

__all__ = [
    "CostResult",
    "CostSettings",
    "Throughput",
    "article",
    "article_throughput",
    "calculate",
    "cents",
    "dated_models",
    "default",
    "figures",
    "instances",
    "known_models",
    "price_of_request",
    "sensitivity",
    "settings_from",
    "show_number",
    "show_usd",
]
