"""The stages of the chain: what each reads, and the few lines that call the part of the package that does it."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from saap_edge.cache import Stage, alone, work_folder
from saap_edge.chain.texts import Corpus
from saap_edge.errors import SaapError
from saap_edge.evaluation.token_ids import VERIFIED
from saap_edge.files import file_hash, folder_hash, write_json
from saap_edge.gating.rerun import asks_instructions, decides, timed_limits
from saap_edge.gating.stage import gate_settings, write_gate
from saap_edge.measuring.conditions import longest_sequence
from saap_edge.model.spec import ModelSpec
from saap_edge.progress import Bar
from saap_edge.recipe import Recipe
from saap_edge.sources import resolve_model
from saap_edge.targets import Target, load_target, matches_this_machine

__all__ = ["ORDER", "Job"]

ORDER = ("score", "bank", "plan", "prune", "recover", "dense", "export", "verify", "bench", "gate", "report")

SEARCH_WINDOWS = 8  # calibration windows behind the scored ones, on which the search compares plans

Inputs = Mapping[str, Path]


class Job:
    """A checked recipe: everything that can be refused is refused here, before anything is written.

    Raises SaapError for a missing or unsupported model, an unreachable ratio, an unknown target, texts that
    are missing or too short, a window or a measured sequence longer than the model's context, a tokenizer that a format
    cannot hold, or a plan file that breaks a rule.
    """

    def __init__(self, recipe: Recipe, plan_file: Path | None, bar: Bar, tune: bool = False) -> None:
        from saap_edge.gguf_input.folder import source_of
        from saap_edge.model.checkpoint import open_checkpoint
        from saap_edge.pruning.plan import load_plan

        self.recipe, self.bar, self.tune = recipe, bar, tune
        self.target: Target = load_target(recipe.target)
        self.model = resolve_model(recipe.model)
        checkpoint = open_checkpoint(self.model)
        self.spec: ModelSpec = checkpoint.spec
        self.source = source_of(self.model)
        self.warnings = (*checkpoint.warnings, *filter(None, [(self.source or {}).get("note")]))
        self.plan_override = load_plan(plan_file) if plan_file else None
        self.teacher = resolve_model(recipe.recover.teacher) if recipe.recover.teacher else self.model
        self._check_teacher()
        self._check_formats() if tune else self._check_family()
        if self.plan_override:
            self.check_plan(self.plan_override)
        elif not tune:
            self.space.check(recipe.prune.ratio)
        if recipe.score.window > self.spec.context:
            raise SaapError(
                f"score.window {recipe.score.window} is longer than the model's context {self.spec.context}"
            )
        bench = recipe.bench
        longest = longest_sequence(bench.prompt_tokens, bench.contexts, bench.decode_tokens)
        if longest > self.spec.context:
            raise SaapError(
                f"bench measures sequences of {longest} tokens (prompt_tokens or contexts, and "
                f"decode_tokens): the model's context is {self.spec.context}"
            )
        if self.spec.context < VERIFIED:
            raise SaapError(f"verify runs {VERIFIED} tokens: the model's context is {self.spec.context}")
        if not (self.model / "tokenizer.json").is_file():
            raise SaapError(f"no tokenizer.json in '{self.model}': the runtimes need the model's fast tokenizer")
        self.corpus = Corpus(dict(recipe.data), self.model, recipe.score.window)
        self._check_tokenizer()
        self.corpus.check(calibration_windows=1 if tune else 2)
        self._check_values()
        self._hashes: dict[str, str] = {}

    def _check_tokenizer(self) -> None:
        """Refuse what is said of ends and chats and cannot be, and formats whose runtimes have no equal of the
        tokenizer; note what differs. Raises SaapError.
        """
        from saap_edge.evaluation.token_ids import check_token_ids
        from saap_edge.model.chat import read_chat

        text, formats = self.corpus.text("test"), self.recipe.export.formats
        self.warnings += read_chat(self.model).warnings
        self.warnings += tuple(check_token_ids(self.model, self.spec, self.corpus.tokenizer, text, formats))

    def _check_values(self) -> None:
        """Refuse weights that are no finite numbers, and formats that do not hold them. Raises SaapError."""
        from saap_edge.exporting.weights import FLOATS, IN_WIDER_FLOATS
        from saap_edge.model.values import beyond_fp16

        large = beyond_fp16(self.model)
        narrow = [name for name in self.recipe.export.formats if str(FLOATS.get(name)) == "torch.float16"]
        if large and narrow:
            name, largest = next(iter(large.items()))
            raise SaapError(
                f"'{self.model}': {name} holds {largest:.3g}, and {narrow[0]} nothing beyond 65504: {IN_WIDER_FLOATS}"
            )

    def _check_teacher(self) -> None:
        """Refuse a teacher that speaks of other tokens. Raises SaapError."""
        from saap_edge.model.checkpoint import read_spec

        taught, teacher = self.spec.vocab_size, read_spec(self.teacher).vocab_size
        if taught != teacher:
            raise SaapError(f"the teacher '{self.teacher}' has {teacher} tokens, the model {taught}: they must agree")

    def _check_formats(self) -> None:
        """Refuse formats that cannot hold the model as it is. Raises SaapError."""
        from saap_edge.exporting.refusal import export_refusal

        for name in self.recipe.export.formats:
            refusal = export_refusal(self.spec, name)
            if refusal:
                raise SaapError(refusal)

    def _check_family(self) -> None:
        """Refuse what this family or model cannot have: formats, depth, biases. Raises SaapError."""
        from saap_edge.exporting.refusal import export_refusal

        spec, prune = self.spec, self.recipe.prune
        if any(not (layer.heads and layer.ffn) for layer in spec.layers):
            raise SaapError("the model has layers without attention or FFN: prune the dense model it was made from")
        if prune.depth and spec.no_depth:
            raise SaapError(f"prune.depth: whole sublayers cannot be removed from this model: {spec.no_depth}")
        if prune.bias and spec.family.uniform_only:
            raise SaapError(f"prune.bias: {spec.family.title} models are saved as their plain class, which has none")
        plan = self.plan_override
        per_layer = not (plan.uniform if plan else self._uniform)
        pruned = replace(spec, o_bias=True, down_bias=True) if prune.bias else spec
        for name in self.recipe.export.formats:
            refusal = export_refusal(spec, name) or export_refusal(pruned, name, per_layer)
            if refusal:
                raise SaapError(refusal)

    @property
    def _uniform(self) -> bool:
        """The plan will be uniform: nothing else may be, or nothing else is asked for."""
        return bool(self.spec.family.uniform_only) or self.recipe.prune.method == "uniform"

    @property
    def _uniform_only(self) -> str | None:
        """Why all layers must have the same widths, or None."""
        from saap_edge.exporting.refusal import export_refusal

        # A coarse grid may leave a uniform plan slightly uneven: not where a format could not carry that.
        refusals = (export_refusal(self.spec, name, per_layer=True) for name in self.recipe.export.formats)
        return self.spec.family.uniform_only or (next(filter(None, refusals), None) if self._uniform else None)

    def check_plan(self, plan: Any) -> None:
        """Refuse a plan that this model cannot have. Raises SaapError."""
        from saap_edge.pruning.plan import check_plan

        family, no_depth = self.spec.family, self.spec.no_depth
        layers = list(self.spec.layers)
        check_plan(plan, layers, self.spec.head_dim, uniform_only=family.uniform_only, no_depth=no_depth)

    @property
    def threads(self) -> int:
        """Threads of the engines: the recipe's, or the target's as far as this machine has them."""
        return self.recipe.bench.threads or min(self.target.threads, os.cpu_count() or 1)

    def outside(self, roles: tuple[str, ...]) -> dict[str, str]:
        """Content hashes of the outside files of these roles, each computed once."""
        for role in roles:
            if role not in self._hashes:
                data = self.recipe.data
                folders = {"model": self.model, "teacher": self.teacher}
                known = role in folders
                self._hashes[role] = folder_hash(folders[role]) if known else file_hash(getattr(data, role))
        return {role: self._hashes[role] for role in roles}

    def stage(self, name: str) -> Stage:
        """The stage of that name for this recipe."""
        recipe, run = self.recipe, getattr(self, f"_{name}")
        score, seed = recipe.score.model_dump(mode="json"), {"seed": recipe.seed}
        prune = recipe.prune.model_dump(mode="json")
        plan = {"plan": self.plan_override.model_dump(mode="json")} if self.plan_override else {}
        plan |= prune | score | seed | self._target_settings()
        offered = {name: prune[name] for name in ("off_grid", "protect", "minimum", "query_slots", "depth")}
        mending = {name: prune[name] for name in ("repair", "mix", "bias")}
        windows, export = {"window": recipe.score.window}, recipe.export.model_dump(mode="json")
        before, made_of = ((), ("recover",)) if self.tune else (("prune",), ("recover", "plan"))
        texts = ("model", "calibration", "heldout")
        table: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]] = {
            "score": ((), ("model", "calibration"), score),
            "bank": (("score",), ("model", "calibration"), score | offered | {"grids": self._grids}),
            "plan": (("score", "bank"), texts, plan),
            "prune": (("plan",), texts, score | mending),
            "recover": (before, (*texts, "teacher"), self._recover_settings() | windows | seed),
            "dense": ((), ("model", *self._importance_text), export),
            "export": (made_of, ("model", *self._importance_text), export),
            "verify": (("export", "dense", "recover"), ("model", "test"), {}),
            "bench": (("verify", "export", "dense"), ("test",), self._bench_settings()),
            "gate": (("bench",), (), gate_settings(recipe.budget, self.target)),
            "report": (ORDER[1:-1], (), {"target": self._target_identity(), "model": self.model_name}),
        }
        inputs, reads, settings = table[name]
        return Stage(name, inputs, reads, settings, run)

    @property
    def model_name(self) -> str:
        """The folder's or file's name, or the hub's: paths of this machine have no place in a report."""
        given = Path(self.recipe.model)
        if given.is_file():
            return given.name
        return self.model.resolve().name if given.is_dir() else self.recipe.model

    @property
    def on_target(self) -> bool:
        """This machine is the target."""
        return matches_this_machine(self.target)

    @property
    def space(self) -> Any:
        """Widths a plan may choose, and what they cost."""
        from saap_edge.pruning.space import Space, model_cost

        prune, target, spec = self.recipe.prune, self.target, self.spec
        bandwidth = target.decode_bandwidth if prune.unit == "latency" else 1.0
        cost = model_cost(spec, prune.unit, target.quantisation["gguf"], prune.context, bandwidth)
        attention_grid, grid = self._grids
        return Space(
            spec.layers, spec.hidden, spec.head_dim, cost, grid, prune.protect, prune.minimum, prune.query_slots,
            prune.depth, prune.off_grid == "trim", self._uniform_only, attention_grid,
        )  # fmt: skip

    @property
    def _grids(self) -> tuple[int, int]:
        """Grids of heads and FFN: the recipe's, or the target's and that of all types that are asked for."""
        from saap_edge.exporting.kquants import KQUANTS, block_of
        from saap_edge.pruning.space import block_grids

        if self.recipe.prune.grid:
            return self.recipe.prune.grid, self.recipe.prune.grid
        asked = [name.removeprefix("gguf-") for name in self.recipe.export.formats]
        block = max((block_of(name) for name in asked if name in KQUANTS), default=self.target.grid)
        return block_grids(self.spec, self.target.grid, block)

    def _target_identity(self) -> dict[str, Any]:
        """What of the target a report depends on: not its memory, whose total grows in a virtual machine that runs."""
        return self.target.model_dump(mode="json", exclude={"ram_mib"})

    def _target_settings(self) -> dict[str, Any]:
        """What of the target a plan depends on."""
        cost = self.space.cost
        return {"grids": self._grids, "cost": [cost.per_weight, cost.per_kv_head, cost.fixed]}

    def _recover_settings(self) -> dict[str, Any]:
        settings = self.recipe.recover.model_dump(mode="json", exclude={"teacher"})
        return settings | {"group": self.recipe.export.group, "samples": self.recipe.score.samples}

    def _bench_settings(self) -> dict[str, Any]:
        from saap_edge.machine.facts import machine_facts

        facts = machine_facts()
        settings = self.recipe.bench.model_dump(mode="json") | {
            "threads": self.threads,
            "window": self.recipe.score.window,
        }
        settings["instructions"] = asks_instructions(self.recipe.budget)
        if self.recipe.bench.max_rounds:  # then the limits decide how many rounds are run
            settings["limits"] = timed_limits(self.recipe.budget).model_dump(mode="json")
        return settings | {name: facts[name] for name in ("cpu", "cores")}

    # The stages. torch and transformers are imported where they are used: measuring alone must not need them.

    def _dense_model(self) -> Any:
        from saap_edge.model.folder import load_model, placement

        return load_model(self.model, device_map=placement())

    def _windows(self, role: str, limit: int | None = None) -> Any:
        return self.corpus.windows(role, limit)

    def _score(self, inputs: Inputs, out: Path) -> None:
        import torch

        from saap_edge.model.folder import load_model, placement
        from saap_edge.pruning.score import save_scores

        batches = self._batches()
        model = load_model(self.model, getattr(torch, self.recipe.score.dtype), placement())
        with self.bar("score: calibration batches", len(batches)) as advance:
            save_scores(self._scores(model, batches, lambda: advance(1)), out)

    def _batches(self) -> list[Any]:
        """Calibration windows in batches, of which importance keeps one figure each."""
        import torch

        settings = self.recipe.score
        batches = torch.tensor_split(self._windows("calibration", settings.samples), settings.batches)
        return [batch for batch in batches if len(batch)]

    def _scores(self, model: Any, batches: list[Any], progress: Callable[[], None] = lambda: None) -> Any:
        from saap_edge.model.perplexity import text_hash
        from saap_edge.pruning.score import score_model

        settings = self.recipe.score
        conditions = {"text_sha256": text_hash(self.recipe.data.calibration), **settings.model_dump()}
        return score_model(
            model, batches, conditions, progress, second_order=settings.second_order,
            running_fisher=settings.running_fisher, checkpointing=settings.checkpointing,
        )  # fmt: skip

    def _bank(self, inputs: Inputs, out: Path) -> None:
        from saap_edge.pruning.bank import build_bank
        from saap_edge.pruning.score import load_scores

        windows = self._windows("calibration", self.recipe.score.samples)
        with self.bar("bank: layers", len(self.spec.layers)) as advance:
            build_bank(self._dense_model(), load_scores(inputs["score"]), self.space, windows, out, lambda: advance(1))

    def _plan(self, inputs: Inputs, out: Path) -> None:
        from saap_edge.pruning.bank import Bank, build_bank
        from saap_edge.pruning.plan import save_plan
        from saap_edge.pruning.planner import Planner, save_values
        from saap_edge.pruning.score import load_scores

        settings, samples, model = self.recipe.prune, self.recipe.score.samples, self._dense_model()
        windows = self._windows("calibration", samples + SEARCH_WINDOWS)
        with tempfile.TemporaryDirectory() as scratch:

            def rescore() -> tuple[Any, Any]:
                scores = self._scores(model, self._batches())
                return scores, build_bank(model, scores, self.space, windows[:samples], Path(scratch))

            planner = Planner(
                model, load_scores(inputs["score"]), Bank(inputs["bank"]), self.space, windows[:samples],
                windows[-SEARCH_WINDOWS:], self._windows("heldout", 40), settings.ranking, settings.evaluations,
                self.recipe.seed, settings.mix if settings.repair else None, settings.bias, settings.rounds, rescore,
            )  # fmt: skip
            if self.plan_override is None:
                with self.bar("plan", planner.work(settings.method)) as advance:
                    plan, values = planner.plan(settings.method, settings.ratio, advance)
            else:
                plan, values = self.plan_override, planner.values(self.plan_override.order)
        save_plan(plan, out / "plan.json")
        save_values(values, out)

    def _prune(self, inputs: Inputs, out: Path) -> None:
        from saap_edge.model.folder import save_model
        from saap_edge.model.perplexity import perplexity
        from saap_edge.pruning.kept import kept_structures
        from saap_edge.pruning.plan import load_plan
        from saap_edge.pruning.planner import load_values
        from saap_edge.pruning.repair import repair
        from saap_edge.pruning.surgery import cut

        plan, model, settings = load_plan(inputs["plan"]), self._dense_model(), self.recipe.prune
        self.check_plan(plan)
        kept, heldout = kept_structures(load_values(inputs["plan"]), plan.widths), self._windows("heldout", 40)
        windows: Any = self._windows("calibration", self.recipe.score.samples) if settings.repair else []
        layer = 3 * len(windows) / len(kept)  # a repair runs every window three times
        work = 3 * (len(heldout) + len(windows)) if settings.repair else 2 * len(heldout)
        with self.bar("prune: passes over windows", work) as advance:
            figures = {"dense": perplexity(model, heldout, advance).value}
            pruned = cut(model, kept)
            figures["cut"] = perplexity(pruned, heldout, advance).value
            if settings.repair:
                repair(model, kept, windows, settings.mix, settings.bias, lambda: advance(layer))
                pruned = cut(model, kept)
                figures["repaired"] = perplexity(pruned, heldout, advance).value
        (out / "model").mkdir()
        save_model(pruned, self.model, out / "model")
        document = {
            "heldout_perplexity": figures, "window": heldout.shape[1], "heldout_tokens": heldout.numel(),
            "kept": [{kind: indices.tolist() for kind, indices in layer.items()} for layer in kept],
        }  # fmt: skip
        write_json(out / "prune.json", document)

    def _recover(self, inputs: Inputs, out: Path) -> None:
        from saap_edge.recovery.run import PHASES, Texts, recover, recovery_steps

        settings, samples = self.recipe.recover, self.recipe.score.samples
        windows = self._windows("calibration")
        texts = Texts(windows[:samples], windows, self._windows("heldout", 40))
        folder = self.model if self.tune else inputs["prune"] / "model"
        steps, done = recovery_steps(settings, texts, len(self.spec.layers)), dict.fromkeys(PHASES, 0)

        def news(phase: str, step: int, loss: float, heldout: float) -> None:
            note = f"{phase}: loss {loss:.3f}, held-out {heldout:.3f}" if math.isfinite(heldout) else phase
            advance((step - done[phase]) * steps[phase][1], note)
            done[phase] = step

        group, seed, work = self.recipe.export.group, self.recipe.seed, work_folder(out)
        total = sum(number * passes for number, passes in steps.values())
        with alone(work), self.bar("recover", total) as advance:
            recover(self.teacher, folder, texts, settings, group, seed, out, work, news)

    def _dense(self, inputs: Inputs, out: Path) -> None:
        self._export_model(self.model, out, "dense", {"model": self.outside(("model",))["model"]})

    def _export(self, inputs: Inputs, out: Path) -> None:
        lineage = {name: folder.name for name, folder in inputs.items()} | self.outside(("model",))
        self._export_model(inputs["recover"] / "model", out, "pruned", lineage)
        if not self.tune:
            (out / "plan.json").write_bytes((inputs["plan"] / "plan.json").read_bytes())

    def _export_model(self, folder: Path, out: Path, role: str, lineage: dict[str, str]) -> None:
        from saap_edge.exporting.write import export_artifacts

        settings = self.recipe.export
        with tempfile.TemporaryDirectory() as scratch:
            imatrix = self._importance(folder, Path(scratch)) if self._importance_text else None
            with self.bar(f"export: {role} formats", len(settings.formats)) as advance:
                export_artifacts(
                    folder,
                    out,
                    settings.formats,
                    role,
                    lineage,
                    lambda name: advance(1, f"{name} written"),
                    settings.group,
                    imatrix,
                )

    @property
    def _importance_text(self) -> tuple[str, ...]:
        """The text that types are rounded by which llama.cpp makes; none where no such type is asked for."""
        from saap_edge.exporting.kquants import KQUANTS

        asked = any(name.removeprefix("gguf-") in KQUANTS for name in self.recipe.export.formats)
        return ("calibration",) if asked else ()

    def _importance(self, folder: Path, out: Path) -> Path:
        from saap_edge.exporting.imatrix import save_importance
        from saap_edge.model.folder import load_model
        from saap_edge.recovery.imatrix import importance_matrix

        windows = self._windows("calibration", self.recipe.score.samples)
        return save_importance(importance_matrix(load_model(folder), windows), out)

    def _verify(self, inputs: Inputs, out: Path) -> None:
        from saap_edge.evaluation.parity import require
        from saap_edge.evaluation.verify import verify_folder

        text = self.corpus.text("test")
        folders = {"dense": (inputs["dense"], self.model), "pruned": (inputs["export"], inputs["recover"] / "model")}
        with self.bar("verify: artifacts", 2 * len(self.recipe.export.formats)) as advance:
            parities = [
                parity
                for artifacts, model in folders.values()
                for parity in verify_folder(artifacts, model, text, self.threads, lambda: advance(1), self.warnings)
            ]
        require(parities)
        write_json(out / "verify.json", [parity.as_dict() for parity in parities])

    def _bench(self, inputs: Inputs, out: Path) -> None:
        write_json(out / "bench.json", self.bench(inputs["dense"], inputs["export"]))

    def bench(self, dense: Path, pruned: Path) -> dict[str, Any]:
        """The bench document of two export folders, measured as the recipe says, until its budget is decided."""
        from saap_edge.measuring.folders import bench_folders

        decided = decides(self.recipe.budget, self.target)
        return bench_folders(dense, pruned, self.conditions(), self.bar, decided)

    def conditions(self) -> Any:
        """What the recipe measures under."""
        from saap_edge.measuring.measure import BenchConditions

        settings = self.recipe.bench
        return BenchConditions(
            self.threads, settings.prompt_tokens, settings.decode_tokens, settings.rounds,
            self._windows("test", settings.perplexity_windows).tolist(), file_hash(self.recipe.data.test)[:12],
            contexts=tuple(sorted(set(settings.contexts))), max_rounds=settings.max_rounds,
            instructions=asks_instructions(self.recipe.budget),
        )  # fmt: skip

    def _gate(self, inputs: Inputs, out: Path) -> None:
        write_gate(inputs["bench"], self.recipe.budget, self.target, out)

    def _report(self, inputs: Inputs, out: Path) -> None:
        from saap_edge.report.write import write_report

        first = self.spec.layers[0]
        model = {
            "name": self.model_name,
            "family": self.spec.family.title, "layers": len(self.spec.layers), "hidden": self.spec.hidden,
            "heads": first.heads, "kv_heads": first.kv_heads, "head_dim": self.spec.head_dim, "ffn": first.ffn,
            "vocab_size": self.spec.vocab_size,
        }  # fmt: skip
        if self.source:
            model["source"] = {name: self.source[name] for name in ("file", "architecture", "types", "rounding")}
        write_report(inputs, model, self.target, self.on_target, out)
