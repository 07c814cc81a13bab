"""The known trace formats. A new one is a new file with a `READER`, and its line here."""

from traces.readers import azure, burstgpt, canonical, llmservingsim, mooncake, vidur
from traces.readers.reader import Reader

READERS: tuple[Reader, ...] = (
    mooncake.READER,
    azure.READER,
    burstgpt.READER,
    vidur.READER,
    llmservingsim.READER,
    canonical.READER,
)
