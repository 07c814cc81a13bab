"""Policies of the door, by name. A new one is one file here, its settings and one line in `ADMISSIONS`."""

from collections.abc import Callable
from typing import Any

from sim.fleet.admission.admission import Admission, Hall
from sim.fleet.admission.kv_use import KvUse
from sim.fleet.admission.max_outstanding import MaxOutstanding
from sim.fleet.admission.priority_shed import PriorityShed
from sim.fleet.admission.queue_limit import QueueLimit
from sim.fleet.admission.token_bucket import TokenBucket

# Each takes the settings of its name (`sim.fleet.admission_settings`).
ADMISSIONS: dict[str, Callable[[Any, Hall], Admission]] = {
    "max_outstanding": MaxOutstanding,
    "queue_limit": QueueLimit,
    "token_bucket": TokenBucket,
    "kv_use": KvUse,
    "priority": PriorityShed,
}
