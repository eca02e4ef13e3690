"""Where an NBD export is to be found."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """An export on a server: by unix socket, or by host and port.

    Exactly one of `socket_path` and `host` is set. `export` may be empty: the default export.
    """

    export: str = ""
    socket_path: str | None = None
    host: str | None = None
    port: int = 10809  # IANA's port for NBD

    def __post_init__(self) -> None:
        assert (self.socket_path is None) != (self.host is None), "one of socket_path and host"
