"""Libraries that say nothing by themselves: what they print would bury what saap-edge prints."""

from __future__ import annotations

import os

from saap_edge.machine.waiting import sleep_while_waiting

__all__ = ["quiet_libraries"]


def quiet_libraries() -> None:
    """Silence the bars and warnings of other libraries, which would bury those of saap-edge."""
    sleep_while_waiting()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import warnings

    warnings.filterwarnings("ignore")
    try:
        from transformers.utils import logging
    except ImportError:
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
