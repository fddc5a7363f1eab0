"""Widgets: thin skins over pure functions. What a widget answers, Python and the command line answer too."""
