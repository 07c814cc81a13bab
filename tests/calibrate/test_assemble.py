"""Medians, overhead and held-out errors from made-up measurements whose answer is known."""

import polars as pl
import pytest

from calibrate.assemble import Record, assemble, between, on_the_grid
from calibrate.latency import StepLatency
from calibrate.model import ModelShape
from calibrate.profile import Profile, Provenance

MODEL = ModelShape("made", 8, 2, 2, 1, 4, 16, 32)
LAYERS = [call for call in MODEL.calls() if call.kernel_class == "dense"]
DENSE_CALLS = sum(call.calls for call in LAYERS)


def record(kernel_class: str, point: Record, rows: list[tuple[Record, list[float]]], held_out: bool = False) -> Record:
    return {
        "kernel_class": kernel_class,
        "held_out": held_out,
        "point": point,
        "rows": [{"columns": columns, "samples": samples} for columns, samples in rows],
    }


def measurements() -> list[Record]:
    """Every kernel takes 1 ms a call at any size; a whole step takes 5 ms beyond its kernels."""
    records = []
    for tokens in (1, 64):
        rows = [({"layer": call.layer}, [1e-3]) for call in LAYERS]
        records.append(record("dense", {"tokens": tokens}, rows))
    for sequences in (1, 8):
        rows = [({"layer": name}, [1e-3]) for name in ("lm_head", "sampler")]
        records.append(record("per_sequence", {"sequences": sequences}, rows))
    for chunk, n in ((1, 0), (64, 0), (0, 1), (0, 8)):
        for kv in (0, 100):
            point = {
                "prefill_chunk": chunk,
                "kv_prefill": 0 if n else kv,
                "n_decode": n,
                "kv_decode": kv if n else 0,
            }
            records.append(record("attention", point, [({}, [1e-3])]))
    decode_kernels = (DENSE_CALLS + 2 + MODEL.layers) * 1e-3
    for n in (1, 8):
        point: Record = {"prefills": [], "contexts": [50] * n}
        visits = ([decode_kernels + 5e-3], [decode_kernels + 5e-3], [1.0])  # one of three disturbed
        records += [record("step", point, [({}, samples)]) for samples in visits]
    return records


def assembled(records: list[Record]) -> Profile:
    profile = Profile("made", "made", MODEL, 1, "bfloat16", Provenance("measured", "made", "none"), {})
    assemble(profile, records)
    return profile


def test_overhead_is_the_step_less_its_kernels_and_a_disturbed_visit_does_not_move_it() -> None:
    profile = assembled(measurements())
    assert profile.tables["overhead"]["seconds"].to_list() == pytest.approx([5e-3, 5e-3])
    assert profile.tables["overhead"]["samples"].to_list() == [3, 3]
    expected = (DENSE_CALLS + 2 + MODEL.layers) * 1e-3 + 5e-3
    assert StepLatency(profile, MODEL).step((), 4, 200) == pytest.approx(expected)


def test_held_out_points_stay_out_of_the_tables_and_give_the_errors() -> None:
    held_out = [
        record("dense", {"tokens": 30}, [({"layer": call.layer}, [1.25e-3]) for call in LAYERS], held_out=True),
        record("step", {"prefills": [[10, 0]], "contexts": [20]}, [({}, [0.1])], held_out=True),
    ]
    profile = assembled(measurements() + held_out)
    assert 30 not in profile.tables["dense"]["tokens"]
    assert profile.errors["dense"]["held_out_median"] == pytest.approx(0.2)
    step = (DENSE_CALLS + 2 + 2 * MODEL.layers) * 1e-3 + 5e-3
    assert profile.errors["step"] == pytest.approx(
        {"held_out_points": 1, "held_out_median": abs(step - 0.1) / 0.1, "held_out_p90": abs(step - 0.1) / 0.1}
    )
    assert profile.held_out is not None
    measured = profile.held_out.filter(pl.col("kernel_class") == "dense")["measured"].item()
    assert measured == pytest.approx(DENSE_CALLS * 1.25e-3)


def test_fit_tells_a_bend_that_the_grid_misses() -> None:
    bent = record("dense", {"tokens": 32}, [({"layer": call.layer}, [4e-3]) for call in LAYERS])
    assert assembled([*measurements(), bent]).errors["dense"]["fit"] == pytest.approx(0.75)


def test_padded_steps_are_looked_up_as_they_were_run() -> None:
    """Dense kernels take longer by the token; a decode step of 5 was replayed from the graph of 8."""
    records = []
    for tokens in (1, 8, 64):
        rows = [({"layer": call.layer}, [1e-3 * tokens]) for call in LAYERS]
        records.append(record("dense", {"tokens": tokens}, rows))
    records += [one for one in measurements() if one["kernel_class"] in ("per_sequence", "attention")]
    padded = (DENSE_CALLS * 8 + 2 + MODEL.layers) * 1e-3
    point: Record = {"prefills": [], "contexts": [50] * 5}
    records.append(record("step", point, [({}, [padded + 5e-3])]))
    records.append(record("step", point, [({}, [padded + 5e-3])], held_out=True))
    provenance = Provenance("measured", "made", "none")
    profile = Profile("made", "made", MODEL, 1, "bfloat16", provenance, {}, grid={"graph_sizes": [4, 8]})
    assemble(profile, records)
    assert profile.tables["overhead"]["seconds"].to_list() == pytest.approx([5e-3])
    held_out = profile.held_out.filter(pl.col("kernel_class") == "step")
    assert held_out["predicted"].to_list() == pytest.approx(held_out["measured"].to_list())


def overhead_row(sequences: int, extra: int, seconds: float) -> Record:
    values = dict.fromkeys(("seconds", "p10", "p90"), seconds)
    return {"sequences": sequences, "tokens": sequences + extra, **values, "samples": 1}


def test_a_step_off_the_grid_takes_what_one_sequence_took_on_it_and_what_its_sequences_add() -> None:
    """511 tokens beyond 8 sequences are 519, and their products those of more than 512."""
    rows = [
        overhead_row(1, 0, 1.0),
        overhead_row(8, 0, 2.0),
        overhead_row(1, 63, 3.0),
        overhead_row(8, 63, 3.5),
        overhead_row(1, 511, 5.0),
        overhead_row(8, 511, 99.0),
    ]
    found = {(row["sequences"], row["tokens"]): row["seconds"] for row in on_the_grid(rows, {64, 256, 512})}
    assert found == {(1, 1): 1.0, (8, 8): 2.0, (1, 64): 3.0, (8, 71): 3.5, (1, 512): 5.0, (8, 519): 5.5}
    # With 519 in the grid it is measured; and where no step of one sequence is on the grid, nothing is known better.
    assert on_the_grid(rows, {512, 519}) == rows
    assert on_the_grid(rows, {64, 256}) == rows


def test_a_batch_size_without_prefills_takes_those_between_its_neighbours() -> None:
    steps = {(1, 0): 1.0, (1, 64): 2.0, (2, 0): 7.0, (3, 0): 9.0, (3, 64): 4.0, (9, 0): 8.0}
    rows = [overhead_row(sequences, extra, seconds) for (sequences, extra), seconds in steps.items()]
    assert sorted(between(rows), key=lambda row: row["sequences"]) == [
        {**overhead_row(2, 64, 3.0), "samples": 0},  # half-way
        {**overhead_row(9, 64, 4.0), "samples": 0},  # beyond the last: the last one's
    ]
    assert between(rows[:2]) == []
