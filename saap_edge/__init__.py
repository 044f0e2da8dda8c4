"""saap-edge: from a Hugging Face causal LM to verified GGUF and ONNX on a board's budget.

`import saap_edge as se` offers the functions of `saap_edge.api`; each is loaded when it is first used.
"""

from typing import TYPE_CHECKING, Any

from saap_edge.telemetry import turn_telemetry_off

if TYPE_CHECKING:
    from saap_edge.api import *  # noqa: F403

__version__ = "0.1.0"

turn_telemetry_off()


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'saap_edge' has no attribute '{name}'")
    from importlib import import_module

    api = import_module("saap_edge.api")
    if name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"module 'saap_edge' has no attribute '{name}'")


def __dir__() -> list[str]:
    from importlib import import_module

    return sorted([*globals(), *import_module("saap_edge.api").__all__])
