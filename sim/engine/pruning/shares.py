"""Which share of tokens runs a layer, where the input decides."""

from typing import Annotated

from pydantic import Field

Shares = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)]
