"""Option types that name what was probably meant."""

from __future__ import annotations

from typing import Any

import click

from esper_guard.nearest import did_you_mean


class OneOf(click.Choice[str]):
    """A choice whose error names the nearest value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message.rstrip('.')}{did_you_mean(str(value), self.choices)}", param, ctx)


class Codes(click.ParamType[list[str]]):
    """Rule codes or prefixes, separated by commas."""

    name = "codes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        return [code.strip().upper() for code in value.split(",") if code.strip()]
