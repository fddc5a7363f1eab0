"""The fraction auditor as a widget: a skin over `fractions.audit`.

    auditor = show_auditor(state)      # `state`: YAML as `labkit fractions` reads it, or what another auditor exported
    auditor.audit, auditor.state       # the audit and the question, in Python

Every change is audited at once. What cannot be audited is told in words, and the last good audit stays.
"""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import yaml

from labkit import display
from labkit.advice import fractions
from labkit.display import LEAVE_ARROWS
from labkit.errors import UsageError
from labkit.models import EMBEDDED
from labkit.models.examples import example_models

WIDE = {"description_width": "initial"}  # otherwise ipywidgets cuts a label after 80 pixels
# key: (label, width in pixels, what the field is for)
GPU_FIELDS = {
    "memory_gib": ("Memory of a GPU (GiB)", 220, "All of it, as nvidia-smi says"),
    "count": ("GPUs", 110, "On one node"),
    "used_gib": ("Used by others (GiB)", 210, "On each GPU, before anything of this starts"),
}
DEPLOYMENT_FIELDS = {
    "name": ("Name", 180, "Of the deployment"),
    "model": ("Model", 240, "An example or embedded model, a folder, a config.json; empty: its weights alone"),
    "weight_gib": ("or weights (GiB)", 200, "Goes before what the model's files say"),
    "num_gpus": ("num_gpus", 140, "What each replica asks of Ray"),
    "engine_share": ("Engine's share", 160, "gpu_memory_utilization; empty: no engine that takes a share"),
    "replicas": ("Replicas", 120, "Empty: 1"),
    "max_model_len": ("Longest request (tokens)", 240, "max_model_len; empty: the model's own limit"),
    "max_num_seqs": ("Requests at a time", 200, "max_num_seqs; empty: not looked at"),
    "other_gib": ("Besides (GiB)", 160, "Context, activations, graphs; empty: an assumption"),
}
TEXT = {"name", "model"}
NEW = {"name": "new", "weight_gib": 1, "num_gpus": 0.1}


