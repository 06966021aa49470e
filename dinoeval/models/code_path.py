"""The code that a network runs: hooks, replaced methods and attributes, which its tensors do not tell."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{kind}" for kind in _HOOKS)
_SIMPLE = (bool, int, float, str, tuple, type(None))
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_OURS = "dinoeval."  # `Backbone.attention` reads some networks by a hook for the time of a call.


def describe_code(network: nn.Module) -> dict[str, Any]:
    """Describe what the modules of a network compute, apart from their tensors.

    Args:
        network: Any module.

    Returns:
        By name, such as `blocks.0.norm1.eps`: the class of each module, its attributes of simple types, its hooks, and its
        replaced methods.

    Examples:
        >>> describe_code(nn.Dropout(0.5))["p"]
        '0.5'
    """
    found: dict[str, Any] = {}
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        found[f"{prefix}forward"] = _forward_of(module)
        for name, value in vars(module).items():
            if name in _HOOKS:
                if hooks := _names(value.values()):
                    found[f"{prefix}{name.removeprefix('_')}"] = hooks
            elif isinstance(value, _FUNCTIONS) and hasattr(type(module), name):
                found[f"{prefix}{name}"] = _name(value)
            elif isinstance(value, _SIMPLE) and name != "training" and not name.startswith("_"):
                found[f"{prefix}{name}"] = repr(value)
    return found


def find_foreign_code(network: nn.Module) -> list[str]:
    """Find hooks and replaced methods that change what a network computes.

    Args:
        network: Any module.

    Returns:
        Hooks of all modules of the process, hooks of the network, and methods `forward` that another package replaced.
    """
    found = [f"global hook {name}" for kind in _GLOBAL_HOOKS for name in _names(getattr(torch_module, kind, {}).values())]
    for path, module in network.named_modules():
        for kind in _HOOKS:
            hooks = [hook for hook in getattr(module, kind, {}).values() if _root(hook) != "torch"]  # weight_norm and the like
            found += [f"hook {name} on {path or 'the network'}" for name in _names(hooks)]
    for kind in {type(module) for module in network.modules()}:
        owner = next(parent for parent in kind.__mro__ if "forward" in vars(parent))
        if _root(owner) != _root(vars(owner)["forward"]):
            found.append(f"{kind.__name__}.forward, replaced by {_name(vars(owner)['forward'])}")
    return found


def _forward_of(module: nn.Module) -> str:
    """Name the function that `module(...)` runs, and the place of its code."""
    forward = type(module).forward
    code = getattr(forward, "__code__", None)
    place = f"{code.co_filename}:{code.co_firstlineno}" if code else ""
    return f"{type(module).__module__}.{type(module).__qualname__} {_name(forward)} {place}"


def _root(definition: Any) -> str:
    """Return the package that a class or a function was defined in."""
    return str(getattr(definition, "__module__", None) or type(definition).__module__).split(".")[0]


def _names(hooks: Iterable[Any]) -> list[str]:
    return [_name(hook) for hook in hooks if not str(getattr(hook, "__module__", "")).startswith(_OURS)]


def _name(function: Any) -> str:
    function = getattr(function, "__func__", function)
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
