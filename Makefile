# `make demo` and `make test` need nothing but Python 3.11 or newer: each makes .venv and installs into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo slowdown fleet policies test lint types unit fresh-draws bench clean
.DELETE_ON_ERROR:

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,client,forecast,telemetry,search,ray,dev]'
	touch $@

# Calibrate on this CPU, sweep a study with the result, replay its winner and its baseline on the real engine.
demo: install
	rm -rf runs/demo
	$(BIN)/simctl calibrate run --device cpu --threads 1 --model tiny-llama -o runs/demo/profile
	$(BIN)/simctl sweep examples/demo/study.yaml -o runs/demo/sweep
	$(BIN)/simctl validate winners runs/demo/sweep --device cpu --threads 1 --top 1 --repeats 1 -o runs/demo

# Every symptom of an engine that gets slower, and what its remedy gives.
slowdown: install
	$(BIN)/python examples/slowdown/run.py -o runs/slowdown --force

# Policies of a fleet side by side: scaling, routing, disaggregation, placement, model caches, failures.
fleet: install
	$(BIN)/python examples/fleet/run.py -o runs/fleet --force

# Batching, pruning and offload: train a small model, measure its kernels and what pruning costs its answers, search each
# study, and replay the winners on the real engine.
STUDIES := windows batching_bursts batching_conversation pruning offload
policies: install
	rm -rf runs/policies
	$(BIN)/simctl validate train -o runs/policies/model
	$(BIN)/simctl calibrate run --device cpu --threads 1 --pruning --model runs/policies/model/config.json -o runs/policies/profile
	$(BIN)/simctl validate quality examples/policies/pruning.yaml -o runs/policies/quality
	for study in $(STUDIES); do \
	$(BIN)/simctl search examples/policies/$$study.yaml -o runs/policies/$$study || exit 1; done
	$(BIN)/python examples/policies/speculation.py runs/policies/model runs/policies/profile
	$(BIN)/simctl validate winners $(STUDIES:%=runs/policies/%) --threads 1 --top 2 -o runs/policies/winners

test: lint types unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

unit: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The properties on draws that nobody has seen, three times as many as in `make unit`. What fails is kept in .hypothesis
# and drawn first the next time.
fresh-draws: install
	for round in 1 2 3; do \
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "hypothesis and not slow" --hypothesis-profile fresh || exit 1; done

# What takes minutes or measures time: fresh draws, slow tests, the simulator's speed, its error on real vLLM runs (where
# SIMCTL_DATA has them), a day of sessions, and a real vLLM and a real OpenVINO GenAI where an interpreter has one.
bench: install fresh-draws
	$(BIN)/python -m pytest -m slow || [ $$? = 5 ]
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/fidelity.py
	$(BIN)/python benchmarks/soak.py
	@if [ -n "$(SIMCTL_VLLM_PYTHON)" ]; then $(BIN)/python benchmarks/vllm_cpu.py --python "$(SIMCTL_VLLM_PYTHON)"; \
	else echo "vLLM: skipped, SIMCTL_VLLM_PYTHON names no interpreter that has it (docs/validation-vllm.md)"; fi
	@if [ -n "$(SIMCTL_OPENVINO_PYTHON)" ]; then \
	$(BIN)/python benchmarks/openvino_genai.py --python "$(SIMCTL_OPENVINO_PYTHON)"; \
	else echo "OpenVINO: skipped, SIMCTL_OPENVINO_PYTHON names no interpreter that has it" \
	"(docs/validation-other-engines.md)"; fi

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
