"""The article's figures and its own example: labs and tests audit them; the calculator itself does without."""

from datetime import date
from functools import cache

from labkit.advice.costs.prices import Money
from labkit.advice.costs.settings import CostSettings
from labkit.advice.costs.throughput import Throughput
from labkit.files import Frozen, data_path, read_yaml


class Figures(Frozen):
    """The article's figures. Dollars, hours, tokens, shares; `model_gb` are its 8B model's weights in 16 bits."""

    usd_per_hour: Money
    instance: str
    hours: int
    usd_per_day: Money
    tokens_per_hour: int
    gpus: int
    model_gb: float
    api_usd_per_day: Money
    break_even_claude: tuple[int, int]
    break_even_gpt_4o: tuple[int, int]
    break_even_typical: int
    requests_per_s: int
    output_tokens: int
    utilisation: Money
    buffer: Money


@cache
def figures() -> Figures:
    """The article's figures."""
    return read_yaml(data_path("prices/article.yaml"), Figures)


def throughput() -> Throughput:
    """The article's figure for a p4d, tokens of both kinds."""
    article = figures()
    label = f"the article's figure ({article.tokens_per_hour:,} tokens an hour on {article.gpus} A100), not measured"
    rate = article.tokens_per_hour / 3600
    return Throughput(tokens_per_s=rate, counts="total", gpus=article.gpus, gpu="A100", label=label)


def question() -> CostSettings:
    """The article's own example: a p4d at its price and its throughput, all tokens of one mix, nothing added."""
    article = figures()
    return CostSettings(
        tokens_per_day=article.break_even_claude[0],
        input_tokens=1,
        output_tokens=1,
        instance=article.instance,
        usd_per_hour=float(article.usd_per_hour),
        throughput=throughput(),
        model_gb=0.0,
        api=("article/claude-3.5-sonnet", "article/gpt-4o", "article/gpt-4o-mini"),
        prices_on=date.today(),
    )
