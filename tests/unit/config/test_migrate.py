"""Every row of the migrations from versions 1 to 3, values kept with their lines and losses named."""

import tomllib
from pathlib import Path

import pytest

from moored.config.migrate import migrate, version_of
from moored.config.migrations.v1_to_v2 import plugin_uri
from moored.config.origin import grow
from moored.config.source import Document
from moored.kernel.errors import InvalidArgument

CRI = "io.containerd.grpc.v1.cri"
IMAGES = "io.containerd.cri.v1.images"
RUNTIME = "io.containerd.cri.v1.runtime"


def migrated(text):
    document = Document(Path("f"), text.encode())
    tree, notes = migrate(grow(document.values, document))
    return tree, notes


def plugins(text):
    return migrated(text)[0].plain().get("plugins", {})


def warnings(text):
    return [(note.ref.origin().line, note.message) for note in migrated(text)[1] if note.level == "warning"]


@pytest.mark.parametrize(
    ("name", "uri", "guessed"),
    [
        ("cri", CRI, False),
        ("overlayfs", "io.containerd.snapshotter.v1.overlayfs", False),
        ("native", "io.containerd.snapshotter.v1.native", False),
        ("btrfs", "io.containerd.snapshotter.v1.btrfs", False),
        ("zfs", "io.containerd.snapshotter.v1.zfs", False),
        ("aufs", "io.containerd.snapshotter.v1.aufs", False),
        ("devmapper", "io.containerd.snapshotter.v1.devmapper", False),
        ("scheduler", "io.containerd.gc.v1.scheduler", False),
        ("bolt", "io.containerd.metadata.v1.bolt", False),
        ("task", "io.containerd.runtime.v2.task", False),
        ("linux", "io.containerd.runtime.v1.linux", False),
        ("opt", "io.containerd.internal.v1.opt", False),
        ("restart", "io.containerd.internal.v1.restart", False),
        ("tracing", "io.containerd.internal.v1.tracing", False),
        ("otlp", "io.containerd.tracing.processor.v1.otlp", False),
        ("cgroups", "io.containerd.monitor.v1.cgroups", False),
        ("diff-service", "io.containerd.service.v1.diff-service", False),
        ("windows", "io.containerd.snapshotter.v1.windows", True),
        ("leases", "io.containerd.grpc.v1.leases", True),
        ("io.x.v1.y", "io.x.v1.y", False),
    ],
)
def test_short_names_of_version_1_become_uris(name, uri, guessed):
    assert plugin_uri(name) == (uri, guessed)


@pytest.mark.parametrize("version", ["", "version = 0", "version = 1"])
def test_a_file_without_version_is_version_1(version):
    text = f'{version}\ndisabled_plugins = ["cri"]\nrequired_plugins = ["bolt", "a.b"]\n'
    text += '[plugins.native]\nroot_path = "/x"\n'

    tree, _ = migrated(text)

    assert tree.plain() == {
        "version": 4,
        "disabled_plugins": [CRI],
        "required_plugins": ["io.containerd.metadata.v1.bolt", "a.b"],
        "plugins": {"io.containerd.snapshotter.v1.native": {"root_path": "/x"}},
    }
    assert tree.origin(("plugins", "io.containerd.snapshotter.v1.native", "root_path")).line == 5


def test_short_names_are_left_alone_from_version_2_on():
    assert plugins("version = 2\n[plugins.native]\na = 1\n") == {"native": {"a": 1}}


