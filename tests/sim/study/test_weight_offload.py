"""Scenarios whose weights stream from host memory: their room, their time, and what of it they waited for."""

import pytest

from calibrate.model import load_model
from calibrate.streamed_latency import layer_bytes
from ground.errors import UserError
from ground.spec import check_spec
from sim.results.diagnosis.diagnosis import diagnose
from sim.study.deployment import deploy
from sim.study.scenario import Scenario
from sim.study.simulate import simulate

MODEL = load_model("Llama-3.1-8B")
SCENARIO = {
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "trace": {
        "synth": {
            "requests": 8,
            "arrivals": {"process": "poisson", "rate": 20.0},
            "lengths": {
                "prompt": {"distribution": "constant", "value": 300},
                "output": {"distribution": "constant", "value": 30},
            },
        }
    },
}


def scenario(layers: int, **engine: object) -> Scenario:
    own = {"host_bandwidth": 50e9, "weight_offload": {"layers": layers}} | engine
    return check_spec(Scenario, SCENARIO | {"engine": own}, "made")


def test_streamed_layers_leave_room_for_kv_blocks_and_take_their_time() -> None:
    plain = deploy(check_spec(Scenario, SCENARIO, "made")).config.kv_blocks
    block_bytes = 16 * MODEL.kv_bytes_per_token()
    assert deploy(scenario(16)).config.kv_blocks - plain == pytest.approx(
        14 * layer_bytes(MODEL, 1) / block_bytes, abs=1
    )
    run = simulate(scenario(16))
    assert run.metrics["tpot"]["mean"] == pytest.approx(16 * layer_bytes(MODEL, 1) / 50e9, rel=0.05)
    assert "engine.weight_offload.seconds" in {one.name for one in run.assumptions}


def test_what_steps_waited_for_is_told() -> None:
    run = simulate(scenario(16))
    found = diagnose(run, deploy(scenario(16)).step_times, measured=False)
    assert found.ranking[0] == "weight_stream"
    assert found.share("weight_stream") > 0.8


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"swap_blocks": 10}, "weight_offload is given, and so is swap_blocks; expected one of them"),
        ({"kv_offload": {"host_blocks": 5}}, "weight_offload is given, and so is kv_offload; expected one of them"),
        ({"pipeline_parallel": 2}, "weight_offload is given, and so is pipeline_parallel; expected one of them"),
        ({"weight_offload": {"layers": 33}}, "weight_offload.layers is 33 and Llama-3.1-8B has 32; expected no more"),
        ({"host_bandwidth": None}, "holds no copies between device and host, .* weight_offload need"),
    ],
)
def test_what_does_not_fit_is_refused(engine: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        deploy(scenario(4, **engine))
