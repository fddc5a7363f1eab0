"""Exercise of lab 05: the status that a client gets, for each way in which its request may end."""

from labkit.teaching.exercises import FunctionExercise, Misconception

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
