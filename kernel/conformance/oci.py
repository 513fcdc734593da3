"""What every `OciRuntime` driver does; each check takes a `Stage`, and `checks()` lists them all.

    @pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__)
    def test_driver(check, tmp_path):
        asyncio.run(run(check, tmp_path))       # makes a driver, awaits check(Stage(driver=.., ...))

Needs root, the runtime itself, and a root file system with `/bin/sh` and `/bin/sleep`. The driver must give up on a
hanging binary within a few seconds. What verbs an invocation does not list is not called.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moored.kernel.conformance import fails_with
from moored.kernel.errors import NotFound, Unavailable
from moored.kernel.ports.oci import Invocation, OciRuntime, RuntimeOptions

SECONDS = 30.0
"""How long a call or an exit may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a check works with.

    driver      the driver under test
    folder      an empty folder, for bundles and state
    rootfs      a root file system; containers see it read-only
    """

    driver: OciRuntime
    folder: Path
    rootfs: Path

    def spec(self, *args: str) -> dict[str, Any]:
        """An ordinary container's spec, that runs a program."""
        capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"]
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": list(args),
                "env": ["PATH=/bin"],
                "cwd": "/",
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.rootfs), "readonly": True},
            "hostname": "conformance",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            ],
            "linux": {
                "cgroupsPath": f"/{self.id}",
                "resources": {},
                "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network")],
            },
        }

    @property
    def id(self) -> str:
        """The container's id and the name of its cgroup; another for each folder."""
        return "conformance-" + hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]

    @property
    def options(self) -> RuntimeOptions:
        """Options that keep the state in the folder."""
        return RuntimeOptions(root=str(self.folder / "state"))

    def script(self, name: str, *lines: str) -> RuntimeOptions:
        """Options that name a binary which is a script of these lines; `$REAL` is the driver's own binary."""
        path = self.folder / name
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return RuntimeOptions(binary=str(path))

    @asynccontextmanager
    async def container(
        self, *args: str, change: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> AsyncGenerator[Container]:
        """A container created from an ordinary spec after a change; deleted by force at the end, come what may."""
        facts = await self.driver.facts()
        spec = self.spec(*args)
        change(spec)
        await asyncio.to_thread(self.driver.adapt, facts, spec)
        invocation = await asyncio.to_thread(self.driver.invocation, facts, self.options, "space", spec)
        bundle = self.folder / "bundle"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(spec))
        async with caller() as call:
            container = Container(self.id, invocation, bundle, call, spec)
            try:
                yield container
            finally:
                await container.verb("delete", "--force", container.id)


@dataclass(slots=True)
class Caller:
    """The `subreaper` program, asked one thing at a time."""

    process: asyncio.subprocess.Process

    async def ask(self, **request: Any) -> int | None:
        """Send a request and give the status of its answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        await self.process.stdin.drain()
        answer = json.loads(await self.process.stdout.readline())
        status = answer["status"]
        assert status is None or isinstance(status, int)
        return status


@asynccontextmanager
async def caller() -> AsyncGenerator[Caller]:
    """Run a `subreaper`; at the end it has no children left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "moored.kernel.conformance.subreaper",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield Caller(process)
    finally:
        assert process.stdin
        process.stdin.close()
        await process.wait()


