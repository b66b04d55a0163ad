"""Removal of secrets from text that is shown, logged or stored.

An address such as http://alice:secret@host may come from MLFLOW_TRACKING_URI, --mirrors or --storage, and
libraries quote it in their errors.
"""

import re

# scheme://user:password@, where the password may contain "/" and "@", but `host:5000/...` is not a password.
_PASSWORD = re.compile(r"(?<=://)([^\s/?#:@'\"]*):(?!\d+[/?#])(?:(?!://)[^\s'\"])*@")
_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|pwd|token|secret|signature|credential|api_?key|access_?key)[\w.-]*=)"
    r"[^\s&;#'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace the passwords and tokens of the addresses in `text` by `***`."""
    return _PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
