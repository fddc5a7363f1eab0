"""What serving costs, and from when on hosting it yourself is cheaper: pure functions over data/prices.

    from labkit import costs
    answer = costs.calculate(costs.settings_from({"requests_per_s": 5, "instance": "g6.xlarge"}))

The command line (`labkit cost`) and the widget (`labkit.widgets.costs`) are skins over these two calls.
"""

from labkit.costs.article import MIXES, Figures, Sum, audit, break_even_millions, figures, usd_per_million
from labkit.costs.break_even import BreakEven, Staircase, break_even, staircase
from labkit.costs.calculate import ApiCost, CostResult, calculate
from labkit.costs.catalogue import ApiPrice, dated_models, instances, known_models, price_of_request
from labkit.costs.money import cents, show_number, show_usd
from labkit.costs.queueing import probability_of_waiting, wait_quantile
from labkit.costs.sensitivity import Swing, sensitivity
from labkit.costs.settings import NUMBERS, CostSettings, article, article_throughput, default, settings_from
from labkit.costs.throughput import Throughput, find, measured

__all__ = [
    "MIXES",
    "NUMBERS",
    "ApiCost",
    "ApiPrice",
    "BreakEven",
    "CostResult",
    "CostSettings",
    "Figures",
    "Staircase",
    "Sum",
    "Swing",
    "Throughput",
    "article",
    "article_throughput",
    "audit",
    "break_even",
    "break_even_millions",
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
    "usd_per_million",
    "wait_quantile",
]