@dataclass(slots=True)
class Container:
    """One container, driven by its invocation as a shim drives it."""

    id: str
    invocation: Invocation
    bundle: Path
    caller: Caller
    spec: Mapping[str, Any]
    said: list[str] = field(default_factory=list)

    async def verb(self, *words: str, stdin: str = "") -> int | None:
        """Call the runtime; its status. What it writes is in `output`."""
        call, bundle = self.invocation, str(self.bundle)
        globals_ = ["--root", call.root, "--log", f"{bundle}/log.json", "--log-format", "json"]
        globals_ += ["--systemd-cgroup"] if call.systemd_cgroup else []
        return await self.caller.ask(
            call=[call.binary, *call.flags, *globals_, *words],
            environment=dict(call.environment),
            input=stdin,
            out=f"{bundle}/out",
            seconds=SECONDS,
        )

    async def does(self, *words: str, stdin: str = "") -> None:
        """Call the runtime, which must succeed."""
        status = await self.verb(*words, stdin=stdin)
        assert status == 0, f"{words[0]!r} ended with {status}: {self.output()} {self.log()}"

    async def create(self) -> int:
        """Create it and give the pid of its init."""
        place = self.bundle / "init.pid"
        await self.does(
            "create", "--bundle", str(self.bundle), "--pid-file", str(place), *self.invocation.create_flags, self.id
        )
        return int(place.read_text())

    async def run(self) -> int:
        """Create and start it."""
        pid = await self.create()
        await self.does("start", self.id)
        return pid

    async def exec(self, *args: str) -> tuple[int, str]:
        """Add a process; its pid, and the number that the runtime's `kill --pid` takes where that is how."""
        process = self.bundle / "process.json"
        process.write_text(json.dumps({**self.spec["process"], "args": args}))
        place, inner = self.bundle / "exec.pid", self.bundle / "exec.inner"
        words = ["--process", str(process), "--detach", "--pid-file", str(place), *self.invocation.exec_flags]
        if self.invocation.signals == "verb":
            words += ["--internal-pid-file", str(inner)]
        await self.does("exec", *words, self.id)
        return int(place.read_text()), inner.read_text() if inner.exists() else ""

    async def exit(self, pid: int, seconds: float = SECONDS) -> int | None:
        """The exit status of a process, once it has ended."""
        assert self.invocation.exits == "child", "the suite knows only runtimes whose processes become children"
        return await self.caller.ask(wait=pid, seconds=seconds)

    def output(self) -> str:
        """What the container and the runtime wrote so far."""
        place = self.bundle / "out"
        return place.read_text(errors="replace") if place.exists() else ""

    def state(self) -> list[str]:
        """Folders of the container in the runtime's own state."""
        return [path.name for path in Path(self.invocation.root).glob(f"{self.id}*") if path.is_dir()]

    def log(self) -> list[dict[str, Any]]:
        """The objects of `log.json`, whatever is between them."""
        place = self.bundle / "log.json"
        text = place.read_text().lstrip() if place.exists() else ""
        found = []
        while text:
            entry, end = json.JSONDecoder().raw_decode(text)
            found.append(entry)
            text = text[end:].lstrip()
        return found


Check = Callable[[Stage], Awaitable[None]]


async def check_facts(stage: Stage) -> None:
    """They name a program that is there, and a version; asked again they are the same."""
    facts = await stage.driver.facts()
    assert Path(facts.binary).is_absolute()
    assert os.access(facts.binary, os.X_OK)
    assert facts.name
    assert facts.version
    assert not facts.features or isinstance(json.loads(facts.features), dict)
    assert await stage.driver.facts() == facts


async def check_binary_is_asked_once_for_each_version_of_its_file(stage: Stage) -> None:
    """Not again while the file stays, also when many ask at the same time, and again once it changed."""
    count = stage.folder / "count"
    real = shlex.quote((await stage.driver.facts()).binary)
    lines = (f'[ "$1" != --version ] || echo x >> {shlex.quote(str(count))}', f'exec {real} "$@"')
    options = stage.script("runtime", *lines)
    first = await asyncio.gather(*(stage.driver.facts(options) for _ in range(5)))
    await stage.driver.facts(options)
    assert {one.binary for one in first} == {options.binary}
    assert count.read_text().count("x") == 1
    stage.script("runtime", "# changed", *lines)
    await stage.driver.facts(options)
    assert count.read_text().count("x") == 2


async def check_missing_binary(stage: Stage) -> None:
    """It is NotFound, and found as soon as it is there."""
    nowhere = RuntimeOptions(binary=str(stage.folder / "later"))
    error = await fails_with(NotFound, stage.driver.facts(nowhere))
    assert "later" in error.text
    await fails_with(NotFound, stage.driver.facts(RuntimeOptions(binary="no-such-runtime-anywhere")))
    real = shlex.quote((await stage.driver.facts()).binary)
    assert (await stage.driver.facts(stage.script("later", f'exec {real} "$@"'))).version


async def check_binary_that_fails_or_hangs_or_babbles(stage: Stage) -> None:
    """Each is Unavailable, names the binary, and is asked anew the next time."""
    for name, line in (
        ("fails", "echo broken >&2; exit 3"),
        ("hangs", "sleep 600"),
        ("leaves", "sleep 600 & sleep 600"),
        ("babbles", "exec cat /dev/zero"),
        ("mute", "exit 0"),
    ):
        options = stage.script(name, line)
        error = await fails_with(Unavailable, stage.driver.facts(options))
        assert options.binary in error.text
    real = shlex.quote((await stage.driver.facts()).binary)
    assert (await stage.driver.facts(stage.script("fails", f'exec {real} "$@"'))).version


async def check_invocation_is_plain_data(stage: Stage) -> None:
    """It survives JSON, keeps namespaces apart and honours the options' root."""
    facts = await stage.driver.facts()
    one, other = (stage.driver.invocation(facts, stage.options, name, stage.spec("sh")) for name in ("one", "other"))
    assert json.loads(json.dumps(asdict(one)))["binary"] == facts.binary
    assert one.root != other.root
    assert Path(one.root).is_relative_to(stage.options.root)
    own = stage.driver.invocation(facts, RuntimeOptions(), "one", stage.spec("sh"))
    assert Path(own.root).is_absolute()


