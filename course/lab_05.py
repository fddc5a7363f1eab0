"""Exercises of lab 05: what an application asks for, how long its stages take together, how many replicas.

The defects of a deployment are in `lab_05_defects`, batching and blocking in `lab_05_choices`.
"""

import math
from dataclasses import dataclass

from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, by_id
from labkit.theory.autoscaling import desired_replicas

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


# --- lab 05 defects ---


ROUTE = ChoiceExercise(
    id="05.route",
    title="where the route belongs",
    prompt="""
`@serve.deployment(route_prefix="/help")` ended in a TypeError. Which of these are true of Ray Serve 2.60?

- **A** The route belongs to the application: `serve.run(app, route_prefix="/help")`.
- **B** Only the ingress deployment is reached by that route; the others are called through handles.
- **C** Each deployment of an application has a route of its own.
- **D** Without `route_prefix=` an application cannot be reached over HTTP at all.
- **E** Two applications in one Ray Serve need different routes.
""",
    starter='routes = None  # letters, such as "BD"',
    answer_name="routes",
    hints=(
        "Count: how many HTTP routes had the mended application, and how many deployments?",
        "`inspect.signature(serve.run)` shows what it does if nobody says anything.",
    ),
    options=(
        Option(
            "A",
            "The route belongs to the application: `serve.run(app, route_prefix=...)`.",
            True,
            "the route looked for in the deployment",
            "The place of the route is missing. Which call has an argument of that name?",
        ),
        Option(
            "B",
            "Only the ingress deployment is reached by that route; the others are called through handles.",
            True,
            "HTTP expected between deployments",
            "Something about who can be called from outside is missing: what would a browser reach of the pipeline?",
        ),
        Option(
            "C",
            "Each deployment of an application has a route of its own.",
            False,
            "a route for every deployment",
            "That was so years ago. Deployments inside an application have no address on the network's side.",
        ),
        Option(
            "D",
            "Without `route_prefix=` an application cannot be reached over HTTP at all.",
            False,
            "a default overlooked",
            "The argument has a default, and it is a route. Only `route_prefix=None` takes HTTP away.",
        ),
        Option(
            "E",
            "Two applications in one Ray Serve need different routes.",
            True,
            "two applications under one address",
            "One proxy serves all applications. How would it know which one a request is for?",
        ),
    ),
)

HAND_OVER = ChoiceExercise(
    id="05.hand_over",
    title="what may go to the next deployment",
    prompt="""
`hands_over` passed the request itself, and the client got a 500. Arguments of a handle's call are pickled: the next
deployment is another process, perhaps on another machine. Which of these may be passed?

- **A** `request` itself
- **B** `await request.json()`: a dict
- **C** `request.json()`: without `await`
- **D** `body.text`: a string out of a pydantic model
- **E** the response of another handle's call, `classifier.classify.remote(text)`, without waiting for it
- **F** an open connection to a database
""",
    starter='passable = None  # letters, such as "BD"',
    answer_name="passable",
    hints=(
        "Could it be written to a file, and read by another program that has never seen this process?",
        "One of the options is a promise that Ray itself keeps: it replaces it by its value.",
    ),
    options=(
        Option(
            "A",
            "`request` itself",
            False,
            "a request taken for data",
            "A request holds the server's own objects and the line to the client. The replica's log shows what pickling"
            " makes of it.",
        ),
        Option(
            "B",
            "`await request.json()`: a dict",
            True,
            "plain data refused",
            "A plain container of plain values is missing: it can be written down and read again anywhere.",
        ),
        Option(
            "C",
            "`request.json()`: without `await`",
            False,
            "a coroutine taken for its result",
            "Without waiting, that is a piece of a running program and not yet a body: it cannot leave its process.",
        ),
        Option(
            "D",
            "`body.text`: a string out of a pydantic model",
            True,
            "a text refused",
            "The simplest of all is missing: a text.",
        ),
        Option(
            "E",
            "the response of another handle's call, without waiting for it",
            True,
            "a response that has to be awaited first",
            "Ray Serve's own promise may be passed on: the next deployment gets the value; nobody waits in between.",
        ),
        Option(
            "F",
            "an open connection to a database",
            False,
            "a connection taken for data",
            "A connection belongs to the process that opened it. Each replica opens its own, in `__init__`.",
        ),
    ),
)

