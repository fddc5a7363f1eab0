"""Exercises of lab 09 with options: a comparison that is none, and what a table lets one say."""

from labkit.teaching.exercises import ChoiceExercise, Option

FAIR = ChoiceExercise(
    id="09.fair",
    title="a comparison that is none (a broken benchmark)",
    prompt="""
A colleague compares vLLM with TorchServe on one machine. The report says: "TorchServe: batchSize 1, float32. Monday, 16
clients, 200 prompts from `chat.jsonl`, measured by our Python script, the first request included. vLLM: bfloat16,
Tuesday, the same 16 clients and the same 200 prompts, after a run with the same file to warm it up, measured by `vllm
bench serve`. Both in a closed loop, answers of exactly 64 tokens." Which of these make the comparison worth less?

- **A** Two clients: what differs may be the way in which they count and wait.
- **B** The same prompts for both.
- **C** TorchServe's batch size: 16 clients queue for one place.
- **D** vLLM's prefix cache had seen every prompt before.
- **E** Two number types: half of the bytes to be read for every token.
- **F** Answers of the same length for both.
- **G** Monday and Tuesday: whatever else the machine did is in the difference.
""",
    starter='faults = None  # letters, such as "BD"',
    answer_name="faults",
    hints=(
        "Go through everything that the two servers do not have in common.",
        "Two of the options are what makes a comparison fair.",
    ),
    options=(
        Option(
            "A",
            "Two clients.",
            True,
            "any client taken for every client",
            "Something about how it was measured is missing: what is a token to each, and when does its clock start?",
        ),
        Option(
            "B",
            "The same prompts for both.",
            False,
            "different prompts thought to be fairer",
            "With others their lengths would be in the difference. Sharing them is right, unless a cache knows them.",
        ),
        Option(
            "C",
            "TorchServe's batch size.",
            True,
            "a configuration taken for a server",
            "Something about a setting is missing: it is the default of one server, and decides more than its name.",
        ),
        Option(
            "D",
            "vLLM's prefix cache had seen every prompt before.",
            True,
            "a warm cache taken for a warm-up",
            "Something about the warm-up is missing: what did it leave behind (lab 03)?",
        ),
        Option(
            "E",
            "Two number types.",
            True,
            "the number type not seen",
            "Something about the weights is missing: are they the same, to the last bit?",
        ),
        Option(
            "F",
            "Answers of the same length for both.",
            False,
            "free lengths thought to be fairer",
            "Left free, a server that breaks off early would look faster. A fixed length is right.",
        ),
        Option(
            "G",
            "Monday and Tuesday.",
            True,
            "the day taken for nothing",
            "Something about when it was measured is missing: this lab goes round by round, in a shuffled order.",
        ),
    ),
)

SAY = ChoiceExercise(
    id="09.say",
    title="what may be said",
    prompt="""
You have measured the four servers of this lab on a machine without a GPU, with a small model and short answers, and
write to your team. Which of these sentences do the numbers carry?

- **A** On this machine, with this load, vLLM wrote more tokens a second than our handler on TorchServe, by a factor in
  this interval.
- **B** On a GPU with an 8B model the factor will be the same.
- **C** Where the interval of Ray Serve over vLLM holds 1, Ray Serve costs nothing.
- **D** Where it holds 1, these rounds cannot tell the two apart, and the interval's ends say what may still be so.
- **E** The p99 of our thirty requests is the promise to make to users.
- **F** The order of two servers at one rate may turn at another: the rate belongs into the sentence.
- **G** The cheapest price of a million tokens is what we shall pay.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "Which of them would still be true if someone measured again tomorrow, on the same machine?",
        "A sentence that names its conditions is a finding; without them it is a hope.",
    ),
    options=(
        Option(
            "A",
            "On this machine, with this load, by a factor in this interval.",
            True,
            "nothing may be said at all",
            "A measurement with its conditions and its interval is missing: that much you do know.",
        ),
        Option(
            "B",
            "On a GPU with an 8B model the factor will be the same.",
            False,
            "a factor taken along to other machines",
            "What limits a token changes with model and machine, and with it what a server can gain.",
        ),
        Option(
            "C",
            "Where the interval holds 1, Ray Serve costs nothing.",
            False,
            "not told apart taken for equal",
            "Too few rounds cannot show a cost, but that does not make it nothing.",
        ),
        Option(
            "D",
            "Where it holds 1, these rounds cannot tell the two apart.",
            True,
            "an interval that says nothing",
            "What an interval around 1 does say is missing: its ends are the largest differences that fit.",
        ),
        Option(
            "E",
            "The p99 of our thirty requests is the promise to make.",
            False,
            "the slowest of a few taken for a p99",
            "With so few requests this is the slowest one that happened to be there.",
        ),
        Option(
            "F",
            "The rate belongs into the sentence.",
            True,
            "one rate taken for all",
            "A server that waits to fill a batch and one that does not change places as the load grows.",
        ),
        Option(
            "G",
            "The cheapest price of a million tokens is what we shall pay.",
            False,
            "a full machine taken for granted",
            "That price is for a machine that is never idle. Yours will be, at night.",
        ),
    ),
)
