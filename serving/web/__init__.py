"""A folder of static files that classifies without a server: the page, the network, and a runtime for browsers."""
