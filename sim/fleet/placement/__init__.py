"""Placement policies by name; a new one is one file and one line here."""

from sim.fleet.placement.cost_aware import CostAware
from sim.fleet.placement.deadline_aware import DeadlineAware
from sim.fleet.placement.fixed import Fixed
from sim.fleet.placement.load_aware import LoadAware
from sim.fleet.placement.placement import Placement

PLACEMENTS: dict[str, type[Placement]] = {
    "fixed": Fixed,
    "deadline_aware": DeadlineAware,
    "cost_aware": CostAware,
    "load_aware": LoadAware,
}
