"""What serving costs, and the volume above which hosting is cheaper than an API: pure functions over data/prices.

    from labkit.advice import costs
    answer = costs.calculate(costs.settings_from({"requests_per_s": 5, "instance": "p5.48xlarge"}))

The command line (`labkit cost`) and the widget (`labkit.advice.costs.form`) wrap these two calls.
"""

from labkit.advice.costs.calculate import calculate
from labkit.advice.costs.prices import instances, known_models, price_of_request, show_usd
from labkit.advice.costs.settings import CostSettings, default, keys, settings_from
from labkit.advice.costs.throughput import Throughput

__all__ = [
    "CostSettings",
    "Throughput",
    "calculate",
    "default",
    "instances",
    "keys",
    "known_models",
    "price_of_request",
    "settings_from",
    "show_usd",
]
