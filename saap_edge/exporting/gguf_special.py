"""Special tokens, ends, chat templates and sampling defaults as GGUF metadata.

| key | carries |
|---|---|
| tokenizer.ggml.bos_token_id, add_bos_token; add_eos_token | the BOS, and whether a plain text gets one, or an EOS |
| tokenizer.ggml.eos_token_id | the tokenizer's eos, which templates call eos_token; else the first end |
| tokenizer.ggml.eot_token_id, eom_token_id, fim_pad_token_id | further ends that llama.cpp does not know by name |
| tokenizer.ggml.unknown_token_id, padding_token_id | the tokenizer's |
| tokenizer.chat_template | the default template; it begins with the special tokens that llama.cpp would not give it |
| tokenizer.chat_template.NAME, tokenizer.chat_templates | the other templates, and the array of their names |
| general.sampling.temp, top_k, top_p, min_p, penalty_repeat, penalty_last_n | defaults of generation_config.json |

llama.cpp also ends a text at some tokens because of their names (llama-vocab.cpp, special_eog_ids). `llama_cpp_ends`
gives all its ends; tests compare them with the runtime's, over whole vocabularies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import gguf

from saap_edge.errors import SaapError
from saap_edge.model.chat import DEFAULT, Chat, sampling_of

__all__ = ["add_special", "llama_cpp_ends", "special_ids"]

_KEYS = gguf.Keys.Tokenizer
# Tokens that end a text by their names, in llama.cpp of llama-cpp-python 0.3.36.
_ENDS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
))  # fmt: skip
# One token of each of these groups ends a text too: the one that the key names, else one of these.
_FILL = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
# These tokens do not end a text if the vocabulary has all tokens of one of their sets.
_UNLESS = {
    "<|end|>": tuple({call, other} for call in ("<|call|>", "<|calls|>") for other in ("<|return|>", "<|flush|>")),
    "</s>": ({"<|tool_response>"},),
}
# Keys for ends whose names llama.cpp does not know. fim_pad is in none of its fill-in prompts, so an end can have it.
_SLOTS = {"eos": _KEYS.EOS_ID, "eot": _KEYS.EOT_ID, "eom": _KEYS.EOM_ID, "fim_pad": _KEYS.FIM_PAD_ID}


def add_special(
    writer: gguf.GGUFWriter, chat: Chat, tokens: Sequence[str], around: tuple[Sequence[str], Sequence[str]]
) -> list[str]:
    """Add special tokens, templates and sampling defaults.

    Args:
        tokens: the vocabulary by id, as it is written.
        around: the tokens that the post-processor puts before and after a text.

    Returns the tokens at which llama.cpp ends a text only because of their names. Raises SaapError for ends that the
    metadata cannot hold, and for tokens around a text other than BOS and EOS.
    """
    ids = special_ids(chat, tokens)
    for role, index in ids.items():
        writer.add_uint32(_SLOTS[role] if role in _SLOTS else getattr(_KEYS, f"{role.upper()}_ID"), index)
    for found, role in zip(around, ("bos", "eos"), strict=True):
        if found and [tokens[ids[role]] if role in ids else None] != list(found):
            raise SaapError(
                f"the tokenizer puts {' '.join(found)} around a text: llama.cpp has BOS before it and EOS after it only"
            )
    writer.add_add_bos_token(bool(around[0]))
    writer.add_add_eos_token(bool(around[1]))
    _add_templates(writer, chat)
    _add_sampling(writer, chat)
    return [tokens[index] for index in sorted(llama_cpp_ends(tokens, ids) - {*chat.ends, ids["eos"]})]


def special_ids(chat: Chat, tokens: Sequence[str]) -> dict[str, int]:
    """Ids by role: bos, eos, unk, pad, and eot, eom and fim_pad for ends whose names llama.cpp does not know.

    bos and eos are always set: without them llama.cpp uses ids 11, or 1 and 2, whatever these tokens are. Raises
    SaapError when llama.cpp would not end a text at all of the chat's ends.
    """
    eos = chat.tokens.get("eos", chat.ends[0] if chat.ends else None)
    if eos is None:
        # A token at which it ends anyway, because of the name; else one that no answer contains.
        eos = min(llama_cpp_ends(tokens, {}), default=chat.pad if chat.pad is not None else chat.bos)
    if eos is None:
        raise SaapError(
            "nothing says which token ends a text, and llama.cpp must have one: set eos_token_id in "
            "generation_config.json"
        )
    ids = {"bos": eos if chat.bos is None else chat.bos, "eos": eos}
    ids |= {role: chat.tokens[role] for role in ("unk", "pad") if role in chat.tokens}
    known = llama_cpp_ends(tokens, ids)
    free = [role for role in ("eot", "eom", "fim_pad") if not _named(role, tokens, chat.ends)]
    rest = [index for index in chat.ends if index not in known]
    ids |= dict(zip(free, rest, strict=False))
    lost = sorted(set(chat.ends) - llama_cpp_ends(tokens, ids))
    if lost:
        names = ", ".join(f"'{tokens[index]}' ({index})" for index in lost)
        raise SaapError(f"llama.cpp would not end at {names}, which end a text: name fewer in generation_config.json")
    return ids


def _named(role: str, tokens: Sequence[str], ends: Sequence[int]) -> bool:
    """Whether an end has this role because of its name, which it would lose if the role had another token."""
    return any(tokens[index] in _FILL.get(role, ()) for index in ends)


def llama_cpp_ends(tokens: Sequence[str], ids: dict[str, int]) -> set[int]:
    """The ids at which llama.cpp ends a text, given its vocabulary and the ids by role.

    If several tokens could have a role of _FILL, llama.cpp picks any of them, so none is counted.

    >>> sorted(llama_cpp_ends(["<s>", "a", "<|im_end|>", "END"], {"bos": 0, "eos": 3}))
    [2, 3]
    """
    names = set(tokens)
    gone = {end for end, others in _UNLESS.items() if any(other <= names for other in others)}
    ends = {index for index, token in enumerate(tokens) if token in _ENDS}
    ends |= {index for role, index in ids.items() if role in _SLOTS}
    for role, candidates in _FILL.items():
        filling = [index for index, token in enumerate(tokens) if token in candidates]
        if role not in ids and len(filling) == 1:
            ends |= set(filling)
    return {index for index in ends if tokens[index] not in gone}


def _add_templates(writer: gguf.GGUFWriter, chat: Chat) -> None:
    # Runtimes of GGUF give templates only bos_token and eos_token, and make them up if the tokenizer has none.
    given = [f"{role}_token" for role in ("bos", "eos") if role in chat.tokens]
    keys: dict[str, str] = {}
    for name, template in chat.templates.items():
        plain = re.sub(r"[^A-Za-z0-9]", "_", name)  # as gguf-py names them
        if plain in keys:
            raise SaapError(f"the chat templates '{keys[plain]}' and '{name}' have one name in GGUF: rename one")
        keys[plain] = name
        key = _KEYS.CHAT_TEMPLATE if name == DEFAULT else _KEYS.CHAT_TEMPLATE_N.format(name=plain)
        writer.add_string(key, chat.with_variables(template, given))
    others = sorted(name for name in keys if name != DEFAULT)
    if others:
        writer.add_array(_KEYS.CHAT_TEMPLATES, others)


def _add_sampling(writer: gguf.GGUFWriter, chat: Chat) -> None:
    """Add sampling defaults: all if do_sample is true, temperature 0 if it is false; the repetition penalty always."""
    sampling = sampling_of(chat.generation)
    if sampling.do_sample:
        writer.add_sampling_temp(sampling.temperature)
        writer.add_sampling_top_k(sampling.top_k)
        writer.add_sampling_top_p(sampling.top_p)
        writer.add_sampling_min_p(sampling.min_p)
    elif sampling.do_sample is not None:
        writer.add_sampling_temp(0.0)
    if sampling.repetition_penalty != 1.0:
        writer.add_sampling_penalty_repeat(sampling.repetition_penalty)
        writer.add_sampling_penalty_last_n(-1)  # transformers penalises tokens of the whole text, prompt included
