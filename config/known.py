"""containerd's own plugins and their configuration keys, versions 1.6 to 2.4, so that inherited files are understood.

Looked at only when a file names something that no installed plugin has: what is listed here is a setting of containerd
that this daemon does not carry, anything else a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from moored.kernel.config import KeyPath

# keys by plugin URI, blank between keys; * stands for any one name, ** for anything below
KEYS: Mapping[str, str] = MappingProxyType(
    {
        "io.containerd.content.v1.content": "",
        "io.containerd.cri.v1.images": (
            "concurrent_layer_fetch_buffer disable_snapshot_annotations discard_unpacked_layers "
            "image_decryption.key_model image_pull_progress_timeout image_pull_with_sync_fs "
            "max_concurrent_downloads pinned_images.* registry.auths.** registry.config_path registry.configs.** "
            "registry.headers.** registry.mirrors.** runtime_platforms.*.platform runtime_platforms.*.snapshotter "
            "snapshotter stats_collect_period use_local_image_pull"
        ),
        "io.containerd.cri.v1.runtime": (
            "cdi_spec_dirs cni.bin_dir cni.bin_dirs cni.conf_dir cni.conf_template cni.ip_pref cni.max_conf_num "
            "cni.setup_serially cni.use_internal_loopback containerd.default_runtime.** "
            "containerd.default_runtime_name containerd.ignore_blockio_not_enabled_errors "
            "containerd.ignore_rdt_not_enabled_errors containerd.no_pivot containerd.runtimes.*.base_runtime_spec "
            "containerd.runtimes.*.cgroup_writable containerd.runtimes.*.cni_conf_dir "
            "containerd.runtimes.*.cni_max_conf_num containerd.runtimes.*.container_annotations "
            "containerd.runtimes.*.disable_pause_image_pull containerd.runtimes.*.io_type "
            "containerd.runtimes.*.options.** containerd.runtimes.*.pod_annotations "
            "containerd.runtimes.*.privileged_without_host_devices "
            "containerd.runtimes.*.privileged_without_host_devices_all_devices_allowed "
            "containerd.runtimes.*.runtime_engine containerd.runtimes.*.runtime_path "
            "containerd.runtimes.*.runtime_root containerd.runtimes.*.runtime_type "
            "containerd.runtimes.*.sandbox_mode containerd.runtimes.*.sandboxer containerd.runtimes.*.snapshotter "
            "containerd.untrusted_workload_runtime.** device_ownership_from_security_context disable_apparmor "
            "disable_cgroup disable_hugetlb_controller disable_proc_mount drain_exec_sync_io_timeout enable_cdi "
            "enable_criu enable_experimental_restore_via_create enable_selinux enable_unprivileged_icmp "
            "enable_unprivileged_ports ignore_deprecation_warnings ignore_image_defined_volumes "
            "max_container_log_line_size netns_mounts_under_state_dir restrict_oom_score_adj "
            "selinux_category_range stats_collect_period stats_retention_period systemd_cgroup "
            "tolerate_missing_hugetlb_controller unset_seccomp_profile"
        ),
        "io.containerd.differ.v1.erofs": "enable_dmverity enable_tar_index mkfs_options",
        "io.containerd.differ.v1.walking": "",
        "io.containerd.event.v1.exchange": "",
        "io.containerd.gc.v1.scheduler": (
            "deletion_threshold mutation_threshold pause_threshold schedule_delay startup_delay"
        ),
        "io.containerd.grpc.v1.containers": "",
        "io.containerd.grpc.v1.content": "",
        "io.containerd.grpc.v1.cri": (
            "disable_tcp_service enable_tls_streaming stream_idle_timeout stream_server_address "
            "stream_server_port x509_key_pair_streaming.tls_cert_file x509_key_pair_streaming.tls_key_file"
        ),
        "io.containerd.grpc.v1.diff": "",
        "io.containerd.grpc.v1.events": "",
        "io.containerd.grpc.v1.healthcheck": "",
        "io.containerd.grpc.v1.images": "",
        "io.containerd.grpc.v1.introspection": "",
        "io.containerd.grpc.v1.leases": "",
        "io.containerd.grpc.v1.mounts": "",
        "io.containerd.grpc.v1.namespaces": "",
        "io.containerd.grpc.v1.sandbox-controllers": "",
        "io.containerd.grpc.v1.sandboxes": "",
        "io.containerd.grpc.v1.snapshots": "",
        "io.containerd.grpc.v1.streaming": "",
        "io.containerd.grpc.v1.tasks": "",
        "io.containerd.grpc.v1.transfer": "",
        "io.containerd.grpc.v1.version": "",
        "io.containerd.http.v1.pprof": "",
        "io.containerd.image-verifier.v1.bindir": "bin_dir max_verifiers per_verifier_timeout",
        "io.containerd.internal.v1.opt": "path",
        "io.containerd.internal.v1.tracing": "sampling_ratio service_name",
        "io.containerd.lease.v1.manager": "",
        "io.containerd.metadata.v1.bolt": "content_sharing_policy no_sync",
        "io.containerd.metrics.v1.grpc-otel": "",
        "io.containerd.metrics.v1.grpc-prometheus": "grpc_histogram",
        "io.containerd.monitor.container.v1.restart": "interval",
        "io.containerd.monitor.task.v1.cgroups": "no_prometheus",
        "io.containerd.mount-handler.v1.erofs": "",
        "io.containerd.mount-manager.v1.bolt": "",
        "io.containerd.nri.v1.nri": (
            "default_validator.enable default_validator.reject_custom_seccomp_adjustment "
            "default_validator.reject_namespace_adjustment default_validator.reject_oci_hook_adjustment "
            "default_validator.reject_runtime_default_seccomp_adjustment "
            "default_validator.reject_sysctl_adjustment default_validator.reject_unconfined_seccomp_adjustment "
            "default_validator.required_plugins default_validator.tolerate_missing_plugins_annotation disable "
            "disable_connections plugin_config_path plugin_path plugin_registration_timeout "
            "plugin_request_timeout socket_path"
        ),
        "io.containerd.podsandbox.controller.v1.podsandbox": "",
        "io.containerd.runtime.v1.linux": "no_shim runtime runtime_root shim shim_debug",
        "io.containerd.runtime.v2.task": "platforms sched_core",
        "io.containerd.sandbox.controller.v1.shim": "",
        "io.containerd.sandbox.store.v1.local": "",
        "io.containerd.server.v1.debug": "address gid uid",
        "io.containerd.server.v1.grpc": "address gid max_recv_message_size max_send_message_size uid",
        "io.containerd.server.v1.grpc-tcp": (
            "address max_recv_message_size max_send_message_size tls_ca tls_cert tls_common_name tls_key"
        ),
        "io.containerd.server.v1.metrics": "address",
        "io.containerd.server.v1.ttrpc": "address gid uid",
        "io.containerd.service.v1.containers-service": "",
        "io.containerd.service.v1.content-service": "",
        "io.containerd.service.v1.diff-service": "default sync_fs",
        "io.containerd.service.v1.images-service": "",
        "io.containerd.service.v1.introspection-service": "",
        "io.containerd.service.v1.namespaces-service": "",
        "io.containerd.service.v1.snapshots-service": "",
        "io.containerd.service.v1.tasks-service": "blockio_config_file rdt_config_file",
        "io.containerd.shim.v1.manager": "env socket_dir",
        "io.containerd.snapshotter.v1.aufs": "root_path",
        "io.containerd.snapshotter.v1.blockfile": "fs_type mount_options recreate_scratch root_path scratch_file",
        "io.containerd.snapshotter.v1.btrfs": "root_path",
        "io.containerd.snapshotter.v1.devmapper": (
            "async_remove base_image_size discard_blocks fs_options fs_type pool_name root_path"
        ),
        "io.containerd.snapshotter.v1.erofs": (
            "default_size dmverity_mode enable_fsverity layer_content_caches ovl_mount_options root_path set_immutable"
        ),
        "io.containerd.snapshotter.v1.native": "root_path",
        "io.containerd.snapshotter.v1.overlayfs": "mount_options root_path slow_chown sync_remove upperdir_label",
        "io.containerd.snapshotter.v1.zfs": "root_path",
        "io.containerd.streaming.v1.manager": "",
        "io.containerd.tracing.processor.v1.otlp": "endpoint insecure protocol",
        "io.containerd.transfer.v1.local": (
            "check_platform_supported concurrent_layer_fetch_buffer config_path max_concurrent_downloads "
            "max_concurrent_unpacks max_concurrent_uploaded_layers unpack_config.**"
        ),
        "io.containerd.ttrpc.v1.otelttrpc": "",
        "io.containerd.warning.v1.deprecations": "",
    }
)

TOP_LEVEL = "plugin_dir"


def is_plugin(uri: str) -> bool:
    """Whether containerd has, or once had, a plugin of that URI."""
    return uri in KEYS


def is_key(uri: str, key: KeyPath) -> bool:
    """Whether a key below `[plugins."uri"]` is one of containerd's, a setting or a table of settings."""
    return any(_matches(tuple(pattern.split(".")), key) for pattern in KEYS.get(uri, "").split())


def is_top_level(key: KeyPath) -> bool:
    """Whether a key outside of `[plugins]` was one of containerd's."""
    return any(_matches(tuple(pattern.split(".")), key) for pattern in TOP_LEVEL.split())


def _matches(pattern: tuple[str, ...], key: KeyPath) -> bool:
    for wanted, part in zip(pattern, key, strict=False):
        if wanted == "**":
            return True
        if wanted not in {"*", part}:
            return False
    return len(key) <= len(pattern)
