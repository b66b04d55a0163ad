"""The HTTP service: start the server, the routes, and what every request passes through."""