def test_a_guessed_name_is_warned_of():
    assert warnings("[plugins.leases]\na = 1\n") == [
        (1, "plugin 'leases' is not known, taken for 'io.containerd.grpc.v1.leases'")
    ]
    assert "'leases'" in warnings('disabled_plugins = ["leases"]\n')[0][1]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '"io.containerd.internal.v1.restart" = {interval = "1s"}',
            {"io.containerd.monitor.container.v1.restart": {"interval": "1s"}},
        ),
        (
            '"io.containerd.monitor.v1.cgroups" = {no_prometheus = true}',
            {"io.containerd.monitor.task.v1.cgroups": {"no_prometheus": True}},
        ),
        (
            '"io.containerd.runtime.v2.task" = {sched_core = true, platforms = ["a"]}',
            {
                "io.containerd.runtime.v2.task": {"platforms": ["a"]},
                "io.containerd.shim.v1.manager": {"env": ["SCHED_CORE=1"]},
            },
        ),
        (
            '"io.containerd.runtime.v2.task" = {sched_core = false}',
            {"io.containerd.runtime.v2.task": {}},
        ),
        (
            f'"{CRI}" = {{stream_server_port = "1", disable_tcp_service = false}}',
            {CRI: {"stream_server_port": "1", "disable_tcp_service": False}},
        ),
        (f'"{CRI}" = {{sandbox_image = "p"}}', {IMAGES: {"pinned_images": {"sandbox": "p"}}}),
        (
            (
                f'"{CRI}" = {{registry = {{config_path = "c"}}, image_decryption = {{key_model = "n"}},'
                f"max_concurrent_downloads = 1,"
                'image_pull_progress_timeout = "1m", image_pull_with_sync_fs = true, stats_collect_period = 5}'
            ),
            {
                IMAGES: {
                    "registry": {"config_path": "c"},
                    "image_decryption": {"key_model": "n"},
                    "max_concurrent_downloads": 1,
                    "image_pull_progress_timeout": "1m",
                    "image_pull_with_sync_fs": True,
                    "stats_collect_period": 5,
                }
            },
        ),
        (
            (
                f'"{CRI}" = {{containerd = {{snapshotter = "n", disable_snapshot_annotations = false,'
                "discard_unpacked_layers = true, runtimes = {}}}"
            ),
            {
                IMAGES: {"snapshotter": "n", "disable_snapshot_annotations": False, "discard_unpacked_layers": True},
                RUNTIME: {"containerd": {"runtimes": {}}},
            },
        ),
        (f'"{CRI}" = {{enable_cdi = true, other = 1}}', {RUNTIME: {"enable_cdi": True, "other": 1}}),
        (
            f'"{CRI}" = {{cni = {{bin_dir = "b", conf_dir = "c"}}}}',
            {RUNTIME: {"cni": {"bin_dirs": ["b"], "conf_dir": "c"}}},
        ),
        (
            f'"{CRI}" = {{containerd = {{runtimes = {{k = {{sandbox_mode = "shim"}}}}}}}}',
            {RUNTIME: {"containerd": {"runtimes": {"k": {"sandboxer": "shim"}}}}},
        ),
    ],
)
def test_sections_of_plugins_move_at_any_version_below_4(version, before, after):
    text = f"version = {version}\n[plugins]\n{before}\n"

    assert plugins(text) == after
    assert warnings(text) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '[grpc]\naddress = "/a"\nuid = 1\ngid = 2',
            {"grpc": {"address": "/a", "uid": 1, "gid": 2}, "ttrpc": {"address": "/a.ttrpc", "uid": 1, "gid": 2}},
        ),
        (
            '[grpc]\naddress = "/a"\nuid = 1\n[ttrpc]\nuid = 3',
            {"grpc": {"address": "/a", "uid": 1}, "ttrpc": {"address": "/a.ttrpc", "uid": 3}},
        ),
        (
            '[grpc]\naddress = "/a"\nuid = 1\n[ttrpc]\naddress = "/t"',
            {"grpc": {"address": "/a", "uid": 1}, "ttrpc": {"address": "/t"}},
        ),
        ("[grpc]\nuid = 1", {"grpc": {"uid": 1}}),
        ('[grpc]\naddress = ""\nuid = 0', {}),
        (
            '[grpc]\nmax_recv_message_size = 9\ntcp_address = "t"\ntcp_tls_common_name = "n"',
            {
                "grpc": {"max_recv_message_size": 9},
                "grpc-tcp": {"max_recv_message_size": 9, "address": "t", "tls_common_name": "n"},
            },
        ),
        ('[debug]\naddress = "d"\nuid = 1\nlevel = "info"', {"debug": {"address": "d", "uid": 1}}),
        ('[metrics]\naddress = "m"', {"metrics": {"address": "m"}}),
    ],
)
def test_the_daemons_own_sockets_become_plugins(before, after):
    text = f"version = 3\n{before}\n"

    assert plugins(text) == {f"io.containerd.server.v1.{name}": section for name, section in after.items()}
    assert warnings(text) == []


def test_the_histogram_becomes_a_plugins_setting():
    assert plugins("version = 3\n[metrics]\ngrpc_histogram = true\n") == {
        "io.containerd.metrics.v1.grpc-prometheus": {"grpc_histogram": True}
    }


def test_old_sections_are_gone_and_the_rest_of_debug_stays():
    tree, _ = migrated(
        'version = 3\n[grpc]\naddress = "/a"\n[debug]\naddress = "d"\nlevel = "info"\n[metrics]\naddress = ""\n'
    )

    assert set(tree.plain()) == {"version", "debug", "plugins"}
    assert tree.plain()["debug"] == {"level": "info"}


