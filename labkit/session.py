"""A lab's session: check the parameters, open the record, and caption every chart with the machine."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from labkit import display
from labkit.errors import require
from labkit.experiments import Interval, Ratio
from labkit.files import runs_path
from labkit.labs import Lab, check_parameters, find_lab
from labkit.machine import Machine, inspect, versions
from labkit.records import Measured, Recorder, ledger_page
from labkit.records.ledger import Row, ledger
from labkit.records.reference import beside_recorded, reference_beside
from labkit.teaching import CheckResult, Prediction, Reveal, listen, predict, reveal
from labkit.vega import captioned

OUT_DIR = "out_dir"
VERDICT_HEADS = ("", "The article says", "Sources say", "Measured here", "Because")
ORANGE = "#D55E00"
Evidence = bool | int | float | str | Ratio | Interval


def start(name: str, parameters: Mapping[str, Any], *, out_dir: str | Path | None = None) -> "LabSession":
    """Begin a lab: check its parameters, open its record and show the machine's line.

    `parameters`: a dict, or the notebook's `globals()`, from which the declared names are taken. `out_dir`: the run's
    folder (default: the parameter of that name; empty: a new folder under runs/notebook). A second start replaces the
    record. UsageError: a missing, unknown or wrong parameter.
    """
    lab = find_lab(name)
    if "__name__" in parameters:  # a notebook's globals, which include much else
        parameters = {name: parameters[name] for name in lab.parameters if name in parameters}
    checked = check_parameters(lab, parameters)
    missing = ", ".join(name for name in lab.parameters if name not in checked and name != OUT_DIR)
    require(not missing, f"{lab.name} was started without {missing}", fix="assign them in the cell tagged parameters")
    chosen = checked.pop(OUT_DIR, "")  # the folder does not change what is measured
    folder = str(chosen if out_dir is None else out_dir)
    session = LabSession(lab, checked, Path(folder).expanduser() if folder else _fresh_folder(), machine=inspect())
    listen(session.judged)
    session.show_machine()
    if os.environ.get("JPY_SESSION_NAME"):  # JupyterLab: is this copy older than the lab?
        from labkit.runs import workspace

        opened = workspace.opened_notebook()
        if opened is not None and (notice := workspace.newer_version(opened)):
            print(notice)
    return session


class LabSession:
    """One lab while it runs. Each addition is saved at once; `finish` completes the record.

    As a context manager it marks the record as failed when the block raises; a batch run always does so.
    """

    predict = staticmethod(predict)

    def __init__(self, lab: Lab, parameters: Mapping[str, Any], out_dir: Path, *, machine: Machine) -> None:
        self.lab, self.parameters, self.out_dir, self.machine = lab, dict(parameters), out_dir, machine
        self.seed = int(parameters.get("seed", 0))
        self.recorder = Recorder(lab.name, out_dir, parameters, machine=machine, versions=versions(), seed=self.seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.recorder.save("failed")

    @property
    def machine_line(self) -> str:
        """Machine, model and engine version in one line: the caption of every chart."""
        return self._line(str(self.parameters.get("model", "")))

    def _line(self, served: str) -> str:
        version = self.recorder.record.versions.get(self.lab.engine, "")
        engine = "" if self.lab.engine in ("none", "all") else f"{self.lab.engine} {version}".strip()
        return " · ".join(part for part in (self.machine.line(), served, engine) if part)

    def show_machine(self) -> None:
        """Show the machine's line and the record's path."""
        path = str(self.recorder.path)
        html = f"<p><b>{escape(self.machine_line)}</b><br>Record: <code>{escape(path)}</code></p>"
        display.show({"text/plain": f"{self.machine_line}\nRecord: {path}", "text/html": html})

    def reveal(
        self,
        prediction: Prediction,
        measured: float | str | Interval | Ratio | Measured,
        low: float | None = None,
        high: float | None = None,
        *,
        article: float | str | None = None,
        model: float | str | None = None,
        modelled: str = "",
        exact: bool = False,
    ) -> Reveal:
        """Show the guess beside the measurement and record both. An Interval, Ratio or Measured has its own bounds.

        `modelled`: the label of the modelled card that the value comes from, or "Computed: " and its source. The value
        is then not called measured. `exact`: only the value itself is a hit, for a choice among few numbers.
        """
        if isinstance(measured, Interval | Ratio | Measured):
            low, high = measured.low, measured.high
            measured = measured.value
        recorded, origin = (None, "") if modelled else self._recorded(prediction.id, measured)
        figures = {"article": article, "model": model, "recorded": recorded, "recorded_from": origin}
        shown = reveal(prediction, measured, low, high, **figures, modelled=modelled, exact=exact)
        self.recorder.prediction(shown.to_dict())
        return shown

    def _recorded(self, prediction_id: str, measured: float | str) -> tuple[float | str | None, str]:
        """Return a recorded run's value for a prediction, with place and date; (None, "") if its parameters differ.

        Identical values are skipped: they are computed or counted, not measured.
        """
        record = self.recorder.record
        reference = reference_beside(record)
        recorded = reference.comparable(record, prediction_id) if reference else None
        if reference is None or recorded is None or recorded["measured"] == measured:
            return None, ""
        return recorded["measured"], reference.place

    def judged(self, result: CheckResult) -> None:
        """Record a judged answer to an exercise of this lab; `check` calls it."""
        if result.answered and result.exercise.startswith(f"{self.lab.number}."):
            self.recorder.exercise(result.exercise, passed=result.passed, misconceptions=result.misconceptions)

    def exact(self, name: str, value: Any, *, on_gpu: bool = True) -> None:
        """Record a value that is identical in every run with the same parameters.

        `on_gpu`: false for a value that varies with free memory or timing on GPUs (a cache's size, a batch's words)."""
        if on_gpu or not self.machine.gpus:
            self.recorder.exact(name, value)

    def says(self, sentence: str, holds: bool) -> None:
        """Record whether a sentence of the lab, or a chart's title, holds in this run; warn if it does not.

        Use it for every direction stated in prose: the course's run fails if one does not hold.
        """
        self.recorder.exact(f"says: {sentence}", bool(holds))
        if not holds:
            self.warn(f"this lab says: {sentence}. This run does not show it.")

    def measure(
        self, name: str, unit: str, values: Sequence[float] | float, interval: Interval | None = None
    ) -> Measured:
        """Record each repeat of a quantity in `unit`; return it with its mean and interval."""
        return self.recorder.measure(name, unit, values, interval)

    def ratio(self, ratio: Ratio, *, tolerance: float) -> Measured:
        """Record a paired ratio. Two runs agree on it if neither is more than (1 + tolerance) times the other."""
        return self.recorder.ratio(ratio, tolerance=tolerance)

    def evidence(self, claim_id: str, value: Evidence | None = None, **more: Evidence | None) -> None:
        """Add evidence on a claim, by the names that the claim's rule needs (see `Recorder.evidence`)."""
        fix = f"this lab tests {', '.join(self.lab.claims) or 'none'} (data/labs.yaml)"
        require(claim_id in self.lab.claims, f"{self.lab.name} does not test claim {claim_id}", fix=fix)
        self.recorder.evidence(claim_id, value, **more)

    def chart(
        self, chart: Any, name: str, *, key: bool = False, caption: str = "", modelled: str = "", served: str = ""
    ) -> None:
        """Show a chart (of `labkit.charts`, Altair or Vega-Lite 5) and record it under `name`, data included.

        The line below its title is the machine's, or `modelled`, the label of the modelled card that its values come
        from; then `caption`. `served`: what answered if not the lab's model, such as a handler that sleeps. `key`: the
        report shows it unfolded. A recorded run with the same parameters adds its values to the same bars or points.
        """
        from labkit import charts

        source = modelled or (self._line(served) if served else self.machine_line)
        spec = captioned(charts.spec(chart), source, *([caption] if caption else []))
        self.recorder.chart(name, spec, key=key)
        shown = spec if modelled else beside_recorded(self.recorder.record, name, spec)
        data, metadata = charts.bundle(shown, png=display.in_notebook())
        if not display.in_notebook():
            display.show(data)
            return
        from IPython.display import display as display_in_notebook

        display_in_notebook(data, raw=True, metadata=metadata)

    def warn(self, text: str) -> None:
        """Record a warning and show it."""
        self.recorder.warn(text)
        html = display.card("Warning", display.inline(text), colour=ORANGE)
        display.show({"text/plain": f"Warning: {text}", "text/html": html})

    def verdicts(self) -> list[Row]:
        """Show the article's claims, what sources say and the verdicts measured here; return the ledger's rows."""
        rows = [row for row in ledger([self.recorder.record]) if row.id in self.lab.claims]
        text = "\n\n".join(f"{row.id} {row.verdict}: {row.short}\n  {row.because}" for row in rows)
        html = display.html_table(VERDICT_HEADS, (list(map(escape, _verdict_cells(row))) for row in rows))
        display.show({"text/plain": text, "text/html": html})
        return rows

    def ledger(self) -> list[Row]:
        """Show all claims of the course, with the verdicts measured here and those recorded elsewhere."""
        return ledger_page.show(self.out_dir, machine=self.recorder.record.machine)

    def finish(self) -> None:
        """Complete the record; warn of each claim of the lab without evidence."""
        for claim in self.lab.claims:
            if claim not in self.recorder.record.claims:
                self.warn(f"this run has no evidence on claim {claim}")
        self.recorder.save("done")
        path = str(self.recorder.path)
        display.show({"text/plain": f"Record: {path}", "text/html": f"<p>Record: <code>{escape(path)}</code></p>"})


def _verdict_cells(row: Row) -> tuple[str, ...]:
    figure = f" ({row.article_figure})" if row.article_figure else ""
    return row.id, f"{row.short}{figure}", row.literature, row.verdict, row.because


def _fresh_folder() -> Path:
    """Return runs/notebook/<time>, with a number added for further starts within one second."""
    base = runs_path() / "notebook" / f"{datetime.now():%Y-%m-%dT%H-%M-%S}"
    candidates = (base.with_name(f"{base.name}{suffix}") for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(folder for folder in candidates if not folder.exists())
