"""Exercises of lab 05 with options: a batch that never fills, and handlers that hold up a whole replica."""

from labkit.teaching.exercises import ChoiceExercise, Option

BATCH = ChoiceExercise(
    id="05.batch",
    title="the batch that never fills (a broken configuration)",
    prompt="""
A classifier is to compute batches of 32:

    @serve.deployment
    class Classifier:
        @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.05)
        async def classify(self, texts): ...

A hundred clients ask at the same time. The log says that no batch had more than 5 texts. What is true?

- **A** `max_ongoing_requests` is 5 by default: no more than that are inside a replica at a time.
- **B** With `max_ongoing_requests=64` in the decorator of the deployment, batches could fill.
- **C** A longer `batch_wait_timeout_s` would fill them.
- **D** More replicas would fill them.
- **E** With one client at a time no batch ever has more than one text, whatever is set.
- **F** `@serve.batch` needs a GPU.
""",
    starter='causes = None  # letters, such as "BD"',
    answer_name="causes",
    hints=(
        "A batch is made of requests that are in the replica. Who lets them in?",
        "This lab printed the default that matters, and set another value for its own classifier.",
    ),
    options=(
        Option(
            "A",
            "`max_ongoing_requests` is 5 by default: no more than that are inside a replica at a time.",
            True,
            "the door of the replica overlooked",
            "The number in the log is no accident: it is a default of the deployment.",
        ),
        Option(
            "B",
            "With `max_ongoing_requests=64` in the decorator of the deployment, batches could fill.",
            True,
            "the remedy not seen",
            "The remedy is missing. What would let more requests in?",
        ),
        Option(
            "C",
            "A longer `batch_wait_timeout_s` would fill them.",
            False,
            "waiting for those who cannot come",
            "The requests that the batch waits for stand outside. They come in when others have been answered, and"
            " those are waiting in the batch.",
        ),
        Option(
            "D",
            "More replicas would fill them.",
            False,
            "more doors instead of a wider one",
            "Another replica has a batch of its own: the same clients would be spread over more of them.",
        ),
        Option(
            "E",
            "With one client at a time no batch ever has more than one text, whatever is set.",
            True,
            "a batch of one's own requests",
            "Something about a single client is missing: it sends the next text when it has the answer to the last.",
        ),
        Option(
            "F",
            "`@serve.batch` needs a GPU.",
            False,
            "batching taken for a matter of hardware",
            "The measurement above batched on this machine's processor, if no GPU stands in its line.",
        ),
    ),
)

BLOCKING = ChoiceExercise(
    id="05.blocking",
    title="who holds up the others",
    prompt="""
A replica has one event loop. Which of these methods keep **all other** requests of their replica from going on
meanwhile?

- **A** `def` with `time.sleep(1)`
- **B** `async def` with `requests.get(url)`
- **C** `async def` with `await asyncio.sleep(1)`
- **D** `async def` with a loop that computes for a second
- **E** `async def` with `await asyncio.to_thread(requests.get, url)`
- **F** `async def` with `await self.writer.write.remote(text)`
""",
    starter='blockers = None  # letters, such as "BD"',
    answer_name="blockers",
    hints=(
        "In an `async def`, others get their turn at an `await` that has to wait, and nowhere else.",
        "The measurement above has three of the six.",
    ),
    options=(
        Option(
            "A",
            "`def` with `time.sleep(1)`",
            False,
            "plain functions thought to block the loop",
            "Ray Serve runs plain functions in threads. The measurement above shows what they cost.",
        ),
        Option(
            "B",
            "`async def` with `requests.get(url)`",
            True,
            "a blocking library in an async method",
            "A library that knows nothing of event loops is missing: while it waits, nobody else can.",
        ),
        Option(
            "C",
            "`async def` with `await asyncio.sleep(1)`",
            False,
            "every wait taken for blocking",
            "This one gives the loop back for as long as it waits.",
        ),
        Option(
            "D",
            "`async def` with a loop that computes for a second",
            True,
            "only waiting taken for blocking",
            "Computing without an `await` is missing. The loop cannot take the turn from it.",
        ),
        Option(
            "E",
            "`async def` with `await asyncio.to_thread(requests.get, url)`",
            False,
            "a thread taken for the loop",
            "Here the blocking call has a thread of its own, and the loop goes on.",
        ),
        Option(
            "F",
            "`async def` with `await self.writer.write.remote(text)`",
            False,
            "a handle's call taken for blocking",
            "A handle's call is made for this: other requests go on until the answer is there.",
        ),
    ),
)
