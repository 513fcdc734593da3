"""What a spec must become so that a runtime takes it, without meaning anything else.

Seen of runc 1.1.5, crun 1.8.1 and runsc 20221219:

- crun refuses versions of the spec that it does not know (`unknown version specified`: 1.2.0 and above), the others
  take any 1.x. The number changes nothing in how crun reads the rest, so it is lowered.
- All fail when an `oomScoreAdj` is refused by the kernel: below the caller's own without CAP_SYS_RESOURCE. It is raised
  to that, as CRI has it (`restrict_oom_score_adj`).
- Mounts with mappings of ids: crun maps them; runc before 1.2 and runsc mount without a word as if there were none,
  which would show a container other people's files as its own. Refused.
- runsc fails on capabilities that Linux got in 5.8 and 5.9 (`unknown capability "CAP_PERFMON"`). Nothing in a sandbox
  asks for them, so they are left out.
- Time namespaces: runc before 1.2 (`namespace .. does not exist`) and crun 1.8 (`Connection reset by peer`) fail, runsc
  leaves them out. Refused where `features` does not name the type, or says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from moored.kernel.errors import Unimplemented
from moored.kernel.ports.invocations import RuntimeFacts
from moored.plugins.runtime.oci.host import Host, look

_MAPPING_OPTIONS: Final = ("idmap", "ridmap")
_NO_GVISOR_CAPABILITIES: Final = frozenset({"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"})
_COMMON_NAMESPACES: Final = frozenset({"cgroup", "ipc", "mount", "network", "pid", "user", "uts"})


def adapt_spec(driver: str, facts: RuntimeFacts, spec: dict[str, Any], *, host: Host | None = None) -> None:
    """Change a spec in place for a driver's runtime. Unimplemented for what it cannot do, naming the field."""
    seen = host or look()
    if driver == "crun":
        _lower_version(facts, spec)
    if driver == "runsc":
        _drop_capabilities(spec)
    _raise_oom_score(seen, spec)
    features = _features(facts)
    if not _maps_mounts(driver, features):
        _refuse_mapped_mounts(facts, spec)
    _refuse_namespaces(facts, features, spec)


def _lower_version(facts: RuntimeFacts, spec: dict[str, Any]) -> None:
    wanted, known = _numbers(spec.get("ociVersion")), _numbers(facts.spec_version)
    if wanted and known and wanted > known:
        spec["ociVersion"] = facts.spec_version


def _drop_capabilities(spec: dict[str, Any]) -> None:
    sets = _at(spec, "process", "capabilities")
    for name, listed in sets.items() if isinstance(sets, dict) else ():
        if isinstance(listed, list):
            sets[name] = [one for one in listed if one not in _NO_GVISOR_CAPABILITIES]


def _raise_oom_score(host: Host, spec: dict[str, Any]) -> None:
    process = spec.get("process")
    score = process.get("oomScoreAdj") if isinstance(process, dict) else None
    lowest = host.lowest_oom_score
    if isinstance(process, dict) and isinstance(score, int) and lowest is not None and score < lowest:
        process["oomScoreAdj"] = lowest


def _maps_mounts(driver: str, features: Mapping[str, Any]) -> bool:
    said = _at(features, "linux", "mountExtensions", "idmap", "enabled")
    return said if isinstance(said, bool) else driver == "crun"


def _refuse_mapped_mounts(facts: RuntimeFacts, spec: Mapping[str, Any]) -> None:
    for number, mount in enumerate(_objects(spec.get("mounts"))):
        given = [name for name in ("uidMappings", "gidMappings") if mount.get(name)]
        options = [str(one) for one in mount.get("options") or ()]
        if any(one.split("=")[0] in _MAPPING_OPTIONS for one in options):
            given.append("options")
        if given:
            raise Unimplemented(f"mounts[{number}].{given[0]}: {_name(facts)} cannot map the ids of a mount")


def _refuse_namespaces(facts: RuntimeFacts, features: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    listed = _at(features, "linux", "namespaces")
    known = {str(one) for one in listed} if isinstance(listed, list) else _COMMON_NAMESPACES
    for number, space in enumerate(_objects(_at(spec, "linux", "namespaces"))):
        type_ = space.get("type")
        if type_ not in known | _COMMON_NAMESPACES:
            raise Unimplemented(f"linux.namespaces[{number}].type: {_name(facts)} has no {type_!r} namespaces")


def _features(facts: RuntimeFacts) -> Mapping[str, Any]:
    try:
        found = json.loads(facts.features) if facts.features else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _numbers(version: object) -> tuple[int, ...]:
    """The numbers of `1.0.2-dev`; empty for what is no version."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", version) if isinstance(version, str) else None
    return tuple(map(int, found.groups())) if found else ()


def _at(table: Mapping[str, Any], *path: str) -> Any:
    """What is at a path of nested objects, None where one is missing."""
    found: Any = table
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _objects(value: object) -> Iterable[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _name(facts: RuntimeFacts) -> str:
    return f'runtime "{facts.name}" {facts.version}'.rstrip()
