"""Exercises of lab 09: what a table must obey, tokens worth paying for, goodput and cost.

Those with options are in `lab_09_choices`.
"""

from labkit.teaching.exercises import FunctionExercise, Misconception, by_id
from labkit.teaching.lab_09_choices import FAIR, SAY

Answers = list[tuple[float, float, bool]]


def requests_per_s(clients: int, mean_e2e_s: float) -> float:
    return clients / mean_e2e_s


LITTLE = FunctionExercise(
    id="09.little",
    title="a table that cannot be (from nothing)",
    prompt="""
In a closed loop `clients` clients each have one request under way, all the time: whoever is answered asks again at
once. Of a colleague's table you know the clients and the mean time of an answer, end to end. Write `requests_per_s`:
the throughput that the table must show, if it is right.
""",
    starter="def requests_per_s(clients, mean_e2e_s): ...  # your code",
    answer_name="requests_per_s",
    unit="requests/s",
    solution=requests_per_s,
    cases=((6, 1.5), (1, 0.4), (64, 8.0)),
    hints=(
        "How many requests does one client get answered in a minute?",
        "This is Little's law: what is under way = throughput x time in the system. It knows nothing of the server.",
    ),
    misconceptions=(
        Misconception(
            "one client's throughput taken for all",
            "This is what a single client gets answered. The others ask at the same time.",
            (lambda _clients, mean_e2e_s: 1 / mean_e2e_s,),
        ),
        Misconception(
            "times multiplied",
            "This grows when answers take longer. Clients that wait longer ask less.",
            (lambda clients, mean_e2e_s: clients * mean_e2e_s,),
        ),
        Misconception(
            "seconds a request",
            "This is how much time passes for each request that is answered: the throughput upside down.",
            (lambda clients, mean_e2e_s: mean_e2e_s / clients,),
        ),
        Misconception(
            "the asker left out",
            "There is no need to leave a client out: all of them have a request under way, all the time.",
            (lambda clients, mean_e2e_s: (clients - 1) / mean_e2e_s,),
        ),
    ),
)


def tokens_written(written: list[int], asked: list[int]) -> int:
    return sum(one for one, _wanted in zip(written, asked, strict=True))


def tokens_asked_for(written: list[int], asked: list[int]) -> int:
    return sum(min(one, wanted) for one, wanted in zip(written, asked, strict=True))


USEFUL = FunctionExercise(
    id="09.useful",
    title="tokens that somebody asked for",
    prompt="""
The naive handler writes the same length for everybody. The example counts all that it wrote. A user who wanted four
tokens and got sixteen has four that are of use; one whose answer ended early has those that came. Fill the blank:
the tokens that count when servers are compared.
""",
    starter="""
def tokens_asked_for(written, asked):
    return sum(... for one, wanted in zip(written, asked, strict=True))
""",
    answer_name="tokens_asked_for",
    unit="tokens",
    worked=tokens_written,
    solution=tokens_asked_for,
    cases=(([12, 12, 12], [4, 12, 8]), ([12, 5, 12], [9, 9, 12]), ([3], [12])),
    hints=(
        "Two numbers a request: what came, and what was wanted. When is which of them the right one?",
        "Try it with an answer that is too long, and with one that is too short.",
    ),
    misconceptions=(
        Misconception(
            "all that was written",
            "This counts tokens that nobody asked for. A server would become faster by talking more.",
            (lambda written, _asked: sum(written),),
        ),
        Misconception(
            "all that was asked for",
            "This counts tokens that never came. A server would become faster by breaking off.",
            (lambda _written, asked: sum(asked),),
        ),
        Misconception(
            "only answers of the right length",
            "An answer that is too long still holds what was wanted, and a short one is not nothing.",
            (lambda written, asked: sum(w for w, a in zip(written, asked, strict=True) if w == a),),
        ),
        Misconception(
            "the larger of the two",
            "Of two numbers this takes the one that makes the server look better.",
            (lambda written, asked: sum(max(w, a) for w, a in zip(written, asked, strict=True)),),
        ),
        Misconception(
            "a mean for a sum",
            "This is how much each request got on average. Asked for are the tokens of all of them together.",
            (lambda written, asked: tokens_asked_for(written, asked) / len(asked),),
        ),
    ),
)


def kept(answers: Answers, ttft_slo_s: float) -> float:
    good = sum(first_s - due_s <= ttft_slo_s and ok for due_s, first_s, ok in answers)
    return good / len(answers)


def _kept_of_the_answered(answers: Answers, ttft_slo_s: float) -> float:
    done = [(due_s, first_s) for due_s, first_s, ok in answers if ok]
    return sum(first_s - due_s <= ttft_slo_s for due_s, first_s in done) / len(done)


