"""Load untrusted YAML: refuse text that would use too much time, memory or stack before building it."""

from typing import Any

import yaml

FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Far above any real file.
MOST_NODES, MOST_DEPTH, MOST_DIGITS = 1_000_000, 64, 250


def load(text: str) -> Any:
    """Return the text's single document as plain data. ValueError or yaml.YAMLError: it is refused or not valid."""
    _check_size(text)
    return yaml.load(text, Loader=_Loader)


class _Loader(FAST_LOADER):  # type: ignore[misc, valid-type]
    """Refuses duplicate keys (YAML keeps the last one), and integers too large for a float."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set[tuple[str, str]]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value[:80]} appears twice", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > MOST_DIGITS:
            raise ValueError(f"{node.value[:80]}... is too large a number")
        number: int = super().construct_yaml_int(node)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _check_size(text: str) -> None:
    """Raise a ValueError for YAML that is nested too deeply, or whose aliases expand to too many values."""
    size, sizes, parents = 0, dict[str | None, int](), list[tuple[str | None, int]]()
    for event in yaml.parse(text, Loader=FAST_LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"*{event.anchor} refers to itself or to nothing")
            size += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            parents.append((event.anchor, size))
            sizes.pop(event.anchor, None)
            size += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = parents.pop()
            sizes[anchor] = size - before
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1
            size += 1
        if len(parents) > MOST_DEPTH:
            raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
        if size > MOST_NODES:
            raise ValueError(f"with its aliases expanded it has more than {MOST_NODES:,} values")