class FractionAuditor:
    """The widget and what it holds: `audit`, and `state`, the question as YAML."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        import ipywidgets as widgets
        from ipywidgets.widgets.widget_string import TextStyle

        self.audit = fractions.audit(*fractions.parse(content))
        self._filling = False
        # Shared by all fields: a notebook stores every layout and style that there is.
        self._style = TextStyle(**WIDE)
        self._widths: dict[int, Any] = {}
        self._gpu: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self._entries = widgets.VBox()
        self._gpu_box = widgets.HBox(layout={"flex_flow": "row wrap"})
        self._add = _button("Add a deployment", self._added)
        self._take = _button("Take the numbers that fit", self._taken)
        self._message, self._answer = widgets.HTML(), widgets.HTML()
        self._exported = widgets.Textarea(
            description="As a file",
            tooltip="Copy it, or paste another auditor's text and press Tab",
            continuous_update=False,
            style=WIDE,
            layout={"width": "98%", "height": "160px"},
        )
        self._exported.observe(self._pasted, names="value")
        buttons = widgets.HBox([self._add, self._take])
        keys = widgets.HTML(LEAVE_ARROWS, layout={"height": "0", "margin": "0"})
        shown = [keys, self._gpu_box, self._entries, buttons, self._message, self._answer, self._exported]
        self.box = widgets.VBox(shown, layout={"max_width": "980px"})
        self.box.add_class("labkit-fractions")
        self._fill()
        self._draw()

    @property
    def state(self) -> str:
        """The question as YAML, for the parameter `audit_file`, for `labkit fractions`, for another auditor."""
        return fractions.as_yaml(self.audit.deployments, self.audit.gpus_asked)

    def _fill(self) -> None:
        """Builds the fields anew from the audited question."""
        import ipywidgets as widgets

        content = yaml.safe_load(self.state)
        self._gpu = {key: self._field(key, GPU_FIELDS[key], content["gpu"].get(key)) for key in GPU_FIELDS}
        self._gpu_box.children = tuple(self._gpu.values())
        self._rows = [
            {key: self._field(key, DEPLOYMENT_FIELDS[key], entry.get(key)) for key in DEPLOYMENT_FIELDS}
            for entry in content["deployments"]
        ]
        frame = widgets.Layout(flex_flow="row wrap", border="1px solid #c0c0c0", margin="2px 0", padding="2px")
        boxes = []
        for number, row in enumerate(self._rows):
            remove = _button("Remove", lambda _, n=number: self._removed(n))
            boxes.append(widgets.HBox([*row.values(), remove], layout=frame))
        self._entries.children = tuple(boxes)

    def _field(self, key: str, words: tuple[str, int, str], value: object) -> Any:
        import ipywidgets as widgets

        label, width, help_text = words
        if width not in self._widths:
            self._widths[width] = widgets.Layout(width=f"{width}px")
        options = {
            "value": "" if value is None else str(value),
            "description": label,
            "tooltip": help_text,
            "continuous_update": False,
            "style": self._style,
            "layout": self._widths[width],
        }
        if key == "model":
            known = (*EMBEDDED, *example_models())
            field = widgets.Combobox(options=known, ensure_option=False, **options)
        else:
            field = widgets.Text(**options)
        field.observe(self._changed, names="value")
        return field

    def _content(self) -> dict[str, Any]:
        return {"gpu": _values(self._gpu), "deployments": [_values(row) for row in self._rows]}

    def _changed(self, _: object) -> None:
        self._ask(self._content)

    def _added(self, _: object) -> None:
        def longer() -> dict[str, Any]:
            content = self._content()
            names = {entry.get("name") for entry in content["deployments"]}
            number = next(n for n in range(1, len(names) + 2) if f"new {n}" not in names)
            return {**content, "deployments": [*content["deployments"], {**NEW, "name": f"new {number}"}]}

        self._ask(longer, refill=True)

    def _removed(self, number: int) -> None:
        def shorter() -> dict[str, Any]:
            content = self._content()
            entries = content["deployments"]
            return {**content, "deployments": entries[:number] + entries[number + 1 :]}

        self._ask(shorter, refill=True)

    def _taken(self, _: object) -> None:
        found = self.audit.suggestion
        if found is not None and found.deployments:
            self._ask(lambda: yaml.safe_load(fractions.as_yaml(found.deployments, self.audit.gpus_asked)), refill=True)

    def _pasted(self, change: dict[str, Any]) -> None:
        if not self._filling and change["new"].strip() != self.state.strip():
            self._ask(lambda: _loaded(change["new"]), refill=True)

    def _ask(self, content: Callable[[], Any], *, refill: bool = False) -> None:
        """Audits the new question; what cannot be audited is told, and the last audit stays."""
        if self._filling:
            return
        try:
            self.audit = fractions.audit(*fractions.parse(content()))
        except UsageError as error:
            self._message.value = f"<p role='alert'><b>Not audited:</b> {escape(f'{error.what}; {error.remedy}.')}</p>"
            return
        if refill:
            self._filling = True
            self._fill()
            self._filling = False
        self._draw()

    def _draw(self) -> None:
        self._message.value = ""
        self._answer.value = fractions.as_html(self.audit)
        self._take.disabled = self.audit.suggestion is None or not self.audit.suggestion.deployments
        self._filling = True
        self._exported.value = self.state
        self._filling = False

    def _repr_mimebundle_(self, **options: Any) -> Any:
        # A notebook that is read without a kernel still has the audit.
        found = dict(self.box._repr_mimebundle_(**options))
        found["text/plain"] = "\n".join(fractions.lines(self.audit))
        found["text/html"] = fractions.as_html(self.audit)
        return found


def show_auditor(state: str | Mapping[str, Any]) -> FractionAuditor:
    """Shows the auditor and returns it. `state`: the question, as YAML or as the mapping that `fractions.parse` takes.

    UsageError: a state that cannot be read.
    """
    auditor = FractionAuditor(_loaded(state) if isinstance(state, str) else state)
    display.show(auditor._repr_mimebundle_())
    return auditor


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"this is no YAML: {error}", remedy="paste what an auditor exported") from error


def _values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the fields; an empty one says nothing."""
    filled = {key: field.value.strip() for key, field in fields.items() if field.value.strip()}
    return {key: value if key in TEXT else _number(value) for key, value in filled.items()}


def _number(text: str) -> object:
    """A number as people write it, 1,200 or 0.5; other text stays, and is refused with its field's name."""
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return text
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _button(label: str, clicked: Callable[..., None]) -> Any:
    import ipywidgets as widgets

    button = widgets.Button(description=label, layout={"width": "max-content"})
    button.on_click(clicked)
    return button
