"""Whether a value is of an annotated type, and what that type allows, in words."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal


def matches(value: Any, hint: Any) -> bool:
    """Return whether ``value`` is of the type ``hint``; an integer may stand for a float."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(matches(value, arg) for arg in typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(matches(item, typing.get_args(hint)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < 2**1000)  # more would not fit a float
    return type(value) is hint  # bool is not accepted where int is meant


def describe_type(hint: Any) -> str:
    """Return in words what a type hint allows."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in typing.get_args(hint))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe_type(arg) for arg in typing.get_args(hint))
    if origin is tuple:
        return f"a list of items that are {describe_type(typing.get_args(hint)[0])}"
    if origin is dict:
        return "a table of names and values"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "unset"}
    return names.get(hint, str(hint))