def test_a_moved_value_keeps_its_line_and_the_move_is_noted():
    text = f'version = 2\n[grpc]\naddress = "/a"\n[plugins."{CRI}"]\nsandbox_image = "p"\n'
    text += f'[plugins."{CRI}".cni]\nbin_dir = "b"\n'

    tree, notes = migrated(text)

    lines = {
        ("plugins", "io.containerd.server.v1.grpc", "address"): 3,
        ("plugins", "io.containerd.server.v1.ttrpc", "address"): 3,
        ("plugins", IMAGES, "pinned_images", "sandbox"): 5,
        ("plugins", RUNTIME, "cni", "bin_dirs"): 7,
    }
    assert {path: tree.origin(path).line for path in lines} == lines
    assert "'grpc.address' -> plugins.\"io.containerd.server.v1.grpc\".address" in [note.message for note in notes]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            f'[plugins."{CRI}".containerd]\nsnapshotter = "n"',
            3,
            "lost, it is only carried over when containerd.runtimes is set",
        ),
        (
            '[plugins."io.containerd.shim.v1.manager"]\nenv = ["A=b"]\n[plugins."io.containerd.runtime.v2.task"]',
            2,
            "lost, a section io.containerd.runtime.v2.task below version 4 replaces it",
        ),
        ('[plugins."io.containerd.runtime.v2.task"]\nsched_core = 1', 3, "lost, it is not a boolean"),
        (f'[plugins."{CRI}".cni]\nbin_dir = "a"\nbin_dirs = ["b"]', 4, "lost, bin_dir replaces it"),
        (
            f'[plugins."{CRI}"]\nenable_cdi = true\n[plugins."{RUNTIME}"]\nenable_cdi = false',
            3,
            f'lost, plugins."{RUNTIME}".enable_cdi is set already',
        ),
        (
            f'[plugins."{CRI}"]\nmax_concurrent_downloads = 1\n[plugins."{IMAGES}"]\nmax_concurrent_downloads = 2',
            5,
            f"lost, replaced by 'plugins.\"{CRI}\".max_concurrent_downloads'",
        ),
        (
            '[grpc]\naddress = "/a"\n[plugins."io.containerd.server.v1.grpc"]\nuid = 1',
            3,
            'lost, plugins."io.containerd.server.v1.grpc" is set already',
        ),
        (
            f'[plugins."{CRI}"]\nsandbox_image = "p"\n[plugins."{IMAGES}"]\npinned_images = 1',
            5,
            "lost, a table was wanted",
        ),
        ("[debug]\nuid = 1", 3, "lost, it has no effect without debug.address"),
        ('[grpc]\ntcp_tls_ca = "c"', 3, "lost, it has no effect without grpc.tcp_address"),
    ],
)
def test_what_gets_lost_is_warned_of_with_its_line(text, line, message):
    assert warnings(f"version = 2\n{text}\n") == [(line, message)]


def test_an_old_name_beside_the_new_one_is_lost_with_a_warning():
    text = '[plugins.cri]\nenable_cdi = true\n[plugins."io.containerd.grpc.v1.cri"]\nenable_cdi = false\n'

    assert plugins(text) == {RUNTIME: {"enable_cdi": False}}
    assert warnings(text) == [(1, f'lost, plugins."{CRI}" is set already')]


def test_version_4_is_left_as_it_is():
    text = 'version = 4\n[grpc]\naddress = "/a"\n[plugins.cri]\nsandbox_image = "p"\n'

    tree, notes = migrated(text)

    assert (tree.plain(), notes) == (tomllib.loads(text), ())


def test_migrating_changes_nothing_in_what_it_was_given():
    document = Document(Path("f"), b'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "p"\n')
    tree = grow(document.values, document)

    migrate(tree)

    assert tree.plain() == document.values


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("99", "version '99' is not known, wanted 1 to 4"),
        ("5", "version '5' is not known, wanted 1 to 4"),
        ("-1", "version '-1' is not known, wanted 1 to 4"),
        ("'2'", 'version "2" is not an integer, wanted 1 to 4'),
        ("true", "version true is not an integer, wanted 1 to 4"),
        ("2.0", "version 2.0 is not an integer, wanted 1 to 4"),
        ("[]", "version [] is not an integer, wanted 1 to 4"),
    ],
)
def test_a_version_that_is_not_known_is_refused_by_value(version, message):
    with pytest.raises(InvalidArgument) as caught:
        version_of(grow(tomllib.loads(f"version = {version}")))

    assert str(caught.value) == message
