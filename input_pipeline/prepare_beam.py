"""The shards of `omni-jax prepare` made by Apache Beam, where one machine is not enough.

Any runner will do that sees the data and the folder of the shards under the same paths. Beam is an extra of its own;
without it, `omni-jax prepare --part I/N` on N machines does the same.
"""

from functools import partial
from typing import Any

from input_pipeline.prepare_shards import Marker, Preparation, begin, make_shard, make_shards


def make_shards_with_beam(preparation: Preparation, *, overwrite: bool = False, **pipeline: Any) -> list[Marker]:
    """Makes the shards that are missing, then the index; markers in order.

    Args:
        pipeline: what `beam.Pipeline` takes: runner, options.

    Raises:
        DataError: see `begin` and `make_shard`.
    """
    import apache_beam as beam

    begin(preparation, overwrite=overwrite)
    with beam.Pipeline(**pipeline) as graph:
        shards = graph | beam.Create(range(preparation.shards)) | beam.Reshuffle()
        shards | beam.Map(partial(_make, preparation))
    return make_shards(preparation, range(preparation.shards))


def _make(preparation: Preparation, shard: int) -> int:
    """A marker holds the sizes of all records; only their count needs to travel."""
    return make_shard(preparation, shard)["count"]
