"""Base class of the calculator's settings: numbers with unit, range and meaning, and readable errors."""

import re
from typing import Any, ClassVar, Self

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from labkit.errors import UsageError
from labkit.files import Frozen

THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")  # 1,200 and 1,200,000, and neither 2,95 nor 0,125


def quantity(low: float, high: float, unit: str, meaning: str, default: float | None = None) -> Any:
    """Return a field for a number from `low` to `high`; its title is the unit, its description the meaning."""
    return Field(default, ge=low, le=high, strict=True, title=unit, description=meaning)


def limits(field: FieldInfo) -> tuple[float, float]:
    """Return the range that a quantity was declared with."""
    bounds: dict[str, Any] = {type(bound).__name__: bound for bound in field.metadata}
    return bounds["Ge"].ge, bounds["Le"].le


class Checked(Frozen):
    """Settings that accept 1,200 and 1_200, and raise UsageError with the value and the remedy."""

    model_config = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)
    prefix: ClassVar[str] = ""
    """Goes before the field's name in messages."""

    def changed(self, **changes: Any) -> Self:
        """Return a copy with other values, validated."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Read 1,200 and 1_200 as 1200, 3.0 as 3, and an empty text as None."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if annotation not in (int, float, int | None, float | None):
            return value
        if isinstance(value, str):
            try:
                plain = value.replace(",", "") if THOUSANDS.fullmatch(value.strip()) else value
                value = float(plain.replace("_", "")) if plain else None
            except ValueError:
                return value
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            name = str(problem["loc"][0])
            field = cls.model_fields[name]
            unit = f" ({field.title})" if field.title else ""
            fix = f"give {cls.prefix}{name}: {field.description}{unit}"
            message = problem["msg"].replace("Input should", "it should")
            raise UsageError(f"{cls.prefix}{name} is {problem['input']!r}; {message}", remedy=fix) from None
