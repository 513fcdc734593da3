"""Networks of containers: namespaces of their own, joined to networks by CNI plugins that moorctl itself runs."""
