"""Exercises of lab 02 with options: what "maximum concurrency" means, how preemption shows, a start that fails."""

from labkit.teaching.exercises import ChoiceExercise, Option

MAX_CONCURRENCY = ChoiceExercise(
    id="02.max_concurrency",
    title="Maximum concurrency for 2,048 tokens per request: 22.75x",
    prompt="""
An engine says this when it starts, with `--max-num-seqs 64`. Which of these follow? (Asked in public as vLLM #8031.)

A: if every request were 2,048 tokens long, 22 would fit at once and the 23rd would have to wait or be preempted.
B: the engine never runs more than 22 requests at once.
C: 60 requests of 300 tokens each can run at once.
D: the engine is 22.75 times as fast as with one request.
E: with `--max-model-len 1024` and the same memory the number would be twice as large.
F: memory for 22 requests of 2,048 tokens is set aside, whether they come or not.
""",
    starter="follows = None  # letters, such as \"BD\"",
    answer_name="follows",
    hints=(
        "It is one division: tokens that fit, over the longest request. Which decisions of the engine use it?",
        "A request that is admitted gets blocks for the tokens that it has, not for the ones that it may have.",
    ),
    options=(
        Option("A", "the worst case, all requests of full length", True, "the worst case missed",
               "One option that applies is missing: the number is just this worst case, a division of two figures."),
        Option("B", "a limit", False, "taken for a limit",
               "Nothing in the engine compares with this number. Shorter requests take fewer blocks, and more of them"
               " run, up to max_num_seqs."),
        Option("C", "sixty short ones", True, "short requests missed",
               "One option that applies is missing: add up the tokens of the short requests and compare with the"
               " cache's."),
        Option("D", "a speed", False, "taken for a speed",
               "It is about memory. How fast a batch is depends on how the processor computes it; lab 01 measured it."),
        Option("E", "inverse to the length", True, "the divisor forgotten",
               "One option that applies is missing: the longest request is the divisor."),
        Option("F", "a reservation", False, "taken for a reservation",
               "The cache as a whole is taken when the engine starts, but none of it belongs to a request before the"
               " request comes; that is what paging is for."),
    ),
)  # fmt: skip

PREEMPTION_SIGNS = ChoiceExercise(
    id="02.preemption_signs",
    title="is it preempting?",
    prompt="""
Users of a vLLM 0.32 server see answers that stop for seconds and then go on. You suspect preemption (vLLM #18115).
Which of these would **show** it?

A: a rise of the counter `vllm:num_preemptions_total` at `/metrics`.
B: a warning about a sequence group in the server's log.
C: no such warning in the log, which rules it out.
D: running requests fall while others wait, with KV-cache usage near 100%.
E: answers whose text is cut off, or has a hole.
F: a histogram `vllm:request_num_preemptions` that has requests above zero.
""",
    starter="shows = None  # letters",
    answer_name="shows",
    hints=(
        "Look at what this lab's own run left behind: counter, log, text.",
        "A preempted request is computed again from its beginning, and its tokens stay the same.",
    ),
    options=(
        Option("A", "the counter", True, "the counter missed",
               "One sign is missing: the engine counts each preempted request when it comes back."),
        Option("B", "the old warning", False, "the old warning expected",
               "This text was in earlier versions. Today's source does not contain it, however often it preempts."),
        Option("C", "silence as proof", False, "silence taken for proof",
               "The log of this lab's run was silent, and requests were preempted all the same."),
        Option("D", "the queue with a full cache", True, "the queue missed",
               "One sign is missing: what else makes running requests fewer while others wait and no block is free?"),
        Option("E", "damaged text", False, "damage expected",
               "Preemption costs time, not text: the request goes on where it stopped, after its tokens are computed"
               " anew."),
        Option("F", "the histogram of requests", True, "the histogram missed",
               "One sign is missing: finished requests are also counted by how often they were preempted."),
    ),
)  # fmt: skip

BROKEN_START = ChoiceExercise(
    id="02.broken_start",
    title="this configuration is broken: why, and what helps?",
    prompt="""
A user's log (public, vLLM #10517; a version of 2024, which says the same in other words): Llama-3.1-8B in 16 bits on a
GPU with 23.58 GiB, gpu_memory_utilization 0.90, blocks of 16 tokens, 131,072 bytes of KV cache a token.

    Loading model weights took 14.9888 GB
    total_gpu_memory=23.58GiB  peak_torch_memory=17.98GiB  kv_cache_size=2.89GiB
    # GPU blocks: 1478
    The model's max seq len (29000) is larger than the maximum number of tokens that can be stored in KV cache (23648).

Which of these, **alone**, let it start?

A: `--max-model-len 23000`
B: `--max-num-seqs 1`, so that only one request is there at a time
C: `--gpu-memory-utilization 0.95`
D: a KV cache in 8 bits, `--kv-cache-dtype fp8`, if the GPU can
E: `--block-size 32`, so that there are half as many blocks to manage
F: `--enable-prefix-caching`
""",
    starter="starts = None  # letters",
    answer_name="starts",
    hints=(
        "The check at start-up compares two figures: bytes for one request of full length, and bytes of the cache.",
        "0.05 of 23.58 GiB is how many tokens, at 131,072 bytes each? And how many are missing?",
        "Other requests play no part in that check.",
    ),
    options=(
        Option("A", "a shorter maximum", True, "a shorter maximum missed",
               "One remedy is missing: compare the maximum length with what the cache holds."),
        Option("B", "one request at a time", False, "fewer requests for a shorter one",
               "The check is about a single request of full length. Fewer of them make none of them shorter."),
        Option("C", "a larger share", True, "a larger share missed",
               "One remedy is missing: work out what a twentieth of this GPU holds, in tokens."),
        Option("D", "half the bytes a number", True, "fewer bytes missed",
               "One remedy is missing: what happens to the tokens in a cache when each takes half the bytes?"),
        Option("E", "other blocks", False, "blocks of another size for more memory",
               "Twice as large and half as many: the same bytes. The block's size decides what is wasted, not what"
               " there is."),
        Option("F", "prefix caching", False, "sharing counted at start-up",
               "A prefix can be shared by requests that have it in common; a single long request shares with nobody."),
    ),
)  # fmt: skip
