"""What every part of a spec shares: unknown keys are refused, and a spec does not change once made."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    # allow_inf_nan: a YAML `.nan` or `.inf` passes comparisons such as gt=0 in one way or another; no key means it.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
