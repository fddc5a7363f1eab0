"""Exercises of lab 07 by choice: a batch that fails as a whole, a slow service, padding, and what an archive is."""

from labkit.teaching.exercises import ChoiceExercise, Option

MISMATCH = ChoiceExercise(
    id="07.mismatch",
    title="this configuration is broken: find out why",
    prompt="""
A handler has served for months, one request at a time. Its `handle` ends with `return [json.dumps(answer)]`. To gain
throughput its owners set `batchSize: 8`. All tests pass (one request after the other), and the night is quiet. At nine
in the morning almost every client gets a 503. Which of these are true?

- **A** TorchServe hands `handle` all the rows that it has gathered, and wants as many answers.
- **B** The tests passed because a lone request is a batch of one: the lists had the same length by chance.
- **C** The queue was full: a larger `job_queue_size` helps.
- **D** A client whose request stood first got its answer; only the others failed.
- **E** `batchSize` in the configuration changes nothing as long as the handler reads `data[0]`.
- **F** A test has to send several requests at the same time, within the delay.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "What did TorchServe's log say, in the cell above: which two numbers did it compare?",
        "When do requests share a batch? Not at night, and not in the tests.",
    ),
    options=(
        Option(
            "A",
            "TorchServe hands `handle` all the rows that it has gathered, and wants as many answers.",
            True,
            "the contract not seen",
            "Something about the contract between the two is missing: what comes in, and what has to go out?",
        ),
        Option(
            "B",
            "The tests passed because a lone request is a batch of one.",
            True,
            "passing tests taken for a proof",
            "Why did it work for months? Count the rows of a batch when nobody else is there.",
        ),
        Option(
            "C",
            "The queue was full: a larger `job_queue_size` helps.",
            False,
            "every 503 taken for overload",
            "The number is the same as that of a full queue, and so is hardly anything else. The log tells them apart.",
        ),
        Option(
            "D",
            "A client whose request stood first got its answer; only the others failed.",
            False,
            "the first client thought safe",
            "Look at the four answers above once more. TorchServe cannot know whose answer the only one is.",
        ),
        Option(
            "E",
            "`batchSize` in the configuration changes nothing as long as the handler reads `data[0]`.",
            False,
            "the handler thought to decide",
            "The frontend gathers, whatever the handler does with it afterwards.",
        ),
        Option(
            "F",
            "A test has to send several requests at the same time, within the delay.",
            True,
            "the test that is missing",
            "Which test would have found it? It is missing in your answer, as it was in theirs.",
        ),
    ),
)

THREE_USERS = ChoiceExercise(
    id="07.three_users",
    title="this configuration is slow: find out why",
    prompt="""
`batchSize: 32`, `maxBatchDelay: 1000`, one worker. A batch takes 0.2 s, and 0.01 s for each row. There are three users,
each of whom asks again when the answer is there. Every answer takes well over a second, and the processor is idle most
of the time. Which of these help?

- **A** `batchSize: 3`
- **B** `maxBatchDelay: 10`
- **C** `batchSize: 64`
- **D** a second worker
- **E** a faster processor, and nothing else
- **F** `batchSize: 1`
""",
    starter='helps = None  # letters, such as "BD"',
    answer_name="helps",
    hints=(
        "Where does the time go? Put the numbers into your law: what is waited for, and what is computed?",
        "For each option: does a batch still wait for requests that nobody will send?",
    ),
    options=(
        Option(
            "A",
            "`batchSize: 3`",
            True,
            "the size that fits the users",
            "One of the sizes is filled by these users: its batches leave at once, whatever the delay.",
        ),
        Option(
            "B",
            "`maxBatchDelay: 10`",
            True,
            "the delay overlooked",
            "What is waited for can be made short, whatever the size.",
        ),
        Option(
            "C",
            "`batchSize: 64`",
            False,
            "larger taken for faster",
            "A larger batch is even further from being full. The same three wait as long.",
        ),
        Option(
            "D",
            "a second worker",
            False,
            "waiting taken for a lack of workers",
            "Two workers wait for requests that do not come, with fewer in each batch.",
        ),
        Option(
            "E",
            "a faster processor, and nothing else",
            False,
            "waiting taken for computing",
            "The processor is idle: it computes for a small part of each second. A shorter part leaves the rest.",
        ),
        Option(
            "F",
            "`batchSize: 1`",
            True,
            "batches thought to be always faster",
            "Batches of one never wait. Three of them, one after the other, are still far below what is waited now.",
        ),
    ),
)

PADDING = ChoiceExercise(
    id="07.padding",
    title="prompts of different lengths in one batch",
    prompt="""
`left_padded` puts prompts of different lengths into one rectangle. A decoder writes the next token after the last
position of each row. Which of these are true?

- **A** Padding stands on the left so that every row ends with its own last token.
- **B** With padding on the right a short prompt would be continued after padding instead of after its own words.
- **C** The attention mask keeps a row from reading its padding.
- **D** The padding's tokens change the answer of a short prompt even with a mask.
- **E** The padding costs nothing: it is masked.
- **F** A batch goes on until its longest answer is written; the others' places are computed for nobody.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "Draw two rows, of two and of four tokens. Where does the third, the fifth token go?",
        "A mask takes away what is read, not what is computed.",
    ),
    options=(
        Option(
            "A",
            "Padding stands on the left so that every row ends with its own last token.",
            True,
            "the side taken for a matter of taste",
            "The reason for the side is missing: where does the next token go?",
        ),
        Option(
            "B",
            "With padding on the right a short prompt would be continued after padding.",
            True,
            "the right side thought harmless",
            "What is the last position of a short row that is padded on its other side?",
        ),
        Option(
            "C",
            "The attention mask keeps a row from reading its padding.",
            True,
            "the mask overlooked",
            "The second tensor that `left_padded` returns has a purpose.",
        ),
        Option(
            "D",
            "The padding's tokens change the answer of a short prompt even with a mask.",
            False,
            "padding thought to be read",
            "What is masked has no weight in attention, and positions count from the first real token. (Last digits may"
            " differ, since sums are taken in another order.)",
        ),
        Option(
            "E",
            "The padding costs nothing: it is masked.",
            False,
            "masked taken for not computed",
            "The rectangle goes through the model as a whole. The mask only takes away what is read from it.",
        ),
        Option(
            "F",
            "A batch goes on until its longest answer is written.",
            True,
            "a static batch taken for a continuous one",
            "What happens to a row that is done while another one is not? Lab 01 had a picture of it.",
        ),
    ),
)

