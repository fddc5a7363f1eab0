"""The arrow keys for a form's fields, which JupyterLab takes for its own commands on cells."""

# JupyterLab's shortcuts pass over an element with this mark, if it is the one that has the focus; it gets it for an
# arrow key and loses it for any other, so that the rest (run this cell, save) stays JupyterLab's. A window's capturing
# listener comes before JupyterLab's, and a style sheet's load event is the way to it from Python without an output
# that an untrusted notebook would refuse to draw.
_LISTEN = (
    "window.labkitArrows || window.addEventListener('keydown', window.labkitArrows = event =&gt; {"
    " if (event.target.closest('.jupyter-widgets')) event.target.toggleAttribute("
    "'data-lm-suppress-shortcuts', event.key.startsWith('Arrow')) }, true)"
)
LEAVE_ARROWS = f'<style onload="{_LISTEN}">.labkit-form {{}}</style>'  # to be part of a form's HTML
