"""The exercise of lab 12 with options: a plan that somebody else wrote, to be reviewed."""

from labkit.teaching.exercises import ChoiceExercise, Option

REVIEW = ChoiceExercise(
    id="12.review",
    title="the plan that is to be signed (a broken plan)",
    prompt="""
A colleague's plan, with a promise on the p99 of the first token:

    Traffic: 3,628,800 requests a day, which is 42 a second.
    A replica finishes 6 a second, in a closed loop with 8 clients. So we take 7 replicas.
    An open loop with 40 requests had a p99 of 0.8 s; we promise 1 s.
    If more come than planned, the autoscaler starts replicas; each takes a minute to start.
    Our model of the queue agreed with the server within 3% at half load. We trust it for the peak.
    A million tokens cost the price of an hour over what a full replica writes in an hour.

Which of these are true?

- **A** 42 a second is the day's mean: the peak is above it, and the plan does not say how far.
- **B** Even at the mean the 7 replicas would have no time left at all: the queue would not end.
- **C** A closed loop tells nothing about what a replica can finish.
- **D** The p99 of 40 requests is about the slowest of them: no promise rests on it.
- **E** Thanks to the autoscaler no headroom is needed.
- **F** Agreement at half load says little about the peak: hardly anybody waits at half load.
- **G** A million tokens will cost more than that: the replicas are paid for when they are idle, too.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "Go line by line: which number is a mean, which one is a rate that only a full replica has?",
        "Divide the traffic by what the fleet can finish. What did the model have to get right in this lab, and where?",
    ),
    options=(
        Option(
            "A",
            "42 a second is the day's mean: the peak is above it.",
            True,
            "sized on the mean",
            "Something about the first line is missing: do as many come at night as at noon?",
        ),
        Option(
            "B",
            "Even at the mean the 7 replicas would have no time left at all.",
            True,
            "busy all of the time",
            "Something about the second line is missing: divide the traffic by what they finish together.",
        ),
        Option(
            "C",
            "A closed loop tells nothing about what a replica can finish.",
            False,
            "the closed loop thrown away",
            "It tells exactly that. What it cannot tell is how long anybody waits whose arrival nobody planned.",
        ),
        Option(
            "D",
            "The p99 of 40 requests is about the slowest of them.",
            True,
            "a p99 from a handful",
            "Something about the third line is missing: how many of the requests are beyond that p99?",
        ),
        Option(
            "E",
            "Thanks to the autoscaler no headroom is needed.",
            False,
            "autoscaling taken for headroom",
            "What comes until a new replica is ready is carried by those that run, or it waits.",
        ),
        Option(
            "F",
            "Agreement at half load says little about the peak.",
            True,
            "a model trusted where it was not tried",
            "Something about the model is missing: what is hard to predict happens where the queue is.",
        ),
        Option(
            "G",
            "A million tokens will cost more than that.",
            True,
            "priced as if never idle",
            "Something about the last line is missing: in which hours are the replicas full?",
        ),
    ),
)