def _mean_kept(answers: Answers, ttft_slo_s: float) -> float:
    waits = [first_s - due_s for due_s, first_s, ok in answers if ok]
    return float(sum(waits) / len(waits) <= ttft_slo_s)


KEPT = FunctionExercise(
    id="09.kept",
    title="how many users were served in time",
    prompt="""
Each entry of `answers` is (when the request was **due**, when its first token came, whether it ended well). Fill the
blanks: the share of all users who had their first token within `ttft_slo_s` of the moment at which they came.
""",
    starter="""
def kept(answers, ttft_slo_s):
    good = sum(first_s - ... <= ttft_slo_s and ... for due_s, first_s, ok in answers)
    return good / ...
""",
    answer_name="kept",
    unit="",
    solution=kept,
    cases=(
        ([(0.0, 0.4, True), (1.0, 1.9, True), (2.0, 3.2, True), (3.0, 3.1, False)], 1.0),
        ([(0.0, 0.9, True), (0.5, 2.9, True), (1.0, 1.2, True), (1.5, 9.0, False), (2.0, 2.9, True)], 0.9),
    ),
    hints=(
        "A request that failed after a fast first token: was its user served?",
        "Who stands below the line of the fraction: those who were answered, or those who came?",
    ),
    misconceptions=(
        Misconception(
            "failures not counted among the users",
            "Users who got nothing came, too: a server would improve by failing.",
            (_kept_of_the_answered,),
        ),
        Misconception(
            "a fast failure taken for good",
            "An answer that began in time and broke off was no answer to its user.",
            (lambda answers, slo_s: sum(first - due <= slo_s for due, first, _ in answers) / len(answers),),
        ),
        Misconception(
            "the mean held to the objective",
            "This asks whether the average user was served in time. The objective is for each of them.",
            (_mean_kept,),
        ),
        Misconception(
            "every answer in time",
            "This is the share that was answered at all, however late.",
            (lambda answers, _slo_s: sum(ok for _, _, ok in answers) / len(answers),),
        ),
        Misconception(
            "a moment taken for a wait",
            "This compares a time of day with a length of time. A wait has a beginning.",
            (lambda answers, slo_s: sum(first <= slo_s and ok for _, first, ok in answers) / len(answers),),
        ),
        Misconception(
            "a count for a share",
            "This is how many users were served in time. Asked for is their share.",
            (lambda answers, slo_s: kept(answers, slo_s) * len(answers),),
        ),
    ),
)


def usd_per_million(usd_per_hour: float, tokens_per_s: float, busy_share: float) -> float:
    return usd_per_hour / (tokens_per_s * busy_share * 3600) * 1_000_000


COST = FunctionExercise(
    id="09.cost",
    title="what a million tokens cost (from nothing)",
    prompt="""
A machine is paid by the hour, whether it works or not: `usd_per_hour`. While it works it writes `tokens_per_s`; it
works for `busy_share` of the time. Write `usd_per_million`: dollars for a million tokens that were written.
""",
    starter="def usd_per_million(usd_per_hour, tokens_per_s, busy_share): ...  # your code",
    answer_name="usd_per_million",
    unit="dollars",
    solution=usd_per_million,
    cases=((0.1, 50.0, 1.0), (2.0, 1000.0, 0.25), (21.96, 5556.0, 0.0375)),
    hints=(
        "How many tokens are written in an hour that is paid for?",
        "A machine that is idle half of the time: do its tokens become cheaper or dearer?",
    ),
    misconceptions=(
        Misconception(
            "idle hours for nothing",
            "This is the price on a machine that is never idle. Nobody gives back what an idle hour cost.",
            (lambda usd, rate, _busy: usd / (rate * 3600) * 1e6,),
        ),
        Misconception(
            "idleness that makes it cheaper",
            "With this formula tokens become cheaper the less the machine has to do.",
            (lambda usd, rate, busy: usd * busy / (rate * 3600) * 1e6,),
        ),
        Misconception(
            "seconds taken for hours",
            "The price is for an hour, the speed for a second: one of them has to be converted.",
            (lambda usd, rate, busy: usd / (rate * busy) * 1e6,),
        ),
        Misconception(
            "a minute for an hour",
            "An hour has more than sixty seconds.",
            (lambda usd, rate, busy: usd / (rate * busy * 60) * 1e6,),
        ),
        Misconception(
            "one token's price",
            "This is the price of a single token.",
            (lambda usd, rate, busy: usd / (rate * busy * 3600),),
        ),
        Misconception(
            "tokens for a dollar",
            "This is how many million tokens a dollar buys: the fraction is upside down.",
            (lambda usd, rate, busy: rate * busy * 3600 / usd / 1e6,),
        ),
    ),
)

EXERCISES = by_id([FAIR, LITTLE, USEFUL, KEPT, COST, SAY])