AWAIT = ChoiceExercise(
    id="05.await",
    title="the body that is a coroutine",
    prompt="""
`forgets_await` ended in `AttributeError: 'coroutine' object has no attribute 'get'`. The same happens in a plain `def`
that calls `request.json()`. What is true?

- **A** `request.json()` only promises a body: the value comes with `await`.
- **B** `await` stands in an `async def` only: a plain `def` can never read a request's body in this way.
- **C** The client's body was not valid JSON.
- **D** Ray Serve cannot call plain functions.
- **E** Writing `async def` is enough; the `await` is a matter of style.
- **F** With a typed parameter (`query: Query`) FastAPI reads and checks the body before the method is called.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "The type in the message says what `.get` was called on.",
        "The mended application has no `await` for a body anywhere. Who reads it there?",
    ),
    options=(
        Option(
            "A",
            "`request.json()` only promises a body: the value comes with `await`.",
            True,
            "a promise taken for a value",
            "What kind of thing `request.json()` returns is missing: read the message again.",
        ),
        Option(
            "B",
            "`await` stands in an `async def` only: a plain `def` can never read a request's body in this way.",
            True,
            "the plain function overlooked",
            "Something about plain functions is missing: try to write the cure into one.",
        ),
        Option(
            "C",
            "The client's body was not valid JSON.",
            False,
            "the client blamed",
            "Nobody has looked at the body yet when this fails: it happens with every body.",
        ),
        Option(
            "D",
            "Ray Serve cannot call plain functions.",
            False,
            "plain functions thought forbidden",
            "It calls them, in a thread. `Probe.sync` will show it.",
        ),
        Option(
            "E",
            "Writing `async def` is enough; the `await` is a matter of style.",
            False,
            "async without await",
            "Our broken version is an `async def`. It fails all the same.",
        ),
        Option(
            "F",
            "With a typed parameter (`query: Query`) FastAPI reads and checks the body before the method is called.",
            True,
            "the framework's help overlooked",
            "A way without any request object is missing: look at the mended application.",
        ),
    ),
)

SCRIPT = ChoiceExercise(
    id="05.script",
    title="the server that is gone",
    prompt="""
A script ends with `serve.run(build(), route_prefix="/help")` and `print("deployed")`. Run as `python app.py` it prints
the word and returns to the prompt; a second later `curl` is refused. Which of these are true?

- **A** `serve.run` returns as soon as the application is up: it does not wait, unless `blocking=True`.
- **B** The Ray that the script started belongs to it, and ends with it.
- **C** The route is wrong.
- **D** `time.sleep` with a large number at the end is the usual cure.
- **E** `serve.run(..., blocking=True)`, or the command `serve run module:app`, keeps it serving.
- **F** On a cluster that was started before (`ray start --head`), the application would go on without the script.
""",
    starter='reasons = None  # letters, such as "BD"',
    answer_name="reasons",
    hints=(
        "Two things have to stay: the process, and Ray. Who owns which?",
        "`inspect.signature(serve.run)` above shows the default that matters.",
    ),
    options=(
        Option(
            "A",
            "`serve.run` returns as soon as the application is up: it does not wait, unless `blocking=True`.",
            True,
            "serve.run taken for a server's loop",
            "Something about the last call is missing: the word was printed, so the call had returned.",
        ),
        Option(
            "B",
            "The Ray that the script started belongs to it, and ends with it.",
            True,
            "Ray thought to be independent",
            "Whose children are Ray's processes here? Something about their end is missing.",
        ),
        Option(
            "C",
            "The route is wrong.",
            False,
            "a refused connection taken for a wrong path",
            "A wrong path is answered with 404. A refused connection means that nobody listens.",
        ),
        Option(
            "D",
            "`time.sleep` with a large number at the end is the usual cure.",
            False,
            "sleeping instead of serving",
            "That only moves the end, and does not notice when the application fails.",
        ),
        Option(
            "E",
            "`serve.run(..., blocking=True)`, or the command `serve run module:app`, keeps it serving.",
            True,
            "the cure not seen",
            "A cure is missing: the call has an argument for it.",
        ),
        Option(
            "F",
            "On a cluster that was started before, the application would go on without the script.",
            True,
            "script and cluster taken for one",
            "Something about clusters is missing: there the script is a visitor, and what it deployed is theirs.",
        ),
    ),
)


# --- lab 05 status ---


STATUSES = {
    "answered": 200,
    "no key": 401,
    "took too long": 408,
    "body too large": 413,
    "no such field": 422,
    "exception in our code": 500,
    "queue full": 503,
}


def status(ending: str) -> int:
    return {
        "answered": 200,
        "no key": 401,
        "took too long": 408,
        "body too large": 413,
        "no such field": 422,
        "exception in our code": 500,
        "queue full": 503,
    }[ending]


def _but(**wrong: int) -> dict[str, int]:
    return {**STATUSES, **{name.replace("_", " "): code for name, code in wrong.items()}}


STATUS = FunctionExercise(
    id="05.status",
    title="the status that a client gets (instead of 200 for everything)",
    prompt="""
A client, a load balancer and an alarm all decide by the number. Write `status(ending)`: the HTTP status for each way in
which a request to an application on Ray Serve may end: "answered", "no key", "took too long" (`request_timeout_s` of
Ray Serve), "body too large", "no such field" (a pydantic model refuses the body), "exception in our code", "queue full"
(`max_queued_requests`). You have seen all of them in this lab.
""",
    starter="def status(ending): ...  # your code",
    answer_name="status",
    unit="HTTP status",
    solution=status,
    cases=tuple((ending,) for ending in reversed(STATUSES)),
    hints=(
        "Whose turn is it now? Numbers from 400 say: change your request. Numbers from 500 say: it was us.",
        "The cells above printed the status of each. Two of them are Ray Serve's own, for time and for the queue.",
    ),
    misconceptions=(
        Misconception(
            "everything is fine",
            "Whatever happened, the client is told that all is well: no retry, no alarm, and an error where the answer"
            " should be.",
            (lambda _ending: 200,),
        ),
        Misconception(
            "every failure is ours",
            "Every failure is told as one of the server. A client that sent a bad body would send it again and again.",
            (lambda ending: 200 if ending == "answered" else STATUSES["exception in our code"],),
        ),
        Misconception(
            "every failure is the client's",
            "Every failure is told as one of the client. Nobody would look into the server.",
            (lambda ending: 200 if ending == "answered" else 400,),
        ),
        Misconception(
            "a full queue told as an exception",
            "A full queue is no bug: the server is too busy just now and says so, and a balancer sends the request"
            " elsewhere.",
            (
                lambda ending: _but(queue_full=STATUSES["exception in our code"])[ending],
                lambda ending: _but(queue_full=429)[ending],
            ),
        ),
        Misconception(
            "a gateway's status for Ray Serve's own",
            "That is what a gateway in front would say of a slow server. Ray Serve's proxy has another number for it,"
            " printed above.",
            (lambda ending: _but(took_too_long=504)[ending],),
        ),
        Misconception(
            "a body that cannot be used told as one that cannot be read",
            "FastAPI has a number of its own for a body that does not fit the model; the plain one is for a request"
            " that is malformed as HTTP.",
            (lambda ending: _but(no_such_field=400)[ending],),
        ),
    ),
)


# --- lab 05 ---


@dataclass(frozen=True)
class Asked:
    """What a deployment asks for: replicas, and CPUs and GPUs for each of them."""

    name: str
    replicas: int
    cpus: float
    gpus: float


def total_cpus(deployments: list[Asked]) -> float:
    return sum(one.replicas * one.cpus for one in deployments)


def total_gpus(deployments: list[Asked]) -> float:
    return sum(one.replicas * one.gpus for one in deployments)


DESK = [Asked("Desk", 2, 0.1, 0), Asked("Writer", 3, 1, 1), Asked("Classifier", 3, 0.5, 0.25)]
PLAIN = [Asked("Front", 1, 0.1, 0), Asked("Words", 4, 1, 0.5)]

GPUS = FunctionExercise(
    id="05.gpus",
    title="what an application asks for",
    prompt="""
`serve.run` waits until every replica has its place, and asks nobody whether there is one. The example adds up the CPUs.
Fill the blanks for the GPUs, in all.
""",
    starter="""
def total_gpus(deployments):
    return sum(... * one.gpus for one in deployments)
""",
    answer_name="total_gpus",
    unit="GPUs",
    worked=total_cpus,
    solution=total_gpus,
    cases=((DESK,), (PLAIN,), ([Asked("Front", 3, 0.1, 0)],)),
    hints=(
        "What a deployment asks for in `ray_actor_options` is for one of its replicas.",
        "Add up by hand: how many processes would hold a part of a GPU, and which part?",
    ),
    misconceptions=(
        Misconception(
            "the replicas forgotten",
            "This adds up one replica of each deployment. `num_gpus` is what each of its replicas gets.",
            (lambda deployments: sum(one.gpus for one in deployments),),
        ),
        Misconception(
            "replicas counted for GPUs",
            "This counts replicas, whether or not they ask for a GPU.",
            (lambda deployments: sum(one.replicas for one in deployments),),
        ),
        Misconception(
            "the largest taken for the sum",
            "This is the deployment that asks for most. All of them have to be placed at the same time.",
            (
                lambda deployments: max(one.replicas * one.gpus for one in deployments),
                lambda deployments: max(one.gpus for one in deployments),
            ),
        ),
        Misconception(
            "parts rounded up to whole GPUs",
            "A share is counted as a whole GPU. Ray puts several shares on one GPU, as long as they do not exceed it.",
            (lambda deployments: sum(one.replicas * math.ceil(one.gpus) for one in deployments),),
        ),
        Misconception(
            "CPUs for GPUs",
            "These are the CPUs, as in the example.",
            (total_cpus,),
        ),
    ),
)


@dataclass(frozen=True)
class Stage:
    """A stage of a pipeline: how long it takes by itself, and which stages' results it needs before."""

    seconds: float
    needs: tuple[str, ...] = ()


def chain_s(stages: dict[str, Stage]) -> float:
    return sum(one.seconds for one in stages.values())


def parallel_s(stages: dict[str, Stage]) -> float:
    def ends_s(name: str) -> float:
        return stages[name].seconds + max((ends_s(before) for before in stages[name].needs), default=0.0)

    return max(ends_s(name) for name in stages)


def _needs_added_up(stages: dict[str, Stage]) -> float:
    def ends_s(name: str) -> float:
        return stages[name].seconds + sum(ends_s(before) for before in stages[name].needs)

    return max(ends_s(name) for name in stages)


INDEPENDENT = {"intent": Stage(0.05), "reply": Stage(0.8), "summary": Stage(0.7)}
CHAIN = {"words": Stage(0.1), "answer": Stage(0.9, ("words",))}
MIXED = {
    "intent": Stage(0.2),
    "search": Stage(0.3, ("intent",)),
    "history": Stage(0.5, ("intent",)),
    "reply": Stage(0.6, ("search", "history")),
    "log": Stage(0.1),
}

PARALLEL = FunctionExercise(
    id="05.parallel",
    title="how long stages take together",
    prompt="""
The example runs the stages one after the other. Now each begins as soon as it has all that it `needs` (the names of
other stages), and stages that do not wait for each other overlap, each as fast as by itself. Fill the blanks: the
seconds until the last one is done.
""",
    starter="""
def parallel_s(stages):
    def ends_s(name):
        begins_s = max((... for before in stages[name].needs), default=0.0)
        return begins_s + ...

    return max(ends_s(name) for name in stages)
""",
    answer_name="parallel_s",
    unit="s",
    worked=chain_s,
    solution=parallel_s,
    cases=((MIXED,), (INDEPENDENT,), (CHAIN,)),
    hints=(
        "When can a stage begin that needs two others? When the later of them has ended.",
        "When a stage ends is asked in the same way as when the stages before it end: the function calls itself.",
    ),
    misconceptions=(
        Misconception(
            "nothing overlaps",
            "All stages are added up, as in a chain. Those that do not need each other may run at the same time.",
            (chain_s,),
        ),
        Misconception(
            "the needs ignored",
            "This is the longest stage alone. A stage that needs another's result cannot begin with it.",
            (lambda stages: max(one.seconds for one in stages.values()),),
        ),
        Misconception(
            "the needs added up",
            "A stage with two needs waits for both, but these may run side by side: it waits for the later one.",
            (_needs_added_up,),
        ),
        Misconception(
            "the work shared out evenly",
            "The sum is divided by the number of stages. A stage is not split: the longest path sets the time.",
            (lambda stages: chain_s(stages) / len(stages),),
        ),
    ),
)

REPLICAS = FunctionExercise(
    id="05.replicas",
    title="how many replicas a load asks for (from nothing)",
    prompt="""
Ray Serve keeps `target_ongoing` requests under way in each replica. `rate` requests come every second, and each takes
`duration_s` seconds; no queue has built up. Write `desired_replicas`: how many replicas the autoscaler goes for, a
whole number, not below `min_replicas` and not above `max_replicas`. (How many requests are under way on average? That
is Little's law, three letters and one equals sign.)
""",
    starter="""
def desired_replicas(rate, duration_s, target_ongoing, min_replicas, max_replicas): ...  # your code
""",
    answer_name="desired_replicas",
    unit="replicas",
    solution=desired_replicas,
    cases=(
        (40.0, 0.9, 5.0, 1, 20),
        (8.0, 0.7, 2.0, 1, 10),
        (8.0, 0.05, 2.0, 2, 10),
        (100.0, 1.0, 2.0, 1, 9),
        (11.0, 0.4, 2.0, 1, 3),
    ),
    hints=(
        "If eight come every second and each stays for half a second, how many are there at a time?",
        "A part of a replica cannot be started: which way is the number rounded, and what holds it in its limits?",
    ),
    misconceptions=(
        Misconception(
            "volume taken for concurrency",
            "How long a request takes makes no difference here. What is under way depends on it: requests that take"
            " twice as long are twice as many at a time.",
            (lambda rate, _duration_s, target, low, high: min(max(math.ceil(rate / target), low), high),),
        ),
        Misconception(
            "rounded down",
            "With a part of a replica missing, each of the others would have more under way than its target.",
            (
                lambda rate, duration_s, target, low, high: min(max(int(rate * duration_s / target), low), high),
                lambda rate, duration_s, target, low, high: min(max(round(rate * duration_s / target), low), high),
            ),
        ),
        Misconception(
            "the upper limit forgotten",
            "A large load is answered with more replicas than are allowed.",
            (lambda rate, duration_s, target, low, _high: max(math.ceil(rate * duration_s / target), low),),
        ),
        Misconception(
            "the lower limit forgotten",
            "A small load is answered with fewer replicas than are to stay.",
            (lambda rate, duration_s, target, _low, high: min(math.ceil(rate * duration_s / target), high),),
        ),
        Misconception(
            "one replica for each request",
            "Every request under way gets a replica of its own: the target is how many of them share one.",
            (lambda rate, duration_s, _target, low, high: min(max(math.ceil(rate * duration_s), low), high),),
        ),
    ),
)

EXERCISES = by_id([ROUTE, HAND_OVER, AWAIT, GPUS, SCRIPT, PARALLEL, BATCH, BLOCKING, REPLICAS, STATUS])
