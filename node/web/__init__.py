"""What a node says over HTTP: to everybody over TCP, and to its operator over a private unix socket."""
