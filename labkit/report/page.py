"""The report of a run: one HTML file without external resources.

It contains only data of run.json and the records. It names missing and broken files, so that a failed run has a report.
"""

from pathlib import Path

from labkit.errors import RecordError
from labkit.records import write_atomic
from labkit.report.data import load
from labkit.report.view import view


def build(run_dir: Path, out_file: Path | None = None) -> Path:
    """Write the report of `run_dir` (default: report.html in it) and return its path.

    All data of records is escaped. RecordError: not a folder, no record, or a file that cannot be written or that the
    run has written itself.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    data = load(run_dir)
    out_file = (out_file or run_dir / "report.html").expanduser().resolve()
    if not out_file.parent.is_dir():
        remedy = "name a file in a folder that exists"
        raise RecordError(f"the report cannot be written: {out_file.parent} is not a folder", remedy=remedy)
    if out_file.suffix in (".json", ".ipynb"):
        raise RecordError(f"{out_file} could be a record or a notebook", remedy="name a file that ends in .html")
    environment = Environment(loader=PackageLoader("labkit", "report"), autoescape=True, undefined=StrictUndefined)
    write_atomic(out_file, environment.get_template("report.html.j2").render(view(data)))
    return out_file
