"""Synthetic traces: arrival processes, length distributions, shared prefixes, multi-turn sessions, client mixes."""

from traces.synth.generate import generate
from traces.synth.spec import SynthSpec, load_spec

__all__ = ["SynthSpec", "generate", "load_spec"]
