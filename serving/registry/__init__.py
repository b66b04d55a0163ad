"""From a finished run to a registered version, and from there to the champion."""
