"""Networks, and the card that describes a trained one."""
