"""Any model's layers, looked up in kernels that were measured for no model in particular."""

from __future__ import annotations

from math import log2
from typing import Any

import polars as pl

from calibrate.attention_law import prefill_work
from calibrate.curve import Curve
from calibrate.gemm_table import GemmTable, Product
from calibrate.model import ModelShape
from calibrate.profile import Profile, Provenance
from calibrate.roofline import layer_work
from ground.errors import UserError

_TABLES = ("gemm", "prefill_attention", "decode_attention")
_PREFIXES = [2**k for k in range(4, 18)]


def library_profile(library: Profile, model: ModelShape, tp: int) -> Profile:
    """The profile of one rank of `model` at `tp`, out of a profile of no model.

    Linear layers are the measured products of the rank's shapes, or borrowed by efficiency (`GemmTable`). Attention
    is that of the rank's heads, or borrowed from the nearest measured heads of the same size. Experts are those of
    exactly this shape. Layers that move bytes only were not measured: each is one kernel of the measured floor plus
    its bytes at the measured bandwidth.

    `grid["borrowed"]` says, by layer, what was borrowed from where; `grid["assumed"]`, what was measured nowhere.

    Raises:
        UserError: the library lacks a table, the model is not of 16-bit weights or cannot be divided over `tp`,
            no attention of its head size was measured, or it has experts whose shape was not.
    """
    for name in _TABLES:
        if name not in library.tables:
            held = ", ".join(library.tables) or "none"
            raise UserError(
                f"profile {library.name}: no kernel class {name}, which {model.name} needs; it holds {held}"
            )
    if model.dtype_bytes != 2:
        raise UserError(
            f"profile {library.name}: its kernels are of bfloat16; {model.name} has {8 * model.dtype_bytes}-bit weights"
        )
    rank = model.shard(tp)
    gemm = GemmTable(library.tables["gemm"])
    borrowed: dict[str, str] = {}
    assumed: dict[str, str] = {}
    tables = {
        "dense": _layers(gemm, model, rank, tp, "dense", "tokens", borrowed, assumed),
        "per_sequence": _layers(gemm, model, rank, tp, "per_sequence", "sequences", borrowed, assumed),
        "attention": _attention(library, rank, borrowed, assumed),
    }
    if model.experts:
        router = gemm.product(model.experts, model.hidden)
        tables["moe"] = _experts(library, model, tp, Curve(router.ms, router.seconds), assumed)
        if router.borrowed_from:
            borrowed["router"] = _borrowing(model.experts, model.hidden, router)
    if "collective" in library.tables:
        tables["collective"] = library.tables["collective"]
    grid: dict[str, Any] = {**library.grid, "borrowed": borrowed, "assumed": assumed}
    note = f"{library.provenance.note}; {model.name} at tp = {tp} looked up by the shapes of its layers"
    if borrowed:
        note += f", borrowed: {', '.join(borrowed)}"
    return Profile(
        name=f"{library.name} {model.name} tp{tp}",
        device=library.device,
        model=model,
        tp=tp,
        dtype="bfloat16",
        provenance=Provenance(library.provenance.source, note, library.provenance.licence),
        tables=tables,
        device_memory=library.device_memory,
        driver=library.driver,
        versions=library.versions,
        date=library.date,
        block_size=library.block_size,
        grid=grid,
    )


def _layers(
    gemm: GemmTable,
    model: ModelShape,
    rank: ModelShape,
    tp: int,
    kernel_class: str,
    axis: str,
    borrowed: dict[str, str],
    assumed: dict[str, str],
) -> pl.DataFrame:
    """Every layer of a kernel class, at the m of the products, as columns layer, `axis` and seconds."""
    linears = {linear.name: linear for linear in model.linears(tp)}
    products = {name: gemm.product(linear.outputs, linear.inputs) for name, linear in linears.items()}
    grid = sorted({m for product in products.values() for m in product.ms})
    rows: list[tuple[str, int, float]] = []
    for name in (call.layer for call in model.calls() if call.kernel_class == kernel_class):
        if name in linears:
            product, linear = products[name], linears[name]
            rows += [(name, m, seconds) for m, seconds in zip(product.ms, product.seconds, strict=True)]
            if product.borrowed_from:
                borrowed[name] = _borrowing(linear.outputs, linear.inputs, product)
        else:
            rows += [(name, m, gemm.floor + layer_work(rank, name, m).bytes / gemm.bandwidth) for m in grid]
            assumed[name] = (
                f"not measured: a kernel's floor of {gemm.floor:.3g} s plus its bytes at {gemm.bandwidth:.4g} bytes/s"
            )
    return pl.DataFrame(rows, schema={"layer": pl.String, axis: pl.Int64, "seconds": pl.Float64}, orient="row")


def _borrowing(n: int, k: int, product: Product) -> str:
    return f"{n}×{k} from {', '.join(f'{n1}×{k1}' for n1, k1 in product.borrowed_from)}"


