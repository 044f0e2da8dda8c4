"""What all sections of a recipe share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """A section of a recipe. Fields do not change once read; unknown ones are refused, so that a typing error never
    passes silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)
