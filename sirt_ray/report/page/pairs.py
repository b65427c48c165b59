"""Figures of a round's stored pairs: their number by rule, and the lengths of their sides."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sirt_ray.artifacts import parquet

_BINS = 30
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of one side of the pairs."""

    shares: tuple[float, ...]
    """Percent of the side's completions in each bin."""
    median: float


@dataclass(frozen=True, slots=True)
class PairFigures:
    """The figures of a round's pairs."""

    version: str
    """`round_01`."""
    rules: Mapping[str, int]
    """Rule -> number of pairs."""
    unit: str
    """The unit of lengths: `tokens`, or `characters` if an endpoint wrote the texts and its tokens
    are not known."""
    edges: tuple[float, ...]
    """Edges of the bins, one more than there are bins."""
    sides: Mapping[str, Lengths]
    """`chosen` and `rejected`; a side that no pair has is left out."""

    @property
    def pairs(self) -> int:
        return sum(self.rules.values())


def read_pairs(folder: Path, version: str) -> PairFigures:
    """Read the pairs of `version`. Raises DataError if a file cannot be read."""
    rules: Counter[str] = Counter()
    lengths: dict[str, list[int]] = {f"{side}_{unit}": [] for side in _SIDES for unit in ("t", "c")}
    columns = ["rule", *_SIDES, *(f"{side}_ids" for side in _SIDES)]
    for file in parquet.files(folder):
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(columns=columns):
                    rules.update(batch.column("rule").to_pylist())
                    for side in _SIDES:
                        of_ids = pc.call_function(
                            "list_value_length", [batch.column(f"{side}_ids")]
                        )
                        of_text = pc.call_function("utf8_length", [batch.column(side)])
                        lengths[f"{side}_t"] += of_ids.drop_null().to_pylist()
                        lengths[f"{side}_c"] += of_text.drop_null().to_pylist()
        except (pa.ArrowInvalid, KeyError, OSError) as error:
            raise parquet.unreadable(file, error) from error
    in_tokens = all(any(lengths[f"{side}_t"]) or not lengths[f"{side}_c"] for side in _SIDES)
    unit, key = ("tokens", "t") if in_tokens else ("characters", "c")
    found = {side: lengths[f"{side}_{key}"] for side in _SIDES if lengths[f"{side}_{key}"]}
    edges = _edges([length for of_side in found.values() for length in of_side])
    return PairFigures(
        version, dict(rules), unit, edges, {side: _of(of, edges) for side, of in found.items()}
    )


def _edges(lengths: Sequence[int]) -> tuple[float, ...]:
    """Return edges of bins of a whole number of tokens each."""
    if not lengths:
        return (0.0, 1.0)
    first, last = min(lengths), max(lengths)
    width = max(1, -(-(last - first + 1) // _BINS))
    return tuple(float(edge) for edge in range(first, last + width + 1, width))


def _of(lengths: Sequence[int], edges: Sequence[float]) -> Lengths:
    counted, _ = np.histogram(lengths, bins=list(edges))
    return Lengths(tuple(100 * counted / len(lengths)), float(np.median(lengths)))
