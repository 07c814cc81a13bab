"""The steps of a pruned engine on a device whose law is known."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_profile import EXPERTS, MODEL, decode, dense, make_profile, per_sequence, prefill

from calibrate.attention_law import prefill_work
from calibrate.batch import Batch
from calibrate.collective_law import Collectives, line
from calibrate.datasheet import datasheet_profile
from calibrate.latency import StepLatency
from calibrate.layer_use import LayerUse, layer_use
from calibrate.memory import kv_block_count
from calibrate.model import ModelShape, load_model
from calibrate.parallelism import Parallelism
from calibrate.profile import Profile
from calibrate.pruned_attention import PrunedAttention
from calibrate.pruned_latency import PrunedLatency
from calibrate.pruning import Pruning
from calibrate.step_parts import StepParts, StepRows, step_parts
from ground.errors import UserError

LAYERS = MODEL.layers
BLOCK = 16
WHOLE = Pruning(LAYERS)
DEEP = replace(MODEL, name="deep", layers=12)


def use_of(pruning: Pruning, shares: Sequence[float] | None = None) -> LayerUse:
    return layer_use(pruning, BLOCK, shares)


@cache
def profile_of(model: ModelShape, mixed: bool) -> Profile:
    return make_profile(model, mixed=mixed, overhead=True)


@cache
def times(pruning: Pruning, shares: tuple[float, ...] | None = None, mixed: bool = False) -> PrunedLatency:
    model = replace(DEEP, layers=pruning.layers)
    return PrunedLatency(profile_of(model, mixed), model, use=use_of(pruning, shares))


batches = st.builds(
    Batch,
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 900)), max_size=3),
    st.integers(0, 60),
    st.integers(0, 200_000),
).filter(lambda batch: bool(batch.prefills or batch.decodes))


def step(of: StepLatency, batch: Batch) -> float:
    return of.step(batch.prefills, batch.decodes, batch.kv_tokens if batch.decodes else 0)


@settings(max_examples=25, deadline=None)
@given(batches, st.booleans(), st.frozensets(st.integers(0, 11), max_size=11))
def test_all_but_n_layers_pruned_is_the_model_of_n_layers(batch: Batch, mixed: bool, skipped: frozenset[int]) -> None:
    shallow = replace(DEEP, layers=12 - len(skipped))
    expected = StepLatency(profile_of(shallow, mixed), shallow)
    pruned = times(Pruning(12, skipped=skipped), mixed=mixed)
    assert step(pruned, batch) == step(expected, batch)
    decodes = max(1, batch.decodes)
    assert pruned.decode_run(decodes, 500, 40).tolist() == expected.decode_run(decodes, 500, 40).tolist()


def test_so_it_is_of_experts_and_of_ranks_that_exchange() -> None:
    several = Collectives(line(2, 1e-5, 1e10), "made")
    for model in (EXPERTS, MODEL):
        shallow = replace(model, layers=model.layers - 1)
        skips = use_of(Pruning(model.layers, skipped=frozenset({0})))
        settings_ = {"parallelism": Parallelism(2), "collectives": several}
        pruned = PrunedLatency(make_profile(model, 2), model, use=skips, **settings_)
        expected = StepLatency(make_profile(shallow, 2), shallow, **settings_)
        for batch in (Batch([(50, 7)], 4, 90), Batch([], 9, 1000)):
            assert step(pruned, batch) == step(expected, batch)


def test_weights_and_kv_blocks_are_those_of_the_model_of_n_layers() -> None:
    for model, tp in ((load_model("Llama-3.1-8B"), 2), (load_model("Qwen3-30B-A3B"), 4), (load_model("Qwen3-32B"), 1)):
        skipped = frozenset(range(1, model.layers, 3))
        shallow = replace(model, layers=model.layers - len(skipped))
        use = use_of(Pruning(model.layers, skipped=skipped))
        assert use.weight_bytes(model, tp) == shallow.weight_bytes(tp)
        assert use.kv_bytes_per_token(model, tp) == shallow.kv_bytes_per_token(tp)
        found, _ = kv_block_count("h200-sxm-141gb", model, tp, 16, 0.9, 2048, use=use)
        assert found == kv_block_count("h200-sxm-141gb", shallow, tp, 16, 0.9, 2048)[0]


@pytest.mark.parametrize("group", [2, 4, 8])
def test_a_group_of_g_layers_keeps_a_gth(group: int) -> None:
    model = load_model("Llama-3.1-8B")
    whole, shared = use_of(Pruning(32)), use_of(Pruning(32, group=group))
    assert shared.kv_bytes_per_token(model) * group == whole.kv_bytes_per_token(model) == model.kv_bytes_per_token()
    projections = 2 * model.kv_heads * model.head_dim * model.hidden * 2
    assert whole.weight_bytes(model) - shared.weight_bytes(model) == (32 - 32 // group) * projections


def test_packed_tokens_take_their_bytes_and_their_scales() -> None:
    model = load_model("Llama-3.1-8B")
    assert use_of(Pruning(32, kv_dtype="fp8")).kv_bytes_per_token(model) * 2 == model.kv_bytes_per_token()
    assert use_of(Pruning(32, kv_dtype="int8")).kv_bytes_per_token(model) == 2 * 32 * 8 * (128 + 4)


without = st.frozensets(st.integers(0, 11), max_size=11)


@settings(max_examples=15, deadline=None)
@given(batches, without, without, st.integers(0, 11), st.integers(1, 4), st.sampled_from([None, 16, 64, 256]))
def test_whoever_leaves_out_more_takes_no_longer(
    batch: Batch, skipped: frozenset[int], mlps: frozenset[int], more: int, group: int, window: int | None
) -> None:
    less = Pruning(12, skipped=skipped, without_mlp=mlps, group=group, window=window)
    kv_tokens = batch.kv_tokens if window is None else min(batch.kv_tokens, batch.decodes * (window + BLOCK))
    batch = batch._replace(kv_tokens=kv_tokens)
    before = step(times(less), batch)
    if len(skipped | {more}) < 12 and group == 1:
        assert step(times(replace(less, skipped=skipped | {more})), batch) <= before + 1e-12
    assert step(times(replace(less, without_mlp=mlps | {more})), batch) <= before + 1e-12
    assert step(times(replace(less, group=12)), batch) <= before + 1e-12
    tighter = replace(less, window=16)
    fewer = batch._replace(kv_tokens=min(kv_tokens, batch.decodes * 32))
    assert step(times(tighter), fewer) <= before + 1e-12


@settings(max_examples=12, deadline=None)
@given(batches, st.lists(st.floats(0.0, 0.99), min_size=11, max_size=11), st.integers(0, 10), st.floats(0, 1))
def test_fewer_tokens_take_no_longer(batch: Batch, shares: list[float], which: int, factor: float) -> None:
    falling = (1.0, *sorted(shares, reverse=True))
    lower = (*falling[: which + 1], *(share * factor for share in falling[which + 1 :]))
    exits = Pruning(12, exits=(0,), confidence=0.5)
    profile, model = profile_of(DEEP, False), DEEP
    some, fewer = (PrunedLatency(profile, model, use=use_of(exits, one)) for one in (falling, lower))
    # Where some leave, keys and values are still computed of all: what is left of a layer is cheaper than the whole.
    assert step(fewer, batch) <= step(some, batch) + 1e-12


def expected_at(law, tokens: float) -> float:
    return min(1.0, tokens) * law(max(1.0, tokens))


def test_an_early_exit_is_its_kernels_added_up() -> None:
    """Three layers, of which 40 % of ten decoding sequences run the last, beside a prompt that runs whole."""
    model = replace(MODEL, layers=3)
    exits = layer_use(Pruning(3, exits=(1,), confidence=0.9), BLOCK, (1.0, 1.0, 0.4))
    pruned = PrunedLatency(make_profile(model, mixed=False), model, use=exits)
    new, decodes, kv = 50, 10, 4000
    ran, all_tokens = new + 0.4 * decodes, new + decodes
    queries = MODEL.heads / (MODEL.heads + 2 * MODEL.kv_heads)
    rotary_q = MODEL.heads / (MODEL.heads + MODEL.kv_heads)
    whole = 2 * 8 + 1 + 2 + 1  # of layers 0 and 1; the last one's norm; embedding and last norm; its rotation of all
    seconds = whole * dense(all_tokens) + (1 - queries) * dense(all_tokens)
    seconds += (queries + rotary_q + 1 + 1 + 1 + 3) * dense(ran)  # q, rotary, o, gather, norm, MLP of the last layer
    seconds += dense(decodes) + 2 * per_sequence(decodes)  # whether the ten leave
    seconds += 2 * per_sequence(decodes + 1)
    seconds += 3 * prefill(new, 0) + 2 * decode(10, 400) + decode(4, 400)
    assert pruned.step([(new, 0)], decodes, kv) == pytest.approx(seconds, rel=1e-9)


def test_below_one_token_a_kernel_is_called_in_some_of_the_steps() -> None:
    shares = (1.0, *[0.25] * 11)
    one = times(Pruning(12, exits=(0,), confidence=0.5), shares)
    law = sum(kernel.calls * 0.25 * kernel.seconds(1.0) for kernel in one._partials if kernel.decodes == 0.25)
    at_the_exit = dense(1) + 2 * per_sequence(1)
    assert one.varying(0, 1) == pytest.approx(law + at_the_exit)


@given(st.integers(1, 2000), st.integers(0, 3000), st.sampled_from([32, 160, 1040]))
def test_a_windowed_chunk_has_the_pairs_that_its_queries_see(new: int, cached: int, most: int) -> None:
    law = PrunedAttention([(times(WHOLE).attention, 1.0)], most=most, slides=True, bytes_read=1.0)
    pairs = sum(min(cached + i, most) for i in range(1, new + 1))
    like, behind = law.seen(new, cached)
    assert prefill_work(like, behind) == pytest.approx(pairs, rel=2e-3 if like < new else 1e-9, abs=2 * like)
    assert like <= new and behind <= cached


def test_a_budget_is_what_a_chunk_stands_behind() -> None:
    law = times(Pruning(12, kv_dtype=None, budget=64, recent=32))
    assert law.prefill(100, 5000) == pytest.approx(12 * prefill(100, 64))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(0, 100_000), st.integers(1, 100), st.floats(0.05, 0.95))
def test_a_run_is_its_steps_bit_for_bit(decodes: int, kv_tokens: int, steps: int, share: float) -> None:
    for law in (
        times(Pruning(12, exits=(2,), confidence=0.5), (1.0, 1.0, 1.0, *[share] * 9)),
        times(Pruning(12, similarity=0.9), (1.0, *[share] * 11)),
        times(Pruning(12, kv_dtype="fp8", group=3)),
    ):
        run = law.decode_run(decodes, kv_tokens, steps)
        assert run.tolist() == [law.step((), decodes, kv_tokens + i * decodes) for i in range(steps)]


def test_half_the_bytes_are_read_in_the_time_of_half_the_tokens() -> None:
    packed, whole = times(Pruning(12, kv_dtype="fp8")), times(Pruning(12))
    assert MODEL.dtype_bytes == 4
    for decodes, kv_tokens in ((1, 400), (8, 9000)):
        ratio = kv_tokens / 4
        assert packed.attention_of_decodes(decodes)(kv_tokens) == whole.attention_of_decodes(decodes)(ratio)
    beside = packed.step([(30, 0)], 8, 8000) - whole.step([(30, 0)], 8, 2000)
    assert beside == pytest.approx(0.0, abs=1e-12)


def test_measured_kernels_are_taken_before_any_other() -> None:
    profile = make_profile(replace(MODEL, layers=2), mixed=False)
    for name in ("q_proj", "rotary_q", "pack_kv"):
        rows = pl.DataFrame({"layer": [name] * 2, "tokens": [1, 1000], "seconds": [1.0, 1.0]})
        profile.tables["pruned"] = pl.concat([profile.tables.get("pruned", rows.clear()), rows])
    kinds = profile.tables["attention"].select(pl.lit("int8").alias("kind"), "*").with_columns(seconds=pl.lit(10.0))
    profile.tables["pruned_attention"] = kinds
    model = replace(MODEL, layers=2)
    pruned = PrunedLatency(profile, model, use=layer_use(Pruning(2, group=2, kv_dtype="int8"), BLOCK))
    # Two attentions, of which one layer projects queries alone and one packs.
    assert pruned.step([], 4, 100) == pytest.approx(23.0, abs=0.01)
    stated = {assumption.name: assumption.value for assumption in pruned.assumptions}
    assert stated["kernel.q_proj"] == stated["kernel.attention.int8"] == "measured"


def test_what_nobody_measured_is_said() -> None:
    stated = {assumption.name: assumption for assumption in times(Pruning(12, group=2, kv_dtype="int8")).assumptions}
    assert stated["kernel.q_proj"].value == f"{MODEL.heads / (MODEL.heads + 2 * MODEL.kv_heads):.3g} × qkv_proj"
    assert "as many bytes" in stated["kernel.attention.int8"].note
    assert stated["engine.pruning"].value == "12 of 12 layers, 12 MLPs, KV of 6"


def test_a_cpu_without_its_attention_measured_is_refused() -> None:
    profile = replace(make_profile(), threads=2)
    for pruning, kind in ((replace(WHOLE, kv_dtype="int8"), "int8"), (replace(WHOLE, budget=32, recent=16), "heavy")):
        with pytest.raises(
            UserError, match=f"no attention of {kind}.* expected a profile of simctl calibrate run --pruning"
        ):
            PrunedLatency(profile, MODEL, use=use_of(pruning))


def test_tokens_that_decide_replay_no_graph() -> None:
    exits = use_of(Pruning(LAYERS, similarity=0.9), [1.0] * LAYERS)
    with pytest.raises(UserError, match=r"expected engine.cudagraph_capture_sizes \[\]"):
        PrunedLatency(make_profile(), MODEL, use=exits, graph_sizes=[1, 2, 4])


@pytest.mark.parametrize(
    ("pruning", "shares", "message"),
    [
        (Pruning(4, similarity=0.9), None, "what the input decides was not measured"),
        (Pruning(4, similarity=0.9), [1.0] * 3, "shares are of 3 layers; expected 4"),
        (Pruning(4, exits=(1,)), [1.0, 0.5, 0.6, 0.6], "expected 1 first, and no more at any later layer"),
        (Pruning(4, exits=(1,)), [0.9, 0.5, 0.5, 0.5], "expected 1 first"),
    ],
)
def test_shares_that_cannot_be_are_refused(pruning: Pruning, shares: list[float] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        layer_use(pruning, BLOCK, shares)


def test_a_datasheet_knows_the_gain_of_every_policy() -> None:
    """Long decodes on an H100, where memory binds: less to read is less time, in the order of what is read."""
    model = load_model("Llama-3.1-8B")
    profile = datasheet_profile("h100-sxm-80gb", model, 1)

    def seconds(pruning: Pruning) -> float:
        most = pruning.most_tokens(BLOCK) or 8000
        return PrunedLatency(profile, model, use=use_of(pruning)).step([], 64, 64 * min(8000, most))

    reads = [
        Pruning(32),
        Pruning(32, kv_dtype="int8"),
        Pruning(32, kv_dtype="fp8"),
        Pruning(32, window=1024, sinks=16),
        Pruning(32, window=256, sinks=16),
    ]
    assert all(more > less for more, less in pairwise(map(seconds, reads)))


def test_beyond_what_is_held_nothing_more_is_read() -> None:
    law = times(Pruning(12, window=64)).attention_of_decodes(5)
    whole = times(Pruning(12)).attention_of_decodes(5)
    most = 5 * (64 + BLOCK)
    assert law(most / 2) == pytest.approx(whole(most / 2))
    assert law(most) == law(10 * most) == pytest.approx(whole(most))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(0, 20_000), st.integers(1, 60), st.integers(0, 300))
def test_the_parts_of_steps_are_the_steps(decodes: int, kv_tokens: int, steps: int, prompt: int) -> None:
    for law in (
        times(Pruning(12, exits=(2,), confidence=0.5), (1.0, 1.0, 1.0, *[0.3] * 9)),
        times(Pruning(12, group=4)),
    ):
        columns = [(steps, 0, 0, decodes, kv_tokens), *([(1, 1, prompt, 0, 0)] if prompt else [])]
        parts = step_parts(law, StepRows(*(np.array(column) for column in zip(*columns, strict=True))))
        total = sum((getattr(parts, name) for name in StepParts.__dataclass_fields__), np.zeros(len(columns)))
        assert total[0] == pytest.approx(law.decode_run(decodes, kv_tokens, steps).sum(), rel=1e-9)
        if prompt:
            assert total[1] == pytest.approx(law.step([(prompt, 0)], 0, 0), rel=1e-9)


def test_ranks_exchange_the_tokens_that_ran() -> None:
    """Behind the last layer's attention and MLP those of four sequences of ten, and behind the others' all."""
    collectives = Collectives(line(2, 1e-5, 1e10), "made")
    model = replace(MODEL, layers=2)
    parts = {"parallelism": Parallelism(2), "collectives": collectives}
    exits = PrunedLatency(make_profile(model, 2), model, use=use_of(Pruning(2, exits=(0,)), (1.0, 0.4)), **parts)
    alone = PrunedLatency(
        make_profile(model, 2), model, use=use_of(Pruning(2, exits=(0,)), (1.0, 0.4)), parallelism=Parallelism(2)
    )
    plain = StepLatency(make_profile(model, 2), model, **parts).exchange
    expected = 3 * plain.all_reduce(10) + 2 * plain.all_reduce(4) + plain.logits(10)
    free = alone.exchange.hidden_states(10) + alone.exchange.logits(10)
    assert exits.step([], 10, 1000) - alone.step([], 10, 1000) == pytest.approx(expected - free, rel=1e-9)
    assert expected > free == 0.0


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 500)), min_size=1, max_size=3))
def test_prompts_run_whole_where_nobody_who_decodes_comes(prefills: list[tuple[int, int]]) -> None:
    """All who decode leave behind the first layer; prompts take what they take unpruned, but for kernels that run apart
    instead of as one."""
    nobody = times(Pruning(12, exits=(0,), confidence=0.5), (1.0, *[0.0] * 11))
    tokens = sum(new for new, _ in prefills)
    whole = times(Pruning(12)).step(prefills, 0, 0)
    apart = {"q_proj": 1, "kv_proj": 1, "qkv_proj": -1, "rotary_q": 1, "rotary_kv": 1, "rotary_emb": -1, "gather": 1}
    more = 11 * sum(sign * nobody._kernels.curve(name)(tokens) for name, sign in apart.items())
    assert nobody.step(prefills, 0, 0) == pytest.approx(whole + more, rel=1e-9)
