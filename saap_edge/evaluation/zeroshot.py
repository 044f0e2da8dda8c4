"""Zero-shot accuracy by lm-eval, of a torch model or of artifacts in their own engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from saap_edge.errors import SaapError
from saap_edge.evaluation.likelihood import Request, Score, Scorer, finite_scores
from saap_edge.evaluation.tasks import EvalTask, quiet_lm_eval
from saap_edge.progress import Bar

__all__ = ["ScorerLM", "ZeroShot", "run_tasks"]
# Bootstrap samples for standard errors without a closed form (LAMBADA's perplexity); those of means have one.
BOOTSTRAP = 1000


class ScorerLM(TemplateLM):
    """lm-eval's model interface on a `Scorer`; the folder's tokenizer turns text into ids.

    Special tokens, the split of context and continuation, and the cut of long requests (on the left) are as in
    lm-eval's own `hf` model. `shortened` counts the requests that were cut.
    """

    def __init__(self, scorer: Scorer, tokenizer: Any, bar: Bar, what: str) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.shortened = 0
        self._scorer, self._bar, self._what = scorer, bar, what

    @property
    def eot_token_id(self) -> int:
        """The token before a text without context: BOS, or EOS if there is no BOS. Raises SaapError without both."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is None and eos is None:
            raise SaapError("the tokenizer has neither BOS nor EOS: text without a context cannot be scored")
        return int(eos if bos is None else bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, without a second BOS if the text begins with one."""
        bos = self.tokenizer.bos_token
        if add_special_tokens is None and bos and string.startswith(bos):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer(string, verbose=False, **options)["input_ids"]
        return ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives it) of every continuation."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        scores = self._score([self._request(*request) for request in requests])
        return [(sum(score.values), all(score.greedy)) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood in nats of whole texts, in windows of the model's context; each token is predicted once."""
        parts, owners = [], []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self._scorer.context, 1):
                context, wanted = make_disjoint_window(window)
                parts.append(Request(context + wanted, len(context)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self._score(parts), strict=True):
            totals[owner] += sum(score.values)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Always raises SaapError: nothing is generated here."""
        raise SaapError("tasks that ask for generated text cannot be run here: only likelihood tasks")

    def _request(self, texts: tuple[str, str], context: list[int], wanted: list[int]) -> Request:
        if not wanted:
            raise SaapError(f"no token is left to score: the tokenizer merges {texts[1]!r} into the text before it")
        if len(wanted) > self._scorer.context:
            raise SaapError(
                f"an answer of {len(wanted)} tokens does not fit into the model's context of {self._scorer.context}"
            )
        ids = context + wanted
        longest = self._scorer.context + 1  # the last token is predicted, not run
        self.shortened += len(ids) > longest
        ids = ids[-longest:]
        return Request(ids, len(ids) - len(wanted))

    def _score(self, requests: list[Request]) -> list[Score]:
        with self._bar(self._what, len(requests)) as advance:
            return finite_scores(self._scorer, requests, advance)


@dataclass(frozen=True)
class ZeroShot:
    """One figure of a task.

    Attributes:
        stderr: lm-eval's standard error, or None.
        n: rows that it was computed on.
        sha256: of a local file, else None.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int | None
    sha256: str | None


def run_tasks(lm: ScorerLM, tasks: list[EvalTask], limit: int | None) -> list[ZeroShot]:
    """Run `tasks` on `lm`, at most `limit` rows of each, and return all figures in the order of the tasks.

    Raises SaapError when the model cannot be run or a task needs more than likelihoods.
    """
    merged: dict[str, Any] = {"tasks": {}, "groups": {}}
    for task in tasks:
        for kind in merged:
            merged[kind] |= task.task.get(kind, {})
    with quiet_lm_eval():
        results = evaluate(lm, merged, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False)
    hashes = {task.name: task.sha256 for task in tasks}
    figures = []
    for name, values in results["results"].items():
        counts = results["n-samples"].get(name, {})
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr"):
                continue
            stderr = values.get(f"{metric}_stderr,{filtered}")
            shown = metric if filtered == "none" else f"{metric} ({filtered})"
            figures.append(
                ZeroShot(
                    name, shown, float(value), stderr if isinstance(stderr, float) else None, counts.get("effective"),
                    hashes.get(name),
                )
            )  # fmt: skip
    order = list(merged["tasks"]) + list(merged["groups"])
    return sorted(figures, key=lambda figure: order.index(figure.task))
