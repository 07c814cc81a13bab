"""From a scenario's speculative decoding to what its steps take, and what its draft model needs of the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from calibrate.model import ModelShape, load_model
from calibrate.parallelism import Parallelism
from calibrate.profile import Profile, load_profile
from calibrate.verification import VerifyLatency
from ground.assumption import Assumption
from ground.errors import UserError
from sim.engine.speculative.settings import SpeculativeSettings
from sim.study.scenario import EngineSettings, Scenario

# Of the settings of the model's own step times those that its draft model's share.
_SHARED = ("collectives", "graph_sizes", "graphs_decode_only", "host_overlaps", "host_overhead", "skew")


def engine_of_scenario(scenario: Scenario) -> EngineSettings:
    """The engine of a scenario, whose speculative decoding has the scenario's seed and profile where it has none."""
    engine = scenario.engine
    if engine.speculative is None:
        return engine
    given: dict[str, Any] = {"seed": scenario.seed}
    if engine.speculative.method == "draft":
        given["draft_profile"] = scenario.profile
    open_ones = {name: value for name, value in given.items() if getattr(engine.speculative, name) is None}
    return engine.model_copy(update={"speculative": engine.speculative.model_copy(update=open_ones)})


def verify_latency(
    speculative: SpeculativeSettings, profile: Profile, model: ModelShape, *, parallelism: Parallelism, **rest: Any
) -> VerifyLatency:
    """The step times of an engine that speculates; `rest` are settings of `StepLatency`, whose errors it raises."""
    draft, found = None, []
    lookup_seconds = speculative.host_seconds or 0.0
    if speculative.method == "draft":
        shape, of_draft = _draft_of(speculative, model, parallelism.tensor)
        shared = {name: value for name, value in rest.items() if name in _SHARED}
        draft = VerifyLatency(of_draft, shape, tokens=speculative.tokens, parallelism=parallelism, **shared)
        found = [replace(one, name=f"draft.{one.name}") for one in draft.assumptions]
        note = "the draft model drafts behind every step for all that go on, as many as may be"
        found.append(Assumption("engine.speculative.draft_model", shape.name, "", "user", note))
    else:
        measures = "a run on the reference engine measures it"
        if speculative.host_seconds is None:
            note = f"not given, and taken to be free; {measures}"
            found.append(Assumption("engine.speculative.host_seconds", 0.0, "s", "assumed", note))
        if "proposals" not in speculative.model_fields_set:
            note = f"not given: every lookup is taken to find something; {measures}"
            found.append(Assumption("engine.speculative.proposals", 1.0, "share", "assumed", note))
        note = "every draft is as long as it may be; a lookup near the end of what it knows finds fewer tokens"
        found.append(Assumption("engine.speculative.draft_length", speculative.tokens, "tokens", "assumed", note))
    latency = VerifyLatency(
        profile,
        model,
        tokens=speculative.tokens,
        draft=draft,
        lookup_seconds=lookup_seconds,
        parallelism=parallelism,
        **rest,
    )
    latency.assumptions += found
    return latency


def draft_kv_bytes(speculative: SpeculativeSettings, model: ModelShape, tp: int) -> int:
    """Bytes that the draft model of `model` keeps for a token on one rank, in the same blocks; 0 if there is none."""
    return _draft_of(speculative, model, tp)[0].kv_bytes_per_token(tp) if speculative.method == "draft" else 0


def room_beside_draft(
    blocks: int, speculative: SpeculativeSettings, model: ModelShape, tp: int, block_size: int
) -> tuple[int, list[Assumption]]:
    """KV blocks that are left of `blocks` when the draft model's weights lie beside them, and every block holds its
    keys and values too (vLLM: the draft's layers are further layers of the same blocks).

    Raises:
        UserError: none is left.
    """
    if speculative.method != "draft":
        return blocks, []
    draft, _ = _draft_of(speculative, model, tp)
    own, further = (block_size * own for own in (model.kv_bytes_per_token(tp), draft_kv_bytes(speculative, model, tp)))
    weights = draft.weight_bytes(tp)
    left = (blocks * own - weights) // (own + further)
    if left < 1:
        raise UserError(
            f"engine.speculative.draft_model {draft.name} needs {weights} bytes of weights, and {blocks} blocks of "
            f"{own} bytes are all that {model.name} leaves; expected a smaller draft model"
        )
    note = f"of {blocks}, less {weights} bytes of weights of {draft.name}, and each with {further} bytes more of its KV"
    return left, [Assumption("memory.kv_blocks beside draft", left, "blocks", "assumed", note)]


def _draft_of(speculative: SpeculativeSettings, model: ModelShape, tp: int) -> tuple[ModelShape, Profile]:
    if speculative.draft_model is None or speculative.draft_profile is None:
        raise UserError("engine.speculative.draft_profile is not given; expected a profile of the draft model")
    shape = load_model(speculative.draft_model)
    if shape.vocab != model.vocab:
        raise UserError(
            f"engine.speculative.draft_model {shape.name} has {shape.vocab} tokens in its vocabulary and {model.name} "
            f"{model.vocab}; expected the same tokens"
        )
    return shape, load_profile(speculative.draft_profile, shape, tp, Path())
