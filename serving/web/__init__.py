"""A folder of static files that classifies without a server: page, network, and a runtime for browsers."""
