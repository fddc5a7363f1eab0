"""Exercises of lab 05 on a deployment's defects: the route, the request handed over, the await, the script's end."""

from labkit.teaching.exercises import ChoiceExercise, Option

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