ARCHIVE = ChoiceExercise(
    id="07.archive",
    title="an archive from a stranger",
    prompt="""
A colleague sends `llama.mar` for your TorchServe 0.12. Which of these are true?

- **A** Registering it runs the Python in it, with the server's rights, before any request.
- **B** An archive is data, like weights in safetensors; only its requests can do harm.
- **C** With `allowed_urls` and the model API off, nobody can make the server fetch one over the network.
- **D** The token keeps the code in an archive from reading files.
- **E** What is found in TorchServe from now on will be fixed in a later release.
- **F** It is a zip file: look at its handler before you serve it.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "Which function of yours did a worker call before it was READY?",
        "The card at the top has dates. And ask of each protection: against whom?",
    ),
    options=(
        Option(
            "A",
            "Registering it runs the Python in it, with the server's rights, before any request.",
            True,
            "loading thought harmless",
            "`initialize` runs when a worker starts. With whose rights?",
        ),
        Option(
            "B",
            "An archive is data, like weights in safetensors; only its requests can do harm.",
            False,
            "code taken for data",
            "There is a .py file in it. What does a worker do with it?",
        ),
        Option(
            "C",
            "With `allowed_urls` and the model API off, nobody can make the server fetch one over the network.",
            True,
            "the way in overlooked",
            "One of these closes the door through which CVE-2023-43654 came.",
        ),
        Option(
            "D",
            "The token keeps the code in an archive from reading files.",
            False,
            "a token against code inside",
            "The token is asked of clients. The code is inside already.",
        ),
        Option(
            "E",
            "What is found in TorchServe from now on will be fixed in a later release.",
            False,
            "an archived project thought maintained",
            "Read the dates in the card again.",
        ),
        Option(
            "F",
            "It is a zip file: look at its handler before you serve it.",
            True,
            "the archive not opened",
            "A .mar can be opened by any program that opens zip files. What would you look at?",
        ),
    ),
)
