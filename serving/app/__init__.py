"""The HTTP service: server start-up, routes, and the middleware that every request passes through."""