def _attention(library: Profile, rank: ModelShape, borrowed: dict[str, str], assumed: dict[str, str]) -> pl.DataFrame:
    """Rows (prefill_chunk, kv_prefill, 0, 0) and (0, 0, n_decode, kv_decode) of one rank's heads."""
    decode = _of_heads(library, "decode_attention", rank, ("kv_heads", "heads"), borrowed).sort("sequences", "context")
    prefill = _of_heads(library, "prefill_attention", rank, ("heads", "kv_heads"), borrowed)
    squares = prefill.filter(pl.col("sequences") == 1).sort("new_tokens")
    if squares.is_empty():
        raise UserError(f"profile {library.name}: kernel class prefill_attention has no row of one sequence")
    chunks = squares["new_tokens"].to_list()
    square = Curve([prefill_work(new, 0) for new in chunks], squares["seconds"].to_list())
    alone = decode.filter(pl.col("sequences") == decode["sequences"].min())
    one = Curve(alone["context"].to_list(), alone["seconds"].to_list())
    rows = []
    for chunk in chunks:
        rows.append((chunk, 0, 0, 0, square(prefill_work(chunk, 0))))
        for prefix in _PREFIXES:
            if prefix <= one.high + 1:
                last = chunk + prefix - 1  # what the chunk's last token finds cached
                rows.append((chunk, prefix, 0, 0, max(square(prefill_work(chunk, prefix)), one(last))))
    assumed["attention"] = (
        "a prefill behind cached tokens was not measured: it takes as long as the causal prefill, from nothing, of as "
        f"many query-key pairs (beyond {chunks[-1]} tokens at the rate of the last two), and no less than a decode "
        "behind the same context"
    )
    rows += [(0, 0, n, kv, seconds) for n, kv, seconds in decode.select("sequences", "context", "seconds").iter_rows()]
    keys = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode"]
    schema = {**dict.fromkeys(keys, pl.Int64), "seconds": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _of_heads(
    library: Profile, kernel_class: str, rank: ModelShape, order: tuple[str, str], borrowed: dict[str, str]
) -> pl.DataFrame:
    """The rank's rows of an attention table, or those of the nearest heads, scaled.

    `order` says what the kernel's time follows, first what counts more: query heads where FLOPs bind (prefill), KV
    heads where bytes do (decode). What exceeds the smallest time of the rows borrowed from scales with the first.
    """
    wanted = {"heads": rank.heads, "kv_heads": rank.kv_heads}
    table = library.tables[kernel_class]
    same_size = table.filter(pl.col("head_dim") == rank.head_dim)
    if same_size.is_empty():
        sizes = ", ".join(str(size) for size in table["head_dim"].unique().sort())
        raise UserError(
            f"profile {library.name}: kernel class {kernel_class} has no head_dim {rank.head_dim}; it holds {sizes}"
        )
    pairs = same_size.select("heads", "kv_heads").unique().sort("heads", "kv_heads").to_dicts()
    nearest = min(pairs, key=lambda pair: [abs(log2(pair[name] / wanted[name])) for name in order])
    rows = same_size.filter(pl.col("heads") == nearest["heads"], pl.col("kv_heads") == nearest["kv_heads"])
    if nearest == wanted:
        return rows
    borrowed[kernel_class] = (
        f"{rank.heads} heads on {rank.kv_heads} KV heads from {nearest['heads']} on {nearest['kv_heads']}, "
        f"head_dim {rank.head_dim}"
    )
    floor = rows["seconds"].min()
    ratio = wanted[order[0]] / nearest[order[0]]
    return rows.with_columns(seconds=pl.lit(floor) + (pl.col("seconds") - floor) * ratio)


def _experts(library: Profile, model: ModelShape, tp: int, router: Curve, assumed: dict[str, str]) -> pl.DataFrame:
    """One layer's experts of a rank that holds `1 / tp` of each, and the router before them."""
    wanted = {
        "hidden": model.hidden,
        "intermediate": model.moe_intermediate,
        "experts": model.experts,
        "experts_per_token": model.experts_per_token,
        "tp": tp,
        "ep": 1,
    }
    table = library.tables.get("expert_mlp", pl.DataFrame(schema=[*wanted, "tokens", "seconds"]))
    rows = table.filter(pl.col(name) == value for name, value in wanted.items()).sort("tokens")
    if rows.is_empty():
        asked = ", ".join(f"{name} {value}" for name, value in wanted.items())
        raise UserError(f"profile {library.name}: no experts of the shape of {model.name} were measured ({asked})")
    assumed["moe"] = "measured with the tokens spread evenly over the experts; the router's product is added"
    activated = pl.min_horizontal(pl.col("tokens") * model.experts_per_token, pl.lit(model.experts))
    rows = rows.select("tokens", activated_experts=activated, seconds="seconds")
    return rows.with_columns(seconds=rows["seconds"] + pl.Series([router(n) for n in rows["tokens"]]))
