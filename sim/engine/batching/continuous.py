"""Who waits may join every step: iteration-level scheduling (Yu et al., "Orca", OSDI 2022), as vLLM does it."""

from __future__ import annotations

from typing import Literal

from ground.spec import Spec


class ContinuousSettings(Spec):
    policy: Literal["continuous"] = "continuous"
