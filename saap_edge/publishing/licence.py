"""The licence of a published model: the base model's, with its files and terms. None is ever assumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.bundle.find import front_matter, licence_files
from saap_edge.errors import SaapError
from saap_edge.publishing.terms import Terms, terms_of

__all__ = ["Licence", "check_terms", "licence_of"]

OTHER = "other"  # the hub's identifier of licences that have none
GATES = "extra_gated_"  # with what the fields begin by which a README asks for consent before a download


@dataclass(frozen=True)
class Licence:
    """What is known of a licence.

    Attributes:
        id: identifier on the hub; None: the base model states none, and nobody said it.
        name, link: of a licence that has no identifier ("other").
        files: files of the base model that state it, which go along.
        gated: the base model's makers ask for consent before a download.
    """

    id: str | None
    name: str | None = None
    link: str | None = None
    files: tuple[Path, ...] = ()
    gated: bool = False

    @property
    def shown(self) -> str:
        """Its name for people."""
        return self.name or self.id or "unknown: the base model states none"

    @property
    def terms(self) -> Terms:
        """What it asks for."""
        return terms_of(self.id) if self.id else Terms()

    @property
    def demands(self) -> tuple[str, ...]:
        """What people must see to themselves before they share the model, a line each."""
        gate = "its makers ask for consent before a download (gated): this copy does not, unless you gate it"
        return self.terms.demands + ((gate,) if self.gated else ())


def licence_of(base: Path, base_id: str | None, said: str | None = None) -> Licence:
    """The licence that a base model's folder states, or the one that `said` names where it states none.

    Args:
        base: Hugging Face folder of the base model.
        base_id: its name on the hub, to which a relative link belongs; None: unknown.
        said: identifier on the hub (--license).

    Raises SaapError when `said` is another licence than the stated one: a model made of theirs stays under it.
    """
    fields = front_matter(base / "README.md")
    stated, files = _identifier(fields), tuple(licence_files(base))
    if said and stated and said != stated:
        raise SaapError(
            f"--license {said}: the base model is under {stated}, and so is what was made of it: leave it out"
        )
    link = _link(_text(fields.get("license_link")), base_id, files)
    gated = any(str(name).startswith(GATES) for name in fields)
    return Licence(stated or said, _text(fields.get("license_name")), link, files, gated)


def check_terms(licence: Licence, repo: str, agreed: bool) -> None:
    """Refuse what a licence does not allow. `agreed`: people said that they see to what it demands (--yes).

    Raises SaapError where no licence is known, changed models may not be shared, the repository's name does not begin
    as it must, or there are demands and nobody agreed.
    """
    if licence.id is None:
        raise SaapError(
            "the base model states no licence: say under which it is with --license (apache-2.0, say; the identifiers "
            "are at huggingface.co/docs/hub/repositories-licenses)"
        )
    terms, name = licence.terms, repo.rpartition("/")[2]
    if terms.forbidden:
        raise SaapError(f"the licence of the base model, {licence.shown}, forbids it: {terms.forbidden}")
    if terms.begins and not _begins(name, terms.begins):
        raise SaapError(
            f"--repo {repo}: {licence.shown} asks for a name that begins with '{terms.begins}': choose such a name"
        )
    if licence.demands and not agreed:
        raise SaapError(
            f"the licence of the base model, {licence.shown}, asks for more than a command can do: "
            f"{'; '.join(licence.demands)}. Say --yes when you see to it"
        )


def _begins(name: str, wanted: str) -> bool:
    """Whether a repository's name begins as a licence wants it: names have no spaces."""
    plain = [text.casefold().replace("-", "").replace("_", "").replace(" ", "") for text in (name, wanted)]
    return plain[0].startswith(plain[1])


def _identifier(fields: dict[str, Any]) -> str | None:
    found = fields.get("license")
    names = [str(name) for name in found] if isinstance(found, list) else [str(found)] if found else []
    if len(names) > 1:  # the hub's field holds one
        raise SaapError(f"the base model states several licences ({', '.join(names)}): publish it by hand")
    return names[0].lower() if names else OTHER if fields.get("license_name") else None


def _link(link: str | None, base_id: str | None, files: tuple[Path, ...]) -> str | None:
    """A link that holds in the new repository: to a file that goes along, or to the base model's own."""
    if link is None or "://" in link or link in {path.name for path in files}:
        return link
    return f"https://huggingface.co/{base_id}/blob/main/{link}" if base_id else None


def _text(value: Any) -> str | None:
    return str(value) if value else None
