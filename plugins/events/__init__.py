"""Events (port: `moored.kernel.ports.events`)."""
