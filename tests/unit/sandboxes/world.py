"""Sandbox controllers for tests: that of shims over real ones of our own, that of pause containers over fake tasks."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import THING
from moored.kernel.imagespec.platforms import default
from moored.kernel.namespaces import current_namespace
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.images import Descriptor, Image
from moored.kernel.ports.objects import Objects
from moored.kernel.ports.sandboxes import POD_SANDBOX_CONTROLLER, SandboxController
from moored.plugins.runtime.manager.bundle import Folders
from moored.plugins.runtime.sandboxes.controller import ShimController
from shims import Place, World
from unit.tasks.fake import FakeRuntime
from unit.tasks.world import Opened
from unit.tasks.world import opened as tasks_opened

PAUSE = "io.containerd.podsandbox.controller.v1.podsandbox"
NATIVE = "io.containerd.snapshotter.v1.native"
IMAGE = "registry.test/pause:1"
LAYER = "sha256:" + "1" * 64
OCI = "application/vnd.oci.image"


def folders(place: Place) -> Folders:
    """Where the sandboxes of a place have their bundles."""
    found = Folders(place.folder / "state" / "sandboxes", place.folder / "root" / "sandboxes")
    for path in (found.state, found.root):
        path.mkdir(parents=True, exist_ok=True)
    return found


@asynccontextmanager
async def shim_controller(place: Place, world: World) -> AsyncGenerator[ShimController]:
    """One life of the controller `shim`."""
    world.manager.runtimes = world.runtime.runtimes
    controller = ShimController(
        manager=world.manager, folders=folders(place), events=world.exchange, log=world.runtime.log
    )
    async with controller.running():
        yield controller


def shim_program(folder: Path) -> str:
    """Our shim as a program, by its path."""
    paths = json.dumps([str(Path(path).absolute()) for path in sys.path if path])
    script = folder / "containerd-shim-moored-v2"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {paths}\n"
        "from moored.plugins.runtime.shim.main import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    return str(script)


@dataclass(frozen=True)
class Paused:
    """The controller `podsandbox`, and the kernel around it."""

    controller: SandboxController
    world: Opened


@asynccontextmanager
async def pause_controller(folder: Path, runtime: FakeRuntime | None = None, **config: Any) -> AsyncGenerator[Paused]:
    """One life of the controller `podsandbox`, over tasks that are no containers."""
    found: list[SandboxController] = []

    @asynccontextmanager
    async def look(ctx: InitContext[None]) -> AsyncGenerator[None]:
        found.append(ctx.named(POD_SANDBOX_CONTROLLER, "podsandbox"))
        yield

    probe: Registration[Any, Any] = Registration(kind=THING, id="pods", open=look, requires=(POD_SANDBOX_CONTROLLER,))
    configs: Any = {PAUSE: {"image": IMAGE, "snapshotter": "native", **config}}
    async with tasks_opened(folder, NATIVE, PAUSE, probe, runtime=runtime, **configs) as world:
        yield Paused(found[0], world)


async def unpack_pause(objects: Objects, words: Sequence[str] = ("/bin/sleep", "1000"), user: str = "") -> None:
    """Have the image in the current namespace, unpacked as one empty layer."""
    platform = default()
    config = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {"Entrypoint": list(words), "User": user},
        "rootfs": {"type": "layers", "diff_ids": [LAYER]},
    }
    described = await _blob(objects, "config.v1+json", config)
    layer = {"mediaType": f"{OCI}.layer.v1.tar", "digest": LAYER, "size": 1}
    manifest = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": described, "layers": [layer]}
    target = await _blob(objects, "manifest.v1+json", manifest)
    descriptor = Descriptor(media_type=target["mediaType"], digest=target["digest"], size=target["size"])
    await objects.images.create(Image(name=IMAGE, target=descriptor))
    snapshotter = objects.snapshotter("native")
    await snapshotter.prepare(f"layer-{current_namespace()}")
    await snapshotter.commit(LAYER, f"layer-{current_namespace()}", {"containerd.io/gc.root": "test"})


async def _blob(objects: Objects, kind: str, document: Any) -> dict[str, Any]:
    data = json.dumps(document).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with await objects.content.writer(f"test-{digest}", len(data), digest) as writer:
        if (await writer.status()).offset == 0:  # another namespace may have it
            await writer.write(data)
        await writer.commit(len(data), digest, {"containerd.io/gc.root": "test"})
    return {"mediaType": f"{OCI}.{kind}", "digest": digest, "size": len(data)}
