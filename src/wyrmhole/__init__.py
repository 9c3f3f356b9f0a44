"""wyrmhole: a user-space tunnel that speaks the WireGuard protocol, in Python."""
