"""The distribution API as a client sees it: hosts, authentication, resolving, fetching and pushing."""