async def check_adapting_keeps_what_a_container_is(stage: Stage) -> None:
    """An ordinary spec stays what it was but for its version; adapting it again changes nothing."""
    facts, spec = await stage.driver.facts(), stage.spec("sh", "-c", "exit 3")
    stage.driver.adapt(facts, spec)
    assert {**spec, "ociVersion": ""} == {**stage.spec("sh", "-c", "exit 3"), "ociVersion": ""}
    strange = {**stage.spec("sh"), "ociVersion": "1.9.0", "annotations": {"a": "b"}}
    strange["process"]["oomScoreAdj"] = -1000
    stage.driver.adapt(facts, strange)
    again = copy.deepcopy(strange)
    stage.driver.adapt(facts, again)
    assert again == strange
    assert strange["annotations"] == {"a": "b"}


async def check_adapted_spec_runs(stage: Stage) -> None:
    """A spec of a newer version, with a score that only the privileged may set, runs once it is adapted."""

    def change(spec: dict[str, Any]) -> None:
        spec["ociVersion"] = "1.2.1"
        spec["process"]["oomScoreAdj"] = -999

    async with stage.container("sh", "-c", "exit 4", change=change) as container:
        assert await container.exit(await container.run()) == 4


async def check_exit_of_init(stage: Stage) -> None:
    """A created container waits for `start`; the end of its init is learnt, and then it can be deleted."""
    async with stage.container("sh", "-c", "echo hello; exit 7") as container:
        pid = await container.create()
        assert await container.exit(pid, 0.2) is None
        await container.does("start", container.id)
        assert await container.exit(pid) == 7
        assert "hello" in container.output()
        await container.does("delete", container.id)
        assert container.state() == []


async def check_signals_to_init(stage: Stage) -> None:
    """A signal ends it with 128 + N, sent by number or to all."""
    async with stage.container("sleep", "600") as container:
        pid = await container.run()
        await container.does("kill", *(["--all"] if container.invocation.kill_all else []), container.id, "9")
        assert await container.exit(pid) == 137
        assert await container.verb("kill", container.id, "9") != 0


async def check_exec(stage: Stage) -> None:
    """Its end is learnt apart from that of init; a signal reaches it alone."""
    async with stage.container("sleep", "600") as container:
        init = await container.run()
        pid, _ = await container.exec("sh", "-c", "echo again; exit 5")
        assert await container.exit(pid) == 5
        assert "again" in container.output()
        pid, inner = await container.exec("sleep", "600")
        if container.invocation.signals == "verb":
            await container.does("kill", "--pid", inner, container.id, "9")
        else:
            os.kill(pid, signal.SIGKILL)
        assert await container.exit(pid) == 137
        assert await container.exit(init, 0.1) is None


async def check_what_fails_is_told(stage: Stage) -> None:
    """A program that is not there fails `create` or `start`, and the error is in `log.json`."""
    async with stage.container("no-such-program") as container:
        place = container.bundle / "init.pid"
        words = ("create", "--bundle", str(container.bundle), "--pid-file", str(place), container.id)
        failed = await container.verb(*words) or await container.verb("start", container.id)
        assert failed
        assert any("no-such-program" in one["msg"] for one in container.log() if one["level"] == "error")


async def check_deleting_by_force(stage: Stage) -> None:
    """It ends what runs, and does not mind that there is nothing."""
    async with stage.container("sleep", "600") as container:
        pid = await container.run()
        await container.does("delete", "--force", container.id)
        assert await container.exit(pid) == 137
        await container.does("delete", "--force", container.id)


async def check_verbs(stage: Stage) -> None:
    """Each verb that the invocation lists works."""
    async with stage.container("sh", "-c", "sleep 600 & sleep 600") as container:
        pid, verbs = await container.run(), container.invocation.verbs
        if "pause" in verbs:
            await container.does("pause", container.id)
        if "resume" in verbs:
            await container.does("resume", container.id)
        if "update" in verbs:
            await container.does("update", "--resources=-", container.id, stdin='{"cpu": {"shares": 512}}')
        if "ps" in verbs:
            before = container.output()
            await container.does("ps", "--format", "json", container.id)
            pids = json.loads(container.output().removeprefix(before))
            assert pid in pids
            assert set(pids) <= _host_pids()


def _host_pids() -> set[int]:
    return {int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()}


def checks() -> list[Check]:
    """Every check of this suite."""
    return [found for name, found in globals().items() if name.startswith("check_")]
