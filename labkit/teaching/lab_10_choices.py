"""Two exercises of lab 10 with options: what a reason rests on, and a shared GPU that fails in two ways."""

from labkit.teaching.exercises import ChoiceExercise, Option

WHICH_EVIDENCE = ChoiceExercise(
    id="10.evidence",
    title="what a reason rests on",
    prompt="""
Six reasons for or against a stack, as they are heard in meetings. Which of them can be **measured on your own
machine**, with the means of this course?

- **A** Most companies like ours use this framework.
- **B** For one model, a hop through Ray Serve costs milliseconds a request.
- **C** The project has been archived, and no security patches are coming.
- **D** Our team would find it too complicated.
- **E** In a plain handler, a language model makes fewer tokens a second than in an engine.
- **F** Prompts that begin alike get their first token sooner.
""",
    starter='measurable = None  # letters, such as "BD"',
    answer_name="measurable",
    hints=(
        "Which of them would two people with the same machine have to agree on after one run?",
        "Three kinds are mixed here: what a run shows, what a dated source says, and what somebody thinks.",
    ),
    options=(
        Option(
            "A",
            "Most companies like ours use this framework.",
            False,
            "a crowd taken for evidence",
            "How many use something is a survey at best; your machine cannot tell, and it says nothing of your load.",
        ),
        Option(
            "B",
            "For one model, a hop through Ray Serve costs milliseconds a request.",
            True,
            "an overhead thought unmeasurable",
            "An overhead is left out. The same request with and without the hop, many times: what is the difference?",
        ),
        Option(
            "C",
            "The project has been archived, and no security patches are coming.",
            False,
            "a source taken for a measurement",
            "It is true, and it weighs a lot, but it is read, not measured: it comes with a source and a date.",
        ),
        Option(
            "D",
            "Our team would find it too complicated.",
            False,
            "an opinion taken for a measurement",
            "A judgement on people. It may decide; then it should be called an opinion, so that it can be left out.",
        ),
        Option(
            "E",
            "In a plain handler, a language model makes fewer tokens a second than in an engine.",
            True,
            "throughput taken on trust",
            "A statement on tokens a second is left out. Same model, same workload, two servers.",
        ),
        Option(
            "F",
            "Prompts that begin alike get their first token sooner.",
            True,
            "a mechanism taken on trust",
            "A statement on the first token is left out. A clock and two runs, one with an empty cache, decide it.",
        ),
    ),
)

SHARED_GPU = ChoiceExercise(
    id="10.shared_gpu",
    title="two models on one GPU (a broken configuration)",
    prompt="""
A team wrote this by hand for two chat models that share one GPU in Ray Serve; both entries are alike:

```yaml
engine_kwargs: {{gpu_memory_utilization: 0.92, max_model_len: 8192}}
deployment_config: {{num_replicas: 1, max_ongoing_requests: 5}}
placement_group_config: {{bundles: [{{CPU: 1, GPU: 0.5}}]}}
```

The first model comes up. The second one dies while it starts, **out of memory**. With the first one alone the load
test shows at most five requests under way in the engine, and a long queue before it.

Which of these are true?

- **A** Each engine takes 0.92 of the whole GPU, whatever fraction Ray has counted for it.
- **B** `GPU: 0.5` makes the driver keep half of the memory for each replica.
- **C** `max_ongoing_requests: 5` keeps all further requests out of the engine's batch.
- **D** Without `enable_prefix_caching: true` the engine does not batch.
- **E** 0.45 for each, and starting them one after the other, would bring both up.
- **F** A larger `max_model_len` would shorten the queue.
""",
    starter='true_ones = None  # letters, such as "BD"',
    answer_name="true_ones",
    hints=(
        "Two faults with two causes. Who counts fractions, and who takes memory?",
        "The selector's own configuration for a shared GPU differs from this one in two numbers.",
    ),
    options=(
        Option(
            "A",
            "Each engine takes 0.92 of the whole GPU, whatever fraction Ray has counted for it.",
            True,
            "the engine's share overlooked",
            "What the engine takes at its start is not among your causes. Whose share is `gpu_memory_utilization`?",
        ),
        Option(
            "B",
            "GPU: 0.5 makes the driver keep half of the memory for each replica.",
            False,
            "a scheduler's number taken for a wall",
            "The fraction is a number in Ray's books: it decides where a replica is placed. Nobody watches its memory.",
        ),
        Option(
            "C",
            "max_ongoing_requests: 5 keeps all further requests out of the engine's batch.",
            True,
            "the gate before the engine overlooked",
            "What lets requests through to the engine is not among your causes. Where does the number five stand?",
        ),
        Option(
            "D",
            "Without enable_prefix_caching: true the engine does not batch.",
            False,
            "a cache taken for batching",
            "Batching needs no switch. The prefix cache is on by default, and is about computing less, not together.",
        ),
        Option(
            "E",
            "0.45 for each, and starting them one after the other, would bring both up.",
            True,
            "the remedy not seen",
            "A remedy is missing. What would both engines' shares have to add up to?",
        ),
        Option(
            "F",
            "A larger max_model_len would shorten the queue.",
            False,
            "length taken for room",
            "It is the longest request that is allowed. It makes no place for more of them; if anything, for fewer.",
        ),
    ),
)
