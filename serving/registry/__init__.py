"""From a finished training run to a registered version and to the champion."""
