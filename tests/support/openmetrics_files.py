"""OpenMetrics text read back, one scrape at a time, with the parser of prometheus_client.

The parser takes the second sample of a histogram for a repetition of the first, where a file has several; so each
instant is parsed as the page that a server would have shown then.
"""

import io
from collections import defaultdict
from collections.abc import Collection, Iterator

from prometheus_client.openmetrics.parser import text_fd_to_metric_families

# (sample's name, its labels in order) → value
Scrape = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrapes(text: str, only: Collection[str] = ()) -> dict[float, Scrape]:
    """Unix time → all samples of that instant, in the order of time; of these metrics `only`, where any are named."""
    assert text.endswith("\n# EOF\n")
    if only:
        text = "".join(_families(text, only)) + "# EOF\n"
    pages: dict[str, list[str]] = defaultdict(list)
    header: list[str] = []
    stamps = sorted({line.rpartition(" ")[2] for line in text.splitlines() if not line.startswith("#")}, key=float)
    for line in text.splitlines():
        if line == "# EOF":
            break
        if line.startswith("#"):
            header = [line] if line.startswith("# HELP") else [*header, line]
            for stamp in stamps:
                pages[stamp].append(line)
        else:
            pages[line.rpartition(" ")[2]].append(line)
    assert header
    found: dict[float, Scrape] = {}
    for stamp in stamps:
        page = io.StringIO("\n".join([*pages[stamp], "# EOF"]) + "\n")
        samples = [sample for family in text_fd_to_metric_families(page) for sample in family.samples]
        assert {float(sample.timestamp) for sample in samples} == {float(stamp)}
        found[float(stamp)] = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
        assert len(found[float(stamp)]) == len(samples)
    return found


def _families(text: str, only: Collection[str]) -> Iterator[str]:
    """The lines of some metrics."""
    wanted = False
    for line in text.splitlines(keepends=True):
        if line.startswith("# HELP"):
            wanted = line.split(" ")[2].removeprefix("vllm:") in only
        if wanted and line != "# EOF\n":
            yield line


def series(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[float, float]]]:
    """Each series as (Unix time, value) in the order of time."""
    lines: dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[float, float]]] = defaultdict(list)
    for time, page in scrapes(text).items():
        for key, value in page.items():
            lines[key].append((time, value))
    return dict(lines)


def times_rise(text: str) -> bool:
    """Whether the lines of each series stand in the order of time, each instant once."""
    last: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            key, _, stamp = line.rpartition(" ")
            key = key.rpartition(" ")[0]
            if key in last and float(stamp) <= last[key]:
                return False
            last[key] = float(stamp)
    return True


def last_totals(text: str) -> dict[str, float]:
    """Sample's name → its last value, summed over labels but `le`, of whose buckets the one that holds all counts."""
    totals: dict[str, float] = defaultdict(float)
    for (name, labels), points in series(text).items():
        if dict(labels).get("le", "+Inf") == "+Inf":
            totals[name] += points[-1][1]
    return dict(totals)
