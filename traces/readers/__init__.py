"""The known trace formats. A new one is a new file with a `READER`, and its line here."""

from traces.readers import (
    aiperf,
    azure,
    bailian,
    burstgpt,
    canonical,
    llmservingsim,
    mooncake,
    ragpulse,
    splitwise,
    tracelab,
    vidur,
    weka,
)
from traces.readers.reader import Reader

READERS: tuple[Reader, ...] = (
    mooncake.READER,
    aiperf.READER,
    azure.READER,
    burstgpt.READER,
    vidur.READER,
    splitwise.READER,
    llmservingsim.READER,
    bailian.READER,
    ragpulse.READER,
    weka.READER,
    tracelab.READER,
    canonical.READER,
)
