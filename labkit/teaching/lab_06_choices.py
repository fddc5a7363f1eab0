"""Two broken configurations of lab 06: room that is no room, and two halves that do not make a whole."""

from labkit.teaching.exercises import ChoiceExercise, Option

PENDING = ChoiceExercise(
    id="06.pending",
    title="room, and yet it waits",
    prompt="""
A node has four GPUs. Four replicas run, each with `num_gpus` 0.6. A new one with `num_gpus` 0.5 does not start, and Ray
Serve says: *Resources required for each replica: GPU 0.5, total resources available: GPU 1.6*. Which are true?

- **A** What is left lies on four GPUs, and none of them has half of itself left.
- **B** Ray could not find the room because the message is late: it starts when the next health check comes.
- **C** With `num_gpus` 0.4 it would start at once.
- **D** Ray will move one of the running replicas to make room.
- **E** Had two of the four asked for 0.4, each could share a GPU with one of 0.6, and two GPUs would be empty.
- **F** The new replica has to wait until all four others are gone.
""",
    starter='statements = None  # letters, such as "BD"',
    answer_name="statements",
    hints=(
        "Write down what is left of each of the four GPUs. Which of these numbers is at least 0.5?",
        "For E: put 0.6, 0.4, 0.6 and 0.4 onto GPUs by best fit, one after the other, and look at what stays empty.",
    ),
    options=(
        Option(
            "A",
            "What is left lies on four GPUs, and none of them has half of itself left.",
            True,
            "the total taken for room",
            "Something about where the room lies is missing. The message adds up what is left; the scheduler does not.",
        ),
        Option(
            "B",
            "Ray could not find the room because the message is late: it starts when the next health check comes.",
            False,
            "waiting taken for lateness",
            "Nothing here is late: the scheduler tries again and again, and the answer stays the same.",
        ),
        Option(
            "C",
            "With num_gpus 0.4 it would start at once.",
            True,
            "the size of the gap not used",
            "Something about the size of the gaps is missing. How much does each GPU have left?",
        ),
        Option(
            "D",
            "Ray will move one of the running replicas to make room.",
            False,
            "a scheduler taken for a mover",
            "A replica that runs stays where it is: moving it would mean ending it and starting it again.",
        ),
        Option(
            "E",
            "Had two of the four asked for 0.4, each could share a GPU with one of 0.6, and two GPUs would be empty.",
            True,
            "the sizes not seen as the cause",
            "A way out is missing: sizes that complement each other leave whole GPUs empty.",
        ),
        Option(
            "F",
            "The new replica has to wait until all four others are gone.",
            False,
            "one free GPU taken for all",
            "Too much: how many of the others have to go before one GPU has enough left?",
        ),
    ),
)

TWO_HALVES = ChoiceExercise(
    id="06.two_halves",
    title="two halves (a broken configuration)",
    prompt="""
Two deployments, each with `ray_actor_options={{"num_gpus": 0.5}}` and in each replica `LLM("Qwen2.5-7B")` with nothing
else set, on one GPU with 80 GiB. Ray places both. One comes up; the other dies when it starts: *Free memory on device
(6.1/80.0 GiB) on startup is less than desired GPU memory utilization (0.92, 73.6 GiB)*. Which are true?

- **A** Ray's 0.5 sets the engine's gpu_memory_utilization, but only for the first replica of a GPU.
- **B** The engine takes its share of the whole GPU, whatever num_gpus says: by default nearly all of it.
- **C** `gpu_memory_utilization=0.48` in both, with `num_gpus` 0.5, would leave both room.
- **D** `num_gpus` 0.92 for both would let both run on this GPU.
- **E** Even with shares that fit, one should start after the other: each looks at what is free just then.
- **F** The second engine should get the share 0.92 of what the first one left.
""",
    starter='statements = None  # letters, such as "BD"',
    answer_name="statements",
    hints=(
        "Two numbers carry nearly the same name, and nobody compares them. Who reads which?",
        "For D: what does Ray's scheduler do with a second replica of that size?",
    ),
    options=(
        Option(
            "A",
            "Ray's 0.5 sets the engine's gpu_memory_utilization, but only for the first replica of a GPU.",
            False,
            "num_gpus taken for the engine's share",
            "Ray passes the number on to nobody. It chooses a GPU and makes it visible, whole.",
        ),
        Option(
            "B",
            "The engine takes its share of the whole GPU, whatever num_gpus says: by default nearly all of it.",
            True,
            "the engine's own share overlooked",
            "Something about the engine is missing: the message names the share that it asked for.",
        ),
        Option(
            "C",
            "gpu_memory_utilization=0.48 in both, with num_gpus 0.5, would leave both room.",
            True,
            "the remedy not seen",
            "A remedy is missing. Which shares add up to less than the whole GPU?",
        ),
        Option(
            "D",
            "num_gpus 0.92 for both would let both run on this GPU.",
            False,
            "an honest promise taken for room",
            "Now the promise is honest, and so the scheduler keeps the second one waiting: the sum is above one.",
        ),
        Option(
            "E",
            "Even with shares that fit, one should start after the other: each looks at what is free just then.",
            True,
            "the start taken for the rest",
            "Something about the start is missing. When does an engine measure what is free, and what does another one"
            " do in that moment?",
        ),
        Option(
            "F",
            "The second engine should get the share 0.92 of what the first one left.",
            False,
            "a share of the rest",
            "The share is one of the GPU's whole memory. What is left of it is far less than that.",
        ),
    ),
)
