"""What serving costs, and from when on hosting it yourself is cheaper: pure functions over data/prices.

    from labkit.advice import costs
    answer = costs.calculate(costs.settings_from({"requests_per_s": 5, "instance": "g6.xlarge"}))

The command line (`labkit cost`) and the widget (`labkit.advice.costs.form`) are skins over these two calls.
"""

from labkit.advice.costs.calculate import ApiCost, CostResult, Swing, calculate, sensitivity
from labkit.advice.costs.machines import BreakEven, Staircase, break_even, staircase
from labkit.advice.costs.prices import (
    ApiPrice,
    Figures,
    cents,
    dated_models,
    figures,
    instances,
    known_models,
    price_of_request,
    show_number,
    show_usd,
)
from labkit.advice.costs.settings import (
    NUMBERS,
    CostSettings,
    Throughput,
    article,
    article_throughput,
    default,
    find,
    measured,
    settings_from,
)
from labkit.theory.queues import probability_of_waiting, wait_quantile

__all__ = [
    "NUMBERS",
    "ApiCost",
    "ApiPrice",
    "BreakEven",
    "CostResult",
    "CostSettings",
    "Figures",
    "Staircase",
    "Swing",
    "Throughput",
    "article",
    "article_throughput",
    "break_even",
    "calculate",
    "cents",
    "dated_models",
    "default",
    "figures",
    "find",
    "instances",
    "known_models",
    "measured",
    "price_of_request",
    "probability_of_waiting",
    "sensitivity",
    "settings_from",
    "show_number",
    "show_usd",
    "staircase",
    "wait_quantile",
]
