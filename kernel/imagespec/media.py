"""Media types of images, OCI's and Docker's, and the kind of object that each names (OCI image spec, media-types)."""

from __future__ import annotations

from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_NONDISTRIBUTABLE: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_FOREIGN_GZIP: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
CHECKPOINT: Final = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CHECKPOINT_CONFIG: Final = "application/vnd.containerd.container.checkpoint.config.v1+proto"
IN_TOTO: Final = "application/vnd.in-toto+json"
REF_NAME: Final = "org.opencontainers.image.ref.name"
"""Annotation: a tag, or a whole name."""
IMAGE_NAME: Final = "io.containerd.image.name"
"""Annotation: the whole name of an image in an archive."""

INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
KNOWN_CONFIGS: Final = CONFIGS | {CHECKPOINT, CHECKPOINT_CONFIG}
SCHEMA1: Final = frozenset({DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED})

_DOCKER_LAYERS: Final = frozenset({DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_LAYER_ZSTD})
_FOREIGN_LAYERS: Final = frozenset({DOCKER_FOREIGN, DOCKER_FOREIGN_GZIP})


def is_layer(media_type: str) -> bool:
    """Whether the type names a layer of files, in whatever compression or encryption."""
    return media_type in _DOCKER_LAYERS or is_nondistributable(media_type) or media_type.partition("+")[0] == OCI_LAYER


def is_nondistributable(media_type: str) -> bool:
    """Whether the type names a layer that registries other than its publisher's do not keep."""
    return media_type in _FOREIGN_LAYERS or media_type.partition("+")[0] == OCI_NONDISTRIBUTABLE


def is_branch(media_type: str) -> bool:
    """Whether the type names a document that refers to others."""
    return media_type in INDEXES or media_type in MANIFESTS
