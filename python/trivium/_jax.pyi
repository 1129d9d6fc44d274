"""XLA FFI handlers of the trivium package; use them through `import trivium.jax`."""

from typing import Any

def handlers() -> dict[str, dict[str, Any]]: ...
