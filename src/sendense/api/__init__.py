"""Assembly of the HTTP server: routes, errors, the gate in front of them, health."""
