"""What the routes of the service need: the gate that every request goes through, bodies, pictures, errors."""
