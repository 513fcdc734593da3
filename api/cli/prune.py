"""`moorctl prune`: what is not in use, removed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options_without_a, pass_settings
from moored.kernel.errors import InvalidArgument

if TYPE_CHECKING:
    from moored.api.cli.home import Home
    from moored.api.client import Client


@dataclass(slots=True)
class Plan:
    """What would go: containers that have ended, images without containers, volumes, folders of gone containers."""

    containers: list[Any] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.containers or self.images or self.volumes or self.folders)

    def lines(self) -> list[str]:
        """Give it as text, one thing a line."""
        from moored.api.cli.identity import called

        return [
            *(f"container {called(one)}" for one in self.containers),
            *(f"image {name}" for name in self.images),
            *(f"volume {name}" for name in self.volumes),
            *(f"files of container {name[:12]}, which is gone" for name in self.folders),
        ]

    def document(self, *, done: bool) -> dict[str, Any]:
        """Give it as --json has it."""
        return {
            "removed": done,
            "containers": [one.id for one in self.containers],
            "images": self.images,
            "volumes": self.volumes,
            "folders": self.folders,
        }


@click.command(
    "prune",
    epilog="""\b
JSON: {"removed", "containers": [ID], "images": [NAME], "volumes": [NAME],
  "folders": [ID]}, removed: false with --dry-run

\b
Examples:
  moorctl prune --dry-run
  moorctl prune -f --all --volumes""",
)
@click.option("--force", "-f", is_flag=True, help="Do not ask.")
@click.option("--all", "-a", "everything", is_flag=True, help="Images that no container is of too.")
@click.option("--volumes", is_flag=True, help="Volumes with a name that no container mounts too.")
@click.option("--dry-run", is_flag=True, help="Only tell.")
@global_options_without_a
@pass_settings
def prune(settings: Settings, *, force: bool, everything: bool, volumes: bool, dry_run: bool) -> None:
    """Remove containers that have ended, volumes without a name, and what is left of containers that are gone.

    Containers that were made and never started stay, as do those with a restart policy.
    """
    from moored.api.cli.home import home
    from moored.api.cli.session import run

    place = home(settings.address, settings.namespace)

    async def body(client: Client) -> tuple[Plan, bool]:
        plan = await _plan(client, place, images=everything, named=volumes)
        if dry_run or not plan:
            return plan, False
        if not force:
            _ask(plan)
        await _carry_out(client, place, plan)
        return plan, True

    _show(settings, *run(settings, body))


def _ask(plan: Plan) -> None:
    """Go on only if the user says so."""
    from moored.api.cli.terminal import STDIN, is_terminal

    if not is_terminal(STDIN):
        raise InvalidArgument("prune would remove things and nobody can be asked, use --force, or see --dry-run")
    click.echo("".join(f"{output.printable(line)}\n" for line in plan.lines()), err=True, nl=False)
    click.confirm("Remove these?", abort=True, err=True)


def _show(settings: Settings, plan: Plan, done: bool) -> None:
    if settings.json:
        output.write_json(plan.document(done=done))
        return
    output.write("".join(f"{output.printable(line)}\n" for line in plan.lines()))
    if not plan:
        output.note("nothing to remove")


async def _plan(client: Client, place: Home, *, images: bool, named: bool) -> Plan:
    from moored.api.cli import volumes
    from moored.api.cli.df import mounted_volumes
    from moored.api.cli.home import read_document
    from moored.api.cli.identity import notes
    from moored.api.cli.states import states, word

    containers = await client.containers.list()
    known = await states(client, containers)
    ended = [
        one
        for one in containers
        if word(known.get(one.id)) == "exited" and not notes(one.record.labels).restart and not one.record.sandbox
    ]
    gone = {one.id for one in ended}
    staying = [one for one in containers if one.id not in gone]
    used = mounted_volumes(place, staying)
    loose = [
        name
        for name in volumes.known(place)
        if name not in used and (named or read_document(place.volumes / name / "volume.json").get("anonymous"))
    ]
    needed = {one.record.image for one in staying}
    return Plan(
        containers=ended,
        images=[image.name for image in await client.images.list() if image.name not in needed] if images else [],
        volumes=loose,
        folders=[id_ for id_ in place.known() if id_ not in {one.id for one in containers}],
    )


async def _carry_out(client: Client, place: Home, plan: Plan) -> None:
    import asyncio
    from contextlib import suppress

    from moored.api.cli import lifetime, volumes
    from moored.api.cli.network import membership
    from moored.kernel.errors import NotFound

    for container in plan.containers:
        with suppress(NotFound):
            await lifetime.remove(place, container)
    for id_ in plan.folders:
        await asyncio.to_thread(membership.down, place, id_)
        place.remove_container(id_)
    for name in plan.volumes:
        volumes.remove(place, name)
    for name in plan.images:
        with suppress(NotFound):
            await client.images.delete(name, sync=name == plan.images[-1])
