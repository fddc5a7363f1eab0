"""Exercises of lab 08 with options: a runbook that loses requests, what splits traffic, a configuration that moved."""

from labkit.teaching.exercises import ChoiceExercise, Option

RUNBOOK = ChoiceExercise(
    id="08.runbook",
    title="the runbook that loses requests (a broken procedure)",
    prompt="""
A colleague's runbook for a new version, under load; clients ask `/predictions/nap`, without a version:

    1. POST   /models?url=nap-2.0.mar&initial_workers=1&synchronous=false
    2. wait until GET /ping says Healthy
    3. PUT    /models/nap/2.0/set-default
    4. DELETE /models/nap/1.0

Which of these are true?

- **A** After step 2 nobody knows yet whether 2.0 can load at all.
- **B** Step 3 may send everybody to a version that has no worker ready.
- **C** Step 4 would be refused, because 1.0 is the version that was registered first.
- **D** Step 4 takes away what 1.0 still has in its queue and in its worker.
- **E** Between 3 and 4: wait until 1.0 has had nothing pending for longer than a batch takes.
- **F** Between 3 and 4: wait until the clients have heard of the new version and changed their URL.
""",
    starter='faults = None  # letters, such as "BD"',
    answer_name="faults",
    hints=(
        "What does each call wait for, and what does /ping look at?",
        "The switch in this lab lost nothing. Compare it with this one, line by line.",
    ),
    options=(
        Option(
            "A",
            "After step 2 nobody knows yet whether 2.0 can load at all.",
            True,
            "the frontend's health taken for the model's",
            "Something about step 2 is missing: whose health does it tell?",
        ),
        Option(
            "B",
            "Step 3 may send everybody to a version that has no worker ready.",
            True,
            "asked for taken for there",
            "Something about step 3 is missing: the first call returned at once, and loading takes seconds.",
        ),
        Option(
            "C",
            "Step 4 would be refused, because 1.0 is the version that was registered first.",
            False,
            "the first one taken for the default for ever",
            "What is refused is to take away the default version while there are others, and that is another one now.",
        ),
        Option(
            "D",
            "Step 4 takes away what 1.0 still has in its queue and in its worker.",
            True,
            "a DELETE thought to wait",
            "Something about step 4 is missing: it waits for nobody.",
        ),
        Option(
            "E",
            "Between 3 and 4: wait until 1.0 has had nothing pending for longer than a batch takes.",
            True,
            "the drain not seen",
            "A step is missing between the last two: requests came for the old version until a moment ago.",
        ),
        Option(
            "F",
            "Between 3 and 4: wait until the clients have changed their URL.",
            False,
            "clients thought to choose the default",
            "These clients name no version: they follow the default without hearing of it.",
        ),
    ),
)

AB = ChoiceExercise(
    id="08.ab",
    title="who splits the traffic",
    prompt="""
2.0 is the default version of `nap`, and 3.0 is registered beside it. A tenth of the users are to get 3.0. Which of
these do it?

- **A** Nothing more has to be done: TorchServe splits among the registered versions.
- **B** A proxy in front sends a tenth of the requests to `/predictions/nap/3.0`, and the rest to `/predictions/nap`.
- **C** `PUT /models/nap/3.0/set-default` with a weight.
- **D** The client hashes the user's name, and asks `/predictions/nap/3.0` where it falls into the lowest tenth.
- **E** Nine workers for 2.0 and one for 3.0.
- **F** Change the default version to and fro: one minute of ten it is 3.0.
""",
    starter='ways = None  # letters, such as "BD"',
    answer_name="ways",
    hints=(
        "Which version answers a request that names none? The lab counted.",
        "It should be the same tenth of the users for as long as the test lasts.",
    ),
    options=(
        Option(
            "A",
            "TorchServe splits among the registered versions.",
            False,
            "versions side by side taken for a split",
            "The lab counted who answers requests that name no version: it was one of the two, every time.",
        ),
        Option(
            "B",
            "A proxy in front sends a tenth of the requests to `/predictions/nap/3.0`.",
            True,
            "the proxy forgotten",
            "A place that sees all requests before TorchServe does is missing.",
        ),
        Option(
            "C",
            "`PUT /models/nap/3.0/set-default` with a weight.",
            False,
            "a default taken for a weight",
            "That call knows no weight: there is one default version, and it gets all of them.",
        ),
        Option(
            "D",
            "The client hashes the user's name, and asks for 3.0 by a tenth of the hashes.",
            True,
            "the client forgotten",
            "Whoever writes the URL can choose the version, and can choose it by user.",
        ),
        Option(
            "E",
            "Nine workers for 2.0 and one for 3.0.",
            False,
            "workers taken for weights",
            "Workers decide how fast a version answers what it gets. What it gets is decided by the URL.",
        ),
        Option(
            "F",
            "Change the default version to and fro.",
            False,
            "a split in time taken for one of users",
            "Then everybody gets 3.0 now and then, and what differs between the minutes is measured along with it.",
        ),
    ),
)

MOVE = ChoiceExercise(
    id="08.move",
    title="the configuration that moved (a broken move)",
    prompt="""
A team has moved from TorchServe to vLLM. Before: `batchSize: 16`, `maxBatchDelay: 50`, `responseTimeout: 120`,
`minWorkers: 2`, the handler's chat template, clients at `/predictions/chat` with `{{"prompt": ...}}`. Now:

    vllm serve MODEL --max-num-seqs 16 --port 8000

with the clients at `/v1/completions`, their bodies unchanged but for `"model"`. Answers have become strange, and
anybody can ask. Which of these are true?

- **A** The model sees the bare prompt now: the chat template is applied by `/v1/chat/completions` only.
- **B** `maxBatchDelay` is missing: without it vLLM cannot batch.
- **C** Nobody asks for a key any more: `--api-key`, or VLLM_API_KEY, has to be set.
- **D** `--max-num-seqs 16` makes every request wait for the longest one of its batch, as `batchSize: 16` did.
- **E** A limit on how long a request may take has to move into the client or into a proxy.
- **F** Two workers become two servers behind a balancer, each with a copy of the model.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "Go through the old settings one by one: who does its work now? Some work is not there any more.",
        "The comparison in this lab sent one prompt to two routes, and showed the first token that differed.",
    ),
    options=(
        Option(
            "A",
            "The chat template is applied by `/v1/chat/completions` only.",
            True,
            "the template lost on the way",
            "The strange answers have a cause: the model was trained on a form that somebody has to write.",
        ),
        Option(
            "B",
            "`maxBatchDelay` is missing: without it vLLM cannot batch.",
            False,
            "waiting taken for batching",
            "A new request joins the running batch at its next step: there is nothing to wait for.",
        ),
        Option(
            "C",
            "Nobody asks for a key any more.",
            True,
            "the key left behind",
            "TorchServe asked for a token by itself. Who asks now?",
        ),
        Option(
            "D",
            "`--max-num-seqs 16` makes every request wait for the longest one of its batch.",
            False,
            "continuous batching taken for static",
            "A request leaves when it is done, and its place is given to the next one (lab 01).",
        ),
        Option(
            "E",
            "A limit on how long a request may take has to move into the client or into a proxy.",
            True,
            "the time limit left behind",
            "What ended long requests before was a setting of TorchServe's. Nobody has taken it over.",
        ),
        Option(
            "F",
            "Two workers become two servers behind a balancer.",
            True,
            "workers thought to be an option of the engine",
            "Something about the two workers is missing: they were two processes, with a model each.",
        ),
    ),
)
