"""Registers ttrpc services so that each call's namespace and lease are bound as for gRPC calls."""

from __future__ import annotations

import dataclasses
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from moored.api.ttrpc.server import CallContext, Services, methods_of
from moored.api.ttrpc.service import Method
from moored.kernel.namespaces import LEASE, NAMESPACE

LEASE_KEY = "containerd-lease"


class Registrar:
    """The TtrpcRegistrar over a server's registry."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_service(self, descriptor: ServiceDescriptor, servicer: object) -> None:
        """Serve what the servicer implements of the service.

        Raises AlreadyExists if another one does, InvalidArgument if it implements nothing.
        """
        methods = methods_of(descriptor, servicer)
        self._services.register(descriptor.full_name, {name: _bound(method) for name, method in methods.items()})


def _bound(method: Method) -> Method:
    handler = method.handler

    def call(request: Any, context: CallContext) -> Any:
        # Each call has a task of its own, and with it a context that nobody else sees.
        NAMESPACE.set(context.namespace)
        lease = context.metadata.get(LEASE_KEY)
        LEASE.set(lease[0] if lease else "")
        return handler(request, context)

    return dataclasses.replace(method, handler=call)
