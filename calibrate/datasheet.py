"""A profile where nothing was measured: the roofline of a device's published figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polars as pl
import yaml

from calibrate.model import ModelShape
from calibrate.profile import Profile, Provenance
from calibrate.roofline import decode_work, layer_work, prefill_work
from ground.errors import UserError

_DEVICES = Path(__file__).parent / "devices.yaml"

# Powers of two and their middles: a roofline has one bend, which linear interpolation between these barely cuts.
_TOKENS = sorted({s * 2**k for k in range(15) for s in (2, 3)} | {1})
_SEQUENCES = [n for n in _TOKENS if n <= 1024]
_CONTEXTS = [0, *(2**k for k in range(4, 18))]
_CHUNKS = [1, *(2**k for k in range(4, 15))]


@dataclass(frozen=True)
class Device:
    """Published figures: dense bf16 FLOP/s, memory bandwidth in bytes/s, memory in bytes, board power and what it draws
    without a process in watts.

    `multiprocessors` and `flash_attention` (the version of the kernels that vLLM runs there) are None where the
    bundled datasheet does not say.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    tdp: float
    idle: float
    source: str
    multiprocessors: int | None = None
    flash_attention: int | None = None
    aliases: tuple[str, ...] = ()


@cache
def devices() -> dict[str, Device]:
    """Every device whose datasheet is bundled."""
    entries = yaml.safe_load(_DEVICES.read_text(encoding="utf-8"))
    return {
        name: Device(
            name,
            float(entry["flops"]),
            float(entry["bandwidth"]),
            int(entry["memory"]),
            float(entry["tdp"]),
            float(entry["idle"]),
            entry["source"],
            entry.get("multiprocessors"),
            entry.get("flash_attention"),
            tuple(entry.get("aliases", ())),
        )
        for name, entry in entries.items()
    }


def find_device(name: str) -> Device:
    """A device by name.

    Raises:
        UserError: no bundled datasheet of that name.
    """
    if name not in devices():
        raise UserError(f"datasheet:{name}: no such device; expected one of {', '.join(devices())}")
    return devices()[name]


def device_like(name: str) -> Device | None:
    """The device that goes by this name or alias, however it is spelled; None where no datasheet is bundled."""

    def plain(text: str) -> str:
        return "".join(char for char in text.casefold() if char.isalnum())

    for device in devices().values():
        if plain(name) in map(plain, (device.name, *device.aliases)):
            return device
    return None


def datasheet_profile(device_name: str, model: ModelShape, tp: int) -> Profile:
    """Fill the kernel tables by max(FLOPs / peak, bytes / bandwidth): an upper bound on speed.

    Host overhead and copies are not in it: a datasheet does not know them.

    Raises:
        UserError: an unknown device, or a model that cannot be divided over `tp`.
    """
    device = find_device(device_name)
    rank = model.shard(tp)
    peak, bandwidth = device.flops, device.bandwidth

    def by_layer(kernel_class: str, axis: str, grid: list[int]) -> pl.DataFrame:
        layers = [call.layer for call in model.calls() if call.kernel_class == kernel_class]
        rows = [
            {"layer": layer, axis: n, "seconds": layer_work(rank, layer, n).seconds(peak, bandwidth)}
            for layer in layers
            for n in grid
        ]
        return pl.DataFrame(rows)

    attention = [
        (chunk, kv, 0, 0, prefill_work(rank, chunk, kv).seconds(peak, bandwidth))
        for chunk in _CHUNKS
        for kv in _CONTEXTS
    ]
    attention += [
        (0, 0, n, kv, decode_work(rank, n, kv).seconds(peak, bandwidth)) for n in _SEQUENCES for kv in _CONTEXTS
    ]
    return Profile(
        name=f"datasheet:{device.name}",
        device=device.name,
        model=model,
        tp=tp,
        dtype={2: "bfloat16", 4: "float32"}[model.dtype_bytes],
        provenance=Provenance(
            "datasheet",
            f"datasheet: upper bound on speed, nothing measured; roofline of {peak:.4g} FLOP/s and "
            f"{bandwidth:.4g} bytes/s ({device.source})",
            "figures published by the maker",
        ),
        tables={
            "dense": by_layer("dense", "tokens", _TOKENS),
            "per_sequence": by_layer("per_sequence", "sequences", _SEQUENCES),
            "attention": pl.DataFrame(
                attention,
                schema=["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "seconds"],
                orient="row",
            ),
        },
        device_memory=device.memory,
    )
