"""What licences of base models ask of whoever shares a model that was made of theirs.

Sources: the licences themselves, section by section as named. None of this is advice: it is what a command can see to,
and what it must leave to people.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Terms", "terms_of"]

# Identifiers of the hub (huggingface.co/docs/hub/repositories-licenses) of licences that ask for no more than what a
# card and the copied licence files say: the same licence, its text, who made it, that it was changed.
_PLAIN = re.compile(
    r"apache-2\.0|mit|bsd(-[23]-clause(-clear)?)?|isc|zlib|ncsa|postgresql|unlicense|wtfpl|cc0-1\.0|pddl|bsl-1\.0|afl-3\.0|"
    r"ms-pl|mpl-2\.0|odc-by|cc-by-[\d.]+|cc-by-sa-[\d.]+|cdla-permissive-[\d.]+|artistic-2\.0|ecl-2\.0"
)


@dataclass(frozen=True)
class Terms:
    """What a licence asks for.

    Attributes:
        demands: what people must see to themselves, a line each; empty: nothing more than what is done for them.
        notice: text that has to be in a file NOTICE; None: none.
        begins: how the name of a model must begin; None: as it likes.
        forbidden: why a changed model must not be shared at all; None: it may.
    """

    demands: tuple[str, ...] = ()
    notice: str | None = None
    begins: str | None = None
    forbidden: str | None = None


def _llama(name: str, begins: str | None, shown: str, notice: str) -> Terms:
    demands = [f"people get the {name} Community License and its Acceptable Use Policy, and keep to them"]
    demands += [f"'{shown}' is shown where the model is offered"] if shown else []
    return Terms(tuple(demands), f"{notice}, Copyright © Meta Platforms, Inc. All Rights Reserved.", begins)


_KNOWN: tuple[tuple[str, Terms], ...] = (
    # Gemma Terms of Use, 3.1 and 3.2.
    (r"gemma", Terms((
        "people get a copy of the Gemma Terms of Use (ai.google.dev/gemma/terms)",
        "whoever gets the model is bound to their use restrictions (3.2)",
    ), "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms")),
    # Llama 2, 1.b; Llama 3 and later, 1.b.i and 1.b.iii.
    (r"llama2", _llama("Llama 2", None, "", "Llama 2 is licensed under the LLAMA 2 Community License")),
    (r"llama3", _llama("Llama 3", "Llama 3", "Built with Meta Llama 3",
                       "Meta Llama 3 is licensed under the Meta Llama 3 Community License")),
    *((re.escape(f"llama{number}"), _llama(f"Llama {number}", "Llama", "Built with Llama",
                                f"Llama {number} is licensed under the Llama {number} Community License"))
      for number in ("3.1", "3.2", "3.3", "4")),
    (r"cc-by-nc-nd-.*|cc-by-nd-.*", Terms(forbidden="it allows no changed versions to be shared (NoDerivatives)")),
    (r"cc-by-nc-.*", Terms(("nobody uses the model for a commercial purpose, you included (NonCommercial)",))),
)  # fmt: skip


def terms_of(licence: str) -> Terms:
    """The terms of a licence by its identifier on the hub; of one that is not known, that it has to be read.

    >>> terms_of("apache-2.0").demands, terms_of("cc-by-nd-4.0").forbidden
    ((), 'it allows no changed versions to be shared (NoDerivatives)')
    >>> terms_of("llama3.2").begins, terms_of("other").demands
    ('Llama', ('saap-edge does not know this licence: read what it asks of shared models',))
    """
    for pattern, terms in _KNOWN:
        if re.fullmatch(pattern, licence):
            return terms
    if _PLAIN.fullmatch(licence):
        return Terms()
    return Terms(("saap-edge does not know this licence: read what it asks of shared models",))
