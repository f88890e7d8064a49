"""The programs of a run from its settings alone: jitted functions with abstract arguments.

Nothing is loaded and no array is made, so the programs of a pod can be traced and compiled anywhere. They are the
run's own: each stage lists the functions that it calls (`programs` in its module), at the largest shapes that its
settings allow. Where a length comes from the data (`rollout.max_prompt_tokens` = 0) it is that of `Prompts`.
"""

from __future__ import annotations

from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.structs import Program
from r1jax.runs.abstract_model import ASSUMED, Prompts
from r1jax.stages.registry import stage_of


def list_programs(settings: Any, prompts: Prompts = ASSUMED) -> list[Program]:
    """The programs of a run with these settings, under the current mesh.

    Raises UserError for a stage without programs, for a model whose sizes are unknown without its files, and for shapes
    that are not divisible over the mesh.
    """
    stage = stage_of(settings)
    if not hasattr(stage, "programs"):
        raise UserError(f"config.stage = {settings.stage!r} has no programs: it computes nothing on accelerators")
    return stage.programs(settings, prompts)
