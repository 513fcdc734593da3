"""Introspection over the wire: plugins, identity, deprecations."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import stat
import uuid
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from harness import (
    THING,
    Emitter,
    basics,
    fails,
    on_loop,
    plug,
)
from moored.api.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc
from moored.api.types.introspection_pb2 import RuntimeInfo as RuntimeInfoMessage
from moored.api.types.introspection_pb2 import RuntimeRequest
from moored.kernel.errors import NotFound
from moored.kernel.plugin import PluginType, Skip
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.tasks import RUNTIME, RuntimeInfo


def introspection(channel: grpc.aio.Channel) -> Any:
    return introspection_pb2_grpc.IntrospectionStub(channel)


@on_loop
async def test_introspection_lists_plugins_with_reasons_and_without_disabled_ones(tmp_path: Path) -> None:
    plugins = (
        plug(THING, "fine", object()),
        plug(THING, "lame", error=Skip("no legs")),
        plug(THING, "broken", error=RuntimeError("no luck")),
        plug(THING, "off", object()),
        plug(PluginType("io.moored.other.v1"), "needy", object(), requires=(PluginType("io.moored.none.v1"),)),
    )
    async with basics(tmp_path, *plugins, disabled=("io.moored.thing.v1.off",)) as (_, channel):
        answer = await introspection(channel).Plugins(introspection_pb2.PluginsRequest())
    by_uri = {f"{one.type}.{one.id}": one for one in answer.plugins}
    fine, lame = by_uri["io.moored.thing.v1.fine"], by_uri["io.moored.thing.v1.lame"]
    broken, needy = by_uri["io.moored.thing.v1.broken"], by_uri["io.moored.other.v1.needy"]
    assert "io.moored.thing.v1.off" not in by_uri
    assert not fine.HasField("init_err")
    assert dict(fine.exports) == {"root": "/somewhere"}
    assert list(fine.capabilities) == ["rebase"]
    assert [(p.os, p.architecture, p.variant) for p in fine.platforms] == [
        ("linux", "amd64", ""),
        ("linux", "arm", "v7"),
    ]
    assert (lame.init_err.code, lame.init_err.message) == (2, "no legs: skip plugin")
    assert (broken.init_err.code, broken.init_err.message) == (2, "RuntimeError: no luck")
    assert "requires io.moored.none.v1" in needy.init_err.message
    assert list(needy.requires) == ["io.moored.none.v1"]
    order = list(by_uri)
    assert order.index("io.containerd.warning.v1.deprecations") < order.index("io.containerd.grpc.v1.introspection")


@on_loop
async def test_introspection_filters_by_type_and_id(tmp_path: Path) -> None:
    async with basics(tmp_path, plug(THING, "a", object()), plug(THING, "b", object())) as (_, channel):

        async def found(*filters: str) -> list[str]:
            answer = await introspection(channel).Plugins(introspection_pb2.PluginsRequest(filters=filters))
            return [one.id for one in answer.plugins]

        assert await found("type==io.moored.thing.v1") == ["a", "b"]
        assert await found("type==io.moored.thing.v1, id==b") == ["b"]
        assert await found("id==a", "id==version") == ["version", "a"]
        assert len(await found("")) == 9
        code, text = await fails(found("type=="))
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("invalid argument: filters: parse error: ")
    assert text.endswith(": invalid argument")


def own_pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


@on_loop
async def test_introspection_identity_lasts_as_long_as_the_root(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "io.containerd.grpc.v1.introspection"
    seen, pidns = [], set()
    for _ in range(2):
        async with basics(tmp_path) as (_, channel):
            answers = await asyncio.gather(*(introspection(channel).Server(Empty()) for _ in range(5)))
            seen += [answer.uuid for answer in answers]
            assert answers[0].pid == os.getpid()
            pidns.add(answers[0].pidns)
    assert pidns == {own_pid_namespace()}
    assert len(set(seen)) == 1
    assert uuid.UUID(seen[0]).version == 4
    assert (folder / "uuid").read_text() == seen[0]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "uuid").stat().st_mode) == 0o644
    assert [entry.name for entry in folder.iterdir()] == ["uuid"]


@on_loop
async def test_introspection_tells_a_damaged_identity(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "io.containerd.grpc.v1.introspection"
    folder.mkdir(parents=True)
    (folder / "uuid").write_text("scribble")
    async with basics(tmp_path) as (_, channel):
        code, text = await fails(introspection(channel).Server(Empty()))
    assert code == "DATA_LOSS"
    assert "'scribble'" in text


@on_loop
async def test_introspection_tells_deprecations_by_id(tmp_path: Path) -> None:
    began = dt.datetime.now(dt.UTC)
    emitter = Emitter({"b": "use c", "a": "use d"})
    async with basics(tmp_path, emitter.registration()) as (_, channel):
        answer = await introspection(channel).Server(Empty())
    assert [(one.id, one.message) for one in answer.deprecations] == [("a", "use d"), ("b", "use c")]
    for one in answer.deprecations:
        assert began <= one.last_occurrence.ToDatetime(dt.UTC) <= dt.datetime.now(dt.UTC)


@on_loop
async def test_introspection_knows_one_plugin(tmp_path: Path) -> None:
    plugins = (plug(THING, "fine", object()), plug(THING, "lame", error=Skip("no legs")))
    async with basics(tmp_path, *plugins) as (_, channel):

        async def info(id_: str, **more: Any) -> Any:
            request = introspection_pb2.PluginInfoRequest(type="io.moored.thing.v1", id=id_, **more)
            return await introspection(channel).PluginInfo(request)

        assert (await info("fine")).plugin.capabilities == ["rebase"]
        assert await fails(info("gone")) == ("NOT_FOUND", "plugin io.moored.thing.v1.gone not found: not found")
        assert (await fails(info("fine", options=AnyMessage())))[0] == "UNIMPLEMENTED"
        assert (await fails(info("lame", options=AnyMessage())))[0] == "FAILED_PRECONDITION"


class OneRuntime:
    """A runtime that knows one name."""

    async def info(self, runtime: str, options: TypedBytes | None = None) -> RuntimeInfo:
        if runtime != "io.containerd.runc.v2":
            raise NotFound(f"runtime {runtime!r}")
        return RuntimeInfo(name=runtime, version="1.1", options=options, features=TypedBytes("features", b"{}"))


@on_loop
async def test_plugin_info_asks_the_runtime_about_a_name(tmp_path: Path) -> None:
    async with basics(tmp_path, plug(RUNTIME, "task", OneRuntime())) as (_, channel):

        async def extra(asked: AnyMessage) -> AnyMessage:
            request = introspection_pb2.PluginInfoRequest(type=RUNTIME.uri, id="task", options=asked)
            return (await introspection(channel).PluginInfo(request)).extra

        def about(name: str) -> AnyMessage:
            request = RuntimeRequest(runtime_path=name, options=AnyMessage(type_url="wish", value=b"x"))
            return AnyMessage(type_url="containerd.types.RuntimeRequest", value=request.SerializeToString())

        answer = await extra(about(""))
        assert answer.type_url == "containerd.types.RuntimeInfo"
        found = RuntimeInfoMessage.FromString(answer.value)
        assert (found.name, found.version.version, found.options.type_url) == ("io.containerd.runc.v2", "1.1", "wish")
        assert found.features.value == b"{}"
        assert (await fails(extra(about("other"))))[0] == "NOT_FOUND"
        assert (await fails(extra(AnyMessage(type_url="else"))))[0] == "INVALID_ARGUMENT"
        broken = AnyMessage(type_url="containerd.types.RuntimeRequest", value=b"\xff")
        assert (await fails(extra(broken)))[0] == "INVALID_ARGUMENT"
