"""A link's figures come from the scenario or from its kind, and then they are assumptions."""

import pytest

from ground.errors import UserError
from ground.spec import check_spec
from sim.fleet.links.kinds import LINK_KINDS
from sim.fleet.links.settings import LinkSettings


@pytest.mark.parametrize("kind", LINK_KINDS)
def test_a_kind_gives_its_figures_and_says_whose_they_are(kind: str) -> None:
    bandwidth, latency, assumptions = LinkSettings(kind=kind).figures("fleet.link")
    assert (bandwidth, latency) == (LINK_KINDS[kind].bandwidth, LINK_KINDS[kind].latency)
    assert [(a.name, a.value) for a in assumptions] == [
        ("fleet.link.bandwidth", bandwidth),
        ("fleet.link.latency", latency),
    ]
    assert all(a.note for a in assumptions)


def test_a_given_figure_is_no_assumption() -> None:
    bandwidth, latency, assumptions = LinkSettings(kind="pcie5", bandwidth=2e10).figures("x")
    assert (bandwidth, latency) == (2e10, LINK_KINDS["pcie5"].latency)
    assert [a.name for a in assumptions] == ["x.latency"]
    assert LinkSettings(bandwidth=1e9, latency=0.01).figures("x") == (1e9, 0.01, [])


@pytest.mark.parametrize(
    ("given", "said"),
    [({"kind": "nvlink9"}, "unknown kind of link 'nvlink9'"), ({"latency": 1}, "neither kind nor bandwidth")],
)
def test_what_is_no_link_is_said_in_one_line(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_spec(LinkSettings, given, "the link")
