"""The supervised data sets of a run's settings, each with the model whose tokenizer encodes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from r1jax.data.corpus import CorpusConfig, without_weights
from r1jax.runs.model_setup import ModelConfig
from r1jax.stages.distill.traces import TracesConfig
from r1jax.stages.pipeline.resolve import PipelineConfig, make_plan, trace_shapes
from r1jax.stages.sft_config import SFTConfig


class DataSet(NamedTuple):
    """A section of the config that names sources, its key, and the model that learns them."""

    key: str
    corpus: CorpusConfig
    model: ModelConfig


def list_data_sets(settings: Any, workdir: Any = None) -> Iterator[DataSet]:
    """The data sets that a run encodes before it trains: those of files that exist before it begins."""
    if isinstance(settings, PipelineConfig):
        plan, _ = make_plan(settings, workdir)
        for planned in trace_shapes(plan):
            for found in list_data_sets(planned.settings):
                yield found._replace(key=f"stages.{planned.name}.{found.key}")
    elif isinstance(settings, TracesConfig):
        if (mixed_in := without_weights(settings.corpus)).sources:  # beside the teacher's samples
            yield DataSet("corpus", mixed_in, settings.student)
    elif isinstance(settings, SFTConfig):
        yield DataSet("data", settings.data, settings.model)
