"""The fraction auditor as a widget around `fractions.audit`.

auditor = show_auditor(state)      # `state`: YAML as for `labkit fractions`, or exported by another auditor
auditor.audit, auditor.state       # the audit and the question, in Python
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from labkit.advice import fractions
from labkit.advice.form import Form
from labkit.display import LEAVE_ARROWS
from labkit.files import parse_yaml
from labkit.models import EMBEDDED
from labkit.models.examples import example_models

WIDE = {"description_width": "initial"}  # otherwise ipywidgets cuts a label after 80 pixels
# Key: (label, width in pixels, tooltip)
GPU_FIELDS = {
    "memory_gib": ("Memory of a GPU (GiB)", 220, "Total memory as in nvidia-smi; [24, 48] for unequal cards"),
    "count": ("GPUs", 110, "On each node"),
    "nodes": ("Nodes", 110, "Identical nodes; empty: 1"),
    "used_gib": ("Used by others (GiB)", 210, "On each GPU, before these deployments start"),
}
DEPLOYMENT_FIELDS = {
    "name": ("Name", 180, "Of the deployment"),
    "model": ("Model", 240, "An example or embedded model, a folder, a config.json; empty: weights only"),
    "weight_gib": ("or weights (GiB)", 200, "Takes precedence over the model's files"),
    "num_gpus": ("num_gpus", 200, "Of each replica; [0.6, 0.6] for the bundles of a placement group"),
    "tensor_parallel": ("Tensor parallel", 160, "GPUs of an engine; empty: as many as it requests"),
    "engine_share": ("Engine's share", 160, "gpu_memory_utilization; empty: no engine that takes a share"),
    "replicas": ("Replicas", 120, "Empty: 1"),
    "max_model_len": ("Longest request (tokens)", 240, "max_model_len; empty: the model's own limit"),
    "max_num_seqs": ("Concurrent requests", 210, "max_num_seqs; empty: not checked"),
    "other_gib": ("Other (GiB)", 160, "CUDA context, activations, graphs; empty: an assumption"),
}
TEXT = {"name", "model"}
NEW = {"name": "new", "weight_gib": 1, "num_gpus": 0.1}


class FractionAuditor(Form[fractions.Audit]):
    """The widget: `audit`, and `state`, the question as YAML."""

    refused = "Not audited"

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(fractions.audit(*fractions.parse(content)))

    @property
    def audit(self) -> fractions.Audit:
        return self.answer

    @property
    def state(self) -> str:
        return fractions.as_yaml(self.audit.deployments, self.audit.gpus_asked)

    def answer_to(self, text: str) -> fractions.Audit:
        return fractions.audit(*fractions.parse(_loaded(text)))

    def build(self) -> Any:
        import ipywidgets as widgets
        from ipywidgets.widgets.widget_string import TextStyle

        # Shared by all fields: a notebook stores every layout and style.
        self._style = TextStyle(**WIDE)
        widths = {width for _, width, _ in (*GPU_FIELDS.values(), *DEPLOYMENT_FIELDS.values())}
        self._layouts = {width: widgets.Layout(width=f"{width}px") for width in widths}
        self.gpu = {key: self._field(key, *shape) for key, shape in GPU_FIELDS.items()}
        self.rows: list[dict[str, Any]] = []
        self.deployments, self.table = widgets.VBox(), widgets.HTML()
        self.add = _button("Add a deployment", lambda _: self._ask_content(self._with_another))
        self.take = _button("Take the numbers that fit", self._take_suggestion)
        self.exported = widgets.Textarea(
            description="As a file",
            tooltip="Copy it, or paste another auditor's text and press Tab",
            continuous_update=False,
            style=WIDE,
            layout={"width": "98%", "height": "160px"},
        )
        gpu = widgets.HBox(list(self.gpu.values()), layout={"flex_flow": "row wrap"})
        buttons = widgets.HBox([self.add, self.take])
        keys = widgets.HTML(LEAVE_ARROWS, layout={"height": "0", "margin": "0"})
        shown = [keys, gpu, self.deployments, buttons, self.message, self.table, self.exported]
        box = widgets.VBox(shown, layout={"max_width": "980px"})
        box.add_class("labkit-fractions")
        return box

    def fill(self) -> None:
        import ipywidgets as widgets

        content = self._question = yaml.safe_load(self.state)
        several = isinstance(content["gpu"], list)  # unequal nodes are only in the text field
        for key, field in self.gpu.items():
            field.value, field.disabled = "" if several else _shown(content["gpu"].get(key)), several
        self.rows = [
            {key: self._field(key, *shape, entry.get(key)) for key, shape in DEPLOYMENT_FIELDS.items()}
            for entry in content["deployments"]
        ]
        frame = widgets.Layout(flex_flow="row wrap", border="1px solid #c0c0c0", margin="2px 0", padding="2px")
        boxes = []
        for number, row in enumerate(self.rows):
            remove = _button("Remove", lambda _, n=number: self._ask_content(lambda: self._without(n)))
            boxes.append(widgets.HBox([*row.values(), remove], layout=frame))
        self.deployments.children = tuple(boxes)

    def draw(self) -> None:
        self.table.value = self.html()
        self.take.disabled = self.audit.suggestion is None or not self.audit.suggestion.deployments

    def plain(self) -> str:
        return "\n".join(fractions.lines(self.audit))

    def html(self) -> str:
        return fractions.as_html(self.audit)

    def _field(self, key: str, label: str, width: int, tip: str, value: object = None) -> Any:
        import ipywidgets as widgets

        options = {
            "value": _shown(value),
            "description": label,
            "tooltip": tip,
            "continuous_update": False,
            "style": self._style,
            "layout": self._layouts[width],
        }
        if key == "model":
            field = widgets.Combobox(options=(*EMBEDDED, *example_models()), ensure_option=False, **options)
        else:
            field = widgets.Text(**options)
        field.observe(lambda _: self._ask_content(self._content, fill=False), names="value")
        return field

    def _ask_content(self, content: Callable[[], dict[str, Any]], *, fill: bool = True) -> None:
        self.ask(lambda: fractions.audit(*fractions.parse(content())), fill=fill)

    def _content(self) -> dict[str, Any]:
        """Return the question from the fields, with the keys that have no field."""
        gpu, entries = self._question["gpu"], self._question["deployments"]
        rows = [_filled(entry, row) for entry, row in zip(entries, self.rows, strict=True)]
        return {**self._question, "gpu": gpu if isinstance(gpu, list) else _filled(gpu, self.gpu), "deployments": rows}

    def _with_another(self) -> dict[str, Any]:
        content = self._content()
        names = {entry.get("name") for entry in content["deployments"]}
        number = next(n for n in range(1, len(names) + 2) if f"new {n}" not in names)
        return {**content, "deployments": [*content["deployments"], {**NEW, "name": f"new {number}"}]}

    def _without(self, number: int) -> dict[str, Any]:
        content = self._content()
        del content["deployments"][number]
        return content

    def _take_suggestion(self, _: object) -> None:
        suggestion = self.audit.suggestion
        if suggestion is not None and suggestion.deployments:
            self.exported.value = fractions.as_yaml(suggestion.deployments, self.audit.gpus_asked)


def show_auditor(state: str | Mapping[str, Any]) -> FractionAuditor:
    """Show the auditor and return it. `state`: the question as YAML, or as a mapping for `fractions.parse`.

    UsageError: a state that cannot be read.
    """
    return FractionAuditor(_loaded(state) if isinstance(state, str) else state).show()


def _loaded(text: str) -> Any:
    return parse_yaml(text, dict[str, Any], where="the text", remedy="paste the export of an auditor")


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _filled(entry: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry with the values of the fields that are not empty."""
    values = {key: field.value.strip() for key, field in fields.items() if field.value.strip()}
    kept = {key: value for key, value in entry.items() if key not in fields}
    return kept | {key: value if key in TEXT else _number(value) for key, value in values.items()}


def _number(text: str) -> object:
    """Read a number such as 1,200 or 0.5, or a list of numbers; return other text as it is, to be refused later."""
    try:
        if text.startswith("["):
            return json.loads(text)
        number = float(text.replace(",", ""))
    except ValueError:
        return text
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _button(label: str, clicked: Callable[..., None]) -> Any:
    import ipywidgets as widgets

    button = widgets.Button(description=label, layout={"width": "max-content"})
    button.on_click(clicked)
    return button
