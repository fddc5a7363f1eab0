"""An exercise of lab 11 with options: a business case whose saving is not there."""

from labkit.teaching.exercises import ChoiceExercise, Option

BUSINESS_CASE = ChoiceExercise(
    id="11.business_case",
    title="the saving that is not there (a broken business case)",
    prompt="""
A team wants to leave its API. The sheet that everybody likes says:

- traffic: 30M tokens a day in all, in 10 hours of the day, three times the average in the busiest minutes; 9 of 10
  tokens are read, 1 is written
- API: 0.15 and 0.60 dollars for a million read and written; 30M x 0.60 = **18.00 dollars a day**
- own machine: a benchmark with the same mix shows 2,500 tokens a second, read and written; 30M / 2,500 = 12,000 s =
  3.3 hours; 3.3 x 0.80 dollars an hour = **2.67 dollars a day**
- people: "the team does it on the side"

Which of these are faults of the sheet?

- **A** All tokens have the price of written ones.
- **B** The machine is paid for the hours in which it computes, not for those in which it is switched on.
- **C** The throughput counts tokens that are read: it must be divided by ten before it is used for this traffic.
- **D** Whether one machine carries the busiest minutes has not been asked.
- **E** The hours have to be divided by a utilisation of 85 percent, since that is what one aims for.
- **F** Nobody's time is in it.
""",
    starter='faults = None  # letters, such as "BD"',
    answer_name="faults",
    hints=(
        "Do both bills for one day, hour by hour: what is paid at night, and for whom?",
        "A figure that was measured with the traffic's own mix and counted the same way can be used as it is.",
    ),
    options=(
        Option(
            "A",
            "All tokens have the price of written ones.",
            True,
            "one price for all tokens",
            "Something about the API's bill is missing. Which of the two prices do nine of ten tokens have?",
        ),
        Option(
            "B",
            "The machine is paid for the hours in which it computes, not for those in which it is switched on.",
            True,
            "idle hours for nothing",
            "Something about the machine's bill is missing. What does it cost between two requests?",
        ),
        Option(
            "C",
            "The throughput counts tokens that are read: it must be divided by ten before it is used for this traffic.",
            False,
            "the same count converted again",
            "Traffic and benchmark count the same tokens of the same mix: there is nothing to convert.",
        ),
        Option(
            "D",
            "Whether one machine carries the busiest minutes has not been asked.",
            True,
            "the average taken for the peak",
            "Something about time is missing. When do the tokens of a day come?",
        ),
        Option(
            "E",
            "The hours have to be divided by a utilisation of 85 percent, since that is what one aims for.",
            False,
            "a target taken for a fact",
            "How busy the machine is follows from the arrivals and from what it can do. A target changes neither.",
        ),
        Option(
            "F",
            "Nobody's time is in it.",
            True,
            "people for nothing",
            "A cost is missing that no price list has, and for a small service it is the largest one.",
        ),
    ),
)
